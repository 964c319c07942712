//! Linear layers over the file's own quantization blocks.
//!
//! On the CPU the weight stays in the memory map, in its file format: nothing is repacked, so loading is instant and
//! resident memory is the file. On a GPU it is candle's quantized tensor.

use std::sync::Arc;

use bytes::Bytes;
use candle_core::{Device, Result, Tensor, quantized::QMatMul};

use super::{
    cpu::{self, features::cpu_features, matmul::matmul},
    from_floats, gpu,
    quant::{GgmlType, RawTensor},
    with_floats,
};

/// A weight `[out, in]` with an optional bias `[out]`. Immutable and cheap to clone.
#[derive(Clone, Debug)]
pub struct Linear {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    in_features: usize,
    out_features: usize,
    weight: Weight,
    /// CPU only; on a GPU `weight` has its own copy.
    bias: Option<Vec<f32>>,
}

#[derive(Debug)]
enum Weight {
    Cpu { dtype: GgmlType, data: Bytes },
    Gpu { matmul: QMatMul, bias: Option<Tensor>, device: Device },
}

/// Lets [`Bytes`] own a vector of floats.
struct FloatBytes(Vec<f32>);

impl AsRef<[u8]> for FloatBytes {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

impl Linear {
    /// `weight` has shape `[out, in]` in any supported type.
    ///
    /// # Errors
    /// If the shape is not two-dimensional, a row is not whole blocks, or the bytes or the bias do not match the shape.
    pub fn new(weight: &RawTensor, bias: Option<Vec<f32>>, device: &Device) -> Result<Self> {
        let &[out_features, in_features] = weight.shape.as_slice() else {
            candle_core::bail!("a linear layer's weight must be [out, in], not {:?}", weight.shape);
        };
        let expected = weight.dtype.row_bytes(in_features).and_then(|bytes| bytes.checked_mul(out_features));
        if in_features == 0 || expected != Some(weight.data.len()) {
            candle_core::bail!(
                "a {:?} weight of shape {:?} takes {expected:?} bytes, but {} are there: the file is damaged",
                weight.dtype,
                weight.shape,
                weight.data.len()
            );
        }
        if let Some(bias) = &bias
            && bias.len() != out_features
        {
            candle_core::bail!("the bias has {} elements, the layer {out_features} outputs", bias.len());
        }
        let inner = if device.is_cpu() {
            let weight = Weight::Cpu { dtype: weight.dtype, data: weight.data.clone() };
            Inner { in_features, out_features, weight, bias }
        } else {
            let matmul = gpu::matmul_weight(weight, device)?;
            let bias = bias.map(|bias| Tensor::from_vec(bias, out_features, device)).transpose()?;
            let weight = Weight::Gpu { matmul, bias, device: device.clone() };
            Inner { in_features, out_features, weight, bias: None }
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// A float weight already in memory, `[out, inp]` row-major, as from a safetensors file.
    pub fn from_f32(weight: Vec<f32>, out: usize, inp: usize, bias: Option<Vec<f32>>, device: &Device) -> Result<Self> {
        let data = Bytes::from_owner(FloatBytes(weight));
        Self::new(&RawTensor { dtype: GgmlType::F32, shape: vec![out, inp], data }, bias, device)
    }

    pub fn in_features(&self) -> usize {
        self.inner.in_features
    }

    pub fn out_features(&self) -> usize {
        self.inner.out_features
    }

    /// `x` is `[m, in]` f32; the result is `[m, out]` f32. A row's result does not depend on the other rows.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut outputs = Self::forward_shared(&[self], x)?;
        Ok(outputs.remove(0))
    }

    /// Applies several layers to the same input, such as q, k and v; the input is prepared once.
    pub fn forward_shared(layers: &[&Self], x: &Tensor) -> Result<Vec<Tensor>> {
        let (rows, inp) = x.dims2()?;
        for layer in layers {
            if layer.in_features() != inp {
                candle_core::bail!("the input has {inp} features, the layer takes {}", layer.in_features());
            }
        }
        if layers.iter().any(|layer| matches!(layer.inner.weight, Weight::Gpu { .. })) {
            return layers.iter().map(|layer| layer.forward_on_gpu(x)).collect();
        }
        let weights: Vec<_> = layers.iter().filter_map(|layer| layer.cpu_weight()).collect();
        let outputs = with_floats(x, |x| matmul(cpu_features().instruction_set, &weights, x))?;
        let shape = |weight: &cpu::matmul::Weight<'_>| (rows, weight.out);
        outputs.into_iter().zip(&weights).map(|(y, weight)| from_floats(y, shape(weight))).collect()
    }

    fn cpu_weight(&self) -> Option<cpu::matmul::Weight<'_>> {
        let Weight::Cpu { dtype, data } = &self.inner.weight else { return None };
        let (inp, out) = (self.inner.in_features, self.inner.out_features);
        Some(cpu::matmul::Weight { dtype: *dtype, data, inp, out, bias: self.inner.bias.as_deref() })
    }

    fn forward_on_gpu(&self, x: &Tensor) -> Result<Tensor> {
        let Weight::Gpu { matmul, bias, device } = &self.inner.weight else {
            candle_core::bail!("layers of one input are on different devices");
        };
        let y = candle_core::Module::forward(matmul, &x.to_device(device)?)?;
        match bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}
