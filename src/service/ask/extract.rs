//! Answers with sentences of the passages, chosen by their vectors; no chat model is asked.
//!
//! Such an answer cannot claim what no document says. It could quote a sentence that does not answer, so a sentence
//! that is not near enough to the question is not quoted, and the answer is the fixed refusal.

use std::sync::Arc;

use hearth_domain::{documents::Grounding, error::Result};

use super::{AskRequest, Asked, answering, nothing_found, whole};
use crate::{
    retrieval::{
        passages::Passage,
        search::Retriever,
        sentences::{Sentence, is_answer, likelihood},
    },
    service::findings::{Confidence, Findings},
};

/// The most sentences in an answer.
pub(super) const QUOTED_MAX: usize = 3;

/// Sentences within this distance of the best score are quoted with it.
const QUOTED_WITHIN: f32 = 0.1;

/// Resolves when the answer is complete.
///
/// # Errors
/// If the sentences cannot be embedded.
pub(super) async fn answer(retriever: &Retriever, request: AskRequest, passages: Vec<Passage>) -> Result<Asked> {
    let (sentences, usage, timings) =
        retriever.rate_sentences(&request.question, &passages, &request.lookup.account, request.deadline).await?;
    let model = answering(Grounding::Extract, None, retriever);
    let Some(best) = sentences.first().filter(|best| is_answer(best.score)) else {
        return Ok(nothing_found(Grounding::Extract, model, &request, usage, timings));
    };
    let lowest = best.score - QUOTED_WITHIN;
    let quoted = sentences.iter().take_while(|sentence| sentence.score >= lowest).take(QUOTED_MAX);
    let findings = Findings::default();
    if request.confidence {
        let _ = findings.confidence.set(Confidence { value: likelihood(best.score), is_rated: true });
    }
    let (text, sources) = quote(quoted.cloned().collect(), passages);
    Ok(Asked {
        grounding: Some(Grounding::Extract),
        model,
        sources,
        left_out: 0,
        events: whole(text, usage, timings),
        findings: Arc::new(findings),
    })
}

/// The text of an answer from these sentences, best first, each with its passage's citation mark, and the passages that
/// it cites. Sentences of one passage stand together, in its order.
pub(super) fn quote(sentences: Vec<Sentence>, passages: Vec<Passage>) -> (String, Vec<Passage>) {
    let mut cited: Vec<usize> = Vec::new();
    for sentence in &sentences {
        if !cited.contains(&sentence.passage) {
            cited.push(sentence.passage);
        }
    }
    let mut text = String::new();
    for (index, &place) in cited.iter().enumerate() {
        let mut ranges: Vec<_> = sentences.iter().filter(|sentence| sentence.passage == place).collect();
        ranges.sort_by_key(|sentence| sentence.range.start);
        for sentence in ranges {
            let words: Vec<&str> = passages[place].text[sentence.range.clone()].split_whitespace().collect();
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(&format!("{} [{}]", words.join(" "), index + 1));
        }
    }
    let mut passages: Vec<Option<Passage>> = passages.into_iter().map(Some).collect();
    let sources = cited.into_iter().filter_map(|place| passages[place].take()).collect();
    (text, sources)
}
