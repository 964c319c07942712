//! Row lookup in a table that may be quantized: the token embedding.

use bytes::Bytes;
use candle_core::{Device, Result, Tensor};

use super::quant::{GgmlType, RawTensor, dequantize};

/// A table `[rows, dim]` that stays in the file's own blocks; only the requested rows are dequantized.
#[derive(Clone, Debug)]
pub struct Embedding {
    dtype: GgmlType,
    data: Bytes,
    rows: usize,
    dim: usize,
    row_bytes: usize,
    device: Device,
}

impl Embedding {
    /// `weight` is `[rows, dim]`. The table stays in host memory on every device, because a step reads only a few of
    /// its rows.
    pub fn new(weight: &RawTensor, device: &Device) -> Result<Self> {
        let &[rows, dim] = weight.shape.as_slice() else {
            candle_core::bail!("an embedding table must be [rows, dim], not {:?}", weight.shape);
        };
        let Some(row_bytes) = weight.dtype.row_bytes(dim) else {
            candle_core::bail!("rows of {dim} elements are not whole {:?} blocks", weight.dtype);
        };
        if dim == 0 || row_bytes.checked_mul(rows) != Some(weight.data.len()) {
            candle_core::bail!(
                "a {:?} table of shape {:?} does not fit its {} bytes: the file is damaged",
                weight.dtype,
                weight.shape,
                weight.data.len()
            );
        }
        Ok(Self { dtype: weight.dtype, data: weight.data.clone(), rows, dim, row_bytes, device: device.clone() })
    }

    /// The rows `ids`, as `[n, dim]` f32.
    pub fn forward(&self, ids: &[u32]) -> Result<Tensor> {
        self.check(ids)?;
        let mut out = vec![0.0; ids.len() * self.dim];
        self.read(ids, &mut out);
        Tensor::from_vec(out, (ids.len(), self.dim), &self.device)
    }

    /// Width of a row.
    pub(super) const fn dim(&self) -> usize {
        self.dim
    }

    /// # Errors
    /// If one of the ids has no row.
    pub(super) fn check(&self, ids: &[u32]) -> Result<()> {
        match ids.iter().find(|&&id| id as usize >= self.rows) {
            Some(id) => candle_core::bail!("token id {id} is outside the vocabulary of {} tokens", self.rows),
            None => Ok(()),
        }
    }

    /// Dequantizes rows that [`Self::check`] has allowed to `out`, `[ids, dim]`.
    pub(super) fn read(&self, ids: &[u32], out: &mut [f32]) {
        for (&id, out) in ids.iter().zip(out.chunks_exact_mut(self.dim)) {
            let at = id as usize * self.row_bytes;
            dequantize(self.dtype, &self.data[at..at + self.row_bytes], out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_rows_asked_for_and_names_an_id_that_is_outside() -> Result<()> {
        let table: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let data = Bytes::from(bytemuck::cast_slice::<f32, u8>(&table).to_vec());
        let table = Embedding::new(&RawTensor { dtype: GgmlType::F32, shape: vec![4, 3], data }, &Device::Cpu)?;
        assert_eq!(table.forward(&[3, 0])?.to_vec2::<f32>()?, [[9.0, 10.0, 11.0], [0.0, 1.0, 2.0]]);
        assert!(table.forward(&[4]).is_err_and(|error| error.to_string().contains("token id 4")));
        Ok(())
    }
}
