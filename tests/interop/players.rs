//! Peers that play: one function each, which says how what they saw is compared.

use crate::common::ffmpeg::{
    Clip, assert_frames, assert_shows, assert_shows_pictures, decoding_errors, frame_hashes,
};
use crate::common::{SOON, process, root};
use crate::run::{self, SECONDS, command};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// More than as many frames as are compared.
const FRAMES: &str = "90";

fn folder() -> TempDir {
    tempfile::Builder::new().prefix("lb-player-").tempdir().unwrap()
}

fn ffmpeg(tool: &Path) {
    let (folder, seconds) = (folder(), SECONDS.to_string());
    let file = folder.path().join("played.flv");
    run::plays(|url| {
        let mut command = Command::new(tool);
        command
            .args(["-nostdin", "-v", "error", "-i", url, "-t", &seconds, "-c", "copy", "-f", "flv"])
            .arg(&file);
        run::finish(command);
    });
    assert_shows(&file, Clip::Alpha, SECONDS);
}

pub fn debians_ffmpeg() {
    ffmpeg(&run::debians_ffmpeg());
}

pub fn current_ffmpeg() {
    ffmpeg(&run::current_ffmpeg());
}

pub fn pyav() {
    run::plays(|url| {
        let mut command = Command::new(run::python());
        command.arg(root().join("tests/interop/pyav.py")).args(["play", url, FRAMES]);
        let played = process::run(command, 2 * SOON);
        assert_eq!(played.code, Some(0), "{}", played.stderr);
        let mut hashes: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (media, hash) in played.stdout.lines().filter_map(|line| line.split_once(' ')) {
            hashes.entry(media.to_owned()).or_default().push(hash.to_owned());
        }
        assert_frames(&hashes, Clip::Alpha, SECONDS);
    });
}

fn gstreamer(source: &str, location: impl FnOnce(&str) -> String) {
    let folder = folder();
    let file = folder.path().join("played.flv");
    run::plays(|url| {
        let tail = "! flvdemux name=d d.video ! queue ! h264parse ! m. d.audio ! queue ! aacparse ! m. flvmux name=m streamable=true ! filesink";
        let mut command = command(&["gst-launch-1.0", "-q", "-e", source]);
        command.arg(format!("location={}", location(url))).args(tail.split(' '));
        command.args(["buffer-mode=unbuffered", &format!("location={}", file.display())]);
        run::record(command, &file);
    });
    // It writes the metadata with a time, which ffprobe takes for a stream of text.
    assert_eq!(decoding_errors(&file), "");
    assert_frames(&frame_hashes(&file), Clip::Alpha, SECONDS);
}

pub fn gstreamers_rtmp2() {
    gstreamer("rtmp2src", str::to_owned);
}

pub fn gstreamers_librtmp() {
    gstreamer("rtmpsrc", |url| format!("{url} live=1"));
}

pub fn rtmpdump() {
    let folder = folder();
    let file = folder.path().join("played.flv");
    run::plays(|url| {
        run::record(
            command(&["rtmpdump", "--quiet", "--live", "-r", url, "-o", file.to_str().unwrap()]),
            &file,
        );
    });
    assert_shows(&file, Clip::Alpha, SECONDS);
}

pub fn vlc() {
    let folder = folder();
    run::open_to_all(folder.path());
    let file = folder.path().join("played.mkv");
    run::plays(|url| {
        // Decoded by VLC, and written without loss.
        let transcode = "#transcode{vcodec=FFV1,acodec=none}";
        let out = format!("{transcode}:std{{access=file,mux=ffmpeg{{mux=matroska}},dst={}}}", file.display());
        run::finish(run::vlc(&[
            "--no-audio",
            "--play-and-exit",
            "--run-time=5",
            "--sout",
            &out,
            url,
            "vlc://quit",
        ]));
    });
    assert_shows_pictures(&file, Clip::Alpha, SECONDS);
}

pub fn mpv() {
    let folder = folder();
    let file = folder.path().join("played.mkv");
    run::plays(|url| {
        let mut command = command(&["mpv", "--no-config", "--no-audio", "--ovc=ffv1", url]);
        command.arg(format!("--frames={FRAMES}")).arg(format!("--o={}", file.display()));
        run::finish(command);
    });
    assert_shows_pictures(&file, Clip::Alpha, SECONDS);
}

pub fn mplayer() {
    let folder = folder();
    let file = folder.path().join("played.y4m");
    run::plays(|url| {
        let mut command =
            command(&["mplayer", "-really-quiet", "-noconfig", "all", "-nosound", "-benchmark"]);
        command.args(["-frames", FRAMES, "-vo", &format!("yuv4mpeg:file={}", file.display()), url]);
        run::finish(command);
    });
    assert_shows_pictures(&file, Clip::Alpha, SECONDS);
}
