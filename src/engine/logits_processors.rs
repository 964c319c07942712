//! Penalties: what a sequence's past tokens do to its next logits.
//!
//! The repetition penalty looks at prompt and answer, as the `transformers` library does; frequency and
//! presence penalties look at the answer only, as the OpenAI API does.

use std::collections::{HashMap, HashSet};

use hearth_domain::SamplingParams;

/// Token counts. Only the counts that a penalty needs are kept.
#[derive(Debug, Default)]
pub(super) struct TokenCounts {
    counts_repetition: bool,
    counts_frequency: bool,
    /// In prompt or answer.
    seen: HashSet<u32>,
    /// In the answer.
    generated: HashMap<u32, u32>,
}

impl TokenCounts {
    pub(super) fn new(params: &SamplingParams, prompt: &[u32]) -> Self {
        let counts_repetition = params.repetition_penalty != 1.0;
        Self {
            counts_repetition,
            counts_frequency: params.frequency_penalty != 0.0 || params.presence_penalty != 0.0,
            seen: if counts_repetition { prompt.iter().copied().collect() } else { HashSet::new() },
            generated: HashMap::new(),
        }
    }

    pub(super) fn add(&mut self, token: u32) {
        if self.counts_repetition {
            self.seen.insert(token);
        }
        if self.counts_frequency {
            *self.generated.entry(token).or_default() += 1;
        }
    }

    /// Each token is changed independently, so their order does not matter.
    pub(super) fn apply(&self, params: &SamplingParams, logits: &mut [f32]) {
        for &token in &self.seen {
            let logit = &mut logits[token as usize];
            *logit = if *logit < 0.0 { *logit * params.repetition_penalty } else { *logit / params.repetition_penalty };
        }
        for (&token, &count) in &self.generated {
            logits[token as usize] -= params.frequency_penalty * count as f32 + params.presence_penalty;
        }
    }
}
