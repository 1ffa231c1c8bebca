//! A whole configuration: what it would change, and making it so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use toml_edit::{DocumentMut, Item, Table, TableLike};
use utoipa::ToSchema;

use super::answer::{self, Outcome, Problem, tagged};
use super::{Api, WriteRequest, connections, edit, json, people, redact};
use crate::proxy::{Change, Generation, Intent};
use policy::config::file::{AuthType, Connection};
use policy::config::manual::OptionDoc;
use policy::names::id_of;
use policy::verifier::is_verifier;

/// What may be described: the rest of the file is the machine's, and is not changed by the API.
const KINDS: [&str; 4] = ["connections", "attributes", "groups", "users"];

/// How many passwords of users are hashed for one request: it takes a millisecond or two for each.
const MAX_NEW: usize = 500;

/// Any tables of a configuration, as JSON.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)]
pub(super) struct Desired {
    /// As `[connections]`; left out, they stay as they are.
    connections: Option<BTreeMap<String, serde_json::Map<String, serde_json::Value>>>,
    /// As `[attributes]`.
    attributes: Option<BTreeMap<String, serde_json::Map<String, serde_json::Value>>>,
    /// As `[groups]`.
    groups: Option<BTreeMap<String, serde_json::Map<String, serde_json::Value>>>,
    /// As `[users]`.
    users: Option<BTreeMap<String, serde_json::Map<String, serde_json::Value>>>,
}

/// The text of a configuration, without its secrets.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Source {
    /// Its number.
    pub(super) generation: u64,
    /// TOML, in which every secret is `***`.
    pub(super) toml: String,
}

/// Reads the configuration in force, without its secrets.
#[utoipa::path(get, path = "/api/v1/config", tag = "configuration", operation_id = "readConfig",
    responses((status = 200, description = "Its text.", body = Source)))]
pub(super) async fn read(State(api): State<Arc<Api>>, headers: HeaderMap) -> Result<Response, Problem> {
    let read = api.blocking(move |api| {
        let generation = api.current.generation();
        let source = generation.config.source.expose_secret();
        let body = Source { generation: generation.number, toml: redact::config(source) };
        Ok(tagged(&headers, StatusCode::OK, &tag(api, &generation), body))
    });
    read.await
}

/// Says what a configuration would change, and changes nothing. A token with `role = "read"` may ask this: then passwords are not
/// compared, and are `***` where there are any.
#[utoipa::path(post, path = "/api/v1/plan", tag = "configuration", operation_id = "plan",
    request_body(content((Desired = "application/json"), (String = "application/toml")),
        description = "Tables of a configuration, in JSON or TOML."),
    responses((status = 200, description = "What would change.", body = Outcome)))]
pub(super) async fn plan(
    State(api): State<Arc<Api>>,
    asked: WriteRequest,
    request: Request,
) -> Result<Response, Problem> {
    if asked.by.may_write() {
        return make_so(&api, &WriteRequest { intent: Intent::DryRun, ..asked }, request).await;
    }
    let desired = desired(&api, request).await?;
    let outcome = api.blocking(move |api| look(api, desired)).await?;
    Ok(axum::Json(outcome).into_response())
}

/// A plan for somebody who may only look: of what is written alone.
fn look(api: &Api, mut desired: DocumentMut) -> Result<Outcome, Problem> {
    let generation = api.current.generation();
    let mut document: DocumentMut =
        generation.config.source.expose_secret().parse().map_err(Problem::ours)?;
    if let Some((kind, _)) = desired.iter().find(|(kind, _)| !KINDS.contains(kind)) {
        let kind: String = kind.chars().take(60).collect();
        return Err(Problem::field(
            &kind,
            "a token with role read plans connections, attributes, groups and users",
        ));
    }
    check(&document, &desired)?;
    check_files(&document, &desired)?;
    for kind in KINDS {
        let Some(tables) = desired.get_mut(kind).and_then(Item::as_table_like_mut) else { continue };
        for (name, item) in tables.iter_mut() {
            let Some(table) = item.as_table_like_mut() else { continue };
            let Some(known) = edit::table(&mut document, kind, &name) else { continue };
            if let Some(id) = known.get("id").filter(|_| !table.contains_key("id")) {
                table.insert("id", id.clone());
            }
            let Some(said) = table.get("password") else { continue };
            let place = format!("{kind}.{}.password", edit::shown(&name));
            match (said.as_str(), known.get("password")) {
                (Some("***"), Some(kept)) => drop(table.insert("password", kept.clone())),
                (Some("***"), None) => return Err(Problem::field(&place, "`***` stands for no password")),
                _ => {
                    return Err(Problem::field(
                        &place,
                        "a token with role read can only say `***` for a stored password",
                    ));
                }
            }
        }
    }
    edit::merge_document(&mut document, &desired);
    let text = document.to_string();
    let planned = api.configuration.plan_text(&text).map_err(|error| Problem::from(&error))?;
    Ok(Outcome::planned(&generation, &text, planned))
}

/// Makes the configuration say what is sent: of each kind of table that is there (`connections`, `attributes`, `groups`,
/// `users`) everything is as it says, and what it does not name is gone; the kinds that are not there stay as they are.
#[utoipa::path(put, path = "/api/v1/config", tag = "configuration", operation_id = "applyConfig",
    request_body(content((Desired = "application/json"), (String = "application/toml")),
        description = "Tables of a configuration, in JSON or TOML."),
    params(("dry_run" = Option<bool>, Query, description = "Only says what would change.")),
    responses((status = 200, description = "It is so now, or would be.", body = Outcome)))]
pub(super) async fn apply(
    State(api): State<Arc<Api>>,
    asked: WriteRequest,
    request: Request,
) -> Result<Response, Problem> {
    make_so(&api, &asked, request).await
}

/// Of a configuration as a whole.
pub(super) fn tag(api: &Api, generation: &Generation) -> String {
    api.tags.of(&"", generation.config.source.expose_secret())
}

/// What a request wants there to be.
async fn desired(api: &Arc<Api>, request: Request) -> Result<DocumentMut, Problem> {
    let kind = json::content_type(&request)?;
    let bytes = json::bytes(request.into_body()).await?;
    let read = move |_: &Api| match kind.as_str() {
        "application/json" => from_json(&bytes),
        "application/toml" | "text/toml" | "text/plain" => from_toml(&bytes),
        _ => {
            let detail = "Content-Type must be application/json or application/toml";
            Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail))
        }
    };
    api.blocking(read).await
}

async fn make_so(api: &Arc<Api>, asked: &WriteRequest, request: Request) -> Result<Response, Problem> {
    let desired = desired(api, request).await?;
    let if_match = asked.if_match.clone();
    let (written, ()) = api
        .write(asked, move |api, change| {
            answer::matches(if_match.as_deref(), &tag(api, change.generation))?;
            let mut desired = desired;
            check(&change.document, &desired)?;
            check_files(&change.document, &desired)?;
            keep_secrets(change, &mut desired)?;
            keep_ids(change, &mut desired);
            desired.retain(|kind, _| KINDS.contains(&kind));
            edit::merge_document(&mut change.document, &desired);
            Ok(())
        })
        .await?;
    let outcome = Outcome::of(&written, asked.intent);
    Ok(tagged(&HeaderMap::new(), StatusCode::OK, &tag(api, &written.generation), outcome))
}

fn from_toml(bytes: &[u8]) -> Result<DocumentMut, Problem> {
    let text = std::str::from_utf8(bytes).map_err(|_| Problem::bad("Invalid TOML: it is not UTF-8"))?;
    if text.trim().is_empty() {
        return Err(Problem::bad("Empty request body"));
    }
    // The parser's own text shows the line, which may hold a secret.
    text.parse::<DocumentMut>().map_err(|error| {
        let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        Problem::bad(format_args!("Invalid TOML: line {}: {}", line.unwrap_or(0), error.message()))
    })
}

fn from_json(bytes: &[u8]) -> Result<DocumentMut, Problem> {
    let value = json::read(bytes)?;
    let object =
        |value: &serde_json::Value| value.as_object().cloned().ok_or_else(|| Problem::bad("Expected object"));
    let mut document = DocumentMut::new();
    for (kind, things) in object(&value)? {
        if things.is_null() && KINDS.contains(&kind.as_str()) {
            continue;
        }
        if things.is_null() {
            return Err(Problem::field(&kind, "Unrecognized key"));
        }
        let mut tables = Table::new();
        tables.set_implicit(true);
        for (name, thing) in object(&things)? {
            let mut table = Table::new();
            for (key, value) in object(&thing)? {
                table.insert(&key, edit::from_json(&value).map_err(Problem::bad)?);
            }
            tables.insert(&name, Item::Table(table));
        }
        document.insert(&kind, Item::Table(tables));
    }
    Ok(document)
}

/// Only what may be described, and the rest as it is.
fn check(document: &DocumentMut, desired: &DocumentMut) -> Result<(), Problem> {
    for (kind, item) in desired.iter() {
        if KINDS.contains(&kind) {
            let is_of_tables = |table: &dyn TableLike| table.iter().all(|(_, item)| item.is_table_like());
            if !item.as_table_like().is_some_and(is_of_tables) {
                return Err(Problem::field(kind, "Expected tables"));
            }
            continue;
        }
        let same = || {
            let mut wanted = item.clone();
            let now = document.get(kind);
            fill_tokens(&mut wanted, now);
            now.map(edit::meaning) == Some(edit::meaning(&wanted))
        };
        match kind {
            "server" | "management" if same() => {}
            "server" | "management" => {
                let what =
                    "it would change, and the API does not change it: edit the file where pgusher runs";
                return Err(Problem::field(kind, what));
            }
            other => {
                let shown: String = other.chars().take(60).collect();
                return Err(Problem::field(&shown, "Unrecognized key"));
            }
        }
    }
    Ok(())
}

/// A token of `***` is the one that there is.
fn fill_tokens(wanted: &mut Item, now: Option<&Item>) {
    let Some(tables) = wanted.as_table_like_mut().and_then(|t| t.get_mut("tokens")?.as_table_like_mut())
    else {
        return;
    };
    for (name, token) in tables.iter_mut() {
        let Some(table) = token.as_table_like_mut() else { continue };
        let known = || {
            now?.as_table_like()?.get("tokens")?.as_table_like()?.get(&name)?.as_table_like()?.get("token")
        };
        if table.get("token").and_then(Item::as_str) == Some("***")
            && let Some(known) = known()
        {
            table.insert("token", known.clone());
        }
    }
}

/// Passwords that stay as they are stay as they are written; new ones go where they belong; and nobody has the API read a
/// file, a variable or a command that the configuration does not name already, for the same kind of thing.
fn keep_secrets(change: &mut Change<'_>, desired: &mut DocumentMut) -> Result<(), Problem> {
    let mut new = 0;
    for kind in ["connections", "users"] {
        let known = references(&change.document, kind);
        let Some(tables) = desired.get_mut(kind).and_then(Item::as_table_like_mut) else { continue };
        for (name, item) in tables.iter_mut() {
            let Some(table) = item.as_table_like_mut() else { continue };
            let place = format!("{kind}.{}.password", edit::shown(&name));
            let Some(password) = table.get("password") else { continue };
            let current =
                edit::table(&mut change.document, kind, &name).and_then(|t| t.get("password")).cloned();
            let is_same = |current: &Item| edit::meaning(current) == edit::meaning(password);
            // A connection's password that is said counts as said, also if it is the same.
            let is_said = kind == "connections" && password.as_str().is_some_and(|text| text != "***");
            if !is_said && current.as_ref().is_some_and(is_same) {
                continue;
            }
            let Some(text) = password.as_str() else {
                if known.contains(&edit::meaning(password).to_string()) {
                    continue;
                }
                let what = "a reference (file, env, command) that the configuration does not have yet: send the \
                            password itself, or edit the file where pgusher runs";
                return Err(Problem::field(&place, what));
            };
            let secret = SecretString::from(text.to_owned());
            let value = match (text, current) {
                ("***", Some(current)) => current,
                ("***", None) => return Err(Problem::field(&place, "`***` stands for no password")),
                _ if kind == "connections" => {
                    Item::Value(connections::password_value(change, &name, &secret)?)
                }
                _ => {
                    new += usize::from(!is_verifier(&secret));
                    if new > MAX_NEW {
                        let what = format!(
                            "more than {MAX_NEW} passwords of users at once: send verifiers (hash-password), or `***`"
                        );
                        return Err(Problem::field(&place, what));
                    }
                    // A word that is none is refused when the whole is checked.
                    let said = table.get("auth_type").and_then(Item::as_str).and_then(AuthType::of_word);
                    let auth_type = said.unwrap_or(*change.generation.config.server.auth_type);
                    Item::Value(people::password_value(change, &name, auth_type, &secret)?)
                }
            };
            table.insert("password", value);
        }
    }
    Ok(())
}

/// Certificates and keys are files of the machine, too.
fn check_files(document: &DocumentMut, desired: &DocumentMut) -> Result<(), Problem> {
    fn said<'d>(document: &'d DocumentMut, key: &str) -> Vec<(String, &'d str)> {
        let tables = document.get("connections").and_then(Item::as_table_like);
        let tables = tables.into_iter().flat_map(|tables| tables.iter());
        tables
            .filter_map(|(name, item)| Some((edit::shown(name), item.as_table_like()?.get(key)?.as_str()?)))
            .collect()
    }
    for OptionDoc { name: key, .. } in Connection::manual().2.into_iter().filter(|option| option.is_file) {
        let known: BTreeSet<_> = said(document, key).into_iter().map(|(_, path)| path).collect();
        if let Some((name, _)) = said(desired, key).into_iter().find(|(_, path)| !known.contains(path)) {
            let what = "a file that the configuration does not name yet: edit the file where pgusher runs";
            return Err(Problem::field(&format!("connections.{name}.{key}"), what));
        }
    }
    Ok(())
}

/// Connections keep their identifiers, though a desired configuration says nothing of them; a new one gets one that is free.
fn keep_ids(change: &mut Change<'_>, desired: &mut DocumentMut) {
    let Some(tables) = desired.get_mut("connections").and_then(Item::as_table_like_mut) else { return };
    for (name, item) in tables.iter_mut() {
        let Some(table) = item.as_table_like_mut().filter(|table| !table.contains_key("id")) else {
            continue;
        };
        let id = match change.generation.config.connections.get(&*name) {
            Some(known) => known.id,
            None => connections::free_id(change, &name),
        };
        if id != id_of("connection", &name) {
            table.insert("id", Item::Value(id.to_string().into()));
        }
    }
}

/// Where the secrets of a kind come from.
fn references(document: &DocumentMut, kind: &str) -> BTreeSet<String> {
    let tables = document.get(kind).and_then(Item::as_table_like).into_iter();
    let passwords = tables.flat_map(|tables| {
        tables.iter().filter_map(|(_, item)| item.as_table_like()?.get("password").map(edit::meaning))
    });
    passwords.filter(serde_json::Value::is_object).map(|reference| reference.to_string()).collect()
}

/// Makes the kinds that may be described say what an earlier configuration said; the rest stays.
pub(super) fn go_back(change: &mut Change<'_>, earlier: DocumentMut) {
    change.goes_back = true;
    let same = |kind| change.document.get(kind).map(edit::meaning) == earlier.get(kind).map(edit::meaning);
    if same("server") && same("management") {
        change.document = earlier;
        return;
    }
    for kind in KINDS {
        match earlier.get(kind) {
            Some(item) => {
                let mut wanted = DocumentMut::new();
                wanted.insert(kind, item.clone());
                edit::merge_document(&mut change.document, &wanted);
            }
            None => {
                change.document.remove(kind);
            }
        }
    }
}
