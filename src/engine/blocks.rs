//! The KV block allocator and the prefix cache over it.
//!
//! A block holds the keys and values of a fixed number of consecutive tokens. Sequences with a common prefix share the
//! full blocks of that prefix; a block's reference count says how many sequences have it in their table. A full block
//! is written once, by the sequence that computed it, and indexed only after the step that completed it has succeeded,
//! so a failed step leaves nothing stale.
//!
//! The index key is the block's tokens together with the identity of the block before it, compared in full: no hash
//! collision can hand one prompt the keys and values of another. Identities are never reused. The root of each chain is
//! the request's scope, its caller by default: the number of cached tokens is reported in the answer, and would tell
//! one caller what another has sent.
//!
//! Unreferenced blocks keep their contents until the allocator needs the room. Blocks without contents go first, then
//! the least recently used; within one sequence the last block goes first, because the blocks after a missing one
//! cannot be found. The last, partly filled block of a sequence is never shared: recomputing its few tokens is cheaper
//! than copying blocks on every device.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    sync::Arc,
};

/// Names the contents of a full block and of all blocks before it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum ContentId {
    /// The empty prefix, which the requests of one scope share.
    Empty(Arc<str>),
    Block(u64),
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct BlockKey {
    parent: ContentId,
    tokens: Box<[u32]>,
}

#[derive(Debug, Default)]
struct Block {
    references: u32,
    /// Set while the block is in the index.
    content: Option<(ContentId, BlockKeyHandle)>,
    /// Key in `reusable` while the block is free and in the index.
    last_used: u64,
}

/// What it takes to find a block's index entry again.
type BlockKeyHandle = Arc<BlockKey>;

/// The allocator. Every block is in exactly one place: referenced, `empty`, or `reusable`.
#[derive(Debug)]
pub(super) struct BlockPool {
    block_tokens: usize,
    blocks: Vec<Block>,
    /// Free blocks without contents worth keeping.
    empty: Vec<u32>,
    /// Free blocks that the index can still hand out, by last use.
    reusable: BTreeMap<u64, u32>,
    index: HashMap<BlockKeyHandle, (u32, ContentId)>,
    /// Source of content ids and of `last_used` stamps.
    counter: u64,
}

impl BlockPool {
    pub(super) fn new(num_blocks: usize, block_tokens: usize) -> Self {
        let count = u32::try_from(num_blocks).expect("a KV cache has fewer than 2^32 blocks");
        Self {
            block_tokens,
            blocks: (0..count).map(|_| Block::default()).collect(),
            empty: (0..count).rev().collect(),
            reusable: BTreeMap::new(),
            index: HashMap::new(),
            counter: 0,
        }
    }

    /// Blocks that hold `num_tokens` tokens.
    pub(super) fn blocks_for(&self, num_tokens: usize) -> usize {
        num_tokens.div_ceil(self.block_tokens)
    }

    pub(super) fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that [`allocate`](Self::allocate) can still return.
    pub(super) fn num_available(&self) -> usize {
        self.empty.len() + self.reusable.len()
    }

    /// Blocks in some sequence's table.
    pub(super) fn num_used(&self) -> usize {
        self.blocks.len() - self.num_available()
    }

    /// Unreferenced blocks whose contents the index can hand out.
    pub(super) fn num_cached(&self) -> usize {
        self.reusable.len()
    }

    /// A root of its own: no other request shares prefixes under it.
    pub(super) fn private_root(&mut self) -> ContentId {
        self.next_content()
    }

    /// The longest run of indexed blocks that is a prefix of `tokens`, referenced for the caller, and the identity of
    /// the last of them. At most `max_tokens` tokens.
    pub(super) fn acquire_prefix(
        &mut self,
        root: ContentId,
        token_at: impl Fn(usize) -> u32,
        max_tokens: usize,
    ) -> (Vec<u32>, ContentId) {
        let mut content = root;
        let mut table = Vec::new();
        for block in 0..max_tokens / self.block_tokens {
            let start = block * self.block_tokens;
            let tokens = (start..start + self.block_tokens).map(&token_at).collect();
            let key = BlockKey { parent: content.clone(), tokens };
            let Some((id, found)) = self.index.get(&key) else { break };
            let id = *id;
            content = found.clone();
            self.reference(id);
            table.push(id);
        }
        (table, content)
    }

    /// A block to write into, referenced once; evicts the least recently used contents if it must.
    pub(super) fn allocate(&mut self) -> Option<u32> {
        let id = match self.empty.pop() {
            Some(id) => id,
            None => {
                let (_, id) = self.reusable.pop_first()?;
                self.forget(id);
                id
            }
        };
        self.blocks[id as usize].references = 1;
        Some(id)
    }

    /// Releases a sequence's blocks.
    pub(super) fn release(&mut self, table: &[u32]) {
        for &id in table.iter().rev() {
            self.release_one(id);
        }
    }

    /// Releases a sequence's blocks and forgets the contents of those that no other sequence holds.
    pub(super) fn discard(&mut self, table: &[u32]) {
        for &id in table.iter().rev() {
            if self.blocks[id as usize].references == 1 {
                self.forget(id);
            }
            self.release_one(id);
        }
    }

    /// Indexes a full block, computed after `parent`. If the same contents are indexed already, the caller's block is
    /// released and the indexed one, referenced, takes its place.
    pub(super) fn register(&mut self, id: u32, parent: ContentId, tokens: Box<[u32]>) -> (u32, ContentId) {
        debug_assert_eq!(tokens.len(), self.block_tokens);
        let content = self.next_content();
        let key = BlockKeyHandle::new(BlockKey { parent, tokens });
        match self.index.entry(key.clone()) {
            Entry::Vacant(entry) => {
                entry.insert((id, content.clone()));
                self.blocks[id as usize].content = Some((content.clone(), key));
                (id, content)
            }
            Entry::Occupied(entry) => {
                let (indexed, content) = entry.get().clone();
                self.reference(indexed);
                self.release_one(id);
                (indexed, content)
            }
        }
    }

    fn reference(&mut self, id: u32) {
        let block = &mut self.blocks[id as usize];
        if block.references == 0 {
            self.reusable.remove(&block.last_used);
        }
        block.references += 1;
    }

    fn release_one(&mut self, id: u32) {
        self.counter += 1;
        let block = &mut self.blocks[id as usize];
        block.references = block.references.checked_sub(1).expect("a block is released once per reference");
        if block.references > 0 {
            return;
        }
        if block.content.is_some() {
            block.last_used = self.counter;
            self.reusable.insert(self.counter, id);
        } else {
            self.empty.push(id);
        }
    }

    fn forget(&mut self, id: u32) {
        if let Some((_, key)) = self.blocks[id as usize].content.take() {
            self.index.remove(&key);
        }
    }

    fn next_content(&mut self) -> ContentId {
        self.counter += 1;
        ContentId::Block(self.counter)
    }

    /// Panics unless every block is in exactly one place and is referenced as often as `tables` say.
    #[cfg(test)]
    pub(super) fn check<'a>(&self, tables: impl Iterator<Item = &'a [u32]>) {
        let mut references = vec![0; self.blocks.len()];
        for id in tables.flatten() {
            references[*id as usize] += 1;
        }
        let mut free = std::collections::HashSet::new();
        for id in self.empty.iter().chain(self.reusable.values()) {
            assert!(free.insert(*id), "block {id} is free twice");
        }
        for (id, block) in self.blocks.iter().enumerate() {
            assert_eq!(block.references, references[id], "references of block {id}");
            assert_eq!(block.references == 0, free.contains(&(id as u32)), "block {id} is referenced or free");
            if let Some((content, key)) = &block.content {
                assert_eq!(self.index.get(key), Some(&(id as u32, content.clone())), "index entry of block {id}");
            }
        }
        assert_eq!(self.index.len(), self.blocks.iter().filter(|block| block.content.is_some()).count());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn everybody() -> ContentId {
        ContentId::Empty("".into())
    }

    fn tokens(range: std::ops::Range<u32>) -> Box<[u32]> {
        range.collect()
    }

    #[test]
    fn a_repeated_beginning_is_shared_and_counted() {
        let mut pool = BlockPool::new(4, 2);
        let a = pool.allocate().expect("4 are free");
        let b = pool.allocate().expect("3 are free");
        let (_, first) = pool.register(a, everybody(), tokens(0..2));
        pool.register(b, first, tokens(2..4));
        let (table, _) = pool.acquire_prefix(everybody(), |i| i as u32, 5);
        assert_eq!(table, [a, b]);
        pool.check([&[a, b][..], &table[..]].into_iter());
        // Four tokens may be cached, but not the last one of four.
        let (shorter, _) = pool.acquire_prefix(everybody(), |i| i as u32, 3);
        assert_eq!(shorter, [a]);
    }

    #[test]
    fn the_same_tokens_after_another_beginning_are_other_contents() {
        let mut pool = BlockPool::new(4, 2);
        let a = pool.allocate().expect("4 are free");
        let b = pool.allocate().expect("3 are free");
        let (_, first) = pool.register(a, everybody(), tokens(0..2));
        pool.register(b, first, tokens(7..9));
        let (table, _) = pool.acquire_prefix(everybody(), |i| 7 + i as u32, 2);
        assert!(table.is_empty());
    }

    #[test]
    fn equal_contents_computed_twice_become_one_block() {
        let mut pool = BlockPool::new(4, 2);
        let a = pool.allocate().expect("4 are free");
        let b = pool.allocate().expect("3 are free");
        let (kept, content) = pool.register(a, everybody(), tokens(0..2));
        assert_eq!(pool.register(b, everybody(), tokens(0..2)), (kept, content));
        assert_eq!(pool.num_used(), 1);
        pool.check([&[a][..], &[a][..]].into_iter());
    }

    #[test]
    fn eviction_takes_empty_blocks_then_the_end_of_the_least_recently_used_sequence() {
        let mut pool = BlockPool::new(3, 2);
        let a = pool.allocate().expect("3 are free");
        let b = pool.allocate().expect("2 are free");
        let (_, first) = pool.register(a, everybody(), tokens(0..2));
        pool.register(b, first, tokens(2..4));
        pool.release(&[a, b]);
        assert_eq!((pool.num_available(), pool.num_cached()), (3, 2));
        let empty = pool.allocate().expect("3 are free");
        assert!(empty != a && empty != b);
        assert_eq!(pool.allocate(), Some(b));
        assert_eq!(pool.acquire_prefix(everybody(), |i| i as u32, 4).0, [a]);
        assert_eq!(pool.allocate(), None);
    }

    #[test]
    fn discarded_contents_are_found_by_nobody_once_the_last_holder_is_gone() {
        let mut pool = BlockPool::new(3, 2);
        let a = pool.allocate().expect("3 are free");
        let b = pool.allocate().expect("2 are free");
        let (_, first) = pool.register(a, everybody(), tokens(0..2));
        pool.register(b, first, tokens(2..4));
        let (shared, _) = pool.acquire_prefix(everybody(), |i| i as u32, 2);
        pool.discard(&[a, b]);
        pool.check([&shared[..]].into_iter());
        assert_eq!((pool.num_used(), pool.num_cached()), (1, 0));
        assert_eq!(pool.acquire_prefix(everybody(), |i| i as u32, 4).0, [a]);
        pool.release(&[a]);
        pool.discard(&shared);
        assert!(pool.acquire_prefix(everybody(), |i| i as u32, 4).0.is_empty());
        pool.check(std::iter::empty());
    }

    #[test]
    fn a_private_root_shares_with_nobody() {
        let mut pool = BlockPool::new(3, 2);
        let root = pool.private_root();
        let a = pool.allocate().expect("3 are free");
        pool.register(a, root.clone(), tokens(0..2));
        assert!(pool.acquire_prefix(everybody(), |i| i as u32, 2).0.is_empty());
        let other = pool.private_root();
        assert!(pool.acquire_prefix(other, |i| i as u32, 2).0.is_empty());
        assert_eq!(pool.acquire_prefix(root, |i| i as u32, 2).0, [a]);
    }

    #[test]
    fn scopes_share_nothing() {
        let scope = |name: &str| ContentId::Empty(name.into());
        let mut pool = BlockPool::new(3, 2);
        let a = pool.allocate().expect("3 are free");
        pool.register(a, scope("a"), tokens(0..2));
        assert!(pool.acquire_prefix(scope("b"), |i| i as u32, 2).0.is_empty());
        assert!(pool.acquire_prefix(everybody(), |i| i as u32, 2).0.is_empty());
        assert_eq!(pool.acquire_prefix(scope("a"), |i| i as u32, 2).0, [a]);
    }
}
