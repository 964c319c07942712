//! A hosted upstream that fails in every way there is, and what a caller gets: each token once, or an error.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use hearth::{
    http::{HttpSettings, TlsSettings},
    providers::{
        ChatModel, Embedder, GenerateStream,
        hosted::{
            BreakerSettings, Dialect, HostedChat, HostedEmbedder, HostedKind, HostedModel, Retries, Upstream,
            UpstreamSettings,
        },
    },
};
use hearth_domain::{
    Account, ChatPrompt, EmbedInput, EmbedInputType, EmbedRequest, FinishReason, GenerateEvent, GenerateRequest,
    Prompt, SamplingParams, Usage,
    documents::EmbeddingIdentity,
    error::{Error, ErrorKind},
    usage::Receipt,
};
use serde_json::{Value, json};

use crate::support::{
    scripted_server::ScriptedServer,
    scripted_upstream::{
        Act, DONE, KEY, ScriptedUpstream, answer, error, event, finish, good, packets, settings, stream_head, usage,
        word,
    },
};

fn request() -> GenerateRequest {
    let prompt = ChatPrompt {
        messages: vec![json!({"role": "user", "content": "Say hello."})],
        parallel_tool_calls: true,
        add_generation_prompt: true,
        ..ChatPrompt::default()
    };
    GenerateRequest {
        account: Account::unrecorded(),
        prompt: Prompt::Chat(prompt),
        sampling: SamplingParams::default(),
        max_tokens: Some(50),
        min_tokens: 0,
        stop: [].into(),
        stop_token_ids: Vec::new(),
        ignore_eos: false,
        n: 1,
        logprobs: None,
        echo: false,
        return_token_ids: false,
        constraint: None,
        deadline: None,
        session: None,
    }
}

fn chat(upstream: &Arc<Upstream>) -> HostedChat {
    let model = HostedModel::chat("theirs");
    HostedChat::new(upstream.clone(), "theirs".to_owned(), model.info("served"))
}

/// What a caller got, and what the ledger has of it.
#[derive(Debug)]
struct Outcome {
    events: Vec<GenerateEvent>,
    text: String,
    finished: Option<FinishReason>,
    usage: Option<Usage>,
    error: Option<Error>,
    receipt: Receipt,
}

impl Outcome {
    #[track_caller]
    fn is_hello(&self) {
        assert!(self.error.is_none(), "{:?}", self.error);
        assert_eq!((self.text.as_str(), self.finished), ("Hello", Some(FinishReason::Stop)));
        assert!(matches!(self.events.first(), Some(GenerateEvent::Prefilled { .. })), "{:?}", self.events);
        assert!(matches!(self.events.last(), Some(GenerateEvent::Done { .. })), "{:?}", self.events);
    }

    #[track_caller]
    fn failed(&self, kind: ErrorKind, text: &str, attempts: u32) {
        let error = self.error.as_ref().unwrap_or_else(|| panic!("no error: {:?}", self.events));
        assert_eq!((error.kind(), self.text.as_str(), self.receipt.attempts), (kind, text, attempts), "{error:?}");
        assert!(!format!("{error:?}").contains(KEY), "{error:?}");
        assert_eq!((self.finished, self.usage), (None, None), "no end is made up");
    }

    #[track_caller]
    fn tokens(&self) -> (u64, u64) {
        (self.receipt.prompt_tokens(), self.receipt.completion_tokens())
    }
}

async fn ask(model: &HostedChat, request: GenerateRequest) -> Outcome {
    let account = request.account.clone();
    let mut outcome = Outcome {
        events: Vec::new(),
        text: String::new(),
        finished: None,
        usage: None,
        error: None,
        receipt: account.receipt(),
    };
    match model.generate(request).await {
        Err(error) => outcome.error = Some(error),
        Ok(stream) => read(stream, &mut outcome).await,
    }
    outcome.receipt = account.receipt();
    outcome
}

async fn read(mut stream: GenerateStream, outcome: &mut Outcome) {
    while let Some(event) = stream.next().await {
        assert!(outcome.error.is_none(), "something follows the error");
        match event {
            Err(error) => outcome.error = Some(error),
            Ok(event) => {
                match &event {
                    GenerateEvent::Delta { text, .. } => outcome.text.push_str(text),
                    GenerateEvent::Finished { reason, .. } => {
                        assert_eq!(outcome.finished.replace(*reason), None, "it ended twice");
                    }
                    GenerateEvent::Done { usage, .. } => outcome.usage = Some(*usage),
                    _ => {}
                }
                outcome.events.push(event);
            }
        }
    }
}

/// One request against an upstream that serves these connections in turn.
async fn against(scripts: Vec<Vec<Act>>) -> (Outcome, ScriptedUpstream) {
    let upstream = ScriptedUpstream::start(scripts).await;
    let outcome = ask(&chat(&upstream.client()), request()).await;
    (outcome, upstream)
}

async fn against_one(texts: &[&str]) -> Outcome {
    against(vec![packets(texts)]).await.0
}

#[tokio::test]
async fn an_answer_comes_through_and_stands_in_the_books() {
    let (outcome, upstream) = against(vec![good()]).await;
    outcome.is_hello();
    assert_eq!(outcome.usage, Some(Usage { prompt_tokens: 11, completion_tokens: 2, ..Usage::default() }));
    assert_eq!((outcome.tokens(), outcome.receipt.attempts), ((11, 2), 1));
    assert_eq!(outcome.receipt.served_by(), "there");
    let [received] = &upstream.requests()[..] else { panic!("one request") };
    assert_eq!(outcome.receipt.bytes_out, received.body_bytes as u64);
    assert!(received.head.starts_with("POST /v1/chat/completions HTTP/1.1"), "{}", received.head);
    assert!(received.head.contains(&format!("authorization: Bearer {KEY}")) && received.head.contains("x-team: a"));
    let expected = json!({"model": "theirs", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 50,
        "stream": true, "stream_options": {"include_usage": true}});
    assert_eq!(received.body, expected);
}

#[tokio::test]
async fn a_refused_connection_is_tried_again_and_nothing_leaves_the_machine() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let upstream = Upstream::new(settings(&format!("http://127.0.0.1:{port}/v1"))).unwrap();
    let outcome = ask(&chat(&upstream), request()).await;
    outcome.failed(ErrorKind::UpstreamFailed, "", 3);
    assert_eq!((outcome.receipt.bytes_out, outcome.receipt.models.len()), (0, 0));
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_is_refused_before_a_byte_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    let issued = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let tls = TlsSettings { certificate: folder.path().join("cert.pem"), private_key: folder.path().join("key.pem") };
    std::fs::write(&tls.certificate, issued.cert.pem()).unwrap();
    std::fs::write(&tls.private_key, issued.signing_key.serialize_pem()).unwrap();
    let certificate = tls.certificate.clone();
    let server = ScriptedServer::with_settings(HttpSettings { tls: Some(tls), ..HttpSettings::default() });
    let listening = server.listen();
    let untrusting = settings(&format!("https://localhost:{}/v1", listening.address.port()));
    let trusting = UpstreamSettings { ca_file: Some(certificate), dialect: Dialect::Hearth, ..untrusting.clone() };
    let outcome = ask(&chat(&Upstream::new(untrusting).unwrap()), request()).await;
    outcome.failed(ErrorKind::UpstreamFailed, "", 1);
    assert!(outcome.error.as_ref().unwrap().message().contains("TLS"), "{:?}", outcome.error);
    assert_eq!(outcome.receipt.bytes_out, 0);
    let model =
        HostedChat::new(Upstream::new(trusting).unwrap(), "tiny".to_owned(), HostedModel::chat("tiny").info("served"));
    let outcome = ask(&model, request()).await;
    assert!(outcome.error.is_none() && !outcome.text.is_empty(), "{outcome:?}");
}

#[tokio::test]
async fn a_key_that_the_upstream_refuses_is_the_operators_affair() {
    for status in ["401 Unauthorized", "403 Forbidden"] {
        let (outcome, upstream) = against(vec![error(status, &[], &format!("Incorrect API key: {KEY}"))]).await;
        outcome.failed(ErrorKind::UpstreamFailed, "", 1);
        assert_eq!(upstream.requests().len(), 1, "the same key is as wrong again");
    }
}

#[tokio::test]
async fn a_mistake_in_the_request_comes_back_in_the_upstreams_words() {
    let said = json!({"error": {"message": format!("bad {KEY}"), "type": "invalid_request_error",
        "param": "messages", "code": "invalid_value"}});
    let (outcome, _) = against(vec![answer("400 Bad Request", &[], &said)]).await;
    outcome.failed(ErrorKind::InvalidRequest, "", 1);
    let refusal = outcome.error.unwrap();
    assert_eq!(
        (refusal.message(), refusal.param(), refusal.code()),
        ("bad ***", Some("messages"), Some("invalid_value"))
    );
    let said =
        json!({"error": {"message": "too long", "code": "context_length_exceeded", "n_prompt_tokens": 9, "n_ctx": 8}});
    let (outcome, _) = against(vec![answer("400 Bad Request", &[], &said)]).await;
    outcome.failed(ErrorKind::ContextLengthExceeded, "", 1);
    assert_eq!(outcome.error.unwrap().context(), Some((9, 8)));
    let page =
        vec![Act::Send(b"HTTP/1.1 404 Not Found\r\ncontent-length: 6\r\nconnection: close\r\n\r\n<html>".to_vec())];
    against(vec![page]).await.0.failed(ErrorKind::UpstreamFailed, "", 1);
}

#[tokio::test]
async fn keys_in_configured_headers_are_as_secret_as_the_key() {
    let said = json!({"error": {"message": "no tenant-4711-secret here, nor 0123456789abcdef", "code": "invalid_value",
        "type": "invalid_request_error", "param": "x-tenant: tenant-4711-secret"}});
    let upstream = ScriptedUpstream::start(vec![answer("400 Bad Request", &[], &said)]).await;
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let headers =
        vec![header("x-tenant", "tenant-4711-secret"), header("x-auth", "Token 0123456789abcdef"), header("x-v", "2")];
    let client = Upstream::new(UpstreamSettings { headers, ..upstream.settings() }).unwrap();
    let refusal = ask(&chat(&client), request()).await.error.unwrap();
    assert_eq!((refusal.message(), refusal.param()), ("no *** here, nor ***", Some("x-tenant: ***")));
}

#[tokio::test]
async fn too_many_requests_are_waited_for_as_long_as_the_upstream_asks() {
    let started = Instant::now();
    let busy = error("429 Too Many Requests", &[("retry-after-ms", "40")], "slow down");
    let (outcome, upstream) = against(vec![busy, good()]).await;
    outcome.is_hello();
    assert!(started.elapsed() >= Duration::from_millis(40), "{:?}", started.elapsed());
    assert_eq!((outcome.receipt.attempts, outcome.tokens(), outcome.receipt.models.len()), (2, (11, 2), 1));
    let sent: usize = upstream.requests().iter().map(|request| request.body_bytes).sum();
    assert_eq!(outcome.receipt.bytes_out, sent as u64, "both attempts left the machine");

    let (outcome, _) = against(vec![error("429 Too Many Requests", &[], "slow down"), good()]).await;
    outcome.is_hello();

    let busy = || error("429 Too Many Requests", &[], "slow down");
    let (outcome, _) = against(vec![busy(), busy(), busy()]).await;
    outcome.failed(ErrorKind::Overloaded, "", 3);
}

#[tokio::test]
async fn a_wait_that_the_deadline_does_not_allow_is_not_begun() {
    let upstream =
        ScriptedUpstream::start(vec![error("429 Too Many Requests", &[("retry-after", "30")], "later")]).await;
    let deadline = Some(Instant::now() + Duration::from_secs(20));
    let started = Instant::now();
    let outcome = ask(&chat(&upstream.client()), GenerateRequest { deadline, ..request() }).await;
    outcome.failed(ErrorKind::Overloaded, "", 1);
    assert_eq!(outcome.error.unwrap().retry_after(), Some(Duration::from_secs(30)));
    assert!(started.elapsed() < Duration::from_secs(15));
}

#[tokio::test]
async fn failures_that_pass_are_tried_again_until_one_answer_is_whole() {
    for status in ["500 Oh", "502 Oh", "503 Oh", "504 Oh", "408 Oh"] {
        let (outcome, _) = against(vec![error(status, &[], "oh"), good()]).await;
        outcome.is_hello();
        assert_eq!((outcome.receipt.attempts, outcome.tokens()), (2, (11, 2)), "{status}");
    }
    let failing = || error("500 Oh", &[], "oh");
    let (outcome, _) = against(vec![failing(), failing(), failing()]).await;
    outcome.failed(ErrorKind::UpstreamFailed, "", 3);
    against(vec![error("501 Oh", &[], "oh")]).await.0.failed(ErrorKind::UpstreamFailed, "", 1);
}

#[tokio::test]
async fn what_breaks_before_the_first_word_is_tried_again() {
    let role = event(&json!({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}));
    let said = event(&json!({"error": {"message": "oh", "type": "server_error"}}));
    for broken in [
        vec![Act::Send(Vec::new())],
        packets(&[]),
        packets(&[": ping\n\n", &role]),
        packets(&[&said]),
        packets(&["data: {\"choices\": [\n\n"]),
        packets(&[DONE]),
    ] {
        let (outcome, _) = against(vec![broken.clone(), good()]).await;
        outcome.is_hello();
        assert_eq!((outcome.receipt.attempts, outcome.tokens()), (2, (11, 2)), "{broken:?}");
    }
}

/// Settings under which a stall is noticed soon.
fn impatient(upstream: &ScriptedUpstream) -> Arc<Upstream> {
    let mut settings = upstream.settings();
    settings.timeouts.first_byte = Duration::from_secs(1);
    settings.timeouts.idle = Duration::from_secs(1);
    Upstream::new(settings).unwrap()
}

#[tokio::test]
async fn a_stall_before_the_first_byte_is_tried_again_and_ends() {
    let mut upstream = ScriptedUpstream::start(vec![vec![Act::Stall], good()]).await;
    let outcome = ask(&chat(&impatient(&upstream)), request()).await;
    outcome.is_hello();
    upstream.was_left().await;
    let upstream =
        ScriptedUpstream::start(vec![vec![Act::Stall], vec![stream_head(), Act::Stall], vec![Act::Stall]]).await;
    let outcome = ask(&chat(&impatient(&upstream)), request()).await;
    outcome.failed(ErrorKind::UpstreamTimeout, "", 3);
    assert_eq!(outcome.tokens(), (0, 0), "nothing came");
    let upstream = ScriptedUpstream::start(vec![vec![Act::Stall]]).await;
    let deadline = Some(Instant::now() + Duration::from_millis(100));
    let outcome = ask(&chat(&upstream.client()), GenerateRequest { deadline, ..request() }).await;
    outcome.failed(ErrorKind::DeadlineExceeded, "", 1);
}

#[tokio::test]
async fn a_stall_after_the_first_byte_is_an_error_and_never_a_second_attempt() {
    let mut stalling = packets(&[&word("Hel")]);
    stalling.push(Act::Stall);
    let mut upstream = ScriptedUpstream::start(vec![stalling, good()]).await;
    let outcome = ask(&chat(&impatient(&upstream)), request()).await;
    outcome.failed(ErrorKind::UpstreamTimeout, "Hel", 1);
    upstream.was_left().await;
    assert_eq!((outcome.tokens().1, upstream.requests().len()), (1, 1));
}

#[tokio::test]
async fn a_cut_in_mid_stream_is_an_error_behind_what_had_come() {
    against_one(&[&word("Hel"), &word("lo")]).await.failed(ErrorKind::UpstreamFailed, "Hello", 1);
    against_one(&[&word("Hel"), "data: {\"choices\""]).await.failed(ErrorKind::UpstreamFailed, "Hel", 1);
    let half = format!("{:x}\r\n{}\r\n100\r\ndata: {{", word("Hel").len(), word("Hel"));
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunked = vec![Act::Send(head.into()), Act::Send(half.into())];
    let (outcome, _) = against(vec![chunked, good()]).await;
    outcome.failed(ErrorKind::UpstreamFailed, "Hel", 1);
    assert_eq!(outcome.tokens().1, 1);
    against_one(&[&word("Hel"), DONE]).await.failed(ErrorKind::UpstreamFailed, "Hel", 1);
}

#[tokio::test]
async fn malformed_events_are_an_error_behind_what_had_come() {
    let beyond = event(&json!({"choices": [{"index": 1, "delta": {"content": "x"}}]}));
    let wrong = event(&json!({"choices": [{"index": 0, "delta": {"content": 7}}]}));
    let said = event(&json!({"error": {"message": "oh", "type": "server_error"}}));
    let failing = finish("error");
    for broken in ["data: {\n\n", "data: <html>\n\n", "data: 7\n\n", beyond.as_str(), &wrong, &said, &failing] {
        against_one(&[&word("Hel"), broken, &word("lo")]).await.failed(ErrorKind::UpstreamFailed, "Hel", 1);
        let together = [&word("Hel"), broken, &word("lo")].concat();
        against_one(&[&together]).await.failed(ErrorKind::UpstreamFailed, "Hel", 1);
    }
    let mut not_text = packets(&[&word("Hel")]);
    not_text.push(Act::Send(b"data: \xff\xfe\n\n".to_vec()));
    against(vec![not_text]).await.0.failed(ErrorKind::UpstreamFailed, "Hel", 1);
    let late = against_one(&[&word("Hello"), &finish("stop"), &word("!"), DONE]).await;
    assert_eq!((late.text.as_str(), late.error.map(|error| error.kind())), ("Hello", Some(ErrorKind::UpstreamFailed)));
    against(vec![answer("200 OK", &[], &json!({"choices": []}))]).await.0.failed(ErrorKind::UpstreamFailed, "", 1);
}

#[tokio::test]
async fn packets_may_hold_two_events_or_a_tenth_of_one() {
    let whole = [word("Hel"), word("lo"), finish("stop"), usage(11, 2), DONE.to_owned()].concat();
    against_one(&[&whole]).await.is_hello();
    against_one(&[&[word("Hel"), word("lo")].concat(), &[finish("stop"), DONE.to_owned()].concat()]).await.is_hello();

    let euro = word("H\u{20ac}l\u{1f600}").into_bytes();
    let mut tenths: Vec<Act> = vec![stream_head()];
    tenths.extend(euro.chunks(euro.len().div_ceil(10)).map(|piece| Act::Send(piece.to_vec())));
    tenths.extend([finish("stop"), DONE.to_owned()].map(|text| Act::Send(text.into_bytes())));
    assert!(tenths.len() >= 12);
    let (outcome, _) = against(vec![tenths]).await;
    assert_eq!((outcome.text.as_str(), outcome.error.is_none()), ("H\u{20ac}l\u{1f600}", true));

    let bytes: Vec<Act> = whole.replace('\n', "\r\n").bytes().map(|byte| Act::Send(vec![byte])).collect();
    against(vec![[vec![stream_head()], bytes].concat()]).await.0.is_hello();
    against_one(&[
        ": ping\n\n",
        &word("Hel"),
        ": ping\r\rid: 3\nevent: x\n",
        &word("lo"),
        "retry: 1\n\n",
        &finish("stop"),
        DONE,
    ])
    .await
    .is_hello();
}

#[tokio::test]
async fn counts_that_cannot_be_true_are_replaced_by_our_own() {
    let counted = |outcome: &Outcome| {
        outcome.is_hello();
        let usage = outcome.usage.expect("a last event");
        assert_eq!(outcome.tokens(), (usage.prompt_tokens as u64, usage.completion_tokens as u64));
        (usage.prompt_tokens, usage.completion_tokens)
    };
    for (said, completion) in
        [(usage(11, 0), 2), (usage(11, 51), 2), (usage(11, "two"), 2), (usage(11, -1), 2), (usage(11, 3), 3)]
    {
        let outcome = against_one(&[&word("Hel"), &word("lo"), &finish("stop"), &said, DONE]).await;
        assert_eq!(counted(&outcome), (11, completion), "{said}");
    }
    let outcome = against_one(&[&word("Hel"), &word("lo"), &finish("stop"), &usage(0, 2), DONE]).await;
    let (prompt, completion) = counted(&outcome);
    assert!(prompt > 0 && completion == 2);
    let odd = event(&json!({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 9}, "completion_tokens_details": {"reasoning_tokens": 7}}}));
    let outcome = against_one(&[&word("Hel"), &word("lo"), &finish("stop"), &odd, DONE]).await;
    let usage = outcome.usage.unwrap();
    assert_eq!((usage.cached_tokens, usage.reasoning_tokens), (5, 2), "no more than there are");
}

#[tokio::test]
async fn counts_may_be_absent_or_come_with_a_choice() {
    let outcome = against_one(&[&word("Hel"), &word("lo"), &finish("stop"), DONE]).await;
    outcome.is_hello();
    let (prompt, completion) = outcome.tokens();
    assert!(prompt > 0 && completion == 2, "{:?}", outcome.receipt);

    let running = |completion: usize| json!({"prompt_tokens": 11, "completion_tokens": completion});
    let with = |text: &str, reason: Value, completion| {
        event(
            &json!({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason}], "usage": running(completion)}),
        )
    };
    let texts = [with("Hel", Value::Null, 1), with("lo", json!("stop"), 2), with("", json!("stop"), 2)];
    let outcome = against_one(&[&texts[0], &texts[1], &texts[2], DONE]).await;
    outcome.is_hello();
    assert_eq!(outcome.tokens(), (11, 2));
}

#[tokio::test]
async fn an_answer_is_whole_when_every_choice_has_ended() {
    against_one(&[&word("Hello"), &finish("stop")]).await.is_hello();
    against_one(&[&word("Hello"), finish("stop").trim_end()]).await.failed(ErrorKind::UpstreamFailed, "Hello", 1);
    let mut silent = packets(&[&word("Hello"), &finish("stop")]);
    silent.push(Act::Stall);
    let upstream = ScriptedUpstream::start(vec![silent]).await;
    ask(&chat(&impatient(&upstream)), request()).await.is_hello();
    let upstream = ScriptedUpstream::start(vec![good()]).await;
    let outcome = ask(&chat(&upstream.client()), GenerateRequest { n: 2, ..request() }).await;
    let kind = outcome.error.map(|error| error.kind());
    assert_eq!(
        (outcome.text.as_str(), kind),
        ("Hello", Some(ErrorKind::UpstreamFailed)),
        "the second choice is missing"
    );
}

#[tokio::test]
async fn reasons_calls_thoughts_and_scores_keep_their_meaning() {
    for (said, reason) in [
        ("length", FinishReason::Length),
        ("content_filter", FinishReason::ContentFilter),
        ("eos", FinishReason::Stop),
        ("because", FinishReason::Stop),
    ] {
        let outcome = against_one(&[&word("Hello"), &finish(said), DONE]).await;
        assert_eq!((outcome.finished, outcome.error.is_none()), (Some(reason), true), "{said}");
    }
    let delta = |delta: Value| event(&json!({"choices": [{"index": 0, "delta": delta}]}));
    let thought = delta(json!({"reasoning": "Hm", "reasoning_content": "Hm"}));
    let opening = delta(
        json!({"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}]}),
    );
    let more = delta(json!({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}));
    let outcome = against_one(&[&thought, &opening, &more, &finish("stop"), DONE]).await;
    assert_eq!(outcome.finished, Some(FinishReason::ToolCalls));
    let [
        _,
        GenerateEvent::Reasoning { text, .. },
        GenerateEvent::ToolCall { id, name, .. },
        GenerateEvent::ToolCall { arguments, .. },
        ..,
    ] = &outcome.events[..]
    else {
        panic!("{:?}", outcome.events)
    };
    assert_eq!((text.as_str(), id.as_deref(), name.as_deref(), arguments.as_str()), ("Hm", Some("c"), Some("f"), "{}"));
    let score = json!({"token": "Hello", "logprob": -0.5, "bytes": null,
        "top_logprobs": [{"token": "Bye", "logprob": -1.25, "bytes": [66]}]});
    let scored =
        event(&json!({"choices": [{"index": 0, "delta": {"content": "Hello"}, "logprobs": {"content": [score]}}]}));
    let outcome = against_one(&[&scored, &finish("stop"), DONE]).await;
    let GenerateEvent::Delta { logprobs, .. } = &outcome.events[1] else { panic!("{:?}", outcome.events) };
    assert_eq!((logprobs[0].logprob, logprobs[0].bytes.as_slice()), (Some(-0.5), b"Hello".as_slice()));
    assert_eq!((logprobs[0].top[0].logprob, logprobs[0].top[0].bytes.as_slice()), (-1.25, b"B".as_slice()));
}

#[tokio::test]
async fn a_caller_who_leaves_is_noticed_by_the_upstream_and_pays_for_what_came() {
    let mut endless = packets(&[&word("Hel"), &word("lo")]);
    endless.push(Act::Stall);
    let mut upstream = ScriptedUpstream::start(vec![endless]).await;
    let client = upstream.client();
    let request = request();
    let account = request.account.clone();
    let mut stream = chat(&client).generate(request).await.unwrap();
    let mut said = String::new();
    while said != "Hello" {
        if let GenerateEvent::Delta { text, .. } = stream.next().await.expect("more").unwrap() {
            said.push_str(&text);
        }
    }
    drop(stream);
    upstream.was_left().await;
    let receipt = account.receipt();
    assert_eq!(receipt.completion_tokens(), 2);
    assert!(receipt.prompt_tokens() > 0 && receipt.models[0].decode > Duration::ZERO, "{receipt:?}");
    assert!(!client.is_left_alone("theirs"), "no fault of the upstream's");
}

/// Two streams that break, against a breaker that rests this long after two failures.
async fn broken_twice(rest: Duration) -> (ScriptedUpstream, Arc<Upstream>, HostedChat) {
    let broken = || packets(&[&word("Hel")]);
    let upstream = ScriptedUpstream::start(vec![broken(), broken(), good()]).await;
    let mut settings = upstream.settings();
    settings.breaker = BreakerSettings { failures: 2, rest };
    settings.retries = Retries { max: 0, ..settings.retries };
    let client = Upstream::new(settings).unwrap();
    let model = chat(&client);
    for _ in 0..2 {
        assert!(!client.is_left_alone("theirs"));
        ask(&model, request()).await.failed(ErrorKind::UpstreamFailed, "Hel", 1);
    }
    (upstream, client, model)
}

#[tokio::test]
async fn the_breaker_opens_for_streams_that_break() {
    let (upstream, client, model) = broken_twice(Duration::from_secs(3600)).await;
    assert!(client.is_left_alone("theirs"));
    assert!(!client.is_left_alone("another"), "its other models are not to blame");
    let outcome = ask(&model, request()).await;
    outcome.failed(ErrorKind::BreakerOpen, "", 0);
    assert!(outcome.error.unwrap().retry_after().is_some());
    assert_eq!(upstream.requests().len(), 2);
}

#[tokio::test]
async fn the_breaker_closes_after_one_probe() {
    let (_upstream, client, model) = broken_twice(Duration::ZERO).await;
    assert!(!client.is_left_alone("theirs"), "one request may probe");
    ask(&model, request()).await.is_hello();
    assert!(!client.is_left_alone("theirs"));
}

#[tokio::test]
async fn what_cannot_be_asked_for_is_refused_by_name_before_anything_is_sent() {
    let upstream = ScriptedUpstream::start(Vec::new()).await;
    let model = chat(&upstream.client());
    let sampling = |change: fn(&mut SamplingParams)| {
        let mut request = request();
        change(&mut request.sampling);
        request
    };
    for (asked, param) in [
        (sampling(|sampling| sampling.top_k = 5), "top_k"),
        (sampling(|sampling| sampling.min_p = 0.1), "min_p"),
        (sampling(|sampling| sampling.typical_p = 0.9), "typical_p"),
        (sampling(|sampling| sampling.repetition_penalty = 1.1), "repetition_penalty"),
        (GenerateRequest { min_tokens: 1, ..request() }, "min_tokens"),
        (GenerateRequest { stop_token_ids: vec![1], ..request() }, "stop_token_ids"),
        (GenerateRequest { ignore_eos: true, ..request() }, "ignore_eos"),
        (GenerateRequest { return_token_ids: true, ..request() }, "return_token_ids"),
        (
            GenerateRequest { constraint: Some(hearth_domain::Constraint::Regex("a".into()).into()), ..request() },
            "guided_regex",
        ),
        (
            GenerateRequest { constraint: Some(hearth_domain::Constraint::Lark("a".into()).into()), ..request() },
            "grammar",
        ),
        (
            GenerateRequest {
                prompt: Prompt::Text("a".into()),
                constraint: Some(hearth_domain::Constraint::JsonObject.into()),
                ..request()
            },
            "response_format",
        ),
    ] {
        let outcome = ask(&model, asked).await;
        outcome.failed(ErrorKind::InvalidRequest, "", 0);
        assert_eq!(outcome.error.unwrap().param(), Some(param));
    }
    assert!(model.tokenizer().is_none(), "its tokenizer is elsewhere");
}

#[tokio::test]
async fn vectors_come_through_or_fail_whole() {
    let vectors = json!({"data": [{"index": 1, "embedding": [0.0, 1.0]}, {"index": 0, "embedding": [1.0, 0.0]}],
        "usage": {"prompt_tokens": 4}});
    let short = json!({"data": [{"index": 0, "embedding": [1.0, 0.0]}]});
    let scripts = vec![
        error("500 Oh", &[], "oh"),
        answer("200 OK", &[], &vectors),
        answer("200 OK", &[], &short),
        answer("200 OK", &[], &short),
        answer("200 OK", &[], &short),
    ];
    let upstream = ScriptedUpstream::start(scripts).await;
    let model = HostedModel { kind: HostedKind::Embedding, dimensions: Some(2), ..HostedModel::chat("e") };
    let identity = EmbeddingIdentity { name: "e".to_owned(), dimensions: 2 };
    let embedder = HostedEmbedder::new(upstream.client(), "e".to_owned(), model.info("served"), identity.clone());
    assert_eq!(embedder.identity(), identity);
    let request = || EmbedRequest {
        account: Account::unrecorded(),
        inputs: ["a", "b"].map(|text| EmbedInput::Text(text.to_owned())).into(),
        input_type: EmbedInputType::Plain,
        dimensions: None,
        truncate: false,
        deadline: None,
    };
    let asked = request();
    let account = asked.account.clone();
    let response = embedder.embed(asked).await.unwrap();
    assert_eq!(response.embeddings, [[1.0, 0.0], [0.0, 1.0]]);
    assert_eq!((response.prompt_tokens, account.receipt().prompt_tokens(), account.receipt().attempts), (4, 4, 2));
    assert_eq!(upstream.requests()[1].body, json!({"model": "e", "input": ["a", "b"], "encoding_format": "float"}));
    let error = embedder.embed(request()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UpstreamFailed);
}
