//! Small templates and the prompts that jinja2, configured as `transformers` does it, renders from them.

use serde_json::json;

use super::*;

fn messages() -> Vec<Value> {
    vec![json!({"role": "user", "content": "Hi"}), json!({"role": "assistant", "content": "Yo"})]
}

fn render(source: &str, messages: &[Value]) -> Result<String, TemplateError> {
    ChatTemplate::new(source, "<s>", "</s>")?.render(messages, &[], true, &Map::new())
}

/// `expected.json` holds our own templates with what `transformers` 5 rendered for them, or the message it raised.
#[test]
fn small_templates_render_as_transformers_renders_them() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("expected.json")).expect("the file is JSON");
    for case in cases {
        let source = case["source"].as_str().expect("a source");
        let kwargs = case["kwargs"].as_object().expect("variables");
        let rendered = ChatTemplate::new(source, "<s>", "</s>")
            .and_then(|template| template.render(&messages(), &[], true, kwargs));
        match case.get("text") {
            Some(text) => assert_eq!(rendered.ok().as_deref(), text.as_str(), "{source}"),
            None => assert!(rendered.is_err(), "{source} rendered {rendered:?}"),
        }
    }
}

#[test]
fn an_effort_that_a_template_does_not_name_is_the_nearest_that_it_does() {
    let prompt = |source: &str, effort: &str| {
        let template_kwargs = Map::from_iter([("reasoning_effort".to_owned(), Value::from(effort))]);
        let prompt = ChatPrompt { messages: messages(), template_kwargs, ..ChatPrompt::default() };
        ChatTemplate::new(source, "", "").unwrap().render_prompt(&prompt).unwrap()
    };
    let plain = "{{ reasoning_effort }}";
    for (effort, known) in
        [("max", "high"), ("xhigh", "high"), ("minimal", "low"), ("medium", "medium"), ("none", "none")]
    {
        assert_eq!(prompt(plain, effort), known);
    }
    let deep = "{% if reasoning_effort == 'xhigh' %}deep{% else %}{{ reasoning_effort }}{% endif %}";
    assert_eq!((&*prompt(deep, "max"), &*prompt(deep, "xhigh"), &*prompt(deep, "high")), ("deep", "deep", "high"));
}

#[test]
fn a_refusal_carries_the_template_s_own_words() {
    let source = "{% macro check(m) %}{{ raise_exception('Only user roles, not ' + m.role) }}{% endmacro %}\
                  {% for m in messages %}{% if m.role != 'user' %}{{ check(m) }}{% endif %}{% endfor %}";
    let error = render(source, &messages()).expect_err("the template refuses");
    assert!(
        matches!(&error, TemplateError::Refused(message) if message == "Only user roles, not assistant"),
        "{error:?}"
    );
    let told = error::Error::from(error);
    assert_eq!(told.kind(), error::ErrorKind::InvalidRequest);
    assert!(told.message().contains("Only user roles, not assistant"));
}

#[test]
fn faults_name_their_line() {
    let error = render("ok\n{{ messages[0].content.nothing.more }}", &messages()).expect_err("undefined has no fields");
    assert!(matches!(error, TemplateError::Failed { line: 2, .. }), "{error:?}");
    let error = render("ok\n\n{% if %}", &messages()).expect_err("not Jinja");
    assert!(matches!(error, TemplateError::Syntax { line: 3, .. }), "{error:?}");
}

#[test]
fn hostile_templates_end_in_errors() {
    let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{{ '' }}{% endfor %}{% endfor %}";
    assert!(matches!(render(endless, &[]), Err(TemplateError::TooManySteps)));
    let deep = "{% macro again(n) %}{{ again(n + 1) }}{% endmacro %}{{ again(0) }}";
    assert!(matches!(render(deep, &[]), Err(TemplateError::Failed { .. })));
    let long = "{% for a in range(2000) %}{{ 'x' * 1000000 }}{% endfor %}";
    assert!(matches!(render(long, &[]), Err(TemplateError::PromptTooLong)));
    let file = "{% include '/etc/hostname' %}";
    assert!(matches!(render(file, &[]), Err(TemplateError::Failed { .. })));
    assert!(matches!(ChatTemplate::new(&" ".repeat(2 << 20), "", ""), Err(TemplateError::TemplateTooLong(_))));
}

#[test]
fn fallbacks_follow_the_vocabulary() {
    let named = |tokens: &[&str]| {
        ChatTemplate::fallback(|token| tokens.contains(&token), "<s>", "</s>").expect("built-ins compile").1
    };
    assert_eq!(named(&["<|im_start|>", "<|im_end|>", "<s>"]), "chatml");
    assert_eq!(named(&["<|start_header_id|>", "<|end_header_id|>"]), "llama3");
    assert_eq!(named(&["<start_of_turn>", "<end_of_turn>"]), "gemma");
    assert_eq!(named(&["<|user|>", "<|assistant|>", "<|end|>"]), "phi3");
    assert_eq!(named(&["<|user|>", "<|assistant|>"]), "zephyr");
    assert_eq!(named(&["<s>", "</s>", "<0x0A>"]), "llama2-sys");
    assert_eq!(named(&[]), "transcript");
}

#[test]
fn every_builtin_shows_every_turn() {
    let conversation = [
        json!({"role": "system", "content": "Sys"}),
        json!({"role": "user", "content": [{"type": "text", "text": "Que"}, {"type": "text", "text": "stion"}]}),
        json!({"role": "assistant", "content": "Answer"}),
        json!({"role": "user", "content": "Next"}),
    ];
    for name in BuiltinTemplate::names().split(", ") {
        let template = ChatTemplate::builtin(name, "<s>", "</s>").expect("built-ins compile");
        let prompt = template.render(&conversation, &[], true, &Map::new()).expect("built-ins render");
        for text in ["Sys", "Question", "Answer", "Next"] {
            assert!(prompt.contains(text), "{name}: {prompt}");
        }
        assert!(template.capabilities().system && template.capabilities().content_parts, "{name}");
    }
    assert!(matches!(ChatTemplate::builtin("nope", "", ""), Err(TemplateError::UnknownBuiltin { .. })));
    let chatml = ChatTemplate::builtin("chatml", "", "").expect("built-ins compile");
    let prompt = chatml.render(&conversation[..2], &[], true, &Map::new()).expect("built-ins render");
    assert_eq!(
        prompt,
        "<|im_start|>system\nSys<|im_end|>\n<|im_start|>user\nQuestion<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn conversations_are_fitted_to_what_the_template_shows() {
    let quoting = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}<{{ c.function.arguments | tojson }}>\
                   {% endfor %}{% endfor %}{% for t in tools or [] %}{{ t | tojson }}{% endfor %}";
    let prompt = ChatPrompt {
        messages: vec![
            json!({"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]}),
            json!({"role": "assistant", "content": "", "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}}]}),
        ],
        ..ChatPrompt::default()
    };
    let template = ChatTemplate::new(quoting, "", "").expect("compiles");
    assert_eq!(template.render_prompt(&prompt).expect("renders"), "one two<{\"a\": 1}>");
    assert!(template.supports_tools() && !template.supports_reasoning());

    let verbatim =
        quoting.replace(" | tojson }}>", " if c.function.arguments is string else c.function.arguments | tojson }}>");
    let template = ChatTemplate::new(&verbatim, "", "").expect("compiles");
    assert_eq!(template.render_prompt(&prompt).expect("renders"), "one two<{\"a\":1}>");
}

#[test]
fn ids_tools_and_calls_fit_strict_and_simple_templates() {
    let strict = "{% for m in messages %}{% for c in m.tool_calls %}{% if c.id | length != 9 %}{{ raise_exception('id') }}\
                  {% endif %}{{ c.id }}:{{ c.function.arguments | tojson }}{% endfor %}{{ m.tool_call_id }}{{ m.content }}|{% endfor %}\
                  {% for t in tools or [] %}{{ t | tojson }}{% endfor %}";
    let mut prompt = ChatPrompt {
        messages: vec![
            json!({"role": "user", "content": "Q"}),
            json!({"role": "assistant", "content": null, "tool_calls": [
                {"id": "call_abcdef", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}),
            json!({"role": "tool", "tool_call_id": "call_abcdef", "content": "R"}),
        ],
        tools: vec![json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}})],
        ..ChatPrompt::default()
    };
    let template = ChatTemplate::new(strict, "", "").expect("compiles");
    assert!(template.capabilities().short_call_ids);
    let text = template.render_prompt(&prompt).expect("renders");
    let id = &blake3::hash(b"call_abcdef").to_hex()[..9];
    assert!(text.starts_with(&format!("Q|{id}:{{}}|{id}R|")), "{text}");
    prompt.tool_choice = hearth_domain::ToolChoice::None;
    assert!(!template.render_prompt(&prompt).expect("renders").contains("\"type\""));

    prompt.tool_choice = hearth_domain::ToolChoice::Auto;
    let simple = ChatTemplate::builtin("gemma", "", "").expect("compiles");
    let text = simple.render_prompt(&prompt).expect("renders");
    for part in ["<tools>", "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}", "<tool_response>\nR"] {
        assert!(text.contains(part), "{text}");
    }
}
