//! Every family's log-probabilities equal those of `transformers`, however the tokens are batched.
//!
//! The fixtures are tiny random models that `scripts/fixtures/logits.py` writes, each with the log-probabilities
//! of 200 tokens. Windows and original context lengths in them are short, so that what a family does differently
//! shows in the numbers. Also: a KV cache in half precision, and files that are not what they say.

use std::path::PathBuf;

use candle_core::Device;
use hearth_kernels::{
    device::Backend,
    kv::{BLOCK_TOKENS, KvType},
};
use hearth_models::{
    batch::{Batch, BatchSequence, LogitsWanted},
    decoder::Decoder,
    gguf::Gguf,
    kv_cache::KvCache,
};

/// Every fixture with the largest difference from `transformers` that is let pass, in natural-log units.
const FAMILIES: [(&str, f32); 19] = [
    ("llama", 1e-4),
    ("llama-tied", 1e-4),
    ("llama3", 1e-4),
    ("llama-linear", 1e-4),
    ("llama-yarn", 1e-4),
    ("mistral", 1e-4),
    ("ministral3", 1e-4),
    ("qwen2", 1e-4),
    ("qwen2-yarn", 1e-4),
    ("qwen3", 1e-4),
    ("phi3", 1e-4),
    ("phi3-longrope", 1e-4),
    ("phi3-shortrope", 1e-4),
    ("gemma", 5e-3),
    ("gemma2", 5e-3),
    ("gemma3", 5e-3),
    ("smollm3", 1e-4),
    ("granite", 1e-4),
    ("olmo2", 1e-4),
];

/// Half-precision keys and values carry 11 bits.
const F16_CACHE_TOLERANCE: f32 = 0.05;

/// A model, its tokens, and what `transformers` makes of them.
struct Fixture {
    decoder: Decoder,
    tokens: Vec<u32>,
    /// `[tokens, vocab]`
    expected: Vec<Vec<f32>>,
}

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/logits")
}

fn load(family: &'static str) -> Fixture {
    load_for(family, &Backend::Cpu)
}

fn load_for(family: &'static str, backend: &Backend) -> Fixture {
    let gguf = Gguf::open(&directory().join(format!("{family}.gguf"))).expect("the fixture is a GGUF file");
    let decoder = Decoder::load(&gguf, backend).expect("the fixture's family is supported");
    let bytes = std::fs::read(directory().join(format!("{family}.logprobs"))).expect("the fixture has its numbers");
    let vocab = decoder.config().vocab;
    let words: Vec<[u8; 4]> = bytes.as_chunks().0.to_vec();
    let num_tokens = words.len() / (1 + vocab);
    let (tokens, logprobs) = words.split_at(num_tokens);
    Fixture {
        decoder,
        tokens: tokens.iter().map(|word| u32::from_le_bytes(*word)).collect(),
        expected: logprobs
            .chunks(vocab)
            .map(|row| row.iter().map(|word| f32::from_le_bytes(*word)).collect())
            .collect(),
    }
}

/// One sequence's blocks, scattered over the cache: block `i` of sequence `s` is not beside its neighbours.
fn block_table(sequence: usize, num_sequences: usize, num_tokens: usize) -> Vec<u32> {
    let blocks = num_tokens.div_ceil(BLOCK_TOKENS);
    (0..blocks).rev().map(|block| (block * num_sequences + sequence) as u32).collect()
}

fn cache(decoder: &Decoder, num_tokens: usize, kv_type: KvType) -> KvCache {
    let num_blocks = num_tokens.div_ceil(BLOCK_TOKENS);
    KvCache::new(decoder.config(), num_blocks, kv_type, decoder.backend()).expect("a small cache fits")
}

fn log_softmax(fixture: &Fixture, logits: &[f32]) -> Vec<Vec<f32>> {
    let rows = logits.chunks_exact(fixture.decoder.config().vocab);
    rows.map(|row| {
        let highest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|logit| f64::from(logit - highest).exp()).sum();
        row.iter().map(|logit| (f64::from(logit - highest) - sum.ln()) as f32).collect()
    })
    .collect()
}

/// Runs the fixture's tokens in chunks of these lengths, over and over, and returns all rows.
fn in_chunks(fixture: &Fixture, kv_type: KvType, chunks: &[usize]) -> Vec<Vec<f32>> {
    let mut cache = cache(&fixture.decoder, fixture.tokens.len(), kv_type);
    let block_table = block_table(0, 1, fixture.tokens.len());
    let mut rows = Vec::new();
    let mut lengths = chunks.iter().cycle();
    while rows.len() < fixture.tokens.len() {
        let start = rows.len();
        let num_tokens = (*lengths.next().expect("a cycle has no end")).min(fixture.tokens.len() - start);
        let sequence = BatchSequence { num_tokens, start, block_table: block_table.clone(), logits: LogitsWanted::All };
        let batch = Batch { tokens: fixture.tokens[start..start + num_tokens].to_vec(), sequences: vec![sequence] };
        let logits = fixture.decoder.forward(&batch, &mut cache).expect("the step runs");
        rows.extend(log_softmax(fixture, &logits));
    }
    rows
}

/// Runs the fixture's tokens as one of three sequences, in steps where one decodes, one prefills and one has
/// not begun, has ended or wants no logits.
fn in_company(fixture: &Fixture, kv_type: KvType) -> Vec<Vec<f32>> {
    let total = fixture.tokens.len();
    let mut cache = cache(&fixture.decoder, 3 * total + 3 * BLOCK_TOKENS, kv_type);
    // The others read the same tokens backwards, at another pace.
    let backwards: Vec<u32> = fixture.tokens.iter().rev().copied().collect();
    let texts = [&backwards[..], &fixture.tokens[..], &backwards[..total / 2]];
    let paces: [&[usize]; 3] = [&[1], &[7, 1, 1, 30, 1, 16], &[0, 0, 23]];
    let mut done = [0usize; 3];
    let mut rows = Vec::new();
    for step in 0.. {
        let mut batch = Batch::default();
        let mut before = 0;
        let mut ours = 0..0;
        for (index, text) in texts.iter().enumerate() {
            let pace = paces[index][step % paces[index].len()];
            let num_tokens = pace.min(text.len() - done[index]);
            if num_tokens == 0 {
                continue;
            }
            let logits = match index {
                0 => LogitsWanted::Last,
                1 => LogitsWanted::All,
                _ => LogitsWanted::None,
            };
            if index == 1 {
                ours = before..before + num_tokens;
            }
            batch.tokens.extend(&text[done[index]..done[index] + num_tokens]);
            let block_table = block_table(index, 3, total);
            batch.sequences.push(BatchSequence { num_tokens, start: done[index], block_table, logits });
            done[index] += num_tokens;
            before = batch.num_logits();
        }
        let logits = fixture.decoder.forward(&batch, &mut cache).expect("the step runs");
        assert_eq!(logits.len(), batch.num_logits() * fixture.decoder.config().vocab);
        rows.extend(log_softmax(fixture, &logits).drain(ours));
        if rows.len() == total {
            break;
        }
    }
    rows
}

fn largest_difference(left: &[Vec<f32>], right: &[Vec<f32>]) -> f32 {
    assert_eq!(left.len(), right.len());
    left.iter()
        .zip(right)
        .flat_map(|(left, right)| left.iter().zip(right).map(|(left, right)| (left - right).abs()))
        .fold(0.0, |largest, difference| if difference.is_nan() { f32::INFINITY } else { largest.max(difference) })
}

fn top(row: &[f32]) -> usize {
    (0..row.len()).max_by(|&left, &right| row[left].total_cmp(&row[right])).expect("a row has tokens")
}

#[test]
fn every_family_gives_the_log_probabilities_of_transformers() {
    let mut failures = Vec::new();
    for (family, tolerance) in FAMILIES {
        let fixture = load(family);
        let actual = in_chunks(&fixture, KvType::F32, &[fixture.tokens.len()]);
        let difference = largest_difference(&actual, &fixture.expected);
        let wrong = actual.iter().zip(&fixture.expected).filter(|(left, right)| top(left) != top(right)).count();
        println!("{family:16} largest difference {difference:.1e}");
        if difference > tolerance || wrong > 0 {
            failures.push(format!("{family}: difference {difference:.1e}, {wrong} tokens in first place differ"));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn chunks_and_company_change_nothing() {
    for (family, _) in FAMILIES {
        let fixture = load(family);
        let whole = in_chunks(&fixture, KvType::F32, &[fixture.tokens.len()]);
        let ways = [
            ("in chunks", in_chunks(&fixture, KvType::F32, &[17, 1, 64, 5])),
            ("token by token", in_chunks(&fixture, KvType::F32, &[1])),
            ("in company", in_company(&fixture, KvType::F32)),
        ];
        for (way, rows) in ways {
            let difference = largest_difference(&whole, &rows);
            assert!(difference <= 1e-5, "{family} {way} differs by {difference:e} from one prefill");
        }
    }
}

#[test]
fn candles_own_operations_give_the_same() {
    for (family, tolerance) in FAMILIES {
        let fixture = load_for(family, &Backend::Candle(Device::Cpu));
        let actual = in_chunks(&fixture, KvType::F32, &[64, 1]);
        let difference = largest_difference(&actual, &fixture.expected);
        assert!(difference <= tolerance, "{family} differs by {difference:e}");
    }
}

#[test]
fn a_half_precision_cache_stays_close() {
    for (family, tolerance) in FAMILIES {
        let fixture = load(family);
        let whole = in_chunks(&fixture, KvType::F16, &[fixture.tokens.len()]);
        let difference = largest_difference(&whole, &fixture.expected);
        assert!(difference <= tolerance + F16_CACHE_TOLERANCE, "{family} differs by {difference:e}");
        let company = in_company(&fixture, KvType::F16);
        let difference = largest_difference(&whole, &company);
        assert!(difference <= 1e-5, "{family} in company differs by {difference:e}");
    }
}

#[test]
fn only_wanted_rows_have_logits() {
    let fixture = load("llama");
    let mut cache = cache(&fixture.decoder, 64, KvType::F32);
    let mut run = |logits: LogitsWanted, start: usize, num_tokens: usize| {
        let sequence = BatchSequence { num_tokens, start, block_table: block_table(0, 1, 64), logits };
        let tokens = fixture.tokens[start..start + num_tokens].to_vec();
        let batch = Batch { tokens, sequences: vec![sequence] };
        log_softmax(&fixture, &fixture.decoder.forward(&batch, &mut cache).expect("the step runs"))
    };
    assert!(run(LogitsWanted::None, 0, 20).is_empty());
    let last = run(LogitsWanted::Last, 20, 5);
    assert!(largest_difference(&last, &fixture.expected[24..25]) <= 1e-4);
}

#[test]
fn wrong_batches_are_refused() {
    let fixture = load("llama");
    let mut cache = cache(&fixture.decoder, 64, KvType::F32);
    let good = BatchSequence { num_tokens: 2, start: 0, block_table: vec![0], logits: LogitsWanted::Last };
    let mut refused = |tokens: Vec<u32>, sequence: BatchSequence| {
        let batch = Batch { tokens, sequences: vec![sequence] };
        fixture.decoder.forward(&batch, &mut cache).expect_err("the batch is wrong").to_string()
    };
    assert!(refused(vec![1], good.clone()).contains("its sequences 2"));
    assert!(refused(vec![1, 64], good.clone()).contains("64"));
    assert!(refused(vec![1, 2], BatchSequence { block_table: vec![], ..good }).contains("need 1 KV blocks"));
    assert!(refused(vec![1, 2], BatchSequence { block_table: vec![4], ..good }).contains("KV block 4"));
    assert!(refused(vec![1, 2], BatchSequence { start: 511, ..good.clone() }).contains("beyond the context of 512"));
    assert!(refused(vec![1, 2], BatchSequence { start: usize::MAX, ..good }).contains("beyond the context"));
}
