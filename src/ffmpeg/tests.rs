//! Pulls with real processes: the installed ffmpeg, and scripts that behave badly in its place.

use super::{Location, Puller, Settings};
use crate::media::{Content, Packet, PacketKind, flv};
use crate::relay::{Attachment, Feeds, Outlet, PullEvent};
use crate::telemetry::{Loss, Metrics};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::sync::mpsc;

/// Long enough for a loaded machine; a test that takes longer hangs, and fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// A directory with an executable script called `ffmpeg`.
fn fake_ffmpeg(script: &str) -> (TempDir, Settings) {
    let dir = tempfile::tempdir().unwrap();
    let (text, ffmpeg) = (dir.path().join("text"), dir.path().join("ffmpeg"));
    std::fs::write(&text, format!("#!/bin/sh\ncd '{}'\n{script}\n", dir.path().display())).unwrap();
    // Written by another process: a file that this one holds open for writing cannot be executed, and a child that is
    // started by another test at this moment would hold it open as well.
    let installed = Command::new("install").args(["-m", "755"]).arg(text).arg(&ffmpeg).status().unwrap();
    assert!(installed.success());
    let settings = Settings {
        ffmpeg,
        backoff_min: Duration::from_millis(20),
        backoff_max: Duration::from_millis(40),
        ..Settings::default()
    };
    (dir, settings)
}

/// A film of two seconds, H.264 with B-frames and AAC, made by the installed ffmpeg.
fn film(dir: &Path) -> PathBuf {
    let path = dir.join("film.flv");
    let made = Command::new("ffmpeg")
        .args(["-nostdin", "-loglevel", "error", "-f", "lavfi", "-i", "testsrc2=size=160x120:rate=25"])
        .args([
            "-f",
            "lavfi",
            "-i",
            "sine=sample_rate=44100",
            "-t",
            "2",
            "-c:v",
            "libx264",
            "-preset",
            "veryfast",
        ])
        .args(["-pix_fmt", "yuv420p", "-g", "25", "-bf", "2", "-c:a", "aac", "-f", "flv"])
        .arg(&path)
        .status()
        .expect("these tests need ffmpeg: apt-get install ffmpeg");
    assert!(made.success());
    path
}

fn location(path: &Path) -> Location {
    Location::parse(&format!("file:{}", path.display())).unwrap()
}

/// Starts a pull whose feeds nobody else has.
fn start(settings: Settings, location: Location) -> (Puller, mpsc::Receiver<PullEvent>) {
    let metrics = Arc::new(Metrics::new().unwrap());
    Puller::start(settings, location, Feeds::new(metrics.clone()), metrics)
}

async fn next(events: &mut mpsc::Receiver<PullEvent>) -> PullEvent {
    tokio::time::timeout(PATIENCE, events.recv()).await.expect("no event").expect("the pull goes on")
}

async fn next_end(events: &mut mpsc::Receiver<PullEvent>) -> (String, Duration) {
    loop {
        if let PullEvent::Ended { reason, retry_in } = next(events).await {
            return (reason, retry_in);
        }
    }
}

async fn next_start(events: &mut mpsc::Receiver<PullEvent>) {
    while !matches!(next(events).await, PullEvent::Began(_)) {}
}

/// Keeps what a feed brings.
#[derive(Clone, Debug, Default)]
struct Collected(Arc<Mutex<Vec<Packet>>>);

impl Outlet for Collected {
    fn push(&mut self, packets: &[Packet]) {
        self.0.lock().unwrap().extend_from_slice(packets);
    }
}

impl Collected {
    /// Takes the media of the next run.
    async fn attach(&self, events: &mut mpsc::Receiver<PullEvent>) -> Attachment {
        match next(events).await {
            PullEvent::Began(feed) => feed.attach(Box::new(self.clone())),
            other => panic!("{other:?}"),
        }
    }

    fn got(&self) -> Vec<Packet> {
        self.0.lock().unwrap().clone()
    }
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "still not so: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The process ids that scripts wrote, one a line, into a file of their directory.
fn pids(dir: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(dir.join("pids")).unwrap_or_default();
    text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).map(str::to_owned).collect()
}

/// A zombie counts as gone if its parent is: not everybody's init reaps.
fn is_gone(pid: &str, zombie_is_gone: bool) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return true;
    };
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest.starts_with(['Z', 'X']));
    zombie_is_gone && state.unwrap_or(true)
}

/// The children of this process that have `text` in their arguments.
fn children_with(text: &str) -> Vec<String> {
    let parent = std::process::id().to_string();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|pid| {
            let read = |file| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let (stat, cmdline) = (read("stat"), read("cmdline"));
            let stat = String::from_utf8_lossy(&stat).into_owned();
            let ours =
                stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.split(' ').nth(1) == Some(&*parent));
            ours && String::from_utf8_lossy(&cmdline).contains(text)
        })
        .collect()
}

fn kill_9(pid: &str) {
    assert!(Command::new("kill").args(["-9", pid]).status().unwrap().success());
}

fn media(packets: &[Packet]) -> Vec<Packet> {
    packets.iter().filter(|packet| !matches!(packet.kind, PacketKind::Data { .. })).cloned().collect()
}

#[tokio::test]
async fn every_frame_of_a_real_file_comes_through_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let film = film(dir.path());
    let bytes = std::fs::read(&film).unwrap();
    let (mut reader, mut input, mut expected) = (flv::Reader::new(flv::TAG_SIZE_MAX), &bytes[..], Vec::new());
    while let Some(packet) = reader.read(&mut input).unwrap() {
        expected.push(packet);
    }

    let (puller, mut events) = start(Settings::default(), location(&film));
    let collected = Collected::default();
    let _attached = collected.attach(&mut events).await;
    let (reason, _) = next_end(&mut events).await;
    assert_eq!(reason, "ffmpeg ended (exit status: 0)");
    puller.stop().await;
    let pulled = collected.got();
    assert_eq!(pulled[0].kind, PacketKind::Data { metadata: true });
    let kinds: HashSet<_> = pulled.iter().map(|packet| packet.kind).collect();
    assert!(kinds.contains(&PacketKind::Video { content: Content::Frame, keyframe: true }));
    assert!(kinds.contains(&PacketKind::Video { content: Content::SequenceHeader, keyframe: false }));
    assert!(kinds.contains(&PacketKind::Audio { content: Content::SequenceHeader }));
    assert_eq!(media(&pulled), media(&expected));
}

#[tokio::test]
async fn a_killed_ffmpeg_is_started_again() {
    let dir = tempfile::tempdir().unwrap();
    let film = film(dir.path());
    let (puller, mut events) = start(Settings::default(), location(&film));
    next_start(&mut events).await;
    let first = children_with(&film.display().to_string());
    assert_eq!(first.len(), 1);
    kill_9(&first[0]);
    let (reason, retry_in) = next_end(&mut events).await;
    assert_eq!(reason, "ffmpeg ended (signal: 9 (SIGKILL))");
    assert!((250..=500).contains(&retry_in.as_millis()), "{retry_in:?}");
    next_start(&mut events).await;
    let second = children_with(&film.display().to_string());
    assert!(second.len() == 1 && second != first);
    puller.stop().await;
    assert!(is_gone(&second[0], false), "reaped");
}

#[tokio::test]
async fn an_ffmpeg_that_hangs_is_killed_and_started_again() {
    let (dir, settings) = fake_ffmpeg("echo $$ >>pids; exec sleep 1000");
    let stall = Duration::from_millis(300);
    let (puller, mut events) = start(Settings { stall, ..settings }, Location::parse("x").unwrap());
    let (reason, _) = next_end(&mut events).await;
    assert_eq!(reason, "ffmpeg wrote nothing for 300ms and was killed");
    let first = pids(dir.path());
    assert!(is_gone(&first[0], false), "reaped");
    until("it runs again", || pids(dir.path()).len() == 2).await;
    drop(puller);
}

#[tokio::test]
async fn a_missing_ffmpeg_is_named_and_asked_for_no_faster_than_the_backoff() {
    let settings = Settings {
        ffmpeg: "/nowhere/ffmpeg".into(),
        backoff_min: Duration::from_millis(50),
        ..Settings::default()
    };
    let (_puller, mut events) = start(settings, Location::parse("x").unwrap());
    let mut since = Instant::now();
    for attempt in 0..3 {
        let (reason, retry_in) = next_end(&mut events).await;
        let expected = "ffmpeg not found at '/nowhere/ffmpeg': install it or set --ffmpeg-path";
        assert_eq!(reason, expected);
        let nominal = 50 << attempt;
        assert!((nominal..=2 * nominal).contains(&retry_in.as_millis()), "{attempt}: {retry_in:?}");
        if attempt > 0 {
            assert!(since.elapsed() >= Duration::from_millis(50 << (attempt - 1)));
        }
        since = Instant::now();
    }
}

#[tokio::test]
async fn a_dropped_pull_leaves_no_process_of_its_group() {
    let (dir, settings) = fake_ffmpeg("sleep 1000 & echo $$ >>pids; echo $! >>pids; wait");
    let (puller, events) = start(settings.clone(), Location::parse("x").unwrap());
    until("both run", || pids(dir.path()).len() == 2).await;
    let dropped = Instant::now();
    drop(puller);
    // The script is our child and must be reaped; its own child belongs to init by now.
    let first = pids(dir.path());
    until("both are gone", || is_gone(&first[0], false) && is_gone(&first[1], true)).await;
    assert!(dropped.elapsed() < Duration::from_millis(500), "{:?}", dropped.elapsed());
    drop(events);

    let (puller, events) = start(settings, Location::parse("x").unwrap());
    until("both run", || pids(dir.path()).len() == 4).await;
    let dropped = Instant::now();
    drop(events);
    let second = pids(dir.path());
    until("both are gone", || is_gone(&second[2], false) && is_gone(&second[3], true)).await;
    assert!(dropped.elapsed() < Duration::from_millis(500), "{:?}", dropped.elapsed());
    puller.stop().await;
}

#[tokio::test]
async fn what_ffmpeg_starts_does_not_outlive_it() {
    let (dir, settings) = fake_ffmpeg("sleep 1000 >/dev/null 2>&1 & echo $! >>pids; exit 3");
    let (puller, mut events) = start(settings, Location::parse("x").unwrap());
    let (reason, _) = next_end(&mut events).await;
    let pid = &pids(dir.path())[0];
    assert_eq!(reason, "ffmpeg ended (exit status: 3)");
    until("its child is gone", || is_gone(pid, true)).await;
    puller.stop().await;
}

#[tokio::test]
async fn media_that_nobody_takes_is_counted_and_does_not_hinder_a_stop() {
    let mut stream = Vec::new();
    flv::write_header(&mut stream, false, true);
    let mut tag = Vec::new();
    assert!(flv::write_tag(&mut tag, &Packet::video(0, vec![0x27; 8 * 1024].into())));
    let (dir, settings) =
        fake_ffmpeg("echo $$ >>pids; cat header; n=0; while cat tag; do n=$((n+1)); echo $n >count; done");
    std::fs::write(dir.path().join("header"), stream).unwrap();
    std::fs::write(dir.path().join("tag"), tag).unwrap();
    let metrics = Arc::new(Metrics::new().unwrap());
    let feeds = Feeds::new(metrics.clone());
    // Nobody listens to the events either.
    let (puller, _events) = Puller::start(settings, Location::parse("x").unwrap(), feeds, metrics.clone());
    let count = || std::fs::read_to_string(dir.path().join("count")).unwrap_or_default();
    until("ffmpeg goes on", || count().trim().parse::<u64>().is_ok_and(|count| count > 300)).await;
    until("the loss is counted", || metrics.lost_total(Loss::NoOutlet) > 250).await;
    let stopped = Instant::now();
    puller.stop().await;
    assert!(stopped.elapsed() < Duration::from_millis(500));
    assert!(is_gone(&pids(dir.path())[0], false), "reaped");
}

#[tokio::test]
async fn the_backoff_grows_until_a_run_was_healthy() {
    let (dir, settings) = fake_ffmpeg("cat stream");
    let (backoff_min, backoff_max) = (Duration::from_millis(10), Duration::from_millis(80));
    let mut stream = Vec::new();
    flv::write_header(&mut stream, false, true);
    assert!(flv::write_tag(&mut stream, &Packet::video(0, vec![0x27].into())));
    std::fs::write(dir.path().join("stream"), stream).unwrap();
    for (healthy, nominal) in [(Duration::ZERO, [10, 10, 10, 10, 10]), (Duration::MAX, [10, 20, 40, 40, 40])]
    {
        let settings = Settings { backoff_min, backoff_max, healthy, ..settings.clone() };
        let (puller, mut events) = start(settings, Location::parse("x").unwrap());
        for nominal in nominal {
            let (_, retry_in) = next_end(&mut events).await;
            assert!((nominal..=2 * nominal).contains(&retry_in.as_millis()), "{nominal}: {retry_in:?}");
        }
        puller.stop().await;
    }
}

#[tokio::test]
async fn what_is_not_flv_ends_the_run() {
    let (_dir, settings) = fake_ffmpeg("echo 'this is not FLV'; exec sleep 1000");
    let (puller, mut events) = start(settings, Location::parse("x").unwrap());
    let (reason, _) = next_end(&mut events).await;
    assert_eq!(reason, format!("ffmpeg was killed for what it wrote: {}", flv::Error::Header));
    puller.stop().await;
}

#[tokio::test]
async fn what_ffmpeg_says_is_logged_without_secrets() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    // With one subscriber alone tracing believes the thread that comes to a log line first, which may be that of another
    // test, without a subscriber, and leaves the line out for good. With two it asks all of them, and again from here on.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());

    let (_dir, settings) =
        fake_ffmpeg("echo 'rtmp://me:secret@h/a/x?token=secret: no such stream' >&2; exit 1");
    let (puller, mut events) =
        start(settings, Location::parse("rtmp://me:secret@h/a/x?token=secret").unwrap());
    let (reason, _) = next_end(&mut events).await;
    puller.stop().await;
    let shown = "rtmp://h/a/x?… no such stream";
    assert_eq!(reason, format!("ffmpeg ended (exit status: 1): {shown}"));
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains(&format!("ffmpeg says line=\"{shown}\"")), "{text}");
    assert!(text.contains("location=rtmp://h/a/x?…"), "{text}");
    assert!(!text.contains("secret"), "{text}");
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Names the script that the process which is to be killed shall pull with.
const DOOMED: &str = "LB_TEST_DOOMED_FFMPEG";

#[test]
fn no_ffmpeg_outlives_a_kill_9_of_its_parent() {
    let (dir, settings) = fake_ffmpeg("echo $$ >>pids; exec sleep 1000");
    let mut doomed = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "ffmpeg::tests::doomed_process"])
        .env(DOOMED, &settings.ffmpeg)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        until("ffmpeg runs", || pids(dir.path()).len() == 1).await;
        let pid = &pids(dir.path())[0];
        assert!(!is_gone(pid, true));
        doomed.kill().unwrap();
        until("ffmpeg is gone", || is_gone(pid, true)).await;
    });
    doomed.wait().unwrap();
}

/// Does nothing, unless it is run by the test above.
#[test]
fn doomed_process() {
    let Some(ffmpeg) = std::env::var_os(DOOMED) else {
        return;
    };
    let settings = Settings { ffmpeg: ffmpeg.into(), ..Settings::default() };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let (_puller, mut events) = start(settings, Location::parse("x").unwrap());
        while events.recv().await.is_some() {}
    });
}

#[tokio::test]
async fn a_process_survives_the_thread_that_asked_for_it() {
    let runtime = tokio::runtime::Handle::current();
    let asked = std::thread::spawn(move || {
        let mut command = tokio::process::Command::new("sleep");
        command.arg("1000");
        runtime.block_on(super::spawner::spawn(command)).unwrap()
    });
    let mut child = asked.join().unwrap();
    let ended = tokio::time::timeout(Duration::from_millis(200), child.wait()).await;
    assert!(ended.is_err(), "{ended:?}");
    child.kill().await.unwrap();
}
