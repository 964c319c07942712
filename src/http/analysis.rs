//! `/analysis`: jobs that answer a question about a company, and their events over a WebSocket.

use std::{collections::BTreeMap, time::Duration};

use axum::{
    Json,
    extract::{
        Path, State,
        rejection::PathRejection,
        ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code, rejection::WebSocketUpgradeRejection},
    },
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use hearth_domain::error::{Error, ErrorKind};
use serde_json::{Value, json};

use super::{
    context::RequestCaller,
    error::ApiError,
    extract::{JsonBody, QueryParameters},
    ignored::name_ignored,
    state::AppState,
};
use crate::{
    service::analysis::Analyses,
    wire::{
        Parsed,
        analysis::{AnalysisBody, AnalysisJob, AnalysisList, AnalysisListQuery},
    },
};

/// Largest message accepted from a follower, which only listens.
const MESSAGE_BYTES_MAX: usize = 4096;
/// How long a follower has to close the connection after the last event.
const CLOSING: Duration = Duration::from_secs(5);

pub(super) async fn create(
    State(state): State<AppState>,
    caller: RequestCaller,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let envelope = caller.envelope(&state, false);
    let Parsed { request, ignored } = AnalysisBody::read(body.clone(), &envelope)?;
    state.chat_or_first(caller.principal(), request.model.as_deref())?;
    let job = state.analyses.submit(&request, body, caller.account()).await?;
    let location = HeaderValue::try_from(format!("/analysis/{}", job.job_id)).map_err(Error::internal)?;
    let response = (StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(job)).into_response();
    Ok(name_ignored(response, &ignored))
}

pub(super) async fn list(
    State(state): State<AppState>,
    caller: RequestCaller,
    QueryParameters(parameters): QueryParameters<BTreeMap<String, String>>,
) -> Result<Json<AnalysisList>, ApiError> {
    let query = AnalysisListQuery::read(parameters)?;
    Ok(Json(AnalysisList { jobs: state.analyses.list(caller.owner(), query.limit).await? }))
}

pub(super) async fn cancel(
    State(state): State<AppState>,
    caller: RequestCaller,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<AnalysisJob>, ApiError> {
    Ok(Json(state.analyses.cancel(caller.owner(), &job_id(id)?).await?))
}

/// The job's current state or, for a WebSocket request, all of its events to the end.
pub(super) async fn retrieve(
    State(state): State<AppState>,
    caller: RequestCaller,
    id: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let id = job_id(id)?;
    let found = state.analyses.state(caller.owner(), &id, 0).await?;
    // Some clients offer HTTP/2 in this header with every request.
    let asks = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"websocket");
    if !headers.get_all(header::UPGRADE).iter().any(asks) {
        return Ok(Json(found.job).into_response());
    }
    let upgrade =
        upgrade.map_err(|rejection| Error::new(ErrorKind::InvalidRequest, format!("{}.", rejection.body_text())))?;
    let (analyses, owner) = (state.analyses.clone(), caller.owner().to_owned());
    let ping_every = state.settings.keep_alive_interval;
    Ok(upgrade
        .max_message_size(MESSAGE_BYTES_MAX)
        .on_upgrade(async move |socket| follow(socket, &analyses, (&owner, &id), ping_every).await))
}

fn job_id(id: Result<Path<String>, PathRejection>) -> Result<String, Error> {
    id.map(|Path(id)| id).map_err(|rejection| Error::new(ErrorKind::NotFound, rejection.body_text()))
}

/// Sends every event of a job, from the first to the last, then closes the socket.
async fn follow(mut socket: WebSocket, analyses: &Analyses, (owner, id): (&str, &str), ping_every: Duration) {
    let (mut changes, mut stopping) = (analyses.changes(), analyses.stopping());
    let mut next = 0;
    let (code, reason) = loop {
        changes.mark_unchanged();
        let Ok(state) = analyses.state(owner, id, next).await else {
            break (close_code::ERROR, "the job cannot be read");
        };
        let mut job = state.job;
        for event in job.events.take().unwrap_or_default() {
            next += 1;
            if socket.send(text(&event)).await.is_err() {
                return;
            }
        }
        if state.has_ended {
            if socket.send(text(&last_event(next, &job))).await.is_err() {
                return;
            }
            break (close_code::NORMAL, "the job has ended");
        }
        if *stopping.borrow_and_update() {
            break (close_code::AWAY, "the server stops; the job goes on when it is back");
        }
        let said = tokio::select! {
            _ = changes.changed() => Ok(()),
            _ = stopping.changed() => Ok(()),
            () = tokio::time::sleep(ping_every) => socket.send(Message::Ping(bytes::Bytes::new())).await,
            // A follower's messages are ignored; only its leaving counts.
            message = socket.recv() => match message {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => Ok(()),
            },
        };
        if said.is_err() {
            return;
        }
    };
    if socket.send(Message::Close(Some(CloseFrame { code, reason: reason.into() }))).await.is_ok() {
        let closed = async { while let Some(Ok(_)) = socket.recv().await {} };
        // The server closes the connection if the follower does not close it in time.
        let _ = tokio::time::timeout(CLOSING, closed).await;
    }
}

fn text(event: &Value) -> Message {
    Message::Text(event.to_string().into())
}

/// How a job ended, as the event after the job's own.
fn last_event(number: u64, job: &AnalysisJob) -> Value {
    let mut event = json!({"number": number, "type": job.status});
    match job.status {
        "done" => event["result"] = job.result.clone().unwrap_or_default(),
        "failed" => event["error"] = json!(job.error),
        _ => {}
    }
    event
}
