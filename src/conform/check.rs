//! What a check is, and what comes of one.

use super::lab::Lab;
use super::peer::Trouble;
use futures::future::BoxFuture;
use std::time::Duration;

/// What a check is about. The groups stand in the order in which a connection meets them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// The first 3073 bytes.
    Handshake,
    /// How messages share the connection.
    Chunks,
    /// What becomes of the sender's clock.
    Timestamps,
    /// Windows, acknowledgements, pings.
    Control,
    /// The connect command and what it names.
    Connect,
    /// Calls that encoders and players make besides.
    Commands,
    /// The values in commands and data messages.
    Amf,
    /// How a publish begins and ends.
    Publish,
    /// How a play begins and ends.
    Play,
    /// What a viewer gets that joins a running stream.
    Join,
    /// Whether bodies arrive as they were sent.
    Media,
    /// Enhanced RTMP.
    Enhanced,
    /// What the server does with peers that go too far.
    Limits,
}

impl Group {
    /// All of them, in order.
    pub const ALL: [Group; 13] = [
        Group::Handshake,
        Group::Chunks,
        Group::Timestamps,
        Group::Control,
        Group::Connect,
        Group::Commands,
        Group::Amf,
        Group::Publish,
        Group::Play,
        Group::Join,
        Group::Media,
        Group::Enhanced,
        Group::Limits,
    ];

    /// As it is typed and printed.
    pub fn name(self) -> &'static str {
        match self {
            Group::Handshake => "handshake",
            Group::Chunks => "chunks",
            Group::Timestamps => "timestamps",
            Group::Control => "control",
            Group::Connect => "connect",
            Group::Commands => "commands",
            Group::Amf => "amf",
            Group::Publish => "publish",
            Group::Play => "play",
            Group::Join => "join",
            Group::Media => "media",
            Group::Enhanced => "enhanced",
            Group::Limits => "limits",
        }
    }
}

/// What is said of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It does what is expected.
    Pass,
    /// It does something else, which hurts some real peer.
    Fail,
    /// It does one of several things that are all allowed.
    Info,
    /// Nothing is said; the row says why.
    Skipped,
}

impl Verdict {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::Fail => "fail",
            Verdict::Info => "info",
            Verdict::Skipped => "skipped",
        }
    }
}

/// What a check saw.
#[derive(Clone, Debug)]
pub struct Seen {
    /// What that means.
    pub verdict: Verdict,
    /// For people, in a few words.
    pub text: String,
}

/// How a check ends. Trouble that the check did not expect is a failure.
pub type Finding = Result<Seen, Trouble>;

/// As expected.
pub(super) fn pass(text: impl Into<String>) -> Finding {
    Ok(Seen { verdict: Verdict::Pass, text: text.into() })
}

/// Not as expected.
pub(super) fn fail(text: impl Into<String>) -> Finding {
    Ok(Seen { verdict: Verdict::Fail, text: text.into() })
}

/// One of several things that are allowed.
pub(super) fn info(text: impl Into<String>) -> Finding {
    Ok(Seen { verdict: Verdict::Info, text: text.into() })
}

/// `true`: as expected.
pub(super) fn judge(good: bool, text: impl Into<String>) -> Finding {
    if good { pass(text) } else { fail(text) }
}

/// How a check is run: on connections of its own, within its lab's deadline.
type Run = for<'a> fn(&'a Lab) -> BoxFuture<'a, Finding>;

/// One row of the table.
#[derive(Clone, Copy)]
pub struct Check {
    /// Unique in its group; as it is typed and printed.
    pub name: &'static str,
    /// What it is about.
    pub group: Group,
    /// What a server should do, in a few words.
    pub expected: &'static str,
    /// Who says so: a section of the specification, or peers that need it.
    pub source: &'static str,
    /// It is run on request only, and has this long: for what servers do once in a while.
    pub slow: Option<Duration>,
    pub(super) run: Run,
}

impl Check {
    pub(super) const fn new(
        group: Group,
        name: &'static str,
        expected: &'static str,
        source: &'static str,
        run: Run,
    ) -> Check {
        Check { name, group, expected, source, slow: None, run }
    }

    /// Group and name, which no other check has: `chunks/abort`.
    pub fn id(&self) -> String {
        format!("{}/{}", self.group.name(), self.name)
    }

    /// Whether it is asked for: by its name, its group, or both as [`Check::id`] has them.
    pub fn is_called(&self, word: &str) -> bool {
        word == self.name || word == self.group.name() || word == self.id()
    }

    /// For what a server does once in a while.
    pub(super) const fn slow(self, deadline: Duration) -> Check {
        Check { slow: Some(deadline), ..self }
    }
}

impl std::fmt::Debug for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Check({})", self.id())
    }
}

/// A check that was run.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which one.
    pub check: Check,
    /// What came of it.
    pub seen: Seen,
    /// How long it took.
    pub took: Duration,
}
