//! Whole answers whose time runs out: with `"partial": true` what there is by then is the answer.

use axum::{
    http::{HeaderName, HeaderValue},
    response::Response,
};
use hearth_domain::{Account, error::Error, usage::Outcome};
use serde_json::Value;

use super::error::Ended;
use crate::{
    providers::GenerateStream,
    service::chat::{Generation, gather, gather_partial},
};

/// `true` on a partial answer.
pub(super) const PARTIAL: HeaderName = HeaderName::from_static("x-hearth-partial");

/// Whether what there is when the time runs out is to be the answer.
pub(super) fn asks_for_partial(body: &Value) -> bool {
    body.get("partial") == Some(&Value::Bool(true))
}

/// The whole answer, or what there is of it.
pub(super) async fn whole(
    events: GenerateStream,
    num_choices: usize,
    partial: bool,
    account: &Account,
) -> Result<Generation, Error> {
    if partial { gather_partial(events, num_choices, account).await } else { gather(events, num_choices).await }
}

/// Says of a partial answer that it is one, in its head and in the usage_sink.
pub(super) fn marked(mut response: Response, is_partial: bool) -> Response {
    if is_partial {
        response.headers_mut().insert(PARTIAL, HeaderValue::from_static("true"));
        response.extensions_mut().insert(Ended { outcome: Outcome::TimedOut, code: None });
    }
    response
}
