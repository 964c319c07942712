//! The schemas that the document's operations refer to.

use serde_json::{Value, json};

use super::document::{chat_request, completion_request, embeddings_request, rerank_request};

fn quote() -> Value {
    let count = json!({"type": "integer", "minimum": 0});
    let range = json!({
        "type": "object",
        "description": "For the prompt alone, and with the longest answer.",
        "required": ["at_least", "at_most"],
        "properties": {"at_least": {"type": "number", "minimum": 0}, "at_most": {"type": "number", "minimum": 0}},
    });
    json!({
        "type": "object",
        "required": ["object", "model", "fits", "would_serve", "candidates"],
        "properties": {
            "object": {"const": "quote"},
            "model": {"type": "string"},
            "fits": {"type": "boolean"},
            "would_serve": {"type": ["string", "null"]},
            "candidates": {"type": "array", "items": {
                "type": "object",
                "required": ["served_by", "model", "prompt_tokens", "cost_usd"],
                "properties": {
                    "served_by": {"type": "string"},
                    "model": {"type": "string"},
                    "prompt_tokens": count,
                    "prompt_tokens_exact": {"type": "boolean"},
                    "max_completion_tokens": count,
                    "context_length": count,
                    "expected_wait_ms": {"type": "number", "minimum": 0},
                    "compute_ms": range,
                    "cost_usd": range,
                    "refusal": {"type": ["string", "null"]},
                },
            }},
        },
    })
}

/// An object with these fields, all of which are there.
fn whole(fields: &Value) -> Value {
    let names: Vec<&String> = fields.as_object().map(|fields| fields.keys().collect()).unwrap_or_default();
    json!({"type": "object", "required": names, "properties": fields})
}

fn receipt() -> Value {
    let count = json!({"type": "integer", "minimum": 0});
    let amount = json!({"type": "number", "minimum": 0});
    let text_or_null = json!({"type": ["string", "null"]});
    let mut receipt = whole(&json!({
        "request_id": {"type": "string"},
        "served_by": {"type": "string", "description": "`local`, an upstream's name or `cache`; `none` where no model was needed."},
        "model": text_or_null,
        "fallback_reason": text_or_null,
        "attempts": count,
        "cache": text_or_null,
        "prompt_tokens": count, "cached_tokens": count, "completion_tokens": count,
        "queue_ms": amount, "prefill_ms": amount, "decode_ms": amount, "compute_ms": amount, "latency_ms": amount,
        "cost_usd": amount,
        "cost_micro_usd": count,
    }));
    receipt["properties"]["grounding"] =
        json!({"enum": ["extract", "quote", "free"], "description": "Of answers from documents alone."});
    receipt
}

fn metrics_summary() -> Value {
    let count = json!({"type": "integer", "minimum": 0});
    let amount = json!({"type": "number", "minimum": 0});
    whole(&json!({
        "total_cost_usd": amount, "total_cost_micro_usd": count,
        "total_requests": count, "avg_latency_ms": amount,
        "total_input_tokens": count, "total_cached_tokens": count, "total_output_tokens": count,
        "total_compute_seconds": amount, "total_bytes_out": count,
        "requests_by_outcome": whole(&json!({
            "finished": count, "refused": count, "failed": count, "cancelled": count, "timed_out": count,
        })),
        "ledger_rows_lost": count,
    }))
}

fn usage_report() -> Value {
    let count = json!({"type": "integer", "minimum": 0});
    let amount = json!({"type": "number", "minimum": 0});
    let figures = whole(&json!({
        "requests": count, "finished": count, "refused": count, "failed": count, "cancelled": count, "timed_out": count,
        "prompt_tokens": count, "cached_tokens": count, "completion_tokens": count, "reasoning_tokens": count,
        "avg_latency_ms": amount, "compute_seconds": amount, "bytes_out": count,
        "cost_usd": amount, "cost_micro_usd": count,
    }));
    let mut entry = figures.clone();
    for key in ["day", "caller", "model", "provider"] {
        entry["properties"][key] = json!({"type": "string", "description": "Where it is grouped by."});
    }
    whole(&json!({
        "object": {"const": "usage"},
        "from": {"type": "integer", "description": "Unix seconds."},
        "to": {"type": "integer", "description": "Unix seconds; this one is not counted in."},
        "group_by": {"type": "array", "items": {"type": "string"}},
        "data": {"type": "array", "items": entry},
        "total": figures,
    }))
}

pub(super) fn all() -> Value {
    let count = json!({"type": "integer", "minimum": 0});
    let text_or_null = json!({"type": ["string", "null"]});
    let tokens = json!({"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 4_294_967_295_u32}});
    let reason = json!({"enum": ["stop", "length", "tool_calls", null]});
    let usage = json!({
        "type": ["object", "null"],
        "properties": {
            "prompt_tokens": count, "completion_tokens": count, "total_tokens": count,
            "prompt_tokens_details": {"type": "object", "properties": {"cached_tokens": count}},
            "completion_tokens_details": {"type": "object", "properties": {"reasoning_tokens": count}},
        },
    });
    let timings = json!({"type": "object", "description": "As llama-server names them."});
    let call = json!({
        "type": "object",
        "properties": {
            "index": count,
            "id": {"type": "string"},
            "type": {"const": "function"},
            "function": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "arguments": {"type": "string", "description": "JSON."}},
            },
        },
    });
    let answer = |object: &str, choice: Value| {
        json!({
            "type": "object",
            "required": ["id", "object", "created", "model", "choices"],
            "properties": {
                "id": {"type": "string"},
                "object": {"const": object},
                "created": count,
                "model": {"type": "string"},
                "system_fingerprint": text_or_null,
                "choices": {"type": "array", "items": choice},
                "usage": usage,
                "receipt": {"$ref": "#/components/schemas/Receipt"},
                "timings": timings,
            },
        })
    };
    let message = |role: Value| {
        json!({
            "type": "object",
            "properties": {
                "role": role,
                "content": text_or_null,
                "refusal": text_or_null,
                "reasoning_content": text_or_null,
                "tool_calls": {"type": ["array", "null"], "items": call},
            },
        })
    };
    let logprobs = json!({"type": ["object", "null"]});
    let model = json!({
        "type": "object",
        "required": ["id", "object", "created", "owned_by"],
        "properties": {
            "id": {"type": "string"},
            "object": {"const": "model"},
            "created": count,
            "owned_by": {"type": "string"},
            "context_length": count,
        },
    });
    let mut schemas = json!({
        "ChatRequest": chat_request(),
        "CompletionRequest": completion_request(),
        "EmbeddingsRequest": embeddings_request(),
        "RerankRequest": rerank_request(),
        "ChatMessage": {
            "type": "object",
            "required": ["role"],
            "properties": {
                "role": {"enum": ["system", "developer", "user", "assistant", "tool", "function"]},
                "content": {
                    "anyOf": [
                        {"type": ["string", "null"]},
                        {"type": "array", "items": {
                            "type": "object",
                            "required": ["type", "text"],
                            "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                        }},
                    ],
                },
                "name": text_or_null,
                "tool_calls": {"type": ["array", "null"], "items": call},
                "tool_call_id": text_or_null,
            },
        },
        "Tool": {
            "type": "object",
            "required": ["type", "function"],
            "properties": {
                "type": {"const": "function"},
                "function": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {
                        "name": {"type": "string", "minLength": 1},
                        "description": text_or_null,
                        "parameters": {"type": ["object", "null"], "description": "JSON Schema of the arguments."},
                        "strict": {"type": ["boolean", "null"]},
                    },
                },
            },
        },
        "ChatCompletion": answer("chat.completion", json!({
            "type": "object",
            "properties": {
                "index": count,
                "message": message(json!({"const": "assistant"})),
                "logprobs": logprobs,
                "finish_reason": reason,
            },
        })),
        "ChatCompletionChunk": answer("chat.completion.chunk", json!({
            "type": "object",
            "properties": {
                "index": count,
                "delta": message(json!({"enum": ["assistant", null]})),
                "logprobs": logprobs,
                "finish_reason": reason,
            },
        })),
        "Completion": answer("text_completion", json!({
            "type": "object",
            "properties": {
                "index": count,
                "text": {"type": "string"},
                "logprobs": logprobs,
                "finish_reason": reason,
            },
        })),
        "Embeddings": {
            "type": "object",
            "required": ["object", "data", "model", "usage"],
            "properties": {
                "object": {"const": "list"},
                "data": {"type": "array", "items": {
                    "type": "object",
                    "required": ["object", "index", "embedding"],
                    "properties": {
                        "object": {"const": "embedding"},
                        "index": count,
                        "embedding": {"anyOf": [
                            {"type": "array", "items": {"type": "number"}},
                            {"type": "string", "description": "Base64 of little-endian f32."},
                        ]},
                    },
                }},
                "model": {"type": "string"},
                "usage": {"type": "object", "properties": {"prompt_tokens": count, "total_tokens": count}},
                "receipt": {"$ref": "#/components/schemas/Receipt"},
            },
        },
        "Ranking": {
            "type": "object",
            "required": ["model", "results", "usage"],
            "properties": {
                "model": {"type": "string"},
                "results": {"type": "array", "items": {
                    "type": "object",
                    "required": ["index", "relevance_score"],
                    "properties": {
                        "index": count,
                        "relevance_score": {"type": "number", "minimum": 0, "maximum": 1},
                        "document": {"type": "object", "required": ["text"], "properties": {"text": {"type": "string"}}},
                    },
                }},
                "usage": {"type": "object", "properties": {"prompt_tokens": count, "total_tokens": count}},
                "receipt": {"$ref": "#/components/schemas/Receipt"},
            },
        },
        "QuoteRequest": {"anyOf": [
            {"$ref": "#/components/schemas/ChatRequest"},
            {"$ref": "#/components/schemas/CompletionRequest"},
        ]},
        "Quote": quote(),
        "Receipt": receipt(),
        "MetricsSummary": metrics_summary(),
        "UsageReport": usage_report(),
        "Model": model,
        "ModelList": {
            "type": "object",
            "required": ["object", "data"],
            "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": {"$ref": "#/components/schemas/Model"}}},
        },
        "TokenizeRequest": {
            "type": "object",
            "required": ["content"],
            "properties": {
                "content": {"type": "string"},
                "add_special": {"type": ["boolean", "null"]},
                "parse_special": {"type": ["boolean", "null"]},
                "with_pieces": {"type": ["boolean", "null"]},
                "model": text_or_null,
            },
        },
        "Tokens": {
            "type": "object",
            "required": ["tokens"],
            "properties": {"tokens": {"type": "array", "items": {"anyOf": [{"type": "integer"}, {"type": "object"}]}}},
        },
        "DetokenizeRequest": {
            "type": "object",
            "required": ["tokens"],
            "properties": {"tokens": tokens, "model": text_or_null},
        },
        "Content": {"type": "object", "required": ["content"], "properties": {"content": {"type": "string"}}},
        "ApplyTemplateRequest": {
            "type": "object",
            "required": ["messages"],
            "properties": {
                "messages": {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/ChatMessage"}},
                "tools": {"type": ["array", "null"], "items": {"$ref": "#/components/schemas/Tool"}},
                "add_generation_prompt": {"type": ["boolean", "null"]},
                "chat_template_kwargs": {"type": ["object", "null"]},
                "model": text_or_null,
            },
        },
        "PromptText": {"type": "object", "required": ["prompt"], "properties": {"prompt": {"type": "string"}}},
        "Health": {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}},
        "AnyObject": {"type": "object"},
        "Error": {
            "type": "object",
            "required": ["error"],
            "properties": {"error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": text_or_null,
                    "code": text_or_null,
                    "n_prompt_tokens": count,
                    "n_ctx": count,
                },
            }},
        },
    });
    // One entry more in the macro would be over its recursion limit.
    schemas["Me"] = me();
    schemas
}

fn me() -> Value {
    let text_or_null = json!({"type": ["string", "null"]});
    json!({
        "type": "object",
        "required": ["object", "id", "scopes", "limits", "left", "features"],
        "properties": {
            "object": {"const": "caller"},
            "id": {"type": "string"},
            "key_id": text_or_null,
            "scopes": {"type": "array", "items": {"enum": ["chat", "embed", "documents", "admin"]}},
            "models": {"type": ["array", "null"], "items": {"type": "string"}},
            "local_only": {"type": "boolean"},
            "policy": text_or_null,
            "limits": {"type": "object", "additionalProperties": {"type": ["number", "null"]}},
            "left": {"type": "object", "additionalProperties": {"type": ["number", "null"]}},
            "features": {"type": "object", "additionalProperties": {"type": "boolean"}},
        },
    })
}
