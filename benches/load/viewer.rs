//! A viewer: joins as every player does, then drains, checks, stalls or leaves.

use super::check::{Check, Findings, Sent};
use super::link::Link;
use bytes::BytesMut;
use lb::media::flv;
use lb::rtmp::Message;
use lb::rtmp::session::{Client, ClientEvent, Target, WINDOW_ACK_SIZE};
use std::io::ErrorKind;
use std::time::{Duration, Instant};

/// What a viewer does once it has seen its first keyframe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Habit {
    /// Reads and forgets.
    Drain,
    /// Compares every message with what was published.
    Check,
    /// Reads no more.
    Stall,
    /// Closes.
    Leave,
}

/// How a viewer stands after it was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Now {
    Same,
    /// The first keyframe is here.
    Joined,
    /// The server closed, or broke the protocol.
    Closed,
}

/// One viewer's connection.
pub struct Viewer {
    pub link: Link,
    pub stream: usize,
    pub habit: Habit,
    /// When the connection was begun.
    pub begun: Instant,
    /// From there to the first keyframe.
    pub joined: Option<Duration>,
    /// Dropped when nothing needs to be understood any more.
    speech: Option<Box<Speech>>,
    /// It acknowledges what it receives.
    acknowledges: bool,
    check: Check,
    received: u64,
    acknowledged: u64,
}

/// What a viewer and its server say to each other.
enum Speech {
    Rtmp(Box<Client>),
    /// One request, an answer whose head has not ended yet, and FLV.
    Http {
        head: Vec<u8>,
        flv: Option<flv::Reader>,
    },
}

/// How a viewer asks for its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Rtmp,
    Http,
}

impl Viewer {
    pub fn new(link: Link, begun: Instant, target: &Target, stream: usize, habit: Habit, by: By) -> Self {
        let speech = match by {
            By::Rtmp => {
                let limits = lb::rtmp::Limits::default();
                Speech::Rtmp(Box::new(Client::play(target, limits, super::publisher::nonce())))
            }
            By::Http => Speech::Http { head: Vec::new(), flv: None },
        };
        let mut viewer = Viewer {
            link,
            stream,
            habit,
            begun,
            joined: None,
            speech: Some(Box::new(speech)),
            acknowledges: by == By::Rtmp,
            check: Check::default(),
            received: 0,
            acknowledged: 0,
        };
        if by == By::Http {
            let Target { app, stream_key, .. } = target;
            viewer
                .link
                .write(format!("GET /{app}/{stream_key}.flv HTTP/1.1\r\nHost: bench\r\n\r\n").as_bytes());
        }
        viewer.flush();
        viewer
    }

    /// Reads once. Gives the bytes that came.
    pub fn ready(
        &mut self,
        scratch: &mut [u8],
        sent: &[Sent],
        measuring: bool,
        findings: &mut Findings,
    ) -> (Now, usize) {
        let n = match self.link.read(scratch) {
            Ok(0) => return (Now::Closed, 0),
            Ok(n) => n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return (Now::Same, 0),
            Err(_) => return (Now::Closed, 0),
        };
        self.received += n as u64;
        let Some(speech) = &mut self.speech else {
            self.acknowledge();
            return (Now::Same, n);
        };
        let Ok(events) = speech.hear(&scratch[..n]) else { return (Now::Closed, n) };
        let now = Instant::now();
        let mut state = Now::Same;
        for event in events {
            match event {
                ClientEvent::Media(message) => {
                    let keyframe = message.type_id == 9
                        && message.body.first().is_some_and(|byte| byte >> 4 == 1)
                        && message.body.get(1) == Some(&1);
                    if keyframe && self.joined.is_none() {
                        self.joined = Some(now - self.begun);
                        state = Now::Joined;
                    }
                    if self.habit == Habit::Check {
                        self.check.take(&message, sent, now, measuring, findings);
                    }
                }
                ClientEvent::Closed => return (Now::Closed, n),
                _ => {}
            }
        }
        self.flush();
        if self.joined.is_some() && self.habit != Habit::Check {
            self.speech = None;
        }
        (state, n)
    }

    fn flush(&mut self) {
        let output = match self.speech.as_deref_mut() {
            Some(Speech::Rtmp(client)) => client.output(),
            _ => return,
        };
        if !output.is_empty() {
            self.link.write(&output);
        }
    }

    /// What the protocol asks of a viewer: an acknowledgement each window.
    fn acknowledge(&mut self) {
        if !self.acknowledges || self.received - self.acknowledged < u64::from(WINDOW_ACK_SIZE) {
            return;
        }
        self.acknowledged = self.received;
        let mut wire = BytesMut::new();
        let count = (self.received as u32).to_be_bytes();
        lb::rtmp::chunk::write_message(&mut wire, 2, 0, 3, 0, &count, 128);
        self.link.write(&wire);
    }
}

impl Speech {
    /// What the bytes say; an error if it is nothing that can be understood.
    fn hear(&mut self, mut bytes: &[u8]) -> Result<Vec<ClientEvent>, ()> {
        match self {
            Speech::Rtmp(client) => {
                client.input(bytes).map_err(drop)?;
                Ok(std::iter::from_fn(|| client.event()).collect())
            }
            Speech::Http { head, flv } => {
                if flv.is_none() {
                    let before = head.len();
                    head.extend_from_slice(bytes);
                    let Some(end) = head.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
                        return Ok(Vec::new());
                    };
                    if !head.starts_with(b"HTTP/1.1 200") {
                        return Err(());
                    }
                    bytes = &bytes[end + 4 - before..];
                }
                let reader = flv.get_or_insert_with(|| flv::Reader::new(flv::TAG_SIZE_MAX));
                let mut events = Vec::new();
                while let Some(packet) = reader.read(&mut bytes).map_err(drop)? {
                    events.push(ClientEvent::Media(Message {
                        chunk_stream_id: 0,
                        timestamp: packet.timestamp,
                        type_id: packet.type_id(),
                        stream_id: 1,
                        body: packet.body,
                    }));
                }
                Ok(events)
            }
        }
    }
}
