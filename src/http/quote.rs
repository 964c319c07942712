//! `POST /v1/quote`.

use axum::{Json, extract::State};

use super::{context::RequestCaller, error::ApiError, extract::JsonBody, state::AppState};
use crate::{
    service::quote::{self, Priced},
    wire::quote::{QuoteAnswer, QuoteRequest, QuotedRange, QuotedSide},
};

pub(super) async fn quote(
    State(state): State<AppState>,
    caller: RequestCaller,
    JsonBody(body): JsonBody,
) -> Result<Json<QuoteAnswer>, ApiError> {
    let request = QuoteRequest::read(body, &caller.envelope(&state, false))?;
    let model = state.chat(caller.principal(), request.model.as_deref())?;
    let sides = quote::quote(model.clone(), caller.account().clone(), request.generations).await?;
    let would_serve = sides.iter().find(|side| side.quote.refusal.is_none());
    Ok(Json(QuoteAnswer {
        object: "quote",
        model: model.info().id.clone(),
        fits: would_serve.is_some(),
        would_serve: would_serve.map(|side| side.quote.served_by.name().to_owned()),
        candidates: sides.iter().map(quoted_side).collect(),
    }))
}

fn quoted_side(side: &Priced) -> QuotedSide {
    let quote = &side.quote;
    QuotedSide {
        served_by: quote.served_by.name().to_owned(),
        model: quote.model.clone(),
        prompt_tokens: quote.prompt_tokens,
        prompt_tokens_exact: quote.is_exact,
        max_completion_tokens: quote.max_completion_tokens,
        context_length: quote.context_length,
        expected_wait_ms: quote.wait.as_secs_f64() * 1e3,
        compute_ms: QuotedRange::milliseconds(quote.compute),
        cost_usd: QuotedRange::dollars(side.cost_micro_usd),
        refusal: quote.refusal,
    }
}
