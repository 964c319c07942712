//! One route: its path, what it requires, how its use is metered, and how the OpenAPI document describes it.
//!
//! [`super::routes`] is the table of them. The router, the layers that check keys and scopes, those that count and
//! record, and the document are all built from it, so each fact about a route has one place.

use std::{collections::HashMap, sync::LazyLock};

use axum::{
    Router,
    extract::DefaultBodyLimit,
    handler::Handler,
    http::Method,
    routing::{MethodFilter, MethodRouter, on},
};
use hearth_domain::Scope;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::Value;

use super::{AppState, routes::routes};
use crate::wire::body::{FieldSpec, RequestBody, RequestQuery};

/// What a caller needs to use a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// No key: the route reveals nothing of anyone's text.
    Public,
    /// A key, whatever its scopes.
    AnyKey,
    Scope(Scope),
}

impl From<Scope> for Access {
    fn from(scope: Scope) -> Self {
        Self::Scope(scope)
    }
}

/// How the use of a route is metered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Metering {
    /// It counts against limits, and leaves a row in the ledger.
    Recorded,
    /// It counts but leaves no row: no model runs.
    Counted,
    /// Callers over their limits can still see and clean up their own data.
    Free,
}

/// A route's rules, as the layers apply them.
#[derive(Clone, Copy, Debug)]
pub(super) struct RouteRules {
    pub(super) access: Access,
    pub(super) metering: Metering,
}

/// Builds the schema of a type, or a reference to it, and keeps the definition.
pub(super) type SchemaOf = fn(&mut SchemaGenerator) -> Value;

/// A body as the document describes it.
#[derive(Clone, Copy)]
pub(super) struct BodyDescription {
    pub(super) media_type: &'static str,
    pub(super) name: &'static str,
    pub(super) schema: fn() -> Value,
    /// The JSON part of a form.
    pub(super) encoding: Option<&'static str>,
}

/// One kind of answer.
#[derive(Clone, Copy)]
pub(super) struct AnswerDescription {
    pub(super) status: u16,
    pub(super) media_type: &'static str,
    pub(super) description: &'static str,
    /// `None`: text or bytes without further structure.
    pub(super) schema: Option<SchemaOf>,
    /// The data of a stream's last event, where that is no JSON.
    pub(super) sentinel: Option<&'static str>,
}

/// See the module's documentation.
#[derive(Clone)]
pub(super) struct Route {
    pub(super) path: &'static str,
    pub(super) method: Method,
    pub(super) rules: RouteRules,
    /// The operation's name in the document.
    pub(super) operation_id: &'static str,
    pub(super) summary: &'static str,
    /// The heading that the document lists it under.
    pub(super) group: &'static str,
    pub(super) body: Option<BodyDescription>,
    pub(super) parameters: &'static [FieldSpec],
    pub(super) answers: Vec<AnswerDescription>,
    pub(super) handler: MethodRouter<AppState>,
}

impl Route {
    fn new<H, T>(method: Method, filter: MethodFilter, path: &'static str, access: Access, handler: H) -> Self
    where
        H: Handler<T, AppState>,
        T: 'static,
    {
        let metering = if method == Method::POST { Metering::Recorded } else { Metering::Free };
        Self {
            path,
            method,
            rules: RouteRules { access, metering },
            operation_id: "",
            summary: "",
            group: "",
            body: None,
            parameters: &[],
            answers: Vec::new(),
            handler: on(filter, handler),
        }
    }

    /// Sets the operation's name and summary in the document.
    pub(super) fn described(mut self, operation_id: &'static str, summary: &'static str) -> Self {
        (self.operation_id, self.summary) = (operation_id, summary);
        self
    }

    pub(super) fn metered(mut self, metering: Metering) -> Self {
        self.rules.metering = metering;
        self
    }

    pub(super) fn takes<B: RequestBody>(mut self) -> Self {
        self.body =
            Some(BodyDescription { media_type: "application/json", name: B::NAME, schema: B::schema, encoding: None });
        self
    }

    /// A form whose file is written to disk as it arrives, so the limit on other bodies does not apply.
    pub(super) fn takes_form<B: RequestBody>(mut self) -> Self {
        let has_attributes = B::FIELDS.iter().copied().flatten().any(|field| field.name == "attributes");
        let encoding = has_attributes.then_some("attributes");
        self.body =
            Some(BodyDescription { media_type: "multipart/form-data", name: B::NAME, schema: B::schema, encoding });
        self.handler = self.handler.layer(DefaultBodyLimit::disable());
        self
    }

    pub(super) fn query<Q: RequestQuery>(mut self) -> Self {
        self.parameters = Q::PARAMETERS;
        self
    }

    pub(super) fn answers<A: JsonSchema>(self, description: &'static str) -> Self {
        self.answers_with::<A>(200, description)
    }

    pub(super) fn answers_with<A: JsonSchema>(mut self, status: u16, description: &'static str) -> Self {
        let schema = Some(subschema::<A> as SchemaOf);
        self.answers.push(AnswerDescription {
            status,
            media_type: "application/json",
            description,
            schema,
            sentinel: None,
        });
        self
    }

    /// Server-sent events, each with data of this shape.
    pub(super) fn streams<E: JsonSchema>(mut self, description: &'static str) -> Self {
        let schema = Some(subschema::<E> as SchemaOf);
        self.answers.push(AnswerDescription {
            status: 200,
            media_type: "text/event-stream",
            description,
            schema,
            sentinel: None,
        });
        self
    }

    /// The stream described last ends with an event of this data.
    pub(super) fn ends_with(mut self, sentinel: &'static str) -> Self {
        if let Some(stream) = self.answers.last_mut() {
            stream.sentinel = Some(sentinel);
        }
        self
    }

    /// Text or bytes.
    pub(super) fn answers_raw(mut self, status: u16, media_type: &'static str, description: &'static str) -> Self {
        self.answers.push(AnswerDescription { status, media_type, description, schema: None, sentinel: None });
        self
    }
}

fn subschema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    generator.subschema_for::<T>().into()
}

pub(super) fn get<H, T>(path: &'static str, access: impl Into<Access>, handler: H) -> Route
where
    H: Handler<T, AppState>,
    T: 'static,
{
    Route::new(Method::GET, MethodFilter::GET, path, access.into(), handler)
}

pub(super) fn post<H, T>(path: &'static str, access: impl Into<Access>, handler: H) -> Route
where
    H: Handler<T, AppState>,
    T: 'static,
{
    Route::new(Method::POST, MethodFilter::POST, path, access.into(), handler)
}

pub(super) fn delete<H, T>(path: &'static str, access: impl Into<Access>, handler: H) -> Route
where
    H: Handler<T, AppState>,
    T: 'static,
{
    Route::new(Method::DELETE, MethodFilter::DELETE, path, access.into(), handler)
}

/// The router of all routes, without layers.
pub(super) fn router() -> Router<AppState> {
    routes().into_iter().fold(Router::new(), |router, route| router.route(route.path, route.handler))
}

/// The rules of the route that a request matched, by its method and the path as in the table; `None` if there is no
/// such route.
pub(super) fn rules_of(method: &Method, path: &str) -> Option<RouteRules> {
    // GET's handler also answers HEAD.
    let method = if method == Method::HEAD { &Method::GET } else { method };
    RULES.get(path)?.iter().find(|(of, _)| of == method).map(|(_, rules)| *rules)
}

/// Whether some method of a path needs no key.
pub(super) fn is_public(path: &str) -> bool {
    RULES.get(path).is_some_and(|rules| rules.iter().any(|(_, rules)| rules.access == Access::Public))
}

static RULES: LazyLock<HashMap<&'static str, Vec<(Method, RouteRules)>>> = LazyLock::new(|| {
    let mut rules: HashMap<_, Vec<_>> = HashMap::new();
    for route in routes() {
        rules.entry(route.path).or_default().push((route.method, route.rules));
    }
    rules
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_of_a_method_and_a_path() {
        let rules = |method, path| rules_of(&method, path).map(|rules| (rules.access, rules.metering));
        let chat = Access::Scope(Scope::Chat);
        let documents = Access::Scope(Scope::Documents);
        assert_eq!(rules(Method::POST, "/v1/chat/completions"), Some((chat, Metering::Recorded)));
        assert_eq!(rules(Method::POST, "/chat/completions"), Some((chat, Metering::Recorded)));
        assert_eq!(rules(Method::POST, "/tokenize"), Some((chat, Metering::Counted)));
        assert_eq!(rules(Method::DELETE, "/v1/files/{id}"), Some((documents, Metering::Free)));
        assert_eq!(rules(Method::HEAD, "/v1/models"), Some((Access::AnyKey, Metering::Free)));
        assert_eq!(rules(Method::DELETE, "/v1/models"), None);
        assert!(is_public("/") && is_public("/health/ready") && !is_public("/v1/me") && !is_public("/healthy"));
    }

    #[test]
    fn every_route_is_described_and_no_name_stands_twice() {
        let mut names = Vec::new();
        for route in routes() {
            assert!(
                !route.summary.is_empty() && !route.group.is_empty() && !route.answers.is_empty(),
                "{}",
                route.path
            );
            assert!(!names.contains(&route.operation_id), "{} stands twice", route.operation_id);
            names.push(route.operation_id);
        }
    }

    #[test]
    fn only_reading_and_tidying_is_free() {
        let free = routes().into_iter().filter(|route| route.rules.metering == Metering::Free);
        let posts: Vec<_> = free.filter(|route| route.method == Method::POST).map(|route| route.path).collect();
        assert_eq!(posts, ["/v1/vector_stores/{id}/file_batches/{batch_id}/cancel"]);
    }
}
