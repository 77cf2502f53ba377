//! The reactor's page in a real browser: what it shows, how fast it follows, that everybody can use it, and that the picture plays.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests may panic

mod common;

use common::ffmpeg::{self, Clip};
use common::http;
use common::lb::Lb;
use common::process;
use common::publisher::{Media, Publisher};
use common::{SOON, wait_for};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

/// A start of Chromium on a machine with other work.
const START: Duration = Duration::from_secs(60);

/// Chromium with one page, driven through `tests/page/browser.mjs`. It ends when this is dropped.
struct Browser {
    input: Option<ChildStdin>,
    answers: Receiver<String>,
    _process: process::Peer,
}

impl Browser {
    #[track_caller]
    fn start() -> Browser {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let modules = root.join("src/web/page/node_modules");
        assert!(modules.join("puppeteer-core").exists(), "run scripts/setup test first");
        let mut command = Command::new("node");
        command.arg(root.join("tests/page/browser.mjs")).arg(modules).arg(chromium());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = process::spawn_tool(command);
        let (input, output) = (child.stdin.take(), child.stdout.take().unwrap());
        let (sender, answers) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let browser = Browser { input, answers, _process: process::Peer::new(child) };
        let ready = browser.answers.recv_timeout(START).expect("the browser starts");
        assert_eq!(ready, r#"{"ready":true}"#);
        browser
    }

    #[track_caller]
    fn run(&mut self, command: Value) -> Value {
        writeln!(self.input.as_mut().unwrap(), "{command}").expect("the browser runs");
        let answer = self.answers.recv_timeout(START).unwrap_or_else(|_| panic!("no answer to {command}"));
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert!(answer.get("error").is_none(), "{command}: {}", answer["error"].as_str().unwrap_or_default());
        answer["value"].clone()
    }

    #[track_caller]
    fn open(&mut self, url: &str) {
        self.run(json!({ "open": url }));
    }

    /// Waits until an expression is true in the page.
    #[track_caller]
    fn wait(&mut self, expression: &str) -> Value {
        self.run(json!({ "wait": expression }))
    }

    #[track_caller]
    fn eval(&mut self, expression: &str) -> Value {
        self.run(json!({ "eval": expression }))
    }

    #[track_caller]
    fn shot(&mut self, name: &str) {
        // The pictures of the documentation are taken here when they are asked for; else only that they can be.
        let folder = match std::env::var_os("UPDATE_SCREENSHOTS") {
            Some(_) => Path::new(env!("CARGO_MANIFEST_DIR")).join("docs"),
            None => PathBuf::from(env!("CARGO_TARGET_TMPDIR")),
        };
        let file = folder.join(name);
        self.run(json!({ "shot": file }));
        assert!(std::fs::metadata(&file).unwrap().len() > 10_000);
    }

    /// Checks that axe-core finds nothing serious, that nothing failed, and that nothing was fetched from elsewhere.
    #[track_caller]
    fn assert_sound(&mut self) {
        assert_eq!(self.run(json!({ "audit": true })), json!([]));
        assert_eq!(self.run(json!({ "errors": true })), json!([]));
        assert_eq!(self.run(json!({ "hosts": true })), json!(["127.0.0.1"]));
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It closes its browser at the end of its input.
        self.input.take();
        while self.answers.recv_timeout(SOON).is_ok() {}
    }
}

fn chromium() -> &'static str {
    let known = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
    known
        .into_iter()
        .find(|path| Path::new(path).exists())
        .expect("Chromium is installed: run scripts/setup test")
}

fn cluster() -> (Lb, [Lb; 2], Lb) {
    let reactor = Lb::start(&["--role", "reactor"]);
    let url = reactor.reactor_url();
    let node = |role, id| {
        let report = ["--report-interval", "500ms", "--heartbeat", "1s"];
        Lb::start(&[&["--role", role, "--node-id", id, "--reactor-url", &url], &report[..]].concat())
    };
    let ingest = [node("ingest", "ingest-1"), node("ingest", "ingest-2")];
    let playback = node("playback", "playback-1");
    (reactor, ingest, playback)
}

fn is_known(reactor: SocketAddr, name: &str) -> bool {
    http::get(reactor, &format!("/streams/{name}")).status == 200
}

#[test]
fn the_page_shows_the_cluster_and_follows_it() {
    let (reactor, [ingest, _other], playback) = cluster();
    let mut browser = Browser::start();
    browser.open(&format!("{}/", reactor.reactor_url()));
    browser.wait("document.querySelectorAll('#nodes tbody tr').length === 3");
    browser.wait("document.getElementById('connection').textContent === 'live'");
    assert_eq!(browser.eval("document.getElementById('no-streams').textContent"), "Nothing is published.");

    let row = "document.querySelector('#streams tr[data-name=\"team/x\"]')";
    let begun = Instant::now();
    let publisher = Publisher::start(ingest.rtmp(), "ingest", "team/x", Media::default());
    browser.wait(row);
    println!("a publish is on the page after {:?}", begun.elapsed());
    let watching = ffmpeg::watch(&playback.http_url("live", "team/x"));
    browser.wait(&format!("{row}.cells[2].textContent === '1'"));
    browser.wait(&format!("/^2[3-7]/.test({row}.cells[4].textContent)"));
    assert_eq!(browser.eval(&format!("{row}.cells[1].textContent")), "ingest-1");
    assert_eq!(browser.eval(&format!("{row}.cells[7].textContent")), "H.264, AAC");
    browser.wait("document.querySelectorAll('#map .pull').length === 1");
    browser.assert_sound();
    browser.run(json!({ "scheme": "dark" }));
    browser.open(&format!("{}/?dark", reactor.reactor_url()));
    browser.wait("document.documentElement.dataset.theme === 'dark'");
    browser.wait(row);
    browser.assert_sound();

    // By keyboard alone: search, to the stream, and back.
    browser.run(json!({ "press": "/" }));
    browser.run(json!({ "type": "nothing so", "into": ":focus" }));
    browser.wait("document.querySelectorAll('#streams tbody tr').length === 0");
    browser.eval("document.getElementById('search').value = ''; document.getElementById('search').dispatchEvent(new Event('input'))");
    browser.wait(row);
    browser.eval(&format!("{row}.querySelector('a').focus()"));
    browser.run(json!({ "press": "Enter" }));
    browser.wait("!document.getElementById('stream').hidden");
    browser.run(json!({ "press": "Escape" }));
    browser.wait("document.getElementById('stream').hidden");

    drop(watching);
    let begun = Instant::now();
    publisher.leave();
    browser.wait(&format!("!{row}"));
    println!("its end is on the page after {:?}", begun.elapsed());
}

#[test]
fn the_picture_plays_and_goes_on_when_the_publisher_moves() {
    let (reactor, [first, second], _playback) = cluster();
    let alpha = ffmpeg::publish(Clip::Alpha, &first.rtmp_url("ingest", "show"));
    wait_for("the registration", SOON, || is_known(reactor.reactor(), "show"));
    let mut browser = Browser::start();
    browser.open(&format!("{}/#/stream/show", reactor.reactor_url()));
    let frames = FRAMES;
    browser.wait(&format!("{frames} > 30 && document.getElementById('video').currentTime > 1"));
    assert_eq!(browser.eval("document.getElementById('video').videoWidth"), 320);
    browser.wait("document.getElementById('timeline').textContent.includes('first picture after')");
    browser.wait("document.getElementById('facts').textContent.includes('320×180')");
    browser.shot("page-stream.png");
    browser.assert_sound();

    let _beta = ffmpeg::publish(Clip::Beta, &second.rtmp_url("ingest", "show"));
    browser.wait("document.getElementById('video').videoWidth === 256");
    let before = browser.eval(frames).as_u64().unwrap();
    browser.wait(&format!("{frames} > {before} + 30"));
    browser.wait(
        "document.getElementById('timeline').textContent.includes('switched: viewers saw nothing new for')",
    );
    browser.eval("location.hash = '#/'");
    browser.wait("document.getElementById('switches').textContent.includes('show switched')");
    browser.shot("page-overview.png");
    drop(alpha);
}

#[test]
fn a_thousand_streams_are_shown_and_stay_fluent() {
    let reactor = Lb::start(&["--role", "reactor"]);
    let put = |path: &str, method: &str, body: &Value| {
        let answer = http::try_call(reactor.reactor(), method, path, &body.to_string()).unwrap();
        assert!(answer.status < 300, "{}: {}", answer.status, answer.body);
    };
    let name = |number: usize| format!("stream-{number:04}");
    let session = |number: usize| format!("{number:032x}");
    let mut since = None::<String>;
    for part in 0..2 {
        let streams: Vec<Value> = (part * 500..part * 500 + 500)
            .map(|number| json!({ "stream_name": name(number), "session": session(number) }))
            .collect();
        let beat = json!({
            "interval_ms": 60_000, "instance": session(9999), "since": since, "published": 1000, "rtmp_port": 1935,
            "roles": ["ingest"], "streams": streams, "complete": part == 1, "capacity": 10_000,
        });
        let answer = http::try_call(reactor.reactor(), "PUT", "/nodes/big", &beat.to_string()).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
        let reply: Value = serde_json::from_str(&answer.body).unwrap();
        since = reply["since"].as_str().map(str::to_owned);
    }
    let report = |round: u64| {
        for part in 0..2 {
            let streams: Vec<Value> = (part * 500..part * 500 + 500)
                .map(|number| {
                    json!({
                        "stream_name": name(number), "published": true, "live": true, "viewers": 1,
                        "bits_per_second": (round + 1) * 1_100_000, "frames_per_second": 25.0,
                    })
                })
                .collect();
            put("/nodes/big/report", "POST", &json!({ "interval_ms": 60_000, "streams": streams }));
        }
    };
    report(0);
    let mut browser = Browser::start();
    browser.open(&format!("{}/", reactor.reactor_url()));
    browser.wait("document.querySelectorAll('#streams tbody tr').length === 1000");
    browser.eval(
        "globalThis.longest = 0; new PerformanceObserver((list) => { \
         for (const entry of list.getEntries()) globalThis.longest = Math.max(globalThis.longest, entry.duration); \
         }).observe({ type: 'longtask' })",
    );
    for round in 1..=5 {
        let begun = Instant::now();
        report(round);
        let shown = format!("{:.1} Mb/s", (round + 1) as f64 * 1.1);
        browser.wait(&format!(
            "document.querySelector('#streams tbody tr:last-child').cells[3].textContent === '{shown}'"
        ));
        println!("a report on 1,000 streams is taken in after {:?}", begun.elapsed());
    }
    println!("the longest task of the page took {} ms", browser.eval("globalThis.longest"));
    browser.run(json!({ "type": "0999", "into": "#search" }));
    browser.wait("document.querySelectorAll('#streams tbody tr').length === 1");
    browser.assert_sound();
}

/// A process that says on standard output where to look. It is interrupted when this is dropped, and must end cleanly.
struct Guided {
    child: Child,
    said: Vec<String>,
}

impl Guided {
    /// Starts it, and reads to the line that names the page.
    #[track_caller]
    fn start(args: &[&str]) -> Guided {
        let mut command = common::lb::command(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = process::spawn_tool(command);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut said = Vec::new();
        for line in lines {
            said.push(line);
            if said.last().unwrap().trim_start().starts_with("page ") {
                break;
            }
        }
        Guided { child, said }
    }

    /// What it says after a word.
    #[track_caller]
    fn says(&self, word: &str) -> String {
        let line = self.said.iter().find_map(|line| line.trim_start().strip_prefix(word));
        let line = line.unwrap_or_else(|| panic!("no '{word}' in {:?}", self.said));
        line.split_whitespace().next().unwrap().to_owned()
    }
}

impl Drop for Guided {
    fn drop(&mut self) {
        process::signal(&self.child, libc::SIGINT);
        let status = process::wait_for_exit(&mut self.child, common::lb::STOP_DEADLINE);
        self.child.kill().ok();
        self.child.wait().ok();
        assert!(std::thread::panicking() || status.is_some_and(|status| status.success()), "{status:?}");
    }
}

const FRAMES: &str = "document.getElementById('video').getVideoPlaybackQuality().totalVideoFrames";

#[test]
fn the_demo_needs_nothing_and_shows_two_pictures() {
    let demo = Guided::start(&["demo"]);
    let mut browser = Browser::start();
    browser.open(&demo.says("page "));
    browser.wait("document.querySelectorAll('#streams tbody tr').length === 2");
    browser.eval("document.querySelector('#streams tbody tr a').click()");
    browser.wait(&format!("{FRAMES} > 20"));
    assert_eq!(browser.eval("document.getElementById('video').videoWidth"), 480);
    browser.eval("location.hash = '#/stream/demo%2Ftest'");
    browser.wait("document.getElementById('stream-title').textContent === 'demo/test'");
    browser.wait(&format!("{FRAMES} > 20"));
    browser.shot("page-demo.png");
}

#[test]
fn a_stranger_sees_their_own_picture_by_what_the_program_says() {
    let cluster = Guided::start(&[
        "--role",
        "all",
        "--rtmp-port",
        "0",
        "--reactor-listen",
        "127.0.0.1:0",
        "--http-listen",
        "127.0.0.1:0",
        "--admin-listen",
        "127.0.0.1:0",
    ]);
    // The name of this host need not lead anywhere where tests run.
    let server = cluster.says("publish ");
    let port = server.split(['/', ':']).find_map(|part| part.parse::<u16>().ok()).unwrap();
    let _publisher = ffmpeg::publish(Clip::Alpha, &format!("rtmp://127.0.0.1:{port}/ingest/mine"));
    let mut browser = Browser::start();
    browser.open(&cluster.says("page "));
    browser.wait("document.querySelector('#streams tr[data-name=mine]')");
    browser.eval("document.querySelector('#streams tr[data-name=mine] a').click()");
    browser.wait(&format!("{FRAMES} > 20"));
}

#[test]
fn a_reactor_with_a_token_asks_for_it() {
    let reactor = Lb::start(&["--role", "reactor", "--reactor-token", "s3cret-of-this-test"]);
    let mut browser = Browser::start();
    browser.open(&format!("{}/", reactor.reactor_url()));
    browser.wait("document.getElementById('token-dialog').open");
    browser.run(json!({ "type": "wrong", "into": "#token" }));
    browser.run(json!({ "press": "Enter" }));
    browser.wait(
        "document.getElementById('token-dialog').open && document.getElementById('token').value === ''",
    );
    browser.run(json!({ "type": "s3cret-of-this-test", "into": "#token" }));
    browser.run(json!({ "press": "Enter" }));
    browser.wait("document.getElementById('connection').textContent === 'live'");
}
