//! Retries: the next engine at once, or exponential backoff with full jitter, the upstream's `Retry-After`, and the
//! request's deadline.
//!
//! See Brooker, "Exponential Backoff and Jitter" (2015), for why the whole wait is drawn and not only a part of it.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use hearth_domain::{
    Account,
    error::{Error, ErrorKind, Result},
};
use rand::Rng;

use super::{
    Retries,
    engine::{RemoteEngine, Visit},
    failure::Failure,
    metrics,
    upstream::Upstream,
};

/// An upstream that asks for a longer wait than this is not retried.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Calls `attempt` with one engine after the other until it succeeds, cannot succeed, or the deadline is too near. A
/// success comes with the visit that the caller ends. `key` says which engine the request prefers.
///
/// Another engine may succeed where one failed: it is asked without a wait. The number of attempts has the same bound,
/// because the request itself may be what makes engines fail. An engine that refused the connection has not seen the
/// request, and does not count.
pub(super) async fn with_retries<T, F>(
    upstream: &Upstream,
    upstream_model: &str,
    key: Option<u64>,
    account: &Account,
    deadline: Option<Instant>,
    mut attempt: impl FnMut(Arc<RemoteEngine>) -> F,
) -> Result<(T, Visit)>
where
    F: Future<Output = Result<T, Failure>>,
{
    let mut tried = vec![false; upstream.engines().len()];
    let mut earlier: Option<Error> = None;
    let mut number = 0;
    loop {
        let (index, visit) = match upstream.visit(upstream_model, key, &tried) {
            Ok(begun) => begun,
            Err(wait) => return Err(earlier.unwrap_or_else(|| left_alone(upstream.name(), wait))),
        };
        account.count_attempt();
        metrics::attempted(visit.engine());
        let attempt = attempt(visit.engine().clone());
        let outcome = match deadline {
            Some(deadline) => match tokio::time::timeout_at(deadline.into(), attempt).await {
                Ok(outcome) => outcome,
                // The caller's deadline was short, which says nothing about the upstream.
                Err(_elapsed) => return Err(out_of_time(upstream.name())),
            },
            None => attempt.await,
        };
        let failure = match outcome {
            Ok(done) => return Ok((done, visit)),
            Err(failure) => failure,
        };
        let engine = visit.engine().clone();
        if failure.is_upstreams {
            visit.failed();
        } else {
            visit.succeeded();
        }
        tried[index] = true;
        let goes_on = failure.is_upstreams && upstream.has_another(upstream_model, &tried);
        let wait = if goes_on && (failure.is_unreached || number < upstream.retries().max) {
            Duration::ZERO
        } else {
            let Some(wait) = wait_before(number, &failure, upstream.retries(), deadline) else {
                return Err(failure.error);
            };
            tried.fill(false);
            wait
        };
        tracing::debug!(
            upstream = upstream.name(),
            engine = engine.name(),
            attempt = number + 1,
            wait_ms = wait.as_millis(),
            error = ?failure.error,
            "the upstream failed; it is asked again"
        );
        number += u32::from(!(goes_on && failure.is_unreached));
        earlier = Some(failure.error);
        tokio::time::sleep(wait).await;
    }
}

/// How long to wait before attempt `number + 1`; `None` means no retry.
fn wait_before(number: u32, failure: &Failure, retries: Retries, deadline: Option<Instant>) -> Option<Duration> {
    if !failure.is_passing || number >= retries.max {
        return None;
    }
    let wait = match failure.retry_after {
        Some(asked) if asked > LONGEST_WAIT => return None,
        Some(asked) => asked,
        None => {
            let factor = 1u32.checked_shl(number).unwrap_or(u32::MAX);
            let most = retries.base.saturating_mul(factor).min(retries.longest);
            most.mul_f64(rand::rng().random::<f64>())
        }
    };
    let fits = deadline.is_none_or(|deadline| Instant::now() + wait < deadline);
    fits.then_some(wait)
}

fn left_alone(upstream: &str, wait: Duration) -> Error {
    let message = format!("The hosted upstream `{upstream}` has failed several times and is left alone for now.");
    Error::new(ErrorKind::BreakerOpen, message).with_retry_after(wait)
}

fn out_of_time(upstream: &str) -> Error {
    let message = format!(
        "The request's deadline passed while the hosted upstream `{upstream}` had not begun to answer. Raise `timeout` or \
         the server's limit."
    );
    Error::new(ErrorKind::DeadlineExceeded, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(retry_after: Option<Duration>) -> Failure {
        Failure { retry_after, ..Failure::passing(Error::new(ErrorKind::UpstreamFailed, "")) }
    }

    #[test]
    fn waits_grow_to_their_bound_and_are_drawn() {
        let retries = Retries { max: 40, base: Duration::from_millis(100), longest: Duration::from_secs(1) };
        for (number, most) in [(0, 100), (1, 200), (3, 800), (4, 1000), (35, 1000)] {
            for _ in 0..50 {
                let wait = wait_before(number, &failure(None), retries, None).expect("attempts are left");
                assert!(wait <= Duration::from_millis(most), "attempt {number}: {wait:?}");
            }
        }
        assert_eq!(wait_before(40, &failure(None), retries, None), None);
    }

    #[test]
    fn what_the_upstream_asks_for_counts_if_there_is_time_for_it() {
        let retries = Retries::default();
        let second = Duration::from_secs(1);
        let asked = failure(Some(7 * second));
        assert_eq!(wait_before(0, &asked, retries, None), Some(7 * second));
        assert_eq!(wait_before(0, &asked, retries, Some(Instant::now() + 20 * second)), Some(7 * second));
        assert_eq!(wait_before(0, &asked, retries, Some(Instant::now() + 3 * second)), None);
        assert_eq!(wait_before(0, &failure(Some(61 * second)), retries, None), None);
        let lasting = Failure::lasting(Error::new(ErrorKind::UpstreamFailed, ""));
        assert_eq!(wait_before(0, &lasting, retries, None), None);
    }
}
