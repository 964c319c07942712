//! The OpenAPI document, generated from the table of routes and from the request and response types.
//!
//! A request's schema is built from the fields that its reader uses, so the document cannot promise a field that is
//! refused. An answer's schema is derived from the struct that is written. Both may grow: unknown fields are allowed
//! everywhere.

use std::collections::BTreeSet;

use axum::http::Method;
use schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use crate::{
    http::{
        allowance, receipt,
        route::{Access, AnswerDescription, Metering, Route},
        routes::routes,
    },
    wire::{documents, error::ErrorBody, messages, tools},
};

const COMPONENTS: &str = "/components/schemas";

/// The whole document.
pub(super) fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().for_serialize().with(|settings| {
        settings.definitions_path = COMPONENTS.into();
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    let mut bodies = Map::new();
    for (name, schema) in
        [messages::COMPONENT, messages::CONTENT_COMPONENT, tools::COMPONENT, documents::FILTER_COMPONENT]
    {
        // The schemas are constants; a test parses the whole document.
        bodies.insert(name.to_owned(), serde_json::from_str(schema).unwrap_or_default());
    }
    let mut paths = Map::new();
    for route in routes() {
        if let Some(body) = route.body {
            bodies.entry(body.name).or_insert_with(body.schema);
        }
        let operations = paths.entry(path_of(&route)).or_insert_with(|| json!({}));
        operations[route.method.as_str().to_lowercase()] = operation(&route, &mut generator);
    }
    let error: Value = generator.subschema_for::<ErrorBody>().into();
    let mut schemas = generator.take_definitions(true);
    schemas.extend(bodies);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Hearth",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "OpenAI's contract, served by models in this process. docs/API.md says what is honoured, \
                            what is accepted without effect, and what is refused.",
            "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"key": []}, {}],
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": schemas,
            "responses": {"Error": error_response(&error)},
        },
    })
}

/// The path as OpenAPI writes it, which has no catch-all parameter.
fn path_of(route: &Route) -> String {
    route.path.replace("{*", "{")
}

fn operation(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let names = route.path.split('{').skip(1).filter_map(|rest| Some(rest.split_once('}')?.0.trim_start_matches('*')));
    let in_path =
        |name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "minLength": 1}});
    let mut parameters: Vec<Value> = names.map(in_path).collect();
    let errors = errors(route, !parameters.is_empty());
    parameters.extend(route.parameters.iter().map(|parameter| parameter.parameter()));
    let mut operation = json!({
        "operationId": route.operation_id,
        "summary": route.summary,
        "tags": [route.group],
        "responses": responses(route, &errors, generator),
    });
    if !parameters.is_empty() {
        operation["parameters"] = Value::Array(parameters);
    }
    if let Some(body) = route.body {
        let schema = json!({"$ref": format!("#{COMPONENTS}/{}", body.name)});
        let mut content = json!({"schema": schema});
        if let Some(encoding) = body.encoding {
            content["encoding"] = json!({encoding: {"contentType": "application/json"}});
        }
        operation["requestBody"] = json!({"required": true, "content": {body.media_type: content}});
    }
    if route.rules.access == Access::Public {
        operation["security"] = json!([]);
    }
    operation
}

fn responses(route: &Route, errors: &BTreeSet<u16>, generator: &mut SchemaGenerator) -> Map<String, Value> {
    let mut responses = Map::new();
    for answer in &route.answers {
        let response = responses
            .entry(answer.status.to_string())
            .or_insert_with(|| json!({"description": answer.description, "headers": answer_headers(route)}));
        if !answer.media_type.is_empty() {
            response["content"][answer.media_type] = content(answer, generator);
        }
    }
    for status in errors {
        responses.entry(status.to_string()).or_insert_with(|| json!({"$ref": "#/components/responses/Error"}));
    }
    responses
}

fn content(answer: &AnswerDescription, generator: &mut SchemaGenerator) -> Value {
    let Some(schema) = answer.schema else { return json!({"schema": {"type": "string"}}) };
    let schema = schema(generator);
    if answer.media_type != "text/event-stream" {
        return json!({"schema": schema});
    }
    // The schema describes one event, as OpenAPI 3.2 defines it for this media type.
    let failed: Value = generator.subschema_for::<ErrorBody>().into();
    let json = json!({
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [schema, failed]},
    });
    let data = match answer.sentinel {
        Some(sentinel) => json!({"anyOf": [{"const": sentinel}, json]}),
        None => json,
    };
    json!({"schema": {
        "type": "object",
        "description": answer.description,
        "required": ["data"],
        "properties": {"data": data},
    }})
}

/// The statuses of refusals and failures, which follow from what the route takes and does.
fn errors(route: &Route, has_path_parameters: bool) -> BTreeSet<u16> {
    // For the called host, the calling page, and the server's own failures.
    let mut errors = BTreeSet::from([400, 403, 500, 503]);
    if route.rules.access != Access::Public {
        errors.insert(401);
    }
    if has_path_parameters {
        // 405 where the path turns into another one, as with an empty parameter.
        errors.extend([404, 405]);
    }
    if route.body.is_some() {
        errors.extend([404, 408, 413, 415]);
    }
    if route.rules.metering != Metering::Free {
        errors.extend([404, 409, 429, 502, 504, 507]);
    }
    if route.method == Method::DELETE || !route.parameters.is_empty() {
        errors.extend([404, 409]);
    }
    errors
}

fn error_response(schema: &Value) -> Value {
    let wait = json!({"schema": {"type": "string"}, "description": "Where waiting helps: when to come back."});
    json!({
        "description": "The request was refused or has failed.",
        "headers": {"Retry-After": wait, "retry-after-ms": wait, "x-request-id": {"schema": {"type": "string"}}},
        "content": {"application/json": {"schema": schema}},
    })
}

/// Headers of an answer, including the receipt's if the request leaves a row in the ledger.
fn answer_headers(route: &Route) -> Map<String, Value> {
    let of_receipt = receipt::DESCRIBED;
    let mut headers = vec![("x-request-id", "The client's own, if it sent a sane one.")];
    if route.rules.access != Access::Public {
        headers.extend(allowance::HEADERS.map(|name| (name, "Where there is such a limit.")));
    }
    if route.body.is_some() {
        headers.push(("x-hearth-ignored", "Fields of the body that have no effect."));
    }
    if route.rules.metering == Metering::Recorded {
        headers.extend(of_receipt.iter().map(|(name, description)| (name.as_str(), *description)));
    }
    let header = |(name, description): (&str, &str)| {
        (name.to_owned(), json!({"schema": {"type": "string"}, "description": description}))
    };
    headers.into_iter().map(header).collect()
}
