//! The compiler of a model's grammars, made for the first request whose answer is constrained.
//!
//! It keeps the vocabulary as a trie of its own, which takes some 70 MiB and a third of a second for 262,144 tokens.
//! Many servers never constrain an answer; they start sooner and stay smaller.

use std::sync::OnceLock;

use hearth_domain::error::Result;
use hearth_text::{
    grammar::{GrammarCompiler, GrammarError, GrammarVocabulary},
    tokenizer::Tokenizer,
};

/// See the module's documentation.
#[derive(Debug)]
pub struct Grammars {
    tokenizer: Tokenizer,
    logits_width: usize,
    compiler: OnceLock<Result<GrammarCompiler, GrammarError>>,
}

impl Grammars {
    /// For a model with this many logits, at least one for each token.
    pub fn new(tokenizer: Tokenizer, logits_width: usize) -> Self {
        Self { tokenizer, logits_width, compiler: OnceLock::new() }
    }

    /// The first call makes the compiler, and calls at the same time wait for it: not for async threads.
    ///
    /// # Errors
    /// If the vocabulary does not allow constraints, for example without a token that ends an answer.
    pub fn compiler(&self) -> Result<&GrammarCompiler> {
        let make = || GrammarCompiler::from_vocabulary(&GrammarVocabulary::new(&self.tokenizer), self.logits_width);
        Ok(self.compiler.get_or_init(make).as_ref().map_err(GrammarError::clone)?)
    }
}
