//! The CPU kernels.
//!
//! Kernels are written once over sixteen lanes (`lanes.rs`) and compiled for AVX-512, AVX2 and plain arrays. Matrix
//! multiplication: `quantize` prepares the input, `unpack_*` unpack the weights' blocks into a `tile`, `microkernel`
//! multiplies, `matmul` cuts the work into chunks for the threads. For a few rows, `gemv` multiplies what it reads from `tiles`, which
//! are the weights in the order in which it reads them.

pub mod attend;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod distance;
pub mod elementary;
pub mod features;
mod gemv;
pub mod lanes;
pub mod matmul;
mod microkernel;
mod portable;
pub mod quantize;
pub mod reference;
mod source;
mod tile;
pub mod tiles;
mod unpack_blocks;
mod unpack_superblocks;
