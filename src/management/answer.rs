//! What the API answers: objects with their `ETag`, and errors that say what is wrong with what.

use aws_lc_rs::hmac;
use axum::Json;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::redact::safe;
use crate::proxy::{Generation, Intent, LoadError, WriteError, Written};
use policy::config::problems::Severity;
use policy::plan::Plan;
use secrecy::ExposeSecret;
use wire::error::Refusal;

/// An error.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ErrorBody {
    /// What is wrong.
    detail: String,
    /// The status of the answer.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
}

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    /// The status.
    pub status: StatusCode,
    /// For whoever asked; never a secret.
    pub detail: String,
    /// In how many seconds to try again.
    pub retry_after: Option<u64>,
}

impl Problem {
    /// With a status.
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), retry_after: None }
    }

    /// 400: the request as such.
    pub(super) fn bad(what: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, format!("Bad Request: {what}"))
    }

    /// 400: a field of it.
    pub(super) fn field(name: &str, what: impl std::fmt::Display) -> Self {
        Self::bad(format_args!("{name}: {what}"))
    }

    /// 404
    pub(super) fn missing(what: &str, id: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("{what} with id {id} does not exist"))
    }

    /// 404, of what is meant by its name.
    pub(super) fn missing_named(what: &str, name: &str) -> Self {
        let name = wire::error::Shown::name(name);
        Self::new(StatusCode::NOT_FOUND, format!("{what} {name} does not exist"))
    }

    /// 409: it does not fit what there is.
    pub(super) fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, detail)
    }

    /// 403
    pub(super) fn denied() -> Self {
        Self::new(StatusCode::FORBIDDEN, "Permission denied")
    }

    /// 503: a bug or an exhausted resource of ours.
    pub(super) fn ours(detail: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail.to_string())
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.detail)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = Json(ErrorBody { detail: safe(&self.detail), status: self.status.as_u16() });
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"pgusher\""));
        }
        response
    }
}

/// A configuration that would be wrong: the message of each problem, and none of its lines.
impl From<&LoadError> for Problem {
    fn from(error: &LoadError) -> Self {
        let LoadError::Rejected(rejected) = error else { return Self::bad(error) };
        let errors = || rejected.0.iter().filter(|problem| problem.severity == Severity::Error);
        let messages: Vec<_> = errors()
            .map(|problem| match &problem.help {
                Some(help) => format!("{} ({help})", problem.message),
                None => problem.message.clone(),
            })
            .collect();
        let messages = messages.join("; ");
        match errors().any(|problem| problem.is_conflict) {
            true => Self::conflict(messages),
            false => Self::bad(messages),
        }
    }
}

impl From<WriteError<Problem>> for Problem {
    fn from(error: WriteError<Self>) -> Self {
        match error {
            WriteError::Edit(problem) => problem,
            WriteError::Load(error) => Self::from(&error),
            WriteError::Store(_)
            | WriteError::Toml(_)
            | WriteError::Secret { .. }
            | WriteError::Broken(_)
            | WriteError::Production(_) => Self::conflict(error.to_string()),
        }
    }
}

/// What a login, or the console, would be refused with.
impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let text = [Some(refusal.message.into_owned()), refusal.detail].into_iter().flatten();
        let text = text.collect::<Vec<_>>().join(": ");
        match refusal.sqlstate.as_str() {
            "42704" => Self::new(StatusCode::NOT_FOUND, text),
            "42601" | "22023" => Self::bad(text),
            _ => Self::conflict(text),
        }
    }
}

/// One line of a plan.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PlanRow {
    /// `production` (somebody newly reaches it), `fallback`, `route`, `session`, `pool`, `connection`, `secret` or `setting`.
    change: String,
    /// Of what.
    subject: String,
    /// Until now.
    from: String,
    /// From then on.
    to: String,
    /// What to know about it.
    note: String,
}

impl PlanRow {
    /// Of somebody, from here to there.
    pub(super) fn new(change: &str, subject: String, from: String, to: String) -> Self {
        Self { change: change.to_owned(), subject, from, to, note: String::new() }
    }
}

/// The lines of a plan, what reaches production first.
pub(super) fn plan_rows(plan: &Plan) -> Vec<PlanRow> {
    let row = |[change, subject, from, to, note]: [String; 5]| PlanRow { change, subject, from, to, note };
    plan.rows().into_iter().map(row).collect()
}

/// What became of a write.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Outcome {
    /// Always true: otherwise there is an error.
    success: bool,
    /// It was only asked what would change.
    dry_run: bool,
    /// What is in force: the number of the configuration.
    generation: u64,
    /// Whether the file had to be changed.
    changed: bool,
    /// What has changed, or would.
    plan: Vec<PlanRow>,
    /// What somebody should look at in the configuration.
    warnings: Vec<String>,
}

impl Outcome {
    /// Of a text that was only looked at, beside what is in force.
    pub(super) fn planned(in_force: &Generation, text: &str, (plan, warnings): (Plan, Vec<String>)) -> Self {
        Self {
            success: true,
            dry_run: true,
            generation: in_force.number,
            changed: text != in_force.config.source.expose_secret(),
            plan: plan_rows(&plan),
            warnings,
        }
    }

    /// Of this write.
    pub(super) fn of(written: &Written, intent: Intent) -> Self {
        Self {
            success: true,
            dry_run: intent.is_dry(),
            generation: written.generation.number,
            changed: written.is_changed,
            plan: plan_rows(&written.plan),
            warnings: written.warnings.clone(),
        }
    }
}

/// Declares what a write of one kind of object answers.
macro_rules! written {
    ($(#[doc = $about:literal])* $Name:ident { $field:ident: $Type:ty }) => {
        $(#[doc = $about])*
        #[derive(Debug, serde::Serialize, utoipa::ToSchema)]
        #[serde(rename_all = "camelCase")]
        pub(crate) struct $Name {
            #[serde(flatten)]
            pub outcome: $crate::management::answer::Outcome,
            /// The identifier.
            pub data: uuid::Uuid,
            /// The whole object, as it is stored, or was.
            pub $field: $Type,
        }
    };
}
pub(super) use written;

/// Makes `ETag`s: they tell one edition of an object from another, and nothing of its secrets.
pub(super) struct Tags(hmac::Key);

impl Tags {
    /// With a key of this process.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub(super) fn new() -> Result<Self, getrandom::Error> {
        let mut key = [0; 32];
        getrandom::fill(&mut key)?;
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &key)))
    }

    /// Of an object, and what belongs to it that is not shown.
    pub(super) fn of(&self, object: &impl Serialize, hidden: &str) -> String {
        let mut text = serde_json::to_vec(object).unwrap_or_default();
        text.push(0);
        text.extend_from_slice(hidden.as_bytes());
        let tag = hmac::sign(&self.0, &text);
        format!("\"{}\"", wire::hex(&tag.as_ref()[..16]))
    }
}

/// Whether `If-Match` names this tag (RFC 9110, section 13.1.1), or is not there. A weak one never does.
///
/// # Errors
/// 412
pub(super) fn matches(wanted: Option<&str>, tag: &str) -> Result<(), Problem> {
    match wanted {
        Some(wanted) if !wanted.split(',').map(str::trim).any(|one| one == tag || one == "*") => {
            let detail = "it was changed meanwhile: read it again (If-Match)";
            Err(Problem::new(StatusCode::PRECONDITION_FAILED, detail))
        }
        _ => Ok(()),
    }
}

/// An object with its tag; 304 if whoever asks has it.
pub(super) fn tagged(headers: &HeaderMap, status: StatusCode, tag: &str, body: impl Serialize) -> Response {
    let known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let is_known = known
        .flat_map(|known| known.split(','))
        .map(|one| one.trim().trim_start_matches("W/"))
        .any(|one| one == tag || one == "*");
    let mut response = match is_known {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => (status, Json(body)).into_response(),
    };
    if let Ok(value) = HeaderValue::from_str(tag) {
        response.headers_mut().insert(header::ETAG, value);
    }
    response
}

/// An object that was written, with its tag. A dry run has no tag: it would show whether the password in the request is the
/// one in force.
pub(super) fn wrote(intent: Intent, status: StatusCode, tag: &str, body: impl Serialize) -> Response {
    match intent {
        Intent::DryRun => (status, Json(body)).into_response(),
        Intent::Write => tagged(&HeaderMap::new(), status, tag, body),
    }
}

/// An identifier of a path or a query.
///
/// # Errors
/// 400 `Bad Request: <field>: Invalid uuid`
pub(super) fn uuid(field: &str, text: &str) -> Result<Uuid, Problem> {
    as_uuid(text).ok_or_else(|| Problem::field(field, "Invalid uuid"))
}

/// Only the usual form: others would be a second name for the same thing.
pub(super) fn as_uuid(text: &str) -> Option<Uuid> {
    Uuid::parse_str(text).ok().filter(|_| text.len() == 36)
}
