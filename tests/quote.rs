//! `POST /v1/quote`: what a request would take, without running it.

use hearth::providers::scripted::ScriptedChat;
use serde_json::json;

use crate::support::scripted_server::ScriptedServer;

#[tokio::test]
async fn a_quote_counts_and_runs_nothing() {
    let server = ScriptedServer::with_chat(ScriptedChat::saying("tiny", "Hello!"));
    let body = json!({"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 7, "n": 2});
    let quote = server.post("/v1/quote", body.clone()).await;
    assert_eq!(quote.status, 200);
    let quote = quote.json();
    let answer = server.post("/v1/chat/completions", body.clone()).await.json();
    assert_eq!(quote["candidates"][0]["prompt_tokens"], answer["usage"]["prompt_tokens"]);
    assert_eq!(quote["candidates"][0]["max_completion_tokens"], 14, "two choices of seven");
    assert_eq!((&quote["would_serve"], &quote["fits"]), (&json!("local"), &json!(true)));
    assert_eq!(server.chat.started(), 1, "the quote itself ran nothing");
}

#[tokio::test]
async fn prompts_add_up_and_what_does_not_fit_is_said() {
    let server = ScriptedServer::with_chat(ScriptedChat::saying("tiny", "Hello!"));
    let quote =
        server.post("/v1/quote", json!({"model": "tiny", "prompt": ["ab", "cde"], "max_tokens": 3})).await.json();
    assert_eq!(quote["candidates"][0]["prompt_tokens"], 5);
    let long = "x".repeat(5000);
    let quote = server.post("/v1/quote", json!({"model": "tiny", "prompt": long})).await.json();
    assert_eq!((&quote["fits"], &quote["would_serve"]), (&json!(false), &json!(null)));
    assert_eq!(quote["candidates"][0]["refusal"], "context_length");
    let neither = server.post("/v1/quote", json!({"model": "tiny"})).await;
    assert_eq!(neither.status, 400);
}
