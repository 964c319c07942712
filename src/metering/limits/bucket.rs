//! A token bucket in one atomic number: a rate per minute, and a burst of at most one minute's worth.
//!
//! The generic cell rate algorithm in its virtual scheduling form (ITU-T I.371, Annex A). The number is the theoretical
//! arrival time: the instant at which the bucket will be full again. Taking units advances it by their share of a
//! minute, and is refused if it would end up further ahead than the tolerance. So no span of time takes more than the
//! limit allows for that span plus one full bucket.
//!
//! Units may be taken before the need is known: the surplus is given back, the shortfall is charged. Giving back never
//! overfills the bucket, because any instant in the past means a full bucket; charging may put it into debt, which
//! later callers wait out.

use std::{
    num::NonZeroU32,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

const MINUTE_NS: u64 = 60_000_000_000;

/// Units a minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rate(pub NonZeroU32);

impl Rate {
    /// `None` where there is no limit; a limit of zero is read as one unit per minute.
    pub fn of(per_minute: Option<u32>) -> Option<Self> {
        per_minute.map(|limit| Self(NonZeroU32::new(limit).unwrap_or(NonZeroU32::MIN)))
    }

    pub fn per_minute(self) -> u32 {
        self.0.get()
    }

    /// The units' share of a minute in nanoseconds, rounded up.
    fn cost(self, units: u64) -> u64 {
        let share = (u128::from(units) * u128::from(MINUTE_NS)).div_ceil(u128::from(self.per_minute()));
        u64::try_from(share).unwrap_or(u64::MAX)
    }

    /// How far ahead the theoretical arrival time may lie: a minute, plus a nanosecond per unit, because each unit's
    /// share may have been rounded up.
    fn tolerance(self) -> u64 {
        MINUTE_NS + u64::from(self.per_minute())
    }
}

/// Why nothing was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Short {
    /// There will be enough after this time, if no other caller takes any.
    Wait(Duration),
    /// More than a full bucket holds.
    TooLarge,
}

/// See the module. Every `now` is nanoseconds since the same origin. The rate is passed to each call, so that a limit
/// may change while the bucket is in use.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    full_at: AtomicU64,
}

impl Bucket {
    /// # Errors
    /// If there are not that many now; nothing is taken then.
    pub fn take(&self, rate: Rate, units: u64, now: u64) -> Result<(), Short> {
        if units > u64::from(rate.per_minute()) {
            return Err(Short::TooLarge);
        }
        let cost = rate.cost(units);
        let taken = |full_at: u64| full_at.max(now).saturating_add(cost);
        let within = |full_at: u64| taken(full_at) - now <= rate.tolerance();
        self.full_at
            .fetch_update(Relaxed, Relaxed, |full_at| within(full_at).then(|| taken(full_at)))
            .map(drop)
            .map_err(|full_at| Short::Wait(Duration::from_nanos(taken(full_at) - now - rate.tolerance())))
    }

    /// Returns units that were taken and not used.
    pub fn give_back(&self, rate: Rate, units: u64) {
        let cost = rate.cost(units);
        self.update(|full_at| full_at.saturating_sub(cost));
    }

    /// Charges units that were used and not taken.
    pub fn charge(&self, rate: Rate, units: u64, now: u64) {
        let cost = rate.cost(units);
        self.update(|full_at| full_at.max(now).saturating_add(cost));
    }

    fn update(&self, change: impl Fn(u64) -> u64) {
        self.full_at.fetch_update(Relaxed, Relaxed, |full_at| Some(change(full_at))).expect("there is always a change");
    }

    /// Units that could be taken now.
    pub fn remaining(&self, rate: Rate, now: u64) -> u32 {
        let room = rate.tolerance().saturating_sub(self.until_full(now));
        let units = u128::from(room) * u128::from(rate.per_minute()) / u128::from(MINUTE_NS);
        u32::try_from(units).unwrap_or(u32::MAX).min(rate.per_minute())
    }

    /// Time until the bucket is full, if no caller takes any.
    pub fn reset(&self, now: u64) -> Duration {
        Duration::from_nanos(self.until_full(now))
    }

    fn until_full(&self, now: u64) -> u64 {
        self.full_at.load(Relaxed).saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64 as Counter;

    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn rate(per_minute: u32) -> Rate {
        Rate::of(Some(per_minute)).expect("a limit")
    }

    #[test]
    fn a_minutes_worth_at_once_and_then_one_at_a_time() {
        for limit in [1, 7, 60, 1000] {
            let (bucket, rate) = (Bucket::default(), rate(limit));
            assert_eq!(bucket.remaining(rate, 5), limit);
            for left in (0..limit).rev() {
                bucket.take(rate, 1, 5).expect("within the burst");
                assert_eq!(bucket.remaining(rate, 5), left);
            }
            let Err(Short::Wait(wait)) = bucket.take(rate, 1, 5) else { panic!("the bucket is empty") };
            let early = 5 + wait.as_nanos() as u64 - 1;
            assert!(bucket.take(rate, 1, early).is_err(), "a nanosecond too early");
            bucket.take(rate, 1, early + 1).expect("exactly then");
        }
    }

    #[test]
    fn what_no_bucket_can_hold_is_told_from_what_takes_time() {
        let (bucket, rate) = (Bucket::default(), rate(100));
        assert_eq!(bucket.take(rate, 101, 0), Err(Short::TooLarge));
        bucket.take(rate, 100, 0).expect("a full bucket");
        let Err(Short::Wait(wait)) = bucket.take(rate, 100, 0) else { panic!("the bucket is empty") };
        assert!(wait.abs_diff(Duration::from_secs(60)) < Duration::from_micros(1), "{wait:?}");
        assert_eq!(bucket.reset(0), Duration::from_secs(60));
        assert_eq!(bucket.remaining(rate, 30 * SECOND), 50);
    }

    #[test]
    fn debt_is_waited_for() {
        let (bucket, rate) = (Bucket::default(), rate(60));
        bucket.take(rate, 10, 0).expect("a new bucket");
        bucket.charge(rate, 110, 0);
        assert_eq!((bucket.remaining(rate, 0), bucket.reset(0)), (0, Duration::from_secs(120)));
        assert!(bucket.take(rate, 1, 60 * SECOND).is_err());
        bucket.take(rate, 1, 61 * SECOND).expect("a unit has come in");
    }

    /// What the bucket should hold, in fractional units, independent of its representation.
    struct Model {
        level: f64,
        at: u64,
    }

    impl Model {
        fn advance(&mut self, rate: Rate, now: u64) {
            let came_in = (now - self.at) as f64 * f64::from(rate.per_minute()) / MINUTE_NS as f64;
            self.level = (self.level + came_in).min(f64::from(rate.per_minute()));
            self.at = now;
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Take(u64),
        GiveBack(u64),
        Charge(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
        let step = prop_oneof![
            4 => (1u64..40).prop_map(Step::Take),
            2 => (0u64..40).prop_map(Step::GiveBack),
            1 => (0u64..40).prop_map(Step::Charge),
        ];
        prop::collection::vec((0u64..20 * SECOND, step), 1..200)
    }

    proptest! {
        #[test]
        fn it_is_the_leaky_bucket_of_the_textbook(limit in 1u32..400, steps in steps()) {
            let (bucket, rate) = (Bucket::default(), rate(limit));
            let mut model = Model { level: f64::from(limit), at: 0 };
            let mut now = 0;
            for (pause, step) in steps {
                now += pause;
                model.advance(rate, now);
                match step {
                    Step::Take(units) => {
                        let taken = bucket.take(rate, units, now);
                        // The tolerance covers floating point and rounded nanoseconds.
                        if model.level > units as f64 + 1e-3 {
                            prop_assert_eq!(taken, Ok(()));
                        } else if model.level < units as f64 - 1e-3 {
                            prop_assert!(taken.is_err());
                        }
                        if taken.is_ok() {
                            model.level -= units as f64;
                        }
                    }
                    Step::GiveBack(units) => {
                        bucket.give_back(rate, units);
                        model.level = (model.level + units as f64).min(f64::from(limit));
                    }
                    Step::Charge(units) => {
                        bucket.charge(rate, units, now);
                        model.level -= units as f64;
                    }
                }
                let remaining = bucket.remaining(rate, now);
                prop_assert!(remaining <= limit);
                prop_assert!((f64::from(remaining) - model.level.max(0.0)).abs() < 1.01, "{remaining} {}", model.level);
            }
        }

        /// With reservations that are settled later for less, the units used in any minute are at most the limit plus a
        /// full bucket.
        #[test]
        fn no_window_holds_more_than_limit_and_burst(
            limit in 1u32..200,
            requests in prop::collection::vec((0u64..5 * SECOND, 1u64..50, 0u64..50, 0usize..8), 1..300),
        ) {
            let (bucket, rate) = (Bucket::default(), rate(limit));
            let mut now = 0;
            let mut open: Vec<(u64, u64)> = Vec::new();
            // What left the bucket and what came back, by time.
            let mut changes: Vec<(u64, i64)> = Vec::new();
            for (pause, reserved, used, settles) in requests {
                now += pause;
                if bucket.take(rate, reserved, now).is_ok() {
                    changes.push((now, reserved as i64));
                    open.push((reserved, used.min(reserved)));
                }
                for (reserved, used) in open.drain(..settles.min(open.len())) {
                    bucket.give_back(rate, reserved - used);
                    changes.push((now, -((reserved - used) as i64)));
                }
            }
            for (first, (from, _)) in changes.iter().enumerate() {
                let mut net = 0;
                for (at, units) in changes[first..].iter().take_while(|(at, _)| *at < from + MINUTE_NS) {
                    net += units;
                    prop_assert!(net <= 2 * i64::from(limit), "{net} between {from} and {at}");
                }
            }
        }
    }

    #[test]
    fn threads_together_take_no_more_than_one_would() {
        let (bucket, rate) = (Bucket::default(), rate(500));
        let (taken, clock) = (Counter::new(0), Counter::new(0));
        std::thread::scope(|scope| {
            for thread in 0..16_u64 {
                let (bucket, taken, clock) = (&bucket, &taken, &clock);
                scope.spawn(move || {
                    for turn in 0..1000 {
                        // Half a minute passes in total; a thread that read the clock earlier may arrive later.
                        let now = clock.fetch_add(30 * SECOND / 16_000, Relaxed);
                        if bucket.take(rate, 1 + (turn + thread) % 3, now).is_ok() {
                            taken.fetch_add(1 + (turn + thread) % 3, Relaxed);
                        }
                        if turn % 7 == 0 {
                            // Taken and given back in full: it must make no difference.
                            if bucket.take(rate, 2, now).is_ok() {
                                bucket.give_back(rate, 2);
                            }
                        }
                    }
                });
            }
        });
        let taken = taken.into_inner();
        assert!((740..=750).contains(&taken), "500 at once and half of them again, but {taken}");
    }
}
