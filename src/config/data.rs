//! Where data is kept: the data directory, and the database that servers share.

use std::{net::IpAddr, path::PathBuf};

use anyhow::{Context, bail, ensure};

use super::{Settings, default_data_dir, in_range, read_file};
use crate::store::SharedStore;

/// Connections of one server at most.
const CONNECTIONS: usize = 16;
const CONNECTIONS_MAX: usize = 1024;

/// Which data directory a command is about that does not serve.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct DataSettings {
    /// Where Hearth keeps its data [default: hearth in the XDG data directory]
    #[arg(long, env = "HEARTH_DATA_DIR", value_name = "DIR", global = true)]
    data_dir: Option<PathBuf>,
    /// Settings file, TOML, which may name it, too
    #[arg(long, env = "HEARTH_CONFIG", value_name = "FILE", global = true)]
    config: Option<PathBuf>,
}

impl DataSettings {
    /// # Errors
    /// If the settings file cannot be read, or there is no place for data.
    pub fn directory(self) -> anyhow::Result<PathBuf> {
        let named = match (self.data_dir, self.config) {
            (Some(directory), _) => Some(directory),
            (None, Some(file)) => read_file(&file)?.data_dir,
            (None, None) => None,
        };
        named.map_or_else(default_data_dir, Ok)
    }
}

/// Which keys a command is about: those of a data directory, or of the database that servers share.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct KeyPlaceSettings {
    #[command(flatten)]
    data: DataSettings,
    /// The PostgreSQL database that the servers share: postgres://USER:PASSWORD@HOST:PORT/DATABASE
    #[arg(long, env = "HEARTH_STORE_URL", value_name = "URL", hide_env_values = true, global = true)]
    store_url: Option<String>,
    /// Read that address from this file
    #[arg(long, env = "HEARTH_STORE_URL_FILE", value_name = "FILE", global = true)]
    store_url_file: Option<PathBuf>,
    /// Certificates in PEM that sign the database's [default: those of the system]
    #[arg(long, env = "HEARTH_STORE_CA_FILE", value_name = "FILE", global = true)]
    store_ca_file: Option<PathBuf>,
    /// The secret that keys are hashed with [default: keys.secret in the data directory]
    #[arg(long, env = "HEARTH_KEY_SECRET_FILE", value_name = "FILE", global = true)]
    key_secret_file: Option<PathBuf>,
}

/// Where keys are.
#[derive(Debug)]
pub struct KeyPlace {
    pub data_dir: PathBuf,
    pub shared: Option<SharedStore>,
    /// The file of the secret; `None` is the one in the data directory.
    pub secret_file: Option<PathBuf>,
}

impl KeyPlaceSettings {
    /// # Errors
    /// If a file cannot be read, or there is no place for data.
    pub fn place(self) -> anyhow::Result<KeyPlace> {
        let file = self.data.config.as_deref().map(read_file).transpose()?.unwrap_or_default();
        let settings = Settings {
            store_url: self.store_url,
            store_url_file: self.store_url_file,
            store_ca_file: self.store_ca_file,
            key_secret_file: self.key_secret_file,
            ..Settings::default()
        };
        let settings = settings.or(file);
        let shared = shared_store(&settings)?;
        Ok(KeyPlace { data_dir: self.data.directory()?, shared, secret_file: settings.key_secret_file })
    }
}

/// The database that servers share, if the settings name one.
pub(super) fn shared_store(settings: &Settings) -> anyhow::Result<Option<SharedStore>> {
    let url = match (&settings.store_url, &settings.store_url_file) {
        (None, None) => return Ok(None),
        (Some(url), None) => url.clone(),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("--store-url-file {}", path.display()))?;
            text.trim().to_owned()
        }
        (Some(_), Some(_)) => bail!("--store-url and --store-url-file exclude each other."),
    };
    if settings.offline.unwrap_or(false) {
        ensure!(
            is_on_this_machine(&url),
            "--store-url names a database on another machine, and --offline forbids connections to others."
        );
    }
    let connections = in_range("store-pool", settings.store_pool, 1..=CONNECTIONS_MAX)?.unwrap_or(CONNECTIONS);
    let machine = || sysinfo::System::host_name().unwrap_or_else(|| "hearth".to_owned());
    let name = settings.replica_name.clone().unwrap_or_else(machine);
    Ok(Some(SharedStore { url, ca_file: settings.store_ca_file.clone(), connections, name }))
}

/// Whether the hosts of an address, of which there may be several, are all this machine.
fn is_on_this_machine(url: &str) -> bool {
    let Some((_, rest)) = url.split_once("://") else { return false };
    // They are connected to instead.
    let names_others = |parameter: &str| parameter.starts_with("host=") || parameter.starts_with("hostaddr=");
    if rest.split_once('?').is_some_and(|(_, query)| query.split('&').any(names_others)) {
        return false;
    }
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let hosts = authority.rsplit_once('@').map_or(authority, |(_, hosts)| hosts);
    hosts.split(',').all(|host| {
        let name = match host.strip_prefix('[') {
            Some(bracketed) => bracketed.split(']').next().unwrap_or_default(),
            None => host.split(':').next().unwrap_or_default(),
        };
        name == "localhost" || name.parse().is_ok_and(|address: IpAddr| address.is_loopback())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offline_means_a_database_on_this_machine() {
        let of = |toml: &str| shared_store(&toml::from_str(toml).expect("settings"));
        assert!(of("").unwrap().is_none());
        for (url, is_here) in [
            ("postgres://h:p@127.0.0.1:5432/hearth", true),
            ("postgres://h@[::1]/hearth", true),
            ("postgres://localhost/hearth?sslmode=disable", true),
            ("postgres://h:p@db.internal/hearth", false),
            ("postgres://h@127.0.0.1,db.internal/hearth", false),
            ("postgres://h@localhost/hearth?hostaddr=10.0.0.5", false),
        ] {
            assert!(of(&format!("store_url = {url:?}")).unwrap().is_some());
            assert_eq!(of(&format!("store_url = {url:?}\noffline = true")).is_ok(), is_here, "{url}");
        }
        let both = of("store_url = \"postgres://h@localhost/h\"\nstore_url_file = \"url\"").unwrap_err().to_string();
        assert!(both.contains("exclude"), "{both}");
        assert!(of("store_url = \"postgres://h@localhost/h\"\nstore_pool = 0").is_err());
    }
}
