//! How many prompt tokens a step takes.
//!
//! While streams are running, a step is their inter-token latency, so prompts are split into chunks that keep the step
//! near a target; the speed is measured as steps go by. With no stream running, a step takes all the prompt tokens it
//! may, which is where matrix products are most efficient.

use std::time::Duration;

/// Fewer prompt tokens than this waste a pass over the weights.
const MIN_CHUNK_TOKENS: usize = 32;

/// The chunk size before anything has been measured.
const FIRST_CHUNK_TOKENS: usize = 128;

/// Steps with fewer tokens say little about prefill speed: they are bound by reading the weights.
const MIN_MEASURED_TOKENS: usize = 32;

#[derive(Debug)]
pub(super) struct ChunkSize {
    target_step: Duration,
    max_batch_tokens: usize,
    seconds_per_token: Option<f64>,
}

impl ChunkSize {
    pub(super) fn new(target_step: Duration, max_batch_tokens: usize) -> Self {
        Self { target_step, max_batch_tokens, seconds_per_token: None }
    }

    pub(super) fn prefill_tokens(&self, decoding: bool) -> usize {
        if !decoding {
            return self.max_batch_tokens;
        }
        let tokens = match self.seconds_per_token {
            Some(seconds) if seconds > 0.0 => (self.target_step.as_secs_f64() / seconds) as usize,
            _ => FIRST_CHUNK_TOKENS,
        };
        tokens.max(MIN_CHUNK_TOKENS).min(self.max_batch_tokens)
    }

    pub(super) fn observe(&mut self, num_tokens: usize, duration: Duration) {
        if num_tokens < MIN_MEASURED_TOKENS {
            return;
        }
        let seconds = duration.as_secs_f64() / num_tokens as f64;
        self.seconds_per_token =
            Some(self.seconds_per_token.map_or(seconds, |average| 0.75 * average + 0.25 * seconds));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_beside_running_streams_meets_the_target_and_one_alone_takes_all() {
        let mut size = ChunkSize::new(Duration::from_millis(100), 2048);
        assert_eq!(size.prefill_tokens(true), FIRST_CHUNK_TOKENS);
        size.observe(500, Duration::from_secs(1));
        assert_eq!(size.prefill_tokens(true), 50);
        assert_eq!(size.prefill_tokens(false), 2048);
        // One slow measurement moves the average, and never below the smallest chunk.
        size.observe(32, Duration::from_secs(32));
        assert_eq!(size.prefill_tokens(true), MIN_CHUNK_TOKENS);
        // A lone decode step does not count.
        size.observe(1, Duration::from_secs(100));
        assert_eq!(size.prefill_tokens(true), MIN_CHUNK_TOKENS);
    }
}
