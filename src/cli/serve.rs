//! `hearth serve`: the server, until it is told to stop.

use std::io::Write;

use anyhow::{Context, bail};
#[cfg(unix)]
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    app::Server,
    config::{Config, Settings},
    telemetry,
};

/// Threads for connections and streams, at most: more would take cores from the models, and these are enough for a thousand streams.
const ASYNC_WORKERS_MAX: usize = 4;

pub fn run(settings: Settings) -> anyhow::Result<()> {
    let config = Config::load(settings)?;
    telemetry::init_logs(&config.log_filter, config.log_format)?;
    let scheme = if config.http.tls.is_some() { "https" } else { "http" };
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).clamp(2, ASYNC_WORKERS_MAX);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build()?;
    let server = Server::bind(config)?;
    let address = server.address().context("asking for the port")?;
    let cut_off = server.cut_off();
    // From here on a signal requests a stop instead of ending the process: a program that reads the line below may send
    // one at once.
    let mut signals = {
        let _runtime = runtime.enter();
        StopSignals::new()?
    };
    // The one line on standard output: a program that started the server on port 0 reads the port here.
    writeln!(std::io::stdout(), "Hearth is listening on {scheme}://{address}")?;
    tracing::info!(url = %format_args!("{scheme}://{address}"), "listening");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let told_twice = async move {
        signals.next().await;
        drop(stop);
        signals.next().await;
    };
    let served = runtime.block_on(async {
        tokio::select! {
            served = server.run(async { drop(stopped.await) }) => served,
            // A second signal means that the sender does not want to wait for the grace period.
            () = told_twice => {
                cut_off.at_once().await;
                bail!("told to stop a second time: answers that had not ended are cut off")
            }
        }
    });
    // Loading a large model cannot be interrupted; nothing waits for it any more.
    runtime.shutdown_background();
    served
}

/// SIGINT and SIGTERM, caught from construction on.
#[cfg(unix)]
struct StopSignals {
    interrupted: Signal,
    terminated: Signal,
}

#[cfg(unix)]
impl StopSignals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            interrupted: signal(SignalKind::interrupt()).context("waiting for SIGINT")?,
            terminated: signal(SignalKind::terminate()).context("waiting for SIGTERM")?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupted.recv() => {}
            _ = self.terminated.recv() => {}
        }
    }
}

/// Ctrl-C.
#[cfg(not(unix))]
struct StopSignals;

#[cfg(not(unix))]
impl StopSignals {
    #[expect(clippy::unnecessary_wraps, reason = "where there are signals, waiting for them can fail")]
    fn new() -> anyhow::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
