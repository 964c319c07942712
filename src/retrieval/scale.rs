//! The scale of an embedding model's cosines: models differ in the cosine of unrelated texts, from 0.04
//! (all-MiniLM-L6-v2) to 0.7 and more (the E5 family).
//!
//! The thresholds from which a sentence answers a question were chosen with one model. Eight questions and their
//! answers carry them over to another one: the mean cosine of each question with its own answer, and with the answers
//! to the others, are mapped to the first model's.

/// Questions and sentences that answer them, on as many subjects.
pub(super) const PAIRS: [(&str, &str); 8] = [
    ("How tall is the tower?", "The tower is 320 metres tall and was finished in 1889."),
    ("When may tenants keep a dog?", "Tenants may keep a dog if the landlord agrees in writing."),
    ("Which bolt holds the pump's cover?", "The cover of the pump is held by four M8 bolts."),
    ("How are passwords stored?", "Passwords are stored as salted hashes, never as text."),
    ("What did the minister promise the farmers?", "The minister promised the farmers lower taxes on fuel."),
    ("How long does the soup have to simmer?", "Let the soup simmer for forty minutes over a low flame."),
    (
        "Why do leaves turn yellow in autumn?",
        "Leaves turn yellow in autumn because the tree takes back their chlorophyll.",
    ),
    ("Who pays for a cancelled flight?", "The airline refunds a cancelled flight within seven days."),
];

/// Mean cosines of the pairs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scale {
    related: f32,
    unrelated: f32,
}

impl Scale {
    /// Of all-MiniLM-L6-v2, with which the constants were chosen.
    pub const REFERENCE: Self = Self { related: 0.726, unrelated: 0.039 };
    /// A model that separates them by less than this tells nothing, and its cosines are left unchanged.
    const APART_MIN: f32 = 0.05;

    /// Measured from a model's vectors of the questions and of the answers, in the order of [`PAIRS`].
    pub fn of(questions: &[Vec<f32>], answers: &[Vec<f32>]) -> Self {
        let (mut related, mut unrelated) = (Vec::new(), Vec::new());
        for (row, question) in questions.iter().enumerate() {
            for (column, answer) in answers.iter().enumerate() {
                let of = if row == column { &mut related } else { &mut unrelated };
                of.push(cosine(question, answer));
            }
        }
        let mean = |values: &[f32]| values.iter().sum::<f32>() / values.len().max(1) as f32;
        let scale = Self { related: mean(&related), unrelated: mean(&unrelated) };
        if scale.related - scale.unrelated < Self::APART_MIN { Self::REFERENCE } else { scale }
    }

    /// The approximate cosine under the reference model; 0 to 1.
    pub fn to_reference(self, cosine: f32) -> f32 {
        let Self { related, unrelated } = Self::REFERENCE;
        let share = (cosine - self.unrelated) / (self.related - self.unrelated);
        (unrelated + share * (related - unrelated)).clamp(0.0, 1.0)
    }
}

/// -1 to 1; 0 if either vector is zero.
pub(super) fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 { dot(a, b) / lengths } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_whose_cosines_are_all_high_is_put_on_the_references_scale() {
        // Separate directions, and one that all share.
        let vector = |own: usize, share: f32| {
            let mut vector = vec![0.0; 9];
            vector[own] = 1.0;
            vector[8] = share;
            vector
        };
        let vectors: Vec<_> = (0..8).map(|own| vector(own, 2.0)).collect();
        let scale = Scale::of(&vectors, &vectors);
        assert!((scale.unrelated - 0.8).abs() < 1e-5 && (scale.related - 1.0).abs() < 1e-5, "{scale:?}");
        assert!((scale.to_reference(1.0) - Scale::REFERENCE.related).abs() < 1e-5);
        assert!((scale.to_reference(0.8) - Scale::REFERENCE.unrelated).abs() < 1e-5);
        assert!(scale.to_reference(0.5) < 1e-5);
    }

    #[test]
    fn the_reference_and_a_model_that_tells_nothing_change_nothing() {
        let same = vec![vec![1.0, 0.0]; 8];
        assert_eq!(Scale::of(&same, &same), Scale::REFERENCE);
        assert!((Scale::REFERENCE.to_reference(0.55) - 0.55).abs() < 1e-5);
    }
}
