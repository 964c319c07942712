//! Splits a text into the words that byte-pair merges do not cross.
//!
//! Models publish these splits as regular expressions with one look-ahead, `\s+(?!\S)`: white space leaves its last
//! character to the word that follows. Everything else in them is regular, so they run here on a linear-time engine,
//! and the look-ahead is arithmetic on the length of the match; a hostile text cannot cause backtracking. Which model
//! uses which patterns is in [`super::pre_tokenizer_families`].

use std::ops::Range;

use regex_automata::{Input, meta::Regex};

use super::TokenizerError;

/// One pass over the text. Each pass splits the pieces of the previous one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// Every match of the pattern is a piece, and so is the text between matches.
    Match(&'static str),
    /// The same, where the last alternatives are `\s+(?!\S)|\s+`.
    MatchOrWhiteSpace(&'static str),
    /// The same, but white space is split into pieces of 512, 256, ... characters. A non-space character may follow a
    /// piece only if the piece is the last single character.
    MatchOrWhiteSpaceByPowers(&'static str),
    /// Runs of numeric characters are split into groups of three, counted from the right.
    GroupNumbers,
    /// The same, for runs that end at a word boundary.
    GroupNumbersAtBoundary,
}

/// Compiled passes.
#[derive(Debug)]
pub(super) struct PreTokenizer {
    passes: Vec<CompiledPass>,
}

#[derive(Debug)]
struct CompiledPass {
    regex: Regex,
    rule: Rule,
}

/// What to do with a match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    Whole,
    /// Pattern 1 is white space that leaves its last character.
    LeaveLastSpace,
    /// Pattern 1 is white space that is split into powers of two.
    SpaceByPowers,
    /// The match is a run of numeric characters.
    Group {
        at_boundary: bool,
    },
}

/// The second pattern of the white-space rules.
const WHITE_SPACE: &str = r"\s+";
const NUMBERS: &str = r"\p{N}+";

impl PreTokenizer {
    pub(super) fn new(passes: &[Pass]) -> Result<Self, TokenizerError> {
        let passes = passes.iter().map(CompiledPass::new).collect::<Result<_, _>>()?;
        Ok(Self { passes })
    }

    /// The pieces of a text, in order. Together they are the whole text, and none is empty.
    pub(super) fn split(&self, text: &str) -> Vec<Range<usize>> {
        let mut pieces = vec![];
        if !text.is_empty() {
            pieces.push(0..text.len());
        }
        let mut finer = Vec::new();
        for pass in &self.passes {
            finer.clear();
            for piece in &pieces {
                pass.split(&text[piece.clone()], piece.start, &mut finer);
            }
            std::mem::swap(&mut pieces, &mut finer);
        }
        pieces
    }
}

impl CompiledPass {
    fn new(pass: &Pass) -> Result<Self, TokenizerError> {
        let (patterns, rule) = match pass {
            Pass::Match(pattern) => (vec![*pattern], Rule::Whole),
            Pass::MatchOrWhiteSpace(pattern) => (vec![*pattern, WHITE_SPACE], Rule::LeaveLastSpace),
            Pass::MatchOrWhiteSpaceByPowers(pattern) => (vec![*pattern, WHITE_SPACE], Rule::SpaceByPowers),
            Pass::GroupNumbers => (vec![NUMBERS], Rule::Group { at_boundary: false }),
            Pass::GroupNumbersAtBoundary => (vec![NUMBERS], Rule::Group { at_boundary: true }),
        };
        let regex = Regex::new_many(&patterns)
            .map_err(|error| TokenizerError::Encode { problem: format!("pre-tokenizer {patterns:?}: {error}") })?;
        Ok(Self { regex, rule })
    }

    /// Splits one piece, which starts at `offset` in the whole text.
    fn split(&self, piece: &str, offset: usize, pieces: &mut Vec<Range<usize>>) {
        let mut push = |range: Range<usize>| {
            if !range.is_empty() {
                pieces.push(offset + range.start..offset + range.end);
            }
        };
        let mut done = 0;
        while let Some(found) = self.regex.find(Input::new(piece).range(done..)) {
            push(done..found.start());
            let matched = &piece[found.range()];
            let is_white_space = found.pattern().as_usize() == 1;
            let followed = found.end() < piece.len();
            let length = match self.rule {
                Rule::LeaveLastSpace if is_white_space => length_leaving_last(matched, followed),
                Rule::SpaceByPowers if is_white_space => length_by_powers(matched, followed),
                Rule::Group { at_boundary } => {
                    if !at_boundary || !piece[found.end()..].starts_with(is_word_character) {
                        let mut start = found.start();
                        for end in group_ends(matched) {
                            push(start..found.start() + end);
                            start = found.start() + end;
                        }
                    } else {
                        push(found.range());
                    }
                    done = found.end();
                    continue;
                }
                _ => matched.len(),
            };
            push(found.start()..found.start() + length);
            done = found.start() + length;
            if length == 0 {
                // No pattern in use matches the empty text; if one does, stop here.
                break;
            }
        }
        push(done..piece.len());
    }
}

/// `\s+(?!\S)|\s+` on a maximal run of white space.
fn length_leaving_last(run: &str, followed: bool) -> usize {
    match run.char_indices().next_back() {
        Some((last, _)) if followed && last > 0 => last,
        _ => run.len(),
    }
}

/// `\s{512}(?!\S)|\s{256}(?!\S)| ... |\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}` on a maximal run of white space.
fn length_by_powers(run: &str, followed: bool) -> usize {
    let available = run.chars().take(514).count();
    let characters = [512, 256, 128, 64, 32, 16, 8, 4, 2, 1]
        .into_iter()
        .find(|count| *count < available || (*count == available && !followed))
        .unwrap_or(1);
    run.char_indices().nth(characters).map_or(run.len(), |(end, _)| end)
}

/// Where groups of three end, counted from the right of a run.
fn group_ends(run: &str) -> impl Iterator<Item = usize> {
    let count = run.chars().count();
    run.char_indices()
        .enumerate()
        .filter(move |(index, (_, _))| (count - index - 1).is_multiple_of(3))
        .map(|(_, (start, character))| start + character.len_utf8())
}

/// `\w` of regular expressions, approximated closely enough to find the end of a number.
fn is_word_character(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split<'a>(passes: &[Pass], text: &'a str) -> Vec<&'a str> {
        PreTokenizer::new(passes).unwrap().split(text).into_iter().map(|range| &text[range]).collect()
    }

    #[test]
    fn white_space_leaves_its_last_character_to_the_next_word() {
        let passes = [Pass::MatchOrWhiteSpace(r" ?\p{L}+")];
        assert_eq!(split(&passes, "a   b"), ["a", "  ", " b"]);
        assert_eq!(split(&passes, "a\t\tb"), ["a", "\t", "\t", "b"]);
        assert_eq!(split(&passes, "a  "), ["a", "  "]);
        assert_eq!(split(&passes, "a  !!"), ["a", " ", " ", "!!"]);
    }

    #[test]
    fn white_space_by_powers() {
        let passes = [Pass::MatchOrWhiteSpaceByPowers(r" ?\p{L}+")];
        assert_eq!(split(&passes, "       a").iter().map(|piece| piece.len()).collect::<Vec<_>>(), [4, 2, 2]);
        assert_eq!(split(&passes, "        ").iter().map(|piece| piece.len()).collect::<Vec<_>>(), [8]);
    }

    #[test]
    fn numbers_are_grouped_from_the_right() {
        assert_eq!(split(&[Pass::GroupNumbers], "a1234567b12"), ["a", "1", "234", "567", "b", "12"]);
        assert_eq!(split(&[Pass::GroupNumbersAtBoundary], "1234 1234b"), ["1", "234", " ", "1234", "b"]);
    }

    #[test]
    fn later_passes_cut_the_pieces_of_earlier_ones() {
        let passes = [Pass::Match(r"\p{N}"), Pass::Match("[a1]+")];
        assert_eq!(split(&passes, "a11ab"), ["a", "1", "1", "a", "b"]);
    }

    proptest! {
        /// The arithmetic equals what a backtracking engine finds.
        #[test]
        fn equals_the_look_ahead(text in r"[ \tab\n]{0,12}") {
            let pattern = r" ?[ab]+|\s*[\r\n]+";
            let ours = split(&[Pass::MatchOrWhiteSpace(pattern)], &text);
            let reference = fancy_regex::Regex::new(&format!(r"{pattern}|\s+(?!\S)|\s+")).unwrap();
            let theirs: Vec<&str> = reference.find_iter(&text).map(|found| found.unwrap().as_str()).collect();
            prop_assert_eq!(ours, theirs);
        }

        #[test]
        fn by_powers_equals_the_look_ahead(text in r"[ a]{0,40}") {
            let ours = split(&[Pass::MatchOrWhiteSpaceByPowers(" ?a+")], &text);
            let reference = fancy_regex::Regex::new(
                r" ?a+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}",
            ).unwrap();
            let theirs: Vec<&str> = reference.find_iter(&text).map(|found| found.unwrap().as_str()).collect();
            prop_assert_eq!(ours, theirs);
        }
    }
}
