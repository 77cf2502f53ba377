//! Streams that last for days, by a publisher that leaps through them: through an ingest node, a pull, and a playback node to a
//! viewer. What wraps and what is extended on the wire is right on each of the three connections.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests may panic

mod common;

use common::endpoint::{self, Mark};
use common::lb::Lb;
use common::viewer::{Kind, Seen, Viewer};
use common::{SOON, wait_for};
use lb::rtmp::session::{Client, ClientEvent};
use lb::rtmp::{Limits, Message};
use std::net::SocketAddr;
use tokio::net::TcpStream;

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;

/// From here on timestamps are extended on the wire: 4 h 39 m 37 s.
const EXTENDED: u64 = 0xFF_FFFF;

/// Here the clock begins again at zero: 49 d 17 h 2 m 47 s.
const WRAP: u64 = 1 << 32;

/// Longer than a chunk of either side, so that a message has chunks that repeat its timestamp.
const FRAME: usize = 150_000;

/// A publisher that sends what a test tells it to.
struct Publisher {
    socket: TcpStream,
    client: Client,
    number: u32,
}

impl Publisher {
    async fn start(server: SocketAddr, key: &str) -> Publisher {
        let client =
            Client::publish(&endpoint::target(server, "ingest", key), Limits::default(), endpoint::nonce());
        let socket = TcpStream::connect(server).await.unwrap();
        let mut publisher = Publisher { socket, client, number: 0 };
        let mut scratch = vec![0; 4096];
        loop {
            endpoint::flush(&publisher.socket, &mut publisher.client).await.unwrap();
            match publisher.client.event() {
                Some(ClientEvent::Publishing) => break,
                Some(ClientEvent::Connected) => {}
                Some(other) => panic!("{other:?}"),
                None => {
                    let Publisher { socket, client, .. } = &mut publisher;
                    assert!(endpoint::receive(socket, client, &mut scratch).await.unwrap() > 0);
                }
            }
        }
        publisher.message(0, 9, vec![0x17, 0, 0, 0, 0]);
        publisher.message(0, 8, vec![0xaf, 0]);
        publisher
    }

    fn message(&mut self, time: u64, type_id: u8, body: Vec<u8>) {
        let timestamp = time as u32;
        let message = Message { type_id, stream_id: 1, chunk_stream_id: 0, timestamp, body: body.into() };
        assert!(self.client.send_media(&message));
    }

    /// A picture and the sound that goes with it, at a moment of the stream.
    async fn moment(&mut self, time: u64, keyframe: bool, bytes: usize) {
        let mark = Mark { session: 1, number: self.number };
        self.number += 1;
        for (type_id, head) in [(9, &[if keyframe { 0x17 } else { 0x27 }, 1, 0, 0, 0][..]), (8, &[0xaf, 1])] {
            let mut body = head.to_vec();
            mark.write(&mut body);
            if type_id == 9 {
                body.resize(bytes, time as u8);
            }
            self.message(time, type_id, body);
        }
        endpoint::flush(&self.socket, &mut self.client).await.unwrap();
    }
}

/// The moments of a stream of so many milliseconds: some close together around what is special, and leaps between that are
/// shorter than half of what the clock can tell apart.
fn moments(around: &[u64]) -> Vec<u64> {
    let mut moments: Vec<u64> = (0..10).map(|n| n * 40).collect();
    for special in around {
        let mut last = *moments.last().unwrap();
        while special - last > 20 * DAY {
            last += 20 * DAY;
            moments.push(last);
        }
        moments.extend((0..40).map(|n| special - 800 + n * 40 + 13));
    }
    moments
}

const PICTURES: [Kind; 2] = [Kind::Keyframe, Kind::Inter];
const SOUND: [Kind; 1] = [Kind::Audio];

/// The numbers and times of what came of these kinds.
fn of_kind(seen: &Seen, kinds: &[Kind]) -> Vec<(u32, u32)> {
    let of_kind = seen.arrivals.iter().filter(|arrival| kinds.contains(&arrival.kind));
    of_kind.filter_map(|arrival| Some((arrival.mark?.number, arrival.timestamp))).collect()
}

/// Plays a stream of these moments, and compares the viewer's times with them.
fn relayed(name: &str, moments: &[u64]) {
    let ingest = Lb::start(&["--role", "ingest,reactor", "--heartbeat", "1s"]);
    let playback = Lb::start(&["--role", "playback", "--reactor-url", &ingest.reactor_url()]);
    let runtime = endpoint::runtime();
    let mut publisher = runtime.block_on(Publisher::start(ingest.rtmp(), name));
    runtime.block_on(publisher.moment(moments[0], true, FRAME));
    let viewer = Viewer::start(playback.rtmp(), "live", name);
    wait_for("the first picture", SOON, || !viewer.seen().keyframes().is_empty());
    for (index, time) in moments.iter().enumerate().skip(1) {
        runtime.block_on(publisher.moment(*time, index.is_multiple_of(10), FRAME));
        // One after the other, so that nothing is skipped and a leap is no burst.
        wait_for("the picture", SOON, || {
            let seen = viewer.seen();
            assert!(seen.ended.is_none(), "{:?}", seen.ended);
            of_kind(&seen, &PICTURES).len() > index && of_kind(&seen, &SOUND).len() >= index
        });
    }
    wait_for("the last sound", SOON, || of_kind(&viewer.seen(), &SOUND).len() == moments.len());
    let wanted: Vec<(u32, u32)> = (0..).zip(moments.iter().map(|time| *time as u32)).collect();
    assert_eq!(of_kind(&viewer.seen(), &PICTURES), wanted, "{name}");
    assert_eq!(of_kind(&viewer.seen(), &SOUND), wanted, "{name}");

    // One that comes now begins with the newest keyframe, at its time; its headers say the same.
    let late = Viewer::start(playback.rtmp(), "live", name);
    wait_for("the newest picture", SOON, || !late.seen().keyframes().is_empty());
    let newest = moments.iter().enumerate().rfind(|(index, _)| index.is_multiple_of(10)).unwrap();
    let seen = late.seen();
    let begun = seen.keyframes()[0];
    assert_eq!(
        (begun.mark.unwrap().number as usize, u64::from(begun.timestamp)),
        (newest.0, newest.1 % WRAP)
    );
    let header = seen.arrivals.iter().find(|arrival| arrival.kind == Kind::VideoHeader).unwrap();
    assert_eq!(header.timestamp, begun.timestamp);
}

#[test]
fn after_four_hours_and_forty_minutes_timestamps_are_extended() {
    relayed("hours", &moments(&[EXTENDED, 5 * HOUR]));
}

#[test]
fn after_seven_weeks_the_clock_begins_again() {
    relayed("weeks", &moments(&[EXTENDED, WRAP, WRAP + EXTENDED, WRAP + 5 * HOUR]));
}
