//! What work costs, in whole millionths of a US dollar.
//!
//! Work on this machine is priced by device time, an upstream's work by tokens. Each model's usage in a request is
//! rounded once, half up, and a request costs the sum of those: every addend is a whole number, so any sum over
//! requests, callers or days equals the sum of its parts. Cached answers cost nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use parking_lot::Mutex;

use hearth_domain::usage::{ModelUsage, ServedBy};

const NANOSECONDS_PER_HOUR: u128 = 3_600_000_000_000;
const TOKENS_PER_PRICE: u128 = 1_000_000;

/// Stands for all models of an upstream that have no price of their own.
pub const ANY_MODEL: &str = "*";

/// What an upstream charges for a model, in millionths of a US dollar per million tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenPrice {
    pub input: u64,
    /// Prompt tokens that the upstream had in its cache.
    pub cached_input: u64,
    pub output: u64,
}

impl TokenPrice {
    /// The three terms are added before rounding.
    pub fn of(&self, prompt_tokens: u64, cached_tokens: u64, completion_tokens: u64) -> u64 {
        let cached = cached_tokens.min(prompt_tokens);
        let parts =
            [(prompt_tokens - cached, self.input), (cached, self.cached_input), (completion_tokens, self.output)];
        let sum = parts.into_iter().map(|(tokens, price)| u128::from(tokens) * u128::from(price)).sum();
        rounded(sum, TOKENS_PER_PRICE)
    }
}

/// The price list of a server. By default everything is free.
#[derive(Debug, Default)]
pub struct Prices {
    /// Millionths of a US dollar per device hour, by `cpu`, `cuda` and `metal`.
    compute_hour: BTreeMap<String, u64>,
    /// By upstream and model.
    tokens: BTreeMap<String, BTreeMap<String, TokenPrice>>,
    /// Upstreams and models that served without a price; each is logged once.
    unpriced: Mutex<BTreeSet<(String, String)>>,
}

impl Prices {
    #[must_use]
    pub fn with_compute_hour(mut self, device: &str, micro_usd: u64) -> Self {
        self.compute_hour.insert(device.to_owned(), micro_usd);
        self
    }

    /// `model` is the served name, or [`ANY_MODEL`].
    #[must_use]
    pub fn with_tokens(mut self, upstream: &str, model: &str, price: TokenPrice) -> Self {
        self.tokens.entry(upstream.to_owned()).or_default().insert(model.to_owned(), price);
        self
    }

    /// What this much device time costs.
    pub fn of_compute(&self, device: &str, compute: Duration) -> u64 {
        let hour = self.compute_hour.get(device).copied().unwrap_or_default();
        rounded(compute.as_nanos().saturating_mul(u128::from(hour)), NANOSECONDS_PER_HOUR)
    }

    /// What an upstream charges for a model; `None` if the list does not say.
    pub fn of_upstream(&self, upstream: &str, model: &str) -> Option<TokenPrice> {
        let models = self.tokens.get(upstream)?;
        models.get(model).or_else(|| models.get(ANY_MODEL)).copied()
    }

    /// What one model's usage costs.
    pub fn of(&self, record: &ModelUsage) -> u64 {
        match &record.served_by {
            ServedBy::Local { device } => self.of_compute(device, record.compute),
            ServedBy::Cache(_) => 0,
            ServedBy::Upstream { name: upstream, .. } => match self.of_upstream(upstream, &record.model) {
                Some(price) => price.of(record.prompt_tokens, record.cached_tokens, record.completion_tokens),
                None => {
                    self.say_unpriced(upstream, &record.model);
                    0
                }
            },
        }
    }

    /// Logs a warning, once: the use of a model that the list forgot is free.
    fn say_unpriced(&self, upstream: &str, model: &str) {
        if self.unpriced.lock().insert((upstream.to_owned(), model.to_owned())) {
            tracing::warn!(
                upstream,
                model,
                "there is no price for this model, so it counts as free: add one to [prices]"
            );
        }
    }
}

/// The cap on a cost: an upstream's usage report is not verified, and sums must not overflow.
const COST_MAX: u64 = 1 << 43;

/// Half up.
fn rounded(amount: u128, unit: u128) -> u64 {
    u64::try_from(amount.saturating_add(unit / 2) / unit).unwrap_or(COST_MAX).min(COST_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(name: &str) -> ServedBy {
        ServedBy::Upstream { name: name.to_owned(), engine: Some("b".to_owned()) }
    }

    fn record(served_by: ServedBy) -> ModelUsage {
        ModelUsage {
            model: "m".to_owned(),
            served_by,
            prompt_tokens: 1000,
            cached_tokens: 400,
            completion_tokens: 10,
            reasoning_tokens: 0,
            queue: Duration::ZERO,
            prefill: Duration::ZERO,
            decode: Duration::ZERO,
            compute: Duration::from_secs(36),
        }
    }

    #[test]
    fn local_work_costs_time_and_an_upstreams_tokens() {
        let price = TokenPrice { input: 150_000, cached_input: 75_000, output: 600_000 };
        let prices = Prices::default().with_compute_hour("cpu", 500_000).with_tokens("up", "m", price);
        assert_eq!(prices.of(&record(ServedBy::Local { device: "cpu".into() })), 5_000, "a hundredth of an hour");
        assert_eq!(prices.of(&record(ServedBy::Local { device: "cuda".into() })), 0, "no price");
        // 600 at 0.15, 400 at 0.075 and 10 at 0.6 dollars per million: 90 + 30 + 6.
        assert_eq!(prices.of(&record(upstream("up"))), 126);
        assert_eq!(prices.of(&record(upstream("other"))), 0);
        assert_eq!(prices.of(&record(ServedBy::Cache("exact"))), 0);
    }

    #[test]
    fn a_leg_is_rounded_once_and_half_up() {
        let price = TokenPrice { input: 500_000, cached_input: 0, output: 500_000 };
        assert_eq!((price.of(1, 0, 0), price.of(1, 0, 1), price.of(2, 0, 1)), (1, 1, 2));
        let prices = Prices::default().with_compute_hour("cpu", 3_600_000);
        let of = |microseconds| prices.of_compute("cpu", Duration::from_micros(microseconds));
        assert_eq!((of(499), of(500), of(1_499), of(1_500)), (0, 1, 1, 2), "a thousandth of a cent is a millisecond");
        assert_eq!(prices.of_compute("cpu", Duration::MAX), COST_MAX);
        assert_eq!(price.of(u64::MAX, 0, u64::MAX), COST_MAX);
    }

    #[test]
    fn a_models_own_price_goes_before_that_of_all_and_more_cached_than_there_were_counts_as_all() {
        let [own, all] = [1, 2].map(|input| TokenPrice { input: input * 1_000_000, ..TokenPrice::default() });
        let prices = Prices::default().with_tokens("up", "m", own).with_tokens("up", ANY_MODEL, all);
        assert_eq!(prices.of_upstream("up", "m"), Some(own));
        assert_eq!(prices.of_upstream("up", "n"), Some(all));
        assert_eq!(own.of(10, 50, 0), 0);
    }
}
