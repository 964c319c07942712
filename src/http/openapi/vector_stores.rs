//! The document's part about files and vector stores.

use serde_json::{Value, json};

use super::document::{Answer, GENERATING, READING, get, json_answer, operation, post, request};
use crate::wire::policy;

/// Refusals of a route without a body.
const PLAIN: [u16; 4] = [400, 401, 404, 500];

fn path_parameters(mut operation: Value, names: &[&str]) -> Value {
    let parameters =
        names.iter().map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}));
    operation["parameters"] = parameters.collect();
    operation
}

fn listed(mut operation: Value, largest: usize, more: &[(&str, Value)]) -> Value {
    let text = json!({"type": "string"});
    let mut parameters = vec![
        ("limit", json!({"type": "integer", "minimum": 1, "maximum": largest})),
        ("order", json!({"enum": ["asc", "desc"]})),
        ("after", text.clone()),
        ("before", text),
    ];
    parameters.extend(more.iter().cloned());
    let parameters =
        parameters.into_iter().map(|(name, schema)| json!({"name": name, "in": "query", "schema": schema}));
    if operation["parameters"].is_null() {
        operation["parameters"] = json!([]);
    }
    if let Some(all) = operation["parameters"].as_array_mut() {
        all.extend(parameters);
    }
    operation
}

pub(super) fn paths() -> Value {
    let one = |id, summary, schema: &str| get(id, summary, json_answer("It.", schema), &PLAIN);
    let many = |id, summary, schema: &str| get(id, summary, json_answer("A page of them.", schema), &PLAIN);
    let delete = |id, summary| operation(id, summary, json_answer("It is gone.", "Deleted"), &PLAIN);
    let change = |id, summary, body, schema: &str| post(id, summary, body, json_answer("It.", schema), &READING);
    let mut upload = operation("createFile", "Upload a file", json_answer("The file.", "File"), &READING);
    upload["requestBody"] = json!({
        "required": true,
        "content": {"multipart/form-data": {"schema": {"$ref": "#/components/schemas/FileUpload"}}},
    });
    let bytes = json!({"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}});
    let content =
        get("downloadFile", "The bytes of a file", Answer { description: "The bytes.", content: bytes }, &PLAIN);
    let status = [("filter", json!({"enum": ["in_progress", "completed", "failed", "cancelled"]}))];
    let search = post(
        "searchVectorStore",
        "Passages of a vector store that are near to a query",
        "VectorStoreSearchRequest",
        json_answer("The passages, the nearest first.", "VectorStoreSearchResults"),
        &GENERATING,
    );
    let cancel =
        operation("cancelFileBatch", "Read no more of a batch", json_answer("The batch.", "FileBatch"), &PLAIN);
    let store = ["id"];
    let file = ["id", "file_id"];
    let batch = ["id", "batch_id"];
    json!({
        "/v1/files": {
            "post": upload,
            "get": listed(many("listFiles", "Uploaded files", "FileList"), 10_000, &[("purpose", json!({"type": "string"}))]),
        },
        "/v1/files/{id}": {
            "get": path_parameters(one("retrieveFile", "One file", "File"), &store),
            "delete": path_parameters(delete("deleteFile", "Delete a file, and what vector stores have of it"), &store),
        },
        "/v1/files/{id}/content": {"get": path_parameters(content, &store)},
        "/v1/vector_stores": {
            "post": change("createVectorStore", "Make a vector store", "VectorStoreRequest", "VectorStore"),
            "get": listed(many("listVectorStores", "Vector stores", "VectorStoreList"), 100, &[]),
        },
        "/v1/vector_stores/{id}": {
            "get": path_parameters(one("getVectorStore", "One vector store", "VectorStore"), &store),
            "post": path_parameters(
                change("modifyVectorStore", "Change a vector store", "VectorStoreUpdate", "VectorStore"),
                &store,
            ),
            "delete": path_parameters(delete("deleteVectorStore", "Delete a vector store; its files stay"), &store),
        },
        "/v1/vector_stores/{id}/search": {"post": path_parameters(search, &store)},
        "/v1/vector_stores/{id}/files": {
            "post": path_parameters(
                change("createVectorStoreFile", "Add a file", "VectorStoreFileRequest", "VectorStoreFile"),
                &store,
            ),
            "get": listed(
                path_parameters(many("listVectorStoreFiles", "Files of a vector store", "VectorStoreFileList"), &store),
                100,
                &status,
            ),
        },
        "/v1/vector_stores/{id}/files/{file_id}": {
            "get": path_parameters(one("getVectorStoreFile", "One file of a vector store", "VectorStoreFile"), &file),
            "post": path_parameters(
                change("updateVectorStoreFileAttributes", "Other attributes", "VectorStoreFileUpdate", "VectorStoreFile"),
                &file,
            ),
            "delete": path_parameters(delete("deleteVectorStoreFile", "Take a file out; the file itself stays"), &file),
        },
        "/v1/vector_stores/{id}/files/{file_id}/content": {
            "get": path_parameters(one("retrieveVectorStoreFileContent", "What was read of it", "FileContentPage"), &file),
        },
        "/v1/vector_stores/{id}/file_batches": {
            "post": path_parameters(
                change("createVectorStoreFileBatch", "Add files in one step", "FileBatchRequest", "FileBatch"),
                &store,
            ),
        },
        "/v1/vector_stores/{id}/file_batches/{batch_id}": {
            "get": path_parameters(one("getVectorStoreFileBatch", "How a batch is", "FileBatch"), &batch),
        },
        "/v1/vector_stores/{id}/file_batches/{batch_id}/cancel": {"post": path_parameters(cancel, &batch)},
        "/v1/vector_stores/{id}/file_batches/{batch_id}/files": {
            "get": listed(
                path_parameters(many("listFilesInVectorStoreBatch", "Files of a batch", "VectorStoreFileList"), &batch),
                100,
                &status,
            ),
        },
    })
}

fn list_of(schema: &str) -> Value {
    json!({
        "type": "object",
        "required": ["object", "data", "first_id", "last_id", "has_more"],
        "properties": {
            "object": {"const": "list"},
            "data": {"type": "array", "items": {"$ref": format!("#/components/schemas/{schema}")}},
            "first_id": {"type": ["string", "null"]},
            "last_id": {"type": ["string", "null"]},
            "has_more": {"type": "boolean"},
        },
    })
}

pub(super) fn schemas() -> Value {
    let count = json!({"type": "integer", "minimum": 0});
    let text = json!({"type": "string"});
    let attributes = json!({"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}});
    let pieces = json!({"type": "array", "items": {
        "type": "object",
        "required": ["type", "text"],
        "properties": {"type": {"const": "text"}, "text": text},
    }});
    let counts = json!({
        "type": "object",
        "required": ["in_progress", "completed", "failed", "cancelled", "total"],
        "properties": {"in_progress": count, "completed": count, "failed": count, "cancelled": count, "total": count},
    });
    let status = json!({"enum": ["in_progress", "completed", "failed", "cancelled"]});
    let mut upload = request(&[policy::FILE_UPLOAD], &["purpose"]);
    upload["required"] = json!(["file", "purpose"]);
    upload["properties"]["file"] = json!({"type": "string", "format": "binary"});
    json!({
        "FileUpload": upload,
        "VectorStoreRequest": request(&[policy::VECTOR_STORE_CREATE], &[]),
        "VectorStoreUpdate": request(&[policy::VECTOR_STORE_UPDATE], &[]),
        "VectorStoreFileRequest": request(&[policy::VECTOR_STORE_FILE], &["file_id"]),
        // Null is a value here.
        "VectorStoreFileUpdate": {
            "type": "object",
            "required": ["attributes"],
            "properties": request(&[policy::VECTOR_STORE_FILE_UPDATE], &[])["properties"],
        },
        "FileBatchRequest": request(&[policy::FILE_BATCH], &[]),
        "VectorStoreSearchRequest": request(&[policy::VECTOR_STORE_SEARCH], &["query"]),
        "File": {
            "type": "object",
            "required": ["id", "object", "bytes", "created_at", "filename", "purpose", "status"],
            "properties": {
                "id": text, "object": {"const": "file"}, "bytes": count, "created_at": count, "filename": text,
                "purpose": text, "status": {"const": "processed"},
            },
        },
        "FileList": list_of("File"),
        "Deleted": {
            "type": "object",
            "required": ["id", "object", "deleted"],
            "properties": {"id": text, "object": text, "deleted": {"const": true}},
        },
        "VectorStore": {
            "type": "object",
            "required": ["id", "object", "created_at", "name", "usage_bytes", "file_counts", "status", "metadata"],
            "properties": {
                "id": text, "object": {"const": "vector_store"}, "created_at": count, "name": text, "usage_bytes": count,
                "file_counts": counts, "status": {"enum": ["in_progress", "completed"]}, "metadata": attributes,
            },
        },
        "VectorStoreList": list_of("VectorStore"),
        "VectorStoreFile": {
            "type": "object",
            "required": ["id", "object", "created_at", "vector_store_id", "status", "last_error", "usage_bytes"],
            "properties": {
                "id": text, "object": {"const": "vector_store.file"}, "created_at": count, "vector_store_id": text,
                "status": status, "usage_bytes": count, "attributes": attributes,
                "last_error": {
                    "type": ["object", "null"],
                    "required": ["code", "message"],
                    "properties": {"code": {"enum": ["server_error", "unsupported_file", "invalid_file"]}, "message": text},
                },
            },
        },
        "VectorStoreFileList": list_of("VectorStoreFile"),
        "FileBatch": {
            "type": "object",
            "required": ["id", "object", "created_at", "vector_store_id", "status", "file_counts"],
            "properties": {
                "id": text, "object": {"const": "vector_store.files_batch"}, "created_at": count,
                "vector_store_id": text, "status": status, "file_counts": counts,
            },
        },
        "FileContentPage": {
            "type": "object",
            "required": ["object", "data", "has_more"],
            "properties": {
                "object": {"const": "vector_store.file_content.page"}, "file_id": text, "filename": text,
                "attributes": attributes, "data": pieces, "has_more": {"type": "boolean"},
            },
        },
        "VectorStoreSearchResults": {
            "type": "object",
            "required": ["object", "search_query", "data", "has_more", "next_page"],
            "properties": {
                "object": {"const": "vector_store.search_results.page"},
                "search_query": {"type": "array", "items": text},
                "data": {"type": "array", "items": {
                    "type": "object",
                    "required": ["file_id", "filename", "score", "attributes", "content"],
                    "properties": {
                        "file_id": text, "filename": text, "score": {"type": "number", "minimum": 0, "maximum": 1},
                        "attributes": attributes, "content": pieces,
                    },
                }},
                "has_more": {"type": "boolean"},
                "next_page": {"type": ["string", "null"]},
            },
        },
    })
}
