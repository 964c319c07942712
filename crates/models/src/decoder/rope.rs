//! Rotary position embeddings as numbers: the frequency at which each pair of dimensions rotates.
//!
//! Every context-extension scheme that model files use changes only two things, the inverse frequencies and
//! one factor on cosine and sine. They are worked out here once, in `f64`, from the file's metadata; applying
//! them to tensors is `kernels::rope`'s business. The formulas are those of `transformers`
//! (`modeling_rope_utils.py`), which the models were trained and published with.

use std::f64::consts::PI;

/// The rotation of one kind of layer: base, width and scaling scheme.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// `rope_theta`, the base of the geometric series of wavelengths.
    pub base: f64,
    /// Number of leading dimensions of each head that rotate; even and at least 2.
    pub rotary_dim: usize,
    pub scaling: RopeScaling,
    /// One divisor per frequency, from the tensor `rope_freqs.weight`: llama-3 files carry their scaling this way.
    pub frequency_factors: Option<Vec<f32>>,
}

/// How the context is extended beyond that of pre-training.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    None,
    /// Every position is divided by `factor`.
    Linear {
        factor: f64,
    },
    Yarn(YarnScaling),
    LongRope(LongRopeScaling),
}

/// YaRN (arXiv 2309.00071): high frequencies are kept, low ones interpolated, with a ramp in between.
#[derive(Clone, Debug, PartialEq)]
pub struct YarnScaling {
    pub factor: f64,
    pub original_context_length: usize,
    /// Rotations within the original context above which a dimension is left unchanged.
    pub beta_fast: f64,
    /// Rotations below which it is fully interpolated.
    pub beta_slow: f64,
    /// Weight of the unchanged part; 1 unless the file says otherwise.
    pub extrapolation_factor: f64,
    /// The factor on cosine and sine, if the file gives one.
    pub attention_factor: Option<f64>,
    /// `mscale_all_dim`, if the file gives it (`yarn_log_multiplier`).
    pub log_multiplier: Option<f64>,
}

/// LongRoPE (arXiv 2402.13753), also called su: one searched divisor per frequency, in two sets.
#[derive(Clone, Debug, PartialEq)]
pub struct LongRopeScaling {
    pub original_context_length: usize,
    pub short_factors: Vec<f32>,
    pub long_factors: Vec<f32>,
    /// The factor on cosine and sine, the same for both sets.
    pub attention_factor: f64,
}

/// The frequencies of a [`RopeConfig`] for one context length.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeFrequencies {
    /// `rotary_dim / 2` angles per position, in radians.
    pub inverse: Vec<f32>,
    /// Multiplies cosine and sine.
    pub attention_factor: f32,
}

impl RopeConfig {
    /// `context_length` selects one of LongRoPE's two sets. A server must choose once, for all sequences and all
    /// positions, because keys in the cache are already rotated: the long set as soon as a sequence may become longer
    /// than the original context.
    pub fn frequencies(&self, context_length: usize) -> RopeFrequencies {
        let half = self.rotary_dim / 2;
        let mut inverse: Vec<f64> =
            (0..half).map(|pair| self.base.powf(-2.0 * pair as f64 / self.rotary_dim as f64)).collect();
        if let Some(factors) = &self.frequency_factors {
            divide(&mut inverse, factors);
        }
        let attention_factor = match &self.scaling {
            RopeScaling::None => 1.0,
            RopeScaling::Linear { factor } => {
                inverse.iter_mut().for_each(|frequency| *frequency /= factor);
                1.0
            }
            RopeScaling::Yarn(yarn) => {
                yarn.scale(&mut inverse, self.base, self.rotary_dim);
                yarn.attention_factor()
            }
            RopeScaling::LongRope(longrope) => {
                let long = context_length > longrope.original_context_length;
                divide(&mut inverse, if long { &longrope.long_factors } else { &longrope.short_factors });
                longrope.attention_factor
            }
        };
        RopeFrequencies {
            inverse: inverse.iter().map(|&frequency| frequency as f32).collect(),
            attention_factor: attention_factor as f32,
        }
    }
}

fn divide(inverse: &mut [f64], factors: &[f32]) {
    for (frequency, &factor) in inverse.iter_mut().zip(factors) {
        *frequency /= f64::from(factor);
    }
}

impl YarnScaling {
    fn scale(&self, inverse: &mut [f64], base: f64, rotary_dim: usize) {
        // The dimension that rotates `rotations` times within the original context.
        let dimension = |rotations: f64| {
            rotary_dim as f64 * (self.original_context_length as f64 / (rotations * 2.0 * PI)).ln() / (2.0 * base.ln())
        };
        let low = dimension(self.beta_fast).floor().max(0.0);
        let mut high = dimension(self.beta_slow).ceil().min(rotary_dim as f64 - 1.0);
        if high <= low {
            // transformers' guard against a zero-width ramp.
            high = low + 0.001;
        }
        for (pair, frequency) in inverse.iter_mut().enumerate() {
            let ramp = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
            let kept = (1.0 - ramp) * self.extrapolation_factor;
            *frequency = *frequency / self.factor * (1.0 - kept) + *frequency * kept;
        }
    }

    fn attention_factor(&self) -> f64 {
        let magnitude = |multiplier: f64| {
            if self.factor <= 1.0 { 1.0 } else { 0.1 * multiplier * self.factor.ln() + 1.0 }
        };
        match (self.attention_factor, self.log_multiplier) {
            (Some(factor), _) => factor,
            // Files that carry `mscale_all_dim` have `mscale` 1.
            (None, Some(multiplier)) if multiplier != 0.0 => magnitude(1.0) / magnitude(multiplier),
            (None, _) => magnitude(1.0),
        }
    }
}

impl LongRopeScaling {
    /// The factor that `transformers` derives from the two context lengths, for files without one.
    pub fn derived_attention_factor(context_length: usize, original_context_length: usize) -> f64 {
        let factor = context_length as f64 / original_context_length as f64;
        if factor <= 1.0 || original_context_length < 2 {
            1.0
        } else {
            (1.0 + factor.ln() / (original_context_length as f64).ln()).sqrt()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected numbers are what transformers 5.23 computes (in f32) for `head_dim` 16.
    fn assert_frequencies(config: &RopeConfig, context_length: usize, inverse: [f64; 8], attention_factor: f32) {
        let actual = config.frequencies(context_length);
        assert_eq!(actual.inverse.len(), 8);
        for (pair, (actual, expected)) in actual.inverse.iter().zip(inverse).enumerate() {
            let relative = (f64::from(*actual) - expected).abs() / expected;
            assert!(relative < 2e-6, "pair {pair}: {actual} is not {expected}");
        }
        assert!((actual.attention_factor - attention_factor).abs() < 1e-6, "{}", actual.attention_factor);
    }

    fn config(base: f64, scaling: RopeScaling) -> RopeConfig {
        RopeConfig { base, rotary_dim: 16, scaling, frequency_factors: None }
    }

    fn yarn(factor: f64, original_context_length: usize) -> YarnScaling {
        YarnScaling {
            factor,
            original_context_length,
            beta_fast: 32.0,
            beta_slow: 1.0,
            extrapolation_factor: 1.0,
            attention_factor: None,
            log_multiplier: None,
        }
    }

    #[test]
    fn linear_divides_positions() {
        assert_frequencies(
            &config(10_000.0, RopeScaling::Linear { factor: 4.0 }),
            8192,
            [2.5e-1, 7.905_694e-2, 2.5e-2, 7.905_695e-3, 2.5e-3, 7.905_695e-4, 2.5e-4, 7.905_695e-5],
            1.0,
        );
    }

    #[test]
    fn llama3_factors_come_from_the_file() {
        let mut config = config(500_000.0, RopeScaling::None);
        // What the GGUF converter writes for factor 8, original context 8192.
        config.frequency_factors = Some(vec![1.0, 1.0, 1.0, 1.0, 2.694_53, 8.0, 8.0, 8.0]);
        assert_frequencies(
            &config,
            131_072,
            [
                1.0,
                1.939_227_6e-1,
                3.760_603e-2,
                7.292_665e-3,
                5.248_460_2e-4,
                3.428_102_4e-5,
                6.647_869_7e-6,
                1.289_173_2e-6,
            ],
            1.0,
        );
    }

    #[test]
    fn yarn_ramps_between_kept_and_interpolated() {
        assert_frequencies(
            &config(1_000_000.0, RopeScaling::Yarn(yarn(4.0, 32_768))),
            131_072,
            [1.0, 1.778_279_4e-1, 3.162_277_9e-2, 4.217_56e-3, 5.0e-4, 4.445_698_5e-5, 7.905_693_6e-6, 1.405_853_4e-6],
            1.138_629_4,
        );
    }

    #[test]
    fn yarn_with_equal_magnitude_scales_has_no_attention_factor() {
        let mut scaling = yarn(16.0, 16_384);
        scaling.log_multiplier = Some(1.0);
        assert_frequencies(
            &config(1_000_000.0, RopeScaling::Yarn(scaling)),
            131_072,
            [
                1.0,
                1.778_279_4e-1,
                3.162_277_9e-2,
                3.866_096_5e-3,
                3.75e-4,
                1.111_424_6e-5,
                1.976_423_4e-6,
                3.514_633_4e-7,
            ],
            1.0,
        );
    }

    #[test]
    fn longrope_chooses_its_set_by_context_length() {
        let scaling = LongRopeScaling {
            original_context_length: 4096,
            short_factors: vec![1.0, 1.0, 1.05, 1.1, 1.2, 1.3, 1.4, 1.5],
            long_factors: vec![1.0, 1.5, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0],
            attention_factor: LongRopeScaling::derived_attention_factor(131_072, 4096),
        };
        let config = config(10_000.0, RopeScaling::LongRope(scaling));
        let long = [1.0, 2.108_185e-1, 5.0e-2, 7.905_695e-3, 1.25e-3, 1.976_423_7e-4, 3.125e-5, 4.941_059e-6];
        let short = [
            1.0,
            3.162_277_6e-1,
            9.523_81e-2,
            2.874_798e-2,
            8.333_333e-3,
            2.432_521_4e-3,
            7.142_857e-4,
            2.108_185_1e-4,
        ];
        assert_frequencies(&config, 4097, long, 1.190_238);
        assert_frequencies(&config, 4096, short, 1.190_238);
    }

    #[test]
    fn no_ramp_width_is_no_division_by_zero() {
        let frequencies = config(10_000.0, RopeScaling::Yarn(yarn(2.0, 1))).frequencies(2);
        assert!(frequencies.inverse.iter().all(|frequency| frequency.is_finite()));
    }
}
