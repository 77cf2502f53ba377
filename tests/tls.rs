//! RTMPS, in and out: real ffmpeg, certificates made by openssl, and a certificate that is replaced while viewers watch.

// A test says what it expects by `unwrap` and indexing; a panic is its verdict.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use common::ffmpeg::{self, Clip};
use common::lb::{Lb, run};
use common::process::{self, Peer};
use common::publisher::{Media, Publisher};
use common::viewer::Viewer;
use common::{SOON, endpoint, poll, wait_for};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::{NamedTempFile, TempDir};
use tokio::io::AsyncReadExt;

/// A certificate authority and what it has signed, in a folder.
struct Authority {
    folder: TempDir,
}

fn openssl(folder: &Path, args: &[&str]) {
    let made = Command::new("openssl").args(args).current_dir(folder).output().expect("openssl is there");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

impl Authority {
    fn new() -> Authority {
        let folder = TempDir::new().unwrap();
        let ca =
            ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
        openssl(
            folder.path(),
            &[&ca[..], &["-subj", "/CN=test ca", "-keyout", "ca.key", "-out", "ca.pem"]].concat(),
        );
        let authority = Authority { folder };
        authority.sign("server");
        authority
    }

    /// A certificate for this host.
    fn sign(&self, name: &str) {
        let (key, request, certificate) =
            (format!("{name}.key"), format!("{name}.csr"), format!("{name}.pem"));
        let folder = self.folder.path();
        let new = [
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-subj",
            "/CN=localhost",
        ];
        openssl(folder, &[&new[..], &["-keyout", &key, "-out", &request]].concat());
        std::fs::write(folder.join("names"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n").unwrap();
        let sign = ["x509", "-req", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2"];
        openssl(folder, &[&sign[..], &["-extfile", "names", "-in", &request, "-out", &certificate]].concat());
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn start(&self, more: &[&str]) -> Lb {
        let (certificate, key) = (self.file("server.pem"), self.file("server.key"));
        let tls = ["--rtmps-port", "0", "--tls-cert", &certificate, "--tls-key", &key];
        Lb::start(&[&["--role", "all"], &tls[..], more].concat())
    }
}

fn rtmps_url(lb: &Lb, app: &str, key: &str) -> String {
    format!("rtmps://127.0.0.1:{}/{app}/{key}", lb.rtmps_port())
}

/// An ffmpeg that publishes by TLS and verifies the certificate.
fn publish(url: &str, ca: &str) -> Peer {
    let mut command = Command::new("ffmpeg");
    command.args(["-nostdin", "-v", "warning", "-re", "-stream_loop", "-1", "-i"]).arg(Clip::Alpha.file());
    command.args(["-c", "copy", "-f", "flv", "-tls_verify", "1", "-ca_file", ca, url]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Peer::new(process::spawn_tool(command))
}

#[test]
fn ffmpeg_publishes_and_plays_by_tls() {
    let authority = Authority::new();
    let lb = authority.start(&[]);
    let _publisher = publish(&rtmps_url(&lb, "ingest", "x"), &authority.file("ca.pem"));
    lb.wait_for_metric("lb_publishers", 1.0, SOON);
    ffmpeg::record(&rtmps_url(&lb, "live", "x"), 3).assert_shows(Clip::Alpha, 3);
    // The same apps as at the RTMP port.
    ffmpeg::record(&lb.rtmp_url("live", "x"), 3).assert_shows(Clip::Alpha, 3);
}

#[test]
fn a_stream_is_pulled_by_tls_from_a_server_whose_certificate_is_believed() {
    let authority = Authority::new();
    let origin = authority.start(&[]);
    let _publisher = ffmpeg::publish(Clip::Alpha, &origin.rtmp_url("ingest", "x"));
    origin.wait_for_metric("lb_publishers", 1.0, SOON);
    let mut config = NamedTempFile::new().unwrap();
    let location = rtmps_url(&origin, "live", "x");
    writeln!(
        config,
        "workflow w {{\n rtmp_pull location={location} stream_name=x\n rtmp_watch rtmp_app=live stream_key=*\n}}"
    )
    .unwrap();
    let flags = ["--role", "playback", "--config", config.path().to_str().unwrap()];
    let stranger = Lb::start(&flags);
    wait_for("the certificate to be refused", SOON, || stranger.log().contains("UnknownIssuer"));
    let edge = Lb::start(&[&flags[..], &["--ca-file", &authority.file("ca.pem")]].concat());
    edge.wait_for_metric("lb_streams", 1.0, SOON);
    ffmpeg::record(&edge.rtmp_url("live", "x"), 3).assert_shows(Clip::Alpha, 3);
    assert_eq!(stranger.metric("lb_streams"), 0.0);
}

/// Asks an HTTPS server whose certificate is signed by the authority.
fn get(url: &str, ca: &str) -> Result<(u16, String), String> {
    lb::client::install_crypto_provider();
    let ca = reqwest::Certificate::from_pem(&std::fs::read(ca).unwrap()).unwrap();
    endpoint::runtime().block_on(async {
        let client =
            reqwest::Client::builder().add_root_certificate(ca).no_proxy().timeout(SOON).build().unwrap();
        let answer = client.get(url).bearer_auth("s3cret").send().await.map_err(|error| error.to_string())?;
        Ok((answer.status().as_u16(), answer.text().await.map_err(|error| error.to_string())?))
    })
}

#[test]
fn a_cluster_speaks_tls_only() {
    let authority = Authority::new();
    let (certificate, key, ca) =
        (authority.file("server.pem"), authority.file("server.key"), authority.file("ca.pem"));
    let own = ["--tls-cert", &certificate, "--tls-key", &key, "--ca-file", &ca, "--reactor-token", "s3cret"];
    let reactor = Lb::start(&[&["--role", "reactor", "--https"], &own[..]].concat());
    let url = format!("https://localhost:{}", reactor.reactor().port());
    let node = |role: &str, more: &[&str]| {
        Lb::start(&[&["--role", role, "--reactor-url", &url], &own[..], more].concat())
    };
    let ingest = node("ingest", &["--rtmps-port", "0", "--pull-tls"]);
    let _publisher = publish(&rtmps_url(&ingest, "ingest", "x"), &ca);
    ingest.wait_for_metric("lb_publishers", 1.0, SOON);
    for pull in ["native", "ffmpeg"] {
        let playback = node("playback", &["--pull-tls", "--pull", pull]);
        ffmpeg::record(&playback.rtmp_url("live", "x"), 3).assert_shows(Clip::Alpha, 3);
    }
    let (status, streams) = get(&format!("{url}/streams"), &ca).unwrap();
    assert_eq!(status, 200);
    let origin = format!("\"origin\":\"rtmps://127.0.0.1:{}\"", ingest.rtmps_port());
    assert!(streams.contains(&origin), "{streams}");
    let (status, metrics) = get(&format!("https://{}/metrics", reactor.admin()), &ca).unwrap();
    assert_eq!(status, 200);
    assert!(metrics.contains("lb_reactor_streams 1"), "{metrics}");
    let plain = get(&format!("http://{}/livez", reactor.reactor()), &ca);
    assert!(plain.is_err(), "{plain:?}");

    // Who does not believe the certificate does not talk to this reactor.
    let stranger = Lb::start(&["--role", "ingest", "--reactor-url", &url]);
    wait_for("the certificate to be refused", SOON, || stranger.log().contains("UnknownIssuer"));

    // A node whose streams would go over the network in the clear is not pulled from.
    let plain = node("ingest", &[]);
    let _other = ffmpeg::publish(Clip::Beta, &plain.rtmp_url("ingest", "y"));
    plain.wait_for_metric("lb_publishers", 1.0, SOON);
    for pull in ["native", "ffmpeg"] {
        let playback = node("playback", &["--pull-tls", "--pull", pull]);
        let _viewer = ffmpeg::watch(&playback.rtmp_url("live", "y"));
        wait_for("the pull to be refused", SOON, || playback.log().contains("this node pulls by TLS only"));
    }
}

#[test]
fn a_step_listens_by_tls_as_in_mmids() {
    let authority = Authority::new();
    let mut config = NamedTempFile::new().unwrap();
    writeln!(
        config,
        "workflow w {{\n rtmp_receive rtmp_app=ingest stream_key=* rtmps port=${{RTMP_PORT}}\n rtmp_watch rtmp_app=live stream_key=* rtmps port=${{RTMP_PORT}}\n}}"
    )
    .unwrap();
    let config = config.path().to_str().unwrap();
    // The certificate and its key as mmids takes them.
    std::fs::write(authority.file("password"), "s3cret\n").unwrap();
    let store = ["pkcs12", "-export", "-in", "server.pem", "-inkey", "server.key", "-out", "server.p12"];
    openssl(authority.folder.path(), &[&store[..], &["-passout", "file:password"]].concat());
    let (store, password) = (authority.file("server.p12"), authority.file("password"));
    let flags = ["--role", "ingest", "--config", config, "--tls-cert", &store];
    let check = |flags: &[&str]| run(&[flags, &["--check"]].concat());
    let refused = check(&flags);
    assert!(refused.code == Some(2) && refused.stderr.contains("--tls-password-file"), "{}", refused.stderr);
    let refused = check(&flags[..4]);
    assert!(
        refused.code == Some(2) && refused.stderr.contains("--tls-cert: it is needed"),
        "{}",
        refused.stderr
    );
    // In the settings, as mmids has both.
    let settings = |password: &str| {
        let text = std::fs::read_to_string(config).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let block = format!("settings {{\n    tls_cert_path {store}\n    tls_cert_password {password}\n}}\n");
        std::fs::write(file.path(), format!("{block}{text}")).unwrap();
        file
    };
    let (good, bad) = (settings("s3cret"), settings("wrong"));
    let with = |file: &tempfile::NamedTempFile| {
        check(&["--role", "ingest", "--config", file.path().to_str().unwrap()])
    };
    assert_eq!(with(&good).code, Some(0), "{}", with(&good).stderr);
    let refused = with(&bad);
    assert!(refused.code == Some(2) && !refused.stderr.contains("wrong"), "{}", refused.stderr);
    let flags = [&flags[..], &["--tls-password-file", &password]].concat();
    assert_eq!(check(&flags).code, Some(0));
    let lb = Lb::start(&flags);
    let _publisher = publish(&rtmps_url(&lb, "ingest", "x"), &authority.file("ca.pem"));
    lb.wait_for_metric("lb_publishers", 1.0, SOON);
    ffmpeg::record(&rtmps_url(&lb, "live", "x"), 3).assert_shows(Clip::Alpha, 3);
}

/// The serial number of the certificate that a connection gets.
fn serial(lb: &Lb) -> String {
    let at = format!("127.0.0.1:{}", lb.rtmps_port());
    let shown = Command::new("sh")
        .args([
            "-c",
            &format!("openssl s_client -connect {at} </dev/null 2>/dev/null | openssl x509 -noout -serial"),
        ])
        .output()
        .unwrap();
    String::from_utf8(shown.stdout).unwrap()
}

#[test]
fn a_certificate_is_replaced_without_dropping_anybody() {
    let authority = Authority::new();
    let lb = authority.start(&[]);
    let publisher = Publisher::start(lb.rtmp(), "ingest", "x", Media::default());
    publisher.wait_for_keyframe();
    let viewers: Vec<Peer> = (0..20).map(|_| ffmpeg::watch(&rtmps_url(&lb, "live", "x"))).collect();
    lb.wait_for_metric("lb_viewers", 20.0, SOON);
    let before = serial(&lb);
    std::fs::write(authority.file("server.pem"), "nonsense").unwrap();
    wait_for("the mistake to be logged", SOON, || lb.log().contains("what was read before stays in force"));
    assert_eq!(serial(&lb), before);
    authority.sign("server");
    let replaced = poll(SOON, || (serial(&lb) != before && !serial(&lb).is_empty()).then_some(()));
    assert!(replaced.is_some(), "the new certificate is never shown");
    let sent = publisher.sent().frames;
    wait_for("the stream to go on", SOON, || publisher.sent().frames > sent + 25);
    assert_eq!(lb.metric("lb_viewers"), 20.0);
    drop(viewers);
}

#[test]
fn who_speaks_something_else_than_tls_is_closed_and_costs_nobody_else() {
    let authority = Authority::new();
    let lb = authority.start(&["--handshake-timeout", "1s"]);
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], lb.rtmps_port()));
    let told = Publisher::start(address, "ingest", "x", Media::default()).wait_for_end(SOON).1;
    assert!(told.is_empty(), "{told:?}");
    // One that says nothing is closed in time.
    let closed = endpoint::runtime().block_on(async {
        let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
        tokio::time::timeout(SOON, socket.read(&mut [0; 100])).await
    });
    assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{closed:?}");
    assert!(lb.metric("lb_refusals_total{reason=\"tls\"}") >= 2.0);
    let publisher = publish(&rtmps_url(&lb, "ingest", "y"), &authority.file("ca.pem"));
    lb.wait_for_metric("lb_publishers", 1.0, SOON);
    drop(publisher);
}

#[test]
fn files_that_do_not_belong_together_are_named() {
    let authority = Authority::new();
    authority.sign("other");
    let check = |certificate: &str, key: &str| {
        let (certificate, key) = (authority.file(certificate), authority.file(key));
        run(&[
            "--role",
            "ingest",
            "--check",
            "--rtmps-port",
            "0",
            "--tls-cert",
            &certificate,
            "--tls-key",
            &key,
        ])
    };
    assert_eq!(check("server.pem", "server.key").code, Some(0));
    for (certificate, key, part) in [
        ("server.pem", "other.key", "do not belong together"),
        ("server.key", "server.key", "no certificate"),
        ("server.pem", "server.pem", "no private key"),
        ("none.pem", "server.key", "cannot be read"),
    ] {
        let failed = check(certificate, key);
        assert_eq!(failed.code, Some(2), "{certificate} {key}");
        assert!(failed.stderr.contains(part) && failed.stderr.lines().count() == 1, "{}", failed.stderr);
    }
    assert_eq!(
        run(&["--role", "ingest", "--check", "--rtmps-port", "1936"]).code,
        Some(2),
        "a certificate is needed"
    );
}

/// Slow viewers by TLS do not hold others up, and are closed when they read nothing.
#[test]
fn viewers_that_stop_reading_are_closed_and_others_see_everything() {
    let authority = Authority::new();
    let lb = authority.start(&[]);
    let media = Media { frame_bytes: 40_000, ..Media::default() };
    let publisher = Publisher::start(lb.rtmp(), "ingest", "x", media);
    publisher.wait_for_keyframe();
    let stopped: Vec<_> = (0..5)
        .map(|_| {
            let mut command = Command::new("ffmpeg");
            command.args([
                "-nostdin",
                "-v",
                "error",
                "-i",
                &rtmps_url(&lb, "live", "x"),
                "-c",
                "copy",
                "-f",
                "null",
                "-",
            ]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            process::spawn_tool(command)
        })
        .collect();
    lb.wait_for_metric("lb_viewers", 5.0, SOON);
    stopped.iter().for_each(|viewer| process::signal(viewer, libc::SIGSTOP));
    let reads = Viewer::start(lb.rtmp(), "live", "x");
    lb.wait_for_metric("lb_viewer_stalls_total", 5.0, Duration::from_secs(40));
    lb.wait_for_metric("lb_viewers", 1.0, SOON);
    assert!(reads.is_connected());
    reads.seen().assert_in_order();
    let _ended: Vec<Peer> = stopped.into_iter().map(Peer::new).collect();
}
