//! `/metrics` in the text format of OpenMetrics. Everything is read when it is asked for; labels come from the
//! configuration and from fixed lists only.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::pool::Pool;
use crate::proxy::{LiveSession, Proxy};
use crate::stats::{Counter, Isolated, Times};
use relay::Pin;

/// All metrics now.
pub(crate) fn render(proxy: &Arc<Proxy>) -> String {
    let mut registry = Registry::with_prefix("pgusher");
    registry.register_collector(Box::new(Now(proxy.clone())));
    let mut text = String::new();
    match text::encode(&mut text, &registry) {
        Ok(()) => text,
        Err(error) => format!("# {error}\n# EOF\n"),
    }
}

struct Now(Arc<Proxy>);

impl fmt::Debug for Now {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Now")
    }
}

/// One value of a metric.
enum Sample {
    Counter(u64),
    Gauge(i64),
    Histogram(Times),
}

impl EncodeMetric for Sample {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        match self {
            Self::Counter(value) => encoder.encode_counter::<NoLabelSet, _, u64>(value, None),
            Self::Gauge(value) => encoder.encode_gauge(value),
            Self::Histogram(times) => {
                encoder.encode_histogram::<NoLabelSet>(times.sum, times.count, &times.classes, None)
            }
        }
    }

    fn metric_type(&self) -> MetricType {
        match self {
            Self::Counter(_) => MetricType::Counter,
            Self::Gauge(_) => MetricType::Gauge,
            Self::Histogram(_) => MetricType::Histogram,
        }
    }
}

type Labels = Vec<(&'static str, String)>;

/// A metric with all its values.
fn family(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: impl IntoIterator<Item = (Labels, Sample)>,
) -> fmt::Result {
    let mut samples = samples.into_iter().peekable();
    let Some((_, first)) = samples.peek() else { return Ok(()) };
    let mut family = encoder.encode_descriptor(name, help, None, first.metric_type())?;
    for (labels, sample) in samples {
        sample.encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn of_pool(pool: &Pool) -> Labels {
    let connection = pool.connection();
    vec![("connection", connection.name.to_string()), ("environment", connection.environment.to_string())]
}

fn with(mut labels: Labels, name: &'static str, value: &str) -> Labels {
    labels.push((name, value.to_owned()));
    labels
}

impl Collector for Now {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let proxy = &self.0;
        let (pools, sessions) = (proxy.all_pools(), proxy.live_sessions());
        process(proxy, &sessions, &mut encoder)?;
        counted(&pools, &mut encoder)?;
        standing(&pools, &sessions, &mut encoder)
    }
}

/// Of the process as a whole.
fn process(
    proxy: &Arc<Proxy>,
    sessions: &[Arc<LiveSession>],
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    let counters = &proxy.counters;
    let generation = proxy.generation();
    let gauge = |value: usize| Sample::Gauge(i64::try_from(value).unwrap_or(i64::MAX));
    let count = |value: &AtomicU64| Sample::Counter(value.load(Ordering::Relaxed));
    family(
        encoder,
        "build_info",
        "The version",
        [(vec![("version", env!("CARGO_PKG_VERSION").to_owned())], Sample::Gauge(1))],
    )?;
    let io = vec![("io", proxy.runtimes.data.io().to_owned())];
    family(encoder, "io_info", "How sockets are read and written", [(io, Sample::Gauge(1))])?;
    let (threads, used) = proxy.runtimes.data.threads();
    family(encoder, "relay_threads", "Threads that may relay", [(vec![], gauge(threads))])?;
    family(encoder, "relay_threads_used", "Threads that have sessions", [(vec![], gauge(used))])?;
    let number = Sample::Gauge(i64::try_from(generation.number).unwrap_or(i64::MAX));
    family(encoder, "generation", "The configuration in force", [(vec![], number)])?;
    family(encoder, "sessions", "Clients that are logged in", [(vec![], gauge(sessions.len()))])?;
    family(
        encoder,
        "unsettled_sessions",
        "Sessions that stand where their users do not go any more",
        [(vec![], gauge(proxy.unsettled().len()))],
    )?;
    family(
        encoder,
        "max_client_conn",
        "The most clients",
        [(vec![], gauge(*generation.config.server.max_client_conn as usize))],
    )?;
    family(
        encoder,
        "draining",
        "1 while the process ends",
        [(vec![], Sample::Gauge(proxy.is_draining().into()))],
    )?;
    let reload = |outcome: &str| vec![("outcome", outcome.to_owned())];
    family(
        encoder,
        "reloads",
        "Configurations that were read again",
        [
            (reload("applied"), count(&counters.reloads)),
            (reload("refused"), count(&counters.refused_reloads)),
        ],
    )?;
    family(encoder, "cancels", "Cancel requests of clients", [(vec![], count(&counters.cancels))])?;
    let dropped = Sample::Counter(counters.lines_dropped());
    family(encoder, "log_lines_dropped", "Lines that nobody took from the log", [(vec![], dropped)])?;
    if let Some(audit) = proxy.audit.seen() {
        let one = |sample| [(vec![], sample)];
        family(
            encoder,
            "audit_failing",
            "1 while the audit cannot be written",
            one(Sample::Gauge(audit.failing.into())),
        )?;
        family(
            encoder,
            "audit_failures",
            "How often that was tried in vain",
            one(Sample::Counter(audit.failures)),
        )?;
        family(encoder, "audit_lines", "Lines of the audit", one(Sample::Counter(audit.written)))?;
        family(encoder, "audit_lost", "Events that the audit has lost", one(Sample::Counter(audit.lost)))?;
        family(
            encoder,
            "audit_tampered",
            "How often lines of the audit were missing or changed that had been written",
            one(Sample::Counter(audit.tampered)),
        )?;
    }
    let refusals = counters.refusals();
    let refusals = refusals.into_iter().map(|((sqlstate, fault), count)| {
        let labels = vec![("sqlstate", sqlstate.to_owned()), ("fault", fault.to_owned())];
        (labels, Sample::Counter(count))
    });
    family(encoder, "refusals", "Errors that pgusher itself has raised", refusals)?;
    let login = Sample::Histogram(counters.logins.times());
    family(
        encoder,
        "login_seconds",
        "From the accepted socket to the first ReadyForQuery",
        [(vec![], login)],
    )?;
    let lookup = Sample::Histogram(counters.lookups.times());
    family(encoder, "route_seconds", "From who a client is to where it goes", [(vec![], lookup)])
}

/// What each pool has counted.
fn counted(pools: &[Arc<Pool>], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    for (counter, name, help) in [
        (Counter::Assignments, "assignments", "How often a connection was lent"),
        (Counter::Transactions, "transactions", "Transactions, and queries outside of one"),
        (Counter::Queries, "queries", "Queries"),
        (Counter::Received, "received_bytes", "Bytes from clients"),
        (Counter::Sent, "sent_bytes", "Bytes to clients"),
        (Counter::ClientParses, "client_parses", "Parse messages of clients"),
        (
            Counter::ServerParses,
            "server_parses",
            "Parse messages to the upstream: the others were known there",
        ),
        (Counter::Binds, "binds", "Bind messages of clients"),
        (Counter::Logins, "logins", "Logins"),
    ] {
        let samples = pools
            .iter()
            .map(|pool| (of_pool(pool), Sample::Counter(pool.stats().totals()[counter as usize])));
        family(encoder, name, help, samples)?;
    }
    for (counter, name, help) in [
        (Counter::WaitTime, "wait_seconds", "How long those waited who had to wait for a connection"),
        (Counter::TransactionTime, "transaction_seconds", "How long transactions took"),
        (Counter::QueryTime, "query_seconds", "How long the upstream owed an answer"),
    ] {
        let samples = pools
            .iter()
            .filter_map(|pool| Some((of_pool(pool), Sample::Histogram(pool.stats().times(counter)?))));
        family(encoder, name, help, samples)?;
    }
    let connects = pools.iter().map(|pool| (of_pool(pool), Sample::Histogram(pool.stats().connects.times())));
    family(encoder, "connect_seconds", "How long it took to connect and log in upstream", connects)?;
    let failures = pools
        .iter()
        .map(|pool| (of_pool(pool), Sample::Counter(pool.stats().failures.load(Ordering::Relaxed))));
    family(encoder, "connect_failures", "Attempts to connect upstream that failed", failures)?;
    type Count = fn(&Isolated) -> &AtomicU64;
    let counts: [(&str, &str, Count); 4] = [
        ("hand_overs", "How often a connection went from one user to another", |i| &i.hand_overs),
        ("resets", "How often a connection was reset after its last user", |i| &i.resets),
        ("reset_failures", "How often that failed, and the connection was closed", |i| &i.failures),
        ("reset_microseconds", "How long all resets took", |i| &i.micros),
    ];
    for (name, help, count) in counts {
        let sample = |pool: &Arc<Pool>| count(&pool.stats().isolated).load(Ordering::Relaxed);
        let samples = pools.iter().map(|pool| (of_pool(pool), Sample::Counter(sample(pool))));
        family(encoder, name, help, samples)?;
    }
    Ok(())
}

/// How each pool is now.
fn standing(
    pools: &[Arc<Pool>],
    sessions: &[Arc<LiveSession>],
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    let gauge = |value: usize| Sample::Gauge(i64::try_from(value).unwrap_or(i64::MAX));
    let views: Vec<_> = pools.iter().map(|pool| (pool, pool.view())).collect();
    let connections = views.iter().flat_map(|(pool, view)| {
        [("active", view.active), ("idle", view.idle), ("opening", view.dialing)]
            .map(|(state, count)| (with(of_pool(pool), "state", state), gauge(count)))
    });
    family(encoder, "connections", "Upstream connections", connections)?;
    let sizes = pools.iter().map(|pool| (of_pool(pool), gauge(pool.connection().pool_size as usize)));
    family(encoder, "pool_size", "The most upstream connections", sizes)?;
    let waiting = views.iter().map(|(pool, view)| (of_pool(pool), gauge(view.waiting)));
    family(encoder, "waiting", "Clients that wait for a connection", waiting)?;
    let longest = views.iter().map(|(pool, view)| {
        let millis = i64::try_from(view.longest_wait.as_millis()).unwrap_or(i64::MAX);
        (of_pool(pool), Sample::Gauge(millis))
    });
    family(encoder, "longest_wait_milliseconds", "How long the first of them has waited", longest)?;
    let up = views.iter().map(|(pool, view)| (of_pool(pool), Sample::Gauge((!view.failing).into())));
    family(encoder, "up", "0 after an attempt to connect upstream has failed", up)?;
    let halted = views
        .iter()
        .map(|(pool, view)| (of_pool(pool), Sample::Gauge((view.halted.is_some() || view.disabled).into())));
    family(encoder, "halted", "1 while it is paused, suspended or disabled", halted)?;
    let clients = pools.iter().map(|pool| {
        (of_pool(pool), gauge(sessions.iter().filter(|session| Arc::ptr_eq(&session.pool, pool)).count()))
    });
    family(encoder, "clients", "Sessions of each connection", clients)?;
    let pins = pools.iter().flat_map(|pool| {
        Pin::ALL.map(|reason| {
            let here = |session: &&Arc<LiveSession>| {
                Arc::ptr_eq(&session.pool, pool) && session.orders.statistics.see().pin == Some(reason)
            };
            (with(of_pool(pool), "reason", reason.word()), gauge(sessions.iter().filter(here).count()))
        })
    });
    family(encoder, "pinned", "Sessions that keep their upstream connection, by the reason", pins)
}
