//! Request coalescing: one computation for all identical requests in flight.
//!
//! The first request leads: it computes, and its caller sees the answer as it streams. The others wait for the whole
//! answer. If the leader's caller disconnects or its generation fails, the leader lets go and one of the waiting
//! requests leads next. The others wait no longer than the patience for a leader that makes no progress, because its
//! caller does not read or because it is itself stuck in a long queue.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{sync::watch, time::timeout_at};

use super::{key::Key, recorded::Recorded};
use hearth_domain::error::{Error, ErrorKind, Result};

/// What is being computed.
#[derive(Debug, Default)]
pub struct Flights(Mutex<HashMap<Key, Flight>>);

#[derive(Clone, Debug)]
struct Flight {
    end: watch::Receiver<Option<Landed>>,
    events: Arc<AtomicUsize>,
}

/// How a flight ended, if it did not fail.
#[derive(Clone, Debug)]
enum Landed {
    Answer(Arc<Recorded>),
    /// Too long to keep: every request computes for itself.
    TooLong,
}

/// What a request does after it joined.
#[derive(Debug)]
pub enum FlightOutcome {
    /// It computes for all requests that join until it ends.
    Leads(Lead),
    /// It waited, and this is the answer.
    Answered(Arc<Recorded>),
    /// It computes for itself.
    Alone,
    /// It waited in vain and must look again.
    Again,
}

/// The leader's handle; dropping it without [`Lead::land`] means failure.
#[derive(Debug)]
pub struct Lead {
    flights: Arc<Flights>,
    key: Key,
    end: watch::Sender<Option<Landed>>,
    events: Arc<AtomicUsize>,
}

impl Flights {
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    /// Leads, or waits for the leader.
    ///
    /// # Errors
    /// If the deadline passes.
    pub async fn join(
        self: &Arc<Self>,
        key: Key,
        deadline: Option<Instant>,
        patience: Duration,
    ) -> Result<FlightOutcome> {
        let mut flight = {
            let mut flights = self.0.lock();
            match flights.get(&key) {
                Some(flight) => flight.clone(),
                None => {
                    let (end, receiver) = watch::channel(None);
                    let events = Arc::<AtomicUsize>::default();
                    flights.insert(key, Flight { end: receiver, events: events.clone() });
                    return Ok(FlightOutcome::Leads(Lead { flights: self.clone(), key, end, events }));
                }
            }
        };
        loop {
            let seen = flight.events.load(Relaxed);
            let patient_until = Instant::now() + patience;
            let until = deadline.map_or(patient_until, |deadline| deadline.min(patient_until));
            match timeout_at(until.into(), flight.end.wait_for(Option::is_some)).await {
                Ok(Ok(landed)) => {
                    return Ok(match &*landed {
                        Some(Landed::Answer(answer)) => FlightOutcome::Answered(answer.clone()),
                        Some(Landed::TooLong) | None => FlightOutcome::Alone,
                    });
                }
                Ok(Err(_the_leader_let_go)) => return Ok(FlightOutcome::Again),
                Err(_elapsed) if deadline.is_some_and(|deadline| deadline <= Instant::now()) => return Err(passed()),
                Err(_elapsed) if flight.events.load(Relaxed) == seen => return Ok(FlightOutcome::Alone),
                Err(_elapsed) => {}
            }
        }
    }
}

fn passed() -> Error {
    Error::new(
        ErrorKind::DeadlineExceeded,
        "The request waited past its deadline for another one that asks the same. Raise `timeout` or the server's \
         limit, or send `cache-control: no-store` to have it computed by itself.",
    )
}

impl Lead {
    /// Another event has arrived.
    pub fn progressed(&self) {
        self.events.fetch_add(1, Relaxed);
    }

    /// The answer is complete, or `None` if it is too long to keep. It must be in the cache before this call, because
    /// the next request looks there.
    pub fn land(self, answer: Option<Arc<Recorded>>) {
        self.end.send_replace(Some(answer.map_or(Landed::TooLong, Landed::Answer)));
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.flights.0.lock().remove(&self.key);
    }
}
