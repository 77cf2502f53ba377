//! A publisher that plays a clip round after round, in real time, with rising timestamps.

use super::check::Sent;
use super::clip::Clip;
use lb::rtmp::session::{Client, ClientEvent, Target};
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// One publisher's connection.
pub struct Publisher {
    pub socket: TcpStream,
    client: Client,
    /// When the clip began.
    pub begun: Option<Instant>,
    next: usize,
    round: u32,
    /// What the socket did not take.
    backlog: Vec<u8>,
    /// Messages that had to wait in the backlog: the server read too slowly.
    pub late: u64,
    pub refused: Option<String>,
}

impl Publisher {
    pub fn new(socket: TcpStream, target: &Target) -> Self {
        let client = Client::publish(target, lb::rtmp::Limits::default(), nonce());
        Publisher {
            socket,
            client,
            begun: None,
            next: 0,
            round: 0,
            backlog: Vec::new(),
            late: 0,
            refused: None,
        }
    }

    /// Reads what came, and writes what is to be written. `false`: the server closed.
    pub fn ready(&mut self, scratch: &mut [u8], clip: &Clip) -> bool {
        match (&self.socket).read(scratch) {
            Ok(0) => return false,
            Ok(n) => {
                if self.client.input(&scratch[..n]).is_err() {
                    return false;
                }
                while let Some(event) = self.client.event() {
                    match event {
                        ClientEvent::Publishing => {
                            clip.start.iter().for_each(|message| {
                                self.client.send_media(message);
                            });
                            self.begun = Some(Instant::now());
                        }
                        ClientEvent::Status { code, level, .. } if level == "error" => {
                            self.refused = Some(code);
                        }
                        _ => {}
                    }
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
        self.flush().is_ok()
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.backlog.extend_from_slice(&self.client.output());
        while !self.backlog.is_empty() {
            match (&self.socket).write(&self.backlog) {
                Ok(n) => drop(self.backlog.drain(..n)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub fn is_blocked(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// When the next message is to be sent.
    pub fn due(&self, clip: &Clip) -> Option<Instant> {
        let millis =
            u64::from(self.round) * u64::from(clip.round) + u64::from(clip.pieces[self.next].timestamp);
        Some(self.begun? + Duration::from_millis(millis))
    }

    /// Sends the next message.
    pub fn send(&mut self, clip: &Clip, log: Option<&mut Vec<Sent>>) -> io::Result<()> {
        let piece = &clip.pieces[self.next];
        let timestamp = self.round * clip.round + piece.timestamp;
        if let Some(log) = log {
            let &super::clip::Piece { type_id, hash, keyframe, .. } = piece;
            log.push(Sent { type_id, timestamp, hash, keyframe, at: Instant::now() });
        }
        self.next += 1;
        if self.next == clip.pieces.len() {
            (self.next, self.round) = (0, self.round + 1);
        }
        // The chunk header: one byte, then the time in three. No run lasts until these overflow.
        let (head, rest) = piece.wire.split_at(4);
        let [_, time @ ..] = timestamp.to_be_bytes();
        let head = [head[0], time[0], time[1], time[2]];
        let mut written = 0;
        if self.backlog.is_empty() {
            match (&self.socket).write_vectored(&[IoSlice::new(&head), IoSlice::new(rest)]) {
                Ok(n) => written = n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        if written < piece.wire.len() {
            self.late += 1;
            self.backlog.extend(head.iter().chain(rest).skip(written));
        }
        Ok(())
    }
}

/// The randomness of a handshake; nobody checks it here.
pub fn nonce() -> lb::rtmp::Nonce {
    [7; 32]
}
