//! `[prices]` of the settings file: what an hour of this machine costs, and what upstreams charge for tokens.
//!
//! Amounts are written in dollars, as in price lists, and stored in millionths.

use std::collections::BTreeMap;

use anyhow::ensure;
use serde::Deserialize;

use crate::metering::prices::{Prices, TokenPrice};

/// More than anything on sale costs: a larger number is a mistake of the unit.
const USD_MAX: f64 = 1e6;
const MICRO_USD: f64 = 1e6;
const DEVICES: [&str; 3] = ["cpu", "cuda", "metal"];

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PriceSettings {
    /// One per device, instead of `usd_per_compute_hour` for all.
    pub usd_per_compute_hour: BTreeMap<String, f64>,
    /// By upstream and model; `"*"` covers the models that are not named.
    pub upstreams: BTreeMap<String, BTreeMap<String, TokenPriceSettings>>,
}

/// Dollars per million tokens.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenPriceSettings {
    pub input: f64,
    /// Tokens found in the upstream's cache; defaults to `input`.
    pub cached_input: Option<f64>,
    pub output: f64,
}

/// The price list from `--usd-per-compute-hour` and the file's section.
///
/// # Errors
/// If an amount is negative or absurd, or a device is unknown.
pub fn price_list(all_devices: Option<f64>, section: Option<PriceSettings>) -> anyhow::Result<Prices> {
    let section = section.unwrap_or_default();
    let mut prices = Prices::default();
    if let Some(usd) = all_devices {
        let micro_usd = micro_usd("--usd-per-compute-hour", usd)?;
        prices = DEVICES.into_iter().fold(prices, |prices, device| prices.with_compute_hour(device, micro_usd));
    }
    for (device, usd) in section.usd_per_compute_hour {
        let name = format!("[prices.usd_per_compute_hour] {device}");
        ensure!(DEVICES.contains(&device.as_str()), "{name}: there is no such device; cpu, cuda and metal are.");
        prices = prices.with_compute_hour(&device, micro_usd(&name, usd)?);
    }
    for (upstream, models) in section.upstreams {
        for (model, price) in models {
            let amount =
                |field: &str, usd: f64| micro_usd(&format!("[prices.upstreams.{upstream}.{model:?}] {field}"), usd);
            let input = amount("input", price.input)?;
            let cached_input = price.cached_input.map_or(Ok(input), |usd| amount("cached_input", usd))?;
            let output = amount("output", price.output)?;
            prices = prices.with_tokens(&upstream, &model, TokenPrice { input, cached_input, output });
        }
    }
    Ok(prices)
}

fn micro_usd(name: &str, usd: f64) -> anyhow::Result<u64> {
    ensure!((0.0..=USD_MAX).contains(&usd), "{name} = {usd}: must be from 0 to {USD_MAX} US dollars.");
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in range, as was just seen")]
    let micro_usd = (usd * MICRO_USD).round() as u64;
    Ok(micro_usd)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn section(text: &str) -> PriceSettings {
        toml::from_str(text).expect("it parses")
    }

    #[test]
    fn dollars_become_millionths() {
        let text = "usd_per_compute_hour = { cuda = 2.5 }\n[upstreams.up.\"*\"]\ninput = 0.15\noutput = 0.6";
        let prices = price_list(Some(0.1), Some(section(text))).unwrap();
        let hour = Duration::from_secs(3600);
        assert_eq!((prices.of_compute("cpu", hour), prices.of_compute("cuda", hour)), (100_000, 2_500_000));
        let price = TokenPrice { input: 150_000, cached_input: 150_000, output: 600_000 };
        assert_eq!(prices.of_upstream("up", "any"), Some(price));
        let free = price_list(None, None).unwrap();
        assert_eq!(free.of_compute("cpu", hour), 0, "what a machine costs only its owner knows");
    }

    #[test]
    fn mistakes_are_named() {
        for (text, named) in [
            ("usd_per_compute_hour = { gpu = 1.0 }", "gpu"),
            ("usd_per_compute_hour = { cpu = -1.0 }", "cpu"),
            ("[upstreams.up.m]\ninput = 1e9\noutput = 1.0", "[prices.upstreams.up.\"m\"] input"),
        ] {
            let error = price_list(None, Some(section(text))).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
        assert!(price_list(Some(f64::NAN), None).is_err());
        assert!(toml::from_str::<PriceSettings>("[upstreams.up.m]\ninput = 1.0").is_err(), "half a price");
    }
}
