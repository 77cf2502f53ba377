//! Pushes and transcodes whose other end is away, slow or killed: the stream itself loses nothing, and what is lost beyond it is counted.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests may panic

mod common;

use common::ffmpeg::{self, Clip};
use common::lb::Lb;
use common::publisher::{Media, Publisher};
use common::viewer::Viewer;
use common::{SOON, endpoint, poll, wait_for};
use lb::rtmp::Limits;
use lb::rtmp::session::{Event, Server};
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tempfile::NamedTempFile;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::task::AbortOnDropHandle;

const NOBODY: &str = "http://127.0.0.1:1";

fn start_on(port: &str, text: &str) -> Lb {
    let mut config = NamedTempFile::new().unwrap();
    config.write_all(text.as_bytes()).unwrap();
    let config = config.path().to_str().unwrap();
    Lb::start(&["--role", "ingest", "--rtmp-port", port, "--reactor-url", NOBODY, "--config", config])
}

/// A node that takes what is pushed to the app `app`.
fn target(port: &str) -> Lb {
    start_on(
        port,
        "workflow w {\n rtmp_receive rtmp_app=app stream_key=*\n rtmp_watch rtmp_app=app stream_key=*\n}\n",
    )
}

/// A node with these steps behind a publish to `in`, which viewers watch at `out`.
fn node(steps: &str) -> Lb {
    let watch = "rtmp_watch rtmp_app=out stream_key=*";
    start_on("0", &format!("workflow w {{\n rtmp_receive rtmp_app=in stream_key=*\n {watch}\n {steps}\n}}\n"))
}

/// A port where nobody listens at the moment.
fn free_port() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port().to_string()
}

fn lost_behind(node: &Lb) -> f64 {
    node.metric("lb_lost_messages_total{reason=\"behind\"}")
}

#[test]
fn a_target_that_is_away_is_tried_until_it_is_there_and_again_when_it_was_killed() {
    let port = free_port();
    let node = node(&format!("rtmp_push target=rtmp://127.0.0.1:{port}/app/native"));
    let publisher = Publisher::start(node.rtmp(), "in", "x", Media { gop: 12, ..Media::default() });
    publisher.wait_for_keyframe();
    let viewer = Viewer::start(node.rtmp(), "out", "x");
    let native = "lb_pushes_started_total{kind=\"native\"}";
    wait_for("two attempts", SOON, || node.metric(native) >= 2.0);
    for _round in 0..2 {
        let target = target(&port);
        wait_for("the native push", SOON, || target.metric("lb_publishers") >= 1.0);
        let restreamed = Viewer::start(target.rtmp(), "app", "native");
        wait_for("the stream at the target", SOON, || restreamed.seen().frames(1) > 20);
        restreamed.seen().assert_in_order();
        assert_eq!(target.metric("lb_misbehaved_total"), 0.0);
        target.kill();
    }
    // The stream's own viewers have not noticed.
    let seen = viewer.seen();
    seen.assert_in_order();
    assert!(seen.longest_gap() < Duration::from_secs(2), "{:?}", seen.longest_gap());
    assert!(seen.ended.is_none(), "{:?}", seen.ended);
}

/// A target that takes publishes and then reads nothing any more.
struct Deaf {
    address: SocketAddr,
    publishes: Arc<AtomicUsize>,
    _task: AbortOnDropHandle<()>,
}

impl Deaf {
    fn start() -> Deaf {
        let publishes = Arc::new(AtomicUsize::new(0));
        let count = publishes.clone();
        let (address, listener) = endpoint::runtime().block_on(async {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(8 << 10).unwrap();
            socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let listener: TcpListener = socket.listen(16).unwrap();
            (listener.local_addr().unwrap(), listener)
        });
        let task = endpoint::runtime().spawn(async move {
            let mut held = tokio::task::JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                held.spawn(take_publish(socket, count.clone()));
            }
        });
        Deaf { address, publishes, _task: AbortOnDropHandle::new(task) }
    }
}

async fn take_publish(mut socket: TcpStream, publishes: Arc<AtomicUsize>) {
    let mut session = Server::new(Limits::default(), endpoint::nonce());
    let mut buffer = [0; 4096];
    let mut taken = false;
    while !taken {
        let Ok(n @ 1..) = socket.read(&mut buffer).await else { return };
        session.input(&buffer[..n]).unwrap();
        while let Some(event) = session.event() {
            match event {
                Event::Connect(_) => session.accept_connect(),
                Event::Publish(publish) => {
                    session.accept_publish(publish.stream_id);
                    taken = true;
                }
                _ => {}
            }
        }
        if socket.write_all(&session.output()).await.is_err() {
            return;
        }
    }
    publishes.fetch_add(1, Ordering::Relaxed);
    std::future::pending::<()>().await;
}

#[test]
fn a_target_that_reads_nothing_costs_the_stream_nothing() {
    let deaf = Deaf::start();
    let node = node(&format!("rtmp_push target=rtmp://{}/app/key", deaf.address));
    let media = Media { frame_bytes: 40_000, ..Media::default() };
    let publisher = Publisher::start(node.rtmp(), "in", "x", media);
    publisher.wait_for_keyframe();
    let viewer = Viewer::start(node.rtmp(), "out", "x");
    wait_for("a publish there", SOON, || deaf.publishes.load(Ordering::Relaxed) >= 1);
    // The queue of ten seconds, or eight MiB, is full and skips; then the target is given up and tried anew.
    let patience = Duration::from_secs(60);
    wait_for("losses are counted", patience, || lost_behind(&node) > 0.0);
    wait_for("another attempt", patience, || node.metric("lb_pushes_started_total{kind=\"native\"}") >= 2.0);
    let resident = node.resident() >> 20;
    assert!(resident < 150, "{resident} MiB");
    let (seen, sent) = (viewer.seen().clone(), publisher.sent().clone());
    seen.assert_in_order();
    assert!(seen.ended.is_none() && sent.ended.is_none(), "{:?} {:?}", seen.ended, sent.ended);
    assert!(seen.longest_gap() < Duration::from_secs(2), "{:?}", seen.longest_gap());
}

#[test]
fn an_ffmpeg_that_is_killed_is_started_again() {
    let target = target("0");
    let at = target.rtmp();
    let node = node(&format!(
        "ffmpeg_transcode vcodec=h264 acodec=aac size=80x46 kbps=100\n rtmp_push target=rtmp://{at}/app/small"
    ));
    let _publisher = ffmpeg::publish(Clip::Alpha, &node.rtmp_url("in", "x"));
    wait_for("the transcode at the target", SOON, || target.metric("lb_publishers") == 1.0);
    let before = target.metric("lb_connections_total");
    let (ffmpeg, _) = node.children()[0].clone();
    // SAFETY: it takes two numbers.
    assert_eq!(unsafe { libc::kill(i32::try_from(ffmpeg).unwrap(), libc::SIGKILL) }, 0);
    let again = || target.metric("lb_publishers") == 1.0 && target.metric("lb_connections_total") > before;
    wait_for("the transcode again", Duration::from_secs(30), again);
    ffmpeg::record(&target.rtmp_url("app", "small"), 1);
}

#[test]
fn one_stream_at_a_time_is_pushed_to_a_target() {
    let target = target("0");
    let node = node(&format!("rtmp_push target=rtmp://{}/app/one", target.rtmp()));
    let first = Publisher::start(node.rtmp(), "in", "a", Media { session: 1, ..Media::default() });
    wait_for("the first", SOON, || target.metric("lb_publishers") == 1.0);
    let viewer = Viewer::start(target.rtmp(), "app", "one");
    let second = Publisher::start(node.rtmp(), "in", "b", Media { session: 2, ..Media::default() });
    second.wait_for_keyframe();
    let said = poll(SOON, || node.log().contains("one at a time can be").then_some(()));
    assert!(said.is_some(), "{}", node.log());
    assert_eq!(viewer.seen().frames(2), 0);
    first.leave();
    wait_for("the second", SOON, || viewer.seen().frames(2) > 10);
    viewer.seen().assert_in_order();
    assert_eq!(target.metric("lb_connections_total"), 3.0, "two pushes and a viewer");
}
