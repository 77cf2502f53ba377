//! Tables for people, and a verdict on each promise.

use super::suite::Results;

/// lb's ring keeps this many seconds (`relay::Settings::lag`).
const RING_SECONDS: f64 = 4.0;

/// Bytes a second of the clips, as they come.
const RATE_2500: f64 = 320e3;
const RATE_500: f64 = 65e3;

/// What a flood may take of a node: a ring of 32 MiB in the memory of each of two worker threads, a read of 22,000 messages in
/// all its forms, and all else that grows (tests/faults/flood.rs says more).
const FLOOD_MIB: f64 = 96.0;

/// One promise.
pub struct Row {
    promise: &'static str,
    measured: Option<f64>,
    target: String,
    /// Nothing: it was not measured.
    pub kept: Option<bool>,
}

impl Row {
    fn at_most(promise: &'static str, measured: Option<f64>, target: f64) -> Row {
        let kept = measured.map(|measured| measured <= target);
        Row { promise, measured, target: format!("≤ {target:.3}"), kept }
    }

    /// A figure to read others by.
    fn plain(promise: &'static str, measured: Option<f64>) -> Row {
        Row { promise, measured, target: "–".to_owned(), kept: None }
    }
}

/// What the results say about each line of "it is done when".
pub fn verdicts(results: &Results) -> Vec<Row> {
    let get = |name: &str, pointer: &str| results.get(name, pointer);
    let ratio = |a: &str, b: &str, pointer: &str| Some(get(a, pointer)? / get(b, pointer)?);
    let less = |a: Option<f64>, b: Option<f64>| Some(a? - b?);
    let (lb, frame, nginx) = ("1000 lb", "1000 floor frame", "1000 nginx");
    let each = |name: &str, viewers: f64| {
        Some((get(name, "/rss_kib/joined")? - get(name, "/rss_kib/before")?) / viewers)
    };
    let grown = |name: &str, of: &str| {
        let kib = |when: &str| get(name, &format!("/rss_kib/{of}{when}"));
        less(kib("peak"), kib("joined")).map(|kib| kib / 1024.0)
    };
    let share = |name: &str, streams: f64| Some(get(name, "/server_share")? / streams);
    let pulled = each("pull native", 100.0).map(|kib| kib - RATE_500 * RING_SECONDS / 1024.0);
    let nginx_video = |part: &str| get(nginx, &format!("/video_ms/{part}"));
    let delay = |part: &str| less(get(lb, &format!("/video_ms/{part}")), nginx_video(part));
    let late =
        |part: &str| less(get(lb, &format!("/audio_ms/{part}")), get(lb, &format!("/video_ms/{part}")));
    vec![
        Row::at_most("1 server CPU/GB, of floor audio-with-video", ratio(lb, frame, "/server_per_gb"), 1.15),
        Row::at_most("1 server+client CPU/GB, of that floor", ratio(lb, frame, "/both_per_gb"), 1.15),
        Row::at_most("1 server+client CPU/GB, of nginx-rtmp", ratio(lb, nginx, "/both_per_gb"), 0.65),
        Row::at_most("1 video latency p50 beyond nginx-rtmp, ms", delay("p50"), 2.0),
        Row::at_most("1 video latency p99 beyond nginx-rtmp, ms", delay("p99"), 2.0),
        Row::at_most("1 audio p99 later than video p99, ms", late("p99"), 33.4),
        Row::at_most(
            "1 100 ms: server CPU/GB, of floor 100 ms",
            ratio("1000 lb 100ms", "1000 floor 100ms", "/server_per_gb"),
            1.15,
        ),
        Row::at_most(
            "1 100 ms: server+client CPU/GB, of that floor",
            ratio("1000 lb 100ms", "1000 floor 100ms", "/both_per_gb"),
            1.15,
        ),
        Row::at_most("2 KiB a viewer, 1,000 at 300 kb/s", each("300k 1000 lb", 1000.0), 6.0),
        Row::at_most("2 KiB a viewer, 5,000 at 300 kb/s", each("300k 5000 lb", 5000.0), 6.0),
        Row::at_most("2 KiB a viewer, 1,000 idle", each("silent 1000 lb", 1000.0), 6.0),
        Row::at_most(
            "2 50 stalled viewers add, of a ring",
            less(get("stalled lb", "/rss_kib/peak"), get("stalled lb", "/rss_kib/joined"))
                .map(|kib| kib * 1024.0 / (RATE_2500 * RING_SECONDS)),
            1.0,
        ),
        Row::at_most("3 warm join p50, ms", get("joins lb", "/join_ms/p50"), 5.0),
        Row::at_most("3 warm join p99, ms", get("joins lb", "/join_ms/p99"), 25.0),
        Row::at_most("3 cold join, native pull, p50, ms", get("pull native", "/join_ms/p50"), 25.0),
        Row::at_most("3 cold join, native pull, worst, ms", get("pull native", "/join_ms/max"), 100.0),
        Row::at_most(
            "4 CPU/GB at 5,000 viewers, of 1,000",
            ratio("300k 5000 lb", "300k 1000 lb", "/server_per_gb"),
            1.0,
        ),
        Row::at_most(
            "4 100 streams x 5: server+client CPU/GB, of nginx-rtmp",
            ratio("100x5 lb", "100x5 nginx", "/both_per_gb"),
            0.55,
        ),
        Row::at_most(
            "4 100 streams x 5: server CPU/GB, of nginx-rtmp",
            ratio("100x5 lb", "100x5 nginx", "/server_per_gb"),
            0.75,
        ),
        Row::at_most("4 1,000 publishers x 1: share of the core", get("1000x1 lb", "/server_share"), 0.80),
        Row::at_most("4 1,000 publishers x 1: messages lost", get("1000x1 lb", "/check/lost"), 0.0),
        Row::plain(
            "  on two cores: the busiest thread's share of a core",
            get("1000x1 lb wide", "/threads/0"),
        ),
        Row::plain("  on two cores: the second one's", get("1000x1 lb wide", "/threads/1")),
        Row::at_most("4 connect-play-leave, ms of CPU", get("churn lb", "/churn/cpu_ms"), 0.15),
        Row::plain("  the same of the kernel alone, ms of CPU", get("churn floor", "/churn/cpu_ms")),
        Row::at_most("5 a pulled stream beyond its ring, KiB", pulled, 100.0),
        Row::at_most(
            "5 CPU of a native pull, of ffmpeg_pull",
            share("pull native", 100.0).zip(share("pull ffmpeg", 5.0)).map(|(a, b)| a / b),
            0.125,
        ),
        Row::plain("7 ten streams without a flood, video p99, ms", get("flood none lb", "/video_ms/p99")),
        Row::at_most("7 beside a flood of 2-byte messages, p99, ms", get("flood lb", "/video_ms/p99"), 20.0),
        Row::plain("7 pulled, without a flood, p99, ms", get("flood none pull lb", "/video_ms/p99")),
        Row::at_most("7 pulled, beside a pulled flood, p99, ms", get("flood pull lb", "/video_ms/p99"), 20.0),
        Row::at_most("7 MiB that the flood takes of the ingest node", grown("flood lb", ""), FLOOD_MIB),
        Row::at_most("7 the same where it is pulled", grown("flood pull lb", "origin_"), FLOOD_MIB),
        Row::at_most("7 MiB that it takes of the playback node", grown("flood pull lb", ""), FLOOD_MIB),
        Row::at_most(
            "8 viewers by TLS: server CPU/GB, of without",
            ratio("300 lb tls", "300 lb", "/server_per_gb"),
            1.5,
        ),
        Row::at_most(
            "9 viewers over HTTP: server CPU/GB, of by RTMP",
            ratio("300 pulled lb http", "300 pulled lb", "/server_per_gb"),
            1.05,
        ),
        Row::plain("9 first keyframe over HTTP, p50, ms", get("300 pulled lb http", "/join_ms/p50")),
        Row::plain("9 first keyframe by RTMP, p50, ms", get("300 pulled lb", "/join_ms/p50")),
        Row::at_most("6 messages lost", results.sum_of_lb("/check/lost"), 0.0),
        Row::at_most("6 messages reordered", results.sum_of_lb("/check/reordered"), 0.0),
        Row::at_most("6 messages altered", results.sum_of_lb("/check/altered"), 0.0),
    ]
}

/// Prints everything as Markdown tables.
pub fn print(results: &Results, rows: &[Row]) {
    println!(
        "| run | server CPU/GB | server + client | server's core | client's core | video p50 / p99 / worst ms | audio p50 / p99 ms | first keyframe p50 / p99 / worst ms | joined | closed | MiB before / joined / peak |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for name in results.names() {
        let show = |pointer: &str, digits: usize| {
            results.get(name, pointer).map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
        };
        let mib = |pointer: &str| {
            results.get(name, pointer).map_or_else(|| "–".to_owned(), |kib| format!("{:.1}", kib / 1024.0))
        };
        println!(
            "| {name} | {} | {} | {} | {} | {} / {} / {} | {} / {} | {} / {} / {} | {} of {} | {} | {} / {} / {} |",
            show("/server_per_gb", 2),
            show("/both_per_gb", 2),
            show("/server_share", 2),
            show("/client_share", 2),
            show("/video_ms/p50", 1),
            show("/video_ms/p99", 1),
            show("/video_ms/max", 1),
            show("/audio_ms/p50", 1),
            show("/audio_ms/p99", 1),
            show("/join_ms/p50", 1),
            show("/join_ms/p99", 1),
            show("/join_ms/max", 1),
            show("/joined", 0),
            show("/viewers", 0),
            show("/closed", 0),
            mib("/rss_kib/before"),
            mib("/rss_kib/joined"),
            mib("/rss_kib/peak"),
        );
    }
    println!("\n| promise | measured | target | kept |");
    println!("|---|---|---|---|");
    for row in rows {
        let measured = row.measured.map_or_else(|| "–".to_owned(), |value| format!("{value:.3}"));
        let kept = match row.kept {
            Some(true) => "yes",
            Some(false) => "**no**",
            None if row.measured.is_some() => "–",
            None => "not measured",
        };
        println!("| {} | {measured} | {} | {kept} |", row.promise, row.target);
    }
}
