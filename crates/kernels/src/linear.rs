//! Linear layers over the file's own quantization blocks.
//!
//! On the CPU the weight stays in the memory map, in its file format, until [`Linear::repack`] makes tiles of it: the same bytes
//! in the order in which the kernels read them. Both give the same results to the bit. Where candle computes, it is candle's
//! quantized tensor.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use candle_core::{Device, Result, Tensor, quantized::QMatMul};

use super::{
    arena::Arena,
    candle,
    cpu::{
        self,
        destination::Output,
        features::cpu_features,
        matmul::{MAX_WEIGHTS, Product},
        quantize::{InputBuffers, Shared},
        tiles::Tiles,
    },
    device::Backend,
    from_floats, pool,
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
    /// Of our kernels only; candle's `weight` has its own.
    bias: Option<Vec<f32>>,
}

#[derive(Debug)]
enum Weight {
    Cpu { dtype: GgmlType, data: Bytes, tiles: OnceLock<Tiles> },
    Candle { matmul: QMatMul, bias: Option<Tensor>, device: Device },
}

/// Whether the matrices of a chat model are made into tiles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Repack {
    /// If the model is no larger than half of the free memory.
    #[default]
    Auto,
    On,
    Off,
}

impl std::str::FromStr for Repack {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            _ => Err(format!("unknown choice `{text}`: use auto, on or off")),
        }
    }
}

/// Lets [`Bytes`] own a vector of floats.
struct FloatBytes(Vec<f32>);

impl AsRef<[u8]> for FloatBytes {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

impl Linear {
    /// For the backend that computes on this device; see [`Linear::of_backend`].
    ///
    /// # Errors
    /// As [`Linear::of_backend`].
    pub fn new(weight: &RawTensor, bias: Option<Vec<f32>>, device: &Device) -> Result<Self> {
        Self::of_backend(weight, bias, &Backend::of(device))
    }

    /// `weight` has shape `[out, in]` in any supported type.
    ///
    /// # Errors
    /// If the shape is not two-dimensional, a row is not whole blocks, or the bytes or the bias do not match the shape.
    pub fn of_backend(weight: &RawTensor, bias: Option<Vec<f32>>, backend: &Backend) -> Result<Self> {
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
        let inner = match backend {
            Backend::Cpu => {
                let weight = Weight::Cpu { dtype: weight.dtype, data: weight.data.clone(), tiles: OnceLock::new() };
                Inner { in_features, out_features, weight, bias }
            }
            Backend::Candle(device) => {
                let matmul = candle::matmul_weight(weight, device)?;
                let bias = bias.map(|bias| Tensor::from_vec(bias, out_features, device)).transpose()?;
                let weight = Weight::Candle { matmul, bias, device: device.clone() };
                Inner { in_features, out_features, weight, bias: None }
            }
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// A float weight already in memory, `[out, inp]` row-major, as from a safetensors file.
    pub fn from_f32(weight: Vec<f32>, out: usize, inp: usize, bias: Option<Vec<f32>>, device: &Device) -> Result<Self> {
        let data = Bytes::from_owner(FloatBytes(weight));
        Self::new(&RawTensor { dtype: GgmlType::F32, shape: vec![out, inp], data }, bias, device)
    }

    /// Makes tiles of the weight on the compute pool, in memory of the arena, which products use from then on, and calls `release` with the bytes of the
    /// file, part by part, as they are no longer read. Does nothing where candle computes, and the second time.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn repack(&self, arena: &Arena, release: impl Fn(&[u8])) -> Result<()> {
        let Weight::Cpu { dtype, data, tiles } = &self.inner.weight else { return Ok(()) };
        if tiles.get().is_some() {
            return Ok(());
        }
        let made = Tiles::new(*dtype, data, (self.inner.in_features, self.inner.out_features), arena, release)?;
        // Another thread that made them first made the same ones.
        let _same = tiles.set(made);
        Ok(())
    }

    /// The memory that the weight's tiles take, in bytes; 0 without tiles.
    pub fn tile_bytes(&self) -> usize {
        match &self.inner.weight {
            Weight::Cpu { tiles, .. } => tiles.get().map_or(0, Tiles::bytes),
            Weight::Candle { .. } => 0,
        }
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
        if layers.iter().any(|layer| matches!(layer.inner.weight, Weight::Candle { .. })) {
            return layers.iter().map(|layer| layer.forward_by_candle(x)).collect();
        }
        let mut weights = [None; MAX_WEIGHTS];
        if layers.len() > weights.len() {
            candle_core::bail!("{} layers share an input, where {MAX_WEIGHTS} can", layers.len());
        }
        for (weight, layer) in weights.iter_mut().zip(layers) {
            *weight = Some(layer.cpu_weight()?);
        }
        let product = Product::new(cpu_features().instruction_set, weights, rows);
        let mut outputs: Vec<Vec<f32>> = layers.iter().map(|layer| vec![0.0; rows * layer.out_features()]).collect();
        with_floats(x, |x| run(&product, x, &mut outputs))?;
        outputs.into_iter().zip(layers).map(|(y, layer)| from_floats(y, (rows, layer.out_features()))).collect()
    }

    /// What products on the CPU need.
    ///
    /// # Errors
    /// If candle computes the layer.
    pub(super) fn cpu_weight(&self) -> Result<cpu::matmul::Weight<'_>> {
        let Weight::Cpu { dtype, data, tiles } = &self.inner.weight else {
            candle_core::bail!("a layer of candle's cannot be computed by the CPU's kernels");
        };
        let (inp, out) = (self.inner.in_features, self.inner.out_features);
        let bias = self.inner.bias.as_deref();
        Ok(cpu::matmul::Weight { dtype: *dtype, data, tiles: tiles.get(), inp, out, bias })
    }

    fn forward_by_candle(&self, x: &Tensor) -> Result<Tensor> {
        let Weight::Candle { matmul, bias, device } = &self.inner.weight else {
            candle_core::bail!("layers of one input are of different backends");
        };
        let y = candle_core::Module::forward(matmul, &x.to_device(device)?)?;
        match bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

/// Input elements above which preparing them is worth more threads.
const PARALLEL_ELEMENTS: usize = 1 << 14;

/// Prepares the input and computes the product, in one region.
fn run(product: &Product<'_>, x: &[f32], outputs: &mut [Vec<f32>]) -> Result<()> {
    let shape = product.input_shape();
    let mut buffers = InputBuffers::default();
    buffers.reserve(shape);
    let input = buffers.shared();
    let nowhere = Output { to: Shared::new(&mut []), residual: None };
    let mut to = [nowhere; MAX_WEIGHTS];
    for (to, output) in to.iter_mut().zip(outputs) {
        to.to = Shared::new(output);
    }
    let parts = (x.len() / PARALLEL_ELEMENTS).min(4 * pool::threads()).clamp(1, shape.rows.max(1));
    let phases = [parts, product.chunks()].map(u32::try_from);
    let [parts, chunks] = phases.map(|chunks| chunks.map_err(candle_core::Error::wrap));
    let (parts, chunks) = (parts?, chunks?);
    pool::run_phases(&[parts, chunks], |phase, chunk| {
        // SAFETY: the phases are run in order; parts have different rows, and the outputs have room for the product.
        unsafe {
            if phase == 0 {
                let rows = shape.rows * chunk / parts as usize..shape.rows * (chunk + 1) / parts as usize;
                let x = &x[rows.start * shape.columns..rows.end * shape.columns];
                input.prepare(shape, rows, x);
            } else {
                product.run(chunk, input.view(shape), &to);
            }
        }
    })
}
