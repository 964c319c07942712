//! Whether two sides serve the same embedding model: vectors of two models must not be compared, and only the vectors
//! themselves tell.
//!
//! Both sides embed one text, and the vectors must have the same length and direction.

use hearth_domain::EmbedInputType;

/// What both sides embed: words, numbers, punctuation and other scripts, so that a different tokenizer, casing or
/// pooling shows.
pub(super) const PROBE: &str =
    "The Quick brown fox read 1,984 pages; naïve café-goers (all 42 %) wrote \"東京 – Zürich\" back: why not?";
/// Vectors of one model on two machines differ only in their last bits; another precision or quantization of the same
/// weights exceeds this tolerance.
const LEAST_COSINE: f64 = 0.999;

/// Input types differ in what is put before a text, and are compared one by one.
pub(super) const INPUT_TYPES: [EmbedInputType; 3] =
    [EmbedInputType::Plain, EmbedInputType::Query, EmbedInputType::Passage];

/// The position of an input type in [`INPUT_TYPES`].
pub(super) fn position_of(input_type: EmbedInputType) -> usize {
    INPUT_TYPES.iter().position(|known| *known == input_type).unwrap_or_default()
}

/// The result of a comparison.
#[derive(Clone, Debug)]
pub(super) enum Verdict {
    Same,
    /// And how it shows.
    Other(String),
}

/// Compares the two sides' vectors of the probe.
pub(super) fn compare(ours: &[f32], theirs: &[f32]) -> Verdict {
    if ours.len() != theirs.len() {
        return Verdict::Other(format!("its vectors have {} dimensions, ours {}", theirs.len(), ours.len()));
    }
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let (our_length, their_length) = (dot(ours, ours).sqrt(), dot(theirs, theirs).sqrt());
    let cosine = dot(ours, theirs) / (our_length * their_length);
    if cosine.is_nan() || cosine < LEAST_COSINE {
        return Verdict::Other(format!("the cosine of a text's two vectors is {cosine:.4}, below {LEAST_COSINE}"));
    }
    let ratio = their_length / our_length;
    if !(0.99..=1.01).contains(&ratio) {
        return Verdict::Other(format!("its vectors are {ratio:.2} times as long as ours: one side normalizes them"));
    }
    Verdict::Same
}
