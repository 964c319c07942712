//! Splits the blocks of a document into chunks of a bounded number of tokens, along the document's structure.
//!
//! A heading begins a new chunk, and every chunk knows the headings above it. Below a heading the text is split where
//! its structure allows: first between paragraphs, then between lines, sentences and words, and finally inside a word,
//! but never inside a character. Neighbouring chunks overlap, so that a sentence at a cut is whole in one of them.
//! text-splitter finds the cuts; the tokenizer of the model that will read the chunks measures them.

use std::ops::Range;

use text_splitter::{ChunkConfig, TextSplitter, TryChunkSizer};

use super::{
    extract::{Block, BlockKind, LineRange},
    tokenizer::{Tokenizer, TokenizerError},
};

/// The length of chunks. Tokens that a model adds around a text (CLS, SEP) and what a caller puts in front of it (a
/// prefix, the headings) are not counted: leave room for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChunkOptions {
    /// Maximum tokens per chunk; at least [`ChunkOptions::LEAST_TOKENS`].
    pub max_tokens: usize,
    /// Maximum number of tokens that a chunk repeats from the end of the previous one under the same heading; less than
    /// half of `max_tokens`.
    pub overlap_tokens: usize,
}

impl ChunkOptions {
    /// Any single character fits into this many tokens.
    pub const LEAST_TOKENS: usize = 16;
}

impl Default for ChunkOptions {
    /// Fits models that read 256 tokens, with room for the headings.
    fn default() -> Self {
        Self { max_tokens: 200, overlap_tokens: 30 }
    }
}

/// A piece of a document that is embedded, retrieved and cited.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Chunk {
    /// Position in the document, from 0.
    pub index: usize,
    pub text: String,
    /// Headings above the text, outermost first.
    pub headings: Vec<String>,
    pub place: ChunkPlace,
    /// Tokens of `text`, without those that a model adds around it.
    pub tokens: usize,
}

/// Where in the file a chunk is, as far as the format provides it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ChunkPlace {
    /// First and last page, from 1.
    pub pages: Option<(u32, u32)>,
    pub sheet: Option<String>,
    pub lines: Option<LineRange>,
}

#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    #[error(
        "chunks of {max_tokens} tokens that overlap by {overlap_tokens} cannot be made; take at least {} tokens, and less \
         than half of them as overlap",
        ChunkOptions::LEAST_TOKENS
    )]
    Options { max_tokens: usize, overlap_tokens: usize },
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// Splits documents for one tokenizer. The same blocks give the same chunks.
#[derive(Debug)]
pub struct Chunker {
    splitter: TextSplitter<TokenSizer>,
    sizer: TokenSizer,
    window_bytes: usize,
}

/// A vocabulary may map any run of characters to one unknown token. Such a chunk could hold a whole file, so a token
/// counts for at most this many characters.
const CHARACTERS_OF_A_TOKEN: usize = 16;

/// Bytes that the splitter sees at once per token of a chunk: its time grows with the square of what it sees. This is
/// twice the longest chunk in bytes, so that a window holds more than one.
const WINDOW_BYTES_OF_A_TOKEN: usize = 2 * 4 * CHARACTERS_OF_A_TOKEN;

#[derive(Clone, Debug)]
struct TokenSizer(Tokenizer);

impl TokenSizer {
    fn tokens(&self, text: &str) -> Result<usize, TokenizerError> {
        Ok(self.0.encode(text, false, false)?.len())
    }
}

impl TryChunkSizer for TokenSizer {
    type Error = TokenizerError;

    fn try_size(&self, text: &str) -> Result<usize, TokenizerError> {
        Ok(self.tokens(text)?.max(text.chars().count().div_ceil(CHARACTERS_OF_A_TOKEN)))
    }
}

impl Chunker {
    /// # Errors
    /// If chunks of these lengths are impossible.
    pub fn new(tokenizer: Tokenizer, options: ChunkOptions) -> Result<Self, ChunkError> {
        let ChunkOptions { max_tokens, overlap_tokens } = options;
        let refused = || ChunkError::Options { max_tokens, overlap_tokens };
        if max_tokens < ChunkOptions::LEAST_TOKENS || overlap_tokens >= max_tokens.div_ceil(2) {
            return Err(refused());
        }
        let sizer = TokenSizer(tokenizer);
        let config = ChunkConfig::new(max_tokens).with_sizer(sizer.clone());
        let config = config.with_overlap(overlap_tokens).map_err(|_| refused())?;
        let window_bytes = max_tokens.saturating_mul(WINDOW_BYTES_OF_A_TOKEN);
        Ok(Self { splitter: TextSplitter::new(config), sizer, window_bytes })
    }

    /// The chunks of a document, in document order. Every character of every block that is not white space is in at
    /// least one.
    ///
    /// # Errors
    /// If the tokenizer rejects a text.
    pub fn chunk(&self, blocks: &[Block]) -> Result<Vec<Chunk>, ChunkError> {
        let mut chunks = Vec::new();
        let mut path: Vec<(u8, &str)> = Vec::new();
        let mut start = 0;
        for (index, block) in blocks.iter().enumerate() {
            let BlockKind::Heading { level } = block.kind else { continue };
            // A title and a subtitle directly below it stay together.
            let deepens = blocks[start..index].iter().all(|above| is_heading_above(above, level));
            if !deepens {
                self.chunk_section(&blocks[start..index], &path, &mut chunks)?;
                start = index;
            }
            path.retain(|(above, _)| *above < level);
            path.push((level, &block.text));
        }
        self.chunk_section(&blocks[start..], &path, &mut chunks)?;
        Ok(chunks)
    }

    fn chunk_section(&self, blocks: &[Block], path: &[(u8, &str)], chunks: &mut Vec<Chunk>) -> Result<(), ChunkError> {
        let section = Section::of(blocks);
        for range in self.cuts(&section.text)? {
            let text = &section.text[range.clone()];
            chunks.push(Chunk {
                index: chunks.len(),
                text: text.to_owned(),
                headings: path.iter().map(|(_, text)| (*text).to_owned()).collect(),
                place: section.place(&range),
                tokens: self.sizer.tokens(text)?,
            });
        }
        Ok(())
    }

    /// Byte ranges of a text, in order, that overlap or are separated by white space.
    fn cuts(&self, text: &str) -> Result<Vec<Range<usize>>, TokenizerError> {
        let mut cuts = Vec::new();
        let mut start = 0;
        let mut covered = 0;
        while start < text.len() {
            let end = text.floor_char_boundary(start.saturating_add(self.window_bytes));
            let mut found = Vec::new();
            for cut in self.splitter.try_chunk_indices(&text[start..end]) {
                let (offset, piece) = cut?;
                found.push(start + offset..start + offset + piece.len());
            }
            let mut next = end;
            // The last piece of a window ends where the window does, so it is split again from its beginning.
            if end < text.len()
                && found.len() > 1
                && let Some(last) = found.pop_if(|last| last.start > start)
            {
                next = last.start;
            }
            for range in found {
                // A piece that consists only of overlap adds nothing.
                if range.end > covered && !text[range.clone()].trim().is_empty() {
                    covered = range.end;
                    cuts.push(range);
                }
            }
            start = next;
        }
        Ok(cuts)
    }
}

fn is_heading_above(block: &Block, level: u8) -> bool {
    matches!(block.kind, BlockKind::Heading { level: above } if above < level)
}

/// The blocks between two headings as one text.
struct Section<'b> {
    text: String,
    blocks: &'b [Block],
    /// The range of each block in the text.
    ranges: Vec<Range<usize>>,
    newlines: Vec<usize>,
}

impl<'b> Section<'b> {
    fn of(blocks: &'b [Block]) -> Self {
        let mut text = String::with_capacity(blocks.iter().map(|block| block.text.len() + 4).sum());
        let mut ranges = Vec::with_capacity(blocks.len());
        for (index, block) in blocks.iter().enumerate() {
            if let Some(before) = index.checked_sub(1).map(|before| &blocks[before]) {
                let is_dense = |block: &Block| matches!(block.kind, BlockKind::ListItem | BlockKind::TableRow);
                text.push_str(if is_dense(before) && is_dense(block) { "\n" } else { "\n\n" });
            }
            if block.kind == BlockKind::ListItem {
                text.push_str("- ");
            }
            let start = text.len();
            text.push_str(&block.text);
            ranges.push(start..text.len());
        }
        let newlines = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect();
        Self { text, blocks, ranges, newlines }
    }

    /// Newlines inside a range of the text.
    fn newlines_in(&self, range: Range<usize>) -> u32 {
        let before = |at: usize| self.newlines.partition_point(|newline| *newline < at);
        u32::try_from(before(range.end).saturating_sub(before(range.start))).unwrap_or(u32::MAX)
    }

    /// The place in the file of the blocks that a range of the text touches.
    fn place(&self, range: &Range<usize>) -> ChunkPlace {
        let first = self.ranges.partition_point(|block| block.end <= range.start);
        let last = self.ranges.partition_point(|block| block.start < range.end);
        let mut place = ChunkPlace::default();
        for (block, within) in self.blocks.iter().zip(&self.ranges).take(last).skip(first) {
            if let Some(page) = block.place.page {
                let (first, last) = place.pages.unwrap_or((page, page));
                place.pages = Some((first.min(page), last.max(page)));
            }
            if place.sheet.is_none() {
                place.sheet = block.place.sheet.as_deref().map(str::to_owned);
            }
            if let Some(lines) = block.place.lines.map(|lines| self.lines_inside(lines, within, range)) {
                let all = place.lines.get_or_insert(lines);
                *all = LineRange { first: all.first.min(lines.first), last: all.last.max(lines.last) };
            }
        }
        place
    }

    /// Lines of a block that a range touches: exact if the block's lines are those of the file, otherwise all of them.
    fn lines_inside(&self, lines: LineRange, block: &Range<usize>, range: &Range<usize>) -> LineRange {
        if self.newlines_in(block.clone()) != lines.last.saturating_sub(lines.first) {
            return lines;
        }
        let (start, end) = (range.start.max(block.start), range.end.min(block.end));
        let first = lines.first.saturating_add(self.newlines_in(block.start..start));
        LineRange { first, last: first.saturating_add(self.newlines_in(start..end)) }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, sync::Arc};

    use proptest::prelude::*;

    use super::*;
    use crate::extract::SourceLocation;

    /// Each byte of a text is one token, so no tokenizer gives a character more tokens.
    fn bytes_as_tokens() -> Tokenizer {
        let printable = |byte: u8| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
        let mut spare = 0x100..;
        let vocabulary: serde_json::Map<String, serde_json::Value> = (0..=255_u8)
            .map(|byte| {
                let code = if printable(byte) { u32::from(byte) } else { spare.next().expect("it has no end") };
                let letter = char::from_u32(code).expect("it is assigned");
                (letter.to_string(), serde_json::Value::from(byte))
            })
            .collect();
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary, "merges": []},
        });
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file can be made");
        file.write_all(json.to_string().as_bytes()).expect("it can be written");
        Tokenizer::from_file(file.path()).expect("it is a tokenizer")
    }

    /// A WordPiece vocabulary, in which whole words may be unknown.
    fn word_pieces() -> Tokenizer {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/fixtures/embeddings/bert-mean/0_Transformer/tokenizer.json"
        );
        Tokenizer::from_file(path.as_ref()).expect("the fixture is a tokenizer")
    }

    fn chunker(tokenizer: Tokenizer, max_tokens: usize, overlap_tokens: usize) -> Chunker {
        Chunker::new(tokenizer, ChunkOptions { max_tokens, overlap_tokens }).expect("the lengths are fine")
    }

    fn block(kind: BlockKind, text: &str) -> Block {
        Block { kind, text: text.to_owned(), place: SourceLocation::default() }
    }

    fn heading(level: u8, text: &str) -> Block {
        block(BlockKind::Heading { level }, text)
    }

    #[test]
    fn a_heading_begins_a_chunk_and_is_the_path_of_what_follows() {
        let blocks = [
            block(BlockKind::Paragraph, "Before."),
            heading(1, "Pump"),
            heading(2, "Parts"),
            block(BlockKind::ListItem, "wheel"),
            block(BlockKind::ListItem, "bolt"),
            heading(2, "Empty"),
            heading(2, "Use"),
            block(BlockKind::Paragraph, "Turn it on."),
            heading(1, "Annex"),
        ];
        let chunks = chunker(bytes_as_tokens(), 100, 10).chunk(&blocks).unwrap();
        let shown: Vec<_> = chunks.iter().map(|chunk| (chunk.headings.join(" > "), chunk.text.as_str())).collect();
        let expected = [
            ("", "Before."),
            ("Pump > Parts", "Pump\n\nParts\n\n- wheel\n- bolt"),
            ("Pump > Empty", "Empty"),
            ("Pump > Use", "Use\n\nTurn it on."),
            ("Annex", "Annex"),
        ];
        assert_eq!(shown, expected.map(|(path, text)| (path.to_owned(), text)));
        assert!(chunks.iter().enumerate().all(|(at, chunk)| chunk.index == at && chunk.tokens == chunk.text.len()));
    }

    #[test]
    fn paragraphs_stay_whole_where_they_fit_and_neighbours_overlap() {
        let text = "One sentence here. Another sentence there. A third one follows. And the fourth one ends it.";
        let chunks = chunker(bytes_as_tokens(), 50, 24).chunk(&[block(BlockKind::Paragraph, text)]).unwrap();
        let texts: Vec<_> = chunks.iter().map(|chunk| chunk.text.as_str()).collect();
        assert_eq!(
            texts,
            [
                "One sentence here. Another sentence there.",
                "Another sentence there. A third one follows.",
                "A third one follows. And the fourth one ends it.",
            ]
        );
    }

    #[test]
    fn chunks_know_their_pages_and_lines() {
        let place = |page, first, last| SourceLocation {
            page: Some(page),
            sheet: None,
            lines: Some(LineRange { first, last }),
        };
        let code = BlockKind::Code { language: Some(Arc::from("rust")) };
        let blocks = [
            Block { kind: code, text: "first line 1\nsecond line\nthird line 3".to_owned(), place: place(1, 10, 12) },
            Block { kind: BlockKind::Paragraph, text: "reflowed text".to_owned(), place: place(2, 20, 29) },
        ];
        let chunks = chunker(bytes_as_tokens(), 28, 0).chunk(&blocks).unwrap();
        let places: Vec<_> = chunks
            .iter()
            .map(|chunk| {
                let lines = chunk.place.lines.expect("blocks have lines");
                (chunk.text.as_str(), chunk.place.pages, lines.first, lines.last)
            })
            .collect();
        assert_eq!(
            places,
            [
                ("first line 1\nsecond line", Some((1, 1)), 10, 11),
                ("third line 3\n\nreflowed text", Some((1, 2)), 12, 29),
            ]
        );
    }

    #[test]
    fn a_long_text_overlaps_across_windows_too() {
        let words: Vec<String> = (0..20_000).map(|number| format!("w{number}")).collect();
        let chunker = chunker(bytes_as_tokens(), 64, 16);
        let chunks = chunker.chunk(&[block(BlockKind::Paragraph, &words.join(" "))]).unwrap();
        for pair in chunks.windows(2) {
            let begins_with = pair[1].text.split(' ').next().expect("it is not blank");
            assert!(pair[0].text.split(' ').any(|word| word == begins_with), "{pair:?}");
        }
    }

    #[test]
    fn an_unknown_word_without_an_end_is_cut() {
        let chunks = chunker(word_pieces(), 16, 4).chunk(&[block(BlockKind::Paragraph, &"Ω".repeat(100_000))]).unwrap();
        assert!(chunks.iter().all(|chunk| chunk.text.chars().count() <= 16 * CHARACTERS_OF_A_TOKEN));
    }

    #[test]
    fn lengths_that_cannot_be_are_refused() {
        for (max_tokens, overlap_tokens) in [(15, 0), (200, 100), (16, 8), (0, 0)] {
            let refused = Chunker::new(word_pieces(), ChunkOptions { max_tokens, overlap_tokens }).unwrap_err();
            assert!(matches!(refused, ChunkError::Options { .. }));
        }
    }

    fn any_block() -> impl Strategy<Value = Block> {
        let kind = prop_oneof![
            (1..7_u8).prop_map(|level| BlockKind::Heading { level }),
            Just(BlockKind::Paragraph),
            Just(BlockKind::ListItem),
            Just(BlockKind::TableRow),
            Just(BlockKind::Code { language: None }),
        ];
        let text = prop_oneof!["[a-z ,.]{0,200}", "\\PC{0,80}", "[\\s\\S]{0,60}", "(👩‍🔧|e\u{301}|ไทย|漢字| |\n){0,60}"];
        (kind, text).prop_map(|(kind, text)| block(kind, &text))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn no_chunk_is_too_long_and_every_block_is_in_them(
            blocks in proptest::collection::vec(any_block(), 0..12),
            max_tokens in 16..80_usize,
            overlap in 0..8_usize,
            pieces: bool,
        ) {
            let chunker = chunker(if pieces { word_pieces() } else { bytes_as_tokens() }, max_tokens, overlap);
            let chunks = chunker.chunk(&blocks).unwrap();
            prop_assert!(chunks.iter().all(|chunk| chunk.tokens <= max_tokens && !chunk.text.trim().is_empty()));
            prop_assert_eq!(&chunks, &chunker.chunk(&blocks).unwrap());
            // Characters in the chunks, counting overlaps twice, are at least those of the blocks.
            let mut count = std::collections::HashMap::<char, usize>::new();
            for character in chunks.iter().flat_map(|chunk| chunk.text.chars()) {
                *count.entry(character).or_default() += 1;
            }
            for character in blocks.iter().flat_map(|block| block.text.chars()).filter(|c| !c.is_whitespace()) {
                let left = count.entry(character).or_default();
                prop_assert!(*left > 0, "{character:?} is lost");
                *left -= 1;
            }
        }

        #[test]
        fn cuts_leave_nothing_but_white_space_between_them(
            blocks in proptest::collection::vec(any_block(), 0..40),
            max_tokens in 16..40_usize,
            overlap in 0..8_usize,
            pieces: bool,
        ) {
            let text = Section::of(&blocks).text;
            let mut chunker = chunker(if pieces { word_pieces() } else { bytes_as_tokens() }, max_tokens, overlap);
            // Small windows, whose ends must not affect the result.
            chunker.window_bytes = max_tokens * CHARACTERS_OF_A_TOKEN * 2;
            let mut covered = 0;
            for range in chunker.cuts(&text).unwrap() {
                prop_assert!(range.end > covered, "{range:?} repeats what is there up to {covered}");
                prop_assert!(text[covered..range.start.max(covered)].trim().is_empty());
                covered = range.end;
            }
            prop_assert!(text[covered..].trim().is_empty());
        }
    }
}
