//! The codecs: each is published to an ingest node and played from a playback node, with a pull between, by an ffmpeg that
//! knows it. Viewers stay while a publisher comes back with another codec and while it moves to another node.

use crate::common::cluster::Cluster;
use crate::common::ffmpeg::{self, Clip, assert_is_part_of, hashes_by_stream};
use crate::common::process::{self, Peer};
use crate::common::witness::Witness;
use crate::common::{SOON, wait_for};
use crate::flow;
use crate::run::{self, NAME, command};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempPath;

/// A keyframe every so many frames: one a second.
const GOP: usize = 15;

/// Seconds that a player watches.
const SECONDS: usize = 2;

/// More than any run of an encoder takes on two busy cores.
const DEADLINE: Duration = Duration::from_secs(120);

/// A codec, or another property of coded media that a relay must keep.
pub struct Codec {
    /// Its name in the document.
    pub name: &'static str,
    /// The words for the encoders, which the document shows.
    pub encoder: &'static str,
    /// The ffmpeg that knows it.
    tool: fn() -> PathBuf,
    /// A second encoder, which takes the pictures and what is said of them from the first.
    again: &'static str,
    /// So many tracks of video and of audio each.
    tracks: usize,
    /// What ffmpeg says of the stream that it plays.
    said: &'static [&'static str],
    /// An old player must do without it.
    enhanced: bool,
    /// What the document says of it.
    pub seen: &'static str,
}

const PLAIN: Codec = Codec {
    name: "",
    encoder: "",
    tool: run::current_ffmpeg,
    again: "",
    tracks: 1,
    said: &[],
    enhanced: true,
    seen: "",
};

/// For those that differ in their audio only.
const AVC: &str = "-c:v libx264 -preset veryfast -bf 0";

/// Makes the table, and a test of each row.
macro_rules! codecs {
    ($($test:ident: $codec:expr,)*) => {
        /// All codecs, in the document's order.
        pub const CODECS: &[Codec] = &[$($codec),*];
        $(
            #[test]
            fn $test() {
                $codec.run(stringify!($test));
            }
        )*
    };
}

codecs! {
    hevc: Codec {
        name: "HEVC, 8 bit",
        encoder: "-c:v libx265 -preset ultrafast -x265-params log-level=error:open-gop=0:bframes=2 -c:a aac",
        said: &["Video: hevc (Main)", "Audio: aac"],
        ..PLAIN
    },
    hevc_hdr: Codec {
        name: "HEVC, 10 bit, HDR10",
        encoder: "-pix_fmt yuv420p10le -color_primaries bt2020 -color_trc smpte2084 -colorspace bt2020nc -c:v libx265 -preset ultrafast -x265-params \
            log-level=error:open-gop=0:hdr10=1:max-cll=1000,400:master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1) -c:a aac",
        again: "-pix_fmt yuv420p10le -c:v libx265 -preset ultrafast -x265-params log-level=error:open-gop=0:hdr10=1 -c:a copy",
        said: &["Video: hevc (Main 10)", "bt2020nc", "MaxCLL=1000, MaxFALL=400", "max_luminance=1000.0"],
        seen: "Late viewers get mastering display and light levels too.",
        ..PLAIN
    },
    av1: Codec {
        name: "AV1",
        encoder: "-c:v libsvtav1 -preset 12 -svtav1-params log=-1 -c:a aac",
        said: &["Video: av1", "Audio: aac"],
        ..PLAIN
    },
    vp9: Codec {
        name: "VP9",
        encoder: "-c:v libvpx-vp9 -b:v 300k -deadline realtime -cpu-used 8 -c:a aac",
        said: &["Video: vp9", "Audio: aac"],
        ..PLAIN
    },
    vvc: Codec {
        name: "VVC",
        encoder: "-pix_fmt yuv420p10le -c:v libvvenc -preset faster -vvenc-params RefreshType=idr -c:a aac",
        said: &["Video: vvc", "Audio: aac"],
        ..PLAIN
    },
    opus: Codec { name: "Opus", encoder: "-c:a libopus -b:a 64k", said: &["Audio: opus"], ..PLAIN },
    flac: Codec { name: "FLAC", encoder: "-c:a flac -sample_fmt s16", said: &["Audio: flac"], ..PLAIN },
    ac3: Codec { name: "AC-3", encoder: "-c:a ac3 -b:a 96k", said: &["Audio: ac3"], ..PLAIN },
    eac3: Codec { name: "E-AC-3", encoder: "-c:a eac3 -b:a 96k", said: &["Audio: eac3"], ..PLAIN },
    mp3: Codec {
        name: "MP3",
        encoder: "-c:a libmp3lame -ar 44100",
        said: &["Audio: mp3"],
        enhanced: false,
        ..PLAIN
    },
    speex: Codec {
        name: "Speex",
        encoder: "-c:a libspeex -ar 16000 -ac 1",
        tool: run::debians_ffmpeg,
        said: &["Audio: speex"],
        enhanced: false,
        ..PLAIN
    },
    a_law: Codec {
        name: "G.711 A-law",
        encoder: "-c:a pcm_alaw -ar 8000 -ac 1",
        said: &["Audio: pcm_alaw"],
        enhanced: false,
        ..PLAIN
    },
    mu_law: Codec {
        name: "G.711 µ-law",
        encoder: "-c:a pcm_mulaw -ar 8000 -ac 1",
        said: &["Audio: pcm_mulaw"],
        enhanced: false,
        ..PLAIN
    },
    b_frames: Codec {
        name: "H.264 with B-frames",
        encoder: "-c:v libx264 -preset veryfast -bf 3 -x264-params b-adapt=0 -c:a aac",
        said: &["Video: h264 (High)", "Audio: aac"],
        enhanced: false,
        ..PLAIN
    },
    multitrack: Codec {
        name: "Multitrack: two of H.264, two of AAC",
        encoder: "-c:v libx264 -preset veryfast -bf 0 -c:a aac",
        tracks: 2,
        said: &["#0:0: Video: h264", "#0:1: Video: h264", "#0:2: Audio: aac", "#0:3: Audio: aac"],
        seen: "Old players show the first track of each.",
        ..PLAIN
    },
}

impl Codec {
    /// The words for the encoders, with H.264 where they name no video.
    fn words(&self) -> Vec<&'static str> {
        let video = if self.encoder.contains("-c:v") { "" } else { AVC };
        video.split_whitespace().chain(self.encoder.split_whitespace()).collect()
    }

    /// Four seconds as an FLV file, made on first use and kept in cargo's directory for test files.
    fn clip(&self, key: &str) -> PathBuf {
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("codec-{key}-3.flv"));
        if file.exists() {
            return file;
        }
        let mut ffmpeg = Command::new((self.tool)());
        ffmpeg.args(["-nostdin", "-v", "error"]);
        for track in 0..self.tracks {
            let picture = ["testsrc2=size=160x90:rate=15", "mandelbrot=size=128x96:rate=15"][track];
            let sound = format!("anoisesrc=color=pink:amplitude=0.2:sample_rate=48000:seed={track}");
            ffmpeg.args(["-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", &sound]);
        }
        for kind in ["v", "a"] {
            (0..self.tracks).for_each(|track| {
                ffmpeg.args(["-map", &format!("{}:{kind}", 2 * track + usize::from(kind == "a"))]);
            });
        }
        if !self.encoder.contains("-pix_fmt") {
            ffmpeg.args(["-pix_fmt", "yuv420p"]);
        }
        ffmpeg.args(["-t", "4", "-g", &GOP.to_string()]).args(self.words());
        let made = encode(ffmpeg, &file);
        let made = if self.again.is_empty() { made } else { self.write_again(self.again, &made, &file) };
        // Once more as the publisher does it: ffmpeg writes what it says of colours a little differently then.
        let made = self.write_again("-c copy", &made, &file);
        std::fs::rename(made.keep().unwrap(), &file).unwrap();
        file
    }

    /// Decodes and encodes, or copies, by these words.
    #[track_caller]
    fn write_again(&self, words: &str, from: &Path, beside: &Path) -> TempPath {
        let mut ffmpeg = Command::new((self.tool)());
        ffmpeg.args(["-nostdin", "-v", "error", "-i"]).arg(from);
        ffmpeg.args(["-map", "0", "-g", &GOP.to_string()]).args(words.split_whitespace());
        encode(ffmpeg, beside)
    }

    /// Publishes the clip in real time, over and over.
    fn publish(&self, clip: &Path, url: &str) -> Peer {
        let mut ffmpeg = Command::new((self.tool)());
        ffmpeg.args(["-nostdin", "-re", "-stream_loop", "-1", "-i"]).arg(clip);
        ffmpeg.args(["-map", "0", "-c", "copy", "-f", "flv", url]);
        run::start(ffmpeg)
    }

    fn run(&self, key: &str) {
        let file = self.clip(key);
        let (before, clip) = (flow::packets(Clip::Alpha.file()), flow::packets(&file));
        let cluster = Cluster::start(2);
        let first = ffmpeg::publish(Clip::Alpha, &cluster.ingest_url(0, NAME));
        cluster.wait_published(NAME);
        let witness = Witness::start(cluster.playback.rtmp(), "live", NAME);
        witness.wait_for_frames(0, GOP);
        drop(first);

        // It comes back with another codec.
        let mut second = self.publish(&file, &cluster.ingest_url(0, NAME));
        witness.wait_for_frames(1, GOP * self.tracks + GOP / 2);
        std::thread::scope(|scope| {
            let url = cluster.live_url(NAME);
            let (file, clip) = (&file, &clip);
            let player = url.clone();
            scope.spawn(move || self.is_seen(file, &player));
            scope.spawn(move || plays_with_an_old_player(&url, clip, self.enhanced));
        });
        cluster.playback.wait_for_metric("lb_viewers", 1.0, SOON);

        // It moves to another node.
        let _third = self.publish(&file, &cluster.ingest_url(1, NAME));
        witness.wait_for_frames(2, GOP * self.tracks);
        wait_for("the end of the publisher that was taken over from", SOON, || !second.is_running());

        let kept = witness.kept();
        assert_eq!(kept.ended, None);
        kept.assert_time_rises();
        let publishes = kept.publishes();
        assert_eq!(publishes.len(), 3);
        flow::assert_publish(&publishes[0], &before);
        flow::assert_publish(&publishes[1], &clip);
        flow::assert_publish(&publishes[2], &clip);
    }

    /// Checks what a late player that knows the codec sees: the packets, the pictures, and no error.
    #[track_caller]
    fn is_seen(&self, clip: &Path, url: &str) {
        let (sent, played) = (self.play(clip.to_str().unwrap(), None), self.play(url, Some(SECONDS)));
        for text in self.said {
            assert!(played.log.contains(text), "no {text} in {}", played.log);
        }
        assert!(!played.log.contains("[error]"), "{}", played.log);
        assert_eq!(played.packets.len(), 2 * self.tracks, "{}", played.log);
        for ((kind, played), (_, sent)) in played.packets.iter().zip(&sent.packets) {
            assert!(played.len() >= SECONDS * GOP - 1, "only {} packets of {kind}", played.len());
            assert_is_part_of(kind, played, sent);
        }
        for ((_, played), (_, sent)) in played.pictures.iter().zip(&sent.pictures) {
            // Some wait for others when the time is over.
            assert!(played.len() > GOP, "only {} pictures", played.len());
            assert_is_part_of("picture", played, sent);
        }
    }

    /// Plays a stream or a file, and decodes all of it.
    #[track_caller]
    fn play(&self, input: &str, seconds: Option<usize>) -> Played {
        let folder = tempfile::tempdir().unwrap();
        let [packets, pictures] = ["packets", "pictures"].map(|name| folder.path().join(name));
        let limit = seconds.map_or(vec![], |seconds| vec!["-t".to_owned(), seconds.to_string()]);
        let mut ffmpeg = Command::new((self.tool)());
        ffmpeg.args(["-nostdin", "-hide_banner", "-v", "level+info", "-i", input]);
        ffmpeg.args(&limit).args(["-map", "0", "-c", "copy", "-f", "framemd5"]).arg(&packets);
        ffmpeg
            .args(&limit)
            .args(["-map", "0:v", "-fps_mode", "passthrough", "-f", "framemd5"])
            .arg(&pictures);
        ffmpeg.args(&limit).args(["-map", "0:a", "-f", "null", "-"]);
        let played = process::run(ffmpeg, DEADLINE);
        assert_eq!(played.code, Some(0), "{}", played.stderr);
        let hashes = |file| hashes_by_stream(&std::fs::read_to_string(file).unwrap());
        Played { log: played.stderr, packets: hashes(&packets), pictures: hashes(&pictures) }
    }
}

/// What a player saw; hashes a stream.
struct Played {
    log: String,
    packets: Vec<(String, Vec<String>)>,
    pictures: Vec<(String, Vec<String>)>,
}

/// Runs an encoder, and gives its output, a file in the same folder as another.
#[track_caller]
fn encode(mut ffmpeg: Command, beside: &Path) -> TempPath {
    let part = tempfile::Builder::new().suffix(".flv").tempfile_in(beside.parent().unwrap()).unwrap();
    let part = part.into_temp_path();
    ffmpeg.args(["-f", "flv", "-y"]).arg(&part);
    let made = process::run(ffmpeg, DEADLINE);
    assert_eq!(made.code, Some(0), "the clip cannot be made: {}", made.stderr);
    part
}

/// Players from before Enhanced RTMP: rtmpdump writes down what it does not understand; ffmpeg plays what it knows, and of
/// the rest does not crash.
#[track_caller]
fn plays_with_an_old_player(url: &str, clip: &[lb::media::Packet], enhanced: bool) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("played.flv");
    let dump = command(&["rtmpdump", "--quiet", "--live", "-r", url, "-o", file.to_str().unwrap()]);
    run::record_bytes(dump, &file, 20_000);
    flow::assert_shown(&flow::packets(&file), clip);
    // Without the limit it looks for a minute and more at what it does not know.
    let mut ffmpeg =
        command(&["ffmpeg", "-nostdin", "-v", "error", "-analyzeduration", "2000000", "-i", url]);
    ffmpeg.args(["-t", "1", "-c", "copy", "-f", "null", "-"]);
    let played = process::run(ffmpeg, DEADLINE);
    assert_eq!(played.signal, None, "{}", played.stderr);
    assert!(enhanced || played.code == Some(0), "{}", played.stderr);
}
