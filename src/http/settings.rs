//! Settings of the HTTP side: limits, timeouts, hosts, origins, certificates.

use std::{path::PathBuf, time::Duration};

use super::host::AllowedHosts;

/// See each field. `Default` is what `hearth serve` uses without configuration.
#[derive(Clone, Debug)]
pub struct HttpSettings {
    /// Largest request body, in bytes. 32 MiB: a full 128k-token context is below 1 MiB of JSON, and 2048
    /// embedding inputs of 8k tokens, the most one request may carry, are near 64 MiB only when all are full.
    pub body_limit_bytes: usize,
    /// Largest file that may be uploaded, in bytes. Files are written to disk as they arrive.
    pub upload_limit_bytes: usize,
    /// Largest request head, in bytes; 431 beyond it.
    pub header_limit_bytes: usize,
    /// A connection without a whole request head after this long is closed.
    pub header_read_timeout: Duration,
    /// A body must arrive within this time, else 408.
    pub request_body_timeout: Duration,
    /// A client that does not read what is written to it for this long is dropped, along with its generation.
    pub write_timeout: Duration,
    /// Connections beyond this many are closed at once.
    pub max_connections: usize,
    /// How often a comment is sent on a silent stream, so that proxies keep it open.
    pub keep_alive_interval: Duration,
    /// Longest that any request may take; a body's `timeout` can only shorten it. `None`: no bound.
    pub request_deadline: Option<Duration>,
    /// How long running streams may continue after the shutdown signal.
    pub shutdown_grace: Duration,
    /// Hosts under which the server may be reached.
    pub hosts: AllowedHosts,
    /// Origins whose pages may call, or `*`. Empty: no CORS headers.
    pub cors_origins: Vec<String>,
    /// Serve TLS with this certificate.
    pub tls: Option<TlsSettings>,
    /// Refuse fields that have no effect instead of ignoring them.
    pub strict: bool,
}

/// PEM files.
#[derive(Clone, Debug)]
pub struct TlsSettings {
    /// The certificate, followed by its chain.
    pub certificate: PathBuf,
    pub private_key: PathBuf,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            body_limit_bytes: 32 * 1024 * 1024,
            upload_limit_bytes: 100 * 1024 * 1024,
            header_limit_bytes: 64 * 1024,
            header_read_timeout: Duration::from_secs(30),
            request_body_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(60),
            max_connections: 4096,
            keep_alive_interval: Duration::from_secs(10),
            request_deadline: Some(Duration::from_secs(3600)),
            shutdown_grace: Duration::from_secs(30),
            hosts: AllowedHosts::default(),
            cors_origins: Vec::new(),
            tls: None,
            strict: false,
        }
    }
}
