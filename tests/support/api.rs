//! A running server's routes by path, with JSON both ways.

use reqwest::{RequestBuilder, StatusCode, header};
use serde_json::Value;

use super::running_server::Running;

const BOUNDARY: &str = "a-line-that-no-part-has";

/// A multipart form, as it travels.
#[derive(Default)]
pub struct Form(Vec<u8>);

impl Form {
    fn part(mut self, disposition: &str, bytes: &[u8]) -> Self {
        let head = format!("--{BOUNDARY}\r\ncontent-disposition: form-data; {disposition}\r\n\r\n");
        self.0.extend([head.as_bytes(), bytes, b"\r\n"].concat());
        self
    }

    pub fn text(self, name: &str, value: &str) -> Self {
        self.part(&format!("name=\"{name}\""), value.as_bytes())
    }

    pub fn file(self, name: &str, bytes: &[u8]) -> Self {
        self.part(&format!("name=\"file\"; filename=\"{name}\""), bytes)
    }

    pub fn of(self, request: RequestBuilder) -> RequestBuilder {
        let body = [self.0, format!("--{BOUNDARY}--\r\n").into_bytes()].concat();
        request.header(header::CONTENT_TYPE, format!("multipart/form-data; boundary={BOUNDARY}")).body(body)
    }
}

/// A form with a file.
pub fn file_form(name: &str, bytes: &[u8]) -> Form {
    Form::default().file(name, bytes)
}

/// See the module.
pub struct Api<'a>(pub &'a Running);

impl Api<'_> {
    async fn answer(&self, request: RequestBuilder) -> (StatusCode, Value) {
        let answer = request.send().await.expect("an answer");
        let status = answer.status();
        (status, answer.json().await.expect("JSON"))
    }

    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.answer(self.0.client.get(format!("{}{path}", self.0.url))).await
    }

    pub async fn delete(&self, path: &str) -> (StatusCode, Value) {
        self.answer(self.0.client.delete(format!("{}{path}", self.0.url))).await
    }

    pub async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.answer(self.0.client.post(format!("{}{path}", self.0.url)).json(&body)).await
    }

    pub async fn post_form(&self, path: &str, form: Form) -> (StatusCode, Value) {
        self.answer(form.of(self.0.client.post(format!("{}{path}", self.0.url)))).await
    }

    /// What a request that must go well answers.
    pub async fn ok(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.post(path, body).await;
        assert_eq!(status, StatusCode::OK, "{path}: {answer}");
        answer
    }

    pub async fn upload(&self, name: &str, bytes: &[u8]) -> Value {
        let (status, file) = self.post_form("/v1/files", file_form(name, bytes).text("purpose", "assistants")).await;
        assert_eq!(status, StatusCode::OK, "{name}: {file}");
        file
    }

    /// Asks until the answer is as expected.
    pub async fn until(&self, path: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        for _ in 0..3000 {
            last = self.get(path).await.1;
            if is_so(&last) {
                return last;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("waited in vain at {path}: {last}");
    }
}
