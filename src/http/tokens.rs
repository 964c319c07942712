//! `/tokenize`, `/detokenize`, `/apply-template`, as llama-server has them.

use axum::{Json, extract::State};

use super::{error::ApiError, extract::JsonBody, state::AppState};
use crate::wire::tokens::{
    ApplyTemplateRequest, ApplyTemplateResponse, DetokenizeRequest, DetokenizeResponse, Piece, TokenPiece,
    TokenizePart, TokenizeRequest, TokenizeResponse, Tokens,
};

pub(super) async fn tokenize(
    State(state): State<AppState>,
    JsonBody(body): JsonBody,
) -> Result<Json<TokenizeResponse>, ApiError> {
    let request = TokenizeRequest::read(body)?;
    let model = state.chat_or_first(request.model.as_deref())?;
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
    let tokens = if request.with_pieces {
        Tokens::Pieces(
            ids.into_iter()
                .map(|id| TokenPiece { id, piece: Piece::from(model.token_bytes(id).unwrap_or_default()) })
                .collect(),
        )
    } else {
        Tokens::Ids(ids)
    };
    Ok(Json(TokenizeResponse { tokens }))
}

pub(super) async fn detokenize(
    State(state): State<AppState>,
    JsonBody(body): JsonBody,
) -> Result<Json<DetokenizeResponse>, ApiError> {
    let request = DetokenizeRequest::read(body)?;
    let model = state.chat_or_first(request.model.as_deref())?;
    Ok(Json(DetokenizeResponse { content: model.detokenize(&request.tokens)? }))
}

pub(super) async fn apply_template(
    State(state): State<AppState>,
    JsonBody(body): JsonBody,
) -> Result<Json<ApplyTemplateResponse>, ApiError> {
    let request = ApplyTemplateRequest::read(body)?;
    let model = state.chat_or_first(request.model.as_deref())?;
    Ok(Json(ApplyTemplateResponse { prompt: model.render(&request.prompt)? }))
}
