//! Tensors of a file, each checked against the shape that the configuration requires.

use hearth_kernels::quant::{self, RawTensor};

use super::error::ModelError;
use crate::gguf::Gguf;

/// Checked access to the tensors of one file.
pub(super) struct Tensors<'a> {
    gguf: &'a Gguf,
}

impl<'a> Tensors<'a> {
    pub(super) fn new(gguf: &'a Gguf) -> Self {
        Self { gguf }
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.gguf.has_tensor(name)
    }

    /// The tensor as stored, of any shape.
    pub(super) fn raw(&self, name: &str) -> Result<RawTensor, ModelError> {
        Ok(self.gguf.tensor(name)?)
    }

    /// The tensor, whose shape must be `shape`, outermost dimension first.
    pub(super) fn shaped(&self, name: &str, shape: &[usize]) -> Result<RawTensor, ModelError> {
        let tensor = self.raw(name)?;
        if tensor.shape == shape {
            Ok(tensor)
        } else {
            Err(ModelError::TensorShape {
                path: self.gguf.metadata().path().to_owned(),
                name: name.to_owned(),
                expected: shape.to_vec(),
                found: tensor.shape,
            })
        }
    }

    /// A vector of `length` floats, of any storage type.
    pub(super) fn floats(&self, name: &str, length: usize) -> Result<Vec<f32>, ModelError> {
        let tensor = self.shaped(name, &[length])?;
        let mut values = vec![0.0; length];
        quant::dequantize(tensor.dtype, &tensor.data, &mut values);
        Ok(values)
    }

    /// A vector that files may omit.
    pub(super) fn optional_floats(&self, name: &str, length: usize) -> Result<Option<Vec<f32>>, ModelError> {
        if self.contains(name) { self.floats(name, length).map(Some) } else { Ok(None) }
    }

    /// Divisors of rotary frequencies, if the file has them: finite and positive.
    pub(super) fn rope_factors(&self, name: &str, length: usize) -> Result<Option<Vec<f32>>, ModelError> {
        let factors = self.optional_floats(name, length)?;
        match factors.iter().flatten().find(|factor| !factor.is_finite() || **factor <= 0.0) {
            None => Ok(factors),
            Some(factor) => Err(ModelError::InvalidConfig {
                path: self.gguf.metadata().path().to_owned(),
                key: name.to_owned(),
                found: factor.to_string(),
                expected: "frequency factors are above 0".to_owned(),
            }),
        }
    }

    /// Wraps a device's error about a tensor.
    pub(super) fn device_error(&self, name: &str, source: candle_core::Error) -> ModelError {
        ModelError::Device {
            path: self.gguf.metadata().path().to_owned(),
            name: name.to_owned(),
            source: Box::new(source),
        }
    }
}

/// Rows `start..start + rows` of a matrix, sharing its bytes; this is how fused projections are split. `None` if the
/// matrix has no such rows.
pub(super) fn rows(matrix: &RawTensor, start: usize, rows: usize) -> Option<RawTensor> {
    let [_, columns] = matrix.shape[..] else { return None };
    let row_bytes = matrix.dtype.row_bytes(columns)?;
    let from = start.checked_mul(row_bytes)?;
    let to = from.checked_add(rows.checked_mul(row_bytes)?)?;
    if to > matrix.data.len() {
        return None;
    }
    Some(RawTensor { dtype: matrix.dtype, shape: vec![rows, columns], data: matrix.data.slice(from..to) })
}
