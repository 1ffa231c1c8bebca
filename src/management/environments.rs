//! `/connection-environments`: which connections are environments of which base, and by which values.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::answer::{self, Outcome, Problem, tagged, written};
use super::body::{Ids, List, Name, New, Patch, body};
use super::{Api, Id, View, WriteRequest, connection_of, edit};
use policy::config::{self, Config};
use policy::names::ConnectionName;

body! {
    /// Which connections become environments of which.
    EnvironmentsBody as "ConnectionEnvironments" {
        /// The base.
        baseConnectionId: Uuid, required;
        /// Its new environments: an array, or one text with commas between them.
        environmentConnectionIds: Ids, required;
    }
}

body! {
    /// Which values lead to an environment.
    ValuesBody as "EnvironmentValues" {
        /// The values of the base's user attribute, an array or one text with commas between them; an empty one: nobody is sent
        /// there.
        userAttributeValues: List, required;
        /// What it is called, for clients that request it; by default its connection's name.
        name: Name;
    }
}

type NewEnvironments = New<EnvironmentsBody>;
type NewValues = New<ValuesBody>;

/// A connection that is an environment of another.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct ConnectionEnvironment {
    /// Of the two as such.
    id: Uuid,
    /// The base.
    base_connection_id: Uuid,
    /// Where it leads.
    environment_connection_id: Uuid,
    /// What it is called, for clients that request it.
    name: String,
    /// The values that lead there.
    user_attribute_values: Vec<String>,
}

written! {
    /// What became of a write of an environment.
    ConnectionEnvironmentWritten { connection_environment: ConnectionEnvironment }
}

/// An environment and its connection.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Pair {
    /// Of the two as such.
    id: Uuid,
    /// Where it leads.
    environment_connection_id: Uuid,
}

/// What became of new environments.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct ConnectionEnvironmentsWritten {
    #[serde(flatten)]
    outcome: Outcome,
    /// The new ones, in short.
    data: Vec<Pair>,
    /// The new ones, as they are stored.
    connection_environments: Vec<ConnectionEnvironment>,
}

/// All environments.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct ConnectionEnvironments {
    /// Those that were asked for.
    connection_environments: Vec<ConnectionEnvironment>,
}

/// The base that a connection is an environment of.
pub(super) fn base_of<'c>(config: &'c Config, name: &ConnectionName) -> Option<&'c Arc<config::Connection>> {
    let is_there =
        |base: &config::Base| base.environments.iter().any(|environment| environment.connection == *name);
    config.connections.values().find(|connection| connection.base.as_ref().is_some_and(is_there))
}

/// The environments of a connection.
pub(super) fn of(config: &Config, base: &config::Connection) -> Vec<ConnectionEnvironment> {
    let environments = base.base.iter().flat_map(|base| &base.environments);
    let shown = environments.filter_map(|environment| {
        let connection = config.connections.get(&environment.connection)?;
        Some(ConnectionEnvironment {
            id: Uuid::new_v5(&base.id, connection.id.as_bytes()),
            base_connection_id: base.id,
            environment_connection_id: connection.id,
            name: environment.name.to_string(),
            user_attribute_values: environment.values.clone(),
        })
    });
    shown.collect()
}

fn all(config: &Config, base: Option<Uuid>) -> ConnectionEnvironments {
    let bases = config.connections.values().filter(|connection| base.is_none_or(|id| id == connection.id));
    ConnectionEnvironments { connection_environments: bases.flat_map(|base| of(config, base)).collect() }
}

/// By its own identifier or that of its connection: a connection is an environment of one base only.
fn by_id(config: &Config, id: Uuid) -> Result<ConnectionEnvironment, Problem> {
    let is_it = |e: &ConnectionEnvironment| e.id == id || e.environment_connection_id == id;
    let found = all(config, None).connection_environments.into_iter().find(is_it);
    found.ok_or_else(|| Problem::missing("Connection environment", id))
}

/// Lists environments.
#[utoipa::path(get, path = "/api/v1/connection-environments", tag = "connection environments",
    operation_id = "listConnectionEnvironments",
    params(("baseConnectionId" = Option<Uuid>, Query, description = "Only those of this base.")),
    responses((status = 200, description = "The environments.", body = ConnectionEnvironments)))]
pub(super) async fn list(State(api): State<Arc<Api>>, parts: Parts) -> Result<Response, Problem> {
    let pairs = super::query(&parts, &["baseConnectionId"])?;
    let base = super::parameter(&pairs, "baseConnectionId");
    let base = base.map(|id| answer::uuid("baseConnectionId", id)).transpose()?;
    let generation = api.current.generation();
    if let Some(base) = base {
        connection_of(&generation.config, base)?;
    }
    let list = all(&generation.config, base);
    let tag = api.tags.of(&list, "");
    Ok(tagged(&parts.headers, StatusCode::OK, &tag, list))
}

/// Reads an environment.
#[utoipa::path(get, path = "/api/v1/connection-environments/{id}", tag = "connection environments",
    operation_id = "readConnectionEnvironment",
    params(("id" = String, Path, description = "Its identifier, or that of its connection, or its connection's name.")),
    responses((status = 200, description = "The environment.", body = ConnectionEnvironment)))]
pub(super) async fn read(
    State(api): State<Arc<Api>>,
    id: Id,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let environment = by_id(&api.current.generation().config, id.0)?;
    let tag = api.tags.of(&environment, "");
    Ok(tagged(&headers, StatusCode::OK, &tag, environment))
}

/// Makes connections environments of another. Nobody is sent there until they have values.
#[utoipa::path(post, path = "/api/v1/connection-environments", tag = "connection environments",
    operation_id = "createConnectionEnvironments", request_body = NewEnvironments,
    params(("dry_run" = Option<bool>, Query, description = "Only says what would change.")),
    responses((status = 201, description = "They are.", body = ConnectionEnvironmentsWritten),
        (status = 200, description = "They would be.", body = ConnectionEnvironmentsWritten)))]
pub(super) async fn create(
    State(api): State<Arc<Api>>,
    asked: WriteRequest,
    New(body): New<EnvironmentsBody>,
) -> Result<Response, Problem> {
    let base = body.baseConnectionId.required("baseConnectionId")?;
    let Ids(ids) = body.environmentConnectionIds.required("environmentConnectionIds")?;
    let (if_match, wanted) = (asked.if_match.clone(), ids.clone());
    let (written, ()) = api
        .write(&asked, move |api, change| {
            let config = &change.generation.config;
            answer::matches(if_match.as_deref(), &api.tags.of(&all(config, None), ""))?;
            let base = &connection_of(config, base)?.name;
            for (i, id) in wanted.iter().enumerate() {
                let connection = &connection_of(config, *id)?.name;
                if wanted[..i].contains(id) {
                    return Err(Problem::field(
                        "environmentConnectionIds",
                        format_args!("{id} is given twice"),
                    ));
                }
                let table = edit::needed(&mut change.document, "connections", base.as_str())?;
                edit::add_environment(table, connection.as_str());
            }
            Ok(())
        })
        .await?;
    let tag = api.tags.of(&all(View::after(&written).config, None), "");
    let environments: Vec<_> = all(View::after(&written).config, Some(base))
        .connection_environments
        .into_iter()
        .filter(|environment| ids.contains(&environment.environment_connection_id))
        .collect();
    let pair =
        |e: &ConnectionEnvironment| Pair { id: e.id, environment_connection_id: e.environment_connection_id };
    let body = ConnectionEnvironmentsWritten {
        outcome: Outcome::of(&written, asked.intent),
        data: environments.iter().map(pair).collect(),
        connection_environments: environments,
    };
    Ok(tagged(&HeaderMap::new(), asked.created(), &tag, body))
}

/// Says which values lead to an environment.
#[utoipa::path(put, path = "/api/v1/connection-environments/{id}", tag = "connection environments",
    operation_id = "changeConnectionEnvironment", request_body = NewValues,
    params(("id" = String, Path, description = "Its identifier, or that of its connection, or its connection's name."),
        ("dry_run" = Option<bool>, Query, description = "Only says what would change.")),
    responses((status = 200, description = "They do, or would.", body = ConnectionEnvironmentWritten)))]
pub(super) async fn change(
    State(api): State<Arc<Api>>,
    asked: WriteRequest,
    id: Id,
    New(body): New<ValuesBody>,
) -> Result<Response, Problem> {
    let List(values) = body.userAttributeValues.required("userAttributeValues")?;
    let name = body.name;
    let (written, id) = edit_one(&api, &asked, id.0, move |environment| {
        edit::set(environment, "values", (!values.is_empty()).then(|| edit::list(&values)));
        match name {
            Patch::Absent => {}
            Patch::Null => edit::set(environment, "name", None),
            Patch::Set(Name(name)) => edit::set(environment, "name", Some(name.into())),
        }
    })
    .await?;
    let environment = by_id(View::after(&written).config, id)?;
    let tag = api.tags.of(&environment, "");
    let outcome = Outcome::of(&written, asked.intent);
    let body =
        ConnectionEnvironmentWritten { outcome, data: environment.id, connection_environment: environment };
    Ok(tagged(&HeaderMap::new(), StatusCode::OK, &tag, body))
}

async fn edit_one(
    api: &Arc<Api>,
    asked: &WriteRequest,
    id: Uuid,
    edit: impl FnOnce(&mut dyn toml_edit::TableLike) + Send + 'static,
) -> Result<(crate::proxy::Written, Uuid), Problem> {
    let if_match = asked.if_match.clone();
    api.write(asked, move |api, change| {
        let config = &change.generation.config;
        let environment = by_id(config, id)?;
        answer::matches(if_match.as_deref(), &api.tags.of(&environment, ""))?;
        let base = &connection_of(config, environment.base_connection_id)?.name;
        let connection = &connection_of(config, environment.environment_connection_id)?.name;
        let table = edit::needed(&mut change.document, "connections", base.as_str())?;
        let mut edit = Some(edit);
        edit::each_environment(table, |environment| {
            let is_it =
                environment.get("connection").and_then(toml_edit::Item::as_str) == Some(connection.as_str());
            if is_it && let Some(edit) = edit.take() {
                edit(environment);
            }
        });
        Ok(environment.id)
    })
    .await
}

/// Takes an environment away from its base. Its connection stays, as a base: clients may ask for it by its name then.
#[utoipa::path(delete, path = "/api/v1/connection-environments/{id}", tag = "connection environments",
    operation_id = "deleteConnectionEnvironment",
    params(("id" = String, Path, description = "Its identifier, or that of its connection, or its connection's name."),
        ("allow_production" = Option<bool>, Query, description = "Also if users newly reach a production database by it."),
        ("dry_run" = Option<bool>, Query, description = "Only says what would change.")),
    responses((status = 200, description = "It is gone, or would be.", body = ConnectionEnvironmentWritten)))]
pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    asked: WriteRequest,
    id: Id,
) -> Result<Response, Problem> {
    let (if_match, allows_production) = (asked.if_match.clone(), asked.allows_production);
    let (written, environment) = api
        .write(&asked, move |api, change| {
            change.keeps_production = !allows_production;
            let config = &change.generation.config;
            let environment = by_id(config, id.0)?;
            answer::matches(if_match.as_deref(), &api.tags.of(&environment, ""))?;
            let base = &connection_of(config, environment.base_connection_id)?.name;
            let connection = &connection_of(config, environment.environment_connection_id)?.name;
            if let Some(table) = edit::table(&mut change.document, "connections", base.as_str()) {
                edit::remove_environment(table, connection.as_str());
            }
            Ok(environment)
        })
        .await?;
    let outcome = Outcome::of(&written, asked.intent);
    let body =
        ConnectionEnvironmentWritten { outcome, data: environment.id, connection_environment: environment };
    Ok((StatusCode::OK, Json(body)).into_response())
}
