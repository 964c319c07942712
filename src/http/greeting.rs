//! `GET /` and `HEAD /`: names the server. Programs probe it to see whether a server is up; people open it in a
//! browser.

use axum::{
    http::{HeaderMap, header},
    response::{Html, IntoResponse, Response},
};

use super::accept::names;

const TEXT: &str =
    concat!("Hearth ", env!("CARGO_PKG_VERSION"), " is running. The API is at /v1, and /docs describes it.\n");

const PAGE: &str = concat!(
    "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n",
    "<title>Hearth</title>\n<style>body { font: 1.1rem/1.6 system-ui, sans-serif; max-width: 40rem; margin: 4rem auto; ",
    "padding: 0 1rem; color-scheme: light dark }</style>\n<h1>Hearth ",
    env!("CARGO_PKG_VERSION"),
    "</h1>\n<p>The server is running. Programs written for OpenAI's API use this address with <code>/v1</code> behind it as ",
    "their base URL.</p>\n<ul>\n<li><a href=\"/docs/\">The API, described</a></li>\n<li><a href=\"/health/ready\">Whether it is ",
    "ready</a></li>\n</ul>\n"
);

pub(super) async fn greet(headers: HeaderMap) -> Response {
    let vary = [(header::VARY, "accept")];
    if names(&headers, "text/html") { (vary, Html(PAGE)).into_response() } else { (vary, TEXT).into_response() }
}
