//! Checked reading of one architecture's metadata keys.
//!
//! `Metadata` knows the types; this file knows the valid ranges. A value of the wrong type is an error rather than an
//! absence, so that a damaged key is not silently replaced by a default.

use std::fmt;

use super::{architecture::Architecture, error::ModelError};
use crate::gguf::Metadata;

/// A file's metadata, under the prefix of its architecture.
pub(super) struct Keys<'a> {
    metadata: &'a Metadata,
    architecture: Architecture,
}

impl<'a> Keys<'a> {
    pub(super) fn new(metadata: &'a Metadata, architecture: Architecture) -> Self {
        Self { metadata, architecture }
    }

    pub(super) fn metadata(&self) -> &'a Metadata {
        self.metadata
    }

    pub(super) fn architecture(&self) -> Architecture {
        self.architecture
    }

    /// `block_count` -> `llama.block_count`.
    pub(super) fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture.name())
    }

    pub(super) fn unsigned(&self, key: &str) -> Option<u64> {
        self.metadata.u64(&self.name(key))
    }

    /// A count from 1 to `maximum`, or `None` if the key is absent.
    pub(super) fn count(&self, key: &str, maximum: usize) -> Result<Option<usize>, ModelError> {
        if self.metadata.get(&self.name(key)).is_none() {
            return Ok(None);
        }
        let value = self.metadata.require_u64(&self.name(key))?;
        self.bounded(key, i128::from(value), maximum).map(Some)
    }

    pub(super) fn required_count(&self, key: &str, maximum: usize) -> Result<usize, ModelError> {
        self.count(key, maximum)?.ok_or_else(|| self.missing(key, "a whole number"))
    }

    /// One count for all layers, or a list with one count per layer; `default` replaces an absent key.
    pub(super) fn counts_per_layer(
        &self,
        key: &str,
        n_layers: usize,
        maximum: usize,
        default: Option<&[usize]>,
    ) -> Result<Vec<usize>, ModelError> {
        if let Some(counts) = self.metadata.integers(&self.name(key)) {
            if counts.len() != n_layers {
                return Err(self.invalid(
                    key,
                    format!("a list of {}", counts.len()),
                    format!("there are {n_layers} layers"),
                ));
            }
            return counts.into_iter().map(|count| self.bounded(key, i128::from(count), maximum)).collect();
        }
        match (self.count(key, maximum)?, default) {
            (Some(count), _) => Ok(vec![count; n_layers]),
            (None, Some(default)) => Ok(default.to_vec()),
            (None, None) => Err(self.missing(key, "a whole number")),
        }
    }

    /// A finite number, or `None` if the key is absent.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        if self.metadata.get(&self.name(key)).is_none() {
            return Ok(None);
        }
        let value = f64::from(self.metadata.require_f32(&self.name(key))?);
        if value.is_finite() {
            Ok(Some(value))
        } else {
            Err(self.invalid(key, value, "a finite number is needed".to_owned()))
        }
    }

    /// A finite number other than 0; files use 0 for "not set".
    pub(super) fn nonzero(&self, key: &str) -> Result<Option<f64>, ModelError> {
        Ok(self.number(key)?.filter(|&value| value != 0.0))
    }

    pub(super) fn positive(&self, key: &str) -> Result<Option<f64>, ModelError> {
        match self.number(key)? {
            Some(value) if value <= 0.0 => Err(self.invalid(key, value, "a number above 0 is needed".to_owned())),
            value => Ok(value),
        }
    }

    pub(super) fn missing(&self, key: &str, expected: &'static str) -> ModelError {
        self.metadata.refusal(&self.name(key), expected).into()
    }

    pub(super) fn invalid(&self, key: &str, found: impl fmt::Display, expected: String) -> ModelError {
        ModelError::InvalidConfig {
            path: self.metadata.path().to_owned(),
            key: self.name(key),
            found: found.to_string(),
            expected,
        }
    }

    pub(super) fn unsupported(&self, feature: impl Into<String>) -> ModelError {
        ModelError::UnsupportedFeature {
            path: self.metadata.path().to_owned(),
            architecture: self.architecture.name(),
            feature: feature.into(),
        }
    }

    fn bounded(&self, key: &str, value: i128, maximum: usize) -> Result<usize, ModelError> {
        usize::try_from(value)
            .ok()
            .filter(|value| (1..=maximum).contains(value))
            .ok_or_else(|| self.invalid(key, value, format!("it must be from 1 to {maximum}")))
    }
}
