//! The limits of a ring.

use super::*;
use crate::relay::ring::{Block, Mark, Ring};
use std::time::Instant;

fn fill(ring: &mut Ring, count: u32, body: usize, every: u64, start: Instant) {
    let body = "x".repeat(body);
    for n in 0..count {
        let packet = if n == 0 { key(0, &body) } else { video(n * 40, &body) };
        ring.push(&packet, packet.timestamp, start + Duration::from_millis(u64::from(n) * every));
        ring.seal();
    }
}

#[test]
fn a_ring_holds_its_limit_and_forgets_a_group_that_is_longer() {
    let settings = Settings { ring_bytes: 100_000, ..Settings::default() };
    let mut ring = Ring::new(&settings);
    fill(&mut ring, 50, 1_000, 40, Instant::now());
    assert!(ring.start().is_some(), "one group of 50 kB fits");
    fill(&mut ring, 200, 1_000, 40, Instant::now());
    assert!(ring.bytes() <= 100_000 && ring.bytes() > 90_000);
    assert!(ring.start().is_none() && !ring.can_start(), "the group has lost its start");
    ring.push(&key(9_000, "k"), 9_000, Instant::now());
    assert!(ring.can_start());
    ring.seal();
    assert_eq!(ring.start(), Some((Mark { number: ring.end() - 1, index: 250 }, 9_000)));
}

#[test]
fn tiny_blocks_are_held_for_what_they_really_cost() {
    let mut ring = Ring::new(&Settings { ring_bytes: 1 << 20, ..Settings::default() });
    fill(&mut ring, 100_000, 0, 0, Instant::now());
    // Each is a message of some ten bytes, and takes as much again many times over.
    let blocks = usize::try_from(ring.end() - ring.first()).unwrap();
    assert!(blocks * (size_of::<Block>() + 64) < 1 << 20, "{blocks} blocks in a ring of a mebibyte");
    assert!(blocks > 5_000, "{blocks}");
}

#[test]
fn a_message_larger_than_the_ring_is_kept_while_it_is_the_newest() {
    let mut ring = Ring::new(&Settings { ring_bytes: 10_000, ..Settings::default() });
    fill(&mut ring, 1, 50_000, 0, Instant::now());
    assert_eq!((ring.first(), ring.end()), (0, 1));
    fill(&mut ring, 1, 10, 0, Instant::now());
    assert_eq!((ring.first(), ring.end()), (1, 2));
}

#[test]
fn the_past_is_kept_for_the_lag_and_the_newest_group_for_ever() {
    let settings = Settings { lag: Duration::from_secs(2), ..Settings::default() };
    let (mut ring, start) = (Ring::new(&settings), Instant::now());
    fill(&mut ring, 100, 10, 100, start);
    assert_eq!(ring.first(), 0, "ten seconds of the newest group");
    ring.push(&key(0, "k"), 4_000, start + Duration::from_secs(10));
    ring.seal();
    assert_eq!(ring.end() - ring.first(), 1 + 20);
    assert_eq!(ring.index(ring.first()), ring.first(), "one message a block");
    assert_eq!(ring.index(ring.end()), 101);
}

#[test]
fn nobody_watching_costs_blocks_of_bounded_length() {
    let (mut ring, start) = (Ring::new(&Settings::default()), Instant::now());
    for n in 0..1000 {
        let packet = audio(n * 20, "a");
        ring.push(&packet, packet.timestamp, start + Duration::from_millis(u64::from(n) * 20));
    }
    ring.seal();
    let (at, timestamp) = ring.start().unwrap();
    assert!(ring.end() - ring.first() >= 18, "four seconds of blocks of 0.2 s");
    assert!((19_300..=19_600).contains(&timestamp), "{timestamp}");
    assert!(at.number < ring.end());
}

#[test]
fn frames_without_a_header_that_follow_audio_are_no_place_to_start() {
    let (mut ring, start) = (Ring::new(&Settings::default()), Instant::now());
    ring.push(&audio(0, "a"), 0, start);
    assert!(ring.can_start());
    ring.push(&video(10, "v"), 10, start);
    assert!(!ring.can_start());
    ring.seal();
    assert_eq!(ring.start(), None);
    ring.push(&key(50, "k"), 50, start);
    ring.seal();
    assert_eq!(ring.start(), Some((Mark { number: 1, index: 2 }, 50)));
}

#[test]
fn audio_that_outlives_its_video_is_a_place_to_start_of_its_own() {
    let (mut ring, start) = (Ring::new(&Settings::default()), Instant::now());
    ring.push(&key(0, "k"), 0, start);
    let mut sound = |millis: u32| {
        let packet = audio(millis, "a");
        ring.push(&packet, millis, start + Duration::from_millis(u64::from(millis)));
        ring.seal();
        ring.start().map(|(_, timestamp)| timestamp)
    };
    assert_eq!((1..=30).map(|n| sound(n * 1_000)).max(), Some(Some(0)), "a long group is still a group");
    assert_eq!(sound(31_000), Some(31_000));
    assert_eq!(sound(31_020), Some(31_000));
    assert!(ring.end() - ring.first() < 10, "and what came before is forgotten");
}
