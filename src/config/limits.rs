//! Limits and budgets, of the server and of each caller.

use std::time::Duration;

use anyhow::ensure;
use hearth_domain::{Budget, CallerLimits, StorageQuota};

use super::{Settings, in_range};
use crate::metering::limits::LimitSettings;

/// Beyond a billion dollars, or three decades of compute time, a budget limits nothing.
const MOST: f64 = 1e9;

pub(super) fn limits(settings: &Settings) -> anyhow::Result<LimitSettings> {
    Ok(LimitSettings {
        server: CallerLimits {
            requests_per_minute: count("rpm", settings.rpm)?,
            tokens_per_minute: count("tpm", settings.tpm)?,
            concurrent_requests: count("max-concurrent", settings.max_concurrent)?,
            daily: Budget {
                micro_usd: micro_usd("daily-usd", settings.daily_usd)?,
                compute: compute("daily-compute", settings.daily_compute)?,
            },
            monthly: Budget {
                micro_usd: micro_usd("monthly-usd", settings.monthly_usd)?,
                compute: compute("monthly-compute", settings.monthly_compute)?,
            },
            // All callers together may use the disk, less its reserve.
            storage: StorageQuota::default(),
        },
        caller: CallerLimits {
            requests_per_minute: count("caller-rpm", settings.caller_rpm)?,
            tokens_per_minute: count("caller-tpm", settings.caller_tpm)?,
            concurrent_requests: count("caller-max-concurrent", settings.caller_max_concurrent)?,
            daily: Budget {
                micro_usd: micro_usd("caller-daily-usd", settings.caller_daily_usd)?,
                compute: compute("caller-daily-compute", settings.caller_daily_compute)?,
            },
            monthly: Budget {
                micro_usd: micro_usd("caller-monthly-usd", settings.caller_monthly_usd)?,
                compute: compute("caller-monthly-compute", settings.caller_monthly_compute)?,
            },
            storage: StorageQuota {
                bytes: count("caller-storage-mib", settings.caller_storage_mib)?.map(|mib| u64::from(mib) << 20),
                documents: count("caller-documents", settings.caller_documents)?.map(u64::from),
            },
        },
    })
}

fn count(name: &str, value: Option<usize>) -> anyhow::Result<Option<u32>> {
    Ok(in_range(name, value, 1..=1_000_000_000)?.and_then(|value| u32::try_from(value).ok()))
}

fn micro_usd(name: &str, value: Option<f64>) -> anyhow::Result<Option<u64>> {
    let Some(value) = value else { return Ok(None) };
    ensure!((1e-6..=MOST).contains(&value), "--{name} {value}: must be from 0.000001 to {MOST} US dollars.");
    Ok(Some((value * 1e6).round() as u64))
}

fn compute(name: &str, value: Option<f64>) -> anyhow::Result<Option<Duration>> {
    let Some(value) = value else { return Ok(None) };
    ensure!((1e-6..=MOST).contains(&value), "--{name} {value}: must be from 0.000001 to {MOST} seconds.");
    Ok(Some(Duration::from_secs_f64(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_and_mistakes_named() {
        assert_eq!(limits(&Settings::default()).expect("none"), LimitSettings::default());
        let typed = Settings {
            rpm: Some(600),
            caller_tpm: Some(10_000),
            caller_daily_usd: Some(0.25),
            monthly_compute: Some(90.5),
            ..Settings::default()
        };
        let read = limits(&typed).expect("within their ranges");
        assert_eq!(read.server.requests_per_minute, Some(600));
        assert_eq!(read.server.monthly.compute, Some(Duration::from_millis(90_500)));
        assert_eq!(read.caller.tokens_per_minute, Some(10_000));
        assert_eq!(read.caller.daily.micro_usd, Some(250_000));
        for (typed, named) in [
            (Settings { rpm: Some(0), ..Settings::default() }, "--rpm 0"),
            (Settings { caller_daily_usd: Some(-1.0), ..Settings::default() }, "--caller-daily-usd -1"),
            (Settings { daily_compute: Some(f64::NAN), ..Settings::default() }, "--daily-compute NaN"),
        ] {
            let refused = format!("{:#}", limits(&typed).expect_err("out of range"));
            assert!(refused.contains(named), "{refused}");
        }
    }
}
