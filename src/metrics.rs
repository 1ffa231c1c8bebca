//! `/metrics` in the text format of OpenMetrics. Everything is read when it is asked for; labels come from the
//! configuration and from fixed lists only.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::engine::State;
use crate::lifetime::Lifetime;
use crate::pool::{Admission, Pool, Runtimes};
use crate::proxy::{Journal, Proxy, Sessions, Snapshot};
use crate::stats::{Counter, Isolated, Times};
use relay::Pin;

/// What figures are made of.
#[derive(Clone)]
pub(crate) struct Figures {
    sessions: Arc<Sessions>,
    journal: Arc<Journal>,
    runtimes: Runtimes,
    life: Arc<Lifetime>,
}

impl Figures {
    /// Those of a proxy.
    pub(crate) fn of(proxy: &Proxy) -> Self {
        let (sessions, journal) = (proxy.sessions.clone(), proxy.journal.clone());
        Self { sessions, journal, runtimes: proxy.runtimes.clone(), life: proxy.life.clone() }
    }

    /// Whether clients are accepted, and if not, why.
    ///
    /// # Errors
    /// The reason, as a line.
    pub(crate) fn are_clients_accepted(&self) -> Result<(), &'static str> {
        match () {
            () if self.life.closing().is_cancelled() => Err("draining\n"),
            () if !self.life.is_listening() => Err("not listening yet\n"),
            () => Ok(()),
        }
    }
}

/// All metrics now. It takes as long as there are sessions.
pub(crate) fn render(figures: Figures) -> String {
    let mut registry = Registry::with_prefix("pgusher");
    registry.register_collector(Box::new(Now(figures)));
    let mut text = String::new();
    match text::encode(&mut text, &registry) {
        Ok(()) => text,
        Err(error) => format!("# {error}\n# EOF\n"),
    }
}

struct Now(Figures);

impl fmt::Debug for Now {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Now")
    }
}

/// One value of a metric.
enum Sample {
    Counter(u64),
    Gauge(i64),
    /// A counter of seconds, and a gauge of them: base units, as Prometheus asks for.
    CountedSeconds(f64),
    Seconds(f64),
    Histogram(Times),
}

impl EncodeMetric for Sample {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        match self {
            Self::Counter(value) => encoder.encode_counter::<NoLabelSet, _, u64>(value, None),
            Self::Gauge(value) => encoder.encode_gauge(value),
            Self::CountedSeconds(value) => encoder.encode_counter::<NoLabelSet, _, u64>(value, None),
            Self::Seconds(value) => encoder.encode_gauge(value),
            Self::Histogram(times) => {
                encoder.encode_histogram::<NoLabelSet>(times.sum, times.count, &times.classes, None)
            }
        }
    }

    fn metric_type(&self) -> MetricType {
        match self {
            Self::Counter(_) | Self::CountedSeconds(_) => MetricType::Counter,
            Self::Gauge(_) | Self::Seconds(_) => MetricType::Gauge,
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
        let now = self.0.sessions.snapshot();
        process(&self.0, &now, &mut encoder)?;
        counted(&now.pools, &mut encoder)?;
        standing(&now, &mut encoder)
    }
}

/// Of the process as a whole.
fn process(figures: &Figures, now: &Snapshot, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let Figures { journal, runtimes, life, .. } = figures;
    let counters = &journal.counters;
    let generation = &now.generation;
    let gauge = |value: usize| Sample::Gauge(i64::try_from(value).unwrap_or(i64::MAX));
    let count = |value: &AtomicU64| Sample::Counter(value.load(Ordering::Relaxed));
    family(
        encoder,
        "build_info",
        "The version",
        [(vec![("version", env!("CARGO_PKG_VERSION").to_owned())], Sample::Gauge(1))],
    )?;
    let io = vec![("io", runtimes.data.io().to_owned())];
    family(encoder, "io_info", "How sockets are read and written", [(io, Sample::Gauge(1))])?;
    let (threads, used) = runtimes.data.threads();
    family(encoder, "relay_threads", "Maximum number of relay threads", [(vec![], gauge(threads))])?;
    family(encoder, "relay_threads_used", "Relay threads that have sessions", [(vec![], gauge(used))])?;
    let number = Sample::Gauge(i64::try_from(generation.number).unwrap_or(i64::MAX));
    family(encoder, "generation", "Number of the configuration in force", [(vec![], number)])?;
    family(encoder, "sessions", "Clients that are logged in", [(vec![], gauge(now.sessions.len()))])?;
    family(
        encoder,
        "unsettled_sessions",
        "Sessions whose route has changed and that have not been moved yet",
        [(vec![], gauge(now.unsettled().len()))],
    )?;
    family(
        encoder,
        "max_client_conn",
        "The maximum number of clients",
        [(vec![], gauge(*generation.config.server.max_client_conn as usize))],
    )?;
    family(
        encoder,
        "draining",
        "1 while the process shuts down",
        [(vec![], Sample::Gauge(life.is_draining().into()))],
    )?;
    let reload = |outcome: &str| vec![("outcome", outcome.to_owned())];
    family(
        encoder,
        "reloads",
        "Reloads of the configuration",
        [
            (reload("applied"), count(&counters.reloads)),
            (reload("refused"), count(&counters.refused_reloads)),
        ],
    )?;
    family(encoder, "cancels", "Cancel requests of clients", [(vec![], count(&counters.cancels))])?;
    let dropped = Sample::Counter(counters.lines_dropped());
    family(
        encoder,
        "log_lines_dropped",
        "Log lines dropped because the log could not be written fast enough",
        [(vec![], dropped)],
    )?;
    if let Some(audit) = journal.audit.seen() {
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
            "Failed attempts to write the audit",
            one(Sample::Counter(audit.failures)),
        )?;
        family(encoder, "audit_lines", "Lines written to the audit", one(Sample::Counter(audit.written)))?;
        family(encoder, "audit_lost", "Events that the audit has lost", one(Sample::Counter(audit.lost)))?;
        family(
            encoder,
            "audit_tampered",
            "How often written audit lines were found missing or changed",
            one(Sample::Counter(audit.tampered)),
        )?;
    }
    let refusals = counters.refusals();
    let refusals = refusals.into_iter().map(|((sqlstate, fault), refused)| {
        let sqlstate = sqlstate.map_or_else(|| "other".to_owned(), |state| state.to_string());
        let labels = vec![("sqlstate", sqlstate), ("fault", fault.to_owned())];
        (labels, Sample::Counter(refused.count))
    });
    family(
        encoder,
        "refusals",
        "Errors that pgusher itself has raised, by SQLSTATE and by whose fault they are",
        refusals,
    )?;
    let login = Sample::Histogram(counters.logins.times());
    family(
        encoder,
        "login_seconds",
        "Time from the accepted socket to the first ReadyForQuery",
        [(vec![], login)],
    )?;
    let lookup = Sample::Histogram(counters.lookups.times());
    family(encoder, "route_seconds", "Time from a proved identity to its route", [(vec![], lookup)])
}

/// What each pool has counted.
fn counted(pools: &[Arc<Pool>], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    for (counter, name, help) in [
        (Counter::Assignments, "assignments", "How often an upstream connection was lent to a session"),
        (
            Counter::Transactions,
            "transactions",
            "Transactions, counting a query outside a transaction as one",
        ),
        (Counter::Queries, "queries", "Queries"),
        (Counter::Received, "received_bytes", "Bytes received from clients"),
        (Counter::Sent, "sent_bytes", "Bytes sent to clients"),
        (Counter::ClientParses, "client_parses", "Parse messages of clients"),
        (
            Counter::ServerParses,
            "server_parses",
            "Parse messages sent upstream; the rest were already prepared there",
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
        (Counter::WaitTime, "wait_seconds", "Time that sessions waited for an upstream connection"),
        (Counter::TransactionTime, "transaction_seconds", "Duration of transactions"),
        (Counter::QueryTime, "query_seconds", "Time that queries took upstream"),
    ] {
        let samples = pools
            .iter()
            .filter_map(|pool| Some((of_pool(pool), Sample::Histogram(pool.stats().times(counter)?))));
        family(encoder, name, help, samples)?;
    }
    let connects = pools.iter().map(|pool| (of_pool(pool), Sample::Histogram(pool.stats().connects.times())));
    family(encoder, "connect_seconds", "Time to connect and log in upstream", connects)?;
    let failures = pools
        .iter()
        .map(|pool| (of_pool(pool), Sample::Counter(pool.stats().failures.load(Ordering::Relaxed))));
    family(encoder, "connect_failures", "Failed attempts to connect upstream", failures)?;
    type Count = fn(&Isolated) -> &AtomicU64;
    let counts: [(&str, &str, Count); 3] = [
        ("hand_overs", "How often an upstream connection was handed from one user to another", |i| {
            &i.hand_overs
        }),
        ("resets", "Resets of upstream connections between users", |i| &i.resets),
        ("reset_failures", "Failed resets, after which the connection was closed", |i| &i.failures),
    ];
    for (name, help, count) in counts {
        let sample = |pool: &Arc<Pool>| count(&pool.stats().isolated).load(Ordering::Relaxed);
        let samples = pools.iter().map(|pool| (of_pool(pool), Sample::Counter(sample(pool))));
        family(encoder, name, help, samples)?;
    }
    let resets = pools.iter().map(|pool| {
        let micros = pool.stats().isolated.micros.load(Ordering::Relaxed);
        (of_pool(pool), Sample::CountedSeconds(Duration::from_micros(micros).as_secs_f64()))
    });
    family(encoder, "reset_seconds", "Time spent in resets", resets)
}

/// What the sessions of each pool do now, and for how long.
fn under_way(now: &Snapshot, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let seen: Vec<(Labels, Vec<_>)> = now
        .pools
        .iter()
        .map(|pool| (of_pool(pool), now.sessions_of(pool).map(|session| session.seen()).collect()))
        .collect();
    let states = seen.iter().flat_map(|(labels, seen)| {
        [State::Active, State::Idle, State::IdleInTransaction, State::Waiting].map(|state| {
            let count = seen.iter().filter(|seen| seen.state == state).count();
            (
                with(labels.clone(), "state", state.word()),
                Sample::Gauge(i64::try_from(count).unwrap_or(i64::MAX)),
            )
        })
    });
    family(encoder, "clients_by_state", "Sessions, by what they do", states)?;
    let longest = seen.iter().map(|(labels, seen)| {
        let longest = seen.iter().filter_map(|seen| seen.transaction).max().unwrap_or_default();
        (labels.clone(), Sample::Seconds(longest.as_secs_f64()))
    });
    family(
        encoder,
        "longest_transaction_seconds",
        "How long the longest open transaction has lasted",
        longest,
    )
}

/// How each pool is now.
fn standing(now: &Snapshot, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let pools = &now.pools;
    let gauge = |value: usize| Sample::Gauge(i64::try_from(value).unwrap_or(i64::MAX));
    let views: Vec<_> = pools.iter().map(|pool| (pool, pool.view())).collect();
    let connections = views.iter().flat_map(|(pool, view)| {
        [("active", view.active), ("idle", view.idle), ("opening", view.dialing)]
            .map(|(state, count)| (with(of_pool(pool), "state", state), gauge(count)))
    });
    family(encoder, "connections", "Upstream connections", connections)?;
    let sizes = pools.iter().map(|pool| (of_pool(pool), gauge(pool.connection().pool_size as usize)));
    family(encoder, "pool_size", "The maximum number of upstream connections", sizes)?;
    let waiting = views.iter().map(|(pool, view)| (of_pool(pool), gauge(view.waiting)));
    family(encoder, "waiting", "Sessions waiting for an upstream connection", waiting)?;
    let longest =
        views.iter().map(|(pool, view)| (of_pool(pool), Sample::Seconds(view.longest_wait.as_secs_f64())));
    family(encoder, "longest_wait_seconds", "How long the longest waiting of them has waited", longest)?;
    let up = views.iter().map(|(pool, view)| (of_pool(pool), Sample::Gauge((!view.failing).into())));
    family(encoder, "up", "0 after a failed attempt to connect upstream", up)?;
    let halted = views.iter().map(|(pool, view)| {
        (of_pool(pool), Sample::Gauge((view.halted.is_some() || view.admission != Admission::Open).into()))
    });
    family(encoder, "halted", "1 while the pool is paused, suspended or disabled", halted)?;
    let clients = pools.iter().map(|pool| (of_pool(pool), gauge(now.sessions_of(pool).count())));
    family(encoder, "clients", "Sessions", clients)?;
    under_way(now, encoder)?;
    let pins = pools.iter().flat_map(|pool| {
        let reasons: Vec<_> =
            now.sessions_of(pool).filter_map(|session| session.orders.statistics.see().pin).collect();
        Pin::ALL.map(|reason| {
            let count = reasons.iter().filter(|pin| **pin == reason).count();
            (with(of_pool(pool), "reason", reason.word()), gauge(count))
        })
    });
    family(encoder, "pinned", "Pinned sessions, by the reason", pins)
}
