//! The forms in which viewers get a stream: as RTMP chunks, all of them or without a kind of media, or as FLV over HTTP or
//! WebSocket.
//!
//! A ring is written once, as RTMP. The other forms of a block are made from it when the first viewer wants them, and
//! are shared by all who do, so that a stream that nobody watches in a form costs nothing for it.

use crate::media::flv;
use crate::rtmp::message::{AUDIO, DATA_AMF0, VIDEO};
use crate::rtmp::session::{PLAY_STREAM_ID, Receives};
use crate::rtmp::{chunk, session};
use bytes::{Bytes, BytesMut};
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// How a viewer gets the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Chunked RTMP messages on message stream 1.
    Rtmp,
    /// The same on another message stream, or without a kind of media.
    RtmpPart(Part),
    /// FLV tags, one after another: HTTP-FLV.
    Flv,
    /// The same in binary messages of a WebSocket (RFC 6455), one a block.
    WebSocket,
}

/// What is different from [`Format::Rtmp`]; made by [`Format::rtmp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    stream_id: u32,
    receives: Receives,
}

/// What an FLV tag takes beside its body, less what the message takes as RTMP: for the size of a buffer.
const GROWTH: usize = 16;

impl Format {
    /// RTMP on this message stream, with these kinds of media; whatever is neither audio nor video always comes.
    pub fn rtmp(stream_id: u32, receives: Receives) -> Self {
        match (stream_id, receives) {
            (PLAY_STREAM_ID, Receives::ALL) => Format::Rtmp,
            _ => Format::RtmpPart(Part { stream_id, receives }),
        }
    }

    /// The kinds of media in it.
    pub(super) fn receives(self) -> Receives {
        match self {
            Format::RtmpPart(part) => part.receives,
            Format::Rtmp | Format::Flv | Format::WebSocket => Receives::ALL,
        }
    }

    /// The same with other kinds of media; FLV always has all.
    pub(super) fn receiving(self, receives: Receives) -> Self {
        match self {
            Format::Rtmp => Format::rtmp(PLAY_STREAM_ID, receives),
            Format::RtmpPart(part) => Format::rtmp(part.stream_id, receives),
            Format::Flv | Format::WebSocket => self,
        }
    }

    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Format::Rtmp | Format::RtmpPart(_) => "rtmp",
            Format::Flv => "http-flv",
            Format::WebSocket => "websocket-flv",
        }
    }

    /// What is RTMP on the wire, in this form.
    pub(super) fn of(self, wire: &Bytes) -> Bytes {
        match self {
            Format::Rtmp => wire.clone(),
            Format::RtmpPart(part) => part.of(wire),
            Format::Flv => tags(wire),
            Format::WebSocket => match tags(wire) {
                tags if tags.is_empty() => tags,
                tags => framed(OpCode::Data(Data::Binary), &tags),
            },
        }
    }

    /// What comes before all else: which media there is.
    pub(super) fn opening(self, audio: bool, video: bool) -> Bytes {
        let mut header = BytesMut::new();
        flv::write_header(&mut header, audio, video);
        match self {
            Format::Rtmp | Format::RtmpPart(_) => Bytes::new(),
            Format::Flv => header.freeze(),
            Format::WebSocket => framed(OpCode::Data(Data::Binary), &header),
        }
    }

    /// What makes a peer answer, so that one that is gone is found; FLV has nothing of the kind, and leaves it to TCP.
    pub(super) fn ping(self) -> Bytes {
        match self {
            Format::Rtmp | Format::RtmpPart(_) => rtmp_ping(),
            Format::Flv => Bytes::new(),
            Format::WebSocket => framed(OpCode::Control(Control::Ping), &[]),
        }
    }
}

impl Part {
    /// Empty where nothing of a block is of a kind that is wanted.
    fn of(self, wire: &[u8]) -> Bytes {
        let Receives { audio, video } = self.receives;
        chunk::moved(wire, session::OUT_CHUNK_SIZE, self.stream_id, |type_id| match type_id {
            AUDIO => audio,
            VIDEO => video,
            _ => true,
        })
    }
}

/// Empty where there is no media: FLV has no commands.
fn tags(wire: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(wire.len() + GROWTH);
    let messages = chunk::written(wire, session::OUT_CHUNK_SIZE);
    for message in messages.filter(|message| matches!(message.type_id, AUDIO | VIDEO | DATA_AMF0)) {
        // Its size is within what a message can have, which is what a tag can have.
        let _fits =
            flv::write_tag_of(&mut out, message.type_id, message.timestamp, message.length, message.body);
    }
    out.freeze()
}

/// A whole WebSocket message from a server.
pub fn framed(opcode: OpCode, payload: &[u8]) -> Bytes {
    let header = FrameHeader { is_final: true, opcode, ..FrameHeader::default() };
    let mut out = Vec::with_capacity(header.len(payload.len() as u64) + payload.len());
    // Writing to memory does not fail.
    let _written = header.format(payload.len() as u64, &mut out);
    out.extend_from_slice(payload);
    out.into()
}

/// A ping request (RTMP 1.0, 7.1.7), the same bytes for every viewer. Its time is of no use to anybody: zero.
fn rtmp_ping() -> Bytes {
    let mut wire = BytesMut::new();
    let ping_request = [0, 6, 0, 0, 0, 0];
    chunk::write_message(&mut wire, 2, 0, 4, 0, &ping_request, session::OUT_CHUNK_SIZE);
    wire.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::Packet;
    use crate::relay::ring::write_wire;

    fn packets() -> Vec<Packet> {
        vec![
            Packet::data(0, Bytes::from_static(b"\x02\0\x0aonMetaData\x05")),
            Packet::video(5, Bytes::from(vec![0x17; 150_000])),
            Packet::audio(0x0100_0000, Bytes::from_static(&[0xaf, 1, 3])),
        ]
    }

    fn wire() -> Bytes {
        let mut wire = BytesMut::new();
        packets().iter().for_each(|packet| write_wire(&mut wire, packet, packet.timestamp));
        wire.freeze()
    }

    #[test]
    fn a_block_as_flv_has_the_same_packets() {
        let mut all = BytesMut::from(&Format::Flv.opening(true, true)[..]);
        all.extend_from_slice(&Format::Flv.of(&wire()));
        let (mut reader, mut input) = (flv::Reader::new(1 << 20), &all[..]);
        for packet in packets() {
            assert_eq!(reader.read(&mut input).unwrap(), Some(packet));
        }
        assert!(matches!(reader.read(&mut input), Ok(None)) && input.is_empty());
    }

    #[test]
    fn a_block_for_another_message_stream_has_its_id_and_what_is_wanted() {
        let read = |format: Format| {
            let wire = format.of(&wire());
            let mut reader = chunk::Reader::new(&crate::rtmp::Limits::default());
            reader.set_chunk_size(session::OUT_CHUNK_SIZE as u32).unwrap();
            let mut input = &wire[..];
            let mut got = Vec::new();
            while let Some(message) = reader.read(&mut input).unwrap() {
                got.push((message.stream_id, message.type_id, message.timestamp, message.body.len()));
            }
            got
        };
        let all = [(2, 18, 0, 14), (2, 9, 5, 150_000), (2, 8, 0x0100_0000, 3)];
        assert_eq!(read(Format::rtmp(2, Receives::ALL)), all);
        assert_eq!(read(Format::rtmp(2, Receives { audio: true, video: false })), [all[0], all[2]]);
        let no_audio = Format::rtmp(1, Receives { audio: false, video: true });
        assert_eq!(read(no_audio), [(1, 18, 0, 14), (1, 9, 5, 150_000)]);
        assert_eq!(read(no_audio.receiving(Receives { audio: false, video: false })), [(1, 18, 0, 14)]);
        assert_eq!(no_audio.receiving(Receives::ALL), Format::Rtmp, "the bytes that all others get");
    }

    #[test]
    fn that_a_publish_begins_is_said_in_rtmp_only_and_on_the_message_stream_of_the_viewer() {
        let notify = session::publish_notify();
        assert_eq!(Format::Flv.of(&notify), Bytes::new());
        assert_eq!(Format::WebSocket.of(&notify), Bytes::new(), "not even an empty message");
        let before = Bytes::from([&notify[..], &wire()].concat());
        assert_eq!(Format::Flv.of(&before), Format::Flv.of(&wire()));
        let nothing = Receives { audio: false, video: false };
        let moved = Format::rtmp(7, nothing).of(&notify);
        let mut reader = chunk::Reader::new(&crate::rtmp::Limits::default());
        reader.set_chunk_size(session::OUT_CHUNK_SIZE as u32).unwrap();
        let (same, message) =
            [&notify, &moved].map(|wire| reader.read(&mut &wire[..]).unwrap().unwrap()).into();
        assert_eq!((same.stream_id, message.stream_id), (1, 7));
        assert_eq!(same.body, message.body);
    }

    #[test]
    fn a_block_is_one_websocket_message() {
        let message = Format::WebSocket.of(&wire());
        let (header, length) = FrameHeader::parse(&mut std::io::Cursor::new(&message)).unwrap().unwrap();
        assert!(header.is_final && header.mask.is_none());
        assert_eq!(header.opcode, OpCode::Data(Data::Binary));
        assert_eq!(&message[message.len() - length as usize..], &Format::Flv.of(&wire())[..]);
        assert_eq!(&Format::WebSocket.ping()[..], [0x89, 0]);
    }
}
