//! The CPU kernels.
//!
//! Kernels are written once over sixteen lanes (`lanes.rs`) and compiled for AVX-512, AVX2, NEON and plain arrays. Matrix
//! multiplication: `quantize` prepares the input, `unpack_*` unpack the weights' blocks into a `tile`, `microkernel` or `amx`
//! multiplies, `destination` puts the products where they go; `unit` takes these steps for some tiles and rows, and `matmul` cuts
//! the work into chunks for the threads. For a few rows, `gemv` multiplies what it reads from `tiles`, which are the weights in the
//! order in which it reads them.

#[cfg(target_arch = "x86_64")]
mod amx;
pub mod attend;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod destination;
pub mod distance;
pub mod elementary;
pub mod features;
mod gemv;
pub mod lanes;
pub mod matmul;
mod microkernel;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
mod prefetch;
pub mod quantize;
pub mod reference;
mod source;
mod tile;
pub mod tiles;
mod unit;
mod unpack_blocks;
mod unpack_superblocks;
