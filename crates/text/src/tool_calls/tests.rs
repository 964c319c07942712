//! Answers in every format: complete, cut and broken.

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// What all pieces add up to: text, thinking, and calls as `(name, arguments)`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Answer {
    text: String,
    reasoning: String,
    calls: Vec<(String, String)>,
}

fn collect(pieces: impl IntoIterator<Item = ParsedPiece>) -> Answer {
    let mut answer = Answer::default();
    for piece in pieces {
        match piece {
            ParsedPiece::Text(text) => answer.text += &text,
            ParsedPiece::Reasoning(text) => answer.reasoning += &text,
            ParsedPiece::CallStart { index, name } => {
                assert_eq!(index, answer.calls.len());
                answer.calls.push((name, String::new()));
            }
            ParsedPiece::CallArguments { index, delta } => answer.calls[index].1 += &delta,
        }
    }
    answer
}

fn parse(format: ToolFormat, thinking: Thinking, text: &str) -> Answer {
    let mut parser = OutputParser::new(Some(format), vec!["f".to_owned(), "g".to_owned()], thinking);
    let mut pieces = parser.push(text);
    pieces.extend(parser.finish());
    collect(pieces)
}

fn answer(text: &str, reasoning: &str, calls: &[(&str, &str)]) -> Answer {
    let calls = calls.iter().map(|(name, arguments)| (name.to_string(), arguments.to_string())).collect();
    Answer { text: text.to_owned(), reasoning: reasoning.to_owned(), calls }
}

const EXAMPLES: &[(ToolFormat, Thinking, &str)] = &[
    (
        ToolFormat::Hermes,
        Thinking::Never,
        "Let me see.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"}\\\"\", \"b\": [1, {}]}}\n</tool_call>\n<tool_call>\n{\"arguments\": {\"x\": 1}, \"name\": \"g\"}\n</tool_call>\n",
    ),
    (
        ToolFormat::Hermes,
        Thinking::MayOpen,
        "<think>\nHm <tool_call> no.\n</think>\n\nPlain < text </think> <tool_cal> \n end \n",
    ),
    (
        ToolFormat::Hermes,
        Thinking::Open,
        "Thought é\n</think>\n\n<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>",
    ),
    (ToolFormat::Hermes, Thinking::Never, "a <tool_call>{\"nome\": 1} b"),
    (ToolFormat::Hermes, Thinking::Never, "<tool_call>{\"name\": \"f\", \"arguments\": {\"cut\": tr"),
    (
        ToolFormat::Llama3,
        Thinking::Never,
        " <|python_tag|>{\"name\": \"f\", \"parameters\": {\"q\": \"ü\"}}; {\"type\": \"function\", \"name\": \"g\", \"parameters\": {}}",
    ),
    (ToolFormat::Llama3, Thinking::Never, "{\"name\": \"Bob\", \"parameters\": {}} is JSON"),
    (
        ToolFormat::Mistral,
        Thinking::Never,
        "Text[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"a\": 1}, \"id\": \"abcdefghi\"}, {\"name\": \"g\", \"arguments\": {}}] more",
    ),
    (ToolFormat::Mistral, Thinking::Never, "[TOOL_CALLS] nothing [1]"),
    (
        ToolFormat::MistralNamed,
        Thinking::Never,
        "[TOOL_CALLS]f[CALL_ID]abc[ARGS]{\"a\": {\"b\": \"]\"}}[TOOL_CALLS]g[ARGS] {}",
    ),
    (ToolFormat::Functools, Thinking::Never, " functools[{\"name\": \"f\", \"arguments\": {}}] func"),
    (ToolFormat::PhiTags, Thinking::Never, "<|tool_call|>[{\"name\": \"f\", \"arguments\": {}}]<|/tool_call|>"),
];

#[test]
fn examples_of_every_format() {
    let expected = [
        answer("Let me see.", "", &[("f", "{\"a\": \"}\\\"\", \"b\": [1, {}]}"), ("g", "{\"x\": 1}")]),
        answer("Plain < text </think> <tool_cal> \n end \n", "Hm <tool_call> no.", &[]),
        answer("", "Thought é", &[("f", "{}")]),
        answer("a <tool_call>{\"nome\": 1} b", "", &[]),
        answer("", "", &[("f", "{\"cut\": tr")]),
        answer("", "", &[("f", "{\"q\": \"ü\"}"), ("g", "{}")]),
        answer("{\"name\": \"Bob\", \"parameters\": {}} is JSON", "", &[]),
        answer("Textmore", "", &[("f", "{\"a\": 1}"), ("g", "{}")]),
        answer("[TOOL_CALLS] nothing [1]", "", &[]),
        answer("", "", &[("f", "{\"a\": {\"b\": \"]\"}}"), ("g", "{}")]),
        answer("func", "", &[("f", "{}")]),
        answer("", "", &[("f", "{}")]),
    ];
    for ((format, thinking, text), expected) in EXAMPLES.iter().zip(expected) {
        assert_eq!(parse(*format, *thinking, text), expected, "{text}");
    }
}

#[test]
fn text_streams_without_delay_and_markers_are_held_back() {
    let mut parser = OutputParser::new(Some(ToolFormat::Hermes), vec!["f".to_owned()], Thinking::Never);
    assert_eq!(parser.push("Hello"), [ParsedPiece::Text("Hello".to_owned())]);
    assert_eq!(parser.push(" <tool"), []);
    assert_eq!(parser.push("box"), [ParsedPiece::Text(" <toolbox".to_owned())]);
    assert_eq!(parser.push("<tool_call>{\"name\": \"f\""), [ParsedPiece::CallStart { index: 0, name: "f".to_owned() }]);
    let arguments = |delta: &str| ParsedPiece::CallArguments { index: 0, delta: delta.to_owned() };
    assert_eq!(parser.push(", \"arguments\": {\"a"), [arguments("{\"a")]);
    assert_eq!(parser.push("\": 1}}"), [arguments("\": 1}")]);
    assert_eq!(parser.finish(), []);
}

#[test]
fn formats_are_told_by_their_templates() {
    for (source, format) in [
        ("<tool_call>\n{\"name\": ", ToolFormat::Hermes),
        ("[TOOL_CALLS][", ToolFormat::Mistral),
        ("[TOOL_CALLS]' + name + '[ARGS]", ToolFormat::MistralNamed),
        ("<|start_header_id|> message.tool_calls '\"parameters\": '", ToolFormat::Llama3),
        ("functools[", ToolFormat::Functools),
        ("<|tool_call|>[", ToolFormat::PhiTags),
        ("{{ messages }}", ToolFormat::Hermes),
    ] {
        assert_eq!(ToolFormat::detect(source), format, "{source}");
    }
    assert_eq!(Thinking::detect("</think>", "<|assistant|><think>\n"), Thinking::Open);
    assert_eq!(Thinking::detect("</think>", "<|assistant|>"), Thinking::MayOpen);
    assert_eq!(Thinking::detect("</think>", "<think>\n\n</think>\n\n"), Thinking::Never);
    assert_eq!(Thinking::detect("", "<think>"), Thinking::Never);
}

#[test]
fn without_a_place_for_tools_they_go_into_the_text() {
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {}}});
    let messages = [
        json!({"role": "user", "content": "Ask"}),
        json!({"role": "assistant", "content": null, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]}),
        json!({"role": "tool", "tool_call_id": "1", "content": "42"}),
        json!({"role": "user", "content": "And?"}),
    ];
    let turns = with_tools_in_text(&messages, std::slice::from_ref(&tool), true);
    assert_eq!(turns[0]["role"], "system");
    assert!(turns[0]["content"].as_str().is_some_and(|text| text.contains("\"name\":\"f\"")));
    assert_eq!(turns[2]["content"], "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>");
    assert_eq!(turns[3]["content"], "<tool_response>\n42\n</tool_response>\nAnd?");
    assert_eq!(turns.len(), 4);
    let turns = with_tools_in_text(&messages, &[tool], false);
    assert_eq!((turns.len(), &turns[0]["role"]), (3, &json!("user")));
}

fn format() -> impl Strategy<Value = ToolFormat> {
    prop::sample::select(vec![
        ToolFormat::Hermes,
        ToolFormat::Llama3,
        ToolFormat::Mistral,
        ToolFormat::MistralNamed,
        ToolFormat::Functools,
        ToolFormat::PhiTags,
    ])
}

fn thinking() -> impl Strategy<Value = Thinking> {
    prop::sample::select(vec![Thinking::Never, Thinking::MayOpen, Thinking::Open])
}

/// Fragments of valid and invalid answers, in any order.
fn fragments() -> impl Strategy<Value = String> {
    let fragment = prop::sample::select(vec![
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "functools",
        "<|tool_call|>",
        "<|/tool_call|>",
        "<|python_tag|>",
        "<think>",
        "</think>",
        "{\"name\": \"f\", \"arguments\": {\"a\": [1, \"x}\"]}}",
        "{\"name\": \"f\"",
        ", \"parameters\": {",
        "}",
        "]",
        "[",
        ", ",
        "\n",
        "  ",
        "word",
        "<",
        "ü🌍",
        "\"",
        "\\",
        "f",
    ]);
    prop::collection::vec(fragment, 0..12).prop_map(|fragments| fragments.concat())
}

proptest! {
    /// The result does not depend on how the answer is cut.
    #[test]
    fn any_cut_parses_the_same(
        text in fragments(), format in format(), thinking in thinking(), cuts in prop::collection::vec(0usize..6, 0..40),
    ) {
        let whole = parse(format, thinking, &text);
        let mut parser = OutputParser::new(Some(format), vec!["f".to_owned(), "g".to_owned()], thinking);
        let mut pieces = Vec::new();
        let mut characters = text.chars();
        for length in cuts {
            let piece: String = characters.by_ref().take(length).collect();
            pieces.extend(parser.push(&piece));
        }
        pieces.extend(parser.push(characters.as_str()));
        pieces.extend(parser.finish());
        prop_assert_eq!(collect(pieces), whole);
    }

    /// Text that contains neither markers nor braces comes out unchanged.
    #[test]
    fn plain_text_is_untouched(text in "[^<\\[{]{0,40}", format in format()) {
        prop_assume!(!text.contains("functools"));
        prop_assert_eq!(parse(format, Thinking::MayOpen, &text).text, text);
    }
}

#[test]
fn the_beginning_of_a_call_that_is_cut_off_is_no_text() {
    let cut_off = |text: &str, is_call: bool| {
        let mut parser = OutputParser::new(Some(ToolFormat::Hermes), vec!["f".to_owned()], Thinking::Never);
        let mut pieces = parser.push(text);
        pieces.extend(parser.cut_off(is_call));
        let text = |piece: &ParsedPiece| if let ParsedPiece::Text(text) = piece { text.clone() } else { String::new() };
        pieces.iter().map(text).collect::<String>()
    };
    let call = "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>";
    for (text, is_call, rest) in [
        ("<tool_call>\n{\"name\"", false, ""),
        ("a<tool_call>\n", false, "a"),
        ("<too", true, ""),
        ("a <too", false, "a <too"),
        (&format!("{call}\n<tool_c"), false, ""),
        (&format!("{call}\n<tool_call>\n{{\"na"), false, ""),
    ] {
        assert_eq!(cut_off(text, is_call).trim(), rest, "{text}");
    }
}
