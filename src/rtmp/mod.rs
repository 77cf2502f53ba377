//! RTMP without input and output: bytes in, events and bytes out.
//!
//! | module | what it does | specification |
//! |---|---|---|
//! | [`handshake`] | the first 3073 bytes of each direction, simple and digest form | RTMP 1.0 §5.2 |
//! | [`chunk`] | messages out of chunks and into chunks | §5.3 |
//! | [`amf0`] | the values in commands and data messages | AMF 0 |
//! | [`message`] | control messages, commands, aggregates | §5.4, §6, §7 |
//! | [`session`] | one connection: [`session::Server`], [`session::Client`] | §7.2, Enhanced RTMP v2 |
//!
//! Nothing here knows sockets, clocks, tasks or who may do what. Whoever owns a connection feeds what it read, takes
//! events and pending output, and answers requests by method calls. Every limit is in [`Limits`]; every [`Error`] is the
//! peer's fault, and one that comes out of a session ends its connection.

pub mod amf0;
pub mod chunk;
mod error;
pub mod handshake;
mod limits;
pub mod message;
pub mod session;

pub use error::Error;
pub use handshake::Nonce;
pub use limits::{
    CHUNK_SIZE, CHUNK_STREAMS, CODECS, DEFERRED_BYTES, DEFERRED_MESSAGES, IDLE_BYTES, Limits,
    MALFORMED_MESSAGES, MESSAGE_BYTES, MESSAGE_STREAMS, NAME_BYTES, PARTIAL_BYTES, PARTIAL_MESSAGES,
};
pub use message::Message;

#[cfg(test)]
mod fuzzing;
