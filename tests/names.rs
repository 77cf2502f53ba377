//! Names and keys as encoders have them: whatever name is allowed is the same name at every place that it passes, and none is
//! more than a name.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests may panic

mod common;

use common::ffmpeg::{self, Clip};
use common::lb::{Lb, run};
use common::publisher::{Media, Publisher};
use common::viewer::Viewer;
use common::{SOON, endpoint, http, wait_for};
use lb::api::{WatcherLookup, word};
use lb::ids::{Origin, StreamName};
use lb::net::flv::request::{self, Request};
use lb::net::location::Location;
use lb::rtmp::Limits;
use lb::rtmp::session::{Client, Event, Server, Target};
use lb::steps::definition;
use lb::web::Template;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use proptest::prelude::*;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;

/// Names with what a URL, a form, a path, a definition or ffmpeg could take for something else.
const NAMES: [&str; 3] = ["c2VjcmV0+a/b==", "%2F%2e%2e/a%20b+c.flv", "a/.~b@h:1/c.mp4"];

/// What a server hears that is asked to play a key.
fn heard(stream_key: &str) -> Option<(String, Option<String>)> {
    let target = Target {
        app: "pull_source".to_owned(),
        tc_url: "rtmp://h/pull_source".to_owned(),
        stream_key: stream_key.to_owned(),
    };
    let mut client = Client::play(&target, Limits::default(), endpoint::nonce());
    let mut server = Server::new(Limits::default(), endpoint::nonce());
    for _ in 0..10 {
        server.input(&client.output()).unwrap();
        while let Some(event) = server.event() {
            match event {
                Event::Connect(_) => server.accept_connect(),
                Event::Play(play) => return Some((play.stream_key, play.query)),
                _ => {}
            }
        }
        client.input(&server.output()).unwrap();
    }
    None
}

/// Passes a name through everything between a publisher and the pull, and checks that it comes out as it went in.
fn passes(name: &StreamName, origin: &str, native: bool) -> Result<(), TestCaseError> {
    let (heard_name, query) = heard(&format!("{name}?token=x")).unwrap();
    prop_assert_eq!((heard_name.as_str(), query.as_deref()), (name.as_str(), Some("token=x")));
    let lookup = serde_json::to_string(&WatcherLookup::from(name.clone())).unwrap();
    let lookup: WatcherLookup = serde_json::from_str(&lookup).unwrap();
    let origin: Origin = origin.parse().unwrap();
    let reply = Template::default().render(&lookup.stream_name, &origin, native);
    let config = definition::parse("answer", &reply, &HashMap::new()).unwrap();
    prop_assert!(config.reactors.is_empty() && config.settings.is_empty());
    let [workflow] = &config.workflows[..] else { return Err(TestCaseError::fail(reply)) };
    prop_assert_eq!(workflow.definition.name.as_str(), format!("ingest_{name}"));
    prop_assert!(!workflow.definition.routed_by_reactor);
    let [step] = &workflow.definition.steps[..] else { return Err(TestCaseError::fail(reply)) };
    prop_assert_eq!(step.step_type.0.as_str(), if native { "rtmp_pull" } else { "ffmpeg_pull" });
    prop_assert_eq!(step.parameters.len(), 2);
    prop_assert_eq!(step.parameters["stream_name"].as_deref(), Some(name.as_str()));
    let location = Location::parse(step.parameters["location"].as_deref().unwrap()).unwrap();
    prop_assert_eq!((location.app.as_str(), location.name.as_str()), ("pull_source", name.as_str()));
    prop_assert_eq!((location.host.as_str(), location.port, &location.query), ("10.1.2.3", 1936, &None));
    prop_assert_eq!(heard(&location.name).unwrap().0, name.as_str());
    if word::is_plain_word(name.as_str()) {
        // So that plain mmids nodes can read it.
        let parsed = mmids_core::config::parse(&reply).unwrap();
        let steps: Vec<_> = parsed.workflows.values().flat_map(|workflow| &workflow.steps).collect();
        prop_assert_eq!(steps.len(), 1);
        prop_assert_eq!(steps[0].parameters["stream_name"].as_deref(), Some(name.as_str()));
    }
    let path = utf8_percent_encode(name.as_str(), NON_ALPHANUMERIC);
    let wanted = request::read(format!("GET /live/{path}.flv HTTP/1.1\r\n\r\n").as_bytes());
    let Some(Request::Play(wanted)) = wanted else { return Err(TestCaseError::fail("no play")) };
    prop_assert_eq!(wanted.key.as_str(), name.as_str());
    Ok(())
}

proptest! {
    #[test]
    fn any_allowed_name_comes_out_as_it_went_in(text in "[A-Za-z0-9._:,/~+=@%-]{1,60}", native: bool) {
        if let Ok(name) = StreamName::parse(&text) {
            passes(&name, "10.1.2.3:1936", native)?;
        }
    }

    #[test]
    fn no_text_is_more_than_a_name(text in "([ -~]|\\PC|[\n\t{}\"#\\\\=$%]){1,40}", native: bool) {
        if let Ok(name) = StreamName::parse(&text) {
            passes(&name, "10.1.2.3:1936", native)?;
        }
    }
}

fn encoded(name: &str) -> String {
    utf8_percent_encode(name, NON_ALPHANUMERIC).to_string()
}

#[test]
fn every_door_takes_names_as_encoders_have_them() {
    let reactor = Lb::start(&["--role", "reactor"]);
    let url = reactor.reactor_url();
    let start =
        |more: &[&str]| Lb::start(&[&["--reactor-url", &url, "--report-interval", "200ms"], more].concat());
    let ingest = start(&["--role", "ingest", "--stream-metrics", "10"]);
    let (native, by_ffmpeg) =
        (start(&["--role", "playback"]), start(&["--role", "playback", "--pull", "ffmpeg"]));
    for name in NAMES {
        let publisher = Publisher::start(ingest.rtmp(), "ingest", name, Media::default());
        publisher.wait_for_keyframe();
        let viewer = Viewer::start(native.rtmp(), "live", name);
        viewer.wait_for_keyframe(1, SOON);
        let mut flv = TcpStream::connect(native.http()).unwrap();
        write!(flv, "GET /live/{}.flv HTTP/1.1\r\nHost: h\r\n\r\n", encoded(name)).unwrap();
        let mut head = [0; 15];
        flv.read_exact(&mut head).unwrap();
        assert_eq!(&head, b"HTTP/1.1 200 OK", "{name}");
        // An ffmpeg asks the ingest node for just this name.
        let _waiting = Viewer::start(by_ffmpeg.rtmp(), "live", name);
        let pulls = format!("/pulls?stream={}", encoded(name));
        wait_for("both ways of pulling", SOON, || {
            let page: serde_json::Value =
                serde_json::from_str(&http::get(ingest.admin(), &pulls).body).unwrap();
            page["peers"].as_array().unwrap().len() == 2
        });
        let one = http::get(reactor.reactor(), &format!("/streams/{}", encoded(name)));
        assert_eq!(one.status, 200, "{}", one.body);
        assert_eq!(ingest.metric(&format!("lb_stream_epoch{{stream=\"{name}\"")), 1.0, "{name}");
        wait_for("the nodes' reports", SOON, || {
            let explained = run(&["explain", name, "--reactor-url", &url]);
            explained.code == Some(0) && explained.stdout.contains("published from")
        });
        let plain =
            http::post(reactor.reactor(), "/watcher_lookup", &format!("{{\"stream_name\": \"{name}\"}}"));
        assert!(plain.status == 404 && plain.body.contains("plain mmids node cannot read"), "{}", plain.body);
        let kicked = run(&["kick", name, "--reactor-url", &url]);
        assert_eq!(kicked.code, Some(0), "{}", kicked.stderr);
        publisher.wait_for_end(SOON);
    }
}

#[test]
fn real_frames_pass_under_such_a_name_by_ffmpeg_at_both_ends() {
    let node = Lb::start(&["--role", "all", "--pull", "ffmpeg"]);
    let name = "c2VjcmV0+a=~@%41.flv";
    let _publisher = ffmpeg::publish(Clip::Alpha, &node.rtmp_url("ingest", &format!("{name}?")));
    node.wait_for_metric("lb_publishers", 1.0, SOON);
    let viewer = ffmpeg::record(&node.rtmp_url("live", &format!("{name}?")), 2);
    viewer.assert_shows(Clip::Alpha, 2);
    let streams = http::get(node.reactor(), "/streams").body;
    assert!(streams.contains(&format!("\"stream_name\":\"{name}\"")), "{streams}");
}

#[test]
fn an_empty_key_has_everything_in_the_query() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let keys = file("keys", "c2VjcmV0+a== = studio=1\n");
    let secrets = file("jwt", "0123456789abcdef0123456789abcdef\n");
    let signed = run(&["sign", "publish", "cam-1", "--auth-jwt-keys", &secrets]);
    let token = signed.stdout.split("?token=").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    let node = Lb::start(&["--role", "ingest,reactor", "--auth-file", &keys, "--auth-jwt-keys", &secrets]);
    let published = |name: &str| {
        wait_for(name, SOON, || http::get(node.reactor(), "/streams").body.contains(&format!("\"{name}\"")));
    };
    // With real ffmpeg, and as OBS writes a server with a query and an empty key.
    let by_ffmpeg = ffmpeg::publish(Clip::Alpha, &node.rtmp_url("ingest", "?key=c2VjcmV0+a=="));
    published("studio=1");
    drop(by_ffmpeg);
    for (app, key) in [("ingest", format!("?token={token}")), ("ingest?token=", String::new())] {
        let app = app.replace("token=", &format!("token={token}"));
        let publisher = Publisher::start(node.rtmp(), &app, &key, Media::default());
        publisher.wait_for_keyframe();
        published("cam-1");
        publisher.leave();
    }
    let wrong = Publisher::start(node.rtmp(), "ingest", "?key=wrong-key", Media::default());
    assert!(wrong.wait_for_end(SOON).1.join(" ").contains("the stream key is not known"));
    // Without anybody who knows a name for it, it is refused.
    let open = Lb::start(&["--role", "ingest,reactor"]);
    let nameless = Publisher::start(open.rtmp(), "ingest", "?key=c2VjcmV0+a==", Media::default());
    assert!(nameless.wait_for_end(SOON).1.join(" ").contains("the stream name is empty"));
    assert!(!node.log().contains("c2VjcmV0") && !open.log().contains("c2VjcmV0"), "no secret is logged");
}
