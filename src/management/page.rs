//! The page, and the document of the API for people: each one file, which needs nothing else.

use aws_lc_rs::digest::{SHA256, digest};
use axum::http::{HeaderValue, header};
use axum::response::{Html, IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

/// A page, and what it may do: run what stands in it, and ask where it comes from. Nothing can be put into it as HTML
/// (Trusted Types), and nothing else be shown or run.
fn answer(text: &'static str) -> Response {
    let hash = |open: &str, close: &str| {
        let inside =
            text.split_once(open).and_then(|(_, rest)| rest.split_once(close)).map_or("", |(i, _)| i);
        format!("'sha256-{}'", BASE64.encode(digest(&SHA256, inside.as_bytes())))
    };
    let policy = format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        hash("<script>", "</script>"),
        hash("<style>", "</style>")
    );
    let policy = HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'none'"));
    ([(header::CONTENT_SECURITY_POLICY, policy)], Html(text)).into_response()
}

/// `/`
pub(super) async fn page() -> Response {
    answer(include_str!("page.html"))
}

/// `/api/v1/docs`
pub(super) async fn documentation() -> Response {
    answer(include_str!("docs.html"))
}
