//! Random walks: tokens are drawn from the allowed ones until the answer is complete, and the answer must then satisfy
//! the constraint.

use hearth_domain::TokenConstraint;
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::tool_calls::{OutputParser, ParsedPiece, ToolFormat};

/// Every byte, some longer tokens that cross JSON's token boundaries, and special tokens at the end.
fn vocabulary() -> GrammarVocabulary {
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    let words = [
        "{\"",
        "\": ",
        "\", \"",
        "\"}",
        "\"},",
        "}}",
        "]}",
        " {",
        "\n",
        "\n\n",
        "  ",
        "name",
        "arguments",
        "true",
        "false",
        "null",
        "the",
        "é",
        "🌍",
        "12",
        "0.5",
        "e+",
        ">\n",
        ">{\"",
        "call",
        "tool_",
        "</",
        "think",
        "\"name",
    ];
    tokens.extend(words.iter().map(|word| word.as_bytes().to_vec()));
    let first_special = tokens.len() as u32;
    for text in ["<s>", "</s>", "<|eot|>", "[TOOL_CALLS]", "[ARGS]", "<tool_call>", "</tool_call>", "</think>"] {
        tokens.push(text.as_bytes().to_vec());
    }
    GrammarVocabulary {
        special: (first_special..first_special + 5).collect(),
        end_of_generation: vec![first_special + 1, first_special + 2],
        tokens,
    }
}

/// Wider than the vocabulary, like models' logits, and not a multiple of 32.
const LOGITS_WIDTH: usize = 330;

fn compiler() -> &'static GrammarCompiler {
    static COMPILER: std::sync::LazyLock<GrammarCompiler> = std::sync::LazyLock::new(|| {
        GrammarCompiler::from_vocabulary(&vocabulary(), LOGITS_WIDTH).expect("the vocabulary is sound")
    });
    &COMPILER
}

/// Walks to the end of the answer and returns its text. `steer` prefers tokens, as a model would.
fn walk(constraint: &mut dyn TokenConstraint, seed: u64, steer: &dyn Fn(&[u8], &str) -> bool) -> String {
    let vocabulary = vocabulary();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut bytes = Vec::new();
    for _ in 0..6000 {
        if constraint.is_finished() {
            return String::from_utf8(bytes).expect("the answer is UTF-8");
        }
        let mut mask = vec![0u32; LOGITS_WIDTH.div_ceil(32)];
        constraint.allowed(&mut mask).expect("a mask");
        let allowed: Vec<u32> =
            (0..mask.len() as u32 * 32).filter(|id| mask[*id as usize / 32] >> (id % 32) & 1 == 1).collect();
        assert!(!allowed.is_empty(), "no token may follow {:?}", String::from_utf8_lossy(&bytes));
        assert!(allowed.iter().all(|id| (*id as usize) < vocabulary.tokens.len()), "a token past the vocabulary");
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let liked: Vec<u32> =
            allowed.iter().copied().filter(|id| steer(&vocabulary.tokens[*id as usize], &text)).collect();
        let choices = if !liked.is_empty() && random.random_bool(0.6) { &liked } else { &allowed };
        let token = choices[random.random_range(0..choices.len())];
        constraint.accept(token).expect("an allowed token is accepted");
        if vocabulary.end_of_generation.contains(&token) {
            return String::from_utf8(bytes).expect("the answer is UTF-8");
        }
        bytes.extend_from_slice(&vocabulary.tokens[token as usize]);
    }
    panic!("the answer does not end: {}", String::from_utf8_lossy(&bytes[..200]));
}

/// Tokens that close a string, an object or an array, or end the answer.
fn closes(token: &[u8], _text: &str) -> bool {
    matches!(token, b"\"" | b"}" | b"]" | b"</s>" | b"<|eot|>" | b"\"}")
}

fn schemas() -> Vec<Value> {
    vec![
        json!({}),
        json!(true),
        json!({"type": "object"}),
        json!({"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
            "required": ["name", "age"], "additionalProperties": false}),
        json!({"type": "object", "properties": {"a": {"type": "object", "properties": {"b": {"type": "array",
            "items": {"type": "object", "properties": {"c": {"type": "boolean"}}, "required": ["c"]}}},
            "required": ["b"]}}, "required": ["a"]}),
        json!({"$defs": {"point": {"type": "object", "properties": {"x": {"type": "number"}, "y": {"type": "number"}},
            "required": ["x", "y"], "additionalProperties": false}},
            "type": "array", "items": {"$ref": "#/$defs/point"}, "minItems": 1, "maxItems": 3}),
        json!({"definitions": {"node": {"type": "object", "properties": {"value": {"type": "integer"},
            "next": {"anyOf": [{"type": "null"}, {"$ref": "#/definitions/node"}]}},
            "required": ["value", "next"], "additionalProperties": false}}, "$ref": "#/definitions/node"}),
        json!({"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}},
            "required": ["children"], "additionalProperties": false}),
        json!({"enum": ["red", "grün", 3, null, {"a": [1]}]}),
        json!({"const": {"k": ["v", 1.5, false]}}),
        json!({"anyOf": [{"type": "string", "maxLength": 3}, {"type": "integer", "minimum": 10, "maximum": 99}]}),
        json!({"oneOf": [{"type": "object", "properties": {"kind": {"const": "a"}, "x": {"type": "null"}},
            "required": ["kind", "x"], "additionalProperties": false}, {"type": "object", "properties":
            {"kind": {"const": "b"}}, "required": ["kind"], "additionalProperties": false}]}),
        json!({"allOf": [{"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]},
            {"type": "object", "properties": {"b": {"type": "null"}}, "required": ["b"]}]}),
        json!({"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3,5}$"}),
        json!({"type": "string", "minLength": 2, "maxLength": 5}),
        json!({"type": "string", "format": "date"}),
        json!({"type": "string", "format": "uuid"}),
        json!({"type": "string", "format": "date-time"}),
        json!({"type": "string", "format": "ipv4"}),
        json!({"type": "number", "minimum": -1.5, "exclusiveMaximum": 2}),
        json!({"type": "integer", "exclusiveMinimum": 0, "maximum": 1000, "multipleOf": 5}),
        json!({"type": ["string", "null"], "maxLength": 4}),
        json!({"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": false, "minItems": 2}),
        json!({"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4, "uniqueItems": false}),
        json!({"type": "object", "patternProperties": {"^n_[a-z]$": {"type": "integer"}}, "additionalProperties": false,
            "minProperties": 1, "maxProperties": 2}),
        json!({"type": "object", "additionalProperties": {"type": "integer"}}),
        json!({"type": "object", "properties": {"opt": {"type": "string"}, "title": {"type": "string", "title": "T",
            "description": "d", "default": "x", "examples": ["y"]}}, "required": ["title"]}),
    ]
}

fn one(compiled: CompiledConstraint) -> Box<dyn TokenConstraint> {
    compiled.answers(1).remove(0)
}

fn is_valid(schema: &Value, instance: &Value) -> bool {
    jsonschema::options().should_validate_formats(true).build(schema).expect("the schema is sound").is_valid(instance)
}

/// The answer of a random walk satisfies the schema.
fn check_walk(schema: &Value, seed: u64) -> Result<(), String> {
    let compiled = compiler().compile(&Constraint::JsonSchema(schema.clone())).map_err(|error| error.to_string())?;
    let mut constraint = one(compiled);
    let text = walk(constraint.as_mut(), seed, &closes);
    match serde_json::from_str(&text) {
        // JSON has no largest number, but this test's parser does.
        Err(error) if error.to_string().contains("out of range") => Ok(()),
        Err(error) => Err(format!("{schema}: {text:?}: {error}")),
        // The grammar allows a leap second on any day, the validator only on a few.
        Ok(Value::String(time)) if time.contains(":60") => Ok(()),
        // In the grammar the number of days in a month does not depend on the year.
        Ok(Value::String(date)) if date.get(4..10) == Some("-02-29") => Ok(()),
        Ok(value) if is_valid(schema, &value) => Ok(()),
        Ok(_) => Err(format!("{schema} does not allow {text}")),
    }
}

#[test]
fn random_answers_satisfy_their_schemas() {
    for schema in schemas() {
        for seed in 0..12 {
            check_walk(&schema, seed).unwrap_or_else(|fault| panic!("{fault}"));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_seed_gives_valid_json(seed in any::<u64>(), which in 0usize..27) {
        prop_assert_eq!(check_walk(&schemas()[which], seed), Ok(()));
    }
}

#[test]
fn objects_expressions_and_grammars_are_enforced() {
    let mut object = one(compiler().compile(&Constraint::JsonObject).expect("compiles"));
    assert!(serde_json::from_str::<Value>(&walk(object.as_mut(), 1, &closes)).expect("JSON").is_object());

    let mut regex = one(compiler().compile(&Constraint::Regex("(yes|no)[0-9]{2}".to_owned())).expect("compiles"));
    let text = walk(regex.as_mut(), 2, &closes);
    assert!(text.starts_with("yes") || text.starts_with("no"), "{text}");

    let lark = "start: \"a\" (\"b\" | \"c\"){3} \"!\"".to_owned();
    let text = walk(one(compiler().compile(&Constraint::Lark(lark)).expect("compiles")).as_mut(), 3, &closes);
    assert!(text.len() == 5 && text.starts_with('a') && text.ends_with('!'), "{text}");
}

#[test]
fn the_end_is_allowed_exactly_when_the_answer_is_complete() {
    let vocabulary = vocabulary();
    let mut constraint = one(compiler().compile(&Constraint::Regex("ab?".to_owned())).expect("compiles"));
    let ends = |constraint: &mut Box<dyn TokenConstraint>| {
        let mut mask = vec![0u32; LOGITS_WIDTH.div_ceil(32)];
        constraint.allowed(&mut mask).expect("a mask");
        vocabulary.end_of_generation.iter().filter(|id| mask[**id as usize / 32] >> (**id % 32) & 1 == 1).count()
    };
    assert_eq!(ends(&mut constraint), 0);
    constraint.accept(u32::from(b'a')).expect("allowed");
    assert_eq!((ends(&mut constraint), constraint.is_finished()), (2, false));
    constraint.accept(u32::from(b'b')).expect("allowed");
    assert_eq!((ends(&mut constraint), constraint.is_finished()), (2, true));
}

#[test]
fn digits_of_an_integer_are_bounded() {
    for schema in [json!({"type": "integer"}), json!({"type": "array", "items": {"type": "integer"}, "minItems": 1})] {
        let mut constraint = one(compiler().compile(&Constraint::JsonSchema(schema)).expect("compiles"));
        let text = walk(constraint.as_mut(), 1, &|token, _| token == b"9" || token == b"[");
        let digits = text.chars().filter(char::is_ascii_digit).count();
        assert!((1..=19).contains(&digits), "{text}");
    }
}

#[test]
fn blanks_are_bounded() {
    let mut constraint = one(compiler().compile(&Constraint::JsonObject).expect("compiles"));
    let blank = |token: &[u8], text: &str| !text.is_empty() && token.iter().all(u8::is_ascii_whitespace);
    constraint.accept(u32::from(b'{')).expect("allowed");
    let mut blanks = 0;
    while blanks < 200 {
        let mut mask = vec![0u32; LOGITS_WIDTH.div_ceil(32)];
        constraint.allowed(&mut mask).expect("a mask");
        let tokens = vocabulary().tokens;
        let next = (0..tokens.len()).find(|id| mask[id / 32] >> (id % 32) & 1 == 1 && blank(&tokens[*id], "{"));
        let Some(next) = next else { break };
        constraint.accept(next as u32).expect("allowed");
        blanks += tokens[next].len();
    }
    assert!((1..60).contains(&blanks), "{blanks} blanks");
}

#[test]
fn what_cannot_be_enforced_is_refused_with_its_place() {
    let place = |schema: Value| match compiler().compile(&Constraint::JsonSchema(schema)) {
        Err(GrammarError::Schema { pointer, message }) => (pointer, message),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it compiled"),
    };
    for (schema, pointer) in [
        (json!({"properties": {"a/b": {"not": {"type": "null"}}}}), "/properties/a~1b/not"),
        (json!({"anyOf": [{"type": "null"}, {"if": {}, "then": {}}]}), "/anyOf/1/if"),
        (json!({"items": {"type": "array", "uniqueItems": true}}), "/items/uniqueItems"),
        (json!({"$ref": "#/$defs/missing"}), "/$ref"),
        (json!({"properties": {"x": {"$ref": "https://example.com/schema"}}}), "/properties/x/$ref"),
        (json!({"properties": {"x": 3}}), "/properties/x"),
        (json!({"anyOf": {}}), "/anyOf"),
        (json!(7), ""),
        (json!(false), ""),
        (json!({"type": "object", "properties": {"p": {"type": "string", "pattern": "("}}}), "/properties/p"),
        (json!({"type": "object", "properties": {"p": {"type": "strin"}}}), "/properties/p"),
        (json!({"type": "object", "properties": {"p": {"type": "string", "format": "no-such"}}}), "/properties/p"),
        (
            json!({"type": "object", "required": ["p"], "properties": {"p": {"type": "integer", "minimum": 3, "maximum": 2}}}),
            "/properties/p",
        ),
    ] {
        let (found, message) = place(schema.clone());
        assert_eq!(found, pointer, "{schema}: {message}");
        assert!(!message.is_empty() && !message.contains('\n'));
    }
    let deep = (0..200).fold(json!({}), |inner, _| json!({"type": "object", "properties": {"a": inner}}));
    assert!(place(deep).1.contains("nested"));
    assert!(matches!(compiler().compile(&Constraint::Regex("(".to_owned())), Err(GrammarError::Regex(_))));
    assert!(matches!(compiler().compile(&Constraint::Lark("start: nothing".to_owned())), Err(GrammarError::Lark(_))));
}

fn tools() -> Vec<Value> {
    vec![
        json!({"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object",
            "properties": {"city": {"type": "string", "maxLength": 8}, "unit": {"enum": ["c", "f"]}},
            "required": ["city", "unit"], "additionalProperties": false}}}),
        json!({"type": "function", "function": {"name": "ping"}}),
        json!({"type": "function", "function": {"name": "tree", "parameters": {"$defs": {"n": {"type": "object",
            "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/n"}, "maxItems": 1}},
            "required": ["kids"], "additionalProperties": false}}, "$ref": "#/$defs/n"}}}),
    ]
}

fn schema_of(name: &str) -> Value {
    let tool = tools().into_iter().find(|tool| tool["function"]["name"] == name).expect("a known tool");
    match tool["function"].get("parameters") {
        Some(parameters) => parameters.clone(),
        None => json!({"type": "object", "maxProperties": 0}),
    }
}

const FORMATS: [ToolFormat; 6] = [
    ToolFormat::Hermes,
    ToolFormat::Llama3,
    ToolFormat::Mistral,
    ToolFormat::MistralNamed,
    ToolFormat::Functools,
    ToolFormat::PhiTags,
];

fn rules<'a>(tools: &'a [Value], choice: &'a ToolChoice, format: ToolFormat) -> ToolCallRules<'a> {
    ToolCallRules { tools, choice, parallel: false, format, thinking: Thinking::Never, thinking_tokens: 0 }
}

/// The answer's text and calls, as the server would report them.
fn parsed(format: ToolFormat, thinking: Thinking, text: &str) -> (String, Vec<(String, String)>) {
    let names = tools().iter().filter_map(|tool| tool["function"]["name"].as_str().map(str::to_owned)).collect();
    let mut parser = OutputParser::new(Some(format), names, thinking);
    let mut pieces = parser.push(text);
    pieces.extend(parser.finish());
    let (mut prose, mut calls) = (String::new(), Vec::new());
    for piece in pieces {
        match piece {
            ParsedPiece::Text(text) => prose += &text,
            ParsedPiece::Reasoning(_) => {}
            ParsedPiece::CallStart { name, .. } => calls.push((name, String::new())),
            ParsedPiece::CallArguments { index, delta } => calls[index].1 += &delta,
        }
    }
    (prose, calls)
}

fn assert_calls_fit(calls: &[(String, String)], text: &str) {
    for (name, arguments) in calls {
        let arguments: Value = serde_json::from_str(arguments).unwrap_or_else(|error| panic!("{text:?}: {error}"));
        assert!(is_valid(&schema_of(name), &arguments), "{text}");
    }
}

#[test]
fn forced_calls_are_made_in_every_format() {
    let tools = tools();
    for format in FORMATS {
        for seed in 0..8 {
            for (choice, parallel) in [
                (ToolChoice::Required, true),
                (ToolChoice::Required, false),
                (ToolChoice::Named("tree".to_owned()), false),
            ] {
                let rules = ToolCallRules { parallel, ..rules(&tools, &choice, format) };
                let mut constraint =
                    compiler().compile_tool_calls(&rules).expect("compiles").map(one).expect("a constraint");
                let text = walk(constraint.as_mut(), seed, &closes);
                let (prose, calls) = parsed(format, Thinking::Never, &text);
                assert!(prose.is_empty() && !calls.is_empty(), "{format:?}: {text:?} {prose:?}");
                assert!(parallel || calls.len() == 1, "{text}");
                assert!(choice == ToolChoice::Required || calls[0].0 == "tree", "{text}");
                assert_calls_fit(&calls, &text);
            }
        }
    }
}

#[test]
fn free_answers_are_free_until_a_call_opens() {
    let tools = tools();
    for format in FORMATS {
        let opening = match format {
            ToolFormat::Llama3 => "{\"name\": \"ping\"".to_owned(),
            _ => format!("Sure. {}", format.marker()),
        };
        for seed in 0..8 {
            let rules = rules(&tools, &ToolChoice::Auto, format);
            let mut constraint =
                compiler().compile_tool_calls(&rules).expect("compiles").map(one).expect("a constraint");
            // The model writes the opening byte by byte, and then anything that is allowed.
            let opening_special = vocabulary().tokens.iter().rposition(|token| *token == format.marker().as_bytes());
            let plain = opening.strip_suffix(format.marker());
            let mut said: Vec<u32> = plain.unwrap_or(&opening).bytes().map(u32::from).collect();
            match (plain, opening_special) {
                (Some(_), Some(id)) => said.push(id as u32),
                (Some(_), None) => said.extend(format.marker().bytes().map(u32::from)),
                _ => {}
            }
            for token in said {
                let mut mask = vec![0u32; LOGITS_WIDTH.div_ceil(32)];
                constraint.allowed(&mut mask).expect("a mask");
                assert!(mask[token as usize / 32] >> (token % 32) & 1 == 1, "{format:?}: text is not free");
                constraint.accept(token).expect("allowed");
            }
            let rest = walk(constraint.as_mut(), seed, &closes);
            let text = opening.clone() + &rest;
            let (_, calls) = parsed(format, Thinking::Never, &text);
            assert_eq!(calls.len(), 1, "{format:?}: {text}");
            assert_calls_fit(&calls, &text);
        }
    }
}

#[test]
fn a_free_answer_may_end_without_a_call_and_goes_on_after_one() {
    let tools = tools();
    let rules = ToolCallRules { parallel: true, ..rules(&tools, &ToolChoice::Auto, ToolFormat::Hermes) };
    let mut constraint = compiler().compile_tool_calls(&rules).expect("compiles").map(one).expect("a constraint");
    let steer = |token: &[u8], _: &str| token == b"</s>";
    assert!(parsed(ToolFormat::Hermes, Thinking::Never, &walk(constraint.as_mut(), 5, &steer)).1.is_empty());

    let mut constraint = compiler().compile_tool_calls(&rules).expect("compiles").map(one).expect("a constraint");
    let call = "<tool_call>{\"name\": \"ping\", \"arguments\": {}}</tool_call>";
    for byte in format!("{call} and {call}").bytes() {
        let mut mask = vec![0u32; LOGITS_WIDTH.div_ceil(32)];
        constraint.allowed(&mut mask).expect("a mask");
        assert!(mask[byte as usize / 32] >> (byte % 32) & 1 == 1, "{:?}", byte as char);
        constraint.accept(u32::from(byte)).expect("allowed");
    }
    // What follows a call's opening must be a call, even if it comes in one token with the opening.
    let mut constraint = compiler().compile_tool_calls(&rules).expect("compiles").map(one).expect("a constraint");
    for text in ["<", "tool_", "call", ">{\"", "name"] {
        let id = vocabulary().tokens.iter().position(|token| token == text.as_bytes()).expect("a token") as u32;
        constraint.accept(id).expect("allowed");
    }
    let mut mask = vec![0u32; LOGITS_WIDTH.div_ceil(32)];
    constraint.allowed(&mut mask).expect("a mask");
    assert_eq!(mask[b'x' as usize / 32] >> (b'x' % 32) & 1, 0);
    assert_eq!(mask[b'"' as usize / 32] >> (b'"' % 32) & 1, 1);
}

#[test]
fn thoughts_are_free_and_bounded_before_a_forced_answer() {
    let tools = tools();
    for seed in 0..8 {
        let rules = ToolCallRules {
            thinking: Thinking::Open,
            thinking_tokens: 20,
            ..rules(&tools, &ToolChoice::Required, ToolFormat::Hermes)
        };
        let mut constraint = compiler().compile_tool_calls(&rules).expect("compiles").map(one).expect("a constraint");
        // In its thought this model writes only words, and no broken characters.
        let vocabulary_words = |token: &[u8], text: &str| {
            if text.contains("</think>") { closes(token, text) } else { token == b"the" || token == b"</think>" }
        };
        let text = walk_always(constraint.as_mut(), seed, &vocabulary_words);
        let (_, calls) = parsed(ToolFormat::Hermes, Thinking::Open, &text);
        assert_eq!(calls.len(), 1, "{text}");
        assert_calls_fit(&calls, &text);
    }
    let schema = Constraint::JsonSchema(json!({"type": "boolean"}));
    let mut constraint = one(compiler().compile_after_thinking(&schema, Thinking::Open, 5).expect("compiles"));
    let text = walk_always(constraint.as_mut(), 1, &|token, _| token == b"the");
    let answer = text.split("</think>").nth(1).expect("the thought is closed").trim();
    assert!(answer == "true" || answer == "false", "{text}");
}

/// A walk that takes a preferred token whenever one is allowed.
fn walk_always(constraint: &mut dyn TokenConstraint, seed: u64, steer: &dyn Fn(&[u8], &str) -> bool) -> String {
    let vocabulary = vocabulary();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut text = String::new();
    for _ in 0..3000 {
        if constraint.is_finished() {
            return text;
        }
        let mut mask = vec![0u32; LOGITS_WIDTH.div_ceil(32)];
        constraint.allowed(&mut mask).expect("a mask");
        let allowed: Vec<usize> = (0..vocabulary.tokens.len())
            .filter(|id| mask[id / 32] >> (id % 32) & 1 == 1)
            .filter(|id| std::str::from_utf8(&vocabulary.tokens[*id]).is_ok())
            .collect();
        let liked: Vec<usize> = allowed.iter().copied().filter(|id| steer(&vocabulary.tokens[*id], &text)).collect();
        let choices = if liked.is_empty() { &allowed } else { &liked };
        let token = choices[random.random_range(0..choices.len())];
        constraint.accept(token as u32).expect("an allowed token is accepted");
        if vocabulary.end_of_generation.contains(&(token as u32)) {
            return text;
        }
        text += std::str::from_utf8(&vocabulary.tokens[token]).expect("filtered");
    }
    panic!("the answer does not end: {text}");
}

#[test]
fn bad_tools_are_refused_by_name() {
    let bad = [
        json!({"type": "function", "function": {"name": "f", "strict": true, "parameters": {"properties": {"x": {"not": {}}}}}}),
    ];
    let error = compiler().compile_tool_calls(&rules(&bad, &ToolChoice::Auto, ToolFormat::Hermes)).err();
    let Some(GrammarError::Tool { tool, pointer, index: 0, .. }) = &error else { panic!("{error:?}") };
    assert_eq!((tool.as_str(), pointer.as_str()), ("f", "/properties/x/not"));
    let told = error::Error::from(error.expect("an error"));
    assert_eq!(told.param(), Some("tools[0].function.parameters"));

    let named = ToolChoice::Named("g".to_owned());
    let error = compiler().compile_tool_calls(&rules(&bad, &named, ToolFormat::Hermes)).err();
    assert!(matches!(error, Some(GrammarError::UnknownTool(name)) if name == "g"));
    assert!(
        compiler().compile_tool_calls(&rules(&bad, &ToolChoice::None, ToolFormat::Hermes)).expect("none").is_none()
    );
    assert!(GrammarCompiler::from_vocabulary(&GrammarVocabulary::default(), 10).is_err());
}

/// Schemas that the schema libraries of real clients produce.
#[test]
fn what_cannot_be_enforced_of_a_tool_is_left_out_and_named() {
    let place = |schema: Value| {
        let parameters =
            json!({"type": "object", "properties": {"a": {"type": "integer"}, "x": schema}, "required": ["a"]});
        let tools = [json!({"type": "function", "function": {"name": "f", "parameters": parameters}})];
        let choice = ToolChoice::Required;
        let rules = rules(&tools, &choice, ToolFormat::Hermes);
        let compiled = compiler().compile_tool_calls(&rules).expect("compiles").expect("a constraint");
        let unenforced = compiled.unenforced().to_vec();
        for (seed, mut constraint) in (0..).zip(compiled.answers(3)) {
            let text = walk(constraint.as_mut(), seed, &closes);
            let (_, calls) = parsed(ToolFormat::Hermes, Thinking::Never, &text);
            let arguments: Value = serde_json::from_str(&calls[0].1).expect("the rest is enforced");
            assert!(arguments["a"].is_number(), "{text}");
        }
        unenforced.iter().map(|place| place.replace("tools.0.function.parameters.properties.x", "")).collect::<Vec<_>>()
    };
    for (schema, named) in [
        (json!({"type": "object", "propertyNames": {"type": "string"}}), &[".propertyNames"][..]),
        (json!({"type": "array", "items": {"type": "string"}, "uniqueItems": true}), &[".uniqueItems"]),
        (json!({"type": "array", "uniqueItems": false}), &[]),
        (json!({"type": "string", "format": "cuid"}), &[".format"]),
        (json!({"type": "string", "pattern": "^(?=.*a).+$"}), &[".pattern"]),
        (json!({"oneOf": [{"type": "string"}, {"type": "string", "minLength": 2}]}), &[".oneOf"]),
        (
            json!({"type": "object", "properties": Value::Object((0..7).map(|n| {
                (format!("p{n}"), json!({"type": "string", "pattern": format!("^(?={n})")}))
            }).collect())}),
            &(0..7)
                .map(|n| format!(".properties.p{n}.pattern"))
                .collect::<Vec<_>>()
                .iter()
                .map(String::as_str)
                .collect::<Vec<_>>(),
        ),
        (json!({"$ref": "https://example.com/other"}), &[""]),
        (
            json!({"type": "array", "items": [{"not": {"type": "null"}}, {"if": {}, "then": {}}]}),
            &[".items.0.not", ".items.1.if", ".items.1.then"],
        ),
        (
            json!({"type": "object", "properties": {"b": {"type": "string", "format": "cuid"}, "c": {"type": "string", "format": "cuid"}}}),
            &[".properties.b.format", ".properties.c.format"],
        ),
    ] {
        assert_eq!(place(schema.clone()), named, "{schema}");
    }
}

/// However little of a schema can be enforced, a call's arguments are an object.
#[test]
fn arguments_are_an_object_whatever_the_schema_says() {
    for parameters in [
        json!({"type": "object", "allOf": [{"type": "string"}]}),
        json!({"$ref": "#/$defs/none"}),
        json!({"type": "object", "oneOf": [{}, {}], "anyOf": [{"required": ["a"]}], "properties": {"a": {"type": "integer"}}}),
    ] {
        let tools = [json!({"type": "function", "function": {"name": "f", "parameters": parameters}})];
        let choice = ToolChoice::Required;
        let compiled = compiler().compile_tool_calls(&rules(&tools, &choice, ToolFormat::Hermes)).expect("compiles");
        let mut constraint = one(compiled.expect("a constraint"));
        let text = walk(constraint.as_mut(), 1, &closes);
        let (_, calls) = parsed(ToolFormat::Hermes, Thinking::Never, &text);
        assert!(serde_json::from_str::<Value>(&calls[0].1).expect("JSON").is_object(), "{parameters}: {text}");
    }
}

#[test]
fn answers_of_one_request_go_their_own_ways() {
    let compiled = compiler().compile(&Constraint::Regex("ab|cd".to_owned())).expect("compiles");
    let mut answers = compiled.answers(3);
    for (answer, text) in answers.iter_mut().zip(["ab", "cd", "ab"]) {
        for byte in text.bytes() {
            let mut mask = vec![0u32; LOGITS_WIDTH.div_ceil(32)];
            answer.allowed(&mut mask).expect("a mask");
            assert_eq!(mask[byte as usize / 32] >> (byte % 32) & 1, 1, "{text}");
            answer.accept(u32::from(byte)).expect("allowed");
        }
        assert!(answer.is_finished());
    }
}

/// Constraints designed to exhaust the compiler, called from a thread with a small stack.
#[test]
fn hostile_constraints_end_in_answers_or_errors() {
    let chain = |length: usize| {
        let definitions: serde_json::Map<String, Value> = (0..length)
            .map(|n| {
                (
                    format!("d{n}"),
                    json!({"type": "object", "properties": {"a": {"$ref": format!("#/$defs/d{}", (n + 1) % length)}}}),
                )
            })
            .collect();
        json!({"$defs": definitions, "$ref": "#/$defs/d0"})
    };
    let aliases = |length: usize| {
        let definitions: serde_json::Map<String, Value> =
            (0..length).map(|n| (format!("d{n}"), json!({"$ref": format!("#/$defs/d{}", (n + 1) % length)}))).collect();
        json!({"$defs": definitions, "$ref": "#/$defs/d0"})
    };
    let constraints = [
        Constraint::JsonSchema(chain(2000)),
        Constraint::JsonSchema(aliases(1)),
        Constraint::JsonSchema(aliases(2000)),
        Constraint::JsonSchema(json!({"allOf": [{"$ref": "#"}]})),
        Constraint::JsonSchema(json!({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]})),
        Constraint::JsonSchema(json!({"type": "string", "minLength": 4_000_000_000u64})),
        Constraint::JsonSchema(json!({"type": "array", "items": {"type": "null"}, "minItems": 4_000_000_000u64})),
        Constraint::JsonSchema(json!({"type": "string", "pattern": "(((a{1000}){1000}){1000}){1000}"})),
        Constraint::JsonSchema(json!({"enum": (0..20_000).collect::<Vec<u32>>()})),
        Constraint::JsonSchema(json!({"multipleOf": 1e-300, "type": "number"})),
        Constraint::JsonSchema(json!({"x-guidance": {"whitespace_pattern": "("}, "type": "object"})),
        Constraint::Regex("(".repeat(50_000)),
        Constraint::Regex("a{0,100000}{0,100000}".to_owned()),
        Constraint::Lark(format!("start: {}\"a\"{}", "(".repeat(50_000), ")".repeat(50_000))),
        Constraint::Lark("start: start start | start".to_owned()),
        Constraint::Lark("start: a\na: b\nb: a".to_owned()),
        Constraint::Lark("%json".to_owned()),
    ];
    let checked = std::thread::Builder::new().stack_size(2 << 20).spawn(move || {
        for constraint in constraints {
            if let Ok(compiled) = compiler().compile(&constraint) {
                let mut mask = vec![0u32; LOGITS_WIDTH.div_ceil(32)];
                let _either = one(compiled).allowed(&mut mask);
            }
        }
    });
    checked.expect("a thread").join().expect("no panic");
}

#[test]
fn what_nothing_fits_is_refused_before_the_first_token() {
    let refusal = |schema: Value| {
        let refused = compiler().compile(&Constraint::JsonSchema(schema)).expect_err("nothing fits it");
        error::Error::from(refused)
    };
    let looping = json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"});
    for schema in [json!({"$ref": "#"}), looping] {
        let error = refusal(schema);
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert!(error.message().contains("nothing fits it"), "{}", error.message());
    }
}
