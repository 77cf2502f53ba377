//! node-media-server: between an encoder and lb, between lb and a player, as an origin of lb, and as a target.

use crate::common::cluster::Cluster;
use crate::common::ffmpeg::{self, Clip};
use crate::common::process::Peer;
use crate::common::{SOON, free_port, root, tool, wait_for};
use crate::run::{self, NAME, command};
use std::process::Command;
use tempfile::TempDir;

/// A running server, with one relay at most.
struct Server {
    port: u16,
    _process: Peer,
    _folder: TempDir,
}

impl Server {
    fn start(mode: &str, url: &str) -> Server {
        let (port, folder) = (free_port(), tempfile::tempdir().unwrap());
        let mut command = Command::new("node");
        command.env("NODE_PATH", tool("node-media-server/node_modules"));
        command.arg(root().join("tests/interop/node_media_server.js"));
        command.arg(port.to_string()).arg(folder.path());
        if !mode.is_empty() {
            command.args([mode, url, &format!("/a/{NAME}")]);
        }
        let process = run::start(command);
        wait_for("node-media-server to listen", SOON, || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Server { port, _process: process, _folder: folder }
    }

    fn url(&self) -> String {
        format!("rtmp://127.0.0.1:{}/a/{NAME}", self.port)
    }
}

/// It pushes what an encoder publishes to it.
pub fn publishes() {
    let mut server = None;
    run::publishes(true, |url| {
        let server = server.insert(Server::start("push", url));
        ffmpeg::publish(Clip::Alpha, &server.url())
    });
}

/// lb pulls what an encoder publishes to it.
pub fn is_pulled_from() {
    let server = Server::start("", "");
    let _publisher = ffmpeg::publish(Clip::Alpha, &server.url());
    run::is_pulled_from(&server.url());
}

/// lb pushes to it what an encoder publishes to lb.
pub fn is_pushed_to() {
    run::is_pushed_to(&Server::start("", "").url());
}

/// It pulls from a playback node, and passes on frames. It listens for media only some time after it read that playing
/// started, so that it may miss the headers, which come with that.
pub fn pulls() {
    let cluster = Cluster::start(1);
    let _publisher = ffmpeg::publish(Clip::Alpha, &cluster.ingest_url(0, NAME));
    cluster.wait_published(NAME);
    let server = Server::start("pull", &cluster.live_url(NAME));
    cluster.playback.wait_for_metric("lb_viewers", 1.0, SOON);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("played.flv");
    let url = server.url();
    run::record(command(&["rtmpdump", "--quiet", "--live", "-r", &url, "-o", file.to_str().unwrap()]), &file);
}
