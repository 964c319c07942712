//! `POST /v1/rerank`, and the same as `/rerank`.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};

use super::{context::RequestCaller, error::ApiError, extract::JsonBody, ignored::name_ignored, state::AppState};
use crate::{
    service::rerank,
    wire::{
        Parsed,
        receipt::Receipt,
        rerank::{Ranking, RerankBody},
    },
};

pub(super) async fn rerank(
    State(state): State<AppState>,
    caller: RequestCaller,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let Parsed { request: body, ignored } = RerankBody::read(body, &caller.envelope(&state, false))?;
    let model = state.reranker(caller.principal(), body.model.as_deref())?;
    let documents = body.return_documents.then(|| body.request.documents.clone());
    let answer = rerank::rerank(&model, body.request).await?;
    let receipt = Receipt::of(caller.account());
    let ranking = Ranking::new(model.info().id.clone(), &answer, body.top_n, documents.as_deref(), receipt);
    Ok(name_ignored(Json(ranking).into_response(), &ignored))
}
