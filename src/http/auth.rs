//! API keys: `Authorization: Bearer KEY`, or `x-api-key`.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use subtle::ConstantTimeEq;

use super::{error::ApiError, state::AppState};
use crate::{
    domain::Caller,
    error::{Error, ErrorKind},
};

/// Who calls, and whose turn it is in fair queues: a key without the key itself, or the peer.
#[derive(Clone, Debug)]
pub(super) struct Authenticated {
    pub(super) caller: Arc<Caller>,
    /// `None`: the peer's address.
    pub(super) turn: Option<String>,
}

/// Routes that need no key: probes and documentation tell nothing of anyone's text.
fn is_public(path: &str) -> bool {
    path == "/health"
        || path.starts_with("/health/")
        || path == "/openapi.json"
        || path == "/docs"
        || path.starts_with("/docs/")
}

/// Lets a request pass that carries one of the keys, or all if there are none.
pub(super) async fn require_api_key(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    let keys = &state.settings.api_keys;
    if is_public(request.uri().path()) {
        return next.run(request).await;
    }
    if keys.is_empty() {
        request.extensions_mut().insert(Authenticated { caller: Arc::new(Caller::local()), turn: None });
        return next.run(request).await;
    }
    match presented_key(request.headers()) {
        Some(presented) if is_among(presented, keys) => {
            let fingerprint = blake3::hash(presented.as_bytes()).to_hex()[..16].to_owned();
            let key_id = format!("key-{fingerprint}");
            let caller = Caller { key_id: Some(key_id.clone()), ..Caller::local() };
            request.extensions_mut().insert(Authenticated { caller: Arc::new(caller), turn: Some(key_id) });
            next.run(request).await
        }
        Some(_) => refuse("Incorrect API key provided. Use one of the keys that the server was started with."),
        None => refuse("No API key provided. Send it as `Authorization: Bearer KEY`."),
    }
}

fn presented_key(headers: &HeaderMap) -> Option<&str> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
        return scheme.eq_ignore_ascii_case("bearer").then(|| key.trim());
    }
    headers.get("x-api-key")?.to_str().ok().map(str::trim)
}

/// Compares hashes, and with every key, so that the time taken tells neither a key's length nor its place.
fn is_among(presented: &str, keys: &[String]) -> bool {
    let presented = blake3::hash(presented.as_bytes());
    let mut found = subtle::Choice::from(0);
    for key in keys {
        found |= blake3::hash(key.as_bytes()).as_bytes().ct_eq(presented.as_bytes());
    }
    found.into()
}

fn refuse(message: &str) -> Response {
    ApiError(Error::new(ErrorKind::Unauthorized, message)).into_response()
}
