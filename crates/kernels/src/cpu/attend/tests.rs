//! Each instruction set against the definition; `attention/tests.rs` tests the best one in depth.

use super::*;
use crate::cpu::reference::{self, half_to_float};

#[test]
fn every_instruction_set_equals_the_definition() {
    let (tokens, blocks) = (1100_usize, 70);
    let noise = |len: usize, seed: usize| -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + seed * 104_729) * 31 % 2003) as f32 / 1001.0 - 1.0).collect()
    };
    for (group, head_dim, num_tokens, window) in
        [(1, 64, 1, None), (5, 40, 1, None), (3, 80, 20, Some(700)), (8, 64, 9, None)]
    {
        let heads = Heads { n_heads: group, n_kv_heads: 1, head_dim, scale: 0.3, softcap: Some(6.0), window };
        let half = |x: &f32| half::f16::from_f32(*x).to_bits();
        let [keys, values] =
            [1, 2].map(|seed| noise(blocks * BLOCK_TOKENS * head_dim, seed).iter().map(half).collect::<Vec<u16>>());
        let queries = noise(num_tokens * group * head_dim, 3);
        let block_table: Vec<u32> = (0..blocks as u32).rev().collect();
        let position = tokens - num_tokens;
        let tile = Tile { first_token: 0, num_tokens, position, kv_head: 0, block_table: &block_table, sees: None };
        let expected: Vec<f32> = queries
            .chunks_exact(head_dim)
            .enumerate()
            .flat_map(|(row, query)| {
                let seen = tile.visible(&heads, row);
                let at =
                    |t: usize| (block_table[t / BLOCK_TOKENS] as usize * head_dim * BLOCK_TOKENS, t % BLOCK_TOKENS);
                reference::attend(
                    query,
                    seen.end,
                    |t| seen.contains(&t),
                    |score, _| 6.0 * (score * 0.3 / 6.0).tanh(),
                    |t, d| half_to_float(keys[at(t).0 + d * BLOCK_TOKENS + at(t).1]),
                    |t, d| half_to_float(values[at(t).0 + at(t).1 * head_dim + d]),
                )
            })
            .collect();
        for set in InstructionSet::supported() {
            let mut out = vec![0.0; queries.len()];
            let shared = Shared::new(&mut out);
            attend_on(set, heads, &tile, Operands { queries: &queries, keys: &keys, values: &values, out: &shared });
            for (got, expected) in out.iter().zip(&expected) {
                assert!((got - expected).abs() < 2e-5, "{set:?}, {heads:?}: {got} and {expected}");
            }
        }
    }
}
