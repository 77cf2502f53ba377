//! Real encoders and players, and what they saw.

use super::process::{self, Finished, Peer};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

/// Seconds of media in a clip: longer than any test that compares frames.
const CLIP_SECONDS: &str = "30";

/// A published stream's content: H.264 with B-frames and AAC; no two frames of it, or of different clips, are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clip {
    /// The moving test picture.
    Alpha,
    /// Another picture, another sound, another frame rate.
    Beta,
}

impl Clip {
    /// The clip as an FLV file, made on first use and kept in cargo's directory for test files.
    pub fn file(self) -> &'static Path {
        static FILES: [OnceLock<PathBuf>; 2] = [OnceLock::new(), OnceLock::new()];
        FILES[self as usize].get_or_init(|| {
            let file =
                Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("clip-{self:?}-{CLIP_SECONDS}s-1.flv"));
            if !file.exists() {
                self.make(&file);
            }
            file
        })
    }

    fn make(self, file: &Path) {
        let (picture, sound) = match self {
            Clip::Alpha => ("testsrc2=size=320x180:rate=30", "anoisesrc=color=pink:amplitude=0.2:seed=1"),
            Clip::Beta => ("mandelbrot=size=256x144:rate=25", "anoisesrc=color=brown:amplitude=0.2:seed=2"),
        };
        // Written beside and renamed, so that a test binary that runs at the same time never sees half of it.
        let part = file.with_extension(format!("{}.part", std::process::id()));
        let mut command = ffmpeg();
        command.args(["-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", sound, "-t", CLIP_SECONDS]);
        command
            .args(["-c:v", "libx264", "-preset", "veryfast", "-bf", "2", "-g", "25", "-pix_fmt", "yuv420p"]);
        command
            .args(["-b:v", "300k", "-c:a", "aac", "-b:a", "64k", "-ar", "44100", "-f", "flv", "-y"])
            .arg(&part);
        let made = process::run(command, Duration::from_secs(120));
        assert_eq!(made.code, Some(0), "the clip cannot be made: {}", made.stderr);
        std::fs::rename(&part, file).unwrap();
    }
}

fn ffmpeg() -> Command {
    let mut command = Command::new("ffmpeg");
    command.args(["-nostdin", "-hide_banner", "-v", "warning"]);
    command
}

/// An ffmpeg that publishes a clip in real time, over and over, until it is dropped.
pub fn publish(clip: Clip, url: &str) -> Peer {
    let mut command = publish_command(clip, url);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Peer::new(process::spawn_tool(command))
}

/// Tries to publish where that must be refused, and gives back how ffmpeg ended.
#[track_caller]
pub fn publish_in_vain(clip: Clip, url: &str) -> Finished {
    let finished = process::run(publish_command(clip, url), Duration::from_secs(20));
    assert_ne!(finished.code, Some(0), "publishing to {url} was not refused");
    finished
}

fn publish_command(clip: Clip, url: &str) -> Command {
    let mut command = ffmpeg();
    command.args(["-re", "-stream_loop", "-1", "-i"]).arg(clip.file()).args(["-c", "copy", "-f", "flv", url]);
    command
}

/// An ffmpeg that watches, and throws away what it sees, until it is dropped.
pub fn watch(url: &str) -> Peer {
    let mut command = ffmpeg();
    command.args(["-i", url, "-c", "copy", "-f", "null", "-"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Peer::new(process::spawn_tool(command))
}

/// Tries to watch what cannot be watched, and gives back how ffmpeg ended.
#[track_caller]
pub fn watch_in_vain(url: &str) -> Finished {
    let mut command = ffmpeg();
    command.args(["-i", url, "-c", "copy", "-t", "1", "-f", "null", "-"]);
    let finished = process::run(command, Duration::from_secs(20));
    assert_ne!(finished.code, Some(0), "watching {url} was not refused");
    finished
}

/// What a player recorded: removed with this value.
pub struct Recording {
    file: tempfile::TempPath,
}

/// Plays `seconds` of a stream into a file, without touching the frames.
#[track_caller]
pub fn record(url: &str, seconds: u32) -> Recording {
    let file = tempfile::Builder::new().suffix(".flv").tempfile().unwrap().into_temp_path();
    let mut command = ffmpeg();
    command.args(["-i", url, "-t", &seconds.to_string(), "-c", "copy", "-f", "flv", "-y"]).arg(&file);
    let played = process::run(command, Duration::from_secs(u64::from(seconds) + 30));
    assert_eq!(played.code, Some(0), "{url} cannot be played: {}", played.stderr);
    Recording { file }
}

impl Recording {
    /// Checks it from end to end: video and audio are there, they decode without an error, and every frame is a frame
    /// of the clip, byte for byte, none missing in between.
    #[track_caller]
    pub fn assert_shows(&self, clip: Clip, seconds: u32) {
        assert_eq!(codecs(&self.file), ["aac", "h264"]);
        assert_eq!(decoding_errors(&self.file), "", "decoding gives errors");
        let (published, played) = (frame_hashes(clip.file()), frame_hashes(&self.file));
        for (media, least) in [("video", seconds * 20), ("audio", seconds * 35)] {
            let (published, played) = (&published[media], &played[media]);
            assert!(played.len() >= least as usize, "only {} {media} frames in {seconds} s", played.len());
            assert_is_part_of(media, played, published);
        }
    }
}

/// The codecs of a file, sorted.
#[track_caller]
pub fn codecs(file: &Path) -> Vec<String> {
    let mut command = Command::new("ffprobe");
    command.args(["-v", "error", "-show_entries", "stream=codec_name", "-of", "csv=p=0"]).arg(file);
    let probed = process::run(command, Duration::from_secs(30));
    assert_eq!(probed.code, Some(0), "ffprobe: {}", probed.stderr);
    let mut codecs: Vec<String> = probed.stdout.lines().map(|line| line.trim().to_owned()).collect();
    codecs.sort();
    codecs
}

/// What a decoder complains about.
#[track_caller]
pub fn decoding_errors(file: &Path) -> String {
    let mut command = Command::new("ffmpeg");
    command.args(["-nostdin", "-v", "error", "-i"]).arg(file).args(["-f", "null", "-"]);
    process::run(command, Duration::from_secs(60)).stderr
}

/// A hash of every frame as it stands in the file, by media type and in order.
#[track_caller]
pub fn frame_hashes(file: &Path) -> BTreeMap<String, Vec<String>> {
    let mut command = Command::new("ffmpeg");
    command.args(["-nostdin", "-v", "error", "-i"]).arg(file).args(["-c", "copy", "-f", "framemd5", "-"]);
    let hashed = process::run(command, Duration::from_secs(60));
    assert_eq!(hashed.code, Some(0), "framemd5: {}", hashed.stderr);
    let mut media = BTreeMap::new();
    let mut hashes: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in hashed.stdout.lines() {
        if let Some((stream, kind)) = line.strip_prefix("#media_type ").and_then(|rest| rest.split_once(": "))
        {
            media.insert(stream.to_owned(), kind.to_owned());
        } else if !line.starts_with('#') {
            // stream, dts, pts, duration, size, hash, side data …
            let fields: Vec<&str> = line.split(',').map(str::trim).collect();
            hashes.entry(media[fields[0]].clone()).or_default().push(fields[5].to_owned());
        }
    }
    hashes
}

/// Checks that `played` is an unbroken piece of `published`, which is repeated without end.
#[track_caller]
fn assert_is_part_of(media: &str, played: &[String], published: &[String]) {
    let start = published.iter().position(|hash| *hash == played[0]);
    let start = start.unwrap_or_else(|| panic!("the first {media} frame was never published"));
    for (index, (got, sent)) in played.iter().zip(published.iter().cycle().skip(start)).enumerate() {
        assert_eq!(got, sent, "{media} frame {index} of {} is not the one that was published", played.len());
    }
}
