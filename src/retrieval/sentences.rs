//! The sentences of passages: which of them answer a question, and which support what a model wrote.
//!
//! A sentence is embedded together with the headings above it, without which "It opens at 6 bar." says nothing. Its
//! score is the cosine with the question plus a weighted share of the question's words that it and its headings
//! contain: vectors capture meanings, words capture names and numbers.
//!
//! The constants were chosen on 150 questions, the half `tune` of `scripts/bench_answers.py` over SQuAD 2.0, with
//! all-MiniLM-L6-v2, and checked on no others.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::Arc,
    time::Instant,
};

use hearth_domain::{
    Account, EmbedInput, EmbedInputType, EmbedRequest, EmbedResponse, Timings, Usage,
    error::{Error, Result},
};
use hearth_text::sentences::sentences;

use super::{
    passages::Passage,
    scale::{PAIRS, Scale, cosine},
    search::Retriever,
};

/// The most sentences that are rated, those of the best passages first: a request must not fill the embedding model's
/// queue.
const SENTENCES_MAX: usize = 256;

/// The weight of the question's words, relative to the cosine's 1. Without it 72 % of the answerable questions had
/// their answer in the quoted sentences, with 0.2 76 %, with 0.4 77 %, with 0.7 75 %.
const WORDS_WEIGHT: f32 = 0.4;

/// Words are compared by this many first letters, so that plurals and tenses count as the same word.
const LETTERS: usize = 5;

/// The score from which a sentence is an answer. It refuses 92 % of the questions whose subject is in no document, and
/// 4 % of those that have an answer. Of questions that a document only seems to answer it refuses 13 %: the score that
/// refuses half of those also refuses a fifth of the others.
const ANSWERS_FROM: f32 = 0.55;

/// Logistic regression of "the quoted sentences hold the answer" on the best score, over answerable and other
/// questions.
const LIKELIHOOD_SLOPE: f32 = 6.68;
const LIKELIHOOD_OFFSET: f32 = -5.18;

/// The cosine from which a passage's sentence supports one that a model wrote. Of sentences from elsewhere in the same
/// article 79 % are below it, of sentences from other articles 98 %.
const SUPPORTS_FROM: f32 = 0.6;

/// A sentence of a passage, and how well it answers a question.
#[derive(Clone, Debug, PartialEq)]
pub struct Sentence {
    /// The index of its passage in the given list.
    pub passage: usize,
    /// Its range in the passage's text.
    pub range: Range<usize>,
    /// 0 to 1.4; see [`is_answer`].
    pub score: f32,
}

/// Whether a sentence of this score answers the question.
pub fn is_answer(score: f32) -> bool {
    score >= ANSWERS_FROM
}

/// The likelihood, 0 to 1, that sentences with this best score contain the answer.
pub fn likelihood(score: f32) -> f32 {
    1.0 / (1.0 + (-(LIKELIHOOD_SLOPE * score + LIKELIHOOD_OFFSET)).exp())
}

impl Retriever {
    /// Rates the sentences of passages, best first, and reports the usage. Headings are not rated.
    ///
    /// # Errors
    /// If the embedding model refuses.
    pub async fn rate_sentences(
        &self,
        question: &str,
        passages: &[Passage],
        account: &Arc<Account>,
        deadline: Option<Instant>,
    ) -> Result<(Vec<Sentence>, Usage, Timings)> {
        let places = places_of(passages);
        if places.is_empty() {
            return Ok((Vec::new(), Usage::default(), Timings::default()));
        }
        let texts: Vec<String> = places.iter().map(|(place, range)| embedded(&passages[*place], range)).collect();
        let words: Vec<HashSet<String>> = texts.iter().map(|text| words(text)).collect();
        let shares = shares(question, &words);
        let query = self.embed(vec![question.to_owned()], EmbedInputType::Query, account, deadline).await?;
        let answered = self.embed(texts, EmbedInputType::Passage, account, deadline).await?;
        let vector = query.embeddings.first().ok_or_else(no_vector)?;
        let scale = self.scale(deadline).await?;
        let mut rated: Vec<Sentence> = places
            .into_iter()
            .zip(&answered.embeddings)
            .zip(shares)
            .map(|(((passage, range), sentence), share)| Sentence {
                passage,
                range,
                score: scale.to_reference(cosine(vector, sentence)) + WORDS_WEIGHT * share,
            })
            .collect();
        // Stable: of two equal scores, the one from the better passage comes first.
        rated.sort_by(|a, b| b.score.total_cmp(&a.score));
        let usage = Usage { prompt_tokens: query.prompt_tokens + answered.prompt_tokens, ..Usage::default() };
        Ok((rated, usage, answered.timings))
    }

    /// The sentences of a text that no sentence of the passages supports: none is near enough, or a number in it occurs
    /// in none of them.
    ///
    /// # Errors
    /// If the embedding model refuses.
    pub async fn unsupported(
        &self,
        text: &str,
        passages: &[Passage],
        account: &Arc<Account>,
        deadline: Option<Instant>,
    ) -> Result<Vec<String>> {
        let written: Vec<String> = sentences(text)
            .into_iter()
            .map(|range| without_marks(&text[range]))
            .filter(|sentence| sentence.chars().any(char::is_alphabetic))
            .take(SENTENCES_MAX)
            .collect();
        let places = places_of(passages);
        if written.is_empty() || places.is_empty() {
            return Ok(written);
        }
        let known: HashSet<String> = passages.iter().flat_map(|passage| numbers(&passage.text)).collect();
        let texts = written
            .iter()
            .cloned()
            .chain(places.iter().map(|(place, range)| passages[*place].text[range.clone()].to_owned()));
        let vectors = self.embed(texts.collect(), EmbedInputType::Passage, account, deadline).await?.embeddings;
        if vectors.len() < written.len() {
            return Err(no_vector());
        }
        let scale = self.scale(deadline).await?;
        let (mine, theirs) = vectors.split_at(written.len());
        let is_supported = |(sentence, vector): &(&String, &Vec<f32>)| {
            numbers(without_item_number(sentence)).all(|number| known.contains(&number))
                && theirs.iter().any(|other| scale.to_reference(cosine(vector, other)) >= SUPPORTS_FROM)
        };
        let unsupported = written.iter().zip(mine).filter(|pair| !is_supported(pair));
        Ok(unsupported.map(|(sentence, _)| sentence.clone()).collect())
    }

    /// The name of the embedding model.
    pub fn embedding_model(&self) -> &str {
        &self.embedder.info().id
    }

    /// The embedding model's scale. It is the server's own work, which no caller's account pays for.
    async fn scale(&self, deadline: Option<Instant>) -> Result<Scale> {
        let measure = || async {
            let account = Account::unrecorded();
            let texts = |of: fn(&(&str, &str)) -> String| PAIRS.iter().map(of).collect::<Vec<_>>();
            let questions = texts(|(question, _)| (*question).to_owned());
            let answers = texts(|(_, answer)| (*answer).to_owned());
            let questions = self.embed(questions, EmbedInputType::Query, &account, deadline).await?;
            let answers = self.embed(answers, EmbedInputType::Passage, &account, deadline).await?;
            Ok(Scale::of(&questions.embeddings, &answers.embeddings))
        };
        self.scale.get_or_try_init(measure).await.copied()
    }

    async fn embed(
        &self,
        texts: Vec<String>,
        input_type: EmbedInputType,
        account: &Arc<Account>,
        deadline: Option<Instant>,
    ) -> Result<EmbedResponse> {
        let request = EmbedRequest {
            account: account.clone(),
            inputs: texts.into_iter().map(EmbedInput::Text).collect(),
            input_type,
            dimensions: None,
            truncate: true,
            deadline,
        };
        self.embedder.embed(request).await
    }
}

fn no_vector() -> Error {
    Error::internal(anyhow::anyhow!("the embedding model gave fewer vectors than it was given texts"))
}

/// The sentences of passages, as passage indices and text ranges.
fn places_of(passages: &[Passage]) -> Vec<(usize, Range<usize>)> {
    let mut places = Vec::new();
    for (place, passage) in passages.iter().enumerate() {
        let is_heading = |text: &str| passage.heading.split(" > ").any(|heading| heading == text);
        let found = sentences(&passage.text).into_iter().filter(|range| !is_heading(&passage.text[range.clone()]));
        places.extend(found.map(|range| (place, range)));
    }
    places.truncate(SENTENCES_MAX);
    places
}

/// The text that is embedded for a sentence.
fn embedded(passage: &Passage, range: &Range<usize>) -> String {
    let sentence = &passage.text[range.clone()];
    if passage.heading.is_empty() {
        return sentence.to_owned();
    }
    format!("{}: {sentence}", passage.heading.replace(" > ", ", "))
}

/// The words of a text, normalized for comparison.
fn words(text: &str) -> HashSet<String> {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(|word| word.to_lowercase().chars().take(LETTERS).collect()).collect()
}

/// For each sentence, the weighted share of the question's words that it contains: the fewer of these sentences contain
/// a word, the more it counts. 0 to 1.
fn shares(question: &str, sentences: &[HashSet<String>]) -> Vec<f32> {
    let weights: HashMap<String, f32> = words(question)
        .into_iter()
        .map(|word| {
            let having = sentences.iter().filter(|sentence| sentence.contains(&word)).count();
            let weight = ((sentences.len() as f32 + 1.0) / (having as f32 + 0.5)).ln();
            (word, weight)
        })
        .collect();
    let all: f32 = weights.values().sum();
    let share = |sentence: &HashSet<String>| {
        let has: f32 = weights.iter().filter(|(word, _)| sentence.contains(*word)).map(|(_, weight)| weight).sum();
        if all > 0.0 { has / all } else { 0.0 }
    };
    sentences.iter().map(share).collect()
}

/// A sentence without a leading list number.
fn without_item_number(sentence: &str) -> &str {
    let rest = sentence.trim_start_matches(|c: char| c.is_ascii_digit());
    let behind = rest.strip_prefix(['.', ')']).filter(|behind| behind.starts_with(char::is_whitespace));
    behind.filter(|_| rest.len() < sentence.len()).unwrap_or(sentence)
}

/// A sentence without its citation marks, `[1]` or `[1, 2]`, which may precede its full stop.
fn without_marks(sentence: &str) -> String {
    let mut kept = String::with_capacity(sentence.len());
    let mut rest = sentence;
    while let Some(open) = rest.find('[') {
        let (before, from) = rest.split_at(open);
        let inside = from[1..].bytes().take_while(|byte| byte.is_ascii_digit() || b", ".contains(byte)).count();
        if from[1..].starts_with(|c: char| c.is_ascii_digit()) && from[1 + inside..].starts_with(']') {
            kept.push_str(before.trim_end());
            rest = &from[inside + 2..];
        } else {
            kept.push_str(&rest[..=open]);
            rest = &rest[open + 1..];
        }
    }
    kept.push_str(rest);
    kept.trim().to_owned()
}

/// The digits of the numbers in a text, without separators: a point, a comma or an apostrophe depends on the writer.
fn numbers(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_ascii_digit() && !".,'’".contains(c))
        .map(|number| number.chars().filter(char::is_ascii_digit).collect::<String>())
        .filter(|number| !number.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rare_words_of_the_question_count_for_most() {
        let sentences = ["The pump has a valve.", "The pump has a wheel.", "The motor has a valve."].map(words);
        let shares = shares("Which valves has the motor?", &sentences);
        assert!(shares[2] > 2.0 * shares[0] && shares[0] > shares[1] && shares[2] < 1.0, "{shares:?}");
        assert_eq!(super::shares("The motor has a valve.", &sentences)[2], 1.0);
        assert_eq!(super::shares("?", &sentences), [0.0; 3]);
    }

    #[test]
    fn marks_are_no_part_of_a_sentence() {
        for (text, sentence) in [
            ("It opens at 6 bar. [1]", "It opens at 6 bar."),
            ("It opens [12] at 6 bar [2, 3].", "It opens at 6 bar."),
            ("An array a[i] has [x] and [", "An array a[i] has [x] and ["),
            ("[1]", ""),
        ] {
            assert_eq!(without_marks(text), sentence);
        }
    }

    #[test]
    fn numbers_are_whole() {
        assert_eq!(numbers("In 1769, 3.5 bar and 1,000 l.").collect::<Vec<_>>(), ["1769", "35", "1000"]);
        assert_eq!(without_item_number("2. Close valve 7."), " Close valve 7.");
        assert_eq!(without_item_number("2.5 bar"), "2.5 bar");
    }

    #[test]
    fn a_likelihood_grows_with_the_score() {
        assert!(likelihood(0.2) < 0.05 && likelihood(ANSWERS_FROM) < likelihood(0.9) && likelihood(1.4) > 0.95);
    }
}
