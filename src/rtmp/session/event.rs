//! What a server's peer wants or sends. Nothing here is checked beyond its length, and nothing shows a query when printed.

use crate::rtmp::message::Message;
use std::fmt;

/// What the peer wants or sends, in the order in which it came.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// It wants to connect. Waits for [`super::Server::accept_connect`] or [`super::Server::reject_connect`].
    Connect(Connect),
    /// It wants to publish. Waits for [`super::Server::accept_publish`] or [`super::Server::reject_publish`].
    Publish(Publish),
    /// It wants to play. Waits for [`super::Server::accept_play`] or [`super::Server::reject_play`].
    Play(Play),
    /// Audio, video or data of an accepted publisher, with the id of its message stream. Data is always [`DATA_AMF0`](crate::rtmp::message::DATA_AMF0) without its `@setDataFrame`;
    /// aggregates come as the messages in them.
    Media(Message),
    /// The publisher on this message stream is done, or withdraws its request before it was answered.
    Unpublish(u32),
    /// The viewer on this message stream wants no more, or withdraws its request before it was answered.
    StopPlay(u32),
    /// The viewer pauses or goes on. It has been answered.
    Pause {
        /// On this message stream.
        stream_id: u32,
        /// True: stop sending.
        paused: bool,
        /// Where the viewer is, in milliseconds, as it says.
        millis: f64,
    },
    /// The viewer wants other kinds of media than before (§7.2.2.4, §7.2.2.5). It has been answered.
    Receive {
        /// On this message stream.
        stream_id: u32,
        /// What it wants from now on.
        wanted: Receives,
    },
    /// The answer to [`super::Server::ping`], with the time that was given there.
    Pong(u32),
}

/// A connect request (§7.2.1.1).
#[derive(Clone, PartialEq, Eq)]
pub struct Connect {
    /// The app: without slashes around it, instance and query. May be empty.
    pub app: String,
    /// The query of the app or the address, without `?`. Secret.
    pub query: Option<String>,
    /// The address that the client says it connected to, without its query. May be empty.
    pub tc_url: String,
    /// The client's name and version. May be empty.
    pub flash_ver: String,
}

/// Leaves out what may hold secrets.
impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect")
            .field("app", &self.app)
            .field("query", &self.query.as_ref().map(|_| Redacted))
            .field("flash_ver", &self.flash_ver)
            .finish_non_exhaustive()
    }
}

/// A publish request (§7.2.2.6).
#[derive(Clone, PartialEq, Eq)]
pub struct Publish {
    /// The message stream; it names the request in its answer.
    pub stream_id: u32,
    /// The stream key without its query; the app's instance, if it had one, stands in front of it (`inst/key`). May be
    /// empty, and is not checked. Secret, where authorisation maps it to a name.
    pub stream_key: String,
    /// The key's query without `?`, else the app's. Secret.
    pub query: Option<String>,
    /// What the publisher wants to be done with the stream.
    pub kind: PublishKind,
}

impl fmt::Debug for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publish")
            .field("stream_id", &self.stream_id)
            .field("stream_key", &Redacted)
            .field("query", &self.query.as_ref().map(|_| Redacted))
            .field("kind", &self.kind)
            .finish()
    }
}

/// The publishing type (§7.2.2.6). Encoders often mean nothing by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishKind {
    /// Not to be recorded; also when the type is missing or unknown.
    Live,
    /// To be recorded.
    Record,
    /// To be recorded at the end of what is there.
    Append,
}

/// A play request (§7.2.2.1).
#[derive(Clone, PartialEq)]
pub struct Play {
    /// The message stream; it names the request in its answer.
    pub stream_id: u32,
    /// As [`Publish::stream_key`].
    pub stream_key: String,
    /// As [`Publish::query`].
    pub query: Option<String>,
    /// Where to start, as sent: negative for live. The specification means seconds, many players send milliseconds.
    pub start: f64,
    /// How long to play, as sent; negative for all.
    pub duration: f64,
    /// Whether an earlier playlist is to be dropped.
    pub reset: bool,
    /// Which kinds of media it wants, by what it said of the message stream before.
    pub receives: Receives,
}

/// Which kinds of media a viewer wants: what its last `receiveAudio` and `receiveVideo` said (§7.2.2.4, §7.2.2.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receives {
    /// Audio.
    pub audio: bool,
    /// Video.
    pub video: bool,
}

impl Receives {
    /// Both, as every viewer does who says nothing else.
    pub const ALL: Receives = Receives { audio: true, video: true };
}

impl fmt::Debug for Play {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Play")
            .field("stream_id", &self.stream_id)
            .field("stream_key", &self.stream_key)
            .field("query", &self.query.as_ref().map(|_| Redacted))
            .field("start", &self.start)
            .field("duration", &self.duration)
            .field("reset", &self.reset)
            .field("receives", &self.receives)
            .finish()
    }
}

/// Stands for a secret in a debug text.
pub(super) struct Redacted;

impl fmt::Debug for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}
