//! Which models a caller may name.

use std::sync::Arc;

use hearth_domain::{
    Caller,
    error::{Error, ErrorKind, Result},
};

use crate::{providers::ChatModel, service::models::Models};

impl Models {
    /// Whether a caller may use the model of this id, whichever of the model's names its rights list.
    pub fn allows(&self, caller: &Caller, id: &str) -> bool {
        let Some(allowed) = &caller.allowed_models else { return true };
        let aliases = self.find(id).map(|(_, aliases)| aliases).unwrap_or_default();
        allowed.iter().any(|name| name == id || aliases.contains(name))
    }

    /// # Errors
    /// 403 if the caller may not use the model of this id.
    pub fn refuse_unless_allowed(&self, caller: &Caller, id: &str) -> Result<()> {
        if self.allows(caller, id) {
            return Ok(());
        }
        let allowed = caller.allowed_models.as_deref().unwrap_or_default();
        let known = allowed.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let known = if known.is_empty() { "none".to_owned() } else { known };
        let message = format!("Your key does not allow the model `{id}`. Allowed: {known}.");
        Err(Error::new(ErrorKind::ModelForbidden, message).with_param("model"))
    }

    /// The chat model for a route where naming one is optional: the first that the caller may use.
    ///
    /// # Errors
    /// If there is none, or the named one is not allowed.
    pub fn chat_or_first_for(&self, caller: &Caller, name: Option<&str>) -> Result<Arc<dyn ChatModel>> {
        let first_allowed = || {
            let allowed = caller.allowed_models.as_ref()?;
            let models = allowed.iter().filter_map(|name| self.chat(Some(name)).ok());
            models.into_iter().find(|model| self.allows(caller, &model.info().id))
        };
        let model = match name {
            None if caller.allowed_models.is_some() => first_allowed(),
            _ => None,
        };
        let model = model.map_or_else(|| self.chat_or_first(name), Ok)?;
        self.refuse_unless_allowed(caller, &model.info().id)?;
        Ok(model)
    }
}
