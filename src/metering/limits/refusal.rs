//! The refusal of a request over a limit: which limit, whose it is, and when to retry.

use std::time::Duration;

use super::{bucket::Short, spending::UsedUp};
use hearth_domain::error::{Error, ErrorKind};

/// Who is over the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    Caller,
    /// All callers together.
    Server,
}

impl Whose {
    fn limit(self) -> &'static str {
        match self {
            Self::Caller => "Your limit",
            Self::Server => "This server's limit for all callers together",
        }
    }
}

pub(super) fn requests(whose: Whose, limit: u32, wait: Duration) -> Error {
    let message = format!("{} of {limit} requests a minute is reached. Try again in {}.", whose.limit(), seconds(wait));
    Error::new(ErrorKind::RateLimited, message).with_retry_after(wait)
}

pub(super) fn busy(whose: Whose, limit: u32, wait: Duration) -> Error {
    let message = format!(
        "{} of {limit} requests at the same time is reached. Try again when one has ended, perhaps in {}.",
        whose.limit(),
        seconds(wait)
    );
    Error::new(ErrorKind::RateLimited, message).with_retry_after(wait)
}

pub(super) fn tokens(whose: Whose, limit: u32, asked: u64, short: Short) -> Error {
    match short {
        Short::Wait(wait) => {
            let message = format!(
                "{} of {limit} tokens a minute leaves no room now for a request that may use {asked}, prompt and \
                 answer together. Try again in {}, or ask for a shorter answer with `max_tokens`.",
                whose.limit(),
                seconds(wait)
            );
            Error::new(ErrorKind::TokensLimited, message).with_retry_after(wait)
        }
        Short::TooLarge => {
            let message = format!(
                "This request may use {asked} tokens, prompt and answer together, which is more than {} of {limit} \
                 tokens a minute can ever hold. Send less at a time, or ask for a shorter answer with `max_tokens`.",
                whose.limit().replacen("Your", "your", 1).replacen("This", "this", 1)
            );
            Error::new(ErrorKind::TokensLimited, message).lasting()
        }
    }
}

pub(super) fn spent(whose: Whose, used_up: &UsedUp) -> Error {
    let UsedUp { what, wait } = used_up;
    let whose = match whose {
        Whose::Caller => "Your",
        Whose::Server => "This server's",
    };
    let hours = wait.as_secs().div_ceil(3600);
    let message = format!(
        "{whose} {what} is used up; the next one begins in about {hours} hours (UTC). Ask the administrator of this server for a \
         larger one."
    );
    Error::new(ErrorKind::QuotaExceeded, message).with_retry_after(*wait)
}

/// Rounded up to hundredths.
fn seconds(wait: Duration) -> String {
    format!("{:.2} s", wait.as_millis().div_ceil(10) as f64 / 100.0)
}
