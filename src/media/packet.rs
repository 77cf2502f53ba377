//! One media message on its way from a publisher to its viewers.
//!
//! A packet carries the FLV tag body of an RTMP message verbatim, whatever its codec, so that relaying loses nothing.
//! What the relay must know about it (may a viewer start here, must it be remembered for late viewers) is found once,
//! when the packet is made, by [`crate::media::tag`].

use super::Codec;
use super::tag::{self, Content, Tag, Track};
use bytes::Bytes;

/// What a packet is, as far as a relay has to care.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PacketKind {
    /// Audio (RTMP message type 8). A sequence header configures the decoder and is replayed to late viewers.
    Audio {
        /// The body configures the decoder (AAC AudioSpecificConfig, enhanced `SequenceStart`).
        sequence_header: bool,
    },
    /// Video (RTMP message type 9).
    Video {
        /// A decoder can start here.
        keyframe: bool,
        /// The body configures the decoder (AVCDecoderConfigurationRecord, enhanced `SequenceStart`).
        sequence_header: bool,
    },
    /// AMF0 data (RTMP message type 18), for example `onMetaData`; without the `@setDataFrame` wrapper.
    Data {
        /// The message is `onMetaData`, which late viewers get first.
        metadata: bool,
    },
}

/// AMF0 strings (AMF 0 specification, 2.4): a marker 2, the length in two bytes, the text.
const SET_DATA_FRAME: &[u8] = b"\x02\x00\x0d@setDataFrame";
const ON_META_DATA: &[u8] = b"\x02\x00\x0aonMetaData";

/// A media message: an FLV tag body with its time and kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// What it is.
    pub kind: PacketKind,
    /// Decoding time in milliseconds, on RTMP's 32-bit clock that wraps after 49.7 days.
    pub timestamp: u32,
    /// The FLV tag body, verbatim (for data: AMF0 values).
    pub body: Bytes,
}

impl Packet {
    /// An audio message (type 8).
    pub fn audio(timestamp: u32, body: Bytes) -> Self {
        let sequence_header = tag::audio(&body).content == Content::SequenceHeader;
        Packet { kind: PacketKind::Audio { sequence_header }, timestamp, body }
    }

    /// A video message (type 9).
    pub fn video(timestamp: u32, body: Bytes) -> Self {
        let Tag { content, keyframe, .. } = tag::video(&body);
        let sequence_header = content == Content::SequenceHeader;
        Packet { kind: PacketKind::Video { keyframe, sequence_header }, timestamp, body }
    }

    /// An AMF0 data message (type 18). A leading `@setDataFrame` is taken off.
    pub fn data(timestamp: u32, mut body: Bytes) -> Self {
        if body.starts_with(SET_DATA_FRAME) {
            body = body.slice(SET_DATA_FRAME.len()..);
        }
        let metadata = body.starts_with(ON_META_DATA);
        Packet { kind: PacketKind::Data { metadata }, timestamp, body }
    }

    /// The number of the (first) track that the body belongs to; 0 where it names none.
    pub fn track_id(&self) -> u8 {
        self.track().map_or(0, |track| track.id)
    }

    /// The codec of the (first) track of the body; nothing for data.
    pub fn codec(&self) -> Option<Codec> {
        self.track().map(|track| track.codec)
    }

    fn track(&self) -> Option<Track<'_>> {
        let tag = match self.kind {
            PacketKind::Audio { .. } => tag::audio(&self.body),
            PacketKind::Video { .. } => tag::video(&self.body),
            PacketKind::Data { .. } => return None,
        };
        tag.tracks.into_iter().next()
    }

    /// The RTMP message type id (8 audio, 9 video, 18 AMF0 data), which is also the FLV tag type.
    pub fn type_id(&self) -> u8 {
        match self.kind {
            PacketKind::Audio { .. } => 8,
            PacketKind::Video { .. } => 9,
            PacketKind::Data { .. } => 18,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_knows_what_it_carries() {
        let header = Packet::video(0, Bytes::from_static(&[0x17, 0, 0, 0, 0, 1]));
        assert_eq!(header.kind, PacketKind::Video { keyframe: false, sequence_header: true });
        let key = Packet::video(40, Bytes::from_static(&[0x17, 1, 0, 0, 0, 1]));
        assert_eq!(key.kind, PacketKind::Video { keyframe: true, sequence_header: false });
        let header = Packet::audio(0, Bytes::from_static(&[0xaf, 0, 0x12, 0x10]));
        assert_eq!(header.kind, PacketKind::Audio { sequence_header: true });
        assert_eq!((key.type_id(), header.type_id(), key.timestamp), (9, 8, 40));
    }

    #[test]
    fn metadata_loses_its_wrapper_and_nothing_else() {
        let wrapped =
            Packet::data(5, Bytes::from_static(b"\x02\0\x0d@setDataFrame\x02\0\x0aonMetaData\x08rest"));
        assert_eq!(wrapped.kind, PacketKind::Data { metadata: true });
        assert_eq!(&wrapped.body[..], b"\x02\0\x0aonMetaData\x08rest");
        assert_eq!(Packet::data(5, wrapped.body.clone()), wrapped);
        for other in [&b""[..], b"\x02\0\x0bonMetaDataX", b"\x02\0\x0aonCuePoint", b"\x02\0\x0d@setData"] {
            let packet = Packet::data(0, Bytes::from_static(other));
            assert_eq!((packet.kind, &packet.body[..]), (PacketKind::Data { metadata: false }, other));
        }
    }
}
