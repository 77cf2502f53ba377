//! The peers, by direction: what is run, and what docs/INTEROP.md says of it.

use crate::common::process;
use crate::run::{self, command};
use crate::{encoders, nginx, node_media_server, players, rml};
use std::process::Command;
use std::time::Duration;

/// What is known of a peer in one direction.
#[derive(Clone, Copy)]
pub enum Tried {
    /// It works, as this shows.
    Works(fn()),
    /// It works, as a test of another file shows: the file and the test's name.
    Elsewhere(&'static str, &'static str),
    /// It works but for a fault of the peer's, which the text names; this shows what does work.
    But(&'static str, fn()),
    /// The peer does not do that, or nobody would.
    No,
}
use Tried::{But, Elsewhere, No, Works};

/// A peer.
pub struct Peer {
    /// Its name in the document.
    pub name: &'static str,
    /// Where the tests get it from.
    pub source: &'static str,
    /// Asks it for its version.
    pub version: fn() -> String,
    /// It publishes to an ingest node.
    pub publishes: Tried,
    /// It plays from a playback node.
    pub plays: Tried,
    /// An lb node pulls from it.
    pub is_pulled: Tried,
    /// As a server, it pulls from a playback node.
    pub pulls: Tried,
    /// An lb node pushes to it.
    pub is_pushed_to: Tried,
    /// What was tried and what was seen.
    pub seen: &'static str,
}

impl Peer {
    /// In the order of the document's columns.
    pub fn directions(&self) -> [Tried; 5] {
        [self.publishes, self.plays, self.is_pulled, self.pulls, self.is_pushed_to]
    }

    fn run(&self) {
        println!("{} {}", self.name, (self.version)());
        for tried in self.directions() {
            if let Works(run) | But(_, run) = tried {
                run();
            }
        }
    }
}

/// Makes the table, and a test of each row.
macro_rules! peers {
    ($($test:ident: $peer:expr,)*) => {
        /// All peers, in the document's order.
        pub const PEERS: &[Peer] = &[$($peer),*];
        $(
            #[test]
            fn $test() {
                $peer.run();
            }
        )*
    };
}

peers! {
    ffmpeg_of_debian: Peer {
        name: "ffmpeg",
        source: "Debian 12",
        version: || version(command(&["ffmpeg", "-version"])),
        publishes: Works(encoders::debians_ffmpeg),
        plays: Works(players::debians_ffmpeg),
        is_pulled: Works(encoders::debians_ffmpeg_is_pulled_from),
        pulls: No,
        is_pushed_to: No,
        seen: "The same bytes. It is pulled from with `-listen 1`, which takes one client. No Enhanced RTMP, no HEVC.",
    },
    ffmpeg_current: Peer {
        name: "ffmpeg, current",
        source: "PyPI `imageio-ffmpeg`",
        version: || version(command(&[run::current_ffmpeg().to_str().unwrap(), "-version"])),
        publishes: Works(encoders::current_ffmpeg),
        plays: Works(players::current_ffmpeg),
        is_pulled: Works(encoders::current_ffmpeg_is_pulled_from),
        pulls: No,
        is_pushed_to: No,
        seen: "The same bytes; the codecs of Enhanced RTMP are below.",
    },
    pyav: Peer {
        name: "PyAV",
        source: "PyPI `av`",
        version: || version(command(&[run::python().to_str().unwrap(), "-c", "import av; print(av.__version__)"])),
        publishes: Works(encoders::pyav),
        plays: Works(players::pyav),
        is_pulled: No,
        pulls: No,
        is_pushed_to: No,
        seen: "The same packets.",
    },
    gstreamer_rtmp2: Peer {
        name: "GStreamer `rtmp2sink`, `rtmp2src`",
        source: "Debian 12",
        version: || version(command(&["gst-launch-1.0", "--version"])),
        publishes: Works(encoders::gstreamers_rtmp2),
        plays: Works(players::gstreamers_rtmp2),
        is_pulled: No,
        pulls: No,
        is_pushed_to: No,
        seen: "The same bytes, through `flvmux` and `flvdemux`.",
    },
    gstreamer_librtmp: Peer {
        name: "GStreamer `rtmpsink`, `rtmpsrc`",
        source: "Debian 12",
        version: || version(command(&["gst-launch-1.0", "--version"])),
        publishes: Works(encoders::gstreamers_librtmp),
        plays: Works(players::gstreamers_librtmp),
        is_pulled: No,
        pulls: No,
        is_pushed_to: No,
        seen: "The same bytes. These use librtmp; playing needs `live=1`.",
    },
    rtmpdump: Peer {
        name: "rtmpdump",
        source: "Debian 12",
        version: || version_from(command(&["rtmpdump", "--help"]), "RTMPDump"),
        publishes: No,
        plays: Works(players::rtmpdump),
        is_pulled: No,
        pulls: No,
        is_pushed_to: No,
        seen: "The same bytes, with `--live`.",
    },
    vlc: Peer {
        name: "VLC",
        source: "Debian 12",
        version: || version_from(run::vlc(&["--version"]), "VLC version"),
        publishes: Works(encoders::vlc),
        plays: Works(players::vlc),
        is_pulled: No,
        pulls: No,
        is_pushed_to: No,
        seen: "The same pictures; it packs what it publishes anew.",
    },
    mpv: Peer {
        name: "mpv",
        source: "Debian 12",
        version: || version(command(&["mpv", "--version"])),
        publishes: No,
        plays: Works(players::mpv),
        is_pulled: No,
        pulls: No,
        is_pushed_to: No,
        seen: "The same pictures.",
    },
    mplayer: Peer {
        name: "MPlayer",
        source: "Debian 12",
        version: || version_of_package("mplayer"),
        publishes: No,
        plays: Works(players::mplayer),
        is_pulled: No,
        pulls: No,
        is_pushed_to: No,
        seen: "The same pictures.",
    },
    obs: Peer {
        name: "OBS Studio",
        source: "Debian 12",
        version: || version(command(&["obs", "--version"])),
        publishes: Elsewhere("tests/obs/main.rs", "viewers_of_a_moving_scene_stay"),
        plays: No,
        is_pulled: No,
        pulls: No,
        is_pushed_to: No,
        seen: "It comes back by itself after a cut, a drain and the death of its node; viewers stay. Figures below.",
    },
    rml_rtmp: Peer {
        name: "rml_rtmp",
        source: "crates.io",
        version: rml_version,
        publishes: Works(rml::publishes),
        plays: Works(rml::plays),
        is_pulled: Elsewhere("tests/strict_origin.rs", "a_server_that_loses_what_comes_before_its_answer_is_pulled_from"),
        pulls: No,
        is_pushed_to: No,
        seen: "The same messages. As a server it loses what comes before it has answered `connect`; lb waits for that answer.",
    },
    nginx_rtmp: Peer {
        name: "nginx-rtmp",
        source: "Debian 12",
        version: || version_of_package("libnginx-mod-rtmp"),
        publishes: Works(nginx::publishes),
        plays: No,
        is_pulled: Works(nginx::is_pulled_from),
        pulls: Works(nginx::pulls),
        is_pushed_to: Works(nginx::is_pushed_to),
        seen: "The same bytes. It publishes with `push` and pulls with `pull`.",
    },
    node_media_server: Peer {
        name: "node-media-server",
        source: "npm",
        version: node_media_server_version,
        publishes: Works(node_media_server::publishes),
        plays: No,
        is_pulled: Works(node_media_server::is_pulled_from),
        pulls: But("frames without headers", node_media_server::pulls),
        is_pushed_to: Works(node_media_server::is_pushed_to),
        seen: "The same bytes, with `push`, as an origin and as a target. Its `pull` drops media that is read together with the answer to `play`: from lb \
               that is all headers, and its players wait for the next publish.",
    },
}

/// The first line that a tool says of its version.
fn version(command: Command) -> String {
    version_from(command, "")
}

/// The version of a package: of what does not say it by itself.
fn version_of_package(name: &str) -> String {
    version(command(&["dpkg-query", "--show", "-f", "${Version}\n", name]))
}

/// The first line that begins so.
fn version_from(command: Command, start: &str) -> String {
    let said = process::run(command, Duration::from_secs(20));
    let text = said.stdout + &said.stderr;
    let line = text.lines().find(|line| !line.trim().is_empty() && line.starts_with(start));
    number(line.unwrap_or_else(|| panic!("no version in: {text}")))
}

/// The first word that begins like a version, without what builds append to it.
fn number(line: &str) -> String {
    let words = line.split(|c: char| c.is_whitespace() || ":,()".contains(c));
    let mut words = words.map(|word| word.trim_start_matches(['v', 'n']));
    let version = words.find(|word| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.'));
    let version = version.unwrap_or_else(|| panic!("no version in: {line}"));
    version.split(['-', '+']).next().unwrap().to_owned()
}

/// From the lock file: a library does not say.
fn rml_version() -> String {
    let lock = crate::common::read("Cargo.lock");
    let after = lock.split("name = \"rml_rtmp\"\nversion = \"").nth(1).expect("it is locked");
    after.split('"').next().unwrap().to_owned()
}

fn node_media_server_version() -> String {
    let file = crate::common::tool("node-media-server/node_modules/node-media-server/package.json");
    let package: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    package["version"].as_str().unwrap().to_owned()
}
