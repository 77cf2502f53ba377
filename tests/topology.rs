//! The whole topology with real processes, real encoders and real players: who pulls what from where, and that nothing
//! is lost or altered on the way.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests may panic

mod common;

use common::cluster::Cluster;
use common::endpoint::Mark;
use common::ffmpeg::{self, Clip};
use common::http::{self, Response, WebServer};
use common::lb::Lb;
use common::process::{self, Peer};
use common::publisher::{Media, Publisher};
use common::viewer::Viewer;
use common::witness::{Received, Witness};
use common::{SOON, wait_for};
use std::collections::BTreeSet;
use std::io::Write;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;
use tempfile::NamedTempFile;

/// Seconds that a player records.
const RECORDED: u32 = 4;

fn ingest(reactor: &str) -> Lb {
    Lb::start(&["--role", "ingest", "--reactor-url", reactor])
}

fn playback(reactor: &str, pull: &str) -> Lb {
    Lb::start(&["--role", "playback", "--reactor-url", reactor, "--pull", pull])
}

/// Publishes a clip and waits until the reactor knows the stream.
#[track_caller]
fn publish(clip: Clip, name: &str, ingest: &Lb, reactor: &Lb) -> Peer {
    let publisher = ffmpeg::publish(clip, &ingest.rtmp_url("ingest", name));
    wait_for(&format!("the registration of {name}"), SOON, || is_known(reactor.reactor(), name));
    publisher
}

fn is_known(reactor: SocketAddr, name: &str) -> bool {
    http::get(reactor, "/streams").body.contains(&format!("\"{name}\""))
}

/// A configuration of the user's own.
fn config(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

/// The words of the lines of a log that name a session, in order.
fn life(log: &str, session: &str) -> Vec<String> {
    let said = |line: &str| {
        let known = [
            "registered in another's place",
            "no longer registered",
            "registered",
            "publisher sent away",
            "unpublish",
            "publish",
            "pulled by a node",
            "pull brings media",
            "pull ended",
            "viewer joined",
            "found",
            "moved",
        ];
        known.iter().find(|word| line.contains(&format!(": {word}"))).map(|word| word.to_string())
    };
    log.lines().filter(|line| line.contains(session)).filter_map(said).collect()
}

#[test]
fn the_session_of_a_stream_tells_its_life_in_the_logs_of_all_nodes() {
    let reactor = Lb::start(&["--role", "reactor"]);
    let url = reactor.reactor_url();
    let (a, b, edge) = (ingest(&url), ingest(&url), playback(&url, "native"));
    let tag = |node: &Lb| {
        let log = node.log();
        let line = log.lines().find(|line| line.contains(": publish ")).expect("it is published");
        line.split("session=")
            .nth(1)
            .and_then(|rest| rest.split(' ').next())
            .expect("it has a session")
            .to_owned()
    };
    let first = Publisher::start(a.rtmp(), "ingest", "x", Media::default());
    first.wait_for_keyframe();
    let viewer = Viewer::start(edge.rtmp(), "live", "x");
    viewer.wait_for_keyframe(1, SOON);
    let second = Publisher::start(b.rtmp(), "ingest", "x", Media { session: 2, ..Media::default() });
    viewer.wait_for_keyframe(2, SOON);
    let late = Viewer::start(edge.rtmp(), "live", "x");
    late.wait_for_keyframe(2, SOON);
    first.wait_for_end(SOON);
    wait_for("the log of it", SOON, || a.log().contains(": unpublish "));
    second.leave();
    wait_for("the end to be heard of", SOON, || reactor.log().contains("no longer registered"));
    let (one, two) = (tag(&a), tag(&b));
    assert_ne!(one, two);
    let pulled = ["publish", "registered", "pulled by a node", "publisher sent away", "unpublish"];
    let of_a = life(&a.log(), &one);
    assert!(pulled.iter().all(|word| of_a.contains(&word.to_string())), "{of_a:?}\n{}", a.log());
    assert_eq!(of_a.first().map(String::as_str), Some("registered"));
    assert_eq!(of_a.last().map(String::as_str), Some("unpublish"));
    assert_eq!(
        life(&edge.log(), &one)[..3],
        ["found", "pull brings media", "viewer joined"],
        "{}",
        edge.log()
    );
    assert_eq!(
        life(&reactor.log(), &one),
        ["registered", "registered in another's place"],
        "{}",
        reactor.log()
    );
    assert_eq!(
        life(&b.log(), &two),
        ["registered", "publish", "pulled by a node", "unpublish"],
        "{}",
        b.log()
    );
    let of_edge = life(&edge.log(), &two);
    assert_eq!(of_edge[..3], ["moved", "pull brings media", "viewer joined"], "{}", edge.log());
    assert_eq!(life(&reactor.log(), &two), ["registered in another's place", "no longer registered"]);
    let puller = a.log().lines().find(|line| line.contains("pulled by a node")).map(str::to_owned);
    assert!(puller.is_some_and(|line| line.contains("-playback-")), "{}", a.log());
}

#[test]
fn a_publisher_at_the_app_of_viewers_is_told_where_to_go() {
    let lb = Lb::start(&["--role", "all"]);
    let told = Publisher::start(lb.rtmp(), "live", "x", Media::default()).wait_for_end(SOON).1;
    let says = |text: &str| told.iter().any(|told| told.contains(text));
    assert!(says("this app takes no publishers; 'ingest' does"), "{told:?}");
    let told = Viewer::start(lb.rtmp(), "ingest", "x").wait_for_end(SOON);
    assert!(told.iter().any(|told| told.contains("'live' does")), "{told:?}");
}

fn every_viewer_gets_every_byte(pull: &str) {
    let reactor = Lb::start(&["--role", "reactor"]);
    let url = reactor.reactor_url();
    let (a, b) = (ingest(&url), ingest(&url));
    let (c, d) = (playback(&url, pull), playback(&url, pull));
    let _alpha = publish(Clip::Alpha, "alpha", &a, &reactor);
    let _beta = publish(Clip::Beta, "beta", &b, &reactor);

    std::thread::scope(|scope| {
        for node in [&c, &d] {
            for (name, clip) in [("alpha", Clip::Alpha), ("beta", Clip::Beta)] {
                let url = node.rtmp_url("live", name);
                scope.spawn(move || ffmpeg::record(&url, RECORDED).assert_shows(clip, RECORDED));
            }
        }
    });
    for node in [&c, &d] {
        node.wait_for_metric("lb_pulls_in", 0.0, SOON);
    }
    // Each playback node asked the right ingest node, and no other, for each stream.
    assert!(a.metric("lb_sent_bytes_total") > 0.0 && b.metric("lb_sent_bytes_total") > 0.0);
}

#[test]
fn every_viewer_gets_every_byte_by_native_pulls() {
    every_viewer_gets_every_byte("native");
}

#[test]
fn every_viewer_gets_every_byte_by_ffmpeg_pulls() {
    every_viewer_gets_every_byte("ffmpeg");
}

fn a_stream_is_pulled_while_somebody_watches(pull: &str) {
    let reactor = Lb::start(&["--role", "reactor"]);
    let ingest = ingest(&reactor.reactor_url());
    let playback = playback(&reactor.reactor_url(), pull);
    let _publisher = publish(Clip::Alpha, "alpha", &ingest, &reactor);
    // The reactor knows a stream a moment before its encoder is told to go on.
    ingest.wait_for_metric("lb_publishers", 1.0, SOON);
    assert_eq!(ingest.metric("lb_pulls_out"), 0.0, "nobody watches yet");

    let url = playback.rtmp_url("live", "alpha");
    let viewers: Vec<Peer> = (0..10).map(|_| ffmpeg::watch(&url)).collect();
    playback.wait_for_metric("lb_viewers", 10.0, SOON);
    ingest.wait_for_metric("lb_pulls_out", 1.0, SOON);
    assert_eq!(playback.metric("lb_pulls_in"), 1.0, "one pull for ten viewers");

    drop(viewers);
    ingest.wait_for_metric("lb_pulls_out", 0.0, Duration::from_secs(1));
    playback.wait_for_metric("lb_pulls_in", 0.0, Duration::from_secs(1));
    assert_eq!(ingest.metric("lb_publishers"), 1.0, "the publisher is not concerned");

    // The next viewer starts it all over.
    let _viewer = ffmpeg::watch(&url);
    ingest.wait_for_metric("lb_pulls_out", 1.0, SOON);
}

#[test]
fn a_stream_is_pulled_natively_while_somebody_watches() {
    a_stream_is_pulled_while_somebody_watches("native");
}

#[test]
fn a_stream_is_pulled_by_ffmpeg_while_somebody_watches() {
    a_stream_is_pulled_while_somebody_watches("ffmpeg");
}

/// Waits for the media of a publish behind the one before.
#[track_caller]
fn wait_for_session(witness: &Witness, session: u16) {
    let of_session = |received: &Received| {
        let head = if received.packet.type_id() == 9 { 5 } else { 2 };
        !received.packet.kind.is_header()
            && Mark::read(&received.packet.body, head).is_some_and(|mark| mark.session == session)
    };
    witness.wait_for(&format!("publish {session}"), SOON, |kept| {
        kept.media.iter().find(|r| of_session(r)).map(|_| ())
    });
}

#[test]
fn who_comes_while_a_publisher_is_back_with_fewer_tracks_is_told_of_those_alone() {
    let reactor = Lb::start(&["--role", "reactor"]);
    let url = reactor.reactor_url();
    let (a, edge) = (ingest(&url), playback(&url, "native"));
    // A pull of a pull.
    let far = configured(
        "ingest",
        &config(&format!(
            "workflow far {{\n rtmp_pull location={} stream_name=x\n rtmp_watch rtmp_app=far stream_key=*\n}}\n",
            edge.rtmp_url("live", "x")
        )),
    );
    let all = Media::default();
    let first = Publisher::start(a.rtmp(), "ingest", "x", all);
    first.wait_for_keyframe();
    far.wait_for_metric("lb_streams", 1.0, SOON);
    let watch = || [(&edge, "live"), (&far, "far")].map(|(node, app)| Witness::start(node.rtmp(), app, "x"));
    let viewers = watch();
    viewers.iter().for_each(|viewer| wait_for_session(viewer, 1));
    let pulls = [&edge, &far].map(|node| node.metric("lb_pulls_started_total"));

    let mut before = first;
    for (session, media, type_id) in [
        (2, Media { audio: false, ..all }, 9),
        (3, all, 0),
        (4, Media { video: false, ..all }, 8),
        (5, all, 0),
    ] {
        before.leave();
        before = Publisher::start(a.rtmp(), "ingest", "x", Media { session, ..media });
        viewers.iter().for_each(|viewer| wait_for_session(viewer, session));
        for late in watch() {
            wait_for_session(&late, session);
            let kept = late.kept();
            let kinds: BTreeSet<u8> = kept.media.iter().map(|received| received.packet.type_id()).collect();
            let first = &kept.media[0].packet;
            assert!(first.kind.is_header(), "{first:?}");
            let want = if type_id == 0 { BTreeSet::from([8, 9]) } else { BTreeSet::from([type_id]) };
            assert_eq!(kinds, want, "publish {session}");
        }
    }
    for (viewer, node) in viewers.iter().zip([&edge, &far]) {
        let kept = viewer.kept();
        assert_eq!(kept.ended, None);
        kept.assert_time_rises();
        // Each begins with its headers, once, and those with video with a keyframe.
        let headers = |type_id| {
            kept.media.iter().filter(|r| r.packet.kind.is_header() && r.packet.type_id() == type_id).count()
        };
        assert_eq!((headers(8), headers(9)), (4, 4), "{}", node.log());
        let publishes = kept.publishes();
        assert!(publishes.iter().filter_map(|p| p.video.first()).all(|r| r.packet.kind.is_keyframe()));
        assert_eq!(node.metric("lb_lost_messages_total"), 0.0);
    }
    let now = [&edge, &far].map(|node| node.metric("lb_pulls_started_total"));
    assert_eq!(now, pulls, "each pull went on");
}

/// The kinds of streams that ffprobe finds, in time for somebody who waits for a picture.
#[track_caller]
fn probe(url: &str) -> Vec<String> {
    let mut command = Command::new("ffprobe");
    command.args(["-v", "error", "-show_entries", "stream=codec_type", "-of", "csv=p=0", url]);
    let probed = process::run(command, Duration::from_secs(15));
    assert_eq!(probed.code, Some(0), "{url}: {}", probed.stderr);
    probed.stdout.lines().map(|line| line.trim().to_owned()).collect()
}

#[test]
fn ffmpeg_goes_on_while_a_publisher_comes_back_with_fewer_tracks_and_finds_those_alone_when_it_comes_late() {
    let cluster = Cluster::start(1);
    for (name, kind, left_out) in [("picture", "video", "-an"), ("sound", "audio", "-vn")] {
        let url = cluster.ingest_url(0, name);
        let first = ffmpeg::publish(Clip::Alpha, &url);
        cluster.wait_published(name);
        let live = cluster.live_url(name);
        let file = tempfile::Builder::new().suffix(".flv").tempfile().unwrap().into_temp_path();
        let mut player = Command::new("ffmpeg");
        player.args(["-nostdin", "-v", "error", "-i", &live, "-map", &format!("0:{}", &kind[..1])]);
        player.args(["-t", "12", "-c", "copy", "-f", "flv", "-y"]).arg(&file);
        let played = std::thread::spawn(move || process::run(player, Duration::from_secs(60)));
        let witness = Witness::start(cluster.playback.rtmp(), "live", name);
        witness.wait_for_frames(0, 60);
        drop(first);
        let _second = ffmpeg::publish_with(Clip::Alpha, &[left_out], &url);
        witness.wait_for("the second publish", SOON, |kept| (kept.publishes().len() > 1).then_some(()));
        for late in [live, cluster.playback.http_url("live", name)] {
            assert_eq!(probe(&late), [kind], "{late}");
        }
        let played = played.join().unwrap();
        assert_eq!((played.code, played.stderr.as_str()), (Some(0), ""));
        assert_eq!(ffmpeg::decoding_errors(&file), "");
        let frames = ffmpeg::frame_hashes(&file)[kind].len();
        assert!(frames > 12 * 25, "{frames} frames of {kind}");
        witness.kept().assert_time_rises();
    }
}

/// The ingest configuration of the contract, to the letter but for the address.
fn printed_ingest(web_server: SocketAddr) -> NamedTempFile {
    config(&format!(
        "reactor publishers executor=simple_http update_interval=60 {{
    url: http://{web_server}/publisher_lookup
}}
workflow ingestion {{
    rtmp_receive rtmp_app=ingest stream_key=* reactor=publishers
    rtmp_watch rtmp_app=pull_source stream_key=*
}}
"
    ))
}

/// The playback configuration of the contract, to the letter but for the address and the two additions without which
/// nothing would ask, and nothing would be shown.
fn printed_playback(web_server: SocketAddr) -> NamedTempFile {
    config(&format!(
        "reactor watchers executor=simple_http update_interval=60 {{
    url: http://{web_server}/watcher_lookup
    forward_to pending_watchers
}}
workflow pending_watchers {{
    rtmp_watch rtmp_app=live stream_key=* reactor=watchers
}}
"
    ))
}

fn configured(role: &str, file: &NamedTempFile) -> Lb {
    Lb::start(&["--role", role, "--config", file.path().to_str().unwrap()])
}

#[test]
fn the_contracts_configurations_work_as_printed() {
    let reactor = Lb::start(&["--role", "reactor"]);
    let ingest = configured("ingest", &printed_ingest(reactor.reactor()));
    let playback = configured("playback", &printed_playback(reactor.reactor()));
    let _publisher = publish(Clip::Alpha, "alpha", &ingest, &reactor);
    ffmpeg::record(&playback.rtmp_url("live", "alpha"), RECORDED).assert_shows(Clip::Alpha, RECORDED);
}

#[test]
fn a_web_server_that_knows_only_the_contract_is_enough() {
    let origin = std::sync::Arc::new(std::sync::OnceLock::<String>::new());
    let told = std::sync::Arc::clone(&origin);
    let server = WebServer::start(move |request| match (request.line.as_str(), told.get()) {
        ("POST /publisher_lookup", _) => Response { status: 200, body: String::new() },
        ("POST /watcher_lookup", Some(ip_address)) if request.body.contains("\"x\"") => Response {
            status: 200,
            body: format!(
                "workflow ingest_x {{
    ffmpeg_pull location=rtmp://{ip_address}/pull_source/x stream_name=x
}}
"
            ),
        },
        _ => Response { status: 404, body: String::new() },
    });
    let ingest = configured("ingest", &printed_ingest(server.addr()));
    origin.set(format!("127.0.0.1:{}", ingest.rtmp_port())).unwrap();
    let playback = configured("playback", &printed_playback(server.addr()));

    let _publisher = ffmpeg::publish(Clip::Beta, &ingest.rtmp_url("ingest", "x"));
    ingest.wait_for_metric("lb_publishers", 1.0, SOON);
    ffmpeg::record(&playback.rtmp_url("live", "x"), RECORDED).assert_shows(Clip::Beta, RECORDED);

    ffmpeg::watch_in_vain(&playback.rtmp_url("live", "unknown"));
    let asked = server.seen();
    for line in ["POST /publisher_lookup", "POST /watcher_lookup"] {
        let body = &asked.iter().find(|request| request.line == line).expect(line).body;
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["stream_name"], "x", "{line}");
    }
}

#[test]
fn a_reactor_routes_each_stream_to_a_workflow_of_its_own() {
    let server = WebServer::start(|_| Response {
        status: 200,
        body: "workflow own_x routed_by_reactor {\n    rtmp_watch rtmp_app=own stream_key=x\n}\n".to_owned(),
    });
    let node = configured(
        "ingest",
        &config(&format!(
            "reactor per_stream executor=simple_http update_interval=60 {{
    url http://{}/lookup
}}
workflow intake {{
    rtmp_receive rtmp_app=ingest stream_key=* reactor=per_stream
    workflow_forwarder reactor=per_stream
}}
",
            server.addr()
        )),
    );
    let publisher = ffmpeg::publish(Clip::Alpha, &node.rtmp_url("ingest", "x"));
    node.wait_for_metric("lb_publishers", 1.0, SOON);
    wait_for("the workflow of the stream", SOON, || {
        http::get(node.admin(), "/workflows").body.contains("own_x")
    });
    node.wait_for_metric("lb_streams", 1.0, SOON);
    ffmpeg::record(&node.rtmp_url("own", "x"), RECORDED).assert_shows(Clip::Alpha, RECORDED);
    drop(publisher);
    wait_for("its end", SOON, || !http::get(node.admin(), "/workflows").body.contains("own_x"));
}

#[test]
fn everything_works_over_ipv6() {
    let reactor = Lb::start(&["--role", "reactor", "--reactor-listen", "[::1]:0"]);
    let ingest = ingest(&reactor.reactor_url());
    let playback = playback(&reactor.reactor_url(), "native");
    let by_ipv6 = |url: String| url.replace("127.0.0.1", "[::1]");

    let _publisher = ffmpeg::publish(Clip::Alpha, &by_ipv6(ingest.rtmp_url("ingest", "six")));
    wait_for("the registration", SOON, || is_known(reactor.reactor(), "six"));
    let origin = format!("[::1]:{}", ingest.rtmp_port());
    let streams = http::get(reactor.reactor(), "/streams").body;
    assert!(streams.contains(&origin), "{origin} in {streams}");
    ffmpeg::record(&by_ipv6(playback.rtmp_url("live", "six")), RECORDED).assert_shows(Clip::Alpha, RECORDED);
}

#[test]
fn one_process_can_have_all_roles() {
    // Without --reactor-url a node asks the reactor in its own process.
    let node = Lb::start(&["--role", "all"]);
    let _publisher = publish(Clip::Alpha, "solo", &node, &node);
    ffmpeg::record(&node.rtmp_url("live", "solo"), RECORDED).assert_shows(Clip::Alpha, RECORDED);
}

#[test]
fn what_cannot_be_served_is_refused() {
    let reactor = Lb::start(&["--role", "reactor"]);
    let ingest = ingest(&reactor.reactor_url());
    let playback = playback(&reactor.reactor_url(), "native");

    // No such stream, no such app, and names outside the allowed form, at play, publish and lookup.
    for (app, key) in [("live", "nobody"), ("nothing", "here"), ("live", "bad{name}"), ("live", "a/../b")] {
        ffmpeg::watch_in_vain(&playback.rtmp_url(app, key));
    }
    for (app, key) in [("nothing", "here"), ("ingest", "bad{name}"), ("ingest", "a/../b")] {
        ffmpeg::publish_in_vain(Clip::Alpha, &ingest.rtmp_url(app, key));
    }
    assert!(ingest.metric("lb_refusals_total") >= 3.0 && playback.metric("lb_refusals_total") >= 3.0);
    assert_eq!(
        http::get(reactor.reactor(), "/streams").body.replace(char::is_whitespace, ""),
        r#"{"streams":[]}"#
    );

    for lookup in ["/publisher_lookup", "/watcher_lookup"] {
        for body in
            ["", "x", "{}", r#"{"stream_name": "a b"}"#, r#"{"stream_name": 7}"#, r#"{"stream_name": "a}b"}"#]
        {
            let Response { status, body: answer } = http::post(reactor.reactor(), lookup, body);
            assert_eq!(status, 400, "{lookup} {body}");
            let reason: serde_json::Value = serde_json::from_str(&answer).expect("a JSON reason");
            assert!(
                reason["error"].as_str().is_some_and(|text| !text.is_empty()),
                "{lookup} {body}: {answer}"
            );
        }
    }
    // A refused peer costs nothing but its own connection.
    let _publisher = publish(Clip::Alpha, "good", &ingest, &reactor);
    ffmpeg::record(&playback.rtmp_url("live", "good"), RECORDED).assert_shows(Clip::Alpha, RECORDED);
}
