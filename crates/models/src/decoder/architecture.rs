//! The decoder families, as GGUF's `general.architecture` names them, and how they differ.
//!
//! A family is a handful of choices: how rotary dimensions are paired, where the norms are, which activation gates the
//! feed-forward network, which layers use a sliding window. Everything else is numbers in the file.

use hearth_kernels::{activation::Activation, rope::RopeLayout};

/// A family that one decoder definition covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 1 to 3.3, Mistral, `SmolLM2`, `TinyLlama`, and the many that share their layout.
    Llama,
    /// Ministral 3 and Mistral Small 3: llama with YaRN and a temperature on attention.
    Mistral3,
    Qwen2,
    Qwen3,
    /// Phi-3, Phi-3.5-mini, Phi-4 and Phi-4-mini.
    Phi3,
    Gemma,
    Gemma2,
    Gemma3,
    SmolLm3,
    Granite,
    /// `OLMo` 2 and 3.
    Olmo2,
}

/// Normalization of queries and keys before rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    None,
    /// Each head separately, weights of `head_dim`.
    PerHead,
    /// All heads of a token together, weights of `heads * head_dim`.
    AllHeads,
}

/// Which layers use a sliding window when the file gives a window size but no pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowPattern {
    /// The family has no windows; a window in the file is left over from its training configuration.
    Never,
    Always,
    /// All except every `n`-th layer.
    AllButEach(usize),
}

impl Architecture {
    pub const ALL: [Self; 11] = [
        Self::Llama,
        Self::Mistral3,
        Self::Qwen2,
        Self::Qwen3,
        Self::Phi3,
        Self::Gemma,
        Self::Gemma2,
        Self::Gemma3,
        Self::SmolLm3,
        Self::Granite,
        Self::Olmo2,
    ];

    /// The name used in files, which is also the prefix of their metadata keys.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral3 => "mistral3",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Phi3 => "phi3",
            Self::Gemma => "gemma",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3",
            Self::SmolLm3 => "smollm3",
            Self::Granite => "granite",
            Self::Olmo2 => "olmo2",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|architecture| architecture.name() == name)
    }

    /// All names, for error messages.
    pub fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }

    /// Converters permute the weights of some families so that the elements of a rotated pair are adjacent.
    pub const fn rope_layout(self) -> RopeLayout {
        match self {
            Self::Llama | Self::Mistral3 | Self::SmolLm3 | Self::Granite => RopeLayout::Interleaved,
            _ => RopeLayout::Halves,
        }
    }

    pub const fn activation(self) -> Activation {
        if self.is_gemma() { Activation::GeluTanh } else { Activation::Silu }
    }

    /// Gemma scales embeddings by the square root of the hidden size and ties output to input.
    pub const fn is_gemma(self) -> bool {
        matches!(self, Self::Gemma | Self::Gemma2 | Self::Gemma3)
    }

    pub const fn qk_norm(self) -> QkNorm {
        match self {
            Self::Qwen3 | Self::Gemma3 => QkNorm::PerHead,
            Self::Olmo2 => QkNorm::AllHeads,
            _ => QkNorm::None,
        }
    }

    /// Whether attention and feed-forward normalize their inputs.
    pub const fn has_input_norms(self) -> bool {
        !matches!(self, Self::Olmo2)
    }

    /// Whether attention and feed-forward normalize their outputs before adding them to the residual.
    pub const fn has_output_norms(self) -> bool {
        matches!(self, Self::Gemma2 | Self::Gemma3 | Self::Olmo2)
    }

    pub const fn window_pattern(self) -> WindowPattern {
        match self {
            Self::Gemma2 => WindowPattern::AllButEach(2),
            Self::Gemma3 => WindowPattern::AllButEach(6),
            Self::Olmo2 => WindowPattern::AllButEach(4),
            Self::Llama | Self::Mistral3 | Self::Phi3 => WindowPattern::Always,
            _ => WindowPattern::Never,
        }
    }

    /// The layer count of the one published size that scales attention by `hidden / heads` instead of `head_dim`; the
    /// file itself does not say so.
    pub const fn layers_of_size_scaled_by_hidden(self) -> Option<usize> {
        match self {
            Self::Gemma2 => Some(46),
            Self::Gemma3 => Some(62),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_again() {
        for architecture in Architecture::ALL {
            assert_eq!(Architecture::from_name(architecture.name()), Some(architecture));
        }
        assert_eq!(Architecture::from_name("mamba"), None);
    }
}
