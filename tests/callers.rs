//! API keys: what they let in, and what not; made and revoked by another process while the server runs.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Output, Stdio},
};

use axum::http::StatusCode;
use hearth::{
    service::callers::{CallerSettings, Callers, KeySecret, NewKey, Rights},
    store::{KeyTable, Store, StoredKey},
};
use hearth_domain::{CallerLimits, LOCAL, RoutingPolicy, Scope};
use serde_json::{Value, json};

use crate::support::{
    running_server::{Served, hearth, model},
    scripted_server::ScriptedServer,
};

/// Makes a key in a data directory, as the command does.
fn make(directory: &Path, caller: &str, rights: &Rights) -> NewKey {
    make_until(directory, caller, rights, None)
}

fn make_until(directory: &Path, caller: &str, rights: &Rights, expires_ms: Option<i64>) -> NewKey {
    let table = KeyTable::open(directory).expect("a table of keys");
    let secret = KeySecret::load_or_make(directory).expect("a secret");
    let new = NewKey::random().expect("random numbers");
    let stored = StoredKey {
        id: new.id.clone(),
        caller: caller.to_owned(),
        name: String::new(),
        hash: secret.hash(&new.key),
        rights: rights.to_json(),
        created_ms: 1,
        expires_ms,
        revoked_ms: None,
        last_used_ms: None,
    };
    assert!(table.insert(&stored).expect("it is written"));
    new
}

fn rights(scopes: &[Scope]) -> Rights {
    Rights { scopes: scopes.iter().copied().collect(), ..Rights::default() }
}

fn chat() -> Option<Value> {
    Some(json!({"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}))
}

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn a_caller_is_told_what_its_key_may() {
    let data = tempfile::tempdir().unwrap();
    let limits = CallerLimits { requests_per_minute: Some(7), ..CallerLimits::default() };
    let key = make(data.path(), "alice", &Rights { local_only: true, limits, ..rights(&[Scope::Embed]) });
    let server = ScriptedServer::with_data(data, CallerSettings::default());
    let me = server.with_key(&key.key, "/v1/me", None).await.json();
    assert_eq!((&me["id"], &me["key_id"], &me["scopes"]), (&json!("alice"), &json!(key.id), &json!(["embed"])));
    assert_eq!(
        (&me["local_only"], &me["models"], &me["limits"]["requests_per_minute"]),
        (&json!(true), &json!(null), &json!(7))
    );
    assert_eq!((&me["features"]["chat"], &me["features"]["rerank"]), (&json!(true), &json!(false)), "{me}");
    assert_eq!(server.with_key("hk_none", "/v1/me", None).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_key_lets_its_caller_in_and_nothing_near_it_does() {
    let data = tempfile::tempdir().unwrap();
    let good = make(data.path(), "alice", &rights(&Scope::ALL));
    let other = make(data.path(), "bob", &rights(&Scope::ALL));
    let expired = make_until(data.path(), "alice", &rights(&Scope::ALL), Some(1));
    let revoked = make(data.path(), "alice", &rights(&Scope::ALL));
    assert!(KeyTable::open(data.path()).unwrap().revoke(&revoked.id).unwrap());
    let unstored = NewKey::random().unwrap();
    let server = ScriptedServer::with_data(data, CallerSettings::default());
    assert_eq!(server.with_key(&good.key, CHAT, chat()).await.status, StatusCode::OK);
    let caller = server.callers.authenticate(Some(&good.key)).await.unwrap();
    assert_eq!((&caller.id[..], caller.key_id.as_deref()), ("alice", Some(&good.id[..])));

    let secret = |new: &NewKey| new.key[new.id.len() + 1..].to_owned();
    let last = if good.key.ends_with('A') { "B" } else { "A" };
    let wrong = [
        good.key[..good.key.len() - 1].to_owned(),
        format!("{}{last}", &good.key[..good.key.len() - 1]),
        format!("{}A", good.key),
        good.key.to_uppercase(),
        good.id.clone(),
        format!("{}_", good.id),
        secret(&good),
        // One caller's id with another one's secret.
        format!("{}_{}", other.id, secret(&good)),
        unstored.key,
        "hk_".to_owned(),
        String::new(),
    ];
    for key in wrong {
        let answer = server.with_key(&key, "/v1/models", None).await;
        assert_eq!((answer.status, &answer.error()["code"]), (StatusCode::UNAUTHORIZED, &json!("invalid_api_key")));
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
    }
    for (key, word) in [(expired, "expired"), (revoked, "revoked")] {
        let answer = server.with_key(&key.key, "/v1/models", None).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        assert!(answer.text().contains(word), "{}", answer.text());
    }
    assert_eq!(server.get("/v1/models").await.status, StatusCode::UNAUTHORIZED);
    let oversized = server.with_key(&"k".repeat(8 * 1024 + 1), "/v1/models", None).await;
    assert_eq!(oversized.status, StatusCode::UNAUTHORIZED);
    assert!(oversized.text().contains("8192"), "{}", oversized.text());
    for path in ["/health", "/health/live", "/docs/", "/openapi.json"] {
        assert_eq!(server.get(path).await.status, StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn a_database_without_its_secret_lets_nobody_in() {
    let data = tempfile::tempdir().unwrap();
    let key = make(data.path(), "alice", &rights(&Scope::ALL));
    std::fs::remove_file(data.path().join("keys.secret")).unwrap();
    let server = ScriptedServer::with_data(data, CallerSettings::default());
    assert_eq!(server.get("/v1/models").await.status, StatusCode::UNAUTHORIZED);
    let answer = server.with_key(&key.key, "/v1/models", None).await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR, "{}", answer.text());
}

#[tokio::test]
async fn each_route_takes_keys_of_its_scope_only() {
    const GET: bool = false;
    const POST: bool = true;
    let routes = [
        (Scope::Chat, POST, CHAT),
        (Scope::Chat, POST, "/v1/completions"),
        (Scope::Chat, POST, "/v1/rerank"),
        (Scope::Chat, POST, "/rerank"),
        (Scope::Chat, POST, "/chat/completions"),
        (Scope::Chat, POST, "/completions"),
        (Scope::Embed, POST, "/embeddings"),
        (Scope::Chat, POST, "/ask"),
        (Scope::Chat, POST, "/ask/stream"),
        (Scope::Chat, POST, "/generate"),
        (Scope::Chat, POST, "/stream"),
        (Scope::Chat, POST, "/api/v1/chat"),
        (Scope::Chat, POST, "/api/v1/chat/stream"),
        (Scope::Chat, GET, "/analysis"),
        (Scope::Chat, POST, "/analysis"),
        (Scope::Chat, GET, "/analysis/job_1"),
        (Scope::Chat, POST, "/tokenize"),
        (Scope::Chat, POST, "/detokenize"),
        (Scope::Chat, POST, "/apply-template"),
        (Scope::Embed, POST, "/v1/embeddings"),
        (Scope::Documents, GET, "/v1/files"),
        (Scope::Documents, GET, "/v1/files/file-1/content"),
        (Scope::Documents, GET, "/v1/vector_stores"),
        (Scope::Documents, POST, "/v1/vector_stores/vs_1/search"),
        (Scope::Documents, GET, "/api/v1/documents"),
        (Scope::Documents, POST, "/api/v1/documents/upload"),
        (Scope::Documents, GET, "/api/v1/collections"),
        (Scope::Documents, POST, "/api/v1/search"),
        (Scope::Admin, GET, "/metrics"),
    ];
    let data = tempfile::tempdir().unwrap();
    let keys = Scope::ALL.map(|scope| (scope, make(data.path(), scope.as_str(), &rights(&[scope])).key));
    let none = make(data.path(), "none", &rights(&[])).key;
    let server = ScriptedServer::with_data(data, CallerSettings::default());
    for (needed, posts, path) in routes {
        for (scope, key) in keys.iter().map(|(scope, key)| (Some(*scope), key)).chain([(None, &none)]) {
            let answer = server.with_key(key, path, posts.then(|| json!({}))).await;
            if scope == Some(needed) {
                assert_ne!(answer.status, StatusCode::FORBIDDEN, "{path} with {scope:?}: {}", answer.text());
                assert_ne!(answer.status, StatusCode::UNAUTHORIZED, "{path} with {scope:?}: {}", answer.text());
            } else {
                assert_eq!(answer.status, StatusCode::FORBIDDEN, "{path} with {scope:?}: {}", answer.text());
                let error = answer.error();
                assert_eq!(error["code"], "insufficient_scope");
                let message = error["message"].as_str().unwrap();
                assert!(message.contains(&format!("`{}`", needed.as_str())), "{message}");
            }
        }
    }
    assert_eq!(server.with_key(&none, "/v1/models", None).await.status, StatusCode::OK);
    assert_eq!(server.with_key(&none, "/nowhere", None).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_key_names_the_models_that_it_allows() {
    let data = tempfile::tempdir().unwrap();
    let of = |models: &[&str]| Rights {
        models: Some(models.iter().map(|model| (*model).to_owned()).collect()),
        ..rights(&Scope::ALL)
    };
    // Allowed by one of its names, a model may be called by any.
    let chat_only = make(data.path(), "a", &of(&["alias"])).key;
    let embed_only = make(data.path(), "b", &of(&["embed"])).key;
    let nothing = make(data.path(), "c", &of(&[])).key;
    let server = ScriptedServer::with_data(data, CallerSettings::default());
    let embed = || Some(json!({"model": "embed", "input": "x"}));
    let not_allowed = async |key: &str, path: &str, body: Option<Value>| {
        let answer = server.with_key(key, path, body).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{path}: {}", answer.text());
        let error = answer.error();
        assert_eq!((&error["code"], &error["param"]), (&json!("model_not_allowed"), &json!("model")));
    };
    let listed = async |key: &str| {
        let list = server.with_key(key, "/v1/models", None).await.json();
        list["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|model| model["id"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(server.with_key(&chat_only, CHAT, chat()).await.status, StatusCode::OK);
    not_allowed(&chat_only, "/v1/embeddings", embed()).await;
    not_allowed(&chat_only, "/v1/models/embed", None).await;
    assert_eq!(listed(&chat_only).await, ["tiny"]);
    assert_eq!(server.with_key(&embed_only, "/v1/embeddings", embed()).await.status, StatusCode::OK);
    not_allowed(&embed_only, CHAT, chat()).await;
    not_allowed(&embed_only, "/v1/completions", Some(json!({"model": "org/tiny", "prompt": "x"}))).await;
    // The model that serves whoever names none is one, too.
    not_allowed(&embed_only, "/generate", Some(json!({"prompt": "x"}))).await;
    not_allowed(&embed_only, "/tokenize", Some(json!({"content": "x"}))).await;
    assert_eq!(server.with_key(&chat_only, "/generate", Some(json!({"prompt": "x"}))).await.status, StatusCode::OK);
    assert_eq!(listed(&embed_only).await, ["embed"]);
    assert!(listed(&nothing).await.is_empty());
    not_allowed(&nothing, CHAT, chat()).await;
}

#[tokio::test]
async fn work_that_goes_on_has_the_rights_of_the_best_key_that_holds() {
    let data = tempfile::tempdir().unwrap();
    let directory = data.path();
    make(directory, "alice", &rights(&[Scope::Chat]));
    let limits = CallerLimits { requests_per_minute: Some(7), ..CallerLimits::default() };
    make(
        directory,
        "alice",
        &Rights { limits, policy: Some(RoutingPolicy::LocalFirst), ..rights(&[Scope::Chat, Scope::Embed]) },
    );
    make_until(directory, "alice", &rights(&Scope::ALL), Some(1));
    let bob = make(directory, "bob", &rights(&Scope::ALL));
    make(directory, "carol", &Rights { local_only: true, ..rights(&[]) });
    make(directory, "carol", &rights(&Scope::ALL));
    KeyTable::open(directory).unwrap().revoke(&bob.id).unwrap();
    let callers = Callers::new(Store::open(directory).unwrap());
    let alice = callers.of_id("alice").await;
    assert_eq!(alice.scopes, [Scope::Chat, Scope::Embed].into());
    assert_eq!((alice.limits.requests_per_minute, alice.policy), (Some(7), Some(RoutingPolicy::LocalFirst)));
    for gone in ["bob", "nobody", "jwt:carol"] {
        let caller = callers.of_id(gone).await;
        assert!(caller.scopes.is_empty() && caller.local_only && caller.id == gone, "{gone}");
    }
    let carol = callers.of_id("carol").await;
    assert!(carol.local_only && carol.scopes.len() == 4, "one of its keys says so");
    assert_eq!(callers.of_id(LOCAL).await.scopes.len(), 4);
}

#[tokio::test]
async fn recovery_keeps_keys_and_the_door_shut() {
    let data = tempfile::tempdir().unwrap();
    let key = make(data.path(), "alice", &rights(&Scope::ALL));
    hearth::store::recover(data.path()).unwrap();
    let server = ScriptedServer::with_data(data, CallerSettings::default());
    assert_eq!(server.get("/v1/models").await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(server.with_key(&key.key, "/v1/models", None).await.status, StatusCode::OK);
}

/// `hearth keys`, which goes well.
fn keys(data: &Path, arguments: &[&str]) -> (String, String) {
    let (output, out, said) = try_keys(data, arguments);
    assert!(output.status.success(), "{arguments:?}: {said}");
    (out, said)
}

fn try_keys(data: &Path, arguments: &[&str]) -> (Output, String, String) {
    let output = hearth().arg("keys").args(arguments).env("HEARTH_DATA_DIR", data).output().expect("it runs");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    let (out, said) = (text(&output.stdout), text(&output.stderr));
    (output, out, said)
}

#[tokio::test]
async fn keys_are_made_listed_and_revoked_while_a_server_runs() {
    let data = tempfile::tempdir().unwrap();
    let mut server = hearth()
        .args(["serve", "--port", "0", "--offline", "--ctx-size", "256", "--models-dir", "no-models", "--log", "error"])
        .args(["--alias", "tiny", "-m"])
        .arg(model())
        .env("HEARTH_DATA_DIR", data.path())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let mut line = String::new();
    BufReader::new(server.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
    let _server = Served(server);
    let url = format!("{}/v1/models", line.split_whitespace().last().expect("an address"));
    let client = reqwest::Client::new();
    let status = async |key: Option<&str>| {
        let request = client.get(&url);
        let request = key.into_iter().fold(request, |request, key| request.bearer_auth(key));
        request.send().await.expect("an answer").status()
    };
    let until = async |key: Option<&str>, wanted: StatusCode| {
        for _ in 0..1000 {
            if status(key).await == wanted {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("never {wanted}");
    };
    assert_eq!(status(None).await, StatusCode::OK, "nobody is asked for a key yet");

    let (out, said) = keys(data.path(), &["create", "--caller", "alice", "--name", "laptop", "--rpm", "600"]);
    let key = out.trim();
    assert!(key.starts_with("hk_") && out.lines().count() == 1, "{out}");
    assert!(said.contains("alice") && said.contains("cannot be shown again"), "{said}");
    until(None, StatusCode::UNAUTHORIZED).await;
    assert_eq!(status(Some(key)).await, StatusCode::OK);

    let (made, _) = keys(data.path(), &["create", "--scopes", "embed", "--expires", "30d", "--local-only", "--json"]);
    let made: Value = serde_json::from_str(&made).expect("JSON");
    assert_eq!(made["caller"], made["id"], "a caller of its own");
    assert_eq!(made["rights"], json!({"scopes": ["embed"], "local_only": true, "limits": {}}));
    let second = made["key"].as_str().expect("the key").to_owned();
    assert_eq!(status(Some(&second)).await, StatusCode::OK);

    let (table, _) = keys(data.path(), &["list"]);
    assert!(table.contains("laptop") && table.contains("600 requests/min") && table.contains("local only"), "{table}");
    let (listed, _) = keys(data.path(), &["list", "--json"]);
    let secret_part = |key: &str| key.splitn(3, '_').nth(2).expect("a key").to_owned();
    for shown in [&table, &listed] {
        assert!(!shown.contains(&secret_part(key)[..20]) && !shown.contains(&secret_part(&second)[..20]), "{shown}");
    }
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    assert_eq!(listed["keys"].as_array().map(Vec::len), Some(2));
    assert!(listed["keys"].to_string().contains("\"valid\"") && !listed.to_string().contains("hash"));
    for file in std::fs::read_dir(data.path()).unwrap() {
        let path = file.unwrap().path();
        let bytes = if path.is_file() { std::fs::read(&path).unwrap() } else { Vec::new() };
        let is_inside = bytes.windows(20).any(|window| window == &secret_part(key).as_bytes()[..20]);
        assert!(!is_inside, "the key is in {}", path.display());
    }

    let id = listed["keys"][0]["id"].as_str().expect("an id");
    let (_, said) = keys(data.path(), &["revoke", id]);
    assert!(said.contains("is revoked"), "{said}");
    until(Some(key), StatusCode::UNAUTHORIZED).await;
    assert_eq!(status(Some(&second)).await, StatusCode::OK);
    // The whole key says which one it is, too.
    assert!(keys(data.path(), &["revoke", key]).1.contains("was revoked before"));
    until(None, StatusCode::UNAUTHORIZED).await;
    let (output, _, said) = try_keys(data.path(), &["revoke", "hk_none"]);
    assert!(!output.status.success() && said.contains("hk_none") && said.contains("keys list"), "{said}");
}

#[test]
fn a_command_over_documents_needs_no_key_where_no_server_runs() {
    let data = tempfile::tempdir().unwrap();
    keys(data.path(), &["create"]);
    let output = hearth()
        .args(["collections", "--offline", "--ctx-size", "256", "--models-dir", "no-models", "-m"])
        .arg(model())
        .env("HEARTH_DATA_DIR", data.path())
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn mistakes_in_what_a_key_is_to_allow_are_named() {
    let data = tempfile::tempdir().unwrap();
    for (arguments, word) in [
        (&["--scopes", "chat,root"][..], "root"),
        (&["--caller", "jwt:alice"], "--caller"),
        (&["--caller", ""], "--caller"),
        (&["--rpm", "0"], "--rpm"),
        (&["--daily-usd", "-1"], "--daily-usd"),
        (&["--policy", "cheapest"], "cheapest"),
        (&["--expires", "2020-01-01"], "over already"),
        (&["--name", "two\nlines"], "--name"),
    ] {
        let (output, out, said) = try_keys(data.path(), &[&["create"], arguments].concat());
        assert!(!output.status.success() && out.is_empty(), "{arguments:?}: {said}");
        assert!(said.contains(word), "{arguments:?}: {said}");
    }
    assert!(keys(data.path(), &["list"]).1.contains("There is no key yet"));
}
