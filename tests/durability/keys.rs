//! API keys are made, and the machine fails. A key that was shown lets its owner in.

use std::time::Duration;

use rand::{SeedableRng, rngs::StdRng};

use super::{
    clients::start,
    machine::{Machine, Within, command, spawn},
};

const WITHIN: Within = Within { time: Duration::from_millis(100), changes: 80 };

async fn a_key_that_was_shown_holds(mut machine: Machine, failures: u64, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    // The directory is there and in use before there are keys in it.
    drop(start(&machine.data(), "at first").await);
    machine.sync();
    let mut shown: Vec<String> = Vec::new();
    for failure in 0..failures {
        let mut creation = spawn(command(&machine.data(), &["keys", "create"]));
        let ended = machine.fail(&mut [&mut creation.0], WITHIN, &mut random).await;
        let said = std::io::read_to_string(creation.0.stdout.take().expect("a pipe")).expect("UTF-8");
        let key = said.split_whitespace().find(|word| word.starts_with("hk_"));
        if let Some(ended) = ended {
            assert!(ended.success() && key.is_some(), "seed {seed}, failure {failure}: {said}");
        }
        shown.extend(key.map(str::to_owned));
        let context = format!("seed {seed}, after failure {failure}");
        let (_server, client) = start(&machine.data(), &context).await;
        for key in &shown {
            assert!(client.lets_in(Some(key)).await, "{context}: key {key:?} of {}", shown.len());
        }
        assert!(shown.is_empty() || !client.lets_in(None).await, "{context}: the door is open");
    }
}

super::on_each_machine!(a_key_that_was_shown_holds);
