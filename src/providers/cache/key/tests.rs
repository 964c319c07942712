//! Every change that affects an answer changes its key.

use std::{collections::HashSet, sync::Arc, time::Instant};

use hearth_domain::{Caller, EmbedInput, RequestContext, usage::NoSink};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::providers::{ChatModel, scripted::ScriptedChat};

fn account(caller: Caller, policy: Option<RoutingPolicy>) -> Arc<Account> {
    let opening = RequestContext {
        request_id: "r".into(),
        route: "POST /v1/chat/completions".into(),
        caller: Arc::new(caller),
        fairness_key: String::new(),
        policy,
        is_recorded: false,
        cache_use: hearth_domain::CacheUse::default(),
        is_local_only: false,
        session: None,
    };
    Account::open(Arc::new(NoSink), opening)
}

fn caller(id: &str) -> Caller {
    Caller { id: id.to_owned(), ..Caller::local() }
}

fn info() -> ModelInfo {
    ScriptedChat::saying("tiny", "Hello").info().clone()
}

/// The request with each of its fields changed, one at a time. Destructured without `..`: a new field does not compile
/// until it is changed here, too.
fn changed(request: &GenerateRequest) -> Vec<(&'static str, GenerateRequest)> {
    let GenerateRequest {
        account: own_account,
        prompt: _,
        sampling,
        max_tokens,
        min_tokens,
        stop,
        stop_token_ids,
        ignore_eos,
        n,
        logprobs,
        echo,
        return_token_ids,
        constraint: _,
        deadline: _,
        session: _,
    } = request.clone();
    let SamplingParams {
        temperature,
        top_k,
        top_p,
        min_p,
        typical_p,
        repetition_penalty,
        frequency_penalty,
        presence_penalty,
        logit_bias,
        seed,
    } = sampling.clone();
    let mut with = Vec::new();
    macro_rules! change {
        ($($field:ident: $value:expr,)*) => {
            $(with.push((stringify!($field), GenerateRequest { $field: $value, ..request.clone() }));)*
        };
    }
    macro_rules! change_sampling {
        ($($field:ident: $value:expr,)*) => {
            $(with.push((stringify!($field), GenerateRequest {
                sampling: SamplingParams { $field: $value, ..sampling.clone() }, ..request.clone()
            }));)*
        };
    }
    let longer = |list: &[String]| -> Arc<[String]> { list.iter().cloned().chain(["more".to_owned()]).collect() };
    change! {
        account: account(caller(&format!("{}2", own_account.caller().id)), None),
        account: account(caller(&own_account.caller().id), Some(RoutingPolicy::HostedOnly)),
        account: account(Caller { local_only: true, ..caller(&own_account.caller().id) }, None),
        max_tokens: Some(max_tokens.map_or(1, |tokens| tokens + 1)),
        min_tokens: min_tokens + 1,
        stop: longer(&stop),
        stop: stop.iter().map(|text| format!("{text},")).chain([String::new()]).collect(),
        stop_token_ids: stop_token_ids.iter().copied().chain([7]).collect(),
        ignore_eos: !ignore_eos,
        n: n + 1,
        logprobs: Some(logprobs.map_or(0, |count| count + 1)),
        echo: !echo,
        return_token_ids: !return_token_ids,
        constraint: Some(Constraint::JsonObject.into()),
        constraint: Some(Constraint::JsonSchema(json!({"properties": {"a": {}, "b": {}}})).into()),
        constraint: Some(Constraint::JsonSchema(json!({"properties": {"b": {}, "a": {}}})).into()),
        constraint: Some(Constraint::Regex("x".into()).into()),
        constraint: Some(Constraint::Lark("x".into()).into()),
    }
    change_sampling! {
        temperature: temperature + 0.5,
        top_k: top_k + 1,
        top_p: top_p / 2.0,
        min_p: min_p + 0.5,
        typical_p: typical_p / 2.0,
        repetition_penalty: repetition_penalty + 0.5,
        frequency_penalty: frequency_penalty + 0.5,
        presence_penalty: presence_penalty + 0.5,
        logit_bias: logit_bias.iter().copied().chain([(1, 0.5)]).collect(),
        logit_bias: logit_bias.iter().copied().chain([(1, 0.25)]).collect(),
        seed: Some(seed.unwrap_or_default().wrapping_add(1)),
    }
    for (name, prompt) in other_prompts(request) {
        with.push((name, GenerateRequest { prompt, ..request.clone() }));
    }
    with
}

fn other_prompts(request: &GenerateRequest) -> Vec<(&'static str, Prompt)> {
    let Prompt::Chat(chat) = &request.prompt else { unreachable!("these requests are chats") };
    let ChatPrompt { messages, tools, tool_choice: _, parallel_tool_calls, add_generation_prompt, template_kwargs } =
        chat.clone();
    let more = |list: &[Value], value: Value| -> Vec<Value> { list.iter().cloned().chain([value]).collect() };
    let mut kwargs = template_kwargs;
    kwargs.insert("enable_thinking".into(), json!(false));
    let of = |chat: ChatPrompt| Prompt::Chat(chat);
    vec![
        ("text", Prompt::Text("text".into())),
        ("tokens", Prompt::Tokens(vec![1, 2])),
        ("other tokens", Prompt::Tokens(vec![2, 1])),
        (
            "message",
            of(ChatPrompt { messages: more(&messages, json!({"role": "user", "content": "?"})), ..chat.clone() }),
        ),
        (
            "content",
            of(ChatPrompt { messages: more(&messages, json!({"role": "user", "content": "!"})), ..chat.clone() }),
        ),
        (
            "name",
            of(ChatPrompt {
                messages: more(&messages, json!({"role": "user", "content": "?", "name": "n"})),
                ..chat.clone()
            }),
        ),
        ("text that is no message", of(ChatPrompt { messages: more(&messages, json!("?")), ..chat.clone() })),
        ("tool", of(ChatPrompt { tools: more(&tools, json!({"a": 1, "b": 2})), ..chat.clone() })),
        ("tool in another order", of(ChatPrompt { tools: more(&tools, json!({"b": 2, "a": 1})), ..chat.clone() })),
        ("no tool", of(ChatPrompt { tool_choice: ToolChoice::None, ..chat.clone() })),
        ("some tool", of(ChatPrompt { tool_choice: ToolChoice::Required, ..chat.clone() })),
        ("this tool", of(ChatPrompt { tool_choice: ToolChoice::Named("t".into()), ..chat.clone() })),
        ("parallel", of(ChatPrompt { parallel_tool_calls: !parallel_tool_calls, ..chat.clone() })),
        ("opening", of(ChatPrompt { add_generation_prompt: !add_generation_prompt, ..chat.clone() })),
        ("variables", of(ChatPrompt { template_kwargs: kwargs, ..chat.clone() })),
    ]
}

fn any_request() -> impl Strategy<Value = GenerateRequest> {
    let texts = prop::collection::vec("[a-z,]{0,4}", 0..3);
    let sampling = (0.0_f32..2.0, 0_usize..50, 0.1_f32..1.0, prop::option::of(any::<i64>()));
    let counts = (prop::option::of(0_usize..100), 0_usize..4, 1_usize..3, prop::option::of(0_usize..5));
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    ("[a-z]{1,5}", texts.clone(), texts, sampling, counts, flags).prop_map(
        |(id, contents, stop, (temperature, top_k, top_p, seed), (max_tokens, min_tokens, n, logprobs), flags)| {
            let messages = contents.iter().map(|content| json!({"role": "user", "content": content})).collect();
            GenerateRequest {
                account: account(caller(&id), None),
                prompt: Prompt::Chat(ChatPrompt { messages, add_generation_prompt: flags.0, ..ChatPrompt::default() }),
                sampling: SamplingParams { temperature, top_k, top_p, seed, ..SamplingParams::default() },
                max_tokens,
                min_tokens,
                stop: stop.into(),
                stop_token_ids: Vec::new(),
                ignore_eos: flags.1,
                n,
                logprobs,
                echo: flags.2,
                return_token_ids: flags.3,
                constraint: None,
                deadline: None,
                session: None,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn another_request_has_another_key(request in any_request()) {
        let info = info();
        let mut seen = HashSet::from([generation_key(&info, &request)]);
        for (field, other) in changed(&request) {
            prop_assert!(seen.insert(generation_key(&info, &other)), "{field} does not change the key");
        }
    }

    #[test]
    fn the_same_request_has_the_same_key(request in any_request()) {
        let again = GenerateRequest {
            // Another request of the same caller.
            account: account(caller(&request.account.caller().id), None),
            deadline: Some(Instant::now()),
            session: Some("s".to_owned()),
            ..request.clone()
        };
        prop_assert_eq!(generation_key(&info(), &request), generation_key(&info(), &again));
    }
}

#[test]
fn a_message_is_the_same_in_whatever_order_its_fields_were_written() {
    let key = |message: Value| {
        let mut writer = KeyWriter::new("test");
        writer.chat(&ChatPrompt { messages: vec![message], ..ChatPrompt::default() });
        writer.finish()
    };
    assert_eq!(key(json!({"role": "user", "content": "x"})), key(json!({"content": "x", "role": "user"})));
    // The arguments inside a call are printed in their given order.
    let called = |arguments: Value| key(json!({"role": "assistant", "tool_calls": [{"arguments": arguments}]}));
    assert_ne!(called(json!({"a": 1, "b": 2})), called(json!({"b": 2, "a": 1})));
}

#[test]
fn another_model_of_the_same_name_has_another_key() {
    let usual = info();
    let key = |info: &ModelInfo| {
        let mut writer = KeyWriter::new("test");
        writer.model(info).finish()
    };
    let others = [
        ModelInfo { fingerprint: "f".into(), ..usual.clone() },
        ModelInfo { size_bytes: 1, ..usual.clone() },
        ModelInfo { quantization: "Q4_K".into(), ..usual.clone() },
        ModelInfo { context_length: 1, ..usual.clone() },
        ModelInfo { id: "other".into(), ..usual.clone() },
    ];
    let mut seen = HashSet::from([key(&usual)]);
    assert!(others.iter().all(|other| seen.insert(key(other))));
    assert_eq!(key(&ModelInfo { created: 1, ..usual.clone() }), key(&usual), "a copy of its file");
}

#[test]
fn a_vector_depends_on_all_that_is_asked_of_it() {
    let (own, strange) = (account(caller("a"), None), account(caller("b"), None));
    let (model, other_model) = (info(), ModelInfo { size_bytes: 9, ..info() });
    let identity = EmbeddingIdentity { name: "e".into(), dimensions: 8 };
    let other_identity = EmbeddingIdentity { name: "f".into(), dimensions: 8 };
    let usual = EmbeddingScope {
        account: &own,
        model: &model,
        identity: &identity,
        input_type: EmbedInputType::Plain,
        dimensions: None,
        truncate: false,
    };
    let text = EmbedInput::Text("text".into());
    let others = [
        EmbeddingScope { account: &strange, ..usual },
        EmbeddingScope { model: &other_model, ..usual },
        EmbeddingScope { identity: &other_identity, ..usual },
        EmbeddingScope { input_type: EmbedInputType::Query, ..usual },
        EmbeddingScope { input_type: EmbedInputType::Passage, ..usual },
        EmbeddingScope { dimensions: Some(8), ..usual },
        EmbeddingScope { truncate: true, ..usual },
    ];
    let mut seen = HashSet::from([embedding_key(usual, &text)]);
    assert!(others.iter().all(|other| seen.insert(embedding_key(*other, &text))));
    assert!(seen.insert(embedding_key(usual, &EmbedInput::Text("text ".into()))));
    assert!(seen.insert(embedding_key(usual, &EmbedInput::Tokens(vec![1, 2]))));
    assert!(seen.insert(embedding_key(usual, &EmbedInput::Tokens(vec![1]))));
}
