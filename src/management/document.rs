//! The document of the API (OpenAPI 3.1): made of the functions that answer, and what holds for all of them.

use axum::http::header;
use axum::response::{IntoResponse, Response};
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::Operation;
use utoipa::openapi::schema::{ObjectBuilder, Ref, SchemaType, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    Components, ContentBuilder, InfoBuilder, OpenApi, OpenApiBuilder, RefOr, ResponseBuilder,
};
use utoipa::{PartialSchema, ToSchema};

use super::answer::ErrorBody;

const ABOUT: &str = "Routes of pgusher: connections and their environments, users, groups and attributes, and what an operator \
    does with a running pgusher. A write is in force when it is answered, and written to the configuration's file, whose \
    comments and order stay. Errors are `{\"detail\", \"status\"}`. `ETag` and `If-Match` (412) keep two writers from \
    overwriting each other; `?dry_run=true` says what a write would change.";

/// What every call may be answered.
const ERRORS: [(&str, &str); 12] = [
    ("400", "The request is wrong: `Bad Request: <field>: <what>`."),
    ("401", "No known token."),
    ("403", "The token may not: `Permission denied`."),
    ("404", "It does not exist."),
    ("408", "The body did not come."),
    ("409", "It does not fit what there is, or the file was edited, or is read-only."),
    ("412", "`If-Match` names another edition."),
    ("413", "The body is too long."),
    ("415", "The body is of another type."),
    ("429", "Too many requests: `Retry-After` says when there are more."),
    ("405", "The path does not take this method."),
    ("503", "Not now: the audit cannot be written, or something of ours is exhausted."),
];

/// Without its calls.
pub(super) fn head() -> OpenApi {
    let info = InfoBuilder::new()
        .title("pgusher")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(ABOUT))
        .build();
    let mut components = Components::new();
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(
        "A token of `[management.tokens.NAME]`. `role = \"read\"` may GET; `role = \"admin\"` may do everything.",
    ));
    components.add_security_scheme("token", SecurityScheme::Http(bearer.build()));
    components.schemas.insert(ErrorBody::name().into_owned(), ErrorBody::schema());
    OpenApiBuilder::new()
        .info(info)
        .components(Some(components))
        .security(Some([SecurityRequirement::new::<_, _, &str>("token", [])]))
        .build()
}

/// What holds for all calls is said of each.
pub(super) fn finish(mut document: OpenApi) -> String {
    for path in document.paths.paths.values_mut() {
        let operations = [&mut path.get, &mut path.post, &mut path.put, &mut path.patch, &mut path.delete];
        operations.into_iter().flatten().for_each(complete);
    }
    document.to_json().unwrap_or_default()
}

fn complete(operation: &mut Operation) {
    let text = || ObjectBuilder::new().schema_type(SchemaType::Type(Type::String));
    for (status, about) in ERRORS {
        let body = ContentBuilder::new().schema(Some(Ref::from_schema_name(ErrorBody::name()))).build();
        let mut response = ResponseBuilder::new().description(about).content("application/json", body);
        if status == "429" {
            let seconds = ObjectBuilder::new().schema_type(SchemaType::Type(Type::Integer));
            response = response.header("Retry-After", HeaderBuilder::new().schema(seconds).build());
        }
        operation.responses.responses.entry(status.to_owned()).or_insert(response.build().into());
    }
    for (status, response) in &mut operation.responses.responses {
        if let (RefOr::T(response), true) = (response, status.starts_with('2')) {
            for (name, about) in [
                ("RateLimit", "What is left of this minute's requests."),
                ("RateLimit-Policy", "How many requests there are in a minute."),
            ] {
                let header = HeaderBuilder::new().schema(text()).description(Some(about)).build();
                response.headers.insert(name.to_owned(), header);
            }
        }
    }
    let is_read = operation.request_body.is_none()
        && operation
            .operation_id
            .as_deref()
            .is_some_and(|id| id.starts_with("read") || id.starts_with("list"));
    if is_read {
        let response = ResponseBuilder::new().description("`If-None-Match` names this edition.").build();
        operation.responses.responses.insert("304".to_owned(), response.into());
    }
}

/// The document as it is served.
pub(super) async fn serve(document: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], document).into_response()
}
