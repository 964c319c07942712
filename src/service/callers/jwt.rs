//! Authenticates callers by token: JWTs (RFC 7519) signed by an issuer, checked as RFC 8725 advises.
//!
//! A token's `alg` only selects among the keys for that algorithm: the algorithm is a property of the key (see
//! [`super::jws`]). So there is no `none`, and a public key cannot be used as a shared secret. A token must expire,
//! must match the audience and issuer where those are configured, and its claims about rights must be understood
//! completely.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use hearth_domain::{Caller, Scope, error::Result};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    jwks::{Jwks, JwksSettings, KeyQuery},
    jws::{Algorithm, VerifyingKey},
    refused,
    rights::{Rights, limits_of},
};

/// RFC 7518, section 3.2: at least as long as the hash.
pub const SECRET_BYTES_MIN: usize = 32;
/// Longest `sub`, in bytes.
const SUBJECT_BYTES_MAX: usize = 256;

/// How tokens are checked.
#[derive(Clone, Debug)]
pub struct JwtSettings {
    pub keys: JwtKeys,
    /// A token's audience must be one of these. Empty: a token must name no audience.
    pub audiences: Vec<String>,
    /// A token's issuer must be one of these. Empty: any issuer that has the key.
    pub issuers: Vec<String>,
    /// The prefix of a caller's id; the token's `sub` follows. Contains a character that no other caller's id has.
    pub caller_prefix: String,
    /// Tolerated clock skew.
    pub leeway: Duration,
}

#[derive(Clone)]
pub enum JwtKeys {
    /// For HS256, at least [`SECRET_BYTES_MIN`] long.
    Secret(Vec<u8>),
    Public(JwksSettings),
}

impl std::fmt::Debug for JwtKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Secret(_) => f.write_str("Secret(..)"),
            Self::Public(settings) => f.debug_tuple("Public").field(settings).finish(),
        }
    }
}

/// Whether it has a token's form: three parts separated by dots.
pub(super) fn is_token(presented: &str) -> bool {
    presented.bytes().filter(|byte| *byte == b'.').count() == 2
}

#[derive(Deserialize)]
struct Head {
    alg: String,
    kid: Option<String>,
    /// Extensions that must be understood; none is.
    crit: Option<Value>,
}

/// Registered claims are checked one by one, so that the error can say which is wrong.
#[derive(Deserialize)]
struct Claims {
    sub: Option<Value>,
    exp: Option<Value>,
    nbf: Option<Value>,
    aud: Option<Value>,
    iss: Option<Value>,
    jti: Option<String>,
    scope: Option<Words>,
    scopes: Option<Words>,
    models: Option<Vec<String>>,
    local_only: Option<bool>,
    policy: Option<String>,
    limits: Option<Map<String, Value>>,
}

/// `"a b"` as in RFC 8693, or `["a", "b"]` as other issuers write it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    Text(String),
    List(Vec<String>),
}

impl Words {
    /// The scopes that this server knows: an issuer may list others, too.
    fn scopes(&self) -> BTreeSet<Scope> {
        match self {
            Self::Text(text) => text.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect(),
            Self::List(words) => words.iter().filter_map(|word| word.parse().ok()).collect(),
        }
    }
}

#[derive(Debug)]
enum Keys {
    Secret([VerifyingKey; 1]),
    Public(Jwks),
}

/// Checks tokens.
#[derive(Debug)]
pub(super) struct Tokens {
    keys: Keys,
    settings: JwtSettings,
}

impl Tokens {
    /// # Errors
    /// If the key file cannot be used.
    pub(super) fn new(settings: JwtSettings) -> anyhow::Result<Self> {
        let keys = match &settings.keys {
            JwtKeys::Secret(secret) => Keys::Secret([VerifyingKey::of_secret(secret)]),
            JwtKeys::Public(jwks) => Keys::Public(Jwks::new(jwks.clone())?),
        };
        Ok(Self { keys, settings })
    }

    /// Whether an id belongs to a token's caller.
    pub(super) fn has_caller(&self, id: &str) -> bool {
        id.starts_with(&self.settings.caller_prefix)
    }

    /// The caller that a token identifies.
    ///
    /// # Errors
    /// 401 if it is invalid; 503 if there are no keys to check it with.
    pub(super) async fn caller(&self, token: &str) -> Result<Caller> {
        let token = Parts::of(token).ok_or_else(|| refused("The token is malformed."))?;
        if token.head.crit.is_some() {
            return Err(refused("The token demands extensions (`crit`) that this server does not have."));
        }
        let algorithm = Algorithm::named(&token.head.alg)
            .ok_or_else(|| refused("The token is signed by an algorithm that is not accepted (`alg`)."))?;
        match &self.keys {
            // A single key matches whatever key id the token names.
            Keys::Secret([key]) if key.algorithm != algorithm => {
                return Err(refused("The token is signed by an algorithm that is not accepted (`alg`)."));
            }
            Keys::Secret(keys) => check_signature(&token, keys)?,
            Keys::Public(jwks) => {
                let wanted = KeyQuery { id: token.head.kid.as_deref(), algorithm };
                let keys = jwks.keys(wanted).await?;
                let mut keys = keys.iter().filter(|key| wanted.is(key)).peekable();
                if keys.peek().is_none() {
                    return Err(refused("The token is signed with a key that is not known (`kid`, `alg`)."));
                }
                check_signature(&token, keys)?;
            }
        }
        let claims: Claims = serde_json::from_slice(&token.claims)
            .map_err(|error| refused(format!("The token's claims are not understood: {error}.")))?;
        self.check(&claims)?;
        self.named(claims).map_err(|wrong| refused(format!("The token's claims are not understood: {wrong}.")))
    }

    /// Checks the registered claims against the clock and the configuration (RFC 7519, section 4.1).
    fn check(&self, claims: &Claims) -> Result<()> {
        let JwtSettings { audiences, issuers, leeway, .. } = &self.settings;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let leeway = leeway.as_secs_f64();
        let lacks = |claim: &str| refused(format!("The token lacks `{claim}`."));
        let malformed = |claim: &str| refused(format!("The token's `{claim}` is malformed."));
        let expires = claims.exp.as_ref().ok_or_else(|| lacks("exp"))?;
        if expires.as_f64().ok_or_else(|| malformed("exp"))? + leeway <= now {
            return Err(refused("The token has expired."));
        }
        if let Some(begins) = &claims.nbf
            && begins.as_f64().ok_or_else(|| malformed("nbf"))? > now + leeway
        {
            return Err(refused("The token is not valid yet (`nbf`)."));
        }
        match &claims.aud {
            None if audiences.is_empty() => {}
            None => return Err(lacks("aud")),
            // A server without a configured audience is not the audience of any token.
            Some(audience) => {
                let named = words(audience).ok_or_else(|| malformed("aud"))?;
                if !named.iter().any(|name| audiences.iter().any(|own| own == name)) {
                    return Err(refused("The token is not for this server (`aud`)."));
                }
            }
        }
        if !issuers.is_empty() {
            let issuer = claims.iss.as_ref().ok_or_else(|| lacks("iss"))?;
            let issuer = issuer.as_str().ok_or_else(|| malformed("iss"))?;
            if !issuers.iter().any(|trusted| trusted == issuer) {
                return Err(refused("The token is not from an issuer that this server trusts (`iss`)."));
            }
        }
        Ok(())
    }

    fn named(&self, claims: Claims) -> Result<Caller, String> {
        let Claims { iss, sub, jti, scope, scopes, models, local_only, policy, limits, .. } = claims;
        let sub = sub.as_ref().and_then(Value::as_str).unwrap_or_default();
        if sub.is_empty() || sub.len() > SUBJECT_BYTES_MAX || sub.chars().any(char::is_control) {
            return Err(format!("`sub` must have 1 to {SUBJECT_BYTES_MAX} bytes and no control characters"));
        }
        let rights = Rights {
            scopes: [scope, scopes].iter().flatten().flat_map(Words::scopes).collect(),
            models,
            local_only: local_only.unwrap_or(false),
            policy: policy.map(|policy| policy.parse()).transpose()?,
            limits: limits.map(limits_of).transpose()?.unwrap_or_default(),
        };
        let token_id = jti.filter(|id| id.len() <= SUBJECT_BYTES_MAX && !id.chars().any(char::is_control));
        // Two issuers may use the same subject. Callers of the first issuer keep their ids when another is added; those
        // of the others have the issuer in them, which a subject of the first must not imitate.
        let others = self.settings.issuers.get(1..).unwrap_or_default();
        if others.iter().any(|other| sub.starts_with(&format!("{other}#"))) {
            return Err("`sub` begins as the callers of another issuer do".to_owned());
        }
        let other = others.iter().find(|other| iss.as_ref().and_then(Value::as_str) == Some(other));
        let issuer = other.map(|other| format!("{other}#")).unwrap_or_default();
        Ok(rights.caller(format!("{}{issuer}{sub}", self.settings.caller_prefix), token_id))
    }
}

/// A parsed token, not verified yet.
struct Parts<'a> {
    head: Head,
    /// The signed bytes.
    message: &'a [u8],
    signature: Vec<u8>,
    /// JSON.
    claims: Vec<u8>,
}

impl<'a> Parts<'a> {
    fn of(token: &'a str) -> Option<Self> {
        let (message, signature) = token.rsplit_once('.')?;
        let (head, claims) = message.split_once('.')?;
        let bytes = |part: &str| BASE64_URL_SAFE_NO_PAD.decode(part).ok();
        Some(Self {
            head: serde_json::from_slice(&bytes(head)?).ok()?,
            message: message.as_bytes(),
            signature: bytes(signature)?,
            claims: bytes(claims)?,
        })
    }
}

fn check_signature<'k>(token: &Parts<'_>, keys: impl IntoIterator<Item = &'k VerifyingKey>) -> Result<()> {
    let is_right = keys.into_iter().any(|key| key.is_signature(token.message, &token.signature));
    if is_right { Ok(()) } else { Err(refused("The token's signature is wrong.")) }
}

/// One string, or a list of strings.
fn words(value: &Value) -> Option<Vec<&str>> {
    match value {
        Value::String(word) => Some(vec![word]),
        Value::Array(words) => words.iter().map(Value::as_str).collect(),
        _ => None,
    }
}
