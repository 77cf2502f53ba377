//! Several message streams on one connection to a node, and what its viewers and publishers may say beside media: over real
//! sockets, with every byte written by hand.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests may panic

mod rtmp_peer;

use bytes::Bytes;
use lb::media::Packet;
use lb::net::Elsewhere;
use lb::relay::{Admission, Demand, Hub, Settings};
use lb::rtmp::Message;
use lb::rtmp::amf0::Value;
use lb::rtmp::message::{self, Command};
use lb::telemetry::Loss;
use rtmp_peer::*;
use std::sync::Arc;
use std::time::Duration;

/// A command as `stream name code`, media as `stream type body`, anything else as its type.
fn words(message: &Message) -> String {
    let stream = message.stream_id;
    match message.type_id {
        message::COMMAND_AMF0 => {
            let command = Command::parse(message, &lb::rtmp::Limits::default()).unwrap();
            let code = command.argument(0).and_then(|info| info.get("code")?.as_str()).unwrap_or("-");
            format!("{stream} {} {code}", command.name)
        }
        type_id @ (8 | 9 | 18) => format!("{stream} {type_id} {}", message.body.last().unwrap_or(&0)),
        type_id => format!("{stream} type {type_id}"),
    }
}

/// Reads on until this comes, and gives what came before.
#[track_caller]
fn until<'a>(raw: &'a mut Raw, wanted: &'a str) -> impl Future<Output = Vec<String>> + 'a {
    let place = std::panic::Location::caller();
    async move {
        let mut heard = Vec::new();
        loop {
            let Some(message) = raw.message().await else {
                panic!("{place}: closed before '{wanted}', after {heard:?}")
            };
            let words = words(&message);
            if words == wanted {
                return heard;
            }
            heard.push(words);
        }
    }
}

/// A node where one app takes publishers and viewers.
fn node() -> (Node, Publishers, Arc<Hub>) {
    let mut node = Node::start();
    let publishers = node.publishers("app");
    let hub = node.hub("app", Admission::Live, Settings::default());
    (node, publishers, hub)
}

/// A connection with two message streams.
async fn two_streams(node: &Node) -> Raw {
    let mut raw = Raw::connect(node).await;
    raw.write(&wire().connect("app").call("createStream", 2.0, []).call("createStream", 3.0, []).0).await;
    raw.hears("_result 2 -").await;
    raw.hears("_result 3 -").await;
    raw
}

fn key(name: &str) -> [Value; 1] {
    [Value::string(name)]
}

#[tokio::test]
async fn one_connection_publishes_and_plays_at_once_and_each_ends_alone() {
    let (node, mut publishers, hub) = node();
    let source = hub.attach(&"v".parse().unwrap(), None);
    source.push(&[video_header(), keyframe(0, 1)]);
    for (publish, play) in [(1, 2), (2, 1)] {
        for first in ["publish", "play"] {
            let mut raw = two_streams(&node).await;
            let ask_publish = wire().call_on(publish, "publish", key("p"));
            let ask_play = wire().call_on(play, "play", key("v"));
            let begun = format!("{publish} onStatus NetStream.Publish.Start");
            let mut accepted = if first == "publish" {
                raw.write(&ask_publish.0).await;
                let accepted = publishers.accept("p").await;
                until(&mut raw, &begun).await;
                raw.write(&ask_play.0).await;
                accepted
            } else {
                raw.write(&ask_play.0).await;
                until(&mut raw, &format!("{play} 9 1")).await;
                raw.write(&ask_publish.0).await;
                publishers.accept("p").await
            };
            if first == "publish" {
                let answers = until(&mut raw, &format!("{play} 9 1")).await;
                assert!(answers.contains(&format!("{play} onStatus NetStream.Play.Start")), "{answers:?}");
            } else {
                until(&mut raw, &begun).await;
            }
            // Media flows both ways, each on its own message stream.
            for n in 2..30 {
                source.push(&[frame(u32::from(n) * 40, n)]);
                raw.write(&wire().message_on(publish, 9, u32::from(n) * 40, &frame(0, n).body).0).await;
                until(&mut raw, &format!("{play} 9 {n}")).await;
                assert_eq!(accepted.packets(1).await, [frame(u32::from(n) * 40, n)]);
            }
            // Media of the message stream that plays is nobody's.
            raw.write(&wire().message_on(play, 9, 5, &frame(0, 99).body).0).await;

            if first == "publish" {
                raw.write(&wire().call_on(0, "FCUnpublish", key("p")).0).await;
                accepted.ended().await;
                source.push(&[frame(2_000, 50)]);
                until(&mut raw, &format!("{play} 9 50")).await;
                // The message stream is used again, while the other plays on.
                raw.write(&wire().call_on(publish, "publish", key("again")).0).await;
                let mut again = publishers.accept("again").await;
                until(&mut raw, &begun).await;
                raw.write(&wire().message_on(publish, 9, 7, &keyframe(0, 51).body).0).await;
                assert_eq!(again.packets(1).await, [keyframe(7, 51)]);
            } else {
                let delete = [Value::Number(play.into())];
                raw.write(&wire().call_on(0, "deleteStream", delete).0).await;
                eventually("the viewer's end", || node.metrics.viewers.get() == 0).await;
                raw.write(&wire().message_on(publish, 9, 2_000, &frame(0, 52).body).0).await;
                assert_eq!(accepted.packets(1).await, [frame(2_000, 52)]);
                raw.write(&wire().call_on(play, "play", key("v")).0).await;
                until(&mut raw, &format!("{play} 9 1")).await;
            }
            drop(raw);
            eventually("nobody", || node.metrics.viewers.get() + node.metrics.publishers.get() == 0).await;
        }
    }
}

#[tokio::test]
async fn what_is_refused_beside_another_stream_says_so_on_its_own() {
    let (node, mut publishers, hub) = node();
    let source = hub.attach(&"v".parse().unwrap(), None);
    source.push(&[video_header(), keyframe(0, 1)]);
    let mut raw = two_streams(&node).await;
    raw.write(&wire().call_on(1, "publish", key("p")).0).await;
    let mut accepted = publishers.accept("p").await;

    // A play of what is not there leaves the publish alone, and another one may follow.
    raw.write(&wire().call_on(2, "play", key("nobody")).0).await;
    until(&mut raw, "2 onStatus NetStream.Play.StreamNotFound").await;
    raw.write(&wire().call_on(2, "play", key("v")).0).await;
    until(&mut raw, "2 9 1").await;
    // One publish and one play a connection.
    raw.write(&wire().call_on(3, "publish", key("q")).call_on(3, "play", key("v")).0).await;
    until(&mut raw, "3 onStatus NetStream.Publish.BadName").await;
    until(&mut raw, "3 onStatus NetStream.Play.Failed").await;
    source.push(&[frame(40, 2)]);
    until(&mut raw, "2 9 2").await;
    raw.write(&wire().message_on(1, 9, 40, &keyframe(0, 3).body).0).await;
    assert_eq!(accepted.packets(1).await, [keyframe(40, 3)]);
    // No more message streams than there may be: three are there by now.
    let creates = (0..6).fold(wire(), |wire, n| wire.call("createStream", 10.0 + f64::from(n), []));
    raw.write(&creates.0).await;
    raw.hears("_error 15 NetConnection.Call.Failed").await;

    // Who is sent away as a publisher is told on its stream, and closed, whatever plays beside it.
    accepted.evict.take().unwrap().send("another came".into()).unwrap();
    until(&mut raw, "1 onStatus NetStream.Publish.BadName").await;
    raw.closed().await;

    // A publish that is refused beside a play closes the connection, too.
    let mut raw = two_streams(&node).await;
    raw.write(&wire().call_on(1, "play", key("v")).0).await;
    until(&mut raw, "1 9 1").await;
    raw.write(&wire().call_on(2, "publish", key("p")).0).await;
    publishers.next().await.reply.send(Err(lb::net::routes::Refused("taken".into()))).unwrap();
    until(&mut raw, "2 onStatus NetStream.Publish.BadName").await;
    raw.closed().await;
}

#[tokio::test]
async fn a_play_of_a_known_stream_is_answered_before_it_has_media() {
    let (node, mut publishers, hub) = node();
    let source = hub.attach(&"x".parse().unwrap(), None);
    let mut raw = two_streams(&node).await;
    raw.write(&wire().call_on(1, "play", key("x")).0).await;
    let mut answers = until(&mut raw, "1 onStatus NetStream.Play.Start").await;
    answers.retain(|words| words != "0 type 4");
    assert_eq!(answers, ["1 onStatus NetStream.Play.Reset"]);
    // Meanwhile it may publish.
    raw.write(&wire().call_on(2, "publish", key("p")).0).await;
    let _accepted = publishers.accept("p").await;
    until(&mut raw, "2 onStatus NetStream.Publish.Start").await;
    source.push(&[video_header(), keyframe(40, 7)]);
    until(&mut raw, "1 9 7").await;
    drop(raw);

    // On demand: refused while nobody has it, answered once somebody does.
    let mut node = Node::start();
    let hub = node.hub("app", Admission::OnDemand, Settings::default());
    let mut raw = two_streams(&node).await;
    raw.write(&wire().call_on(1, "play", key("x")).0).await;
    assert_eq!(soon("the wish", hub.demand()).await, [Demand::Wanted("x".parse().unwrap())]);
    let _source = hub.attach(&"x".parse().unwrap(), None).of_session(None);
    until(&mut raw, "1 onStatus NetStream.Play.Start").await;
    drop(raw);
    let mut raw = two_streams(&node).await;
    raw.write(&wire().call_on(1, "play", key("y")).0).await;
    eventually("the wish", || hub.streams().len() == 2).await;
    assert!(hub.refuse(&"y".parse().unwrap(), lb::relay::End::Refused("nobody has it".to_owned())));
    until(&mut raw, "1 onStatus NetStream.Play.StreamNotFound").await;
    raw.closed().await;
}

#[tokio::test]
async fn a_viewer_holds_video_back_and_gets_it_again_at_a_keyframe() {
    let (node, _publishers, hub) = node();
    let source = hub.attach(&"v".parse().unwrap(), None);
    source.push(&[video_header(), audio_header(), keyframe(0, 1), sound(1, 1)]);
    let (mut raw, mut other) = (two_streams(&node).await, Peer::play(&node, "app", "v").await);
    other.started().await;
    raw.write(&wire().call_on(1, "play", key("v")).0).await;
    until(&mut raw, "1 9 1").await;
    let off = [Value::Boolean(false)];
    let on = [Value::Boolean(true)];
    // The answer to what comes next says that it was heard.
    raw.write(&wire().call_on(1, "receiveVideo", off).call("getStreamLength", 9.0, []).0).await;
    raw.hears("_result 9 -").await;
    source.push(&[frame(40, 2), sound(41, 2)]);
    source.push(&[keyframe(80, 3), sound(81, 3)]);
    source.push(&[frame(120, 4)]);
    assert_eq!(until(&mut raw, "1 8 3").await, ["1 8 2"]);
    raw.write(&wire().call_on(1, "receiveVideo", on).call("getStreamLength", 10.0, []).0).await;
    raw.hears("_result 10 -").await;
    source.push(&[frame(160, 5), sound(161, 5)]);
    source.push(&[keyframe(200, 6)]);
    let before = until(&mut raw, "1 9 6").await;
    assert_eq!(before.last().unwrap(), "1 9 31", "the decoder's configuration: {before:?}");
    assert!(before.contains(&"1 8 5".to_owned()) && !before.contains(&"1 9 5".to_owned()), "{before:?}");
    let mut video = Vec::new();
    while video.last() != Some(&6) {
        let message = other.media().await;
        video.extend((message.type_id == 9).then(|| *message.body.last().unwrap()));
    }
    assert_eq!(video, [31, 1, 2, 3, 4, 5, 6], "others get everything");
}

#[tokio::test]
async fn what_makes_no_sense_costs_itself_and_is_counted() {
    let (node, mut publishers, _hub) = node();
    let mut raw = two_streams(&node).await;
    raw.write(&wire().call_on(1, "publish", key("p")).0).await;
    let mut accepted = publishers.accept("p").await;
    let malformed = wire()
        .message_on(0, 4, 0, &[0])
        .message_on(0, 4, 0, &[0, 3, 0, 0, 0, 1])
        .message_on(0, 4, 0, &[0, 77])
        .message_on(0, 5, 0, &[1])
        .message_on(0, 20, 0, &[0x11, 1, 2, 3]);
    raw.write(&malformed.message_on(1, 9, 5, &keyframe(0, 3).body).0).await;
    assert_eq!(accepted.packets(1).await, [keyframe(5, 3)]);
    let clear = b"\x02\x00\x0f@clearDataFrame\x02\x00\x0aonMetaData";
    raw.write(&wire().message_on(1, 18, 6, clear).0).await;
    assert_eq!(accepted.packets(1).await, [Packet::data(6, Bytes::from_static(clear))]);
    drop(raw);
    accepted.ended().await;
    eventually("the count", || node.metrics.lost_total(Loss::Unusable) == 5).await;
    assert_eq!(node.metrics.misbehaved_total.get(), 0);

    // Without end, it costs the connection.
    let mut raw = two_streams(&node).await;
    let flood = (0..200).fold(wire(), |wire, _| wire.message_on(0, 4, 0, &[0]));
    raw.write(&flood.0).await;
    soon("the close", raw.closed()).await;
    eventually("the count", || node.metrics.misbehaved_total.get() == 1).await;
}

#[tokio::test]
async fn a_drain_ends_a_connection_that_does_both() {
    let (node, mut publishers, hub) = node();
    let source = hub.attach(&"v".parse().unwrap(), None);
    source.push(&[video_header(), keyframe(0, 1)]);
    let mut raw = two_streams(&node).await;
    raw.write(&wire().call_on(1, "publish", key("p")).call_on(2, "play", key("v")).0).await;
    let mut accepted = publishers.accept("p").await;
    until(&mut raw, "2 9 1").await;
    let drain = node.drain.clone();
    let stop = tokio::spawn(async move { drain.stop(SOON, Duration::from_secs(1)).await });
    raw.closed().await;
    accepted.ended().await;
    drop(raw);
    assert!(soon("the drain", stop).await.unwrap());
}

/// A peer that follows reconnect requests, or says nothing of them.
async fn connected(node: &Node, caps: Option<f64>) -> Raw {
    let mut raw = Raw::connect(node).await;
    let mut object = vec![("app".to_owned(), Value::string("app"))];
    object.extend(caps.map(|caps| ("capsEx".to_owned(), Value::Number(caps))));
    let mut connect = bytes::BytesMut::new();
    Command::new("connect", 1.0, Value::Object(object), []).write(&mut connect, 3, 0, 128);
    raw.write(&connect).await;
    raw.hears("_result 1 NetConnection.Connect.Success").await;
    raw
}

/// What is said until the close, and the `tcUrl` of a reconnect request in it.
async fn last_words(raw: &mut Raw) -> (Vec<String>, Option<String>) {
    let (mut said, mut tc_url) = (Vec::new(), None);
    while let Some(message) = raw.message().await {
        if message.type_id == message::COMMAND_AMF0 {
            let command = Command::parse(&message, &lb::rtmp::Limits::default()).unwrap();
            let named = command.argument(0).and_then(|info| info.get("tcUrl")?.as_str());
            tc_url = named.map(str::to_owned).or(tc_url);
            said.push(words(&message));
        }
    }
    (said, tc_url)
}

#[tokio::test]
async fn a_drain_offers_another_node_to_those_who_follow_and_then_goes_on() {
    const ASKED: &str = "0 onStatus NetConnection.Connect.ReconnectRequest";
    let (node, mut publishers, hub) = node();
    let source = hub.attach(&"v".parse().unwrap(), None);
    source.push(&[video_header(), keyframe(0, 1)]);
    let (mut publisher, mut plain) = (connected(&node, Some(15.0)).await, connected(&node, None).await);
    publisher.write(&wire().call_on(1, "publish", key("p")).0).await;
    let mut accepted = publishers.accept("p").await;
    publisher.hears("onStatus 0 NetStream.Publish.Start").await;
    plain.write(&wire().call_on(1, "publish", key("q")).0).await;
    let mut other = publishers.accept("q").await;
    plain.hears("onStatus 0 NetStream.Publish.Start").await;
    let mut viewer = connected(&node, Some(1.0)).await;
    viewer.write(&wire().call_on(1, "play", key("v")).0).await;
    until(&mut viewer, "1 9 1").await;

    node.server.set_elsewhere(Elsewhere {
        ingest: vec!["127.0.0.1:2935".parse().unwrap()],
        playback: vec!["127.0.0.1:3935".parse().unwrap()],
    });
    let drain = node.drain.clone();
    let stop = tokio::spawn(async move { drain.stop(SOON, Duration::from_secs(1)).await });
    let begun = std::time::Instant::now();
    until(&mut publisher, ASKED).await;
    publisher.write(&wire().message_on(1, 9, 40, &frame(0, 2).body).0).await;
    assert_eq!(accepted.packets(1).await, [frame(40, 2)], "it publishes on for a moment");
    publisher.closed().await;
    accepted.ended().await;
    assert!(begun.elapsed() < Duration::from_secs(5), "who does not go is closed");
    assert_eq!(last_words(&mut plain).await, (Vec::new(), None), "a bare disconnect");
    other.ended().await;
    let (said, tc_url) = last_words(&mut viewer).await;
    let ends = ["1 onStatus NetStream.Play.UnpublishNotify", "1 onStatus NetStream.Play.Stop"];
    assert_eq!(said, [&[ASKED][..], &ends[..]].concat());
    assert_eq!(tc_url.as_deref(), Some("rtmp://127.0.0.1:3935/app"));
    drop((publisher, plain, viewer));
    assert!(soon("the drain", stop).await.unwrap());
}
