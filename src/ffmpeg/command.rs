//! The arguments of an ffmpeg that copies a location, as FLV, to its standard output.
//!
//! The choices below were measured with ffmpeg 5.1 and a live RTMP source of 30 frames a second.

use super::stderr::redact;
use crate::api::PULL_APP;
use std::fmt;
use std::path::Path;
use std::time::Duration;

/// Why a location cannot be pulled from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nothing to pull from.
    #[error("the location to pull from is empty; a URL or a file path is allowed")]
    Empty,
    /// ffmpeg would take it for an option.
    #[error("the location to pull from must not begin with '-'; write './-…' for a file")]
    Dash,
    /// Not an argument that a process can be given, or not one that a log line can hold.
    #[error("the location to pull from has a control character; a URL or a file path is allowed")]
    Control,
}

/// What ffmpeg reads: a URL or a file path, checked. It is handed over as one argument, never through a shell.
///
/// It may hold credentials, so it is shown without user, password and query. ffmpeg takes it on its command line
/// only, where other users of the host can see it unless `/proc` is mounted with `hidepid`.
#[derive(Clone, PartialEq, Eq)]
pub struct Location(String);

impl Location {
    /// Checks a text.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Err(Error::Empty);
        }
        if text.starts_with('-') {
            return Err(Error::Dash);
        }
        if text.contains(char::is_control) {
            return Err(Error::Control);
        }
        Ok(Location(text.to_owned()))
    }

    /// The location of another node's stream with a signature in its query; any other as it is. A server that is not lb would
    /// take the signature for a part of the stream's name.
    pub fn signed(&self, sign: impl FnOnce(&str) -> String) -> Self {
        match self.of_a_node() {
            Some((name, query)) => {
                let path = self.0.split('?').next().unwrap_or_default();
                let separator = if query.is_empty() { "" } else { "&" };
                Location(format!("{path}?{query}{separator}{}", sign(name)))
            }
            None => self.clone(),
        }
    }

    /// The name and the query of a stream that another node serves.
    fn of_a_node(&self) -> Option<(&str, &str)> {
        let (path, query) = self.0.split_once('?').unwrap_or((&self.0, ""));
        let is_rtmp = matches!(self.scheme().as_deref(), Some("rtmp" | "rtmps"));
        match path.splitn(5, '/').skip(3).collect::<Vec<_>>()[..] {
            [PULL_APP, name] if is_rtmp && !name.is_empty() => Some((name, query)),
            _ => None,
        }
    }

    /// Whether it is pulled by RTMP without TLS.
    pub fn is_plain_rtmp(&self) -> bool {
        self.scheme().is_some_and(|scheme| scheme.starts_with("rtmp") && scheme != "rtmps")
    }

    fn scheme(&self) -> Option<String> {
        let (scheme, _) = self.0.split_once("://")?;
        Some(scheme.to_ascii_lowercase())
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redact(&self.0))
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", redact(&self.0))
    }
}

/// How long RTMP input may take to show its tracks.
///
/// With sound and picture both there, ffmpeg starts as soon as it has seen both (0.35 s after connecting). With only one
/// of them it waits for the other; without a limit, for as long as the stream lives. A track that comes later than this
/// is not pulled.
const RTMP_ANALYZE: Duration = Duration::from_secs(1);

/// How long one track may keep another waiting when packets are put in order. ffmpeg's own default is 10 s, so a
/// microphone that goes silent would hold the picture that long.
const INTERLEAVE: Duration = Duration::from_secs(1);

/// The argument list. `io_timeout` is the longest wait for the network within ffmpeg; `ca_file` stands in the place of the
/// host's root certificates, and a server that speaks TLS must have a certificate that is believed.
pub fn arguments(location: &Location, io_timeout: Duration, ca_file: Option<&Path>) -> Vec<String> {
    let micros = |time: Duration| time.as_micros().to_string();
    let mut args = Args::default();
    args.add(["-hide_banner", "-nostdin", "-nostats", "-loglevel", "warning"]);
    // Not guessing the frame rate saves 20 frames of waiting and changes nothing in a copy. `-fflags nobuffer` is left
    // out on purpose: it throws away what was read for probing, which was the first two seconds and their keyframe.
    args.add(["-fpsprobesize", "0"]);
    args.add(["-protocol_whitelist", protocols(location)]);
    match location.scheme().as_deref() {
        Some("rtmp" | "rtmps" | "rtmpe" | "rtmpt" | "rtmpte" | "rtmpts") => {
            args.add(["-analyzeduration", &micros(RTMP_ANALYZE), "-rw_timeout", &micros(io_timeout)]);
        }
        Some("http" | "https" | "tcp" | "tls" | "srt") => {
            args.add(["-rw_timeout", &micros(io_timeout)]);
        }
        // A file is played at its own speed, as if it were live.
        None | Some("file") => args.add(["-re"]),
        Some(_) => {}
    }
    if matches!(location.scheme().as_deref(), Some("rtmps" | "https" | "tls")) {
        args.add(["-tls_verify", "1"]);
        if let Some(file) = ca_file {
            args.add(["-ca_file", &file.display().to_string()]);
        }
    }
    // From the URL alone ffmpeg would make another key of some names: without `.flv` at the end, with `mp4:` before.
    if let Some((name, query)) = location.of_a_node() {
        let separator = if query.is_empty() { "" } else { "?" };
        args.add(["-rtmp_app", PULL_APP, "-rtmp_playpath", &format!("{name}{separator}{query}")]);
    }
    args.add(["-i", &location.0]);
    // One picture (no cover art) and one sound: all that FLV holds. Data streams are left out, for FLV refuses most kinds.
    args.add(["-map", "0:V:0?", "-map", "0:a:0?", "-c", "copy"]);
    // Each packet goes out when it is there; without this up to a second is held in a buffer.
    args.add(["-max_interleave_delta", &micros(INTERLEAVE), "-flush_packets", "1"]);
    args.add(["-f", "flv", "-flvflags", "no_duration_filesize", "pipe:1"]);
    args.0
}

/// The protocols that ffmpeg may speak for a location: a playlist or redirect leads nowhere else, above all not to files.
fn protocols(location: &Location) -> &'static str {
    match location.scheme().as_deref() {
        Some("rtmp") => "rtmp,tcp",
        Some("rtmps") => "rtmps,tls,tcp",
        Some("rtmpe" | "rtmpt" | "rtmpte" | "rtmpts") => {
            "rtmp,rtmpe,rtmpt,rtmpte,rtmpts,ffrtmphttp,ffrtmpcrypt,http,https,tls,tcp"
        }
        Some("http" | "https") => "http,https,tls,tcp,crypto",
        Some("tcp") => "tcp",
        Some("tls") => "tls,tcp",
        Some("srt") => "srt",
        Some("udp" | "rtp" | "rtsp") => "udp,rtp,rtsp,tcp",
        None | Some("file") => "file",
        // ffmpeg says by itself what it does not know.
        Some(_) => "rtmp,tcp",
    }
}

#[derive(Default)]
struct Args(Vec<String>);

impl Args {
    fn add<const N: usize>(&mut self, args: [&str; N]) {
        self.0.extend(args.map(str::to_owned));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(location: &str) -> String {
        arguments(&Location::parse(location).unwrap(), Duration::from_secs(10), None).join(" ")
    }

    #[test]
    fn a_location_is_one_argument_whatever_it_holds() {
        for text in ["rtmp://h/a/b?c=$(id)", "a file;rm -rf", "file:x", "[::1]"] {
            let args = arguments(&Location::parse(text).unwrap(), Duration::from_secs(1), None);
            let input = args.iter().position(|arg| arg == "-i").unwrap();
            assert_eq!(args[input + 1], text);
        }
        assert_eq!(Location::parse(""), Err(Error::Empty));
        assert_eq!(Location::parse("-version"), Err(Error::Dash));
        assert_eq!(Location::parse("rtmp://h/\0"), Err(Error::Control));
        assert_eq!(Location::parse("rtmp://h/\n"), Err(Error::Control));
    }

    #[test]
    fn the_input_options_fit_the_input() {
        let rtmp = line("RTMP://h/pull_source/x");
        assert!(
            rtmp.contains(
                "-protocol_whitelist rtmp,tcp -analyzeduration 1000000 -rw_timeout 10000000 -rtmp_app pull_source -rtmp_playpath x -i RTMP://h"
            ),
            "{rtmp}"
        );
        let http = line("https://h/x.m3u8");
        assert!(
            http.contains(
                "-protocol_whitelist http,https,tls,tcp,crypto -rw_timeout 10000000 -tls_verify 1 -i"
            ),
            "{http}"
        );
        for file in ["/a/b.flv", "file:x.mp4", "file:///x.mp4"] {
            assert!(line(file).contains("-fpsprobesize 0 -protocol_whitelist file -re -i"), "{file}");
        }
        assert!(line("udp://h:1").contains("-protocol_whitelist udp,rtp,rtsp,tcp -i"));
    }

    #[test]
    fn only_what_another_node_serves_is_signed() {
        let signed = |text: &str| Location::parse(text).unwrap().signed(|name| format!("lb_pull={name}")).0;
        assert_eq!(signed("rtmp://h:1/pull_source/a/x"), "rtmp://h:1/pull_source/a/x?lb_pull=a/x");
        assert_eq!(signed("rtmps://h/pull_source/x?a=1"), "rtmps://h/pull_source/x?a=1&lb_pull=x");
        for other in ["rtmp://h/live/x", "rtmp://h/pull_source/", "http://h/pull_source/x", "/pull_source/x"]
        {
            assert_eq!(signed(other), other);
        }
    }

    #[test]
    fn a_node_is_asked_for_the_name_letter_for_letter() {
        let asked = |text: &str| {
            let args = arguments(&Location::parse(text).unwrap(), Duration::from_secs(1), None);
            let at = args.iter().position(|arg| arg == "-rtmp_playpath")?;
            args.get(at + 1).cloned()
        };
        for name in ["x", "a/b.flv", "x.mp4", "a:b/c", "a%2Fb+c=d~@e", "x?lb_pull=y"] {
            assert_eq!(asked(&format!("rtmp://h/pull_source/{name}")).as_deref(), Some(name));
        }
        assert_eq!(asked("rtmp://h/live/instance/x"), None);
    }

    #[test]
    fn a_location_is_shown_without_its_secrets() {
        let location = Location::parse("rtmp://me:secret@h/app/x?token=secret").unwrap();
        assert!(!format!("{location} {location:?}").contains("secret"));
        assert_eq!(location.to_string(), "rtmp://h/app/x?…");
    }
}
