//! Whether the engines of an upstream serve the same embedding model.
//!
//! Each engine embeds the text of the [`comparison`](crate::providers) before its vectors are used, and from time to
//! time after that, because an engine may be restarted with another model. The first that answers is what the others
//! are compared with, as long as this process runs.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::engine::RemoteEngine;
use crate::providers::comparison::{INPUT_TYPES, Verdict, compare};
use hearth_domain::error::{Error, ErrorKind, Result};

/// How long an engine is believed to serve the model that it served.
const BELIEVED_FOR: Duration = Duration::from_secs(60);

/// What is known of the engines' vectors, by the position of an input type.
#[derive(Debug, Default)]
pub(super) struct Agreement {
    references: Mutex<[Option<Reference>; INPUT_TYPES.len()]>,
    agreed: Mutex<HashMap<(String, usize), Instant>>,
}

#[derive(Clone, Debug)]
struct Reference {
    engine: String,
    vector: Vec<f32>,
}

impl Agreement {
    /// Whether the engine has to be asked for its vector of the probe.
    pub(super) fn is_due(&self, engine: &RemoteEngine, position: usize) -> bool {
        let key = (engine.label().to_owned(), position);
        self.agreed.lock().get(&key).is_none_or(|since| since.elapsed() > BELIEVED_FOR)
    }

    /// Takes an engine's vector of the probe.
    ///
    /// # Errors
    /// If it is another model's than that of the engine that answered first.
    pub(super) fn take(&self, upstream: &str, engine: &RemoteEngine, position: usize, vector: Vec<f32>) -> Result<()> {
        let reference = {
            let mut references = self.references.lock();
            let first = || Reference { engine: engine.label().to_owned(), vector: vector.clone() };
            references[position].get_or_insert_with(first).clone()
        };
        if let Verdict::Other(why) = compare(&reference.vector, &vector) {
            let (engine, first) = (engine.label(), &reference.engine);
            tracing::error!(
                upstream,
                engine,
                first,
                "two engines of an upstream serve different embedding models: {why}"
            );
            let message = format!("The engines of the hosted upstream `{upstream}` serve different embedding models.");
            let source = anyhow::anyhow!("the engine {engine} serves another than the engine {first}: {why}");
            return Err(Error::new(ErrorKind::UpstreamFailed, message).with_source(source));
        }
        self.agreed.lock().insert((engine.label().to_owned(), position), Instant::now());
        Ok(())
    }
}
