//! What nodes tell reactors for people to see: how each stream is doing, and what happened to it. Nothing is decided by it, so what is lost
//! of it costs a picture and no viewer.
//!
//! | call | body | answers |
//! |---|---|---|
//! | `POST /nodes/{node}/report` | [`Report`] | `200` [`ReportReply`]; `400`, `413` [`super::Refusal`] |
//! | `POST /nodes/{node}/drain` | | `202`: it hears of it with its next report; `404` |
//! | `GET /timelines/{name}` | | `200` [`Timeline`] |

use crate::ids::{NodeId, SessionTag, StreamName};
use serde::{Deserialize, Serialize};

/// The most streams in one [`Report`], and the most events.
pub const REPORT_MAX: usize = 500;

/// The longest text in one, bytes.
pub const REPORT_TEXT_MAX: usize = 200;

/// How a node's streams are doing. A node with more than [`REPORT_MAX`] streams sends several.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Milliseconds until the next one. What is not named for three of them is there no more.
    pub interval_ms: u64,
    /// Bits a second that came in on RTMP sockets and those of viewers over HTTP, over the last interval.
    #[serde(default)]
    pub received_bits_per_second: u64,
    /// Bits a second that went out there, likewise.
    #[serde(default)]
    pub sent_bits_per_second: u64,
    /// Where viewers play over HTTP, if they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpPlay>,
    /// The streams that are published on it or watched on it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub streams: Vec<StreamReport>,
    /// What happened since the last report, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<StreamEvent>,
}

/// What a reactor answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportReply {
    /// Somebody asked this node to drain: it stops as after a SIGTERM.
    #[serde(default)]
    pub drain: bool,
}

/// Where a node serves viewers over HTTP: `SCHEME://HOST:PORT/APP/NAME.flv`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpPlay {
    /// Its host, if it is not the address that the report comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Its port.
    pub port: u16,
    /// By HTTPS.
    #[serde(default)]
    pub tls: bool,
    /// The app of its viewers.
    pub app: String,
}

/// One stream on a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StreamReport {
    /// The stream's name.
    pub stream_name: StreamName,
    /// It is published here, and what watches it are nodes; else it is pulled here for viewers.
    #[serde(default)]
    pub published: bool,
    /// The publish that it shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionTag>,
    /// Media comes in.
    pub live: bool,
    /// Who watches: viewers, or nodes if it is published here.
    pub viewers: u64,
    /// Bits a second that come in, over the last interval.
    pub bits_per_second: u64,
    /// Video frames a second that come in, over the last interval.
    pub frames_per_second: f32,
    /// Milliseconds between the last two keyframes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keyframe_ms: Option<u64>,
    /// The video codec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub video: Option<String>,
    /// The audio codec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audio: Option<String>,
    /// Width and height, in pixels, as the publisher says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<(u32, u32)>,
    /// Times that a viewer fell behind and jumped to a newer keyframe.
    #[serde(default)]
    pub skips: u64,
}

/// What can happen to a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Happening {
    /// A publisher was let in; where from is the detail.
    Published,
    /// Its publisher left, or was sent away, which the detail says.
    Unpublished,
    /// A reactor registered it; the origin is the detail, and the epoch the number.
    Registered,
    /// An operator sent its publisher away; why is the detail.
    Kicked,
    /// A reactor knows no publisher of it any more.
    Unregistered,
    /// A playback node was told where it is: the origin is the detail.
    Found,
    /// The same for a name that it had found elsewhere before.
    Moved,
    /// A pull brings media; after so many milliseconds.
    PullBrings,
    /// A pull ended; why is the detail.
    PullEnded,
    /// The first viewer came.
    FirstViewer,
    /// The first viewer has its first keyframe; after so many milliseconds.
    FirstPicture,
    /// The last viewer left.
    LastViewerLeft,
    /// Another publish or pull brings the stream: viewers saw nothing new for so many milliseconds.
    Switched,
    /// Its publisher did not come back in time, and viewers were sent away.
    Ended,
    /// It was refused to those who waited for it; why is the detail.
    Refused,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamEvent {
    /// The stream's name.
    pub stream_name: StreamName,
    /// What happened.
    pub event: Happening,
    /// Milliseconds from then until it was sent.
    pub ago_ms: u64,
    /// The publish that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionTag>,
    /// See [`Happening`]: milliseconds, or an epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u64>,
    /// See [`Happening`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What is known to have happened to a stream, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// What happened, and where.
    pub events: Vec<TimelineEntry>,
}

/// One thing that happened, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineEntry {
    /// The node; missing: a reactor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// What happened.
    #[serde(flatten)]
    pub event: StreamEvent,
    /// The same as a sentence, for people.
    #[serde(default)]
    pub what: String,
}

impl TimelineEntry {
    /// Something that happened there.
    pub fn of(node: Option<NodeId>, event: StreamEvent) -> Self {
        TimelineEntry { what: event.sentence(), node, event }
    }
}

impl StreamEvent {
    /// What happened, for people. A detail is in the words of whoever reported it.
    pub fn sentence(&self) -> String {
        let detail = self.detail.as_deref().unwrap_or("?");
        let number = self.number.unwrap_or_default();
        match self.event {
            Happening::Published => format!("published from {detail}"),
            Happening::Unpublished => "unpublished".to_owned(),
            Happening::Registered => format!("registered, epoch {number}, to be pulled from {detail}"),
            Happening::Kicked => format!("the publisher was sent away: {detail}"),
            Happening::Unregistered => "no longer registered".to_owned(),
            Happening::Found => format!("found at {detail}"),
            Happening::Moved => format!("moved to {detail}"),
            Happening::PullBrings => format!("the pull brings media after {number} ms"),
            Happening::PullEnded => format!("the pull ended: {detail}"),
            Happening::FirstViewer => "the first viewer came".to_owned(),
            Happening::FirstPicture => format!("first picture after {number} ms"),
            Happening::LastViewerLeft => "the last viewer left".to_owned(),
            Happening::Switched => format!("switched: viewers saw nothing new for {number} ms"),
            Happening::Ended => "ended: the publisher did not come back".to_owned(),
            Happening::Refused => format!("refused: {detail}"),
        }
    }
}
