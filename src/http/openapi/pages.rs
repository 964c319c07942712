//! `/docs`: Swagger UI, served from the binary, so that it works without a network. Its files lie in the archive of one
//! release as its project publishes it (the crate utoipa-swagger-ui-vendored); only the file that says which description
//! to show is ours.

use std::io::{Cursor, Read};

use axum::{
    extract::{Path, rejection::PathRejection},
    http::header,
    response::{IntoResponse, Redirect, Response},
};
use hearth_domain::error::{Error, ErrorKind, Result};
use utoipa_swagger_ui_vendored::SWAGGER_UI_VENDORED;
use zip::{ZipArchive, result::ZipError};

use crate::http::error::ApiError;

/// Takes the place of the archive's own `swagger-initializer.js`, which shows an example of its project.
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
    let missing = || Error::new(ErrorKind::NotFound, "No such page; the documentation begins at /docs.");
    let content_type = match name.rsplit_once('.').map(|(_, extension)| extension) {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("png") => "image/png",
        _ => return Err(missing()),
    };
    let bytes = match name {
        "swagger-initializer.js" => INITIALIZER.into(),
        _ => archived(name).map_err(Error::internal)?.ok_or_else(missing)?,
    };
    Ok(([(header::CONTENT_TYPE, content_type)], bytes).into_response())
}

/// A file of Swagger UI's distribution.
fn archived(name: &str) -> Result<Option<Vec<u8>>, ZipError> {
    let mut archive = ZipArchive::new(Cursor::new(SWAGGER_UI_VENDORED))?;
    let is_wanted = |path: &str| {
        path.split_once('/').and_then(|(_release, rest)| rest.strip_prefix("dist/")).is_some_and(|rest| rest == name)
    };
    let name_of = |place: usize| archive.name_for_index(place)?.ok();
    let Some(place) = (0..archive.len()).find(|place| name_of(*place).is_some_and(|path| is_wanted(&path))) else {
        return Ok(None);
    };
    let mut file = archive.by_index(place)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_that_the_page_names_is_there() {
        let index = String::from_utf8(archived("index.html").unwrap().unwrap()).unwrap();
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
