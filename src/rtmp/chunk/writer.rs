//! Messages into chunks.

use super::{EXTENDED, MAX_MESSAGE_LENGTH};
use bytes::{BufMut, BytesMut};

/// Chunk stream ids that the three-byte basic header can express end here (§5.3.1.1).
const MAX_CHUNK_STREAM_ID: u32 = 65_599;

/// Appends one message as chunks of at most `chunk_size` bytes of payload.
///
/// The first chunk has the full header (format 0), whatever was sent before, so that the bytes are complete in themselves
/// and can be shared by all who get the message. Continuations have format 3 and repeat an extended timestamp (§5.3.1.3).
///
/// `chunk_stream_id` is brought into 2 to 65,599, `chunk_size` to at least 1, and a body beyond 16 MiB - 1 is cut: the
/// format has no room for more, and no such body comes out of [`super::Reader`].
pub fn write_message(
    out: &mut BytesMut,
    chunk_stream_id: u32,
    timestamp: u32,
    type_id: u8,
    message_stream_id: u32,
    body: &[u8],
    chunk_size: usize,
) {
    let body = body.get(..MAX_MESSAGE_LENGTH).unwrap_or(body);
    let extended = timestamp >= EXTENDED;
    out.reserve(wire_len(chunk_stream_id, timestamp, body.len(), chunk_size));
    put_basic_header(out, 0, chunk_stream_id);
    out.put_uint(timestamp.min(EXTENDED).into(), 3);
    out.put_uint(body.len() as u64, 3);
    out.put_u8(type_id);
    out.put_u32_le(message_stream_id);
    if extended {
        out.put_u32(timestamp);
    }
    for (index, chunk) in body.chunks(chunk_size.max(1)).enumerate() {
        if index > 0 {
            put_basic_header(out, 3, chunk_stream_id);
            if extended {
                out.put_u32(timestamp);
            }
        }
        out.put_slice(chunk);
    }
}

/// The exact number of bytes that [`write_message`] appends for a body of `body_len` bytes.
pub fn wire_len(chunk_stream_id: u32, timestamp: u32, body_len: usize, chunk_size: usize) -> usize {
    let body_len = body_len.min(MAX_MESSAGE_LENGTH);
    let continuations = body_len.div_ceil(chunk_size.max(1)).saturating_sub(1);
    let extended = if timestamp >= EXTENDED { 4 } else { 0 };
    let header = basic_header_len(chunk_stream_id) + extended;
    11 + header + continuations * header + body_len
}

fn basic_header_len(chunk_stream_id: u32) -> usize {
    match chunk_stream_id {
        0..64 => 1,
        64..320 => 2,
        _ => 3,
    }
}

/// Appends a chunk's basic header (§5.3.1.1); `chunk_stream_id` is brought into 2 to 65,599.
pub fn put_basic_header(out: &mut BytesMut, format: u8, chunk_stream_id: u32) {
    let id = chunk_stream_id.clamp(2, MAX_CHUNK_STREAM_ID);
    match id {
        0..64 => out.put_u8(format << 6 | id as u8),
        64..320 => {
            out.put_u8(format << 6);
            out.put_u8((id - 64) as u8);
        }
        _ => {
            out.put_u8(format << 6 | 1);
            out.put_u16_le((id - 64) as u16);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_is_written_to_the_byte() {
        let mut out = BytesMut::new();
        write_message(&mut out, 6, 0x010203, 9, 1, b"abcde", 3);
        assert_eq!(&out[..], b"\x06\x01\x02\x03\0\0\x05\x09\x01\0\0\0abc\xC6de");
    }

    #[test]
    fn an_extended_timestamp_is_repeated_on_continuations() {
        let mut out = BytesMut::new();
        write_message(&mut out, 64, 0x0100_0000, 8, 1, b"abcd", 2);
        assert_eq!(&out[..], b"\0\0\xFF\xFF\xFF\0\0\x04\x08\x01\0\0\0\x01\0\0\0ab\xC0\0\x01\0\0\0cd");
        out.clear();
        write_message(&mut out, 320, 0xFF_FFFF, 8, 1, b"", 2);
        assert_eq!(&out[..], b"\x01\0\x01\xFF\xFF\xFF\0\0\0\x08\x01\0\0\0\0\xFF\xFF\xFF");
    }

    proptest! {
        #[test]
        fn the_announced_length_is_exact(
            id in 2..65_600u32,
            timestamp in prop_oneof![any::<u32>(), 0xFF_FFF0..0x100_0010u32],
            length in 0..5000usize,
            chunk_size in 1..6000usize,
        ) {
            let mut out = BytesMut::new();
            write_message(&mut out, id, timestamp, 9, 1, &vec![0; length], chunk_size);
            prop_assert_eq!(out.len(), wire_len(id, timestamp, length, chunk_size));
        }
    }
}
