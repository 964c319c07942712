//! The only code that knows which device it runs on.

pub mod quant;
