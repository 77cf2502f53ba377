//! Server-Sent Events.

use super::server::{Server, answer};
use super::{HANG, HOUR, count, metrics, nowhere, skip, until};
use lb::api::Change;
use lb::client::{Event, Events, EventsSettings, Http, PLAIN_SERVER_RETRY};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;

fn events_settings(urls: &str) -> EventsSettings {
    EventsSettings {
        http: Http::new().unwrap(),
        reactors: urls.parse().unwrap(),
        keep_alive: Duration::from_millis(200),
    }
}

fn change(epoch: u64) -> Change {
    Change { stream_name: "x".parse().unwrap(), origin: None, epoch }
}

fn sse(change: &Change) -> Vec<u8> {
    format!("event: change\ndata: {}\n\n", serde_json::to_string(change).unwrap()).into_bytes()
}

const HELLO: &[u8] = b"event: hello\ndata: {}\n\n";

async fn next(events: &mut mpsc::Receiver<Event>) -> Event {
    timeout(HANG, events.recv()).await.unwrap().unwrap()
}

#[tokio::test]
async fn events_are_followed_and_a_lost_connection_is_opened_again_with_a_hello() {
    let (server, streams) = Server::streaming().await;
    let (events, mut receiver) = Events::start(events_settings(&server.url), metrics().1);
    for epoch in 0..3 {
        let stream = streams.accept().await;
        // In pieces, between comments and events of other kinds.
        stream.send(b": welcome\n\nevent: hel").await;
        stream.send(b"lo\ndata: {}\n\nevent: news\ndata: x\n\n:\n\n").await;
        assert_eq!(next(&mut receiver).await, Event::Hello);
        stream.send(&sse(&change(epoch))).await;
        assert_eq!(next(&mut receiver).await, Event::Change(change(epoch)));
    }
    assert_eq!(server.requests()[0].line, "GET /events HTTP/1.1");
    assert_eq!(server.requests()[0].header("accept"), Some("text/event-stream"));
    timeout(HANG, events.shutdown()).await.unwrap();
    assert_eq!(receiver.recv().await, None);
}

#[tokio::test]
async fn a_half_open_connection_for_events_is_found_and_one_with_keep_alives_is_kept() {
    let (server, streams) = Server::streaming().await;
    let (_events, mut receiver) = Events::start(events_settings(&server.url), metrics().1);
    let silent = streams.accept().await;
    silent.send(HELLO).await;
    assert_eq!(next(&mut receiver).await, Event::Hello);
    let kept = streams.accept().await;
    kept.send(HELLO).await;
    assert_eq!(next(&mut receiver).await, Event::Hello);
    let mut beat = tokio::time::interval(Duration::from_millis(100));
    for _ in 0..15 {
        beat.tick().await;
        kept.send(b":\n\n").await;
    }
    kept.send(&sse(&change(1))).await;
    assert_eq!(next(&mut receiver).await, Event::Change(change(1)));
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn an_event_that_does_not_end_or_cannot_be_read_costs_a_hello_and_no_memory() {
    let (server, streams) = Server::streaming().await;
    let (registry, metrics) = metrics();
    let settings = EventsSettings { keep_alive: HOUR, ..events_settings(&server.url) };
    let (_events, mut receiver) = Events::start(settings, metrics);
    let endless = streams.accept().await;
    endless.send(HELLO).await;
    assert_eq!(next(&mut receiver).await, Event::Hello);
    endless.send(b"event: change\ndata: {\n\n").await;
    assert_eq!(next(&mut receiver).await, Event::Hello);
    endless.send(&b"data: xxxxxxxxxxxxxxxxxx\n".repeat(1000)).await;
    let fresh = streams.accept().await;
    fresh.send(HELLO).await;
    assert_eq!(next(&mut receiver).await, Event::Hello);
    assert_eq!(count(&registry, "lb_reactor_events_total", "lost"), 1);
}

#[tokio::test]
async fn a_reader_that_is_behind_gets_a_hello_for_what_it_missed() {
    let (server, streams) = Server::streaming().await;
    let (registry, metrics) = metrics();
    let (_events, mut receiver) = Events::start(events_settings(&server.url), metrics);
    let stream = streams.accept().await;
    stream.send(HELLO).await;
    let sent = 3000;
    for epoch in 0..sent {
        stream.send(&sse(&change(epoch))).await;
    }
    // All are read, whether or not there was room.
    let of = |event| count(&registry, "lb_reactor_events_total", event);
    until(|| of("change") + of("dropped") == sent).await;
    let dropped = count(&registry, "lb_reactor_events_total", "dropped");
    assert!(dropped > 0);
    for expected in 0..sent - dropped + 1 {
        let event = next(&mut receiver).await;
        let wanted = if expected == 0 { Event::Hello } else { Event::Change(change(expected - 1)) };
        assert_eq!(event, wanted);
    }
    assert_eq!(next(&mut receiver).await, Event::Hello);
    stream.send(&sse(&change(sent))).await;
    assert_eq!(next(&mut receiver).await, Event::Change(change(sent)));
}

#[tokio::test]
async fn the_first_reactor_with_events_is_followed() {
    let plain = Server::start(|_| answer(200, "<html>")).await;
    let (server, streams) = Server::streaming().await;
    let urls = format!("{},{},{}", nowhere().await, plain.url, server.url);
    let (_events, mut receiver) = Events::start(events_settings(&urls), metrics().1);
    for asked in [1, 1, 2] {
        if asked == 2 {
            skip(PLAIN_SERVER_RETRY).await;
        }
        let stream = streams.accept().await;
        stream.send(HELLO).await;
        assert_eq!(next(&mut receiver).await, Event::Hello);
        assert_eq!(plain.requests().len(), asked, "a server without events is asked once a minute");
    }
}
