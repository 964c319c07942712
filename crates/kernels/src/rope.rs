//! Rotary position embedding.
//!
//! Every scaling variant is contained in the inverse frequencies and the attention factor that the model passes in, so
//! this file knows only angles. Cosines and sines are computed for the positions of one step and kept until the
//! positions change: all layers of a step share them, and no table for the whole context is kept.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Device, Result, Tensor};

/// Angles per position: `[positions, rotary_dim / 2]`, computed on demand.
#[derive(Debug)]
pub struct RopeTable {
    inverse_frequencies: Vec<f32>,
    attention_factor: f32,
    max_positions: usize,
    device: Device,
    latest: Mutex<Option<Arc<Angles>>>,
}

/// Cosines and sines of the positions of one step, each `[positions, rotary_dim / 2]`.
#[derive(Debug)]
pub(super) struct Angles {
    positions: Vec<u32>,
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl RopeTable {
    /// `inverse_frequencies` has `rotary_dim / 2` elements with scaling already applied; cosines and sines are
    /// multiplied by `attention_factor`. Positions of `max_positions` or more are refused.
    pub fn new(
        inverse_frequencies: &[f32],
        attention_factor: f32,
        max_positions: usize,
        device: &Device,
    ) -> Result<Self> {
        Ok(Self {
            inverse_frequencies: inverse_frequencies.to_vec(),
            attention_factor,
            max_positions,
            device: device.clone(),
            latest: Mutex::new(None),
        })
    }

    /// # Errors
    /// If there are not as many positions as rows, or a head has fewer elements than are rotated.
    pub(super) fn check(&self, (positions, rows): (usize, usize), head_dim: usize) -> Result<()> {
        let rotated = 2 * self.inverse_frequencies.len();
        if positions != rows || rotated > head_dim {
            candle_core::bail!(
                "rope of {positions} positions and {rotated} rotated elements does not fit {rows} rows of heads of {head_dim}"
            );
        }
        Ok(())
    }

    /// # Errors
    /// If a position is beyond the table.
    pub(super) fn angles(&self, positions: &[u32]) -> Result<Arc<Angles>> {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(angles) = latest.as_ref()
            && angles.positions == positions
        {
            return Ok(Arc::clone(angles));
        }
        if let Some(position) = positions.iter().find(|&&position| position as usize >= self.max_positions) {
            candle_core::bail!("position {position} is outside the context of {} tokens", self.max_positions);
        }
        let half = self.inverse_frequencies.len();
        let mut cosines = Vec::with_capacity(positions.len() * half);
        let mut sines = Vec::with_capacity(positions.len() * half);
        for &position in positions {
            for frequency in &self.inverse_frequencies {
                // The product is rounded to f32, as in transformers; its sine is then exact to the last bit or two.
                let (sine, cosine) = (position as f32 * frequency).sin_cos();
                cosines.push(cosine * self.attention_factor);
                sines.push(sine * self.attention_factor);
            }
        }
        let angles = Arc::new(Angles { positions: positions.to_vec(), cosines, sines });
        *latest = Some(Arc::clone(&angles));
        Ok(angles)
    }
}

impl Angles {
    /// Rotates rows of `columns` floats, the first of which is row `first` of the positions.
    pub(super) fn rotate(&self, rows: &mut [f32], first: usize, columns: usize, head_dim: usize, layout: RopeLayout) {
        let half = self.cosines.len() / self.positions.len().max(1);
        for (row, floats) in rows.chunks_exact_mut(columns).enumerate() {
            let at = (first + row) * half..(first + row + 1) * half;
            let (cosines, sines) = (&self.cosines[at.clone()], &self.sines[at]);
            for head in floats.chunks_exact_mut(head_dim) {
                rotate(&mut head[..2 * half], cosines, sines, layout);
            }
        }
    }
}

/// Which elements form a rotated pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeLayout {
    /// `(0, 1), (2, 3), ...`: what GGUF files of the llama architecture use ("norm").
    Interleaved,
    /// `(0, half), (1, half + 1), ...` ("neox").
    Halves,
}

/// Rotates the first `rotary_dim` elements of every head of `x` `[t, heads, head_dim]`; the rest passes through. By candle's
/// operations.
pub fn rope(x: &Tensor, positions: &[u32], table: &RopeTable, layout: RopeLayout) -> Result<Tensor> {
    let (t, heads, head_dim) = x.dims3()?;
    table.check((positions.len(), t), head_dim)?;
    let angles = table.angles(positions)?;
    let half = table.inverse_frequencies.len();
    let cosines = Tensor::from_slice(&angles.cosines, (t, 1, half), &table.device)?;
    let sines = Tensor::from_slice(&angles.sines, (t, 1, half), &table.device)?;
    let rotary = x.narrow(2, 0, 2 * half)?;
    let (a, b) = match layout {
        RopeLayout::Halves => (rotary.narrow(2, 0, half)?, rotary.narrow(2, half, half)?),
        RopeLayout::Interleaved => {
            let pairs = rotary.contiguous()?.reshape((t, heads, half, 2))?;
            (pairs.narrow(3, 0, 1)?.squeeze(3)?, pairs.narrow(3, 1, 1)?.squeeze(3)?)
        }
    };
    let first = (a.broadcast_mul(&cosines)? - b.broadcast_mul(&sines)?)?;
    let second = (a.broadcast_mul(&sines)? + b.broadcast_mul(&cosines)?)?;
    let rotated = match layout {
        RopeLayout::Halves => Tensor::cat(&[first, second], 2)?,
        RopeLayout::Interleaved => Tensor::stack(&[first, second], 3)?.reshape((t, heads, 2 * half))?,
    };
    if 2 * half == head_dim {
        return Ok(rotated);
    }
    Tensor::cat(&[rotated, x.narrow(2, 2 * half, head_dim - 2 * half)?], 2)
}

fn rotate(head: &mut [f32], cosines: &[f32], sines: &[f32], layout: RopeLayout) {
    match layout {
        RopeLayout::Interleaved => {
            for ((pair, c), s) in head.chunks_exact_mut(2).zip(cosines).zip(sines) {
                let (a, b) = (pair[0], pair[1]);
                pair[0] = a * c - b * s;
                pair[1] = a * s + b * c;
            }
        }
        RopeLayout::Halves => {
            let (first, second) = head.split_at_mut(cosines.len());
            for (((a, b), c), s) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
                (*a, *b) = (*a * c - *b * s, *a * s + *b * c);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_layouts_rotate_the_same_pairs_differently_placed() -> Result<()> {
        let table = RopeTable::new(&[1.0, 0.25], 1.0, 64, &Device::Cpu)?;
        let interleaved = Tensor::new(&[[[1.0f32, 2.0, 3.0, 4.0, 9.0]]], &Device::Cpu)?;
        let halves = Tensor::new(&[[[1.0f32, 3.0, 2.0, 4.0, 9.0]]], &Device::Cpu)?;
        let a = rope(&interleaved, &[5], &table, RopeLayout::Interleaved)?.to_vec3::<f32>()?[0][0].clone();
        let b = rope(&halves, &[5], &table, RopeLayout::Halves)?.to_vec3::<f32>()?[0][0].clone();
        assert_eq!(a, [b[0], b[2], b[1], b[3], b[4]]);
        assert!((a[0] - (5f32.cos() - 2.0 * 5f32.sin())).abs() < 1e-6);
        assert!((a[3] - (3.0 * 1.25f32.sin() + 4.0 * 1.25f32.cos())).abs() < 1e-6);
        assert_eq!(a[4], 9.0);
        assert!(rope(&halves, &[64], &table, RopeLayout::Halves).is_err());
        Ok(())
    }

    #[test]
    fn own_and_tensor_operations_agree() -> Result<()> {
        let table = RopeTable::new(&[1.0, 0.5, 0.1], 1.2, 64, &Device::Cpu)?;
        let floats: Vec<f32> = (0..48).map(|i| i as f32).collect();
        let x = Tensor::from_slice(&floats, (3, 2, 8), &Device::Cpu)?;
        for layout in [RopeLayout::Halves, RopeLayout::Interleaved] {
            let mut own = floats.clone();
            table.angles(&[3, 4, 9])?.rotate(&mut own, 0, 16, 8, layout);
            let tensor = rope(&x, &[3, 4, 9], &table, layout)?.flatten_all()?.to_vec1::<f32>()?;
            for (own, tensor) in own.iter().zip(&tensor) {
                assert!((own - tensor).abs() < 1e-5, "{layout:?}: {own} and {tensor}");
            }
        }
        Ok(())
    }
}
