//! Settings of the commands that fetch and list models, which need a few directories and no server.

use std::path::PathBuf;

use super::{default_data_dir, model_store};
use hearth_models::{pull::HubSettings, store::ModelStore};

/// Where models are, for commands that do not serve.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct StoreSettings {
    /// Where models are kept [default: models in the data directory; those of ./models are found as well]
    #[arg(long, env = "HEARTH_MODELS_DIR", value_name = "DIR", global = true)]
    pub models_dir: Option<PathBuf>,
    /// Where Hearth keeps its data [default: hearth in the XDG data directory]
    #[arg(long, env = "HEARTH_DATA_DIR", value_name = "DIR", global = true)]
    pub data_dir: Option<PathBuf>,
    /// Make no outgoing connection
    #[arg(long, env = "HEARTH_OFFLINE", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", global = true)]
    pub offline: bool,
}

impl StoreSettings {
    /// The models directories and the hub's cache that these settings and the environment select.
    pub fn open(self) -> anyhow::Result<(ModelStore, HubSettings)> {
        let mut hub = hub_settings();
        hub.offline |= self.offline;
        let data_dir = self.data_dir.map_or_else(default_data_dir, Ok)?;
        Ok((model_store(self.models_dir, &data_dir, hub.clone())?, hub))
    }
}

/// The hub's settings from this process's environment (`HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME`, ...).
pub fn hub_settings() -> HubSettings {
    HubSettings::from_env(&|name| {
        std::env::var_os(name).and_then(|value| value.into_string().ok()).filter(|value| !value.is_empty())
    })
}

/// Where the loader finds this program's libraries, such as those of a GPU: the process that reads documents needs them
/// to start, and nothing else from the environment.
pub(super) fn library_path() -> Option<std::ffi::OsString> {
    std::env::var_os("LD_LIBRARY_PATH")
}

/// The key of the upstream that the flags describe. It has no flag, since other users could read it in the process
/// list.
pub(super) fn upstream_api_key() -> Option<String> {
    std::env::var_os("HEARTH_UPSTREAM_API_KEY").and_then(|key| key.into_string().ok()).filter(|key| !key.is_empty())
}
