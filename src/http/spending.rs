//! `GET /metrics` and `GET /v1/usage`: the usage and cost of requests.
//!
//! `/metrics` is JSON for people and programs, and Prometheus' text for scrapers, which ask for it in `Accept`. `/v1/usage` is a table for
//! spreadsheets as well, where `Accept` names `text/csv`.

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};

use hearth_domain::error::Error;
use serde_json::{Map, Value};

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
    headers: HeaderMap,
    QueryParameters(parameters): QueryParameters<UsageParameters>,
) -> Result<Response, ApiError> {
    let report = spending::usage(&state.ledger, caller.account().caller(), parameters).await?;
    if !names(&headers, "text/csv") {
        return Ok(([(header::VARY, "accept")], Json(report)).into_response());
    }
    let table = table(&report).map_err(Error::internal)?;
    let about = [
        (header::CONTENT_TYPE, "text/csv; charset=utf-8; header=present"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"usage.csv\""),
        (header::VARY, "accept"),
    ];
    Ok((about, table).into_response())
}

/// The entries of a report as CSV: the grouping keys, then the figures, under their names. The sum of all is left to the reader.
fn table(report: &UsageReport) -> anyhow::Result<Vec<u8>> {
    let object = |value: Value| if let Value::Object(members) = value { members } else { Map::new() };
    let figures = object(serde_json::to_value(report.total)?);
    let columns: Vec<&str> = report.group_by.iter().copied().chain(figures.keys().map(String::as_str)).collect();
    let mut table = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
    table.write_record(&columns)?;
    for entry in &report.data {
        let entry = object(serde_json::to_value(entry)?);
        table.write_record(columns.iter().map(|column| cell(entry.get(*column).unwrap_or(&Value::Null))))?;
    }
    Ok(table.into_inner()?)
}

/// A value in a table. Programs take a text that begins like a formula for one, and ids of callers come from tokens.
fn cell(value: &Value) -> String {
    match value {
        Value::String(text) if text.starts_with(['=', '+', '-', '@', '\t', '\r']) => format!("'{text}"),
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;
    use crate::wire::spending::{UsageEntry, UsageFigures};

    #[test]
    fn a_table_has_a_row_for_each_entry_and_no_formula() {
        let figures = |requests| UsageFigures { requests, ..UsageFigures::default() };
        let entry = |caller: &str, requests| UsageEntry {
            keys: Map::from_iter([("caller".to_owned(), Value::from(caller))]),
            figures: figures(requests),
        };
        let report = UsageReport {
            object: "usage",
            from: 0,
            to: 1,
            group_by: vec!["caller"],
            data: vec![entry("a, \"b\"", 1), entry("=cmd()", 2)],
            total: figures(3),
        };
        let text = String::from_utf8(table(&report).unwrap()).unwrap();
        let lines: Vec<&str> = text.split("\r\n").collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(
            lines[0].starts_with("caller,requests,finished,") && lines[0].ends_with(",cost_usd,cost_micro_usd"),
            "{text}"
        );
        assert!(lines[1].starts_with("\"a, \"\"b\"\"\",1,0,") && lines[2].starts_with("'=cmd(),2,0,"), "{text}");
        assert_eq!(lines[3], "");
    }

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
