//! OBS Studio as people use it, on a display of its own: it publishes, loses its connection and its node, and comes back; its
//! viewers stay. Where publishing takes leave ([`authorised`]), it is let in with the right token or key only.
//!
//! Between OBS and the ingest nodes stands a forwarder, as a load balancer would. The tests print what they measured, in lines
//! that begin with `measured`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests may panic

#[path = "../common/mod.rs"]
mod common;

mod authorised;
mod forwarder;
mod studio;

use common::cluster::Cluster;
use common::ffmpeg;
use common::http;
use common::lb::Lb;
use common::witness::{Publish, Witness};
use forwarder::Forwarder;
use std::time::{Duration, Instant};
use studio::{FRAMES_A_SECOND, Scene, Studio};

/// Frames after which a stream counts as going on.
const GOES_ON: usize = 2 * FRAMES_A_SECOND;

/// From the cut to the first frame of the next publish at a viewer: OBS waits 2 seconds and more before it connects again.
const BACK: Duration = Duration::from_secs(20);

/// Sends the publisher away, as an operator does.
#[track_caller]
fn cut(node: &Lb) {
    let list: serde_json::Value = serde_json::from_str(&http::get(node.admin(), "/publishers").body).unwrap();
    let id = list["peers"][0]["id"].as_u64().expect("it publishes there");
    let path = format!("/publishers/{id}?reason=test");
    let answer = http::try_call(node.admin(), "DELETE", &path, "").unwrap();
    assert_eq!(answer.status, 204, "{answer:?}");
}

/// Waits until the stream goes on with this publish, and says how long viewers saw nothing after the cut.
#[track_caller]
fn back(scene: Scene, what: &str, witness: &Witness, publish: usize, cut: Instant) {
    let first = witness.wait_for_frames(publish, GOES_ON);
    let gap = first - cut;
    println!("measured {scene:?} scene: first frame at the viewer {:.1} s after {what}", gap.as_secs_f64());
    assert!(gap < BACK, "{gap:?} after {what}");
}

fn viewers_stay(scene: Scene) {
    let mut cluster = Cluster::start(3);
    let forwarder = Forwarder::start(cluster.ingest[0].rtmp());
    let _studio = Studio::start(scene, &format!("rtmp://{}/ingest", forwarder.address()), "obs");
    cluster.wait_published("obs");
    let witness = Witness::start(cluster.playback.rtmp(), "live", "obs");
    let mut player = ffmpeg::watch(&cluster.live_url("obs"));
    witness.wait_for_frames(0, GOES_ON);

    let at = Instant::now();
    cut(&cluster.ingest[0]);
    back(scene, "a cut", &witness, 1, at);

    // Its node drains, and the next connection goes to another one.
    forwarder.forward_to(cluster.ingest[1].rtmp());
    let at = Instant::now();
    let drained = cluster.ingest.remove(0);
    assert_eq!(drained.stop(libc::SIGTERM).code(), Some(0));
    back(scene, "the drain of its node", &witness, 2, at);

    forwarder.forward_to(cluster.ingest[1].rtmp());
    let at = Instant::now();
    cluster.ingest.remove(0).kill();
    back(scene, "the death of its node", &witness, 3, at);

    assert!(player.is_running(), "ffmpeg's connection did not stay");
    assert_eq!(cluster.playback.metric("lb_viewers"), 2.0);
    let kept = witness.kept();
    assert_eq!(kept.ended, None);
    kept.assert_time_rises();
    let publishes = kept.publishes();
    assert_eq!(publishes.len(), 4);
    publishes.iter().for_each(assert_begins_anew);
    drop(kept);
    ffmpeg::record(&cluster.live_url("obs"), 2).assert_decodes();
}

/// Each publish begins with the headers of both kinds and a keyframe, and its pictures come at the scene's pace: nothing is
/// frozen or taken for a repetition.
#[track_caller]
fn assert_begins_anew(publish: &Publish) {
    let headers = |type_id| publish.headers.iter().any(|header| header.packet.type_id() == type_id);
    assert!(headers(9) && headers(8), "{:?}", publish.headers);
    assert!(publish.video[0].packet.kind.is_keyframe());
    let (first, last) = (&publish.video[0].packet, &publish.video[publish.video.len() - 1].packet);
    let paced = u64::from(last.timestamp - first.timestamp) * FRAMES_A_SECOND as u64 / 1000;
    let frames = publish.video.len() as u64 - 1;
    assert!(paced.abs_diff(frames) <= 2, "{frames} frames in the time of {paced}");
}

#[test]
fn viewers_of_a_moving_scene_stay() {
    viewers_stay(Scene::Moving);
}

#[test]
fn viewers_of_a_still_scene_stay() {
    viewers_stay(Scene::Still);
}
