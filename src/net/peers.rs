//! Who publishes and plays on this node right now, for operators: to see them, and to send one away.
//!
//! Entered once a peer was let in, left when it goes; nothing on the way of media looks here.

use crate::ids::{SessionTag, StreamName};
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::Notify;

/// What a peer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Doing {
    /// It publishes.
    Publishing,
    /// It watches.
    Watching,
    /// It is a node that pulls.
    Pulling,
}

/// How a peer is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// RTMP or RTMPS.
    Rtmp,
    /// FLV over HTTP.
    HttpFlv,
    /// FLV over a WebSocket.
    WebsocketFlv,
}

/// One peer, as operators see it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Peer {
    /// The number of its connection, as in logs.
    pub id: u64,
    /// The stream.
    pub stream_name: StreamName,
    /// Where it calls from.
    pub address: SocketAddr,
    /// How it is connected.
    pub protocol: Protocol,
    /// The publish, if it publishes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionTag>,
    /// Seconds since it was let in.
    pub age_s: u64,
}

/// See the module's head.
#[derive(Debug, Default)]
pub struct Peers {
    table: Mutex<BTreeMap<(Doing, u64), Entry>>,
}

#[derive(Debug)]
struct Entry {
    stream: StreamName,
    address: SocketAddr,
    protocol: Protocol,
    session: Option<SessionTag>,
    since: Instant,
    kick: Arc<Kick>,
}

#[derive(Debug, Default)]
struct Kick {
    reason: Mutex<Option<String>>,
    told: Notify,
}

/// A peer that is there, for as long as this is.
#[derive(Debug)]
pub(super) struct Present {
    peers: Arc<Peers>,
    key: (Doing, u64),
    kick: Arc<Kick>,
}

impl Peers {
    /// Enters a peer.
    pub(super) fn enter(
        self: &Arc<Self>,
        doing: Doing,
        id: u64,
        stream: &StreamName,
        address: SocketAddr,
        protocol: Protocol,
        session: Option<SessionTag>,
    ) -> Present {
        let (kick, key) = (Arc::<Kick>::default(), (doing, id));
        let (stream, since, kicked) = (stream.clone(), Instant::now(), kick.clone());
        self.lock().insert(key, Entry { stream, address, protocol, session, since, kick: kicked });
        Present { peers: self.clone(), key, kick }
    }

    /// Those who do this, by number, from behind `after` on, and at most so many; of one stream if one is named.
    pub fn list(&self, doing: Doing, stream: Option<&StreamName>, after: u64, most: usize) -> Vec<Peer> {
        let table = self.lock();
        let range = table.range((doing, after.saturating_add(1))..=(doing, u64::MAX));
        let wanted = range.filter(|(_, entry)| stream.is_none_or(|stream| entry.stream == *stream));
        wanted.take(most).map(|((_, id), entry)| entry.show(*id)).collect()
    }

    /// Sends one away, with a reason for its logs and ours. `false`: there is none of this number.
    pub fn kick(&self, doing: Doing, id: u64, reason: &str) -> bool {
        let table = self.lock();
        let Some(entry) = table.get(&(doing, id)) else { return false };
        *entry.kick.reason.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
        entry.kick.told.notify_one();
        true
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(Doing, u64), Entry>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn show(&self, id: u64) -> Peer {
        Peer {
            id,
            stream_name: self.stream.clone(),
            address: self.address,
            protocol: self.protocol,
            session: self.session,
            age_s: self.since.elapsed().as_secs(),
        }
    }
}

impl Present {
    /// Waits until an operator sends it away, and gives the reason. Safe to drop and call again.
    pub async fn kicked(&self) -> String {
        loop {
            if let Some(reason) = self.kick.reason.lock().unwrap_or_else(PoisonError::into_inner).clone() {
                return reason;
            }
            self.kick.told.notified().await;
        }
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.peers.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn peers_are_listed_in_pages_by_stream_and_sent_away() {
        let peers = Arc::<Peers>::default();
        let (x, y): (StreamName, StreamName) = ("x".parse().unwrap(), "y".parse().unwrap());
        let address = SocketAddr::from(([192, 0, 2, 1], 5));
        let enter = |doing, id, stream| peers.enter(doing, id, stream, address, Protocol::Rtmp, None);
        let (a, _b, _c) =
            (enter(Doing::Watching, 1, &x), enter(Doing::Watching, 7, &y), enter(Doing::Publishing, 3, &x));
        let ids = |doing, stream, after, most| {
            peers.list(doing, stream, after, most).iter().map(|peer| peer.id).collect::<Vec<_>>()
        };
        assert_eq!(ids(Doing::Watching, None, 0, 10), [1, 7]);
        assert_eq!(ids(Doing::Watching, None, 1, 10), [7]);
        assert_eq!(ids(Doing::Watching, Some(&y), 0, 10), [7]);
        assert_eq!(ids(Doing::Watching, None, 0, 1), [1]);
        assert_eq!(ids(Doing::Publishing, None, 0, 10), [3]);
        assert!(!peers.kick(Doing::Pulling, 1, "no") && peers.kick(Doing::Watching, 1, "because"));
        assert_eq!(a.kicked().await, "because");
        drop(a);
        assert_eq!(ids(Doing::Watching, None, 0, 10), [7]);
    }
}
