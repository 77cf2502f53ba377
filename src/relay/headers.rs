//! What a viewer must have before its first frame: metadata and the sequence headers of each track.

use super::ring;
use crate::media::{Packet, PacketKind};
use crate::rtmp::message::{AUDIO, VIDEO};
use bytes::{Bytes, BytesMut};

/// The most sequence headers that are kept: Enhanced RTMP has up to 256 tracks a kind; nobody publishes 64.
const TRACKS: usize = 64;

/// The newest metadata and sequence headers of a stream.
#[derive(Debug, Default)]
pub struct Headers {
    metadata: Option<Header>,
    /// One a kind and track, in the order of their first arrival.
    sequence: Vec<Header>,
    /// The number of the source that the next packets come from.
    source: u64,
    /// Goes up with each change, so that a viewer that skipped knows whether to get them again.
    version: u64,
}

#[derive(Debug)]
struct Header {
    /// The RTMP message type and the track.
    key: (u8, u8),
    source: u64,
    packet: Packet,
}

/// What a packet was to the [`Headers`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Not a header.
    Frame,
    /// A header that says what the last one of its kind said.
    Same,
    /// A header with news. For video this means that frames before it cannot be decoded with it.
    Changed,
}

impl Headers {
    /// Takes note of a packet.
    pub fn see(&mut self, packet: &Packet) -> Seen {
        let (key, list) = match packet.kind {
            PacketKind::Data { metadata: true } => ((packet.type_id(), 0), None),
            PacketKind::Audio { sequence_header: true } | PacketKind::Video { sequence_header: true, .. } => {
                ((packet.type_id(), packet.track_id()), Some(&mut self.sequence))
            }
            _ => return Seen::Frame,
        };
        let new = Header { key, source: self.source, packet: packet.clone() };
        let old = match list {
            None => &mut self.metadata,
            Some(list) => match list.iter_mut().find(|header| header.key == key) {
                Some(old) => {
                    let same = old.packet.body == new.packet.body;
                    *old = new;
                    return self.changed(!same);
                }
                None => {
                    if list.len() < TRACKS {
                        list.push(new);
                    }
                    return self.changed(true);
                }
            },
        };
        let same = old.as_ref().is_some_and(|old| old.packet.body == new.packet.body);
        *old = Some(new);
        self.changed(!same)
    }

    fn changed(&mut self, news: bool) -> Seen {
        if !news {
            return Seen::Same;
        }
        self.version += 1;
        Seen::Changed
    }

    /// The next packets come from another source, or from the same after a break.
    pub fn source_changed(&mut self) {
        self.source += 1;
    }

    /// Forgets what earlier sources said and the current one did not say again.
    pub fn forget_older(&mut self) {
        let current = self.source;
        self.metadata.take_if(|header| header.source != current);
        self.sequence.retain(|header| header.source == current);
        self.version += 1;
    }

    /// Whether the source has said how its video is to be decoded.
    pub fn has_video(&self) -> bool {
        self.sequence.iter().any(|header| header.key.0 == VIDEO)
    }

    /// See the field.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// All of them as wire-ready bytes that carry `timestamp`: metadata first, then video, then audio.
    pub fn wire(&self, timestamp: u32) -> Bytes {
        let of_kind = |kind| self.sequence.iter().filter(move |header| header.key.0 == kind);
        let mut out = BytesMut::new();
        for header in self.metadata.iter().chain(of_kind(VIDEO)).chain(of_kind(AUDIO)) {
            ring::write_wire(&mut out, &header.packet, timestamp);
        }
        out.freeze()
    }
}
