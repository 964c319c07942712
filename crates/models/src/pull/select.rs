//! Which files of a repository make up the requested model.
//!
//! A reference is what people type: a known name, `owner/name`, `owner/name:quantization`, or an address copied from
//! the hub's pages. Several files form one model if they are the parts of a split GGUF, or the weights, configuration
//! and tokenizer of an embedding model.

use std::collections::BTreeMap;

use super::PullError;
use crate::gguf::{split_name, split_part_name};

/// Which model of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileChoice {
    /// The only one, else the usual quantization, else the files of an embedding model.
    Default,
    /// A path in the repository.
    File(String),
    /// Such as `Q4_K_M`.
    Quantization(String),
}

/// A repository, a revision and a choice, as typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// `owner/name`.
    pub repository: String,
    /// Branch, tag or commit.
    pub revision: Option<String>,
    pub choice: FileChoice,
}

/// Preference order when the repository offers several quantizations and none was requested.
const USUAL_QUANTIZATIONS: [&str; 4] = ["Q4_K_M", "Q8_0", "Q4_0", "Q5_K_M"];
/// The files of an embedding model.
pub(crate) const ENCODER_FILES: [&str; 11] = [
    "model.safetensors",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
    "README.md",
];
/// GGUF files in a model's repository that are not models.
const COMPANIONS: [&str; 3] = ["mmproj", "imatrix", "ggml-vocab"];

impl Reference {
    /// Parses `owner/name`, `owner/name:quantization`, or an address on a hub's pages.
    pub fn parse(text: &str) -> Result<Self, PullError> {
        let refused = || PullError::Reference(text.to_owned());
        let trimmed = ["https://", "http://", "hf://"].iter().find_map(|scheme| text.strip_prefix(scheme));
        let (path, is_address) = match trimmed {
            Some(rest) if text.starts_with("hf://") => (rest, false),
            Some(rest) => (rest.split_once('/').ok_or_else(refused)?.1, true),
            None => match text.strip_prefix("huggingface.co/").or_else(|| text.strip_prefix("hf.co/")) {
                Some(rest) => (rest, true),
                None => (text, false),
            },
        };
        let path = if is_address { path.split(['?', '#']).next().unwrap_or_default() } else { path };
        let mut parts = path.trim_end_matches('/').split('/');
        let (Some(owner), Some(name)) = (parts.next(), parts.next()) else { return Err(refused()) };
        let (name, quantization) = match name.split_once(':') {
            Some((name, quantization)) => (name, Some(quantization)),
            None => (name, None),
        };
        let is_name = |text: &str| {
            !text.is_empty()
                && text.len() <= 96
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
                && text.bytes().any(|byte| byte.is_ascii_alphanumeric())
        };
        if !is_name(owner) || !is_name(name) {
            return Err(refused());
        }
        let rest: Vec<&str> = parts.collect();
        let (revision, choice) = match (&rest[..], quantization) {
            ([], None) => (None, FileChoice::Default),
            ([], Some(quantization)) if is_name(quantization) => {
                (None, FileChoice::Quantization(quantization.to_owned()))
            }
            (["resolve" | "blob", revision, file @ ..], None) if !file.is_empty() => {
                (Some((*revision).to_owned()), FileChoice::File(file.join("/")))
            }
            (["tree", revision], None) => (Some((*revision).to_owned()), FileChoice::Default),
            _ => return Err(refused()),
        };
        Ok(Self { repository: format!("{owner}/{name}"), revision, choice })
    }
}

/// Selects the model's files from all paths of the repository.
pub(crate) fn select(repository: &str, paths: &[String], choice: &FileChoice) -> Result<Vec<String>, PullError> {
    let models = gguf_models(paths);
    let refuse = |wanted: String| PullError::NoMatch {
        repository: repository.to_owned(),
        wanted,
        available: available(&models, paths),
    };
    match choice {
        FileChoice::File(file) => {
            let Some(path) = paths.iter().find(|path| *path == file) else {
                return Err(refuse(format!("the file {file}")));
            };
            match models.values().find(|parts| parts.contains(path)) {
                Some(parts) => complete(repository, parts),
                None => Ok(vec![path.clone()]),
            }
        }
        FileChoice::Quantization(quantization) => {
            let matching: Vec<_> = models.iter().filter(|(stem, _)| has_quantization(stem, quantization)).collect();
            match matching[..] {
                [(_, parts)] => complete(repository, parts),
                _ => Err(refuse(format!("{quantization} and nothing else"))),
            }
        }
        FileChoice::Default => {
            if let [parts] = models.values().collect::<Vec<_>>()[..] {
                return complete(repository, parts);
            }
            for quantization in USUAL_QUANTIZATIONS {
                let mut matching = models.iter().filter(|(stem, _)| has_quantization(stem, quantization));
                if let (Some((_, parts)), None) = (matching.next(), matching.next()) {
                    return complete(repository, parts);
                }
            }
            let encoder: Vec<String> = ENCODER_FILES
                .iter()
                .filter(|file| paths.iter().any(|path| path == *file))
                .map(|f| (*f).into())
                .collect();
            let has = |file: &str| encoder.iter().any(|path| path == file);
            if models.is_empty() && has("model.safetensors") && has("config.json") {
                return Ok(encoder);
            }
            Err(refuse("a model in GGUF, or an embedding model in safetensors".to_owned()))
        }
    }
}

/// The GGUF models of a repository: the name without `.gguf` or part number, and the files.
fn gguf_models(paths: &[String]) -> BTreeMap<String, Vec<String>> {
    let mut models: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for path in paths {
        let name = path.rsplit('/').next().unwrap_or(path);
        let lower = name.to_ascii_lowercase();
        if !lower.ends_with(".gguf") || COMPANIONS.iter().any(|companion| lower.contains(companion)) {
            continue;
        }
        let stem = match split_name(path) {
            // Two splits of one model into different numbers of parts count as two models.
            Some((stem, _, count)) => format!("{stem} in {count} parts"),
            None => path[..path.len() - ".gguf".len()].to_owned(),
        };
        models.entry(stem).or_default().push(path.clone());
    }
    models
}

/// Checks that all parts of a split model are present, and puts them in order.
fn complete(repository: &str, parts: &[String]) -> Result<Vec<String>, PullError> {
    let Some((stem, _, count)) = split_name(&parts[0]) else { return Ok(parts.to_vec()) };
    let expected: Vec<String> = (0..count).map(|number| split_part_name(stem, number, count)).collect();
    match expected.iter().find(|part| !parts.contains(part)) {
        None => Ok(expected),
        Some(missing) => Err(PullError::NoMatch {
            repository: repository.to_owned(),
            wanted: format!("the part {missing}"),
            available: parts.join(", "),
        }),
    }
}

/// Whether the path contains this quantization as a whole word. `Q4_K` does not match `model-Q4_K_M`.
fn has_quantization(path: &str, quantization: &str) -> bool {
    let (path, quantization) = (path.to_ascii_lowercase(), quantization.to_ascii_lowercase());
    let is_border = |byte: Option<u8>| byte.is_none_or(|byte| b"-./ ".contains(&byte));
    path.match_indices(&quantization).any(|(start, _)| {
        let before = start.checked_sub(1).map(|at| path.as_bytes()[at]);
        is_border(before) && is_border(path.as_bytes().get(start + quantization.len()).copied())
    })
}

/// The alternatives for the error message: a limited number of names, in one sentence.
fn available(models: &BTreeMap<String, Vec<String>>, paths: &[String]) -> String {
    const SHOWN: usize = 24;
    if models.is_empty() {
        let kinds: Vec<_> = ["safetensors", "bin", "onnx", "pt"]
            .iter()
            .filter(|kind| paths.iter().any(|path| path.ends_with(&format!(".{kind}"))))
            .copied()
            .collect();
        return if kinds.is_empty() {
            "no weights".to_owned()
        } else {
            format!("weights as {} only; look for a repository of the same model that ends in -GGUF", kinds.join(", "))
        };
    }
    let shown: Vec<_> = models.keys().take(SHOWN).map(String::as_str).collect();
    let rest = models.len().saturating_sub(SHOWN);
    shown.join(", ") + &if rest > 0 { format!(" and {rest} more") } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(text: &str) -> (String, Option<String>, FileChoice) {
        let reference = Reference::parse(text).unwrap();
        (reference.repository, reference.revision, reference.choice)
    }

    fn paths(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn references_are_what_people_type() {
        let repository = "owner/name".to_owned();
        assert_eq!(reference("owner/name"), (repository.clone(), None, FileChoice::Default));
        let quantized = (repository.clone(), None, FileChoice::Quantization("Q8_0".into()));
        assert_eq!(reference("owner/name:Q8_0"), quantized);
        assert_eq!(reference("hf://owner/name:Q8_0"), quantized);
        assert_eq!(reference("hf.co/owner/name:Q8_0"), quantized);
        let file = (repository.clone(), Some("main".into()), FileChoice::File("a/m.gguf".into()));
        assert_eq!(reference("https://huggingface.co/owner/name/resolve/main/a/m.gguf?download=true"), file);
        assert_eq!(reference("https://huggingface.co/owner/name/blob/main/a/m.gguf"), file);
        assert_eq!(
            reference("https://huggingface.co/owner/name/tree/v2"),
            (repository, Some("v2".into()), FileChoice::Default)
        );
        for wrong in [
            "",
            "name",
            "a/b/c",
            "a/",
            "/b",
            "../b",
            "a/..",
            "a b/c",
            "a/b:",
            "a/b:c/d",
            "https://x",
            "a/b/resolve/main",
        ] {
            assert!(Reference::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_quantization_is_a_whole_word() {
        let all = paths(&["m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m-Q8_0.gguf", "mmproj-m-Q8_0.gguf", "README.md"]);
        let choose = |text: &str| select("r", &all, &FileChoice::Quantization(text.into()));
        assert_eq!(choose("q8_0").unwrap(), ["m-Q8_0.gguf"]);
        assert_eq!(choose("Q4_K_M").unwrap(), ["m-Q4_K_M.gguf"]);
        let said = choose("Q4_K").unwrap_err().to_string();
        assert!(said.contains("m-Q4_K_M, m-Q4_K_S, m-Q8_0"), "{said}");
        assert_eq!(select("r", &all, &FileChoice::Default).unwrap(), ["m-Q4_K_M.gguf"]);
    }

    #[test]
    fn splits_come_whole() {
        let all = paths(&["Q8_0/m-Q8_0-00001-of-00002.gguf", "Q8_0/m-Q8_0-00002-of-00002.gguf", "m-Q4_0.gguf"]);
        let both = &all[..2];
        assert_eq!(select("r", &all, &FileChoice::Quantization("Q8_0".into())).unwrap(), both);
        assert_eq!(select("r", &all, &FileChoice::File(all[1].clone())).unwrap(), both);
        let said = select("r", &all[1..], &FileChoice::File(all[1].clone())).unwrap_err().to_string();
        assert!(said.contains("00001-of-00002"), "{said}");
    }

    #[test]
    fn an_embedding_model_comes_with_its_tokenizer() {
        let all =
            paths(&["1_Pooling/config.json", "config.json", "model.safetensors", "onnx/model.onnx", "tokenizer.json"]);
        let files = select("r", &all, &FileChoice::Default).unwrap();
        assert_eq!(files, ["model.safetensors", "config.json", "tokenizer.json", "1_Pooling/config.json"]);
        let said = select("r", &paths(&["pytorch_model.bin"]), &FileChoice::Default).unwrap_err().to_string();
        assert!(said.contains("weights as bin only"), "{said}");
        let file = select("r", &all, &FileChoice::File("absent.gguf".into())).unwrap_err().to_string();
        assert!(file.contains("the file absent.gguf"), "{file}");
    }
}
