//! The FLV container (FLV specification 10.1, annex E), as far as a pipe from ffmpeg needs it.
//!
//! A tag body is the body of an RTMP message, so a tag becomes a [`Packet`] without a change. The reader eats bytes as
//! they come and keeps only the tag that is not yet complete. Sizes of previous tags are for seeking and are skipped.

use super::Packet;
use bytes::{Buf, BufMut, BytesMut};

/// The largest tag body the 24-bit size field can name.
pub const TAG_SIZE_MAX: usize = 0xff_ffff;

const FILE_HEADER_SIZE: usize = 9;
const TAG_HEADER_SIZE: usize = 11;
const BACK_POINTER_SIZE: usize = 4;

/// Why bytes are not FLV.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Wrong from the start.
    #[error("this is not FLV: it must start with 'FLV', version 1 and a header of at least 9 bytes")]
    Header,
    /// A tag larger than the reader's limit.
    #[error("an FLV tag of {size} bytes at offset {offset}; at most {limit} are allowed")]
    TagTooLarge {
        /// The size that the tag names.
        size: usize,
        /// The limit given to [`Reader::new`].
        limit: usize,
        /// Where the tag starts, in bytes from the start of the input.
        offset: u64,
    },
    /// Neither audio, video nor script data: the reader has most likely lost its place.
    #[error("an FLV tag of unknown type {tag_type} at offset {offset}; 8, 9 and 18 are allowed")]
    TagType {
        /// The type that was found.
        tag_type: u8,
        /// Where the tag starts, in bytes from the start of the input.
        offset: u64,
    },
}

/// Turns FLV bytes into packets. Each reader reads one stream from its start; after an error it gives nothing more.
#[derive(Debug)]
pub struct Reader {
    state: State,
    tag_limit: usize,
    /// Bytes consumed so far.
    offset: u64,
}

#[derive(Debug)]
enum State {
    Header(Head<FILE_HEADER_SIZE>),
    Skip { left: usize },
    Tag(Head<TAG_HEADER_SIZE>),
    Body { tag_type: u8, timestamp: u32, left: usize, body: BytesMut },
    Failed(Error),
}

impl Reader {
    /// A reader that refuses tags with bodies of more than `tag_limit` bytes.
    pub fn new(tag_limit: usize) -> Self {
        Reader { state: State::Header(Head::default()), tag_limit, offset: 0 }
    }

    /// Takes bytes off the front of `input` until a packet is complete or the input is empty (`None`: more is needed).
    ///
    /// Call it again with what is left of `input` until it gives `None`. Errors are final and repeat.
    pub fn read(&mut self, input: &mut &[u8]) -> Result<Option<Packet>, Error> {
        loop {
            let before = input.len();
            let step = self.step(input);
            self.offset += (before - input.len()) as u64;
            match step {
                Ok(Step::Packet(packet)) => return Ok(Some(packet)),
                Ok(Step::On) => {}
                Ok(Step::NeedMore) => return Ok(None),
                Err(error) => {
                    self.state = State::Failed(error);
                    return Err(error);
                }
            }
        }
    }

    fn step(&mut self, input: &mut &[u8]) -> Result<Step, Error> {
        match &mut self.state {
            State::Failed(error) => return Err(*error),
            State::Header(head) => {
                let Some(head) = head.fill(input) else {
                    return Ok(Step::NeedMore);
                };
                let &[b'F', b'L', b'V', 1, _flags, size @ ..] = &head else {
                    return Err(Error::Header);
                };
                let extra = (u32::from_be_bytes(size) as usize).checked_sub(FILE_HEADER_SIZE);
                let left = extra.ok_or(Error::Header)?.saturating_add(BACK_POINTER_SIZE);
                self.state = State::Skip { left };
            }
            State::Skip { left } => {
                let taken = input.len().min(*left);
                input.advance(taken);
                *left -= taken;
                if *left > 0 {
                    return Ok(Step::NeedMore);
                }
                self.state = State::Tag(Head::default());
            }
            State::Tag(head) => {
                let start = self.offset - head.len as u64;
                let Some(head) = head.fill(input) else {
                    return Ok(Step::NeedMore);
                };
                let [tag_type, s0, s1, s2, t0, t1, t2, t3, _stream_id @ ..] = head;
                let size = u32::from_be_bytes([0, s0, s1, s2]) as usize;
                if !matches!(tag_type, AUDIO | VIDEO | SCRIPT) {
                    return Err(Error::TagType { tag_type, offset: start });
                }
                if size > self.tag_limit {
                    return Err(Error::TagTooLarge { size, limit: self.tag_limit, offset: start });
                }
                // The extension byte holds the upper eight bits.
                let timestamp = u32::from_be_bytes([t3, t0, t1, t2]);
                let body = BytesMut::with_capacity(size);
                self.state = State::Body { tag_type, timestamp, left: size, body };
            }
            State::Body { tag_type, timestamp, left, body } => {
                let (now, later) = input.split_at_checked(*left).unwrap_or((input, &[]));
                body.extend_from_slice(now);
                *left -= now.len();
                *input = later;
                if *left > 0 {
                    return Ok(Step::NeedMore);
                }
                let (timestamp, body) = (*timestamp, std::mem::take(body).freeze());
                let packet = match *tag_type {
                    AUDIO => Packet::audio(timestamp, body),
                    VIDEO => Packet::video(timestamp, body),
                    _ => Packet::data(timestamp, body),
                };
                self.state = State::Skip { left: BACK_POINTER_SIZE };
                return Ok(Step::Packet(packet));
            }
        }
        Ok(Step::On)
    }
}

/// Appends the header of an FLV stream, up to the first tag.
pub fn write_header(out: &mut impl BufMut, audio: bool, video: bool) {
    out.put_slice(b"FLV\x01");
    out.put_u8(u8::from(audio) << 2 | u8::from(video));
    out.put_u32(FILE_HEADER_SIZE as u32);
    out.put_u32(0);
}

/// Appends a packet as a tag. A body of more than [`TAG_SIZE_MAX`] bytes cannot be written and gives `false`.
#[must_use]
pub fn write_tag(out: &mut impl BufMut, packet: &Packet) -> bool {
    write_tag_of(out, packet.type_id(), packet.timestamp, packet.body.len(), [&*packet.body])
}

/// The same for a body of `size` bytes that lies in pieces.
#[must_use]
pub fn write_tag_of<'a>(
    out: &mut impl BufMut,
    tag_type: u8,
    timestamp: u32,
    size: usize,
    body: impl IntoIterator<Item = &'a [u8]>,
) -> bool {
    if size > TAG_SIZE_MAX {
        return false;
    }
    out.put_u8(tag_type);
    out.put_uint(size as u64, 3);
    let [extension, timestamp @ ..] = timestamp.to_be_bytes();
    out.put_slice(&timestamp);
    out.put_u8(extension);
    out.put_uint(0, 3);
    body.into_iter().for_each(|piece| out.put_slice(piece));
    out.put_u32((size + TAG_HEADER_SIZE) as u32);
    true
}

const AUDIO: u8 = 8;
const VIDEO: u8 = 9;
const SCRIPT: u8 = 18;

enum Step {
    Packet(Packet),
    On,
    NeedMore,
}

/// The first `N` bytes of something, gathered from pieces.
#[derive(Debug)]
struct Head<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Default for Head<N> {
    fn default() -> Self {
        Head { bytes: [0; N], len: 0 }
    }
}

impl<const N: usize> Head<N> {
    fn fill(&mut self, input: &mut &[u8]) -> Option<[u8; N]> {
        let free = self.bytes.get_mut(self.len..)?;
        let taken = free.len().min(input.len());
        for (to, from) in free.iter_mut().zip(input.iter()) {
            *to = *from;
        }
        input.advance(taken);
        self.len += taken;
        (self.len == N).then_some(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn read_all(reader: &mut Reader, mut input: &[u8]) -> Result<Vec<Packet>, Error> {
        let mut packets = Vec::new();
        while let Some(packet) = reader.read(&mut input)? {
            packets.push(packet);
        }
        assert!(input.is_empty());
        Ok(packets)
    }

    fn written(packets: &[Packet]) -> Vec<u8> {
        let mut out = Vec::new();
        write_header(&mut out, true, true);
        for packet in packets {
            assert!(write_tag(&mut out, packet));
        }
        out
    }

    fn some_packets() -> Vec<Packet> {
        vec![
            Packet::data(0, Bytes::from_static(b"\x02\0\x0aonMetaData\x05")),
            Packet::video(0, Bytes::from_static(&[0x17, 0, 0, 0, 0, 1, 2])),
            Packet::audio(0xff_ffff, Bytes::from_static(&[0xaf, 1, 3])),
            Packet::audio(0x0100_0000, Bytes::new()),
            Packet::video(0xffff_fffe, Bytes::from(vec![0x27; 300])),
        ]
    }

    #[test]
    fn packets_survive_every_split_point() {
        let packets = some_packets();
        let bytes = written(&packets);
        for split in 0..=bytes.len() {
            let mut reader = Reader::new(300);
            let mut read = read_all(&mut reader, &bytes[..split]).unwrap();
            read.extend(read_all(&mut reader, &bytes[split..]).unwrap());
            assert_eq!(read, packets, "split at {split}");
        }
    }

    #[test]
    fn a_tag_is_given_as_soon_as_its_body_is_there() {
        let packets = some_packets();
        let bytes = written(&packets[..1]);
        let read = read_all(&mut Reader::new(300), &bytes[..bytes.len() - BACK_POINTER_SIZE]);
        assert_eq!(read.unwrap(), packets[..1]);
    }

    #[test]
    fn a_longer_file_header_and_wrong_back_pointers_are_taken() {
        let packets = some_packets();
        let mut bytes = written(&packets[..2]);
        bytes.splice(5..9, [0, 0, 0, 11]);
        bytes.splice(9..9, [7, 7]);
        let end = bytes.len();
        bytes[end - 2] = 99;
        assert_eq!(read_all(&mut Reader::new(300), &bytes).unwrap(), packets[..2]);
    }

    #[test]
    fn what_is_not_flv_is_refused_with_its_place() {
        for bad in [&b"GIF89a\0\0\x09"[..], b"FLV\x02\x05\0\0\0\x09", b"FLV\x01\x05\0\0\0\x08"] {
            let mut reader = Reader::new(300);
            assert_eq!(read_all(&mut reader, bad), Err(Error::Header));
            assert_eq!(reader.read(&mut &b"more"[..]), Err(Error::Header), "final");
        }
        let packets = some_packets();
        let large = read_all(&mut Reader::new(299), &written(&packets[4..]));
        assert_eq!(large, Err(Error::TagTooLarge { size: 300, limit: 299, offset: 13 }));

        let mut bytes = written(&packets[2..3]);
        let offset = bytes.len() as u64;
        bytes.extend([10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let mut reader = Reader::new(300);
        let (front, back) = bytes.split_at(bytes.len() - 4);
        assert_eq!(read_all(&mut reader, front).unwrap(), packets[2..3]);
        assert_eq!(read_all(&mut reader, back), Err(Error::TagType { tag_type: 10, offset }));
    }

    #[test]
    fn a_body_that_no_tag_can_hold_is_not_written() {
        let mut out = Vec::new();
        assert!(!write_tag(&mut out, &Packet::video(0, Bytes::from(vec![0; TAG_SIZE_MAX + 1]))));
        assert!(out.is_empty());
    }

    fn any_packet() -> impl Strategy<Value = Packet> {
        let body = proptest::collection::vec(any::<u8>(), 0..80).prop_map(Bytes::from);
        (0..3, any::<u32>(), body).prop_map(|(kind, timestamp, body)| match kind {
            0 => Packet::audio(timestamp, body),
            1 => Packet::video(timestamp, body),
            _ => Packet::data(timestamp, body),
        })
    }

    proptest! {
        #[test]
        fn packets_survive_pieces_of_any_size(
            packets in proptest::collection::vec(any_packet(), 0..12),
            piece in 1usize..40,
        ) {
            let mut reader = Reader::new(80);
            let mut read = Vec::new();
            for piece in written(&packets).chunks(piece) {
                read.extend(read_all(&mut reader, piece).unwrap());
            }
            prop_assert_eq!(read, packets);
        }

        #[test]
        fn garbage_gives_packets_or_an_error(garbage in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = written(&[]);
            bytes.extend(garbage);
            let mut input = &bytes[..];
            let mut reader = Reader::new(64);
            while let Ok(Some(packet)) = reader.read(&mut input) {
                prop_assert!(packet.body.len() <= 64);
            }
        }
    }
}
