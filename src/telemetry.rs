//! Logs and metrics: their setup, and the names they use.
//!
//! Logs go to standard error, so that standard output carries only results. Prompts and answers are never logged.
//! Metric names are constants, so that what is written, described and scraped has one name.

use std::{io::IsTerminal, time::Duration};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// The format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Starts logging at `filter`, in tracing's directive syntax, such as `info` or `hearth=debug,warn`.
///
/// Calling it a second time changes nothing.
///
/// # Errors
/// If the filter does not parse.
pub fn init_logs(filter: &str, format: LogFormat) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| anyhow::anyhow!("log filter {filter:?}: {error}. Try `info` or `hearth=debug,warn`."))?;
    let registry = tracing_subscriber::registry().with(filter);
    let started = match format {
        LogFormat::Text => registry
            .with(
                fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).with_target(false),
            )
            .try_init(),
        LogFormat::Json => registry.with(fmt::layer().with_writer(std::io::stderr).json()).try_init(),
    };
    // An embedding program, or a test, may have its own subscriber already.
    drop(started);
    Ok(())
}

/// Upper bounds of the latency histograms' buckets, in seconds: from a fast token to a long prefill.
const LATENCY_BUCKETS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// How often samples of histograms are put into their buckets.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Puts the samples of histograms into their buckets for as long as the server runs. The recorder keeps each sample until the
/// metrics are scraped, so without this a server that is never scraped would keep them all.
pub async fn keep_up(metrics: PrometheusHandle) {
    loop {
        tokio::time::sleep(UPKEEP_INTERVAL).await;
        metrics.run_upkeep();
    }
}

/// Installs the process-wide recorder and returns its renderer. A second call returns the renderer of a separate
/// recorder that nothing writes to: the first one keeps the process's metrics.
///
/// # Errors
/// If the buckets are rejected, which would be a bug.
pub fn init_metrics() -> anyhow::Result<PrometheusHandle> {
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &LATENCY_BUCKETS)?
        .build_recorder();
    let handle = recorder.handle();
    drop(metrics::set_global_recorder(recorder));
    Ok(handle)
}
