//! `/openapi.json` and `/docs`, served from the binary.

mod analysis;
mod application;
mod document;
mod schemas;
mod vector_stores;

use std::sync::{Arc, LazyLock};

use axum::{
    Json,
    extract::{Path, rejection::PathRejection},
    http::header,
    response::{IntoResponse, Redirect, Response},
};
use serde_json::Value;

use super::error::ApiError;
use crate::error::{Error, ErrorKind};

static DOCUMENT: LazyLock<Value> = LazyLock::new(document::document);

pub(super) async fn document() -> Json<&'static Value> {
    Json(&DOCUMENT)
}

pub(super) async fn docs_redirect() -> Redirect {
    Redirect::permanent("/docs/")
}

pub(super) async fn docs_index() -> Result<Response, ApiError> {
    page("index.html")
}

pub(super) async fn docs_file(file: Result<Path<String>, PathRejection>) -> Result<Response, ApiError> {
    let Path(file) = file.map_err(|rejection| Error::new(ErrorKind::NotFound, rejection.body_text()))?;
    page(&file)
}

/// A file of the Swagger UI that is part of the binary.
fn page(file: &str) -> Result<Response, ApiError> {
    static CONFIG: LazyLock<Arc<utoipa_swagger_ui::Config<'static>>> =
        LazyLock::new(|| Arc::new(utoipa_swagger_ui::Config::from("/openapi.json")));
    let found = utoipa_swagger_ui::serve(file, Arc::clone(&CONFIG))
        .map_err(|error| Error::internal(anyhow::anyhow!("{error}")))?
        .ok_or_else(|| Error::new(ErrorKind::NotFound, "No such page; the documentation begins at /docs."))?;
    Ok(([(header::CONTENT_TYPE, found.content_type)], found.bytes.into_owned()).into_response())
}
