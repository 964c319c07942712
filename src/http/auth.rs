//! API keys and tokens: `Authorization: Bearer KEY`, or `x-api-key`. The service decides what they permit.

use std::sync::Arc;

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{error::ApiError, route::is_public, state::AppState};
use hearth_domain::{Caller, LOCAL};

/// The caller, and the key under which fair queues schedule it: a caller, one of the operator's keys, or the peer.
#[derive(Clone, Debug)]
pub(super) struct Authenticated {
    pub(super) caller: Arc<Caller>,
    /// `None`: the peer's address.
    pub(super) fairness_key: Option<String>,
}

/// Lets a request pass if it carries a valid key or token, and every request if no key is required.
pub(super) async fn require_api_key(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    if request.extensions().get::<MatchedPath>().is_some_and(|path| is_public(path.as_str())) {
        return next.run(request).await;
    }
    match state.callers.authenticate(presented_key(request.headers())).await {
        Ok(caller) => {
            let fairness_key = if caller.id == LOCAL { caller.key_id.clone() } else { Some(caller.id.clone()) };
            request.extensions_mut().insert(Authenticated { caller, fairness_key });
            next.run(request).await
        }
        Err(error) => ApiError(error).into_response(),
    }
}

fn presented_key(headers: &HeaderMap) -> Option<&str> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
        return scheme.eq_ignore_ascii_case("bearer").then(|| key.trim());
    }
    headers.get("x-api-key")?.to_str().ok().map(str::trim)
}
