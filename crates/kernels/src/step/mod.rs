//! What a step of a decoder is made of, and the two ways to compute it.
//!
//! A model is written once, over [`Operations`]. On the CPU they are recorded: a [`Plan`] runs the whole step as one region of
//! the compute pool, in buffers that the next step uses again. On another device, and on the CPU to compare our kernels with, they
//! are candle's, one after the other ([`Tensors`]). Both compute the same step; only a plan's rows have the same bits in any company.

mod plan;
mod rows;
mod tensors;

use candle_core::Result;

pub use self::{plan::Plan, plan::Workspace, tensors::Tensors};
use super::{
    activation::Activation,
    attention::{AttentionBatch, AttentionParams},
    embedding::Embedding,
    kv::KvLayer,
    linear::Linear,
    norm::RmsNorm,
    rope::{RopeLayout, RopeTable},
};

/// Operations on matrices of floats whose rows are the step's tokens. What outlives the operation, weights above all, is borrowed
/// for `'a`: it may be read only when the step is computed.
pub trait Operations<'a> {
    /// `[rows, columns]`; a clone is the same matrix.
    type Rows: Clone;

    /// The rows `ids` of a table, `[ids, dim]`.
    ///
    /// # Errors
    /// If an id is outside the table. All operations fail if shapes do not fit, or if a device does.
    fn lookup(&mut self, table: &'a Embedding, ids: &'a [u32]) -> Result<Self::Rows>;

    /// The rows with these numbers.
    fn select(&mut self, x: &Self::Rows, rows: &'a [u32]) -> Result<Self::Rows>;

    /// `x * factor`
    fn scale(&mut self, x: Self::Rows, factor: f32) -> Result<Self::Rows>;

    /// Each row times its own factor.
    fn scale_rows(&mut self, x: Self::Rows, factors: &'a [f32]) -> Result<Self::Rows>;

    /// Normalizes each run of as many columns as the norm has weights.
    fn rms_norm(&mut self, x: &Self::Rows, norm: &'a RmsNorm) -> Result<Self::Rows>;

    /// Several layers of the same input, which is prepared once.
    fn linear<const N: usize>(&mut self, layers: [&'a Linear; N], x: &Self::Rows) -> Result<[Self::Rows; N]>;

    /// `activation(gate(x)) * up(x)`
    fn linear_gated(
        &mut self,
        gate_and_up: [&'a Linear; 2],
        x: &Self::Rows,
        activation: Activation,
    ) -> Result<Self::Rows>;

    /// `residual + layer(x) * factor`
    fn linear_added(
        &mut self,
        layer: &'a Linear,
        x: &Self::Rows,
        residual: &Self::Rows,
        factor: f32,
    ) -> Result<Self::Rows>;

    /// `residual + x * factor`
    fn add(&mut self, residual: &Self::Rows, x: &Self::Rows, factor: f32) -> Result<Self::Rows>;

    /// Rotates the heads of `x` `[positions, heads * head_dim]`; see [`super::rope::rope`].
    fn rope(
        &mut self,
        x: Self::Rows,
        head_dim: usize,
        positions: &'a [u32],
        table: &'a RopeTable,
        layout: RopeLayout,
    ) -> Result<Self::Rows>;

    /// See [`super::attention::attention`].
    fn attention(
        &mut self,
        qkv: [Self::Rows; 3],
        layer: &'a mut KvLayer,
        batch: &'a AttentionBatch<'a>,
        params: AttentionParams,
    ) -> Result<Self::Rows>;

    /// `cap * tanh(x / cap)`
    fn soft_cap(&mut self, x: Self::Rows, cap: f32) -> Result<Self::Rows>;

    /// Computes the step and returns these rows' floats, one after the other; none if no rows are wanted.
    ///
    /// # Errors
    /// If a kernel panicked or a device failed.
    fn compute(self, wanted: Option<&Self::Rows>) -> Result<Vec<f32>>;
}
