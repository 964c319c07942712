//! The only crate that knows which device it runs on.
//!
//! A model is written once: a decoder over the operations of `step/`, an encoder over candle tensors and the functions here. On
//! the CPU those are our own kernels (`cpu/`), selected at run time by the processor's features; on CUDA and Metal they are
//! candle's. A row's result never depends on what else is in the batch: every kernel fixes its accumulation order.

pub mod activation;
pub mod arena;
pub mod attention;
mod candle;
mod cpu;
pub mod device;
pub mod distance;
pub mod embedding;
pub mod freed_memory;
pub mod index;
pub mod kv;
pub mod linear;
pub mod norm;
pub mod pool;
pub mod quant;
pub mod rope;
pub mod softmax;
pub mod step;
mod zeroed_pages;

use candle_core::{DType, Device, Result, Storage, Tensor};

/// Runs `read` on the floats of a CPU tensor, row-major; a strided tensor is made contiguous first.
fn with_floats<R>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    if tensor.dtype() != DType::F32 {
        candle_core::bail!("the kernels take f32 activations, not {:?}: convert the tensor first", tensor.dtype());
    }
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => {
            let start = layout.start_offset();
            read(&storage.as_slice::<f32>()?[start..start + layout.shape().elem_count()])
        }
        _ => candle_core::bail!("a CPU kernel was given a tensor of another device: move it to the CPU first"),
    }
}

/// A new CPU tensor.
fn from_floats(data: Vec<f32>, shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
    Tensor::from_vec(data, shape.into(), &Device::Cpu)
}
