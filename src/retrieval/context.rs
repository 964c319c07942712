//! Passages as the context of a prompt: numbered, so that an answer can cite them, and as many as fit.

use super::passages::Passage;

/// The system prompt. `scripts/train/chat/chat_format.py` trains a chat model with these words and this layout.
pub const SYSTEM: &str = "You are Hearth, a helpful assistant. Answer from the context.";

/// A prompt over passages, and which of them it includes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// The user's turn: the context and the question.
    pub prompt: String,
    /// Indices of the passages in the prompt; the first one is numbered 1.
    pub included: Vec<usize>,
    /// Indices of those that did not fit.
    pub left_out: Vec<usize>,
}

/// Writes the question over as many passages as fit into `budget` tokens, best first. A passage that does not fit is
/// left out whole, and a shorter one after it may still fit; what is left out is reported. If not even one fits, the
/// best one is cut.
///
/// # Errors
/// Any error of `count_tokens`, which counts the tokens of such a prompt with the chat model's tokenizer.
pub fn pack<E>(
    question: &str,
    passages: &[Passage],
    budget: usize,
    count_tokens: impl Fn(&str) -> Result<usize, E>,
) -> Result<Context, E> {
    let mut included: Vec<usize> = Vec::new();
    let mut left_out = Vec::new();
    for place in 0..passages.len() {
        included.push(place);
        // Counted over the whole text: tokens of parts do not add up.
        if count_tokens(&write(question, passages, &included))? > budget {
            included.pop();
            left_out.push(place);
        }
    }
    if included.is_empty()
        && let Some(cut) = cut_to_fit(question, passages, budget, &count_tokens)?
    {
        return Ok(Context {
            prompt: write(question, &[cut], &[0]),
            included: vec![0],
            left_out: left_out.split_off(1),
        });
    }
    Ok(Context { prompt: write(question, passages, &included), included, left_out })
}

/// The best passage, cut to fit; `None` if no word of it does.
fn cut_to_fit<E>(
    question: &str,
    passages: &[Passage],
    budget: usize,
    count_tokens: &impl Fn(&str) -> Result<usize, E>,
) -> Result<Option<Passage>, E> {
    let Some(best) = passages.first() else { return Ok(None) };
    let ends: Vec<usize> = best.text.char_indices().filter(|(_, c)| c.is_whitespace()).map(|(end, _)| end).collect();
    let cut = |end: usize| Passage { text: best.text[..end].to_owned(), ..best.clone() };
    let (mut fitting, mut beyond) = (0, ends.len() + 1);
    // The first `fitting` words fit and the first `beyond` do not, both counted over the whole text.
    while beyond - fitting > 1 {
        let middle = usize::midpoint(fitting, beyond);
        if count_tokens(&write(question, &[cut(ends[middle - 1])], &[0]))? <= budget {
            fitting = middle;
        } else {
            beyond = middle;
        }
    }
    Ok((fitting > 0).then(|| cut(ends[fitting - 1])))
}

fn write(question: &str, passages: &[Passage], included: &[usize]) -> String {
    let numbered: Vec<String> = included
        .iter()
        .enumerate()
        .map(|(index, &place)| {
            let passage = &passages[place];
            format!("[{}] {}\n{}", index + 1, passage.title(), passage.text)
        })
        .collect();
    // First, so that a left-to-right reader knows what to look for, and last, next to the answer.
    format!("Question: {question}\n\nContext:\n{}\n\nQuestion: {question}", numbered.join("\n\n"))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, convert::Infallible};

    use super::*;

    fn passage(heading: &str, text: &str) -> Passage {
        Passage {
            collection_id: "c".into(),
            file_id: "f".into(),
            filename: "guide.md".into(),
            heading: heading.into(),
            text: text.into(),
            chunks: (0, 0),
            place: None,
            similarity: 0.5,
            rerank_score: None,
            attributes: BTreeMap::new(),
        }
    }

    fn words(text: &str) -> Result<usize, Infallible> {
        Ok(text.split_whitespace().count())
    }

    #[test]
    fn passages_are_numbered_as_they_stand_in_the_prompt() {
        let passages = [passage("Setup", "Run it."), passage("", "Stop it.")];
        let Ok(context) = pack("How?", &passages, 100, words);
        assert_eq!(
            context.prompt,
            "Question: How?\n\nContext:\n[1] Setup\nRun it.\n\n[2] guide.md\nStop it.\n\nQuestion: How?"
        );
        assert_eq!((context.included, context.left_out), (vec![0, 1], vec![]));
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_said() {
        let passages = [passage("A", "one"), passage("B", "two three four five six seven"), passage("C", "eight")];
        let Ok(context) = pack("How?", &passages, 11, words);
        assert_eq!(context.prompt, "Question: How?\n\nContext:\n[1] A\none\n\n[2] C\neight\n\nQuestion: How?");
        assert_eq!((context.included, context.left_out), (vec![0, 2], vec![1]));
        let Ok(none) = pack("How?", &passages, 0, words);
        assert_eq!(none.left_out, [0, 1, 2]);
    }

    #[test]
    fn a_passage_that_is_too_long_alone_is_cut() {
        let passages = [passage("B", "two three four five six seven"), passage("C", "one and two and three and four")];
        let Ok(context) = pack("How?", &passages, 10, words);
        assert_eq!(context.prompt, "Question: How?\n\nContext:\n[1] B\ntwo three four\n\nQuestion: How?");
        assert_eq!((context.included, context.left_out), (vec![0], vec![1]));
    }
}
