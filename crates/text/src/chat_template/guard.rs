//! Keeps what people and documents write from speaking as the template does.
//!
//! A prompt is rendered as one text, in which the template's marks are control tokens, such as `<|im_end|>`. The same characters in
//! a message, or in a passage that was found for it, must stay characters: they would end the turn and begin one of another role. So
//! before a conversation is rendered each of them gets a mark within, a character that is nowhere in the conversation, and the
//! tokenizer takes the mark out again where it looks for no control tokens.

use hearth_domain::ChatPrompt;
use serde_json::Value;

use crate::tokenizer::Tokenizer;

/// Private use: stands for nothing, and no filter of a template changes it.
const MARKS: std::ops::RangeInclusive<char> = '\u{E000}'..='\u{F8FF}';

/// Keys whose values are not the caller's words.
const FIXED: [&str; 2] = ["role", "type"];

/// The conversation with marks in it, and which character they are; `None` if there is nothing to guard.
pub fn guarded(prompt: &ChatPrompt, tokenizer: &Tokenizer) -> Option<(ChatPrompt, char)> {
    let values = || prompt.messages.iter().chain(&prompt.tools);
    if !values().any(|value| any_text(value, &|text| tokenizer.has_control_text(text))) {
        return None;
    }
    // A template may write the character as JSON's escape, so that is nowhere either.
    let is_absent = |mark: &char| {
        let escape = escape(*mark);
        !values().any(|value| any_text(value, &|text| text.contains(*mark) || text.contains(&escape)))
    };
    let mark = MARKS.into_iter().find(is_absent)?;
    let mut prompt = prompt.clone();
    for value in prompt.messages.iter_mut().chain(&mut prompt.tools) {
        mark_texts(value, &|text| tokenizer.mark_control_texts(text, mark));
    }
    Some((prompt, mark))
}

/// What was rendered of marked texts: an escaped mark is a mark again.
pub fn unescaped(rendered: String, mark: char) -> String {
    let escape = escape(mark);
    if rendered.contains(&escape) { rendered.replace(&escape, mark.encode_utf8(&mut [0; 4])) } else { rendered }
}

fn escape(mark: char) -> String {
    format!("\\u{:04x}", u32::from(mark))
}

fn any_text(value: &Value, is_so: &impl Fn(&str) -> bool) -> bool {
    match value {
        Value::String(text) => is_so(text),
        Value::Array(items) => items.iter().any(|item| any_text(item, is_so)),
        Value::Object(object) => {
            object.iter().any(|(key, value)| !FIXED.contains(&key.as_str()) && any_text(value, is_so))
        }
        _ => false,
    }
}

fn mark_texts(value: &mut Value, marked: &impl Fn(&str) -> String) {
    match value {
        Value::String(text) => *text = marked(text),
        Value::Array(items) => items.iter_mut().for_each(|item| mark_texts(item, marked)),
        Value::Object(object) => {
            let values = object.iter_mut().filter(|(key, _)| !FIXED.contains(&key.as_str()));
            values.for_each(|(_, value)| mark_texts(value, marked));
        }
        _ => {}
    }
}
