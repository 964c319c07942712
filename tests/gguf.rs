//! The GGUF reader on files that are right, wrong and hostile. The files are written here, byte by byte.

use std::path::{Path, PathBuf};

use hearth_kernels::quant::GgmlType;
use hearth_models::gguf::{Array, Gguf, GgufError, Value};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::support::gguf_writer::{GgufWriter, list, string};

/// A small model that has something of everything.
fn small() -> GgufWriter {
    GgufWriter::default()
        .str("general.architecture", "llama")
        .u32("llama.block_count", 2)
        .raw("llama.rope.freq_base", 6, 1e6f32.to_le_bytes())
        .raw("llama.big", 10, u64::MAX.to_le_bytes())
        .raw("flag", 7, [1])
        .strings("tokenizer.ggml.tokens", &[b"<s>", "▁a".as_bytes(), b""])
        .strings("tokenizer.ggml.odd", &[b"ok", b"\xFF\xFE"])
        .raw("tokenizer.ggml.scores", 9, list(6, &[(-1.5f32).to_le_bytes().to_vec(), 0f32.to_le_bytes().to_vec()]))
        .raw("nested", 9, list(9, &[list(4, &[vec![1, 0, 0, 0]]), list(8, &[string("x")])]))
        .tensor_f32("norm.weight", &[3], &[1.0, 2.0, 3.0])
        .tensor("attn.weight", &[32, 2], 8, &[7; 68])
        .tensor("exotic.weight", &[256], 22, &[9; 82])
}

fn open_bytes(bytes: &[u8]) -> Result<Gguf, GgufError> {
    let (_directory, path) = file(bytes);
    Gguf::open(&path)
}

fn file(bytes: &[u8]) -> (TempDir, PathBuf) {
    let directory = TempDir::new().expect("a temporary directory");
    let path = directory.path().join("model.gguf");
    std::fs::write(&path, bytes).expect("the test directory is writable");
    (directory, path)
}

/// Opens, and touches all there is: whatever opened must be readable to its last byte.
fn open_and_touch(bytes: &[u8]) {
    let Ok(gguf) = open_bytes(bytes) else { return };
    let _ = (gguf.architecture(), gguf.parameters(), gguf.dominant_type(), gguf.file_bytes(), gguf.fingerprint());
    for (key, value) in gguf.metadata().iter() {
        let _ = (value.to_string(), gguf.metadata().f32(key), gguf.metadata().integers(key));
    }
    for name in gguf.tensor_names() {
        if let Ok(tensor) = gguf.tensor(name) {
            let elements: usize = tensor.shape.iter().product();
            assert_eq!(tensor.data.len(), elements / tensor.dtype.block_size() * tensor.dtype.block_bytes());
            assert!(tensor.data.iter().map(|byte| u64::from(*byte)).sum::<u64>() < u64::MAX);
        }
    }
}

fn message(writer: &GgufWriter) -> String {
    open_bytes(&writer.bytes()).expect_err("this file is wrong").to_string()
}

#[track_caller]
fn assert_says(writer: &GgufWriter, expected: &str) {
    let said = message(writer);
    assert!(said.contains(expected), "{expected:?} is not in {said:?}");
}

#[test]
fn reads_back_what_was_written() {
    for version in [2, 3] {
        let gguf = open_bytes(&GgufWriter { version, ..small() }.bytes()).unwrap();
        let metadata = gguf.metadata();
        assert_eq!(gguf.architecture().unwrap(), "llama");
        assert_eq!(metadata.u64("llama.block_count"), Some(2));
        assert_eq!(metadata.f32("llama.rope.freq_base"), Some(1e6));
        assert_eq!(metadata.u64("llama.big"), Some(u64::MAX));
        assert_eq!(metadata.bool("flag"), Some(true));
        assert_eq!(metadata.strings("tokenizer.ggml.tokens").unwrap(), &["<s>", "▁a", ""].into_iter().collect());
        assert_eq!(metadata.strings("tokenizer.ggml.odd"), None);
        assert_eq!(metadata.array("tokenizer.ggml.odd"), Some(&Array::Bytes(vec![b"ok".to_vec(), vec![0xFF, 0xFE]])));
        assert_eq!(metadata.f32s("tokenizer.ggml.scores").unwrap(), [-1.5, 0.0]);
        let nested = Array::Array(vec![Array::U32(vec![1]), Array::String(["x"].into_iter().collect())]);
        assert_eq!(metadata.get("nested"), Some(&Value::Array(nested)));

        let norm = gguf.tensor("norm.weight").unwrap();
        assert_eq!((norm.dtype, &norm.shape[..]), (GgmlType::F32, &[3][..]));
        assert_eq!(&norm.data[4..8], 2f32.to_le_bytes());
        let attention = gguf.tensor("attn.weight").unwrap();
        assert_eq!((attention.dtype, &attention.shape[..]), (GgmlType::Q8_0, &[2, 32][..]));
        assert_eq!(&attention.data[..], [7; 68]);
        assert_eq!(gguf.tensor_names().collect::<Vec<_>>(), ["norm.weight", "attn.weight", "exotic.weight"]);
        assert_eq!(gguf.parameters(), 3 + 64 + 256);
    }
}

#[test]
fn tensors_outlive_the_reader_and_share_its_map() {
    let gguf = open_bytes(&small().bytes()).unwrap();
    let (one, two) = (gguf.tensor("attn.weight").unwrap(), gguf.tensor("attn.weight").unwrap());
    assert_eq!(one.data.as_ptr(), two.data.as_ptr());
    drop(gguf);
    assert_eq!(one.data, two.data);
}

#[test]
fn copies_have_one_fingerprint_and_other_weights_another() {
    let bytes = small().bytes();
    let fingerprint = |bytes: &[u8]| open_bytes(bytes).unwrap().fingerprint();
    assert_eq!(fingerprint(&bytes), fingerprint(&bytes));
    let mut weights = GgufWriter::default();
    let mut seen = vec![fingerprint(&bytes)];
    for changed in [0, 2000, 3999] {
        let mut values = vec![0.5; 1000];
        values[changed / 4] = 0.25;
        weights = GgufWriter::default().str("general.architecture", "llama").tensor_f32("a", &[1000], &values);
        seen.push(fingerprint(&weights.bytes()));
    }
    seen.push(fingerprint(&weights.str("general.name", "another").bytes()));
    assert!(seen.iter().enumerate().all(|(index, one)| !seen[..index].contains(one)), "{seen:?}");
}

#[test]
fn an_unsupported_type_fails_only_who_asks_for_it() {
    let gguf = open_bytes(&small().bytes()).unwrap();
    assert!(gguf.has_tensor("exotic.weight"));
    assert_eq!(gguf.dominant_type(), "IQ2_S");
    let said = gguf.tensor("exotic.weight").unwrap_err().to_string();
    assert!(said.contains("tensor exotic.weight") && said.contains("IQ2_S") && said.contains("Q4_K"), "{said}");

    let unheard_of = GgufWriter::default().tensor("future", &[64], 77, &[0; 8]);
    let gguf = open_bytes(&unheard_of.bytes()).unwrap();
    let said = gguf.tensor("future").unwrap_err().to_string();
    assert!(said.contains("number 77, unknown to Hearth"), "{said}");
    assert!(matches!(gguf.tensor("absent"), Err(GgufError::MissingTensor { .. })));
}

#[test]
fn other_versions_and_byte_orders_are_refused_by_name() {
    assert_says(&GgufWriter { version: 1, ..small() }, "version 1");
    assert_says(&GgufWriter { version: 4, ..small() }, "newer Hearth");
    assert_says(&GgufWriter { version: 3u32.swap_bytes(), ..small() }, "big-endian");
}

#[test]
fn contradictions_are_refused_by_place() {
    let writer = GgufWriter::default;
    let f32s = |count: usize| vec![0; 4 * count];
    assert_says(&small().u32("general.alignment", 0), "power of two");
    assert_says(&small().u32("general.alignment", 24), "power of two");
    assert_says(&small().str("general.alignment", "32"), "power of two");
    assert_says(&small().str("general.architecture", "again"), "appears twice");
    assert_says(&small().raw("odd", 13, []), "unknown type 13");
    assert_says(&small().raw("odd", 9, list(13, &[])), "unknown type 13");
    assert_says(&small().raw("flag2", 7, [2]), "neither 0 nor 1");
    let mut garbled = small();
    garbled.values.push(("x".to_owned(), 9, (0..9).fold(list(0, &[]), |inner, _| list(9, &[inner]))));
    assert_says(&garbled, "too deep");

    assert_says(&writer().tensor("a", &[4], 0, &f32s(4)).tensor("a", &[4], 0, &f32s(4)), "appears twice");
    assert_says(&writer().tensor("a", &[0], 0, &[0]), "dimension of 0");
    assert_says(&writer().tensor("a", &[1, 1, 1, 1, 1], 0, &[0; 4]), "5 dimensions");
    assert_says(&writer().tensor("a", &[1 << 32, 1 << 32], 0, &[0; 4]), "than can be counted");
    assert_says(&writer().tensor("a", &[1 << 62], 0, &[0; 4]), "than can be counted");
    assert_says(&writer().tensor("a", &[33], 8, &[0; 34]), "whole Q8_0 blocks of 32");
    assert_says(&writer().tensor("a", &[4], 0, &f32s(4)).claim_offset(8), "no multiple of 32");
    assert_says(&writer().tensor("a", &[4], 0, &f32s(4)).claim_offset(u64::MAX - 31), "further on");
    assert_says(&writer().tensor("a", &[4], 0, &f32s(4)).claim_offset(1 << 40), "truncated");
    let two = writer().tensor("a", &[16], 0, &f32s(16)).tensor("b", &[16], 0, &f32s(16));
    assert_says(&two.clone().claim_offset(32), "overlap");
    assert_says(&two.claim_offset(0), "overlap");
}

/// Counts and lengths that no file can hold are refused before memory is asked for them.
#[test]
fn hostile_lengths_cost_nothing() {
    let huge = [u64::MAX, u64::MAX / 8, 1 << 61, 1 << 40, 1 << 32];
    for length in huge {
        let length = length.to_le_bytes();
        let header = |tensors: [u8; 8], values: [u8; 8]| {
            [b"GGUF", &3u32.to_le_bytes()[..], &tensors, &values, &[0; 64]].concat()
        };
        assert!(open_bytes(&header(length, [0; 8])).is_err());
        assert!(open_bytes(&header([0; 8], length)).is_err());
        assert!(open_bytes(&small().raw("text", 8, length).bytes()).is_err());
        for element_type in 0..13u32 {
            let array = [&element_type.to_le_bytes()[..], &length].concat();
            assert!(open_bytes(&small().raw("list", 9, array).bytes()).is_err());
        }
    }
}

#[test]
fn every_prefix_is_refused() {
    let bytes = small().bytes();
    let (_directory, path) = file(&[]);
    for length in 0..bytes.len() {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let error = Gguf::open(&path).expect_err("a part is not the whole");
        assert!(
            matches!(error, GgufError::Truncated { .. } | GgufError::NotGguf { .. }),
            "at {length} of {}: {error}",
            bytes.len()
        );
    }
    open_bytes(&bytes).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn flipped_bits_never_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8u32), 1..6)) {
        let mut bytes = small().bytes();
        for (index, bit) in flips {
            let at = index.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        open_and_touch(&bytes);
    }

    #[test]
    fn overwritten_words_never_panic(
        at in any::<prop::sample::Index>(),
        word in prop_oneof![any::<u64>(), Just(u64::MAX), Just(1 << 63), 0..300u64],
    ) {
        let mut bytes = small().bytes();
        let start = at.index(bytes.len() - 8);
        bytes[start..start + 8].copy_from_slice(&word.to_le_bytes());
        open_and_touch(&bytes);
    }

    #[test]
    fn garbage_after_the_magic_never_panics(version in 2..4u32, garbage in prop::collection::vec(any::<u8>(), 0..200)) {
        open_and_touch(&[b"GGUF", &version.to_le_bytes()[..], &garbage].concat());
    }
}

/// Writes a model of one tensor per part; returns the parts' paths.
fn split(directory: &Path, count: u16) -> Vec<PathBuf> {
    (0..count)
        .map(|number| {
            let path = directory.join(format!("m-{:05}-of-{count:05}.gguf", number + 1));
            let mut writer = GgufWriter::default()
                .u16("split.no", number)
                .u16("split.count", count)
                .i32("split.tensors.count", i32::from(count))
                .tensor_f32(&format!("t{number}"), &[1], &[f32::from(number)]);
            if number == 0 {
                writer = writer.str("general.architecture", "qwen3");
            }
            writer.write(&path);
            path
        })
        .collect()
}

#[test]
fn any_part_of_a_split_model_opens_all() {
    let directory = TempDir::new().unwrap();
    let paths = split(directory.path(), 3);
    for path in &paths {
        let gguf = Gguf::open(path).unwrap();
        assert_eq!(gguf.paths(), paths);
        assert_eq!(gguf.architecture().unwrap(), "qwen3");
        assert_eq!(gguf.tensor_names().collect::<Vec<_>>(), ["t0", "t1", "t2"]);
        assert_eq!(&gguf.tensor("t2").unwrap().data[..], 2f32.to_le_bytes());
    }
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let says = |path: &Path, expected: &str| {
        let said = Gguf::open(path).unwrap_err().to_string();
        assert!(said.contains(expected), "{expected:?} is not in {said:?}");
    };
    let directory = TempDir::new().unwrap();
    let paths = split(directory.path(), 3);
    std::fs::rename(&paths[1], directory.path().join("elsewhere.gguf")).unwrap();
    says(&paths[0], "part 2 of 3, m-00002-of-00003.gguf, is not beside it");
    says(&directory.path().join("elsewhere.gguf"), "must end -NNNNN-of-00003.gguf");
    std::fs::copy(&paths[0], &paths[1]).unwrap();
    says(&paths[0], "contradicts");
    let part = |number| GgufWriter::default().u16("split.no", number).u16("split.count", 3);
    part(1).tensor_f32("t0", &[1], &[0.0]).write(&paths[1]);
    says(&paths[0], "tensor t0 is in an earlier part");
    part(1).write(&paths[1]);
    says(&paths[0], "has 3 tensors, but its 3 parts have 2");
}

#[test]
fn what_is_no_file_is_named() {
    let directory = TempDir::new().unwrap();
    assert!(Gguf::open(directory.path()).unwrap_err().to_string().contains("directory"));
    let absent = Gguf::open(&directory.path().join("absent.gguf")).unwrap_err();
    assert!(matches!(absent, GgufError::Io { .. }) && absent.to_string().contains("absent.gguf"));
}
