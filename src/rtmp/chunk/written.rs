//! The messages in bytes that [`write_message`](super::write_message) wrote: for another form of the same stream.

use super::EXTENDED;
use bytes::{Buf, Bytes, BytesMut};
use smallvec::SmallVec;

/// A message as it stands in written bytes.
#[derive(Debug)]
pub struct Written<'a> {
    /// The message's type.
    pub type_id: u8,
    /// Its time.
    pub timestamp: u32,
    /// The length of its body.
    pub length: usize,
    /// The body, as it lies in the chunks.
    pub body: SmallVec<[&'a [u8]; 4]>,
    /// All of its bytes.
    pub wire: &'a [u8],
}

/// Where the message stream id stands in a written message: behind a basic header of one byte, the timestamp, the length and
/// the type.
const MESSAGE_STREAM_ID: std::ops::Range<usize> = 8..12;

/// The messages in `wire`, written as for [`written`], that are of the types to be kept, on another message stream.
pub fn moved(wire: &[u8], chunk_size: usize, stream_id: u32, keep: impl Fn(u8) -> bool) -> Bytes {
    let mut out = BytesMut::with_capacity(wire.len());
    for message in written(wire, chunk_size).filter(|message| keep(message.type_id)) {
        let start = out.len();
        out.extend_from_slice(message.wire);
        let id = out.get_mut(start..).and_then(|message| message.get_mut(MESSAGE_STREAM_ID));
        if let Some(id) = id {
            id.copy_from_slice(&stream_id.to_le_bytes());
        }
    }
    out.freeze()
}

/// The messages in `wire`, which [`write_message`](super::write_message) wrote with chunk streams below 64 and this chunk size.
/// Ends at the first byte that it did not write.
pub fn written(mut wire: &[u8], chunk_size: usize) -> impl Iterator<Item = Written<'_>> {
    std::iter::from_fn(move || next(&mut wire, chunk_size.max(1)))
}

fn next<'a>(wire: &mut &'a [u8], chunk_size: usize) -> Option<Written<'a>> {
    let all = *wire;
    wire.split_off_first()?;
    let mut timestamp = wire.try_get_uint(3).ok()? as u32;
    let length = wire.try_get_uint(3).ok()? as usize;
    let type_id = wire.try_get_u8().ok()?;
    wire.try_get_u32().ok()?;
    let extended = timestamp == EXTENDED;
    if extended {
        timestamp = wire.try_get_u32().ok()?;
    }
    let mut body = SmallVec::new();
    let mut left = length;
    while left > 0 {
        if !body.is_empty() {
            wire.split_off_first()?;
            if extended {
                wire.try_get_u32().ok()?;
            }
        }
        let chunk = wire.split_off(..left.min(chunk_size))?;
        left -= chunk.len();
        body.push(chunk);
    }
    let wire = all.get(..all.len() - wire.len())?;
    Some(Written { type_id, timestamp, length, body, wire })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rtmp::chunk::write_message;
    use bytes::BytesMut;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_written_is_found_again(
            messages in proptest::collection::vec(
                (prop_oneof![any::<u32>(), 0xFF_FFF0..0x100_0010u32], any::<u8>(), proptest::collection::vec(any::<u8>(), 0..300)),
                0..6,
            ),
            chunk_size in 1..200usize,
        ) {
            let mut wire = BytesMut::new();
            for (timestamp, type_id, body) in &messages {
                write_message(&mut wire, 6, *timestamp, *type_id, 1, body, chunk_size);
            }
            let found: Vec<_> = written(&wire, chunk_size)
                .map(|message| (message.timestamp, message.type_id, message.body.concat()))
                .collect();
            prop_assert_eq!(found, messages);
        }

        #[test]
        fn what_is_moved_is_as_if_it_had_been_written_there(
            messages in proptest::collection::vec(
                (prop_oneof![any::<u32>(), 0xFF_FFF0..0x100_0010u32], 8..11u8, proptest::collection::vec(any::<u8>(), 0..300)),
                0..6,
            ),
            chunk_size in 1..200usize,
            stream_id in any::<u32>(),
        ) {
            let (mut wire, mut want) = (BytesMut::new(), BytesMut::new());
            for (timestamp, type_id, body) in &messages {
                write_message(&mut wire, 6, *timestamp, *type_id, 1, body, chunk_size);
                if *type_id != 9 {
                    write_message(&mut want, 6, *timestamp, *type_id, stream_id, body, chunk_size);
                }
            }
            prop_assert_eq!(moved(&wire, chunk_size, stream_id, |type_id| type_id != 9), want);
        }

        #[test]
        fn other_bytes_end_it(wire in proptest::collection::vec(any::<u8>(), 0..400), chunk_size in 0..50usize) {
            for message in written(&wire, chunk_size) {
                prop_assert_eq!(message.length, message.body.iter().map(|piece| piece.len()).sum::<usize>());
            }
        }
    }
}
