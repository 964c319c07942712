//! A circuit breaker: after a run of failures an upstream's model is not asked for a while, then one request may probe
//! it.
//!
//! Each request holds a [`Permit`] until its last token, so that a stream that breaks in the middle counts as a
//! failure. A permit that is dropped without a verdict, because the caller left, says nothing about the upstream.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::BreakerSettings;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Breaker {
    settings: BreakerSettings,
    circuit: Mutex<Circuit>,
}

#[derive(Debug)]
struct Circuit {
    /// Failures since the last success.
    failures: u32,
    /// Until when no request is let through.
    open_until: Option<Instant>,
    /// The one request that probes whether the upstream is back.
    is_probing: bool,
    /// Incremented with every change between open and closed: permits of an earlier epoch say nothing about this one.
    epoch: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BreakerState {
    Closed,
    /// No request is let through for this long.
    Open {
        for_another: Duration,
    },
    /// The rest is over: one request may probe, or is probing already.
    HalfOpen {
        is_probing: bool,
    },
}

impl Breaker {
    pub(super) fn new(settings: BreakerSettings) -> Arc<Self> {
        let circuit = Circuit { failures: 0, open_until: None, is_probing: false, epoch: 0 };
        Arc::new(Self { settings, circuit: Mutex::new(circuit) })
    }

    pub(super) fn state(&self) -> BreakerState {
        self.circuit.lock().state(Instant::now())
    }

    /// Whether a request would be refused now.
    pub(super) fn is_open(&self) -> bool {
        !matches!(self.state(), BreakerState::Closed | BreakerState::HalfOpen { is_probing: false })
    }

    /// Lets a request through, or returns how long to wait.
    pub(super) fn admit(self: &Arc<Self>) -> Result<Permit, Duration> {
        /// While a probe is in flight: its outcome will be known soon.
        const WHILE_PROBING: Duration = Duration::from_secs(1);
        let mut circuit = self.circuit.lock();
        let is_probe = match circuit.state(Instant::now()) {
            BreakerState::Closed => false,
            BreakerState::Open { for_another } => return Err(for_another),
            BreakerState::HalfOpen { is_probing: true } => return Err(WHILE_PROBING),
            BreakerState::HalfOpen { is_probing: false } => {
                circuit.is_probing = true;
                true
            }
        };
        Ok(Permit { breaker: self.clone(), epoch: circuit.epoch, is_probe, is_settled: false })
    }
}

impl Circuit {
    fn state(&self, now: Instant) -> BreakerState {
        match self.open_until {
            None => BreakerState::Closed,
            Some(until) if until > now => BreakerState::Open { for_another: until - now },
            Some(_) => BreakerState::HalfOpen { is_probing: self.is_probing },
        }
    }
}

/// The right to send a request, and the duty to report its outcome.
#[derive(Debug)]
pub(super) struct Permit {
    breaker: Arc<Breaker>,
    epoch: u64,
    is_probe: bool,
    is_settled: bool,
}

impl Permit {
    /// The upstream answered, if only to reject the request.
    pub(super) fn succeeded(mut self) {
        self.is_settled = true;
        let mut circuit = self.breaker.circuit.lock();
        if self.epoch != circuit.epoch {
            return;
        }
        circuit.failures = 0;
        if self.is_probe {
            circuit.open_until = None;
            circuit.is_probing = false;
            circuit.epoch += 1;
        }
    }

    pub(super) fn failed(mut self) {
        self.is_settled = true;
        let settings = self.breaker.settings;
        let mut circuit = self.breaker.circuit.lock();
        if self.epoch != circuit.epoch {
            return;
        }
        circuit.failures = circuit.failures.saturating_add(1);
        if self.is_probe || (circuit.open_until.is_none() && circuit.failures >= settings.failures) {
            circuit.open_until = Some(Instant::now() + settings.rest);
            circuit.is_probing = false;
            circuit.epoch += 1;
        }
    }
}

impl Drop for Permit {
    /// Without a verdict the next request may probe.
    fn drop(&mut self) {
        if self.is_probe && !self.is_settled {
            let mut circuit = self.breaker.circuit.lock();
            if self.epoch == circuit.epoch {
                circuit.is_probing = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaker(rest: Duration) -> Arc<Breaker> {
        Breaker::new(BreakerSettings { failures: 3, rest })
    }

    fn fail(breaker: &Arc<Breaker>) {
        breaker.admit().expect("let through").failed();
    }

    #[test]
    fn a_run_of_failures_opens_it_and_a_success_between_does_not() {
        let breaker = breaker(Duration::from_secs(3600));
        fail(&breaker);
        fail(&breaker);
        breaker.admit().expect("closed").succeeded();
        fail(&breaker);
        fail(&breaker);
        assert!(!breaker.is_open());
        fail(&breaker);
        assert!(breaker.is_open());
        let wait = breaker.admit().expect_err("open");
        assert!(wait > Duration::from_secs(3500), "{wait:?}");
    }

    #[test]
    fn one_probe_decides() {
        let breaker = breaker(Duration::ZERO);
        for _ in 0..3 {
            fail(&breaker);
        }
        let probe = breaker.admit().expect("half open");
        assert!(breaker.is_open(), "another request is refused meanwhile");
        assert!(breaker.admit().is_err());
        drop(probe);
        let probe = breaker.admit().expect("the one before said nothing");
        probe.failed();
        assert_eq!(breaker.state(), BreakerState::HalfOpen { is_probing: false }, "rested for no time again");
        breaker.admit().expect("half open").succeeded();
        assert_eq!(breaker.state(), BreakerState::Closed);
        fail(&breaker);
        assert!(!breaker.is_open(), "counting begins anew");
    }

    #[test]
    fn who_was_let_through_before_it_opened_speaks_of_the_past() {
        let breaker = breaker(Duration::ZERO);
        let late = [breaker.admit().expect("closed"), breaker.admit().expect("closed")];
        for _ in 0..3 {
            fail(&breaker);
        }
        let [slow_success, slow_failure] = late;
        slow_success.succeeded();
        assert_eq!(breaker.state(), BreakerState::HalfOpen { is_probing: false });
        breaker.admit().expect("half open").succeeded();
        slow_failure.failed();
        assert_eq!(breaker.circuit.lock().failures, 0);
    }
}
