//! Prices a request without running it: an estimate for each side that could serve it.

use std::sync::Arc;

use hearth_domain::{Account, GenerateRequest, error::Result, quote::Quote, usage::ModelUsage};
use hearth_text::work::off_the_async_threads;

use crate::providers::ChatModel;

/// A quote and its cost.
#[derive(Clone, Debug)]
pub struct Priced {
    pub quote: Quote,
    /// Millionths of a US dollar, for the prompt alone and with the longest answer.
    pub cost_micro_usd: (u64, u64),
}

/// The model's estimate for all generations of a request together, per side.
///
/// # Errors
/// If a prompt cannot be rendered.
pub async fn quote(
    model: Arc<dyn ChatModel>,
    account: Arc<Account>,
    generations: Vec<GenerateRequest>,
) -> Result<Vec<Priced>> {
    let bytes = generations.iter().map(|generation| generation.prompt.bytes()).sum();
    off_the_async_threads(bytes, move |wanted| {
        let mut sides: Vec<Quote> = Vec::new();
        for generation in &generations {
            wanted.check()?;
            let quotes = model.quotes(generation)?;
            if sides.is_empty() {
                sides = quotes;
            } else {
                sides.iter_mut().zip(quotes).for_each(|(side, quote)| add(side, quote));
            }
        }
        Ok(sides.into_iter().map(|quote| priced(&account, quote)).collect())
    })
    .await
}

/// Several prompts run concurrently: their tokens add up, and if one does not fit, the request does not.
fn add(side: &mut Quote, quote: Quote) {
    side.prompt_tokens += quote.prompt_tokens;
    side.max_completion_tokens += quote.max_completion_tokens;
    side.compute.0 += quote.compute.0;
    side.compute.1 += quote.compute.1;
    side.wait = side.wait.max(quote.wait);
    side.is_exact &= quote.is_exact;
    side.refusal = side.refusal.or(quote.refusal);
}

fn priced(account: &Account, quote: Quote) -> Priced {
    let price = |completion_tokens: usize, compute| {
        account.price(&ModelUsage {
            model: quote.model.clone(),
            served_by: quote.served_by.clone(),
            prompt_tokens: quote.prompt_tokens as u64,
            cached_tokens: 0,
            completion_tokens: completion_tokens as u64,
            reasoning_tokens: 0,
            queue: quote.wait,
            prefill: quote.compute.0,
            decode: quote.compute.1 - quote.compute.0,
            compute,
        })
    };
    let cost_micro_usd = (price(0, quote.compute.0), price(quote.max_completion_tokens, quote.compute.1));
    Priced { quote, cost_micro_usd }
}
