//! The limit on a request's head, answered in the contract's format.
//!
//! hyper itself refuses a head that does not fit its buffer, with an empty 431. The buffer is therefore a few times
//! larger than the limit ([`BUFFER_PER_LIMIT`]), so that a head slightly over the limit gets an answer that says so,
//! and an endless head still costs no more than the buffer.

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{error::ApiError, state::AppState};
use hearth_domain::error::{Error, ErrorKind};

/// hyper's buffer, as a multiple of the limit.
pub(super) const BUFFER_PER_LIMIT: usize = 4;

pub(super) async fn limit_head(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let limit = state.settings.header_limit_bytes;
    let bytes = head_bytes(&request);
    if bytes <= limit {
        return next.run(request).await;
    }
    let message = format!(
        "The request's head is {bytes} bytes long, over this server's limit of {limit}. Put what is long into the body."
    );
    ApiError(Error::new(ErrorKind::HeadTooLarge, message)).into_response()
}

/// About the head's size in HTTP/1: `name: value` and a line end for each field.
fn head_bytes(request: &Request) -> usize {
    let uri = request.uri();
    let target = uri.path().len() + uri.query().map_or(0, |query| query.len() + 1);
    let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    request.method().as_str().len() + target + fields.sum::<usize>()
}
