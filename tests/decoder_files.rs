//! Files that are not what they say: every number and every tensor of a good file is spoilt in turn.
//!
//! Loading must end in an error that names the culprit, or in a model that runs; never in a panic. The good
//! files are the logits fixtures, so that every family's own keys are spoilt too.

use std::path::{Path, PathBuf};

use hearth_kernels::{
    device::Backend,
    kv::{BLOCK_TOKENS, KvType},
};
use hearth_models::{
    batch::{Batch, BatchSequence, LogitsWanted},
    decoder::{Decoder, DecoderConfig, ModelError},
    gguf::{Gguf, Value},
    kv_cache::KvCache,
};

use crate::support::gguf_writer::{GgufWriter, list, string};

/// One family of each kind of rotation, window and norm.
const FAMILIES: [&str; 9] =
    ["llama3", "llama-yarn", "ministral3", "qwen3", "phi3-longrope", "gemma2", "gemma3", "granite", "olmo2"];

/// A copy of a fixture that can be spoilt before it is written.
fn copy_of(family: &str) -> GgufWriter {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/logits/{family}.gguf"));
    let gguf = Gguf::open(&path).expect("the fixture is a GGUF file");
    let mut writer = GgufWriter::default();
    for (key, value) in gguf.metadata().iter() {
        writer = match value {
            Value::U32(value) => writer.u32(key, *value),
            Value::F32(value) => writer.raw(key, 6, value.to_le_bytes()),
            Value::String(value) => writer.str(key, value),
            other => panic!("no fixture has {key} = {other}"),
        };
    }
    for tensor in gguf.tensors() {
        let dimensions: Vec<u64> = tensor.shape.iter().rev().map(|&length| length as u64).collect();
        let raw = gguf.tensor(tensor.name).expect("the fixture's tensors are readable");
        writer = writer.tensor(tensor.name, &dimensions, raw.dtype as u32, &raw.data);
    }
    writer
}

fn write(writer: &GgufWriter, directory: &Path) -> PathBuf {
    let path = directory.join("spoilt.gguf");
    // A new file each time: an earlier one may still be mapped.
    let _ = std::fs::remove_file(&path);
    writer.write(&path);
    path
}

/// Loads and, if that succeeds, runs three tokens.
fn load_and_run(path: &Path) -> Result<(), ModelError> {
    let gguf = Gguf::open(path)?;
    let decoder = Decoder::load(&gguf, &Backend::Cpu)?;
    let mut cache =
        KvCache::new(decoder.config(), 1, KvType::F32, &Backend::Cpu).expect("one block of a small model fits");
    let sequence = BatchSequence { num_tokens: 3, start: 0, block_table: vec![0], logits: LogitsWanted::Last };
    let batch = Batch { tokens: vec![3, 4, 5], sequences: vec![sequence] };
    // A context of one token is a fair answer to a file that says so.
    if let Ok(logits) = decoder.forward(&batch, &mut cache) {
        assert_eq!(logits.len(), decoder.config().vocab);
    }
    Ok(())
}

fn refusal(writer: &GgufWriter) -> String {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    load_and_run(&write(writer, directory.path())).expect_err("the file is wrong").to_string()
}

/// What a damaged or hostile file may have in place of a value: type number and encoding.
fn hostile_values() -> Vec<(u32, Vec<u8>)> {
    let mut values: Vec<(u32, Vec<u8>)> =
        [0, 1, 2, 3, 5, 1 << 20, u32::MAX].map(|value: u32| (4, value.to_le_bytes().to_vec())).to_vec();
    values.extend([u64::MAX, 1 << 40].map(|value: u64| (10, value.to_le_bytes().to_vec())));
    values.push((5, (-1i32).to_le_bytes().to_vec()));
    let floats = [0.0, -0.0, -1.0, 1.0, 1e-45, f32::MAX, f32::MIN, f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    values.extend(floats.map(|value: f32| (6, value.to_le_bytes().to_vec())));
    values.extend(["", "none", "dynamic", "yarn", "longrope"].map(|text| (8, string(text))));
    values.push((7, vec![1]));
    values.push((9, list(4, &[1u32.to_le_bytes().to_vec()])));
    values.push((9, list(4, &[])));
    values.push((9, list(5, &vec![0i32.to_le_bytes().to_vec(); 3])));
    values.push((9, list(7, &vec![vec![1]; 4])));
    values
}

#[test]
fn no_metadata_value_makes_it_panic() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    for family in FAMILIES {
        let good = copy_of(family);
        for index in 0..good.values.len() {
            if good.values[index].0.starts_with("general.") {
                continue;
            }
            for (value_type, value) in hostile_values() {
                let mut spoilt = good.clone();
                (spoilt.values[index].1, spoilt.values[index].2) = (value_type, value);
                // Either outcome is right; a panic is not.
                let _ = load_and_run(&write(&spoilt, directory.path()));
            }
            let mut spoilt = good.clone();
            spoilt.values.remove(index);
            let _ = load_and_run(&write(&spoilt, directory.path()));
        }
    }
}

#[test]
fn every_tensor_is_checked_by_name_and_shape() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    for family in FAMILIES {
        let good = copy_of(family);
        for index in 0..good.tensors.len() {
            let name = good.tensors[index].name.clone();
            let mut spoilt = good.clone();
            spoilt.tensors[index].dimensions.push(1);
            spoilt.tensors[index].dimensions.rotate_right(1);
            let error = load_and_run(&write(&spoilt, directory.path())).expect_err("the shape is wrong");
            assert!(matches!(&error, ModelError::TensorShape { name: named, .. } if *named == name), "{name}: {error}");

            // An output matrix that is not there is tied to the embedding; factors that are not there are none.
            if name == "output.weight" || name.starts_with("rope_") {
                continue;
            }
            let mut spoilt = good.clone();
            spoilt.tensors.remove(index);
            let error = load_and_run(&write(&spoilt, directory.path())).expect_err("a tensor is missing").to_string();
            // Without a fused or a gate matrix the file could have the other form, whose first tensor is named.
            let named = name.trim_end_matches(".weight").replace("attn_qkv", "attn_q").replace("ffn_gate", "ffn_up");
            assert!(error.contains(&named), "{name}: {error}");
        }
    }
}

#[test]
fn a_good_copy_runs() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    for family in FAMILIES {
        load_and_run(&write(&copy_of(family), directory.path())).expect("the copy is as good as the fixture");
    }
}

#[test]
fn refusals_say_what_is_wrong_and_what_would_do() {
    let with = |family: &str, key: &str, value: &str| {
        let mut writer = copy_of(family);
        writer.values.retain(|(existing, _, _)| existing != key);
        writer.str(key, value)
    };
    let error = refusal(&with("llama3", "general.architecture", "mamba"));
    assert!(error.contains("is a mamba model") && error.contains("llama, mistral3, qwen2"), "{error}");
    let error = refusal(&with("llama3", "general.architecture", "bert"));
    assert!(error.contains("--embedding-model"), "{error}");
    let error = refusal(&with("llama-yarn", "llama.rope.scaling.type", "dynamic"));
    assert!(error.contains("rope scaling of type dynamic"), "{error}");

    let error = refusal(&copy_of("llama3").u32("llama.expert_count", 8));
    assert!(error.contains("mixture-of-experts"), "{error}");
    let error = refusal(&copy_of("qwen3").tensor_f32("blk.0.attn_sinks.weight", &[4], &[0.0; 4]));
    assert!(error.contains("attention sinks"), "{error}");

    let mut writer = copy_of("llama3");
    writer.values.retain(|(key, _, _)| key != "llama.attention.head_count_kv");
    let error = refusal(&writer.u32("llama.attention.head_count_kv", 3));
    assert!(error.contains("llama.attention.head_count_kv = 3") && error.contains("divide the 4"), "{error}");
}

#[test]
fn head_counts_may_differ_from_layer_to_layer() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let mut writer = copy_of("llama3");
    writer.values.retain(|(key, _, _)| key != "llama.attention.head_count_kv");
    // Layer 1 keeps one of its two heads of keys and values: half the rows.
    let counts = [2i32, 1, 2].map(|count| count.to_le_bytes().to_vec());
    let mut writer = writer.raw("llama.attention.head_count_kv", 9, list(5, &counts));
    for tensor in &mut writer.tensors {
        if ["blk.1.attn_k.weight", "blk.1.attn_v.weight"].contains(&tensor.name.as_str()) {
            tensor.dimensions[1] /= 2;
            tensor.data.truncate(tensor.data.len() / 2);
        }
    }
    let path = write(&writer, directory.path());
    load_and_run(&path).expect("per-layer head counts are supported");
    let config = DecoderConfig::from_gguf(&Gguf::open(&path).expect("the file is whole")).expect("it is a decoder");
    assert_eq!(config.layers.iter().map(|layer| layer.n_kv_heads).collect::<Vec<_>>(), [2, 1, 2]);
    // 2 * 16 dimensions * 4 bytes, for five heads of keys and values.
    assert_eq!(config.kv_bytes_per_block(KvType::F32), BLOCK_TOKENS * 5 * 2 * 16 * 4);
}
