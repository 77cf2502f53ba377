//! The arguments of an ffmpeg that is fed a stream, as FLV, on its standard input: to push it to another server, to cut it into HLS,
//! or to transcode it.

use super::command::{Args, INTERLEAVE, Location, RTMP_ANALYZE, micros};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The presets of the H.264 encoder (x264), the fastest first.
pub const PRESETS: [&str; 9] =
    ["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"];

/// What is done with the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Pushed to another server, or written to a file, as it is.
    Push(Location),
    /// Cut into segments with a playlist.
    Hls(Hls),
    /// Written to standard output, transcoded.
    Transcode(Transcode),
}

/// An HLS output (RFC 8216): a playlist and MPEG-TS segments in one folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hls {
    /// The playlist's path, which ends in `.m3u8`.
    pub playlist: PathBuf,
    /// What the paths of its segments begin with; a number and `.ts` follow.
    pub segment_prefix: PathBuf,
    /// How long a segment is, at least: it ends at the keyframe after that.
    pub segment: Duration,
    /// Segments in the playlist; older ones are deleted. Zero: all, and none is.
    pub count: u32,
}

/// What a transcode makes of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transcode {
    /// The video.
    pub video: VideoCodec,
    /// The audio.
    pub audio: AudioCodec,
}

/// What becomes of the video.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VideoCodec {
    /// It stays as it is.
    Copy,
    /// It is encoded anew as H.264.
    H264 {
        /// One of [`PRESETS`].
        preset: &'static str,
        /// Width and height in pixels; as they were where nothing is said.
        size: Option<(u16, u16)>,
        /// Kilobits a second; by quality where nothing is said.
        kbps: Option<u32>,
    },
}

/// What becomes of the audio.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AudioCodec {
    /// It stays as it is.
    Copy,
    /// It is encoded anew as AAC.
    Aac,
}

impl Output {
    /// What must not be seen in a log: the stream key of a push.
    pub(super) fn secret(&self) -> Option<String> {
        match self {
            Output::Push(target) => target.key(),
            Output::Hls(_) | Output::Transcode(_) => None,
        }
    }

    /// Whether the stream comes back on standard output.
    pub(super) fn comes_back(&self) -> bool {
        matches!(self, Output::Transcode(_))
    }

    /// The argument list. `io_timeout` is the longest wait for the network within ffmpeg, `ca_file` what servers are believed by.
    pub(super) fn arguments(&self, io_timeout: Duration, ca_file: Option<&Path>) -> Vec<String> {
        let mut args = Args::default();
        args.add(["-hide_banner", "-nostdin", "-nostats", "-loglevel", "warning", "-fpsprobesize", "0"]);
        args.add(["-protocol_whitelist", "pipe", "-analyzeduration", &micros(RTMP_ANALYZE)]);
        args.add(["-f", "flv", "-i", "pipe:0", "-map", "0:V:0?", "-map", "0:a:0?"]);
        match self {
            Output::Push(target) => push(&mut args, target, io_timeout, ca_file),
            Output::Hls(hls) => cut(&mut args, hls),
            Output::Transcode(transcode) => encode(&mut args, transcode),
        }
        args.into_list()
    }
}

fn push(args: &mut Args, target: &Location, io_timeout: Duration, ca_file: Option<&Path>) {
    args.add(["-c", "copy", "-max_interleave_delta", &micros(INTERLEAVE), "-flush_packets", "1"]);
    let scheme = target.scheme();
    let is_tls = matches!(scheme.as_deref(), Some("rtmps" | "https" | "tls"));
    if is_tls {
        args.add(["-tls_verify", "1"]);
        if let Some(file) = ca_file {
            args.add(["-ca_file", &file.display().to_string()]);
        }
    }
    match scheme.as_deref() {
        Some("srt" | "udp" | "rtp" | "tcp" | "rist") => args.add(["-f", "mpegts"]),
        Some("rtsp" | "rtsps") => args.add(["-f", "rtsp"]),
        Some("rtmp" | "rtmps" | "rtmpe" | "rtmpt" | "rtmpte" | "rtmpts") => {
            args.add(["-rw_timeout", &micros(io_timeout), "-f", "flv", "-flvflags", "no_duration_filesize"]);
        }
        _ => args.add(["-f", "flv", "-flvflags", "no_duration_filesize"]),
    }
    // A file that is there is written anew.
    args.add(["-y", target.as_argument()]);
}

fn cut(args: &mut Args, Hls { playlist, segment_prefix, segment, count }: &Hls) {
    let path = playlist.display().to_string();
    // A percent sign begins a number in the pattern.
    let pattern = segment_prefix.display().to_string().replace('%', "%%") + "%d.ts";
    let seconds = segment.as_secs_f64().to_string();
    args.add(["-c", "copy", "-f", "hls", "-hls_time", &seconds, "-hls_list_size", &count.to_string()]);
    // Numbers go on rising when ffmpeg is started again, as players expect, and a playlist that is there is continued.
    args.add(["-hls_start_number_source", "epoch", "-hls_segment_filename", &pattern]);
    // A live stream may go on after a break, so its playlist says nothing of an end; one that keeps everything does.
    let flags = match count {
        0 => "append_list+temp_file+independent_segments",
        _ => "append_list+temp_file+independent_segments+delete_segments+omit_endlist",
    };
    args.add(["-hls_flags", flags, &path]);
}

fn encode(args: &mut Args, Transcode { video, audio }: &Transcode) {
    match video {
        VideoCodec::Copy => args.add(["-c:v", "copy"]),
        VideoCodec::H264 { preset, size, kbps } => {
            // Every player takes this; keyframes stay where the publisher has them, so that viewers start as fast.
            args.add(["-c:v", "libx264", "-preset", preset, "-pix_fmt", "yuv420p"]);
            args.add(["-force_key_frames", "source"]);
            if let Some((width, height)) = size {
                args.add(["-s", &format!("{width}x{height}")]);
            }
            if let Some(kbps) = kbps {
                let (rate, buffer) = (format!("{kbps}k"), format!("{}k", u64::from(*kbps) * 2));
                args.add(["-b:v", &rate, "-maxrate", &rate, "-bufsize", &buffer]);
            }
        }
    }
    args.add(["-c:a", if *audio == AudioCodec::Copy { "copy" } else { "aac" }]);
    args.add(["-max_interleave_delta", &micros(INTERLEAVE), "-flush_packets", "1"]);
    args.add(["-f", "flv", "-flvflags", "no_duration_filesize", "pipe:1"]);
}

/// For people, without secrets.
impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Output::Push(target) => write!(f, "push to {}", target.without_key()),
            Output::Hls(hls) => write!(f, "HLS at {}", hls.playlist.display()),
            Output::Transcode(_) => f.write_str("transcode"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(output: &Output) -> String {
        output.arguments(Duration::from_secs(10), None).join(" ")
    }

    #[test]
    fn a_push_has_the_form_that_its_target_takes() {
        let push = |target: &str| line(&Output::Push(Location::parse(target).unwrap()));
        assert!(push("rtmp://h/app/key").contains("-rw_timeout 10000000 -f flv -flvflags"));
        assert!(push("rtmps://h/app/key").contains("-tls_verify 1 -rw_timeout"));
        assert!(push("srt://h:9").ends_with("-f mpegts -y srt://h:9"));
        assert!(push("/tmp/x.flv").contains("-f flv"));
    }

    #[test]
    fn the_key_of_a_push_is_not_shown() {
        let output = Output::Push(Location::parse("rtmp://me:pw@h/app/secret?also=secret").unwrap());
        assert_eq!(output.to_string(), "push to rtmp://h/app/…");
        assert_eq!(output.secret().as_deref(), Some("secret"));
        assert!(!format!("{output:?}").contains("pw"));
        let file = Output::Push(Location::parse("/tmp/x.flv").unwrap());
        assert_eq!((file.to_string().as_str(), file.secret()), ("push to /tmp/x.flv", None));
    }

    #[test]
    fn segments_stand_beside_their_playlist_whatever_its_name_is() {
        let playlist = PathBuf::from("/run/hls/a/50%d.m3u8");
        let segment_prefix = PathBuf::from("/run/hls/a/50%d-");
        let hls = Hls { playlist, segment_prefix, segment: Duration::from_millis(1500), count: 4 };
        let line = line(&Output::Hls(hls));
        assert!(line.contains("-hls_time 1.5 -hls_list_size 4"), "{line}");
        assert!(line.contains("-hls_segment_filename /run/hls/a/50%%d-%d.ts"), "{line}");
        assert!(line.ends_with("+delete_segments+omit_endlist /run/hls/a/50%d.m3u8"), "{line}");
    }

    #[test]
    fn a_transcode_says_what_it_changes_and_copies_the_rest() {
        let transcode = |video, audio| line(&Output::Transcode(Transcode { video, audio }));
        assert!(transcode(VideoCodec::Copy, AudioCodec::Copy).contains("-c:v copy -c:a copy"));
        let video = VideoCodec::H264 { preset: "veryfast", size: Some((640, 360)), kbps: Some(800) };
        let line = transcode(video, AudioCodec::Aac);
        for part in ["-preset veryfast", "-s 640x360", "-b:v 800k -maxrate 800k -bufsize 1600k", "-c:a aac"] {
            assert!(line.contains(part), "{line}");
        }
    }
}
