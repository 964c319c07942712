//! Where the shared database is, and the connections to it.
//!
//! Addresses are those of libpq (`postgres://user:password@host:port/database?sslmode=verify-full`). They contain a password, so nothing
//! here shows one. Over TLS a certificate is always verified, whatever `sslmode` says; without it only addresses of this machine are used,
//! unless `sslmode=disable` says that the network is trusted.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tokio_postgres::{
    Config, NoTls,
    config::{Host, SslMode, TargetSessionAttrs},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::store::{Result, SharedStore, StoreError};

/// How long a call waits for a connection of the pool, and for a new one to each of the addresses.
const CONNECTION_WAIT: Duration = Duration::from_secs(2);
/// Addresses that a name may have beyond the first.
const MORE_ADDRESSES: u32 = 2;
/// After this time without an acknowledgement a connection is lost.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(10);
/// A connection on which nothing is said for this time is asked whether it is there, so often and as many times.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(5), Duration::from_secs(2), 3);
/// Longer than any statement of this program takes, building an index aside.
const STATEMENT_TIMEOUT_MS: u32 = 60_000;
/// A connection whose process stopped within a transaction lets go of its locks after this time.
const IDLE_IN_TRANSACTION_MS: u32 = 60_000;

/// How connections are encrypted.
#[derive(Clone)]
enum Encryption {
    None,
    Tls(MakeRustlsConnect),
}

fn wrong(reason: impl fmt::Display) -> StoreError {
    StoreError::Address(reason.to_string())
}

/// The URL without the parameters that this file reads itself, and those.
fn split(url: &str) -> (String, Option<String>, Option<PathBuf>) {
    let Some((base, query)) = url.split_once('?') else { return (url.to_owned(), None, None) };
    let (mut mode, mut root, mut kept) = (None, None, Vec::new());
    for parameter in query.split('&') {
        match parameter.split_once('=') {
            Some(("sslmode", value)) => mode = Some(value.to_owned()),
            Some(("sslrootcert", value)) => root = Some(PathBuf::from(value.replace("%2F", "/").replace("%2f", "/"))),
            _ => kept.push(parameter),
        }
    }
    let kept = if kept.is_empty() { base.to_owned() } else { format!("{base}?{}", kept.join("&")) };
    (kept, mode, root)
}

/// Reads an address; the database itself is not asked.
///
/// # Errors
/// [`StoreError::Address`]
fn read(shared: &SharedStore) -> Result<(Config, Encryption)> {
    if !["postgres://", "postgresql://"].iter().any(|scheme| shared.url.starts_with(scheme)) {
        return Err(wrong("it does not begin with postgres://"));
    }
    let (url, mode, root) = split(&shared.url);
    // The error of the parser may show a part of the address.
    let mut config =
        Config::from_str(&url).map_err(|_| wrong("it is not postgres://USER:PASSWORD@HOST:PORT/DATABASE"))?;
    let is_local = |host: &Host| match host {
        Host::Tcp(name) => {
            name == "localhost" || name.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
        }
        #[cfg(unix)]
        Host::Unix(_) => true,
    };
    // An address beside the name is what is connected to.
    let all_local = !config.get_hosts().is_empty()
        && config.get_hosts().iter().all(is_local)
        && config.get_hostaddrs().iter().all(std::net::IpAddr::is_loopback);
    let encryption = match mode.as_deref() {
        Some("disable") => Encryption::None,
        None | Some("prefer" | "allow") if all_local => Encryption::None,
        Some("require" | "verify-ca" | "verify-full") => {
            Encryption::Tls(tls(shared.ca_file.as_deref().or(root.as_deref()))?)
        }
        None => {
            return Err(wrong(
                "the database is on another machine: add ?sslmode=verify-full, or ?sslmode=disable if the network between is trusted",
            ));
        }
        Some(mode) => {
            return Err(wrong(format!(
                "sslmode={mode} is not supported: use verify-full, or disable if the network is trusted"
            )));
        }
    };
    config
        .ssl_mode(if matches!(encryption, Encryption::None) { SslMode::Disable } else { SslMode::Require })
        .connect_timeout(CONNECTION_WAIT)
        // A standby would serve what is old, and refuse changes.
        .target_session_attrs(TargetSessionAttrs::ReadWrite)
        .keepalives_idle(KEEPALIVE.0)
        .keepalives_interval(KEEPALIVE.1)
        .keepalives_retries(KEEPALIVE.2)
        .tcp_user_timeout(UNACKNOWLEDGED_MAX);
    if config.get_application_name().is_none() {
        config.application_name(format!("hearth/{}", shared.name));
    }
    Ok((config, encryption))
}

fn tls(ca_file: Option<&Path>) -> Result<MakeRustlsConnect> {
    let mut roots = rustls::RootCertStore::empty();
    let certificates: Vec<CertificateDer<'static>> = match ca_file {
        Some(path) => {
            let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
            read.map_err(|error| wrong(format!("the certificates in {}: {error}", path.display())))?
        }
        None => rustls_native_certs::load_native_certs().certs,
    };
    roots.add_parsable_certificates(certificates);
    if roots.is_empty() {
        return Err(wrong(
            "there are no certificates to verify the database's with: name a PEM file with --store-ca-file",
        ));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(wrong)?.with_root_certificates(roots).with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

/// A pool with at most this many connections. It opens none yet.
///
/// # Errors
/// If the address cannot be used.
pub(super) fn pool(shared: &SharedStore, connections: usize) -> Result<Pool> {
    let (mut config, encryption) = read(shared)?;
    let limits = format!(
        "-c statement_timeout={STATEMENT_TIMEOUT_MS} -c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_MS}"
    );
    let addresses = u32::try_from(config.get_hosts().len()).unwrap_or(1) + MORE_ADDRESSES;
    let options = config.get_options().map_or_else(|| limits.clone(), |own| format!("{limits} {own}"));
    config.options(options);
    let settings = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let manager = match encryption {
        Encryption::None => Manager::from_config(config, NoTls, settings),
        Encryption::Tls(tls) => Manager::from_config(config, tls, settings),
    };
    Pool::builder(manager)
        .max_size(connections)
        .wait_timeout(Some(CONNECTION_WAIT))
        .create_timeout(Some(CONNECTION_WAIT * addresses))
        .runtime(Runtime::Tokio1)
        .build()
        .map_err(|error| StoreError::Database(Box::new(error)))
}

/// A connection of its own, beside the pool, that receives notifications. It lives as long as the client; `received` is called for
/// each notification.
///
/// # Errors
/// If the database cannot be reached.
pub(super) async fn listener(
    shared: &SharedStore,
    received: impl Fn(&str) + Send + 'static,
) -> Result<(tokio_postgres::Client, tokio::task::JoinHandle<()>)> {
    let (config, encryption) = read(shared)?;
    Ok(match encryption {
        Encryption::None => {
            let (client, connection) = config.connect(NoTls).await.map_err(explained)?;
            (client, tokio::spawn(pass_on(connection, received)))
        }
        Encryption::Tls(tls) => {
            let (client, connection) = config.connect(tls).await.map_err(explained)?;
            (client, tokio::spawn(pass_on(connection, received)))
        }
    })
}

/// Drives a connection until it ends.
async fn pass_on<S, T>(mut connection: tokio_postgres::Connection<S, T>, received: impl Fn(&str))
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    use tokio_postgres::AsyncMessage;
    while let Some(Ok(message)) = std::future::poll_fn(|context| connection.poll_message(context)).await {
        if let AsyncMessage::Notification(notification) = message {
            received(notification.payload());
        }
    }
}

/// Why no connection could be made, in the words of its cause.
pub(super) fn explained(error: tokio_postgres::Error) -> StoreError {
    if error.as_db_error().is_some() {
        let named = StoreError::from(error);
        return match named {
            StoreError::Database(source) => match source.downcast::<tokio_postgres::Error>() {
                // A wrong password or an unknown database is for the operator to mend.
                Ok(error) => {
                    wrong(error.as_db_error().map_or_else(String::new, |reported| reported.message().to_owned()))
                }
                Err(source) => StoreError::Database(source),
            },
            named => named,
        };
    }
    let cause = std::error::Error::source(&error).map(ToString::to_string);
    StoreError::Unavailable(cause.unwrap_or_else(|| error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(url: &str) -> SharedStore {
        SharedStore { url: url.to_owned(), ca_file: None, connections: 1, name: "one".to_owned() }
    }

    #[test]
    fn an_address_is_local_or_says_how_it_is_protected() {
        for good in [
            "postgres://hearth@127.0.0.1:5432/hearth",
            "postgresql://hearth:secret@localhost/hearth?sslmode=prefer",
            "postgres://hearth:secret@db.internal/hearth?sslmode=disable&target_session_attrs=read-write",
            "postgres://hearth@[::1]/hearth",
        ] {
            let (config, encryption) = read(&shared(good)).expect(good);
            assert!(matches!(encryption, Encryption::None), "{good}");
            assert_eq!(config.get_application_name(), Some("hearth/one"));
        }
        for (wrong, reason) in [
            ("mysql://db", "postgres://"),
            ("postgres://hearth:secret@db.internal/hearth", "sslmode=verify-full"),
            ("postgres://hearth:secret@db.internal/hearth?sslmode=prefer", "sslmode=prefer"),
            ("postgres://hearth:secret@localhost/hearth?hostaddr=10.0.0.5", "sslmode=verify-full"),
            ("postgres://hearth:secret@db.internal:port/hearth?sslmode=disable", "HOST:PORT"),
            (
                "postgres://h:secret@db/hearth?sslmode=verify-full&sslrootcert=/does/not/exist.pem",
                "/does/not/exist.pem",
            ),
        ] {
            let error = read(&shared(wrong)).map(|_| ()).expect_err(wrong).to_string();
            assert!(error.contains(reason) && !error.contains("secret"), "{error}");
        }
        assert!(!format!("{:?}", shared("postgres://h:secret@db")).contains("secret"));
    }
}
