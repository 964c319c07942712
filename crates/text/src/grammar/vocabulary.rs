//! The model's vocabulary in the form llguidance needs: exact bytes, with special tokens separate from text.

use std::{collections::HashMap, sync::Arc};

use toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

use super::GrammarError;
use crate::tokenizer::Tokenizer;

/// What constrained output needs to know about a tokenizer.
#[derive(Clone, Debug, Default)]
pub struct GrammarVocabulary {
    /// Each token's exact bytes; empty for a token without text.
    pub tokens: Vec<Vec<u8>>,
    /// Tokens that are not text: the grammar never takes them for the characters that spell them.
    pub special: Vec<u32>,
    /// Tokens that end an answer, at least one. Allowed if and only if the answer is complete.
    pub end_of_generation: Vec<u32>,
}

impl GrammarVocabulary {
    /// The vocabulary of a model's tokenizer.
    pub fn new(tokenizer: &Tokenizer) -> Self {
        let ids = 0..u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
        Self {
            tokens: ids.clone().map(|id| tokenizer.token_bytes(id).unwrap_or_default().into_owned()).collect(),
            special: ids.filter(|&id| tokenizer.is_special(id)).collect(),
            end_of_generation: tokenizer.end_of_generation().to_vec(),
        }
    }
}

/// The trie limits a token's length to this many bytes; longer tokens, which no real vocabulary has, are left out.
const MAX_TOKEN_BYTES: usize = 250;

/// Builds the token trie, padded to the width of the model's logits. Tokenization is greedy: it is used for the rest of
/// a token after a marker, never to force the model's own choice of tokens.
pub(super) fn token_environment(vocabulary: &GrammarVocabulary, logits_width: usize) -> Result<TokEnv, GrammarError> {
    let width = logits_width.max(vocabulary.tokens.len());
    let mut words: Vec<Vec<u8>> = Vec::with_capacity(width);
    for token in &vocabulary.tokens {
        words.push(if token.len() > MAX_TOKEN_BYTES { Vec::new() } else { token.clone() });
    }
    words.resize(width, Vec::new());
    for &id in vocabulary.special.iter().chain(&vocabulary.end_of_generation) {
        let Some(word) = words.get_mut(id as usize) else {
            return Err(GrammarError::Vocabulary(format!("token {id} is past the {width} logits of the model")));
        };
        if word.first() != Some(&TokTrie::SPECIAL_TOKEN_MARKER) {
            word.insert(0, TokTrie::SPECIAL_TOKEN_MARKER);
        }
    }
    let Some(&end) = vocabulary.end_of_generation.first() else {
        return Err(GrammarError::Vocabulary(
            "its vocabulary has no end-of-text token, so no answer could be complete".to_owned(),
        ));
    };
    let size = u32::try_from(width).map_err(|_| GrammarError::Vocabulary(format!("{width} tokens are too many")))?;
    let trie = TokTrie::from(&TokRxInfo::new(size, end), &words).with_eos_tokens(&vocabulary.end_of_generation);
    Ok(Arc::new(ApproximateTokEnv::new(trie)))
}

/// Special tokens by their text, and the number of all tokens.
#[derive(Debug)]
pub(super) struct SpecialTokens {
    by_text: HashMap<Vec<u8>, u32>,
    num_tokens: usize,
}

impl SpecialTokens {
    pub(super) fn new(vocabulary: &GrammarVocabulary) -> Self {
        let bytes = |id: &u32| vocabulary.tokens.get(*id as usize).map(|bytes| (bytes.clone(), *id));
        Self { by_text: vocabulary.special.iter().filter_map(bytes).collect(), num_tokens: vocabulary.tokens.len() }
    }

    pub(super) fn id(&self, text: &str) -> Option<u32> {
        self.by_text.get(text.as_bytes()).copied()
    }

    pub(super) fn num_tokens(&self) -> usize {
        self.num_tokens
    }
}
