//! The nodes that the faults are done to, with short intervals, and what is asked of them again and again.

use crate::common::lb::Lb;
use crate::common::publisher::{Media, Publisher};
use crate::common::viewer::Viewer;
use crate::common::{SOON, http, poll, wait_for};
use std::io::Write;
use std::net::SocketAddr;
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;
use tempfile::NamedTempFile;

/// The time between two heartbeats of the nodes here.
pub const HEARTBEAT: Duration = Duration::from_millis(300);

static MACHINE: RwLock<()> = RwLock::new(());

/// For tests that can share the machine with others of their kind.
pub fn shared_machine() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// For a test that loads the machine so much that figures of others would mean nothing.
pub fn whole_machine() -> RwLockWriteGuard<'static, ()> {
    MACHINE.write().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A reactor.
#[track_caller]
pub fn reactor(more: &[&str]) -> Lb {
    Lb::start(&[&["--role", "reactor", "--heartbeat", "300ms"], more].concat())
}

/// The flags of an ingest node.
pub fn ingest_flags<'a>(reactors: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["--role", "ingest", "--heartbeat", "300ms", "--drain-timeout", "3s", "--reactor-url", reactors], more]
        .concat()
}

/// An ingest node.
#[track_caller]
pub fn ingest(reactors: &str, more: &[&str]) -> Lb {
    Lb::start(&ingest_flags(reactors, more))
}

/// The flags of a playback node.
pub fn playback_flags<'a>(reactors: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [
        &["--role", "playback", "--heartbeat", "300ms", "--drain-timeout", "3s", "--reactor-url", reactors],
        more,
    ]
    .concat()
}

/// A playback node.
#[track_caller]
pub fn playback(reactors: &str, more: &[&str]) -> Lb {
    Lb::start(&playback_flags(reactors, more))
}

/// A configuration file.
pub fn config(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

/// The bundled configuration of an ingest node, asking again each second.
pub fn busy_ingest_config() -> NamedTempFile {
    config(
        &include_str!("../../mmids-configs/ingest.mmids").replace("update_interval=60", "update_interval=1"),
    )
}

/// The bundled configuration of a playback node, asking again each second.
pub fn busy_playback_config() -> NamedTempFile {
    config(
        &include_str!("../../mmids-configs/playback.mmids")
            .replace("update_interval=60", "update_interval=1"),
    )
}

/// A file's path as a flag takes it.
pub fn path(file: &NamedTempFile) -> &str {
    file.path().to_str().unwrap()
}

/// Publishes to an ingest node, and waits until the first keyframe has left.
#[track_caller]
pub fn publish(node: &Lb, name: &str, media: Media) -> Publisher {
    let publisher = Publisher::start(node.rtmp(), "ingest", name, media);
    publisher.wait_for_keyframe();
    publisher
}

/// The media of one publish among several.
pub fn session(session: u16) -> Media {
    Media { session, first_timestamp: u32::from(session) * 777_777, ..Media::default() }
}

/// Waits until the reactor names an owner.
#[track_caller]
pub fn wait_for_owner(reactor: SocketAddr, name: &str, owner: &Lb) {
    let port = format!(":{}\"", owner.rtmp_port());
    wait_for(&format!("{name} to be owned by {port}"), SOON, || {
        stream(reactor, name).is_some_and(|entry| entry["origin"].to_string().ends_with(&port))
    });
}

/// What the reactor lists about a stream.
pub fn stream(reactor: SocketAddr, name: &str) -> Option<serde_json::Value> {
    let body = http::try_call(reactor, "GET", "/streams", "").ok()?.body;
    let list: serde_json::Value = serde_json::from_str(&body).ok()?;
    list["streams"].as_array()?.iter().find(|entry| entry["stream_name"] == name).cloned()
}

/// Viewers who have got their first keyframe.
#[track_caller]
pub fn watch(node: &Lb, name: &str, count: usize, of: u16) -> Vec<Viewer> {
    let viewers: Vec<Viewer> = (0..count).map(|_| Viewer::start(node.rtmp(), "live", name)).collect();
    wait_for_all(&viewers, of);
    viewers
}

/// Waits until all have a keyframe of a publish.
#[track_caller]
pub fn wait_for_all(viewers: &[Viewer], of: u16) {
    for viewer in viewers {
        viewer.wait_for_keyframe(of, SOON);
    }
}

/// Checks that every viewer is there still, and saw everything in order.
#[track_caller]
pub fn assert_none_lost(viewers: &[Viewer]) {
    let lost: Vec<_> = viewers.iter().filter_map(|viewer| viewer.seen().ended.clone()).collect();
    assert!(lost.is_empty(), "{} of {} viewers were lost: {:?}", lost.len(), viewers.len(), lost[0]);
    viewers.iter().for_each(|viewer| viewer.seen().assert_in_order());
}

/// Prints a figure.
pub fn measured(what: &str, figure: impl std::fmt::Debug) {
    println!("measured {what}: {figure:?}");
}

/// Lets time pass in which nothing may happen.
pub fn let_pass(time: Duration) {
    poll(time, || None::<()>);
}

/// Waits until a reactor says that it knows all it should.
#[track_caller]
pub fn wait_until_whole(reactor: SocketAddr) {
    wait_for("the reactor to be ready", SOON, || {
        http::try_call(reactor, "GET", "/readyz", "").is_ok_and(|answer| answer.status == 200)
    });
}
