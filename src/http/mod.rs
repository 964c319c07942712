//! The HTTP side: shape in, one service call, shape out. The only place that knows axum.
//!
//! Every route is on this page. A handler takes a `extract::JsonBody`, lets [`crate::wire`] read it, calls
//! one function of [`crate::service`] and lets `wire` shape the answer. Whatever is refused on the way,
//! by a handler, an extractor or the router, leaves as the contract's error body through [`error`].

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
    extract::DefaultBodyLimit,
    http::{HeaderName, HeaderValue, Method},
    middleware,
    response::{IntoResponse, Response},
    routing::{delete, get, post},
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

/// Every route, grouped by who calls it.
pub fn router(state: AppState) -> Router {
    Router::new()
        // OpenAI's SDKs and what speaks like them
        .route("/v1/chat/completions", post(chat::create_chat_completion))
        .route("/v1/completions", post(completions::create_completion))
        .route("/v1/embeddings", post(embeddings::create_embeddings))
        .route("/v1/rerank", post(rerank::rerank))
        .route("/rerank", post(rerank::rerank))
        // Clients that were configured without `/v1`, as llama-server's may be
        .route("/chat/completions", post(chat::create_chat_completion))
        .route("/completions", post(completions::create_completion))
        .route("/embeddings", post(embeddings::create_embeddings))
        .route("/models", get(models::list_models))
        .route("/models/{*id}", get(models::retrieve_model))
        .route("/v1/quote", post(quote::quote))
        .route("/v1/models", get(models::list_models))
        .route("/v1/models/{*id}", get(models::retrieve_model))
        .route("/v1/files", post(files::upload_file).get(files::list_files).layer(DefaultBodyLimit::disable()))
        .route("/v1/files/{id}", get(files::retrieve_file).delete(files::delete_file))
        .route("/v1/files/{id}/content", get(files::file_content))
        .route("/v1/vector_stores", post(vector_stores::create_vector_store).get(vector_stores::list_vector_stores))
        .route(
            "/v1/vector_stores/{id}",
            get(vector_stores::retrieve_vector_store)
                .post(vector_stores::update_vector_store)
                .delete(vector_stores::delete_vector_store),
        )
        .route("/v1/vector_stores/{id}/search", post(vector_stores::search_vector_store))
        .route(
            "/v1/vector_stores/{id}/files",
            post(vector_stores::create_vector_store_file).get(vector_stores::list_vector_store_files),
        )
        .route(
            "/v1/vector_stores/{id}/files/{file_id}",
            get(vector_stores::retrieve_vector_store_file)
                .post(vector_stores::update_vector_store_file)
                .delete(vector_stores::delete_vector_store_file),
        )
        .route("/v1/vector_stores/{id}/files/{file_id}/content", get(vector_stores::vector_store_file_content))
        .route("/v1/vector_stores/{id}/file_batches", post(vector_stores::create_file_batch))
        .route("/v1/vector_stores/{id}/file_batches/{batch_id}", get(vector_stores::retrieve_file_batch))
        .route("/v1/vector_stores/{id}/file_batches/{batch_id}/cancel", post(vector_stores::cancel_file_batch))
        .route("/v1/vector_stores/{id}/file_batches/{batch_id}/files", get(vector_stores::list_file_batch_files))
        // Programs that ask documents, without an SDK
        .route("/ask", post(ask::ask))
        .route("/ask/stream", post(ask::ask_stream))
        .route("/generate", post(ask::generate))
        .route("/stream", post(ask::generate_stream))
        .route("/api/v1/chat", post(ask::chat))
        .route("/api/v1/chat/stream", post(ask::chat_stream))
        .route("/api/v1/search", post(ask::search))
        .route("/api/v1/documents/upload", post(documents::upload).layer(DefaultBodyLimit::disable()))
        .route("/api/v1/documents", get(documents::list))
        .route("/api/v1/documents/{id}", get(documents::retrieve).delete(documents::delete))
        .route("/api/v1/collections", get(documents::collections))
        .route("/api/v1/collections/{name}", delete(documents::delete_collection))
        .route("/api/v1/collections/{name}/reindex", post(documents::reindex))
        .route("/api/v1/collections/{name}/reindex/{job_id}", get(documents::reindex_state))
        .route("/analysis", get(analysis::list).post(analysis::create))
        .route("/analysis/{job_id}", get(analysis::retrieve).delete(analysis::cancel))
        // llama-server's clients and load generators
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/apply-template", post(tokens::apply_template))
        // Probes and scrapers
        .route("/health", get(health::health))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/health/deep", get(health::deep))
        .route("/metrics", get(spending::metrics))
        .route("/v1/usage", get(spending::usage))
        .route("/v1/me", get(me::me))
        // People
        .route("/", get(greeting::greet))
        .route("/openapi.json", get(openapi::document))
        .route("/docs", get(openapi::docs_redirect))
        .route("/docs/", get(openapi::docs_index))
        .route("/docs/{*file}", get(openapi::docs_file))
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

/// No origins: no CORS headers, so that a page from elsewhere cannot read answers.
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
            .chain(receipt::NAMES)
            .chain([partial::PARTIAL])
            .collect::<Vec<_>>(),
        )
}
