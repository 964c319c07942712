//! The semantic cache: the answer to an earlier question whose meaning is near enough.
//!
//! Nearness is the cosine of the questions' vectors, and only questions of one scope are compared: the scope is a hash
//! of everything else that the answer depends on, the caller above all. A scope's vectors lie in one block of memory
//! and are all compared, which for [`QUESTIONS_PER_SCOPE`] of them costs a fraction of embedding the question.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{SEMANTIC, key::Key, metrics};
use hearth_kernels::distance::{dot_range, padded_floats};

/// Questions per scope; one more evicts the oldest.
pub const QUESTIONS_PER_SCOPE: usize = 1024;
/// The overhead of an entry beside its vector and its answer.
const ENTRY_BYTES: usize = 256;

/// See the module.
#[derive(Debug)]
pub struct SemanticCache<T> {
    similarity: f32,
    max_bytes: usize,
    time_to_live: Duration,
    kept: Mutex<Kept<T>>,
}

#[derive(Debug)]
struct Kept<T> {
    scopes: HashMap<Key, Scope<T>>,
    /// The scope of each entry; the first is the oldest.
    ages: BTreeMap<u64, Key>,
    next_id: u64,
    bytes: usize,
}

/// The questions of one scope. Entry `i` has row `i`.
#[derive(Debug)]
struct Scope<T> {
    row_length: usize,
    rows: Vec<f32>,
    entries: Vec<Entry<T>>,
}

#[derive(Debug)]
struct Entry<T> {
    id: u64,
    kept_since: Instant,
    bytes: usize,
    value: Arc<T>,
}

impl<T> SemanticCache<T> {
    /// `similarity` is the least cosine at which one question's answer serves another question.
    pub fn new(similarity: f32, max_bytes: usize, time_to_live: Duration) -> Self {
        let kept = Kept { scopes: HashMap::new(), ages: BTreeMap::new(), next_id: 0, bytes: 0 };
        Self { similarity, max_bytes, time_to_live, kept: Mutex::new(kept) }
    }

    /// The value kept for the nearest question, if it is near enough.
    pub fn find(&self, scope: Key, question: &[f32]) -> Option<Arc<T>> {
        let question = unit_row(question);
        let mut kept = self.kept.lock();
        kept.expire(self.time_to_live);
        let scope = kept.scopes.get(&scope)?;
        let (place, similarity) = scope.nearest(&question)?;
        let found = (similarity >= self.similarity).then(|| scope.entries[place].value.clone());
        drop(kept);
        let hits = usize::from(found.is_some());
        metrics::looked_up(SEMANTIC, hits, 1 - hits);
        found
    }

    /// Keeps an answer of `bytes`, and replaces the entry of a question that is practically the same.
    pub fn keep(&self, scope: Key, question: &[f32], value: Arc<T>, bytes: usize) {
        let question = unit_row(question);
        let bytes = bytes + size_of_val(question.as_slice()) + ENTRY_BYTES;
        if bytes > self.max_bytes {
            return;
        }
        let mut kept = self.kept.lock();
        kept.expire(self.time_to_live);
        let replaced = kept.scopes.get(&scope).and_then(|scope| {
            let (place, similarity) = scope.nearest(&question)?;
            if similarity >= self.similarity {
                return Some(scope.entries[place].id);
            }
            let is_full = scope.entries.len() >= QUESTIONS_PER_SCOPE;
            if is_full { scope.entries.iter().map(|entry| entry.id).min() } else { None }
        });
        if let Some(id) = replaced {
            kept.remove(id);
        }
        while kept.bytes + bytes > self.max_bytes
            && let Some((&oldest, _)) = kept.ages.first_key_value()
        {
            kept.remove(oldest);
        }
        kept.add(scope, question, bytes, value);
        metrics::holds(SEMANTIC, kept.bytes);
    }
}

impl<T> Kept<T> {
    fn add(&mut self, key: Key, question: Vec<f32>, bytes: usize, value: Arc<T>) {
        let id = self.next_id;
        self.next_id += 1;
        let scope = self.scopes.entry(key).or_insert_with(|| Scope {
            row_length: question.len(),
            rows: Vec::new(),
            entries: Vec::new(),
        });
        if scope.row_length != question.len() {
            return;
        }
        scope.rows.extend(question);
        scope.entries.push(Entry { id, kept_since: Instant::now(), bytes, value });
        self.ages.insert(id, key);
        self.bytes += bytes;
    }

    fn expire(&mut self, time_to_live: Duration) {
        while let Some((&oldest, key)) = self.ages.first_key_value() {
            let entry = self.scopes.get(key).and_then(|scope| scope.entries.iter().find(|entry| entry.id == oldest));
            if entry.is_some_and(|entry| entry.kept_since.elapsed() < time_to_live) {
                break;
            }
            self.remove(oldest);
        }
    }

    fn remove(&mut self, id: u64) {
        let Some(key) = self.ages.remove(&id) else { return };
        let Some(scope) = self.scopes.get_mut(&key) else { return };
        let Some(place) = scope.entries.iter().position(|entry| entry.id == id) else { return };
        let last = scope.entries.len() - 1;
        let length = scope.row_length;
        scope.rows.copy_within(last * length..(last + 1) * length, place * length);
        scope.rows.truncate(last * length);
        self.bytes -= scope.entries.swap_remove(place).bytes;
        if scope.entries.is_empty() {
            self.scopes.remove(&key);
        }
    }
}

impl<T> Scope<T> {
    fn nearest(&self, question: &[f32]) -> Option<(usize, f32)> {
        if question.len() != self.row_length {
            return None;
        }
        let mut similarities = vec![0.0; self.entries.len()];
        dot_range(question, &self.rows, 0, &mut similarities);
        similarities.into_iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b))
    }
}

/// A unit vector, padded as the kernel requires. A vector of zeros is near nothing.
fn unit_row(vector: &[f32]) -> Vec<f32> {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
    let mut row: Vec<f32> = vector.iter().map(|x| x * scale).collect();
    row.resize(padded_floats(vector.len()), 0.0);
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn key(text: &str) -> Key {
        blake3::hash(text.as_bytes())
    }

    /// A direction in a plane, by its angle in degrees.
    fn at(degrees: f32) -> Vec<f32> {
        let (sine, cosine) = degrees.to_radians().sin_cos();
        vec![3.0 * cosine, 3.0 * sine, 0.0]
    }

    #[test]
    fn the_nearest_is_found_if_it_is_near_enough_and_in_the_same_scope() {
        let cache = SemanticCache::new(0.97, 1 << 20, HOUR);
        assert!(cache.find(key("a"), &at(0.0)).is_none());
        cache.keep(key("a"), &at(0.0), Arc::new("zero"), 10);
        cache.keep(key("a"), &at(20.0), Arc::new("twenty"), 10);
        // cos 10° is 0.985, cos 20° is 0.94.
        assert_eq!(cache.find(key("a"), &at(4.0)).as_deref(), Some(&"zero"));
        assert_eq!(cache.find(key("a"), &at(16.0)).as_deref(), Some(&"twenty"));
        assert!(cache.find(key("a"), &at(40.0)).is_none());
        assert!(cache.find(key("b"), &at(0.0)).is_none(), "another scope");
        assert!(cache.find(key("a"), &[0.0; 3]).is_none(), "no direction");
        assert!(cache.find(key("a"), &[1.0; 20]).is_none(), "another length");
        cache.keep(key("a"), &at(1.0), Arc::new("again"), 10);
        assert_eq!(cache.find(key("a"), &at(0.0)).as_deref(), Some(&"again"), "the newer one takes its place");
        assert_eq!(cache.kept.lock().ages.len(), 2);
    }

    #[test]
    fn what_is_old_is_gone() {
        let cache = SemanticCache::new(0.97, 1 << 20, Duration::from_nanos(1));
        cache.keep(key("a"), &at(0.0), Arc::new(()), 10);
        assert!(cache.find(key("a"), &at(0.0)).is_none());
        let kept = cache.kept.lock();
        assert_eq!((kept.bytes, kept.scopes.len()), (0, 0));
    }

    #[test]
    fn limits_hold_and_the_oldest_goes_first() {
        let cache = SemanticCache::new(1.1, 10_000, HOUR);
        for number in 0..100_usize {
            cache.keep(key(["a", "b", "c"][number % 3]), &at(number as f32), Arc::new(number), number);
            let kept = cache.kept.lock();
            let held: usize = kept.scopes.values().flat_map(|scope| &scope.entries).map(|entry| entry.bytes).sum();
            assert!(held == kept.bytes && held <= 10_000, "{held}");
            let rows: usize = kept.scopes.values().map(|scope| scope.rows.len() / scope.row_length).sum();
            assert_eq!(rows, kept.ages.len());
            let oldest = *kept.ages.first_key_value().expect("an entry").0;
            assert_eq!(kept.ages.len() as u64, number as u64 + 1 - oldest, "no gap");
        }
        cache.keep(key("a"), &at(0.0), Arc::new(0), 20_000);
        assert!(cache.kept.lock().bytes <= 10_000);
    }

    #[test]
    fn a_scope_keeps_so_many_and_each_row_stays_with_its_answer() {
        let cache = SemanticCache::new(0.999_999, usize::MAX, HOUR);
        let angle = |number: usize| at(number as f32 * 0.3);
        for number in 0..QUESTIONS_PER_SCOPE + 100 {
            cache.keep(key("a"), &angle(number), Arc::new(number), 1);
        }
        assert_eq!(cache.kept.lock().ages.len(), QUESTIONS_PER_SCOPE);
        for number in 100..QUESTIONS_PER_SCOPE + 100 {
            assert_eq!(cache.find(key("a"), &angle(number)).as_deref(), Some(&number));
        }
        assert!(cache.find(key("a"), &angle(0)).is_none());
    }
}
