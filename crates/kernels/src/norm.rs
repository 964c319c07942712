//! Normalization over the last dimension.

use candle_core::{Device, Result, Tensor};

use super::{
    cpu::{
        lanes::{Kernel, LANES, Lanes, dispatch},
        quantize::Shared,
    },
    from_floats, pool, with_floats,
};

/// `x / sqrt(mean(x^2) + eps) * weight`
#[derive(Clone, Debug)]
pub struct RmsNorm {
    weight: Vec<f32>,
    eps: f32,
    /// The weight where tensors need it.
    tensor: Tensor,
}

impl RmsNorm {
    /// With one weight per column.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub fn new(weight: Vec<f32>, eps: f32, device: &Device) -> Result<Self> {
        let tensor = Tensor::from_slice(&weight, weight.len(), device)?;
        Ok(Self { weight, eps, tensor })
    }

    /// Columns that are normalized together.
    pub fn width(&self) -> usize {
        self.weight.len()
    }

    /// Over the last dimension of `x` `[.., width]`, by candle's operations.
    ///
    /// # Errors
    /// If the dimension differs, or the device fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        candle_nn::ops::rms_norm(&x.contiguous()?, &self.tensor, self.eps)
    }

    /// Rows of `width` floats, one after the other.
    pub(super) fn apply(&self, x: &[f32], out: &mut [f32]) {
        let width = self.width().max(1);
        for (row, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            dispatch(RmsRow { row, weight: &self.weight, eps: self.eps, out });
        }
    }
}

/// `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`, over the last dimension of `x` `[.., dim]`.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return candle_nn::ops::layer_norm(&x.contiguous()?, weight, bias, eps);
    }
    with_floats(bias, |bias| {
        if bias.len() != weight.elem_count() {
            candle_core::bail!("the norm has {} weights and {} biases", weight.elem_count(), bias.len());
        }
        by_rows(x, weight, |row, weight, out| dispatch(LayerNorm { row, weight, bias, eps, out }))
    })
}

struct RmsRow<'a> {
    row: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for RmsRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Self { row, weight, eps, out } = self;
        let squares = sum(lanes, row, 0.0, |x, total| lanes.fma(x, x, total));
        let scale = 1.0 / (squares / row.len() as f32 + eps).sqrt();
        for ((out, x), w) in out.iter_mut().zip(row).zip(weight) {
            *out = x * scale * w;
        }
    }
}

struct LayerNorm<'a> {
    row: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for LayerNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Self { row, weight, bias, eps, out } = self;
        let mean = sum(lanes, row, 0.0, |x, total| lanes.add(x, total)) / row.len() as f32;
        let squares = sum(lanes, row, mean, |x, total| {
            let from_mean = lanes.sub(x, lanes.splat_f(mean));
            lanes.fma(from_mean, from_mean, total)
        });
        let scale = 1.0 / (squares / row.len() as f32 + eps).sqrt();
        for (((out, x), w), b) in out.iter_mut().zip(row).zip(weight).zip(bias) {
            *out = (x - mean) * scale * w + b;
        }
    }
}

/// Adds up a row in sixteen lanes. The last vector is filled up with `filler`, which must add nothing.
#[inline(always)]
fn sum<L: Lanes>(lanes: L, row: &[f32], filler: f32, add: impl Fn(L::F, L::F) -> L::F) -> f32 {
    let mut total = lanes.splat_f(0.0);
    let vectors = row.chunks_exact(LANES);
    let rest = vectors.remainder();
    for vector in vectors {
        // SAFETY: the vector has sixteen floats.
        total = add(unsafe { lanes.load_f(vector.as_ptr()) }, total);
    }
    if !rest.is_empty() {
        let mut padded = [filler; LANES];
        padded[..rest.len()].copy_from_slice(rest);
        // SAFETY: the array has sixteen floats.
        total = add(unsafe { lanes.load_f(padded.as_ptr()) }, total);
    }
    lanes.total(total)
}

/// Elements above which rows are worth a parallel region.
const PARALLEL_ELEMENTS: usize = 1 << 15;

fn by_rows(x: &Tensor, weight: &Tensor, row: impl Fn(&[f32], &[f32], &mut [f32]) + Sync) -> Result<Tensor> {
    with_floats(weight, |weight| {
        with_floats(x, |floats| {
            let dim = weight.len();
            if x.dims().last() != Some(&dim) {
                candle_core::bail!("the norm has {dim} weights, the input is {:?}", x.shape());
            }
            let mut out = vec![0.0; floats.len()];
            let rows = floats.len() / dim;
            let chunks = if floats.len() < PARALLEL_ELEMENTS { 1 } else { (4 * pool::threads()).min(rows) };
            let shared = Shared::new(&mut out);
            pool::run(chunks, |chunk| {
                let range = rows * chunk / chunks * dim..rows * (chunk + 1) / chunks * dim;
                // SAFETY: the chunks' rows are disjoint.
                let out = unsafe { shared.part(range.start, range.len()) };
                for (x, out) in floats[range].chunks_exact(dim).zip(out.chunks_exact_mut(dim)) {
                    row(x, weight, out);
                }
            })?;
            from_floats(out, x.shape())
        })
    })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn both_norms_follow_their_formulas() -> Result<()> {
        let x = Tensor::new(&[[3.0f32, -4.0], [1.0, 2.0]], &Device::Cpu)?;
        let weight = Tensor::new(&[2.0f32, 0.5], &Device::Cpu)?;
        let bias = Tensor::new(&[1.0f32, -1.0], &Device::Cpu)?;
        let norm = RmsNorm::new(vec![2.0, 0.5], 0.0, &Device::Cpu)?;
        let mut own = [0.0; 4];
        norm.apply(&[3.0, -4.0, 1.0, 2.0], &mut own);
        for rms in [own.to_vec(), norm.forward(&x)?.flatten_all()?.to_vec1::<f32>()?] {
            assert!((rms[0] - 6.0 / 12.5f32.sqrt()).abs() < 1e-6 && (rms[1] + 2.0 / 12.5f32.sqrt()).abs() < 1e-6);
        }
        let layer = layer_norm(&x, &weight, &bias, 0.0)?.to_vec2::<f32>()?;
        assert!((layer[1][0] + 1.0).abs() < 1e-6 && (layer[1][1] + 0.5).abs() < 1e-6);
        Ok(())
    }
}
