//! The graph search: from a distant entry point, ever closer to the query.
//!
//! The beam search of Malkov and Yashunin (arXiv 1603.09320, algorithms 2 and 5) over the frozen links. Candidates are
//! compared by their one-byte codes, a quarter of the memory traffic, and the best of them are compared again in full
//! precision. Nodes that cannot be results (removed, or outside a filter) are still traversed.

use std::{cmp::Reverse, collections::BinaryHeap};

use parking_lot::Mutex;

use super::{
    exact::offer_members,
    frozen::{Frozen, LINKS, NONE},
    top::{Top, ordered},
};
use crate::distance::{ByteQuery, Codes, dot_listed};

/// Comparisons per candidate of a graph search, and the cost of one relative to a comparison of the exact scan, which
/// reads memory sequentially. Conservative estimates: a wrong one costs time, not results.
const COMPARISONS_PER_CANDIDATE: usize = 14;
const COST_OF_COMPARISON: usize = 2;

/// Whether the graph is faster when `wanted` of `nodes` may be results. The fewer that may, the further the search has
/// to walk to find its candidates, and the fewer vectors an exact scan has to compare.
pub(super) fn graph_wins(nodes: usize, wanted: usize, candidates: usize) -> bool {
    let wanted = wanted.clamp(1, nodes.max(1));
    let walked = candidates * COMPARISONS_PER_CANDIDATE * nodes / wanted;
    walked.min(nodes) * COST_OF_COMPARISON < wanted
}

/// Memory of past searches, kept for reuse.
#[derive(Debug, Default)]
pub(super) struct Searcher {
    idle: Mutex<Vec<Visited>>,
}

/// The nodes that a search has visited: those marked with the search's number.
#[derive(Debug, Default)]
struct Visited {
    marks: Vec<u32>,
    search: u32,
}

impl Visited {
    fn begin(&mut self, nodes: usize) {
        if self.marks.len() != nodes || self.search == u32::MAX {
            self.marks.clear();
            self.marks.resize(nodes, 0);
            self.search = 0;
        }
        self.search += 1;
    }

    fn is_first_visit(&mut self, node: u32) -> bool {
        let mark = &mut self.marks[node as usize];
        let is_first = *mark != self.search;
        *mark = self.search;
        is_first
    }
}

/// Similarity, as an ordered integer, and node.
type Candidate = (u32, u32);

impl Searcher {
    /// Offers the members near the query that satisfy `is_live`, the best of `candidates` candidates.
    pub(super) fn search(
        &self,
        frozen: &Frozen,
        query: &[f32],
        candidates: usize,
        is_live: impl Fn(usize, u64) -> bool,
        top: &mut Top,
    ) {
        let mut visited = self.idle.lock().pop().unwrap_or_default();
        visited.begin(frozen.num_nodes());
        let mut nodes = walk(frozen, query, candidates, &mut visited, &is_live);
        self.idle.lock().push(visited);
        nodes.extend_from_slice(frozen.unreached());
        let mut similarities = vec![0.0; nodes.len()];
        dot_listed(query, frozen.vectors(), &nodes, &mut similarities);
        for (&node, &similarity) in nodes.iter().zip(&similarities) {
            offer_members(frozen, node, similarity, &is_live, top);
        }
    }
}

/// The nodes nearest to the query that have a live member, as far as the graph reaches them.
fn walk(
    frozen: &Frozen,
    query: &[f32],
    candidates: usize,
    visited: &mut Visited,
    is_live: &impl Fn(usize, u64) -> bool,
) -> Vec<u32> {
    let codes = frozen.codes();
    let query = ByteQuery::new(query, codes.stride);
    let is_result = |node: u32| {
        let members = frozen.members_of(node);
        members.clone().zip(&frozen.keys()[members]).any(|(member, &key)| is_live(member, key))
    };
    let entry = descend(frozen, &codes, &query);
    visited.is_first_visit(entry.1);
    let mut open = BinaryHeap::from([entry]);
    // The worst result is on top.
    let mut results: BinaryHeap<Reverse<Candidate>> = BinaryHeap::new();
    if is_result(entry.1) {
        results.push(Reverse(entry));
    }
    let links = frozen.links();
    let (mut fresh, mut similarities) = ([0; LINKS], [0.0; LINKS]);
    while let Some((similarity, node)) = open.pop() {
        let is_full = results.len() >= candidates;
        if is_full && results.peek().is_some_and(|Reverse((worst, _))| similarity < *worst) {
            break;
        }
        let mut count = 0;
        for &link in links[node as usize * LINKS..][..LINKS].iter().take_while(|&&link| link != NONE) {
            if visited.is_first_visit(link) {
                fresh[count] = link;
                count += 1;
            }
        }
        codes.dot_listed(&query, &fresh[..count], &mut similarities[..count]);
        for (&node, &similarity) in fresh[..count].iter().zip(&similarities) {
            let candidate = (ordered(similarity), node);
            let is_full = results.len() >= candidates;
            if is_full && results.peek().is_some_and(|Reverse(worst)| candidate.0 < worst.0) {
                continue;
            }
            open.push(candidate);
            if is_result(node) {
                results.push(Reverse(candidate));
                if is_full {
                    results.pop();
                }
            }
        }
    }
    results.into_iter().map(|Reverse((_, node))| node).collect()
}

/// The node nearest to the query that greedy steps over the upper levels reach.
fn descend(frozen: &Frozen, codes: &Codes<'_>, query: &ByteQuery) -> Candidate {
    let (mut level, mut node) = frozen.entry();
    let mut best = [0.0];
    codes.dot_listed(query, &[node], &mut best);
    let [mut best] = best;
    let mut similarities = [0.0; LINKS];
    while level > 0 {
        let links = frozen.upper_links(node, level);
        let links = &links[..links.iter().position(|&link| link == NONE).unwrap_or(links.len())];
        codes.dot_listed(query, links, &mut similarities[..links.len()]);
        let nearest = links.iter().zip(&similarities).max_by(|(_, a), (_, b)| a.total_cmp(b));
        match nearest {
            Some((&link, &similarity)) if similarity > best => (node, best) = (link, similarity),
            _ => level -= 1,
        }
    }
    (ordered(best), node)
}

/// Whether a search for a node's own vector finds the node. Used while building, with the build's candidates.
pub(super) fn finds_itself(frozen: &Frozen, searcher: &Searcher, node: u32, candidates: usize) -> bool {
    let padded = frozen.vectors().len() / frozen.num_nodes();
    let query = &frozen.vectors()[node as usize * padded..][..padded];
    let mut visited = searcher.idle.lock().pop().unwrap_or_default();
    visited.begin(frozen.num_nodes());
    let found = walk(frozen, query, candidates, &mut visited, &|_, _| true);
    searcher.idle.lock().push(visited);
    found.contains(&node)
}
