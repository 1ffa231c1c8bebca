//! `/errors`: what clients were refused with, or lost their sessions by.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::request::Parts;
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::answer::Problem;
use super::operate::time;

/// The errors of one SQLSTATE and fault.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ErrorCount {
    /// Its SQLSTATE; `null` for those that were counted together.
    sqlstate: Option<String>,
    /// Whose fault it is: `client`, `operator`, `upstream` or `pgusher`.
    fault: &'static str,
    /// How many since the process began.
    count: u64,
    /// When it was raised last.
    last: String,
    /// What the client was told then.
    message: String,
}

/// Errors that pgusher itself has raised.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Errors {
    /// The latest first.
    errors: Vec<ErrorCount>,
}

/// Lists errors that clients got from pgusher itself, by SQLSTATE and by whose fault they are.
#[utoipa::path(get, path = "/api/v1/errors", tag = "sessions", operation_id = "listErrors",
    responses((status = 200, description = "All since the process began.", body = Errors)))]
pub(super) async fn errors(State(api): State<Arc<Api>>, parts: Parts) -> Result<Json<Errors>, Problem> {
    super::query(&parts, &[])?;
    let mut all: Vec<_> = api.journal.counters.refusals().into_iter().collect();
    all.sort_by_key(|(_, refused)| std::cmp::Reverse(refused.last.0));
    let shown = all.into_iter().map(|((sqlstate, fault), refused)| ErrorCount {
        sqlstate: sqlstate.map(|state| state.to_string()),
        fault,
        count: refused.count,
        last: time(refused.last.0),
        message: refused.last.1,
    });
    Ok(Json(Errors { errors: shown.collect() }))
}
