//! The layer table of ARCHITECTURE.md, held against the code's own words.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use crate::support::scripted_server::ScriptedServer;

/// The modules of the root crate by layer. A module imports lower layers, and its own folder. The layers below them are
/// crates, `domain`, `kernels`, `models` and `text`, whose walls the compiler keeps.
const LAYERS: [(u8, &[&str]); 7] = [
    (0, &["wire", "telemetry"]),
    (1, &["engine", "store"]),
    (2, &["providers"]),
    (3, &["metering", "retrieval"]),
    (4, &["service"]),
    (5, &["http"]),
    (6, &["config", "app", "cli", "main"]),
];

/// External crates that are the business of some modules only. A crate of the workspace counts as a module.
const CONFINED: [(&str, &[&str]); 29] = [
    ("axum", &["http"]),
    ("tower_http", &["http"]),
    // The command line runs candle's own models as the baseline of `hearth bench`.
    ("candle_core", &["kernels", "models", "engine", "app", "cli"]),
    ("candle_transformers", &["cli"]),
    ("candle_nn", &["kernels", "models"]),
    ("hnsw_rs", &["index"]),
    ("rusqlite", &["store"]),
    ("tokio_postgres", &["store"]),
    ("tokio_postgres_rustls", &["store"]),
    ("deadpool_postgres", &["store"]),
    ("rustls_native_certs", &["store"]),
    ("rust_stemmers", &["store"]),
    ("tokenizers", &["text"]),
    ("minijinja", &["text"]),
    ("llguidance", &["text"]),
    ("pdfboss_core", &["text"]),
    ("pdfboss_output", &["text"]),
    ("pdfboss_text", &["text"]),
    ("calamine", &["text"]),
    ("quick_xml", &["text"]),
    // In `http` it opens the archive of Swagger UI.
    ("zip", &["text", "http"]),
    ("flate2", &["text"]),
    ("html5ever", &["text"]),
    ("pulldown_cmark", &["text"]),
    ("encoding_rs", &["text"]),
    ("text_splitter", &["text"]),
    // In `http` it is the TLS of the server.
    // In `store` it is the TLS of connections to a shared database.
    ("aws_lc_rs", &["http", "service", "store"]),
    // Webhooks go out from `service/webhook.rs`, an issuer's keys come in to `service/callers/jwks.rs`, and requests to
    // upstreams are `providers/hosted`.
    ("reqwest", &["cli", "models", "providers", "service"]),
    ("hf_hub", &["models"]),
];

/// Public items that only tests use: a stream outside of an async runtime, and what a file holds.
const FOR_TESTS: [&str; 2] = ["blocking_next", "tensor_names"];

/// Every source file of the workspace that is part of the product, and its text.
fn sources() -> Vec<(PathBuf, String)> {
    fn walk(dir: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(dir).expect("sources can be read") {
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
    for entry in fs::read_dir(root().join("crates")).expect("there are crates") {
        walk(&entry.expect("an entry can be read").path().join("src"), &mut found);
    }
    assert!(found.len() > 300, "{} files", found.len());
    found
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The top-level module of the root crate that a file belongs to, or its crate.
fn module_of(path: &Path) -> String {
    let inside = path.strip_prefix(root()).expect("sources are in the repository");
    let mut names = inside.components().map(|name| name.as_os_str().to_string_lossy().into_owned()).skip(1);
    let first = names.next().expect("a file has a name");
    if inside.starts_with("crates/kernels/src/index") {
        "index".to_owned()
    } else {
        first.trim_end_matches(".rs").to_owned()
    }
}

fn is_test_file(path: &Path) -> bool {
    let inside = path.strip_prefix(root()).expect("sources are in the repository");
    inside.components().any(|name| matches!(name.as_os_str().to_str(), Some("tests.rs" | "tests")))
}

/// Code without comments and without the tests at the file's end.
fn code(text: &str) -> String {
    let product = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
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
        if module == "lib" || path.starts_with(root().join("crates")) {
            continue;
        }
        let own = *layer.get(module.as_str()).unwrap_or_else(|| panic!("{module} is not in the layer table"));
        for import in imports(&code(&text)) {
            let Some(&other) = layer.get(import.as_str()) else { continue };
            let same_layer_is_fine = own == 0 || own == 6;
            if import != module && (other > own || (other == own && !same_layer_is_fine)) {
                wrong.push(format!("{} imports {import}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_kernels_do_not_know_the_index() {
    let wrong: Vec<_> = sources()
        .into_iter()
        .filter(|(path, text)| module_of(path) == "kernels" && code(text).contains("index::"))
        .map(|(path, _)| path.display().to_string())
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
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
        .filter(|(path, _)| !is_test_file(path))
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

/// The compiler finds dead code within a crate's walls, but takes everything public for used. Here a public item is used
/// if the product names it anywhere but where it is defined.
#[test]
fn every_public_item_is_used() {
    let words = |text: &str| -> Vec<String> {
        text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').map(str::to_owned).collect()
    };
    let product: Vec<(PathBuf, String)> = sources()
        .into_iter()
        .filter(|(path, _)| !is_test_file(path))
        .map(|(path, text)| {
            let code = code(&text);
            (path, code)
        })
        .collect();
    let mut named: BTreeMap<String, usize> = BTreeMap::new();
    // Passing a name on is no use of it.
    let uses = |code: &str| {
        code.lines().filter(|line| !line.trim_start().starts_with("pub use ")).collect::<Vec<_>>().join("\n")
    };
    for word in product.iter().flat_map(|(_, code)| words(&uses(code))) {
        *named.entry(word).or_default() += 1;
    }
    let mut defined: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (path, code) in &product {
        // What tests speak to in the place of a model.
        if path.ends_with("src/providers/scripted.rs") {
            continue;
        }
        for line in code.lines().map(str::trim_start).filter(|line| line.starts_with("pub ")) {
            let words = words(line);
            // `const` stands before `fn` as well as before a name.
            let mut rest = words.iter().skip_while(|word| word.as_str() != "pub").skip(1);
            let Some(item) = rest.find(|word| {
                matches!(
                    word.as_str(),
                    "fn" | "struct" | "enum" | "trait" | "type" | "static" | "const" | "use" | "mod"
                )
            }) else {
                continue;
            };
            if matches!(item.as_str(), "use" | "mod") {
                continue;
            }
            let Some(name) = rest.find(|word| !matches!(word.as_str(), "" | "fn" | "unsafe" | "mut")) else { continue };
            defined.entry(name.clone()).or_default().push(path.display().to_string());
        }
    }
    assert!(defined.len() > 500, "{} public items", defined.len());
    let dead: Vec<String> = defined
        .into_iter()
        .filter(|(name, places)| named[name] <= places.len() && !FOR_TESTS.contains(&name.as_str()))
        .map(|(name, places)| format!("{name} in {}", places.join(", ")))
        .collect();
    assert!(dead.is_empty(), "nothing uses these:\n{}", dead.join("\n"));
}

#[tokio::test]
async fn every_field_of_a_request_is_documented() {
    let document = ScriptedServer::hello().get("/openapi.json").await.json();
    let documented = fs::read_to_string(root().join("docs/API.md")).expect("docs/API.md is there");
    let mut missing = Vec::new();
    for (name, schema) in document["components"]["schemas"].as_object().expect("schemas") {
        // OpenAI's own documentation has the fields of files and vector stores.
        if !name.ends_with("Request") || name.starts_with("VectorStore") || name.starts_with("FileBatch") {
            continue;
        }
        for (field, property) in schema["properties"].as_object().into_iter().flatten() {
            let note = property["description"].as_str().expect("a field has a note");
            let note = note.strip_prefix("Changes nothing. ").unwrap_or(note);
            let note = note.strip_prefix("Any other value is refused. ").unwrap_or(note);
            let row = format!("| `{field}` | {} |", note.replace('|', "\\|"));
            if !documented.contains(&row) {
                missing.push(row);
            }
        }
    }
    assert!(missing.is_empty(), "docs/API.md lacks:\n{}", missing.join("\n"));
}
