//! Merges consecutive chunks of a document into one passage.
//!
//! Chunks overlap, so that a sentence at a border is whole in one of them; a passage contains the overlap once.

use std::collections::BTreeMap;

use hearth_domain::documents::{AttributeValue, Chunk};

/// A found piece of a document, one chunk or several in a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Passage {
    pub collection_id: String,
    pub file_id: String,
    pub filename: String,
    pub heading: String,
    pub text: String,
    /// Positions of its first and last chunk in the document.
    pub chunks: (usize, usize),
    /// Page, sheet or line where it begins.
    pub place: Option<u32>,
    /// Cosine of the best of its chunks and the query, 0 to 1.
    pub similarity: f32,
    /// How well it answers the query, 0 to 1, if a rerank model was asked.
    pub rerank_score: Option<f32>,
    pub attributes: BTreeMap<String, AttributeValue>,
}

impl Passage {
    /// The reader's hint at its origin: the headings above it, or the file's name.
    pub fn title(&self) -> &str {
        if self.heading.is_empty() { &self.filename } else { &self.heading }
    }
}

/// Longest overlap of two chunks that is searched for, in bytes: chunkers share a few sentences at most.
const OVERLAP_MAX: usize = 4096;

/// Merges chunks and their similarities, best first, into passages; a passage ranks where its best chunk ranked.
pub(super) fn merge(found: Vec<(Chunk, f32)>) -> Vec<Passage> {
    let mut passages: Vec<Passage> = Vec::new();
    for (chunk, similarity) in found {
        let neighbour = passages.iter_mut().find(|passage| {
            let (first, last) = passage.chunks;
            passage.collection_id == chunk.collection_id
                && passage.file_id == chunk.file_id
                && (chunk.position + 1 == first || chunk.position == last + 1)
                // A passage under another heading has another subject.
                && passage.heading == chunk.heading
        });
        match neighbour {
            Some(passage) if chunk.position > passage.chunks.1 => {
                passage.text = joined(&passage.text, &chunk.text);
                passage.chunks.1 = chunk.position;
                passage.similarity = passage.similarity.max(similarity);
            }
            Some(passage) => {
                passage.text = joined(&chunk.text, &passage.text);
                passage.chunks.0 = chunk.position;
                passage.place = chunk.place;
                passage.similarity = passage.similarity.max(similarity);
            }
            None => passages.push(Passage {
                collection_id: chunk.collection_id,
                file_id: chunk.file_id,
                filename: chunk.filename,
                heading: chunk.heading,
                text: chunk.text,
                chunks: (chunk.position, chunk.position),
                place: chunk.place,
                similarity,
                rerank_score: None,
                attributes: chunk.attributes,
            }),
        }
    }
    passages
}

/// Both texts joined, with their overlap once.
fn joined(first: &str, second: &str) -> String {
    let longest = first.len().min(second.len()).min(OVERLAP_MAX);
    let overlap = (1..=longest)
        .rev()
        .find(|&length| second.is_char_boundary(length) && first.ends_with(&second[..length]))
        // A few common letters are chance.
        .filter(|&length| length > 8);
    match overlap {
        Some(length) => format!("{first}{}", &second[length..]),
        None => format!("{first}\n{second}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(file: &str, position: usize, text: &str) -> Chunk {
        Chunk {
            id: position as u64,
            collection_id: "c".into(),
            file_id: file.into(),
            filename: format!("{file}.md"),
            position,
            text: text.into(),
            heading: "Setup".into(),
            place: Some(position as u32),
            tokens: 1,
            attributes: BTreeMap::new(),
        }
    }

    #[test]
    fn neighbours_become_one_passage_in_the_order_of_the_document() {
        let found = vec![
            (chunk("a", 4, "Start the server. It listens on a port."), 0.9),
            (chunk("b", 5, "Elsewhere."), 0.8),
            (chunk("a", 5, "It listens on a port. Stop it with a signal."), 0.7),
            (chunk("a", 3, "Install it first."), 0.95),
            (chunk("a", 9, "Far away."), 0.5),
        ];
        let passages = merge(found);
        let texts: Vec<_> = passages.iter().map(|passage| (&passage.file_id[..], &passage.text[..])).collect();
        assert_eq!(
            texts,
            [
                ("a", "Install it first.\nStart the server. It listens on a port. Stop it with a signal."),
                ("b", "Elsewhere."),
                ("a", "Far away."),
            ]
        );
        assert_eq!((passages[0].chunks, passages[0].similarity, passages[0].place), ((3, 5), 0.95, Some(3)));
    }

    #[test]
    fn another_heading_is_another_passage() {
        let mut second = chunk("a", 1, "two");
        second.heading = "Elsewhere".into();
        assert_eq!(merge(vec![(chunk("a", 0, "one"), 0.5), (second, 0.4)]).len(), 2);
    }

    #[test]
    fn an_overlap_is_cut_at_characters() {
        assert_eq!(joined("so läuft es für uns", "es für uns alle"), "so läuft es für uns alle");
        assert_eq!(joined("ab", "bc"), "ab\nbc");
        assert_eq!(joined("ü", "ü"), "ü\nü");
    }
}
