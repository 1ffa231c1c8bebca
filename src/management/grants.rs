//! Access for a while by the API: grants, listed, given and ended.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Json;
use axum::extract::State;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
use uuid::Uuid;

use super::answer::{self, PlanRow, Problem, tagged};
use super::body::{Field, Name, New, body};
use super::operate::time;
use super::{Api, Id, WriteRequest};
use crate::proxy::Intent;
use policy::attribute::{self, Attributes, Hypothetical};
use policy::grant::{Grant, LONGEST, Which};
use policy::names::{UserName, id_of};
use policy::route;

/// For how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span(Duration);

impl Field for Span {
    fn schema() -> RefOr<Schema> {
        let text = ObjectBuilder::new().schema_type(SchemaType::Type(Type::String));
        text.pattern(Some("^([1-9][0-9]{0,2}h|[1-9][0-9]{0,4}m|[1-9][0-9]{0,5}s|[1-9][0-9]?d)$")).into()
    }
    fn read(value: Value) -> Result<Self, String> {
        let Name(text) = Name::read(value)?;
        let time = humantime::parse_duration(&text).ok().filter(|time| !time.is_zero() && *time <= LONGEST);
        time.map(Self).ok_or_else(|| "Expected a time such as \"1h\", at most 366 days".to_owned())
    }
}

body! {
    /// An environment that a user may request for a while.
    GrantBody as "Grant" {
        /// To whom.
        user: Name, required;
        /// What they may request.
        environment: Name, required;
        /// Of which database (a base connection, by name); by default of every one that has such an environment.
        database: Name;
        /// For how long: "1h", "30m", at most 366 days.
        r#for: Span, required;
        /// Why.
        reason: Name, required;
    }
}

type NewGrant = New<GrantBody>;

/// An environment that a user may request for a while.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct GrantShown {
    /// Made of the user, the environment and the database.
    id: Uuid,
    /// To whom.
    user: String,
    /// What they may request.
    environment: String,
    /// Of which database; `null`: of every one that has such an environment.
    database: Option<String>,
    /// The databases that this opens now.
    opens: Vec<String>,
    /// Since when.
    since: String,
    /// Until when.
    until: String,
    /// Why.
    reason: String,
    /// Who gave it.
    by: String,
}

/// Grants.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Grants {
    /// All that hold.
    grants: Vec<GrantShown>,
}

/// What became of a write of a grant.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct GrantWritten {
    /// Always true: otherwise there is an error.
    success: bool,
    /// It was only asked what would change.
    dry_run: bool,
    /// What has changed, or would: the user's routes and sessions.
    plan: Vec<PlanRow>,
    /// The identifier.
    data: Uuid,
    /// The grant, as it is kept, or was.
    grant: GrantShown,
}

fn grant_id(grant: &Grant) -> Uuid {
    let database = grant.database.as_ref().map(|database| format!("\0{database}"));
    id_of("grant", &format!("{}\0{}{}", grant.user, grant.environment, database.unwrap_or_default()))
}

fn shown(api: &Api, grant: &Grant) -> GrantShown {
    let generation = api.current.generation();
    GrantShown {
        id: grant_id(grant),
        user: grant.user.to_string(),
        environment: grant.environment.to_string(),
        database: grant.database.as_ref().map(ToString::to_string),
        opens: route::opened_by(&generation.config, grant).iter().map(ToString::to_string).collect(),
        since: time(grant.since),
        until: time(grant.until),
        reason: grant.reason.clone(),
        by: grant.by.to_string(),
    }
}

/// Lists grants.
#[utoipa::path(get, path = "/api/v1/grants", tag = "grants", operation_id = "listGrants",
    responses((status = 200, description = "All that hold.", body = Grants)))]
pub(super) async fn grants(State(api): State<Arc<Api>>, parts: Parts) -> Result<Response, Problem> {
    super::query(&parts, &[])?;
    let grants = all_grants(&api);
    let tag = api.tags.of(&grants, "");
    Ok(tagged(&parts.headers, StatusCode::OK, &tag, grants))
}

/// What would change for a user with other grants.
fn plan_grants(api: &Api, user: &UserName, grants: Vec<Grant>) -> Vec<PlanRow> {
    let generation = api.current.generation();
    let config = &generation.config;
    let now = attribute::explain(config, user.as_str()).with(api.access.of(user.as_str()));
    let then = attribute::explain(config, user.as_str()).with(grants);
    let outcome = |attributes: &Attributes<'_, Hypothetical>, database: &str, request: Option<&str>| {
        match route::resolve(config, attributes, database, request) {
            Ok(route) => format!("{} ({})", route.environment(), route.connection()),
            Err(refusal) => format!("refused ({})", refusal.sqlstate.as_str()),
        }
    };
    let is_production = |attributes: &Attributes<'_, Hypothetical>, database: &str| {
        let route = route::resolve(config, attributes, database, None).ok();
        route.and_then(|route| config.connections.get(route.connection())).is_some_and(|to| to.production)
    };
    let mut rows = Vec::new();
    let bases = config.databases.iter().filter(|(database, base)| database.as_str() == base.as_str());
    for (database, _) in bases {
        let environments = config.base(database.as_str()).map_or(&[][..], |(_, base)| &base.environments);
        let requests = environments.iter().map(|environment| Some(environment.name.as_str()));
        for request in std::iter::once(None).chain(requests) {
            let [from, to] = [&now, &then].map(|attributes| outcome(attributes, database.as_str(), request));
            if from != to {
                let asking = request.map(|name| format!(" requesting {name}")).unwrap_or_default();
                let kind = if request.is_none()
                    && is_production(&then, database.as_str())
                    && !is_production(&now, database.as_str())
                {
                    "production"
                } else {
                    "route"
                };
                rows.push(PlanRow::new(kind, format!("{user} on {database}{asking}"), from, to));
            }
        }
    }
    for session in api.sessions.list().iter().filter(|session| session.identity.user() == user) {
        let (asked, route) = (&session.target.asked, &session.target.route);
        let to = outcome(&then, &asked.database, asked.environment.as_deref());
        let from = format!("{} ({})", route.environment(), route.connection());
        if from != to {
            rows.push(PlanRow::new("session", format!("{} of {user}", session.id), from, to));
        }
    }
    rows
}

fn all_grants(api: &Api) -> Grants {
    Grants { grants: api.access.all().iter().map(|grant| shown(api, grant)).collect() }
}

/// Lets a user request an environment for a while. One that was there is replaced.
#[utoipa::path(post, path = "/api/v1/grants", tag = "grants", operation_id = "grant", request_body = NewGrant,
    params(("dry_run" = Option<bool>, Query, description = "Only says what would change.")),
    responses((status = 201, description = "It holds.", body = GrantWritten),
        (status = 200, description = "It would hold.", body = GrantWritten)))]
pub(super) async fn grant(
    State(api): State<Arc<Api>>,
    asked: WriteRequest,
    New(body): New<GrantBody>,
) -> Result<Response, Problem> {
    let _turn = super::turn(&api.grants).await?;
    answer::matches(asked.if_match.as_deref(), &api.tags.of(&all_grants(&api), ""))?;
    let Span(lasts) = body.r#for.required("for")?;
    let since = SystemTime::now();
    let grant = Grant {
        user: body.user.required("user")?.0.into(),
        environment: body.environment.required("environment")?.0.into(),
        database: body.database.given().map(|Name(name)| api.configuration.base_named(&name)),
        since,
        until: since + lasts,
        reason: body.reason.required("reason")?.0,
        by: asked.by.name().into(),
    };
    let (kept, caller, intent) = (grant.clone(), asked.by.clone(), asked.intent);
    let plan = api
        .blocking(move |api| {
            caller.may_still(&api.current.generation().config)?;
            api.access.check(&kept)?;
            let others = api.access.of(kept.user.as_str()).into_iter();
            let grants = others.filter(|other| !other.is_like(&kept)).chain([kept.clone()]);
            let plan = plan_grants(api, &kept.user, grants.collect());
            if intent == Intent::Write {
                api.access.grant(&kept)?;
            }
            Ok(plan)
        })
        .await?;
    let shown = shown(&api, &grant);
    let tag = api.tags.of(&shown, "");
    let body = GrantWritten { success: true, dry_run: intent.is_dry(), plan, data: shown.id, grant: shown };
    Ok(tagged(&HeaderMap::new(), asked.created(), &tag, body))
}

/// Ends a grant before its time: sessions that came by it are settled at once.
#[utoipa::path(delete, path = "/api/v1/grants/{id}", tag = "grants", operation_id = "revoke",
    params(("id" = Uuid, Path, description = "Its identifier."),
        ("dry_run" = Option<bool>, Query, description = "Only says what would change.")),
    responses((status = 200, description = "It is over, or would be.", body = GrantWritten)))]
pub(super) async fn revoke(
    State(api): State<Arc<Api>>,
    asked: WriteRequest,
    id: Id,
) -> Result<Response, Problem> {
    let _turn = super::turn(&api.grants).await?;
    let grant = api.access.all().iter().find(|grant| grant_id(grant) == id.0).cloned();
    let grant = grant.ok_or_else(|| Problem::missing("Grant", id.0))?;
    let shown = shown(&api, &grant);
    answer::matches(asked.if_match.as_deref(), &api.tags.of(&shown, ""))?;
    let (caller, intent) = (asked.by.clone(), asked.intent);
    let plan = api
        .blocking(move |api| {
            caller.may_still(&api.current.generation().config)?;
            let others = api.access.of(grant.user.as_str()).into_iter();
            let grants = others.filter(|other| !other.is_like(&grant)).collect();
            let plan = plan_grants(api, &grant.user, grants);
            if intent == Intent::Write {
                let which = Which::Of(grant.database.clone());
                let (user, environment) = (grant.user.as_str(), grant.environment.as_str());
                api.access.revoke(user, environment, &which, &caller.name().into())?;
            }
            Ok(plan)
        })
        .await?;
    let body = GrantWritten { success: true, dry_run: intent.is_dry(), plan, data: id.0, grant: shown };
    Ok((StatusCode::OK, Json(body)).into_response())
}
