//! `/openapi.json`, the machine-readable description of the contract, and `/docs`, the pages that show it to people.

mod document;
mod pages;

use std::sync::LazyLock;

use axum::Json;
use serde_json::Value;

pub(super) use pages::{docs_file, docs_index, docs_redirect};

static DOCUMENT: LazyLock<Value> = LazyLock::new(document::document);

pub(super) async fn document() -> Json<&'static Value> {
    Json(&DOCUMENT)
}
