//! Clients that are logged in: looking at them, and ending them.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::request::Parts;
use serde::Serialize;
use utoipa::ToSchema;

use super::answer::Problem;
use super::operate::time;
use super::{Api, Number, Page};
use crate::proxy::{Generation, LiveSession};

/// A client that is logged in.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Session {
    /// Its number.
    id: u64,
    /// Who.
    user: String,
    /// What it asked for.
    database: String,
    /// What it is called there.
    environment: String,
    /// Where it is.
    connection: String,
    /// Of the configuration that decided.
    generation: u64,
    /// `active`, `idle`, `idle in transaction` or `waiting`
    state: &'static str,
    /// For how many seconds it has been so.
    state_seconds: f64,
    /// For how many seconds its transaction has lasted; `null` outside of one.
    transaction_seconds: Option<f64>,
    /// Where from.
    peer: String,
    /// How it called itself.
    application_name: String,
    /// Since when.
    since: String,
    /// How many transactions it has had.
    transactions: u64,
    /// Why it keeps its connection.
    pin: Option<&'static str>,
    /// Why it has to leave, if it has to.
    moved: Option<String>,
    /// Why it is there.
    route: String,
}

/// Clients that are logged in.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Sessions {
    /// Those that were asked for, the oldest first.
    sessions: Vec<Session>,
    /// How many there are of them, should not all be shown.
    total: usize,
}

fn session(generation: &Generation, session: &LiveSession) -> Session {
    let (figures, seen) = (session.orders.statistics.see(), session.seen());
    Session {
        id: session.id,
        user: session.identity.user().to_string(),
        database: session.target.asked.database.to_string(),
        environment: session.target.route.environment().to_string(),
        connection: session.target.route.connection().to_string(),
        generation: session.target.generation,
        state: seen.state.word(),
        state_seconds: seen.lasts.as_secs_f64(),
        transaction_seconds: seen.transaction.map(|time| time.as_secs_f64()),
        peer: session.peer.to_string(),
        application_name: session.application_name.to_string(),
        since: time(session.since),
        transactions: figures.transactions,
        pin: figures.pin.map(relay::sql::Pin::word),
        moved: generation.moved(session),
        route: session.target.facts.route.clone(),
    }
}

/// Lists sessions.
#[utoipa::path(get, path = "/api/v1/sessions", tag = "sessions", operation_id = "listSessions",
    params(("user" = Option<String>, Query, description = "Only those of this user."),
        ("connection" = Option<String>, Query, description = "Only those on this connection."),
        ("environment" = Option<String>, Query, description = "Only those in this environment."),
        ("state" = Option<String>, Query, description = "Only those in this state."),
        ("q" = Option<String>, Query, description = "Only those in which all of these words stand: in user, database, environment, connection, state, address, application or route."),
        ("sort" = Option<String>, Query, description = "By `id` (the default), `user`, `database`, `environment`, `state`, `peer`, `transactions`, `stateSeconds` or `transactionSeconds`; with `-` before it, the greatest first."),
        ("offset" = Option<u32>, Query, minimum = 0, maximum = 1000000, description = "How many to leave out first."),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 10000, description = "How many at most: 1 to 10000, by default 1000.")),
    responses((status = 200, description = "The sessions.", body = Sessions)))]
pub(super) async fn sessions(State(api): State<Arc<Api>>, parts: Parts) -> Result<Json<Sessions>, Problem> {
    let pairs = super::query(
        &parts,
        &["user", "connection", "environment", "state", "q", "sort", "offset", "limit"],
    )?;
    let page = Page::of(&pairs, 1000)?;
    // Its work grows with the sessions: not on the thread that accepts.
    api.blocking(move |api| some_sessions(api, &pairs, &page).map(Json)).await
}

/// Those that a query means.
fn meant(api: &Api, pairs: &[(String, String)]) -> Vec<Arc<LiveSession>> {
    let is = |name: &str, has: &str| super::parameter(pairs, name).is_none_or(|wanted| wanted == has);
    let mut live = api.sessions.snapshot().sessions;
    live.retain(|session| {
        let target = &session.target;
        is("user", session.identity.user().as_str())
            && is("connection", target.route.connection().as_str())
            && is("environment", target.route.environment().as_str())
            && (super::parameter(pairs, "state").is_none() || is("state", session.seen().state.word()))
    });
    super::search(pairs, &mut live, |session| {
        let target = &session.target;
        [
            session.identity.user().as_str(),
            &target.asked.database,
            target.route.environment().as_str(),
            target.route.connection().as_str(),
            session.seen().state.word(),
            &session.peer,
            &session.application_name,
            &target.facts.route,
        ]
        .join(" ")
    });
    live
}

fn some_sessions(api: &Api, pairs: &[(String, String)], page: &Page) -> Result<Sessions, Problem> {
    let generation = api.current.generation();
    let mut all: Vec<Session> = meant(api, pairs).iter().map(|one| session(&generation, one)).collect();
    let sort = super::parameter(pairs, "sort").unwrap_or("id");
    let (key, descends) = sort.strip_prefix('-').map_or((sort, false), |key| (key, true));
    match key {
        // As they come.
        "id" => {}
        "user" => all.sort_by(|a, b| a.user.cmp(&b.user)),
        "database" => all.sort_by(|a, b| a.database.cmp(&b.database)),
        "environment" => all.sort_by(|a, b| a.environment.cmp(&b.environment)),
        "state" => all.sort_by_key(|one| one.state),
        "peer" => all.sort_by(|a, b| a.peer.cmp(&b.peer)),
        "transactions" => all.sort_by_key(|one| one.transactions),
        "stateSeconds" => all.sort_by(|a, b| a.state_seconds.total_cmp(&b.state_seconds)),
        "transactionSeconds" => all.sort_by(|a, b| {
            let seconds = |one: &Session| one.transaction_seconds.unwrap_or(-1.0);
            seconds(a).total_cmp(&seconds(b))
        }),
        _ => return Err(Problem::field("sort", "Expected the name of a column, maybe behind a -")),
    }
    if descends {
        all.reverse();
    }
    let (sessions, total) = page.cut(all);
    Ok(Sessions { sessions, total })
}

/// How many were ended.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SessionsEnded {
    /// Always true: otherwise there is an error.
    success: bool,
    /// How many were told to end, or would be.
    ended: usize,
}

/// Ends sessions. At least one of `user`, `connection`, `environment`, `state` and `q` must say which.
#[utoipa::path(delete, path = "/api/v1/sessions", tag = "sessions", operation_id = "endSessions",
    params(("user" = Option<String>, Query, description = "Those of this user."),
        ("connection" = Option<String>, Query, description = "Those on this connection."),
        ("environment" = Option<String>, Query, description = "Those in this environment."),
        ("state" = Option<String>, Query, description = "Those in this state."),
        ("q" = Option<String>, Query, description = "Those in which all of these words stand."),
        ("dry_run" = Option<bool>, Query, description = "Only says how many they are.")),
    responses((status = 200, description = "They were told to end, or would be.", body = SessionsEnded)))]
pub(super) async fn end_sessions(
    State(api): State<Arc<Api>>,
    parts: Parts,
) -> Result<Json<SessionsEnded>, Problem> {
    let pairs = super::query(&parts, &["user", "connection", "environment", "state", "q", "dry_run"])?;
    let is_dry = super::yes_or_no(&pairs, "dry_run")?;
    if !pairs.iter().any(|(name, value)| name != "dry_run" && !value.trim().is_empty()) {
        return Err(Problem::bad("say which sessions: by user, connection, environment, state or q"));
    }
    api.blocking(move |api| {
        let meant = meant(api, &pairs);
        let ended = match is_dry {
            true => meant.len(),
            false => meant.iter().filter(|session| api.sessions.kill(session.id)).count(),
        };
        Ok(Json(SessionsEnded { success: true, ended }))
    })
    .await
}

/// What was done.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SessionEnded {
    /// Always true: otherwise there is an error.
    success: bool,
    /// The session's number.
    data: u64,
    /// The session, as it was.
    session: Session,
}

/// Ends a session at once: its client is told `57P01`.
#[utoipa::path(delete, path = "/api/v1/sessions/{id}", tag = "sessions", operation_id = "endSession",
    params(("id" = u64, Path, description = "Its number.")),
    responses((status = 200, description = "It is told to end.", body = SessionEnded)))]
pub(super) async fn end_session(
    State(api): State<Arc<Api>>,
    id: Number,
    parts: Parts,
) -> Result<Json<SessionEnded>, Problem> {
    super::query(&parts, &[])?;
    let session = api.sessions.get(id.0).map(|live| session(&api.current.generation(), &live));
    match session.filter(|_| api.sessions.kill(id.0)) {
        Some(session) => Ok(Json(SessionEnded { success: true, data: id.0, session })),
        None => Err(Problem::missing("Session", id.0)),
    }
}
