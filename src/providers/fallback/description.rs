//! What callers are told about a model with several candidates.

use std::sync::OnceLock;

use hearth_domain::ModelInfo;

/// The local model's description once it is loaded, before that another candidate's; always under the name that callers
/// use.
#[derive(Debug)]
pub(super) struct Description {
    before: ModelInfo,
    known: OnceLock<ModelInfo>,
}

impl Description {
    pub(super) fn new(name: &str, before: &ModelInfo) -> Self {
        Self { before: ModelInfo { id: name.to_owned(), ..before.clone() }, known: OnceLock::new() }
    }

    /// The name that callers use.
    pub(super) fn name(&self) -> &str {
        &self.before.id
    }

    /// `local` is the local model's own description, if it is loaded.
    pub(super) fn info(&self, local: Option<&ModelInfo>) -> &ModelInfo {
        match local {
            Some(local) => self.known.get_or_init(|| ModelInfo { id: self.before.id.clone(), ..local.clone() }),
            None => &self.before,
        }
    }
}
