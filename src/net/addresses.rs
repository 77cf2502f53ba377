//! What each address has and does at a node: how many connections, and how many joins of late.
//!
//! Addresses that have no connection and did nothing within the last ten seconds are forgotten: what is kept is bounded by the
//! connections that a node can take in that time.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Joins are counted within one window after another. Short enough that who is refused by mistake comes in soon.
const WINDOW: Duration = Duration::from_secs(10);

/// See the module's head.
#[derive(Debug, Default, Clone)]
pub(super) struct Addresses(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    open: HashMap<IpAddr, usize>,
    joins: HashMap<IpAddr, u64>,
    window: Option<Instant>,
}

/// One of the connections that an address may have; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    addresses: Addresses,
    address: IpAddr,
}

impl Addresses {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more connection. Nothing: the address has as many as it may.
    pub fn connect(&self, address: IpAddr, most: usize) -> Option<Slot> {
        let address = customer(address);
        let mut kept = self.lock();
        let count = kept.open.entry(address).or_insert(0);
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Slot { addresses: self.clone(), address })
    }

    /// Counts a connection, a publish or a play, and says whether the address may do that now.
    pub fn join(&self, address: IpAddr, most: u64) -> bool {
        let now = Instant::now();
        let mut kept = self.lock();
        if kept.window.is_none_or(|begun| now - begun >= WINDOW) {
            kept.window = Some(now);
            // What a flood made it grow to is given back.
            kept.joins = HashMap::new();
        }
        let joins = kept.joins.entry(customer(address)).or_insert(0);
        *joins = joins.saturating_add(1);
        *joins <= most
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut kept = self.addresses.lock();
        if let Some(count) = kept.open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                kept.open.remove(&self.address);
            }
        }
    }
}

/// The network that one customer of a provider has: an IPv4 address, or an IPv6 network of 64 bits.
pub fn customer(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() >> 64 << 64).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_customer_with_a_network_of_its_own_counts_once() {
        let customer = |text: &str| customer(address(text)).to_string();
        assert_eq!(customer("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_ne!(customer("2001:db8:1:3::1"), customer("2001:db8:1:2::1"));
        assert_eq!(customer("192.0.2.7"), "192.0.2.7");
    }

    #[test]
    fn a_connection_that_ends_makes_room_for_another_one() {
        let addresses = Addresses::default();
        let first = addresses.connect(address("192.0.2.1"), 1).unwrap();
        assert!(addresses.connect(address("192.0.2.1"), 1).is_none());
        assert!(addresses.connect(address("192.0.2.2"), 1).is_some());
        drop(first);
        assert!(addresses.connect(address("192.0.2.1"), 1).is_some());
        assert!(addresses.lock().open.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn joins_are_counted_for_ten_seconds() {
        let addresses = Addresses::default();
        let join = |text: &str| addresses.join(address(text), 2);
        assert!(join("192.0.2.1") && join("192.0.2.1") && !join("192.0.2.1"));
        assert!(join("192.0.2.2"));
        tokio::time::advance(WINDOW).await;
        assert!(join("192.0.2.1"));
        assert_eq!(addresses.lock().joins.len(), 1);
    }
}
