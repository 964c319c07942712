//! A disk of 8 MiB that fills up: uploads are refused, and all else goes on.

use std::{fs::File, io::Write, path::Path};

use hearth::store::Store;
use reqwest::{
    Response, StatusCode,
    multipart::{Form, Part},
};
use serde_json::{Value, json};

use super::clients::{Client, start, text};
use crate::support::power_cut_fs::PowerCutDisk;

const CAPACITY: u64 = 8 << 20;
/// What is uploaded to fill the disk, so that in the end there is no room for the smallest file.
const PIECES: [usize; 3] = [256 << 10, 32 << 10, 4 << 10];

/// What is asked of the server, and the ids of the requests that leave a row in the ledger.
struct Asked {
    client: Client,
    http: reqwest::Client,
    ids: Vec<String>,
}

impl Asked {
    fn of(client: Client) -> Self {
        Self { client, http: reqwest::Client::new(), ids: Vec::new() }
    }

    async fn post(&mut self, path: &str, form: Form) -> Response {
        let url = format!("{}{path}", self.client.url);
        let answer = self.http.post(url).multipart(form).send().await.expect("an answer");
        self.ids.push(answer.headers()["x-request-id"].to_str().expect("an id").to_owned());
        answer
    }

    async fn upload_file(&mut self, bytes: usize) -> Response {
        let part = Part::bytes(vec![b'x'; bytes]).file_name("filling.bin");
        self.post("/v1/files", Form::new().part("file", part).text("purpose", "assistants")).await
    }

    async fn upload_document(&mut self, word: &str) -> Response {
        let part = Part::text(text(word)).file_name(format!("{word}.md"));
        self.post("/api/v1/documents/upload", Form::new().part("file", part)).await
    }

    /// Uploads until there is no room; the ids of the files that were taken, the largest first.
    async fn fill(&mut self) -> Vec<String> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        for piece in PIECES {
            loop {
                let answer = self.upload_file(piece).await;
                if !answer.status().is_success() {
                    assert_is_refused(answer).await;
                    break;
                }
                let file: Value = answer.json().await.expect("JSON");
                taken.push(file["id"].as_str().expect("an id").to_owned());
                bytes += piece as u64;
                assert!(bytes < CAPACITY, "more was taken than there is room for");
            }
        }
        taken
    }

    async fn embed(&mut self) {
        let url = format!("{}/v1/embeddings", self.client.url);
        let body = json!({"model": "bert-mean", "input": "a full disk"});
        let answer = self.http.post(url).json(&body).send().await.expect("an answer");
        assert!(answer.status().is_success(), "{}", answer.status());
        self.ids.push(answer.headers()["x-request-id"].to_str().expect("an id").to_owned());
    }

    async fn delete(&self, path: &str) {
        let answer = self.http.delete(format!("{}{path}", self.client.url)).send().await.expect("an answer");
        let status = answer.status();
        let answer: Value = answer.json().await.expect("JSON");
        assert!(status.is_success() && answer["deleted"] == true, "{path}: {status} {answer}");
    }
}

async fn assert_is_refused(answer: Response) {
    let status = answer.status();
    let answer: Value = answer.json().await.expect("JSON");
    let code = &answer["error"]["code"];
    assert_eq!((status, code.as_str()), (StatusCode::INSUFFICIENT_STORAGE, Some("insufficient_storage")), "{answer}");
}

async fn accepted(answer: Response) -> String {
    let status = answer.status();
    let answer: Value = answer.json().await.expect("JSON");
    assert!(status.is_success(), "{status} {answer}");
    answer["document_id"].as_str().expect("an id").to_owned()
}

/// Every request that was answered has its row. The server must have been stopped, or have had the time to write them.
fn assert_rows(data: &Path, ids: &[String]) {
    let store = Store::open(data).expect("the store opens");
    let rows = store.ledger_rows(0, 1_000_000).expect("the ledger is readable");
    let missing: Vec<_> = ids.iter().filter(|id| rows.iter().all(|row| row.request_id != **id)).collect();
    assert!(missing.is_empty(), "{} of {} rows are missing: {missing:?}", missing.len(), ids.len());
}

fn stop(mut server: crate::support::running_server::Served) {
    let pid = rustix::process::Pid::from_child(&server.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
    assert!(server.0.wait().expect("it ends").success());
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_fill_a_disk_and_deletions_make_room() {
    let Some(disk) = PowerCutDisk::mount(CAPACITY) else { return };
    let data = disk.path().join("data");
    let (server, client) = start(&data, "at first").await;
    let mut asked = Asked::of(client);
    let kept = accepted(asked.upload_document("kept").await).await;
    let deleted = accepted(asked.upload_document("deleted").await).await;
    assert_eq!(asked.client.found("kept").await.0, [kept.as_str()]);

    let files = asked.fill().await;
    assert!(files.len() > 4, "{} files were taken", files.len());
    assert_is_refused(asked.upload_document("refused").await).await;
    asked.embed().await;
    asked.delete(&format!("/api/v1/documents/{deleted}")).await;
    for file in &files[..4] {
        asked.delete(&format!("/v1/files/{file}")).await;
    }
    let further = accepted(asked.upload_document("further").await).await;
    assert_eq!(asked.client.found("further").await.0, [further.as_str()]);

    asked.fill().await;
    stop(server);
    let (server, client) = start(&data, "on a full disk").await;
    let restarted = Asked { client, ..asked };
    assert_eq!(restarted.client.found("kept").await.0, [kept]);
    assert_eq!(restarted.client.found("further").await.0, [further]);
    assert!(restarted.client.found("deleted").await.0.is_empty());
    restarted.delete(&format!("/v1/files/{}", files[4])).await;
    stop(server);
    assert_rows(&data, &restarted.ids);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_another_program_has_filled_lets_documents_be_deleted() {
    let Some(disk) = PowerCutDisk::mount(CAPACITY) else { return };
    let data = disk.path().join("data");
    let (server, client) = start(&data, "at first").await;
    let mut asked = Asked::of(client);
    let kept = accepted(asked.upload_document("kept").await).await;
    let deleted = accepted(asked.upload_document("deleted").await).await;
    asked.client.found("nothing").await;
    let mut filling = File::create(disk.path().join("filling")).expect("a new file");
    while filling.write_all(&[1; 4096]).is_ok() {}

    assert_is_refused(asked.upload_document("refused").await).await;
    asked.embed().await;
    asked.delete(&format!("/api/v1/documents/{deleted}")).await;
    drop(server);
    let (server, client) = start(&data, "on a full disk").await;
    let restarted = Asked { client, ..asked };
    assert_eq!(restarted.client.found("kept").await.0, [kept.as_str()]);
    restarted.delete(&format!("/api/v1/documents/{kept}")).await;
    assert!(restarted.client.list().await.is_empty());
    stop(server);
}
