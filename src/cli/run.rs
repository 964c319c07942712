//! `hearth run MODEL`: a conversation with a model of this name, which is fetched first if it is not here.

use hearth_models::{manifest, store::StoreError};

use super::{chat, pull};
use crate::config::{Config, StoreSettings};

#[derive(Debug, clap::Args)]
// The flattened arguments have a group of this name.
#[group(skip)]
pub struct Args {
    /// A model's name or file, a known name (see `hearth list`), or OWNER/NAME:QUANTIZATION
    #[arg(value_name = "MODEL")]
    name: String,
    #[command(flatten)]
    chat: chat::Args,
}

pub fn run(mut args: Args) -> anyhow::Result<()> {
    let config = Config::load(args.chat.settings.clone())?;
    let settings = StoreSettings {
        models_dir: Some(config.models.directory().to_owned()),
        data_dir: Some(config.data_dir.clone()),
        offline: config.offline,
    };
    args.chat.settings.model = Some(args.name.clone().into());
    let can_be_fetched = manifest::find(&args.name).is_some() || args.name.contains('/');
    if matches!(config.models.resolve(&args.name), Err(StoreError::Unknown { .. })) && can_be_fetched {
        let path = pull::fetch(&args.name, settings)?;
        args.chat.settings.model = Some(path);
    }
    chat::run(args.chat)
}
