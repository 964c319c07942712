//! Who calls: keys and tokens, and what they come to.
//!
//! Nobody is asked for a key as long as none was configured or ever made. From then on everybody is. A stored key is
//! found by its id, which is no secret, and its hash compared in constant time; an id that is not there costs the same
//! work. What the store said of a key is believed for `BELIEVED_FOR`, so that a revocation by another process holds
//! within a second.

mod allowed;
mod jwks;
mod jws;
mod jwt;
mod rights;
mod secret;

use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use hearth_domain::{
    Caller, LOCAL, Scope,
    error::{Error, ErrorKind, Result},
};
use parking_lot::Mutex;
use subtle::{Choice, ConstantTimeEq};

use self::jwt::Tokens;
pub use self::{
    jwks::{JwksPlace, JwksSettings},
    jwt::{JwtKeys, JwtSettings, SECRET_BYTES_MIN},
    rights::Rights,
    secret::{KeySecret, NewKey, id_of},
};
use crate::store::{Store, StoredKey};

/// Longest key or token, in bytes.
const PRESENTED_BYTES_MAX: usize = 8 * 1024;
const BELIEVED_FOR: Duration = Duration::from_millis(800);
/// Keys whose state is remembered; those of attackers count, too.
const REMEMBERED_MAX: usize = 4096;
/// When a key was last used is stored this exactly.
const LAST_USED_WITHIN: Duration = Duration::from_secs(60);

/// Who may call, as configured.
#[derive(Clone, Default)]
pub struct CallerSettings {
    /// Keys of whoever runs the server, any of which is accepted, beside those of the store.
    pub api_keys: Vec<String>,
    pub jwt: Option<JwtSettings>,
    /// Serve on other addresses than this machine's own though nobody is asked for a key.
    pub allow_unauthenticated: bool,
}

impl std::fmt::Debug for CallerSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CallerSettings").field("jwt", &self.jwt).finish_non_exhaustive()
    }
}

/// The callers that a server knows.
#[derive(Debug)]
pub struct Callers {
    store: Arc<Store>,
    local: Arc<Caller>,
    /// Hashes of the configured keys.
    api_keys: Vec<blake3::Hash>,
    tokens: Option<Tokens>,
    asks: Asks,
    secret: OnceLock<KeySecret>,
    remembered: Mutex<HashMap<String, Remembered>>,
    /// What tokens said last of their callers, for work in their names that goes on without them.
    by_token: Mutex<HashMap<String, Arc<Caller>>>,
}

/// Whether keys are asked for. Once they are, they always are.
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

/// What the store says of a key's id.
#[derive(Debug)]
struct KnownKey {
    /// `None`: there is no such key.
    found: Option<(StoredKey, Arc<Caller>)>,
    /// Its use is still to be written down.
    is_news: AtomicBool,
}

impl Callers {
    /// Those of the store alone.
    pub fn new(store: Arc<Store>) -> Arc<Self> {
        Arc::new(Self::of(store, &[], None))
    }

    /// # Errors
    /// If the file that tokens are checked with cannot be used.
    pub fn with_settings(store: Arc<Store>, settings: &CallerSettings) -> anyhow::Result<Arc<Self>> {
        let tokens = settings.jwt.clone().map(Tokens::new).transpose()?;
        Ok(Arc::new(Self::of(store, &settings.api_keys, tokens)))
    }

    fn of(store: Arc<Store>, api_keys: &[String], tokens: Option<Tokens>) -> Self {
        // If the store does not say, it is safer to ask.
        let has_keys = || KeySecret::is_made(store.directory()) || store.has_keys().unwrap_or(true);
        let yes = !api_keys.is_empty() || tokens.is_some() || has_keys();
        Self {
            store,
            local: Arc::new(Caller::local()),
            api_keys: api_keys.iter().map(|key| blake3::hash(key.as_bytes())).collect(),
            tokens,
            asks: Asks { yes: AtomicBool::new(yes), looked: Mutex::new(Instant::now()) },
            secret: OnceLock::new(),
            remembered: Mutex::default(),
            by_token: Mutex::default(),
        }
    }

    /// Whether a caller must show a key: not before one was configured or made, be it by another process.
    pub fn asks_for_keys(&self) -> bool {
        if self.asks.yes.load(Relaxed) {
            return true;
        }
        let mut looked = self.asks.looked.lock();
        if looked.elapsed() < BELIEVED_FOR {
            return false;
        }
        *looked = Instant::now();
        // The first key's secret is made before the key.
        let yes = KeySecret::is_made(self.store.directory());
        self.asks.yes.fetch_or(yes, Relaxed);
        yes
    }

    /// Who calls, by the key or token that was shown.
    ///
    /// # Errors
    /// 401 if one is asked for and this is none that holds; 503 if tokens cannot be checked now.
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
                remember(&mut self.by_token.lock(), caller.id.clone(), caller.clone());
                Ok(caller)
            }
            _ => Err(incorrect()),
        }
    }

    /// Compares hashes, and with every key, so that the time taken tells neither a key's length nor its place.
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
        // Without one no key was made yet.
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
        let needs_secret = self.secret.get().is_none();
        let (found, secret) = tokio::task::spawn_blocking(move || {
            let found = store.key(&wanted)?;
            let needs_secret = needs_secret && (found.is_some() || KeySecret::is_made(store.directory()));
            let secret = needs_secret.then(|| KeySecret::load(store.directory())).transpose()?;
            anyhow::Ok((found, secret))
        })
        .await
        .map_err(Error::internal)?
        .map_err(Error::internal)?;
        if let Some(secret) = secret {
            // Another request may have been first, with the same.
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

    /// The caller of this id, for work in its name that goes on after its request: what its best key allows. One who has
    /// no key any more may do nothing, and nothing of it leaves this machine; nor if only one of its keys says so.
    pub async fn of_id(&self, id: &str) -> Arc<Caller> {
        if let Some(caller) = self.by_token.lock().get(id) {
            return caller.clone();
        }
        let (store, wanted) = (self.store.clone(), id.to_owned());
        let read = tokio::task::spawn_blocking(move || store.keys_of(&wanted)).await;
        let keys = match read {
            Ok(Ok(keys)) => keys,
            Ok(Err(error)) => {
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
        // Of those that allow as much the newest, which is the first.
        let best = callers.into_iter().rev().max_by_key(|caller| caller.scopes.len());
        if id == LOCAL {
            // Whoever runs the server needs no key of the store.
            return Arc::new(Caller { local_only: is_local_only, ..Caller::local() });
        }
        Arc::new(match best {
            Some(caller) => Caller { local_only: is_local_only, key_id: None, ..caller },
            None if self.tokens.as_ref().is_some_and(|tokens| tokens.has_caller(id)) => unseen(id),
            None => powerless(id),
        })
    }
}

/// The caller of a token that was not shown since the server began: it was let in when it asked, and what it was allowed
/// beyond that is not known.
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

/// Keeps the map small; whoever is forgotten is asked for again.
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
