//! The settings of the HTTP server.

use std::{net::IpAddr, time::Duration};

use anyhow::{bail, ensure};

use super::{Settings, in_range, seconds};
use crate::http::{AllowedHosts, HttpSettings, TlsSettings};

/// `bound` is the address that the server binds to.
pub(super) fn http_settings(settings: &mut Settings, bound: IpAddr) -> anyhow::Result<HttpSettings> {
    let defaults = HttpSettings::default();
    let tls = match (settings.ssl_cert_file.take(), settings.ssl_key_file.take()) {
        (Some(certificate), Some(private_key)) => Some(TlsSettings { certificate, private_key }),
        (None, None) => None,
        _ => bail!("TLS needs both --ssl-cert-file and --ssl-key-file."),
    };
    let cors_origins = settings.cors_origin.take().unwrap_or_default();
    for origin in &cors_origins {
        ensure!(
            is_origin(origin),
            "--cors-origin {origin:?} is not an origin: write the scheme, the host and, if it is not the usual one, the port, \
             without a path, such as https://example.com; or * for all."
        );
    }
    let machine = sysinfo::System::host_name();
    let named = settings.allowed_host.take().unwrap_or_default();
    let request_deadline = match settings.timeout {
        Some(timeout) => Some(seconds("timeout", Some(timeout), Duration::ZERO)?),
        None => defaults.request_deadline,
    };
    Ok(HttpSettings {
        body_limit_bytes: in_range("body-limit-mib", settings.body_limit_mib, 1..=1024)?
            .map_or(defaults.body_limit_bytes, |mib| mib << 20),
        upload_limit_bytes: in_range("upload-limit-mib", settings.upload_limit_mib, 1..=4096)?
            .map_or(defaults.upload_limit_bytes, |mib| mib << 20),
        header_read_timeout: seconds("header-timeout", settings.header_timeout, defaults.header_read_timeout)?,
        request_body_timeout: seconds("body-timeout", settings.body_timeout, defaults.request_body_timeout)?,
        request_deadline,
        keep_alive_interval: seconds("sse-ping-interval", settings.sse_ping_interval, defaults.keep_alive_interval)?,
        shutdown_grace: seconds("grace", settings.grace, defaults.shutdown_grace)?,
        hosts: AllowedHosts::new(bound, &named, machine.as_deref())?,
        cors_origins,
        tls,
        strict: settings.strict.unwrap_or(false),
        ..defaults
    })
}

fn is_origin(text: &str) -> bool {
    let is_host =
        |host: &str| !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_graphic() && !b"/?#@*".contains(&byte));
    text == "*"
        || text == "null"
        || text.split_once("://").is_some_and(|(scheme, host)| is_host(scheme) && is_host(host))
}
