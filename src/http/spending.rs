//! `GET /metrics` and `GET /v1/usage`: the usage and cost of requests.
//!
//! `/metrics` is JSON for people and programs, and Prometheus' text for scrapers, which ask for it in `Accept`.

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};

use super::{accept::names, context::RequestCaller, error::ApiError, extract::QueryParameters, state::AppState};
use crate::{
    service::spending,
    wire::spending::{UsageParameters, UsageReport},
};

pub(super) async fn metrics(State(state): State<AppState>, headers: HeaderMap) -> Result<Response, ApiError> {
    if !wants_text(&headers) {
        return Ok(([(header::VARY, "accept")], Json(spending::summary(&state.ledger).await?)).into_response());
    }
    let text = state.metrics.as_ref().map(metrics_exporter_prometheus::PrometheusHandle::render).unwrap_or_default();
    let content_type = "text/plain; version=0.0.4; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, content_type), (header::VARY, "accept")], text).into_response())
}

/// Whether `Accept` names a text type and not JSON.
fn wants_text(headers: &HeaderMap) -> bool {
    let names = |kind| names(headers, kind);
    (names("text/plain") || names("application/openmetrics-text")) && !names("application/json")
}

pub(super) async fn usage(
    State(state): State<AppState>,
    caller: RequestCaller,
    QueryParameters(parameters): QueryParameters<UsageParameters>,
) -> Result<Json<UsageReport>, ApiError> {
    Ok(Json(spending::usage(&state.ledger, caller.account().caller(), parameters).await?))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn scrapers_get_text_and_everybody_else_json() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
        for (accept, is_text) in [
            (None, false),
            (Some("*/*"), false),
            (Some("application/json, text/plain, */*"), false),
            (Some("text/html,*/*;q=0.8"), false),
            (Some(prometheus), true),
            (Some("Text/Plain; version=0.0.4"), true),
        ] {
            let headers = accept.map(|accept| (header::ACCEPT, HeaderValue::from_static(accept))).into_iter().collect();
            assert_eq!(wants_text(&headers), is_text, "{accept:?}");
        }
    }
}
