//! The load tool's checker finds what it claims to find: a figure of "0 lost" is worth what this shows.

#![allow(dead_code)] // of the load tool's files only the checker is used
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // as in the load tool

#[path = "../benches/load/check.rs"]
mod check;
#[path = "../benches/load/clip.rs"]
mod clip;

use bytes::Bytes;
use check::{Check, Findings, Sent};
use lb::rtmp::Message;
use std::time::{Duration, Instant};

/// Three groups of thirty frames, each frame with a sound behind it, all different.
fn messages() -> Vec<Message> {
    let message = |n: u32| {
        let video = n.is_multiple_of(2);
        let head: [u8; 2] = match (video, n.is_multiple_of(60)) {
            (true, true) => [0x17, 1],
            (true, false) => [0x27, 1],
            (false, _) => [0xaf, 1],
        };
        let body = [&head[..], &n.to_be_bytes()].concat();
        let (type_id, chunk_stream_id) = if video { (9, 6) } else { (8, 4) };
        Message { type_id, timestamp: n * 16, stream_id: 1, chunk_stream_id, body: Bytes::from(body) }
    };
    (0..180).map(message).collect()
}

/// What a viewer finds that gets these messages, of those that were published.
fn found(received: &[Message]) -> Findings {
    let now = Instant::now();
    let sent: Vec<Sent> = messages()
        .iter()
        .map(|message| Sent {
            type_id: message.type_id,
            timestamp: message.timestamp,
            hash: clip::hash(&message.body),
            keyframe: message.body[0] == 0x17,
            at: now,
        })
        .collect();
    let (mut check, mut findings) = (Check::default(), Findings::default());
    for message in received {
        check.take(message, &sent, now + Duration::from_millis(5), true, &mut findings);
    }
    findings
}

fn faults(findings: &Findings) -> [u64; 4] {
    [findings.lost, findings.reordered, findings.altered, findings.retimed]
}

/// From the newest keyframe on, as a viewer joins.
fn joined() -> Vec<Message> {
    messages().split_off(120)
}

#[test]
fn a_stream_that_arrives_whole_has_no_fault() {
    let findings = found(&joined());
    assert_eq!((findings.seen, faults(&findings)), (60, [0; 4]));
    assert_eq!((findings.video.len(), findings.audio.len()), (30, 30));
    assert!(findings.video.iter().all(|latency| *latency == Duration::from_millis(5)));
}

#[test]
fn every_message_that_is_missing_is_counted() {
    let mut received = joined();
    received.remove(40);
    received.drain(10..13);
    assert_eq!(faults(&found(&received)), [4, 0, 0, 0]);
}

#[test]
fn a_message_out_of_order_or_twice_is_counted() {
    let mut received = joined();
    received.swap(20, 21);
    let swapped = found(&received);
    assert_eq!(swapped.reordered, 1, "the one that came late");
    let mut received = joined();
    received.insert(30, received[29].clone());
    assert_eq!(faults(&found(&received)), [0, 1, 0, 0]);
}

#[test]
fn a_changed_byte_and_a_changed_time_are_counted() {
    let mut received = joined();
    let mut body = received[25].body.to_vec();
    body[2] ^= 0x80;
    received[25].body = Bytes::from(body);
    assert_eq!(found(&received).altered, 1);
    let mut received = joined();
    received[25].timestamp += 1;
    assert_eq!(faults(&found(&received)), [0, 0, 0, 1]);
}
