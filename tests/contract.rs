//! The OpenAI contract over a scripted model: shapes, refusals and headers.

use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use hearth::{
    http::HttpSettings,
    providers::scripted::{ScriptedChat, Step},
    service::{callers::CallerSettings, health::ServerStatus},
};
use hearth_domain::{
    FinishReason, GenerateEvent, Prompt, Timings, ToolChoice, Usage,
    error::{Error, ErrorKind},
    part::PartReport,
};
use serde_json::{Value, json};

use crate::support::scripted_server::ScriptedServer;

const CHAT: &str = "/v1/chat/completions";

fn chat_body(extra: Value) -> Value {
    let mut body = json!({"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

/// Puts a mark where each run says something else.
fn steady(mut body: Value) -> Value {
    for key in ["id", "created"] {
        if body.get(key).is_some() {
            body[key] = json!(format!("[{key}]"));
        }
    }
    body
}

#[tokio::test]
async fn a_whole_chat_answer_has_every_field() {
    let server = ScriptedServer::hello();
    let answer = server.post(CHAT, chat_body(json!({}))).await;
    assert_eq!(answer.status, StatusCode::OK);
    let fingerprint = format!("fp_hearth_{}", env!("CARGO_PKG_VERSION"));
    assert_eq!(
        steady(answer.json()),
        json!({
            "id": "[id]",
            "object": "chat.completion",
            "created": "[created]",
            "model": "tiny",
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": "Hello!", "refusal": null, "annotations": []},
                "logprobs": null,
                "finish_reason": "stop",
            }],
            "usage": {
                "prompt_tokens": 20,
                "completion_tokens": 6,
                "total_tokens": 26,
                "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
                "completion_tokens_details": {
                    "reasoning_tokens": 0,
                    "audio_tokens": 0,
                    "accepted_prediction_tokens": 0,
                    "rejected_prediction_tokens": 0,
                },
            },
            "system_fingerprint": fingerprint,
            "timings": {
                "cache_n": 0,
                "prompt_n": 20,
                "prompt_ms": 10.0,
                "prompt_per_token_ms": 0.5,
                "prompt_per_second": 2000.0,
                "predicted_n": 6,
                "predicted_ms": 20.0,
                "predicted_per_token_ms": answer.json()["timings"]["predicted_per_token_ms"],
                "predicted_per_second": 300.0,
                "queue_ms": 1.0,
                "compute_ms": 30.0,
            },
            "receipt": {
                "request_id": answer.header("x-request-id"),
                "served_by": "local",
                "model": "tiny",
                "fallback_reason": null,
                "attempts": 0,
                "cache": null,
                "prompt_tokens": 20,
                "cached_tokens": 0,
                "completion_tokens": 6,
                "queue_ms": 1.0,
                "prefill_ms": 10.0,
                "decode_ms": 20.0,
                "compute_ms": 30.0,
                "latency_ms": answer.json()["receipt"]["latency_ms"],
                "cost_usd": 0.03,
                "cost_micro_usd": 30_000,
            },
        })
    );
}

#[tokio::test]
async fn every_answer_carries_the_headers() {
    let server = ScriptedServer::hello();
    for answer in [server.get("/v1/models").await, server.get("/nowhere").await, server.post(CHAT, json!({})).await] {
        assert!(answer.header("x-request-id").is_some_and(|id| id.starts_with("req_")), "{answer:?}");
        assert_eq!(answer.header("openai-version"), Some("2020-10-01"));
        assert!(answer.header("openai-processing-ms").is_some());
    }
    let with_id = |id: &str| Request::get("/v1/models").header("x-request-id", id).body(Body::empty()).unwrap();
    assert_eq!(server.send(with_id("trace-7/a")).await.header("x-request-id"), Some("trace-7/a"));
    assert_ne!(server.send(with_id("a b\"c")).await.header("x-request-id"), Some("a b\"c"));
}

#[tokio::test]
async fn the_root_says_what_answers_to_programs_and_to_people() {
    let server = ScriptedServer::hello();
    let ask = async |method: &str, accept: &str| {
        let request = Request::builder().method(method).uri("/").header("accept", accept).body(Body::empty()).unwrap();
        server.send(request).await
    };
    for accept in ["*/*", "application/json", "text/plain, */*"] {
        let answer = ask("GET", accept).await;
        assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, Some("text/plain; charset=utf-8")));
        assert!(answer.text().starts_with("Hearth ") && answer.text().lines().count() == 1, "{answer:?}");
    }
    let page = ask("GET", "text/html,application/xhtml+xml,*/*;q=0.8").await;
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    assert!(page.text().contains("href=\"/docs/\""), "{page:?}");
    let head = ask("HEAD", "*/*").await;
    assert_eq!((head.status.as_u16(), head.text()), (200, ""));
}

#[tokio::test]
async fn sampling_reaches_the_model_as_written() {
    let server = ScriptedServer::hello();
    let answer = server
        .post(
            CHAT,
            chat_body(json!({
                "model": "org/tiny", "temperature": 0.5, "top_p": 0, "top_k": -1, "min_p": 0.1, "typical_p": 0.9,
                "repeat_penalty": 1.1, "frequency_penalty": -2, "presence_penalty": 2, "logit_bias": {"5": -100, "6": 3},
                "seed": -9_007_199_254_740_991i64, "stop": "x", "stop_token_ids": [7], "min_tokens": 1, "max_tokens": 3,
                "ignore_eos": true, "n": 2, "logprobs": true, "top_logprobs": 2, "return_tokens": true, "timeout": 5,
                "chat_template_kwargs": {"enable_thinking": true}, "reasoning_effort": "none",
            })),
        )
        .await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    let request = &server.chat.requests()[0];
    let sampling = &request.sampling;
    assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k), (0.5, 0.0, 0));
    assert_eq!((sampling.min_p, sampling.typical_p, sampling.repetition_penalty), (0.1, 0.9, 1.1));
    assert_eq!((sampling.frequency_penalty, sampling.presence_penalty), (-2.0, 2.0));
    assert_eq!(*sampling.logit_bias, [(5, -100.0), (6, 3.0)]);
    assert_eq!(sampling.seed, Some(-9_007_199_254_740_991));
    assert_eq!((request.min_tokens, request.max_tokens, request.n), (1, Some(3), 2));
    assert_eq!((&*request.stop, request.stop_token_ids.as_slice()), (["x".to_owned()].as_slice(), [7].as_slice()));
    assert!(request.ignore_eos && request.return_token_ids && request.logprobs == Some(2));
    let Prompt::Chat(prompt) = &request.prompt else { panic!("a chat prompt") };
    assert_eq!(prompt.template_kwargs["enable_thinking"], true, "the caller's own value wins");
    assert_eq!(prompt.template_kwargs["reasoning_effort"], "none");

    let body = answer.json();
    assert_eq!(body["choices"].as_array().unwrap().len(), 2);
    assert_eq!(body["choices"][1]["finish_reason"], "length");
    let first = &body["choices"][0]["logprobs"]["content"][0];
    assert_eq!(
        (&first["token"], &first["id"], &first["bytes"], first["top_logprobs"].as_array().unwrap().len()),
        (&json!("H"), &json!(72), &json!([72]), 2)
    );
}

#[tokio::test]
async fn max_tokens_may_be_zero_and_the_newer_name_wins() {
    let server = ScriptedServer::hello();
    let answer = server.post(CHAT, chat_body(json!({"max_tokens": 0}))).await.json();
    assert_eq!(
        (&answer["choices"][0]["message"]["content"], &answer["choices"][0]["finish_reason"]),
        (&json!(""), &json!("length"))
    );
    server.post(CHAT, chat_body(json!({"max_tokens": 5, "max_completion_tokens": 2}))).await;
    assert_eq!(server.chat.requests()[1].max_tokens, Some(2));
}

#[tokio::test]
async fn each_mistake_is_a_400_that_names_its_field() {
    let server = ScriptedServer::hello();
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}});
    for (change, param) in [
        (json!({"temperature": 9}), "temperature"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"top_p": 2}), "top_p"),
        (json!({"top_p": -0.1}), "top_p"),
        (json!({"n": 0}), "n"),
        (json!({"n": 129}), "n"),
        (json!({"n": 1.5}), "n"),
        (json!({"max_tokens": -1}), "max_tokens"),
        (json!({"max_tokens": 1e30}), "max_tokens"),
        (json!({"min_tokens": 9, "max_tokens": 3}), "min_tokens"),
        (json!({"presence_penalty": 3}), "presence_penalty"),
        (json!({"repetition_penalty": 0}), "repetition_penalty"),
        (json!({"logprobs": true, "top_logprobs": 99}), "top_logprobs"),
        (json!({"top_logprobs": 3}), "top_logprobs"),
        (json!({"logit_bias": {"hello": 1}}), "logit_bias"),
        (json!({"logit_bias": {"256": 1}}), "logit_bias"),
        (json!({"logit_bias": {"5": 101}}), "logit_bias.5"),
        (json!({"seed": 1.5}), "seed"),
        (json!({"stop": [""]}), "stop[0]"),
        (json!({"stop": (0..17).map(|n| n.to_string()).collect::<Vec<_>>()}), "stop"),
        (json!({"stop": 5}), "stop"),
        (json!({"stop": "x".repeat(1025)}), "stop[0]"),
        (json!({"stop": ["x", "é".repeat(1025)]}), "stop[1]"),
        (json!({"stop_token_ids": vec![1; 1025]}), "stop_token_ids"),
        (json!({"stop_token_ids": [-1]}), "stop_token_ids[0]"),
        (json!({"stream": "yes"}), "stream"),
        (json!({"stream_options": {"include_usage": 1}}), "stream_options.include_usage"),
        (json!({"timeout": 0}), "timeout"),
        (json!({"timeout": 1e-9}), "timeout"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": "hi"}), "messages"),
        (json!({"messages": null}), "messages"),
        (json!({"messages": [{"content": "x"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "wizard", "content": "x"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user", "content": 5}]}), "messages[0].content"),
        (json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), "messages[0].content[0]"),
        (json!({"model": null}), "model"),
        (json!({"model": 5}), "model"),
        (json!({"model": "embed"}), "model"),
        (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
        (json!({"tools": [{"type": "custom"}]}), "tools[0].type"),
        (json!({"tools": [tool, tool]}), "tools[1].function.name"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"tools": [tool], "tool_choice": "maybe"}), "tool_choice"),
        (
            json!({"tools": [tool], "tool_choice": {"type": "function", "function": {"name": "g"}}}),
            "tool_choice.function.name",
        ),
        (json!({"response_format": {"type": "yaml"}}), "response_format.type"),
        (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
        (json!({"reasoning_effort": "heroic"}), "reasoning_effort"),
    ] {
        let answer = server.post(CHAT, chat_body(change.clone())).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{change}");
        let error = answer.error();
        assert_eq!(
            (&error["param"], &error["type"]),
            (&json!(param), &json!("invalid_request_error")),
            "{change}: {error}"
        );
    }
    assert_eq!(server.chat.started(), 0);
}

#[tokio::test]
async fn fields_are_honoured_ignored_or_refused_by_name() {
    let server = ScriptedServer::hello();
    let harmless = json!({
        "user": "u", "store": true, "metadata": {"a": "b"}, "service_tier": "auto", "audio": null, "modalities": ["text"],
        "function_call": "none", "best_of": 1, "brand_new_field": {"x": 1}, "parallel_tool_calls": false,
    });
    let answer = server.post(CHAT, chat_body(harmless)).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    assert_eq!(answer.header("x-hearth-ignored"), Some("user, store, metadata, service_tier, brand_new_field"));
    // As the suites of SDKs send them.
    for harmless in [
        json!({"audio": {"voice": "alloy", "format": "wav"}}),
        json!({"prediction": {"type": "content", "content": "x"}}),
        json!({"best_of": 3, "n": 3}),
        json!({"logit_bias": {"foo": 0, "99999999": 0}}),
    ] {
        let answer = server.post(CHAT, chat_body(harmless.clone())).await;
        assert_eq!(answer.status, StatusCode::OK, "{harmless}: {}", answer.text());
    }
    for (field, value) in [
        ("modalities", json!(["text", "audio"])),
        ("web_search_options", json!({"search_context_size": "low"})),
        ("functions", json!([{"name": "f"}])),
        ("mirostat", json!(2)),
        ("best_of", json!(3)),
        ("grammar", json!("root ::= \"x\"")),
        ("verbosity", json!("low")),
    ] {
        let answer = server.post(CHAT, chat_body(json!({ field: value }))).await;
        let error = answer.error();
        assert_eq!((answer.status, &error["param"]), (StatusCode::BAD_REQUEST, &json!(field)));
        assert_eq!(error["code"], "unsupported_parameter");
    }
    let strict = ScriptedServer::with_settings(HttpSettings { strict: true, ..HttpSettings::default() });
    assert_eq!(strict.post(CHAT, chat_body(json!({"user": "u"}))).await.error()["param"], "user");
    assert_eq!(strict.post(CHAT, chat_body(json!({"novel": 1}))).await.error()["param"], "novel");
    assert_eq!(strict.post(CHAT, chat_body(json!({"temperature": 1}))).await.status, StatusCode::OK);
}

#[tokio::test]
async fn bodies_that_are_no_json_object_are_refused_with_their_own_status() {
    let limit = 1 << 16;
    let server = ScriptedServer::with_settings(HttpSettings { body_limit_bytes: limit, ..HttpSettings::default() });
    let deep = format!("{}{}", "[".repeat(30_000), "]".repeat(30_000));
    for (body, expected) in [
        (b"".to_vec(), StatusCode::BAD_REQUEST),
        (b"  \n".to_vec(), StatusCode::BAD_REQUEST),
        (b"{\"model\": \"tiny\", ".to_vec(), StatusCode::BAD_REQUEST),
        (b"[]".to_vec(), StatusCode::BAD_REQUEST),
        (b"\"text\"".to_vec(), StatusCode::BAD_REQUEST),
        (b"null".to_vec(), StatusCode::BAD_REQUEST),
        (b"{\"model\": \"\xff\xfe\"}".to_vec(), StatusCode::BAD_REQUEST),
        (b"{\"n\": 1e999}".to_vec(), StatusCode::BAD_REQUEST),
        (deep.into_bytes(), StatusCode::BAD_REQUEST),
        (vec![b' '; limit + 1], StatusCode::PAYLOAD_TOO_LARGE),
    ] {
        let answer = server.post_bytes(CHAT, body).await;
        assert_eq!(answer.status, expected, "{}", answer.text());
        answer.error();
    }
    let typed = |content_type: &str| {
        let body = Body::from(chat_body(json!({})).to_string());
        Request::post(CHAT).header("content-type", content_type).body(body).unwrap()
    };
    for (content_type, expected) in [
        ("application/json; charset=utf-8", StatusCode::OK),
        ("application/vnd.api+json", StatusCode::OK),
        ("text/plain", StatusCode::UNSUPPORTED_MEDIA_TYPE),
    ] {
        assert_eq!(server.send(typed(content_type)).await.status, expected, "{content_type}");
    }
    let untyped = Request::post(CHAT).body(Body::from(chat_body(json!({})).to_string())).unwrap();
    assert_eq!(server.send(untyped).await.status, StatusCode::OK);
}

#[tokio::test]
async fn unknown_models_routes_and_methods_have_the_error_body() {
    let server = ScriptedServer::hello();
    let unknown = server.post(CHAT, chat_body(json!({"model": "gpt-9"}))).await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    assert_eq!((&unknown.error()["code"], &unknown.error()["param"]), (&json!("model_not_found"), &json!("model")));
    assert_eq!(server.get("/v1/nothing").await.error()["code"], "not_found");
    let method = server.get(CHAT).await;
    assert_eq!((method.status, method.header("allow")), (StatusCode::METHOD_NOT_ALLOWED, Some("POST")));
    method.error();
    let any = ScriptedServer::new(ScriptedChat::saying("tiny", "Yes"), HttpSettings::default(), true);
    assert_eq!(any.post(CHAT, chat_body(json!({"model": "gpt-9"}))).await.json()["model"], "tiny");
    assert_eq!(any.post(CHAT, chat_body(json!({"model": null}))).await.status, StatusCode::OK);
}

#[tokio::test]
async fn refusals_tell_an_sdk_whether_to_try_again() {
    let busy = ScriptedServer::with_chat(ScriptedChat::new("tiny", |_| {
        let wait = std::time::Duration::from_millis(2500);
        Err(Error::new(ErrorKind::Overloaded, "The queue is full.").with_retry_after(wait))
    }));
    let answer = busy.post(CHAT, chat_body(json!({"stream": true}))).await;
    assert_eq!((answer.status, &answer.error()["code"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("overloaded")));
    assert_eq!((answer.header("retry-after"), answer.header("retry-after-ms")), (Some("3"), Some("2500")));

    let long = ScriptedServer::with_chat(ScriptedChat::new("tiny", |_| {
        Err(Error::context_length_exceeded(9000, 4096, "messages"))
    }));
    let error = long.post(CHAT, chat_body(json!({}))).await.error();
    assert_eq!((&error["code"], &error["param"]), (&json!("context_length_exceeded"), &json!("messages")));
    assert_eq!((&error["n_prompt_tokens"], &error["n_ctx"]), (&json!(9000), &json!(4096)));

    let panics = ScriptedServer::with_chat(ScriptedChat::new("tiny", |_| panic!("a bug")));
    let answer = panics.post(CHAT, chat_body(json!({}))).await;
    assert_eq!((answer.status, &answer.error()["type"]), (StatusCode::INTERNAL_SERVER_ERROR, &json!("server_error")));
    assert!(!answer.text().contains("a bug") && answer.header("x-request-id").is_some());
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_a_request_that_hangs() {
    let server = ScriptedServer::with_chat(ScriptedChat::new("tiny", |_| Ok(vec![Step::Hang])));
    let answer = server.post(CHAT, chat_body(json!({"timeout": 2}))).await;
    assert_eq!((answer.status, answer.header("x-should-retry")), (StatusCode::GATEWAY_TIMEOUT, Some("false")));
    let request =
        Request::post(CHAT).header("x-stainless-read-timeout", "7").body(Body::from(chat_body(json!({})).to_string()));
    assert_eq!(server.send(request.unwrap()).await.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!((server.chat.started(), server.chat.cancelled()), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn what_there_is_when_the_time_runs_out_is_the_answer_where_that_is_asked_for() {
    let server = ScriptedServer::with_chat(ScriptedChat::new("tiny", |request| {
        let text = if request.n == 3 { "" } else { "Hel" }.to_owned();
        let delta = GenerateEvent::Delta { choice: 0, text, logprobs: Vec::new(), token_ids: Vec::new() };
        Ok(vec![Step::Event(delta), Step::Hang])
    }));
    for (path, body, text) in [
        (CHAT, chat_body(json!({"timeout": 2, "partial": true})), "/choices/0/message/content"),
        ("/v1/completions", json!({"model": "tiny", "prompt": "a", "timeout": 2, "partial": true}), "/choices/0/text"),
        ("/generate", json!({"prompt": "a", "timeout": 2, "partial": true}), "/output"),
    ] {
        let answer = server.post(path, body).await;
        assert_eq!((answer.status, answer.header("x-hearth-partial")), (StatusCode::OK, Some("true")), "{path}");
        assert_eq!(answer.json().pointer(text), Some(&json!("Hel")), "{path}");
        if path != "/generate" {
            assert_eq!(answer.json()["choices"][0]["finish_reason"], "length", "{path}");
        }
    }
    for extra in [json!({"timeout": 2}), json!({"timeout": 2, "partial": true, "n": 3})] {
        let late = server.post(CHAT, chat_body(extra)).await;
        assert_eq!(late.status, StatusCode::GATEWAY_TIMEOUT, "not asked for, or nothing there");
    }
    assert_eq!(server.post(CHAT, chat_body(json!({"partial": 1}))).await.error()["param"], "partial");
}

#[tokio::test]
async fn tool_calls_and_schemas_reach_the_model_and_come_back() {
    let server = ScriptedServer::with_chat(ScriptedChat::new("tiny", |_| {
        let call = |id: Option<&str>, name: Option<&str>, arguments: &str| {
            Step::Event(GenerateEvent::ToolCall {
                choice: 0,
                call: 0,
                id: id.map(str::to_owned),
                name: name.map(str::to_owned),
                arguments: arguments.to_owned(),
            })
        };
        Ok(vec![
            call(Some("call_1"), Some("f"), ""),
            call(None, None, "{\"a\""),
            call(None, None, ":1}"),
            Step::Event(GenerateEvent::Finished { choice: 0, reason: FinishReason::ToolCalls }),
            Step::Event(GenerateEvent::Done { usage: Usage::default(), timings: Timings::default() }),
        ])
    }));
    let tools =
        json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": true}}]);
    let body = chat_body(json!({"tools": tools, "tool_choice": {"type": "function", "function": {"name": "f"}}}));
    let answer = server.post(CHAT, body).await.json();
    assert_eq!(
        answer["choices"][0]["message"],
        json!({
            "role": "assistant", "content": null, "refusal": null, "annotations": [],
            "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}}],
        })
    );
    assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
    let Prompt::Chat(prompt) = &server.chat.requests()[0].prompt else { panic!("a chat prompt") };
    assert_eq!(prompt.tool_choice, ToolChoice::Named("f".to_owned()));
    assert_eq!(prompt.tools, *tools.as_array().unwrap());
}

#[tokio::test]
async fn completions_have_the_legacy_shape() {
    let server = ScriptedServer::hello();
    let body = json!({"model": "tiny", "prompt": "Hé", "echo": true, "logprobs": 1, "max_tokens": 2});
    let answer = server.post("/v1/completions", body).await.json();
    let choice = &answer["choices"][0];
    assert_eq!(
        (&answer["object"], &choice["text"], &choice["finish_reason"]),
        (&json!("text_completion"), &json!("HéHe"), &json!("length"))
    );
    assert_eq!(
        choice["logprobs"],
        json!({
            "tokens": ["H", "é", "H", "e"],
            "token_logprobs": [null, -0.5, -0.5, -0.5],
            "top_logprobs": [null, {"é": -0.5}, {"H": -0.5}, {"e": -0.5}],
            "text_offset": [0, 1, 2, 3],
        })
    );
    let body = json!({"model": "tiny", "prompt": ["a", "b"], "n": 2, "max_tokens": 1});
    let answer = server.post("/v1/completions", body).await.json();
    let indices: Vec<_> = answer["choices"].as_array().unwrap().iter().map(|choice| choice["index"].clone()).collect();
    assert_eq!(
        (indices, &answer["usage"]["completion_tokens"]),
        (vec![json!(0), json!(1), json!(2), json!(3)], &json!(4))
    );
    let outside = server.post("/v1/completions", json!({"model": "tiny", "prompt": [1, 300]})).await;
    assert_eq!((outside.status, &outside.error()["param"]), (StatusCode::BAD_REQUEST, &json!("prompt")));
    let suffix = server.post("/v1/completions", json!({"model": "tiny", "prompt": "a", "suffix": "b"})).await;
    assert_eq!(suffix.error()["param"], "suffix");
}

#[tokio::test]
async fn embeddings_come_as_numbers_or_base64_in_the_order_of_the_inputs() {
    let server = ScriptedServer::hello();
    let embed = |extra: Value| {
        let mut body = json!({"model": "embed", "input": ["a", "b"]});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        server.post("/v1/embeddings", body)
    };
    let floats = embed(json!({})).await.json();
    assert_eq!(floats["data"][1]["index"], 1);
    let numbers: Vec<f32> = serde_json::from_value(floats["data"][1]["embedding"].clone()).unwrap();
    let encoded = embed(json!({"encoding_format": "base64"})).await.json();
    let bytes = {
        use base64::{Engine, prelude::BASE64_STANDARD};
        BASE64_STANDARD.decode(encoded["data"][1]["embedding"].as_str().unwrap()).unwrap()
    };
    let decoded: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!((numbers.len(), &numbers), (8, &decoded));
    assert_eq!(floats["usage"], json!({"prompt_tokens": 2, "total_tokens": 2}));
    let tokens = embed(json!({"input": [[97], [98]]})).await.json();
    assert_eq!(tokens["data"], floats["data"]);
    assert_eq!(embed(json!({"dimensions": 3})).await.json()["data"][0]["embedding"].as_array().unwrap().len(), 3);
    for (change, param) in [
        (json!({"dimensions": 9}), "dimensions"),
        (json!({"dimensions": 0}), "dimensions"),
        (json!({"input": []}), "input"),
        (json!({"input": ""}), "input"),
        (json!({"input": ["a", ""]}), "input[1]"),
        (json!({"input": [1, 999]}), "input"),
        (json!({"input": {"a": 1}}), "input"),
        (json!({"encoding_format": "hex"}), "encoding_format"),
        (json!({"model": "tiny"}), "model"),
        (json!({"input": vec!["x"; 2049]}), "input"),
    ] {
        let answer = embed(change).await;
        assert_eq!((answer.status, &answer.error()["param"]), (StatusCode::BAD_REQUEST, &json!(param)));
    }
}

#[tokio::test]
async fn models_say_what_they_can_do() {
    let server = ScriptedServer::hello();
    let list = server.get("/v1/models").await.json();
    assert_eq!((&list["object"], list["data"].as_array().unwrap().len()), (&json!("list"), 2));
    let one = server.get("/v1/models/org/tiny").await.json();
    assert_eq!(one, list["data"][0]);
    assert_eq!((&one["id"], &one["object"], &one["owned_by"]), (&json!("tiny"), &json!("model"), &json!("hearth")));
    assert_eq!((&one["context_length"], &one["capabilities"]["chat"]), (&json!(4096), &json!(true)));
    assert_eq!(server.get("/v1/models/org%2Ftiny").await.status, StatusCode::OK);
    let missing = server.get("/v1/models/nope").await;
    assert_eq!((missing.status, &missing.error()["code"]), (StatusCode::NOT_FOUND, &json!("model_not_found")));
    assert_eq!(server.get("/v1/models/%ff").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_llama_server_routes_round_trip() {
    let server = ScriptedServer::hello();
    let tokens = server.post("/tokenize", json!({"content": "Hé", "add_special": true})).await.json();
    assert_eq!(tokens, json!({"tokens": [1, 72, 195, 169]}));
    let pieces = server.post("/tokenize", json!({"content": ["H", 195], "with_pieces": true})).await.json();
    assert_eq!(pieces, json!({"tokens": [{"id": 72, "piece": "H"}, {"id": 195, "piece": [195]}]}));
    let text = server.post("/detokenize", json!({"tokens": [72, 195, 169]})).await.json();
    assert_eq!(text, json!({"content": "Hé"}));
    assert_eq!(server.post("/detokenize", json!({"tokens": [256]})).await.status, StatusCode::BAD_REQUEST);
    let body = json!({"messages": [{"role": "developer", "content": "x"}], "add_generation_prompt": false});
    assert_eq!(server.post("/apply-template", body).await.json(), json!({"prompt": "<system>x\n"}));
    assert_eq!(server.post("/tokenize", json!({})).await.error()["param"], "content");
}

#[tokio::test]
async fn health_tells_loading_from_ready_from_stalled() {
    let server = ScriptedServer::hello();
    assert_eq!(
        server.get("/health").await.json(),
        json!({"status": "ok", "model": "tiny", "embedding_model": "embed"})
    );
    assert_eq!(server.get("/health/deep").await.json()["engine"]["kv_blocks_used"], 3);
    server.health.engine.lock().heartbeat_age = std::time::Duration::from_secs(600);
    assert_eq!(server.get("/health").await.status, StatusCode::OK, "liveness does not ask the engine");
    assert_eq!(server.get("/health/ready").await.error()["code"], "engine_stalled");
    let deep = server.get("/health/deep").await;
    assert_eq!((deep.status, &deep.json()["status"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("stalled")));
    server.health.engine.lock().heartbeat_age = std::time::Duration::ZERO;

    let part =
        |failure: Option<&str>| PartReport { name: "mill".to_owned(), panics: 4, failure: failure.map(str::to_owned) };
    *server.health.parts.lock() = vec![part(None), part(Some("The mill stands still."))];
    let error = server.get("/health/ready").await.error();
    assert_eq!((&error["code"], &error["message"]), (&json!("part_failed"), &json!("The mill stands still.")));
    let deep = server.get("/health/deep").await;
    assert_eq!((deep.status, &deep.json()["status"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("failed")));
    assert_eq!(deep.json()["reason"], "The mill stands still.");
    let shown = json!({"name": "mill", "panics": 4, "failure": "The mill stands still."});
    assert_eq!(deep.json()["parts"][1], shown);
    assert_eq!(server.post(CHAT, chat_body(json!({}))).await.status, StatusCode::OK, "the others go on");
    *server.health.parts.lock() = vec![part(None)];
    assert_eq!(server.get("/health/ready").await.status, StatusCode::OK);

    *server.health.status.lock() = ServerStatus::Loading;
    for answer in
        [server.get("/health").await, server.get("/health/ready").await, server.post(CHAT, chat_body(json!({}))).await]
    {
        assert_eq!(
            (answer.status, &answer.error()["code"]),
            (StatusCode::SERVICE_UNAVAILABLE, &json!("model_loading"))
        );
        assert!(answer.header("retry-after").is_some() && answer.header("retry-after-ms").is_some());
    }
    assert_eq!(server.get("/health/live").await.status, StatusCode::OK);
    *server.health.status.lock() = ServerStatus::Failed("no such file".to_owned());
    assert_eq!(server.get("/health").await.header("x-should-retry"), Some("false"));
    *server.health.status.lock() = ServerStatus::Draining;
    assert_eq!(server.post(CHAT, chat_body(json!({}))).await.error()["code"], "draining");
}

#[tokio::test]
async fn keys_are_asked_for_where_there_are_any() {
    let keys = vec!["sk-one".to_owned(), "sk-two".to_owned()];
    let server = ScriptedServer::with_callers(CallerSettings { api_keys: keys, ..CallerSettings::default() });
    let with = |name: &str, value: &str| Request::get("/v1/models").header(name, value).body(Body::empty()).unwrap();
    assert_eq!(server.send(with("authorization", "Bearer sk-two")).await.status, StatusCode::OK);
    assert_eq!(server.send(with("x-api-key", "sk-one")).await.status, StatusCode::OK);
    for (name, value) in [("authorization", "Bearer sk-thr"), ("authorization", "Basic sk-one"), ("x-other", "sk-one")]
    {
        let answer = server.send(with(name, value)).await;
        assert_eq!((answer.status, &answer.error()["code"]), (StatusCode::UNAUTHORIZED, &json!("invalid_api_key")));
    }
    for path in ["/health", "/health/live", "/docs/", "/openapi.json"] {
        assert_eq!(server.get(path).await.status, StatusCode::OK, "{path}");
    }
    assert_eq!(server.get("/metrics").await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn pages_from_elsewhere_may_call_only_where_configured() {
    let preflight = || {
        Request::options(CHAT)
            .header("origin", "https://app.example")
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,x-stainless-lang")
            .body(Body::empty())
            .unwrap()
    };
    let closed = ScriptedServer::hello().send(preflight()).await;
    assert_eq!(closed.header("access-control-allow-origin"), None);
    let settings = HttpSettings { cors_origins: vec!["https://app.example".to_owned()], ..HttpSettings::default() };
    let callers = CallerSettings { api_keys: vec!["k".to_owned()], ..CallerSettings::default() };
    let chat = ScriptedChat::saying("tiny", "Hello!");
    let open = ScriptedServer::with_all(chat, settings, callers, false).send(preflight()).await;
    assert_eq!(open.status, StatusCode::OK);
    assert_eq!(open.header("access-control-allow-origin"), Some("https://app.example"));
    assert_eq!(open.header("access-control-allow-headers"), Some("authorization,x-stainless-lang"));
}
