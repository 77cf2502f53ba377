//! Nodes that share a token pull from each other, and nobody else does.

// A test says what it expects by `unwrap` and indexing; a panic is its verdict.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use common::ffmpeg::{self, Clip};
use common::lb::Lb;
use common::publisher::{Media, Publisher};
use common::viewer::Viewer;
use common::{SOON, http, wait_for};
use lb::auth::PullKey;
use std::io::Write;
use std::time::SystemTime;
use tempfile::NamedTempFile;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

fn start(role: &str, more: &[&str]) -> Lb {
    let mut token = NamedTempFile::new().unwrap();
    writeln!(token, "{TOKEN}").unwrap();
    Lb::start(&[&["--role", role, "--reactor-token-file", token.path().to_str().unwrap()], more].concat())
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

#[test]
fn viewers_get_what_nodes_with_the_token_pull_by_themselves_and_by_ffmpeg() {
    let reactor = start("reactor", &[]);
    let url = reactor.reactor_url();
    let ingest = start("ingest", &["--reactor-url", &url]);
    let _publisher = ffmpeg::publish(Clip::Alpha, &ingest.rtmp_url("ingest", "a/x"));
    ingest.wait_for_metric("lb_publishers", 1.0, SOON);
    for pull in ["native", "ffmpeg"] {
        let playback = start("playback", &["--reactor-url", &url, "--pull", pull]);
        ffmpeg::record(&playback.rtmp_url("live", "a/x"), 3).assert_shows(Clip::Alpha, 3);
        assert!(!playback.log().contains("lb_pull="), "a signature is no business of a log");
    }
    assert!(!ingest.log().contains("lb_pull="));
    assert_eq!(ingest.metric("lb_refusals_total{reason=\"signature\"}"), 0.0);
}

#[test]
fn a_stranger_pulls_nothing() {
    let reactor = start("reactor", &[]);
    let ingest = start("ingest", &["--reactor-url", &reactor.reactor_url()]);
    let publisher = Publisher::start(ingest.rtmp(), "ingest", "x", Media::default());
    publisher.wait_for_keyframe();
    let (key, foreign) = (PullKey::of(TOKEN), PullKey::of("another"));
    let node = "n1".parse().unwrap();
    let good = format!("x?{}", key.sign("x", &node, now()));
    Viewer::start(ingest.rtmp(), "pull_source", &good).wait_for_keyframe(1, SOON);
    for (signature, reason) in [
        (String::new(), "hold its token"),
        ("lb_pull=n1.99999999999.00".to_owned(), "hold its token"),
        (foreign.sign("x", &node, now()), "hold its token"),
        (key.sign("y", &node, now()), "hold its token"),
        (key.sign("x", &node, now() - 3600), "has expired"),
    ] {
        let told = Viewer::start(ingest.rtmp(), "pull_source", &format!("x?{signature}")).wait_for_end(SOON);
        assert!(told.join("; ").contains(reason), "{signature}: {told:?}");
    }
    assert_eq!(ingest.metric("lb_refusals_total{reason=\"signature\"}"), 5.0);
    assert!(publisher.sent().ended.is_none(), "the publisher is left alone");
}

#[test]
fn a_plain_node_pulls_from_where_its_address_is_listed() {
    let reactor = start("reactor", &[]);
    let text = include_str!("../mmids-configs/ingest.mmids");
    let open = text.replace(
        "rtmp_app=pull_source stream_key=*",
        "rtmp_app=pull_source stream_key=* allow_ips=127.0.0.1",
    );
    assert_ne!(open, text);
    let mut config = NamedTempFile::new().unwrap();
    config.write_all(open.as_bytes()).unwrap();
    let file = config.path().to_str().unwrap();
    let ingest = start("ingest", &["--reactor-url", &reactor.reactor_url(), "--config", file]);
    let publisher = Publisher::start(ingest.rtmp(), "ingest", "x", Media::default());
    publisher.wait_for_keyframe();
    Viewer::start(ingest.rtmp(), "pull_source", "x").wait_for_keyframe(1, SOON);
}

#[test]
fn ffmpeg_sees_no_secret_of_the_environment_and_speaks_only_what_the_location_needs() {
    let folder = tempfile::tempdir().unwrap();
    let (fake, seen) = (folder.path().join("ffmpeg"), folder.path().join("seen"));
    let script = format!(
        "#!/bin/sh\n{{ env; echo \"args: $*\"; }} > {0}.part\nmv {0}.part {0}\nexec sleep 60\n",
        seen.display()
    );
    std::fs::write(&fake, script).unwrap();
    std::fs::set_permissions(&fake, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let reactor = start("reactor", &[]);
    let url = reactor.reactor_url();
    let ingest = start("ingest", &["--reactor-url", &url]);
    let publisher = Publisher::start(ingest.rtmp(), "ingest", "x", Media::default());
    publisher.wait_for_keyframe();
    let flags = [
        "--role",
        "playback",
        "--reactor-url",
        &url,
        "--pull",
        "ffmpeg",
        "--ffmpeg-path",
        fake.to_str().unwrap(),
    ];
    let playback = Lb::start_with(&flags, &[("LB_REACTOR_TOKEN", TOKEN), ("AWS_SECRET", "s3cret")]);
    wait_for("the stream to be known", SOON, || http::get(ingest.admin(), "/readyz").status == 200);
    let _viewer = Viewer::start(playback.rtmp(), "live", "x");
    wait_for("ffmpeg to run", SOON, || seen.exists());
    let said = std::fs::read_to_string(&seen).unwrap();
    assert!(said.contains("PATH=") && !said.contains("s3cret") && !said.contains(TOKEN), "{said}");
    assert!(
        said.contains("-protocol_whitelist rtmp,tcp -") && said.contains("/pull_source/x?lb_pull="),
        "{said}"
    );
}
