//! How the peers are started, and where they publish and play.

use crate::common::cluster::Cluster;
use crate::common::ffmpeg::{self, Clip};
use crate::common::lb::Lb;
use crate::common::process::{self, Peer};
use crate::common::{SOON, tool, wait_for};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// The name of the stream in a test of one peer.
pub const NAME: &str = "x";

/// Seconds of media that are compared.
pub const SECONDS: u32 = 3;

/// As much of a recording as holds that for sure: clips have 47,000 bytes a second.
const RECORDED_BYTES: u64 = 47_000 * (SECONDS as u64 + 2);

/// The current ffmpeg, which knows Enhanced RTMP.
pub fn current_ffmpeg() -> PathBuf {
    tool("media/bin/ffmpeg")
}

/// The ffmpeg of the distribution, which is from before Enhanced RTMP.
pub fn debians_ffmpeg() -> PathBuf {
    PathBuf::from("ffmpeg")
}

/// The Python that has PyAV.
pub fn python() -> PathBuf {
    tool("media/bin/python")
}

/// A command of these words.
pub fn command(words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}

/// VLC, which does not run as root: with the rights of nobody, and killed with the tests in spite of that.
pub fn vlc(words: &[&str]) -> Command {
    let mut command =
        command(&["setpriv", "--reuid", "nobody", "--clear-groups", "--reset-env", "--pdeathsig", "KILL"]);
    command.args(["cvlc", "--intf", "dummy", "--no-dbus"]).args(words);
    command
}

/// Starts a peer that runs until this is dropped.
pub fn start(mut command: Command) -> Peer {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Peer::new(process::spawn_tool(command))
}

/// Lets a peer record until that holds what is compared, and asks it to end.
#[track_caller]
pub fn record(command: Command, file: &Path) {
    record_bytes(command, file, RECORDED_BYTES);
}

/// As [`record`], so many bytes.
#[track_caller]
pub fn record_bytes(command: Command, file: &Path, bytes: u64) {
    let mut peer = start(command);
    let mut length = 0;
    wait_for("a recording", 2 * SOON, || {
        length = file.metadata().map_or(0, |metadata| metadata.len());
        length >= bytes || !peer.is_running()
    });
    assert!(length >= bytes, "it ended after {length} bytes");
    peer.interrupt(SOON);
}

/// Runs a peer to its end.
#[track_caller]
pub fn finish(command: Command) {
    let finished = process::run(command, Duration::from_secs(u64::from(SECONDS)) + 2 * SOON);
    assert_eq!(finished.code, Some(0), "{}\n{}", finished.stdout, finished.stderr);
}

/// Has a peer publish, and checks what a viewer at the other end of the cluster sees: the clip's own bytes, or, of peers that
/// write them anew, its pictures.
#[track_caller]
pub fn publishes(bytes: bool, publish: impl FnOnce(&str) -> Peer) {
    let cluster = Cluster::start(1);
    let _publisher = publish(&cluster.ingest_url(0, NAME));
    cluster.wait_published(NAME);
    let seen = ffmpeg::record(&cluster.live_url(NAME), SECONDS);
    match bytes {
        true => seen.assert_shows(Clip::Alpha, SECONDS),
        false => seen.assert_shows_pictures(Clip::Alpha, SECONDS),
    }
}

/// Publishes the clip, and has a peer play it.
#[track_caller]
pub fn plays(play: impl FnOnce(&str)) {
    let cluster = Cluster::start(1);
    let _publisher = ffmpeg::publish(Clip::Alpha, &cluster.ingest_url(0, NAME));
    cluster.wait_published(NAME);
    play(&cluster.live_url(NAME));
}

/// Has an lb node pull from a peer by the step `rtmp_pull`, and checks what a viewer of the node sees.
#[track_caller]
pub fn is_pulled_from(location: &str) {
    let mut config = tempfile::NamedTempFile::new().unwrap();
    let text = format!(
        "workflow pulled {{\n    rtmp_pull location={location} stream_name={NAME}\n    rtmp_watch rtmp_app=live stream_key=*\n}}\n"
    );
    config.write_all(text.as_bytes()).unwrap();
    let node = Lb::start(&["--role", "playback", "--config", config.path().to_str().unwrap()]);
    wait_for("the pull", SOON, || node.log().contains("pull brings media"));
    ffmpeg::record(&node.rtmp_url("live", NAME), SECONDS).assert_shows(Clip::Alpha, SECONDS);
}

/// Has an lb node push what is published to it by the step `rtmp_push`, and checks what the target serves.
#[track_caller]
pub fn is_pushed_to(target: &str) {
    let mut config = tempfile::NamedTempFile::new().unwrap();
    let text = format!(
        "workflow pushed {{\n    rtmp_receive rtmp_app=ingest stream_key=*\n    rtmp_push target={target}\n}}\n"
    );
    config.write_all(text.as_bytes()).unwrap();
    let node = Lb::start(&["--role", "ingest", "--config", config.path().to_str().unwrap()]);
    let _publisher = ffmpeg::publish(Clip::Alpha, &node.rtmp_url("ingest", NAME));
    node.wait_for_metric("lb_publishers", 1.0, SOON);
    serves(target);
}

/// Has a server pull from the cluster or take what is published to it, and plays what it serves.
#[track_caller]
pub fn serves(location: &str) {
    ffmpeg::record(location, SECONDS).assert_shows(Clip::Alpha, SECONDS);
}

/// Lets everybody write to a folder: a peer that gave up its rights.
pub fn open_to_all(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o777)).unwrap();
}
