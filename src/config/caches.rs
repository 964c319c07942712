//! The settings of the caches.

use anyhow::ensure;

use super::{in_range, seconds, settings::Settings};
use crate::providers::cache::CacheSettings;

/// Below it, questions have little in common under any embedding model.
const SIMILARITY_MIN: f32 = 0.5;

/// # Errors
/// If a value is out of range.
pub fn cache_settings(settings: &Settings) -> anyhow::Result<CacheSettings> {
    let usual = CacheSettings::default();
    let mib = |name: &str, value, least| in_range(name, value, least..=1 << 20);
    if let Some(similarity) = settings.semantic_cache {
        ensure!(
            (SIMILARITY_MIN..=1.0).contains(&similarity),
            "--semantic-cache {similarity}: must be from {SIMILARITY_MIN} to 1; 0.97 is a cautious choice."
        );
    }
    Ok(CacheSettings {
        response_bytes: mib("response-cache-mib", settings.response_cache_mib, 0)?
            .map_or(usual.response_bytes, |mib| mib << 20),
        response_ttl: seconds("response-cache-ttl", settings.response_cache_ttl, usual.response_ttl)?,
        semantic_similarity: settings.semantic_cache,
        semantic_bytes: mib("semantic-cache-mib", settings.semantic_cache_mib, 1)?
            .map_or(usual.semantic_bytes, |mib| mib << 20),
        embedding_bytes: mib("embedding-cache-mib", settings.embedding_cache_mib, 0)?
            .map_or(usual.embedding_bytes, |mib| mib << 20),
        embedding_ttl: seconds("embedding-cache-ttl", settings.embedding_cache_ttl, usual.embedding_ttl)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_cached_unless_it_is_asked_for() {
        let usual = cache_settings(&Settings::default()).expect("valid");
        assert_eq!((usual.response_bytes, usual.embedding_bytes, usual.semantic_similarity), (0, 0, None));
        let asked = Settings {
            response_cache_mib: Some(3),
            embedding_cache_mib: Some(2),
            semantic_cache: Some(0.97),
            ..Settings::default()
        };
        let asked = cache_settings(&asked).expect("valid");
        assert_eq!((asked.response_bytes, asked.embedding_bytes), (3 << 20, 2 << 20));
        assert_eq!(asked.semantic_similarity, Some(0.97));
        let refused = Settings { semantic_cache: Some(0.2), ..Settings::default() };
        let error = cache_settings(&refused).expect_err("too far").to_string();
        assert!(error.contains("--semantic-cache 0.2"), "{error}");
    }
}
