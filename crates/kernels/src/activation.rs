//! Activation functions, on their own and as the gate of a feed-forward layer.

use candle_core::{Result, Tensor};

use super::{
    cpu::{
        elementary::{error_function, hyperbolic_tangent, sigmoid},
        lanes::{Kernel, LANES, Lanes, dispatch},
        quantize::Shared,
    },
    from_floats, pool, with_floats,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`
    Silu,
    /// `x * Phi(x)`, with the error function.
    Gelu,
    /// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`
    GeluTanh,
    Relu,
}

/// `a(gate) * up`, elementwise.
pub fn gated(gate: &Tensor, up: &Tensor, a: Activation) -> Result<Tensor> {
    if gate.shape() != up.shape() {
        candle_core::bail!("gate is {:?}, up is {:?}: they must agree", gate.shape(), up.shape());
    }
    if !gate.device().is_cpu() {
        return by_candle(gate, a)? * up;
    }
    with_floats(gate, |gates| with_floats(up, |ups| from_floats(by_parts(gates, Some(ups), a)?, gate.shape())))
}

/// `a(x)`, elementwise.
pub fn activate(x: &Tensor, a: Activation) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return by_candle(x, a);
    }
    with_floats(x, |floats| from_floats(by_parts(floats, None, a)?, x.shape()))
}

/// `cap * tanh(x / cap)` on the calling thread.
pub(super) fn write_soft_cap(x: &[f32], cap: f32, out: &mut [f32]) {
    out.iter_mut().zip(x).for_each(|(out, x)| *out = cap * (x / cap).tanh());
}

/// Elements per parallel chunk; fewer are not worth a second thread.
const PART: usize = 1 << 13;

/// `a(x)`, times `factors` if there are some, in parallel if there are enough elements.
fn by_parts(x: &[f32], factors: Option<&[f32]>, a: Activation) -> Result<Vec<f32>> {
    let mut out = vec![0.0; x.len()];
    let shared = Shared::new(&mut out);
    pool::run(x.len().div_ceil(PART), |part| {
        let range = part * PART..x.len().min((part + 1) * PART);
        // SAFETY: each part lies within `out`, and the parts of different calls are disjoint.
        let out = unsafe { shared.part(range.start, range.len()) };
        dispatch(Activated { x: &x[range.clone()], factors: factors.map(|factors| &factors[range]), a, out });
    })?;
    Ok(out)
}

struct Activated<'a> {
    x: &'a [f32],
    factors: Option<&'a [f32]>,
    a: Activation,
    out: &'a mut [f32],
}

impl Kernel for Activated<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Self { x, factors, a, out } = self;
        let whole = x.len() / LANES * LANES;
        for at in (0..whole).step_by(LANES) {
            // SAFETY: all slices have sixteen floats from `at`.
            unsafe {
                let mut y = activated(lanes, lanes.load_f(x.as_ptr().add(at)), a);
                if let Some(factors) = factors {
                    y = lanes.mul(y, lanes.load_f(factors.as_ptr().add(at)));
                }
                lanes.store_f(out.as_mut_ptr().add(at), y);
            }
        }
        // The rest goes through the same operations: an element's result does not depend on where it stands.
        let rest = x.len() - whole;
        if rest > 0 {
            let (mut padded, mut factor) = ([0.0; LANES], [1.0; LANES]);
            padded[..rest].copy_from_slice(&x[whole..]);
            if let Some(factors) = factors {
                factor[..rest].copy_from_slice(&factors[whole..]);
            }
            // SAFETY: both arrays have sixteen floats.
            unsafe {
                let y = activated(lanes, lanes.load_f(padded.as_ptr()), a);
                lanes.store_f(padded.as_mut_ptr(), lanes.mul(y, lanes.load_f(factor.as_ptr())));
            }
            out[whole..].copy_from_slice(&padded[..rest]);
        }
    }
}

/// `a(x)` of sixteen elements.
#[inline(always)]
pub(crate) fn activated<L: Lanes>(lanes: L, x: L::F, a: Activation) -> L::F {
    let half_of = |x, factor| lanes.mul(lanes.mul(lanes.splat_f(0.5), x), lanes.add(lanes.splat_f(1.0), factor));
    match a {
        Activation::Silu => lanes.mul(x, sigmoid(lanes, x)),
        Activation::Gelu => {
            let scaled = lanes.mul(x, lanes.splat_f(std::f32::consts::FRAC_1_SQRT_2));
            half_of(x, error_function(lanes, scaled))
        }
        Activation::GeluTanh => {
            let cube = lanes.mul(lanes.mul(x, x), x);
            let inner = lanes.fma(lanes.splat_f(0.044_715), cube, x);
            let inner = lanes.mul(inner, lanes.splat_f((2.0 / std::f32::consts::PI).sqrt()));
            half_of(x, hyperbolic_tangent(lanes, inner))
        }
        // This argument order propagates NaN.
        Activation::Relu => lanes.max(lanes.splat_f(0.0), x),
    }
}

/// `a(x)` by candle's operations.
pub(super) fn by_candle(x: &Tensor, a: Activation) -> Result<Tensor> {
    match a {
        Activation::Silu => x.silu(),
        Activation::Gelu => x.gelu_erf(),
        Activation::GeluTanh => x.gelu(),
        Activation::Relu => x.relu(),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn exact(x: f64, a: Activation) -> f64 {
        match a {
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::Gelu => 0.5 * x * (1.0 + candle_core::cpu::erf::erf_f64(x * std::f64::consts::FRAC_1_SQRT_2)),
            Activation::GeluTanh => {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh())
            }
            Activation::Relu => x.max(0.0),
        }
    }

    #[test]
    fn many_elements_in_parts_are_close_to_the_formulas_and_what_each_would_be_alone() -> Result<()> {
        let values: Vec<f32> = (0..3 * PART + 5).map(|i| (i % 1731) as f32 / 60.0 - 14.0).collect();
        let x = Tensor::from_slice(&values, values.len(), &Device::Cpu)?;
        for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu] {
            let activated = activate(&x, activation)?.to_vec1::<f32>()?;
            let gated = gated(&x, &x, activation)?.to_vec1::<f32>()?;
            for (at, x) in values.iter().enumerate() {
                let exact = exact(f64::from(*x), activation);
                let error = (f64::from(activated[at]) - exact).abs();
                assert!(error <= 1e-6 * exact.abs().max(1.0), "{activation:?} at {x}: {}", activated[at]);
                assert_eq!(gated[at], activated[at] * x, "{activation:?} at {x}");
            }
            let few = activate(&x.narrow(0, 7, 3)?, activation)?.to_vec1::<f32>()?;
            assert_eq!(few, activated[7..10]);
        }
        Ok(())
    }
}
