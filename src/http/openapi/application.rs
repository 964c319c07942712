//! The application contract's part of the document: questions, documents, collections.

use serde_json::{Value, json};

use super::document::{Answer, GENERATING, get, json_answer, operation, post, reference, request};
use crate::wire::policy::{APP_CHAT, APP_GENERATE, ASK, GENERATION, LOOKUP, SEARCH};

/// Of one that looks into documents: they may still be being read, or be of another embedding model.
const ASKING: [u16; 10] = [400, 401, 404, 408, 409, 413, 415, 500, 503, 504];

/// Frames of the application contract.
fn app_frames(description: &'static str) -> Answer {
    let schema = json!({"type": "string", "description": description});
    Answer { description: "The answer as it comes.", content: json!({"text/event-stream": {"schema": schema}}) }
}

/// An operation on what its path names.
fn named(mut operation: Value, names: &[&str]) -> Value {
    let parameter = |name: &&str| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}});
    operation["parameters"] = names.iter().map(parameter).collect();
    operation
}

pub(super) fn paths() -> Value {
    let frames = "`{\"sources\"}` first, `{\"token\"}` as they come, and the answer without its text, with `\"done\": true`, last.";
    let ask =
        |id, summary| post(id, summary, "AskRequest", json_answer("The answer and its sources.", "AskAnswer"), &ASKING);
    let ask_stream =
        post("askStream", "Answer a question from documents, streamed", "AskRequest", app_frames(frames), &ASKING);
    let chat_of_app = post(
        "chat",
        "Answer a conversation from documents",
        "AppChatRequest",
        json_answer("The answer and its citations.", "AppChatAnswer"),
        &ASKING,
    );
    let chat_stream = post(
        "chatStream",
        "Answer a conversation from documents, streamed",
        "AppChatRequest",
        app_frames(frames),
        &ASKING,
    );
    let generate = post(
        "generate",
        "Answer a prompt",
        "GenerateRequest",
        json_answer("The answer.", "GenerateAnswer"),
        &GENERATING,
    );
    let generate_stream =
        post("generateStream", "Answer a prompt, streamed", "GenerateRequest", app_frames(frames), &GENERATING);
    let search = post(
        "search",
        "Find passages in documents",
        "SearchRequest",
        json_answer("The passages, best first.", "SearchAnswer"),
        &ASKING,
    );
    let mut upload = operation(
        "uploadDocument",
        "Upload a document, which is then read in the background",
        json_answer("The document, as `processing` unless its bytes were known.", "Document"),
        &[400, 401, 404, 408, 413, 415, 500],
    );
    upload["requestBody"] = json!({"required": true, "content": {"multipart/form-data": {"schema": {
        "type": "object",
        "required": ["file"],
        "properties": {
            "file": {"type": "string", "contentMediaType": "application/octet-stream"},
            "collection": {"type": "string", "description": "A name or an id; made if it is not there. Default `default`."},
            "attributes": {"type": "string", "contentMediaType": "application/json", "description": "What `filters` go by."},
            "replaces": {"type": "string", "description": "The id of the document whose place it takes when it has been read."},
        },
    }}}});
    let mut list_documents = get(
        "listDocuments",
        "All documents",
        json_answer("The documents, the newest first.", "DocumentList"),
        &[400, 401, 404],
    );
    list_documents["parameters"] = json!([{"name": "collection", "in": "query", "schema": {"type": "string"}}]);
    let document =
        named(get("retrieveDocument", "One document", json_answer("The document.", "Document"), &[401, 404]), &["id"]);
    let delete_document = named(
        get("deleteDocument", "Delete a document and its file", json_answer("It is gone.", "AnyObject"), &[401, 404]),
        &["id"],
    );
    let collections = get("listCollections", "All collections", json_answer("The collections.", "AnyObject"), &[401]);
    let delete_collection = named(
        get("deleteCollection", "Delete a collection", json_answer("What it was.", "AnyObject"), &[401, 404]),
        &["name"],
    );
    let reindex = named(
        get(
            "reindexCollection",
            "Make a collection's vectors anew with the served embedding model",
            json_answer("The job.", "Reindex"),
            &[401, 404, 503],
        ),
        &["name"],
    );
    let reindex_state = named(
        get("retrieveReindex", "How far that is", json_answer("The job.", "Reindex"), &[401, 404]),
        &["name", "job_id"],
    );
    json!({
        "/ask": {"post": ask("ask", "Answer a question from documents")},
        "/ask/stream": {"post": ask_stream},
        "/generate": {"post": generate},
        "/stream": {"post": generate_stream},
        "/api/v1/chat": {"post": chat_of_app},
        "/api/v1/chat/stream": {"post": chat_stream},
        "/api/v1/search": {"post": search},
        "/api/v1/documents/upload": {"post": upload},
        "/api/v1/documents": {"get": list_documents},
        "/api/v1/documents/{id}": {"get": document, "delete": delete_document},
        "/api/v1/collections": {"get": collections},
        "/api/v1/collections/{name}": {"delete": delete_collection},
        "/api/v1/collections/{name}/reindex": {"post": reindex},
        "/api/v1/collections/{name}/reindex/{job_id}": {"get": reindex_state},
    })
}

pub(super) fn schemas() -> Value {
    let count = json!({"type": "integer", "minimum": 0});
    let text = json!({"type": "string"});
    let text_or_null = json!({"type": ["string", "null"]});
    let share = json!({"type": "number", "minimum": 0, "maximum": 1});
    let object = json!({"type": "object"});
    let grounding =
        json!({"enum": ["extract", "quote", "free"], "description": "How the answer is bound to its sources."});
    let unsupported = json!({
        "type": "array",
        "items": text,
        "description": "Sentences that the model wrote and that no passage supports.",
    });
    let source = json!({
        "type": "object",
        "required": ["title", "content_preview", "similarity_score", "document_id", "filename"],
        "properties": {
            "title": text,
            "content_preview": {"type": "string", "maxLength": 200},
            "similarity_score": share,
            "rerank_score": share,
            "document_id": text,
            "filename": text,
            "chunks": {"type": "array", "items": count, "description": "Positions of its first and last piece."},
            "place": {"type": ["integer", "null"], "description": "Page, sheet or line at which it begins."},
            "text": text,
            "attributes": object,
        },
    });
    let citation = json!({
        "type": "object",
        "required": ["document_id", "chunk_index", "text", "score"],
        "properties": {"document_id": text, "chunk_index": count, "text": text, "score": share, "title": text, "filename": text},
    });
    let document = json!({
        "type": "object",
        "required": ["document_id", "filename", "status"],
        "properties": {
            "document_id": text,
            "filename": text,
            "status": {"enum": ["processing", "ready", "failed", "cancelled"]},
            "error": {"type": ["object", "null"], "properties": {"code": text, "message": text}},
            "progress": {"type": ["object", "null"]},
            "collection": text,
            "bytes": count,
            "chunks": count,
            "attributes": object,
            "created_at": count,
            "updated_at": count,
        },
    });
    json!({
        "AskRequest": request(&[LOOKUP, ASK], &["question"]),
        "AppChatRequest": request(&[LOOKUP, APP_CHAT], &["messages"]),
        "GenerateRequest": request(&[GENERATION, APP_GENERATE], &["prompt"]),
        "SearchRequest": request(&[LOOKUP, SEARCH], &["query"]),
        "Source": source,
        "AskAnswer": {
            "type": "object",
            "required": ["answer", "model", "tokens_used", "latency_ms"],
            "properties": {
                "answer": text,
                "sources": {"type": "array", "items": reference("Source")},
                "sources_left_out": count,
                "grounding": grounding,
                "unsupported": unsupported,
                "model": text,
                "tokens_used": count,
                "latency_ms": count,
                "confidence": share,
                "confidence_is_rated": {"type": "boolean"},
                "receipt": reference("Receipt"),
            },
        },
        "AppChatAnswer": {
            "type": "object",
            "required": ["response", "citations", "tokens_used", "model", "processing_time_ms"],
            "properties": {
                "response": text,
                "citations": {"type": "array", "items": citation},
                "grounding": grounding,
                "unsupported": unsupported,
                "tokens_used": count,
                "model": text,
                "processing_time_ms": count,
                "receipt": reference("Receipt"),
            },
        },
        "GenerateAnswer": {
            "type": "object",
            "required": ["output", "model"],
            "properties": {"output": text, "model": text, "tokens_used": count, "latency_ms": count, "receipt": reference("Receipt")},
        },
        "SearchAnswer": {
            "type": "object",
            "required": ["query", "passages"],
            "properties": {"query": text, "passages": {"type": "array", "items": reference("Source")}, "latency_ms": count},
        },
        "Document": document,
        "DocumentList": {
            "type": "object",
            "required": ["documents", "total"],
            "properties": {"documents": {"type": "array", "items": document}, "total": count},
        },
        "Reindex": {
            "type": "object",
            "required": ["job_id", "status"],
            "properties": {
                "job_id": text,
                "status": {"enum": ["queued", "running", "done", "failed", "cancelled"]},
                "progress": {"type": ["object", "null"]},
                "result": {"type": ["object", "null"]},
                "error": text_or_null,
            },
        },
    })
}
