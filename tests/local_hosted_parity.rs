//! One contract, whoever serves: the same cases against a server that runs the models itself, and against one that has
//! none and asks the first, which is another process.
//!
//! A case's assertions hold on both sides, and then the two answers are held against each other: all that is said twice
//! the same must be the same, to the last digit of a log-probability, and what differs from run to run must be of the
//! same shape.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    path::Path,
};

use futures_util::StreamExt;
use hearth::config::Settings;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::running_server::{Running, Served, hearth, is_idle};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const EMBEDDINGS: &str = "/v1/embeddings";

struct Side {
    name: &'static str,
    url: String,
    client: reqwest::Client,
}

/// What came back: one value, or the values of a stream's events.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: BTreeSet<String>,
    is_stream: bool,
    said: Vec<Value>,
}

impl Side {
    async fn post(&self, path: &str, body: &Value) -> Answer {
        let response =
            self.client.post(format!("{}{path}", self.url)).json(body).send().await.expect("the server answers");
        let status = response.status();
        let headers = response.headers().keys().map(|name| name.as_str().to_owned());
        // The receipt says who served; that is what it is for.
        let headers =
            headers.filter(|name| !name.starts_with("x-hearth-") && !name.starts_with("x-ratelimit-")).collect();
        let kind = response.headers().get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let is_stream = kind.starts_with("text/event-stream");
        let text = response.text().await.expect("the answer ends");
        let said = if is_stream {
            let events = text.split("\n\n").filter(|event| !event.is_empty() && !event.starts_with(':'));
            let data = events.map(|event| event.strip_prefix("data: ").unwrap_or_else(|| panic!("{event:?}")));
            data.map(|data| if data == "[DONE]" { json!("[DONE]") } else { serde_json::from_str(data).expect(data) })
                .collect()
        } else {
            vec![serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}: {text}", self.name))]
        };
        Answer { status, headers, is_stream, said }
    }
}

/// The upstream, a process of its own that has the models; and the server that has none.
struct Both {
    sides: [Side; 2],
    _upstream: Served,
    _front: Running,
}

async fn both() -> Both {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let mut child = hearth();
    let child = child
        .args(["serve", "--offline", "--port", "0", "--log", "error", "--models-dir", "no-models"])
        .arg("--model")
        .arg(models.join("hearth-chat.gguf"))
        .arg("--embedding-model")
        .arg(models.join("hearth-embed.gguf"))
        .stderr(std::process::Stdio::inherit());
    let mut child = child.spawn().expect("the binary runs");
    let stdout = child.stdout.take().expect("a pipe");
    let upstream = Served(child);
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).expect("a line");
    let url = line.split_whitespace().find(|word| word.starts_with("http://")).expect("an address").to_owned();
    let client = reqwest::Client::new();
    let mut dimensions = Value::Null;
    for _ in 0..2000 {
        if client.get(format!("{url}/health/ready")).send().await.is_ok_and(|answer| answer.status().is_success()) {
            let model = client.get(format!("{url}/v1/models/hearth-embed")).send().await.expect("an answer");
            dimensions = model.json::<Value>().await.expect("JSON")["meta"]["n_embd"].clone();
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let settings: Settings = toml::from_str(&format!(
        "[[upstream]]\nname = \"rack\"\nkind = \"hearth\"\nbase_url = \"{url}/v1\"\n[upstream.models]\n\
         hearth-chat = \"hearth-chat\"\n\
         hearth-embed = {{ model = \"hearth-embed\", kind = \"embedding\", dimensions = {dimensions} }}\n"
    ))
    .expect("settings");
    let front = Running::start_with(settings, |config| config.model = None).await;
    let sides = [
        Side { name: "local", url, client },
        Side { name: "hosted", url: front.url.clone(), client: reqwest::Client::new() },
    ];
    Both { sides, _upstream: upstream, _front: front }
}

/// The value with a mark of its type where each run says something else.
fn steady(value: &Value, key: &str) -> Value {
    let kind = |value: &Value| match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    match value {
        // The receipt is where the sides may differ: who served, and what it took.
        Value::Object(fields) if ["timings", "receipt"].contains(&key) => {
            fields.iter().map(|(name, value)| (name.clone(), json!(kind(value)))).collect()
        }
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), steady(value, name))).collect(),
        Value::Array(values) => values.iter().map(|value| steady(value, "")).collect(),
        value if ["id", "created", "cached_tokens"].contains(&key) => json!(format!("[{}]", kind(value))),
        value => value.clone(),
    }
}

struct Case {
    name: &'static str,
    path: &'static str,
    body: Value,
    check: fn(&Answer),
}

fn case(name: &'static str, path: &'static str, body: Value, check: fn(&Answer)) -> Case {
    Case { name, path, body, check }
}

fn ok(answer: &Answer) -> &Value {
    assert_eq!((answer.status, answer.is_stream), (StatusCode::OK, false), "{answer:?}");
    &answer.said[0]
}

fn streamed(answer: &Answer) -> &[Value] {
    assert_eq!((answer.status, answer.is_stream), (StatusCode::OK, true), "{answer:?}");
    let (last, events) = answer.said.split_last().expect("events");
    assert_eq!(*last, json!("[DONE]"));
    events
}

fn refused(answer: &Answer, status: StatusCode, code: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    let error = &answer.said[0]["error"];
    assert_eq!(error["code"], code, "{error}");
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
}

/// Of a stream's choice.
fn text_of(events: &[Value], index: u64) -> String {
    let choices = events.iter().flat_map(|event| event["choices"].as_array().expect("choices"));
    let ours = choices.filter(|choice| choice["index"] == index);
    ours.filter_map(|choice| choice["delta"]["content"].as_str().or_else(|| choice["text"].as_str())).collect()
}

fn chat(extra: Value) -> Value {
    let mut body = json!({
        "model": "hearth-chat", "temperature": 0, "max_tokens": 24,
        "messages": [{"role": "user", "content": "Hello, what can you do?"}],
    });
    body.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
    body
}

fn completion(extra: Value) -> Value {
    let mut body = json!({
        "model": "hearth-chat", "temperature": 0, "max_tokens": 12, "prompt": "The harbour was built",
    });
    body.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
    body
}

fn weather() -> Value {
    json!([{"type": "function", "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"unit": {"enum": ["celsius", "fahrenheit"]}},
            "required": ["unit"],
            "additionalProperties": false,
        },
    }}])
}

fn chat_cases() -> Vec<Case> {
    let schema = json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": {
        "type": "object", "properties": {"level": {"enum": ["low", "high"]}}, "required": ["level"],
        "additionalProperties": false,
    }}});
    vec![
        case("a chat", CHAT, chat(json!({})), |answer| {
            let text = ok(answer)["choices"][0]["message"]["content"].as_str().expect("text");
            assert!(!text.is_empty());
            assert!(ok(answer)["usage"]["completion_tokens"].as_u64().expect("a count") > 0);
        }),
        case("a chat, streamed", CHAT, chat(json!({"stream": true})), |answer| {
            let events = streamed(answer);
            assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
            assert!(!text_of(events, 0).is_empty());
            assert!(events.iter().all(|event| event.get("usage").is_none()));
        }),
        case(
            "a chat, streamed with its usage",
            CHAT,
            chat(json!({"stream": true, "stream_options": {"include_usage": true}})),
            |answer| {
                let (last, events) = streamed(answer).split_last().expect("events");
                assert!(last["usage"]["prompt_tokens"].as_u64().expect("a count") > 0);
                assert!(last["choices"].as_array().expect("a list").is_empty());
                assert!(events.iter().all(|event| event["usage"].is_null()));
            },
        ),
        case("an answer that its limit ends", CHAT, chat(json!({"max_tokens": 3})), |answer| {
            assert_eq!(ok(answer)["choices"][0]["finish_reason"], "length");
            assert_eq!(ok(answer)["usage"]["completion_tokens"], 3);
        }),
        case("a stop string", CHAT, chat(json!({"stop": ["e"]})), |answer| {
            let choice = &ok(answer)["choices"][0];
            assert_eq!(choice["finish_reason"], "stop");
            assert!(!choice["message"]["content"].as_str().expect("text").contains('e'));
        }),
        case("log-probabilities", CHAT, chat(json!({"logprobs": true, "top_logprobs": 3})), |answer| {
            let tokens = ok(answer)["choices"][0]["logprobs"]["content"].as_array().expect("a list");
            assert!(!tokens.is_empty());
            assert!(tokens.iter().all(|token| token["top_logprobs"].as_array().is_some_and(|top| top.len() == 3)));
        }),
        case(
            "log-probabilities, streamed",
            CHAT,
            chat(json!({"logprobs": true, "top_logprobs": 1, "stream": true})),
            |answer| {
                let with = streamed(answer).iter().filter(|event| event["choices"][0]["logprobs"].is_object());
                assert!(with.count() > 0);
            },
        ),
        case("two choices", CHAT, chat(json!({"n": 2})), |answer| {
            let choices = ok(answer)["choices"].as_array().expect("a list");
            assert_eq!(choices.len(), 2);
            assert_eq!(choices[0]["message"], choices[1]["message"], "greedily, both are the same");
        }),
        case("a seed", CHAT, chat(json!({"temperature": 1.0, "top_p": 0.95, "seed": 7})), |answer| {
            assert!(!ok(answer)["choices"][0]["message"]["content"].as_str().expect("text").is_empty());
        }),
        case(
            "biases and penalties",
            CHAT,
            chat(json!({"frequency_penalty": 0.5, "logit_bias": {"5": -100}})),
            |answer| {
                ok(answer);
            },
        ),
        case("an answer that fits a schema", CHAT, chat(json!({"response_format": schema})), |answer| {
            let text = ok(answer)["choices"][0]["message"]["content"].as_str().expect("text");
            let value: Value = serde_json::from_str(text).expect(text);
            assert!(value["level"] == "low" || value["level"] == "high", "{value}");
        }),
        case(
            "a call of a tool",
            CHAT,
            chat(
                json!({"tools": weather(), "tool_choice": "required", "parallel_tool_calls": false, "max_tokens": 60}),
            ),
            |answer| {
                let choice = &ok(answer)["choices"][0];
                assert_eq!(choice["finish_reason"], "tool_calls", "{choice}");
                let call = &choice["message"]["tool_calls"][0]["function"];
                assert_eq!(call["name"], "weather");
                let arguments: Value = serde_json::from_str(call["arguments"].as_str().expect("text")).expect("JSON");
                assert!(arguments["unit"].is_string(), "{arguments}");
            },
        ),
        case(
            "a call of a tool, streamed",
            CHAT,
            chat(
                json!({"tools": weather(), "tool_choice": "required", "parallel_tool_calls": false, "max_tokens": 60, "stream": true}),
            ),
            |answer| {
                let deltas = streamed(answer).iter().filter_map(|event| event.pointer("/choices/0/delta/tool_calls/0"));
                let arguments: String = deltas.filter_map(|call| call["function"]["arguments"].as_str()).collect();
                assert!(serde_json::from_str::<Value>(&arguments).is_ok(), "{arguments}");
            },
        ),
    ]
}

fn other_cases() -> Vec<Case> {
    let embed = |extra: Value| {
        let mut body = json!({"model": "hearth-embed", "input": ["The harbour", "a railway of 41 metres"]});
        body.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        body
    };
    vec![
        case("a completion", COMPLETIONS, completion(json!({})), |answer| {
            assert!(!ok(answer)["choices"][0]["text"].as_str().expect("text").is_empty());
        }),
        case(
            "a completion, streamed with its usage",
            COMPLETIONS,
            completion(json!({"stream": true, "stream_options": {"include_usage": true}})),
            |answer| {
                let events = streamed(answer);
                assert!(!text_of(events, 0).is_empty());
                assert!(events.last().expect("events")["usage"]["total_tokens"].as_u64().expect("a count") > 0);
            },
        ),
        case(
            "an echo with log-probabilities",
            COMPLETIONS,
            completion(json!({"echo": true, "logprobs": 2})),
            |answer| {
                let choice = &ok(answer)["choices"][0];
                assert!(choice["text"].as_str().expect("text").contains("The harbour was built"));
                assert!(choice["logprobs"]["token_logprobs"][0].is_null(), "nothing predicts the first token");
            },
        ),
        case("prompts and choices", COMPLETIONS, completion(json!({"prompt": ["One", "Two"], "n": 2})), |answer| {
            assert_eq!(ok(answer)["choices"].as_array().expect("a list").len(), 4);
        }),
        case("a prompt of tokens", COMPLETIONS, completion(json!({"prompt": [5, 6, 7]})), |answer| {
            assert!(ok(answer)["usage"]["prompt_tokens"].as_u64().expect("a count") >= 3);
        }),
        case("embeddings", EMBEDDINGS, embed(json!({})), |answer| {
            assert_eq!(ok(answer)["data"].as_array().expect("a list").len(), 2);
            assert!(ok(answer)["data"][1]["embedding"][0].is_number());
        }),
        case("embeddings in base64", EMBEDDINGS, embed(json!({"encoding_format": "base64"})), |answer| {
            assert!(ok(answer)["data"][0]["embedding"].is_string());
        }),
        case("embeddings that are shorter", EMBEDDINGS, embed(json!({"dimensions": 16})), |answer| {
            assert_eq!(ok(answer)["data"][0]["embedding"].as_array().expect("a list").len(), 16);
        }),
        case("embeddings of a query", EMBEDDINGS, embed(json!({"input_type": "query"})), |answer| {
            ok(answer);
        }),
        case("a field of the wrong type", CHAT, chat(json!({"temperature": "hot"})), |answer| {
            refused(answer, StatusCode::BAD_REQUEST, "invalid_type");
        }),
        case("a value out of range", CHAT, chat(json!({"top_p": 3})), |answer| {
            refused(answer, StatusCode::BAD_REQUEST, "invalid_value");
        }),
        case(
            "a schema that is none",
            CHAT,
            chat(json!({"response_format": {"type": "json_schema", "json_schema": {
            "name": "x", "schema": {"type": "wordy"}}}})),
            |answer| {
                assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{answer:?}");
            },
        ),
        case("a model that is not there", CHAT, chat(json!({"model": "nobody"})), |answer| {
            refused(answer, StatusCode::NOT_FOUND, "model_not_found");
        }),
        case("an embedding model in a chat", CHAT, chat(json!({"model": "hearth-embed"})), |answer| {
            refused(answer, StatusCode::BAD_REQUEST, "model_not_supported");
        }),
        case(
            "a prompt that is too long",
            CHAT,
            chat(json!({"messages": [{"role": "user", "content": "word ".repeat(4000)}]})),
            |answer| {
                refused(answer, StatusCode::BAD_REQUEST, "context_length_exceeded");
                assert_eq!(answer.said[0]["error"]["n_ctx"], 2048);
            },
        ),
        case(
            "a prompt that is too long, streamed",
            CHAT,
            chat(json!({"stream": true, "messages": [{"role": "user", "content": "word ".repeat(4000)}]})),
            |answer| refused(answer, StatusCode::BAD_REQUEST, "context_length_exceeded"),
        ),
        case("a text that is too long to embed", EMBEDDINGS, embed(json!({"input": "word ".repeat(4000)})), |answer| {
            refused(answer, StatusCode::BAD_REQUEST, "context_length_exceeded");
        }),
        case("an empty text", EMBEDDINGS, embed(json!({"input": ""})), |answer| {
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{answer:?}");
        }),
    ]
}

#[tokio::test]
async fn the_same_requests_have_the_same_answers_whoever_serves() {
    let both = both().await;
    let [local, hosted] = &both.sides;
    let mut differences = Vec::new();
    for case in chat_cases().into_iter().chain(other_cases()) {
        let answers = [local.post(case.path, &case.body).await, hosted.post(case.path, &case.body).await];
        for (side, answer) in both.sides.iter().zip(&answers) {
            if std::panic::catch_unwind(|| (case.check)(answer)).is_err() {
                differences.push(format!("{} on the {} side: {answer:?}", case.name, side.name));
            }
        }
        let [ours, theirs] = &answers;
        if ours.headers != theirs.headers {
            differences.push(format!("{}: headers {:?} and {:?}", case.name, ours.headers, theirs.headers));
        }
        let steady = |answer: &Answer| answer.said.iter().map(|value| steady(value, "")).collect::<Vec<_>>();
        let (ours, theirs) = (steady(ours), steady(theirs));
        if ours != theirs {
            let at = ours.iter().zip(&theirs).position(|(ours, theirs)| ours != theirs);
            let at = at.unwrap_or(ours.len().min(theirs.len()));
            differences.push(format!(
                "{}: {} and {} values, the first that differ are\n  {}\n  {}",
                case.name,
                ours.len(),
                theirs.len(),
                ours.get(at).unwrap_or(&Value::Null),
                theirs.get(at).unwrap_or(&Value::Null),
            ));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n\n"));
}

#[tokio::test]
async fn a_caller_who_leaves_stops_the_work_whoever_serves() {
    let both = both().await;
    let engine = &both.sides[0];
    for side in &both.sides {
        let body = chat(json!({"stream": true, "ignore_eos": true, "max_tokens": 1800}));
        let request = side.client.post(format!("{}{CHAT}", side.url)).json(&body);
        let mut stream = request.send().await.expect("an answer").bytes_stream();
        stream.next().await.expect("a first packet").expect("no error");
        drop(stream);
        let mut last = Value::Null;
        for _ in 0..2000 {
            last = engine
                .client
                .get(format!("{}/health/deep", engine.url))
                .send()
                .await
                .expect("an answer")
                .json()
                .await
                .expect("JSON");
            if is_idle(&last) {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        assert!(is_idle(&last), "{}: the engine still works: {last}", side.name);
    }
}
