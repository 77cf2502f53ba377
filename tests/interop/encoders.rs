//! Peers that publish: one function each.

use crate::common::ffmpeg::{self, Clip};
use crate::common::{free_port, root};
use crate::run::{self, command};
use std::path::Path;
use std::process::Command;

fn clip() -> &'static str {
    Clip::Alpha.file().to_str().unwrap()
}

fn ffmpeg(tool: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(tool);
    command.args(["-nostdin", "-re", "-i", clip(), "-c", "copy", "-f", "flv"]).args(words);
    command
}

pub fn debians_ffmpeg() {
    run::publishes(true, |url| ffmpeg::publish(Clip::Alpha, url));
}

pub fn current_ffmpeg() {
    run::publishes(true, |url| run::start(ffmpeg(&run::current_ffmpeg(), &[url])));
}

/// ffmpeg as a server for one client, lb.
fn listening_ffmpeg(tool: &Path) {
    let location = format!("rtmp://127.0.0.1:{}/app/{}", free_port(), run::NAME);
    let _server = run::start(ffmpeg(tool, &["-listen", "1", &location]));
    run::is_pulled_from(&location);
}

pub fn debians_ffmpeg_is_pulled_from() {
    listening_ffmpeg(&run::debians_ffmpeg());
}

pub fn current_ffmpeg_is_pulled_from() {
    listening_ffmpeg(&run::current_ffmpeg());
}

pub fn pyav() {
    run::publishes(true, |url| {
        let mut command = Command::new(run::python());
        command.arg(root().join("tests/interop/pyav.py")).args(["publish", clip(), url]);
        run::start(command)
    });
}

fn gstreamer(sink: &str) {
    run::publishes(true, |url| {
        let head = format!("gst-launch-1.0 -q filesrc location={} ! flvdemux name=d", clip());
        let tail = "d.video ! queue ! h264parse ! m. d.audio ! queue ! aacparse ! m. flvmux name=m streamable=true ! queue";
        let pipeline = format!("{head} {tail} ! {sink} sync=true location={url}");
        run::start(command(&pipeline.split(' ').collect::<Vec<_>>()))
    });
}

pub fn gstreamers_rtmp2() {
    gstreamer("rtmp2sink");
}

pub fn gstreamers_librtmp() {
    gstreamer("rtmpsink");
}

pub fn vlc() {
    // Readable by nobody, who may not enter the folder of the clip.
    let folder = tempfile::Builder::new().prefix("lb-vlc-").tempdir().unwrap();
    run::open_to_all(folder.path());
    let file = folder.path().join("clip.flv");
    std::fs::copy(clip(), &file).unwrap();
    run::publishes(false, |url| {
        let out = format!("#std{{access=avio,mux=ffmpeg{{mux=flv}},dst={url}}}");
        run::start(run::vlc(&[file.to_str().unwrap(), "--sout", &out]))
    });
}
