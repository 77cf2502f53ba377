//! What a user meets at the command line: help, checks, exit codes, signals, and a port that is taken.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests may panic

mod common;

use common::ffmpeg::{self, Clip};
use common::http;
use common::lb::{self, Lb};
use common::publisher::{Media, Publisher};
use common::{SOON, process, wait_for};
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;

/// A node that comes back on the same ports serves again this soon.
const AT_ONCE: Duration = Duration::from_secs(2);

fn config(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

#[test]
fn help_is_as_documented() {
    let help = lb::run(&["--help"]);
    assert_eq!((help.code, help.stderr.as_str()), (Some(0), ""));
    let snapshot = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots/help.txt");
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&snapshot, &help.stdout).unwrap();
    }
    let wanted = std::fs::read_to_string(&snapshot).unwrap_or_default();
    if wanted != help.stdout {
        let now = config(&help.stdout);
        let mut diff = Command::new("diff");
        diff.args(["-u", "--label", "tests/snapshots/help.txt", "--label", "lb --help"]);
        let diff = process::run(
            {
                diff.arg(&snapshot).arg(now.path());
                diff
            },
            SOON,
        );
        panic!("--help changed; if that is meant: UPDATE_SNAPSHOTS=1 cargo test help_is\n{}", diff.stdout);
    }
}

#[test]
fn version_is_printed() {
    let version = lb::run(&["--version"]);
    assert_eq!(version.code, Some(0));
    // The commit is missing in what is built from an archive.
    let begin = concat!("lb ", env!("CARGO_PKG_VERSION"), " (");
    let said = version.stdout.trim();
    assert!(said.starts_with(begin) && said.ends_with("-linux-gnu)"), "{said}");
}

/// The settings are a symbol that the allocator looks for: a wrong name would go unnoticed.
#[test]
fn the_allocator_is_told_to_give_memory_back_soon() {
    let told = lb::run_with(&["--version"], &[("_RJEM_MALLOC_CONF", "stats_print:true")]).stderr;
    for setting in ["opt.background_thread: true", "opt.dirty_decay_ms: 1000", "opt.muzzy_decay_ms: 0"] {
        assert!(told.contains(setting), "no {setting} in {told}");
    }
}

/// Runs `lb` with something wrong, and checks that it says so in one line, does not start and exits with 2.
#[track_caller]
fn assert_usage_error(args: &[&str], says: &[&str]) {
    let failed = lb::run(args);
    assert_eq!(failed.code, Some(2), "{args:?}: {failed:?}");
    assert_eq!(failed.stdout, "", "{args:?} printed to standard output");
    let first = failed.stderr.lines().next().unwrap_or_default();
    for text in says {
        assert!(first.contains(text), "{args:?}: '{text}' is not in the line: {:?}", failed.stderr);
    }
    assert!(!failed.stderr.contains("panicked"), "{args:?}: {}", failed.stderr);
}

#[test]
fn wrong_usage_is_named_and_exits_with_2() {
    for (args, says) in [
        (&["--role", "viewer"][..], "viewer"),
        (&["--no-such-flag"], "--no-such-flag"),
        (&["--role", "ingest", "--rtmp-port", "70000"], "70000"),
        (&["--role", "ingest", "--rtmp-port", "x"], "--rtmp-port"),
        (&["--role", "ingest", "--pull", "magic"], "magic"),
        (&["--role", "ingest", "--log", "warning"], "--log: 'warning' is not allowed"),
        (&["--role", "ingest", "--log", "info,lb=verbose"], "'lb=verbose' is not allowed"),
        (&["--role", "ingest", "--admin-listen", "nowhere"], "nowhere"),
        (&["--role", "reactor", "--reactor-listen", "1.2.3.4"], "1.2.3.4"),
        (&["--role", "reactor", "--store", "file:///tmp/x"], "store"),
        (&["--role", "ingest", "--advertise", "two words"], "two words"),
        // The URL itself is not shown: it may hold a password.
        (&["--role", "ingest", "--reactor-url", "ftp://x"], "--reactor-url"),
        (&["--role", "ingest", "--config", "/does/not/exist.mmids"], "/does/not/exist.mmids"),
        (&["--role", "reactor", "--watcher-template", "/does/not/exist"], "/does/not/exist"),
        (&["--role", "reactor", "--reactor-token-file", "/does/not/exist"], "/does/not/exist"),
    ] {
        assert_usage_error(args, &[says]);
    }
}

#[test]
fn a_wrong_configuration_is_named_by_file_and_line_and_exits_with_2() {
    let workflow = |step: &str| format!("workflow w {{\n    {step}\n}}\n");
    let reactor = "reactor r executor=simple_http {\n    url: http://127.0.0.1:1/x\n}\n";
    for (text, says) in [
        (workflow("rtmp_recieve rtmp_app=a stream_key=*"), "rtmp_recieve"),
        (workflow("rtmp_watch rtmp_app=a stream_key=* reactor=nobody"), "nobody"),
        (workflow("rtmp_watch rtmp_app=a stream_key=* port=70000"), "70000"),
        (workflow("rtmp_watch rtmp_app=a stream_key=* port=many"), "many"),
        (workflow("rtmp_watch stream_key=*"), "rtmp_app"),
        (workflow("rtmp_watch rtmp_app=a stream_key=* allow_ips=here"), "here"),
        (workflow("rtmp_watch rtmp_app=a stream_key=* port=${NO_SUCH_NAME}"), "NO_SUCH_NAME"),
        (workflow("ffmpeg_pull stream_name=x"), "location"),
        ("reactor r executor=magic {\n}\n".into(), "magic"),
        ("reactor r executor=simple_http {\n}\n".into(), "url"),
        (format!("{reactor}{reactor}"), "r"),
        ("workflow a {\n    rtmp_watch rtmp_app=a stream_key=*\n".into(), ":"),
        ("workflow a {\n}\n\n  }\n".into(), ":4"),
        (String::new(), "no workflow"),
        (workflow("rtmp_watch rtmp_app=a stream_key=*\n    rtmp_watch rtmp_app=a stream_key=*"), ":3"),
    ] {
        let file = config(&text);
        let path = file.path().to_str().unwrap();
        for extra in [&["--check"][..], &[]] {
            let mut args =
                vec!["--role", "ingest", "--rtmp-port", "0", "--admin-listen", "off", "--config", path];
            args.extend(extra);
            assert_usage_error(&args, &[path, says]);
        }
    }
    // What is not text at all.
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), [0xff, 0xfe, 0]).unwrap();
    let path = file.path().to_str().unwrap();
    assert_usage_error(&["--role", "ingest", "--config", path], &[path]);
}

#[test]
fn a_template_opens_no_port() {
    let template = |step: &str| {
        config(&format!(
            "workflow w_{{stream_name}} {{\n    {{pull}} location=rtmp://{{ip_address}}/a/x stream_name=x\n    {step}\n}}\n"
        ))
    };
    let check = |file: &NamedTempFile| {
        let file = file.path().to_str().unwrap().to_owned();
        ["--role", "reactor", "--check", "--watcher-template"]
            .map(str::to_owned)
            .into_iter()
            .chain([file])
            .collect()
    };
    for wrong in ["rtmp_watch rtmp_app=a stream_key=* port=1940", "rtmp_watch rtmp_app=a stream_key=* rtmps"]
    {
        let file = template(wrong);
        let args: Vec<String> = check(&file);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        assert_usage_error(&args, &["--watcher-template", "an answer opens no port"]);
    }
    let file = template("rtmp_watch rtmp_app=a stream_key=*");
    let args: Vec<String> = check(&file);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    assert_eq!(lb::run(&args).code, Some(0));
}

#[test]
fn check_looks_at_everything_and_starts_nothing() {
    let taken = TcpListener::bind("[::]:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for role in ["ingest", "playback", "reactor", "ingest,playback", "all"] {
        // A check binds nothing: that the port is taken does not matter.
        let listen = format!("127.0.0.1:{port}");
        let at = if role == "reactor" { ["--reactor-listen", &listen] } else { ["--rtmp-port", &port] };
        let checked = lb::run(&[&["--role", role, "--check"], &at[..]].concat());
        assert_eq!(checked.code, Some(0), "{role}: {}", checked.stderr);
        assert!(!checked.stdout.contains("ready"), "{role}: {}", checked.stdout);
    }
}

#[test]
fn print_config_gives_a_configuration_that_works() {
    for role in ["ingest", "playback"] {
        let printed = lb::run(&["--role", role, "--print-config", "--rtmp-port", "0"]);
        assert_eq!(printed.code, Some(0), "{role}: {}", printed.stderr);
        assert!(
            printed.stdout.contains("workflow ") && printed.stdout.contains("rtmp_watch"),
            "{}",
            printed.stdout
        );
        let file = config(&printed.stdout);
        let path = file.path().to_str().unwrap();
        let checked = lb::run(&["--role", role, "--check", "--config", path]);
        assert_eq!(checked.code, Some(0), "{role}: {}", checked.stderr);
    }
}

#[test]
fn an_ffmpeg_that_is_to_pull_must_be_there() {
    let nowhere = ["--ffmpeg-path", "/does/not/exist"];
    for extra in [&["--check"][..], &["--rtmp-port", "0", "--admin-listen", "off"]] {
        let by_flag = [&["--role", "playback", "--pull", "ffmpeg"], &nowhere[..], extra].concat();
        assert_usage_error(&by_flag, &["--ffmpeg-path", "/does/not/exist"]);
    }
    let file = config("workflow w {\n    ffmpeg_pull location=rtmp://h/a/x stream_name=x\n}\n");
    let by_step = ["--role", "ingest", "--check", "--config", file.path().to_str().unwrap()];
    assert_usage_error(&[&by_step[..], &nowhere].concat(), &["--ffmpeg-path"]);
    let unused = lb::run(&[&["--role", "playback", "--check"], &nowhere[..]].concat());
    assert_eq!(unused.code, Some(0), "{}", unused.stderr);
}

#[test]
fn whoever_closes_the_pipe_gets_no_panic() {
    let line = format!("{} --role ingest --print-config | true", env!("CARGO_BIN_EXE_lb"));
    let mut shell = Command::new("sh");
    shell.args(["-c", &line]);
    let ended = process::run(shell, SOON);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
}

/// A configuration as the guide of mmids 1.1 has them: settings, reactors and steps.
const OF_MMIDS: &str = "settings {
    ffmpeg_path /does/not/exist
    ffmpeg_log_dir ./ffmpeg-logs
    log_path ./logs
    http_api_port 9099
}

reactor publishers executor=simple_http update_interval=60 {
    url http://127.0.0.1:1/publisher_lookup
}

workflow receive {
    rtmp_receive rtmp_app=receive stream_key=* port=${RTMP_PORT} allow_ips=127.0.0.1,10.0.0.0/8
    forward_to_workflow target_workflow=watch
}

workflow watch {
    rtmp_watch rtmp_app=watch stream_key=* port=${RTMP_PORT} deny_ips=192.0.2.1
}

workflow asked {
    rtmp_receive rtmp_app=asked stream_key=abc port=${RTMP_PORT} reactor=publishers
    forward_to_workflow reactor=publishers
}
";

#[test]
fn a_configuration_of_mmids_starts_and_what_differs_is_said_in_a_line_each() {
    let file = config(OF_MMIDS);
    let path = file.path().to_str().unwrap();
    let node = ["--role", "ingest", "--config", path];
    let notes = [
        format!("{path}:3: ffmpeg_log_dir: what ffmpeg says is in the log of this process"),
        format!("{path}:4: log_path: the log goes to standard error"),
    ];
    let checked = lb::run(&[&node[..], &["--check"]].concat());
    assert_eq!(checked.code, Some(0), "{}", checked.stderr);
    assert_eq!(checked.stderr.lines().count(), 2, "{}", checked.stderr);
    let running = Lb::start(&[&node[..], &["--admin-listen", "127.0.0.1:0"]].concat());
    for note in &notes {
        assert!(checked.stderr.contains(note), "{}", checked.stderr);
        assert!(running.log().contains(note), "{}", running.log());
    }
    let beaten = format!("{path}:5: http_api_port: --admin-listen is given, and counts more");
    assert!(running.log().contains(&beaten), "{}", running.log());
    let publisher = Publisher::start(running.rtmp(), "receive", "x", Media::default());
    publisher.wait_for_keyframe();
    running.wait_for_metric("lb_streams", 1.0, SOON);
    common::viewer::Viewer::start(running.rtmp(), "watch", "x").wait_for_keyframe(1, SOON);
    // Without a flag the settings count: that port, and that ffmpeg.
    let without =
        lb::run(&[&node[..], &["--check", "--admin-listen", "off", "--ffmpeg-path", "true"]].concat());
    assert!(without.stderr.contains(":2: ffmpeg_path: --ffmpeg-path is given"), "{}", without.stderr);
    let pulls = config(&format!(
        "{OF_MMIDS}workflow pull {{\n    ffmpeg_pull location=rtmp://h/a/x stream_name=x\n}}\n"
    ));
    let pulls = ["--role", "ingest", "--check", "--config", pulls.path().to_str().unwrap()];
    assert_usage_error(&pulls, &["--ffmpeg-path", "/does/not/exist"]);
    assert_eq!(lb::run(&[&pulls[..], &["--ffmpeg-path", "true"]].concat()).code, Some(0));

    // Other settings take a restart.
    std::fs::write(file.path(), OF_MMIDS.replace("9099", "9098")).unwrap();
    running.signal(libc::SIGHUP);
    let place = format!("the configuration stays as it is: {path}: settings: others than at the start");
    wait_for("the word of it", SOON, || running.log().contains(&place));
}

#[test]
fn a_setting_that_is_none_is_named_with_its_line_and_what_is_allowed() {
    let workflow = "workflow w {\n    rtmp_watch rtmp_app=a stream_key=*\n}\n";
    for (setting, says) in [
        ("ffmpeg_paht x", "ffmpeg_paht: it is no setting; ffmpeg_path, ffmpeg_log_dir, log_path"),
        ("http_api_port many", "http_api_port: 'many' is not allowed"),
        ("http_api_port 0", "a port from 1 to 65535"),
        ("ffmpeg_path", "ffmpeg_path: it lacks its value"),
        ("tls_cert_path /does/not/exist", "/does/not/exist"),
    ] {
        let file = config(&format!("{workflow}settings {{\n    {setting}\n}}\n"));
        let path = file.path().to_str().unwrap();
        let place = if setting.starts_with("tls") { "--tls-cert".to_owned() } else { format!("{path}:5: ") };
        assert_usage_error(&["--role", "ingest", "--check", "--config", path], &[&place, says]);
    }
    for flag in [&["--rtmps-port", "0"][..], &["--https"]] {
        let args = [&["--role", "ingest", "--check"], flag].concat();
        assert_usage_error(&args, &[flag[0], "--tls-cert is needed as well"]);
    }
}

#[test]
fn an_empty_variable_is_not_set_and_a_misspelt_one_is_said() {
    let variables = [("LB_RTMP_PORT", ""), ("LB_STORE", ""), ("LB_RTMP_PROT", "1")];
    let checked = lb::run_with(&["--role", "ingest", "--check"], &variables);
    assert_eq!(checked.code, Some(0), "{}", checked.stderr);
    assert_eq!(checked.stderr, "lb: warning: the variable LB_RTMP_PROT is not known; LB_RTMP_PORT is\n");
    let node = Lb::start_with(&["--role", "ingest"], &[("LB_RTMP_PROT", "1")]);
    assert!(node.log().contains("LB_RTMP_PROT is not known; LB_RTMP_PORT is"), "{}", node.log());
}

#[test]
fn variables_stand_for_flags_and_flags_win() {
    let node = Lb::start_with(&[], &[("LB_ROLE", "ingest,reactor"), ("LB_ADMIN_LISTEN", "[::1]:0")]);
    assert!(node.ready_line().contains("roles=ingest,reactor"), "{}", node.ready_line());
    assert!(node.admin().is_ipv6(), "{}", node.ready_line());
    drop(node);
    let node = Lb::start_with(&["--role", "playback"], &[("LB_ROLE", "ingest")]);
    assert!(node.ready_line().contains("roles=playback"), "{}", node.ready_line());
    drop(node);
    // The old name of LB_BATCH_MS is read still.
    for (name, flag) in [("LB_BATCH_MS", "--batch-ms"), ("LB_GATHER_MS", "--gather-ms")] {
        let refused = lb::run_with(&["--check"], &[(name, "soon")]);
        assert_eq!(refused.code, Some(2), "{name}: {}", refused.stderr);
        assert!(refused.stderr.contains(flag), "{name}: {}", refused.stderr);
    }
}

#[test]
fn a_node_says_which_parts_it_has_and_answers_on_them() {
    let node = Lb::start(&["--role", "playback", "--reactor-listen", "127.0.0.1:0"]);
    assert_eq!(http::get(node.admin(), "/livez").status, 200);
    assert_eq!(http::get(node.reactor(), "/streams").status, 200, "--reactor-listen starts the reactor");
    std::net::TcpStream::connect(("127.0.0.1", node.rtmp_port())).unwrap();
    std::net::TcpStream::connect(("::1", node.rtmp_port())).unwrap();
    let node = Lb::start(&["--role", "reactor", "--admin-listen", "off"]);
    assert!(
        !node.ready_line().contains("admin=") && !node.ready_line().contains("rtmp="),
        "{}",
        node.ready_line()
    );
}

#[test]
fn a_port_in_use_is_named_and_exits_with_1() {
    let taken = TcpListener::bind("[::]:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let listen = format!("127.0.0.1:{port}");
    for args in [
        &["--role", "ingest", "--admin-listen", "off", "--rtmp-port", &port][..],
        &["--role", "ingest", "--rtmp-port", "0", "--admin-listen", &listen],
        &["--role", "reactor", "--admin-listen", "off", "--reactor-listen", &listen],
    ] {
        let failed = lb::run(args);
        assert_eq!(failed.code, Some(1), "{args:?}: {failed:?}");
        assert_eq!(failed.stdout, "", "{args:?} said that it is ready");
        let last = failed.stderr.lines().last().unwrap_or_default();
        assert!(last.contains(&port), "{args:?}: the port is not in: {}", failed.stderr);
    }
}

#[test]
fn signals_end_every_role_cleanly() {
    for role in ["ingest", "playback", "reactor", "all"] {
        for signal in [libc::SIGTERM, libc::SIGINT] {
            let status = Lb::start(&["--role", role]).stop(signal);
            assert_eq!(status.code(), Some(0), "{role}, signal {signal}: {status}");
        }
    }
}

/// A reactor, an ingest node with a stream, and a playback node with a viewer, which pulls by ffmpeg.
struct Busy {
    _viewer: process::Peer,
    _publisher: process::Peer,
    playback: Lb,
    ingest: Lb,
    reactor: Lb,
}

fn busy() -> Busy {
    let reactor = Lb::start(&["--role", "reactor"]);
    let url = reactor.reactor_url();
    let ingest = Lb::start(&["--role", "ingest", "--reactor-url", &url]);
    let playback = Lb::start(&["--role", "playback", "--reactor-url", &url, "--pull", "ffmpeg"]);
    let publisher = ffmpeg::publish(Clip::Alpha, &ingest.rtmp_url("ingest", "alpha"));
    wait_for("the registration", SOON, || {
        http::get(reactor.reactor(), "/streams").body.contains("\"alpha\"")
    });
    let viewer = ffmpeg::watch(&playback.rtmp_url("live", "alpha"));
    ingest.wait_for_metric("lb_pulls_out", 1.0, SOON);
    assert!(playback.children().iter().any(|(_, name)| name == "ffmpeg"), "{:?}", playback.children());
    Busy { _viewer: viewer, _publisher: publisher, playback, ingest, reactor }
}

#[test]
fn no_ffmpeg_is_left_behind_after_a_stop_with_streams_running() {
    let Busy { playback, ingest, reactor, .. } = busy();
    // Lb::stop checks that no child is left.
    for node in [playback, ingest, reactor] {
        let status = node.stop(libc::SIGTERM);
        assert_eq!(status.code(), Some(0), "{status}");
    }
}

#[test]
fn no_ffmpeg_is_left_behind_after_a_kill() {
    let Busy { playback, .. } = busy();
    playback.kill();
}

#[test]
fn a_killed_node_serves_again_at_once_on_the_same_ports() {
    let Busy { _viewer: viewer, _publisher: publisher, playback, ingest, reactor } = busy();
    let [rtmp, admin, listen] =
        [ingest.rtmp_port().to_string(), ingest.admin().to_string(), reactor.reactor().port().to_string()];
    let playback_rtmp = playback.rtmp_port().to_string();
    let (url, listen) = (reactor.reactor_url(), format!("127.0.0.1:{listen}"));
    // Killed while peers are connected: their connections linger in every state TCP knows.
    reactor.kill();
    ingest.kill();
    playback.kill();

    let start = Instant::now();
    let reactor = Lb::start(&["--role", "reactor", "--reactor-listen", &listen]);
    let ingest = Lb::start(&[
        "--role",
        "ingest",
        "--reactor-url",
        &url,
        "--rtmp-port",
        &rtmp,
        "--admin-listen",
        &admin,
    ]);
    let playback = Lb::start(&["--role", "playback", "--reactor-url", &url, "--rtmp-port", &playback_rtmp]);
    assert!(start.elapsed() < AT_ONCE, "three nodes took {:?} to come back", start.elapsed());
    assert_eq!(ingest.rtmp_port().to_string(), rtmp);

    drop((viewer, publisher));
    let _publisher = ffmpeg::publish(Clip::Alpha, &ingest.rtmp_url("ingest", "alpha"));
    wait_for("the registration", SOON, || {
        http::get(reactor.reactor(), "/streams").body.contains("\"alpha\"")
    });
    ffmpeg::record(&playback.rtmp_url("live", "alpha"), 3).assert_shows(Clip::Alpha, 3);
}

#[test]
fn the_binary_needs_nothing_beyond_the_c_library() {
    let mut ldd = Command::new("ldd");
    ldd.arg(env!("CARGO_BIN_EXE_lb"));
    let listed = process::run(ldd, SOON);
    assert_eq!(listed.code, Some(0), "{}", listed.stderr);
    for line in listed.stdout.lines() {
        let library = line.split_whitespace().next().unwrap_or_default();
        let name = library.rsplit('/').next().unwrap_or_default();
        let known = [
            "linux-vdso.so",
            "libc.so",
            "libm.so",
            "libgcc_s.so",
            "libdl.so",
            "libpthread.so",
            "librt.so",
            "ld-linux",
        ];
        assert!(known.iter().any(|known| name.starts_with(known)), "{library} may be missing on a bare host");
    }
}

/// A node and a reactor with a token, and the flags by which a command reaches them.
#[test]
fn an_operator_sees_the_cluster_and_sends_a_publisher_away() {
    let token = config("s3cret-s3cret-s3cret\n");
    let token = token.path().to_str().unwrap();
    let reactor = Lb::start(&["--role", "reactor", "--reactor-token-file", token]);
    let url = reactor.reactor_url();
    let node = Lb::start(&[
        "--role",
        "ingest",
        "--reactor-url",
        &url,
        "--reactor-token-file",
        token,
        "--node-id",
        "n1",
    ]);
    let reach = ["--reactor-url", &url, "--reactor-token-file", token];
    let run = |words: &[&str]| lb::run(&[words, &reach].concat());

    let empty = run(&["streams"]);
    assert_eq!((empty.code, empty.stdout.trim()), (Some(0), "STREAM  NODE  PULLED FROM  EPOCH  AGE"));
    let publisher = Publisher::start(node.rtmp(), "ingest", "team/x", Media::default());
    publisher.wait_for_keyframe();
    let streams = run(&["streams"]);
    let origin = format!("127.0.0.1:{}", node.rtmp_port());
    let row: Vec<&str> = streams.stdout.lines().nth(1).unwrap_or_default().split_whitespace().collect();
    assert_eq!(row[..4], ["team/x", "n1", &origin, "1"], "{streams:?}");
    let parsed: serde_json::Value = serde_json::from_str(&run(&["streams", "--json"]).stdout).unwrap();
    assert_eq!(parsed["streams"][0]["stream_name"], "team/x");
    wait_for("the node's report", SOON, || {
        let status = run(&["status"]);
        let row: Vec<&str> = status.stdout.lines().nth(1).unwrap_or_default().split_whitespace().collect();
        row.starts_with(&["n1", "ingest", "well", "1", "0", "0"])
    });

    let kicked = run(&["kick", "team/x", "--reason", "wrong camera"]);
    assert_eq!((kicked.code, kicked.stderr.as_str()), (Some(0), ""), "{kicked:?}");
    publisher.wait_for_end(SOON);
    let session = reactor.log();
    assert!(session.contains("publisher kicked stream=team/x session="), "{session}");
    assert!(session.contains("reason=wrong camera"), "{session}");
    let told = run(&["explain", "team/x"]);
    assert!(told.stdout.contains("the publisher was sent away: wrong camera"), "{told:?}");
    wait_for("the stream to be gone", SOON, || run(&["streams"]).stdout.lines().count() == 1);

    // Both ports say the same of a registry that has just begun.
    let ready = || [reactor.admin(), reactor.reactor()].map(|port| http::get(port, "/readyz").status);
    wait_for("a reactor that is whole", SOON, || {
        let [admin, public] = ready();
        assert!(admin == public || ready() == [200, 200], "{admin} {public}");
        admin == 200
    });
    let unknown = run(&["kick", "nobody"]);
    assert_eq!(
        (unknown.code, unknown.stderr.as_str()),
        (Some(1), "lb: the stream 'nobody' is not published\n")
    );
    let stranger = lb::run(&["streams", "--reactor-url", &url]);
    assert!(stranger.code == Some(1) && stranger.stderr.contains("the reactor refuses (401"), "{stranger:?}");
    let nowhere = lb::run(&["status", "--reactor-url", "http://127.0.0.1:1"]);
    assert!(nowhere.code == Some(1) && nowhere.stderr.contains("no reactor answers"), "{nowhere:?}");
    assert_usage_error(&["status", "--reactor-url", "ftp://x"], &["--reactor-url"]);
    assert_usage_error(&["kick", "a b"], &["a b"]);
}

#[test]
fn health_is_told_by_the_exit_code() {
    let node = Lb::start(&["--role", "all"]);
    let url = format!("http://{}", node.admin());
    wait_for("a node that is ready", SOON, || {
        let asked = lb::run(&["health", "--admin", &url]);
        assert!(asked.code == Some(0) || asked.stderr.starts_with("lb: not ready: "), "{asked:?}");
        asked.code == Some(0)
    });
    assert_eq!(node.metric("lb_ready"), 1.0);
    let lonely = Lb::start(&["--role", "ingest", "--reactor-url", "http://127.0.0.1:1"]);
    let asked = lb::run(&["health", "--admin", &format!("http://{}", lonely.admin())]);
    assert!(asked.code == Some(1) && asked.stderr.contains("not ready: reactor: no reactor"), "{asked:?}");
    assert_eq!(lonely.metric("lb_ready"), 0.0);
    node.stop(libc::SIGTERM);
    let gone = lb::run(&["health", "--admin", &url]);
    assert!(gone.code == Some(1) && gone.stderr.contains(&url), "{gone:?}");
    assert_usage_error(&["health", "--admin", "nowhere"], &["--admin"]);
}

#[test]
fn a_flag_for_another_role_is_refused_and_a_variable_is_not() {
    assert_usage_error(
        &["--role", "reactor", "--check", "--rtmp-port", "1936"],
        &["--rtmp-port", "ingest or playback"],
    );
    assert_usage_error(&["--role", "playback", "--check", "--store", "memory"], &["--store", "reactor"]);
    let shared = [("LB_STORE", "memory"), ("LB_ADVERTISE", "a.example"), ("LB_CONFIG", "/nonexistent")];
    let checked = lb::run_with(&["--role", "reactor", "--check"], &shared);
    assert_eq!((checked.code, checked.stderr.as_str()), (Some(0), ""), "{checked:?}");
}

#[test]
fn a_hangup_ends_nothing() {
    let node = Lb::start(&["--role", "all"]);
    let publisher = Publisher::start(node.rtmp(), "ingest", "x", Media::default());
    publisher.wait_for_keyframe();
    for signal in [libc::SIGUSR1, libc::SIGUSR2, libc::SIGHUP] {
        // SAFETY: a system call without pointers, for a child that runs.
        assert_eq!(unsafe { libc::kill(node.pid() as i32, signal) }, 0);
    }
    wait_for("the word about it", SOON, || node.log().contains("the configuration was read again"));
    let sent = publisher.sent().frames;
    wait_for("the stream to go on", SOON, || publisher.sent().frames > sent + 5);
}
