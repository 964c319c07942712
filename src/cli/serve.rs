//! `hearth serve`: the server, until it is told to stop.

use std::io::Write;

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
    let server = Server::bind(config)?;
    let address = server.address().context("asking for the port")?;
    // The one line on standard output: a program that started the server on port 0 reads the port here.
    writeln!(std::io::stdout(), "Hearth is listening on {scheme}://{address}")?;
    if exposed {
        tracing::warn!(%address, "anyone who reaches this address can use the models: ask for a key with --api-key");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let served = runtime.block_on(server.run(told_to_stop()));
    // Loading a large model cannot be interrupted; nobody waits for it any more.
    runtime.shutdown_background();
    served
}

/// Resolves at the first SIGINT or SIGTERM.
async fn told_to_stop() {
    let interrupted = tokio::signal::ctrl_c();
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        match signal(SignalKind::terminate()) {
            Ok(mut terminated) => {
                tokio::select! {
                    _ = terminated.recv() => {}
                    _ = interrupted => {}
                }
            }
            Err(error) => {
                tracing::warn!(%error, "SIGTERM cannot be waited for; Ctrl-C still works");
                drop(interrupted.await);
            }
        }
    }
    #[cfg(not(unix))]
    drop(interrupted.await);
}
