//! Normalization over the last dimension.

use candle_core::{Result, Tensor};

use super::{from_floats, with_floats};

/// `x / sqrt(mean(x^2) + eps) * weight`, over the last dimension of `x` `[.., dim]`; `weight` is `[dim]`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return candle_nn::ops::rms_norm(&x.contiguous()?, weight, eps);
    }
    by_rows(x, weight, |row, weight, out| {
        let mean_square = sum(row.iter().map(|x| x * x)) / row.len() as f32;
        let scale = 1.0 / (mean_square + eps).sqrt();
        for ((out, x), w) in out.iter_mut().zip(row).zip(weight) {
            *out = x * scale * w;
        }
    })
}

/// `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`, over the last dimension of `x` `[.., dim]`.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return candle_nn::ops::layer_norm(&x.contiguous()?, weight, bias, eps);
    }
    with_floats(bias, |bias| {
        by_rows(x, weight, |row, weight, out| {
            let mean = sum(row.iter().copied()) / row.len() as f32;
            let variance = sum(row.iter().map(|x| (x - mean) * (x - mean))) / row.len() as f32;
            let scale = 1.0 / (variance + eps).sqrt();
            for (((out, x), w), b) in out.iter_mut().zip(row).zip(weight).zip(bias) {
                *out = (x - mean) * scale * w + b;
            }
        })
    })
}

/// A sum in sixteen lanes, which the compiler vectorizes and which loses less precision than one long chain.
fn sum(values: impl ExactSizeIterator<Item = f32>) -> f32 {
    let mut lanes = [0.0f32; 16];
    for (i, value) in values.enumerate() {
        lanes[i % 16] += value;
    }
    lanes.iter().sum()
}

fn by_rows(x: &Tensor, weight: &Tensor, row: impl Fn(&[f32], &[f32], &mut [f32])) -> Result<Tensor> {
    with_floats(weight, |weight| {
        with_floats(x, |floats| {
            let dim = weight.len();
            if x.dims().last() != Some(&dim) {
                candle_core::bail!("the norm has {dim} weights, the input is {:?}", x.shape());
            }
            let mut out = vec![0.0; floats.len()];
            for (x, out) in floats.chunks_exact(dim).zip(out.chunks_exact_mut(dim)) {
                row(x, weight, out);
            }
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
        let rms = rms_norm(&x, &weight, 0.0)?.to_vec2::<f32>()?;
        assert!((rms[0][0] - 6.0 / 12.5f32.sqrt()).abs() < 1e-6 && (rms[0][1] + 2.0 / 12.5f32.sqrt()).abs() < 1e-6);
        let layer = layer_norm(&x, &weight, &bias, 0.0)?.to_vec2::<f32>()?;
        assert!((layer[1][0] + 1.0).abs() < 1e-6 && (layer[1][1] + 0.5).abs() < 1e-6);
        Ok(())
    }
}
