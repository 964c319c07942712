//! An issuer's public keys (JWKS, RFC 7517) from a file or an address.
//!
//! A set of public keys must not contain shared secrets: any in it are ignored. A set is read again when a token names
//! a key that is not in it, and from time to time; not more often than [`JwksSettings::refetch_after`] allows, because
//! any client can name unknown keys.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use parking_lot::RwLock;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Mutex;
use url::{Host, Url};

use super::jws::{Algorithm, Jwk, VerifyingKey};
use hearth_domain::error::{Error, ErrorKind, Result};

/// Covers the connection, the request and the whole answer.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
const SET_BYTES_MAX: usize = 1 << 20;
const KEYS_MAX: usize = 256;
/// A set of this age is read again even if it has every named key: keys are revoked, too.
const REFRESH_AFTER: Duration = Duration::from_secs(15 * 60);
/// How long a set stays usable while its issuer cannot be reached.
const USABLE_FOR: Duration = Duration::from_secs(24 * 3600);
/// Delay before the next attempt while there are no keys.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// The source of a key set, and how often it is fetched.
#[derive(Clone, Debug)]
pub struct JwksSettings {
    pub place: JwksPlace,
    /// A set is not read again within this time of the last read.
    pub refetch_after: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JwksPlace {
    File(PathBuf),
    /// `https://`, or `http://` to this machine.
    Url(Url),
}

impl std::str::FromStr for JwksPlace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((scheme, _)) = text.split_once("://") else { return Ok(Self::File(text.into())) };
        let url = Url::parse(text).map_err(|error| format!("{text:?} is no address: {error}"))?;
        let is_here = match url.host() {
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            Some(Host::Domain(name)) => name == "localhost",
            None => false,
        };
        if url.scheme() == "https" || (url.scheme() == "http" && is_here) {
            return Ok(Self::Url(url));
        }
        Err(format!("{scheme}:// is not safe for keys from elsewhere: use https://, or a file"))
    }
}

/// The usable keys of a set. One that is not understood does not affect the others.
fn parse(json: &[u8]) -> anyhow::Result<Vec<VerifyingKey>> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<Value>,
    }
    let set: Set = serde_json::from_slice(json).context("no set of keys (JWKS)")?;
    ensure!(set.keys.len() <= KEYS_MAX, "more than {KEYS_MAX} keys");
    let keys: Vec<_> = set
        .keys
        .into_iter()
        .filter_map(|key| serde_json::from_value::<Jwk>(key).ok())
        .filter_map(VerifyingKey::of_jwk)
        .collect();
    ensure!(!keys.is_empty(), "no public key for RS256, ES256 or EdDSA signatures is in it");
    Ok(keys)
}

/// A token's claim about the key that signed it.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyQuery<'a> {
    pub(super) id: Option<&'a str>,
    pub(super) algorithm: Algorithm,
}

impl KeyQuery<'_> {
    pub(super) fn is(&self, key: &VerifyingKey) -> bool {
        key.algorithm == self.algorithm && self.id.is_none_or(|id| key.id.as_deref() == Some(id))
    }
}

/// A set of keys that may change at its source.
#[derive(Debug)]
pub(super) struct Jwks {
    settings: JwksSettings,
    client: reqwest::Client,
    read: RwLock<Option<KeySet>>,
    /// The time of the last attempt to read it.
    tried: Mutex<Option<Instant>>,
}

#[derive(Clone, Debug)]
struct KeySet {
    keys: Arc<[VerifyingKey]>,
    read_at: Instant,
}

impl Jwks {
    /// # Errors
    /// If the file cannot be used. An address is fetched when the first token arrives, because its issuer may start
    /// later.
    pub(super) fn new(settings: JwksSettings) -> anyhow::Result<Self> {
        let client =
            reqwest::Client::builder().timeout(FETCH_TIMEOUT).redirect(reqwest::redirect::Policy::none()).build()?;
        let read = match &settings.place {
            JwksPlace::File(path) => {
                let bytes = std::fs::read(path).with_context(|| format!("--jwt-jwks {}", path.display()))?;
                let keys = parse(&bytes).with_context(|| format!("--jwt-jwks {}", path.display()))?;
                Some(KeySet { keys: keys.into(), read_at: Instant::now() })
            }
            JwksPlace::Url(_) => None,
        };
        Ok(Self { settings, client, tried: Mutex::new(read.as_ref().map(|set| set.read_at)), read: RwLock::new(read) })
    }

    /// The known keys, refetched if that may help.
    ///
    /// # Errors
    /// 503 if there are none.
    pub(super) async fn keys(&self, wanted: KeyQuery<'_>) -> Result<Arc<[VerifyingKey]>> {
        let known = self.known();
        let has = |set: &KeySet| set.keys.iter().any(|key| wanted.is(key));
        let needs = match &known {
            None => Some(RETRY_AFTER),
            Some(set) if !has(set) => Some(self.settings.refetch_after),
            Some(set) if set.read_at.elapsed() > REFRESH_AFTER => {
                // Only one request refetches; the others use the known keys.
                if let Ok(tried) = self.tried.try_lock() {
                    self.read_again(tried, self.settings.refetch_after).await;
                }
                None
            }
            Some(_) => None,
        };
        if let Some(not_within) = needs {
            let tried = self.tried.lock().await;
            self.read_again(tried, not_within).await;
        }
        self.known().map(|set| set.keys).ok_or_else(|| {
            let message = "The keys that tokens are checked with cannot be read now; try again.";
            Error::new(ErrorKind::Unavailable, message)
                .with_code("token_keys_unavailable")
                .with_retry_after(RETRY_AFTER)
        })
    }

    fn known(&self) -> Option<KeySet> {
        self.read.read().clone().filter(|set| set.read_at.elapsed() < USABLE_FOR)
    }

    async fn read_again(&self, mut tried: tokio::sync::MutexGuard<'_, Option<Instant>>, not_within: Duration) {
        if tried.is_some_and(|at| at.elapsed() < not_within) {
            return;
        }
        let read = match &self.settings.place {
            JwksPlace::File(path) => tokio::fs::read(path).await.map_err(anyhow::Error::from),
            JwksPlace::Url(url) => self.fetch(url).await,
        };
        *tried = Some(Instant::now());
        match read.and_then(|bytes| parse(&bytes)) {
            Ok(keys) => *self.read.write() = Some(KeySet { keys: keys.into(), read_at: Instant::now() }),
            Err(error) => tracing::warn!("the keys for tokens could not be read: {error:#}"),
        }
    }

    async fn fetch(&self, url: &Url) -> anyhow::Result<Vec<u8>> {
        let mut answer = self.client.get(url.clone()).send().await?.error_for_status()?;
        if !answer.status().is_success() {
            bail!("{url} answered {}, and redirects are not followed", answer.status());
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await? {
            ensure!(bytes.len() + chunk.len() <= SET_BYTES_MAX, "{url} answered more than {SET_BYTES_MAX} bytes");
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_from_files_and_safe_places_only() {
        assert_eq!("keys.json".parse(), Ok(JwksPlace::File("keys.json".into())));
        for url in ["https://id.example/keys", "http://127.0.0.1:9/k", "http://localhost/k", "http://[::1]/k"] {
            assert!(matches!(url.parse(), Ok(JwksPlace::Url(_))), "{url}");
        }
        for url in ["http://id.example/keys", "ftp://127.0.0.1/k", "https://"] {
            assert!(url.parse::<JwksPlace>().is_err(), "{url}");
        }
    }

    #[test]
    fn a_set_has_public_keys_for_signatures_only() {
        let set = |keys: &str| parse(format!("{{\"keys\": [{keys}]}}").as_bytes());
        let ed = r#"{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", "kid": "e"}"#;
        let of_unknown_kind = r#"{"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA"}"#;
        let secret = r#"{"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0", "alg": "HS256"}"#;
        let for_encryption = ed.replace("\"kid\"", "\"use\": \"enc\", \"kid\"");
        let keys = set(&[ed, of_unknown_kind, secret, "7", &for_encryption].join(", ")).unwrap();
        assert_eq!((keys.len(), keys[0].algorithm, keys[0].id.as_deref()), (1, Algorithm::EdDsa, Some("e")));
        for none in ["", secret, of_unknown_kind, &for_encryption] {
            assert!(set(none).is_err(), "{none}");
        }
        assert!(parse(b"<html>").is_err());
    }
}
