//! What this processor can do, and so which instruction set the kernels run with.
//!
//! The binary is portable: nothing is compiled for the build machine, everything is chosen here at run time.

use std::{fmt, sync::OnceLock};

/// An instruction set that the kernels are compiled for, slowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum InstructionSet {
    /// Plain Rust, vectorised by the compiler for the target's baseline.
    Portable,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// The same with `vpdpbusd` on 256-bit vectors.
    AvxVnni,
    /// AVX-512 F, BW, VL, DQ and VNNI.
    Avx512Vnni,
}

/// What the CPU path dispatches to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuFeatures {
    pub instruction_set: InstructionSet,
}

impl fmt::Display for CpuFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.instruction_set {
            InstructionSet::Portable => "portable",
            InstructionSet::Avx2 => "AVX2, FMA, F16C",
            InstructionSet::AvxVnni => "AVX2, FMA, F16C, AVX-VNNI",
            InstructionSet::Avx512Vnni => "AVX-512, AVX-512 VNNI",
        })
    }
}

/// Detected once.
pub fn cpu_features() -> CpuFeatures {
    static FEATURES: OnceLock<CpuFeatures> = OnceLock::new();
    *FEATURES.get_or_init(|| CpuFeatures { instruction_set: detect() })
}

#[cfg(target_arch = "x86_64")]
fn detect() -> InstructionSet {
    if is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vnni")
    {
        InstructionSet::Avx512Vnni
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
        if is_x86_feature_detected!("avxvnni") { InstructionSet::AvxVnni } else { InstructionSet::Avx2 }
    } else {
        InstructionSet::Portable
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> InstructionSet {
    InstructionSet::Portable
}
