//! What the page shows at a glance: routes as flows, pools and their last minutes, figures.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use axum::Json;
use axum::extract::State;
use axum::http::request::Parts;
use parking_lot::Mutex;
use serde::Serialize;
use utoipa::ToSchema;

use super::answer::Problem;
use super::operate::{target, time};
use super::{Api, Caller};
use crate::pool::Pool;
use crate::proxy::Snapshot;
use crate::stats::Counter;
use policy::attribute;
use policy::names::{ConnectionName, UserName};
use policy::route::{self, Reason, Route};

/// How often the pools are looked at, and how many of these looks are kept: ten minutes.
const INTERVAL: Duration = Duration::from_secs(3);
const KEPT: usize = 200;
/// How many users are named in a flow.
const MAX_NAMED: usize = 20;

/// A pool at one moment.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Sample {
    /// Connections that are lent, or kept.
    active: usize,
    /// Connections that wait to be lent.
    idle: usize,
    /// Clients that wait.
    waiting: usize,
    /// Transactions since the last look.
    transactions: u64,
}

#[derive(Debug, Default)]
struct Kept {
    samples: VecDeque<Sample>,
    transactions: u64,
}

/// The last minutes of each pool.
#[derive(Debug, Default)]
pub(super) struct History(Mutex<BTreeMap<ConnectionName, Kept>>);

impl History {
    fn look(&self, pools: &[Arc<Pool>]) {
        let mut all = self.0.lock();
        all.retain(|name, _| pools.iter().any(|pool| pool.connection().name == *name));
        for pool in pools {
            let (view, transactions) = (pool.view(), pool.stats().totals()[Counter::Transactions as usize]);
            let kept = all.entry(pool.connection().name.clone()).or_default();
            // Of a pool in the place of another it begins anew.
            let new = transactions.checked_sub(kept.transactions).unwrap_or(transactions);
            let new = if kept.samples.is_empty() { 0 } else { new };
            let sample =
                Sample { active: view.active, idle: view.idle, waiting: view.waiting, transactions: new };
            kept.transactions = transactions;
            kept.samples.push_back(sample);
            if kept.samples.len() > KEPT {
                kept.samples.pop_front();
            }
        }
    }

    fn of(&self, name: &ConnectionName) -> Vec<Sample> {
        self.0.lock().get(name).map(|kept| kept.samples.iter().copied().collect()).unwrap_or_default()
    }
}

/// Looks until the process ends.
pub(super) fn remember(api: &Arc<Api>) {
    let api: Weak<Api> = Arc::downgrade(api);
    tokio::spawn(async move {
        let mut interval = tokio::time::interval(INTERVAL);
        loop {
            interval.tick().await;
            let Some(api) = api.upgrade() else { return };
            let pools: Vec<_> = api.current.generation().pools.values().cloned().collect();
            api.history.look(&pools);
        }
    });
}

/// A pool.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct PoolShown {
    /// Of which connection.
    connection: String,
    /// What that is called.
    environment: String,
    /// The server and its database.
    target: String,
    /// Whether it is a production database.
    production: bool,
    /// `up`, `unused`, `failing`, `paused`, `disabled` or `drained`
    health: &'static str,
    /// Clients that are there.
    sessions: usize,
    /// Connections that are lent, or kept.
    active: usize,
    /// Connections that wait to be lent.
    idle: usize,
    /// Clients that wait.
    waiting: usize,
    /// For how long the first of them, in milliseconds.
    longest_wait_ms: u64,
    /// How long a query, and a wait for a connection, took on average of late, in milliseconds.
    query_ms: f64,
    /// See `query_ms`.
    wait_ms: f64,
    /// Clients that keep their connection.
    pinned: usize,
    /// The most connections.
    pool_size: u32,
    /// The last minutes, the newest last.
    history: Vec<Sample>,
}

/// Users who go the same way for the same reason.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Flow {
    /// By which name.
    database: String,
    /// Where the value stands: `user`, `group …`, `default`, `none`, or `granted`.
    origin: String,
    /// The attribute and its value, if one has decided.
    value: String,
    /// What they come to; nothing if they are refused.
    environment: Option<String>,
    /// The connection.
    connection: Option<String>,
    /// The server and its database.
    target: Option<String>,
    /// Whether it is a production database.
    production: bool,
    /// Whether nothing has matched.
    falls_back: bool,
    /// Some of the users.
    users: Vec<String>,
    /// How many there are.
    user_count: usize,
    /// How many clients of theirs are there.
    sessions: usize,
}

/// Everything at a glance.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Overview {
    /// Of pgusher.
    version: &'static str,
    /// When this was.
    at: String,
    /// The configuration in force.
    generation: u64,
    /// Clients that are logged in.
    sessions: usize,
    /// Those that stand where their users do not go any more.
    unsettled: usize,
    /// Whether it is about to end.
    draining: bool,
    /// What the token that asks may do: `admin` or `read`.
    role: &'static str,
    /// How often it was looked for the history of pools, in seconds.
    interval: u64,
    /// Who goes where.
    flows: Vec<Flow>,
    /// The pools.
    pools: Vec<PoolShown>,
}

/// Shows everything at a glance.
#[utoipa::path(get, path = "/api/v1/overview", tag = "sessions", operation_id = "overview",
    responses((status = 200, description = "Everything.", body = Overview)))]
pub(super) async fn overview(
    State(api): State<Arc<Api>>,
    caller: Caller,
    parts: Parts,
) -> Result<Json<Overview>, Problem> {
    super::query(&parts, &[])?;
    api.blocking(move |api| Ok(Json(look(api, caller.role())))).await
}

fn look(api: &Api, role: &'static str) -> Overview {
    let now = api.sessions.snapshot();
    let pool = |pool: &Arc<Pool>| {
        let (view, connection) = (pool.view(), pool.connection());
        let averages = pool.stats().averages();
        // Microseconds, whole: exact as a float.
        #[expect(clippy::cast_precision_loss, reason = "no average is that long")]
        let average = |of: Counter| averages[of as usize] as f64 / 1000.0;
        PoolShown {
            connection: connection.name.to_string(),
            environment: connection.environment.to_string(),
            target: target(&connection.target),
            production: connection.production,
            health: view.health(),
            sessions: now.sessions_of(pool).count(),
            active: view.active,
            idle: view.idle,
            waiting: view.waiting,
            longest_wait_ms: u64::try_from(view.longest_wait.as_millis()).unwrap_or(u64::MAX),
            query_ms: average(Counter::QueryTime),
            wait_ms: average(Counter::WaitTime),
            pinned: view.pinned,
            pool_size: connection.pool_size,
            history: api.history.of(&connection.name),
        }
    };
    Overview {
        version: env!("CARGO_PKG_VERSION"),
        at: time(SystemTime::now()),
        generation: now.generation.number,
        sessions: now.sessions.len(),
        unsettled: now.unsettled().len(),
        draining: api.life.is_draining(),
        role,
        interval: INTERVAL.as_secs(),
        flows: flows(api, &now),
        pools: now.generation.pools.values().map(pool).collect(),
    }
}

/// What a decision hung on: where the value stood, and the value.
fn cause<S>(route: &Route<S>) -> (String, String) {
    let of = |reason: &Reason| match reason {
        Reason::Value { attribute, value, origin } => {
            Some((origin.to_string(), format!("{attribute} = {value}")))
        }
        Reason::Unmatched { attribute, values, origin } => {
            Some((origin.to_string(), format!("{attribute} = {}", values.join(", "))))
        }
        Reason::NoValue(attribute) => Some(("none".to_owned(), format!("no {attribute}"))),
        Reason::Granted(_) => Some(("granted".to_owned(), "granted".to_owned())),
        Reason::NoAttribute => Some(("none".to_owned(), "everybody".to_owned())),
        _ => None,
    };
    route.reasons().iter().find_map(of).unwrap_or_default()
}

fn flows(api: &Api, now: &Snapshot) -> Vec<Flow> {
    let config = &now.generation.config;
    let mut sessions: BTreeMap<(UserName, ConnectionName), usize> = BTreeMap::new();
    for session in &now.sessions {
        let key = (session.identity.user().clone(), session.target.route.base().clone());
        *sessions.entry(key).or_default() += 1;
    }
    let mut flows: BTreeMap<(String, String, String, Option<String>), Flow> = BTreeMap::new();
    let bases = config.databases.iter().filter(|(database, base)| database.as_str() == base.as_str());
    for (database, base) in bases {
        for user in config.users.values().filter(|user| !user.disabled) {
            let attributes =
                attribute::explain(config, user.name.as_str()).with(api.access.of(user.name.as_str()));
            let route = route::resolve(config, &attributes, database.as_str(), None).ok();
            let (origin, value) = route.as_ref().map_or_else(|| ("refused".to_owned(), String::new()), cause);
            let connection = route.as_ref().and_then(|route| config.connections.get(route.connection()));
            let environment = route.as_ref().map(|route| route.environment().to_string());
            let key = (database.to_string(), origin.clone(), value.clone(), environment.clone());
            let flow = flows.entry(key).or_insert_with(|| Flow {
                database: database.to_string(),
                origin,
                value,
                environment,
                connection: connection.map(|connection| connection.name.to_string()),
                target: connection.map(|connection| target(&connection.target)),
                production: connection.is_some_and(|connection| connection.production),
                falls_back: route.as_ref().is_some_and(|route| route.reasons().contains(&Reason::FallsBack)),
                users: Vec::new(),
                user_count: 0,
                sessions: 0,
            });
            flow.user_count += 1;
            if flow.users.len() < MAX_NAMED {
                flow.users.push(user.name.to_string());
            }
            flow.sessions += sessions.get(&(user.name.clone(), base.clone())).copied().unwrap_or(0);
        }
    }
    flows.into_values().collect()
}
