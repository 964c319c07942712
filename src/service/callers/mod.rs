//! Authentication: API keys and tokens, and the callers that they identify.
//!
//! No key is required as long as none was configured or ever made. From then on every request needs one. A stored key
//! is found by its id, which is no secret, and its hash is compared in constant time; an unknown id costs the same
//! work. What the store says about a key is cached for `BELIEVED_FOR`, so that a revocation by another process takes
//! effect within a second.

mod allowed;
mod jwks;
mod jws;
mod jwt;
mod rights;
mod secret;
mod token_rights;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::ensure;
use hearth_domain::{
    Caller, LOCAL, Scope,
    error::{Error, ErrorKind, Result},
};
use parking_lot::Mutex;
use subtle::{Choice, ConstantTimeEq};

pub use self::{
    jwks::{JwksPlace, JwksSettings},
    jwt::{JwtKeys, JwtSettings, SECRET_BYTES_MIN},
    rights::Rights,
    secret::{KeySecret, NewKey, id_of},
};
use self::{jwt::Tokens, token_rights::TokenRights};
use crate::store::{Store, StoreError, StoredKey};

/// Longest key or token, in bytes.
const PRESENTED_BYTES_MAX: usize = 8 * 1024;
/// What to do about a secret that differs from that of the servers that share the store.
pub const OTHER_SECRET: &str = "the API keys in the shared database were made with another secret: give every server, and `hearth keys`, \
                            the same file with --key-secret-file (it is keys.secret in the data directory where the first key was made)";
const BELIEVED_FOR: Duration = Duration::from_millis(800);
/// Keys whose state is cached, attackers' guesses included.
const REMEMBERED_MAX: usize = 4096;
/// The precision at which a key's last use is stored.
const LAST_USED_WITHIN: Duration = Duration::from_secs(60);

/// Which callers are accepted, as configured.
#[derive(Clone, Default)]
pub struct CallerSettings {
    /// The operator's keys, any of which is accepted, in addition to those of the store.
    pub api_keys: Vec<String>,
    pub jwt: Option<JwtSettings>,
    /// The file of the secret that keys are hashed with; `None` is the one in the data directory.
    pub key_secret_file: Option<PathBuf>,
    /// Serve on addresses beyond this machine even if no key is required.
    pub allow_unauthenticated: bool,
}

impl std::fmt::Debug for CallerSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CallerSettings").field("jwt", &self.jwt).finish_non_exhaustive()
    }
}

/// The callers known to a server.
#[derive(Debug)]
pub struct Callers {
    store: Arc<Store>,
    local: Arc<Caller>,
    /// Hashes of the configured keys.
    api_keys: Vec<blake3::Hash>,
    tokens: Option<Tokens>,
    asks: Asks,
    /// The data directory, or the secret's own file.
    secret_place: PathBuf,
    secret: OnceLock<KeySecret>,
    remembered: Mutex<HashMap<String, Remembered>>,
    token_rights: Arc<TokenRights>,
}

/// Whether keys are required. Once they are, they always are.
#[derive(Debug)]
struct Asks {
    yes: AtomicBool,
    looked: Mutex<Instant>,
}

#[derive(Clone, Debug)]
struct Remembered {
    read_at: Instant,
    key: Arc<KnownKey>,
}

/// What the store says about a key id.
#[derive(Debug)]
struct KnownKey {
    /// `None`: there is no such key.
    found: Option<(StoredKey, Arc<Caller>)>,
    /// Its use has not been recorded yet.
    is_news: AtomicBool,
}

impl Callers {
    /// Accepts the store's keys alone.
    pub fn new(store: Arc<Store>) -> Arc<Self> {
        let secret_place = store.directory().to_owned();
        Arc::new(Self::of(store, &[], None, secret_place))
    }

    /// # Errors
    /// If the key file for tokens cannot be used, or servers that share the store hash keys with another secret.
    pub fn with_settings(store: Arc<Store>, settings: &CallerSettings) -> anyhow::Result<Arc<Self>> {
        let tokens = settings.jwt.clone().map(Tokens::new).transpose()?;
        let secret_place = settings.key_secret_file.clone().unwrap_or_else(|| store.directory().to_owned());
        if let Some(cluster) = store.cluster() {
            if KeySecret::is_made(&secret_place) {
                let check = KeySecret::load(&secret_place)?.check_value();
                ensure!(cluster.agrees_on_secret(&check)?, OTHER_SECRET);
            } else {
                ensure!(!store.has_keys()?, OTHER_SECRET);
            }
        }
        Ok(Arc::new(Self::of(store, &settings.api_keys, tokens, secret_place)))
    }

    fn of(store: Arc<Store>, api_keys: &[String], tokens: Option<Tokens>, secret_place: PathBuf) -> Self {
        // If the store cannot tell, it is safer to require keys.
        let has_keys = || KeySecret::is_made(&secret_place) || store.has_keys().unwrap_or(true);
        let yes = !api_keys.is_empty() || tokens.is_some() || has_keys();
        Self {
            token_rights: TokenRights::new(store.clone()),
            store,
            local: Arc::new(Caller::local()),
            api_keys: api_keys.iter().map(|key| blake3::hash(key.as_bytes())).collect(),
            tokens,
            asks: Asks { yes: AtomicBool::new(yes), looked: Mutex::new(Instant::now()) },
            secret_place,
            secret: OnceLock::new(),
            remembered: Mutex::default(),
        }
    }

    /// Stores what is known of callers and not stored yet. Blocks.
    pub fn flush(&self) {
        self.token_rights.flush();
    }

    /// Whether a caller must present a key: not until one was configured or made, even by another process.
    pub fn asks_for_keys(&self) -> bool {
        if self.asks.yes.load(Relaxed) {
            return true;
        }
        let mut looked = self.asks.looked.lock();
        if looked.elapsed() < BELIEVED_FOR {
            return false;
        }
        *looked = Instant::now();
        // The secret is created before the first key; where servers share the store, perhaps on another machine.
        let yes =
            KeySecret::is_made(&self.secret_place) || self.store.cluster().is_some_and(|cluster| cluster.has_keys());
        self.asks.yes.fetch_or(yes, Relaxed);
        yes
    }

    /// The caller identified by the presented key or token.
    ///
    /// # Errors
    /// 401 if one is required and this one is not valid; 503 if tokens cannot be checked now.
    pub async fn authenticate(&self, presented: Option<&str>) -> Result<Arc<Caller>> {
        if !self.asks_for_keys() {
            return Ok(self.local.clone());
        }
        let presented =
            presented.ok_or_else(|| refused("No API key provided. Send it as `Authorization: Bearer KEY`."))?;
        if presented.len() > PRESENTED_BYTES_MAX {
            return Err(refused(format!("The key or token is longer than {PRESENTED_BYTES_MAX} bytes.")));
        }
        if let Some(caller) = self.configured(presented) {
            return Ok(Arc::new(caller));
        }
        if let Some(id) = id_of(presented) {
            return self.stored(id, presented).await;
        }
        match &self.tokens {
            Some(tokens) if jwt::is_token(presented) => {
                let caller = Arc::new(tokens.caller(presented).await?);
                self.token_rights.keep(&caller);
                Ok(caller)
            }
            _ => Err(incorrect()),
        }
    }

    /// Compares hashes, and with every key, so that the time taken reveals neither a key's length nor its position.
    fn configured(&self, presented: &str) -> Option<Caller> {
        let hash = blake3::hash(presented.as_bytes());
        let mut found = Choice::from(0);
        for key in &self.api_keys {
            found |= key.as_bytes().ct_eq(hash.as_bytes());
        }
        let key_id = || format!("key-{}", &hash.to_hex()[..16]);
        bool::from(found).then(|| Caller { key_id: Some(key_id()), ..Caller::local() })
    }

    async fn stored(&self, id: &str, presented: &str) -> Result<Arc<Caller>> {
        let known = self.known(id).await?;
        // Without a secret no key has been made yet.
        let Some(secret) = self.secret.get() else { return Err(incorrect()) };
        let hash = secret.hash(presented);
        let expected = known.found.as_ref().map_or([0; 32], |(key, _)| key.hash);
        let is_right = bool::from(expected.ct_eq(&hash));
        let Some((key, caller)) = known.found.as_ref().filter(|_| is_right) else { return Err(incorrect()) };
        if key.revoked_ms.is_some() {
            return Err(refused("This API key has been revoked."));
        }
        if !key.is_valid() {
            return Err(refused("This API key has expired."));
        }
        if known.is_news.swap(false, Relaxed) {
            let (store, id) = (self.store.clone(), key.id.clone());
            tokio::task::spawn_blocking(move || {
                if let Err(error) = store.key_was_used(id) {
                    tracing::warn!(%error, "when a key was last used could not be stored");
                }
            });
        }
        Ok(caller.clone())
    }

    async fn known(&self, id: &str) -> Result<Arc<KnownKey>> {
        if let Some(known) = self.remembered.lock().get(id)
            && known.read_at.elapsed() < BELIEVED_FOR
        {
            return Ok(known.key.clone());
        }
        let read_at = Instant::now();
        let (store, wanted) = (self.store.clone(), id.to_owned());
        let (needs_secret, secret_place) = (self.secret.get().is_none(), self.secret_place.clone());
        let (found, secret) = tokio::task::spawn_blocking(move || {
            let found = store.key(&wanted)?;
            let needs_secret = needs_secret && (found.is_some() || KeySecret::is_made(&secret_place));
            let secret = needs_secret.then(|| KeySecret::load(&secret_place)).transpose().map_err(Error::internal)?;
            Ok::<_, Error>((found, secret))
        })
        .await
        .map_err(Error::internal)??;
        if let Some(secret) = secret {
            // Another request may have set it first, to the same secret.
            let _ = self.secret.set(secret);
        }
        let is_long_ago =
            |used: i64| jiff::Timestamp::now().as_millisecond() - used > LAST_USED_WITHIN.as_millis() as i64;
        let is_news = found.as_ref().is_some_and(|key| key.last_used_ms.is_none_or(is_long_ago));
        let found = found.map(caller_of).transpose()?;
        let key = Arc::new(KnownKey { found, is_news: AtomicBool::new(is_news) });
        let mut remembered = self.remembered.lock();
        if remembered.len() >= REMEMBERED_MAX {
            remembered.retain(|_, known| known.read_at.elapsed() < BELIEVED_FOR);
        }
        remember(&mut remembered, id.to_owned(), Remembered { read_at, key: key.clone() });
        Ok(key)
    }

    /// The caller of this id, for background work that outlives its request: with the rights of its best key or, if it
    /// presents tokens, of the last one. A caller without any valid key may do nothing, and nothing of it leaves this
    /// machine; the latter also holds if only one of its keys says so.
    pub async fn of_id(&self, id: &str) -> Arc<Caller> {
        let last = self.token_rights.last(id);
        // Where servers share the store, another one may have seen a later token; what must stay here stays here.
        if let Some(caller) = last.clone().filter(|caller| self.store.cluster().is_none() || caller.local_only) {
            return caller;
        }
        let (store, wanted) = (self.store.clone(), id.to_owned());
        let presents_tokens = self.tokens.as_ref().is_some_and(|tokens| tokens.has_caller(id));
        let read = tokio::task::spawn_blocking(move || {
            let token_rights = if presents_tokens { store.token_rights(&wanted)? } else { None };
            Ok((store.keys_of(&wanted)?, token_rights))
        });
        let (keys, token_rights) = match read.await {
            Ok(Ok(read)) => read,
            Ok(Err::<_, StoreError>(error)) => {
                tracing::error!(caller = id, %error, "the keys of a caller cannot be read; it may do nothing");
                return Arc::new(powerless(id));
            }
            Err(_panicked) => return Arc::new(powerless(id)),
        };
        let rights: Result<Vec<Caller>> = keys
            .into_iter()
            .filter(StoredKey::is_valid)
            .map(|key| caller_of(key).map(|(_, caller)| Caller::clone(&caller)))
            .collect();
        let callers = rights.unwrap_or_else(|error| {
            tracing::error!(caller = id, ?error, "what a caller's keys allow cannot be read; it may do nothing");
            Vec::new()
        });
        let is_local_only = callers.iter().any(|caller| caller.local_only);
        // Among keys with equal rights the newest, which is the first.
        let best = callers.into_iter().rev().max_by_key(|caller| caller.scopes.len());
        if id == LOCAL {
            // The operator needs no key in the store.
            return Arc::new(Caller { local_only: is_local_only, ..Caller::local() });
        }
        Arc::new(match best {
            Some(caller) => Caller { local_only: is_local_only, key_id: None, ..caller },
            None if presents_tokens => match token_rights.map(|rights| Rights::from_json(&rights)) {
                Some(Ok(rights)) => rights.caller(id.to_owned(), None),
                Some(Err(wrong)) => {
                    tracing::error!(
                        caller = id,
                        wrong,
                        "the rights of a caller's last token cannot be read; it may do nothing"
                    );
                    powerless(id)
                }
                // It is about to be stored.
                None => return last.unwrap_or_else(|| Arc::new(unseen(id))),
            },
            None => powerless(id),
        })
    }
}

/// The caller of a token whose rights were not stored: it was admitted when it asked, and its other rights are unknown.
fn unseen(id: &str) -> Caller {
    let scopes = [Scope::Chat, Scope::Embed, Scope::Documents].into();
    Rights { scopes, local_only: true, ..Rights::default() }.caller(id.to_owned(), None)
}

fn powerless(id: &str) -> Caller {
    Rights { local_only: true, ..Rights::default() }.caller(id.to_owned(), None)
}

fn caller_of(key: StoredKey) -> Result<(StoredKey, Arc<Caller>)> {
    let rights = Rights::from_json(&key.rights)
        .map_err(|wrong| Error::internal(anyhow::anyhow!("the rights of the key {}: {wrong}", key.id)))?;
    let caller = rights.caller(key.caller.clone(), Some(key.id.clone()));
    Ok((key, Arc::new(caller)))
}

/// Keeps the map small; forgotten entries are looked up again.
fn remember<T>(map: &mut HashMap<String, T>, key: String, value: T) {
    if map.len() >= REMEMBERED_MAX && !map.contains_key(&key) {
        map.clear();
    }
    map.insert(key, value);
}

fn refused(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unauthorized, message)
}

fn incorrect() -> Error {
    refused("Incorrect API key provided. `hearth keys create` makes one.")
}
