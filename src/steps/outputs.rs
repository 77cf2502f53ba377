//! The parameters of the steps that bring a stream somewhere else: `rtmp_push`, `ffmpeg_push`, `ffmpeg_hls` and `ffmpeg_transcode`.

use super::parameters::{ParameterError, Parameters};
use crate::ffmpeg::{self, AudioCodec, PRESETS, Transcode, VideoCodec};
use crate::ids::StreamName;
use crate::net::hls::segment_prefix;
use crate::net::location::Location;
use mmids_core::workflows::definitions::WorkflowStepDefinition;
use std::path::PathBuf;
use std::time::Duration;

/// The steps, with the parameters that each knows.
pub const STEPS: [(&str, &[&str]); 4] = [
    (RTMP_PUSH, &["target"]),
    (FFMPEG_PUSH, &["target"]),
    (FFMPEG_HLS, &["path", "duration", "count", "stream_name"]),
    (FFMPEG_TRANSCODE, &["vcodec", "acodec", "h264_preset", "size", "kbps", "bitrate"]),
];

/// Pushes by the RTMP client in this process.
pub const RTMP_PUSH: &str = "rtmp_push";
/// Pushes by ffmpeg.
pub const FFMPEG_PUSH: &str = "ffmpeg_push";
/// Makes HLS by ffmpeg.
pub const FFMPEG_HLS: &str = "ffmpeg_hls";
/// Transcodes by ffmpeg.
pub const FFMPEG_TRANSCODE: &str = "ffmpeg_transcode";

/// The segments of a playlist where nothing is said.
const SEGMENT: Duration = Duration::from_secs(2);

/// The longest segment that makes sense, seconds.
const SEGMENT_MAX: u64 = 60;

/// The most segments in a playlist that forgets old ones.
const COUNT_MAX: u32 = 100_000;

/// The preset where none is named.
const PRESET: &str = "veryfast";

/// The largest picture, in pixels each way: what H.264's highest level takes.
const SIDE_MAX: u16 = 8192;

/// The highest bit rate, kilobits a second.
const KBPS_MAX: u32 = 500_000;

/// What `ffmpeg_hls` is to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hls {
    path: PathBuf,
    segment: Duration,
    count: u32,
    name: Option<StreamName>,
}

impl Hls {
    /// The name of what is written of a stream: the stream's own, unless the step says another.
    pub fn name(&self, stream: &StreamName) -> StreamName {
        self.name.as_ref().unwrap_or(stream).clone()
    }

    /// What is written of a stream.
    pub fn of(&self, stream: &StreamName) -> ffmpeg::Hls {
        let file = format!("{}.m3u8", self.name(stream));
        let playlist = self.path.join(file);
        let segment_prefix = segment_prefix(&playlist);
        ffmpeg::Hls { playlist, segment_prefix, segment: self.segment, count: self.count }
    }
}

/// Reads the target of `rtmp_push`.
pub fn rtmp_target(definition: &WorkflowStepDefinition) -> Result<Location, ParameterError> {
    let target = Parameters(definition).required("target", "URL")?;
    Location::parse(target).map_err(|error| ParameterError(format!("target: {}", error.without_key())))
}

/// Reads the target of `ffmpeg_push`.
pub fn ffmpeg_target(definition: &WorkflowStepDefinition) -> Result<ffmpeg::Location, ParameterError> {
    let target = Parameters(definition).required("target", "URL")?;
    ffmpeg::Location::parse(target).map_err(|error| ParameterError(format!("target: {error}")))
}

/// Reads the parameters of `ffmpeg_hls`.
pub fn hls(definition: &WorkflowStepDefinition) -> Result<Hls, ParameterError> {
    let parameters = Parameters(definition);
    let path = parameters.required("path", "FOLDER")?;
    if path.contains(char::is_control) {
        return Err(ParameterError("path has a control character; a folder is allowed".to_owned()));
    }
    let seconds = format!("a number of seconds from 1 to {SEGMENT_MAX}");
    let segment = match parameters.parsed::<u64>("duration", &seconds)? {
        Some(given) if !(1..=SEGMENT_MAX).contains(&given) => {
            return Err(ParameterError(format!("duration={given} is not allowed; {seconds} is")));
        }
        given => given.map_or(SEGMENT, Duration::from_secs),
    };
    let many = format!("a number of segments, 0 for all of them, up to {COUNT_MAX}");
    let count = parameters.parsed::<u32>("count", &many)?.unwrap_or(0);
    if count > COUNT_MAX {
        return Err(ParameterError(format!("count={count} is not allowed; {many} is")));
    }
    let name = parameters.get("stream_name").map(|_| parameters.stream_name("stream_name")).transpose()?;
    Ok(Hls { path: path.into(), segment, count, name })
}

/// Reads the parameters of `ffmpeg_transcode`.
pub fn transcode(definition: &WorkflowStepDefinition) -> Result<Transcode, ParameterError> {
    let parameters = Parameters(definition);
    let audio = match parameters.required("acodec", "copy or aac")? {
        "copy" => AudioCodec::Copy,
        "aac" => AudioCodec::Aac,
        other => return Err(ParameterError(format!("acodec={other} is not allowed; copy and aac are"))),
    };
    let video = match parameters.required("vcodec", "copy or h264")? {
        "copy" => {
            let useless = ["h264_preset", "size", "kbps", "bitrate"];
            if let Some(name) = useless.into_iter().find(|name| parameters.get(name).is_some()) {
                let what = format!("{name} needs vcodec=h264: vcodec=copy leaves the video as it is");
                return Err(ParameterError(what));
            }
            VideoCodec::Copy
        }
        "h264" => h264(&parameters)?,
        other => return Err(ParameterError(format!("vcodec={other} is not allowed; copy and h264 are"))),
    };
    Ok(Transcode { video, audio })
}

fn h264(parameters: &Parameters) -> Result<VideoCodec, ParameterError> {
    let asked = parameters.get("h264_preset").unwrap_or(PRESET);
    let preset = PRESETS.into_iter().find(|preset| *preset == asked).ok_or_else(|| {
        ParameterError(format!("h264_preset={asked} is not allowed; {} are", PRESETS.join(", ")))
    })?;
    let size = parameters.get("size").map(size).transpose()?;
    let rate = |name| {
        let allowed = format!("a number of kilobits a second from 1 to {KBPS_MAX}");
        match parameters.parsed::<u32>(name, &allowed)? {
            Some(given) if !(1..=KBPS_MAX).contains(&given) => {
                Err(ParameterError(format!("{name}={given} is not allowed; {allowed} is")))
            }
            given => Ok(given),
        }
    };
    // The guide's scenario has the second name.
    let kbps = rate("kbps")?.or(rate("bitrate")?);
    Ok(VideoCodec::H264 { preset, size, kbps })
}

fn size(text: &str) -> Result<(u16, u16), ParameterError> {
    let side = |text: &str| {
        let side: u16 = text.parse().ok()?;
        // H.264 with 4:2:0 has a colour for each two pixels.
        ((2..=SIDE_MAX).contains(&side) && side.is_multiple_of(2)).then_some(side)
    };
    let sides = text.split_once(['x', 'X']).and_then(|(width, height)| Some((side(width)?, side(height)?)));
    sides.ok_or_else(|| {
        let allowed = format!("WIDTHxHEIGHT in even numbers of pixels up to {SIDE_MAX}");
        ParameterError(format!("size={text} is not allowed; {allowed} is"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use mmids_core::workflows::definitions::WorkflowStepType;

    fn step(name: &str, parameters: &[(&str, &str)]) -> WorkflowStepDefinition {
        WorkflowStepDefinition {
            step_type: WorkflowStepType(name.to_owned()),
            parameters: parameters.iter().map(|(k, v)| (k.to_string(), Some(v.to_string()))).collect(),
        }
    }

    #[test]
    fn hls_is_read_as_mmids_documents_it() {
        let name: StreamName = "team/x".parse().unwrap();
        let plain = hls(&step(FFMPEG_HLS, &[("path", "/tmp/hls")])).unwrap().of(&name);
        assert_eq!(plain.playlist, PathBuf::from("/tmp/hls/team/x.m3u8"));
        assert_eq!((plain.segment, plain.count), (Duration::from_secs(2), 0));
        let full = [("path", "out"), ("duration", "4"), ("count", "6"), ("stream_name", "fixed")];
        let full = hls(&step(FFMPEG_HLS, &full)).unwrap().of(&name);
        assert_eq!(full.playlist, PathBuf::from("out/fixed.m3u8"));
        assert_eq!((full.segment, full.count), (Duration::from_secs(4), 6));
        for (name, value) in [("duration", "0"), ("count", "-1"), ("stream_name", "../x"), ("path", "")] {
            let given = [("path", "p"), (name, value)];
            let given = if name == "path" { &given[1..] } else { &given[..] };
            let error = hls(&step(FFMPEG_HLS, given)).unwrap_err();
            assert!(error.0.contains(name), "{error}");
        }
    }

    #[test]
    fn a_transcode_is_read_as_mmids_documents_it() {
        let read = |parameters: &[(&str, &str)]| transcode(&step(FFMPEG_TRANSCODE, parameters));
        let copy = Transcode { video: VideoCodec::Copy, audio: AudioCodec::Copy };
        assert_eq!(read(&[("vcodec", "copy"), ("acodec", "copy")]), Ok(copy));
        let full = [("vcodec", "h264"), ("acodec", "aac"), ("h264_preset", "fast"), ("size", "640x480")];
        for rate in ["kbps", "bitrate"] {
            let VideoCodec::H264 { preset, size, kbps } =
                read(&[&full[..], &[(rate, "900")]].concat()).unwrap().video
            else {
                panic!("it encodes");
            };
            assert_eq!((preset, size, kbps), ("fast", Some((640, 480)), Some(900)));
        }
        for (given, what) in [
            (&[("vcodec", "h264")][..], "acodec"),
            (&[("acodec", "aac")], "vcodec"),
            (&[("acodec", "aac"), ("vcodec", "av1")], "vcodec=av1 is not allowed; copy and h264 are"),
            (&[("acodec", "aac"), ("vcodec", "copy"), ("size", "2x2")], "size needs vcodec=h264"),
            (&[("acodec", "aac"), ("vcodec", "h264"), ("size", "639x480")], "size=639x480"),
            (&[("acodec", "aac"), ("vcodec", "h264"), ("h264_preset", "best")], "h264_preset=best"),
            (&[("acodec", "aac"), ("vcodec", "h264"), ("kbps", "0")], "kbps=0"),
        ] {
            let error = read(given).unwrap_err();
            assert!(error.0.contains(what), "{error}");
        }
    }

    #[test]
    fn a_wrong_target_is_refused_without_its_key() {
        let rtmp = |target| rtmp_target(&step(RTMP_PUSH, &[("target", target)]));
        assert_eq!(rtmp("rtmp://h/app/key").unwrap().name, "key");
        for wrong in ["http://h/app/secret", "rtmp:/app/secret", "rtmp://h:0x/app/secret"] {
            let error = rtmp(wrong).unwrap_err();
            assert!(error.0.starts_with("target: ") && !error.0.contains("secret"), "{error}");
        }
        assert!(ffmpeg_target(&step(FFMPEG_PUSH, &[("target", "-i")])).is_err());
    }
}
