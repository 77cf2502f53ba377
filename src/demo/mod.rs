//! `lb demo`: a whole cluster in this process, and two streams to look at. It needs no network, no ffmpeg and no free port of a certain
//! number; what it listens with is for this host.
//!
//! The clips in this folder are made by `scripts/clips`. Each is published over and over, as a push to this process.

use crate::budget::Budget;
use crate::cli::Args;
use crate::config::{Error, Plan};
use crate::media::{Packet, flv};
use crate::net::location::Location;
use crate::net::push::{Settings as PushSettings, push};
use crate::node::{self, Addresses};
use crate::relay::Outlet;
use crate::relay::queue::queue;
use crate::rtmp::Limits;
use crate::telemetry::Metrics;
use clap::Parser;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;

/// What is published: names and clips.
const STREAMS: [(&str, &[u8]); 2] =
    [("demo/test", include_bytes!("test.flv")), ("demo/fractal", include_bytes!("fractal.flv"))];

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

/// Publishes a clip over and over, on one connection after another.
async fn publish(server: SocketAddr, name: &str, clip: &[u8]) {
    let location = Location::parse(&format!("rtmp://{server}/ingest/{name}"));
    let (packets, location, metrics) = match (read(clip), location, Metrics::new()) {
        (Ok(packets), Ok(location), Ok(metrics)) => (packets, location, Arc::new(metrics)),
        (packets, location, _) => {
            return tracing::error!(name, "not published: {:?} {:?}", packets.err(), location.err());
        }
    };
    let (mut inlet, queue) = queue(&Budget::new(usize::MAX).holder(), metrics.clone());
    let play = async {
        let (begun, mut clip) = (Instant::now(), Clip::new(&packets));
        loop {
            sleep_until(begun + clip.due()).await;
            if let Some((packet, timestamp)) = clip.next() {
                inlet.push(&[Packet { timestamp, ..packet.clone() }]);
            }
        }
    };
    tokio::select! {
        () = play => {}
        () = push(location, PushSettings::default(), Limits::default(), metrics, queue) => {}
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
