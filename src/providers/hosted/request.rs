//! Translates a generation request into an upstream's dialect.
//!
//! A field that the upstream cannot express is refused by name: leaving it out would give another answer than was asked
//! for. Fields that match the upstream's default are left out, as reasoning models refuse some even at their defaults.

use hearth_domain::{
    ChatPrompt, Constraint, EmbedInput, EmbedInputType, EmbedRequest, GenerateRequest, Prompt, SamplingParams,
    ToolChoice,
    error::{Error, Result},
};
use serde_json::{Map, Value, json};

use super::{affinity, dialect::Dialect};

/// A request body and its path.
#[derive(Debug, PartialEq)]
pub(super) struct UpstreamRequest {
    /// Relative to the base URL.
    pub path: &'static str,
    pub body: Value,
}

/// The common text of every field's refusal.
fn not_expressible(param: &str, dialect: Dialect) -> Error {
    Error::invalid(
        param,
        format!(
            "`{param}` cannot be asked of the hosted model that serves this name: its upstream is of kind `{}`. Leave it \
             out, or use a model that runs here.",
            dialect.as_str()
        ),
    )
    .with_code("unsupported_parameter")
}

/// The shortest decimal of this number: 0.7 rather than 0.699999988079071.
fn number(value: f32) -> Value {
    let shortest: f64 = value.to_string().parse().unwrap_or(f64::from(value));
    Value::from(shortest)
}

/// The request for `/chat/completions` or `/completions`, always streamed.
pub(super) fn generation(request: &GenerateRequest, upstream_model: &str, dialect: Dialect) -> Result<UpstreamRequest> {
    let mut body = Map::new();
    body.insert("model".to_owned(), upstream_model.into());
    let path = match &request.prompt {
        Prompt::Chat(chat) => {
            write_chat(chat, dialect, &mut body)?;
            "chat/completions"
        }
        Prompt::Text(text) => {
            body.insert("prompt".to_owned(), text.as_str().into());
            "completions"
        }
        Prompt::Tokens(tokens) => {
            body.insert("prompt".to_owned(), tokens.as_slice().into());
            "completions"
        }
    };
    let is_chat = matches!(request.prompt, Prompt::Chat(_));
    write_limits(request, is_chat, dialect, &mut body)?;
    write_sampling(&request.sampling, dialect, &mut body)?;
    if let Some(constraint) = &request.constraint {
        write_constraint(constraint, is_chat, dialect, &mut body)?;
    }
    if let Some(top) = request.logprobs {
        if is_chat {
            body.insert("logprobs".to_owned(), true.into());
            if top > 0 {
                body.insert("top_logprobs".to_owned(), top.into());
            }
        } else {
            body.insert("logprobs".to_owned(), top.into());
        }
    }
    if request.echo {
        if is_chat {
            return Err(not_expressible("echo", dialect));
        }
        body.insert("echo".to_owned(), true.into());
    }
    if request.n > 1 {
        body.insert("n".to_owned(), request.n.into());
    }
    if let Some(session) = affinity::session(request).filter(|_| dialect.has_prompt_cache_key()) {
        body.insert("prompt_cache_key".to_owned(), format!("{session:016x}").into());
    }
    body.insert("stream".to_owned(), true.into());
    body.insert("stream_options".to_owned(), json!({"include_usage": true}));
    Ok(UpstreamRequest { path, body: Value::Object(body) })
}

fn write_limits(
    request: &GenerateRequest,
    is_chat: bool,
    dialect: Dialect,
    body: &mut Map<String, Value>,
) -> Result<()> {
    match request.max_tokens {
        Some(max_tokens) => {
            let field = if is_chat { dialect.max_tokens_field() } else { "max_tokens" };
            body.insert(field.to_owned(), max_tokens.into());
        }
        // It takes a limit beyond the context as the end of the context.
        None if !is_chat && dialect == Dialect::Hearth => {
            body.insert("max_tokens".to_owned(), i32::MAX.into());
        }
        // In a chat, no limit means "to the end"; in a completion it means 16 tokens, except to llama-server.
        None if !is_chat && dialect != Dialect::LlamaServer => {
            return Err(Error::invalid(
                "max_tokens",
                "`max_tokens` is needed: the hosted model that serves this name would end the text after 16 tokens.",
            ));
        }
        None => {}
    }
    if !request.stop.is_empty() {
        body.insert("stop".to_owned(), request.stop.to_vec().into());
    }
    let mut extension = |name: &str, value: Option<Value>, is_known: bool| match value {
        Some(_) if !is_known => Err(not_expressible(name, dialect)),
        Some(value) => {
            body.insert(name.to_owned(), value);
            Ok(())
        }
        None => Ok(()),
    };
    let has_token_fields = dialect.has_token_fields();
    let when = |is_set: bool, value: Value| is_set.then_some(value);
    extension("min_tokens", when(request.min_tokens > 0, request.min_tokens.into()), has_token_fields)?;
    let stop_ids = request.stop_token_ids.as_slice();
    extension("stop_token_ids", when(!stop_ids.is_empty(), stop_ids.into()), has_token_fields)?;
    extension("ignore_eos", when(request.ignore_eos, true.into()), dialect.has_ignore_eos())?;
    extension("return_token_ids", when(request.return_token_ids, true.into()), has_token_fields)
}

fn write_sampling(sampling: &SamplingParams, dialect: Dialect, body: &mut Map<String, Value>) -> Result<()> {
    let usual = SamplingParams::default();
    let mut write = |name: &str, value: f32, default: f32, is_said_always: bool| {
        if value != default || is_said_always {
            body.insert(name.to_owned(), number(value));
        }
    };
    let always = dialect.has_own_defaults();
    write("temperature", sampling.temperature, usual.temperature, always);
    write("top_p", sampling.top_p, usual.top_p, always);
    write("frequency_penalty", sampling.frequency_penalty, usual.frequency_penalty, always);
    write("presence_penalty", sampling.presence_penalty, usual.presence_penalty, always);
    if dialect.has_top_k() {
        write("min_p", sampling.min_p, usual.min_p, always);
    } else if sampling.min_p != usual.min_p {
        return Err(not_expressible("min_p", dialect));
    }
    if dialect.has_typical_p() {
        write("typical_p", sampling.typical_p, usual.typical_p, always);
    } else if sampling.typical_p != usual.typical_p {
        return Err(not_expressible("typical_p", dialect));
    }
    match dialect.repetition_penalty_field() {
        Some(field) => write(field, sampling.repetition_penalty, usual.repetition_penalty, always),
        None if sampling.repetition_penalty != usual.repetition_penalty => {
            return Err(not_expressible("repetition_penalty", dialect));
        }
        None => {}
    }
    if dialect == Dialect::LlamaServer && sampling.repetition_penalty != usual.repetition_penalty {
        // Its default window is the last 64 tokens; ours is everything.
        body.insert("repeat_last_n".to_owned(), (-1).into());
    }
    if dialect.has_top_k() {
        if sampling.top_k != 0 || always {
            // vLLM's value for all is -1, the others' is 0.
            let all_is_minus_one = dialect == Dialect::Vllm && sampling.top_k == 0;
            body.insert("top_k".to_owned(), if all_is_minus_one { (-1).into() } else { sampling.top_k.into() });
        }
    } else if sampling.top_k != 0 {
        return Err(not_expressible("top_k", dialect));
    }
    if !sampling.logit_bias.is_empty() {
        let biases: Map<String, Value> =
            sampling.logit_bias.iter().map(|&(token, bias)| (token.to_string(), number(bias))).collect();
        body.insert("logit_bias".to_owned(), Value::Object(biases));
    }
    if let Some(seed) = sampling.seed {
        body.insert("seed".to_owned(), seed.into());
    }
    Ok(())
}

fn write_constraint(
    constraint: &Constraint,
    is_chat: bool,
    dialect: Dialect,
    body: &mut Map<String, Value>,
) -> Result<()> {
    let has_response_format = is_chat || dialect.constrains_completions();
    match constraint {
        Constraint::JsonObject if has_response_format => {
            body.insert("response_format".to_owned(), json!({"type": "json_object"}));
        }
        Constraint::JsonSchema(schema) if has_response_format => {
            let format = json!({
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": schema, "strict": true},
            });
            body.insert("response_format".to_owned(), format);
        }
        Constraint::JsonObject | Constraint::JsonSchema(_) => return Err(not_expressible("response_format", dialect)),
        Constraint::Regex(pattern) if dialect.has_token_fields() => {
            body.insert("structured_outputs".to_owned(), json!({"regex": pattern}));
        }
        Constraint::Regex(_) => return Err(not_expressible("guided_regex", dialect)),
        Constraint::Lark(grammar) if dialect.has_lark() => {
            body.insert("grammar".to_owned(), json!({"type": "lark", "value": grammar}));
        }
        Constraint::Lark(_) => return Err(not_expressible("grammar", dialect)),
    }
    Ok(())
}

fn write_chat(chat: &ChatPrompt, dialect: Dialect, body: &mut Map<String, Value>) -> Result<()> {
    body.insert("messages".to_owned(), chat.messages.iter().map(message).collect());
    if !chat.tools.is_empty() {
        body.insert("tools".to_owned(), chat.tools.clone().into());
        let choice = match &chat.tool_choice {
            ToolChoice::Auto => None,
            ToolChoice::None => Some(json!("none")),
            ToolChoice::Required => Some(json!("required")),
            ToolChoice::Named(name) => Some(json!({"type": "function", "function": {"name": name}})),
        };
        if let Some(choice) = choice {
            body.insert("tool_choice".to_owned(), choice);
        }
        if !chat.parallel_tool_calls {
            body.insert("parallel_tool_calls".to_owned(), false.into());
        }
    }
    if !chat.add_generation_prompt {
        if !dialect.has_template_fields() {
            return Err(not_expressible("add_generation_prompt", dialect));
        }
        body.insert("add_generation_prompt".to_owned(), false.into());
    }
    write_template_kwargs(&chat.template_kwargs, dialect, body)
}

/// Only `reasoning_effort` has a field of its own in the contract.
fn write_template_kwargs(kwargs: &Map<String, Value>, dialect: Dialect, body: &mut Map<String, Value>) -> Result<()> {
    if kwargs.is_empty() {
        return Ok(());
    }
    if dialect.has_template_fields() {
        body.insert("chat_template_kwargs".to_owned(), Value::Object(kwargs.clone()));
        return Ok(());
    }
    let none = Value::from("none");
    let mut effort = kwargs.get("reasoning_effort").cloned();
    for (name, value) in kwargs {
        match (&**name, value) {
            ("reasoning_effort", _) => {}
            // No thinking is an effort, too; thinking is the default of such models.
            ("enable_thinking", Value::Bool(false)) if effort.as_ref().is_none_or(|effort| *effort == none) => {
                effort = Some(none.clone());
            }
            ("enable_thinking", Value::Bool(true)) => {}
            _ => return Err(not_expressible("chat_template_kwargs", dialect)),
        }
    }
    if let Some(effort) = effort {
        body.insert("reasoning_effort".to_owned(), effort);
    }
    Ok(())
}

/// A message of the contract: a call's arguments, an object for templates, are a string there.
fn message(message: &Value) -> Value {
    let mut message = message.clone();
    let Some(calls) = message.get_mut("tool_calls").and_then(Value::as_array_mut) else { return message };
    for call in calls {
        if let Some(arguments) = call.pointer_mut("/function/arguments")
            && !arguments.is_string()
        {
            *arguments = Value::String(arguments.to_string());
        }
    }
    if message.get("content").and_then(Value::as_str) == Some("") {
        message["content"] = Value::Null;
    }
    message
}

/// The request for `/embeddings`.
pub(super) fn embedding(request: &EmbedRequest, upstream_model: &str, dialect: Dialect) -> Result<UpstreamRequest> {
    let texts = || {
        request.inputs.iter().map(|input| if let EmbedInput::Text(text) = input { Some(text.as_str()) } else { None })
    };
    let tokens = || {
        request.inputs.iter().map(|input| if let EmbedInput::Tokens(ids) = input { Some(ids.as_slice()) } else { None })
    };
    let input: Value = if let Some(texts) = texts().collect::<Option<Vec<_>>>() {
        texts.into()
    } else if let Some(tokens) = tokens().collect::<Option<Vec<_>>>() {
        tokens.into_iter().map(Value::from).collect()
    } else {
        return Err(Error::invalid("input", "`input` must be all texts or all token ids."));
    };
    let mut body = Map::new();
    body.insert("model".to_owned(), upstream_model.into());
    body.insert("input".to_owned(), input);
    body.insert("encoding_format".to_owned(), "float".into());
    if let Some(dimensions) = request.dimensions {
        body.insert("dimensions".to_owned(), dimensions.into());
    }
    match (request.input_type, dialect) {
        (EmbedInputType::Plain, _) => {}
        (EmbedInputType::Query, Dialect::Hearth) => drop(body.insert("input_type".to_owned(), "query".into())),
        (EmbedInputType::Passage, Dialect::Hearth) => drop(body.insert("input_type".to_owned(), "passage".into())),
        (EmbedInputType::Query | EmbedInputType::Passage, _) => return Err(not_expressible("input_type", dialect)),
    }
    if request.truncate {
        if dialect != Dialect::Hearth {
            return Err(not_expressible("truncate", dialect));
        }
        body.insert("truncate".to_owned(), true.into());
    }
    Ok(UpstreamRequest { path: "embeddings", body: Value::Object(body) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_domain::Account;

    fn request(prompt: Prompt) -> GenerateRequest {
        GenerateRequest { max_tokens: Some(9), ..GenerateRequest::new(Account::unrecorded(), prompt) }
    }

    fn chat() -> ChatPrompt {
        ChatPrompt { parallel_tool_calls: true, add_generation_prompt: true, ..ChatPrompt::default() }
    }

    /// The body without the fields that every one has.
    fn body(request: &GenerateRequest, dialect: Dialect) -> Result<Value> {
        let mut body = generation(request, "m", dialect)?.body;
        let fields = body.as_object_mut().expect("an object");
        assert_eq!(fields.remove("model"), Some(json!("m")));
        assert_eq!(fields.remove("stream"), Some(json!(true)));
        assert_eq!(fields.remove("stream_options"), Some(json!({"include_usage": true})));
        fields.remove("messages");
        Ok(body)
    }

    #[test]
    fn each_kind_is_told_what_it_does_not_do_by_itself() {
        let usual = request(Prompt::Chat(chat()));
        let said = |dialect| body(&usual, dialect).unwrap();
        assert_eq!(said(Dialect::OpenAi), json!({"max_completion_tokens": 9}));
        assert_eq!(said(Dialect::Compatible), json!({"max_tokens": 9}));
        assert_eq!(said(Dialect::Hearth), json!({"max_tokens": 9}));
        let vllm = said(Dialect::Vllm);
        assert_eq!((&vllm["temperature"], &vllm["top_k"], &vllm["min_p"]), (&json!(1.0), &json!(-1), &json!(0.0)));
        let llama = said(Dialect::LlamaServer);
        assert_eq!((&llama["top_k"], &llama["top_p"], &llama["repeat_penalty"]), (&json!(0), &json!(1.0), &json!(1.0)));
    }

    #[test]
    fn everything_that_can_be_asked_for_is() {
        let sampling = SamplingParams {
            temperature: 0.7,
            top_k: 5,
            repetition_penalty: 1.1,
            logit_bias: [(3, -2.5)].into(),
            seed: Some(-1),
            ..SamplingParams::default()
        };
        let asked = GenerateRequest {
            sampling,
            min_tokens: 2,
            stop: ["x".to_owned()].into(),
            stop_token_ids: vec![7],
            ignore_eos: true,
            n: 2,
            logprobs: Some(3),
            return_token_ids: true,
            constraint: Some(Constraint::Regex("a+".to_owned()).into()),
            ..request(Prompt::Chat(chat()))
        };
        let expected = json!({"max_tokens": 9, "stop": ["x"], "min_tokens": 2, "stop_token_ids": [7], "ignore_eos": true,
            "return_token_ids": true, "temperature": 0.7, "repetition_penalty": 1.1, "top_k": 5, "logit_bias": {"3": -2.5},
            "seed": -1, "structured_outputs": {"regex": "a+"}, "logprobs": true, "top_logprobs": 3, "n": 2});
        assert_eq!(body(&asked, Dialect::Hearth).unwrap(), expected);
        assert!(body(&asked, Dialect::Vllm).is_ok());
        let named = GenerateRequest { session: Some("s".to_owned()), ..request(Prompt::Chat(chat())) };
        for dialect in Dialect::ALL {
            let key = body(&named, dialect).unwrap().get("prompt_cache_key").cloned();
            assert_eq!(key.is_some(), [Dialect::OpenAi, Dialect::Hearth].contains(&dialect), "{dialect:?}");
            assert!(key.is_none_or(|key| key.as_str().unwrap().len() == 16), "not the client's own words");
        }
        let score = GenerateRequest { logprobs: Some(0), echo: true, ..request(Prompt::Tokens(vec![1, 2])) };
        let expected = json!({"prompt": [1, 2], "max_tokens": 9, "logprobs": 0, "echo": true});
        assert_eq!(body(&score, Dialect::Compatible).unwrap(), expected);
        let endless = GenerateRequest { max_tokens: None, ..request(Prompt::Text("a".to_owned())) };
        assert_eq!(body(&endless, Dialect::Vllm).unwrap_err().param(), Some("max_tokens"));
        assert_eq!(body(&endless, Dialect::Hearth).unwrap()["max_tokens"], json!(i32::MAX));
    }

    #[test]
    fn a_conversation_is_said_in_the_contracts_own_form() {
        let call = json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}});
        let messages = vec![
            json!({"role": "assistant", "content": "", "tool_calls": [call]}),
            json!({"role": "user", "content": ""}),
        ];
        let tools = vec![json!({"type": "function", "function": {"name": "f"}})];
        let mut chat = ChatPrompt { messages, tools, tool_choice: ToolChoice::Named("f".to_owned()), ..chat() };
        chat.template_kwargs.insert("enable_thinking".to_owned(), false.into());
        chat.template_kwargs.insert("reasoning_effort".to_owned(), "none".into());
        let asked = request(Prompt::Chat(chat.clone()));
        let whole = generation(&asked, "m", Dialect::OpenAi).unwrap().body;
        assert_eq!(whole["messages"][0]["tool_calls"][0]["function"]["arguments"], json!("{\"a\":1}"));
        assert_eq!((&whole["messages"][0]["content"], &whole["messages"][1]["content"]), (&Value::Null, &json!("")));
        assert_eq!(whole["tool_choice"], json!({"type": "function", "function": {"name": "f"}}));
        assert_eq!((&whole["reasoning_effort"], whole.get("chat_template_kwargs")), (&json!("none"), None));
        let local = generation(&asked, "m", Dialect::Hearth).unwrap().body;
        assert_eq!(local["chat_template_kwargs"], json!({"enable_thinking": false, "reasoning_effort": "none"}));
        chat.template_kwargs.insert("reasoning_effort".to_owned(), "low".into());
        let refused = generation(&request(Prompt::Chat(chat)), "m", Dialect::OpenAi).unwrap_err();
        assert_eq!(refused.param(), Some("chat_template_kwargs"));
    }
}
