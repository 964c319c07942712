//! An answer of sentences that stand in the passages, chosen by the chat model.
//!
//! The model sees the likeliest sentences with numbers and may reply with numbers alone: a constraint allows nothing else. So
//! it can choose badly and cannot invent.

use std::sync::Arc;

use hearth_domain::{Constraint, GenerateRequest, SamplingParams, documents::Grounding, error::Result};

use super::{
    AskRequest, Asked, Confidence, Findings,
    extract::{QUOTED_MAX, quote},
    generation, messages, nothing_found, whole,
};
use crate::{
    providers::ChatModel,
    retrieval::{
        passages::Passage,
        search::Retriever,
        sentences::{Sentence, likelihood},
    },
    service::chat::{gather, start},
};

/// Sentences that the model chooses among.
const CANDIDATES: usize = 9;

const CHOOSE: &str = "You choose the sentences that answer a question. Reply with their numbers, separated by commas, or with \
                      0 if none of them answers it.";

/// Resolves when the model has chosen.
///
/// # Errors
/// If the sentences cannot be embedded, or the model refuses.
pub(super) async fn answer(
    model: &Arc<dyn ChatModel>,
    retriever: &Retriever,
    request: AskRequest,
    passages: Vec<Passage>,
) -> Result<Asked> {
    let (mut sentences, ..) =
        retriever.rate_sentences(&request.question, &passages, &request.account, request.deadline).await?;
    sentences.truncate(CANDIDATES);
    let name = model.info().id.clone();
    if sentences.is_empty() {
        return Ok(nothing_found(Grounding::Quote, name, &request));
    }
    let choosing = GenerateRequest {
        max_tokens: Some(2 * QUOTED_MAX),
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        constraint: Some(Arc::new(Constraint::Regex(reply(sentences.len())))),
        ..generation(&request, messages(&**model, CHOOSE, &[], &prompt(&request.question, &sentences, &passages)))
    };
    let generation = gather(start(model, choosing).await?, 1).await?;
    let chosen = generation.choices.first().map_or("", |choice| &choice.text);
    let chosen: Vec<Sentence> = numbers(chosen, sentences.len()).map(|index| sentences[index].clone()).collect();
    let Some(best) = chosen.first() else {
        return Ok(Asked {
            events: whole(super::NOTHING_FOUND.to_owned(), generation.usage, generation.timings),
            ..nothing_found(Grounding::Quote, name, &request)
        });
    };
    let findings = Findings::default();
    if request.confidence {
        let _ = findings.confidence.set(Confidence { value: likelihood(best.score), is_rated: true });
    }
    let (text, sources) = quote(chosen, passages);
    Ok(Asked {
        grounding: Some(Grounding::Quote),
        model: name,
        sources,
        left_out: 0,
        events: whole(text, generation.usage, generation.timings),
        findings: Arc::new(findings),
    })
}

/// What the model may reply: 0, or up to three numbers of sentences.
fn reply(candidates: usize) -> String {
    format!("0|[1-{candidates}](, ?[1-{candidates}]){{0,{}}}", QUOTED_MAX - 1)
}

fn prompt(question: &str, sentences: &[Sentence], passages: &[Passage]) -> String {
    let mut prompt = format!("Question: {question}\n\nSentences:\n");
    for (index, sentence) in sentences.iter().enumerate() {
        let passage = &passages[sentence.passage];
        let words: Vec<&str> = passage.text[sentence.range.clone()].split_whitespace().collect();
        prompt.push_str(&format!("{}. ({}) {}\n", index + 1, passage.title(), words.join(" ")));
    }
    prompt.push_str(&format!("\nWhich sentences answer the question: {question}"));
    prompt
}

/// The places of the sentences that a reply names, each once, in its order.
fn numbers(reply: &str, candidates: usize) -> impl Iterator<Item = usize> + '_ {
    let mut seen = Vec::new();
    reply.split(',').filter_map(move |number| {
        let place = number.trim().parse::<usize>().ok()?.checked_sub(1)?;
        (place < candidates && !seen.contains(&place)).then(|| {
            seen.push(place);
            place
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_names_sentences_once_each_or_none() {
        let places = |reply| numbers(reply, 5).collect::<Vec<_>>();
        assert_eq!(places("2, 1,2"), [1, 0]);
        assert!(places("0").is_empty());
        assert_eq!(places("6, 5"), [4]);
        assert!(places("").is_empty());
    }
}
