//! Activation functions, alone and as the gate of a feed-forward layer.

use candle_core::{Result, Tensor};

use super::{from_floats, with_floats};

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

/// `a(gate) * up`, element by element.
pub fn gated(gate: &Tensor, up: &Tensor, a: Activation) -> Result<Tensor> {
    if gate.shape() != up.shape() {
        candle_core::bail!("gate is {:?}, up is {:?}: they must agree", gate.shape(), up.shape());
    }
    if !gate.device().is_cpu() {
        return on_device(gate, a)? * up;
    }
    with_floats(gate, |gates| {
        with_floats(up, |ups| {
            let out = gates.iter().zip(ups).map(|(gate, up)| scalar(*gate, a) * up).collect();
            from_floats(out, gate.shape())
        })
    })
}

/// `a(x)`, element by element.
pub fn activate(x: &Tensor, a: Activation) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return on_device(x, a);
    }
    with_floats(x, |floats| from_floats(floats.iter().map(|x| scalar(*x, a)).collect(), x.shape()))
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
        Activation::Gelu => {
            let x = f64::from(x);
            (0.5 * x * (1.0 + candle_core::cpu::erf::erf_f64(x / std::f64::consts::SQRT_2))) as f32
        }
        Activation::GeluTanh => {
            let inner = (2.0 / std::f32::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::Relu => x.max(0.0),
    }
}
