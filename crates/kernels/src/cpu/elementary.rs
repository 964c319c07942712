//! Elementary functions of sixteen lanes, within a few units in the last place.

use super::lanes::Lanes;

/// `e` to the power of each lane, for lanes of at most 0, within 2 units in the last place; exactly 0 below -88.
///
/// The range reduction and the polynomial are those of Cephes' `expf`.
#[inline(always)]
pub fn exponential<L: Lanes>(lanes: L, x: L::F) -> L::F {
    // This argument order propagates NaN.
    let x = lanes.max(lanes.splat_f(-88.0), x);
    let n = lanes.to_nearest(lanes.mul(x, lanes.splat_f(std::f32::consts::LOG2_E)));
    let n_float = lanes.to_floats(n);
    let r = lanes.fma(n_float, lanes.splat_f(-0.693_359_4), x);
    let r = lanes.fma(n_float, lanes.splat_f(2.121_944_4e-4), r);
    let mut p = lanes.splat_f(1.987_569_1e-4);
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = lanes.fma(p, r, lanes.splat_f(coefficient));
    }
    let p = lanes.add(lanes.fma(p, lanes.mul(r, r), r), lanes.splat_f(1.0));
    // 2 to the power of n, assembled from its exponent; n = -127 gives 0.
    let power = lanes.bits_as_floats(lanes.shift_left::<23>(lanes.add_i(n, lanes.splat_i(127))));
    lanes.mul(p, power)
}

/// `tanh(x) = sign(x) * (1 - e^(-2|x|)) / (1 + e^(-2|x|))`.
#[inline(always)]
pub fn hyperbolic_tangent<L: Lanes>(lanes: L, x: L::F) -> L::F {
    let bits = lanes.floats_as_bits(x);
    let sign = lanes.and(bits, lanes.splat_i(i32::MIN));
    let magnitude = lanes.bits_as_floats(lanes.and(bits, lanes.splat_i(i32::MAX)));
    let e = exponential(lanes, lanes.mul(magnitude, lanes.splat_f(-2.0)));
    let one = lanes.splat_f(1.0);
    let tanh = lanes.div(lanes.sub(one, e), lanes.add(one, e));
    lanes.bits_as_floats(lanes.or(lanes.floats_as_bits(tanh), sign))
}

/// `1 / (1 + e^(-x))`
#[inline(always)]
pub fn sigmoid<L: Lanes>(lanes: L, x: L::F) -> L::F {
    let bits = lanes.floats_as_bits(x);
    let magnitude = lanes.and(bits, lanes.splat_i(i32::MAX));
    let e = exponential(lanes, lanes.bits_as_floats(lanes.or(magnitude, lanes.splat_i(i32::MIN))));
    // `e / (1 + e)` for negative lanes and `1 / (1 + e)` for the others: no power overflows.
    let is_negative = lanes.shift_right_signed::<31>(bits);
    let one = lanes.splat_f(1.0);
    let is_positive = lanes.xor(is_negative, lanes.splat_i(-1));
    let numerator =
        lanes.or(lanes.and(lanes.floats_as_bits(e), is_negative), lanes.and(lanes.floats_as_bits(one), is_positive));
    lanes.div(lanes.bits_as_floats(numerator), lanes.add(one, e))
}

/// Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: absolute error at most 1.5e-7.
#[inline(always)]
pub fn error_function<L: Lanes>(lanes: L, x: L::F) -> L::F {
    let bits = lanes.floats_as_bits(x);
    let sign = lanes.and(bits, lanes.splat_i(i32::MIN));
    let magnitude = lanes.bits_as_floats(lanes.and(bits, lanes.splat_i(i32::MAX)));
    let one = lanes.splat_f(1.0);
    let t = lanes.div(one, lanes.fma(lanes.splat_f(0.327_591_1), magnitude, one));
    let mut p = lanes.splat_f(1.061_405_4);
    for coefficient in [-1.453_152_1, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        p = lanes.fma(p, t, lanes.splat_f(coefficient));
    }
    let negative_square = lanes.sub(lanes.splat_f(0.0), lanes.mul(magnitude, magnitude));
    let erf = lanes.sub(one, lanes.mul(lanes.mul(p, t), exponential(lanes, negative_square)));
    lanes.bits_as_floats(lanes.or(lanes.floats_as_bits(erf), sign))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{
        features::InstructionSet,
        lanes::{Kernel, LANES, dispatch_to},
    };

    #[derive(Clone, Copy)]
    enum Function {
        Exponential,
        Tanh,
        Sigmoid,
        Erf,
    }

    struct At(Function, [f32; LANES]);

    impl Kernel for At {
        type Output = [f32; LANES];

        #[inline(always)]
        fn run<L: Lanes>(self, lanes: L) -> [f32; LANES] {
            let mut out = [0.0; LANES];
            // SAFETY: both arrays have sixteen floats.
            unsafe {
                let x = lanes.load_f(self.1.as_ptr());
                let y = match self.0 {
                    Function::Exponential => exponential(lanes, x),
                    Function::Tanh => hyperbolic_tangent(lanes, x),
                    Function::Sigmoid => sigmoid(lanes, x),
                    Function::Erf => error_function(lanes, x),
                };
                lanes.store_f(out.as_mut_ptr(), y);
            }
            out
        }
    }

    #[test]
    fn all_are_as_close_as_they_say_on_every_instruction_set() {
        type Exact = fn(f64) -> f64;
        let functions: [(Function, Exact, f64); 4] = [
            (Function::Exponential, |x| if x < -87.3 { 0.0 } else { x.exp() }, 3e-7),
            (Function::Tanh, f64::tanh, 3e-7),
            (Function::Sigmoid, |x| 1.0 / (1.0 + (-x).exp()), 3e-7),
            (Function::Erf, candle_core::cpu::erf::erf_f64, 5e-7),
        ];
        for set in InstructionSet::supported() {
            for (function, exact, tolerance) in functions {
                for step in -1200..1200 {
                    let from = step as f32 / 10.0;
                    let x: [f32; LANES] = std::array::from_fn(|i| {
                        let x = from + i as f32 / 160.0;
                        if matches!(function, Function::Exponential) { -x.abs() } else { x }
                    });
                    for (x, y) in x.into_iter().zip(dispatch_to(set, At(function, x))) {
                        let error = (f64::from(y) - exact(f64::from(x))).abs();
                        assert!(error <= tolerance, "{set:?} at {x}: {y}, off by {error}");
                    }
                }
                let extremes: [f32; LANES] = std::array::from_fn(|i| if i == 0 { f32::NAN } else { -1e30 });
                let y = dispatch_to(set, At(function, extremes));
                assert!(y[0].is_nan(), "{set:?}: NaN stays NaN");
                assert!((f64::from(y[1]) - exact(-1e30)).abs() <= tolerance, "{set:?}: {}", y[1]);
            }
        }
    }
}
