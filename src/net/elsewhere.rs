//! Where the peers of a node that drains are asked to go, if they follow such requests.
//!
//! An offer and no plan: who does not take it up within [`OFFER`] is disconnected, as are those who know nothing of it. Which
//! nodes there are is found out above; here one of them is chosen for each peer.

use crate::auth::Action;
use crate::ids::Origin;
use std::net::IpAddr;
use std::time::Duration;

/// How long a peer has to leave by itself: a round trip on a bad network, and a moment.
pub(super) const OFFER: Duration = Duration::from_millis(500);

/// Other nodes, by what they take.
#[derive(Clone, Debug, Default)]
pub struct Elsewhere {
    /// For publishers.
    pub ingest: Vec<Origin>,
    /// For viewers.
    pub playback: Vec<Origin>,
}

impl Elsewhere {
    /// A node for a peer, at random, so that they spread: one that speaks as the peer does, and that the peer can reach as far as
    /// its address tells.
    pub(super) fn choose(&self, action: Action, tls: bool, peer: IpAddr) -> Option<&Origin> {
        let all = if action == Action::Publish { &self.ingest } else { &self.playback };
        let reached = |origin: &Origin| origin.ip().is_none_or(|ip| !is_inside(ip) || is_inside(peer));
        let fit: Vec<&Origin> =
            all.iter().filter(|origin| origin.is_tls() == tls && reached(origin)).collect();
        let index = rand::random_range(0..fit.len().max(1));
        fit.get(index).copied()
    }
}

/// Whether an address is one of a network's inside, which means nothing to those outside.
fn is_inside(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_private() || ip.is_loopback() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_told_of_nodes_that_it_can_use() {
        let origin = |text: &str| Origin::parse(text, 1935).unwrap();
        let all = ["10.0.0.1", "rtmps://b.example", "203.0.113.9", "a.example"].map(origin);
        let nodes = Elsewhere { ingest: all.to_vec(), playback: vec![origin("10.0.0.2")] };
        let chosen = |action, tls, peer: &str| {
            let peer = peer.parse().unwrap();
            let mut found: Vec<String> = (0..200)
                .filter_map(|_| nodes.choose(action, tls, peer).map(|origin| origin.authority()))
                .collect();
            found.sort();
            found.dedup();
            found
        };
        assert_eq!(chosen(Action::Publish, false, "192.0.2.1"), ["203.0.113.9", "a.example"]);
        assert_eq!(chosen(Action::Publish, false, "10.9.9.9"), ["10.0.0.1", "203.0.113.9", "a.example"]);
        assert_eq!(chosen(Action::Publish, true, "192.0.2.1"), ["b.example:1935"]);
        assert!(chosen(Action::Play, false, "192.0.2.1").is_empty());
        assert_eq!(chosen(Action::Play, false, "127.0.0.1"), ["10.0.0.2"]);
    }
}
