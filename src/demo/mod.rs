//! `lb demo`: a whole cluster in this process, and two streams to look at. It needs no network, no ffmpeg and no free port of a certain
//! number; what it listens with is for this host.
//!
//! The clips in this folder are made by `scripts/clips`. Each is published over and over by the protocol's own client, as an encoder would.

use crate::cli::Args;
use crate::config::{Error, Plan};
use crate::media::{Packet, flv};
use crate::node::{self, Addresses};
use crate::rtmp::session::{Client, ClientEvent, Target};
use crate::rtmp::{Limits, Message};
use clap::Parser;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::AbortOnDropHandle;

/// What is published: names and clips.
const STREAMS: [(&str, &[u8]); 2] =
    [("demo/test", include_bytes!("test.flv")), ("demo/fractal", include_bytes!("fractal.flv"))];

/// The chunk stream of all messages: audio and video need not overtake each other here.
const CHUNK_STREAM: u32 = 6;

/// Between a connection that ended and the next.
const PAUSE: Duration = Duration::from_secs(1);

/// The flags of the process, with this filter for its log.
///
/// Errors: the filter is none.
pub fn plan(log: &str) -> Result<Plan, Error> {
    let local = "127.0.0.1:0";
    Plan::new(Args::parse_from([
        "lb",
        "--role",
        "all",
        "--rtmp-port",
        "0",
        "--http-listen",
        local,
        "--reactor-listen",
        local,
        "--admin-listen",
        local,
        "--heartbeat",
        "1s",
        "--report-interval",
        "1s",
        "--log",
        log,
    ]))
}

/// Runs the demo until a signal ends it.
///
/// Errors: see [`node::Error`].
pub async fn run(plan: Plan) -> Result<(), node::Error> {
    println!("lb demo: a whole cluster in this process, with two streams to look at. Ctrl-c ends it.");
    let mut publishers = Vec::new();
    node::run_and_tell(plan, |addresses: &Addresses| {
        let Some(port) = addresses.rtmp_port() else { return };
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        publishers = STREAMS
            .into_iter()
            .map(|(name, clip)| AbortOnDropHandle::new(tokio::spawn(publish(server, name, clip))))
            .collect();
    })
    .await
}

async fn publish(server: SocketAddr, name: &str, clip: &[u8]) {
    let packets = match read(clip) {
        Ok(packets) => packets,
        Err(error) => return tracing::error!(name, "the clip cannot be read: {error}"),
    };
    loop {
        if let Err(error) = connect(server, name, &packets).await {
            tracing::debug!(name, "the publisher's connection ended: {error}");
        }
        sleep(PAUSE).await;
    }
}

fn read(mut clip: &[u8]) -> Result<Vec<Packet>, flv::Error> {
    let mut reader = flv::Reader::new(flv::TAG_SIZE_MAX);
    let mut packets = Vec::new();
    while let Some(packet) = reader.read(&mut clip)? {
        packets.push(packet);
    }
    Ok(packets)
}

/// Publishes on one connection until it ends.
async fn connect(server: SocketAddr, name: &str, packets: &[Packet]) -> io::Result<()> {
    let socket = TcpStream::connect(server).await?;
    socket.set_nodelay(true)?;
    let target = Target {
        app: "ingest".to_owned(),
        tc_url: format!("rtmp://{server}/ingest"),
        stream_key: name.to_owned(),
    };
    let mut client = Client::publish(&target, Limits::default(), rand::random());
    let mut buffer = vec![0; 4096];
    let mut clip = Clip::new(packets);
    let mut begun = None::<Instant>;
    loop {
        send(&socket, &mut client).await?;
        let due = async {
            match begun {
                Some(begun) => sleep_until(begun + clip.due()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            n = receive(&socket, &mut buffer) => {
                let n = n?;
                if n == 0 {
                    return Ok(());
                }
                client.input(buffer.get(..n).unwrap_or_default()).map_err(io::Error::other)?;
                while let Some(event) = client.event() {
                    if matches!(event, ClientEvent::Publishing) {
                        begun = Some(Instant::now());
                    }
                }
            }
            () = due => {
                if let Some((packet, timestamp)) = clip.next() {
                    client.send_media(&Message {
                        type_id: packet.type_id(),
                        timestamp,
                        chunk_stream_id: CHUNK_STREAM,
                        stream_id: client.stream_id(),
                        body: packet.body.clone(),
                    });
                }
            }
        }
    }
}

/// A clip, over and over.
struct Clip<'a> {
    packets: &'a [Packet],
    at: usize,
    /// Of the round that is being played.
    offset: u32,
    /// How long a round is.
    length: u32,
}

impl<'a> Clip<'a> {
    fn new(packets: &'a [Packet]) -> Self {
        let frames: Vec<u32> = packets
            .iter()
            .filter(|packet| packet.kind.is_video_frame())
            .map(|packet| packet.timestamp)
            .collect();
        let (first, last) = (frames.first().copied().unwrap_or(0), frames.last().copied().unwrap_or(0));
        // The last frame takes as long as the others.
        let frame = (last - first) / u32::try_from(frames.len().saturating_sub(1)).unwrap_or(1).max(1);
        Clip { packets, at: 0, offset: 0, length: (last - first + frame).max(1) }
    }

    /// When the next packet is due, from the start.
    fn due(&self) -> Duration {
        let packet = self.packets.get(self.at);
        Duration::from_millis(u64::from(self.offset) + packet.map_or(0, |packet| packet.timestamp.into()))
    }

    fn next(&mut self) -> Option<(&'a Packet, u32)> {
        let packet = self.packets.get(self.at)?;
        let timestamp = self.offset.wrapping_add(packet.timestamp);
        self.at += 1;
        if self.at == self.packets.len() {
            (self.at, self.offset) = (0, self.offset.wrapping_add(self.length));
        }
        Some((packet, timestamp))
    }
}

async fn send(socket: &TcpStream, client: &mut Client) -> io::Result<()> {
    let mut output = client.output();
    while !output.is_empty() {
        match socket.try_write(&output) {
            Ok(n) => output = output.slice(n..),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn receive(socket: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        socket.readable().await?;
        match socket.try_read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return read,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clips_are_whole_and_loop_without_a_jump_in_time() {
        for (name, clip) in STREAMS {
            let packets = read(clip).unwrap();
            let first = packets.iter().find(|packet| packet.kind.is_video_frame()).unwrap();
            assert!(first.kind.is_keyframe(), "{name}");
            let mut clip = Clip::new(&packets);
            let mut last = None::<u32>;
            for _ in 0..packets.len() * 3 {
                let (packet, timestamp) = clip.next().unwrap();
                if packet.kind.is_video_frame() {
                    let step = last.map_or(67, |last| timestamp - last);
                    assert!((60..=70).contains(&step), "{name}: {step} ms before {timestamp}");
                    last = Some(timestamp);
                }
            }
        }
    }
}
