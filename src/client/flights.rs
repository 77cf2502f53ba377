//! One call in flight for each question: callers that ask the same thing at the same time share one answer.
//!
//! The callers drive the call together. It lives for as long as one of them waits, and it ends when the last one leaves,
//! so no task is needed and none can be forgotten.

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The calls in flight, each with a number that tells it from others of the same question.
type Calls<Q> = HashMap<Q, (u64, WeakShared<BoxFuture<'static, <Q as Question>::Answer>>)>;

/// What can be asked.
pub(super) trait Question: Clone + Eq + Hash + Send + 'static {
    type Answer: Clone + Send + Sync + 'static;
}

/// The calls in flight.
pub(super) struct Flights<Q: Question>(Arc<Mutex<(u64, Calls<Q>)>>);

impl<Q: Question> Default for Flights<Q> {
    fn default() -> Self {
        Flights(Arc::new(Mutex::new((0, HashMap::new()))))
    }
}

impl<Q: Question> Flights<Q> {
    /// The answer of the call that is in flight for this question, or else of the one that `call` starts.
    pub(super) fn join<F>(
        &self,
        question: &Q,
        call: impl FnOnce() -> F,
    ) -> Shared<BoxFuture<'static, Q::Answer>>
    where
        F: Future<Output = Q::Answer> + Send + 'static,
    {
        let mut guard = lock(&self.0);
        let (last_id, calls) = &mut *guard;
        if let Some(flight) = calls.get(question).and_then(|(_, flight)| flight.upgrade()) {
            return flight;
        }
        *last_id += 1;
        let id = *last_id;
        let landing = Landing { flights: self.0.clone(), question: question.clone(), id };
        let call = call();
        let flight = async move {
            let _landing = landing;
            call.await
        };
        let flight = flight.boxed().shared();
        if let Some(weak) = flight.downgrade() {
            calls.insert(question.clone(), (id, weak));
        }
        flight
    }
}

/// Takes a call out of the table when it ends, with an answer or because all callers left.
struct Landing<Q: Question> {
    flights: Arc<Mutex<(u64, Calls<Q>)>>,
    question: Q,
    id: u64,
}

impl<Q: Question> Drop for Landing<Q> {
    fn drop(&mut self) {
        let (_, calls) = &mut *lock(&self.flights);
        // Another call may have taken the place of one that was left by its callers.
        if calls.get(&self.question).is_some_and(|(id, _)| *id == self.id) {
            calls.remove(&self.question);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::oneshot;

    impl Question for u8 {
        type Answer = usize;
    }

    fn in_flight(flights: &Flights<u8>) -> usize {
        lock(&flights.0).1.len()
    }

    #[tokio::test]
    async fn callers_share_a_call_and_one_that_leaves_does_not_end_it() {
        let (flights, calls) = (Flights::default(), AtomicUsize::new(0));
        let (land, landed) = oneshot::channel();
        let mut call = Some(async { landed.await.unwrap() });
        let mut join = || {
            flights.join(&1, || {
                calls.fetch_add(1, Ordering::Relaxed);
                call.take().unwrap()
            })
        };
        let (mut first, second, third) = (join(), join(), join());
        assert!(futures::poll!(&mut first).is_pending());
        let waiting = tokio::spawn(second);
        tokio::task::yield_now().await;
        drop(first);
        land.send(7).unwrap();
        assert_eq!((waiting.await.unwrap(), third.await), (7, 7));
        assert_eq!((calls.into_inner(), in_flight(&flights)), (1, 0));
    }

    #[tokio::test]
    async fn a_call_ends_with_its_last_caller_and_leaves_nothing_behind() {
        let flights = Flights::default();
        let (sender, receiver) = oneshot::channel::<usize>();
        let mut only = flights.join(&1, || async { receiver.await.unwrap() });
        assert!(futures::poll!(&mut only).is_pending());
        drop(only);
        assert!(sender.is_closed());
        assert_eq!(in_flight(&flights), 0);
        assert_eq!(flights.join(&1, || async { 8 }).await, 8);
    }

    #[tokio::test]
    async fn a_finished_call_is_not_joined() {
        let flights = Flights::default();
        let first = flights.join(&1, || async { 1 });
        assert_eq!(first.clone().await, 1);
        assert_eq!(flights.join(&1, || async { 2 }).await, 2);
        assert_eq!(first.await, 1);
    }
}
