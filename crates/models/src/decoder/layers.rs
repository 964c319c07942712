//! What differs between layers: sliding windows and the rotation that goes with them.

use super::{
    architecture::{Architecture, WindowPattern},
    config::LayerRope,
    error::ModelError,
    keys::Keys,
    rope::{RopeConfig, RopeScaling},
};

/// Early Gemma 2 files omit their window.
const GEMMA2_WINDOW: usize = 4096;
const MAX_WINDOW: u64 = 1 << 40;

/// How far back a layer attends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LayerWindow {
    /// Whether the family's pattern makes this a local layer.
    pub(super) is_local: bool,
    /// Its window, if shorter than the context.
    pub(super) tokens: Option<usize>,
}

/// The window of each layer.
pub(super) fn windows(keys: &Keys<'_>, n_layers: usize, context_length: usize) -> Result<Vec<LayerWindow>, ModelError> {
    let architecture = keys.architecture();
    let key = "attention.sliding_window";
    let window = match keys.metadata().get(&keys.name(key)) {
        None if architecture == Architecture::Gemma2 => GEMMA2_WINDOW as u64,
        None => 0,
        Some(_) => keys.metadata().require_u64(&keys.name(key))?,
    };
    if window > MAX_WINDOW {
        return Err(keys.invalid(key, window, format!("a window is at most {MAX_WINDOW}")));
    }
    if window == 0 {
        return Ok(vec![LayerWindow { is_local: false, tokens: None }; n_layers]);
    }
    // A window as long as the context masks nothing.
    let tokens = usize::try_from(window).ok().filter(|&window| window < context_length);
    let window_of = |is_local: bool| LayerWindow { is_local, tokens: tokens.filter(|_| is_local) };

    let pattern_key = "attention.sliding_window_pattern";
    if architecture.window_pattern() != WindowPattern::Never
        && let Some(pattern) = keys.metadata().bools(&keys.name(pattern_key))
    {
        if pattern.len() != n_layers {
            return Err(keys.invalid(
                pattern_key,
                format!("a list of {}", pattern.len()),
                format!("there are {n_layers} layers"),
            ));
        }
        return Ok(pattern.into_iter().map(window_of).collect());
    }
    let period = match architecture.window_pattern() {
        WindowPattern::Never => return Ok(vec![window_of(false); n_layers]),
        WindowPattern::Always => return Ok(vec![window_of(true); n_layers]),
        WindowPattern::AllButEach(default) => keys.count(pattern_key, usize::MAX)?.unwrap_or(default),
    };
    Ok((0..n_layers).map(|layer| window_of(layer % period < period - 1)).collect())
}

/// The rotation of local layers, derived from that of the global ones.
pub(super) fn local_rope(keys: &Keys<'_>, global: &RopeConfig) -> Result<RopeConfig, ModelError> {
    let mut local = global.clone();
    let default_base = match keys.architecture() {
        // Local layers were trained with the original base and without scaling.
        Architecture::Gemma3 => {
            local.scaling = RopeScaling::None;
            10_000.0
        }
        Architecture::Olmo2 => {
            local.scaling = RopeScaling::None;
            global.base
        }
        _ => global.base,
    };
    let key = "rope.freq_base_swa";
    local.base = keys.number(key)?.unwrap_or(default_base);
    if local.base <= 1.0 {
        return Err(keys.invalid(key, local.base, "the base of the frequencies must be above 1".to_owned()));
    }
    Ok(local)
}

pub(super) fn rope_of_layer(architecture: Architecture, layer: usize, is_local: bool) -> LayerRope {
    match architecture {
        // Every fourth layer has no position information (arXiv 2501.18795).
        Architecture::SmolLm3 if (layer + 1).is_multiple_of(4) => LayerRope::None,
        _ if is_local => LayerRope::Local,
        _ => LayerRope::Global,
    }
}
