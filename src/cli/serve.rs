//! `hearth serve`: the server, until it is told to stop.

use std::{future::Future, io::Write};

use anyhow::Context;

use crate::{
    app::Server,
    config::{Config, Settings},
    telemetry,
};

pub fn run(settings: Settings) -> anyhow::Result<()> {
    let config = Config::load(settings)?;
    telemetry::init_logs(&config.log_filter, config.log_format)?;
    let scheme = if config.http.tls.is_some() { "https" } else { "http" };
    let exposed = !config.address.ip().is_loopback() && config.http.api_keys.is_empty();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let server = Server::bind(config)?;
    let address = server.address().context("asking for the port")?;
    // From here on a signal is a request to stop and not the end of the process: whoever reads the line below may
    // send one at once.
    let told_to_stop = {
        let _runtime = runtime.enter();
        told_to_stop()?
    };
    // The one line on standard output: a program that started the server on port 0 reads the port here.
    writeln!(std::io::stdout(), "Hearth is listening on {scheme}://{address}")?;
    if exposed {
        tracing::warn!(%address, "anyone who reaches this address can use the models: ask for a key with --api-key");
    }
    let served = runtime.block_on(server.run(told_to_stop));
    // Loading a large model cannot be interrupted; nobody waits for it any more.
    runtime.shutdown_background();
    served
}

/// Resolves at the first SIGINT or SIGTERM after this call.
#[cfg(unix)]
fn told_to_stop() -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    use tokio::signal::unix::{SignalKind, signal};

    let mut interrupted = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
    let mut terminated = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    Ok(async move {
        tokio::select! {
            _ = interrupted.recv() => {}
            _ = terminated.recv() => {}
        }
    })
}

/// Resolves at Ctrl-C.
#[cfg(not(unix))]
fn told_to_stop() -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    Ok(async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}
