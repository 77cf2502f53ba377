//! One connection, from its first byte to its last: [`Server`] answers, [`Client`] asks.
//!
//! Both eat bytes with `input`, hand out events with `event` and bytes with `output`. Acknowledgements, pings and chunk
//! sizes are their own business; who may do what is not: a server waits for `accept_…` or `reject_…`, and keeps in order,
//! within limits, what the peer sends until then, unless that withdraws the request.
//!
//! A connection has several message streams, each of which publishes or plays by itself (§7.2.1.3); requests, answers, media
//! and ends carry the id of theirs.
//!
//! The media that a viewer gets does not pass through its session. The relay writes messages once for all viewers, on
//! message stream [`PLAY_STREAM_ID`] in chunks of [`OUT_CHUNK_SIZE`]; a session's output may stand between any two of them.

mod client;
mod event;
mod link;
mod names;
mod server;

pub use client::{Client, ClientEvent, Target};
pub use event::{Connect, Event, Play, Publish, PublishKind, Receives};
pub use link::publish_notify;
pub use server::Server;

/// The chunk size that both kinds of session announce before they send anything longer than the default's 128 bytes. Most
/// video frames fit in one chunk of it; some players refuse sizes of 65,536 and more.
pub const OUT_CHUNK_SIZE: usize = 60_000;

/// The first message stream of a connection: the one that `createStream` answers first, and that shared media bytes carry.
pub const PLAY_STREAM_ID: u32 = 1;

/// The chunk stream of commands and status messages.
pub const COMMAND_CHUNK_STREAM: u32 = 3;
/// The chunk stream of audio.
pub const AUDIO_CHUNK_STREAM: u32 = 4;
/// The chunk stream of data, metadata above all.
pub const DATA_CHUNK_STREAM: u32 = 5;
/// The chunk stream of video.
pub const VIDEO_CHUNK_STREAM: u32 = 6;

/// The acknowledgement window of both directions until the peer asks for another, in bytes; what other servers use.
pub const WINDOW_ACK_SIZE: u32 = 2_500_000;

/// The chunk stream that a media message of this type goes out on.
pub fn chunk_stream(type_id: u8) -> u32 {
    match type_id {
        super::message::AUDIO => AUDIO_CHUNK_STREAM,
        super::message::VIDEO => VIDEO_CHUNK_STREAM,
        _ => DATA_CHUNK_STREAM,
    }
}

/// `capsEx` bits of Enhanced RTMP v2 that a relay of verbatim bodies has: multitrack, ModEx and nanosecond offsets.
/// A client of this program follows no reconnect requests ([`CAPS_RECONNECT`]).
const CAPS_EX: u32 = 0b1110;

/// The `capsEx` bit of a client that follows, and of a server that may send, `NetConnection.Connect.ReconnectRequest`.
const CAPS_RECONNECT: u32 = 0b0001;

/// The property of `NetStream.Play.Start` that identifies the relay stream which is played, in hexadecimal digits. Only lb
/// writes and reads it.
const RELAY_ID: &str = "relayId";

/// The property of the answer to `connect` by which an lb node says that it is one; its value is the version. Such a server
/// takes pipelined calls, and does not count the query to the stream key.
const LB: &str = "lb";

/// The property of the answer to connect that says what time it is at the server, in seconds since 1970. What a puller signs
/// holds until a time on that clock.
const TIME: &str = "lbTime";

/// The status by which a server tells those who play a live stream that somebody begins to publish it. From an lb node it stands in
/// the stream, where the media of another publish begins.
const PUBLISH_NOTIFY: &str = "NetStream.Play.PublishNotify";

/// "Can forward", in the codec maps of Enhanced RTMP v2.
const CAN_FORWARD: f64 = 4.0;

#[cfg(test)]
mod tests;
