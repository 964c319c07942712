//! Which route needs which scope, in one table, and the layer that holds requests against it.

use axum::{
    extract::{MatchedPath, Request},
    middleware::Next,
    response::{IntoResponse, Response},
};
use hearth_domain::{
    Scope,
    error::{Error, ErrorKind},
};

use super::{auth::Authenticated, error::ApiError};

/// What a route needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    /// No key: tells nothing of anyone's text.
    Nothing,
    /// A key, whatever it allows.
    Key,
    Scope(Scope),
}

/// Routes by how they begin; the first that fits counts.
const ROUTES: &[(&str, Needs)] = &[
    ("/", Needs::Nothing),
    ("/health", Needs::Nothing),
    ("/openapi.json", Needs::Nothing),
    ("/docs", Needs::Nothing),
    ("/v1/models", Needs::Key),
    ("/v1/me", Needs::Key),
    // One's own; everybody's is a matter of the route itself.
    ("/v1/usage", Needs::Key),
    ("/v1/chat", Needs::Scope(Scope::Chat)),
    ("/v1/completions", Needs::Scope(Scope::Chat)),
    ("/v1/rerank", Needs::Scope(Scope::Chat)),
    ("/v1/quote", Needs::Scope(Scope::Chat)),
    ("/rerank", Needs::Scope(Scope::Chat)),
    ("/models", Needs::Key),
    ("/chat/completions", Needs::Scope(Scope::Chat)),
    ("/completions", Needs::Scope(Scope::Chat)),
    ("/embeddings", Needs::Scope(Scope::Embed)),
    ("/ask", Needs::Scope(Scope::Chat)),
    ("/generate", Needs::Scope(Scope::Chat)),
    ("/stream", Needs::Scope(Scope::Chat)),
    ("/api/v1/chat", Needs::Scope(Scope::Chat)),
    ("/analysis", Needs::Scope(Scope::Chat)),
    ("/tokenize", Needs::Scope(Scope::Chat)),
    ("/detokenize", Needs::Scope(Scope::Chat)),
    ("/apply-template", Needs::Scope(Scope::Chat)),
    ("/v1/embeddings", Needs::Scope(Scope::Embed)),
    ("/v1/files", Needs::Scope(Scope::Documents)),
    ("/v1/vector_stores", Needs::Scope(Scope::Documents)),
    ("/api/v1/search", Needs::Scope(Scope::Documents)),
    ("/api/v1/documents", Needs::Scope(Scope::Documents)),
    ("/api/v1/collections", Needs::Scope(Scope::Documents)),
    // What everybody together uses.
    ("/metrics", Needs::Scope(Scope::Admin)),
];

/// A route that the table does not know is for those who may do everything.
fn needs(route: &str) -> Needs {
    let known = ROUTES.iter().find(|(begin, _)| is_of(route, begin));
    known.map_or(Needs::Scope(Scope::Admin), |(_, needs)| *needs)
}

/// Whether a route begins with these whole parts of a path.
fn is_of(route: &str, begin: &str) -> bool {
    match route.strip_prefix(begin) {
        // The root is a path of its own and no part of the others.
        Some(rest) => rest.is_empty() || (begin != "/" && rest.starts_with('/')),
        None => false,
    }
}

/// Whether a path is served to anybody.
pub(super) fn is_public(path: &str) -> bool {
    needs(path) == Needs::Nothing
}

/// The layer itself, inside of the one that asks for keys.
pub(super) async fn require_scope(request: Request, next: Next) -> Response {
    let extensions = request.extensions();
    // Without a route there is nothing to be had.
    if let (Some(route), Some(authenticated)) = (extensions.get::<MatchedPath>(), extensions.get::<Authenticated>())
        && let Needs::Scope(scope) = needs(route.as_str())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_has_its_line() {
        let page = include_str!("mod.rs");
        let paths: Vec<_> = page.split(".route(").skip(1).filter_map(|route| route.split('"').nth(1)).collect();
        assert!(paths.len() > 40, "{paths:?}");
        let known = |path: &str| ROUTES.iter().any(|(begin, _)| is_of(path, begin));
        let without: Vec<_> = paths.into_iter().filter(|path| !known(path)).collect();
        assert!(without.is_empty(), "say in ROUTES which scope they need: {without:?}");
    }

    #[test]
    fn a_route_is_known_by_whole_parts_of_its_path() {
        assert_eq!(needs("/v1/chat/completions"), Needs::Scope(Scope::Chat));
        assert_eq!(needs("/v1/models/{*id}"), Needs::Key);
        assert_eq!(needs("/v1/vector_stores/{id}/search"), Needs::Scope(Scope::Documents));
        assert_eq!(needs("/ask/stream"), Needs::Scope(Scope::Chat));
        assert_eq!(needs("/healthy"), Needs::Scope(Scope::Admin));
        assert!(is_public("/") && !is_public("//x"));
        assert!(is_public("/docs/index.html") && is_public("/health/ready") && !is_public("/docsx"));
    }
}
