//! Clients that are logged in: looking at them, and ending them.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::request::Parts;
use serde::Serialize;
use utoipa::ToSchema;

use super::answer::Problem;
use super::operate::time;
use super::{Api, Number};
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
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 10000, description = "How many at most: 1 to 10000, by default 1000.")),
    responses((status = 200, description = "The sessions.", body = Sessions)))]
pub(super) async fn sessions(State(api): State<Arc<Api>>, parts: Parts) -> Result<Json<Sessions>, Problem> {
    let pairs = super::query(&parts, &["user", "connection", "environment", "limit"])?;
    let limit = super::bounded(&pairs, "limit", 1000, 10_000)?;
    // Its work grows with the sessions: not on the thread that accepts.
    api.blocking(move |api| Ok(Json(some_sessions(api, &pairs, limit)))).await
}

fn some_sessions(api: &Api, pairs: &[(String, String)], limit: usize) -> Sessions {
    let is = |name: &str, has: &str| super::parameter(pairs, name).is_none_or(|wanted| wanted == has);
    let mut live = api.sessions.snapshot().sessions;
    live.retain(|session| {
        is("user", session.identity.user().as_str())
            && is("connection", session.target.route.connection().as_str())
            && is("environment", session.target.route.environment().as_str())
    });
    let sessions = live.iter().take(limit).map(|one| session(&api.current.generation(), one)).collect();
    Sessions { sessions, total: live.len() }
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
