//! Who may call: the configured keys, and how tokens are checked.

use std::time::Duration;

use anyhow::{Context, bail, ensure};

use super::Settings;
use crate::service::callers::{CallerSettings, JwksPlace, JwksSettings, JwtKeys, JwtSettings, SECRET_BYTES_MIN};

/// Prefix of a token's `sub` in a caller's id. Ids of other callers have no colon.
const CALLER_PREFIX: &str = "jwt:";
const LEEWAY: Duration = Duration::from_secs(30);
const LEEWAY_SECONDS_MAX: u64 = 600;
/// Least time between two requests for an issuer's keys because of an unknown key.
const REFETCH_AFTER: Duration = Duration::from_secs(30);

pub(super) fn read(settings: &Settings) -> anyhow::Result<CallerSettings> {
    let mut api_keys = settings.api_key.clone().unwrap_or_default();
    if let Some(path) = &settings.api_key_file {
        let text = std::fs::read_to_string(path).with_context(|| format!("--api-key-file {}", path.display()))?;
        api_keys.extend(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
        ensure!(!api_keys.is_empty(), "--api-key-file {} holds no key: put one on each line.", path.display());
    }
    ensure!(api_keys.iter().all(|key| !key.is_empty()), "--api-key: a key must not be empty.");
    let allow_unauthenticated = settings.allow_unauthenticated.unwrap_or(false);
    let key_secret_file = settings.key_secret_file.clone();
    Ok(CallerSettings { api_keys, jwt: tokens(settings)?, key_secret_file, allow_unauthenticated })
}

fn tokens(settings: &Settings) -> anyhow::Result<Option<JwtSettings>> {
    let audiences = settings.jwt_audience.clone().unwrap_or_default();
    let issuers = settings.jwt_issuer.clone().unwrap_or_default();
    let Some(keys) = keys(settings)? else {
        ensure!(
            audiences.is_empty() && issuers.is_empty(),
            "--jwt-audience and --jwt-issuer need a key to check tokens with: --jwt-secret, --jwt-secret-file or --jwt-jwks."
        );
        return Ok(None);
    };
    ensure!(
        audiences.iter().chain(&issuers).all(|name| !name.is_empty()),
        "--jwt-audience and --jwt-issuer must not be empty."
    );
    // An issuer signs for many audiences, so a signature alone says little.
    ensure!(
        matches!(keys, JwtKeys::Secret(_)) || (!audiences.is_empty() && !issuers.is_empty()),
        "--jwt-jwks needs --jwt-audience and --jwt-issuer: an issuer's tokens for others must not be good here."
    );
    let caller_prefix = settings.jwt_caller_prefix.clone().unwrap_or_else(|| CALLER_PREFIX.to_owned());
    ensure!(
        caller_prefix.contains(':') && !caller_prefix.chars().any(char::is_control),
        "--jwt-caller-prefix {caller_prefix:?} must have a colon, so that no token is taken for a key's caller."
    );
    let leeway = settings.jwt_leeway.map_or(LEEWAY, Duration::from_secs);
    ensure!(
        leeway.as_secs() <= LEEWAY_SECONDS_MAX,
        "--jwt-leeway {}: must be from 0 to {LEEWAY_SECONDS_MAX}.",
        leeway.as_secs()
    );
    Ok(Some(JwtSettings { keys, audiences, issuers, caller_prefix, leeway }))
}

fn keys(settings: &Settings) -> anyhow::Result<Option<JwtKeys>> {
    let secret = |flag: &str, secret: &str| -> anyhow::Result<Option<JwtKeys>> {
        ensure!(
            secret.len() >= SECRET_BYTES_MIN,
            "{flag}: a secret must have {SECRET_BYTES_MIN} bytes at least, for instance from `openssl rand -hex 32`."
        );
        Ok(Some(JwtKeys::Secret(secret.as_bytes().to_vec())))
    };
    match (&settings.jwt_secret, &settings.jwt_secret_file, &settings.jwt_jwks) {
        (None, None, None) => Ok(None),
        (Some(text), None, None) => secret("--jwt-secret", text),
        (None, Some(path), None) => {
            let flag = format!("--jwt-secret-file {}", path.display());
            let text = std::fs::read_to_string(path).with_context(|| flag.clone())?;
            secret(&flag, text.trim_end_matches(['\r', '\n']))
        }
        (None, None, Some(place)) => {
            let place: JwksPlace = place.parse().map_err(|wrong| anyhow::anyhow!("--jwt-jwks: {wrong}."))?;
            ensure!(
                matches!(place, JwksPlace::File(_)) || !settings.offline.unwrap_or(false),
                "--jwt-jwks with an address needs the network, and --offline forbids it: save the keys to a file and name that."
            );
            Ok(Some(JwtKeys::Public(JwksSettings { place, refetch_after: REFETCH_AFTER })))
        }
        _ => bail!("--jwt-secret, --jwt-secret-file and --jwt-jwks exclude each other: tokens have one kind of key."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(toml: &str) -> anyhow::Result<CallerSettings> {
        read(&toml::from_str(toml).expect("settings"))
    }

    #[test]
    fn tokens_need_keys_that_are_good_for_something() {
        let long = "0123456789abcdef0123456789abcdef";
        let tokens = of(&format!("jwt_secret = \"{long}\"")).unwrap().jwt.unwrap();
        assert_eq!((&tokens.caller_prefix[..], tokens.leeway), ("jwt:", LEEWAY));
        let issued = "jwt_audience = [\"a\"]\njwt_issuer = [\"i\"]\n";
        assert!(of(&format!("{issued}jwt_jwks = \"keys.json\"\noffline = true")).unwrap().jwt.is_some());
        for (toml, word) in [
            ("jwt_secret = \"short\"".to_owned(), "32 bytes"),
            (format!("jwt_secret = \"{long}\"\njwt_jwks = \"k\""), "exclude"),
            (format!("jwt_secret = \"{long}\"\njwt_caller_prefix = \"token-\""), "colon"),
            (format!("jwt_secret = \"{long}\"\njwt_leeway = 4000"), "--jwt-leeway"),
            (format!("jwt_secret = \"{long}\"\njwt_audience = [\"\"]"), "empty"),
            ("jwt_issuer = [\"i\"]".to_owned(), "--jwt-jwks"),
            ("jwt_jwks = \"keys.json\"\njwt_issuer = [\"i\"]".to_owned(), "--jwt-audience"),
            (format!("{issued}jwt_jwks = \"http://id.example/keys\""), "https"),
            (format!("{issued}jwt_jwks = \"https://id.example/keys\"\noffline = true"), "--offline"),
        ] {
            let said = format!("{:#}", of(&toml).expect_err(&toml));
            assert!(said.contains(word), "{toml}: {said}");
        }
    }
}
