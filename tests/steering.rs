//! What operators do to a running process and a running cluster, with real processes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests may panic

mod common;
// Its other deeds are for other tests.
#[allow(dead_code)]
#[path = "reactor_client/server.rs"]
mod web;

use common::endpoint;
use common::http::{self, Response};
use common::lb::{self, Lb};
use common::publisher::{Media, Publisher};
use common::viewer::Viewer;
use common::{SOON, poll, wait_for};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

/// Ingest and playback in one process, with a reactor, that reports often.
fn all(more: &[&str]) -> Lb {
    let common = ["--role", "all", "--node-id", "one", "--report-interval", "200ms"];
    Lb::start(&[&common[..], more].concat())
}

fn call(server: SocketAddr, method: &str, path: &str, body: &str) -> Response {
    http::try_call(server, method, path, body).unwrap()
}

fn json_of(response: &Response) -> Value {
    assert_eq!(response.status, 200, "{}", response.body);
    serde_json::from_str(&response.body).unwrap()
}

fn publish(node: &Lb, app: &str, name: &str) -> Publisher {
    let publisher = Publisher::start(node.rtmp(), app, name, Media::default());
    publisher.wait_for_keyframe();
    publisher
}

/// The ids of the peers at a path of the admin port.
fn ids(node: &Lb, path: &str) -> Vec<u64> {
    let page = json_of(&http::get(node.admin(), path));
    page["peers"].as_array().unwrap().iter().map(|peer| peer["id"].as_u64().unwrap()).collect()
}

#[test]
fn peers_are_seen_and_sent_away_one_by_one() {
    let node = all(&[]);
    let publisher = publish(&node, "ingest", "x");
    let [first, second] = [0, 1].map(|_| Viewer::start(node.rtmp(), "live", "x"));
    first.wait_for_keyframe(1, SOON);
    second.wait_for_keyframe(1, SOON);
    let mut flv = TcpStream::connect(node.http()).unwrap();
    flv.write_all(b"GET /live/x.flv HTTP/1.1\r\n\r\n").unwrap();
    wait_for("three viewers", SOON, || ids(&node, "/viewers").len() == 3);
    let viewers = ids(&node, "/viewers?stream=x");
    assert_eq!(ids(&node, "/viewers?limit=1"), viewers[..1]);
    assert_eq!(ids(&node, &format!("/viewers?after={}", viewers[0])), viewers[1..]);
    assert!(ids(&node, "/viewers?stream=y").is_empty());
    let page = json_of(&http::get(node.admin(), "/viewers"));
    let protocols: Vec<&str> =
        page["peers"].as_array().unwrap().iter().map(|peer| peer["protocol"].as_str().unwrap()).collect();
    assert_eq!(protocols.iter().filter(|protocol| **protocol == "rtmp").count(), 2);
    assert!(protocols.contains(&"http-flv"), "{protocols:?}");

    let path = format!("/viewers/{}?reason=too+loud", viewers[0]);
    assert_eq!(call(node.admin(), "DELETE", &path, "").status, 204);
    wait_for("one viewer to go", SOON, || ids(&node, "/viewers").len() == 2);
    assert!(node.log().contains("viewer sent away: too loud"));
    assert_eq!(call(node.admin(), "DELETE", &path, "").status, 404);
    let connected = || [&first, &second].iter().filter(|viewer| viewer.is_connected()).count();
    wait_for("one viewer to be disconnected", SOON, || connected() < 2);
    assert_eq!(connected(), 1);

    let publishers = ids(&node, "/publishers");
    assert_eq!(publishers.len(), 1);
    assert_eq!(call(node.admin(), "DELETE", &format!("/publishers/{}", publishers[0]), "").status, 204);
    publisher.wait_for_end(SOON);
    assert_eq!(call(node.admin(), "GET", "/viewers?limit=0", "").status, 400);
    assert_eq!(call(node.admin(), "PUT", "/viewers", "").status, 405);
}

#[test]
fn the_log_is_changed_while_it_runs() {
    let node = all(&[]);
    assert_eq!(json_of(&http::get(node.admin(), "/log")), json!({ "filter": "info" }));
    let body = |filter: &str| json!({ "filter": filter }).to_string();
    let refused = call(node.admin(), "PUT", "/log", &body("verbose"));
    assert!(refused.status == 400 && refused.body.contains("levels"), "{}", refused.body);
    assert_eq!(json_of(&call(node.admin(), "PUT", "/log", &body("debug"))), json!({ "filter": "debug" }));
    let viewer = Viewer::start(node.rtmp(), "live", "nobody");
    viewer.wait_for_end(3 * SOON);
    wait_for("a line of debug", SOON, || node.log().contains("DEBUG"));
}

#[test]
fn a_workflow_comes_and_goes_and_the_others_do_not_notice() {
    let node = all(&[]);
    let publisher = publish(&node, "ingest", "x");
    let viewer = Viewer::start(node.rtmp(), "live", "x");
    viewer.wait_for_keyframe(1, SOON);
    let text = "workflow extra {\n    rtmp_receive rtmp_app=extra stream_key=*\n    rtmp_watch rtmp_app=seen stream_key=*\n}\n";
    assert_eq!(json_of(&call(node.admin(), "PUT", "/workflows", text)), json!({ "started": ["extra"] }));
    assert_eq!(json_of(&call(node.admin(), "PUT", "/workflows", text)), json!({ "started": [] }));
    let more = publish(&node, "extra", "y");
    let seen = Viewer::start(node.rtmp(), "seen", "y");
    seen.wait_for_keyframe(1, SOON);
    // With another app in the place of one: its own sessions end, and the step that is the same keeps its publisher.
    let other = text.replace("rtmp_app=seen", "rtmp_app=shown");
    assert_eq!(json_of(&call(node.admin(), "PUT", "/workflows", &other)), json!({ "started": ["extra"] }));
    seen.wait_for_end(SOON);
    let shown = Viewer::start(node.rtmp(), "shown", "y");
    shown.wait_for_keyframe(1, SOON);
    assert!(more.sent().ended.is_none());
    // Other addresses at the same place: the step must let go of it first, so the workflow begins anew.
    let narrow = other.replace("rtmp_receive ", "rtmp_receive allow_ips=127.0.0.0/8 ");
    assert_eq!(json_of(&call(node.admin(), "PUT", "/workflows", &narrow)), json!({ "started": ["extra"] }));
    shown.wait_for_end(SOON);
    more.wait_for_end(SOON);
    let again = publish(&node, "extra", "y");
    Viewer::start(node.rtmp(), "shown", "y").wait_for_keyframe(1, SOON);

    for (wrong, why) in [
        ("workflow extra {\n    no_such_step\n}\n", "the workflow:2"),
        ("workflow extra {\n    rtmp_watch rtmp_app=live stream_key=*\n}\n", "taken"),
        ("workflow extra {\n    rtmp_watch rtmps rtmp_app=a stream_key=*\n}\n", "no certificate"),
        ("", "one workflow"),
    ] {
        let refused = call(node.admin(), "PUT", "/workflows", wrong);
        assert!(refused.status == 400 && refused.body.contains(why), "{wrong}: {}", refused.body);
    }
    wait_for("the one before to run again", SOON, || {
        let names = json_of(&http::get(node.admin(), "/workflows"));
        names["workflows"].as_array().unwrap().contains(&json!("extra"))
    });
    assert_eq!(call(node.admin(), "DELETE", "/workflows/extra", "").status, 204);
    assert_eq!(call(node.admin(), "DELETE", "/workflows/extra", "").status, 404);
    again.wait_for_end(SOON);
    assert!(viewer.is_connected() && publisher.sent().ended.is_none());
    wait_for("the node to be ready", SOON, || http::get(node.admin(), "/readyz").status == 200);
}

#[test]
fn a_configuration_is_read_again_and_a_wrong_one_changes_nothing() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = |app: &str, ips: &str| {
        format!(
            "workflow steady {{\n    rtmp_receive rtmp_app=in stream_key=*\n    rtmp_watch rtmp_app=out stream_key=*\n}}\n\
             workflow other {{\n    rtmp_receive rtmp_app={app} stream_key=* {ips}\n    rtmp_watch rtmp_app={app}_out stream_key=*\n}}\n"
        )
    };
    std::fs::write(file.path(), text("a", "")).unwrap();
    let reactor = Lb::start(&["--role", "reactor"]);
    let config = file.path().to_str().unwrap();
    let node = Lb::start(&["--role", "ingest", "--config", config, "--reactor-url", &reactor.reactor_url()]);
    let (publisher, viewer) = (publish(&node, "in", "x"), Viewer::start(node.rtmp(), "out", "x"));
    viewer.wait_for_keyframe(1, SOON);
    let concerned = publish(&node, "a", "y");

    std::fs::write(file.path(), text("b", "")).unwrap();
    node.signal(libc::SIGHUP);
    wait_for("the word of it", SOON, || node.log().contains("the configuration was read again"));
    concerned.wait_for_end(SOON);
    let moved = publish(&node, "b", "y");

    std::fs::write(file.path(), text("b", "allow_ips=nonsense")).unwrap();
    node.signal(libc::SIGHUP);
    let place = format!("the configuration stays as it is: {config}:6");
    wait_for("the word of what is wrong", SOON, || node.log().contains(&place));
    assert!(moved.sent().ended.is_none());

    let taken = TcpListener::bind("[::]:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let elsewhere = text("b", "").replace("rtmp_app=b_out ", &format!("rtmp_app=b_out port={port} "));
    std::fs::write(file.path(), &elsewhere).unwrap();
    node.signal(libc::SIGHUP);
    let place = format!("{config}:7: rtmp_watch: port {port} cannot be bound");
    wait_for("the word of the port", SOON, || node.log().contains(&place));
    assert!(moved.sent().ended.is_none());
    drop(taken);
    node.signal(libc::SIGHUP);
    // The port is open a moment before its app is there.
    wait_for("the second change", SOON, || {
        node.log().matches("the configuration was read again").count() == 2
    });
    Viewer::start(([127, 0, 0, 1], port).into(), "b_out", "y").wait_for_keyframe(1, SOON);
    assert!(moved.sent().ended.is_none(), "its step is the same");
    let pulled = text("b", "").replace("rtmp_app=out ", &format!("rtmp_app=pull_source port={port} "));
    std::fs::write(file.path(), pulled).unwrap();
    node.signal(libc::SIGHUP);
    wait_for("the word of pulls", SOON, || node.log().contains("pull from another port than before"));

    let steady = text("b", "");
    let (steady, _) = steady.split_once("workflow other").unwrap();
    std::fs::write(file.path(), steady).unwrap();
    node.signal(libc::SIGHUP);
    moved.wait_for_end(SOON);
    wait_for("the port to close", SOON, || TcpStream::connect(("127.0.0.1", port)).is_err());
    assert!(viewer.is_connected() && publisher.sent().ended.is_none(), "nobody touched it");
}

/// A port that nobody has at the moment.
fn free_port() -> u16 {
    TcpListener::bind("[::]:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn a_port_is_open_for_as_long_as_a_workflow_names_it() {
    let node = all(&[]);
    let port = free_port();
    let at = SocketAddr::from(([127, 0, 0, 1], port));
    let text = |name: &str, more: &str| {
        format!(
            "workflow {name} {{\n    rtmp_receive rtmp_app={name} stream_key=* port={port} {more}\n    rtmp_watch rtmp_app={name}_out stream_key=* port={port} {more}\n}}\n"
        )
    };
    let put = |text: &str| call(node.admin(), "PUT", "/workflows", text);
    assert!(TcpStream::connect(at).is_err());
    assert_eq!(put(&text("a", "")).status, 200);
    let publisher = Publisher::start(at, "a", "x", Media::default());
    publisher.wait_for_keyframe();
    let viewer = Viewer::start(at, "a_out", "x");
    viewer.wait_for_keyframe(1, SOON);
    // It leads to the apps of this port only, and the others do not lead to it.
    for (server, app) in [(at, "live"), (node.rtmp(), "a_out")] {
        let said = Viewer::start(server, app, "x").wait_for_end(SOON);
        assert!(said.join(" ").contains("no such app"), "{said:?}");
    }
    let refused = put(&text("b", "rtmps"));
    assert!(refused.status == 400 && refused.body.contains("open without TLS"), "{}", refused.body);
    assert!(refused.body.contains("the workflow:2"), "{}", refused.body);

    assert_eq!(put(&text("b", "")).status, 200);
    let other = Publisher::start(at, "b", "x", Media::default());
    other.wait_for_keyframe();
    assert_eq!(call(node.admin(), "DELETE", "/workflows/a", "").status, 204);
    publisher.wait_for_end(SOON);
    viewer.wait_for_end(SOON);
    assert!(TcpStream::connect(at).is_ok() && other.sent().ended.is_none(), "the other needs it");
    assert_eq!(call(node.admin(), "DELETE", "/workflows/b", "").status, 204);
    other.wait_for_end(SOON);
    wait_for("the port to close", SOON, || TcpStream::connect(at).is_err());

    let taken = TcpListener::bind(("::", port)).unwrap();
    let refused = put(&text("a", ""));
    assert!(refused.status == 400 && refused.body.contains("cannot be bound"), "{}", refused.body);
    drop(taken);
    assert_eq!(put(&text("a", "")).status, 200);
    Publisher::start(at, "a", "x", Media::default()).wait_for_keyframe();
}

#[test]
fn ports_that_are_opened_later_share_the_limits_of_the_others() {
    let node = all(&["--max-connections-per-address", "2"]);
    let port = free_port();
    let text = format!("workflow a {{\n    rtmp_watch rtmp_app=a stream_key=* port={port}\n}}\n");
    assert_eq!(call(node.admin(), "PUT", "/workflows", &text).status, 200);
    let _one = TcpStream::connect(node.rtmp()).unwrap();
    let _other = TcpStream::connect(("127.0.0.1", port)).unwrap();
    node.wait_for_metric("lb_connections", 2.0, SOON);
    let _third = TcpStream::connect(("127.0.0.1", port)).unwrap();
    node.wait_for_metric("lb_refusals_total{reason=\"connections_per_address\"", 1.0, SOON);
}

#[test]
fn an_answer_of_a_web_server_opens_the_port_that_it_names() {
    let taken = TcpListener::bind("[::]:0").unwrap();
    let (port, busy) = (free_port(), taken.local_addr().unwrap().port());
    let server = endpoint::runtime().block_on(web::Server::start(move |request| {
        let port = if request.body.contains("busy") { busy } else { port };
        let workflow = format!(
            "workflow own routed_by_reactor {{\n    rtmp_watch rtmp_app=out stream_key=* port={port}\n}}\n"
        );
        web::answer(200, &workflow)
    }));
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(
        file,
        "reactor own executor=simple_http {{\n    url {}/lookup\n}}\n\
         workflow in {{\n    rtmp_receive rtmp_app=in stream_key=* reactor=own\n    workflow_forwarder reactor=own\n}}\n",
        server.url
    )
    .unwrap();
    let config = file.path().to_str().unwrap();
    let node = Lb::start(&["--role", "ingest", "--config", config, "--reactor-url", &server.url]);
    let at = SocketAddr::from(([127, 0, 0, 1], port));
    let publisher = publish(&node, "in", "x");
    wait_for("the port", SOON, || TcpStream::connect(at).is_ok());
    Viewer::start(at, "out", "x").wait_for_keyframe(1, SOON);
    publisher.leave();
    wait_for("the port to close", SOON, || TcpStream::connect(at).is_err());
    // One that cannot be had makes the answer useless, which ends nothing.
    let publisher = publish(&node, "in", "busy");
    wait_for("the word of it", SOON, || node.log().contains(&format!("port {busy} cannot be bound")));
    assert!(publisher.sent().ended.is_none());
}

#[test]
fn the_api_takes_what_tools_for_mmids_send() {
    let node = all(&[]);
    let version = json_of(&http::get(node.admin(), "/"));
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    wait_for("the node to be ready", SOON, || json_of(&http::get(node.admin(), "/"))["ready"] == true);
    let text = "workflow extra {\n    rtmp_watch rtmp_app=seen stream_key=*\n}\n";
    for kind in ["Content-Type: application/vnd.mmids.workflow\r\n", ""] {
        let mut stream = TcpStream::connect(node.admin()).unwrap();
        let (host, length) = (node.admin(), text.len());
        write!(
            stream,
            "PUT /workflows HTTP/1.0\r\nHost: {host}\r\n{kind}Content-Length: {length}\r\n\r\n{text}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200"), "{kind}: {answer}");
    }
    let one = json_of(&http::get(node.admin(), "/workflows/extra"));
    assert_eq!((one["name"].as_str(), one["status"]["state"].as_str()), (Some("extra"), Some("running")));
    assert_eq!(one["active_steps"][0]["type"], "rtmp_watch");
    let names = json_of(&http::get(node.admin(), "/workflows"));
    assert!(names["workflows"].as_array().unwrap().contains(&json!("extra")));
    assert_eq!(http::get(node.admin(), "/workflows/nobody").status, 404);
    let two = format!("{text}{}", text.replace("extra", "more"));
    assert_eq!(call(node.admin(), "PUT", "/workflows", &two).status, 400);
    assert_eq!(call(node.admin(), "POST", "/workflows", text).status, 405);
    assert_eq!(call(node.admin(), "DELETE", "/workflows/extra", "").status, 204);
}

#[test]
fn a_node_drains_when_it_is_asked_to() {
    let reactor = Lb::start(&["--role", "reactor"]);
    let url = reactor.reactor_url();
    let node = |role, id| {
        Lb::start(&[
            "--role",
            role,
            "--node-id",
            id,
            "--reactor-url",
            &url,
            "--report-interval",
            "200ms",
            "--drain-timeout",
            "2s",
        ])
    };
    let (ingest, playback) = (node("ingest", "in-1"), node("playback", "out-1"));
    let publisher = publish(&ingest, "ingest", "x");
    let viewer = Viewer::start(playback.rtmp(), "live", "x");
    viewer.wait_for_keyframe(1, SOON);

    let drained = |id: &str| lb::run(&["drain", id, "--reactor-url", &url]);
    let unknown = drained("nobody");
    assert_eq!(
        (unknown.code, unknown.stderr.contains("no reactor hears of the node 'nobody'")),
        (Some(1), true)
    );
    let said = drained("out-1");
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    viewer.wait_for_end(SOON);
    assert_eq!(playback.wait().code(), Some(0));
    assert!(publisher.sent().ended.is_none());

    assert_eq!(call(ingest.admin(), "POST", "/drain", "").status, 202);
    publisher.wait_for_end(SOON);
    assert_eq!(ingest.wait().code(), Some(0));
}

#[test]
fn explain_tells_a_streams_life_over_all_nodes() {
    let reactor = Lb::start(&["--role", "reactor"]);
    let url = reactor.reactor_url();
    let node = |role, id| {
        Lb::start(&["--role", role, "--node-id", id, "--reactor-url", &url, "--report-interval", "200ms"])
    };
    let (a, b, out) = (node("ingest", "in-1"), node("ingest", "in-2"), node("playback", "out-1"));
    let first = publish(&a, "ingest", "team/x");
    let viewer = Viewer::start(out.rtmp(), "live", "team/x");
    viewer.wait_for_keyframe(1, SOON);
    let second = Publisher::start(b.rtmp(), "ingest", "team/x", Media { session: 2, ..Media::default() });
    viewer.wait_for_keyframe(2, SOON);
    first.wait_for_end(SOON);
    drop(viewer);
    out.wait_for_metric("lb_viewers", 0.0, SOON);
    second.leave();
    let explain = |more: &[&str]| {
        let told = lb::run(&[&["explain", "team/x", "--reactor-url", &url], more].concat());
        assert_eq!(told.code, Some(0), "{}", told.stderr);
        told.stdout
    };
    // Either of node and reactor may be first to note the time of what they do together.
    let (registered, published) = ("reactor registered, epoch 1", "in-1 published from");
    let words = [
        "out-1 the first viewer came",
        "found at",
        "the pull brings media after",
        "first picture after",
        "reactor registered, epoch 2",
        "moved to",
        "switched: viewers saw nothing new for",
        "the last viewer left",
        "in-2 unpublished",
    ];
    let is_session =
        |word: &str| word == "-" || word.len() == 12 && word.bytes().all(|digit| digit.is_ascii_hexdigit());
    let missing = || {
        // Columns are as wide as what stands in them, and a session is random.
        let told = explain(&[]);
        let line = |line: &str| {
            line.split_whitespace().filter(|word| !is_session(word)).collect::<Vec<_>>().join(" ")
        };
        let lines: Vec<String> = told.lines().map(line).collect();
        let missing_after = |begin: [&'static str; 2]| {
            let mut rest = lines.iter();
            begin.into_iter().chain(words).find(|word| !rest.any(|line| line.contains(word)))
        };
        missing_after([registered, published]).and(missing_after([published, registered]))
    };
    if poll(SOON, || missing().is_none().then_some(())).is_none() {
        panic!("{:?} is missing, or not in its place:\n{}", missing(), explain(&[]));
    }
    let events: Value = serde_json::from_str(&explain(&["--json"])).unwrap();
    assert!(events["events"].as_array().unwrap().len() >= words.len());
    let nothing = lb::run(&["explain", "nobody", "--reactor-url", &url]);
    assert_eq!((nothing.code, nothing.stdout.contains("nothing is known")), (Some(0), true));

    // The gap that viewers saw is a metric, and so is the time to their first picture.
    assert_eq!(out.metric("lb_switch_gap_seconds_count"), 1.0);
    assert_eq!(out.metric("lb_first_picture_seconds_count"), 1.0);
}

#[test]
fn top_shows_nodes_and_streams() {
    let node = all(&["--heartbeat", "1s"]);
    let _publisher = publish(&node, "ingest", "x");
    let url = node.reactor_url();
    let top = |more: &str| lb::run(&["top", "--reactor-url", &url, more]).stdout;
    wait_for("the figures of the stream", SOON, || {
        let shown = top("--once");
        let line = shown.lines().find(|line| line.starts_with("x ")).unwrap_or_default().to_owned();
        line.contains("kb/s") && line.contains("H.264, AAC") && line.contains(" one ")
    });
    let cluster = || serde_json::from_str::<Value>(&top("--json")).unwrap();
    assert_eq!(cluster()["nodes"]["one"]["state"], "well");
    // This node is published to and watched.
    let viewer = Viewer::start(node.rtmp(), "live", "x");
    viewer.wait_for_keyframe(1, SOON);
    wait_for("the viewer beside the figures", SOON, || {
        let stream = &cluster()["streams"]["x"];
        let sent = cluster()["nodes"]["one"]["sent_bits_per_second"].as_u64();
        stream["viewers"] == 1 && stream["source"]["bits_per_second"].as_u64() > Some(0) && sent > Some(0)
    });
}

#[test]
fn changing_anything_takes_the_token_where_there_is_one() {
    let node = all(&["--reactor-token", "s3cret-of-this-test"]);
    for (method, path) in
        [("POST", "/drain"), ("PUT", "/log"), ("PUT", "/workflows"), ("DELETE", "/viewers/1")]
    {
        assert_eq!(call(node.admin(), method, path, "{}").status, 401, "{method} {path}");
    }
    assert_eq!(http::get(node.admin(), "/viewers").status, 200, "looking is free");
    assert_eq!(call(node.reactor(), "POST", "/nodes/one/drain", "").status, 401);
}

#[test]
fn streams_have_metrics_of_their_own_within_a_limit() {
    let node = all(&["--stream-metrics", "2"]);
    let _publishers = ["a", "b", "c"].map(|name| publish(&node, "ingest", name));
    wait_for("three streams", SOON, || node.metric("lb_streams") >= 3.0);
    assert_eq!(node.metric("lb_streams_without_metrics"), 1.0);
    wait_for("frames", SOON, || node.metric("lb_stream_frames_total{stream=\"a\",side=\"publish\"}") > 10.0);
    assert_eq!(node.metric("lb_stream_epoch{stream=\"a\",side=\"publish\"}"), 1.0);
    assert_eq!(node.metric("lb_stream_frames_total{stream=\"c\"}"), 0.0);
    assert_eq!(node.metric("lb_build_info"), 1.0);
    assert!(node.metric("process_open_fds") > 0.0);
    let off = all(&["--stream-metrics", "0"]);
    let _publisher = publish(&off, "ingest", "a");
    assert!(!http::get(off.admin(), "/metrics").body.contains("stream=\"a\""));
}

#[test]
fn completions_and_the_manual_page_name_everything() {
    let bash = lb::run(&["completions", "bash"]);
    assert_eq!(bash.code, Some(0));
    assert!(bash.stdout.contains("--reactor-url") && bash.stdout.contains("explain"));
    let man = lb::run(&["man"]);
    assert_eq!(man.code, Some(0));
    for word in [".TH lb 8", "reactor\\-url", "LB_REACTOR_URL", "LB EXPLAIN"] {
        assert!(man.stdout.contains(word), "{word}");
    }
}
