//! Special tokens by role: beginning, end, end of turn, unknown, and others that end a generation.
//!
//! Files name some by id. Others are known only by their text, because converters and fine-tunes omit the ids; the list
//! of texts is llama.cpp's (`llama_vocab::impl::load`).

use super::vocabulary::{TokenKind, Vocabulary};

/// Ids by role. `None` if the model has no such token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SpecialIds {
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    /// End of turn.
    pub(super) eot: Option<u32>,
    /// End of message: the model waits for a tool's result.
    pub(super) eom: Option<u32>,
    pub(super) unknown: Option<u32>,
    pub(super) separator: Option<u32>,
    /// Fill-in-the-middle padding, repository and file separators, which also end an answer.
    pub(super) fill_in_the_middle: [Option<u32>; 3],
}

/// Texts that end a generation in any vocabulary that has them.
const END_TEXTS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// Texts of the fill-in-the-middle tokens that end an answer: padding, next repository, next file.
const FILL_IN_THE_MIDDLE_TEXTS: [&[&str]; 3] = [
    &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>"],
    &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
    &["<|file_sep|>"],
];

/// Fill-in-the-middle tokens that steer a model, even if the file gives them another type.
const FILL_IN_THE_MIDDLE_CONTROL: &[&str] = &[
    "<|fim_prefix|>",
    "<fim-prefix>",
    "<fim_prefix>",
    "<｜fim▁begin｜>",
    "<PRE>",
    "▁<PRE>",
    "<|code_prefix|>",
    "<|prefix|>",
    "<|fim_suffix|>",
    "<fim-suffix>",
    "<fim_suffix>",
    "<｜fim▁hole｜>",
    "<SUF>",
    "▁<SUF>",
    "<|code_suffix|>",
    "<|suffix|>",
    "<|fim_middle|>",
    "<fim-middle>",
    "<fim_middle>",
    "<｜fim▁end｜>",
    "<MID>",
    "▁<MID>",
    "<|code_middle|>",
    "<|middle|>",
];

/// Texts that the harmony format uses within an answer.
const HARMONY_TEXTS: &[&str] = &["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// Corrects the kinds of tokens that files are known to mistype, and collects every token that ends a generation, in
/// order of id.
pub(super) fn settle(vocabulary: &mut Vocabulary, special: &mut SpecialIds) -> Vec<u32> {
    for text in FILL_IN_THE_MIDDLE_CONTROL {
        make_control(vocabulary, text);
    }
    for (slot, texts) in special.fill_in_the_middle.iter_mut().zip(FILL_IN_THE_MIDDLE_TEXTS) {
        if slot.is_none() {
            *slot = texts.iter().find_map(|text| make_control(vocabulary, text));
        }
    }
    let mut ends: Vec<u32> = END_TEXTS.iter().filter_map(|text| make_control(vocabulary, text)).collect();
    ends.extend(special.fill_in_the_middle.iter().flatten());
    ends.extend([special.eos, special.eot, special.eom].iter().flatten());
    for text in HARMONY_TEXTS {
        if let Some(id) = vocabulary.id(text) {
            vocabulary.set_kind(id, TokenKind::UserDefined);
        }
    }
    // In the harmony format an answer continues after `<|end|>`; gemma 4 and PLaMo have `</s>` as plain text.
    let has = |ends: &[u32], text: &str| vocabulary.id(text).is_some_and(|id| ends.contains(&id));
    let has_call = has(&ends, "<|call|>") || has(&ends, "<|calls|>");
    if has_call && (has(&ends, "<|return|>") || has(&ends, "<|flush|>")) {
        remove(vocabulary, &mut ends, "<|end|>", TokenKind::UserDefined);
    }
    let has = |ends: &[u32], text: &str| vocabulary.id(text).is_some_and(|id| ends.contains(&id));
    if has(&ends, "<|tool_response>") || has(&ends, "<|plamo:eos|>") {
        remove(vocabulary, &mut ends, "</s>", TokenKind::Normal);
    }
    ends.sort_unstable();
    ends.dedup();
    ends
}

fn make_control(vocabulary: &mut Vocabulary, text: &str) -> Option<u32> {
    let id = vocabulary.id(text)?;
    vocabulary.set_kind(id, TokenKind::Control);
    Some(id)
}

fn remove(vocabulary: &mut Vocabulary, ends: &mut Vec<u32>, text: &str, kind: TokenKind) {
    if let Some(id) = vocabulary.id(text) {
        ends.retain(|end| *end != id);
        vocabulary.set_kind(id, kind);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::vocabulary::Spelling, *};

    fn vocabulary(texts: &[&str]) -> Vocabulary {
        Vocabulary::new(texts.iter().map(|text| (text, TokenKind::Normal)), Spelling::ByteLevel)
    }

    #[test]
    fn ends_are_found_by_id_and_by_text() {
        let mut vocabulary = vocabulary(&["a", "<|im_end|>", "b", "<|endoftext|>", "<|file_sep|>"]);
        let mut special = SpecialIds { eos: Some(2), ..SpecialIds::default() };
        assert_eq!(settle(&mut vocabulary, &mut special), [1, 2, 3, 4]);
        assert_eq!(vocabulary.kind(1), Some(TokenKind::Control));
        assert_eq!(vocabulary.kind(0), Some(TokenKind::Normal));
    }

    #[test]
    fn harmony_goes_on_after_end() {
        let mut vocabulary = vocabulary(&["<|end|>", "<|return|>", "<|call|>", "<|channel|>"]);
        assert_eq!(settle(&mut vocabulary, &mut SpecialIds::default()), [1, 2]);
        assert_eq!(vocabulary.kind(0), Some(TokenKind::UserDefined));
        assert_eq!(vocabulary.kind(3), Some(TokenKind::UserDefined));
    }
}
