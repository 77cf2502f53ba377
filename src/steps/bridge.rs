//! Packets as the engine's media notifications, and back.
//!
//! The FLV tag body travels verbatim, so nothing is lost whatever the codec. The flags are set truly, because the engine
//! replays sequence headers to steps that start late. It keeps every one it was ever given, so a header that says nothing
//! new goes on without its flag.

use crate::media::{Codec, Packet, PacketKind};
use bytes::BytesMut;
use mmids_core::codecs::{AudioCodec, VideoCodec};
use mmids_core::workflows::metadata::MediaPayloadMetadataCollection;
use mmids_core::workflows::{MediaNotification, MediaNotificationContent, MediaType};
use mmids_core::{StreamId, VideoTimestamp};
use std::sync::Arc;
use std::time::Duration;

/// The payload type of AMF0 data messages.
const DATA: &str = "rtmp-amf0-data";

/// How many headers of one stream the engine is asked to remember. More changes than that are not remembered.
const REMEMBERED: usize = 32;

/// Makes the notifications of one stream.
#[derive(Debug)]
pub struct Sender {
    stream: StreamId,
    data: Arc<String>,
    empty: MediaPayloadMetadataCollection,
    headers: Vec<Packet>,
    remembered: usize,
}

impl Sender {
    /// A stream that begins.
    pub fn new(stream: StreamId) -> Self {
        Sender {
            stream,
            data: Arc::new(DATA.to_owned()),
            empty: MediaPayloadMetadataCollection::new(std::iter::empty(), &mut BytesMut::new()),
            headers: Vec::new(),
            remembered: 0,
        }
    }

    /// The stream's id.
    pub fn stream(&self) -> &StreamId {
        &self.stream
    }

    /// The notification that the stream begins.
    pub fn begin(&self, name: &str) -> MediaNotification {
        let stream_name = Arc::new(name.to_owned());
        self.notify(MediaNotificationContent::NewIncomingStream { stream_name })
    }

    /// The notification that the stream is over.
    pub fn end(&self) -> MediaNotification {
        self.notify(MediaNotificationContent::StreamDisconnected)
    }

    /// The notification of a packet.
    pub fn packet(&mut self, packet: Packet) -> MediaNotification {
        let time = Duration::from_millis(packet.timestamp.into());
        let content = match packet.kind {
            PacketKind::Video { keyframe, .. } => MediaNotificationContent::Video {
                codec: video_codec(&packet),
                is_sequence_header: packet.kind.is_header() && self.is_news(&packet),
                is_keyframe: keyframe,
                timestamp: VideoTimestamp::from_durations(time, time),
                data: packet.body,
            },
            PacketKind::Audio { .. } => MediaNotificationContent::Audio {
                codec: audio_codec(&packet),
                is_sequence_header: packet.kind.is_header() && self.is_news(&packet),
                timestamp: time,
                data: packet.body,
            },
            PacketKind::Data { metadata } => MediaNotificationContent::MediaPayload {
                media_type: MediaType::Other,
                payload_type: self.data.clone(),
                timestamp: time,
                metadata: self.empty.clone(),
                is_required_for_decoding: metadata && self.is_news(&packet),
                data: packet.body,
            },
        };
        self.notify(content)
    }

    fn notify(&self, content: MediaNotificationContent) -> MediaNotification {
        MediaNotification { stream_id: self.stream.clone(), content }
    }

    fn is_news(&mut self, packet: &Packet) -> bool {
        let track = packet.track_id;
        let same_track = |old: &&mut Packet| old.type_id() == packet.type_id() && old.track_id == track;
        match self.headers.iter_mut().find(same_track) {
            Some(old) if old.body == packet.body => return false,
            Some(old) => *old = packet.clone(),
            None => self.headers.push(packet.clone()),
        }
        self.headers.truncate(REMEMBERED);
        self.remembered += 1;
        self.remembered <= REMEMBERED
    }
}

/// The packet in a notification's content; nothing if it has none.
pub fn packet(content: &MediaNotificationContent) -> Option<Packet> {
    let millis = |time: &Duration| u32::try_from(time.as_millis() & u128::from(u32::MAX)).unwrap_or(0);
    match content {
        MediaNotificationContent::Video { data, timestamp, .. } => {
            Some(Packet::video(millis(&timestamp.dts()), data.clone()))
        }
        MediaNotificationContent::Audio { data, timestamp, .. } => {
            Some(Packet::audio(millis(timestamp), data.clone()))
        }
        MediaNotificationContent::MediaPayload { payload_type, timestamp, data, .. }
            if payload_type.as_str() == DATA =>
        {
            Some(Packet::data(millis(timestamp), data.clone()))
        }
        _ => None,
    }
}

fn video_codec(packet: &Packet) -> VideoCodec {
    match packet.codec() {
        Some(Codec::Avc) => VideoCodec::H264,
        _ => VideoCodec::Unknown,
    }
}

fn audio_codec(packet: &Packet) -> AudioCodec {
    match packet.codec() {
        Some(Codec::Aac) => AudioCodec::Aac,
        _ => AudioCodec::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn sender() -> Sender {
        Sender::new(StreamId(Arc::new("s".to_owned())))
    }

    #[test]
    fn packets_come_back_as_they_went() {
        let mut sender = sender();
        for packet in [
            Packet::video(u32::MAX, Bytes::from_static(&[0x17, 0, 0, 0, 0, 1])),
            Packet::video(7, Bytes::from_static(&[0x27, 1, 0, 0, 9, 1])),
            Packet::video(8, Bytes::from_static(&[0x90, b'h', b'v', b'c', b'1', 1])),
            Packet::audio(9, Bytes::from_static(&[0xaf, 0, 0x12, 0x10])),
            Packet::audio(10, Bytes::from_static(&[])),
            Packet::data(11, Bytes::from_static(b"\x02\x00\x0aonMetaData\x05")),
        ] {
            let notification = sender.packet(packet.clone());
            assert_eq!(super::packet(&notification.content), Some(packet));
        }
    }

    #[test]
    fn a_header_that_says_nothing_new_is_not_remembered_by_the_engine() {
        let mut sender = sender();
        let header = |last: u8| Packet::video(0, Bytes::copy_from_slice(&[0x17, 0, 0, 0, 0, last]));
        let mut flagged = |packet| match sender.packet(packet).content {
            MediaNotificationContent::Video { is_sequence_header, .. } => is_sequence_header,
            _ => unreachable!(),
        };
        assert!(flagged(header(1)));
        assert!(!flagged(header(1)));
        assert!(flagged(header(2)));
        assert!(flagged(header(1)));
        let kept = (0..100).filter(|n| flagged(header(*n))).count();
        assert!(kept <= REMEMBERED, "{kept}");
    }
}
