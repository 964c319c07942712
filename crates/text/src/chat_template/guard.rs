//! Keeps text from users and documents from acting as the template's control tokens.
//!
//! A prompt is rendered as one text, in which the template's markers are control tokens, such as `<|im_end|>`. The same
//! characters in a message, or in a passage that was found for it, must remain characters: as tokens they would end the
//! turn and begin one of another role. Before a conversation is rendered, each such marker in its texts therefore gets
//! a mark inserted, a character that occurs nowhere in the conversation, and the tokenizer removes the mark again where
//! it looks for no control tokens. Names of members are guarded like their values: a tool's schema or a call's
//! arguments may contain anything.

use hearth_domain::{
    ChatPrompt,
    error::{Error, Result},
};
use serde_json::{Map, Value};

use crate::tokenizer::Tokenizer;

/// Private use characters: they stand for nothing, and no template filter changes them.
const MARKS: std::ops::RangeInclusive<u32> = 0xE000..=0xF8FF;

/// The conversation with marks inserted, and the mark character; `None` if there is nothing to guard.
///
/// # Errors
/// If the conversation contains every possible mark character.
pub fn guarded(prompt: &ChatPrompt, tokenizer: &Tokenizer) -> Result<Option<(ChatPrompt, char)>> {
    let values = || prompt.messages.iter().chain(&prompt.tools);
    let mut needs_guard = false;
    values().for_each(|value| each_text(value, &mut |text| needs_guard |= tokenizer.has_control_text(text)));
    if !needs_guard {
        return Ok(None);
    }
    let mut used = vec![false; MARKS.count()];
    values().for_each(|value| each_text(value, &mut |text| note_marks(text, &mut used)));
    let free = MARKS.zip(used).find(|(_, used)| !used).and_then(|(mark, _)| char::from_u32(mark));
    let mark = free.ok_or_else(|| {
        Error::invalid("messages", "The messages have every character of Unicode's private use area; leave some out.")
    })?;
    let marked = |value: &Value| with_texts(value, &|text| tokenizer.mark_control_texts(text, mark));
    let mut prompt = prompt.clone();
    prompt.messages = prompt.messages.iter().map(marked).collect();
    prompt.tools = prompt.tools.iter().map(marked).collect();
    Ok(Some((prompt, mark)))
}

/// Restores the marks in a rendered prompt: a mark that the template wrote as a JSON escape becomes the character
/// again.
pub fn unescaped(rendered: String, mark: char) -> String {
    let escape = format!("\\u{:04x}", u32::from(mark));
    if rendered.contains(&escape) { rendered.replace(&escape, mark.encode_utf8(&mut [0; 4])) } else { rendered }
}

/// Records which mark characters a text contains, literally or as escapes.
fn note_marks(text: &str, used: &mut [bool]) {
    let mut note = |code: u32| {
        if let Some(used) = code.checked_sub(*MARKS.start()).and_then(|place| used.get_mut(place as usize)) {
            *used = true;
        }
    };
    text.chars().for_each(|character| note(u32::from(character)));
    for (at, _) in text.match_indices("\\u") {
        if let Some(code) = text.get(at + 2..at + 6).and_then(|digits| u32::from_str_radix(digits, 16).ok()) {
            note(code);
        }
    }
}

/// Visits every text, including names of members.
fn each_text(value: &Value, visit: &mut impl FnMut(&str)) {
    match value {
        Value::String(text) => visit(text),
        Value::Array(items) => items.iter().for_each(|item| each_text(item, visit)),
        Value::Object(object) => {
            for (name, value) in object {
                visit(name);
                each_text(value, visit);
            }
        }
        _ => {}
    }
}

fn with_texts(value: &Value, changed: &impl Fn(&str) -> String) -> Value {
    match value {
        Value::String(text) => Value::String(changed(text)),
        Value::Array(items) => items.iter().map(|item| with_texts(item, changed)).collect(),
        Value::Object(object) => {
            let member = |(name, value): (&String, &Value)| (changed(name), with_texts(value, changed));
            Value::Object(object.iter().map(member).collect::<Map<_, _>>())
        }
        other => other.clone(),
    }
}
