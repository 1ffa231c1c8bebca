//! The page, and the document of the API for people: each one file, which needs nothing else.

use axum::http::header;
use axum::response::{Html, IntoResponse, Response};

/// Everything of a page stands in it; it may call only where it comes from.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

fn html(text: &'static str) -> Response {
    ([(header::CONTENT_SECURITY_POLICY, POLICY)], Html(text)).into_response()
}

/// `/`
pub async fn page() -> Response {
    html(include_str!("page.html"))
}

/// `/api/v1/docs`
pub async fn documentation() -> Response {
    html(include_str!("docs.html"))
}
