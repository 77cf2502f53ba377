//! Real encoders and players, and what they saw.

use super::process::{self, Finished, Peer};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

/// Seconds of media in a clip: longer than any test that compares frames.
const CLIP_SECONDS: &str = "30";

/// Frames that may be sent before one that is shown earlier: clips have two B-frames in a row.
const REORDERED: usize = 3;

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
    publish_with(clip, &[], url)
}

/// The same with more words for the output: `-an` leaves the audio out.
pub fn publish_with(clip: Clip, words: &[&str], url: &str) -> Peer {
    let mut command = publish_command(clip, words, url);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Peer::new(process::spawn_tool(command))
}

/// Tries to publish where that must be refused, and gives back how ffmpeg ended.
#[track_caller]
pub fn publish_in_vain(clip: Clip, url: &str) -> Finished {
    let finished = process::run(publish_command(clip, &[], url), Duration::from_secs(20));
    assert_ne!(finished.code, Some(0), "publishing to {url} was not refused");
    finished
}

fn publish_command(clip: Clip, words: &[&str], url: &str) -> Command {
    let mut command = ffmpeg();
    command.args(["-re", "-stream_loop", "-1", "-i"]).arg(clip.file());
    command.args(["-c", "copy"]).args(words).args(["-f", "flv", url]);
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
    /// As [`assert_shows`].
    #[track_caller]
    pub fn assert_shows(&self, clip: Clip, seconds: u32) {
        assert_shows(&self.file, clip, seconds);
    }

    /// Checks that there are video and audio, and that they decode without an error.
    #[track_caller]
    pub fn assert_decodes(&self) {
        assert_eq!(codecs(&self.file), ["aac", "h264"]);
        assert_eq!(decoding_errors(&self.file), "", "decoding gives errors");
    }

    /// As [`assert_shows_pictures`].
    #[track_caller]
    pub fn assert_shows_pictures(&self, clip: Clip, seconds: u32) {
        assert_shows_pictures(&self.file, clip, seconds);
    }
}

/// Checks a recording from end to end: video and audio are there, they decode without an error, and every frame is a frame
/// of the clip, byte for byte, none missing in between.
#[track_caller]
pub fn assert_shows(file: &Path, clip: Clip, seconds: u32) {
    assert_eq!(codecs(file), ["aac", "h264"]);
    assert_eq!(decoding_errors(file), "", "decoding gives errors");
    assert_frames(&frame_hashes(file), clip, seconds);
}

/// Checks hashes of frames, by media type: each is a frame of the clip, byte for byte, none missing in between.
#[track_caller]
pub fn assert_frames(played: &BTreeMap<String, Vec<String>>, clip: Clip, seconds: u32) {
    let published = frame_hashes(clip.file());
    for (media, least) in [("video", seconds * 20), ("audio", seconds * 35)] {
        let (published, played) = (&published[media], &played[media]);
        assert!(played.len() >= least as usize, "only {} {media} frames in {seconds} s", played.len());
        assert_is_part_of(media, played, published);
    }
}

/// Checks a recording whose frames are not those of the clip, by what they show: every picture is one of the clip, to the
/// last bit, none missing in between.
#[track_caller]
pub fn assert_shows_pictures(file: &Path, clip: Clip, seconds: u32) {
    let (published, mut played) = (picture_hashes(clip.file()), picture_hashes(file));
    // A recording ends in the order of decoding: of the last pictures, some that are shown in between may be missing.
    played.truncate(played.len().saturating_sub(REORDERED));
    assert!(played.len() >= seconds as usize * 20, "only {} pictures in {seconds} s", played.len());
    assert_is_part_of("picture", &played, &published);
}

/// A hash of each decoded picture.
#[track_caller]
fn picture_hashes(file: &Path) -> Vec<String> {
    let mut command = Command::new("ffmpeg");
    command.args(["-nostdin", "-v", "error", "-i"]).arg(file);
    command.args(["-map", "0:v:0", "-vsync", "passthrough", "-pix_fmt", "yuv420p", "-f", "framemd5", "-"]);
    let hashed = process::run(command, Duration::from_secs(60));
    assert_eq!(hashed.code, Some(0), "framemd5: {}", hashed.stderr);
    hashes_by_stream(&hashed.stdout).into_iter().flat_map(|(_, hashes)| hashes).collect()
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
    let mut by_media: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (media, hashes) in hashes_by_stream(&hashed.stdout) {
        by_media.entry(media).or_default().extend(hashes);
    }
    by_media
}

/// The media type and the frames' hashes of each stream in the output of ffmpeg's muxer `framemd5`.
pub fn hashes_by_stream(framemd5: &str) -> Vec<(String, Vec<String>)> {
    let mut streams: BTreeMap<&str, (String, Vec<String>)> = BTreeMap::new();
    for line in framemd5.lines() {
        if let Some((stream, kind)) = line.strip_prefix("#media_type ").and_then(|rest| rest.split_once(": "))
        {
            streams.insert(stream, (kind.to_owned(), Vec::new()));
        } else if !line.starts_with('#') {
            // stream, dts, pts, duration, size, hash, side data …
            let fields: Vec<&str> = line.split(',').map(str::trim).collect();
            streams.get_mut(fields[0]).unwrap().1.push(fields[5].to_owned());
        }
    }
    streams.into_values().collect()
}

/// Checks that `played` is an unbroken piece of `published`, which is repeated without end.
#[track_caller]
pub fn assert_is_part_of(media: &str, played: &[String], published: &[String]) {
    let start = published.iter().position(|hash| *hash == played[0]);
    let start = start.unwrap_or_else(|| panic!("the first {media} frame was never published"));
    for (index, (got, sent)) in played.iter().zip(published.iter().cycle().skip(start)).enumerate() {
        assert_eq!(got, sent, "{media} frame {index} of {} is not the one that was published", played.len());
    }
}
