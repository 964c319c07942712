//! A map bounded in bytes and time, with least-recently-used eviction.
//!
//! One lock is enough: it is held for two map look-ups, once per request.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::key::Key;

/// The overhead of an entry beside its value: its key and its bookkeeping.
const ENTRY_BYTES: usize = 192;

/// See the module.
#[derive(Debug)]
pub struct BoundedMap<V> {
    max_bytes: usize,
    time_to_live: Duration,
    held: Mutex<Held<V>>,
}

#[derive(Debug)]
struct Held<V> {
    entries: HashMap<Key, Entry<V>>,
    /// Keys by last use; the first is the least recently used.
    order: BTreeMap<u64, Key>,
    next_use: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    bytes: usize,
    since: Instant,
    last_use: u64,
}

impl<V: Clone> BoundedMap<V> {
    pub fn new(max_bytes: usize, time_to_live: Duration) -> Self {
        let held = Held { entries: HashMap::new(), order: BTreeMap::new(), next_use: 0, bytes: 0 };
        Self { max_bytes, time_to_live, held: Mutex::new(held) }
    }

    pub fn get(&self, key: &Key) -> Option<V> {
        let mut held = self.held.lock();
        let held = &mut *held;
        if held.entries.get(key)?.since.elapsed() >= self.time_to_live {
            held.remove(key);
            return None;
        }
        let entry = held.entries.get_mut(key)?;
        held.order.remove(&entry.last_use);
        entry.last_use = held.next_use;
        held.order.insert(held.next_use, *key);
        held.next_use += 1;
        Some(entry.value.clone())
    }

    /// Keeps `value`, which takes `bytes`, if it can fit.
    pub fn insert(&self, key: Key, value: V, bytes: usize) {
        let bytes = bytes + ENTRY_BYTES;
        let mut held = self.held.lock();
        held.remove(&key);
        if bytes > self.max_bytes {
            return;
        }
        while held.bytes + bytes > self.max_bytes
            && let Some((_, &oldest)) = held.order.first_key_value()
        {
            held.remove(&oldest);
        }
        let last_use = held.next_use;
        held.next_use += 1;
        held.order.insert(last_use, key);
        held.entries.insert(key, Entry { value, bytes, since: Instant::now(), last_use });
        held.bytes += bytes;
    }

    /// Memory that the entries take, out of `max_bytes`.
    pub fn bytes(&self) -> usize {
        self.held.lock().bytes
    }
}

impl<V> Held<V> {
    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.order.remove(&entry.last_use);
            self.bytes -= entry.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(number: u8) -> Key {
        blake3::hash(&[number])
    }

    #[test]
    fn what_is_old_is_gone() {
        let map = BoundedMap::new(1 << 20, Duration::from_nanos(1));
        map.insert(key(1), "one", 3);
        assert_eq!(map.get(&key(1)), None);
        assert_eq!(map.bytes(), 0);
    }

    proptest! {
        /// Against a list in the order of use.
        #[test]
        fn the_limit_holds_and_what_was_used_last_stays(
            uses in prop::collection::vec((any::<bool>(), 0_u8..20, 0_usize..400), 0..200),
        ) {
            const MAX: usize = 2000;
            let map = BoundedMap::new(MAX, Duration::from_secs(3600));
            let mut model: Vec<(u8, usize)> = Vec::new();
            for (time, (inserts, number, bytes)) in uses.into_iter().enumerate() {
                let known = model.iter().position(|(other, _)| *other == number);
                if inserts {
                    map.insert(key(number), number, bytes + time % 3);
                    known.map(|place| model.remove(place));
                    model.push((number, bytes + time % 3 + ENTRY_BYTES));
                    while model.iter().map(|(_, bytes)| bytes).sum::<usize>() > MAX {
                        model.remove(0);
                    }
                } else {
                    prop_assert_eq!(map.get(&key(number)), known.map(|_| number));
                    if let Some(place) = known {
                        let used = model.remove(place);
                        model.push(used);
                    }
                }
                prop_assert_eq!(map.bytes(), model.iter().map(|(_, bytes)| bytes).sum::<usize>());
                prop_assert_eq!(map.held.lock().order.len(), model.len());
            }
        }
    }
}
