//! The management API (spec section 8) and its page: what the file says, read and changed over HTTP.

mod access;
mod answer;
mod apply;
mod body;
mod bound;
mod connections;
mod declared;
mod document;
mod edit;
mod environments;
mod errors;
mod examine;
mod grants;
mod json;
mod judge;
mod operate;
mod orders;
mod overview;
mod page;
mod things;
mod people;
mod redact;
mod sessions;
mod tokens;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequestParts, Query, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::MethodRouter;
use axum::{Router, routing};
use tokio::sync::{Mutex, OwnedMutexGuard};
use utoipa::OpenApi;
use uuid::Uuid;

use crate::aside::Aside;
use crate::lifetime::Lifetime;
use crate::proxy::{
    Access, Change, Configuration, Current, Generation, Intent, Journal, Proxy, Sessions, Standing, Written,
};
use access::{Caller, Gate};
use answer::{Problem, Tags};
pub use judge::{judge_body, strict_json};
use overview::History;
use policy::config::{Config, Connection, file};
use policy::names::id_of;

/// How long a request waits for those before it.
const TURN: Duration = Duration::from_secs(30);
/// How many requests that grow with the configuration are dealt with at once.
const MAX_ASIDE: usize = 4;
/// How many entries of a list are answered at once, and how many may be left out first.
const MAX_LIMIT: usize = 10_000;
const MAX_OFFSET: usize = 1_000_000;

/// What the handlers share.
pub(crate) struct Api {
    current: Arc<Current>,
    sessions: Arc<Sessions>,
    configuration: Arc<Configuration>,
    access: Arc<Access>,
    standing: Arc<Standing>,
    journal: Arc<Journal>,
    life: Arc<Lifetime>,
    gate: Gate,
    tags: Tags,
    history: History,
    /// Writes wait here, and not on threads; grants by themselves.
    writes: Arc<Mutex<()>>,
    grants: Arc<Mutex<()>>,
    /// One search at a time.
    searches: Arc<Mutex<()>>,
    examinations: Arc<Mutex<()>>,
    /// Where requests are dealt with that grow with the configuration.
    aside: Aside,
}

/// A configuration, as it is checked and as it is written.
#[derive(Clone, Copy)]
struct View<'a> {
    config: &'a Config,
    file: &'a file::File,
}

impl<'a> View<'a> {
    fn of(generation: &'a Generation) -> Self {
        Self { config: &generation.config, file: &generation.file }
    }

    fn after(written: &'a Written) -> Self {
        match &written.planned {
            Some(planned) => Self { config: &planned.0, file: &planned.1 },
            None => Self::of(&written.generation),
        }
    }
}

/// The connection of an identifier.
///
/// # Errors
/// 404
fn connection_of(config: &Config, id: Uuid) -> Result<&Arc<Connection>, Problem> {
    let found = config.connections.values().find(|connection| connection.id == id);
    found.ok_or_else(|| Problem::missing("Connection", id))
}

/// What every write may be asked with.
#[derive(Debug, Clone)]
struct WriteRequest {
    by: Caller,
    /// Whether it has `?dry_run=true`.
    intent: Intent,
    /// `?drain=true`
    drains: bool,
    /// `?allow_production=true`
    allows_production: bool,
    /// `If-Match`
    if_match: Option<String>,
}

/// The parameters of a query, each at most once, and none that is unknown.
///
/// # Errors
/// 400
fn query(parts: &Parts, known: &[&str]) -> Result<Vec<(String, String)>, Problem> {
    let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
        .map_err(|_| Problem::bad("the query cannot be read"))?;
    for (i, (name, _)) in pairs.iter().enumerate() {
        let shown: String = name.chars().take(60).collect();
        if !known.contains(&name.as_str()) {
            let known = known.join(", ");
            return Err(Problem::field(&shown, format_args!("Unrecognized key (there are: {known})")));
        }
        if pairs[..i].iter().any(|(other, _)| other == name) {
            return Err(Problem::field(&shown, "given twice"));
        }
    }
    Ok(pairs)
}

/// A number of a query.
fn bounded(pairs: &[(String, String)], name: &str, usual: usize, most: usize) -> Result<usize, Problem> {
    match parameter(pairs, name).map(str::parse) {
        None => Ok(usual),
        Some(Ok(number)) if (1..=most).contains(&number) => Ok(number),
        Some(_) => Err(Problem::field(name, format_args!("Expected a number from 1 to {most}"))),
    }
}

/// One of them.
fn parameter<'q>(pairs: &'q [(String, String)], name: &str) -> Option<&'q str> {
    pairs.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

/// Which of the many of a list are answered.
struct Page {
    offset: usize,
    limit: usize,
}

impl Page {
    /// As `offset` and `limit` say.
    ///
    /// # Errors
    /// 400: one of them is no number, or out of its bounds.
    fn of(pairs: &[(String, String)], by_default: usize) -> Result<Self, Problem> {
        let offset = match parameter(pairs, "offset").map(str::parse) {
            None => 0,
            Some(Ok(offset)) if offset <= MAX_OFFSET => offset,
            Some(_) => {
                return Err(Problem::field("offset", format!("Expected a number from 0 to {MAX_OFFSET}")));
            }
        };
        Ok(Self { offset, limit: bounded(pairs, "limit", by_default, MAX_LIMIT)? })
    }

    /// Those, and how many there are in all.
    fn cut<T>(&self, all: Vec<T>) -> (Vec<T>, usize) {
        let total = all.len();
        (all.into_iter().skip(self.offset).take(self.limit).collect(), total)
    }
}

/// Keeps those in whose text all words of `q` stand, in whatever case.
fn search<T>(pairs: &[(String, String)], all: &mut Vec<T>, text: impl Fn(&T) -> String) {
    let words = parameter(pairs, "q").unwrap_or_default().to_lowercase();
    let words: Vec<&str> = words.split_whitespace().collect();
    if !words.is_empty() {
        all.retain(|one| {
            let text = text(one).to_lowercase();
            words.iter().all(|word| text.contains(word))
        });
    }
}

fn yes_or_no(pairs: &[(String, String)], name: &str) -> Result<bool, Problem> {
    match parameter(pairs, name) {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(Problem::field(name, "Expected true or false")),
    }
}

impl FromRequestParts<Arc<Api>> for WriteRequest {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Problem> {
        let pairs = query(parts, &["dry_run", "drain", "allow_production"])?;
        let if_match = parts.headers.get_all(header::IF_MATCH).iter();
        let if_match: Vec<_> = if_match.map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
        let if_match = (!if_match.is_empty()).then(|| if_match.join(","));
        Ok(Self {
            by: Caller::from_request_parts(parts, api).await?,
            intent: if yes_or_no(&pairs, "dry_run")? { Intent::DryRun } else { Intent::Write },
            drains: yes_or_no(&pairs, "drain")?,
            allows_production: yes_or_no(&pairs, "allow_production")?,
            if_match,
        })
    }
}

impl WriteRequest {
    /// The status of a creation: of one that was only asked about, nothing was created.
    fn created(&self) -> StatusCode {
        if self.intent.is_dry() { StatusCode::OK } else { StatusCode::CREATED }
    }
}

/// The identifier in a path.
struct Id(Uuid);

impl FromRequestParts<Arc<Api>> for Id {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Problem> {
        let path = axum::extract::Path::<String>::from_request_parts(parts, api).await;
        let text = path.map_err(|_| Problem::field("id", "Invalid uuid"))?;
        named(&api.current.generation().config, parts.uri.path(), &text)
            .unwrap_or_else(|| answer::uuid("id", &text))
            .map(Self)
    }
}

/// The identifier of what has this name, where it may stand in the path in place of it.
fn named(config: &Config, path: &str, name: &str) -> Option<Result<Uuid, Problem>> {
    if name.contains(char::is_control) {
        return None;
    }
    let kind = path.strip_prefix("/api/v1/")?.split('/').next()?;
    let (what, found) = match kind {
        "connections" | "connection-environments" => {
            ("Connection", config.connections.get(name).map(|connection| connection.id))
        }
        "users" => ("User", config.users.contains_key(name).then(|| id_of("user", name))),
        "groups" => ("Group", config.groups.contains_key(name).then(|| id_of("group", name))),
        "user-attributes" => ("User attribute", Some(id_of("attribute", name))),
        _ => return None,
    };
    match (Uuid::parse_str(name), found) {
        // Whoever has the identifier of another for a name is not to be taken for him, nor he for whoever has it.
        (Ok(id), Some(other)) if id != other && kind != "user-attributes" => Some(Err(Problem::field(
            "id",
            "it is an identifier, and a name: say the identifier of what is meant",
        ))),
        (Ok(_), _) => None,
        (Err(_), found) => Some(found.ok_or_else(|| Problem::missing_named(what, name))),
    }
}

/// A number in a path.
struct Number(u64);

impl FromRequestParts<Arc<Api>> for Number {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Problem> {
        let path = axum::extract::Path::<u64>::from_request_parts(parts, api).await;
        path.map(|path| Self(path.0)).map_err(|_| Problem::field("id", "Expected a number"))
    }
}

/// A name in a path.
struct NameInPath(String);

impl FromRequestParts<Arc<Api>> for NameInPath {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Problem> {
        let path = axum::extract::Path::<String>::from_request_parts(parts, api).await;
        path.map(|path| Self(path.0)).map_err(|_| Problem::field("name", "Invalid name"))
    }
}

/// Waits for one's turn, which is to go with the work: whoever leaves does not let another one begin beside it.
///
/// # Errors
/// 503: somebody takes too long.
async fn turn(mutex: &Arc<Mutex<()>>) -> Result<OwnedMutexGuard<()>, Problem> {
    let turn = tokio::time::timeout(TURN, mutex.clone().lock_owned()).await;
    turn.map_err(|_| Problem::ours("others are still being served: try again"))
}

impl Api {
    /// Changes the file and what is in force, or says what that would do.
    ///
    /// # Errors
    /// Why not; then nothing has changed.
    async fn write<T: Send + 'static>(
        self: &Arc<Self>,
        asked: &WriteRequest,
        edit: impl FnOnce(&Self, &mut Change<'_>) -> Result<T, Problem> + Send + 'static,
    ) -> Result<(Written, T), Problem> {
        let turn = turn(&self.writes).await?;
        let (api, caller, by, intent) = (self.clone(), asked.by.clone(), asked.by.name(), asked.intent);
        let wrote = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let mut made = None;
            let written = api.configuration.write(&by, intent, |change| {
                caller.may_still(&change.generation.config)?;
                caller.begins_to_write();
                made = Some(edit(&api, change)?);
                bound::check(&api.configuration, change)
            })?;
            made.map(|made| (written, made)).ok_or_else(|| Problem::ours("the change was lost"))
        });
        wrote.await.unwrap_or_else(|_| Err(Problem::ours("the change was lost")))
    }

    /// Does something that blocks.
    ///
    /// # Errors
    /// Its own.
    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        what: impl FnOnce(&Self) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let api = self.clone();
        let done = self.aside.run(move || what(&api)).await;
        done.unwrap_or_else(|_| Err(Problem::ours("the request was lost")))
    }
}

async fn no_such_path() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "there is no such path: see /api/v1/openapi.json")
}

/// What axum itself answers (a wrong method, say) has our form, too.
async fn in_our_form(request: Request, next: axum::middleware::Next) -> Response {
    let response = next.run(request).await;
    let is_ours = response.headers().contains_key(header::CONTENT_TYPE);
    match response.status() {
        StatusCode::METHOD_NOT_ALLOWED if !is_ours => {
            let allow = response.headers().get(header::ALLOW).cloned();
            let mut response =
                Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not take that method")
                    .into_response();
            if let Some(allow) = allow {
                response.headers_mut().insert(header::ALLOW, allow);
            }
            response
        }
        _ => response,
    }
}

/// The calls: each is routed and documented by its one line.
macro_rules! calls {
    ($($path:literal => $($method:ident $module:ident::$handler:ident),+;)*) => {
        #[derive(OpenApi)]
        #[openapi(paths($($($module::$handler),+),*))]
        struct Documented;

        fn calls() -> Router<Arc<Api>> {
            Router::new()$(.route($path, MethodRouter::new()$(.$method($module::$handler))+))*
        }
    };
}

calls! {
    "/api/v1/connections" => get connections::list, post connections::create;
    "/api/v1/connections/{id}" => get connections::read, patch connections::change, delete connections::delete;
    "/api/v1/connection-environments" => get environments::list, post environments::create;
    "/api/v1/connection-environments/{id}" =>
        get environments::read, put environments::change, delete environments::delete;
    "/api/v1/users" => get people::list_users, post people::create_user;
    "/api/v1/users/{id}" => get people::read_user, patch people::change_user, delete people::delete_user;
    "/api/v1/groups" => get people::list_groups, post people::create_group;
    "/api/v1/groups/{id}" => get people::read_group, patch people::change_group, delete people::delete_group;
    "/api/v1/user-attributes" => get people::list_attributes, post people::create_attribute;
    "/api/v1/user-attributes/{id}" =>
        get people::read_attribute, patch people::change_attribute, delete people::delete_attribute;
    "/api/v1/resolve" => get operate::resolve;
    "/api/v1/plan" => post apply::plan;
    "/api/v1/config" => get apply::read, put apply::apply;
    "/api/v1/reload" => post operate::reload;
    "/api/v1/generations" => get operate::generations;
    "/api/v1/generations/{number}" => get operate::generation;
    "/api/v1/generations/{number}/rollback" => post operate::roll_back;
    "/api/v1/orders" => post orders::give;
    "/api/v1/settings" => get orders::settings, post orders::set;
    "/api/v1/sessions" => get sessions::sessions, delete sessions::end_sessions;
    "/api/v1/sessions/{id}" => delete sessions::end_session;
    "/api/v1/grants" => get grants::grants, post grants::grant;
    "/api/v1/grants/{id}" => delete grants::revoke;
    "/api/v1/tokens" => get tokens::list, post tokens::create;
    "/api/v1/tokens/{name}" => delete tokens::delete;
    "/api/v1/tokens/{name}/rotate" => post tokens::rotate;
    "/api/v1/doctor" => post examine::doctor;
    "/api/v1/errors" => get errors::errors;
    "/api/v1/audit" => get operate::search_audit;
    "/api/v1/overview" => get overview::overview;
}

/// Everything that the management address serves.
///
/// # Errors
/// The system gives no random bytes.
pub(crate) fn router(proxy: &Proxy) -> Result<Router, getrandom::Error> {
    let api = Arc::new(Api {
        current: proxy.current.clone(),
        sessions: proxy.sessions.clone(),
        configuration: proxy.configuration.clone(),
        access: proxy.access.clone(),
        standing: proxy.standing.clone(),
        journal: proxy.journal.clone(),
        life: proxy.life.clone(),
        gate: Gate::default(),
        tags: Tags::new()?,
        history: History::default(),
        writes: Arc::default(),
        grants: Arc::default(),
        searches: Arc::default(),
        examinations: Arc::default(),
        aside: Aside::new(MAX_ASIDE),
    });
    overview::remember(&api);
    let mut document = document::head();
    document.merge(Documented::openapi());
    let document = document::finish(document);
    let router = Router::new()
        .merge(calls())
        .route("/api/v1/openapi.json", routing::get(move || document::serve(document.clone())))
        .route("/api/v1/docs", routing::get(page::documentation))
        .route("/", routing::get(page::page))
        .fallback(no_such_path)
        .layer(from_fn(in_our_form))
        .layer(from_fn_with_state(api.clone(), access::guard))
        .with_state(api);
    Ok(router)
}
