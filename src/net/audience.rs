//! The streams that are wanted by players who come back again and again and are connected to nothing in between, as those of HLS are.
//!
//! A stream that such a player asks for is wanted, as by one viewer, until nobody has asked for it for a while. Who may ask is decided
//! elsewhere.

use crate::drain::Drain;
use crate::ids::StreamName;
use crate::relay::{End, Interest};
use crate::telemetry::Counted;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// How long a stream is wanted after somebody asked for it. Players of HLS ask for its playlist once a segment; a phone that changes its
/// network is silent for some seconds.
const WANTED: Duration = Duration::from_secs(15);

/// Where a stream is watched: port, app and name.
pub(super) type Place = (u16, String, StreamName);

/// Those streams.
#[derive(Debug, Default)]
pub(super) struct Audience {
    seats: Arc<Mutex<HashMap<Place, Arc<Seat>>>>,
}

/// A stream that is wanted.
pub(super) struct Seat {
    until: Mutex<Instant>,
    interest: Interest,
    _counted: Counted,
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat").field("until", &self.until).finish_non_exhaustive()
    }
}

impl Audience {
    /// Somebody asks for a stream: it is wanted for a while from now on. `admit` lets in whoever is the first.
    ///
    /// Errors: those of `admit`.
    pub fn want<E>(
        &self,
        place: Place,
        drain: &Drain,
        admit: impl FnOnce() -> Result<(Interest, Counted), E>,
    ) -> Result<Arc<Seat>, E> {
        let until = Instant::now() + WANTED;
        let mut seats = lock(&self.seats);
        if let Some(seat) = seats.get(&place) {
            *lock(&seat.until) = until;
            return Ok(seat.clone());
        }
        let (interest, _counted) = admit()?;
        let seat = Arc::new(Seat { until: Mutex::new(until), interest, _counted });
        seats.insert(place.clone(), seat.clone());
        drop(seats);
        self.clear_later(drain, place, seat.clone());
        Ok(seat)
    }

    fn clear_later(&self, drain: &Drain, place: Place, seat: Arc<Seat>) {
        let (seats, draining) = (self.seats.clone(), drain.draining().clone());
        drain.tasks().spawn(async move {
            loop {
                let until = {
                    // Whoever asks at this moment finds the seat before this, or none.
                    let mut seats = lock(&seats);
                    let until = *lock(&seat.until);
                    if Instant::now() >= until || draining.is_cancelled() {
                        seats.remove(&place);
                        return;
                    }
                    until
                };
                tokio::select! {
                    () = sleep_until(until) => {}
                    () = draining.cancelled() => {}
                }
            }
        });
    }
}

impl Seat {
    /// Waits until the stream has something to show.
    ///
    /// Errors: why it has not. Who asks next is let in anew.
    pub async fn ready(&self) -> Result<(), End> {
        let ready = self.interest.ready().await;
        if ready.is_err() {
            *lock(&self.until) = Instant::now();
        }
        ready
    }
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}
