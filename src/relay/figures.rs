//! How a stream is doing: what came in, in which form, and how regularly. Pure.

use crate::media::{Codec, Packet, PacketKind};
use crate::rtmp::amf0;
use std::time::Duration;

/// What people want to know of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Bytes of all bodies.
    pub bytes: u64,
    /// Video frames.
    pub frames: u64,
    /// Between the last two keyframes, by the publisher's clock.
    pub keyframe_interval: Option<Duration>,
    /// The video codec.
    pub video: Option<Codec>,
    /// The audio codec.
    pub audio: Option<Codec>,
    /// Width and height, as the metadata says.
    pub size: Option<(u32, u32)>,
    /// When the last keyframe was, by the publisher's clock.
    keyframe: Option<u32>,
}

impl Figures {
    /// Takes note of a packet.
    pub fn see(&mut self, packet: &Packet) {
        self.bytes += packet.body.len() as u64;
        let unknown = match packet.kind {
            PacketKind::Audio { .. } => self.audio.is_none(),
            PacketKind::Video { .. } => self.video.is_none(),
            PacketKind::Data { metadata } => {
                if metadata {
                    self.size = size(packet);
                } else if packet.clears_metadata() {
                    self.size = None;
                }
                return;
            }
        };
        self.frames += u64::from(packet.kind.is_video_frame());
        if packet.kind.is_keyframe() {
            let before = self.keyframe.replace(packet.timestamp);
            // Several tracks have keyframes of one moment; a clock that goes back was set anew.
            if let Some(interval) = before
                .map(|before| packet.timestamp.wrapping_sub(before))
                .filter(|ms| (1..1 << 31).contains(ms))
            {
                self.keyframe_interval = Some(Duration::from_millis(interval.into()));
            }
        }
        if unknown || packet.kind.is_sequence_header() {
            let codec = packet.codec;
            match packet.kind {
                PacketKind::Audio { .. } => self.audio = codec,
                _ => self.video = codec,
            }
        }
    }

    /// Another source: what the one before was is known no more.
    pub fn source_changed(&mut self) {
        *self = Figures { bytes: self.bytes, frames: self.frames, ..Figures::default() };
    }
}

/// `width` and `height` of an `onMetaData`.
fn size(packet: &Packet) -> Option<(u32, u32)> {
    let values = amf0::read_all(&packet.body, &amf0::Limits::default()).ok()?;
    let metadata = values.get(1)?;
    let side = |name| {
        let side = metadata.get(name)?.as_number().filter(|side| (1.0..=65_535.0).contains(side))?;
        Some(side as u32)
    };
    Some((side("width")?, side("height")?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::{Bytes, BytesMut};

    #[test]
    fn a_stream_is_known_by_what_came_in() {
        let mut body = BytesMut::new();
        amf0::write(&mut body, &amf0::Value::string("onMetaData"));
        let sides = [("width", amf0::Value::Number(1280.0)), ("height", amf0::Value::Number(720.0))];
        amf0::write(&mut body, &amf0::Value::object(sides));
        let mut figures = Figures::default();
        figures.see(&Packet::data(0, body.freeze()));
        let key = |time| Packet::video(time, Bytes::from_static(&[0x17, 1, 0, 0, 0, 1]));
        for packet in [key(0), key(0), Packet::audio(5, Bytes::from_static(&[0xaf, 1, 3])), key(2000)] {
            figures.see(&packet);
        }
        assert_eq!((figures.size, figures.frames), (Some((1280, 720)), 3));
        assert_eq!((figures.video, figures.audio), (Some(Codec::Avc), Some(Codec::Aac)));
        assert_eq!(figures.keyframe_interval, Some(Duration::from_secs(2)));
        figures.see(&key(500));
        assert_eq!(figures.keyframe_interval, Some(Duration::from_secs(2)), "another clock");
    }
}
