//! Hearth: a self-hosted inference server in one binary.

pub mod app;
pub mod cli;
pub mod config;
pub mod domain;
pub mod engine;
pub mod error;
pub mod http;
pub mod index;
pub mod kernels;
pub mod metering;
pub mod models;
pub mod providers;
pub mod retrieval;
pub mod service;
pub mod store;
pub mod telemetry;
pub mod text;
pub mod wire;
