//! Opens an account for each request whose caller is known, admits it if limits allow, and records how it ended.
//!
//! The account is open as long as the response body: a body read to its end has finished; one dropped earlier was
//! cancelled by a caller who left. An error is reported in its response; a stream that fails has recorded that in the
//! account before its last byte.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    body::{Body, HttpBody},
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use hearth_domain::{
    Account, CacheUse, RequestContext, RoutingPolicy,
    error::{Error, Result},
    usage::Outcome,
};
use http_body::{Frame, SizeHint};

use super::{
    allowance,
    auth::Authenticated,
    context::Arrival,
    error::{ApiError, Ended},
    receipt,
    route::{Metering, rules_of},
    state::AppState,
};

/// The side that should serve: a [`RoutingPolicy`].
const POLICY: HeaderName = HeaderName::from_static("x-hearth-policy");

/// A conversation, named by the client, so that one engine of an upstream serves all of it.
const SESSION: HeaderName = HeaderName::from_static("x-hearth-session");

/// The layer itself.
pub(super) async fn with_account(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    let extensions = request.extensions();
    let (Some(authenticated), Some(arrival)) =
        (extensions.get::<Authenticated>().cloned(), extensions.get::<Arrival>().cloned())
    else {
        // A probe or a documentation page.
        return next.run(request).await;
    };
    let caller = authenticated.caller;
    let path = extensions.get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str);
    // Without a route, nothing is computed.
    let metering = rules_of(request.method(), path).map_or(Metering::Free, |rules| rules.metering);
    let policy = asked_policy(request.headers());
    let context = RequestContext {
        request_id: arrival.request_id().to_owned(),
        route: format!("{} {path}", request.method()),
        caller: caller.clone(),
        fairness_key: authenticated.fairness_key.unwrap_or_else(|| arrival.peer().to_owned()),
        policy: policy.as_ref().ok().copied().flatten(),
        is_recorded: metering == Metering::Recorded,
        cache_use: cache_use(request.headers()),
        is_local_only: false,
        session: session(request.headers()),
    };
    let account = Account::open(state.usage_sink.clone(), context);
    request.extensions_mut().insert(account.clone());
    let admitted = policy.and_then(|_| if metering == Metering::Free { Ok(()) } else { account.admit() });
    let mut response = match admitted {
        Ok(()) => next.run(request).await,
        Err(refused) => {
            let Ended { outcome, code } = Ended::by(&refused);
            account.set_outcome(outcome, code);
            ApiError(refused).into_response()
        }
    };
    allowance::write(response.headers_mut(), &state.usage_sink.allowance(&caller));
    if account.is_recorded() {
        let is_stream = response.body().size_hint().exact().is_none();
        receipt::write(response.headers_mut(), &account, is_stream);
    }
    let ended = response.extensions().get().copied();
    let ended = ended.unwrap_or_else(|| Ended { outcome: outcome(response.status()), code: None });
    response.map(|body| Body::new(AccountBody { body, account, ended }))
}

/// The side that the request itself asks for.
fn asked_policy(headers: &HeaderMap) -> Result<Option<RoutingPolicy>> {
    let Some(value) = headers.get(POLICY) else { return Ok(None) };
    let value = value.to_str().unwrap_or_default().trim();
    value.parse().map(Some).map_err(|_unknown: String| {
        let known = RoutingPolicy::ALL.map(RoutingPolicy::as_str).join(", ");
        let shown: String = value.chars().take(40).collect();
        Error::invalid("x-hearth-policy", format!("The header x-hearth-policy is {shown:?}; it may be one of {known}."))
            .with_code("invalid_value")
    })
}

fn session(headers: &HeaderMap) -> Option<String> {
    let name = headers.get(SESSION)?.to_str().ok()?.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

/// The `cache-control` directives: `no-store` keeps a request out of all caches, `no-cache` forces a fresh computation.
fn cache_use(headers: &HeaderMap) -> CacheUse {
    let values = headers.get_all(header::CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let directives: Vec<&str> = values.flat_map(|value| value.split(',')).map(str::trim).collect();
    let says = |name: &str| directives.iter().any(|directive| directive.eq_ignore_ascii_case(name));
    match (says("no-store"), says("no-cache")) {
        (true, _) => CacheUse::Off,
        (false, true) => CacheUse::Refresh,
        (false, false) => CacheUse::Full,
    }
}

/// The outcome that a status implies, if the body is read to its end and no error has recorded a more precise one.
fn outcome(status: StatusCode) -> Outcome {
    match status {
        StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT => Outcome::TimedOut,
        status if status.is_server_error() => Outcome::Failed,
        status if status.is_client_error() => Outcome::Refused,
        _ => Outcome::Finished,
    }
}

/// A body that holds the request's account.
struct AccountBody {
    body: Body,
    account: Arc<Account>,
    ended: Ended,
}

impl HttpBody for AccountBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if matches!(polled, Poll::Ready(None)) || (polled.is_ready() && self.body.is_end_stream()) {
            self.account.set_outcome(self.ended.outcome, self.ended.code);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for AccountBody {
    /// A body without bytes is never polled.
    fn drop(&mut self) {
        if self.body.is_end_stream() {
            self.account.set_outcome(self.ended.outcome, self.ended.code);
        }
    }
}
