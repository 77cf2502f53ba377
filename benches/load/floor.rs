//! "The kernel alone": a server that, once a viewer plays, does nothing for it but one `send` now and then.
//!
//! It speaks just enough RTMP for the same publishers and viewers as every other server. It knows one stream at a time,
//! reads nothing from viewers that play, and drops who cannot take everything at once.

use super::epoll::{self, Epoll};
use bytes::BytesMut;
use lb::media::{Packet, PacketKind};
use lb::relay::ring::write_wire;
use lb::rtmp::session::{Event, Server};
use socket2::SockRef;
use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// What shares a `send`.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// Nothing: each message has its own.
    Message,
    /// Audio goes with the video frame after it.
    Frame,
    /// Whatever comes within 100 ms.
    #[value(name = "100ms")]
    Window,
    /// As [`Share::Frame`], and who comes gets what was sent since the last keyframe: what a join costs at least.
    Group,
}

const WINDOW: Duration = Duration::from_millis(100);

struct Floor {
    share: Share,
    /// With their tokens.
    viewers: Vec<(usize, TcpStream)>,
    /// Metadata and configurations, for who comes late.
    headers: BytesMut,
    /// What was sent since the last keyframe, for the same.
    group: BytesMut,
    pending: BytesMut,
    /// When `pending` goes out.
    due: Option<Instant>,
}

/// Serves until it is killed.
pub fn serve(share: Share) -> ! {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("a socket option");
    println!("floor ready {}", listener.local_addr().expect("an address").port());
    let mut epoll = Epoll::new().expect("epoll");
    epoll.add(&listener, 0, epoll::READ).expect("epoll");
    let mut peers: HashMap<usize, (TcpStream, Server)> = HashMap::new();
    let mut next = 1;
    let mut scratch = vec![0; 256 << 10];
    let mut ready = Vec::new();
    let mut floor = Floor {
        share,
        viewers: Vec::new(),
        headers: BytesMut::new(),
        group: BytesMut::new(),
        pending: BytesMut::new(),
        due: None,
    };
    loop {
        let wait = floor.due.map_or(-1, |due| {
            due.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000) as i32
        });
        epoll.wait(&mut ready, wait).expect("epoll");
        if floor.due.is_some_and(|due| due <= Instant::now()) {
            floor.send();
        }
        for &token in &ready {
            if token == 0 {
                while let Ok((socket, _)) = listener.accept() {
                    socket.set_nonblocking(true).expect("a socket option");
                    socket.set_nodelay(true).expect("a socket option");
                    // Room for a group of pictures.
                    SockRef::from(&socket).set_send_buffer_size(256 << 10).expect("a socket option");
                    epoll.add(&socket, next, epoll::READ).expect("epoll");
                    peers.insert(next, (socket, Server::new(lb::rtmp::Limits::default(), [9; 32])));
                    next += 1;
                }
            } else if let Some((socket, session)) = peers.get_mut(&token) {
                match floor.serve(socket, session, &mut scratch) {
                    Some(false) => {}
                    Some(true) => {
                        let (socket, _) = peers.remove(&token).expect("it is there");
                        epoll.modify(&socket, token, epoll::CLOSED).expect("epoll");
                        floor.viewers.push((token, socket));
                    }
                    None => drop(peers.remove(&token)),
                }
            } else {
                floor.viewers.retain(|(viewer, _)| *viewer != token);
            }
        }
    }
}

impl Floor {
    /// Reads once. `true`: it plays from now on. Nothing: it is gone.
    fn serve(&mut self, socket: &TcpStream, session: &mut Server, scratch: &mut [u8]) -> Option<bool> {
        let n = match { socket }.read(scratch) {
            Ok(0) => return None,
            Ok(n) => n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Some(false),
            Err(_) => return None,
        };
        session.input(&scratch[..n]).ok()?;
        let mut plays = false;
        while let Some(event) = session.event() {
            match event {
                Event::Connect(_) => session.accept_connect(),
                Event::Publish(publish) => session.accept_publish(publish.stream_id),
                Event::Play(play) => {
                    session.accept_play(play.stream_id, None);
                    plays = true;
                }
                Event::Media(message) => self.take(match message.type_id {
                    8 => Packet::audio(message.timestamp, message.body),
                    9 => Packet::video(message.timestamp, message.body),
                    _ => Packet::data(message.timestamp, message.body),
                }),
                _ => {}
            }
        }
        let mut output = BytesMut::from(session.output());
        if plays {
            output.extend_from_slice(&self.headers);
            output.extend_from_slice(&self.group);
        }
        ({ socket }.write(&output).ok()? == output.len()).then_some(plays)
    }

    fn take(&mut self, packet: Packet) {
        let header = packet.kind.is_header() || matches!(packet.kind, PacketKind::Data { .. });
        let frame = packet.kind.is_video_frame();
        if packet.kind.is_keyframe() {
            self.group.clear();
        }
        if header {
            write_wire(&mut self.headers, &packet, packet.timestamp);
        }
        self.pending.reserve(packet.body.len() + 64);
        write_wire(&mut self.pending, &packet, packet.timestamp);
        match self.share {
            Share::Message => self.send(),
            Share::Frame | Share::Group if frame => self.send(),
            Share::Frame | Share::Group => {}
            Share::Window => {
                self.due.get_or_insert(Instant::now() + WINDOW);
            }
        }
    }

    fn send(&mut self) {
        self.due = None;
        let wire = &self.pending;
        if self.share == Share::Group {
            self.group.extend_from_slice(wire);
        }
        self.viewers.retain(|(_, viewer)| { viewer }.write(wire).ok() == Some(wire.len()));
        self.pending.clear();
    }
}
