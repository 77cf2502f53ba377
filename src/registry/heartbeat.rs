//! Heartbeats: the node's own record, then the streams that are named, and nothing else.

use super::pusher;
use super::record::{NodeRecord, Record, StreamRecord};
use super::rules::{self, Decision, Heard, HeardNode, Nodes, Restored, Scene, Speaker};
use super::settle::{Job, Undone};
use super::state::Registry;
use super::store::{Key, Read, Unreachable, Write, Written};
use super::{Error, MAX_NODES};
use crate::api::{Heartbeat, HeartbeatReply, PublishedStream, PublisherRelease};
use crate::ids::{NodeId, SessionId, StreamName};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// How often the record of a node is tried to be written. Only heartbeats of one node write it, and it sends one at a time.
const ROUNDS: usize = 8;

/// What a heartbeat says of one name, in its order.
#[derive(Debug, Default)]
struct Said {
    ended: Vec<SessionId>,
    streams: Vec<PublishedStream>,
    /// Of sessions that ended, those that are pushed to other servers still.
    still_pushing: Vec<SessionId>,
}

/// The publishes in a heartbeat that are no more.
struct Gone {
    ended: Vec<PublisherRelease>,
    still_pushing: Vec<PublisherRelease>,
}

/// Why a heartbeat was not taken in.
enum Failed {
    Unreachable,
    Refused(Error),
}

impl From<Unreachable> for Failed {
    fn from(_: Unreachable) -> Self {
        Failed::Unreachable
    }
}

impl Registry {
    /// Takes in what a node says of itself and of its streams, and names those that it lost. `source` is the address it
    /// came from.
    ///
    /// While the store cannot be reached nobody loses a name: those that are known to be owned are confirmed, and the node
    /// is asked for everything afterwards, since nothing was kept of what it said.
    ///
    /// Errors: [`Error::Full`], [`Error::Replaced`], [`Error::Unavailable`].
    pub async fn heartbeat(
        &self,
        node: NodeId,
        mut heartbeat: Heartbeat,
        source: IpAddr,
    ) -> Result<HeartbeatReply, Error> {
        let streams = std::mem::take(&mut heartbeat.streams);
        let gone = Gone {
            ended: std::mem::take(&mut heartbeat.ended),
            still_pushing: std::mem::take(&mut heartbeat.still_pushing),
        };
        if heartbeat.instance.is_none() {
            heartbeat.published = streams.len() as u64;
        }
        match self.take_in(&node, &heartbeat, &streams, gone, source).await {
            Ok(reply) => Ok(reply),
            Err(Failed::Refused(error)) => Err(error),
            Err(Failed::Unreachable) => {
                Ok(HeartbeatReply { owned: self.confirmed(streams), ..HeartbeatReply::default() })
            }
        }
    }

    async fn take_in(
        &self,
        node: &NodeId,
        heartbeat: &Heartbeat,
        streams: &[PublishedStream],
        Gone { ended, still_pushing }: Gone,
        source: IpAddr,
    ) -> Result<HeartbeatReply, Failed> {
        let listed = !streams.is_empty() || !still_pushing.is_empty();
        let heard = self.write_node(node, heartbeat, listed, source).await?;
        if heard.want_all || heard.completes {
            self.figures().listing.store(true, Relaxed);
        }
        let mut reply = HeartbeatReply {
            since: heard.since.clone(),
            want_all: heard.want_all,
            ..HeartbeatReply::default()
        };
        if !heard.taken {
            return Ok(reply);
        }
        let mut said = BTreeMap::<StreamName, Said>::new();
        for PublisherRelease { stream_name, session } in ended {
            said.entry(stream_name).or_default().ended.push(session);
        }
        for PublisherRelease { stream_name, session } in still_pushing {
            said.entry(stream_name).or_default().still_pushing.push(session);
        }
        for stream in streams {
            said.entry(stream.stream_name.clone()).or_default().streams.push(stream.clone());
        }
        self.take_in_streams(node, &heard.record, said, &mut reply).await?;
        if heard.completes {
            self.complete(node, &heard.record).await?;
        }
        Ok(reply)
    }

    /// Writes that the node is alive.
    async fn write_node(
        &self,
        node: &NodeId,
        heartbeat: &Heartbeat,
        listed: bool,
        source: IpAddr,
    ) -> Result<Heard, Failed> {
        let generation = self.store().memory().ok_or(Unreachable)?.generation;
        let key = Key::Node(node.clone());
        let mut read = first(self.store().read(vec![key.clone()]).await?)?;
        for _ in 0..ROUNDS {
            let before = self.node_record(&read)?;
            if before.is_none() && self.figures().nodes.get() >= MAX_NODES as u64 {
                return Err(Failed::Refused(Error::Full(MAX_NODES, "nodes")));
            }
            let nodes = Nodes::new();
            let scene = self.scene(read.now, generation, &nodes);
            let heard = rules::heartbeat(node, heartbeat.clone(), listed, source, before.as_ref(), &scene)
                .map_err(Failed::Refused)?;
            match first(self.store().write(vec![self.node_write(&key, read, &heard.record)?]).await?)? {
                Written::Done => {
                    if before.is_none() {
                        self.figures().nodes.up();
                    }
                    return Ok(heard);
                }
                Written::Conflict(other) => read = other,
            }
        }
        Err(Failed::Refused(Error::Unavailable))
    }

    /// Writes that the whole list has been taken in, unless the node has begun another one.
    async fn complete(&self, node: &NodeId, heard: &NodeRecord) -> Result<(), Failed> {
        let key = Key::Node(node.clone());
        let mut read = first(self.store().read(vec![key.clone()]).await?)?;
        for _ in 0..ROUNDS {
            let Some(mut record) = self.node_record(&read)?.filter(|now| now.listed() == heard.listed())
            else {
                return Ok(());
            };
            record.complete = true;
            let write = self.node_write(&key, read, &record)?;
            match first(self.store().write(vec![write]).await?)? {
                Written::Done => return Ok(()),
                Written::Conflict(other) => read = other,
            }
        }
        Err(Failed::Refused(Error::Unavailable))
    }

    fn node_record(&self, read: &Read) -> Result<Option<NodeRecord>, Failed> {
        let record = read.value.as_deref().map(NodeRecord::decode).transpose();
        record.map_err(|unreadable| {
            self.report(&unreadable);
            Failed::Refused(Error::Unavailable)
        })
    }

    /// The record lives on for as long as it says, whatever else changes.
    fn node_write(&self, key: &Key, read: Read, record: &NodeRecord) -> Result<Write, Failed> {
        let expiry = Some(Duration::from_millis(record.left(read.now)));
        let value = record.clone().encode().map_err(|unreadable| {
            self.report(&unreadable);
            Failed::Refused(Error::Unavailable)
        })?;
        Ok(Write { key: key.clone(), expected: read.value, value: Some(value), expiry, announce: None })
    }

    async fn take_in_streams(
        &self,
        node: &NodeId,
        record: &NodeRecord,
        said: BTreeMap<StreamName, Said>,
        reply: &mut HeartbeatReply,
    ) -> Result<(), Failed> {
        let speaker = Speaker { node, record };
        let heard = HeardNode { record: record.clone(), left: record.lease };
        let nodes = Nodes::from([(node.clone(), Some(heard))]);
        let jobs: Vec<_> = said
            .iter()
            .map(|(name, said)| {
                Job::new(name.clone(), |record, scene| decide(name, said, &speaker, record, scene))
            })
            .collect();
        let mut left_out = 0;
        for (replies, said) in self.settle(&jobs, nodes, Vec::new()).await?.into_iter().zip(said.values()) {
            let replies = match replies {
                Ok(replies) => replies,
                Err(Undone::Unreadable) => vec![Restored::LeftOut; said.streams.len()],
                // The node sends it again.
                Err(Undone::Conflicts) => return Err(Failed::Refused(Error::Unavailable)),
            };
            for (restored, PublishedStream { stream_name, session, .. }) in
                replies.into_iter().zip(&said.streams)
            {
                let (stream_name, session) = (stream_name.clone(), *session);
                match restored {
                    Restored::Owned(epoch) => {
                        reply.owned.push(PublishedStream {
                            stream_name,
                            session,
                            epoch: Some(epoch),
                            identity: None,
                            pushing: false,
                        });
                    }
                    Restored::Superseded => reply.superseded.push(PublisherRelease { stream_name, session }),
                    Restored::LeftOut => left_out += 1,
                }
            }
        }
        if left_out > 0
            && let Some(held_back) = self.left_out.pass()
        {
            tracing::warn!(%node, streams = left_out, held_back, "streams not registered: no room, or warming up");
        }
        Ok(())
    }

    /// During an outage nobody loses a name; those that are known are confirmed.
    fn confirmed(&self, streams: Vec<PublishedStream>) -> Vec<PublishedStream> {
        let confirmed = |stream: PublishedStream| {
            let lease = self.known().get(&stream.stream_name)?;
            let owns = lease.session == Some(stream.session);
            owns.then_some(PublishedStream { epoch: Some(lease.epoch), pushing: false, ..stream })
        };
        streams.into_iter().filter_map(confirmed).collect()
    }
}

/// Everything that a heartbeat says of one name: first what ended, then what is published.
fn decide(
    name: &StreamName,
    said: &Said,
    speaker: &Speaker,
    before: &StreamRecord,
    scene: &Scene,
) -> Decision<Vec<Restored>> {
    let mut all = Decision { record: None, change: None, takeover: false, reply: Vec::new() };
    for session in &said.ended {
        let decision = rules::release(name, *session, all.record.as_ref().unwrap_or(before), scene);
        all.add(decision);
    }
    for stream in &said.streams {
        let decision = rules::restore(stream, speaker, all.record.as_ref().unwrap_or(before), scene);
        let restored = all.add(decision);
        all.reply.push(restored);
        if stream.pushing {
            let owns = matches!(restored, Restored::Owned(_));
            let record = all.record.as_ref().unwrap_or(before);
            let decision = pusher::confirm(stream.session, owns, speaker, record, scene);
            all.add(decision);
        }
    }
    for session in &said.still_pushing {
        let record = all.record.as_ref().unwrap_or(before);
        let decision = pusher::confirm(*session, false, speaker, record, scene);
        all.add(decision);
    }
    all
}

impl Decision<Vec<Restored>> {
    /// Adds what was decided about the record as it is by now. The last change is the one to announce.
    fn add<T>(&mut self, next: Decision<T>) -> T {
        self.record = next.record.or(self.record.take());
        self.change = next.change.or(self.change.take());
        self.takeover |= next.takeover;
        next.reply
    }
}

/// The answer of the store to the only key.
fn first<T>(answers: Vec<T>) -> Result<T, Unreachable> {
    answers.into_iter().next().ok_or(Unreachable)
}
