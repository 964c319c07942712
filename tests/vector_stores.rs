//! OpenAI's vector stores, through a running server with the embedding model that comes with Hearth.

use std::path::Path;

use hearth::config::Settings;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{api::Api, running_server::Running};

const TOPICS: [(&str, &str); 3] = [
    ("bread.md", "# Bread\n\nKnead the dough with flour, water and yeast, and bake the loaf in a hot oven."),
    ("engine.md", "# Engine\n\nThe car's motor oil is to be changed every ten thousand kilometres by a mechanic."),
    ("tax.md", "# Taxes\n\nThe income tax return must be filed with the revenue office before the end of July."),
];

async fn start() -> Running {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/hearth-embed.gguf");
    Running::start(Settings { embedding_model: Some(model), ..Settings::default() }).await
}

fn id(object: &Value) -> String {
    object["id"].as_str().unwrap_or_else(|| panic!("it has no id: {object}")).to_owned()
}

/// The topics as files.
async fn upload_topics(api: &Api<'_>) -> Vec<String> {
    let mut ids = Vec::new();
    for (name, text) in TOPICS {
        ids.push(id(&api.upload(name, text.as_bytes()).await));
    }
    ids
}

/// A vector store of the topics, read.
async fn store_of_topics(api: &Api<'_>) -> (String, Vec<String>) {
    let files = upload_topics(api).await;
    let store = id(&api.ok("/v1/vector_stores", json!({"name": "topics", "file_ids": files})).await);
    api.until(&format!("/v1/vector_stores/{store}"), |store| store["status"] == "completed").await;
    (store, files)
}

fn found(page: &Value) -> Vec<&str> {
    page["data"].as_array().expect("results").iter().map(|result| result["filename"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn files_are_read_and_found() {
    let server = start().await;
    let api = Api(&server);
    let (store, files) = store_of_topics(&api).await;
    let path = format!("/v1/vector_stores/{store}");
    let described = api.get(&path).await.1;
    let bytes: usize = TOPICS.iter().map(|(_, text)| text.len()).sum();
    assert_eq!(
        described,
        json!({
            "id": store, "object": "vector_store", "created_at": described["created_at"], "name": "topics",
            "usage_bytes": bytes, "status": "completed", "expires_after": null, "expires_at": null,
            "last_active_at": null, "metadata": {},
            "file_counts": {"in_progress": 0, "completed": 3, "failed": 0, "cancelled": 0, "total": 3},
        })
    );
    let search = format!("{path}/search");
    let page = api.ok(&search, json!({"query": "How do I bake a loaf of bread?"})).await;
    assert_eq!(found(&page)[0], "bread.md");
    let first = &page["data"][0];
    assert_eq!((&first["file_id"], &first["attributes"]), (&json!(files[0]), &json!({})));
    assert!(first["content"][0]["type"] == "text" && first["content"][0]["text"].as_str().unwrap().contains("yeast"));
    let scores: Vec<f64> = page["data"].as_array().unwrap().iter().map(|r| r["score"].as_f64().unwrap()).collect();
    assert!(scores.is_sorted_by(|a, b| a >= b) && scores.iter().all(|score| (0.0..=1.0).contains(score)), "{scores:?}");
    assert_eq!(
        json!([page["object"], page["search_query"], page["has_more"], page["next_page"]]),
        json!(["vector_store.search_results.page", ["How do I bake a loaf of bread?"], false, null])
    );
    let both = api.ok(&search, json!({"query": ["motor oil", "income tax"], "max_num_results": 2})).await;
    let mut names = found(&both);
    names.sort_unstable();
    assert_eq!(names, ["engine.md", "tax.md"]);
    let strict = json!({"query": "motor oil", "ranking_options": {"ranker": "none", "score_threshold": 1.0}});
    assert_eq!(found(&api.ok(&search, strict).await), Vec::<&str>::new());

    let content = api.get(&format!("{path}/files/{}/content", files[1])).await.1;
    assert_eq!(
        (&content["object"], &content["filename"]),
        (&json!("vector_store.file_content.page"), &json!("engine.md"))
    );
    assert!(content["data"][0]["text"].as_str().unwrap().contains("mechanic"), "{content}");

    let gone = api.delete(&format!("{path}/files/{}", files[0])).await;
    assert_eq!(gone, (StatusCode::OK, json!({"id": files[0], "object": "vector_store.file.deleted", "deleted": true})));
    let page = api.ok(&search, json!({"query": "How do I bake a loaf of bread?"})).await;
    assert!(!found(&page).contains(&"bread.md"));
    assert_eq!(api.get(&format!("/v1/files/{}", files[0])).await.0, StatusCode::OK, "the file itself stays");
    assert_eq!(api.delete(&format!("/v1/files/{}", files[1])).await.0, StatusCode::OK);
    let left = api.get(&format!("{path}/files")).await.1;
    assert_eq!((left["data"].as_array().unwrap().len(), &left["first_id"]), (1, &json!(files[2])));
    assert_eq!(api.delete(&path).await.1, json!({"id": store, "object": "vector_store.deleted", "deleted": true}));
    assert_eq!(api.get(&path).await.0, StatusCode::NOT_FOUND);
    assert_eq!(api.get(&format!("/v1/files/{}", files[2])).await.0, StatusCode::OK);
}

#[tokio::test]
async fn attributes_choose_what_is_searched() {
    let server = start().await;
    let api = Api(&server);
    let files = upload_topics(&api).await;
    let path = format!("/v1/vector_stores/{}", id(&api.ok("/v1/vector_stores", json!({})).await));
    let members: Vec<Value> = [2022, 2023, 2024]
        .into_iter()
        .zip(&files)
        .map(|(year, file)| json!({"file_id": file, "attributes": {"year": year, "draft": year == 2024}}))
        .collect();
    let batch = api.ok(&format!("{path}/file_batches"), json!({"files": members})).await;
    assert_eq!(json!([batch["object"], batch["file_counts"]["total"]]), json!(["vector_store.files_batch", 3]));
    let batch_path = format!("{path}/file_batches/{}", id(&batch));
    let batch = api.until(&batch_path, |batch| batch["status"] == "completed").await;
    assert_eq!(batch["file_counts"]["completed"], 3);
    assert_eq!(api.get(&format!("{batch_path}/files?limit=2")).await.1["has_more"], true);

    let search = |filter: Value| json!({"query": "what must be done", "filters": filter});
    for (filter, expected) in [
        (json!({"type": "eq", "key": "year", "value": 2023}), vec!["engine.md"]),
        (json!({"type": "eq", "key": "draft", "value": true}), vec!["tax.md"]),
        (json!({"type": "in", "key": "year", "value": [2022, 2024]}), vec!["bread.md", "tax.md"]),
        (
            json!({"type": "and", "filters": [
                {"type": "gte", "key": "year", "value": 2022}, {"type": "lt", "key": "year", "value": 2024}]}),
            vec!["bread.md", "engine.md"],
        ),
        (json!({"type": "eq", "key": "year", "value": "2023"}), vec![]),
    ] {
        let page = api.ok(&format!("{path}/search"), search(filter.clone())).await;
        let mut names = found(&page);
        names.sort_unstable();
        assert_eq!(names, expected, "{filter}");
    }
    let file = format!("{path}/files/{}", files[0]);
    let changed = api.ok(&file, json!({"attributes": {"year": 1999}})).await;
    assert_eq!(changed["attributes"], json!({"year": 1999}));
    let page = api.ok(&format!("{path}/search"), search(json!({"type": "lt", "key": "year", "value": 2000}))).await;
    assert_eq!((found(&page), &page["data"][0]["attributes"]), (vec!["bread.md"], &json!({"year": 1999})));
    assert_eq!(api.ok(&file, json!({"attributes": null})).await["attributes"], json!({}));
}

#[tokio::test]
async fn a_file_that_cannot_be_read_says_why() {
    let server = start().await;
    let api = Api(&server);
    let path = format!("/v1/vector_stores/{}", id(&api.ok("/v1/vector_stores", json!({"name": "bad"})).await));
    let good = id(&api.upload("good.txt", b"Some text about gardening.").await);
    let files =
        [("empty.txt", &b""[..]), ("broken.pdf", b"%PDF-1.7 no"), ("image.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")];
    let mut ids = vec![good.clone()];
    for (name, bytes) in files {
        ids.push(id(&api.upload(name, bytes).await));
    }
    let batch = api.ok(&format!("{path}/file_batches"), json!({"file_ids": ids})).await;
    let done = |batch: &Value| batch["file_counts"]["in_progress"] == 0;
    let batch = api.until(&format!("{path}/file_batches/{}", id(&batch)), done).await;
    assert_eq!(json!([batch["status"], batch["file_counts"]["failed"]]), json!(["completed", 3]));
    let failed = api.get(&format!("{path}/files?filter=failed")).await.1;
    assert_eq!(failed["data"].as_array().unwrap().len(), 3);
    for file in failed["data"].as_array().unwrap() {
        let error = &file["last_error"];
        assert!(["invalid_file", "unsupported_file"].contains(&error["code"].as_str().unwrap()), "{file}");
        assert!(error["message"].as_str().is_some_and(|message| message.len() > 10), "{file}");
        assert_eq!(file["usage_bytes"], 0);
    }
    let completed = api.get(&format!("{path}/files?filter=completed")).await.1;
    assert_eq!((&completed["last_id"], &completed["data"][0]["last_error"]), (&json!(good), &json!(null)));
    assert_eq!(api.get(&path).await.1["status"], "completed");
}

#[tokio::test]
async fn each_file_is_a_member_though_the_bytes_are_the_same() {
    let server = start().await;
    let api = Api(&server);
    let (first, second) =
        (id(&api.upload("a.md", b"The same words.").await), id(&api.upload("b.md", b"The same words.").await));
    let path = format!("/v1/vector_stores/{}", id(&api.ok("/v1/vector_stores", json!({})).await));
    for file in [&first, &second, &first] {
        let added = api.ok(&format!("{path}/files"), json!({"file_id": file, "attributes": {"n": 1}})).await;
        assert_eq!(id(&added), *file);
        api.until(&format!("{path}/files/{file}"), |file| file["status"] == "completed").await;
    }
    assert_eq!(api.get(&path).await.1["file_counts"]["total"], 2);
    assert_eq!(api.delete(&format!("/v1/files/{first}")).await.0, StatusCode::OK);
    let page = api.ok(&format!("{path}/search"), json!({"query": "same words"})).await;
    assert_eq!(found(&page), ["b.md"], "what happens to one file is nothing to the other");
}

#[tokio::test]
async fn names_may_be_shared_and_ids_are_what_counts() {
    let server = start().await;
    let api = Api(&server);
    let first = api.ok("/v1/vector_stores", json!({"name": "mine", "metadata": {"team": "a"}})).await;
    let second = api.ok("/v1/vector_stores", json!({"name": "mine"})).await;
    let unnamed = api.ok("/v1/vector_stores", json!({})).await;
    assert_eq!(json!([first["name"], second["name"], unnamed["name"]]), json!(["mine", "mine", ""]));
    assert_eq!(first["metadata"], json!({"team": "a"}));
    for name in ["mine", "default", "", "..", "vs_none"] {
        assert_eq!(api.get(&format!("/v1/vector_stores/{name}x")).await.0, StatusCode::NOT_FOUND, "{name}");
    }
    assert_eq!(api.get("/v1/vector_stores/mine").await.0, StatusCode::NOT_FOUND);
    let path = format!("/v1/vector_stores/{}", id(&unnamed));
    let renamed = api.ok(&path, json!({"name": "mine", "metadata": {"k": "v"}})).await;
    assert_eq!((&renamed["name"], &renamed["metadata"]), (&json!("mine"), &json!({"k": "v"})));
    assert_eq!(api.ok(&path, json!({})).await, renamed, "what is not given stays");
    let listed = api.get("/v1/vector_stores?limit=2").await.1;
    assert_eq!(json!([listed["first_id"], listed["has_more"]]), json!([unnamed["id"], true]));
    let rest = api.get(&format!("/v1/vector_stores?after={}", id(&second))).await.1;
    assert_eq!(json!([rest["data"][0]["id"], rest["has_more"]]), json!([first["id"], false]));
}

#[tokio::test]
async fn what_is_not_there_and_what_is_wrong() {
    let server = start().await;
    let api = Api(&server);
    let path = format!("/v1/vector_stores/{}", id(&api.ok("/v1/vector_stores", json!({})).await));
    let file = id(&api.upload("a.txt", b"text").await);
    for path in [
        "/v1/vector_stores/vs_none".to_owned(),
        "/v1/vector_stores/vs_none/files".to_owned(),
        format!("{path}/files/{file}"),
        format!("{path}/files/{file}/content"),
        format!("{path}/file_batches/vsfb_none"),
        format!("{path}/file_batches/vsfb_none/files"),
    ] {
        let (status, refused) = api.get(&path).await;
        assert_eq!((status, &refused["error"]["code"]), (StatusCode::NOT_FOUND, &json!("not_found")), "{path}");
    }
    for (path, body) in [
        ("/v1/vector_stores/vs_none".to_owned(), json!({"name": "x"})),
        ("/v1/vector_stores/vs_none/search".to_owned(), json!({"query": "x"})),
        ("/v1/vector_stores/vs_none/files".to_owned(), json!({"file_id": file})),
        ("/v1/vector_stores".to_owned(), json!({"file_ids": ["file-none"]})),
        (format!("{path}/files"), json!({"file_id": "file-none"})),
        (format!("{path}/files/{file}"), json!({"attributes": {}})),
        (format!("{path}/file_batches"), json!({"file_ids": [file, "file-none"]})),
        (format!("{path}/file_batches/vsfb_none/cancel"), json!({})),
    ] {
        let (status, refused) = api.post(&path, body).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}: {refused}");
    }
    assert_eq!(api.get(&format!("{path}/files")).await.1["data"], json!([]), "a batch is added whole or not at all");
    assert_eq!(api.get("/v1/vector_stores").await.1["data"].as_array().unwrap().len(), 1);
    for (path, body, param) in [
        ("/v1/vector_stores".to_owned(), json!({"name": 7}), "name"),
        (format!("{path}/search"), json!({}), "query"),
        (format!("{path}/search"), json!({"query": "x", "max_num_results": 0}), "max_num_results"),
        (format!("{path}/search"), json!({"query": "x", "filters": {"type": "like"}}), "filters.key"),
        (format!("{path}/files"), json!({}), "file_id"),
        (
            format!("{path}/files"),
            json!({"file_id": file, "chunking_strategy": {"type": "static"}}),
            "chunking_strategy",
        ),
        (format!("{path}/file_batches"), json!({"file_ids": []}), "file_ids"),
    ] {
        let (status, refused) = api.post(&path, body).await;
        assert_eq!((status, &refused["error"]["param"]), (StatusCode::BAD_REQUEST, &json!(param)), "{path}: {refused}");
    }
    let (status, refused) = api.get(&format!("{path}/files?filter=ready")).await;
    assert_eq!((status, &refused["error"]["param"]), (StatusCode::BAD_REQUEST, &json!("filter")));
    assert_eq!(found(&api.ok(&format!("{path}/search"), json!({"query": "x"})).await), Vec::<&str>::new());
}

#[tokio::test]
async fn without_an_embedding_model_nothing_is_taken_in() {
    let server = Running::start(Settings::default()).await;
    let api = Api(&server);
    let path = format!("/v1/vector_stores/{}", id(&api.ok("/v1/vector_stores", json!({"name": "later"})).await));
    let file = id(&api.upload("a.txt", b"text").await);
    for (path, body) in [
        (format!("{path}/files"), json!({"file_id": file})),
        (format!("{path}/file_batches"), json!({"file_ids": [file]})),
        (format!("{path}/search"), json!({"query": "x"})),
        ("/v1/vector_stores".to_owned(), json!({"file_ids": [file]})),
    ] {
        let (status, refused) = api.post(&path, body).await;
        let expected = (StatusCode::SERVICE_UNAVAILABLE, &json!("no_embedding_model"));
        assert_eq!((status, &refused["error"]["code"]), expected, "{path}: {refused}");
    }
}

#[tokio::test]
async fn answers_are_what_the_document_says() {
    let server = start().await;
    let api = Api(&server);
    let document = api.get("/openapi.json").await.1;
    let validate = |schema: &str, answer: &Value| {
        let root = json!({"$ref": format!("#/components/schemas/{schema}"), "components": document["components"]});
        let validator = jsonschema::validator_for(&root).expect("the schema compiles");
        let problems: Vec<String> = validator.iter_errors(answer).map(|error| error.to_string()).collect();
        assert!(problems.is_empty(), "{schema}: {problems:?} in {answer}");
    };
    let (store, files) = store_of_topics(&api).await;
    let path = format!("/v1/vector_stores/{store}");
    let search = json!({"query": "bread", "filters": {"type": "ne", "key": "a", "value": 1}, "rewrite_query": true});
    validate("VectorStoreSearchRequest", &search);
    validate("VectorStoreSearchResults", &api.ok(&format!("{path}/search"), search).await);
    let batch = json!({"files": [{"file_id": files[0], "attributes": {"a": 1}}]});
    validate("FileBatchRequest", &batch);
    let batch = api.ok(&format!("{path}/file_batches"), batch).await;
    validate("FileBatch", &batch);
    validate("FileBatch", &api.ok(&format!("{path}/file_batches/{}/cancel", id(&batch)), json!({})).await);
    for (schema, path) in [
        ("File", format!("/v1/files/{}", files[0])),
        ("FileList", "/v1/files".to_owned()),
        ("VectorStore", path.clone()),
        ("VectorStoreList", "/v1/vector_stores".to_owned()),
        ("VectorStoreFile", format!("{path}/files/{}", files[0])),
        ("VectorStoreFileList", format!("{path}/files")),
        ("FileContentPage", format!("{path}/files/{}/content", files[0])),
    ] {
        validate(schema, &api.get(&path).await.1);
    }
    validate("Deleted", &api.delete(&path).await.1);
}
