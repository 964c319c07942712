//! The CPU's own kernels.

pub mod features;
pub mod reference;
