//! The layer that checks a caller's scopes against the one that the route needs.

use axum::{
    extract::{MatchedPath, Request},
    middleware::Next,
    response::{IntoResponse, Response},
};
use hearth_domain::error::{Error, ErrorKind};

use super::{
    auth::Authenticated,
    error::ApiError,
    route::{Access, rules_of},
};

/// The layer itself, inside the one that checks keys.
pub(super) async fn require_scope(request: Request, next: Next) -> Response {
    let extensions = request.extensions();
    // Without a route there is nothing to protect.
    if let (Some(route), Some(authenticated)) = (extensions.get::<MatchedPath>(), extensions.get::<Authenticated>())
        && let Some(Access::Scope(scope)) = rules_of(request.method(), route.as_str()).map(|rules| rules.access)
        && !authenticated.caller.scopes.contains(&scope)
    {
        let (needed, route) = (scope.as_str(), route.as_str());
        let has: Vec<_> = authenticated.caller.scopes.iter().map(|scope| scope.as_str()).collect();
        let has = if has.is_empty() { "no scope".to_owned() } else { format!("only {}", has.join(", ")) };
        let message = format!("{route} needs the scope `{needed}`, and your key has {has}.");
        return ApiError(Error::new(ErrorKind::Forbidden, message).with_code("insufficient_scope")).into_response();
    }
    next.run(request).await
}
