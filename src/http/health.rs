//! Health, for people and probes.
//!
//! `/health` and `/health/ready` report whether requests are served, and the latter also whether every part of the
//! server works; `/health/live` only that the process answers, since restarting does not help a model that is still
//! loading; `/health/deep` what the engine, the device and the parts do.

use std::time::Duration;

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use hearth_domain::error::{Error, ErrorKind};

use super::{error::ApiError, state::AppState};
use crate::{
    service::health::{HEARTBEAT_AGE_MAX, ServerStatus, refuse_unless_ready},
    wire::health::{DeepHealth, DeviceHealth, EngineHealth, HealthSummary, Liveness, PartHealth, StorageHealth},
};

impl AppState {
    fn model_names(&self) -> (Option<String>, Option<String>) {
        let model = self.models.first_chat().map(|model| model.info().id.clone());
        let embedding_model = self.models.first_embedder().map(|model| model.info().id.clone());
        (model, embedding_model)
    }
}

pub(super) async fn health(State(state): State<AppState>) -> Result<Json<HealthSummary>, ApiError> {
    refuse_unless_ready(&state.health.status())?;
    let (model, embedding_model) = state.model_names();
    Ok(Json(HealthSummary { status: "ok", model, embedding_model }))
}

pub(super) async fn live() -> Json<Liveness> {
    Json(Liveness { status: "ok" })
}

pub(super) async fn ready(State(state): State<AppState>) -> Result<Json<HealthSummary>, ApiError> {
    let report = state.health.report();
    refuse_unless_ready(&report.status)?;
    if let Some(reason) = report.failed_part() {
        return Err(Error::new(ErrorKind::Unavailable, reason).with_code("part_failed").into());
    }
    if report.is_stalled() {
        let message = format!("The engine has not completed a step for over {} seconds.", HEARTBEAT_AGE_MAX.as_secs());
        return Err(Error::new(ErrorKind::Unavailable, message)
            .with_code("engine_stalled")
            .with_retry_after(Duration::from_secs(5))
            .into());
    }
    let (model, embedding_model) = state.model_names();
    Ok(Json(HealthSummary { status: "ok", model, embedding_model }))
}

/// 200 with `status` `ok`, or 503 with the same body and the reason.
pub(super) async fn deep(State(state): State<AppState>) -> Response {
    let report = state.health.report();
    let (status, reason) = match &report.status {
        ServerStatus::Ready if report.failed_part().is_some() => {
            ("failed", report.failed_part().map(ToOwned::to_owned))
        }
        ServerStatus::Ready if report.is_stalled() => ("stalled", Some("The engine does not come round.".to_owned())),
        ServerStatus::Ready => ("ok", None),
        ServerStatus::Loading => ("loading", Some("A model is still loading.".to_owned())),
        ServerStatus::Failed(reason) => ("failed", Some(reason.clone())),
        ServerStatus::Draining => ("draining", Some("The server is shutting down.".to_owned())),
    };
    let (model, embedding_model) = state.model_names();
    let body = DeepHealth {
        status,
        reason,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_seconds: report.uptime.as_secs_f64(),
        model,
        embedding_model,
        device: DeviceHealth { asked: report.device_asked, in_use: report.device_in_use },
        engine: report.engine.map(|engine| EngineHealth {
            heartbeat_age_ms: engine.heartbeat_age.as_secs_f64() * 1e3,
            running: engine.running,
            waiting: engine.waiting,
            kv_blocks_total: engine.kv_blocks_total,
            kv_blocks_used: engine.kv_blocks_used,
        }),
        storage: StorageHealth { has_room: state.documents.store().has_room() },
        parts: report.parts.into_iter().map(PartHealth::from).collect(),
    };
    if status == "ok" {
        Json(body).into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "5")], Json(body)).into_response()
    }
}
