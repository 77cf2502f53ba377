//! Chunks: how messages share one connection (§5.3).
//!
//! [`Reader`] puts messages together from whatever pieces the network delivers; [`write_message`] takes them apart. The
//! meaning of messages, even of those that change the chunk size, is for [`super::session`].

mod reader;
mod writer;
mod written;

pub use reader::Reader;
pub use writer::{put_basic_header, wire_len, write_message};
pub use written::{Written, moved, written};

/// The chunk size of either direction until it is set (§5.4.1).
pub const DEFAULT_CHUNK_SIZE: usize = 128;

/// The largest message that the 24-bit length field can express; a larger chunk size changes nothing.
pub const MAX_MESSAGE_LENGTH: usize = 0xFF_FFFF;

/// The chunk stream of protocol control messages (§5.4).
pub const CONTROL_CHUNK_STREAM: u32 = 2;

/// From this value on a timestamp or delta is sent in the four bytes after the header (§5.3.1.3).
const EXTENDED: u32 = 0xFF_FFFF;

#[cfg(test)]
mod tests;
