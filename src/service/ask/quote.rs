//! Answers with sentences of the passages, chosen by the chat model.
//!
//! The model sees the likeliest sentences with numbers and may reply with numbers alone: a constraint allows nothing
//! else. So it can choose badly but cannot invent.

use std::sync::Arc;

use hearth_domain::{
    Constraint, GenerateRequest, Prompt, SamplingParams,
    documents::Grounding,
    error::{Error, Result},
};
use hearth_text::work::off_the_async_threads;
use serde_json::Value;

use super::{
    AskRequest, Asked, count_tokens,
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
    service::{
        chat::{gather, start},
        findings::{Confidence, Findings},
    },
};

/// Sentences that the model chooses among.
const CANDIDATES: usize = 9;

/// Three numbers and two commas, one token each, and one to end.
const REPLY_TOKENS: usize = 2 * QUOTED_MAX;

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
    let (mut sentences, embedded, timings) =
        retriever.rate_sentences(&request.question, &passages, &request.lookup.account, request.deadline).await?;
    sentences.truncate(CANDIDATES);
    let name = model.info().id.clone();
    let (sentences, passages, asked) = fitted(model, &request.question, sentences, passages).await?;
    if sentences.is_empty() {
        return Ok(nothing_found(Grounding::Quote, name, &request, embedded, timings));
    }
    let mut choosing = GenerateRequest {
        max_tokens: Some(REPLY_TOKENS),
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        constraint: Some(Arc::new(Constraint::Regex(reply(sentences.len())))),
        ..generation(&request, asked)
    };
    if let Prompt::Chat(chat) = &mut choosing.prompt
        && model.info().supports_reasoning
    {
        // A reply is a few tokens, with none to spare for reasoning.
        chat.template_kwargs.insert("enable_thinking".to_owned(), false.into());
    }
    let mut generation = gather(start(model, choosing).await.map_err(in_the_callers_words)?, 1).await?;
    generation.usage.prompt_tokens += embedded.prompt_tokens;
    let chosen = generation.choices.first().map_or("", |choice| &choice.text);
    let chosen: Vec<Sentence> = numbers(chosen, sentences.len()).map(|index| sentences[index].clone()).collect();
    let Some(best) = chosen.iter().map(|sentence| sentence.score).reduce(f32::max) else {
        return Ok(nothing_found(Grounding::Quote, name, &request, generation.usage, generation.timings));
    };
    let findings = Findings::default();
    if request.confidence {
        let _ = findings.confidence.set(Confidence { value: likelihood(best), is_rated: true });
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

/// As many of the sentences, best first, as fit into the model's context, and the conversation that asks for a choice.
///
/// # Errors
/// If the question alone does not fit.
async fn fitted(
    model: &Arc<dyn ChatModel>,
    question: &str,
    mut sentences: Vec<Sentence>,
    passages: Vec<Passage>,
) -> Result<(Vec<Sentence>, Vec<Passage>, Vec<Value>)> {
    let (model, question) = (model.clone(), question.to_owned());
    off_the_async_threads(question.len(), move |wanted| {
        loop {
            wanted.check()?;
            let asked = messages(&*model, CHOOSE, &[], &prompt(&question, &sentences, &passages));
            if count_tokens(&*model, &asked)? + REPLY_TOKENS <= model.info().context_length || sentences.len() < 2 {
                return Ok((sentences, passages, asked));
            }
            sentences.pop();
        }
    })
    .await
}

/// The caller did not set the constraint, so an error must not name it.
fn in_the_callers_words(error: Error) -> Error {
    if error.code() != Some("unsupported_parameter") {
        return error;
    }
    let message =
        "`quote` needs a model whose replies can be constrained, and this upstream's cannot: use `free` or `extract`.";
    Error::invalid("grounding", message).with_code("unsupported_parameter")
}

/// The allowed reply: 0, or up to three sentence numbers.
fn reply(candidates: usize) -> String {
    format!("0|[1-{candidates}](,[1-{candidates}]){{0,{}}}", QUOTED_MAX - 1)
}

fn prompt(question: &str, sentences: &[Sentence], passages: &[Passage]) -> String {
    let mut prompt = format!("Question: {question}\n\nSentences:\n");
    for (index, sentence) in sentences.iter().enumerate() {
        let passage = &passages[sentence.passage];
        let words: Vec<&str> = passage.text[sentence.range.clone()].split_whitespace().collect();
        prompt.push_str(&format!("{}. ({}) {}\n", index + 1, passage.title(), words.join(" ")));
    }
    prompt.push_str("\nWhich of these sentences answer the question?");
    prompt
}

/// The indices of the sentences that a reply names, each once, in its order.
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
