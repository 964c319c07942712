//! The media types that a request names in `Accept`. `*/*` names none: its sender takes anything.

use axum::http::{HeaderMap, header};

/// Whether `Accept` names this media type.
pub(super) fn names(headers: &HeaderMap, kind: &str) -> bool {
    let accepted = headers.get_all(header::ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
    let mut kinds = accepted.flat_map(|value| value.split(',')).filter_map(|kind| kind.split(';').next());
    kinds.any(|accepted| accepted.trim().eq_ignore_ascii_case(kind))
}
