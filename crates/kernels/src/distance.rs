//! Similarity of one vector to many, for the vector index.
//!
//! Vectors have unit length, so the dot product is the cosine. A [`Codes`] stores them in one byte per dimension, a
//! quarter of the memory traffic of floats: accurate enough to find candidates, which are then ranked by their floats.

use super::cpu::{
    distance::{BYTES, DotBytes, DotFloats, FLOATS, Rows},
    lanes::dispatch,
};

/// Floats per stored vector: `dim` rounded up to whole registers; the floats beyond `dim` are zero.
pub fn padded_floats(dim: usize) -> usize {
    dim.next_multiple_of(FLOATS)
}

/// `out[i]` = `query` · row `rows[i]` of `matrix`, which is `[n, query.len()]`.
///
/// # Panics
/// If the vectors are not padded (see [`padded_floats`]) or a row is outside the matrix.
pub fn dot_listed(query: &[f32], matrix: &[f32], rows: &[u32], out: &mut [f32]) {
    dispatch(DotFloats { query, matrix, rows: Rows::Listed(rows), out });
}

/// `out[i]` = `query` · row `first + i` of `matrix`.
///
/// # Panics
/// As [`dot_listed`].
pub fn dot_range(query: &[f32], matrix: &[f32], first: usize, out: &mut [f32]) {
    dispatch(DotFloats { query, matrix, rows: Rows::From(first), out });
}

/// Bytes per vector code: its dimensions rounded up to whole registers.
pub fn padded_bytes(dim: usize) -> usize {
    dim.next_multiple_of(BYTES)
}

/// Encodes a vector in one byte per dimension and returns its scale.
///
/// A component `x` is stored as `round(x / scale) + 128` with `scale = max |x| / 127`. Products are of one unsigned and
/// one signed byte, for which processors have an instruction; the offset of 128 is removed again as `128 * sum(query)`.
///
/// # Panics
/// If the code is shorter than the vector.
pub fn encode(vector: &[f32], code: &mut [u8]) -> f32 {
    let scale = byte_scale(vector);
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let (used, rest) = code.split_at_mut(vector.len());
    for (byte, x) in used.iter_mut().zip(vector) {
        // From -127..=127, shifted to 1..=255.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in the range of a byte")]
        let value = ((x * inverse).round() + 128.0) as u8;
        *byte = value;
    }
    // The query is zero here, so any byte would do.
    rest.fill(128);
    scale
}

/// Vectors as written by [`encode`].
#[derive(Clone, Copy, Debug)]
pub struct Codes<'a> {
    /// Bytes per row; see [`padded_bytes`].
    pub stride: usize,
    /// `[n, stride]`
    pub bytes: &'a [u8],
    /// `[n]`
    pub scales: &'a [f32],
}

/// A query against [`Codes`].
#[derive(Clone, Debug)]
pub struct ByteQuery {
    bytes: Vec<i8>,
    scale: f32,
    /// What the offset of the stored bytes contributes to every product.
    excess: f32,
}

impl ByteQuery {
    /// For codes of `stride` bytes.
    pub fn new(vector: &[f32], stride: usize) -> Self {
        let scale = byte_scale(vector);
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        #[expect(clippy::cast_possible_truncation, reason = "between -127 and 127")]
        let mut bytes: Vec<i8> = vector.iter().map(|x| (x * inverse).round() as i8).collect();
        bytes.resize(stride, 0);
        let sum: i32 = bytes.iter().map(|&byte| i32::from(byte)).sum();
        Self { bytes, scale, excess: 128.0 * sum as f32 }
    }
}

impl Codes<'_> {
    /// Approximate dot products of the query and the listed rows.
    ///
    /// # Panics
    /// If a row does not exist.
    pub fn dot_listed(&self, query: &ByteQuery, rows: &[u32], out: &mut [f32]) {
        dispatch(DotBytes { query: &query.bytes, matrix: self.bytes, rows: Rows::Listed(rows), out });
        for (out, &row) in out.iter_mut().zip(rows) {
            *out = (*out - query.excess) * query.scale * self.scales[row as usize];
        }
    }
}

fn byte_scale(vector: &[f32]) -> f32 {
    vector.iter().fold(0.0_f32, |largest, x| largest.max(x.abs())) / 127.0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cpu::{features::InstructionSet, lanes::dispatch_to};

    fn reference(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    }

    /// Padded unit vectors of `dim` components.
    fn unit_vectors(count: usize, dim: usize, seed: u64) -> Vec<f32> {
        use rand::{Rng, SeedableRng};
        let mut random = rand::rngs::StdRng::seed_from_u64(seed);
        let padded = padded_floats(dim);
        let mut matrix = Vec::with_capacity(count * padded);
        for _ in 0..count {
            let mut vector: Vec<f32> = (0..dim).map(|_| random.random_range(-1.0..1.0)).collect();
            let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
            vector.iter_mut().for_each(|x| *x /= length);
            vector.resize(padded, 0.0);
            matrix.extend(vector);
        }
        matrix
    }

    /// The codes of a matrix's rows, and their scales.
    fn coded(matrix: &[f32], padded: usize) -> (usize, Vec<u8>, Vec<f32>) {
        let stride = padded_bytes(padded);
        let mut bytes = vec![0; matrix.len() / padded * stride];
        let scales = matrix.chunks(padded).zip(bytes.chunks_mut(stride)).map(|(v, code)| encode(v, code)).collect();
        (stride, bytes, scales)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn every_instruction_set_agrees_with_the_plain_sum(dim in 1_usize..300, count in 1_usize..20, seed: u64) {
            let padded = padded_floats(dim);
            let matrix = unit_vectors(count, dim, seed);
            let query = &unit_vectors(1, dim, seed ^ 1)[..];
            let rows: Vec<u32> = (0..count as u32).rev().collect();
            for set in InstructionSet::supported() {
                let mut listed = vec![0.0; count];
                dispatch_to(set, DotFloats { query, matrix: &matrix, rows: Rows::Listed(&rows), out: &mut listed });
                let mut range = vec![0.0; count];
                dispatch_to(set, DotFloats { query, matrix: &matrix, rows: Rows::From(0), out: &mut range });
                for (row, value) in range.iter().enumerate() {
                    let expected = reference(query, &matrix[row * padded..][..padded]);
                    prop_assert!((f64::from(*value) - expected).abs() < 1e-5, "{set:?} {value} {expected}");
                    prop_assert_eq!(*value, listed[count - 1 - row]);
                }
            }
        }

        #[test]
        fn bytes_are_summed_exactly(dim in 1_usize..300, count in 1_usize..20, seed: u64) {
            let padded = padded_floats(dim);
            let (stride, bytes, _) = coded(&unit_vectors(count, dim, seed), padded);
            let query = ByteQuery::new(&unit_vectors(1, dim, seed ^ 1), stride);
            let rows: Vec<u32> = (0..count as u32).collect();
            for set in InstructionSet::supported() {
                let mut out = vec![0.0; count];
                let kernel =
                    DotBytes { query: &query.bytes, matrix: &bytes, rows: Rows::Listed(&rows), out: &mut out };
                dispatch_to(set, kernel);
                for (row, value) in out.iter().enumerate() {
                    let expected: i32 =
                        bytes[row * stride..][..stride].iter().zip(&query.bytes).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum();
                    prop_assert_eq!(*value, expected as f32, "{:?}", set);
                }
            }
        }

        #[test]
        fn codes_are_near_the_vectors(dim in 8_usize..400, seed: u64) {
            let padded = padded_floats(dim);
            let matrix = unit_vectors(8, dim, seed);
            let (stride, bytes, scales) = coded(&matrix, padded);
            let codes = Codes { stride, bytes: &bytes, scales: &scales };
            let query = unit_vectors(1, dim, seed ^ 1);
            let mut out = [0.0; 8];
            codes.dot_listed(&ByteQuery::new(&query, stride), &[0, 1, 2, 3, 4, 5, 6, 7], &mut out);
            for (row, value) in out.iter().enumerate() {
                let expected = reference(&query, &matrix[row * padded..][..padded]);
                prop_assert!((f64::from(*value) - expected).abs() < 0.02, "{value} {expected}");
            }
        }
    }

    #[test]
    fn nothing_is_near_a_vector_of_zeros() {
        let (stride, bytes, scales) = coded(&[0.0; 16], 16);
        let mut out = [1.0];
        let codes = Codes { stride, bytes: &bytes, scales: &scales };
        codes.dot_listed(&ByteQuery::new(&[1.0; 16], stride), &[0], &mut out);
        assert_eq!(out, [0.0]);
    }

    #[test]
    #[should_panic(expected = "beyond the matrix")]
    fn a_row_that_is_not_there_is_refused() {
        dot_listed(&[0.0; 16], &[0.0; 32], &[2], &mut [0.0]);
    }
}
