//! What operators order of a running pgusher, and what they set, by the API: the same that the console does.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::request::Parts;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;

use super::answer::Problem;
use super::body::{Field, Name, New, body, word, word_schema};
use super::{Api, WriteRequest};
use crate::pool::{Admission, Halt, Pool};
use crate::proxy::SetError;
use policy::config::file::Server;
use policy::config::manual::Applies;

/// What is ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// `PAUSE`
    Pause,
    /// `RESUME`, of a database or of an environment
    Resume,
    /// `DISABLE`
    Disable,
    /// `ENABLE`
    Enable,
    /// `RECONNECT`
    Reconnect,
    /// `KILL`
    Kill,
    /// `DRAIN ENVIRONMENT`
    Drain,
}

const ACTIONS: [(&str, Action); 7] = [
    ("pause", Action::Pause),
    ("resume", Action::Resume),
    ("disable", Action::Disable),
    ("enable", Action::Enable),
    ("reconnect", Action::Reconnect),
    ("kill", Action::Kill),
    ("drain", Action::Drain),
];

impl Field for Action {
    fn schema() -> RefOr<Schema> {
        word_schema(&ACTIONS.map(|(word, _)| word))
    }
    fn read(value: serde_json::Value) -> Result<Self, String> {
        let of_word =
            |word: &str| ACTIONS.iter().find(|(known, _)| *known == word).map(|(_, action)| *action);
        word(value, &ACTIONS.map(|(word, _)| word), of_word)
    }
}

body! {
    /// An order. It holds until it is taken back, whatever is put in force meanwhile.
    OrderBody as "Order" {
        /// `pause` and `resume`, `disable` and `enable`, `reconnect` and `kill` are of a connection; `drain` and `resume` of an environment.
        action: Action, required;
        /// The connection, by its name. `reconnect` without one is of all.
        connection: Name;
        /// The environment, by its name: of every database that has one of that name.
        environment: Name;
    }
}

type NewOrder = New<OrderBody>;

/// What was ordered. Nobody waits until it has come about: `GET /api/v1/overview` shows how far it is.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct OrderGiven {
    /// Always true: otherwise there is an error.
    success: bool,
    /// The connections that it is about.
    connections: Vec<String>,
    /// How many sessions they had.
    sessions: usize,
    /// Whether it has changed anything: false if it was so before.
    changed: bool,
}

/// Gives an order.
#[utoipa::path(post, path = "/api/v1/orders", tag = "orders", operation_id = "giveOrder", request_body = NewOrder,
    params(("dry_run" = Option<bool>, Query, description = "Only says what it would be about.")),
    responses((status = 200, description = "It was given, or would be.", body = OrderGiven)))]
pub(super) async fn give(
    State(api): State<Arc<Api>>,
    asked: WriteRequest,
    New(body): New<OrderBody>,
) -> Result<Json<OrderGiven>, Problem> {
    // Its work grows with the sessions: not on the thread that accepts.
    api.blocking(move |api| {
        asked.by.may_still(&api.current.generation().config)?;
        let about = About::of(api, body)?;
        let now = api.sessions.snapshot();
        let sessions = about.pools.iter().map(|pool| now.sessions_of(pool).count()).sum();
        let connections = about.pools.iter().map(|pool| pool.connection().name.to_string()).collect();
        let changed = if asked.intent.is_dry() { false } else { about.carry_out(api) };
        Ok(Json(OrderGiven { success: true, connections, sessions, changed }))
    })
    .await
}

/// An order, understood.
struct About {
    action: Action,
    environment: Option<String>,
    pools: Vec<Arc<Pool>>,
}

impl About {
    fn of(api: &Api, body: OrderBody) -> Result<Self, Problem> {
        let action = body.action.required("action")?;
        let connection = body.connection.given().map(|Name(name)| name);
        let environment = body.environment.given().map(|Name(name)| name);
        let generation = api.current.generation();
        let pools = match (action, &connection, &environment) {
            (_, Some(_), Some(_)) => {
                return Err(Problem::field("environment", "give this or connection, not both"));
            }
            (Action::Drain | Action::Resume, None, Some(name)) => {
                let is_of = |pool: &&Arc<Pool>| pool.connection().environment.as_str() == name;
                let pools: Vec<_> = generation.pools.values().filter(is_of).cloned().collect();
                if pools.is_empty() {
                    return Err(Problem::missing_named("Environment", name));
                }
                pools
            }
            (Action::Drain, ..) => return Err(Problem::field("environment", "Required")),
            (_, None, Some(_)) => return Err(Problem::field("connection", "Required")),
            (_, Some(name), None) => {
                let pool = generation.pools.get(name.as_str()).cloned();
                vec![pool.ok_or_else(|| Problem::missing_named("Connection", name))?]
            }
            (Action::Reconnect, None, None) => generation.pools.values().cloned().collect(),
            (_, None, None) => return Err(Problem::field("connection", "Required")),
        };
        Ok(Self { action, environment, pools })
    }

    /// Does it; whether that has changed anything.
    fn carry_out(&self, api: &Api) -> bool {
        let before = self.standing();
        match &self.environment {
            Some(environment) => self.order_environment(api, environment),
            None => self.pools.iter().for_each(|pool| self.order_pool(api, pool)),
        }
        let is_one_off = matches!(self.action, Action::Reconnect | Action::Kill);
        (is_one_off && !before.is_empty()) || before != self.standing()
    }

    fn standing(&self) -> Vec<(Option<Halt>, Admission)> {
        self.pools.iter().map(|pool| (pool.view().halted, pool.admission())).collect()
    }

    fn order_environment(&self, api: &Api, environment: &str) {
        match self.action {
            Action::Drain => drop(api.standing.drain_environment(environment)),
            _ => drop(api.standing.resume_environment(environment)),
        }
    }

    fn order_pool(&self, api: &Api, pool: &Arc<Pool>) {
        let standing = &api.standing;
        match self.action {
            Action::Pause => standing.pause(pool),
            Action::Resume => drop(standing.resume(pool)),
            Action::Disable => standing.admit(pool, Admission::Disabled),
            Action::Enable => standing.admit(pool, Admission::Open),
            Action::Reconnect => pool.reconnect(),
            Action::Kill => standing.kill(pool),
            Action::Drain => {}
        }
    }
}

/// A setting of `[server]`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Setting {
    /// Its name.
    key: &'static str,
    /// Its value now, as it would be written.
    value: String,
    /// Its default.
    default: String,
    /// Whether it can be changed without a restart.
    changeable: bool,
}

/// Settings.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Settings {
    /// All of `[server]`.
    settings: Vec<Setting>,
    /// Whether all pools were paused or suspended: `paused`, `suspended` or null.
    halted: Option<&'static str>,
}

/// Lists the settings of `[server]` in force.
#[utoipa::path(get, path = "/api/v1/settings", tag = "orders", operation_id = "listSettings",
    responses((status = 200, description = "The settings.", body = Settings)))]
pub(super) async fn settings(State(api): State<Arc<Api>>, parts: Parts) -> Result<Json<Settings>, Problem> {
    super::query(&parts, &[])?;
    let generation = api.current.generation();
    let (_, _, options) = Server::manual();
    let shown = generation.config.server.shown().into_iter().zip(options);
    let settings = shown.map(|((key, value), option)| Setting {
        key,
        value: unquoted(&value),
        default: unquoted(&option.default.unwrap_or_default()),
        changeable: option.applies != Applies::Restart,
    });
    let halted = api.standing.halted().map(|halt| match halt {
        Halt::Paused => "paused",
        Halt::Suspended => "suspended",
    });
    Ok(Json(Settings { settings: settings.collect(), halted }))
}

fn unquoted(text: &str) -> String {
    text.trim_matches('"').to_owned()
}

body! {
    /// A setting of `[server]` that is to be another until the file is read again.
    SettingBody as "NewSetting" {
        /// Its name.
        key: Name, required;
        /// Its value, as it is said on the console: a number for a time is of seconds.
        value: Name, required;
    }
}

type NewSetting = New<SettingBody>;

/// What was set.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct SettingSet {
    /// Always true: otherwise there is an error.
    success: bool,
    /// It was only asked what it would be.
    dry_run: bool,
    /// What is in force now.
    generation: u64,
    /// The setting, as it would be written.
    value: String,
}

/// Sets a setting of `[server]` until the file is read again, or the API writes it.
#[utoipa::path(post, path = "/api/v1/settings", tag = "orders", operation_id = "set", request_body = NewSetting,
    params(("dry_run" = Option<bool>, Query, description = "Only says what it would be.")),
    responses((status = 200, description = "It is in force, or would be.", body = SettingSet)))]
pub(super) async fn set(
    State(api): State<Arc<Api>>,
    asked: WriteRequest,
    New(body): New<SettingBody>,
) -> Result<Json<SettingSet>, Problem> {
    let (Name(key), Name(value)) = (body.key.required("key")?, body.value.required("value")?);
    let turn = super::turn(&api.writes).await?;
    api.blocking(move |api| {
        let _turn = turn;
        asked.by.may_still(&api.current.generation().config)?;
        let set = api.configuration.set(&key, &value, asked.intent);
        let (value, generation) = set.map_err(|error| match &error {
            SetError::Value { why, .. } => Problem::field("value", format_args!("{error}: {why}")),
            SetError::Broken(_) => Problem::conflict(error.to_string()),
            SetError::Unknown(_) | SetError::Restart(_) | SetError::File(_) => Problem::field("key", error),
        })?;
        let dry_run = asked.intent.is_dry();
        Ok(Json(SettingSet {
            success: true,
            dry_run,
            generation: generation.number,
            value: unquoted(&value),
        }))
    })
    .await
}
