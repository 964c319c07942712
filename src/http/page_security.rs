//! What a browser may do with an answer: pages load nothing from elsewhere and stand in no frame, and nothing else is
//! treated as a page, whatever it looks like. Answers contain text of models and documents, and a user may open one in
//! a browser.

use axum::{
    http::{HeaderName, HeaderValue, header},
    response::Response,
};

/// Swagger UI's pages and `/` have their scripts in files, and styles in the page; Swagger UI's images are data URLs.
const PAGE: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
                    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const NO_PAGE: &str = "default-src 'none'; frame-ancestors 'none'";

/// Adds the headers.
pub(super) async fn restrict(mut response: Response) -> Response {
    let headers = response.headers_mut();
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let policy = if kind.starts_with("text/html") { PAGE } else { NO_PAGE };
    let fixed = |value| HeaderValue::from_static(value);
    headers.insert(header::CONTENT_SECURITY_POLICY, fixed(policy));
    headers.insert(header::X_FRAME_OPTIONS, fixed("DENY"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, fixed("nosniff"));
    headers.insert(header::REFERRER_POLICY, fixed("no-referrer"));
    headers.insert(HeaderName::from_static("cross-origin-opener-policy"), fixed("same-origin"));
    response
}
