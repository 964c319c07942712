//! At the engine's handle: token ids in, token events out, no text and no sockets. The baseline, if requested,
//! alternates with it, so that other load on the machine affects both.

use std::time::Instant;

use anyhow::{Context, bail};
use futures_util::{StreamExt, future::try_join_all};
use hearth_domain::SamplingParams;

use super::{Measured, Workload, candle::Baseline, prompt};
use crate::engine::{Engine, SequenceRequest, TokenEvent};

/// The engine's figures and the baseline's. One repetition of each measurement warms up and is not counted.
pub(super) async fn measure(
    engine: &Engine,
    mut baseline: Option<Baseline>,
    workload: Workload,
) -> anyhow::Result<(Measured, Option<Measured>)> {
    let mut measured = Measured::default();
    let mut baseline_measured = baseline.is_some().then(Measured::default);
    for repetition in 0..=workload.repetitions {
        let salt = repetition as u64 * 1000;
        let mut ours = Measured::default();
        if workload.prefill {
            let (first_token, _) = stream(engine, workload.prompt_tokens, 1, salt).await?;
            ours.record_prefill(workload, first_token);
        }
        if workload.decode {
            let (_, decode) = stream(engine, workload.depth, workload.decode_tokens, salt + 1).await?;
            ours.record_decode(workload, decode);
        }
        let mut theirs = Measured::default();
        if let Some(baseline) = &mut baseline {
            tokio::task::block_in_place(|| baseline.measure(workload, salt, &mut theirs))?;
        }
        if workload.streams {
            let started = Instant::now();
            let streams =
                (0..workload.parallel).map(|index| stream(engine, 1, workload.decode_tokens, salt + 2 + index as u64));
            try_join_all(streams).await?;
            ours.record_concurrent(workload, started.elapsed().as_secs_f64());
        }
        if repetition > 0 {
            measured.append(ours);
            if let Some(measured) = &mut baseline_measured {
                measured.append(theirs);
            }
        }
    }
    Ok((measured, baseline_measured))
}

/// Seconds from submission to the first token, and from the first token to the last.
async fn stream(engine: &Engine, prompt_tokens: usize, decode_tokens: usize, salt: u64) -> anyhow::Result<(f64, f64)> {
    let request = SequenceRequest {
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        max_new_tokens: Some(decode_tokens),
        ignore_eos: true,
        ..SequenceRequest::new(prompt(prompt_tokens, engine.vocab_size(), salt))
    };
    let started = Instant::now();
    let mut events = engine.submit(request)?;
    let mut first = None;
    let mut tokens = 0;
    while let Some(event) = events.next().await {
        match event? {
            TokenEvent::Token { .. } => {
                tokens += 1;
                first.get_or_insert_with(Instant::now);
            }
            TokenEvent::Done { .. } => break,
            TokenEvent::Prefilled { .. } | TokenEvent::Finished { .. } => {}
        }
    }
    if tokens != decode_tokens {
        bail!("the stream ended after {tokens} of {decode_tokens} tokens");
    }
    let first = first.context("the stream ended without a token")?;
    Ok(((first - started).as_secs_f64(), first.elapsed().as_secs_f64()))
}
