//! Every input that fuzzing began with or that once failed, against its target, on the stable compiler and without libFuzzer.

use std::{fs, path::Path};

use crate::support::scripted_server;

#[path = "../fuzz/src/targets.rs"]
mod targets;

#[test]
fn every_input_of_the_corpus_is_survived() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, target) in targets::TARGETS {
        let mut inputs: Vec<_> = fs::read_dir(corpus.join(name))
            .unwrap_or_else(|error| panic!("{name} has no corpus: {error}"))
            .map(|entry| entry.expect("the corpus can be read").path())
            .collect();
        inputs.sort();
        assert!(!inputs.is_empty(), "{name} has no inputs");
        for input in inputs {
            let bytes = fs::read(&input).expect("the corpus can be read");
            println!("{}", input.display());
            target(&bytes);
        }
    }
}
