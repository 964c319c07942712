//! How large the KV cache is: pure arithmetic over what is needs and what is available.
//!
//! The cache never needs more than every running sequence filled to its context, and by default takes no more than half
//! of the memory that is free once the weights are mapped. A requested context that cannot be held even once is an
//! error with both numbers, not a smaller context.

use thiserror::Error;

/// The inputs of the cache's size.
#[derive(Clone, Copy, Debug)]
pub struct CacheNeeds {
    /// The context that the model was trained for, in tokens.
    pub model_context: usize,
    /// The context that the user asked for, in tokens, if any.
    pub context: Option<usize>,
    pub sequences: usize,
    pub block_tokens: usize,
    /// All layers' keys and values for one block.
    pub block_bytes: u64,
    /// The user's memory budget, if any.
    pub budget_bytes: Option<u64>,
    /// Memory that is available now.
    pub available_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSize {
    pub num_blocks: usize,
    /// Tokens of one sequence.
    pub context_length: usize,
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum SizeError {
    #[error(
        "a context of {context} tokens needs {needed_mib} MiB of KV cache and the budget is {budget_mib} MiB: lower \
         --ctx-size, raise --kv-cache-mib, or store keys and values smaller with --cache-type f16"
    )]
    DoesNotFit { context: usize, needed_mib: u64, budget_mib: u64 },
    #[error("the KV cache cannot hold one block of {block_mib} MiB in a budget of {budget_mib} MiB: free some memory")]
    NoRoom { block_mib: u64, budget_mib: u64 },
}

/// A default budget is not lowered below this to half of the free memory: a tiny model on a small machine should not
/// lose its context to a rule of thumb.
const SMALL_CACHE_BYTES: u64 = 256 << 20;

/// A default cache is at most this large, however much memory is free.
const LARGE_CACHE_BYTES: u64 = 16 << 30;

/// Sizes the cache.
///
/// # Errors
/// If the requested context does not fit once, or nothing fits.
pub fn size_cache(needs: CacheNeeds) -> Result<CacheSize, SizeError> {
    let CacheNeeds { model_context, context, sequences, block_tokens, block_bytes, budget_bytes, available_bytes } =
        needs;
    let budget = budget_bytes
        .unwrap_or_else(|| (available_bytes / 2).min(LARGE_CACHE_BYTES).max(SMALL_CACHE_BYTES.min(available_bytes)));
    let affordable = usize::try_from(budget / block_bytes.max(1)).unwrap_or(usize::MAX);
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    if affordable == 0 {
        return Err(SizeError::NoRoom { block_mib: mib(block_bytes), budget_mib: mib(budget) });
    }
    let target = context.unwrap_or(model_context).max(1);
    let per_sequence = target.div_ceil(block_tokens);
    if context.is_some() && per_sequence > affordable {
        let needed = (per_sequence as u64).saturating_mul(block_bytes);
        return Err(SizeError::DoesNotFit { context: target, needed_mib: mib(needed), budget_mib: mib(budget) });
    }
    let num_blocks = per_sequence.saturating_mul(sequences.max(1)).min(affordable);
    Ok(CacheSize { num_blocks, context_length: target.min(num_blocks * block_tokens) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs() -> CacheNeeds {
        CacheNeeds {
            model_context: 4096,
            context: None,
            sequences: 4,
            block_tokens: 16,
            block_bytes: 1 << 20,
            budget_bytes: None,
            available_bytes: 64 << 30,
        }
    }

    #[test]
    fn room_for_every_sequence_when_memory_allows() {
        let size = size_cache(needs()).expect("there is room");
        assert_eq!(size, CacheSize { num_blocks: 1024, context_length: 4096 });
    }

    #[test]
    fn the_models_own_context_shrinks_to_what_there_is() {
        let size = size_cache(CacheNeeds { available_bytes: 256 << 20, ..needs() }).expect("there is room for some");
        assert_eq!(size, CacheSize { num_blocks: 256, context_length: 4096 });
        let size = size_cache(CacheNeeds { available_bytes: 64 << 20, ..needs() }).expect("there is room for some");
        assert_eq!(size, CacheSize { num_blocks: 64, context_length: 1024 });
    }

    #[test]
    fn a_context_that_was_asked_for_does_not_shrink() {
        let asked = CacheNeeds { context: Some(8192), budget_bytes: Some(100 << 20), ..needs() };
        assert_eq!(size_cache(asked), Err(SizeError::DoesNotFit { context: 8192, needed_mib: 512, budget_mib: 100 }));
        let absurd = CacheNeeds { context: Some(usize::MAX), ..needs() };
        assert!(matches!(size_cache(absurd), Err(SizeError::DoesNotFit { context: usize::MAX, .. })));
    }

    #[test]
    fn no_memory_is_an_error() {
        assert!(matches!(size_cache(CacheNeeds { available_bytes: 0, ..needs() }), Err(SizeError::NoRoom { .. })));
    }
}
