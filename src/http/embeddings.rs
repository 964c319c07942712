//! `POST /v1/embeddings`.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};

use super::{context::RequestCaller, error::ApiError, extract::JsonBody, ignored::name_ignored, state::AppState};
use crate::{
    service::embed,
    wire::{
        Parsed,
        embeddings::{EmbeddingList, EmbeddingsRequest},
        receipt::Receipt,
    },
};

pub(super) async fn create_embeddings(
    State(state): State<AppState>,
    caller: RequestCaller,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let Parsed { request, ignored } = EmbeddingsRequest::read(body, &caller.envelope(&state, false))?;
    let model = state.embedder(caller.principal(), request.model.as_deref())?;
    let answer = embed::embed(&model, request.request).await?;
    let (name, receipt) = (model.info().id.clone(), Receipt::of(caller.account()));
    let list = EmbeddingList::new(answer.embeddings, request.encoding_format, name, answer.prompt_tokens, receipt);
    Ok(name_ignored(Json(list).into_response(), &ignored))
}
