//! Lookups.

use super::server::{Deed, Server, answer, self_signed};
use super::{HANG, count, metrics, moody, nowhere};
use lb::api::{PublisherLookup, WatcherLookup};
use lb::client::{Answer, BODY_MAX, CALL_DEADLINE, ClientMetrics, Http, Lookup};
use lb::ids::SessionId;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::{Instant, timeout};

const TEXT: &str =
    "workflow ingest_x {\n    ffmpeg_pull location=rtmp://10.0.0.1/pull_source/x stream_name=x\n}\n";

fn lookup(urls: &str) -> Lookup {
    lookup_with(urls, metrics().1)
}

/// Takes what looks like a workflow, or nothing.
pub fn lookup_with(urls: &str, metrics: ClientMetrics) -> Lookup {
    let validate = |text: &str| match text.is_empty() || text.starts_with("workflow") {
        true => Ok(()),
        false => Err("no workflow".to_owned()),
    };
    Lookup::new(Http::new().unwrap(), &urls.parse().unwrap(), validate, metrics)
}

pub fn watch(name: &str) -> WatcherLookup {
    WatcherLookup { stream_name: name.parse().unwrap(), accept: Vec::new(), node: None }
}

fn publish(name: &str, session: Option<SessionId>) -> PublisherLookup {
    PublisherLookup {
        stream_name: name.parse().unwrap(),
        session,
        node: None,
        origin: None,
        rtmp_port: None,
        rtmps_port: None,
        identity: None,
        query: None,
        peer: None,
    }
}

fn found(fresh: bool) -> Answer {
    let origin = Some("10.0.0.1".parse().unwrap());
    Answer::Found { text: TEXT.into(), epoch: Some(7), origin, session: None, fresh }
}

fn good() -> Deed {
    Deed::Reply(200, vec![("lb-epoch", "7".into()), ("lb-origin", "10.0.0.1".into())], TEXT.into())
}

fn is_unavailable(answer: &Answer, with: &str) -> bool {
    matches!(answer, Answer::Unavailable { reason } if reason.contains(with))
}

#[tokio::test]
async fn a_question_and_its_answer_are_those_of_the_contract() {
    let server = Server::start(|request| match request.line.as_str() {
        "POST /watcher_lookup HTTP/1.1" => good(),
        _ => answer(200, ""),
    })
    .await;
    let watchers = lookup(&format!("{}/watcher_lookup", server.url));
    assert_eq!(watchers.watcher(&watch("x"), false).await, found(true));
    let publishers = lookup(&format!("{}/publisher_lookup", server.url));
    let plain = Answer::Found { text: "".into(), epoch: None, origin: None, session: None, fresh: true };
    assert_eq!(publishers.publisher(&publish("x", None)).await, plain);
    let requests = server.requests();
    assert_eq!(requests[0].body, r#"{"stream_name":"x"}"#);
    assert_eq!(requests[1].line, "POST /publisher_lookup HTTP/1.1");
    assert_eq!(requests[0].header("content-type"), Some("application/json"));
    assert_eq!(requests[0].header("user-agent"), Some(concat!("lb/", env!("CARGO_PKG_VERSION"))));
    assert_eq!(requests[0].header("authorization"), None);
}

#[tokio::test]
async fn the_token_goes_to_the_reactor_and_not_where_it_redirects_to() {
    let other = Server::start(|_| good()).await;
    let elsewhere = format!("{}/elsewhere", other.url);
    let reactor =
        Server::start(move |_| Deed::Reply(307, vec![("location", elsewhere.clone())], String::new())).await;
    let http = Http::new().unwrap().with_token("s3cret").unwrap();
    let lookup = Lookup::new(http, &reactor.url.parse().unwrap(), |_| Ok(()), metrics().1);
    assert_eq!(lookup.watcher(&watch("x"), false).await, found(true));
    assert_eq!(reactor.requests()[0].header("authorization"), Some("Bearer s3cret"));
    assert_eq!(other.requests()[0].header("authorization"), None);
    assert_eq!(other.requests()[0].body, r#"{"stream_name":"x"}"#);
}

#[tokio::test]
async fn redirects_end_and_never_turn_a_question_into_another() {
    let loops = Server::start(|_| Deed::Reply(307, vec![("location", "/again".into())], String::new())).await;
    let answer = lookup(&loops.url).watcher(&watch("x"), false).await;
    assert!(is_unavailable(&answer, "307"), "{answer:?}");
    assert_eq!(loops.requests().len(), 1 + lb::client::REDIRECTS_MAX);
    let found = Server::start(|_| Deed::Reply(302, vec![("location", "/x".into())], String::new())).await;
    let answer = lookup(&found.url).watcher(&watch("x"), false).await;
    assert!(is_unavailable(&answer, "302"), "{answer:?}");
    assert_eq!(found.requests().len(), 1);
}

#[tokio::test]
async fn whatever_an_outage_looks_like_the_last_good_answer_is_given_again() {
    let (server, mood) = moody(good()).await;
    let lookup = lookup(&server.url);
    assert_eq!(lookup.watcher(&watch("x"), false).await, found(true));
    let huge = "x".repeat(BODY_MAX + 1);
    for (deed, reason) in [
        (answer(500, "oops"), "500"),
        (answer(503, r#"{"error":"warming up"}"#), "warming up"),
        (answer(401, ""), "401"),
        (answer(403, ""), "403"),
        (answer(400, ""), "400"),
        (answer(200, "<html>welcome"), "no workflow"),
        (Deed::Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n\xff\xff".to_vec()), "UTF-8"),
        (Deed::Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 200\r\n\r\nworkflow".to_vec()), "127.0.0.1"),
        (Deed::Raw(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()), "127.0.0.1"),
        (Deed::Raw(Vec::new()), "127.0.0.1"),
        (answer(200, &huge), "longer than"),
        (Deed::Raw(format!("HTTP/1.1 200 OK\r\n\r\n{huge}").into_bytes()), "longer than"),
    ] {
        mood(deed);
        let unknown = lookup.watcher(&watch("y"), false).await;
        assert!(is_unavailable(&unknown, reason), "{reason}: {unknown:?}");
        assert_eq!(lookup.watcher(&watch("x"), false).await, found(false), "{reason}");
    }
    mood(good());
    assert_eq!(lookup.watcher(&watch("x"), false).await, found(true));
}

#[tokio::test]
async fn a_reactor_that_hangs_or_drips_costs_its_deadline_and_the_next_one_answers() {
    let second = Server::start(|_| good()).await;
    for deed in [Deed::Hang, Deed::Drip(b"HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n".to_vec())] {
        let first = Server::start(move |_| deed.clone()).await;
        let lookup = lookup(&format!("{},{}", first.url, second.url));
        let started = Instant::now();
        assert_eq!(lookup.watcher(&watch("x"), false).await, found(true));
        let took = started.elapsed();
        assert!(took >= CALL_DEADLINE && took < CALL_DEADLINE + Duration::from_secs(2), "{took:?}");
        // From now on the one that failed stands behind.
        assert_eq!(lookup.watcher(&watch("x"), false).await, found(true));
        assert_eq!(first.requests().len(), 1);
    }
}

#[tokio::test]
async fn a_dead_reactor_is_passed_over_at_once() {
    let second = Server::start(|_| good()).await;
    let lookup = lookup(&format!("{},{}", nowhere().await, second.url));
    let started = Instant::now();
    assert_eq!(lookup.watcher(&watch("x"), false).await, found(true));
    assert!(started.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn a_404_of_the_first_reactor_that_answers_is_final_and_a_503_is_not() {
    let second = Server::start(|_| good()).await;
    let (first, mood) = moody(answer(503, "")).await;
    let urls = format!("{},{}", first.url, second.url);
    assert_eq!(lookup(&urls).watcher(&watch("x"), false).await, found(true));
    mood(answer(404, r#"{"error":"nobody publishes x"}"#));
    let reason = "nobody publishes x".into();
    assert_eq!(lookup(&urls).watcher(&watch("x"), false).await, Answer::NotFound { reason });
    mood(answer(409, ""));
    assert!(matches!(lookup(&urls).publisher(&publish("x", None)).await, Answer::Refused { .. }));
}

#[tokio::test]
async fn a_true_404_ends_what_was_known() {
    let (server, mood) = moody(good()).await;
    let lookup = lookup(&server.url);
    assert_eq!(lookup.watcher(&watch("x"), false).await, found(true));
    mood(answer(404, ""));
    assert!(matches!(lookup.watcher(&watch("x"), false).await, Answer::NotFound { .. }));
    mood(answer(500, ""));
    assert!(matches!(lookup.watcher(&watch("x"), true).await, Answer::Unavailable { .. }));
}

#[tokio::test]
async fn a_publisher_that_returns_in_an_outage_does_not_get_the_epoch_of_its_last_session() {
    let (server, mood) = moody(good()).await;
    let lookup = lookup(&server.url);
    let session = Some(SessionId::random());
    assert_eq!(lookup.publisher(&publish("x", session)).await, found(true));
    mood(answer(503, ""));
    assert_eq!(lookup.publisher(&publish("x", session)).await, found(false));
    let new = lookup.publisher(&publish("x", Some(SessionId::random()))).await;
    assert!(matches!(new, Answer::Found { epoch: None, fresh: false, .. }), "{new:?}");
}

#[tokio::test]
async fn a_reactor_that_restarts_under_a_kept_connection_is_asked_again() {
    let calls = AtomicUsize::new(0);
    let server = Server::start(move |_| match calls.fetch_add(1, Ordering::Relaxed) {
        // A connection that was fine breaks without an answer.
        1 => Deed::Raw(Vec::new()),
        _ => good(),
    })
    .await;
    let lookup = lookup(&server.url);
    assert_eq!(lookup.watcher(&watch("x"), false).await, found(true));
    assert_eq!(lookup.watcher(&watch("y"), false).await, found(true));
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn a_herd_on_an_unknown_name_is_one_request_a_second() {
    let server = Server::start(|_| answer(404, "")).await;
    let lookup = lookup(&server.url);
    for _ in 0..100 {
        assert!(matches!(lookup.watcher(&watch("x"), false).await, Answer::NotFound { .. }));
    }
    assert_eq!(server.requests().len(), 1);
    lookup.watcher(&watch("x"), true).await;
    assert_eq!(server.requests().len(), 2);
    let refreshed = Instant::now();
    let asked_again = async {
        while server.requests().len() == 2 {
            lookup.watcher(&watch("x"), false).await;
            tokio::task::yield_now().await;
        }
    };
    timeout(HANG, asked_again).await.unwrap();
    assert!(refreshed.elapsed() >= Duration::from_millis(900), "{:?}", refreshed.elapsed());
    assert_eq!(server.requests().len(), 3);
    lookup.publisher(&publish("x", None)).await;
    lookup.publisher(&publish("x", None)).await;
    assert_eq!(server.requests().len(), 5, "a publisher is always asked for");
}

#[tokio::test]
async fn who_asks_for_names_that_do_not_exist_holds_up_none_that_do() {
    // A reactor that takes its time for whatever it does not know.
    let server = Server::start(|request| match request.body.contains("\"known\"") {
        true => good(),
        false => Deed::Hang,
    })
    .await;
    let lookup = lookup(&server.url);
    assert_eq!(lookup.watcher(&watch("known"), false).await, found(true));
    let flood: Vec<_> = (0..200)
        .map(|n| {
            let lookup = lookup.clone();
            tokio::spawn(async move { lookup.watcher(&watch(&format!("made-up-{n}")), false).await })
        })
        .collect();
    server.received(49).await;
    let asked = Instant::now();
    assert_eq!(lookup.watcher(&watch("known"), true).await, found(true));
    assert!(asked.elapsed() < lb::client::CALL_DEADLINE / 2, "{:?}", asked.elapsed());
    flood.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn results_are_counted_and_recovery_is_told_once() {
    let (server, mood) = moody(answer(503, "")).await;
    let (registry, metrics) = metrics();
    let told = Arc::new(AtomicUsize::new(0));
    let hook = told.clone();
    let lookup = lookup_with(&server.url, metrics).on_recovery(move || {
        hook.fetch_add(1, Ordering::Relaxed);
    });
    lookup.watcher(&watch("x"), false).await;
    mood(good());
    lookup.watcher(&watch("x"), false).await;
    lookup.watcher(&watch("x"), false).await;
    assert_eq!(told.load(Ordering::Relaxed), 1);
    mood(answer(200, "<html>"));
    lookup.watcher(&watch("x"), false).await;
    mood(answer(404, ""));
    lookup.watcher(&watch("x"), false).await;
    mood(answer(409, ""));
    lookup.publisher(&publish("x", None)).await;
    assert_eq!(told.load(Ordering::Relaxed), 1, "an answer that cannot be used is no outage");
    for (result, times) in [("found", 2), ("stale", 1), ("unknown", 1), ("refused", 1), ("unavailable", 1)] {
        assert_eq!(count(&registry, "lb_lookups_total", result), times, "{result}");
    }
    assert_eq!(count(&registry, "lb_lookups_total", "publisher"), 1);
}

#[tokio::test]
async fn https_is_spoken_and_a_certificate_that_nobody_vouches_for_is_refused() {
    let port = self_signed();
    let answer = lookup(&format!("https://127.0.0.1:{port}")).watcher(&watch("x"), false).await;
    assert!(is_unavailable(&answer, "certificate"), "{answer:?}");
    let plain = Server::start(|_| good()).await;
    let answer = lookup(&plain.url.replace("http:", "https:")).watcher(&watch("x"), false).await;
    assert!(matches!(answer, Answer::Unavailable { .. }), "{answer:?}");
}

#[tokio::test]
async fn a_web_server_decides_who_publishes_by_query_and_address() {
    let server = Server::start(|request| {
        let asked: serde_json::Value = serde_json::from_str(&request.body).unwrap();
        match (asked["query"].as_str(), asked["peer"].as_str()) {
            (Some("token=right"), Some("192.0.2.7")) => answer(200, ""),
            (Some("token=right"), _) => answer(403, r#"{"error":"not from there"}"#),
            _ => answer(401, ""),
        }
    })
    .await;
    let lookup = lookup(&server.url);
    let ask = async |query: &str, peer: &str| {
        let (query, peer) = (Some(query.to_owned()), Some(peer.parse().unwrap()));
        lookup.publisher(&PublisherLookup { query, peer, ..publish("x", None) }).await
    };
    assert!(matches!(ask("token=right", "192.0.2.7").await, Answer::Found { .. }));
    let refused = |reason: &str| Answer::Refused { reason: reason.into() };
    assert_eq!(ask("token=right", "192.0.2.8").await, refused("not from there"));
    assert_eq!(ask("token=wrong", "192.0.2.7").await, refused("the publisher is not allowed"));
}
