//! One media message on its way from a publisher to its viewers.
//!
//! A packet carries the FLV tag body of an RTMP message verbatim, whatever its codec, so that relaying loses nothing.
//! What the relay must know about it (may a viewer start here, must it be remembered for late viewers) is found once,
//! when the packet is made, by [`crate::media::tag`].

use super::tag::{self, Tag};
use super::{Codec, Content};
use bytes::Bytes;

/// What a packet is, as far as a relay has to care.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PacketKind {
    /// Audio (RTMP message type 8).
    Audio {
        /// What the body is for.
        content: Content,
    },
    /// Video (RTMP message type 9).
    Video {
        /// What the body is for.
        content: Content,
        /// A decoder can start here. Never set for anything but [`Content::Frame`].
        keyframe: bool,
    },
    /// AMF0 data (RTMP message type 18), for example `onMetaData`; without the `@setDataFrame` wrapper.
    Data {
        /// The message is `onMetaData`, which late viewers get first.
        metadata: bool,
    },
}

impl PacketKind {
    /// Coded video that a decoder can start with.
    pub fn is_keyframe(self) -> bool {
        matches!(self, PacketKind::Video { keyframe: true, .. })
    }

    /// Coded video, keyframe or not.
    pub fn is_video_frame(self) -> bool {
        matches!(self, PacketKind::Video { content: Content::Frame, .. })
    }

    /// Coded audio.
    pub fn is_audio_frame(self) -> bool {
        matches!(self, PacketKind::Audio { content: Content::Frame })
    }

    /// The body configures a decoder: frames before and after a new one need different decoders.
    pub fn is_sequence_header(self) -> bool {
        matches!(
            self,
            PacketKind::Audio { content: Content::SequenceHeader }
                | PacketKind::Video { content: Content::SequenceHeader, .. }
        )
    }

    /// What late viewers must have before their first frame: sequence headers, `onMetaData`, the colour information of
    /// HDR video, the order of audio channels.
    pub fn is_header(self) -> bool {
        match self {
            PacketKind::Audio { content } | PacketKind::Video { content, .. } => {
                matches!(content, Content::SequenceHeader | Content::VideoMetadata | Content::ChannelConfig)
            }
            PacketKind::Data { metadata } => metadata,
        }
    }
}

/// AMF0 strings (AMF 0 specification, 2.4): a marker 2, the length in two bytes, the text.
const SET_DATA_FRAME: &[u8] = b"\x02\x00\x0d@setDataFrame";
const CLEAR_DATA_FRAME: &[u8] = b"\x02\x00\x0f@clearDataFrame";
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
    /// How much later than it is decoded the picture is shown, in milliseconds: the greatest of all tracks; 0 for audio
    /// and data.
    pub composition_time: i32,
    /// The number of the (first) track that the body belongs to; 0 where it names none.
    pub track_id: u8,
    /// The codec of the (first) track of the body; nothing for data, and for a body without a track.
    pub codec: Option<Codec>,
}

impl Packet {
    /// An audio message (type 8).
    pub fn audio(timestamp: u32, body: Bytes) -> Self {
        let Tag { content, mut tracks, .. } = tag::audio(&body);
        let first = tracks.next();
        let (track_id, codec) = (first.map_or(0, |track| track.id), first.map(|track| track.codec));
        Packet { kind: PacketKind::Audio { content }, timestamp, body, composition_time: 0, track_id, codec }
    }

    /// A video message (type 9).
    pub fn video(timestamp: u32, body: Bytes) -> Self {
        let Tag { content, keyframe, mut tracks } = tag::video(&body);
        let first = tracks.next();
        let (track_id, codec) = (first.map_or(0, |track| track.id), first.map(|track| track.codec));
        let composition_time =
            first.into_iter().chain(tracks).map(|track| track.composition_time).max().unwrap_or(0);
        let kind = PacketKind::Video { content, keyframe };
        Packet { kind, timestamp, body, composition_time, track_id, codec }
    }

    /// An AMF0 data message (type 18). A leading `@setDataFrame` is taken off.
    pub fn data(timestamp: u32, mut body: Bytes) -> Self {
        if body.starts_with(SET_DATA_FRAME) {
            body = body.slice(SET_DATA_FRAME.len()..);
        }
        let metadata = body.starts_with(ON_META_DATA);
        let kind = PacketKind::Data { metadata };
        Packet { kind, timestamp, body, composition_time: 0, track_id: 0, codec: None }
    }

    /// Whether it is a publisher's word that the `onMetaData` it sent before counts no more: `@clearDataFrame`, which names
    /// what is to be cleared.
    pub fn clears_metadata(&self) -> bool {
        self.kind == PacketKind::Data { metadata: false }
            && self
                .body
                .strip_prefix(CLEAR_DATA_FRAME)
                .is_some_and(|named| named.is_empty() || named.starts_with(ON_META_DATA))
    }

    /// The packet of an RTMP message; nothing if its type is none of those that carry media.
    pub fn from_message(type_id: u8, timestamp: u32, body: Bytes) -> Option<Self> {
        match type_id {
            8 => Some(Packet::audio(timestamp, body)),
            9 => Some(Packet::video(timestamp, body)),
            18 => Some(Packet::data(timestamp, body)),
            _ => None,
        }
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
        assert_eq!(header.kind, PacketKind::Video { content: Content::SequenceHeader, keyframe: false });
        let key = Packet::video(40, Bytes::from_static(&[0x17, 1, 0, 0, 0, 1]));
        assert_eq!(key.kind, PacketKind::Video { content: Content::Frame, keyframe: true });
        let header = Packet::audio(0, Bytes::from_static(&[0xaf, 0, 0x12, 0x10]));
        assert_eq!(header.kind, PacketKind::Audio { content: Content::SequenceHeader });
        assert_eq!((key.type_id(), header.type_id(), key.timestamp), (9, 8, 40));
    }

    #[test]
    fn what_late_viewers_need_is_a_header_and_no_frame() {
        // Enhanced RTMP v2: video metadata (packet type 4) with a colour table, audio multichannel configuration (4).
        let colour = Packet::video(0, Bytes::from_static(b"\x94hvc1\x02\0\x09colorInfo"));
        let channels = Packet::audio(0, Bytes::from_static(b"\x94Opus\x01\x02\0\0\0\x03"));
        for packet in [colour, channels] {
            assert!(packet.kind.is_header() && !packet.kind.is_sequence_header(), "{packet:?}");
            assert!(!packet.kind.is_video_frame() && !packet.kind.is_audio_frame(), "{packet:?}");
        }
        let shown_later = Packet::video(0, Bytes::from_static(&[0x27, 1, 0, 0, 80, 1]));
        assert_eq!((shown_later.composition_time, shown_later.kind.is_header()), (80, false));
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
