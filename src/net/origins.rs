//! Which servers are lb nodes, as far as pulls from them have shown.
//!
//! An lb node takes all calls of a pull at once; another server may lose or refuse what arrives before it has answered
//! `connect`. Who it is it says in that answer, so the first pull from a server costs one more round trip, and those after
//! it do not. It knows nothing of streams.

use super::location::Location;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use std::time::Duration;

/// The most servers that are remembered: more than a node pulls from. For one beyond them a pull takes a round trip more.
const SERVERS: u64 = 1024;

/// A server that was not pulled from for so long may be another one by now. A wrong guess costs one attempt.
const KEPT: Duration = Duration::from_secs(3600);

/// Remembers servers that said they are lb nodes, and how far their clocks are ahead of this host's, in seconds. Clones
/// share what they know.
#[derive(Clone, Debug)]
pub struct Origins(Cache<(String, u16), i64>);

impl Origins {
    /// No server is known.
    pub fn new() -> Self {
        let cache = Cache::builder().max_capacity(SERVERS).eviction_policy(EvictionPolicy::lru());
        Origins(cache.time_to_idle(KEPT).build())
    }

    /// Whether the last answer of this server said that it is an lb node.
    pub(super) fn is_lb(&self, location: &Location) -> bool {
        self.0.contains_key(&key(location))
    }

    /// How far the clock of this server is ahead; 0 if it is not known.
    pub(super) fn ahead(&self, location: &Location) -> i64 {
        self.0.get(&key(location)).unwrap_or(0)
    }

    /// The server has answered, and is an lb node.
    pub(super) fn learn(&self, location: &Location, ahead: i64) {
        self.0.insert(key(location), ahead);
    }

    /// The server is something else than it was, or its clock is.
    pub(super) fn forget(&self, location: &Location) {
        self.0.invalidate(&key(location));
    }
}

impl Default for Origins {
    fn default() -> Self {
        Self::new()
    }
}

fn key(location: &Location) -> (String, u16) {
    (location.host.clone(), location.port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_bounded_and_shared() {
        let origins = Origins::new();
        let at = |port: u64| Location::parse(&format!("rtmp://h:{port}/a/x")).unwrap();
        for port in 1..=2 * SERVERS {
            origins.clone().learn(&at(port), 0);
        }
        origins.0.run_pending_tasks();
        assert_eq!(origins.0.entry_count(), SERVERS);
        origins.learn(&at(1), 0);
        assert!(origins.is_lb(&Location::parse("rtmp://h:1/other/y").unwrap()));
        origins.forget(&at(1));
        assert!(!origins.is_lb(&at(1)));
    }
}
