//! Splits a chunk's text into sentences, so that an answer can quote one.
//!
//! A chunk keeps the structure of its document as lines (`chunker.rs`): a blank line between blocks, one line per table
//! row and list item, and the soft line breaks of a paragraph as they were in the file. Rows and items are sentences as
//! they are; a row includes its column names. All other text is split by Unicode's sentence rules (UAX #29), which know
//! no abbreviations: a split after an abbreviation is undone.

use std::ops::Range;

use unicode_segmentation::UnicodeSegmentation;

/// A longer sentence is split at a line or a space: answers quote sentences, and code and lists without full stops can
/// have any length.
const CHARS_MAX: usize = 600;

/// The separator between the cells of a row.
const CELLS: &str = " | ";

/// Words that take a full stop in the middle of a sentence, in the most common document languages.
const ABBREVIATIONS: [&str; 58] = [
    "abs", "al", "approx", "apr", "art", "aug", "bspw", "bzw", "ca", "cf", "co", "corp", "dec", "dept", "dr", "ed",
    "eds", "eg", "est", "evtl", "feb", "fig", "figs", "gen", "ggf", "gov", "hon", "ie", "inc", "jan", "jr", "jul",
    "jun", "lt", "ltd", "mar", "mme", "mr", "mrs", "ms", "mt", "nos", "nov", "nr", "oct", "op", "pp", "prof", "rep",
    "rev", "sen", "sept", "sr", "st", "usw", "vgl", "vol", "vs",
];

/// The ranges of a text's sentences, rows and items, in order, without surrounding white space and list markers.
pub fn sentences(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    for unit in units(text) {
        // The column names precede the cells, so a row is one sentence.
        if text[unit.clone()].contains(CELLS) {
            push(text, unit, &mut found);
            continue;
        }
        // To a reader, a line break inside a unit is a space; UAX #29 treats it as the end of a sentence. The
        // replacement keeps the byte length.
        let line = text[unit.clone()].replace('\n', " ");
        let mut start = 0;
        for (at, piece) in line.split_sentence_bound_indices() {
            let end = at + piece.len();
            let piece = &line[start..end];
            // The number of a list item is not a sentence.
            let is_number = !piece.contains(char::is_alphabetic);
            if end < line.len() && (is_number || ends_in_abbreviation(piece)) {
                continue;
            }
            push(text, unit.start + start..unit.start + end, &mut found);
            start = end;
        }
        push(text, unit.start + start..unit.end, &mut found);
    }
    found
}

/// Paragraphs, table rows and list items.
fn units(text: &str) -> Vec<Range<usize>> {
    let mut units: Vec<Range<usize>> = Vec::new();
    let mut at = 0;
    // Whether the next line may continue the previous unit.
    let mut is_open = false;
    for line in text.split_inclusive('\n') {
        let range = at..at + line.trim_end_matches('\n').len();
        at += line.len();
        let words = line.trim();
        if words.is_empty() {
            is_open = false;
        } else if let Some(item) = words.strip_prefix("- ") {
            let start = range.start + line.find(item).unwrap_or(0);
            units.push(start..range.end);
            is_open = true;
        } else if words.contains(CELLS) {
            units.push(range);
            is_open = false;
        } else if let Some(last) = units.last_mut().filter(|_| is_open) {
            last.end = range.end;
        } else {
            units.push(range);
            is_open = true;
        }
    }
    units
}

fn ends_in_abbreviation(text: &str) -> bool {
    let Some(before) = text.trim_end().strip_suffix('.') else { return false };
    let word = before.rsplit(|c: char| c.is_whitespace() || c == '(').next().unwrap_or("");
    // "e.g.", "z.B." and initials: single letters, each with a full stop.
    let mut parts = word.split('.').peekable();
    let is_letters = parts.peek().is_some() && parts.all(|part| part.chars().count() == 1);
    let word = word.to_lowercase();
    is_letters && word.chars().all(|c| c == '.' || c.is_alphabetic()) || ABBREVIATIONS.contains(&word.as_str())
}

/// Adds a sentence if it contains a letter or a digit, in several parts if it is too long.
fn push(text: &str, range: Range<usize>, found: &mut Vec<Range<usize>>) {
    let piece = &text[range.clone()];
    let trimmed = piece.trim();
    if !trimmed.chars().any(char::is_alphanumeric) {
        return;
    }
    let mut start = range.start + (piece.len() - piece.trim_start().len());
    let end = start + trimmed.len();
    while let Some((cut, _)) = text[start..end].char_indices().nth(CHARS_MAX) {
        let head = &text[start..start + cut];
        let half = head.len() / 2;
        let cut = head.rfind('\n').filter(|&at| at > half).or_else(|| head.rfind(' ').filter(|&at| at > half));
        let cut = start + cut.unwrap_or(head.len());
        found.push(start..cut);
        start = cut + (text[cut..end].len() - text[cut..end].trim_start().len());
    }
    if start < end {
        found.push(start..end);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(text: &str) -> Vec<&str> {
        sentences(text).into_iter().map(|range| &text[range]).collect()
    }

    #[test]
    fn paragraphs_are_cut_into_sentences_across_their_soft_line_breaks() {
        assert_eq!(
            cut("The pump has a relief\nvalve. It opens at 6 bar! Does it close?\n\nNext."),
            ["The pump has a relief\nvalve.", "It opens at 6 bar!", "Does it close?", "Next."]
        );
        assert_eq!(cut("泵有阀门。它在6巴打开。"), ["泵有阀门。", "它在6巴打开。"]);
    }

    #[test]
    fn abbreviations_and_initials_end_no_sentence() {
        for text in [
            "Dr. Smith came at noon.",
            "It was written by J. R. Hartley in May.",
            "Use a solvent (e.g. Ethanol) for it.",
            "Das gilt z.B. Montags.",
            "See Fig. 3 for it.",
        ] {
            assert_eq!(cut(text), [text]);
        }
        assert_eq!(cut("He met Gen. Lee. She left."), ["He met Gen. Lee.", "She left."]);
    }

    #[test]
    fn numbers_of_items_stand_with_them_and_rows_stay_whole() {
        assert_eq!(cut("1. Open the valve. Wait.\n\n2. Close it."), ["1. Open the valve.", "Wait.", "2. Close it."]);
        let row = "Name: Pump A | Note: Check daily. Replace yearly. | Price: 3";
        assert_eq!(cut(row), [row]);
    }

    #[test]
    fn rows_and_items_are_sentences() {
        assert_eq!(
            cut(
                "Parts:\n\n- a wheel\n- a bolt, which\n  is long. It turns.\n\nname: wheel | price: 3.50\nname: bolt | price: 1"
            ),
            [
                "Parts:",
                "a wheel",
                "a bolt, which\n  is long.",
                "It turns.",
                "name: wheel | price: 3.50",
                "name: bolt | price: 1",
            ]
        );
    }

    #[test]
    fn what_has_no_end_is_cut() {
        let long = "word ".repeat(400);
        let parts = cut(&long);
        assert!(
            parts.len() > 3 && parts.iter().all(|part| part.chars().count() <= CHARS_MAX && part.ends_with("word"))
        );
        assert_eq!(cut(&"x".repeat(1300)).len(), 3);
        assert!(cut(" \n\n---\n*").is_empty());
    }

    proptest! {
        #[test]
        fn every_letter_is_in_one_sentence(text in "(\\PC|[a-z .!?|\n-]|- |\\. ){0,300}") {
            let ranges = sentences(&text);
            for pair in ranges.windows(2) {
                prop_assert!(pair[0].end <= pair[1].start);
            }
            let letters = |text: &str| text.chars().filter(|c| c.is_alphanumeric()).count();
            let inside: usize = ranges.iter().map(|range| letters(&text[range.clone()])).sum();
            prop_assert_eq!(inside, letters(&text));
            prop_assert!(ranges.iter().all(|range| text[range.clone()].chars().count() <= CHARS_MAX));
        }
    }
}
