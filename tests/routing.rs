//! Which side serves, as callers of the HTTP routes see it.

use std::sync::Arc;

use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use hearth::{
    domain::Policy,
    providers::{
        ChatModel,
        fallback::{Candidate, FallbackChat, Place, Policies},
        scripted::ScriptedChat,
    },
    service::health::ServerStatus,
};
use serde_json::json;

use crate::support::scripted_server::{Answer, ScriptedServer};

/// A server whose model `both` is served here and elsewhere.
struct Routed {
    server: ScriptedServer,
    hosted: Arc<ScriptedChat>,
    place: Arc<Place<dyn ChatModel>>,
}

fn routed() -> Routed {
    let server = ScriptedServer::hello();
    let hosted = Arc::new(ScriptedChat::saying("big", "From afar."));
    let place = Place::loading();
    let candidates = vec![
        Candidate::Local(place.clone()),
        Candidate::Hosted { name: "up/big".to_owned(), model: hosted.clone() as Arc<dyn ChatModel> },
    ];
    server
        .models
        .add_hosted_chat(Arc::new(FallbackChat::new("both", candidates, Policies::default())), vec!["auto".to_owned()]);
    Routed { server, hosted, place }
}

impl Routed {
    async fn ask(&self, model: &str, policy: Option<&str>) -> Answer {
        let body = json!({"model": model, "messages": [{"role": "user", "content": "Hi"}]});
        let mut request = Request::post("/v1/chat/completions").header("content-type", "application/json");
        if let Some(policy) = policy {
            request = request.header("x-hearth-policy", policy);
        }
        self.server.send(request.body(Body::from(body.to_string())).expect("a valid request")).await
    }

    fn local_is_loaded(&self) {
        self.place.take(Arc::new(ScriptedChat::saying("file", "From here.")), || None);
    }
}

fn said(answer: &Answer) -> String {
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    answer.json()["choices"][0]["message"]["content"].as_str().expect("a text").to_owned()
}

#[tokio::test]
async fn the_header_decides_for_one_request() {
    let routed = routed();
    routed.local_is_loaded();
    for (policy, expected) in [
        (None, "From here."),
        (Some("local-first"), "From here."),
        (Some("local-only"), "From here."),
        (Some(" hosted-first "), "From afar."),
        (Some("hosted-only"), "From afar."),
    ] {
        assert_eq!(said(&routed.ask("both", policy).await), expected, "{policy:?}");
    }
}

#[tokio::test]
async fn a_policy_that_is_none_is_refused_with_those_that_are() {
    let routed = routed();
    for wrong in ["", "cloud", "LOCAL-ONLY", "local-only, hosted-only", "ü"] {
        let answer = routed.ask("both", Some(wrong)).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{wrong:?}: {}", answer.text());
        let error = answer.error();
        assert_eq!((&error["param"], &error["code"]), (&json!("x-hearth-policy"), &json!("invalid_value")));
        let message = error["message"].as_str().expect("a message");
        assert!(Policy::ALL.iter().all(|policy| message.contains(policy.as_str())), "{message}");
    }
    assert_eq!(routed.hosted.started(), 0);
}

#[tokio::test]
async fn what_an_upstream_may_serve_is_served_while_the_local_model_loads_and_after_it_failed() {
    let routed = routed();
    for status in [ServerStatus::Loading, ServerStatus::Failed("no room".to_owned())] {
        *routed.server.health.status.lock() = status;
        assert_eq!(said(&routed.ask("both", None).await), "From afar.");
        assert_eq!(said(&routed.ask("auto", Some("hosted-only")).await), "From afar.");
        let stays = routed.ask("both", Some("local-only")).await;
        assert_eq!((stays.status, &stays.error()["code"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("model_loading")));
        assert_eq!(routed.ask("tiny", None).await.status, StatusCode::SERVICE_UNAVAILABLE, "it is local only");
        assert_eq!(routed.server.get("/health/ready").await.status, StatusCode::SERVICE_UNAVAILABLE);
    }
    *routed.server.health.status.lock() = ServerStatus::Draining;
    assert_eq!(routed.ask("both", None).await.error()["code"], "draining");
    assert_eq!(routed.hosted.started(), 4);
}

#[tokio::test]
async fn an_answer_has_the_name_that_was_asked_for_and_its_place_in_the_list() {
    let routed = routed();
    let far = routed.ask("both", None).await.json();
    routed.local_is_loaded();
    let near = routed.ask("auto", None).await.json();
    assert_eq!((&far["model"], &near["model"]), (&json!("both"), &json!("both")));
    let models = routed.server.get("/v1/models").await.json();
    let ids: Vec<_> = models["data"].as_array().expect("a list").iter().map(|model| model["id"].clone()).collect();
    assert!(ids.contains(&json!("both")), "{ids:?}");
}
