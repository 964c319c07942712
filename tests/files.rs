//! OpenAI's files, through a running server: uploaded, listed, read back, deleted, and what is refused.

use hearth::config::Settings;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{
    api::{Api, Form, file_form},
    running_server::Running,
};

#[tokio::test]
async fn a_file_is_kept_as_it_came() {
    let server = Running::start(Settings::default()).await;
    let api = Api(&server);
    let file = api.upload("guide.md", b"# Guide\n\xff\x00 not text").await;
    assert!(file["id"].as_str().is_some_and(|id| id.starts_with("file-")), "{file}");
    assert_eq!(
        json!([file["object"], file["bytes"], file["filename"], file["purpose"], file["status"], file["expires_at"]]),
        json!(["file", 19, "guide.md", "assistants", "processed", null])
    );
    let path = format!("/v1/files/{}", file["id"].as_str().unwrap());
    assert_eq!(api.get(&path).await, (StatusCode::OK, file.clone()));
    let content = server.client.get(format!("{}{path}/content", server.url)).send().await.unwrap();
    assert_eq!(content.headers()["content-type"], "application/octet-stream");
    assert_eq!(content.headers()["x-content-type-options"], "nosniff");
    assert_eq!(&content.bytes().await.unwrap()[..], b"# Guide\n\xff\x00 not text");
    assert_eq!(api.delete(&path).await, (StatusCode::OK, json!({"id": file["id"], "object": "file", "deleted": true})));
    for path in [&path, &format!("{path}/content")] {
        let (status, refused) = api.get(path).await;
        assert_eq!((status, &refused["error"]["code"]), (StatusCode::NOT_FOUND, &json!("not_found")));
    }
    assert_eq!(api.delete(&path).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn files_are_listed_page_by_page() {
    let server = Running::start(Settings::default()).await;
    let api = Api(&server);
    let mut ids = Vec::new();
    for number in 0..5 {
        ids.push(api.upload(&format!("{number}.txt"), b"text").await["id"].clone());
    }
    let other = api.post_form("/v1/files", file_form("v.txt", b"v").text("purpose", "user_data")).await.1["id"].clone();
    let listed =
        |found: &Value| found["data"].as_array().unwrap().iter().map(|file| file["id"].clone()).collect::<Vec<_>>();
    let all = api.get("/v1/files").await.1;
    assert_eq!((listed(&all).len(), &all["has_more"], &all["object"]), (6, &json!(false), &json!("list")));
    assert_eq!((&all["first_id"], &all["last_id"]), (&other, &ids[0]));
    let mine = api.get("/v1/files?purpose=assistants&limit=2").await.1;
    assert_eq!((listed(&mine), &mine["has_more"]), (vec![ids[4].clone(), ids[3].clone()], &json!(true)));
    let after = ids[3].as_str().unwrap();
    assert_eq!(api.delete(&format!("/v1/files/{after}")).await.0, StatusCode::OK);
    let next = api.get(&format!("/v1/files?purpose=assistants&limit=2&after={after}")).await.1;
    assert_eq!(listed(&next), [ids[2].clone(), ids[1].clone()], "though the cursor has been deleted");
    let oldest = api.get("/v1/files?order=asc&limit=1").await.1;
    assert_eq!(listed(&oldest), [ids[0].clone()]);
    for (query, param) in [("limit=0", "limit"), ("order=up", "order"), ("after=x", "after")] {
        let (status, refused) = api.get(&format!("/v1/files?{query}")).await;
        assert_eq!((status, &refused["error"]["param"]), (StatusCode::BAD_REQUEST, &json!(param)));
    }
    let empty = api.get("/v1/files?purpose=batch").await.1;
    assert_eq!((&empty["data"], &empty["first_id"]), (&json!([]), &json!(null)));
}

#[tokio::test]
async fn uploads_that_are_wrong_are_refused_and_leave_nothing() {
    let server = Running::start(Settings { upload_limit_mib: Some(1), ..Settings::default() }).await;
    let api = Api(&server);
    let purpose = || Form::default().text("purpose", "assistants");
    for (form, param) in [
        (purpose(), "file"),
        (file_form("a.txt", b"a"), "purpose"),
        (file_form("a.txt", b"a").text("purpose", "world domination"), "purpose"),
        (file_form("", b"a").text("purpose", "assistants"), "file"),
        (file_form("..", b"a").text("purpose", "assistants"), "file"),
        (file_form("a.txt", b"a").text("purpose", "assistants").text("purpose", "user_data"), "purpose"),
    ] {
        let (status, refused) = api.post_form("/v1/files", form).await;
        assert_eq!((status, &refused["error"]["param"]), (StatusCode::BAD_REQUEST, &json!(param)), "{refused}");
    }
    let large = vec![b'x'; 3 << 20];
    let (status, refused) = api.post_form("/v1/files", file_form("a", &large).text("purpose", "assistants")).await;
    assert_eq!((status, &refused["error"]["code"]), (StatusCode::PAYLOAD_TOO_LARGE, &json!("payload_too_large")));
    let (status, _) = api.post("/v1/files", json!({"purpose": "assistants"})).await;
    assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(api.get("/v1/files").await.1["data"], json!([]));
}

#[tokio::test]
async fn a_name_is_no_path_and_an_id_neither() {
    let server = Running::start(Settings::default()).await;
    let api = Api(&server);
    for (sent, kept) in
        [("../../etc/passwd", "etc/passwd"), ("..\\..\\boot.ini", "boot.ini"), ("/etc/shadow", "etc/shadow")]
    {
        let file = api.upload(sent, b"mine").await;
        assert_eq!(file["filename"], kept);
        let content = format!("{}/v1/files/{}/content", server.url, file["id"].as_str().unwrap());
        assert_eq!(server.client.get(content).send().await.unwrap().text().await.unwrap(), "mine");
    }
    for id in ["..%2F..%2Fetc%2Fpasswd", "%2Fetc%2Fpasswd", "..%2Fhearth.sqlite3", "%FF", "%00"] {
        assert_eq!(api.get(&format!("/v1/files/{id}/content")).await.0, StatusCode::NOT_FOUND, "{id}");
        assert_eq!(api.delete(&format!("/v1/files/{id}")).await.0, StatusCode::NOT_FOUND, "{id}");
    }
}

#[tokio::test]
async fn the_same_bytes_twice_are_two_files_and_expiry_is_named() {
    let server = Running::start(Settings::default()).await;
    let api = Api(&server);
    let (first, second) = (api.upload("a.txt", b"same").await, api.upload("a.txt", b"same").await);
    assert_ne!(first["id"], second["id"]);
    let form = file_form("b.txt", b"b").text("purpose", "assistants").text("expires_after[seconds]", "3600");
    let answer = form.of(server.client.post(format!("{}/v1/files", server.url))).send().await.unwrap();
    assert_eq!(
        (answer.status(), answer.headers()["x-hearth-ignored"].to_str().unwrap()),
        (StatusCode::OK, "expires_after")
    );
}
