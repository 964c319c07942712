//! A step on the CPU: recorded first, then run as one region of the compute pool.
//!
//! Recording checks every shape, finds room for every result and cuts the work into phases; it computes nothing. What is done
//! with each row on its own (`rows.rs`) is joined to the operations before it, so that a row is normalized and rounded by the
//! thread that has it in its cache; products and attention are phases of their own. Results lie in one array, where a result's
//! room is free again once its last handle is dropped and a phase begins: phases run in the order in which they were recorded, so
//! a later one may write there. Within a phase there is no such order, since one thread may be done with its rows before another
//! has begun with its own.

use std::{cell::RefCell, fmt, ops::Range, rc::Rc};

use candle_core::Result;

use super::{
    Operations,
    rows::{RowOperation, Span},
};
use crate::{
    activation::Activation,
    attention::{AttentionBatch, AttentionParams, AttentionWork},
    cpu::{
        destination::Output,
        features::cpu_features,
        matmul::{MAX_WEIGHTS, Product, Weight},
        quantize::{InputBuffers, InputShape, Shared, SharedInput},
    },
    embedding::Embedding,
    kv::KvLayer,
    linear::Linear,
    norm::RmsNorm,
    pool,
    rope::{RopeLayout, RopeTable},
};

/// Elements that a chunk of row operations should have: fewer are not worth a second thread.
const CHUNK_ELEMENTS: usize = 1 << 13;

/// Elements of an operation's rows that the next one should find in the L1 cache.
const CACHED_ELEMENTS: usize = 1 << 12;

/// The memory of a step's intermediate results. It grows with the largest step and is used again by the next.
#[derive(Default)]
pub struct Workspace {
    floats: Vec<f32>,
    input: InputBuffers,
}

impl fmt::Debug for Workspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workspace").field("floats", &self.floats.len()).finish_non_exhaustive()
    }
}

/// A step that is being recorded.
#[derive(Debug)]
pub struct Plan<'a> {
    workspace: &'a mut Workspace,
    room: Rc<RefCell<Room>>,
    inputs: Vec<InputShape>,
    row_operations: Vec<RowOperation<'a>>,
    phases: Vec<Phase<'a>>,
}

/// A matrix that the plan will have computed by the time that an operation reads it.
#[derive(Clone, Debug)]
pub struct Rows {
    rows: usize,
    columns: usize,
    place: Rc<Place>,
}

/// A range of the workspace's floats, which is left when this is dropped.
#[derive(Debug)]
struct Place {
    range: Range<usize>,
    room: Rc<RefCell<Room>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.borrow_mut().left.push(self.range.clone());
    }
}

/// Which floats of the workspace are in use.
#[derive(Debug, Default)]
struct Room {
    free: Vec<Range<usize>>,
    /// Free once a phase begins: operations of the one that is being recorded may read there.
    left: Vec<Range<usize>>,
    end: usize,
}

impl Room {
    /// The smallest free range that is long enough, whole, or a new one. Layers are alike, so ranges soon fit.
    fn take(&mut self, length: usize) -> Range<usize> {
        // Vectors begin on cache lines if the array does.
        let length = length.next_multiple_of(16);
        let fitting = self.free.iter().enumerate().filter(|(_, range)| range.len() >= length);
        if let Some((index, _)) = fitting.min_by_key(|(_, range)| range.len()) {
            return self.free.swap_remove(index);
        }
        self.end += length;
        self.end - length..self.end
    }

    /// What was left before a phase is free in it.
    fn begin_phase(&mut self) {
        self.free.append(&mut self.left);
    }
}

/// Work that may begin when all before it has finished.
#[derive(Debug)]
enum Phase<'a> {
    /// Operations on each of `rows` rows, one after the other.
    Rows {
        operations: Range<usize>,
        rows: usize,
        elements: usize,
    },
    /// Of the input that was prepared last.
    Product {
        product: Product<'a>,
        outputs: [Option<ProductOutput>; MAX_WEIGHTS],
    },
    Attention {
        work: AttentionWork<'a>,
        queries: Span,
        output: Span,
        states: usize,
    },
}

#[derive(Clone, Copy, Debug)]
struct ProductOutput {
    to: usize,
    residual: Option<(usize, f32)>,
}

impl Rows {
    fn span(&self) -> Span {
        Span { start: self.place.range.start, columns: self.columns }
    }
}

impl<'a> Plan<'a> {
    /// In these buffers, whose contents are lost.
    pub fn new(workspace: &'a mut Workspace) -> Self {
        Self { workspace, room: Rc::default(), inputs: Vec::new(), row_operations: Vec::new(), phases: Vec::new() }
    }

    fn new_rows(&self, rows: usize, columns: usize) -> Rows {
        let range = self.room.borrow_mut().take(rows * columns);
        Rows { rows, columns, place: Rc::new(Place { range, room: Rc::clone(&self.room) }) }
    }

    /// Records an operation on each row, on `columns` elements of it. If `alone`, it reads other rows than its own of what
    /// came before.
    fn record(&mut self, operation: RowOperation<'a>, rows: usize, columns: usize, alone: bool) {
        let index = self.row_operations.len();
        self.row_operations.push(operation);
        if !alone
            && let Some(Phase::Rows { operations, rows: same, elements }) = self.phases.last_mut()
            && *same == rows
        {
            operations.end = index + 1;
            *elements += rows * columns;
            return;
        }
        self.begin(Phase::Rows { operations: index..index + 1, rows, elements: rows * columns });
    }

    fn begin(&mut self, phase: Phase<'a>) {
        self.phases.push(phase);
        self.room.borrow_mut().begin_phase();
    }

    /// Records an operation from rows to rows of the same shape.
    fn map(&mut self, x: &Rows, operation: impl FnOnce(Span, Span) -> RowOperation<'a>) -> Rows {
        let out = self.new_rows(x.rows, x.columns);
        self.record(operation(x.span(), out.span()), x.rows, x.columns, false);
        out
    }

    fn product(
        &mut self,
        layers: &[&'a Linear],
        x: &Rows,
        residual: Option<(&Rows, f32)>,
    ) -> Result<[Option<Rows>; MAX_WEIGHTS]> {
        if layers.len() > MAX_WEIGHTS {
            candle_core::bail!("{} layers share an input, where {MAX_WEIGHTS} can", layers.len());
        }
        let mut weights = [None; MAX_WEIGHTS];
        let mut results = [const { None }; MAX_WEIGHTS];
        let mut outputs = [None; MAX_WEIGHTS];
        for (index, layer) in layers.iter().enumerate() {
            if let Some((residual, _)) = residual
                && (residual.rows, residual.columns) != (x.rows, layer.out_features())
            {
                candle_core::bail!("a residual of {} columns for {} outputs", residual.columns, layer.out_features());
            }
            weights[index] = Some(weight_for(x, layer)?);
            let rows = self.new_rows(x.rows, layer.out_features());
            let residual = residual.map(|(residual, factor)| (residual.span().start, factor));
            outputs[index] = Some(ProductOutput { to: rows.span().start, residual });
            results[index] = Some(rows);
        }
        self.record_product(Product::new(cpu_features().instruction_set, weights, x.rows), x, outputs);
        Ok(results)
    }

    fn record_product(&mut self, product: Product<'a>, x: &Rows, outputs: [Option<ProductOutput>; MAX_WEIGHTS]) {
        let shape = product.input_shape();
        self.inputs.push(shape);
        self.record(RowOperation::Prepare { x: x.span(), shape }, x.rows, x.columns, false);
        self.begin(Phase::Product { product, outputs });
    }
}

fn weight_for<'a>(x: &Rows, layer: &'a Linear) -> Result<Weight<'a>> {
    if layer.in_features() != x.columns {
        candle_core::bail!("the input has {} features, the layer takes {}", x.columns, layer.in_features());
    }
    layer.cpu_weight()
}

impl Phase<'_> {
    fn chunks(&self) -> usize {
        match self {
            Self::Rows { rows, elements, .. } => {
                (elements / CHUNK_ELEMENTS).min(4 * pool::threads()).clamp(1, (*rows).max(1))
            }
            Self::Product { product, .. } => product.chunks(),
            Self::Attention { work, .. } => work.chunks(),
        }
    }
}

/// The buffers while the plan runs.
#[derive(Clone, Copy)]
struct Buffers {
    floats: Shared<f32>,
    input: SharedInput,
}

impl Buffers {
    /// # Safety
    /// All phases before this one have finished, and nothing but other chunks of it runs.
    unsafe fn run(self, phase: &Phase<'_>, row_operations: &[RowOperation<'_>], chunk: usize, chunks: usize) {
        // SAFETY: every place was taken while those that the operation reads were held, so it writes to none of them, and all of
        // them lie within the workspace; chunks write to different rows, columns or heads.
        unsafe {
            match phase {
                Phase::Rows { operations, rows, elements } => {
                    let at_once = (rows * operations.len() * CACHED_ELEMENTS / (*elements).max(1)).max(1);
                    let (mut start, end) = (rows * chunk / chunks, rows * (chunk + 1) / chunks);
                    while start < end {
                        let part = start..end.min(start + at_once);
                        for operation in &row_operations[operations.clone()] {
                            operation.run(part.clone(), self.floats, self.input);
                        }
                        start = part.end;
                    }
                }
                Phase::Product { product, outputs } => {
                    let outputs = outputs.map(|output| {
                        let output = output.unwrap_or(ProductOutput { to: 0, residual: None });
                        let residual = output.residual.map(|(start, factor)| (self.floats.at(start), factor));
                        Output { to: self.floats.at(output.to), residual }
                    });
                    product.run(chunk, self.input.view(product.input_shape()), &outputs);
                }
                Phase::Attention { work, queries, output, states } => {
                    let queries = self.floats.read(queries.start, work.num_tokens() * queries.columns);
                    work.run(chunk, queries, &self.floats.at(output.start), self.floats.at(*states));
                }
            }
        }
    }
}

impl<'a> Operations<'a> for Plan<'a> {
    type Rows = Rows;

    fn lookup(&mut self, table: &'a Embedding, ids: &'a [u32]) -> Result<Rows> {
        table.check(ids)?;
        let out = self.new_rows(ids.len(), table.dim());
        self.record(RowOperation::Lookup { table, ids, out: out.span() }, out.rows, out.columns, false);
        Ok(out)
    }

    fn select(&mut self, x: &Rows, rows: &'a [u32]) -> Result<Rows> {
        if let Some(row) = rows.iter().find(|&&row| row as usize >= x.rows) {
            candle_core::bail!("row {row} of {}", x.rows);
        }
        let out = self.new_rows(rows.len(), x.columns);
        let select = RowOperation::Select { x: x.span(), rows, out: out.span() };
        self.record(select, out.rows, out.columns, true);
        Ok(out)
    }

    fn scale(&mut self, x: Rows, factor: f32) -> Result<Rows> {
        Ok(self.map(&x, |x, out| RowOperation::Scale { x, factor, out }))
    }

    fn scale_rows(&mut self, x: Rows, factors: &'a [f32]) -> Result<Rows> {
        if factors.len() != x.rows {
            candle_core::bail!("{} factors for {} rows", factors.len(), x.rows);
        }
        Ok(self.map(&x, |x, out| RowOperation::ScaleRows { x, factors, out }))
    }

    fn rms_norm(&mut self, x: &Rows, norm: &'a RmsNorm) -> Result<Rows> {
        if !x.columns.is_multiple_of(norm.width().max(1)) {
            candle_core::bail!("the norm has {} weights, the input {} columns", norm.width(), x.columns);
        }
        Ok(self.map(x, |x, out| RowOperation::RmsNorm { x, norm, out }))
    }

    fn linear<const N: usize>(&mut self, layers: [&'a Linear; N], x: &Rows) -> Result<[Rows; N]> {
        let outputs: Vec<Rows> = self.product(&layers, x, None)?.into_iter().flatten().collect();
        outputs.try_into().map_err(|_| candle_core::Error::msg("the layers gave another number of outputs"))
    }

    fn linear_gated(&mut self, layers: [&'a Linear; 2], x: &Rows, activation: Activation) -> Result<Rows> {
        let [gate, up] = layers.map(|layer| weight_for(x, layer));
        let (gate, up) = (gate?, up?);
        if gate.out != up.out {
            candle_core::bail!("the gate has {} columns, what it opens {}", gate.out, up.out);
        }
        let rows = self.new_rows(x.rows, gate.out);
        let output = Some(ProductOutput { to: rows.span().start, residual: None });
        let product = Product::gated(cpu_features().instruction_set, [gate, up], activation, x.rows);
        self.record_product(product, x, [output, None, None]);
        Ok(rows)
    }

    fn linear_added(&mut self, layer: &'a Linear, x: &Rows, residual: &Rows, factor: f32) -> Result<Rows> {
        let [output, ..] = self.product(&[layer], x, Some((residual, factor)))?;
        output.ok_or_else(|| candle_core::Error::msg("the layer gave no output"))
    }

    fn add(&mut self, residual: &Rows, x: &Rows, factor: f32) -> Result<Rows> {
        if (residual.rows, residual.columns) != (x.rows, x.columns) {
            candle_core::bail!("{} columns cannot be added to {}", x.columns, residual.columns);
        }
        let residual = residual.span();
        Ok(self.map(x, |x, out| RowOperation::Add { residual, x, factor, out }))
    }

    fn rope(
        &mut self,
        x: Rows,
        head_dim: usize,
        positions: &'a [u32],
        table: &'a RopeTable,
        layout: RopeLayout,
    ) -> Result<Rows> {
        table.check((positions.len(), x.rows), head_dim)?;
        let angles = table.angles(positions)?;
        Ok(self.map(&x, |x, out| RowOperation::Rope { x, head_dim, angles, layout, out }))
    }

    fn attention(
        &mut self,
        [q, k, v]: [Rows; 3],
        layer: &'a mut KvLayer,
        batch: &'a AttentionBatch<'a>,
        params: AttentionParams,
    ) -> Result<Rows> {
        let work = AttentionWork::new(q.columns, [k.columns, v.columns], q.rows, layer, batch, &params)?;
        let store = RowOperation::Store { keys: k.span(), values: v.span(), to: work.store(), slots: batch.slots() };
        self.record(store, k.rows, k.columns + v.columns, false);
        let out = self.new_rows(q.rows, q.columns);
        let states = self.new_rows(1, work.state_floats()).span().start;
        self.begin(Phase::Attention { work, queries: q.span(), output: out.span(), states });
        Ok(out)
    }

    fn soft_cap(&mut self, x: Rows, cap: f32) -> Result<Rows> {
        Ok(self.map(&x, |x, out| RowOperation::SoftCap { x, cap, out }))
    }

    fn compute(self, wanted: Option<&Rows>) -> Result<Vec<f32>> {
        self.compute_by(wanted, |phases, work| pool::run_phases(phases, work))
    }
}

impl Plan<'_> {
    /// Runs the phases by a function like [`pool::run_phases`].
    fn compute_by(
        self,
        wanted: Option<&Rows>,
        run_phases: impl FnOnce(&[u32], &(dyn Fn(usize, usize) + Sync)) -> Result<()>,
    ) -> Result<Vec<f32>> {
        let floats = self.room.borrow().end;
        if self.workspace.floats.len() < floats {
            // The old contents need not be moved.
            self.workspace.floats = Vec::new();
            self.workspace.floats = vec![0.0; floats];
        }
        for shape in &self.inputs {
            self.workspace.input.reserve(*shape);
        }
        let buffers = Buffers { floats: Shared::new(&mut self.workspace.floats), input: self.workspace.input.shared() };
        let chunks = self.phases.iter().map(|phase| u32::try_from(phase.chunks()).map_err(candle_core::Error::wrap));
        let chunks = chunks.collect::<Result<Vec<u32>>>()?;
        let (phases, row_operations) = (&self.phases, &self.row_operations);
        run_phases(&chunks, &|phase, chunk| {
            // SAFETY: the phases are run in order.
            unsafe { buffers.run(&phases[phase], row_operations, chunk, chunks[phase] as usize) }
        })?;
        Ok(wanted.map_or_else(Vec::new, |rows| {
            let start = rows.span().start;
            self.workspace.floats[start..start + rows.rows * rows.columns].to_vec()
        }))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use proptest::prelude::*;

    use super::*;
    use crate::quant::{GgmlType, RawTensor};

    const ROWS: usize = 200;
    const WIDTHS: [usize; 3] = [256, 128, 64];

    /// Weights between -0.5 and 0.5 that depend on the place alone.
    fn weights(count: usize) -> Vec<f32> {
        (0..count).map(|i| (((i * 2_654_435_761) >> 7) % 1000) as f32 / 1000.0 - 0.5).collect()
    }

    /// What a decoder's layers are made of.
    struct Parts {
        embedding: Embedding,
        /// From every width to every width.
        linears: Vec<Linear>,
        norm: RmsNorm,
        rope: RopeTable,
        ids: Vec<u32>,
    }

    impl Parts {
        fn new() -> Self {
            let device = Device::Cpu;
            let pairs = WIDTHS.iter().flat_map(|&inp| WIDTHS.map(|out| (inp, out)));
            let linear = |(inp, out)| Linear::from_f32(weights(inp * out), out, inp, None, &device).expect("it fits");
            let table = RawTensor {
                dtype: GgmlType::F32,
                shape: vec![50, WIDTHS[0]],
                data: weights(50 * WIDTHS[0]).iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>().into(),
            };
            Self {
                embedding: Embedding::new(&table, &device).expect("it fits"),
                linears: pairs.map(linear).collect(),
                norm: RmsNorm::new(weights(32), 1e-5, &device).expect("it fits"),
                rope: RopeTable::new(&[1.0, 0.3, 0.1, 0.03], 1.0, 1000, &device).expect("it fits"),
                ids: (0..ROWS as u32).map(|i| i * 7 % 50).collect(),
            }
        }

        fn linear(&self, inp: usize, out: usize) -> &Linear {
            let of = |width| WIDTHS.iter().position(|&w| w == width).expect("one of the widths");
            &self.linears[3 * of(inp) + of(out)]
        }
    }

    /// Records the operations, each on one of the results so far, which may be dropped by it.
    fn record<'a>(plan: &mut Plan<'a>, parts: &'a Parts, operations: &[(u8, u8, bool)]) -> Rows {
        let mut results = vec![plan.lookup(&parts.embedding, &parts.ids).expect("the shapes fit")];
        for &(operation, which, is_kept) in operations {
            let index = which as usize % results.len();
            let x = if is_kept { results[index].clone() } else { results.swap_remove(index) };
            let out = WIDTHS[which as usize % 3];
            let result = match operation {
                0 => plan.rms_norm(&x, &parts.norm),
                1 => plan.rope(x, 32, &parts.ids, &parts.rope, RopeLayout::Halves),
                2 => plan.scale(x, 0.5),
                3 => plan.add(&x, &x, 0.25),
                4 => plan.linear_gated([parts.linear(x.columns, out); 2], &x, Activation::Silu),
                5 => plan.linear([parts.linear(x.columns, out)], &x).map(|[y]| y),
                _ => plan.linear([parts.linear(x.columns, 64), parts.linear(x.columns, out)], &x).map(|[y, z]| {
                    results.push(y);
                    z
                }),
            };
            results.push(result.expect("the shapes fit"));
        }
        results.pop().expect("at least one")
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        /// Threads may be as far apart within a phase as they like.
        #[test]
        fn the_order_of_a_phases_chunks_does_not_matter(operations in proptest::collection::vec((0u8..7, 0u8..30, any::<bool>()), 1..25)) {
            let parts = Parts::new();
            let mut in_order = Workspace::default();
            let mut plan = Plan::new(&mut in_order);
            let wanted = record(&mut plan, &parts, &operations);
            let expected = plan.compute_by(Some(&wanted), |phases, work| {
                for (phase, &chunks) in phases.iter().enumerate() {
                    (0..chunks as usize).for_each(|chunk| work(phase, chunk));
                }
                Ok(())
            });
            let mut backwards = Workspace::default();
            let mut plan = Plan::new(&mut backwards);
            let wanted = record(&mut plan, &parts, &operations);
            let actual = plan.compute_by(Some(&wanted), |phases, work| {
                for (phase, &chunks) in phases.iter().enumerate() {
                    (0..chunks as usize).rev().for_each(|chunk| work(phase, chunk));
                }
                Ok(())
            });
            let bits = |rows: Result<Vec<f32>>| rows.expect("it runs").into_iter().map(f32::to_bits).collect::<Vec<_>>();
            prop_assert_eq!(bits(expected), bits(actual));
        }
    }
}
