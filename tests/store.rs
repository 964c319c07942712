//! The models directory: listing, resolving, importing, and links to what was pulled.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use hearth_models::{
    manifest::Kind,
    pull::{HubSettings, Pulled, PulledFile},
    store::{Format, ModelStore, StoreError},
};
use tempfile::TempDir;

use crate::support::gguf_writer::GgufWriter;

fn store(directory: &TempDir) -> ModelStore {
    let hub = HubSettings {
        endpoint: "http://127.0.0.1:9".to_owned(),
        token: None,
        cache: directory.path().join("cache"),
        offline: true,
        retry_wait: Duration::ZERO,
    };
    ModelStore::new(directory.path().join("models"), hub)
}

fn write_gguf(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    GgufWriter::default().str("general.architecture", "llama").tensor_f32("t", &[1], &[1.0]).write(path);
}

/// One tensor of one float.
fn write_safetensors(directory: &Path) {
    fs::create_dir_all(directory).unwrap();
    fs::write(directory.join("config.json"), "{}").unwrap();
    let header = br#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 4]].concat();
    fs::write(directory.join("model.safetensors"), bytes).unwrap();
}

#[test]
fn models_of_two_directories_are_found_and_the_first_goes_before() {
    let directory = TempDir::new().unwrap();
    let (first, second) = (directory.path().join("models"), directory.path().join("checkout"));
    let store = store(&directory).and_in(&second);
    write_gguf(&first.join("both.gguf"));
    write_gguf(&second.join("both.gguf"));
    write_gguf(&second.join("here/only.gguf"));
    let names: Vec<_> = store.list().unwrap().into_iter().map(|model| model.name).collect();
    assert_eq!(names, ["both", "here/only"]);
    assert_eq!(store.resolve("both").unwrap(), first.join("both.gguf"));
    assert_eq!(store.resolve("only").unwrap(), second.join("here/only.gguf"));
    assert_eq!(store.directory(), first);
    assert!(store.places().contains(" and "));
    fs::remove_dir_all(&second).unwrap();
    assert_eq!(store.list().unwrap().len(), 1);
}

#[test]
fn a_removed_model_is_gone_with_all_its_parts_and_what_it_links_to_stays() {
    let directory = TempDir::new().unwrap();
    let store = store(&directory);
    let models = directory.path().join("models");
    write_gguf(&models.join("chat.gguf"));
    write_gguf(&models.join("big/big-00001-of-00002.gguf"));
    write_gguf(&models.join("big/big-00002-of-00002.gguf"));
    write_safetensors(&models.join("minilm"));
    let names = || store.list().unwrap().into_iter().map(|model| model.name).collect::<Vec<_>>();
    assert_eq!(store.remove("big").unwrap().paths.len(), 2);
    assert_eq!(names(), ["chat", "minilm"]);
    store.remove("minilm").unwrap();
    #[cfg(unix)]
    {
        let elsewhere = directory.path().join("cache/blob");
        write_gguf(&elsewhere);
        std::os::unix::fs::symlink(&elsewhere, models.join("pulled.gguf")).unwrap();
        assert!(store.remove("pulled").unwrap().were_links && elsewhere.exists());
    }
    // A linked directory is somebody else's, and so is a file beside a model's own.
    #[cfg(unix)]
    {
        let shared = directory.path().join("shared");
        write_gguf(&shared.join("theirs.gguf"));
        std::os::unix::fs::symlink(&shared, models.join("shared")).unwrap();
        let refused = store.remove("shared/theirs").unwrap_err();
        assert!(refused.to_string().contains("a link leads to") && shared.join("theirs.gguf").exists());
        fs::remove_file(models.join("shared")).unwrap();
    }
    write_safetensors(&models.join("mine"));
    fs::write(models.join("mine/notes.txt"), "keep").unwrap();
    store.remove("mine").unwrap();
    assert!(models.join("mine/notes.txt").exists());
    assert!(!store.remove("chat").unwrap().were_links);
    assert!(names().is_empty() && !models.join("chat.gguf").exists());
    // A file outside of the directory is not Hearth's to remove.
    let outside = directory.path().join("outside.gguf");
    write_gguf(&outside);
    assert!(matches!(store.remove(outside.to_str().unwrap()), Err(StoreError::Unknown { .. })) && outside.exists());
    assert!(store.remove("chat").is_err());
}

#[test]
fn models_are_listed_by_name() {
    let directory = TempDir::new().unwrap();
    let store = store(&directory);
    assert!(store.list().unwrap().is_empty());
    let models = directory.path().join("models");
    write_gguf(&models.join("chat.gguf"));
    write_gguf(&models.join("big/big-00001-of-00002.gguf"));
    write_gguf(&models.join("big/big-00002-of-00002.gguf"));
    write_gguf(&models.join(".hidden/x.gguf"));
    write_safetensors(&models.join("minilm"));
    fs::write(models.join("README.md"), "").unwrap();
    fs::write(models.join("late.gguf.abc.incomplete"), "").unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink("nowhere", models.join("gone.gguf")).unwrap();

    let listed = store.list().unwrap();
    let names: Vec<_> = listed.iter().map(|model| (model.name.as_str(), model.format)).collect();
    assert_eq!(names, [("big/big", Format::Gguf), ("chat", Format::Gguf), ("minilm", Format::Safetensors)]);
    let size = fs::metadata(models.join("chat.gguf")).unwrap().len();
    assert_eq!(listed[0].bytes, 2 * size);
}

#[test]
fn names_resolve_to_files() {
    let directory = TempDir::new().unwrap();
    let store = store(&directory);
    let models = directory.path().join("models");
    write_gguf(&models.join("a/chat.gguf"));
    write_gguf(&models.join("Qwen3-0.6B-Q8_0.gguf"));
    let resolved = |name: &str| store.resolve(name).unwrap();
    let chat = models.join("a/chat.gguf");
    assert_eq!(resolved("a/chat"), chat);
    assert_eq!(resolved("Chat.gguf"), chat);
    assert_eq!(resolved(chat.to_str().unwrap()), chat);
    assert_eq!(resolved("qwen3-0.6b"), models.join("Qwen3-0.6B-Q8_0.gguf"), "a known name finds its file");
    let said = |name: &str| store.resolve(name).unwrap_err().to_string();
    assert!(said("gemma-3-1b-it").contains("hearth pull gemma-3-1b-it"), "{}", said("gemma-3-1b-it"));
    assert!(said("owner/name:Q4_0").contains("hearth pull owner/name:Q4_0"));
    assert!(said("nothing").contains("holds Qwen3-0.6B-Q8_0, a/chat"), "{}", said("nothing"));
    write_gguf(&models.join("b/chat.gguf"));
    assert!(matches!(store.resolve("chat"), Err(StoreError::Ambiguous { .. })));
}

#[test]
fn imports_are_opened_hashed_and_never_overwrite() {
    let directory = TempDir::new().unwrap();
    let store = store(&directory);
    let source = directory.path().join("usb/download.bin");
    write_gguf(&source);
    let mut bytes = 0;
    let (path, copied) = store.import(&source, None, &mut |count| bytes += count).unwrap();
    assert_eq!(path, directory.path().join("models/download.bin.gguf"));
    assert_eq!(bytes, fs::metadata(&source).unwrap().len());
    assert_eq!(copied[0].1.len(), 64);
    assert!(matches!(store.import(&source, None, &mut |_| {}), Err(StoreError::Exists { .. })));
    let (named, _) = store.import(&source, Some("mine"), &mut |_| {}).unwrap();
    assert_eq!(fs::read(named).unwrap(), fs::read(&source).unwrap());
    for name in ["../x", "a/b", "", ".x"] {
        assert!(matches!(store.import(&source, Some(name), &mut |_| {}), Err(StoreError::Name(_))), "{name}");
    }
    fs::write(&source, "<html>").unwrap();
    let said = store.import(&source, Some("page"), &mut |_| {}).unwrap_err().to_string();
    assert!(said.contains("web page"), "{said}");
    assert_eq!(fs::read_dir(store.directory()).unwrap().count(), 2, "nothing is left of what failed");
}

#[test]
fn without_a_name_the_best_model_of_a_kind_is_taken() {
    let directory = TempDir::new().unwrap();
    let store = store(&directory);
    let models = directory.path().join("models");
    let default_of = |kind| {
        let path = store.default_model(kind).unwrap();
        path.map(|path| path.strip_prefix(&models).unwrap().to_string_lossy().into_owned())
    };
    assert_eq!(default_of(Kind::Chat), None);

    fs::create_dir_all(&models).unwrap();
    let fixture = |name: &str, to: &str| fs::copy(format!("tests/fixtures/{name}"), models.join(to)).unwrap();
    fs::write(models.join("a-damaged.gguf"), "GGUF").unwrap();
    fixture("tiny-chat.gguf", "hearth-chat.gguf");
    fixture("embeddings/bert-mean.gguf", "hearth-embed.gguf");
    assert_eq!(default_of(Kind::Chat).unwrap(), "hearth-chat.gguf");
    assert_eq!(default_of(Kind::Embedding).unwrap(), "hearth-embed.gguf");

    // What somebody put there goes before what came with Hearth.
    fixture("tiny-chat.gguf", "qwen.gguf");
    fixture("tiny-chat.gguf", "smollm.gguf");
    fixture("embeddings/nomic-mean.gguf", "nomic.gguf");
    assert_eq!(default_of(Kind::Chat).unwrap(), "qwen.gguf");
    assert_eq!(default_of(Kind::Embedding).unwrap(), "nomic.gguf");

    for name in ["a-better-one", "all-MiniLM-L6-v2"] {
        fs::create_dir(models.join(name)).unwrap();
        for file in ["config.json", "model.safetensors"] {
            fixture(&format!("embeddings/bert-cls/{file}"), &format!("{name}/{file}"));
        }
    }
    // A chat model in the format of embedding models.
    write_safetensors(&models.join("a-chat-model"));
    fs::write(models.join("a-chat-model/config.json"), r#"{"model_type": "qwen3"}"#).unwrap();
    assert_eq!(default_of(Kind::Embedding).unwrap(), "all-MiniLM-L6-v2");
}

#[test]
fn a_missing_file_is_not_taken_for_a_repository() {
    let directory = TempDir::new().unwrap();
    let store = store(&directory);
    let name = format!("{}/none.gguf", directory.path().display());
    for name in [name.as_str(), "none.gguf", "tests/none.gguf"] {
        let said = store.resolve(name).unwrap_err().to_string();
        assert!(!said.contains(&format!("hearth pull {name}")), "{said}");
    }
    let said = store.resolve("owner/name-GGUF:Q4_0").unwrap_err().to_string();
    assert!(said.contains("hearth pull owner/name-GGUF:Q4_0"), "{said}");
}

#[test]
fn an_embedding_model_is_imported_as_a_directory() {
    let directory = TempDir::new().unwrap();
    let store = store(&directory);
    let source = directory.path().join("minilm");
    write_safetensors(&source);
    fs::create_dir(source.join("1_Pooling")).unwrap();
    fs::write(source.join("1_Pooling/config.json"), "{}").unwrap();
    fs::write(source.join("unrelated.bin"), "x").unwrap();
    let (path, copied) = store.import(&source, None, &mut |_| {}).unwrap();
    assert_eq!(path, directory.path().join("models/minilm"));
    assert_eq!(copied.len(), 3);
    assert!(path.join("1_Pooling/config.json").is_file());

    let weights = source.join("model.safetensors");
    let whole = fs::read(&weights).unwrap();
    for length in [0, 4, 20, whole.len() - 1] {
        fs::write(&weights, &whole[..length]).unwrap();
        let error = store.import(&source, Some("cut"), &mut |_| {}).unwrap_err();
        assert!(matches!(error, StoreError::Safetensors { .. }), "{error}");
    }
}

#[test]
fn what_was_pulled_is_linked() {
    let directory = TempDir::new().unwrap();
    let store = store(&directory);
    let snapshot = directory.path().join("cache/snapshot");
    write_gguf(&snapshot.join("sub/m.gguf"));
    write_safetensors(&snapshot);
    let pulled = |names: &[&str]| Pulled {
        repository: "owner/name".to_owned(),
        commit: "c".to_owned(),
        files: names
            .iter()
            .map(|name| PulledFile { name: (*name).to_owned(), path: snapshot.join(name), was_there: false })
            .collect(),
    };
    let models = directory.path().join("models");
    let expected: [(&[&str], PathBuf); 2] =
        [(&["sub/m.gguf"], models.join("m.gguf")), (&["model.safetensors", "config.json"], models.join("name"))];
    for (names, path) in expected {
        assert_eq!(store.adopt(&pulled(names)).unwrap(), path);
        assert_eq!(store.adopt(&pulled(names)).unwrap(), path, "twice is once");
    }
    assert_eq!(store.list().unwrap().iter().map(|model| model.name.as_str()).collect::<Vec<_>>(), ["m", "name"]);
    fs::remove_file(models.join("m.gguf")).unwrap();
    fs::write(models.join("m.gguf"), "mine").unwrap();
    assert!(matches!(store.adopt(&pulled(&["sub/m.gguf"])), Err(StoreError::Exists { .. })));
}
