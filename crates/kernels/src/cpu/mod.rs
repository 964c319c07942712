//! The CPU kernels.
//!
//! Kernels are written once over sixteen lanes (`lanes.rs`) and compiled for AVX-512, AVX2 and plain arrays. Matrix
//! multiplication: `quantize` prepares the input, `unpack_*` unpack the weights' blocks into a `tile`, `microkernel`
//! multiplies, `matmul` distributes the work over the threads.

pub mod attend;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod distance;
pub mod features;
pub mod lanes;
pub mod matmul;
mod microkernel;
mod portable;
pub mod quantize;
pub mod reference;
mod tile;
mod unpack_blocks;
mod unpack_superblocks;
