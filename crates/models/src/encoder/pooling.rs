//! From one vector per token to one vector per text.
//!
//! The modes are those of sentence-transformers' pooling module. Sums run in token order in f32, row by row, so that a
//! text's vector does not depend on the rest of the batch.

use super::EncoderError;

/// How token vectors become a text's vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The first token's vector.
    Cls,
    /// The mean over all tokens, special tokens included.
    Mean,
    /// The sum over all tokens, divided by the square root of their number.
    MeanSqrtLength,
    /// The largest value of each dimension.
    Max,
    /// The last token's vector.
    LastToken,
}

impl Pooling {
    /// The mode with this sentence-transformers name, in its `pooling_mode` spelling.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "cls" => Self::Cls,
            "mean" => Self::Mean,
            "mean_sqrt_len_tokens" => Self::MeanSqrtLength,
            "max" => Self::Max,
            "lasttoken" => Self::LastToken,
            _ => return None,
        })
    }

    /// The mode with this `pooling_type` number in GGUF (llama.cpp's `llama_pooling_type`: 0 none, 1 mean, 2 cls, 3
    /// last, 4 rank).
    pub fn from_gguf(number: u64) -> Result<Self, EncoderError> {
        match number {
            1 => Ok(Self::Mean),
            2 => Ok(Self::Cls),
            3 => Ok(Self::LastToken),
            0 => Err(EncoderError::Config(
                "the GGUF file asks for no pooling (pooling_type 0): it yields one vector per token, not per text"
                    .into(),
            )),
            4 => Err(EncoderError::Config(
                "the GGUF file is a reranker (pooling_type 4), which scores pairs of texts and yields no vectors"
                    .into(),
            )),
            other => Err(EncoderError::Config(format!("the GGUF file's pooling_type {other} is unknown"))),
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cls => "cls",
            Self::Mean => "mean",
            Self::MeanSqrtLength => "mean_sqrt_len_tokens",
            Self::Max => "max",
            Self::LastToken => "lasttoken",
        }
    }

    /// `hidden` is `[tokens, dim]` of one text with at least one token; the result is `[dim]`.
    pub fn pool(self, hidden: &[f32], dim: usize) -> Vec<f32> {
        let mut rows = hidden.chunks_exact(dim);
        let num_tokens = rows.len() as f32;
        match self {
            Self::Cls => rows.next().map(<[f32]>::to_vec).unwrap_or_default(),
            Self::LastToken => rows.next_back().map(<[f32]>::to_vec).unwrap_or_default(),
            Self::Mean => sum_divided(rows, dim, num_tokens),
            Self::MeanSqrtLength => sum_divided(rows, dim, num_tokens.sqrt()),
            Self::Max => {
                let mut pooled = vec![f32::NEG_INFINITY; dim];
                for row in rows {
                    for (largest, value) in pooled.iter_mut().zip(row) {
                        *largest = largest.max(*value);
                    }
                }
                pooled
            }
        }
    }
}

fn sum_divided<'a>(rows: impl Iterator<Item = &'a [f32]>, dim: usize, divisor: f32) -> Vec<f32> {
    let mut pooled = vec![0.0; dim];
    for row in rows {
        for (sum, value) in pooled.iter_mut().zip(row) {
            *sum += value;
        }
    }
    for sum in &mut pooled {
        *sum /= divisor;
    }
    pooled
}

/// Divides by the L2 norm, which is accumulated in f64. A zero vector stays zero.
pub fn normalize(vector: &mut [f32]) {
    let norm = vector.iter().map(|&value| f64::from(value) * f64::from(value)).sum::<f64>().sqrt();
    // The same floor as in torch.nn.functional.normalize.
    let scale = 1.0 / norm.max(1e-12);
    for value in vector {
        *value = (f64::from(*value) * scale) as f32;
    }
}

/// Keeps the first `dimensions` components and renormalizes (Matryoshka representations, arXiv 2205.13147).
pub fn truncate_dimensions(vector: &mut Vec<f32>, dimensions: usize) {
    if dimensions < vector.len() {
        vector.truncate(dimensions);
        normalize(vector);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HIDDEN: [f32; 6] = [1.0, -2.0, 3.0, 4.0, 5.0, -6.0];

    #[test]
    fn each_mode_on_three_tokens() {
        let pooled = |mode: Pooling| mode.pool(&HIDDEN, 2);
        assert_eq!(pooled(Pooling::Cls), [1.0, -2.0]);
        assert_eq!(pooled(Pooling::LastToken), [5.0, -6.0]);
        assert_eq!(pooled(Pooling::Mean), [3.0, -4.0 / 3.0]);
        assert_eq!(pooled(Pooling::Max), [5.0, 4.0]);
        assert_eq!(pooled(Pooling::MeanSqrtLength), [9.0 / 3f32.sqrt(), -4.0 / 3f32.sqrt()]);
    }

    #[test]
    fn rerankers_and_unpooled_files_are_refused_with_a_reason() {
        assert!(Pooling::from_gguf(4).expect_err("no vectors").to_string().contains("reranker"));
        assert!(Pooling::from_gguf(0).expect_err("no vectors").to_string().contains("one vector per token"));
        assert_eq!(Pooling::from_gguf(2).ok(), Some(Pooling::Cls));
    }

    #[test]
    fn the_zero_vector_stays_finite() {
        let mut vector = vec![0.0; 4];
        normalize(&mut vector);
        assert_eq!(vector, [0.0; 4]);
    }

    proptest! {
        #[test]
        fn truncated_vectors_have_length_one(vector in prop::collection::vec(0.01f32..10.0, 8..64), keep in 1usize..8) {
            let mut truncated = vector.clone();
            truncate_dimensions(&mut truncated, keep);
            prop_assert_eq!(truncated.len(), keep);
            let norm = truncated.iter().map(|value| value * value).sum::<f32>().sqrt();
            prop_assert!((norm - 1.0).abs() < 1e-5);
            // the direction is that of the leading part
            let ratio = truncated[0] / vector[0];
            for (short, long) in truncated.iter().zip(&vector) {
                prop_assert!((short - long * ratio).abs() < 1e-5);
            }
        }
    }
}
