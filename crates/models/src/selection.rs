//! Which model is served when none is named: the best one in the models directory.
//!
//! A model that the user installed is preferred to a model bundled with Hearth, which is small. Among embedding models
//! all-MiniLM-L6-v2 is preferred, so that an index made with the recommended model keeps working when another model is
//! added. A file that cannot be read is skipped with a log line.

use std::path::{Path, PathBuf};

use super::{
    decoder::DecoderConfig,
    encoder::{
        config::{EncoderConfig, is_encoder_architecture},
        package::read_json,
    },
    gguf::Gguf,
    manifest::Kind,
    store::{ModelStore, StoreError, StoredModel, check_safetensors},
};

const RECOMMENDED: &str = "all-MiniLM-L6-v2";
/// The name prefix of bundled models.
const BUNDLED: &str = "hearth-";

/// What a model on disk is for, if it opens and its architecture is supported.
pub fn kind_of(path: &Path) -> Result<Kind, StoreError> {
    if path.is_dir() {
        check_safetensors(path)?;
        // Chat models in this format come as such a directory, too.
        EncoderConfig::from_json(&read_json(&path.join("config.json"))?.unwrap_or_default())?;
        return Ok(Kind::Embedding);
    }
    let gguf = Gguf::open(path)?;
    if is_encoder_architecture(gguf.architecture()?) {
        EncoderConfig::from_gguf(&gguf)?;
        return Ok(Kind::Embedding);
    }
    DecoderConfig::from_gguf(&gguf)?;
    Ok(Kind::Chat)
}

impl StoredModel {
    /// Lower is preferred.
    fn rank(&self) -> u8 {
        let file = self.name.rsplit('/').next().unwrap_or(&self.name);
        match () {
            () if file.eq_ignore_ascii_case(RECOMMENDED) => 0,
            () if file.starts_with(BUNDLED) => 2,
            () => 1,
        }
    }
}

impl ModelStore {
    /// The model to serve when none is named; `None` if there is none of this kind.
    pub fn default_model(&self, kind: Kind) -> Result<Option<PathBuf>, StoreError> {
        let mut candidates = self.list()?;
        candidates.retain(|model| match kind_of(&model.path) {
            Ok(found) => found == kind,
            Err(error) => {
                tracing::warn!(model = %model.path.display(), "passed over: {error}");
                false
            }
        });
        // The list is sorted by name, and the sort is stable.
        candidates.sort_by_key(StoredModel::rank);
        if let [first, second, ..] = &candidates[..]
            && first.rank() == 1
            && second.rank() == 1
        {
            let flag = if kind == Kind::Chat { "-m" } else { "--embedding-model" };
            tracing::warn!("of several models {} is served; {flag} NAME chooses another, {}", first.name, second.name);
        }
        Ok(candidates.into_iter().next().map(|model| model.path))
    }
}
