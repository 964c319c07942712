//! Activation functions, on their own and as the gate of a feed-forward layer.

use candle_core::{Result, Tensor};

use super::{cpu::quantize::Shared, from_floats, pool, with_floats};

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
        return on_device(gate, a)? * up;
    }
    with_floats(gate, |gates| {
        with_floats(up, |ups| from_floats(by_parts(gates.len(), |at| scalar(gates[at], a) * ups[at])?, gate.shape()))
    })
}

/// `a(x)`, elementwise.
pub fn activate(x: &Tensor, a: Activation) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return on_device(x, a);
    }
    with_floats(x, |floats| from_floats(by_parts(floats.len(), |at| scalar(floats[at], a))?, x.shape()))
}

/// Elements per parallel chunk; fewer are not worth a second thread.
const PART: usize = 1 << 13;

/// `value(0)`, `value(1)`, ... `value(len - 1)`, in parallel if there are enough elements.
fn by_parts(len: usize, value: impl Fn(usize) -> f32 + Sync) -> Result<Vec<f32>> {
    let mut out = vec![0.0; len];
    let fill = |first: usize, out: &mut [f32]| {
        for (offset, out) in out.iter_mut().enumerate() {
            *out = value(first + offset);
        }
    };
    if len <= PART {
        fill(0, &mut out);
        return Ok(out);
    }
    let shared = Shared::new(&mut out);
    pool::run(len.div_ceil(PART), |part| {
        let first = part * PART;
        // SAFETY: each part lies within `out`, and the parts of different calls are disjoint.
        fill(first, unsafe { shared.part(first, PART.min(len - first)) });
    })?;
    Ok(out)
}

fn on_device(x: &Tensor, a: Activation) -> Result<Tensor> {
    match a {
        Activation::Silu => x.silu(),
        Activation::Gelu => x.gelu_erf(),
        Activation::GeluTanh => x.gelu(),
        Activation::Relu => x.relu(),
    }
}

fn scalar(x: f32, a: Activation) -> f32 {
    match a {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => 0.5 * x * (1.0 + error_function(x * std::f32::consts::FRAC_1_SQRT_2)),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f32::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::Relu => x.max(0.0),
    }
}

/// Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: absolute error at most 1.5e-7.
fn error_function(x: f32) -> f32 {
    let magnitude = x.abs();
    let t = 1.0 / (1.0 + 0.327_591_1 * magnitude);
    let polynomial = t * (0.254_829_6 + t * (-0.284_496_74 + t * (1.421_413_7 + t * (-1.453_152_1 + t * 1.061_405_4))));
    (1.0 - polynomial * (-magnitude * magnitude).exp()).copysign(x)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn many_elements_in_parts_are_what_each_would_be_alone() -> Result<()> {
        let values: Vec<f32> = (0..3 * PART + 5).map(|i| (i % 173) as f32 / 20.0 - 4.0).collect();
        let x = Tensor::from_slice(&values, values.len(), &Device::Cpu)?;
        for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu] {
            let expected: Vec<f32> = values.iter().map(|x| scalar(*x, activation)).collect();
            assert_eq!(activate(&x, activation)?.to_vec1::<f32>()?, expected);
            let gated_expected: Vec<f32> = values.iter().map(|x| scalar(*x, activation) * x).collect();
            assert_eq!(gated(&x, &x, activation)?.to_vec1::<f32>()?, gated_expected);
        }
        Ok(())
    }

    #[test]
    fn the_error_function_is_as_close_as_it_says() {
        for step in -600..=600_i16 {
            let x = f32::from(step) / 100.0;
            let exact = candle_core::cpu::erf::erf_f64(f64::from(x));
            assert!((f64::from(error_function(x)) - exact).abs() < 5e-7, "at {x}");
        }
        assert!(error_function(f32::NAN).is_nan());
    }
}
