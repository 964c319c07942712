//! `/docs`: Swagger UI, served from the binary so that it works without a network. Its files come from a release
//! archive as its project publishes it (the crate utoipa-swagger-ui-vendored); only the file that selects the
//! description to show is ours.

use std::{
    collections::HashMap,
    io::{Cursor, Read},
    sync::LazyLock,
};

use axum::{
    body::Bytes,
    extract::{Path, rejection::PathRejection},
    http::header,
    response::{IntoResponse, Redirect, Response},
};
use hearth_domain::error::{Error, ErrorKind, Result};
use utoipa_swagger_ui_vendored::SWAGGER_UI_VENDORED;
use zip::{ZipArchive, result::ZipError};

use crate::http::error::ApiError;

/// Replaces the archive's own `swagger-initializer.js`, which shows the project's example.
const INITIALIZER: &str = r##"window.onload = function () {
  window.ui = SwaggerUIBundle({
    url: "/openapi.json",
    dom_id: "#swagger-ui",
    deepLinking: true,
    presets: [SwaggerUIBundle.presets.apis, SwaggerUIStandalonePreset],
    plugins: [SwaggerUIBundle.plugins.DownloadUrl],
    layout: "StandaloneLayout",
  });
};
"##;

pub(in crate::http) async fn docs_redirect() -> Redirect {
    Redirect::permanent("/docs/")
}

pub(in crate::http) async fn docs_index() -> Result<Response, ApiError> {
    Ok(page("index.html")?)
}

pub(in crate::http) async fn docs_file(file: Result<Path<String>, PathRejection>) -> Result<Response, ApiError> {
    let Path(file) = file.map_err(|rejection| Error::new(ErrorKind::NotFound, rejection.body_text()))?;
    Ok(page(&file)?)
}

fn page(name: &str) -> Result<Response> {
    static FILES: LazyLock<Result<HashMap<String, Bytes>, ZipError>> = LazyLock::new(distribution);
    let files = FILES.as_ref().map_err(|error| Error::internal(anyhow::anyhow!("Swagger UI's archive: {error}")))?;
    let file = files.get(name).zip(content_type(name));
    let (bytes, content_type) =
        file.ok_or_else(|| Error::new(ErrorKind::NotFound, "No such page; the documentation begins at /docs."))?;
    Ok(([(header::CONTENT_TYPE, content_type)], bytes.clone()).into_response())
}

fn content_type(name: &str) -> Option<&'static str> {
    match name.rsplit_once('.')?.1 {
        "html" => Some("text/html; charset=utf-8"),
        "css" => Some("text/css; charset=utf-8"),
        "js" => Some("text/javascript; charset=utf-8"),
        "png" => Some("image/png"),
        _ => None,
    }
}

/// The files of Swagger UI's distribution that a browser requests, by name. They are unpacked once, so that a request
/// costs a look-up.
fn distribution() -> Result<HashMap<String, Bytes>, ZipError> {
    let mut archive = ZipArchive::new(Cursor::new(SWAGGER_UI_VENDORED))?;
    let mut files = HashMap::new();
    for place in 0..archive.len() {
        let mut file = archive.by_index(place)?;
        let path = file.name()?.into_owned();
        let name = path.split_once('/').and_then(|(_release, rest)| rest.strip_prefix("dist/"));
        let Some(name) = name.filter(|name| content_type(name).is_some() && !name.contains("es-bundle")) else {
            continue;
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        files.insert(name.to_owned(), bytes.into());
    }
    files.insert("swagger-initializer.js".to_owned(), Bytes::from_static(INITIALIZER.as_bytes()));
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_that_the_page_names_is_there() {
        let files = distribution().unwrap();
        let index = std::str::from_utf8(&files["index.html"]).unwrap();
        let mut named: Vec<&str> = index.split(['"', ' ']).filter_map(|part| part.strip_prefix("./")).collect();
        named.push("index.css");
        assert!(named.contains(&"swagger-initializer.js") && named.len() >= 6, "{named:?}");
        for name in named {
            assert_eq!(page(name).unwrap().status(), 200, "{name}");
        }
        for name in ["", "index", "../dist/index.html", "swagger-ui.tar"] {
            assert!(page(name).is_err(), "{name:?}");
        }
    }
}
