//! What is published: an FLV file, cut into messages once and for all.

use bytes::BytesMut;
use lb::media::{Packet, PacketKind, flv};
use lb::relay::ring::write_wire;
use lb::rtmp::Message;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

/// One message that comes again in every round.
pub struct Piece {
    pub type_id: u8,
    /// From the start of a round, in milliseconds.
    pub timestamp: u32,
    /// Chunked for the wire, at time zero.
    pub wire: Vec<u8>,
    pub hash: u64,
    pub keyframe: bool,
}

/// A file that can be played round after round.
pub struct Clip {
    /// Metadata and the decoders' configurations.
    pub start: Vec<Message>,
    pub pieces: Vec<Piece>,
    /// How long a round takes, in milliseconds.
    pub round: u32,
}

impl Clip {
    pub fn read(path: &Path) -> Clip {
        let bytes = std::fs::read(path).expect("the clip can be read");
        let (mut input, mut reader) = (&bytes[..], flv::Reader::new(flv::TAG_SIZE_MAX));
        let mut clip = Clip { start: Vec::new(), pieces: Vec::new(), round: 0 };
        while let Some(packet) = reader.read(&mut input).expect("the clip is FLV") {
            clip.take(packet);
        }
        // A round ends one frame after its last one, and on no timestamp that is taken.
        clip.pieces.sort_by_key(|piece| piece.timestamp);
        let frames = clip.pieces.iter().filter(|piece| piece.type_id == 9).count().max(1);
        let last = clip.pieces.last().map_or(0, |piece| piece.timestamp);
        clip.round = last + (last / frames as u32).max(1);
        clip
    }

    fn take(&mut self, packet: Packet) {
        let keyframe = match packet.kind {
            kind if kind.is_header() => {
                self.start.push(Message {
                    type_id: packet.type_id(),
                    timestamp: 0,
                    stream_id: 1,
                    chunk_stream_id: lb::rtmp::session::chunk_stream(packet.type_id()),
                    body: packet.body,
                });
                return;
            }
            PacketKind::Data { .. } => return,
            PacketKind::Audio { .. } => false,
            PacketKind::Video { keyframe, .. } => keyframe,
        };
        // The end of sequence that ffmpeg writes is for the end only.
        if packet.type_id() == 9 && packet.body.get(1) == Some(&2) {
            return;
        }
        let mut wire = BytesMut::new();
        write_wire(&mut wire, &packet, 0);
        self.pieces.push(Piece {
            type_id: packet.type_id(),
            timestamp: packet.timestamp,
            wire: wire.to_vec(),
            hash: hash(&packet.body),
            keyframe,
        });
    }
}

/// What tells bodies apart.
pub fn hash(body: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    hasher.finish()
}
