//! Which of an upstream's engines a request asks.
//!
//! Engines that are well come first. Among them a request with a key prefers the engine that its key ranks highest by
//! weighted rendezvous hashing (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998; the
//! weights by Schindelhauer and Schomaker, "Weighted distributed hash tables", 2005): every server that knows the same
//! engines ranks them alike, and when an engine leaves, only its keys move. An engine that already has more than its
//! share does not get more because of a key (Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing with bounded
//! loads", 2018): the request goes on to the next in rank. Without a key the least loaded engine is first.

/// How far above its share of all requests in progress an engine may be and still be preferred by a key.
const SHARE_MAX: f64 = 1.25;
/// Requests that an engine may have beside that: few requests do not need to be spread.
const REQUESTS_SPARE: f64 = 1.0;

/// What is known of an engine when a request chooses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    /// Its share relative to the others'.
    pub weight: u32,
    pub in_flight: usize,
    /// It answered its last probe.
    pub is_well: bool,
    /// What its rank for a key depends on.
    pub seed: u64,
}

/// The position of the engine to ask: the first choice among those that are not `excluded`. Equals are in the order of
/// what `draw` gives them. `None` if all are excluded.
pub(super) fn choose(
    engines: &[Standing],
    key: Option<u64>,
    excluded: impl Fn(usize) -> bool,
    mut draw: impl FnMut() -> u64,
) -> Option<usize> {
    let well = || engines.iter().filter(|engine| engine.is_well);
    let requests: f64 = well().map(|engine| engine.in_flight as f64).sum();
    let weights: f64 = well().map(|engine| f64::from(engine.weight)).sum();
    let most = |engine: &Standing| SHARE_MAX * requests * f64::from(engine.weight) / weights.max(1.0) + REQUESTS_SPARE;
    let mut place = |engine: &Standing| {
        let (is_over, distance) = match key {
            Some(key) if engine.in_flight as f64 <= most(engine) => (false, rank(engine, key)),
            _ => (key.is_some(), (engine.in_flight + 1) as f64 / f64::from(engine.weight)),
        };
        (!engine.is_well, is_over, distance, draw())
    };
    let places = engines.iter().enumerate().filter(|(index, _)| !excluded(*index));
    let places = places.map(|(index, engine)| (index, place(engine)));
    let first =
        places.min_by(|(_, a), (_, b)| (a.0, a.1).cmp(&(b.0, b.1)).then(a.2.total_cmp(&b.2)).then(a.3.cmp(&b.3)));
    first.map(|(index, _)| index)
}

/// The engine with the smallest rank is the key's first choice: the smallest of exponentially distributed numbers is
/// each engine's as often as its weight says.
fn rank(engine: &Standing, key: u64) -> f64 {
    let drawn = mix(key ^ engine.seed);
    // From (0, 1]: 53 bits are what a double holds.
    let uniform = ((drawn >> 11) + 1) as f64 / (1u64 << 53) as f64;
    -uniform.ln() / f64::from(engine.weight)
}

/// The finalizer of `SplitMix64` (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// Random numbers, the same in each run.
    fn lots(seed: u64) -> impl FnMut() -> u64 {
        let mut state = mix(seed);
        move || {
            state = state.wrapping_add(1);
            mix(state)
        }
    }

    fn engines(weights: &[u32]) -> Vec<Standing> {
        let engine = |(index, &weight): (usize, &u32)| Standing {
            weight,
            in_flight: 0,
            is_well: true,
            seed: super::super::affinity::seed_of(&format!("http://engine-{index}/v1")),
        };
        weights.iter().enumerate().map(engine).collect()
    }

    /// All positions, first choice first.
    fn order(engines: &[Standing], key: Option<u64>) -> Vec<usize> {
        let mut asked = Vec::new();
        while let Some(next) = choose(engines, key, |index| asked.contains(&index), || 0) {
            asked.push(next);
        }
        asked
    }

    #[test]
    fn keys_are_shared_out_by_weight_and_stay_where_they_are() {
        let all = engines(&[1, 1, 2]);
        let first = |engines: &[Standing], key| order(engines, Some(mix(key)))[0];
        let mut counts = [0; 3];
        for key in 0..4000 {
            let chosen = first(&all, key);
            counts[chosen] += 1;
            let mut without = all.clone();
            let gone = (chosen + 1) % 3;
            without[gone].is_well = false;
            assert_eq!(first(&without, key), chosen, "another engine's end moves nothing");
            without[chosen].is_well = false;
            assert_ne!(first(&without, key), chosen);
        }
        let expected = [1000, 1000, 2000];
        assert!(
            counts.iter().zip(expected).all(|(&count, expected): (&i32, i32)| (count - expected).abs() < 150),
            "{counts:?}"
        );
    }

    #[test]
    fn the_least_loaded_serves_what_has_no_key_or_no_room() {
        let mut all = engines(&[1, 1, 2]);
        all[0].in_flight = 1;
        all[2].in_flight = 2;
        assert_eq!(order(&all, None)[0], 1);
        all[1].in_flight = 1;
        assert_eq!(order(&all, None)[0], 2, "three of two is less than two of one");
        let key = (0..).find(|&key| order(&all, Some(key))[0] == 0).unwrap();
        all[0].in_flight = 20;
        let spilled = order(&all, Some(key));
        assert_ne!(spilled[0], 0);
        assert_eq!(spilled[2], 0, "and it is still the last resort");
        all.iter_mut().for_each(|engine| engine.is_well = false);
        assert_eq!(order(&all, None).len(), 3, "if none is well, all are asked");
    }

    #[test]
    fn equals_take_turns_by_lot() {
        let all = engines(&[1; 4]);
        let mut lots = lots(7);
        let mut counts = [0; 4];
        for _ in 0..4000 {
            counts[choose(&all, None, |_| false, &mut lots).unwrap()] += 1;
        }
        assert!(counts.iter().all(|&count: &i32| (count - 1000).abs() < 150), "{counts:?}");
    }

    /// The share of requests that meet an engine which has seen their prefix lately, and the largest number of requests
    /// in progress at an engine relative to the mean, where prefixes are as popular as Zipf's law says.
    fn simulated(num_engines: usize, uses_keys: bool) -> (f64, f64) {
        const PREFIXES_CACHED: usize = 16;
        let mut lots = lots(11);
        let mut all = engines(&vec![1; num_engines]);
        let num_prefixes = num_engines * PREFIXES_CACHED;
        let weights: Vec<f64> = (1..=num_prefixes)
            .scan(0.0, |sum, rank| {
                *sum += 1.0 / rank as f64;
                Some(*sum)
            })
            .collect();
        let mut caches: Vec<VecDeque<usize>> = vec![VecDeque::new(); num_engines];
        let mut running: VecDeque<usize> = VecDeque::new();
        let (mut hits, mut worst) = (0, 0.0_f64);
        let requests = (num_engines * 16).max(4000);
        for number in 0..requests {
            // Eight requests for each engine are in progress at any time.
            if running.len() >= 8 * num_engines {
                let done = running.pop_front().unwrap();
                all[done].in_flight -= 1;
            }
            let drawn = (lots() >> 11) as f64 / (1u64 << 53) as f64 * weights.last().unwrap();
            let prefix = weights.partition_point(|&sum| sum < drawn);
            let chosen = if uses_keys {
                choose(&all, Some(mix(prefix as u64)), |_| false, &mut lots).unwrap()
            } else {
                (lots() % num_engines as u64) as usize
            };
            all[chosen].in_flight += 1;
            running.push_back(chosen);
            let cache = &mut caches[chosen];
            let is_warm = number > requests / 2;
            if let Some(place) = cache.iter().position(|&cached| cached == prefix) {
                cache.remove(place);
                hits += usize::from(is_warm);
            }
            cache.push_front(prefix);
            cache.truncate(PREFIXES_CACHED);
            if is_warm {
                let mean = running.len() as f64 / num_engines as f64;
                worst = worst.max(all[chosen].in_flight as f64 / mean);
            }
        }
        (hits as f64 / (requests / 2) as f64, worst)
    }

    #[test]
    fn affinity_finds_more_prefixes_than_chance_and_keeps_the_load_even() {
        for num_engines in [4, 1000] {
            let ((by_key, by_key_load), (by_chance, by_chance_load)) =
                (simulated(num_engines, true), simulated(num_engines, false));
            println!(
                "{num_engines} engines: {by_key:.3} of the prefixes found (at most {by_key_load:.2} times the mean load), by \
                 chance {by_chance:.3} ({by_chance_load:.2})"
            );
            assert!(by_key > by_chance * 1.3, "{num_engines}: {by_key} {by_chance}");
            assert!(by_key_load <= SHARE_MAX + 3.0 / 8.0, "{num_engines}: {by_key_load}");
        }
    }
}
