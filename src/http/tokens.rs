//! `/tokenize`, `/detokenize`, `/apply-template`, compatible with llama-server.
//!
//! A body may hold megabytes of text, so the work runs where `crates/text/src/work.rs` puts it: the async threads carry
//! the streams of all requests.

use axum::{Json, extract::State};
use hearth_domain::error::Error;
use hearth_text::work::off_the_async_threads;

use super::{context::RequestCaller, error::ApiError, extract::JsonBody, state::AppState};
use crate::providers::{ChatModel, PromptTokenizer};
use crate::wire::tokens::{
    ApplyTemplateRequest, ApplyTemplateResponse, DetokenizeRequest, DetokenizeResponse, Piece, TokenPiece,
    TokenizePart, TokenizeRequest, TokenizeResponse, Tokens,
};

/// The tokenizer of a model that runs here.
fn tokenizer_of(model: &dyn ChatModel) -> Result<&dyn PromptTokenizer, Error> {
    model.tokenizer().ok_or_else(|| {
        let name = &model.info().id;
        let message = format!(
            "`{name}` is served by a hosted upstream, so that this server has neither its tokenizer nor its template. Name a \
             model that runs here."
        );
        Error::invalid("model", message).with_code("unsupported_model")
    })
}

pub(super) async fn tokenize(
    State(state): State<AppState>,
    caller: RequestCaller,
    JsonBody(body): JsonBody,
) -> Result<Json<TokenizeResponse>, ApiError> {
    let request = TokenizeRequest::read(body)?;
    let model = state.chat_or_first(caller.principal(), request.model.as_deref())?;
    let bytes_of = |part: &TokenizePart| if let TokenizePart::Text(text) = part { text.len() } else { 0 };
    let answer = off_the_async_threads(request.content.iter().map(bytes_of).sum(), move |wanted| {
        let tokenizer = tokenizer_of(&*model)?;
        let mut ids = Vec::new();
        // The text's special tokens belong to its beginning: only the first piece gets them.
        let mut add_special = request.add_special;
        for part in &request.content {
            wanted.check()?;
            match part {
                TokenizePart::Text(text) => ids.extend(tokenizer.tokenize(text, add_special, request.parse_special)?),
                TokenizePart::Token(id) => ids.push(*id),
            }
            add_special = false;
        }
        let piece = |id| TokenPiece { id, piece: Piece::from(tokenizer.token_bytes(id).unwrap_or_default()) };
        let tokens = match request.with_pieces {
            true => Tokens::Pieces(ids.into_iter().map(piece).collect()),
            false => Tokens::Ids(ids),
        };
        Ok(TokenizeResponse { tokens })
    });
    Ok(Json(answer.await?))
}

pub(super) async fn detokenize(
    State(state): State<AppState>,
    caller: RequestCaller,
    JsonBody(body): JsonBody,
) -> Result<Json<DetokenizeResponse>, ApiError> {
    let request = DetokenizeRequest::read(body)?;
    let model = state.chat_or_first(caller.principal(), request.model.as_deref())?;
    let bytes = size_of_val(request.tokens.as_slice());
    let content = off_the_async_threads(bytes, move |_| tokenizer_of(&*model)?.detokenize(&request.tokens)).await?;
    Ok(Json(DetokenizeResponse { content }))
}

pub(super) async fn apply_template(
    State(state): State<AppState>,
    caller: RequestCaller,
    JsonBody(body): JsonBody,
) -> Result<Json<ApplyTemplateResponse>, ApiError> {
    let request = ApplyTemplateRequest::read(body)?;
    let model = state.chat_or_first(caller.principal(), request.model.as_deref())?;
    let prompt =
        off_the_async_threads(request.prompt.bytes(), move |_| tokenizer_of(&*model)?.render(&request.prompt)).await?;
    Ok(Json(ApplyTemplateResponse { prompt }))
}
