//! `/connections`: what upstream databases there are.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
use uuid::Uuid;

use super::answer::{self, Outcome, Problem, tagged, written};
use super::body::{Changed, Field, List, Name, New, Password, Patch, Picker, Whole, body};
use super::declared::{Declared, OptionValues};
use super::environments::{self, ConnectionEnvironment};
use super::{Api, Id, Page, View, WriteRequest, connection_of, edit};
use crate::proxy::Change;
use policy::config::{self, file};
use policy::names::{ConnectionName, id_of};
use policy::plan;

/// What a connection speaks: `postgres`.
#[derive(Debug, Clone)]
pub(super) struct Dialect(String);

impl Field for Dialect {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(SchemaType::Type(Type::String))
            .enum_values(Some(["postgres"]))
            .into()
    }
    fn read(value: serde_json::Value) -> Result<Self, String> {
        String::read(value).map(Self)
    }
}

body! {
    /// What can be said about a connection.
    ConnectionBody as "Connection" with the options of file::Connection {
        /// Only `postgres`.
        dialect: Dialect, required;
        /// What clients ask for, as their database name, while it is nobody's environment.
        name: Name, required;
        /// The password. It is never answered.
        passwordUnencrypted: Password;
        /// The longest a statement may run, in seconds; 0 is no limit.
        queryTimeoutSeconds: Whole<0, 3600>;
        /// Which attribute of the user picks the environment (the same as `environmentUserAttribute.attributeName`).
        userAttributeNameForConnectionEnvironments: Name;
        /// Values of it that mean this connection itself (the same as `environmentUserAttribute.defaultValues`).
        userAttributeValuesForDefaultEnvironment: List;
        /// Both at once; `null` takes both away.
        environmentUserAttribute: Picker;
    }
}

type ConnectionOptions = OptionValues<file::Connection>;
type NewConnection = New<ConnectionBody>;
type ChangedConnection = Changed<ConnectionBody>;

/// Which attribute of the user picks the environment.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct EnvironmentUserAttribute {
    /// The attribute; `null` while there are only values.
    attribute_name: Option<String>,
    /// Its values that mean the base.
    default_values: Vec<String>,
}

/// A connection, as it is stored. Its password is never shown.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Connection {
    /// What it is called here; it stays when it is renamed.
    pub id: Uuid,
    /// What clients ask for, as their database name, while it is nobody's environment.
    pub name: String,
    /// Always `postgres`.
    dialect: &'static str,
    /// Whether there is a password.
    has_password: bool,
    /// 0 is no limit.
    #[schema(value_type = f64)]
    query_timeout_seconds: serde_json::Number,
    /// `null` if none picks.
    environment_user_attribute: Option<EnvironmentUserAttribute>,
    /// The base whose environment it is.
    base_connection_id: Option<Uuid>,
    /// Its own environments.
    connection_environments: Vec<ConnectionEnvironment>,
    /// The rest is as in the file.
    #[serde(flatten)]
    options: ConnectionOptions,
}

impl Connection {
    /// One of those that are as in the file.
    fn text(&self, option: &str) -> &str {
        self.options.get(option).as_str().unwrap_or_default()
    }
}

written! {
    /// What became of a write of a connection.
    ConnectionWritten { connection: Connection }
}

/// All connections.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Connections {
    /// Those that were asked for.
    connections: Vec<Connection>,
    /// How many there are in all, before `offset` and `limit`.
    total: usize,
}

/// For the document: the words of `?dialect=`.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code)]
enum DialectName {
    Postgres,
}

/// For the document: the words of `?sortField=`.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code)]
enum SortField {
    Name,
    Database,
    Host,
    Username,
}

/// For the document: the words of `?sortDirection=`.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code)]
enum SortDirection {
    Asc,
    Desc,
}

fn plain(values: &[config::read::Setting<String>]) -> Vec<String> {
    values.iter().map(|value| (**value).clone()).collect()
}

/// Whole seconds, where they are.
fn seconds(time: Duration) -> serde_json::Number {
    match time.subsec_nanos() {
        0 => time.as_secs().into(),
        _ => serde_json::Number::from_f64(time.as_secs_f64()).unwrap_or_else(|| time.as_secs().into()),
    }
}

/// A connection, as it is answered.
pub(super) fn shown(view: View<'_>, connection: &config::Connection) -> Option<Connection> {
    let written: &file::Connection = view.file.connections.find(connection.name.as_str())?;
    let default_values = plain(&written.default_values);
    let attribute_name = (*written.user_attribute).clone();
    let has_picker = attribute_name.is_some() || !default_values.is_empty();
    Some(Connection {
        id: connection.id,
        name: connection.name.to_string(),
        dialect: "postgres",
        has_password: connection.password.is_some(),
        query_timeout_seconds: seconds(connection.query_timeout),
        environment_user_attribute: has_picker
            .then_some(EnvironmentUserAttribute { attribute_name, default_values }),
        base_connection_id: environments::base_of(view.config, &connection.name).map(|base| base.id),
        connection_environments: environments::of(view.config, connection),
        options: OptionValues::of(written, connection),
    })
}

/// One connection and its tag.
pub(super) fn tagged_connection(
    api: &Api,
    view: View<'_>,
    name: &ConnectionName,
) -> Result<(Connection, String), Problem> {
    let connection = view.config.connections.get(name);
    let connection = connection.ok_or_else(|| Problem::ours("the connection was lost"))?;
    let object = shown(view, connection).ok_or_else(|| Problem::ours("the connection was lost"))?;
    let secret = connection.password.as_ref().map(|password| password.value());
    let secret = secret.as_ref().map_or("", |secret| secret.expose_secret());
    let written = view.file.connections.find(name.as_str()).map(Declared::shown);
    let tag = api.tags.of(&(&object, written), secret);
    Ok((object, tag))
}

fn all(view: View<'_>) -> Connections {
    let connections = view.config.connections.values().filter_map(|connection| shown(view, connection));
    let connections: Vec<_> = connections.collect();
    Connections { total: connections.len(), connections }
}

/// Lists connections.
#[utoipa::path(get, path = "/api/v1/connections", tag = "connections", operation_id = "listConnections",
    params(
        ("name" = Option<String>, Query, description = "Only the one of this name."),
        ("database" = Option<String>, Query, description = "Only those of this database."),
        ("dialect" = inline(Option<DialectName>), Query, description = "Only those of this dialect: `postgres`."),
        ("q" = Option<String>, Query, description = "Only those in which all of these words stand: in name, host, database, user name or environment."),
        ("offset" = Option<u32>, Query, minimum = 0, maximum = 1000000, description = "How many to leave out first."),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 10000, description = "How many at most; by default all."),
        ("sortField" = inline(Option<SortField>), Query, description = "`name` (the default), `database`, `host` or `username`."),
        ("sortDirection" = inline(Option<SortDirection>), Query, description = "`asc` (the default) or `desc`.")),
    responses((status = 200, description = "The connections.", body = Connections)))]
pub(super) async fn list(State(api): State<Arc<Api>>, parts: Parts) -> Result<Response, Problem> {
    api.blocking(move |api| listed(api, &parts)).await
}

fn listed(api: &Api, parts: &Parts) -> Result<Response, Problem> {
    let known = ["name", "database", "dialect", "q", "sortField", "sortDirection", "offset", "limit"];
    let pairs = super::query(parts, &known)?;
    let page = Page::of(&pairs, usize::MAX)?;
    let parameter = |name| super::parameter(&pairs, name);
    let generation = api.current.generation();
    let mut list = all(View::of(&generation));
    if parameter("dialect").is_some_and(|dialect| dialect != "postgres") {
        return Err(Problem::new(StatusCode::BAD_REQUEST, "Invalid connection dialect"));
    }
    let is = |wanted: Option<&str>, has: &str| wanted.is_none_or(|wanted| wanted == has);
    list.connections.retain(|connection| {
        is(parameter("name"), &connection.name) && is(parameter("database"), connection.text("database"))
    });
    match parameter("sortField").unwrap_or("name") {
        "name" => list.connections.sort_by(|a, b| a.name.cmp(&b.name)),
        "database" => list.connections.sort_by(|a, b| a.text("database").cmp(b.text("database"))),
        "host" => list.connections.sort_by(|a, b| a.text("host").cmp(b.text("host"))),
        "username" => list.connections.sort_by(|a, b| a.text("username").cmp(b.text("username"))),
        _ => return Err(Problem::field("sortField", "Expected one of: name, database, host, username")),
    }
    match parameter("sortDirection").unwrap_or("asc") {
        "asc" => {}
        "desc" => list.connections.reverse(),
        _ => return Err(Problem::field("sortDirection", "Expected one of: asc, desc")),
    }
    super::search(&pairs, &mut list.connections, |connection| {
        let options =
            ["host", "database", "username", "environmentName"].map(|option| connection.text(option));
        format!("{} {}", connection.name, options.join(" "))
    });
    (list.connections, list.total) = page.cut(list.connections);
    let tag = api.tags.of(&list, "");
    Ok(tagged(&parts.headers, StatusCode::OK, &tag, list))
}

/// Reads a connection.
#[utoipa::path(get, path = "/api/v1/connections/{id}", tag = "connections", operation_id = "readConnection",
    params(("id" = String, Path, description = "Its identifier, or its name.")),
    responses((status = 200, description = "The connection.", body = Connection)))]
pub(super) async fn read(
    State(api): State<Arc<Api>>,
    id: Id,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let generation = api.current.generation();
    let name = &connection_of(&generation.config, id.0)?.name;
    let (connection, tag) = tagged_connection(&api, View::of(&generation), name)?;
    Ok(tagged(&headers, StatusCode::OK, &tag, connection))
}

/// Makes a connection. It is a base, which clients may ask for, until it becomes an environment of another.
#[utoipa::path(post, path = "/api/v1/connections", tag = "connections", operation_id = "createConnection",
    request_body = NewConnection,
    params(("dry_run" = Option<bool>, Query, description = "Only says what would change.")),
    responses((status = 201, description = "It was made.", body = ConnectionWritten),
        (status = 200, description = "It would be made.", body = ConnectionWritten)))]
pub(super) async fn create(
    State(api): State<Arc<Api>>,
    asked: WriteRequest,
    New(body): New<ConnectionBody>,
) -> Result<Response, Problem> {
    check_dialect(&body)?;
    let Name(name) = body.name.clone().required("name")?;
    let if_match = asked.if_match.clone();
    let (written, name) = api
        .write(&asked, move |api, change| {
            let view = View::of(change.generation);
            answer::matches(if_match.as_deref(), &api.tags.of(&all(view), ""))?;
            if view.config.connections.contains_key(name.as_str()) {
                return Err(Problem::conflict(format!("Connection with name {name} already exists")));
            }
            edit::add(&mut change.document, "connections", &name);
            give_id(change, &name, None);
            body.write(change, &name)?;
            Ok(ConnectionName::from(name))
        })
        .await?;
    done(&api, &asked, &written, &name, asked.created())
}

/// Changes a connection: what is not named stays, `null` takes away. A new name moves its sessions.
#[utoipa::path(patch, path = "/api/v1/connections/{id}", tag = "connections", operation_id = "changeConnection",
    request_body = ChangedConnection,
    params(("id" = String, Path, description = "Its identifier, or its name."),
        ("dry_run" = Option<bool>, Query, description = "Only says what would change.")),
    responses((status = 200, description = "It is so now, or would be.", body = ConnectionWritten)))]
pub(super) async fn change(
    State(api): State<Arc<Api>>,
    asked: WriteRequest,
    id: Id,
    Changed(body): Changed<ConnectionBody>,
) -> Result<Response, Problem> {
    check_dialect(&body)?;
    let if_match = asked.if_match.clone();
    let (written, name) = api
        .write(&asked, move |api, change| {
            let view = View::of(change.generation);
            let name = connection_of(view.config, id.0)?.name.clone();
            answer::matches(if_match.as_deref(), &tagged_connection(api, view, &name)?.1)?;
            let name = match body.name.clone().given() {
                Some(Name(new)) if new != name.as_str() => {
                    if view.config.connections.contains_key(new.as_str()) {
                        return Err(Problem::conflict(format!("Connection with name {new} already exists")));
                    }
                    edit::rename_connection(&mut change.document, name.as_str(), &new);
                    give_id(change, &new, Some(id.0));
                    ConnectionName::from(new)
                }
                _ => name,
            };
            body.write(change, name.as_str())?;
            Ok(name)
        })
        .await?;
    done(&api, &asked, &written, &name, StatusCode::OK)
}

/// Deletes a connection. While it is a base with environments, an environment, or has sessions, only with `drain=true`.
#[utoipa::path(delete, path = "/api/v1/connections/{id}", tag = "connections", operation_id = "deleteConnection",
    params(("id" = String, Path, description = "Its identifier, or its name."),
        ("drain" = Option<bool>, Query, description = "Also while it is used: its sessions are settled by `on_move`."),
        ("allow_production" = Option<bool>, Query, description = "Also if users newly reach a production database by it."),
        ("dry_run" = Option<bool>, Query, description = "Only says what would change.")),
    responses((status = 200, description = "It is gone, or would be.", body = ConnectionWritten)))]
pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    asked: WriteRequest,
    id: Id,
) -> Result<Response, Problem> {
    let (if_match, drains, allows) = (asked.if_match.clone(), asked.drains, asked.allows_production);
    let (written, connection) = api
        .write(&asked, move |api, change| {
            change.keeps_production = !allows;
            let view = View::of(change.generation);
            let name = connection_of(view.config, id.0)?.name.clone();
            let (connection, tag) = tagged_connection(api, view, &name)?;
            answer::matches(if_match.as_deref(), &tag)?;
            let base = environments::base_of(view.config, &name).map(|base| base.name.clone());
            if !drains {
                let is_it =
                    |session: &Arc<crate::proxy::LiveSession>| session.target.route.connection() == &name;
                let sessions = api.sessions.list().iter().filter(|session| is_it(session)).count();
                let why = match &base {
                    _ if !connection.connection_environments.is_empty() => {
                        Some("it has environments".to_owned())
                    }
                    Some(base) => Some(format!("it is an environment of {base}")),
                    None if sessions > 0 => Some(format!("it has {sessions} session(s)")),
                    None => None,
                };
                if let Some(why) = why {
                    return Err(Problem::conflict(format!(
                        "Connection with id {} is in use: {why} (drain=true deletes it all the same)",
                        id.0
                    )));
                }
            }
            if let Some(base) = base
                && let Some(base) = edit::table(&mut change.document, "connections", base.as_str())
            {
                edit::remove_environment(base, name.as_str());
            }
            declare_picking(change, name.as_str());
            edit::remove(&mut change.document, "connections", name.as_str());
            Ok(connection)
        })
        .await?;
    let outcome = Outcome::of(&written, asked.intent);
    let body = ConnectionWritten { outcome, data: id.0, connection };
    Ok((StatusCode::OK, axum::Json(body)).into_response())
}

fn done(
    api: &Api,
    asked: &WriteRequest,
    written: &crate::proxy::Written,
    name: &ConnectionName,
    status: StatusCode,
) -> Result<Response, Problem> {
    let (connection, tag) = tagged_connection(api, View::after(written), name)?;
    let outcome = Outcome::of(written, asked.intent);
    let body = ConnectionWritten { outcome, data: connection.id, connection };
    Ok(answer::wrote(asked.intent, status, &tag, body))
}

fn check_dialect(body: &ConnectionBody) -> Result<(), Problem> {
    match &body.dialect {
        Patch::Set(Dialect(dialect)) if dialect != "postgres" => {
            Err(Problem::new(StatusCode::BAD_REQUEST, "Invalid connection dialect"))
        }
        _ => Ok(()),
    }
}

/// The identifier that is kept, or one that nobody has; it is written down where it is not that of the name.
fn give_id(change: &mut Change<'_>, name: &str, keeps: Option<Uuid>) {
    let of_name = id_of("connection", name);
    let id = keeps.unwrap_or_else(|| free_id(change, name));
    if let Some(table) = edit::table(&mut change.document, "connections", name) {
        let is_said = id != of_name;
        edit::set(table, "id", is_said.then(|| id.to_string().into()));
    }
}

/// An identifier that nobody has.
pub(super) fn free_id(change: &Change<'_>, name: &str) -> Uuid {
    let connections = &change.generation.config.connections;
    let is_taken = |id: Uuid| connections.values().any(|connection| connection.id == id);
    let of_name = id_of("connection", name);
    let others = (1_u32..).map(|n| id_of("connection", &format!("{name}\0{n}")));
    std::iter::once(of_name).chain(others).find(|id| !is_taken(*id)).unwrap_or(of_name)
}

/// How a password is to stand in the file: as it does, if it is the same.
pub(super) fn password_value(
    change: &mut Change<'_>,
    name: &str,
    secret: &SecretString,
) -> Result<toml_edit::Value, Problem> {
    change.given.insert(name.to_owned(), secret.clone());
    let known = change.generation.config.connections.get(name).and_then(|c| c.password.clone());
    let is_same =
        || known.as_ref().is_some_and(|known| known.value().expose_secret() == secret.expose_secret());
    if known.is_some()
        && change.is_same_password(plan::password_of("connection", name), is_same)
        && let Some(kept) = edit::value(&mut change.document, "connections", name, "password")
    {
        return Ok(kept);
    }
    change.secret(&id_of("connection", name).to_string(), secret).map_err(Problem::ours)
}

impl ConnectionBody {
    /// Puts it into the file.
    fn write(self, change: &mut Change<'_>, name: &str) -> Result<(), Problem> {
        let picker = self.picker()?;
        let password =
            self.passwordUnencrypted.try_map(|Password(secret)| password_value(change, name, &secret))?;
        if let Patch::Set(Some(attribute)) = &picker.0 {
            declare(change, attribute);
        }
        if picker.0.is_there() {
            declare_picking(change, name);
        }
        let base = environments::base_of(&change.generation.config, &ConnectionName::from(name));
        if let (Some(base), Patch::Set(_)) = (base, self.options.said("environment_name")) {
            let what =
                format!("it is an environment of {}, and named there (/connection-environments)", base.name);
            return Err(Problem::field("environmentName", what));
        }
        let table = edit::needed(&mut change.document, "connections", name)?;
        let seconds = |Whole(n): Whole<0, 3600>| {
            humantime::format_duration(Duration::from_secs(n.into())).to_string().into()
        };
        let attribute = match picker.0 {
            Patch::Set(None) => Patch::Null,
            attribute => attribute.map(|name| name.unwrap_or_default().into()),
        };
        edit::put(table, "password", password);
        edit::put(table, "query_timeout", self.queryTimeoutSeconds.map(seconds));
        edit::put(table, "user_attribute", attribute);
        edit::put_list(table, "default_values", picker.1);
        self.options.write(table)
    }

    /// Which attribute picks, and its values that mean the base: in the flat form or in the nested one, never in both.
    fn picker(&self) -> Result<(Patch<Option<String>>, Patch<List>), Problem> {
        let (name, values) = (
            self.userAttributeNameForConnectionEnvironments.clone(),
            self.userAttributeValuesForDefaultEnvironment.clone(),
        );
        if self.environmentUserAttribute.is_there() && (name.is_there() || values.is_there()) {
            let what = "give either this or userAttributeNameForConnectionEnvironments and \
                        userAttributeValuesForDefaultEnvironment, not both";
            return Err(Problem::field("environmentUserAttribute", what));
        }
        Ok(match self.environmentUserAttribute.clone() {
            Patch::Absent => (name.map(|Name(name)| Some(name)), values),
            Patch::Null => (Patch::Null, Patch::Null),
            Patch::Set(picker) => (
                Patch::Set(picker.attribute),
                picker.values.map_or(Patch::Absent, |values| Patch::Set(List(values))),
            ),
        })
    }
}

/// The one that a connection picks by until now.
fn declare_picking(change: &mut Change<'_>, connection: &str) {
    let generation = change.generation;
    let base = generation.config.connections.get(connection).and_then(|connection| connection.base.as_ref());
    if let Some(attribute) = base.and_then(|base| base.attribute.as_ref()) {
        declare(change, attribute.as_str());
    }
}

/// An attribute that picks is declared, so that it stays when it does not pick any more and users still have it.
fn declare(change: &mut Change<'_>, attribute: &str) {
    if edit::table(&mut change.document, "attributes", attribute).is_none() {
        edit::add(&mut change.document, "attributes", attribute);
    }
}
