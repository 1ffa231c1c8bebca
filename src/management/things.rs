//! What users, groups and attributes have in common: they are tables of the file, by their names.

use std::sync::Arc;

use axum::Json;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use uuid::Uuid;

use super::answer::{self, Outcome, Problem, tagged};
use super::body::{Fielded, Name, Patch};
use super::{Api, Page, View, WriteRequest, edit};
use crate::proxy::{Change, Written};
use policy::config::Config;
use policy::names::id_of;

/// What the three have in common.
pub(super) trait Thing: Serialize + Sized + Send + 'static {
    /// Its tables in the file.
    const KIND: &'static str;
    /// What it is called in errors.
    const WORD: &'static str;
    /// And where identifiers are made.
    const ID: &'static str;
    type Body: Fielded + Send + 'static;

    fn all(view: View<'_>) -> Vec<Self>;
    fn id(&self) -> Uuid;
    fn name(&self) -> &str;
    /// What is not shown, and makes another edition.
    fn hidden(&self, _: View<'_>) -> String {
        String::new()
    }
    /// The name that a body gives.
    fn name_of(body: &Self::Body) -> Patch<Name>;
    /// Puts a body into the file.
    fn write(body: Self::Body, change: &mut Change<'_>, name: &str) -> Result<(), Problem>;
    fn listed(some: Vec<Self>, total: usize) -> impl Serialize;
    /// What is searched.
    fn text(&self) -> String;
    fn written(self, outcome: Outcome) -> impl Serialize;
}

/// The list of all, as it is answered without a query.
fn whole<T: Thing>(all: Vec<T>) -> impl Serialize {
    let total = all.len();
    T::listed(all, total)
}

fn by_id<T: Thing>(view: View<'_>, id: Uuid) -> Result<T, Problem> {
    let found = T::all(view).into_iter().find(|thing| thing.id() == id);
    found.ok_or_else(|| Problem::missing(T::WORD, id))
}

fn tag<T: Thing>(api: &Api, view: View<'_>, thing: &T) -> String {
    api.tags.of(thing, &thing.hidden(view))
}

pub(super) fn list<T: Thing>(api: &Api, parts: &Parts) -> Result<Response, Problem> {
    let pairs = super::query(parts, &["name", "q", "offset", "limit"])?;
    let page = Page::of(&pairs, usize::MAX)?;
    let generation = api.current.generation();
    let view = View::of(&generation);
    let mut all = T::all(view);
    super::search(&pairs, &mut all, T::text);
    if let Some(name) = super::parameter(&pairs, "name") {
        all.retain(|thing| thing.name() == name);
    }
    let (some, total) = page.cut(all);
    let listed = T::listed(some, total);
    let tag = api.tags.of(&listed, "");
    Ok(tagged(&parts.headers, StatusCode::OK, &tag, listed))
}

pub(super) fn read<T: Thing>(api: &Api, id: Uuid, headers: &HeaderMap) -> Result<Response, Problem> {
    let generation = api.current.generation();
    let thing: T = by_id(View::of(&generation), id)?;
    let tag = tag(api, View::of(&generation), &thing);
    Ok(tagged(headers, StatusCode::OK, &tag, thing))
}

fn done<T: Thing>(
    api: &Api,
    asked: &WriteRequest,
    written: &Written,
    id: Uuid,
    status: StatusCode,
) -> Result<Response, Problem> {
    let view = View::after(written);
    let thing: T = by_id(view, id)?;
    let tag = tag(api, view, &thing);
    let body = thing.written(Outcome::of(written, asked.intent));
    Ok(answer::wrote(asked.intent, status, &tag, body))
}

pub(super) async fn create<T: Thing>(
    api: Arc<Api>,
    asked: WriteRequest,
    body: T::Body,
) -> Result<Response, Problem> {
    let Name(name) = T::name_of(&body).required("name")?;
    let if_match = asked.if_match.clone();
    let (written, id) = api
        .write(&asked, move |api, change| {
            let view = View::of(change.generation);
            let all = T::all(view);
            let known = all.iter().find(|thing| thing.name() == name);
            let is_said = edit::table(&mut change.document, T::KIND, &name).is_some();
            if known.is_some() && is_said {
                return Err(Problem::conflict(format!("{} with name {name} already exists", T::WORD)));
            }
            answer::matches(if_match.as_deref(), &api.tags.of(&whole(all), ""))?;
            edit::add(&mut change.document, T::KIND, &name);
            T::write(body, change, &name)?;
            Ok(id_of(T::ID, &name))
        })
        .await?;
    done::<T>(&api, &asked, &written, id, asked.created())
}

pub(super) async fn change<T: Thing>(
    api: Arc<Api>,
    asked: WriteRequest,
    id: Uuid,
    body: T::Body,
) -> Result<Response, Problem> {
    let if_match = asked.if_match.clone();
    let (written, ()) = api
        .write(&asked, move |api, change| {
            let view = View::of(change.generation);
            let thing: T = by_id(view, id)?;
            answer::matches(if_match.as_deref(), &tag(api, view, &thing))?;
            if let Patch::Set(Name(name)) = T::name_of(&body)
                && name != thing.name()
            {
                return Err(Problem::field("name", "it cannot be changed: make another one"));
            }
            T::write(body, change, thing.name())
        })
        .await?;
    done::<T>(&api, &asked, &written, id, StatusCode::OK)
}

pub(super) async fn delete<T: Thing>(
    api: Arc<Api>,
    asked: WriteRequest,
    id: Uuid,
) -> Result<Response, Problem> {
    let if_match = asked.if_match.clone();
    let (written, thing) = api
        .write(&asked, move |api, change| {
            let view = View::of(change.generation);
            let thing: T = by_id(view, id)?;
            answer::matches(if_match.as_deref(), &tag(api, view, &thing))?;
            if let Some(why) = in_use(view.config, T::KIND, thing.name()) {
                let word = T::WORD;
                return Err(Problem::conflict(format!("{word} with id {id} is in use: {why}")));
            }
            edit::remove(&mut change.document, T::KIND, thing.name());
            Ok(thing)
        })
        .await?;
    Ok((StatusCode::OK, Json(thing.written(Outcome::of(&written, asked.intent)))).into_response())
}

/// Who refers to it.
fn in_use(config: &Config, kind: &str, name: &str) -> Option<String> {
    let users = config.users.values();
    match kind {
        "groups" => {
            let user = users.into_iter().find(|user| user.groups.iter().any(|group| group.as_str() == name));
            user.map(|user| format!("user {} is in it", user.name))
        }
        "attributes" => {
            let picks = config.connections.values().find(|connection| {
                let attribute = connection.base.as_ref().and_then(|base| base.attribute.as_ref());
                attribute.is_some_and(|attribute| attribute.as_str() == name)
            });
            let user = || users.into_iter().find(|user| user.attributes.contains_key(name));
            let group = || config.groups.iter().find(|(_, attributes)| attributes.contains_key(name));
            picks
                .map(|connection| format!("connection {} picks by it", connection.name))
                .or_else(|| user().map(|user| format!("user {} has it", user.name)))
                .or_else(|| group().map(|(group, _)| format!("group {group} has it")))
        }
        _ => None,
    }
}
