//! `hearth pull auto`: the best chat model that this machine can run well.
//!
//! Of the known models whose licence has no conditions, the largest one that leaves room in memory and whose tokens
//! come fast enough to read along. Decoding a token reads all weights once, so memory bandwidth bounds the speed: it is
//! measured.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use hearth_models::manifest::{self, Kind, Manifest};
use indicatif::{DecimalBytes, HumanBytes};

/// Licences under which anyone may use a model for anything.
const FREE_LICENCES: [&str; 2] = ["Apache-2.0", "MIT"];
/// Besides the weights: keys and values, an embedding model, the server.
const ROOM: u64 = 1 << 30;
/// Somewhat faster than a person reads.
const TOKENS_PER_SECOND: f64 = 10.0;
/// Bytes that each thread reads to measure: far more than a cache holds.
const MEASURED_BYTES: usize = 64 << 20;
const MEASURED_FOR: Duration = Duration::from_millis(100);

/// A model, and why it was chosen, as a sentence.
pub(super) fn choose(available_memory: u64) -> anyhow::Result<(&'static Manifest, String)> {
    let bandwidth = memory_bandwidth(available_memory);
    let chosen = best(manifest::known(), available_memory, bandwidth).with_context(|| {
        format!(
            "no model that is known by name runs well on this machine: {} of memory are available, which is read at {} a second; \
             `hearth models list` has them all",
            HumanBytes(available_memory),
            DecimalBytes(bandwidth as u64)
        )
    })?;
    let reason = format!(
        "{} is the largest freely licensed model of those known by name that fits into the {} of memory available and gives {} \
         tokens a second or more: at most about {:.0}, as memory is read at {} a second.",
        chosen.name,
        HumanBytes(available_memory),
        TOKENS_PER_SECOND,
        tokens_per_second(chosen, bandwidth),
        DecimalBytes(bandwidth as u64)
    );
    Ok((chosen, reason))
}

fn best(known: &[Manifest], memory: u64, bandwidth: f64) -> Option<&Manifest> {
    let fits = |model: &&Manifest| {
        model.kind == Kind::Chat
            && FREE_LICENCES.contains(&&*model.licence)
            && model.bytes.is_some_and(|bytes| bytes + ROOM <= memory)
            && tokens_per_second(model, bandwidth) >= TOKENS_PER_SECOND
    };
    known.iter().filter(fits).max_by_key(|model| model.bytes)
}

/// Tokens per second if memory were the only bound.
fn tokens_per_second(model: &Manifest, bandwidth: f64) -> f64 {
    bandwidth / model.bytes.unwrap_or(u64::MAX) as f64
}

/// Bytes per second that all cores together read from memory; the buffers take a quarter of it at most.
fn memory_bandwidth(available: u64) -> f64 {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let share = usize::try_from(available / 4).unwrap_or(usize::MAX) / threads;
    let measured = MEASURED_BYTES.min(share).max(1 << 20);
    let read = |_| {
        let block = vec![1_u64; measured / size_of::<u64>()];
        let began = Instant::now();
        let mut bytes = 0;
        while began.elapsed() < MEASURED_FOR {
            std::hint::black_box(block.iter().fold(0_u64, |sum, word| sum.wrapping_add(*word)));
            bytes += measured;
        }
        bytes as f64 / began.elapsed().as_secs_f64()
    };
    thread::scope(|scope| {
        let readers: Vec<_> = (0..threads).map(|index| scope.spawn(move || read(index))).collect();
        readers.into_iter().filter_map(|reader| reader.join().ok()).sum()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(memory: u64, bandwidth: f64) -> Option<&'static str> {
        best(manifest::known(), memory, bandwidth).map(|model| &*model.name)
    }

    #[test]
    fn memory_and_speed_bound_the_choice() {
        assert_eq!(named(64 << 30, 100e9), Some("phi-3-mini-4k-instruct"));
        assert_eq!(named(64 << 30, 15e9), Some("qwen3-0.6b"), "a larger one would be slow");
        assert_eq!(named(3 << 30, 100e9), Some("qwen3-0.6b"), "a larger one would not fit");
        assert_eq!(named(64 << 30, 5.5e9), Some("qwen2.5-0.5b-instruct"));
        assert_eq!(named(1 << 30, 100e9), None);
        assert_eq!(named(64 << 30, 1e9), None);
    }

    #[test]
    fn a_machine_reads_its_memory() {
        assert!(memory_bandwidth(1 << 30) > 0.0);
    }
}
