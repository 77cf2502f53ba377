//! A publisher that sends messages of two bytes, chunks of three, as fast as the server reads them.

use super::publisher::nonce;
use lb::rtmp::Message;
use lb::rtmp::session::{Client, ClientEvent, PLAY_STREAM_ID, Target};
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;

/// The first message: a whole header, which all others repeat, and an inter frame of two bytes, in a codec whose frames have
/// no longer head. One of format 3 behind it repeats its time as a delta: a millisecond.
const FIRST: [u8; 14] = [8, 0, 0, 1, 0, 0, 2, 9, 1, 0, 0, 0, 0x22, 1];

/// A chunk with a header of format 3, and a keyframe: who falls behind goes on there.
const KEYFRAME: [u8; 3] = [0xc8, 0x12, 1];

/// The same with an inter frame.
const INTER: [u8; 3] = [0xc8, 0x22, 1];

/// How many messages one write has at most, a keyframe among them: it must not keep the tool from its other sockets.
const MESSAGES: usize = 16 << 10;

/// The flooding connection.
pub struct Flood {
    pub socket: TcpStream,
    client: Client,
    state: State,
    wire: Vec<u8>,
    /// Where in `wire` the next write begins.
    at: usize,
    /// Bytes that went out.
    sent: u64,
}

#[derive(PartialEq, Eq)]
enum State {
    Asking,
    /// The keyframe was sent, so that viewers can join.
    Ready,
    Flooding,
    Stopped,
}

impl Flood {
    pub fn new(socket: TcpStream, target: &Target) -> io::Result<Self> {
        let client = Client::publish(target, lb::rtmp::Limits::default(), nonce());
        let mut flood = Flood {
            socket,
            client,
            state: State::Asking,
            wire: [&KEYFRAME[..], &INTER.repeat(MESSAGES - 1)].concat(),
            at: 0,
            sent: 0,
        };
        flood.flush()?;
        Ok(flood)
    }

    pub fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    pub fn begin(&mut self) -> io::Result<()> {
        // A few bytes into an empty socket: they fit.
        (&self.socket).write_all(&FIRST)?;
        self.state = State::Flooding;
        Ok(())
    }

    pub fn stop(&mut self) {
        self.state = State::Stopped;
    }

    pub fn messages(&self) -> u64 {
        self.sent / INTER.len() as u64
    }

    /// Reads what came, and writes once if it floods. `false`: the server closed.
    pub fn ready(&mut self, scratch: &mut [u8]) -> bool {
        let heard = match (&self.socket).read(scratch) {
            Ok(n) => n > 0 && self.heard(&scratch[..n]).is_ok(),
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        };
        heard && (self.state != State::Flooding || self.write().is_ok())
    }

    fn heard(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.client.input(bytes).map_err(io::Error::other)?;
        while let Some(event) = self.client.event() {
            if matches!(event, ClientEvent::Publishing) {
                let body = bytes::Bytes::from_static(&[0x12, 1]);
                let keyframe =
                    Message { type_id: 9, stream_id: PLAY_STREAM_ID, chunk_stream_id: 0, timestamp: 0, body };
                self.client.send_media(&keyframe);
                self.state = State::Ready;
            }
        }
        // Between two of its own chunks the flood says nothing else.
        if self.state == State::Flooding { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> io::Result<()> {
        (&self.socket).write_all(&self.client.output())
    }

    fn write(&mut self) -> io::Result<()> {
        match (&self.socket).write(&self.wire[self.at..]) {
            Ok(n) => {
                self.at = (self.at + n) % self.wire.len();
                self.sent += n as u64;
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }
}
