//! Hearth: a self-hosted inference server in one binary.

#![forbid(unsafe_code)]

pub mod app;
pub mod cli;
pub mod config;
pub mod engine;
pub mod http;
pub mod metering;
pub mod providers;
pub mod retrieval;
pub mod service;
pub mod store;
pub mod telemetry;
pub mod wire;
