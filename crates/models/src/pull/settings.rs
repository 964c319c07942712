//! Where the hub is, who calls it, and where its cache is, from the environment variables that all hub clients read.
//!
//! Names and defaults are those of the `huggingface_hub` Python package's documentation. The environment itself is read
//! in `config/`; here it is a function argument, so that tests can supply their own.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

/// Settings of the hub.
#[derive(Clone)]
pub struct HubSettings {
    /// `HF_ENDPOINT`.
    pub endpoint: String,
    /// `HF_TOKEN`, or the token stored by `hf auth login`.
    pub token: Option<String>,
    /// `HF_HUB_CACHE`.
    pub cache: PathBuf,
    /// `HF_HUB_OFFLINE`: use only the cache.
    pub offline: bool,
    /// Wait before the first retry; doubled for each further one.
    pub retry_wait: Duration,
}

impl HubSettings {
    /// Reads the variables; `variable` returns a variable's value if it is set and not empty.
    pub fn from_env(variable: &dyn Fn(&str) -> Option<String>) -> Self {
        let path = |name: &str| variable(name).map(PathBuf::from);
        let home = path("HF_HOME").unwrap_or_else(|| {
            let user_home = path("HOME").or_else(|| path("USERPROFILE")).unwrap_or_default();
            let cache = path("XDG_CACHE_HOME").unwrap_or_else(|| user_home.join(".cache"));
            cache.join("huggingface")
        });
        let flag = |name: &str| {
            variable(name)
                .is_some_and(|value| matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
        };
        let implicit_token = || {
            if flag("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
                return None;
            }
            read_token(&path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token")))
        };
        Self {
            endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            token: variable("HF_TOKEN").map(|token| token.trim().to_owned()).or_else(implicit_token),
            cache: path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| home.join("hub")),
            offline: flag("HF_HUB_OFFLINE"),
            retry_wait: Duration::from_secs(1),
        }
    }
}

/// The token in the file written by `hf auth login`, if it exists.
fn read_token(path: &Path) -> Option<String> {
    let token = std::fs::read_to_string(path).ok()?.trim().to_owned();
    (!token.is_empty()).then_some(token)
}

/// Keeps the token out of logs.
impl fmt::Debug for HubSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubSettings")
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "set"))
            .field("cache", &self.cache)
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> HubSettings {
        HubSettings::from_env(&|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn defaults_are_the_hubs_own() {
        let settings = settings(&[("HOME", "/home/somebody")]);
        assert_eq!(settings.endpoint, "https://huggingface.co");
        assert_eq!(settings.cache, Path::new("/home/somebody/.cache/huggingface/hub"));
        assert!(!settings.offline && settings.token.is_none());
    }

    #[test]
    fn variables_win_in_their_order() {
        let with_home = settings(&[("HOME", "/h"), ("HF_HOME", "/hf"), ("HF_HUB_OFFLINE", "1"), ("HF_TOKEN", " t\n")]);
        assert_eq!(with_home.cache, Path::new("/hf/hub"));
        assert!(with_home.offline);
        assert_eq!(with_home.token.as_deref(), Some("t"));
        assert!(!format!("{with_home:?}").contains("\"t\""));
        let with_cache = settings(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c"), ("HF_HUB_OFFLINE", "0")]);
        assert_eq!(with_cache.cache, Path::new("/c"));
        assert!(!with_cache.offline);
    }

    #[test]
    fn the_saved_token_is_used_unless_that_is_turned_off() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), "saved\n").unwrap();
        let path = home.path().to_str().unwrap();
        assert_eq!(settings(&[("HF_HOME", path)]).token.as_deref(), Some("saved"));
        assert_eq!(settings(&[("HF_HOME", path), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "true")]).token, None);
    }
}
