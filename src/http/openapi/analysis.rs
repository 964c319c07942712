//! The document's part on `/analysis`.

use serde_json::{Value, json};

use super::document::{get, json_answer, post, reference, request};
use crate::wire::policy::{ANALYSIS, LOOKUP};

pub(super) fn paths() -> Value {
    let job = json!([{"name": "job_id", "in": "path", "required": true, "schema": {"type": "string"}}]);
    let limit = json!({"type": "integer", "minimum": 1, "maximum": 100, "default": 20});
    let mut create = post(
        "createAnalysis",
        "Answer a question about a company from documents, in the background",
        "AnalysisRequest",
        json_answer("The job, which has been taken on.", "AnalysisJob"),
        &[400, 401, 404, 408, 413, 415, 500, 503],
    );
    if let Value::Object(responses) = &mut create["responses"]
        && let Some(answer) = responses.shift_remove("200")
    {
        responses.insert("202".to_owned(), answer);
    }
    let mut list =
        get("listAnalyses", "Analyses, the newest first", json_answer("The jobs.", "AnalysisList"), &[400, 401]);
    list["parameters"] = json!([{"name": "limit", "in": "query", "schema": limit}]);
    let mut retrieve =
        get("retrieveAnalysis", "One analysis", json_answer("The job as it is.", "AnalysisJob"), &[401, 403, 404]);
    retrieve["description"] = json!(
        "Over a WebSocket, all events of the job as JSON texts, from the first; after the last one (`done`, `failed` or \
         `cancelled`) the server closes."
    );
    retrieve["parameters"] = job.clone();
    let mut cancel =
        get("cancelAnalysis", "Cancel an analysis", json_answer("The job as it is now.", "AnalysisJob"), &[401, 404]);
    cancel["parameters"] = job;
    json!({
        "/analysis": {"get": list, "post": create},
        "/analysis/{job_id}": {"get": retrieve, "delete": cancel},
    })
}

pub(super) fn schemas() -> Value {
    let count = json!({"type": "integer", "minimum": 0});
    let text = json!({"type": "string"});
    let share = json!({"type": "number", "minimum": 0, "maximum": 1});
    let result = json!({
        "type": ["object", "null"],
        "required": ["summary", "sources", "confidence", "confidence_is_rated", "finish_reason", "model"],
        "properties": {
            "summary": text,
            "sources": {"type": "array", "items": reference("Source")},
            "sources_left_out": count,
            "confidence": share,
            "confidence_is_rated": {"type": "boolean"},
            "finish_reason": {"enum": ["stop", "length"]},
            "model": text,
            "tokens_used": count,
            "usage": {"type": "object"},
        },
    });
    let event = json!({
        "type": "object",
        "required": ["number", "type"],
        "properties": {
            "number": count,
            "type": {"enum": [
                "started", "waiting_for_documents", "searching", "passages", "generating", "text", "attempt_failed",
                "done", "failed", "cancelled",
            ]},
        },
    });
    json!({
        "AnalysisRequest": request(&[LOOKUP, ANALYSIS], &["company_name", "question"]),
        "AnalysisJob": {
            "type": "object",
            "required": ["job_id", "status", "company_name", "question", "attempts", "created_at", "updated_at"],
            "properties": {
                "job_id": text,
                "status": {"enum": ["queued", "running", "done", "failed", "cancelled"]},
                "company_name": text,
                "question": text,
                "attempts": count,
                "created_at": count,
                "updated_at": count,
                "events": {"type": "array", "items": event},
                "result": result,
                "error": {"type": ["string", "null"]},
            },
        },
        "AnalysisList": {
            "type": "object",
            "required": ["jobs"],
            "properties": {"jobs": {"type": "array", "items": {"$ref": "#/components/schemas/AnalysisJob"}}},
        },
    })
}
