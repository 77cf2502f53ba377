//! What peers make this process hold, in bytes, and one limit for all of it together.
//!
//! A [`Holder`] is one peer: a publisher's connection, or an attempt of a pull. Parts that keep something on its behalf,
//! such as its unfinished messages or the ring of its stream, have a [`Charge`] on it. Holding is never refused, as the bytes
//! are there by then: when the total passes the limit, holders are evicted until the rest fits. First those that hold more
//! than an ordinary stream, the largest first; then the newest, so that who was there before is served on.
//!
//! Charges are counted in steps, and what is below one step is free: most connections hold some hundred bytes. It knows
//! nothing of what is held, nor how a peer is told.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// Charges are multiples of this many bytes, rounded down.
pub const STEP: usize = 16 << 10;

/// What an ordinary stream holds at most: eight seconds of 8 Mb/s.
const ORDINARY: usize = 8 << 20;

/// One limit for all holders.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    used: AtomicUsize,
    /// What those hold that are evicted and have not let go yet.
    leaving: AtomicUsize,
    evictions: AtomicU64,
    next: AtomicU64,
    /// Those that hold something. Locked before an account, never after.
    holders: Mutex<HashMap<u64, Arc<Account>>>,
}

#[derive(Debug)]
struct Account {
    budget: Arc<Budget>,
    number: u64,
    state: Mutex<State>,
    told: Notify,
}

#[derive(Debug, Default)]
struct State {
    held: usize,
    evicted: bool,
}

/// Somebody who makes the process hold something. Cheap to clone; clones are the same holder.
#[derive(Clone, Debug)]
pub struct Holder(Arc<Account>);

/// What a part of the process holds on behalf of a holder. Dropping it gives everything back.
#[derive(Debug)]
pub struct Charge {
    account: Arc<Account>,
    charged: usize,
}

impl Budget {
    /// A budget of so many bytes.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Budget {
            limit,
            used: AtomicUsize::new(0),
            leaving: AtomicUsize::new(0),
            evictions: AtomicU64::new(0),
            next: AtomicU64::new(0),
            holders: Mutex::default(),
        })
    }

    /// Somebody new, who holds nothing yet.
    pub fn holder(self: &Arc<Self>) -> Holder {
        let number = self.next.fetch_add(1, Relaxed);
        Holder(Arc::new(Account {
            budget: self.clone(),
            number,
            state: Mutex::default(),
            told: Notify::new(),
        }))
    }

    /// The limit, bytes.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// What is held, bytes.
    pub fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    /// How many holders were evicted so far.
    pub fn evictions(&self) -> u64 {
        self.evictions.load(Relaxed)
    }

    fn holders(&self) -> MutexGuard<'_, HashMap<u64, Arc<Account>>> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        self.used().saturating_sub(self.leaving.load(Relaxed)) > self.limit
    }

    /// Evicts the worst, until what is left fits.
    fn relieve(&self) {
        let holders = self.holders();
        while self.is_over() {
            let badness = |account: &&Arc<Account>| {
                let state = account.state();
                (!state.evicted, state.held.saturating_sub(ORDINARY), account.number)
            };
            let Some(worst) = holders.values().max_by_key(badness) else { return };
            let mut state = worst.state();
            if state.evicted {
                return;
            }
            state.evicted = true;
            self.leaving.fetch_add(state.held, Relaxed);
            self.evictions.fetch_add(1, Relaxed);
            worst.told.notify_one();
        }
    }
}

impl Account {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Holder {
    /// A part that holds nothing yet.
    pub fn charge(&self) -> Charge {
        Charge { account: self.0.clone(), charged: 0 }
    }

    /// Waits until this holder has to go, because the budget is used up. One caller only.
    pub async fn evicted(&self) {
        while !self.0.state().evicted {
            self.0.told.notified().await;
        }
    }
}

/// How long [`Holder::wait_for_room`] waits at most, and how often it looks.
const ROOM: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(5));

impl Holder {
    /// Waits a moment while those who were evicted have not let go yet, and all together hold an eighth more than the limit:
    /// who brings more meanwhile would be faster than they are.
    pub async fn wait_for_room(&self) {
        let Budget { limit, used, .. } = &*self.0.budget;
        let (most, pause) = ROOM;
        let mut waited = Duration::ZERO;
        while used.load(Relaxed) > limit.saturating_add(limit / 8) && waited < most {
            tokio::time::sleep(pause).await;
            waited += pause;
        }
    }
}

impl Charge {
    /// Whether the holder has to go.
    pub fn is_evicted(&self) -> bool {
        self.account.state().evicted
    }

    /// It holds so many bytes now.
    pub fn set(&mut self, bytes: usize) {
        let wanted = bytes / STEP * STEP;
        let before = std::mem::replace(&mut self.charged, wanted);
        if wanted > before {
            self.grow(wanted - before);
        } else if wanted < before {
            self.shrink(before - wanted);
        }
    }

    fn grow(&self, more: usize) {
        let Account { budget, number, .. } = &*self.account;
        let was = {
            let mut state = self.account.state();
            budget.used.fetch_add(more, Relaxed);
            if state.evicted {
                budget.leaving.fetch_add(more, Relaxed);
            }
            state.held += more;
            state.held - more
        };
        if was == 0 {
            budget.holders().insert(*number, self.account.clone());
        }
        if budget.is_over() {
            budget.relieve();
        }
    }

    fn shrink(&self, less: usize) {
        let Account { budget, number, .. } = &*self.account;
        let left = {
            let mut state = self.account.state();
            budget.used.fetch_sub(less, Relaxed);
            if state.evicted {
                budget.leaving.fetch_sub(less, Relaxed);
            }
            state.held -= less;
            state.held
        };
        if left == 0 {
            let mut holders = budget.holders();
            // Another part may have begun to hold something at this moment.
            if self.account.state().held == 0 {
                holders.remove(number);
            }
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn is_evicted(holder: &Holder) -> bool {
        holder.evicted().now_or_never().is_some()
    }

    #[test]
    fn the_largest_go_first_and_then_the_newest() {
        let budget = Budget::new(10 * ORDINARY);
        let [first, large, larger, last] = std::array::from_fn(|_| budget.holder());
        let (mut a, mut b, mut c, mut d) = (first.charge(), large.charge(), larger.charge(), last.charge());
        a.set(ORDINARY);
        b.set(3 * ORDINARY);
        c.set(2 * ORDINARY);
        let mut ring = larger.charge();
        ring.set(2 * ORDINARY);
        d.set(2 * ORDINARY);
        let evicted = || [&first, &large, &larger, &last].map(is_evicted);
        assert_eq!(evicted(), [false; 4], "just full");
        a.set(ORDINARY + STEP);
        assert_eq!(evicted(), [false, false, true, false], "its parts count together");
        b.set(ORDINARY);
        d.set(ORDINARY);
        let mut e = first.charge();
        e.set(8 * ORDINARY);
        assert_eq!(evicted(), [true, false, true, false], "what is leaving counts no more");
        d.set(ORDINARY / 2);
        b.set(ORDINARY);
        let crowd: Vec<_> = (0..40).map(|_| budget.holder()).collect();
        let mut charges: Vec<_> = crowd.iter().map(Holder::charge).collect();
        charges.iter_mut().for_each(|charge| charge.set(ORDINARY / 2));
        assert_eq!(evicted(), [true, false, true, false], "who was there before stays");
        assert!(crowd.iter().any(is_evicted) && !is_evicted(&crowd[0]));
        drop((a, b, c, d, e, ring, charges));
        assert_eq!((budget.used(), budget.leaving.load(Relaxed), budget.holders().len()), (0, 0, 0));
    }

    #[test]
    fn who_holds_next_to_nothing_holds_nothing() {
        let budget = Budget::new(10 * STEP);
        let mut charges: Vec<_> = (0..1000).map(|_| budget.holder().charge()).collect();
        charges.iter_mut().for_each(|charge| charge.set(STEP - 1));
        assert_eq!((budget.used(), budget.evictions()), (0, 0));
    }

    #[test]
    fn the_books_balance_whatever_threads_do() {
        let budget = Budget::new(20 * STEP);
        std::thread::scope(|scope| {
            for thread in 0..4_usize {
                let budget = &budget;
                scope.spawn(move || {
                    for round in 0..500_usize {
                        let holder = budget.holder();
                        let (mut one, mut two) = (holder.charge(), holder.charge());
                        one.set((round * 7 + thread) % 13 * STEP);
                        two.set((round * 5 + thread) % 11 * STEP);
                        one.set(round % 3 * STEP);
                    }
                });
            }
        });
        assert_eq!((budget.used(), budget.leaving.load(Relaxed), budget.holders().len()), (0, 0, 0));
    }
}
