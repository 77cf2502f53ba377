//! The names that pass between processes: stream names, origins, sessions and nodes, each checked once at the door.
//!
//! A stream name becomes part of the text of a workflow definition, of URLs and of log lines, so its alphabet is narrow. Whatever
//! is a [`StreamName`] can stand in a log line, a metric's label and the path of an `rtmp://` location as it is, for RTMP knows no percent-encoding. In
//! the path of an `http://` URL it is percent-encoded, and in the text of a workflow written as `api/word.rs` says.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

/// The RTMP port that needs no mention in an address.
pub const DEFAULT_RTMP_PORT: u16 = 1935;

/// The longest stream name, in bytes.
pub const STREAM_NAME_MAX: usize = 255;

/// The longest node name, in bytes.
pub const NODE_ID_MAX: usize = 64;

/// Why a text is not a stream name. The text is the reason that peers and users see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StreamNameError {
    /// Nothing at all.
    #[error("the stream name is empty; 1 to 255 characters of A-Z a-z 0-9 . _ : , / ~ + = @ % - are allowed")]
    Empty,
    /// More than [`STREAM_NAME_MAX`] bytes.
    #[error("the stream name is longer than 255 characters")]
    TooLong,
    /// A character outside the alphabet.
    #[error(
        "the stream name has a character at position {0} that is not one of A-Z a-z 0-9 . _ : , / ~ + = @ % -"
    )]
    Character(usize),
    /// `a//b`, `/a`, `a/`, `a/./b` or `a/../b`: whoever reads a URL would make another name of it.
    #[error("the stream name has an empty, '.' or '..' path element")]
    PathElement,
}

/// A stream's name: the RTMP stream key without its query part.
///
/// 1 to 255 characters of `[A-Za-z0-9._:,/~+=@%-]`, with no empty, `.` or `..` path element. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StreamName(Arc<str>);

impl StreamName {
    /// Checks a text. The query part of a stream key (`?…`) must be split off before.
    pub fn parse(text: &str) -> Result<Self, StreamNameError> {
        if text.is_empty() {
            return Err(StreamNameError::Empty);
        }
        if text.len() > STREAM_NAME_MAX {
            return Err(StreamNameError::TooLong);
        }
        let allowed = |c: char| {
            c.is_ascii_alphanumeric()
                || matches!(c, '.' | '_' | ':' | ',' | '/' | '~' | '+' | '=' | '@' | '%' | '-')
        };
        if let Some(position) = text.chars().position(|c| !allowed(c)) {
            return Err(StreamNameError::Character(position + 1));
        }
        if text.split('/').any(|element| element.is_empty() || element == "." || element == "..") {
            return Err(StreamNameError::PathElement);
        }
        Ok(StreamName(text.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl FromStr for StreamName {
    type Err = StreamNameError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        StreamName::parse(text)
    }
}

impl TryFrom<String> for StreamName {
    type Error = StreamNameError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        StreamName::parse(&text)
    }
}

impl From<StreamName> for String {
    fn from(name: StreamName) -> String {
        name.0.as_ref().to_owned()
    }
}

/// Why a text is not an origin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an origin; HOST, HOST:PORT, IPv4[:PORT], IPv6 or [IPv6][:PORT] is allowed")]
pub struct OriginError(String);

/// Where a stream can be pulled from: a host name or address, and an RTMP port.
///
/// Written without its port when that is 1935, and with IPv6 addresses in brackets, so that it can stand in a URL. One that is
/// pulled from by TLS is written with `rtmps://` before and always with its port.
/// An IPv4-mapped IPv6 address is the IPv4 address.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Origin {
    host: Host,
    port: u16,
    tls: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Host {
    Ip(IpAddr),
    Name(Arc<str>),
}

impl Origin {
    /// An origin at a socket address.
    pub fn from_ip(ip: IpAddr, port: u16) -> Self {
        Origin { host: Host::Ip(ip.to_canonical()), port, tls: false }
    }

    /// The RTMP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether it is pulled from by TLS.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// The same place, pulled from by TLS.
    pub fn by_tls(self) -> Self {
        Origin { tls: true, ..self }
    }

    /// Host and port as they stand in a URL; without the port where the scheme stands for it.
    pub fn authority(&self) -> String {
        let host = match &self.host {
            Host::Ip(IpAddr::V6(ip)) => format!("[{ip}]"),
            Host::Ip(IpAddr::V4(ip)) => ip.to_string(),
            Host::Name(name) => name.to_string(),
        };
        match self.port {
            DEFAULT_RTMP_PORT if !self.tls => host,
            port => format!("{host}:{port}"),
        }
    }

    /// The address, if the host is not a name.
    pub fn ip(&self) -> Option<IpAddr> {
        match self.host {
            Host::Ip(ip) => Some(ip),
            Host::Name(_) => None,
        }
    }

    /// The host as it is given to a resolver: no brackets, no port.
    pub fn host(&self) -> String {
        match &self.host {
            Host::Ip(ip) => ip.to_string(),
            Host::Name(name) => name.to_string(),
        }
    }

    /// Reads `HOST[:PORT]`, with or without `rtmps://` before; a missing port is `default_port`.
    pub fn parse(text: &str, default_port: u16) -> Result<Self, OriginError> {
        match text.strip_prefix("rtmps://") {
            Some(place) => Origin::parse_place(place, default_port).map(Origin::by_tls),
            None => Origin::parse_place(text, default_port),
        }
    }

    fn parse_place(text: &str, default_port: u16) -> Result<Self, OriginError> {
        let bad = || OriginError(text.to_owned());
        if let Ok(addr) = text.parse::<SocketAddr>() {
            return if addr.port() == 0 { Err(bad()) } else { Ok(Origin::from_ip(addr.ip(), addr.port())) };
        }
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Origin::from_ip(ip, default_port));
        }
        if let Some(inner) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
            let ip: Ipv6Addr = inner.parse().map_err(|_| bad())?;
            return Ok(Origin::from_ip(ip.into(), default_port));
        }
        let (name, port) = match text.split_once(':') {
            Some((name, port)) => (name, port.parse().ok().filter(|port| *port != 0).ok_or_else(bad)?),
            None => (text, default_port),
        };
        let label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
        };
        let numeric_tail = name
            .rsplit('.')
            .next()
            .is_some_and(|last| !last.is_empty() && last.chars().all(|c| c.is_ascii_digit()));
        if name.len() > 253 || numeric_tail || !name.split('.').all(label) {
            return Err(bad());
        }
        Ok(Origin { host: Host::Name(name.into()), port, tls: false })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "rtmps://" } else { "" };
        write!(f, "{scheme}{}", self.authority())
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Origin {
    type Err = OriginError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Origin::parse(text, DEFAULT_RTMP_PORT)
    }
}

impl TryFrom<String> for Origin {
    type Error = OriginError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Origin> for String {
    fn from(origin: Origin) -> String {
        origin.to_string()
    }
}

/// Why a text is not an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not 32 hexadecimal digits.
    #[error("a session id is 32 hexadecimal digits")]
    Session,
    /// Not 32 hexadecimal digits.
    #[error("an identity is 32 hexadecimal digits")]
    Identity,
    /// Not a node name.
    #[error("a node id is 1 to 64 characters of A-Z a-z 0-9 . _ -")]
    Node,
}

/// One publish, from its start to its end: a random id, written as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SessionId(u128);

impl SessionId {
    /// A new random id.
    pub fn random() -> Self {
        SessionId(rand::random())
    }

    /// Its tag, for logs.
    pub fn tag(self) -> SessionTag {
        SessionTag((self.0 >> (128 - SessionTag::BITS)) as u64)
    }
}

/// The first twelve digits of a [`SessionId`]: they tell sessions apart in the logs of all nodes, and are not enough to end
/// the publish, as the whole id is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SessionTag(u64);

impl SessionTag {
    const BITS: u32 = 48;
}

impl fmt::Display for SessionTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012x}", self.0)
    }
}

impl fmt::Debug for SessionTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for SessionTag {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SessionTag> for String {
    fn from(tag: SessionTag) -> String {
        tag.to_string()
    }
}

impl FromStr for SessionTag {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.len() == 12 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        let tag = u64::from_str_radix(text, 16).ok().filter(|_| digits);
        tag.map(SessionTag).ok_or(IdError::Session)
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for SessionId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        hex_digits(text).map(SessionId).ok_or(IdError::Session)
    }
}

impl TryFrom<String> for SessionId {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SessionId> for String {
    fn from(id: SessionId) -> String {
        id.to_string()
    }
}

/// Who publishes, as authorisation knows them: a digest, which tells whether two publishers are the same and nothing else.
/// Written as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Identity(u128);

impl Identity {
    /// The identity of whom an authority calls this. `kind` tells names of different kinds apart: a subject, a key.
    pub fn of(kind: &str, name: &str) -> Self {
        let digest = Sha256::new().chain_update(kind).chain_update([0]).chain_update(name).finalize();
        Identity(digest.iter().take(size_of::<u128>()).fold(0, |id, byte| id << 8 | u128::from(*byte)))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Identity {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        hex_digits(text).map(Identity).ok_or(IdError::Identity)
    }
}

impl TryFrom<String> for Identity {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Identity> for String {
    fn from(id: Identity) -> String {
        id.to_string()
    }
}

/// A number that is written as 32 hexadecimal digits.
fn hex_digits(text: &str) -> Option<u128> {
    let digits = text.len() == 32 && text.chars().all(|c| c.is_ascii_hexdigit());
    u128::from_str_radix(text, 16).ok().filter(|_| digits)
}

/// A process that registers streams or pulls them: 1 to 64 characters of `[A-Za-z0-9._-]`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId(Arc<str>);

impl NodeId {
    /// What a process is called that was given no name: where it runs, what it does and its port. The same after a restart.
    /// What cannot stand in an id is left out; where nothing is left, the id is random.
    pub fn of(host: &str, roles: &[String], port: u16) -> Self {
        let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let host: String = host.chars().filter(allowed).take(NODE_ID_MAX / 2).collect();
        // Too many hosts are called that.
        if host.is_empty() || host == "localhost" {
            return NodeId::random();
        }
        format!("{host}-{}-{port}", roles.join("-")).parse().unwrap_or_else(|_| NodeId::random())
    }

    /// A new random id.
    pub fn random() -> Self {
        NodeId(format!("{:016x}", rand::random::<u64>()).into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl FromStr for NodeId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if text.is_empty() || text.len() > NODE_ID_MAX || !text.chars().all(allowed) {
            return Err(IdError::Node);
        }
        Ok(NodeId(text.into()))
    }
}

impl TryFrom<String> for NodeId {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<NodeId> for String {
    fn from(id: NodeId) -> String {
        id.0.as_ref().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_name_is_checked_character_by_character() {
        for good in ["x", "live/a", "A-z_0.9:,", "a.b/c", "...", "c2VjcmV0+/a==~@%20", &"n".repeat(255)] {
            assert_eq!(StreamName::parse(good).map(|n| n.to_string()).as_deref(), Ok(good));
        }
        assert_eq!(StreamName::parse(""), Err(StreamNameError::Empty));
        assert_eq!(StreamName::parse(&"n".repeat(256)), Err(StreamNameError::TooLong));
        for (bad, position) in [
            ("a b", 2),
            ("a{", 2),
            ("a\n}", 2),
            ("é", 1),
            ("a?b", 2),
            ("a#b", 2),
            ("a\\", 2),
            ("a\0", 2),
            ("\"", 1),
        ] {
            assert_eq!(StreamName::parse(bad), Err(StreamNameError::Character(position)), "{bad:?}");
        }
        for bad in ["/", "/a", "a/", "a//b", ".", "a/./b", "..", "a/../b"] {
            assert_eq!(StreamName::parse(bad), Err(StreamNameError::PathElement), "{bad:?}");
        }
    }

    #[test]
    fn an_origin_reads_and_writes_every_form_of_address() {
        for (text, written) in [
            ("10.0.0.1", "10.0.0.1"),
            ("10.0.0.1:1935", "10.0.0.1"),
            ("10.0.0.1:1936", "10.0.0.1:1936"),
            ("::1", "[::1]"),
            ("[::1]", "[::1]"),
            ("[2001:db8::2]:1936", "[2001:db8::2]:1936"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("[::ffff:10.0.0.1]:99", "10.0.0.1:99"),
            ("ingest-1.example.org", "ingest-1.example.org"),
            ("localhost:2000", "localhost:2000"),
            ("rtmps://[::1]:1936", "rtmps://[::1]:1936"),
            ("rtmps://localhost", "rtmps://localhost:1935"),
        ] {
            assert_eq!(text.parse::<Origin>().map(|o| o.to_string()).as_deref(), Ok(written), "{text}");
        }
        for bad in [
            "",
            ":1",
            "a:",
            "a:0",
            "a:70000",
            "a b",
            "[::1",
            "300.1.1.1",
            "a..b",
            "x/y",
            "h\n",
            "rtmp://a",
            "rtmps://",
        ] {
            assert!(bad.parse::<Origin>().is_err(), "{bad:?}");
        }
        assert_eq!(Origin::parse("h", 7).map(|o| o.to_string()).as_deref(), Ok("h:7"));
    }

    #[test]
    fn ids_round_trip_and_refuse_what_is_not_one() {
        let session = SessionId::random();
        assert_eq!(session.to_string().parse(), Ok(session));
        assert_eq!(session.tag().to_string(), session.to_string()[..12]);
        assert_eq!(session.tag().to_string().parse(), Ok(session.tag()));
        for bad in ["", "0", "+00000000000", "0000000000000"] {
            assert_eq!(bad.parse::<SessionTag>(), Err(IdError::Session), "{bad}");
        }
        assert_eq!("+".repeat(32).parse::<SessionId>(), Err(IdError::Session));
        assert_eq!("ab".parse::<SessionId>(), Err(IdError::Session));
        let identity = Identity::of("sub", "alice");
        assert_eq!(identity.to_string().parse(), Ok(identity));
        assert_ne!(identity, Identity::of("key", "alice"));
        assert_ne!(identity, Identity::of("sub", "bob"));
        assert!(NodeId::random().as_str().parse::<NodeId>().is_ok());
        let roles = ["ingest".to_owned(), "playback".to_owned()];
        let of = |host: &str| NodeId::of(host, &roles, 1935).as_str().to_owned();
        assert_eq!(of("a1.example.org"), "a1.example.org-ingest-playback-1935");
        assert_eq!(of("höst!"), "hst-ingest-playback-1935");
        assert!(of(&"x".repeat(1000)).len() <= NODE_ID_MAX);
        assert_ne!(of("localhost"), of("localhost"));
        assert_ne!(of("\n"), of("\n"));
        assert_eq!("a b".parse::<NodeId>(), Err(IdError::Node));
    }
}
