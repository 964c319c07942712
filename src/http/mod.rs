//! The HTTP side: shape in, one service call, shape out. The only place that knows axum.
//!
//! `routes` is the table of all routes. A handler takes an `extract::JsonBody`, has [`crate::wire`] read it, calls one
//! function of [`crate::service`] and has `wire` shape the answer. Every refusal by a handler, an extractor or the
//! router leaves as the contract's error body through [`error`].

mod accept;
mod allowance;
mod analysis;
mod ask;
mod auth;
mod body_room;
mod chat;
mod chat_stream;
mod completions;
mod connection;
pub mod context;
mod documents;
mod embeddings;
pub mod error;
mod extract;
mod files;
mod greeting;
mod head_limit;
mod health;
mod host;
mod ignored;
mod json_cost;
mod me;
mod metered;
mod models;
mod openapi;
mod origin;
mod page_security;
mod partial;
mod quote;
mod receipt;
mod rerank;
mod route;
mod routes;
mod scopes;
mod serve;
mod settings;
mod spending;
mod sse;
mod state;
mod tokens;
mod upload;
mod vector_stores;

use std::any::Any;

use axum::{
    Router,
    http::{HeaderName, HeaderValue, Method},
    middleware,
    response::{IntoResponse, Response},
};
use tower_http::{
    catch_panic::CatchPanicLayer,
    cors::{AllowHeaders, AllowOrigin, CorsLayer},
};

use self::error::ApiError;
pub use self::{
    host::AllowedHosts,
    serve::{check_tls, serve},
    settings::{HttpSettings, TlsSettings},
    state::AppState,
};
use hearth_domain::error::{Error, ErrorKind};

/// The routes of the table, with the layers around them.
pub fn router(state: AppState) -> Router {
    route::router()
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(no_such_route)
        // The last layer is the outermost.
        .layer(middleware::from_fn_with_state(
            body_room::BodyRoom::new(state.settings.body_limit_bytes),
            body_room::with_body_share,
        ))
        .layer(middleware::from_fn(scopes::require_scope))
        .layer(middleware::from_fn_with_state(state.clone(), metered::with_account))
        .layer(middleware::from_fn_with_state(state.clone(), auth::require_api_key))
        .layer(middleware::from_fn_with_state(state.clone(), origin::require_allowed_origin))
        .layer(cors(&state.settings.cors_origins))
        .layer(middleware::from_fn_with_state(state.clone(), host::require_allowed_host))
        .layer(middleware::from_fn_with_state(state.clone(), head_limit::limit_head))
        .layer(CatchPanicLayer::custom(after_panic))
        .layer(middleware::map_response(page_security::restrict))
        .layer(middleware::from_fn_with_state(state.clone(), context::with_context))
        .with_state(state)
}

async fn no_such_route(method: Method, uri: axum::http::Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    ApiError(Error::new(ErrorKind::NotFound, format!("No such route: {method} {path}. /docs lists the routes.")))
}

async fn method_not_allowed(method: Method, uri: axum::http::Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    ApiError(Error::new(ErrorKind::MethodNotAllowed, format!("{path} does not take {method}. /docs lists the routes.")))
}

#[expect(clippy::needless_pass_by_value, reason = "the signature that the layer calls")]
fn after_panic(panic: Box<dyn Any + Send>) -> Response {
    let message = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned());
    ApiError(Error::internal(anyhow::anyhow!("panic: {message}"))).into_response()
}

/// No origins: no CORS headers, so a page of another site cannot read answers.
fn cors(origins: &[String]) -> CorsLayer {
    if origins.is_empty() {
        return CorsLayer::new();
    }
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(
            [
                "x-request-id",
                "openai-processing-ms",
                "retry-after",
                "retry-after-ms",
                "x-should-retry",
                "x-hearth-ignored",
            ]
            .into_iter()
            .chain(allowance::HEADERS)
            .map(HeaderName::from_static)
            .chain(receipt::DESCRIBED.map(|(name, _)| name))
            .chain([partial::PARTIAL])
            .collect::<Vec<_>>(),
        )
}
