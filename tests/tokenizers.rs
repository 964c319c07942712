//! Tokenizers against the vectors that llama.cpp ships with its vocabularies, and properties that hold for any text.
//!
//! The vocabularies are others' work and not in the repository: `scripts/fixtures/fetch_vocabs.sh` gets them, and
//! `scripts/test.sh` runs it. Without the vocabularies these tests say so and pass.

use std::path::{Path, PathBuf};

use hearth::{
    models::gguf::Gguf,
    text::{detokenizer::Detokenizer, tokenizer::Tokenizer},
};
use proptest::prelude::*;

use crate::support;

/// Vocabularies that come with vectors.
const WITH_VECTORS: [&str; 15] = [
    "bert-bge",
    "command-r",
    "deepseek-coder",
    "deepseek-llm",
    "falcon",
    "gemma-4",
    "gpt-2",
    "llama-bpe",
    "llama-spm",
    "mpt",
    "phi-3",
    "qwen2",
    "qwen35",
    "refact",
    "starcoder",
];

/// The directory of the vocabularies, if they were fetched.
fn vocabularies() -> Option<PathBuf> {
    let directory = support::fetched_fixtures().join("vocabs");
    if directory.join(".complete").exists() {
        return Some(directory);
    }
    eprintln!("skipped: {} is not there; scripts/fixtures/fetch_vocabs.sh fetches it", directory.display());
    None
}

fn load(directory: &Path, name: &str) -> Tokenizer {
    let path = directory.join(format!("ggml-vocab-{name}.gguf"));
    let gguf = Gguf::open(&path).unwrap_or_else(|error| panic!("{error}"));
    Tokenizer::from_gguf(gguf.metadata()).unwrap_or_else(|error| panic!("{error}"))
}

fn read(directory: &Path, name: &str, extension: &str) -> String {
    let path = directory.join(format!("ggml-vocab-{name}.gguf.{extension}"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every case of every vocabulary, without special tokens, as llama.cpp's own test runs them.
#[test]
fn vectors_pass() {
    let Some(directory) = vocabularies() else { return };
    let mut failures = Vec::new();
    for name in WITH_VECTORS {
        let tokenizer = load(&directory, name);
        let inputs = read(&directory, name, "inp");
        let outputs = read(&directory, name, "out");
        let inputs: Vec<&str> = inputs.split("\n__ggml_vocab_test__\n").collect();
        let outputs: Vec<&str> = outputs.lines().collect();
        // The last separator has nothing behind it.
        let inputs = &inputs[..outputs.len()];
        let mut passed = 0;
        for (input, output) in inputs.iter().zip(&outputs) {
            let expected: Vec<u32> = output.split_whitespace().map(|id| id.parse().unwrap()).collect();
            let ids = tokenizer.encode(input, false, false).unwrap();
            if ids == expected {
                passed += 1;
            } else {
                failures.push(format!("{name}: {input:?}\n  expected {expected:?}\n  got      {ids:?}"));
            }
        }
        println!("{name}: {passed} of {}", outputs.len());
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Vocabularies without vectors load and encode too.
#[test]
fn the_other_vocabularies_load() {
    let Some(directory) = vocabularies() else { return };
    for name in ["aquila", "baichuan", "gpt-neox", "nomic-bert-moe"] {
        let tokenizer = load(&directory, name);
        let ids = tokenizer.encode("Hello, wörld! 你好\n", true, true).unwrap();
        assert!(ids.len() > 4, "{name}: {ids:?}");
        assert!(tokenizer.decode(&ids, true).contains("Hello"), "{name}");
    }
}

/// What must not be slow or fail, in every kind of tokenizer.
#[test]
fn hostile_texts_are_encoded() {
    let Some(directory) = vocabularies() else { return };
    let megabyte = 1 << 20;
    let texts = [
        "a".repeat(megabyte),
        " ".repeat(megabyte),
        format!("{}x", " ".repeat(megabyte)),
        "\n".repeat(megabyte),
        "1".repeat(megabyte),
        "!".repeat(megabyte),
        "\u{301}".repeat(megabyte / 2),
        "字".repeat(megabyte / 3),
        "\0".repeat(megabyte),
        "<|im_start|>".repeat(megabyte / 12),
        "\u{301}\u{200D}👩‍👩‍👧‍👦\u{FFFF}\u{10FFFF}\u{0}\u{FEFF}\r\n\u{85}\u{2028}".to_owned(),
    ];
    for name in ["bert-bge", "deepseek-llm", "gemma-4", "gpt-2", "llama-bpe", "llama-spm", "nomic-bert-moe", "qwen2"] {
        let tokenizer = load(&directory, name);
        for text in &texts {
            let ids = tokenizer.encode(text, true, true).unwrap();
            assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()), "{name}");
        }
    }
}

#[test]
fn special_tokens_follow_the_model() {
    let Some(directory) = vocabularies() else { return };
    let llama = load(&directory, "llama-bpe");
    assert_eq!(llama.bos(), Some(128_000));
    assert_eq!(llama.eos(), Some(128_001));
    assert!(llama.adds_bos());
    let eot = llama.token_id("<|eot_id|>").unwrap();
    assert!(llama.end_of_generation().contains(&eot));
    assert_eq!(llama.encode("hi<|eot_id|>", true, true).unwrap().last(), Some(&eot));
    assert!(!llama.encode("hi<|eot_id|>", true, false).unwrap().contains(&eot));

    let qwen = load(&directory, "qwen2");
    assert!(!qwen.adds_bos());
    let end = qwen.token_id("<|im_end|>").unwrap();
    assert!(qwen.end_of_generation().contains(&end) && qwen.is_special(end));

    let bert = load(&directory, "bert-bge");
    assert_eq!(bert.encode("hello", true, false).unwrap(), [101, 7592, 102]);
    let long = bert.encode_truncated(&"hello ".repeat(600), 256, false).unwrap();
    assert_eq!((long.ids.len(), long.total, long.ids[255]), (256, 602, 102));
    let word = "a".repeat(101);
    assert_eq!(bert.encode(&word, false, false).unwrap(), [100]);

    // Phi-3's end of turn takes the line end behind it.
    let phi = load(&directory, "phi-3");
    let end = phi.token_id("<|end|>").unwrap();
    let hello = phi.token_id("▁hi").unwrap();
    assert_eq!(phi.encode("<|end|>\nhi", false, true).unwrap(), [end, hello]);
}

#[test]
fn token_bytes_are_exact() {
    let Some(directory) = vocabularies() else { return };
    let qwen = load(&directory, "qwen2");
    let ids = qwen.encode("é 😀\n", false, false).unwrap();
    let bytes: Vec<u8> = ids.iter().flat_map(|id| qwen.token_bytes(*id).unwrap().into_owned()).collect();
    assert_eq!(bytes, "é 😀\n".as_bytes());
    let spm = load(&directory, "llama-spm");
    assert_eq!(&*spm.token_bytes(13).unwrap(), b"\n");
    assert_eq!(&*spm.token_bytes(spm.token_id("▁hello").unwrap()).unwrap(), b" hello");
    assert_eq!(spm.token_bytes(32_000), None);
}

/// Decoding gives the text back, at once and token by token, for vocabularies that have a token for every byte.
#[test]
fn decoding_undoes_encoding() {
    let Some(directory) = vocabularies() else { return };
    let names =
        ["deepseek-coder", "gemma-4", "gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2", "qwen35", "starcoder"];
    for name in names {
        let tokenizer = load(&directory, name);
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
            cases: 200,
            failure_persistence: None,
            ..ProptestConfig::default()
        });
        let texts = prop_oneof![any::<String>(), r"[ \n\ta-zA-Z0-9.,é字😀\u{301}\u{0}]{0,60}"];
        runner
            .run(&texts, |text| {
                let ids = tokenizer.encode(&text, true, false).unwrap();
                prop_assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()));
                prop_assert_eq!(tokenizer.decode(&ids, true), &*text);
                let mut detokenizer = Detokenizer::new(tokenizer.clone(), false);
                let mut joined: String = ids.iter().map(|id| detokenizer.push(*id)).collect();
                joined.push_str(&detokenizer.finish());
                prop_assert_eq!(joined, text);
                Ok(())
            })
            .unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}
