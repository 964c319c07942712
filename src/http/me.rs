//! `GET /v1/me`: the caller that a request is attributed to, and that caller's permissions.

use axum::{Json, extract::State};

use super::{context::RequestCaller, state::AppState};
use crate::wire::me::{Features, Me};

pub(super) async fn me(State(state): State<AppState>, caller: RequestCaller) -> Json<Me> {
    let may = caller.principal();
    let has = |kind| state.models.list().iter().any(|(info, _)| info.kind == kind);
    let features = Features::of(has, state.documents.retriever().is_ok());
    Json(Me::new(may, &state.usage_sink.standing(may), features))
}
