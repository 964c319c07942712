//! Answers with text that the chat model writes over the passages in its prompt.
//!
//! Nothing binds such an answer to the passages, so when it is complete, each of its sentences is checked against
//! theirs; those that are not near any sentence of a passage are reported. A second, concurrent generation can rate how
//! far the passages answer the question.

use std::sync::Arc;

use futures_util::{
    StreamExt,
    future::{BoxFuture, FutureExt},
    stream,
};
use hearth_domain::{
    Constraint, GenerateEvent, GenerateRequest, SamplingParams,
    documents::Grounding,
    error::{Error, Result},
};
use hearth_text::work::off_the_async_threads;

use super::{AskRequest, Asked, count_tokens, generation, messages};
use crate::{
    providers::{ChatModel, GenerateStream},
    retrieval::{
        context::{Context, SYSTEM, pack},
        passages::Passage,
        search::Retriever,
    },
    service::{
        chat::{gather, start},
        findings::{Confidence, Findings},
    },
};

/// The rating's instruction, after the context and the question.
const RATE: &str = "Rate how fully the context answers the question. Reply with one number from 0 (not at all) to 1 \
                    (fully), such as 0.7, and nothing else.";
/// The allowed reply.
const RATING: &str = r"0(\.[0-9]{1,2})?|1(\.0{1,2})?";
/// The confidence when a rating cannot be parsed.
const UNKNOWN_CONFIDENCE: f32 = 0.5;

/// Resolves when the generation has been admitted.
///
/// # Errors
/// If not even one passage fits beside the question, or the model refuses.
pub(super) async fn answer(
    model: &Arc<dyn ChatModel>,
    retriever: &Retriever,
    request: AskRequest,
    passages: Vec<Passage>,
) -> Result<Asked> {
    let (context, passages) = packed(model, &request, passages).await?;
    let asked = messages(&**model, SYSTEM, &request.history, &context.prompt);
    let events = start(model, generation(&request, asked)).await?;
    let rating = if request.confidence { Some(rate(model, &request, &context.prompt).await?) } else { None };
    let left_out = context.left_out.len();
    let mut passages: Vec<Option<Passage>> = passages.into_iter().map(Some).collect();
    let sources: Vec<Passage> = context.included.iter().filter_map(|&place| passages[place].take()).collect();
    let findings = Arc::<Findings>::default();
    let find = {
        let (retriever, sources, findings) = (retriever.clone(), sources.clone(), findings.clone());
        move |text: String| {
            async move {
                if let Some(rating) = rating {
                    let _ = findings.confidence.set(rating.await?);
                }
                match retriever.unsupported(&text, &sources, &request.lookup.account, request.deadline).await {
                    Ok(unsupported) => {
                        let _ = findings.unsupported.set(unsupported);
                    }
                    // The answer is complete; only the report on it is missing.
                    Err(error) => tracing::debug!(%error, "an answer was not held against its passages"),
                }
                Ok(())
            }
            .boxed()
        }
    };
    Ok(Asked {
        grounding: Some(Grounding::Free),
        model: model.info().id.clone(),
        sources,
        left_out,
        events: held_until(events, find),
        findings,
    })
}

/// The events, the last of which waits for the findings about the text.
fn held_until(
    events: GenerateStream,
    find: impl FnOnce(String) -> BoxFuture<'static, Result<()>> + Send + 'static,
) -> GenerateStream {
    let state = (events, Some(find), String::new());
    stream::unfold(state, |(mut events, mut find, mut text)| async move {
        let mut event = events.next().await?;
        match &event {
            Ok(GenerateEvent::Delta { text: more, .. }) => text.push_str(more),
            Ok(GenerateEvent::Done { .. }) => {
                if let Some(find) = find.take()
                    && let Err(error) = find(std::mem::take(&mut text)).await
                {
                    event = Err(error);
                }
            }
            _ => {}
        }
        Some((event, (events, find, text)))
    })
    .boxed()
}

/// Packs as many passages as leave room for the answer: all of it, or half of the context if that is less.
async fn packed(
    model: &Arc<dyn ChatModel>,
    request: &AskRequest,
    passages: Vec<Passage>,
) -> Result<(Context, Vec<Passage>)> {
    let (model, question, history) = (model.clone(), request.question.clone(), request.history.clone());
    let context_length = model.info().context_length;
    let budget = context_length - request.max_tokens.min(context_length / 2);
    // The passages' length is the server's choice; the caller's part is the question and the conversation.
    let bytes = question.len() + history.iter().map(|message| message.to_string().len()).sum::<usize>();
    off_the_async_threads(bytes, move |wanted| {
        let count = |prompt: &str| {
            wanted.check()?;
            count_tokens(&*model, &messages(&*model, SYSTEM, &history, prompt))
        };
        let context = pack(&question, &passages, budget, count)?;
        if context.included.is_empty() {
            let tokens = count(&context.prompt)?;
            return Err(Error::context_length_exceeded(tokens, context_length, "question"));
        }
        Ok((context, passages))
    })
    .await
}

/// Starts the rating, which runs concurrently with the answer.
async fn rate(
    model: &Arc<dyn ChatModel>,
    request: &AskRequest,
    prompt: &str,
) -> Result<BoxFuture<'static, Result<Confidence>>> {
    let asked = messages(&**model, SYSTEM, &[], &format!("{prompt}\n\n{RATE}"));
    let rating = GenerateRequest {
        max_tokens: Some(8),
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        constraint: Some(Arc::new(Constraint::Regex(RATING.to_owned()))),
        ..generation(request, asked)
    };
    let events = start(model, rating).await?;
    Ok(async move {
        let generation = gather(events, 1).await?;
        Ok(understood(generation.choices.first().map_or("", |choice| &choice.text)))
    }
    .boxed())
}

/// A rating is a number from 0 to 1 and nothing else.
fn understood(rating: &str) -> Confidence {
    match rating.trim().parse::<f32>() {
        Ok(value) if (0.0..=1.0).contains(&value) => Confidence { value, is_rated: true },
        _ => Confidence { value: UNKNOWN_CONFIDENCE, is_rated: false },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rating_is_a_number_and_nothing_else() {
        for (text, value) in [("0.7", 0.7), (" 1 ", 1.0), ("0", 0.0)] {
            assert_eq!(understood(text), Confidence { value, is_rated: true });
        }
        for text in ["", "high", "0.7 because", "7", "-0.1", "NaN", "0,7"] {
            assert_eq!(understood(text), Confidence { value: 0.5, is_rated: false }, "{text}");
        }
    }
}
