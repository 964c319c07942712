//! `/tokenize`, `/detokenize`, `/apply-template`, as llama-server has them.
//!
//! A body may hold megabytes of text, so the work is done on a blocking thread: the async threads carry
//! everybody's streams.

use axum::{Json, extract::State};

use super::{context::Caller, error::ApiError, extract::JsonBody, state::AppState};
use crate::{
    error::{Error, Result},
    wire::tokens::{
        ApplyTemplateRequest, ApplyTemplateResponse, DetokenizeRequest, DetokenizeResponse, Piece, TokenPiece,
        TokenizePart, TokenizeRequest, TokenizeResponse, Tokens,
    },
};

pub(super) async fn tokenize(
    State(state): State<AppState>,
    caller: Caller,
    JsonBody(body): JsonBody,
) -> Result<Json<TokenizeResponse>, ApiError> {
    let request = TokenizeRequest::read(body)?;
    let model = state.chat_or_first(caller.may(), request.model.as_deref())?;
    off_the_async_threads(move || {
        let mut ids = Vec::new();
        // The text's special tokens belong to its beginning: only the first piece gets them.
        let mut add_special = request.add_special;
        for part in &request.content {
            match part {
                TokenizePart::Text(text) => ids.extend(model.tokenize(text, add_special, request.parse_special)?),
                TokenizePart::Token(id) => ids.push(*id),
            }
            add_special = false;
        }
        let piece = |id| TokenPiece { id, piece: Piece::from(model.token_bytes(id).unwrap_or_default()) };
        let tokens = match request.with_pieces {
            true => Tokens::Pieces(ids.into_iter().map(piece).collect()),
            false => Tokens::Ids(ids),
        };
        Ok(TokenizeResponse { tokens })
    })
    .await
}

pub(super) async fn detokenize(
    State(state): State<AppState>,
    caller: Caller,
    JsonBody(body): JsonBody,
) -> Result<Json<DetokenizeResponse>, ApiError> {
    let request = DetokenizeRequest::read(body)?;
    let model = state.chat_or_first(caller.may(), request.model.as_deref())?;
    off_the_async_threads(move || Ok(DetokenizeResponse { content: model.detokenize(&request.tokens)? })).await
}

pub(super) async fn apply_template(
    State(state): State<AppState>,
    caller: Caller,
    JsonBody(body): JsonBody,
) -> Result<Json<ApplyTemplateResponse>, ApiError> {
    let request = ApplyTemplateRequest::read(body)?;
    let model = state.chat_or_first(caller.may(), request.model.as_deref())?;
    off_the_async_threads(move || Ok(ApplyTemplateResponse { prompt: model.render(&request.prompt)? })).await
}

async fn off_the_async_threads<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<Json<T>, ApiError> {
    Ok(Json(tokio::task::spawn_blocking(work).await.map_err(Error::internal)??))
}
