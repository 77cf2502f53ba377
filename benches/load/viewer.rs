//! A viewer: joins as every player does, then drains, checks, stalls or leaves.

use super::check::{Check, Findings, Sent};
use super::link::Link;
use bytes::BytesMut;
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
    client: Option<Box<Client>>,
    check: Check,
    received: u64,
    acknowledged: u64,
}

impl Viewer {
    pub fn new(link: Link, begun: Instant, target: &Target, stream: usize, habit: Habit) -> Self {
        let client = Client::play(target, lb::rtmp::Limits::default(), super::publisher::nonce());
        let mut viewer = Viewer {
            link,
            stream,
            habit,
            begun,
            joined: None,
            client: Some(Box::new(client)),
            check: Check::default(),
            received: 0,
            acknowledged: 0,
        };
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
        let Some(client) = &mut self.client else {
            self.acknowledge();
            return (Now::Same, n);
        };
        if client.input(&scratch[..n]).is_err() {
            return (Now::Closed, n);
        }
        let now = Instant::now();
        let mut state = Now::Same;
        while let Some(event) = client.event() {
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
            self.client = None;
        }
        (state, n)
    }

    fn flush(&mut self) {
        let output = self.client.as_mut().map(|client| client.output()).unwrap_or_default();
        if !output.is_empty() {
            self.link.write(&output);
        }
    }

    /// What the protocol asks of a viewer: an acknowledgement each window.
    fn acknowledge(&mut self) {
        if self.received - self.acknowledged < u64::from(WINDOW_ACK_SIZE) {
            return;
        }
        self.acknowledged = self.received;
        let mut wire = BytesMut::new();
        let count = (self.received as u32).to_be_bytes();
        lb::rtmp::chunk::write_message(&mut wire, 2, 0, 3, 0, &count, 128);
        self.link.write(&wire);
    }
}
