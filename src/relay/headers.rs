//! What a viewer must have before its first frame: metadata, the sequence headers of each track, and what describes their
//! media (HDR colours, channel order).

use super::format::Format;
use super::ring;
use crate::media::{Codec, Content, Packet, PacketKind};
use crate::rtmp::message::{AUDIO, VIDEO};
use bytes::{Bytes, BytesMut};

/// The most headers that are kept: Enhanced RTMP has up to 256 tracks a kind; nobody publishes 64.
const COUNT: usize = 64;

/// The most bytes of all headers together: real ones have some hundred bytes, a JPEG in `onMetaData` some ten thousand.
const BYTES: usize = 256 << 10;

/// The newest metadata and headers of a stream.
#[derive(Debug, Default)]
pub struct Headers {
    /// One a key, in the order in which a viewer gets them.
    list: Vec<Header>,
    /// The bytes of their bodies.
    bytes: usize,
    /// The number of the source that the next packets come from.
    source: u64,
    /// Goes up with each change, so that a viewer that skipped knows whether to get them again.
    version: u64,
    /// What [`Headers::wire`] made last, and for which time: all viewers that join at one keyframe share it.
    wire: Option<(u32, Bytes)>,
    /// The same in the derived formats that somebody wanted.
    derived: Vec<(Format, Bytes)>,
}

#[derive(Debug)]
struct Header {
    key: Key,
    source: u64,
    packet: Packet,
}

/// What a header replaces, in the order of the wire: metadata, video, audio; a decoder's configuration before what
/// describes its media; by track.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    rank: u8,
    description: u8,
    track: u8,
}

impl Key {
    fn of(packet: &Packet) -> Self {
        let (rank, content) = match packet.kind {
            PacketKind::Data { .. } => (0, Content::SequenceHeader),
            PacketKind::Video { content, .. } => (1, content),
            PacketKind::Audio { content } => (2, content),
        };
        Key { rank, description: u8::from(content != Content::SequenceHeader), track: packet.track_id }
    }
}

/// What a packet was to the [`Headers`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Not a header.
    Frame,
    /// A header that says what the last one of its kind said.
    Same,
    /// A header with news. For a video sequence header this means that frames before it cannot be decoded with it.
    Changed,
    /// It says that the stored metadata is no longer true.
    Cleared,
    /// A header with news for which there is no room: late viewers do not get it.
    Refused,
}

impl Headers {
    /// Takes note of a packet.
    pub fn see(&mut self, packet: &Packet) -> Seen {
        if packet.clears_metadata() {
            self.list.retain(|header| header.packet.kind != PacketKind::Data { metadata: true });
            self.bytes = self.list.iter().map(|header| header.packet.body.len()).sum();
            self.change();
            return Seen::Cleared;
        }
        if !packet.kind.is_header() {
            self.see_frame(packet);
            return Seen::Frame;
        }
        let key = Key::of(packet);
        let new = Header { key, source: self.source, packet: packet.clone() };
        match self.list.binary_search_by_key(&key, |header| header.key) {
            Ok(at) => match self.list.get_mut(at) {
                Some(old) if old.packet.body == packet.body => {
                    *old = new;
                    Seen::Same
                }
                _ => {
                    // Also if there is no room for the new one: the old one is wrong by now.
                    self.bytes -= self.list.remove(at).packet.body.len();
                    self.insert(at, new)
                }
            },
            Err(at) => self.insert(at, new),
        }
    }

    /// Forgets what was said of a track that has another codec by now: not every codec has headers that would replace those of
    /// the one before, and a pull does not learn that the publisher behind it is another one.
    fn see_frame(&mut self, packet: &Packet) {
        if !packet.kind.is_video_frame() && !packet.kind.is_audio_frame() {
            return;
        }
        let (type_id, track) = (packet.type_id(), packet.track_id);
        let of_track = |header: &Header| header.packet.type_id() == type_id && header.key.track == track;
        if !self.list.iter().any(of_track) {
            return;
        }
        let codec = packet.codec.filter(|codec| *codec != Codec::Unknown);
        let wrong = |header: &Header| codec.is_some() && header.packet.codec != codec;
        if self.list.iter().any(|header| of_track(header) && wrong(header)) {
            self.list.retain(|header| !of_track(header) || !wrong(header));
            self.bytes = self.list.iter().map(|header| header.packet.body.len()).sum();
            self.change();
        }
    }

    fn insert(&mut self, at: usize, header: Header) -> Seen {
        self.change();
        let length = header.packet.body.len();
        if self.list.len() >= COUNT || self.bytes + length > BYTES {
            return Seen::Refused;
        }
        self.bytes += length;
        self.list.insert(at, header);
        Seen::Changed
    }

    fn change(&mut self) {
        self.version += 1;
        self.wire = None;
        self.derived = Vec::new();
    }

    /// The next packets come from another source, or from the same after a break.
    pub fn source_changed(&mut self) {
        self.source += 1;
    }

    /// Forgets what earlier sources said and the current one did not say again.
    pub fn forget_older(&mut self) {
        let current = self.source;
        self.list.retain(|header| header.source == current);
        self.bytes = self.list.iter().map(|header| header.packet.body.len()).sum();
        self.change();
    }

    /// Forgets all of them, to free memory.
    pub fn clear(&mut self) {
        self.list = Vec::new();
        self.bytes = 0;
        self.change();
    }

    /// Whether a packet is a video sequence header: frames from before a new one cannot be decoded with it.
    pub fn configures_video(packet: &Packet) -> bool {
        packet.type_id() == VIDEO && packet.kind.is_sequence_header()
    }

    /// Whether the source has said how its video is to be decoded.
    pub fn has_video(&self) -> bool {
        self.packets().any(Headers::configures_video)
    }

    /// See the field.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// What they take in memory, with the copy that viewers share.
    pub fn held(&self) -> usize {
        let shared = self.wire.iter().map(|(_, wire)| wire).chain(self.derived.iter().map(|(_, wire)| wire));
        self.bytes + shared.map(Bytes::len).sum::<usize>()
    }

    /// All of them, in the order in which a viewer gets them.
    pub fn packets(&self) -> impl Iterator<Item = &Packet> {
        self.list.iter().map(|header| &header.packet)
    }

    /// Whether there are headers of audio.
    pub fn has_audio(&self) -> bool {
        self.packets().any(|packet| packet.type_id() == AUDIO)
    }

    /// [`Headers::wire`] in this format.
    pub fn formed(&mut self, timestamp: u32, format: Format) -> Bytes {
        let wire = self.wire(timestamp);
        if format == Format::Rtmp {
            return wire;
        }
        if let Some((_, formed)) = self.derived.iter().find(|(of, _)| *of == format) {
            return formed.clone();
        }
        let formed = format.of(&wire);
        self.derived.push((format, formed.clone()));
        formed
    }

    /// All of them as wire-ready bytes. Audio and video headers carry `timestamp`. Metadata carries 0: with another time
    /// ffprobe takes it for a subtitle stream, and `ffmpeg -map 0` waits for more of it.
    pub fn wire(&mut self, timestamp: u32) -> Bytes {
        if let Some((_, wire)) = self.wire.as_ref().filter(|(of, _)| *of == timestamp) {
            return wire.clone();
        }
        let mut out = BytesMut::new();
        for packet in self.packets() {
            let timestamp = if matches!(packet.type_id(), AUDIO | VIDEO) { timestamp } else { 0 };
            ring::write_wire(&mut out, packet, timestamp);
        }
        let wire = out.freeze();
        self.derived = Vec::new();
        self.wire = Some((timestamp, wire.clone()));
        wire
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn video(head: u8, size: usize) -> Packet {
        Packet::video(0, [&[head][..], b"hvc1", &vec![1; size]].concat().into())
    }

    #[test]
    fn late_viewers_get_the_newest_of_each_kind_in_order() {
        let mut headers = Headers::default();
        let channels = Packet::audio(0, Bytes::from_static(b"\x94Opus\x01\x02\0\0\0\x03"));
        let metadata = Packet::data(0, Bytes::from_static(b"\x02\0\x0aonMetaData"));
        let (colour, newer) = (video(0x94, 5), video(0x94, 6));
        for (packet, seen) in [
            (&channels, Seen::Changed),
            (&colour, Seen::Changed),
            (&video(0x90, 9), Seen::Changed),
            (&metadata, Seen::Changed),
            (&newer, Seen::Changed),
            (&newer, Seen::Same),
            (&video(0x91, 9), Seen::Frame),
        ] {
            assert_eq!(headers.see(packet), seen, "{packet:?}");
        }
        let got: Vec<Packet> = headers.packets().cloned().collect();
        assert_eq!(got, [metadata, video(0x90, 9), newer, channels]);
    }

    #[test]
    fn metadata_is_forgotten_when_its_publisher_says_so() {
        let metadata = Packet::data(0, Bytes::from_static(b"\x02\0\x0aonMetaData\x05"));
        for (clear, left) in [
            (&b"\x02\0\x0f@clearDataFrame\x02\0\x0aonMetaData"[..], 1),
            (b"\x02\0\x0f@clearDataFrame", 1),
            (b"\x02\0\x0f@clearDataFrame\x02\0\x0aonCuePoint", 2),
            (b"\x02\0\x0aonCuePoint", 2),
        ] {
            let mut headers = Headers::default();
            headers.see(&metadata);
            headers.see(&video(0x90, 9));
            let (version, held) = (headers.version(), headers.held());
            let clear = Packet::data(5, Bytes::from_static(clear));
            assert_eq!(headers.see(&clear), if left == 1 { Seen::Cleared } else { Seen::Frame });
            assert_eq!(headers.packets().count(), left, "{clear:?}");
            assert_eq!((headers.version() > version, headers.held() < held), (left == 1, left == 1));
        }
    }

    #[test]
    fn headers_of_another_codec_than_the_frames_are_forgotten() {
        let mut headers = Headers::default();
        let (aac, avc) = (Packet::audio(0, Bytes::from_static(b"\xaf\0\x12\x10")), video(0x90, 9));
        let channels = Packet::audio(0, Bytes::from_static(b"\x94Opus\x01\x02\0\0\0\x03"));
        for header in [&aac, &avc] {
            assert_eq!(headers.see(header), Seen::Changed);
        }
        let version = headers.version();
        // AAC, the same video, an empty message, and another track.
        let second = Packet::audio(0, Bytes::from_static(b"\x95\x01Opus\x01x"));
        let empty = Packet::audio(0, Bytes::new());
        for frame in [Packet::audio(0, Bytes::from_static(b"\xaf\x01x")), empty, video(0x91, 9), second] {
            assert_eq!(headers.see(&frame), Seen::Frame);
        }
        assert_eq!((headers.packets().count(), headers.version()), (2, version));
        // A-law has no header that would take the place of the one for AAC.
        assert_eq!(headers.see(&Packet::audio(0, Bytes::from_static(b"\x72x"))), Seen::Frame);
        assert_eq!(headers.packets().collect::<Vec<_>>(), [&avc]);
        assert!(headers.version() > version, "viewers that skipped get them again");
        headers.see(&channels);
        headers.see(&Packet::audio(0, Bytes::from_static(b"\x91ac-3x")));
        assert_eq!((headers.packets().count(), headers.held()), (1, avc.body.len()));
    }

    #[test]
    fn headers_are_bounded_in_bytes_and_in_number() {
        let mut headers = Headers::default();
        assert_eq!(headers.see(&video(0x90, BYTES)), Seen::Refused);
        assert_eq!(headers.see(&video(0x90, BYTES / 2)), Seen::Changed);
        assert_eq!(headers.see(&video(0x94, BYTES)), Seen::Refused);
        assert_eq!(headers.see(&video(0x90, BYTES)), Seen::Refused);
        assert_eq!(headers.packets().count(), 0, "what it replaces is wrong by now");
        for track in 0..=u8::MAX {
            // A multitrack sequence start of one track.
            let body = [&[0x96, 0x00][..], b"hvc1", &[track]].concat();
            let seen = if usize::from(track) < COUNT { Seen::Changed } else { Seen::Refused };
            assert_eq!(headers.see(&Packet::video(0, body.into())), seen, "{track}");
        }
    }
}
