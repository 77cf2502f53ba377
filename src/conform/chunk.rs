//! Chunks by hand: any header, and payload of any length behind it.

use super::bodies::Media;
use crate::rtmp::chunk::put_basic_header;
use crate::rtmp::session::chunk_stream;
use bytes::{BufMut, BytesMut};

/// From this value on a timestamp stands behind the header (§5.3.1.3).
const EXTENDED: u32 = 0xFF_FFFF;

/// The header of a chunk that begins a message (§5.3.1.2); continuations have format 3 without a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    /// 0 to 3.
    pub format: u8,
    pub chunk_stream_id: u32,
    /// The timestamp (format 0) or the distance to the one before (1, 2); nothing in format 3.
    pub time: u32,
    pub length: usize,
    pub type_id: u8,
    pub stream_id: u32,
}

impl Header {
    /// Of format 0, for a whole message on the chunk stream of its type.
    pub fn of(media: &Media, stream_id: u32) -> Header {
        Header {
            format: 0,
            chunk_stream_id: chunk_stream(media.type_id),
            time: media.time,
            length: media.body.len(),
            type_id: media.type_id,
            stream_id,
        }
    }

    pub fn put(&self, wire: &mut BytesMut) {
        put_basic_header(wire, self.format, self.chunk_stream_id);
        if self.format <= 2 {
            wire.put_uint(self.time.min(EXTENDED).into(), 3);
        }
        if self.format <= 1 {
            wire.put_uint(self.length as u64, 3);
            wire.put_u8(self.type_id);
        }
        if self.format == 0 {
            wire.put_u32_le(self.stream_id);
        }
        if self.format <= 2 && self.time >= EXTENDED {
            wire.put_u32(self.time);
        }
    }
}

/// A whole message that begins with this header. `repeat`: continuations repeat these four bytes.
pub(super) fn put_message(
    wire: &mut BytesMut,
    header: Header,
    body: &[u8],
    chunk_size: usize,
    repeat: Option<u32>,
) {
    header.put(wire);
    for (index, piece) in body.chunks(chunk_size.max(1)).enumerate() {
        if index > 0 {
            put_continuation(wire, header.chunk_stream_id, repeat);
        }
        wire.put_slice(piece);
    }
}

/// The header of a chunk that goes on with a message.
pub(super) fn put_continuation(wire: &mut BytesMut, chunk_stream_id: u32, repeat: Option<u32>) {
    put_basic_header(wire, 3, chunk_stream_id);
    if let Some(time) = repeat {
        wire.put_u32(time);
    }
}
