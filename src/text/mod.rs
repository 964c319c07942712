//! Between text and tokens.

pub mod stop;
