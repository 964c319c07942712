//! Embedding models against sentence-transformers: tiny random ones in every form that is read, from the
//! fixtures, and all-MiniLM-L6-v2 on 200 texts where it has been fetched (`scripts/fetch_minilm.sh`).

use std::path::{Path, PathBuf};

use candle_core::Device;
use hearth::providers::{
    Embedder,
    local_embedder::{EmbedderSettings, LocalEmbedder},
};
use hearth_domain::{Account, EmbedInput, EmbedInputType, EmbedRequest, error::ErrorKind};
use hearth_models::encoder::{Encoder, EncoderSource};
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

/// A tiny or a real model behind the trait that the server uses.
fn embedder(path: &Path) -> LocalEmbedder {
    LocalEmbedder::load(path, EmbedderSettings { name: "embedder".into(), ..EmbedderSettings::default() })
        .expect("the model loads")
}

fn request(inputs: Vec<EmbedInput>) -> EmbedRequest {
    EmbedRequest {
        account: Account::unrecorded(),
        inputs,
        input_type: EmbedInputType::Plain,
        dimensions: None,
        truncate: true,
        deadline: None,
    }
}

fn text(text: &str) -> EmbedInput {
    EmbedInput::Text(text.to_owned())
}

#[tokio::test]
async fn prompts_and_tokenizers_of_every_form_equal_sentence_transformers() {
    for (file, expected) in MODELS {
        let embedder = embedder(&fixture(file));
        for case in cases(expected) {
            let input_type = match case.kind.as_str() {
                "query" => EmbedInputType::Query,
                "passage" => EmbedInputType::Passage,
                _ => EmbedInputType::Plain,
            };
            // GGUF files carry neither prompts nor the shorter limit of sentence_bert_config.json.
            if file.ends_with(".gguf") && (input_type != EmbedInputType::Plain || case.ids.len() >= 36) {
                continue;
            }
            let response = embedder.embed(EmbedRequest { input_type, ..request(vec![text(&case.text)]) }).await;
            let response = response.unwrap_or_else(|error| panic!("{file} on {:?}: {error}", case.text));
            assert_eq!(response.prompt_tokens, case.ids.len(), "{file} on {:?}", case.text);
            assert_close(&case.vector, &response.embeddings[0], 2e-5, &format!("{file} on {:?}", case.text));
        }
    }
}

#[tokio::test]
async fn inputs_that_cannot_be_embedded_are_named() {
    let embedder = embedder(&fixture("bert-mean"));
    let refused = async |input: EmbedInput, truncate: bool| {
        let inputs = vec![text("a"), text("b"), text("c"), input, text("d")];
        embedder.embed(EmbedRequest { truncate, ..request(inputs) }).await.expect_err("the fourth input is refused")
    };
    for (input, kind) in [
        (text(""), ErrorKind::InvalidRequest),
        (EmbedInput::Tokens(vec![]), ErrorKind::InvalidRequest),
        (EmbedInput::Tokens(vec![2, 99_999, 3]), ErrorKind::InvalidRequest),
        (text(&"a ".repeat(300)), ErrorKind::ContextLengthExceeded),
    ] {
        let error = refused(input, false).await;
        assert_eq!((error.kind(), error.param()), (kind, Some("input[3]")), "{error}");
    }
    let error = refused(text(&"a ".repeat(300)), false).await;
    assert_eq!(error.context(), Some((302, 36)));
    let error = embedder
        .embed(EmbedRequest { dimensions: Some(33), ..request(vec![text("a")]) })
        .await
        .expect_err("there are 32 dimensions");
    assert_eq!(error.param(), Some("dimensions"));
}

#[tokio::test]
async fn dimensions_and_token_arrays() {
    let embedder = embedder(&fixture("bert-mean"));
    let tokens = embedder.tokenizer().encode("a quick fox", true, true).expect("it tokenizes");
    let inputs = vec![text("a quick fox"), EmbedInput::Tokens(tokens.clone())];
    let whole = embedder.embed(request(inputs.clone())).await.expect("embedded");
    assert_eq!(whole.embeddings[0], whole.embeddings[1]);
    assert_eq!(whole.prompt_tokens, 2 * tokens.len());
    let short = embedder.embed(EmbedRequest { dimensions: Some(8), ..request(inputs) }).await.expect("embedded");
    assert_eq!(short.embeddings[0].len(), 8);
    assert!((cosine(&short.embeddings[0], &whole.embeddings[0][..8]) - 1.0).abs() < 1e-6);
    let norm: f32 = short.embeddings[0].iter().map(|value| value * value).sum();
    assert!((norm - 1.0).abs() < 1e-5);
}

#[tokio::test]
async fn minilm_equals_sentence_transformers_on_200_texts() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/all-MiniLM-L6-v2");
    if !path.join("model.safetensors").is_file() {
        assert!(
            std::env::var_os("HEARTH_REQUIRE_MODELS").is_none(),
            "{} is missing and HEARTH_REQUIRE_MODELS is set: run scripts/fetch_minilm.sh",
            path.display()
        );
        eprintln!("skipped: {} is missing; scripts/fetch_minilm.sh fetches it", path.display());
        return;
    }
    let texts = std::fs::read_to_string(fixture("texts.json")).expect("the fixture is committed");
    let texts: Vec<String> = serde_json::from_str(&texts).expect("the fixture is valid");
    let expected = std::fs::read(fixture("minilm.bin")).expect("the fixture is committed");
    let expected: Vec<f32> =
        expected.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes"))).collect();
    let embedder = embedder(&path);
    let inputs = texts.iter().map(|one| text(one)).collect();
    let together = embedder.embed(request(inputs)).await.expect("every text can be embedded").embeddings;
    let mut worst = 1.0f64;
    for ((one, expected), vector) in texts.iter().zip(expected.chunks_exact(384)).zip(&together) {
        let cosine = cosine(expected, vector);
        assert!(cosine >= 0.99999, "cosine {cosine} on {one:?}");
        worst = worst.min(cosine);
    }
    println!("lowest cosine {worst:.9}");
    for index in (0..texts.len()).step_by(10) {
        let alone = embedder.embed(request(vec![text(&texts[index])])).await.expect("embedded").embeddings;
        assert_eq!(alone[0], together[index], "{:?} alone and in a batch", texts[index]);
    }
}

/// Questions of a person who tries the model that comes with Hearth, and the passages that answer them.
const ANSWERED: [(&str, &str); 6] = [
    (
        "How do I undo my last commit?",
        "The reset command moves the branch back, so that the newest commit is no longer part of its history; the \
         files keep their changes.",
    ),
    (
        "making a backup of the database",
        "A dump writes all tables to one file, from which the server can restore them later.",
    ),
    (
        "Which types own their memory?",
        "A String holds its characters on the heap and frees them when the variable goes out of scope.",
    ),
    ("printing on both sides of the paper", "Choose duplex in the settings of the printer to save sheets."),
    ("dog", "A domestic animal that barks, guards the house and likes to be taken for walks."),
    ("opening a file for writing", "Pass the mode \"w\"; what the file held before is discarded."),
];

#[tokio::test]
async fn the_bundled_model_finds_the_passage_that_answers() {
    let embedder = embedder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/hearth-embed.gguf"));
    let embed = async |texts: Vec<&str>| {
        let inputs = texts.into_iter().map(text).collect();
        embedder.embed(request(inputs)).await.expect("the texts are within the limits").embeddings
    };
    let questions = embed(ANSWERED.iter().map(|(question, _)| *question).collect()).await;
    let passages = embed(ANSWERED.iter().map(|(_, passage)| *passage).collect()).await;
    for (index, question) in questions.iter().enumerate() {
        let similarities: Vec<f64> = passages.iter().map(|passage| cosine(question, passage)).collect();
        let best = (0..passages.len()).max_by(|&a, &b| similarities[a].total_cmp(&similarities[b]));
        assert_eq!(best, Some(index), "{:?}: {similarities:.3?}", ANSWERED[index].0);
    }
}
