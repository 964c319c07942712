//! What candle computes, on CUDA, Metal and, to compare our kernels with, the CPU: its tensors and operations behind our
//! interface. Correctness first; speed comes later.

use std::borrow::Cow;

use candle_core::{
    D, DType, Device, Result, Tensor,
    quantized::{GgmlDType, QMatMul, QStorage, QTensor},
};

use super::{
    attention::{AttentionBatch, AttentionParams},
    kv::BLOCK_TOKENS,
    quant::{GgmlType, RawTensor, dequantize},
};

const fn candle_type(dtype: GgmlType) -> GgmlDType {
    match dtype {
        GgmlType::F32 => GgmlDType::F32,
        GgmlType::F16 => GgmlDType::F16,
        GgmlType::BF16 => GgmlDType::BF16,
        GgmlType::Q4_0 => GgmlDType::Q4_0,
        GgmlType::Q4_1 => GgmlDType::Q4_1,
        GgmlType::Q5_0 => GgmlDType::Q5_0,
        GgmlType::Q5_1 => GgmlDType::Q5_1,
        GgmlType::Q8_0 => GgmlDType::Q8_0,
        GgmlType::Q2_K => GgmlDType::Q2K,
        GgmlType::Q3_K => GgmlDType::Q3K,
        GgmlType::Q4_K => GgmlDType::Q4K,
        GgmlType::Q5_K => GgmlDType::Q5K,
        GgmlType::Q6_K => GgmlDType::Q6K,
    }
}

/// The weight on the device: in its own blocks if it is quantized, as f32 if not.
pub fn matmul_weight(weight: &RawTensor, device: &Device) -> Result<QMatMul> {
    if weight.dtype.block_size() == 1 {
        let mut floats = vec![0.0; weight.shape.iter().product()];
        dequantize(weight.dtype, &weight.data, &mut floats);
        return Ok(QMatMul::Tensor(Tensor::from_vec(floats, weight.shape.as_slice(), device)?));
    }
    // candle casts the bytes to its block structs, which hold half floats and therefore need an even address.
    let data = if (weight.data.as_ptr() as usize).is_multiple_of(8) {
        Cow::Borrowed(&weight.data[..])
    } else {
        Cow::Owned(weight.data.to_vec())
    };
    let storage = QStorage::from_data(data, device, candle_type(weight.dtype))?;
    QMatMul::from_qtensor(QTensor::new(storage, weight.shape.as_slice())?)
}

/// Keys or values of one layer: `[num_blocks * BLOCK_TOKENS, n_kv_heads, head_dim]`.
#[derive(Debug)]
pub struct CandleKv {
    pub keys: Tensor,
    pub values: Tensor,
}

impl CandleKv {
    pub fn new(num_blocks: usize, n_kv_heads: usize, head_dim: usize, dtype: DType, device: &Device) -> Result<Self> {
        let shape = (num_blocks * BLOCK_TOKENS, n_kv_heads, head_dim);
        Ok(Self { keys: Tensor::zeros(shape, dtype, device)?, values: Tensor::zeros(shape, dtype, device)? })
    }

    pub fn copy_block(&self, from: usize, to: usize) -> Result<()> {
        for cache in [&self.keys, &self.values] {
            let block = cache.narrow(0, from * BLOCK_TOKENS, BLOCK_TOKENS)?.copy()?;
            cache.slice_set(&block, 0, to * BLOCK_TOKENS)?;
        }
        Ok(())
    }

    /// See [`super::attention::attention`].
    pub fn attention(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        batch: &AttentionBatch<'_>,
        params: &AttentionParams,
    ) -> Result<Tensor> {
        let dtype = self.keys.dtype();
        let (k, v) = (k.to_dtype(dtype)?.contiguous()?, v.to_dtype(dtype)?.contiguous()?);
        let (_, n_heads, head_dim) = q.dims3()?;
        let mut outputs = Vec::with_capacity(batch.spans().len());
        let mut first = 0;
        for span in batch.spans() {
            let end = span.start + span.num_tokens;
            let mut position = span.start;
            while position < end {
                let run = (BLOCK_TOKENS - position % BLOCK_TOKENS).min(end - position);
                let slot = span.block_table[position / BLOCK_TOKENS] as usize * BLOCK_TOKENS + position % BLOCK_TOKENS;
                let token = first + position - span.start;
                self.keys.slice_set(&k.narrow(0, token, run)?.contiguous()?, 0, slot)?;
                self.values.slice_set(&v.narrow(0, token, run)?.contiguous()?, 0, slot)?;
                position += run;
            }
            let slots: Vec<u32> = (0..end)
                .map(|p| span.block_table[p / BLOCK_TOKENS] * BLOCK_TOKENS as u32 + (p % BLOCK_TOKENS) as u32)
                .collect();
            let slots = Tensor::from_vec(slots, end, q.device())?;
            let keys = self.keys.index_select(&slots, 0)?.to_dtype(DType::F32)?;
            let values = self.values.index_select(&slots, 0)?.to_dtype(DType::F32)?;
            let mask = causal_mask(span.start, span.num_tokens, params.window, q.device())?;
            let queries = q.narrow(0, first, span.num_tokens)?;
            outputs.push(attend(&queries, &keys, &values, params.scale, params.softcap, Some(&mask))?);
            first += span.num_tokens;
        }
        Tensor::cat(&outputs, 0)?.reshape((first, n_heads * head_dim))
    }
}

/// `[new, start + new]`: 0 where a query sees a key, otherwise minus infinity.
fn causal_mask(start: usize, new: usize, window: Option<usize>, device: &Device) -> Result<Tensor> {
    let total = start + new;
    let mask: Vec<f32> = (start..total)
        .flat_map(|query| {
            (0..total).map(move |key| {
                let seen = key <= query && window.is_none_or(|window| key + window > query);
                if seen { 0.0 } else { f32::NEG_INFINITY }
            })
        })
        .collect();
    Tensor::from_vec(mask, (new, total), device)
}

/// `q` `[t, heads, dim]` over `k`, `v` `[s, kv heads, dim]`; `mask` is added to the scores `[heads, t, s]`.
pub fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scale: f32,
    softcap: Option<f32>,
    mask: Option<&Tensor>,
) -> Result<Tensor> {
    let (t, heads, dim) = q.dims3()?;
    let (s, kv_heads, _) = k.dims3()?;
    let group = heads / kv_heads;
    let repeat = |x: &Tensor| -> Result<Tensor> {
        x.transpose(0, 1)?.unsqueeze(1)?.broadcast_as((kv_heads, group, s, dim))?.reshape((heads, s, dim))
    };
    let scores = q.transpose(0, 1)?.contiguous()?.matmul(&repeat(k)?.transpose(1, 2)?.contiguous()?)?;
    let mut scores = (scores * f64::from(scale))?;
    if let Some(cap) = softcap {
        scores = ((scores / f64::from(cap))?.tanh()? * f64::from(cap))?;
    }
    if let Some(mask) = mask {
        scores = scores.broadcast_add(mask)?;
    }
    let weights = candle_nn::ops::softmax(&scores, D::Minus1)?;
    weights.matmul(&repeat(v)?.contiguous()?)?.transpose(0, 1)?.contiguous()?.reshape((t, heads * dim))
}
