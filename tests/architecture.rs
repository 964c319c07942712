//! The layer table of ARCHITECTURE.md, held against the code's own words.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Modules by layer. A module imports lower layers, and its own folder.
const LAYERS: [(u8, &[&str]); 9] = [
    (0, &["domain", "error", "wire", "telemetry"]),
    (1, &["kernels"]),
    (2, &["models", "text"]),
    (3, &["engine", "index", "store"]),
    (4, &["providers"]),
    (5, &["metering", "retrieval"]),
    (6, &["service"]),
    (7, &["http"]),
    (8, &["config", "app", "cli", "main"]),
];

/// External crates that are the business of some modules only.
const CONFINED: [(&str, &[&str]); 21] = [
    ("axum", &["http"]),
    ("tower_http", &["http"]),
    // The command line runs candle's own models as the baseline of `hearth bench`.
    ("candle_core", &["kernels", "models", "engine", "app", "cli"]),
    ("candle_transformers", &["cli"]),
    ("candle_nn", &["kernels", "models"]),
    ("hnsw_rs", &["index"]),
    ("rusqlite", &["store"]),
    ("tokenizers", &["text"]),
    ("minijinja", &["text"]),
    ("llguidance", &["text"]),
    ("pdf_oxide", &["text"]),
    ("calamine", &["text"]),
    ("quick_xml", &["text"]),
    // In `http` it opens the archive of Swagger UI.
    ("zip", &["text", "http"]),
    ("html5ever", &["text"]),
    ("pulldown_cmark", &["text"]),
    ("encoding_rs", &["text"]),
    ("text_splitter", &["text"]),
    // In `http` it is the TLS of the server.
    ("aws_lc_rs", &["http", "service"]),
    // Webhooks go out from `service/webhook.rs`, an issuer's keys come in to `service/callers/jwks.rs`, and requests to
    // upstreams are `providers/hosted`.
    ("reqwest", &["cli", "models", "providers", "service"]),
    ("hf_hub", &["models"]),
];

fn sources() -> Vec<(PathBuf, String)> {
    fn walk(dir: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(dir).expect("src can be read") {
            let path = entry.expect("an entry can be read").path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source file is text");
                found.push((path, text));
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join("src"), &mut found);
    found
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The top-level module that a file belongs to.
fn module_of(path: &Path) -> String {
    let inside = path.strip_prefix(root().join("src")).expect("sources are in src");
    let first = inside.components().next().expect("a file has a name").as_os_str().to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

/// Code without comments and without what follows the file's tests.
fn code(text: &str) -> String {
    let product = text.split("#[cfg(test)]").next().unwrap_or_default();
    product.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// Top-level modules that `crate::` paths and `use crate::{...}` trees name.
fn imports(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(tree) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut name = String::new();
            for character in tree.chars() {
                match character {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => found.push(std::mem::take(&mut name)),
                    _ if depth == 0 => name.push(character),
                    _ => {}
                }
            }
            found.push(name);
        } else {
            found.push(rest.to_owned());
        }
    }
    let first_word =
        |text: &String| text.trim().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>();
    found.iter().map(first_word).filter(|name| !name.is_empty()).collect()
}

#[test]
fn a_module_imports_lower_layers_only() {
    let layer: BTreeMap<&str, u8> =
        LAYERS.iter().flat_map(|(layer, modules)| modules.iter().map(|module| (*module, *layer))).collect();
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let module = module_of(&path);
        if module == "lib" {
            continue;
        }
        let own = *layer.get(module.as_str()).unwrap_or_else(|| panic!("{module} is not in the layer table"));
        for import in imports(&code(&text)) {
            let Some(&other) = layer.get(import.as_str()) else { continue };
            // A tokenizer is read from a model file's metadata.
            let reads_metadata = (module.as_str(), import.as_str()) == ("text", "models");
            let same_layer_is_fine = own == 0 || own == 8 || reads_metadata;
            if import != module && (other > own || (other == own && !same_layer_is_fine)) {
                wrong.push(format!("{} imports {import}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn external_crates_stay_where_they_belong() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let module = module_of(&path);
        let code = code(&text);
        for (name, allowed) in CONFINED {
            if code.contains(&format!("{name}::")) && !allowed.contains(&module.as_str()) {
                wrong.push(format!("{} uses {name}, which belongs to {allowed:?}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_environment_is_read_in_config_only() {
    let wrong: Vec<_> = sources()
        .into_iter()
        .filter(|(path, text)| module_of(path) != "config" && code(text).contains("env::var"))
        .map(|(path, _)| path.display().to_string())
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn every_file_says_what_it_is_and_can_be_read_to_its_end() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        if !text.starts_with("//!") {
            wrong.push(format!("{} does not open with what it is", path.display()));
        }
        let lines = text.lines().count();
        if lines > 700 {
            wrong.push(format!("{} has {lines} lines; find the seam", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_field_of_a_request_is_documented() {
    use hearth::wire::policy::{
        ANALYSIS, APP_CHAT, APP_GENERATE, ASK, CHAT, COMPLETION, EMBEDDINGS, GENERATION, LOOKUP, RERANK, SEARCH,
    };

    let documented = fs::read_to_string(root().join("docs/API.md")).expect("docs/API.md is there");
    let missing: Vec<_> =
        [GENERATION, CHAT, COMPLETION, EMBEDDINGS, RERANK, LOOKUP, ASK, APP_CHAT, APP_GENERATE, SEARCH, ANALYSIS]
            .concat()
            .iter()
            .map(|field| format!("| `{}` | {} |", field.name, field.note.replace('|', "\\|")))
            .filter(|row| !documented.contains(row))
            .collect();
    assert!(missing.is_empty(), "docs/API.md lacks:\n{}", missing.join("\n"));
}
