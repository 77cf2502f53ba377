//! One media message on its way from a publisher to its viewers.
//!
//! A packet carries the FLV tag body of an RTMP message verbatim, whatever its codec, so that relaying loses nothing.
//! What the relay must know about it (may a viewer start here, must it be remembered for late viewers) is found once,
//! when the packet is made, by [`crate::media::flv`].

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
    /// The RTMP message type id (8 audio, 9 video, 18 AMF0 data), which is also the FLV tag type.
    pub fn type_id(&self) -> u8 {
        match self.kind {
            PacketKind::Audio { .. } => 8,
            PacketKind::Video { .. } => 9,
            PacketKind::Data { .. } => 18,
        }
    }
}
