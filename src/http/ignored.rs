//! `x-hearth-ignored`: the fields of the request that were accepted and have no effect.

use axum::{http::HeaderValue, response::Response};

/// Names beyond this many bytes are left out: a header is no place for a whole body.
const LONGEST_BYTES: usize = 1024;

pub(super) fn name_ignored(mut response: Response, ignored: &[String]) -> Response {
    let mut names = String::new();
    let is_printable = |name: &&String| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
    };
    for name in ignored.iter().filter(is_printable) {
        if names.len() + name.len() + 2 > LONGEST_BYTES {
            break;
        }
        if !names.is_empty() {
            names.push_str(", ");
        }
        names.push_str(name);
    }
    if let Ok(value) = HeaderValue::try_from(names)
        && !value.is_empty()
    {
        response.headers_mut().insert("x-hearth-ignored", value);
    }
    response
}
