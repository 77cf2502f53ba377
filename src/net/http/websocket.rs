//! What a player sends on its WebSocket (RFC 6455, section 5): a close, a ping, or what nobody asked for. Pure.

use bytes::{Buf, Bytes, BytesMut};
use std::io::Cursor;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, OpCode};

/// The longest frame that is taken: a player has nothing to say.
const FRAME_MAX: u64 = 4096;

/// What a frame means.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// To be answered with a pong of the same payload.
    Ping(Bytes),
    /// To be answered with a close.
    Close,
    /// Nothing.
    Other,
}

/// The frame breaks the protocol, or a limit.
#[derive(Debug, PartialEq, Eq)]
pub struct Broken;

/// Takes a frame off the front; nothing: it is not complete.
pub fn take(input: &mut BytesMut) -> Result<Option<Received>, Broken> {
    let mut cursor = Cursor::new(&input[..]);
    let Some((header, length)) = FrameHeader::parse(&mut cursor).map_err(|_| Broken)? else {
        return Ok(None);
    };
    let Some(mask) = header.mask.filter(|_| length <= FRAME_MAX) else { return Err(Broken) };
    let head = usize::try_from(cursor.position()).map_err(|_| Broken)?;
    let length = usize::try_from(length).map_err(|_| Broken)?;
    if input.len() < head + length {
        return Ok(None);
    }
    input.advance(head);
    let mut payload = input.split_to(length);
    payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    Ok(Some(match header.opcode {
        OpCode::Control(Control::Ping) => Received::Ping(payload.freeze()),
        OpCode::Control(Control::Close) => Received::Close,
        _ => Received::Other,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames(bytes: &[u8]) -> (Vec<Received>, bool) {
        let mut input = BytesMut::from(bytes);
        let mut got = Vec::new();
        loop {
            match take(&mut input) {
                Ok(Some(frame)) => got.push(frame),
                Ok(None) => return (got, false),
                Err(Broken) => return (got, true),
            }
        }
    }

    #[test]
    fn pings_and_closes_are_told_from_the_rest() {
        let mut bytes = b"\x89\x82\x01\x02\x03\x04".to_vec();
        bytes.extend([b'h' ^ 1, b'i' ^ 2]);
        bytes.extend(b"\x81\x81\0\0\0\0x\x88\x80\0\0\0\0\x89");
        let expected = [Received::Ping(Bytes::from_static(b"hi")), Received::Other, Received::Close];
        assert_eq!(frames(&bytes).0, expected);
        assert!(frames(b"\x81\x01x").1, "a client masks what it sends");
        assert!(frames(b"\x82\xff\0\0\0\0\0\0\xff\xff\0\0\0\0").1, "too long");
    }

    proptest! {
        #[test]
        fn anything_ends(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            frames(&bytes);
        }
    }
}
