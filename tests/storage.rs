//! Room for documents: callers' quotas, the disk's reserve, and the data directory after a stop, a backup and a loss.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::Output,
};

use hearth::config::Settings;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{
    api::{Api, file_form},
    running_server::{Running, Served, hearth},
};

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn a_callers_quota_is_a_507_and_deleting_makes_room() {
    let embedder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/embeddings/bert-mean.gguf");
    let server = Running::start(Settings {
        embedding_model: Some(embedder),
        caller_storage_mib: Some(1),
        caller_documents: Some(2),
        ..Settings::default()
    })
    .await;
    let api = Api(&server);
    let large = vec![b'x'; 600 << 10];
    let form = |bytes: &[u8]| file_form("a.txt", bytes).text("purpose", "assistants");
    let upload = async |bytes: &[u8]| api.post_form("/v1/files", form(bytes)).await;
    let (status, first) = upload(&large).await;
    assert_eq!(status, StatusCode::OK, "{first}");
    let response = form(&large).of(server.client.post(format!("{}/v1/files", server.url)));
    let response = response.send().await.expect("an answer");
    assert_eq!(response.status(), StatusCode::INSUFFICIENT_STORAGE);
    assert_eq!(response.headers()["x-should-retry"], "false");
    let refused: Value = response.json().await.expect("JSON");
    assert_eq!(refused["error"]["code"], "storage_quota_exceeded", "{refused}");
    assert!(refused["error"]["message"].as_str().is_some_and(|message| message.contains("1048576")), "{refused}");
    assert_eq!(api.get("/v1/files").await.1["data"].as_array().map(Vec::len), Some(1), "nothing of it is kept");
    assert_eq!(api.delete(&format!("/v1/files/{}", first["id"].as_str().unwrap())).await.0, StatusCode::OK);
    assert_eq!(upload(&large).await.0, StatusCode::OK);

    let mut ids = Vec::new();
    for (number, expected) in [(1, StatusCode::OK), (2, StatusCode::OK), (3, StatusCode::INSUFFICIENT_STORAGE)] {
        let form = file_form("d.txt", format!("document {number}").as_bytes());
        let (status, answer) = api.post_form("/api/v1/documents/upload", form).await;
        assert_eq!(status, expected, "{answer}");
        ids.push(answer["document_id"].clone());
    }
    assert_eq!(api.get("/v1/files").await.1["data"].as_array().map(Vec::len), Some(3), "the third left no file");
    let (status, store) = api.post("/v1/vector_stores", json!({"file_ids": [ids[0]]})).await;
    assert_eq!(status, StatusCode::INSUFFICIENT_STORAGE, "a file in another collection is a document: {store}");
    assert_eq!(api.delete(&format!("/api/v1/documents/{}", ids[0].as_str().unwrap())).await.0, StatusCode::OK);
    let form = file_form("d.txt", b"document 4");
    assert_eq!(api.post_form("/api/v1/documents/upload", form).await.0, StatusCode::OK);
}

#[tokio::test]
async fn below_the_disks_reserve_growth_is_a_507_and_everything_else_goes_on() {
    let data = tempfile::tempdir().expect("a temporary directory");
    let settings = |min_free_mib| Settings {
        data_dir: Some(data.path().to_owned()),
        min_free_mib: Some(min_free_mib),
        ..Settings::default()
    };
    let mut server = Running::start(settings(1)).await;
    let kept = Api(&server).upload("kept.txt", b"text").await["id"].as_str().expect("an id").to_owned();
    server.stop();
    (&mut server.served).await.expect("no panic").expect("a clean stop");

    // A reserve that no disk has stands for a full disk.
    let server = Running::start(settings(16 << 20)).await;
    let api = Api(&server);
    for (path, form) in [("/v1/files", "new.txt"), ("/api/v1/documents/upload", "new.txt")] {
        let (status, refused) = api.post_form(path, file_form(form, b"text").text("purpose", "assistants")).await;
        assert_eq!(status, StatusCode::INSUFFICIENT_STORAGE, "{path}: {refused}");
        assert_eq!(refused["error"]["code"], "insufficient_storage");
    }
    assert_eq!(server.chat(json!({"max_tokens": 1})).await.status(), StatusCode::OK);
    assert_eq!(api.get("/health/deep").await.1["storage"], json!({"has_room": false}));
    assert_eq!(api.get("/health/ready").await.0, StatusCode::OK, "what needs no disk is served");
    assert_eq!(api.delete(&format!("/v1/files/{kept}")).await.0, StatusCode::OK);
    assert_eq!(api.get("/v1/files").await.1["data"], json!([]));
}

#[tokio::test]
async fn a_stopped_servers_database_is_one_file_and_a_lost_one_is_not_replaced() {
    let data = tempfile::tempdir().expect("a temporary directory");
    let settings = || Settings { data_dir: Some(data.path().to_owned()), ..Settings::default() };
    let mut server = Running::start(settings()).await;
    let file = Api(&server).upload("a.txt", b"text").await;
    server.stop();
    (&mut server.served).await.expect("no panic").expect("a clean stop");
    let database = data.path().join("hearth.sqlite3");
    assert!(!data.path().join("hearth.sqlite3-wal").exists(), "the log is taken in");
    assert!(fs::metadata(&database).expect("the database").len() > 4096);

    let away = data.path().join("away");
    fs::rename(&database, &away).expect("renamed");
    let serve = hearth().args(["serve", "--offline"]).env("HEARTH_DATA_DIR", data.path()).output().expect("it runs");
    assert!(!serve.status.success() && said(&serve).contains("hearth recover"), "{}", said(&serve));
    assert!(!database.exists());
    fs::rename(&away, &database).expect("renamed back");
    let server = Running::start(settings()).await;
    assert_eq!(Api(&server).get(&format!("/v1/files/{}", file["id"].as_str().unwrap())).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_backup_of_a_running_server_is_restored_by_the_commands() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let home = tempfile::tempdir().expect("a temporary directory");
    let [data, backup, back] = ["data", "backup", "back"].map(|name| home.path().join(name));
    let command = |arguments: &[&str], data: &Path| {
        let mut command = hearth();
        command.args(arguments).env("HEARTH_DATA_DIR", data);
        command
    };
    let key = command(&["keys", "create"], &data).output().expect("it runs");
    let key = String::from_utf8(key.stdout).expect("UTF-8").trim().to_owned();
    let serve = |data: &Path| {
        let mut command = command(&["serve", "--offline", "--port", "0", "-m"], data);
        let mut served = Served(command.arg(root.join("tests/fixtures/tiny-chat.gguf")).spawn().expect("it starts"));
        let mut line = String::new();
        BufReader::new(served.0.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        (served, line.split_whitespace().last().unwrap_or_default().to_owned())
    };
    let client = reqwest::Client::new();
    let (server, url) = serve(&data);
    let form = file_form("a.txt", b"text").text("purpose", "assistants");
    let form = form.of(client.post(format!("{url}/v1/files")).bearer_auth(&key));
    let file: Value = form.send().await.expect("an answer").json().await.expect("JSON");
    let made = command(&["backup", backup.to_str().unwrap()], &data).output().expect("it runs");
    assert!(made.status.success(), "{}", said(&made));
    let again = command(&["backup", backup.to_str().unwrap()], &data).output().expect("it runs");
    assert!(!again.status.success() && said(&again).contains("not empty"), "{}", said(&again));
    drop(server);

    let restored = command(&["restore", backup.to_str().unwrap()], &back).output().expect("it runs");
    assert!(restored.status.success(), "{}", said(&restored));
    let (_server, url) = serve(&back);
    let path = format!("{url}/v1/files/{}/content", file["id"].as_str().unwrap_or_else(|| panic!("{file}")));
    let content = client.get(&path).bearer_auth(&key).send().await.expect("an answer");
    assert_eq!(content.status(), StatusCode::OK, "the key holds where its secret came with the backup");
    assert_eq!(&content.bytes().await.expect("bytes")[..], b"text");
    assert_eq!(client.get(&path).send().await.expect("an answer").status(), StatusCode::UNAUTHORIZED);
}
