//! The operations on candle's tensors, computed as they come: what a GPU runs, and what the CPU's plan is compared with.

use candle_core::{Device, Result, Tensor};

use super::Operations;
use crate::{
    activation::{self, Activation},
    attention::{self, AttentionBatch, AttentionParams},
    embedding::Embedding,
    kv::KvLayer,
    linear::Linear,
    norm::RmsNorm,
    rope::{self, RopeLayout, RopeTable},
};

/// On one device.
#[derive(Debug)]
pub struct Tensors {
    device: Device,
}

impl Tensors {
    pub const fn new(device: Device) -> Self {
        Self { device }
    }
}

impl<'a> Operations<'a> for Tensors {
    type Rows = Tensor;

    fn lookup(&mut self, table: &'a Embedding, ids: &'a [u32]) -> Result<Tensor> {
        table.forward(ids)
    }

    fn select(&mut self, x: &Tensor, rows: &'a [u32]) -> Result<Tensor> {
        x.index_select(&Tensor::from_slice(rows, rows.len(), &self.device)?, 0)
    }

    fn scale(&mut self, x: Tensor, factor: f32) -> Result<Tensor> {
        x * f64::from(factor)
    }

    fn scale_rows(&mut self, x: Tensor, factors: &'a [f32]) -> Result<Tensor> {
        x.broadcast_mul(&Tensor::from_slice(factors, (factors.len(), 1), &self.device)?)
    }

    fn rms_norm(&mut self, x: &Tensor, norm: &'a RmsNorm) -> Result<Tensor> {
        let (rows, columns) = x.dims2()?;
        norm.forward(&x.reshape((rows, columns / norm.width().max(1), norm.width()))?)?.reshape((rows, columns))
    }

    fn linear<const N: usize>(&mut self, layers: [&'a Linear; N], x: &Tensor) -> Result<[Tensor; N]> {
        let outputs = Linear::forward_shared(&layers, x)?;
        outputs.try_into().map_err(|_| candle_core::Error::msg("the layers gave another number of outputs"))
    }

    fn linear_gated(&mut self, layers: [&'a Linear; 2], x: &Tensor, activation: Activation) -> Result<Tensor> {
        let [gate, up] = self.linear(layers, x)?;
        activation::by_candle(&gate, activation)? * up
    }

    fn linear_added(&mut self, layer: &'a Linear, x: &Tensor, residual: &Tensor, factor: f32) -> Result<Tensor> {
        self.add(residual, &layer.forward(x)?, factor)
    }

    fn add(&mut self, residual: &Tensor, x: &Tensor, factor: f32) -> Result<Tensor> {
        if factor == 1.0 { residual + x } else { residual + (x * f64::from(factor))? }
    }

    fn rope(
        &mut self,
        x: Tensor,
        head_dim: usize,
        positions: &'a [u32],
        table: &'a RopeTable,
        layout: RopeLayout,
    ) -> Result<Tensor> {
        let (rows, columns) = x.dims2()?;
        rope::rope(&x.reshape((rows, columns / head_dim, head_dim))?, positions, table, layout)?
            .reshape((rows, columns))
    }

    fn attention(
        &mut self,
        qkv: [Tensor; 3],
        layer: &'a mut KvLayer,
        batch: &'a AttentionBatch<'a>,
        params: AttentionParams,
    ) -> Result<Tensor> {
        let head_dim = layer.head_dim;
        let by_head = |x: &Tensor| {
            let (rows, columns) = x.dims2()?;
            x.reshape((rows, columns / head_dim, head_dim))
        };
        let [q, k, v] = qkv.each_ref().map(by_head);
        attention::attention(&q?, &k?, &v?, layer, batch, &params)
    }

    fn soft_cap(&mut self, x: Tensor, cap: f32) -> Result<Tensor> {
        (x / f64::from(cap))?.tanh()? * f64::from(cap)
    }

    fn compute(self, wanted: Option<&Tensor>) -> Result<Vec<f32>> {
        wanted.map_or_else(|| Ok(Vec::new()), |rows| rows.flatten_all()?.to_vec1())
    }
}
