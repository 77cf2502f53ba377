//! Who publishes and plays on this node right now, for operators: to see them, and to send one away.
//!
//! Entered once a peer was let in, left when it goes; nothing on the way of media looks here.

use crate::ids::{SessionTag, StreamName};
use crate::relay::Format;
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::oneshot;

/// What a peer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Activity {
    /// It publishes.
    Publishing,
    /// It watches.
    Watching,
    /// It is a node that pulls.
    Pulling,
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
    /// How it is connected: `rtmp`, `http-flv` or `websocket-flv`.
    pub protocol: &'static str,
    /// The publish, if it publishes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionTag>,
    /// Seconds since it was let in.
    pub age_s: u64,
}

/// See the module's head.
#[derive(Debug, Default)]
pub struct Peers {
    table: Mutex<BTreeMap<(Activity, u64), Entry>>,
}

#[derive(Debug)]
struct Entry {
    stream: StreamName,
    address: SocketAddr,
    format: Format,
    session: Option<SessionTag>,
    since: Instant,
    /// Nothing once it was sent away.
    kick: Option<oneshot::Sender<String>>,
}

/// A peer that is there, for as long as this is.
#[derive(Debug)]
pub(super) struct Present {
    peers: Arc<Peers>,
    key: (Activity, u64),
    kicked: oneshot::Receiver<String>,
}

impl Peers {
    /// Enters a peer.
    pub(super) fn enter(
        self: &Arc<Self>,
        activity: Activity,
        id: u64,
        stream: &StreamName,
        address: SocketAddr,
        format: Format,
        session: Option<SessionTag>,
    ) -> Present {
        let (kick, kicked) = oneshot::channel();
        let (key, stream, since) = ((activity, id), stream.clone(), Instant::now());
        self.lock().insert(key, Entry { stream, address, format, session, since, kick: Some(kick) });
        Present { peers: self.clone(), key, kicked }
    }

    /// Those who do this, by number, from behind `after` on, and at most so many; of one stream if one is named.
    pub fn list(
        &self,
        activity: Activity,
        stream: Option<&StreamName>,
        after: u64,
        most: usize,
    ) -> Vec<Peer> {
        let table = self.lock();
        let range = table.range((activity, after.saturating_add(1))..=(activity, u64::MAX));
        let wanted = range.filter(|(_, entry)| stream.is_none_or(|stream| entry.stream == *stream));
        wanted.take(most).map(|((_, id), entry)| entry.show(*id)).collect()
    }

    /// Sends one away, with a reason for its logs and ours. `false`: there is none of this number.
    pub fn kick(&self, activity: Activity, id: u64, reason: &str) -> bool {
        let mut table = self.lock();
        let Some(entry) = table.get_mut(&(activity, id)) else { return false };
        if let Some(kick) = entry.kick.take() {
            // One that is leaving by itself does not hear it.
            kick.send(reason.to_owned()).ok();
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(Activity, u64), Entry>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn show(&self, id: u64) -> Peer {
        Peer {
            id,
            stream_name: self.stream.clone(),
            address: self.address,
            protocol: self.format.name(),
            session: self.session,
            age_s: self.since.elapsed().as_secs(),
        }
    }
}

impl Present {
    /// Waits until an operator sends it away, and gives the reason, once. Safe to drop and call again before that.
    pub async fn kicked(&mut self) -> String {
        match (&mut self.kicked).await {
            Ok(reason) => reason,
            // Its entry goes with it, so this does not happen.
            Err(_) => std::future::pending().await,
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
        let enter = |activity, id, stream| peers.enter(activity, id, stream, address, Format::Rtmp, None);
        let (mut a, _b, _c) = (
            enter(Activity::Watching, 1, &x),
            enter(Activity::Watching, 7, &y),
            enter(Activity::Publishing, 3, &x),
        );
        let ids = |activity, stream, after, most| {
            peers.list(activity, stream, after, most).iter().map(|peer| peer.id).collect::<Vec<_>>()
        };
        assert_eq!(ids(Activity::Watching, None, 0, 10), [1, 7]);
        assert_eq!(ids(Activity::Watching, None, 1, 10), [7]);
        assert_eq!(ids(Activity::Watching, Some(&y), 0, 10), [7]);
        assert_eq!(ids(Activity::Watching, None, 0, 1), [1]);
        assert_eq!(ids(Activity::Publishing, None, 0, 10), [3]);
        assert!(!peers.kick(Activity::Pulling, 1, "no") && peers.kick(Activity::Watching, 1, "because"));
        assert_eq!(a.kicked().await, "because");
        drop(a);
        assert_eq!(ids(Activity::Watching, None, 0, 10), [7]);
    }
}
