//! What an operator does: explaining, reloading, going back, the audit.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use axum::Json;
use axum::extract::State;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use secrecy::ExposeSecret;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::answer::{self, Outcome, PlanRow, Problem, plan_rows, tagged};
use super::apply::{self, Source};
use super::{Api, Number, WriteRequest, redact};
use crate::audit;
use crate::proxy::{Intent, LoadError};
use policy::attribute::{self};
use policy::route;

/// How much of the end of the audit is searched, and how many lines of it are answered at most.
const MAX_SEARCHED: u64 = 64 << 20;
const BLOCK: u64 = 1 << 20;
const MAX_FOUND: usize = 500;

/// A time, as RFC 3339 has it.
pub(super) fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

/// Where somebody goes, and why.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Resolved {
    /// Who.
    user: String,
    /// By which name.
    database: String,
    /// Whether a login would be let in.
    permitted: bool,
    /// What it is called there.
    environment: Option<String>,
    /// The connection.
    connection: Option<String>,
    /// Its identifier.
    connection_id: Option<Uuid>,
    /// The server and its database.
    target: Option<String>,
    /// Whether it is a production database.
    production: bool,
    /// Why, in order.
    reasons: Vec<String>,
    /// What somebody should look at.
    warnings: Vec<String>,
    /// Why not: what the client would be told.
    refused: Option<Refused>,
    /// Of the configuration that decides.
    generation: u64,
}

/// An error that a client would be sent.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Refused {
    /// The SQLSTATE.
    code: String,
    /// The message.
    message: String,
    /// The DETAIL.
    detail: Option<String>,
    /// The HINT.
    hint: Option<String>,
}

/// Explains where a user goes.
#[utoipa::path(get, path = "/api/v1/resolve", tag = "routing", operation_id = "resolve",
    params(("user" = String, Query, description = "Who."), ("database" = String, Query, description = "By which name."),
        ("environment" = Option<String>, Query, description = "What is requested.")),
    responses((status = 200, description = "Where, or why not.", body = Resolved)))]
pub(super) async fn resolve(State(api): State<Arc<Api>>, parts: Parts) -> Result<Json<Resolved>, Problem> {
    let pairs = super::query(&parts, &["user", "database", "environment"])?;
    let needed = |name| super::parameter(&pairs, name).ok_or_else(|| Problem::field(name, "Required"));
    let (user, database) = (needed("user")?, needed("database")?);
    let environment = super::parameter(&pairs, "environment");
    let generation = api.current.generation();
    let config = &generation.config;
    let missing = || Problem::new(StatusCode::NOT_FOUND, format!("User with name {user} does not exist"));
    let known = config.users.get(user).ok_or_else(missing)?;
    let attributes = attribute::explain(config, user).with(api.access.of(user));
    let route = route::resolve(config, &attributes, database, environment);
    let mut resolved = Resolved {
        user: user.to_owned(),
        database: database.to_owned(),
        permitted: route.is_ok() && !known.disabled,
        environment: None,
        connection: None,
        connection_id: None,
        target: None,
        production: false,
        reasons: Vec::new(),
        warnings: Vec::new(),
        refused: None,
        generation: generation.number,
    };
    match route {
        Ok(route) => {
            let connection = config.connections.get(route.connection());
            resolved.environment = Some(route.environment().to_string());
            resolved.connection = Some(route.connection().to_string());
            resolved.connection_id = connection.map(|connection| connection.id);
            resolved.target = connection.map(|connection| target(&connection.target));
            resolved.production = connection.is_some_and(|connection| connection.production);
            resolved.reasons = route.reasons().iter().map(ToString::to_string).collect();
            resolved.warnings = route.warnings().to_vec();
        }
        Err(refusal) => {
            resolved.refused = Some(Refused {
                code: refusal.sqlstate.to_string(),
                message: refusal.message.into_owned(),
                detail: refusal.detail,
                hint: refusal.hint.map(std::borrow::Cow::into_owned),
            });
        }
    }
    if known.disabled {
        resolved.warnings.push("the user is disabled, and may not log in".to_owned());
    }
    Ok(Json(resolved))
}

/// `host:port/database`
pub(super) fn target(target: &policy::config::Target) -> String {
    format!("{}:{}/{}", target.host, target.port, target.database)
}

/// What is in force after a reload.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Reloaded {
    /// Always true: otherwise there is an error.
    success: bool,
    /// It was only asked what would change.
    dry_run: bool,
    /// The number of the configuration in force.
    generation: u64,
    /// What has changed, or would.
    plan: Vec<PlanRow>,
}

/// Reads the file again: all of it takes effect, or nothing.
#[utoipa::path(post, path = "/api/v1/reload", tag = "configuration", operation_id = "reload",
    params(("dry_run" = Option<bool>, Query, description = "Only says what would change.")),
    responses((status = 200, description = "It is in force, or would be.", body = Reloaded)))]
pub(super) async fn reload(
    State(api): State<Arc<Api>>,
    asked: WriteRequest,
) -> Result<Json<Reloaded>, Problem> {
    let turn = super::turn(&api.writes).await?;
    let intent = asked.intent;
    let done = api.blocking(move |api| {
        let _turn = turn;
        let now = api.current.generation();
        asked.by.may_still(&now.config)?;
        answer::matches(asked.if_match.as_deref(), &apply::tag(api, &now))?;
        let done = match intent {
            Intent::DryRun => api.configuration.plan(None).map(|plan| (now.clone(), plan)),
            Intent::Write => api.configuration.reload_as_planned(),
        };
        done.map_err(|error| refused(&error))
    });
    let (generation, plan) = done.await?;
    let (generation, plan) = (generation.number, plan_rows(&plan));
    Ok(Json(Reloaded { success: true, dry_run: intent.is_dry(), generation, plan }))
}

/// The file is wrong: whoever asks has not written it just now, so that is a conflict; each problem has its place.
fn refused(error: &LoadError) -> Problem {
    let LoadError::Rejected(rejected) = error else { return Problem::conflict(error.to_string()) };
    let lines: Vec<_> = rejected.0.iter().map(|problem| rejected.0.line(problem)).collect();
    Problem::conflict(format!("the configuration is refused: {}", lines.join("; ")))
}

/// A configuration that is or was in force, or was refused.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Generation)]
pub(super) struct PastGeneration {
    /// From 1; one that was refused has the number that it would have had.
    number: u64,
    /// When.
    since: String,
    /// `in force`, `replaced` or `refused`
    state: &'static str,
    /// What has brought it.
    by: String,
    /// How many sessions it has decided about.
    sessions: usize,
    /// How many connections it has.
    connections: usize,
    /// How many users.
    users: usize,
    /// Why it was refused.
    error: Option<String>,
    /// Whether its text is still known, so that it can be gone back to.
    known: bool,
}

/// Configurations.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Generations {
    /// The newest first.
    generations: Vec<PastGeneration>,
}

/// The history of the configuration.
#[utoipa::path(get, path = "/api/v1/generations", tag = "configuration", operation_id = "listGenerations",
    responses((status = 200, description = "What was in force.", body = Generations)))]
pub(super) async fn generations(
    State(api): State<Arc<Api>>,
    parts: Parts,
) -> Result<Json<Generations>, Problem> {
    super::query(&parts, &[])?;
    api.blocking(|api| Ok(Json(history(api)))).await
}

fn history(api: &Api) -> Generations {
    let sessions = api.sessions.snapshot().by_generation();
    let shown = |known: crate::proxy::PastConfiguration| PastGeneration {
        number: known.number,
        since: time(known.at),
        state: known.state,
        by: known.by,
        sessions: sessions.get(&known.number).copied().unwrap_or(0),
        connections: known.connections,
        users: known.users,
        known: known.error.is_none() && api.configuration.source(known.number).is_some(),
        error: known.error.map(|error| redact::safe(&error)),
    };
    let generations = api.configuration.history().into_iter().rev().map(shown).collect();
    Generations { generations }
}

/// Reads a configuration that is or was in force.
#[utoipa::path(get, path = "/api/v1/generations/{number}", tag = "configuration", operation_id = "readGeneration",
    params(("number" = u64, Path, description = "Which.")),
    responses((status = 200, description = "Its text, without its secrets.", body = Source)))]
pub(super) async fn generation(State(api): State<Arc<Api>>, number: Number) -> Result<Json<Source>, Problem> {
    let read = api.blocking(move |api| {
        let source = api.configuration.source(number.0);
        let source = source.ok_or_else(|| Problem::missing("Generation", number.0))?;
        Ok(Source { generation: number.0, toml: redact::config(source.expose_secret()) })
    });
    read.await.map(Json)
}

/// Goes back to a configuration: what it says of connections, attributes, groups and users is written to the file, and in
/// force as a new one. `[server]` and `[management]` stay: a token that was taken away does not come back.
#[utoipa::path(post, path = "/api/v1/generations/{number}/rollback", tag = "configuration", operation_id = "rollBack",
    params(("number" = u64, Path, description = "Which."),
        ("dry_run" = Option<bool>, Query, description = "Only says what would change.")),
    responses((status = 200, description = "It is in force, or would be.", body = Outcome)))]
pub(super) async fn roll_back(
    State(api): State<Arc<Api>>,
    asked: WriteRequest,
    number: Number,
) -> Result<Response, Problem> {
    let if_match = asked.if_match.clone();
    let (written, ()) = api
        .write(&asked, move |api, change| {
            let source = api.configuration.source(number.0);
            let source = source.ok_or_else(|| Problem::missing("Generation", number.0))?;
            let now = change.generation.config.source.expose_secret();
            answer::matches(if_match.as_deref(), &api.tags.of(&"", now))?;
            let earlier = source.expose_secret().parse();
            apply::go_back(change, earlier.map_err(|_| Problem::conflict("it cannot be edited"))?);
            Ok(())
        })
        .await?;
    let tag = apply::tag(&api, &written.generation);
    Ok(tagged(&HeaderMap::new(), StatusCode::OK, &tag, Outcome::of(&written, asked.intent)))
}

/// Lines of the audit.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FoundLines {
    /// The newest first: each as it was written.
    #[schema(value_type = Vec<Object>)]
    events: Vec<Value>,
    /// Whether all that there is was searched.
    complete: bool,
}

/// Searches the end of the audit.
#[utoipa::path(get, path = "/api/v1/audit", tag = "audit", operation_id = "searchAudit",
    params(("q" = Option<String>, Query, description = "Words that a line must have, all of them."),
        ("event" = Option<String>, Query, description = "Only events of this name."),
        ("user" = Option<String>, Query, description = "Only those of this user."),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 500, description = "How many at most: 1 to 500, by default 100.")),
    responses((status = 200, description = "What was found.", body = FoundLines)))]
pub(super) async fn search_audit(
    State(api): State<Arc<Api>>,
    parts: Parts,
) -> Result<Json<FoundLines>, Problem> {
    let pairs = super::query(&parts, &["q", "event", "user", "limit"])?;
    let limit = super::bounded(&pairs, "limit", 100, MAX_FOUND)?;
    let Some(path) = api.current.generation().config.audit_file() else {
        return Err(Problem::conflict("there is no audit: set [server] audit_file"));
    };
    let _turn = super::turn(&api.searches).await?;
    let found = api.blocking(move |_| {
        let words: Vec<String> = super::parameter(&pairs, "q")
            .unwrap_or_default()
            .split_whitespace()
            .map(str::to_lowercase)
            .collect();
        let is = |event: &Value, name: &str| {
            super::parameter(&pairs, name)
                .is_none_or(|wanted| event.get(name).and_then(Value::as_str) == Some(wanted))
        };
        let wanted = |line: &str| -> Option<Value> {
            let lower = line.to_lowercase();
            let event: Value =
                words.iter().all(|word| lower.contains(word)).then(|| serde_json::from_str(line).ok())??;
            (is(&event, "event") && is(&event, "user")).then_some(event)
        };
        search(&path, limit, &wanted)
            .map_err(|error| Problem::conflict(format!("the audit cannot be read: {error}")))
    });
    found.await.map(Json)
}

/// The last lines that are wanted, of the last files: read from their ends, a block at a time.
fn search(path: &Path, limit: usize, wanted: &dyn Fn(&str) -> Option<Value>) -> io::Result<FoundLines> {
    let mut left = MAX_SEARCHED;
    let mut found = FoundLines { events: Vec::new(), complete: true };
    for path in audit::files(path)?.iter().rev() {
        let file = File::open(path)?;
        let mut end = file.metadata()?.len();
        // What of a line stands before the block that was read last.
        let mut rest = Vec::new();
        while end > 0 {
            let begin = end.saturating_sub(BLOCK);
            let mut bytes = vec![0; usize::try_from(end - begin).unwrap_or(0)];
            file.read_exact_at(&mut bytes, begin)?;
            bytes.append(&mut rest);
            left = left.saturating_sub(end - begin);
            end = begin;
            let whole = match bytes.iter().position(|byte| *byte == b'\n') {
                Some(at) if begin > 0 => {
                    rest = bytes[..=at].to_vec();
                    at + 1
                }
                _ => 0,
            };
            for line in String::from_utf8_lossy(&bytes[whole..]).lines().rev() {
                let Some(event) = wanted(line) else { continue };
                if found.events.len() == limit {
                    found.complete = false;
                    return Ok(found);
                }
                found.events.push(event);
            }
            if left == 0 {
                found.complete = false;
                return Ok(found);
            }
        }
    }
    Ok(found)
}
