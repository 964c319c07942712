//! Runs a server on a listener and a router, and shuts it down when told to stop.

use std::{future::Future, net::SocketAddr, net::TcpListener, sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use axum::Router;
use axum_server::{
    Handle, Server,
    tls_rustls::{RustlsAcceptor, RustlsConfig},
};
use hyper_util::rt::TokioTimer;

use super::{
    connection::GuardedAcceptor,
    head_limit::BUFFER_PER_LIMIT,
    settings::{HttpSettings, TlsSettings},
};

/// How often an HTTP/2 connection is pinged to see whether the peer is still there.
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(20);

/// Serves until `shutdown` resolves and running answers have ended or the grace time is over.
///
/// The caller binds the listener, so that it can ask which port port 0 became.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    settings: &HttpSettings,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    listener.set_nonblocking(true).context("the listener could not be made non-blocking")?;
    let handle = Handle::new();
    let stopper = tokio::spawn({
        let handle = handle.clone();
        let grace = settings.shutdown_grace;
        async move {
            shutdown.await;
            tracing::info!(connections = handle.connection_count(), "shutting down");
            handle.graceful_shutdown(Some(grace));
        }
    });
    let acceptor = GuardedAcceptor::new(settings);
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    let plain = axum_server::from_tcp(listener).context("the listener could not be used")?.handle(handle);
    let served = match &settings.tls {
        None => {
            let mut server = plain.acceptor(acceptor);
            set_limits(&mut server, settings);
            server.serve(service).await
        }
        Some(tls) => {
            let config = RustlsConfig::from_config(Arc::new(tls_config(tls)?));
            let mut server = plain.acceptor(RustlsAcceptor::new(config).acceptor(acceptor));
            set_limits(&mut server, settings);
            server.serve(service).await
        }
    };
    stopper.abort();
    served.context("the server stopped with an error")
}

/// Reads the TLS files if TLS is configured, so that their errors are reported before the address is announced.
///
/// # Errors
/// If they cannot be read, hold no certificate or no key, or do not match.
pub fn check_tls(settings: &HttpSettings) -> anyhow::Result<()> {
    settings.tls.as_ref().map_or(Ok(()), |tls| tls_config(tls).map(drop))
}

fn set_limits<A>(server: &mut Server<SocketAddr, A>, settings: &HttpSettings) {
    let builder = server.http_builder();
    // hyper refuses a buffer below 8 KiB.
    let head_buffer = settings.header_limit_bytes.saturating_mul(BUFFER_PER_LIMIT).max(8 * 1024);
    // Without a timer hyper's header timeout never fires.
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(settings.header_read_timeout)
        .max_buf_size(head_buffer);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(HTTP2_PING_INTERVAL)
        .keep_alive_timeout(HTTP2_PING_INTERVAL)
        .max_header_list_size(u32::try_from(head_buffer).unwrap_or(u32::MAX));
}

fn tls_config(settings: &TlsSettings) -> anyhow::Result<rustls::ServerConfig> {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

    let certificates = CertificateDer::pem_file_iter(&settings.certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("--ssl-cert-file {} is not a certificate in PEM", settings.certificate.display()))?;
    ensure!(
        !certificates.is_empty(),
        "--ssl-cert-file {} holds no certificate: it must be PEM, the server's own first and its chain after it.",
        settings.certificate.display()
    );
    let key = PrivateKeyDer::from_pem_file(&settings.private_key)
        .with_context(|| format!("--ssl-key-file {} is not a private key in PEM", settings.private_key.display()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("TLS could not be set up")?
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .with_context(|| {
            let (certificate, key) = (settings.certificate.display(), settings.private_key.display());
            format!("--ssl-cert-file {certificate} and --ssl-key-file {key} do not work together")
        })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
