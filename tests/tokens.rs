//! Tokens (JWT) through the router: those that hold, and every known way to forge one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use aws_lc_rs::{
    encoding::{AsDer, PublicKeyX509Der},
    rand::SystemRandom,
    rsa::KeySize,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair},
};
use axum::{Json, Router, http::StatusCode, routing::get};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use hearth::service::callers::{CallerSettings, Callers, JwksSettings, JwtKeys, JwtSettings};
use hearth_domain::{RoutingPolicy, Scope};
use hmac::{Hmac, KeyInit, Mac};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Sha256, Sha384};

use crate::support::scripted_server::{Answer, ScriptedServer};

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const CHAT: &str = "/v1/chat/completions";

fn settings(keys: JwtKeys) -> JwtSettings {
    JwtSettings {
        keys,
        audiences: vec!["hearth".to_owned(), "other-name".to_owned()],
        issuers: vec!["https://id.example".to_owned()],
        caller_prefix: "jwt:".to_owned(),
        leeway: Duration::from_secs(5),
    }
}

fn server(keys: JwtKeys) -> ScriptedServer {
    ScriptedServer::with_callers(CallerSettings { jwt: Some(settings(keys)), ..CallerSettings::default() })
}

fn with_secret() -> ScriptedServer {
    server(JwtKeys::Secret(SECRET.to_vec()))
}

/// Good claims, and what is different about them; `null` takes one away.
fn claims(changes: Value) -> Value {
    let mut claims = json!({
        "sub": "alice",
        "aud": "hearth",
        "iss": "https://id.example",
        "exp": get_current_timestamp() + 600,
        "scope": "openid chat embed",
    });
    for (key, value) in changes.as_object().expect("an object") {
        claims[key] = value.clone();
    }
    claims.as_object_mut().expect("an object").retain(|_, value| !value.is_null());
    claims
}

fn part(json: &Value) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(json.to_string())
}

/// A token whose signature is what `sign` makes of it.
fn token(head: &Value, claims: &Value, sign: impl FnOnce(&[u8]) -> String) -> String {
    let message = format!("{}.{}", part(head), part(claims));
    let signature = sign(message.as_bytes());
    format!("{message}.{signature}")
}

fn hs256(secret: &[u8], message: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("a key of any length");
    mac.update(message);
    BASE64_URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes())
}

fn get_current_timestamp() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs()
}

fn signed(changes: Value) -> String {
    token(&json!({"alg": "HS256", "typ": "JWT"}), &claims(changes), |message| hs256(SECRET, message))
}

async fn ask(server: &ScriptedServer, token: &str) -> Answer {
    let body = json!({"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]});
    server.with_key(token, CHAT, Some(body)).await
}

async fn refused(server: &ScriptedServer, token: &str, word: &str) {
    let answer = ask(server, token).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{word}: {}", answer.text());
    assert_eq!(answer.error()["code"], "invalid_api_key");
    assert!(answer.text().contains(word), "{word}: {}", answer.text());
}

#[tokio::test]
async fn two_issuers_subjects_of_one_name_are_two_callers() {
    let jwt = JwtSettings {
        issuers: vec!["https://id.example".to_owned(), "https://other.example".to_owned()],
        ..settings(JwtKeys::Secret(SECRET.to_vec()))
    };
    let server = ScriptedServer::with_callers(CallerSettings { jwt: Some(jwt), ..CallerSettings::default() });
    let caller = async |changes: Value| {
        server.callers.authenticate(Some(&signed(changes))).await.expect("a good token").id.clone()
    };
    let (first, other) = (caller(json!({})).await, caller(json!({"iss": "https://other.example"})).await);
    assert_eq!((&first[..], &other[..]), ("jwt:alice", "jwt:https://other.example#alice"));
    // The first issuer's callers keep their ids, and none of them can take another's.
    refused(&server, &signed(json!({"sub": "https://other.example#alice"})), "sub").await;
}

#[tokio::test]
async fn a_token_says_who_calls_and_what_is_allowed() {
    let server = with_secret();
    let good = signed(json!({}));
    assert_eq!(ask(&server, &good).await.status, StatusCode::OK);
    let whole = signed(json!({
        "jti": "t1", "scope": null, "scopes": ["chat", "admin", "profile"], "aud": ["x", "other-name"],
        "nbf": get_current_timestamp() - 1, "models": ["tiny"], "local_only": true, "policy": "local-first",
        "limits": {"requests_per_minute": 5, "daily_micro_usd": 1000, "monthly_compute_seconds": 60},
    }));
    let caller = server.callers.authenticate(Some(&whole)).await.unwrap();
    assert_eq!((&caller.id[..], caller.key_id.as_deref()), ("jwt:alice", Some("t1")));
    assert_eq!(caller.scopes, [Scope::Chat, Scope::Admin].into());
    assert_eq!(caller.allowed_models.as_deref(), Some(&["tiny".to_owned()][..]));
    assert_eq!((caller.local_only, caller.policy), (true, Some(RoutingPolicy::LocalFirst)));
    assert_eq!((caller.limits.requests_per_minute, caller.limits.daily.micro_usd), (Some(5), Some(1000)));
    assert_eq!(caller.limits.monthly.compute, Some(Duration::from_secs(60)));
    // What goes on in its name has what it was allowed last, after a restart as well.
    assert_eq!(server.callers.of_id("jwt:alice").await.scopes, caller.scopes);
    let later = CallerSettings { jwt: Some(settings(JwtKeys::Secret(SECRET.to_vec()))), ..CallerSettings::default() };
    let later = Callers::with_settings(server.ledger.store().clone(), &later).expect("a server that begins");
    let stored = async {
        loop {
            let alice = later.of_id("jwt:alice").await;
            if alice.scopes == caller.scopes {
                return alice;
            }
            tokio::task::yield_now().await;
        }
    };
    let alice = tokio::time::timeout(Duration::from_secs(30), stored).await.expect("the rights are stored");
    assert_eq!((&alice.id[..], alice.key_id.as_deref()), ("jwt:alice", None));
    assert_eq!((alice.local_only, alice.policy, &alice.allowed_models), (true, caller.policy, &caller.allowed_models));
    assert_eq!(alice.limits, caller.limits);
    let unseen = server.callers.of_id("jwt:bob").await;
    assert!(unseen.local_only && unseen.scopes.contains(&Scope::Chat) && !unseen.scopes.contains(&Scope::Admin));
    // Scopes are held against routes like those of keys.
    let embeds = signed(json!({"scope": "embed"}));
    assert_eq!(ask(&server, &embeds).await.status, StatusCode::FORBIDDEN);
    assert_eq!(ask(&server, &signed(json!({"scope": null}))).await.status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn what_a_token_claims_must_hold_and_be_understood() {
    let server = with_secret();
    let now = get_current_timestamp();
    for (changes, word) in [
        (json!({"exp": now - 60}), "expired"),
        (json!({"exp": null}), "exp"),
        (json!({"exp": "tomorrow"}), "exp"),
        (json!({"exp": 0}), "expired"),
        (json!({"nbf": now + 60}), "not valid yet"),
        (json!({"nbf": "now"}), "nbf"),
        (json!({"aud": "elsewhere"}), "aud"),
        (json!({"aud": ["elsewhere"]}), "aud"),
        (json!({"aud": null}), "aud"),
        (json!({"aud": 7}), "aud"),
        (json!({"iss": "https://evil.example"}), "iss"),
        (json!({"iss": null}), "iss"),
        (json!({"sub": null}), "sub"),
        (json!({"sub": ""}), "sub"),
        (json!({"sub": 7}), "sub"),
        (json!({"sub": "a\u{0}b"}), "sub"),
        (json!({"sub": "a".repeat(300)}), "sub"),
        (json!({"models": "tiny"}), "not understood"),
        (json!({"local_only": "yes"}), "not understood"),
        (json!({"policy": "cheapest"}), "cheapest"),
        (json!({"limits": {"requests_per_second": 1}}), "requests_per_second"),
        (json!({"limits": {"requests_per_minute": 0}}), "not understood"),
        (json!({"limits": []}), "not understood"),
    ] {
        refused(&server, &signed(changes), word).await;
    }
    // For a server without a name of its own, a token for somebody is for somebody else.
    let nobody = JwtSettings { audiences: Vec::new(), ..settings(JwtKeys::Secret(SECRET.to_vec())) };
    let server = ScriptedServer::with_callers(CallerSettings { jwt: Some(nobody), ..CallerSettings::default() });
    refused(&server, &signed(json!({})), "aud").await;
    assert_eq!(ask(&server, &signed(json!({"aud": null}))).await.status, StatusCode::OK);
}

#[tokio::test]
async fn forged_tokens_are_refused() {
    let server = with_secret();
    let good = signed(json!({}));
    let [head, body, signature] = good.split('.').collect::<Vec<_>>()[..] else { panic!("three parts") };
    for alg in ["none", "None", "NONE", "nOnE", "", "HS257"] {
        for signature in ["", signature] {
            let forged = token(&json!({"alg": alg}), &claims(json!({})), |_| signature.to_owned());
            refused(&server, &forged, "alg").await;
        }
    }
    // Another algorithm of the same family is not the key's.
    let hs384 = |message: &[u8]| {
        let mut mac = Hmac::<Sha384>::new_from_slice(SECRET).unwrap();
        mac.update(message);
        BASE64_URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes())
    };
    refused(&server, &token(&json!({"alg": "HS384"}), &claims(json!({})), hs384), "alg").await;
    let admin = part(&claims(json!({"scope": "admin chat"})));
    refused(&server, &format!("{head}.{admin}.{signature}"), "signature").await;
    refused(&server, &format!("{head}.{body}."), "signature").await;
    refused(&server, &good[..good.len() - 2], "").await;
    refused(&server, &format!("{good}AA"), "").await;
    let wrong_secret = |message: &[u8]| hs256(b"another secret that is also long enough", message);
    refused(&server, &token(&json!({"alg": "HS256"}), &claims(json!({})), wrong_secret), "signature").await;
    for crit in [json!({"alg": "HS256", "crit": ["exp"], "exp": 1}), json!({"alg": "HS256", "crit": []})] {
        refused(&server, &token(&crit, &claims(json!({})), |message| hs256(SECRET, message)), "crit").await;
    }
    // A header may say twice what it is.
    let twice = BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"none","alg":"HS256"}"#);
    let message = format!("{twice}.{body}");
    refused(&server, &format!("{message}.{}", hs256(SECRET, message.as_bytes())), "malformed").await;
    for broken in ["a.b.c", "..", "....", "e30.e30.", &format!("{head}.{body}"), &format!("{good}.{body}")] {
        refused(&server, broken, "").await;
    }
    // Whoever could sign a token of that size is not read at all.
    let oversized = signed(json!({"padding": "x".repeat(8 * 1024)}));
    refused(&server, &oversized, "8192").await;
}

/// An issuer with public keys.
struct Issuer {
    rsa: RsaKeyPair,
    ec: EcdsaKeyPair,
    ed: Ed25519KeyPair,
}

impl Issuer {
    fn new() -> Self {
        Self {
            rsa: RsaKeyPair::generate(KeySize::Rsa2048).expect("a key"),
            ec: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key"),
            ed: Ed25519KeyPair::generate().expect("a key"),
        }
    }

    fn keys(&self) -> Value {
        let text = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        // A sequence (4 bytes of head) of the modulus (5 bytes of head) and the exponent (2): RFC 8017, section A.1.1.
        let rsa = self.rsa.public_key().as_ref();
        assert_eq!(rsa.len(), 4 + 5 + 256 + 2 + 3);
        let point = self.ec.public_key().as_ref();
        json!({"keys": [
            {
                "kty": "RSA", "kid": "r", "use": "sig",
                "n": text(&rsa[9..265]),
                "e": text(&rsa[267..]),
            },
            {"kty": "EC", "kid": "e", "crv": "P-256", "alg": "ES256", "x": text(&point[1..33]), "y": text(&point[33..])},
            {"kty": "OKP", "kid": "d", "crv": "Ed25519", "x": text(self.ed.public_key().as_ref())},
            // What a set of public keys has of secrets is not for checking tokens.
            {"kty": "oct", "kid": "s", "alg": "HS256", "k": text(SECRET)},
        ]})
    }

    fn signed(&self, algorithm: &str, head: &Value, claims: &Value) -> String {
        token(head, claims, |message| {
            let random = SystemRandom::new();
            BASE64_URL_SAFE_NO_PAD.encode(match algorithm {
                "RS256" => {
                    let mut signature = vec![0; self.rsa.public_modulus_len()];
                    self.rsa.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).expect("a signature");
                    signature
                }
                "ES256" => self.ec.sign(&random, message).expect("a signature").as_ref().to_vec(),
                _ => self.ed.sign(message).as_ref().to_vec(),
            })
        })
    }
}

/// A server with the issuer's keys in a file, which must be kept.
fn with_file(issuer: &Issuer) -> (ScriptedServer, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.json");
    std::fs::write(&file, issuer.keys().to_string()).unwrap();
    let place = file.to_str().unwrap().parse().unwrap();
    (server(JwtKeys::Public(JwksSettings { place, refetch_after: Duration::from_secs(600) })), folder)
}

#[tokio::test]
async fn public_keys_check_the_signatures_of_their_own_algorithm() {
    let issuer = Issuer::new();
    let (server, _file) = with_file(&issuer);
    let good = [("RS256", "r"), ("ES256", "e"), ("EdDSA", "d")];
    for (algorithm, id) in good {
        let alg = algorithm;
        for head in [json!({"alg": alg, "kid": id}), json!({"alg": alg})] {
            let answer = ask(&server, &issuer.signed(algorithm, &head, &claims(json!({})))).await;
            assert_eq!(answer.status, StatusCode::OK, "{head}: {}", answer.text());
        }
        for (head, word) in [
            (json!({"alg": alg, "kid": "unknown"}), "kid"),
            (json!({"alg": alg, "kid": "s"}), "kid"),
            // Signed well, and named wrongly.
            (json!({"alg": "RS512", "kid": id}), "kid"),
            (json!({"alg": "PS256", "kid": id}), "kid"),
            (json!({"alg": "none", "kid": id}), "alg"),
        ] {
            refused(&server, &issuer.signed(algorithm, &head, &claims(json!({}))), word).await;
        }
        for (other, other_id) in good.iter().filter(|(other, _)| *other != algorithm) {
            let head = json!({"alg": other, "kid": other_id});
            refused(&server, &issuer.signed(algorithm, &head, &claims(json!({}))), "").await;
        }
        let expired = claims(json!({"exp": get_current_timestamp() - 60}));
        refused(&server, &issuer.signed(algorithm, &json!({"alg": alg, "kid": id}), &expired), "expired").await;
    }
    // Another issuer's keys are not these, though they have the same names.
    let stranger = Issuer::new();
    let head = json!({"alg": "EdDSA", "kid": "d"});
    refused(&server, &stranger.signed("EdDSA", &head, &claims(json!({}))), "signature").await;
    // A token brings its own key.
    let mut head = json!({"alg": "EdDSA", "kid": "d"});
    head["jwk"] = stranger.keys()["keys"][2].clone();
    head["jku"] = json!("http://127.0.0.1:9/keys");
    refused(&server, &stranger.signed("EdDSA", &head, &claims(json!({}))), "signature").await;
}

/// As libraries that fall for it have the key.
fn pem_of(der: &[u8]) -> String {
    let text = base64::prelude::BASE64_STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("ASCII")).collect();
    format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"))
}

#[tokio::test]
async fn a_public_key_is_no_shared_secret() {
    let issuer = Issuer::new();
    let (server, file) = with_file(&issuer);
    let keys = issuer.keys();
    let text = |value: &Value| value.as_str().unwrap().as_bytes().to_vec();
    let binary = |value: &Value| BASE64_URL_SAFE_NO_PAD.decode(value.as_str().unwrap()).unwrap();
    let rsa: PublicKeyX509Der = issuer.rsa.public_key().as_der().unwrap();
    let pem = pem_of(rsa.as_ref());
    let known_to_all = [
        pem.trim().as_bytes().to_vec(),
        pem.into_bytes(),
        rsa.as_ref().to_vec(),
        issuer.rsa.public_key().as_ref().to_vec(),
        issuer.ec.public_key().as_ref().to_vec(),
        issuer.ed.public_key().as_ref().to_vec(),
        text(&keys["keys"][0]["n"]),
        binary(&keys["keys"][0]["n"]),
        binary(&keys["keys"][2]["x"]),
        keys["keys"][0].to_string().into_bytes(),
        std::fs::read(file.path().join("keys.json")).unwrap(),
        SECRET.to_vec(),
        Vec::new(),
    ];
    for secret in known_to_all {
        for id in [Some("r"), Some("e"), Some("d"), Some("s"), None] {
            let head = json!({"alg": "HS256", "kid": id});
            refused(&server, &token(&head, &claims(json!({})), |message| hs256(&secret, message)), "kid").await;
        }
    }
    // And a shared secret is no public key.
    let by_secret = with_secret();
    let head = json!({"alg": "RS256", "kid": "r"});
    refused(&by_secret, &issuer.signed("RS256", &head, &claims(json!({}))), "alg").await;
}

/// An issuer's address, whose answer can be changed.
async fn serve(keys: Arc<Mutex<Value>>) -> (String, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let router = Router::new().route(
        "/keys",
        get(move || {
            count.fetch_add(1, Relaxed);
            let keys = keys.lock().clone();
            async move { if keys.is_null() { Err(StatusCode::BAD_GATEWAY) } else { Ok(Json(keys)) } }
        }),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, asked)
}

#[tokio::test]
async fn keys_from_an_address_are_kept_and_asked_for_again_when_one_is_not_known() {
    let (old, new) = (Issuer::new(), Issuer::new());
    let renamed = |issuer: &Issuer, id: &str| {
        let mut keys = issuer.keys();
        keys["keys"][2]["kid"] = json!(id);
        keys
    };
    let published = Arc::new(Mutex::new(renamed(&old, "old")));
    let (url, asked) = serve(published.clone()).await;
    let by =
        |issuer: &Issuer, id: &str| issuer.signed("EdDSA", &json!({"alg": "EdDSA", "kid": id}), &claims(json!({})));
    let with = |refetch_after| server(JwtKeys::Public(JwksSettings { place: url.parse().unwrap(), refetch_after }));
    let eager = with(Duration::ZERO);
    let patient = with(Duration::from_secs(600));
    assert_eq!(asked.load(Relaxed), 0, "nobody is asked before there is a token");
    for server in [&eager, &patient] {
        for _ in 0..3 {
            assert_eq!(ask(server, &by(&old, "old")).await.status, StatusCode::OK);
        }
    }
    assert_eq!(asked.load(Relaxed), 2, "once by each");
    *published.lock() = renamed(&new, "new");
    assert_eq!(ask(&eager, &by(&new, "new")).await.status, StatusCode::OK);
    refused(&eager, &by(&old, "old"), "kid").await;
    // Names that nobody knows do not make the issuer work.
    let before = asked.load(Relaxed);
    for number in 0..5 {
        refused(&patient, &by(&new, &format!("made-up-{number}")), "kid").await;
    }
    assert_eq!(asked.load(Relaxed), before);
    assert_eq!(ask(&patient, &by(&old, "old")).await.status, StatusCode::OK);
    // An issuer that has gone leaves the keys that were known.
    *published.lock() = Value::Null;
    refused(&eager, &by(&new, "unknown"), "kid").await;
    assert_eq!(ask(&eager, &by(&new, "new")).await.status, StatusCode::OK);
}

#[tokio::test]
async fn without_its_issuers_keys_a_server_says_that_it_cannot_tell() {
    let published = Arc::new(Mutex::new(Value::Null));
    let (url, _) = serve(published).await;
    let place = url.parse().unwrap();
    let server = server(JwtKeys::Public(JwksSettings { place, refetch_after: Duration::ZERO }));
    let issuer = Issuer::new();
    let answer = ask(&server, &issuer.signed("EdDSA", &json!({"alg": "EdDSA"}), &claims(json!({})))).await;
    assert_eq!(
        (answer.status, &answer.error()["code"]),
        (StatusCode::SERVICE_UNAVAILABLE, &json!("token_keys_unavailable"))
    );
    assert!(answer.header("retry-after").is_some());
}
