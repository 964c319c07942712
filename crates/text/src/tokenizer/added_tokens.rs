//! Finds control and user-defined tokens in a text before any other processing.
//!
//! A user-defined token is found in any text. A control token is found only if the caller asks for special tokens to be
//! parsed, so that user input cannot end a turn. The leftmost-longest token wins, as in the `tokenizers` crate.

use aho_corasick::{AhoCorasick, MatchKind};

use super::{TokenKind, TokenizerError, vocabulary::Vocabulary};

/// White space that a token removes from the text around it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Strip {
    pub(super) left: bool,
    pub(super) right: bool,
}

/// A piece of a text split at its added tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fragment<'a> {
    Text(&'a str),
    Token(u32),
}

#[derive(Debug)]
pub(super) struct AddedTokens {
    always: Finder,
    with_special: Finder,
    /// Finds every place where a control token is spelled; tokens of one character cannot be told from text.
    control: Option<AhoCorasick>,
}

#[derive(Debug)]
struct Finder {
    /// `None` if there is nothing to find.
    automaton: Option<AhoCorasick>,
    tokens: Vec<(u32, Strip)>,
}

impl AddedTokens {
    /// Collects the tokens of a vocabulary; `strip` says what white space each one removes.
    pub(super) fn new(vocabulary: &Vocabulary, strip: impl Fn(u32) -> Strip) -> Result<Self, TokenizerError> {
        let of_kinds = |kinds: &[TokenKind]| {
            Finder::new(
                vocabulary
                    .iter()
                    .filter(|(_, text, kind)| kinds.contains(kind) && !text.is_empty())
                    .map(|(id, text, _)| (text, id, strip(id))),
            )
        };
        let control = vocabulary
            .iter()
            .filter(|(_, text, kind)| *kind == TokenKind::Control && text.chars().nth(1).is_some())
            .map(|(_, text, _)| text);
        Ok(Self {
            control: automaton(control.collect(), MatchKind::Standard)?,
            always: of_kinds(&[TokenKind::UserDefined])?,
            with_special: of_kinds(&[TokenKind::UserDefined, TokenKind::Control, TokenKind::Unknown])?,
        })
    }

    pub(super) fn has_control_text(&self, text: &str) -> bool {
        self.control.as_ref().is_some_and(|automaton| automaton.is_match(text))
    }

    /// The text with `mark` inserted after the first character of each control token spelled in it.
    pub(super) fn mark_control_texts(&self, text: &str, mark: char) -> String {
        let Some(automaton) = &self.control else { return text.to_owned() };
        let mut starts: Vec<usize> = automaton.find_overlapping_iter(text).map(|found| found.start()).collect();
        starts.sort_unstable();
        starts.dedup();
        let mut marked = String::with_capacity(text.len() + starts.len() * mark.len_utf8());
        let mut copied = 0;
        for start in starts {
            let end = start + text[start..].chars().next().map_or(0, char::len_utf8);
            marked.push_str(&text[copied..end]);
            marked.push(mark);
            copied = end;
        }
        marked.push_str(&text[copied..]);
        marked
    }

    pub(super) fn split<'a>(&self, text: &'a str, parse_special: bool) -> Vec<Fragment<'a>> {
        if parse_special { self.with_special.split(text) } else { self.always.split(text) }
    }
}

/// `None` if there are no texts.
fn automaton(texts: Vec<&str>, kind: MatchKind) -> Result<Option<AhoCorasick>, TokenizerError> {
    if texts.is_empty() {
        return Ok(None);
    }
    let built = AhoCorasick::builder().match_kind(kind).build(&texts);
    built.map(Some).map_err(|error| TokenizerError::Encode { problem: format!("its added tokens: {error}") })
}

impl Finder {
    fn new<'a>(tokens: impl Iterator<Item = (&'a str, u32, Strip)>) -> Result<Self, TokenizerError> {
        let (texts, tokens): (Vec<&str>, Vec<(u32, Strip)>) =
            tokens.map(|(text, id, strip)| (text, (id, strip))).unzip();
        Ok(Self { automaton: automaton(texts, MatchKind::LeftmostLongest)?, tokens })
    }

    fn split<'a>(&self, text: &'a str) -> Vec<Fragment<'a>> {
        let mut fragments = Vec::new();
        let mut start = 0;
        if let Some(automaton) = &self.automaton {
            for found in automaton.find_iter(text) {
                let (id, strip) = self.tokens[found.pattern().as_usize()];
                // A token to the left may already have taken the white space with which this one starts.
                let Some(mut before) = text.get(start..found.start()) else { continue };
                if strip.left {
                    before = before.trim_end();
                }
                if !before.is_empty() {
                    fragments.push(Fragment::Text(before));
                }
                fragments.push(Fragment::Token(id));
                start = found.end();
                if strip.right {
                    start = text.len() - text[start..].trim_start().len();
                }
            }
        }
        if start < text.len() {
            fragments.push(Fragment::Text(&text[start..]));
        }
        fragments
    }
}

#[cfg(test)]
mod tests {
    use super::{super::vocabulary::Spelling, *};

    fn added(strip: impl Fn(u32) -> Strip) -> AddedTokens {
        let tokens = [
            ("a", TokenKind::Normal),
            ("<end>", TokenKind::Control),
            ("<e", TokenKind::UserDefined),
            ("<ee>", TokenKind::UserDefined),
            ("", TokenKind::Control),
        ];
        AddedTokens::new(&Vocabulary::new(tokens, Spelling::Plain), strip).unwrap()
    }

    #[test]
    fn control_tokens_are_found_only_on_request() {
        let added = added(|_| Strip::default());
        assert_eq!(added.split("a<end>", true), [Fragment::Text("a"), Fragment::Token(1)]);
        assert_eq!(added.split("a<end>", false), [Fragment::Text("a"), Fragment::Token(2), Fragment::Text("nd>")]);
    }

    #[test]
    fn every_spelling_of_a_control_token_is_marked() {
        let added = added(|_| Strip::default());
        assert!(added.has_control_text("a<end>") && !added.has_control_text("a<ee>"));
        assert_eq!(added.mark_control_texts("a<end><en<end>d>", '#'), "a<#end><en<#end>d>");
        assert_eq!(added.split("<#end>", true), [Fragment::Text("<#end>")]);
    }

    #[test]
    fn the_longest_token_wins() {
        let added = added(|_| Strip::default());
        assert_eq!(added.split("<ee><e", false), [Fragment::Token(3), Fragment::Token(2)]);
    }

    #[test]
    fn tokens_take_white_space_with_them() {
        let added = added(|_| Strip { left: true, right: true });
        assert_eq!(
            added.split(" x \n<ee> \t<e  y ", false),
            [Fragment::Text(" x"), Fragment::Token(3), Fragment::Token(2), Fragment::Text("y ")]
        );
        assert_eq!(added.split("  <ee>  ", false), [Fragment::Token(3)]);
    }

    #[test]
    fn an_empty_text_has_no_fragments() {
        assert_eq!(added(|_| Strip::default()).split("", true), []);
    }
}
