//! The frozen part of an index: vectors, codes and graph in one block of memory, with the same layout in memory and on
//! disk.
//!
//! Equal vectors share one *node*; the keys that share it are its *members*. Links are node numbers in rows of fixed
//! length, so that a search step reads two cache lines. Everything is little-endian and every section is 64-byte
//! aligned, so a snapshot is this block unchanged: it is mapped, not parsed.

use std::ops::Range;

use memmap2::Mmap;

use crate::distance::{Codes, padded_bytes, padded_floats};

/// Maximum links per node on the lowest level: twice the graph's M, as in HNSW.
pub(super) const LINKS: usize = 32;
/// Maximum links per node on each upper level.
pub(super) const UPPER_LINKS: usize = 16;
/// No link; terminates a row that is not full.
pub(super) const NONE: u32 = u32::MAX;

const MAGIC: u64 = u64::from_le_bytes(*b"HEARTHIX");
const VERSION: u64 = 1;
/// Eight-byte words before the first section.
pub(super) const HEADER_WORDS: usize = 32;
const ALIGNMENT_WORDS: usize = 8;
/// Larger numbers in a header are invalid, and would overflow the sizes computed from them.
const COUNT_MAX: u64 = 1 << 32;
const DIM_MAX: usize = 1 << 16;

/// What the header says; the place of every section follows from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shape {
    pub dim: usize,
    pub nodes: usize,
    pub members: usize,
    /// Rows of upper links: levels above the lowest, summed over the nodes.
    pub upper_rows: usize,
    /// Nodes that the graph does not reach; they are searched exactly.
    pub unreached: usize,
    /// 0 without a graph.
    pub levels: usize,
    pub entry: u32,
}

/// Where each section lies, in eight-byte words.
#[derive(Clone, Debug)]
struct Places {
    vectors: Range<usize>,
    codes: Range<usize>,
    scales: Range<usize>,
    links: Range<usize>,
    upper_first: Range<usize>,
    upper_links: Range<usize>,
    member_first: Range<usize>,
    keys: Range<usize>,
    by_key: Range<usize>,
    node_of_member: Range<usize>,
    unreached: Range<usize>,
}

/// The memory that holds the block.
enum Memory {
    Owned(Vec<u64>),
    Mapped(Mmap),
}

/// See the module.
pub(super) struct Frozen {
    shape: Shape,
    places: Places,
    memory: Memory,
}

/// The contents of a frozen part. `[n]` is the number of nodes, `[m]` the number of members.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// `[n, padded]`
    pub vectors: Vec<f32>,
    /// `[n, stride]`
    pub codes: Vec<u8>,
    /// `[n]`
    pub scales: Vec<f32>,
    /// `[n, LINKS]`, or empty without a graph
    pub links: Vec<u32>,
    /// `[n]`, the node's first row in `upper_links`
    pub upper_first: Vec<u32>,
    /// `[upper_rows, UPPER_LINKS]`
    pub upper_links: Vec<u32>,
    /// `[n + 1]`
    pub member_first: Vec<u32>,
    /// `[m]`
    pub keys: Vec<u64>,
    pub unreached: Vec<u32>,
}

impl Frozen {
    pub(super) fn empty(dim: usize) -> Self {
        let parts = Parts { member_first: vec![0], ..Parts::default() };
        Self::new(Shape { dim, ..Shape::default() }, &parts)
    }

    pub(super) fn new(shape: Shape, parts: &Parts) -> Self {
        let (places, total) = shape.places();
        let mut words = vec![0_u64; total];
        words[..9].copy_from_slice(&[
            MAGIC,
            VERSION,
            shape.dim as u64,
            shape.nodes as u64,
            shape.members as u64,
            shape.upper_rows as u64,
            shape.unreached as u64,
            shape.levels as u64,
            u64::from(shape.entry),
        ]);
        let mut by_key: Vec<u32> = (0..shape.members as u32).collect();
        by_key.sort_unstable_by_key(|&member| parts.keys[member as usize]);
        let mut node_of_member = vec![0; shape.members];
        for node in 0..shape.nodes {
            node_of_member[parts.member_first[node] as usize..parts.member_first[node + 1] as usize].fill(node as u32);
        }
        let mut put = |place: &Range<usize>, bytes: &[u8]| {
            bytemuck::cast_slice_mut::<u64, u8>(&mut words[place.clone()])[..bytes.len()].copy_from_slice(bytes);
        };
        put(&places.vectors, bytemuck::cast_slice(&parts.vectors));
        put(&places.codes, &parts.codes);
        put(&places.scales, bytemuck::cast_slice(&parts.scales));
        put(&places.links, bytemuck::cast_slice(&parts.links));
        put(&places.upper_first, bytemuck::cast_slice(&parts.upper_first));
        put(&places.upper_links, bytemuck::cast_slice(&parts.upper_links));
        put(&places.member_first, bytemuck::cast_slice(&parts.member_first));
        put(&places.keys, bytemuck::cast_slice(&parts.keys));
        put(&places.by_key, bytemuck::cast_slice(&by_key));
        put(&places.node_of_member, bytemuck::cast_slice(&node_of_member));
        put(&places.unreached, bytemuck::cast_slice(&parts.unreached));
        Self { shape, places, memory: Memory::Owned(words) }
    }

    /// From a file whose contents have been verified.
    pub(super) fn map(memory: Mmap) -> Result<Self, String> {
        let shape = Shape::read(&memory)?;
        let (places, total) = shape.places();
        if memory.len() != total * 8 {
            return Err(format!("it has {} bytes where its header means {}", memory.len(), total * 8));
        }
        Ok(Self { shape, places, memory: Memory::Mapped(memory) })
    }

    /// The whole block.
    pub(super) fn bytes(&self) -> &[u8] {
        match &self.memory {
            Memory::Owned(words) => bytemuck::cast_slice(words),
            Memory::Mapped(map) => map,
        }
    }

    fn section<T: bytemuck::AnyBitPattern>(&self, place: &Range<usize>, length: usize) -> &[T] {
        let bytes = &self.bytes()[place.start * 8..][..length * size_of::<T>()];
        bytemuck::cast_slice(bytes)
    }

    pub(super) fn dim(&self) -> usize {
        self.shape.dim
    }

    pub(super) fn num_nodes(&self) -> usize {
        self.shape.nodes
    }

    pub(super) fn num_members(&self) -> usize {
        self.shape.members
    }

    pub(super) fn has_graph(&self) -> bool {
        self.shape.levels > 0
    }

    pub(super) fn size_bytes(&self) -> usize {
        self.bytes().len()
    }

    /// `[nodes, padded]`
    pub(super) fn vectors(&self) -> &[f32] {
        self.section(&self.places.vectors, self.shape.nodes * padded_floats(self.shape.dim))
    }

    pub(super) fn vector_of_member(&self, member: usize) -> &[f32] {
        let padded = padded_floats(self.shape.dim);
        &self.vectors()[self.node_of_members()[member] as usize * padded..][..padded]
    }

    pub(super) fn codes(&self) -> Codes<'_> {
        let stride = padded_bytes(padded_floats(self.shape.dim));
        Codes {
            stride,
            bytes: self.section(&self.places.codes, self.shape.nodes * stride),
            scales: self.section(&self.places.scales, self.shape.nodes),
        }
    }

    /// Links of every node on the lowest level, `[nodes, LINKS]`; a row ends at [`NONE`].
    pub(super) fn links(&self) -> &[u32] {
        self.section(&self.places.links, if self.has_graph() { self.shape.nodes * LINKS } else { 0 })
    }

    /// Where the search begins: the highest level, and a node on it.
    pub(super) fn entry(&self) -> (usize, u32) {
        (self.shape.levels - 1, self.shape.entry)
    }

    /// Links of a node on an upper level, on which the node must exist.
    pub(super) fn upper_links(&self, node: u32, level: usize) -> &[u32] {
        let first: &[u32] = self.section(&self.places.upper_first, self.shape.nodes);
        let row = first[node as usize] as usize + level - 1;
        let all: &[u32] = self.section(&self.places.upper_links, self.shape.upper_rows * UPPER_LINKS);
        &all[row * UPPER_LINKS..][..UPPER_LINKS]
    }

    pub(super) fn keys(&self) -> &[u64] {
        self.section(&self.places.keys, self.shape.members)
    }

    /// Members of a node, as a range into [`Self::keys`].
    pub(super) fn members_of(&self, node: u32) -> Range<usize> {
        let first: &[u32] = self.section(&self.places.member_first, self.shape.nodes + 1);
        first[node as usize] as usize..first[node as usize + 1] as usize
    }

    /// `[members]`
    pub(super) fn node_of_members(&self) -> &[u32] {
        self.section(&self.places.node_of_member, self.shape.members)
    }

    pub(super) fn member_of(&self, key: u64) -> Option<u32> {
        let by_key: &[u32] = self.section(&self.places.by_key, self.shape.members);
        let keys = self.keys();
        by_key.binary_search_by_key(&key, |&member| keys[member as usize]).ok().map(|place| by_key[place])
    }

    pub(super) fn unreached(&self) -> &[u32] {
        self.section(&self.places.unreached, self.shape.unreached)
    }

    /// Checks that every number the search follows is within bounds. A hash only shows that a file is unchanged since
    /// it was written; this check shows that its contents are valid, so that no search can leave it.
    pub(super) fn check(&self) -> Result<(), String> {
        let (nodes, members) = (self.shape.nodes, self.shape.members);
        let first: &[u32] = self.section(&self.places.member_first, nodes + 1);
        let upper_first: &[u32] = self.section(&self.places.upper_first, if self.has_graph() { nodes } else { 0 });
        let all_upper: &[u32] = self.section(&self.places.upper_links, self.shape.upper_rows * UPPER_LINKS);
        let is_node = |&node: &u32| (node as usize) < nodes || node == NONE;
        let by_key: &[u32] = self.section(&self.places.by_key, members);
        let holds = first.is_sorted()
            && first.first() == Some(&0)
            && first[nodes] as usize == members
            && self.links().iter().all(is_node)
            && all_upper.iter().all(is_node)
            && upper_first.iter().all(|&row| row as usize <= self.shape.upper_rows)
            && self.unreached().iter().all(|&node| (node as usize) < nodes)
            && self.node_of_members().iter().all(|&node| (node as usize) < nodes)
            && by_key.iter().all(|&member| (member as usize) < members)
            && (!self.has_graph() || (self.shape.entry as usize) < nodes);
        if holds { Ok(()) } else { Err("its parts do not fit each other".to_owned()) }
    }
}

impl std::fmt::Debug for Frozen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frozen").field("shape", &self.shape).finish_non_exhaustive()
    }
}

impl Shape {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        let word = |index: usize| {
            let bytes = bytes.get(index * 8..index * 8 + 8)?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        };
        if word(0) != Some(MAGIC) {
            return Err("it does not begin as an index does".to_owned());
        }
        if word(1) != Some(VERSION) {
            return Err("it is of another version of Hearth".to_owned());
        }
        let count = |index| {
            let value = word(index).filter(|&value| value < COUNT_MAX).ok_or("its header is damaged")?;
            Ok::<_, String>(value as usize)
        };
        Ok(Self {
            dim: count(2)?.min(DIM_MAX),
            nodes: count(3)?,
            members: count(4)?,
            upper_rows: count(5)?,
            unreached: count(6)?,
            levels: count(7)?,
            entry: count(8)? as u32,
        })
    }

    /// Where the sections are, and the total number of words.
    fn places(&self) -> (Places, usize) {
        let mut end = HEADER_WORDS;
        let mut place = |elements: usize, size: usize| {
            let start = end;
            end += (elements * size).div_ceil(8).next_multiple_of(ALIGNMENT_WORDS);
            start..end
        };
        let padded = padded_floats(self.dim);
        let linked = if self.levels > 0 { self.nodes } else { 0 };
        let places = Places {
            vectors: place(self.nodes * padded, 4),
            codes: place(self.nodes * padded_bytes(padded), 1),
            scales: place(self.nodes, 4),
            links: place(linked * LINKS, 4),
            upper_first: place(linked, 4),
            upper_links: place(self.upper_rows * UPPER_LINKS, 4),
            member_first: place(self.nodes + 1, 4),
            keys: place(self.members, 8),
            by_key: place(self.members, 4),
            node_of_member: place(self.members, 4),
            unreached: place(self.unreached, 4),
        };
        (places, end)
    }
}
