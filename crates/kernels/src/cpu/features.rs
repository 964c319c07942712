//! What this processor supports, and therefore which instruction set the kernels use.
//!
//! The binary is portable: nothing is compiled for the build machine, everything is selected at run time.

use std::{fmt, sync::OnceLock};

/// An instruction set that the kernels are compiled for, slowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum InstructionSet {
    /// Plain Rust, vectorised by the compiler for the target's baseline.
    Portable,
    /// ARM's 128-bit vectors with the dot products of bytes of ARMv8.2.
    Neon,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// The same with `vpdpbusd` on 256-bit vectors.
    AvxVnni,
    /// AVX-512 F, BW, VL, DQ and VNNI.
    Avx512Vnni,
    /// The same with AMX for bytes.
    Amx,
}

/// The features that the CPU path dispatches on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuFeatures {
    pub instruction_set: InstructionSet,
}

impl fmt::Display for CpuFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.instruction_set {
            InstructionSet::Portable => "portable",
            InstructionSet::Neon => "NEON, dotprod",
            InstructionSet::Avx2 => "AVX2, FMA, F16C",
            InstructionSet::AvxVnni => "AVX2, FMA, F16C, AVX-VNNI",
            InstructionSet::Avx512Vnni => "AVX-512, AVX-512 VNNI",
            InstructionSet::Amx => "AVX-512, AVX-512 VNNI, AMX-INT8",
        })
    }
}

impl InstructionSet {
    /// All sets, slowest first.
    pub const ALL: [Self; 6] = [Self::Portable, Self::Neon, Self::Avx2, Self::AvxVnni, Self::Avx512Vnni, Self::Amx];

    /// Whether this processor has the set. A faster set does not imply the slower ones: Ice Lake and Zen 4 have AVX-512
    /// VNNI but not AVX-VNNI.
    pub fn is_supported(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            match self {
                Self::Portable => true,
                Self::Neon => false,
                Self::Avx2 => avx2,
                Self::AvxVnni => avx2 && is_x86_feature_detected!("avxvnni"),
                Self::Avx512Vnni => {
                    is_x86_feature_detected!("avx512f")
                        && is_x86_feature_detected!("avx512bw")
                        && is_x86_feature_detected!("avx512vl")
                        && is_x86_feature_detected!("avx512dq")
                        && is_x86_feature_detected!("avx512vnni")
                }
                Self::Amx => Self::Avx512Vnni.is_supported() && super::amx::granted(),
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            let neon = super::neon::Neon::detect().is_some();
            self == Self::Portable || (self == Self::Neon && neon)
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        {
            self == Self::Portable
        }
    }

    /// The sets that this processor has, slowest first.
    pub fn supported() -> impl DoubleEndedIterator<Item = Self> {
        Self::ALL.into_iter().filter(|set| set.is_supported())
    }
}

/// Detected once per process.
pub fn cpu_features() -> CpuFeatures {
    static FEATURES: OnceLock<CpuFeatures> = OnceLock::new();
    *FEATURES.get_or_init(|| CpuFeatures {
        instruction_set: InstructionSet::supported().next_back().unwrap_or(InstructionSet::Portable),
    })
}
