//! Embedding models against sentence-transformers: tiny random ones in every form that is read, from the
//! fixtures, and all-MiniLM-L6-v2 on 200 texts where it has been fetched (`scripts/fetch_minilm.sh`).

use std::path::{Path, PathBuf};

use candle_core::Device;
use hearth::models::encoder::{Encoder, EncoderSource};
use serde::Deserialize;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/embeddings").join(name)
}

/// One text under one tiny model, as sentence-transformers has it.
#[derive(Deserialize)]
struct Case {
    /// `plain`, `query` or `passage`: which prompt stands before the text.
    kind: String,
    text: String,
    /// Token ids, prompt and special tokens included.
    ids: Vec<u32>,
    vector: Vec<f32>,
}

fn cases(name: &str) -> Vec<Case> {
    let text = std::fs::read_to_string(fixture(&format!("{name}.json"))).expect("the fixture is committed");
    serde_json::from_str(&text).expect("the fixture is valid")
}

fn load(path: &Path) -> Encoder {
    let source = EncoderSource::open(path).expect("the model opens");
    Encoder::load(&source, &Device::Cpu).expect("the model loads")
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn assert_close(expected: &[f32], actual: &[f32], tolerance: f32, what: &str) {
    assert_eq!(expected.len(), actual.len(), "{what}");
    let worst = expected.iter().zip(actual).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "{what}: the largest difference is {worst}");
}

/// Directories and GGUF files, and whose vectors they must give.
const MODELS: [(&str, &str); 8] = [
    ("bert-mean", "bert-mean"),
    ("bert-mean.gguf", "bert-mean"),
    ("bert-cls", "bert-cls"),
    ("bert-last", "bert-last"),
    ("bert-last-half.gguf", "bert-last-half"),
    ("xlm-roberta-max", "xlm-roberta-max"),
    ("nomic-mean", "nomic-mean"),
    ("nomic-mean.gguf", "nomic-mean"),
];

#[test]
fn every_form_of_encoder_equals_sentence_transformers() {
    for (file, expected) in MODELS {
        let encoder = load(&fixture(file));
        for case in cases(expected) {
            let vectors = encoder.embed(&case.ids, &[case.ids.len()]).expect("the text is within the limits");
            assert_close(&case.vector, &vectors[0], 2e-5, &format!("{file} on {:?}", case.text));
        }
    }
}

#[test]
fn a_text_has_the_same_bits_alone_and_in_any_batch() {
    for (file, expected) in MODELS {
        let encoder = load(&fixture(file));
        let cases = cases(expected);
        let tokens: Vec<u32> = cases.iter().flat_map(|case| case.ids.iter().copied()).collect();
        let lengths: Vec<usize> = cases.iter().map(|case| case.ids.len()).collect();
        let together = encoder.embed(&tokens, &lengths).expect("the texts are within the limits");
        for (case, vector) in cases.iter().zip(together) {
            let alone = encoder.embed(&case.ids, &[case.ids.len()]).expect("the text is within the limits");
            assert_eq!(alone[0], vector, "{file} on {:?}", case.text);
        }
    }
}

#[test]
fn what_the_network_cannot_compute_is_an_error() {
    let encoder = load(&fixture("bert-mean"));
    let vocab = encoder.config().vocab as u32;
    encoder.embed(&[2, vocab, 3], &[3]).expect_err("the token is outside the vocabulary");
    encoder.embed(&[2; 41], &[41]).expect_err("there are 40 positions");
    encoder.embed(&[2, 3], &[2, 0]).expect_err("a text has no tokens");
    encoder.embed(&[2, 3], &[3]).expect_err("the lengths say more than there is");
}
