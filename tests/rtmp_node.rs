//! A node's RTMP side over real sockets: who is let in, what is said to those who are not, and what passes through.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests may panic

mod rtmp_peer;

use bytes::Bytes;
use lb::media::Packet;
use lb::net::Limits;
use lb::net::acl::Acl;
use lb::net::location::Location;
use lb::net::pull;
use lb::net::routes::Refused;
use lb::relay::{Admission, Batching, Demand, PullEvent, Settings, Source};
use lb::rtmp::amf0::Value;
use lb::rtmp::session::{Client, ClientEvent};
use lb::telemetry::Loss;
use rtmp_peer::*;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;

const BAD_NAME: &str = "NetStream.Publish.BadName";
const NOT_FOUND: &str = "NetStream.Play.StreamNotFound";

/// A stream that a viewer can start to watch.
fn show(hub: &std::sync::Arc<lb::relay::Hub>, name: &str, mark: u8) -> Source {
    let source = hub.attach(&name.parse().unwrap(), None);
    source.push(&[video_header(), keyframe(0, mark)]);
    source
}

#[tokio::test]
async fn a_port_an_app_and_a_key_lead_to_one_place() {
    let mut node = Node::start();
    let other = node.listen();
    let mut vip = node.publishers_at(node.place("live", "vip"));
    let mut all = node.publishers("live");
    let hub = node.hub_at(node.place("watch", "x"), Admission::Live, Settings::default());
    let _source = show(&hub, "x", 1);

    let mut peer = Peer::publish(&node, "live", "vip").await;
    let (_, mut publishing) = tokio::join!(peer.started(), vip.accept("vip"));
    peer.send(&keyframe(7, 1)).await;
    assert_eq!(publishing.packets(1).await, [keyframe(7, 1)]);
    assert!(all.is_quiet(), "an exact key comes first");
    let mut peer = Peer::publish(&node, "live", "x").await;
    let (_, _publishing) = tokio::join!(peer.started(), all.accept("x"));

    let mut viewer = Peer::play(&node, "watch", "x").await;
    viewer.started().await;
    assert_eq!(viewer.media().await.body, video_header().body);
    for (app, key) in [("watch", "y"), ("live", "x")] {
        assert_eq!(
            Peer::play(&node, app, key).await.statuses_until_closed().await,
            [NOT_FOUND],
            "{app}/{key}"
        );
    }
    assert_eq!(Peer::publish(&node, "watch", "x").await.statuses_until_closed().await, [BAD_NAME]);
    for address in [node.address(), SocketAddr::from((Ipv4Addr::LOCALHOST, other))] {
        let words = Peer::play_at(address, "other", "x").await.statuses_until_closed().await;
        assert_eq!(words, ["NetConnection.Connect.Rejected"], "{address}");
    }
    let elsewhere = SocketAddr::from((Ipv4Addr::LOCALHOST, other));
    assert_eq!(
        Peer::play_at(elsewhere, "watch", "x").await.statuses_until_closed().await,
        ["NetConnection.Connect.Rejected"]
    );
}

#[tokio::test]
async fn names_come_without_query_slashes_and_instance_or_not_at_all() {
    let mut node = Node::start();
    let mut publishers = node.publishers("live");
    for (app, key, name) in [
        ("live", "key?token=secret", "key"),
        ("live?token=secret", "key", "key"),
        ("live/", "key", "key"),
        ("live/inst", "key?a=b", "inst/key"),
        ("live/inst", "", "inst"),
        ("/live", "a/b", "a/b"),
    ] {
        let mut peer = Peer::publish(&node, app, key).await;
        let (_, _accepted) = tokio::join!(peer.started(), publishers.accept(name));
    }
    let before = node.refused("stream_name");
    for key in ["", "a b", "a{b}", "a/../b", "a//b", "ä", &"n".repeat(256)] {
        assert_eq!(
            Peer::publish(&node, "live", key).await.statuses_until_closed().await,
            [BAD_NAME],
            "{key:?}"
        );
        assert_eq!(
            Peer::play(&node, "live", key).await.statuses_until_closed().await,
            [NOT_FOUND],
            "{key:?}"
        );
    }
    assert_eq!(node.refused("stream_name") - before, 14);
    assert!(publishers.is_quiet());
}

#[tokio::test]
async fn addresses_are_allowed_and_denied_in_both_families() {
    let mut node = Node::start();
    let acl = |allow: &str, deny: &str| Acl::parse(Some(allow), Some(deny)).unwrap();
    let mut place = node.place("open", "*");
    place.acl = acl("", "127.0.0.2,::1");
    let hub = node.hub_at(place, Admission::Live, Settings::default());
    let mut place = node.place("closed", "*");
    place.acl = acl("127.0.0.0/30", "127.0.0.2");
    let mut publishers = node.publishers_at(place);
    let _source = show(&hub, "x", 1);

    let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, node.port));
    let second = IpAddr::from([127, 0, 0, 2]);
    let peer = |socket, client| Peer { socket, client };
    let limits = lb::rtmp::Limits::default();
    let play = || Client::play(&target(1, "open", "x"), limits, [1; 32]);
    let publish = || Client::publish(&target(1, "closed", "x"), limits, [1; 32]);

    Peer::play(&node, "open", "x").await.started().await;
    for source in [TcpStream::connect(v6).await.unwrap(), Peer::connect_from(second, node.address()).await] {
        assert_eq!(peer(source, play()).statuses_until_closed().await, [NOT_FOUND]);
    }
    let mut allowed = peer(TcpStream::connect(node.address()).await.unwrap(), publish());
    let (_, _accepted) = tokio::join!(allowed.started(), publishers.accept("x"));
    for source in [TcpStream::connect(v6).await.unwrap(), Peer::connect_from(second, node.address()).await] {
        assert_eq!(peer(source, publish()).statuses_until_closed().await, [BAD_NAME]);
    }
    assert_eq!(node.refused("address"), 4);
}

#[tokio::test]
async fn bytes_may_come_one_by_one() {
    let mut node = Node::start();
    let mut publishers = node.publishers("live");
    let mut peer = Peer::publish(&node, "live", "x").await;
    peer.socket.set_nodelay(true).unwrap();
    let trickle = async {
        let mut started = false;
        while !started {
            for byte in peer.client.output() {
                peer.socket.write_all(&[byte]).await.unwrap();
            }
            started = matches!(peer.event().await, Some(ClientEvent::Publishing));
        }
        assert!(peer.client.send_media(&message(&keyframe(5, 9))));
        for byte in peer.client.output() {
            peer.socket.write_all(&[byte]).await.unwrap();
        }
    };
    let (_, mut accepted) = tokio::join!(trickle, publishers.accept("x"));
    assert_eq!(accepted.packets(1).await, [keyframe(5, 9)]);
}

#[tokio::test]
async fn garbage_costs_its_own_connection_and_is_counted() {
    let mut node = Node::start();
    let hub = node.hub("watch", Admission::Live, Settings::default());
    let source = show(&hub, "x", 1);
    let mut viewer = Peer::play(&node, "watch", "x").await;
    viewer.started().await;

    let nested = {
        let mut body = b"\x02\x00\x04play\x00\x40\x00\0\0\0\0\0\0".to_vec();
        for _ in 0..100_000 {
            body.extend_from_slice(b"\x03\x00\x01a");
        }
        wire().connect("watch").message(20, 0, &body).0
    };
    let huge = [&[3, 0, 0, 0, 0xff, 0xff, 0xff, 20, 0, 0, 0, 0][..], &[0; 100]].concat();
    let after_handshake = [&huge[..], &[0x43; 20], &[0xff; 5000]];
    for (index, bytes) in after_handshake.into_iter().enumerate() {
        let mut raw = Raw::connect(&node).await;
        raw.write(bytes).await;
        raw.closed().await;
        eventually("the count", || node.metrics.misbehaved_total.get() == index as u64 + 1).await;
    }
    let mut raw = Raw::connect(&node).await;
    raw.write(&nested).await;
    raw.closed().await;
    let mut web = TcpStream::connect(node.address()).await.unwrap();
    web.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    eventually("the count", || node.metrics.misbehaved_total.get() == 4).await;
    eventually("the end of all but the viewer", || node.metrics.connections.get() == 1).await;

    source.push(&[frame(40, 77)]);
    while viewer.media().await.body != frame(40, 77).body {}
}

#[tokio::test]
async fn who_says_nothing_is_closed_in_time() {
    let limits = Limits { negotiation: Duration::from_millis(200), ..Limits::default() };
    let mut node = Node::with(limits);
    let hub = node.hub("watch", Admission::Live, Settings::default());
    let _source = show(&hub, "x", 1);
    let mut viewer = Peer::play(&node, "watch", "x").await;
    viewer.started().await;

    let mut silent = TcpStream::connect(node.address()).await.unwrap();
    let mut greeted = Raw::connect(&node).await;
    let mut connected = Raw::connect(&node).await;
    connected.write(&wire().connect("watch").0).await;
    let mut nothing = [0; 1];
    let read = tokio::io::AsyncReadExt::read(&mut silent, &mut nothing);
    assert_eq!(soon("the close", read).await.unwrap(), 0);
    greeted.closed().await;
    connected.closed().await;
    assert_eq!(node.refused("negotiation"), 3);
    assert_eq!(node.metrics.connections.get(), 1, "the viewer has no deadline");
}

#[tokio::test]
async fn connections_are_limited_in_all_and_by_address() {
    let limits = Limits { connections: 3, connections_per_address: 2, ..Limits::default() };
    let node = Node::with(limits);
    let one = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let first = Peer::connect_from(one, node.address()).await;
    let _second = Peer::connect_from(one, node.address()).await;
    eventually("two connections", || node.metrics.connections.get() == 2).await;
    let _third = Peer::connect_from(one, node.address()).await;
    eventually("the refusal", || node.refused("connections_per_address") == 1).await;
    let _other = Peer::connect_from(IpAddr::from([127, 0, 0, 2]), node.address()).await;
    eventually("three connections", || node.metrics.connections.get() == 3).await;
    let _fourth = Peer::connect_from(IpAddr::from([127, 0, 0, 3]), node.address()).await;
    eventually("the refusal", || node.refused("connections") == 1).await;
    drop(first);
    eventually("a free place", || node.metrics.connections.get() == 2).await;
    let _again = Peer::connect_from(one, node.address()).await;
    eventually("its use", || node.metrics.connections.get() == 3).await;
}

#[tokio::test]
async fn one_connection_publishes_again_and_again() {
    let mut node = Node::start();
    let mut publishers = node.publishers("live");
    let mut raw = Raw::connect(&node).await;
    let calls = wire().connect("live").call("createStream", 2.0, []).call("createStream", 3.0, []);
    raw.write(&calls.0).await;
    raw.hears("_result 2 -").await;
    raw.hears("_result 3 -").await;
    for (round, end) in ["FCUnpublish", "deleteStream", "closeStream"].into_iter().enumerate() {
        let name = format!("round{round}");
        // Media that does not wait for the answer is kept for it.
        let eager = wire()
            .call("publish", 4.0, [Value::string(name.as_str()), Value::string("LIVE")])
            .message(9, 0, &keyframe(0, 1).body)
            .message(8, 5, &sound(5, 2).body);
        raw.write(&eager.0).await;
        let mut accepted = publishers.accept(&name).await;
        raw.hears("onStatus 0 NetStream.Publish.Start").await;
        assert_eq!(accepted.packets(2).await, [keyframe(0, 1), sound(5, 2)]);
        assert_eq!(node.metrics.publishers.get(), 1);
        raw.write(&wire().call(end, 5.0, [Value::string(name.as_str())]).0).await;
        accepted.ended().await;
    }
    eventually("no publisher", || node.metrics.publishers.get() == 0).await;
}

#[tokio::test]
async fn bodies_and_times_arrive_as_they_were_sent() {
    let mut node = Node::start();
    let mut publishers = node.publishers("live");
    let mut raw = Raw::connect(&node).await;
    raw.write(&wire().connect("live").call("publish", 4.0, [Value::string("x")]).0).await;
    let mut accepted = publishers.accept("x").await;

    // HEVC and AV1 of Enhanced RTMP, a multitrack body, and times beyond three bytes.
    let hevc = [&[0x90][..], b"hvc1", &[1, 2, 3]].concat();
    let av1 = [&[0x93][..], b"av01", &[7; 300]].concat();
    let tracks = [&[0x96, 0x01][..], b"hvc1", &[1], &[9; 20]].concat();
    let messages = wire()
        .message(9, 0, &hevc)
        .message(9, 0x00ff_fffe, &av1)
        .message(9, 0x0100_0000, &tracks)
        .message(8, 0xffff_fff0, &[0xaf, 1, 5])
        .message(18, 0xffff_fff0, b"\x02\x00\x0d@setDataFrame\x02\x00\x0aonMetaData\x05");
    raw.write(&messages.0).await;
    let got = accepted.packets(5).await;
    let sent = [
        Packet::video(0, hevc.into()),
        Packet::video(0x00ff_fffe, av1.into()),
        Packet::video(0x0100_0000, tracks.into()),
        Packet::audio(0xffff_fff0, Bytes::from_static(&[0xaf, 1, 5])),
        Packet::data(0xffff_fff0, Bytes::from_static(b"\x02\x00\x0aonMetaData\x05")),
    ];
    assert_eq!(got, sent);

    // An aggregate: an audio and a video tag, whose own times begin elsewhere.
    let tag = |kind: u8, time: u32, body: &[u8]| {
        let (size, time) = ((body.len() as u32).to_be_bytes(), time.to_be_bytes());
        let head = [kind, size[1], size[2], size[3], time[1], time[2], time[3], time[0], 0, 0, 0];
        [&head[..], body, &(body.len() as u32 + 11).to_be_bytes()].concat()
    };
    let body = [tag(8, 500, &sound(0, 1).body), tag(9, 540, &frame(0, 2).body)].concat();
    raw.write(&wire().message(22, 1000, &body).0).await;
    assert_eq!(accepted.packets(2).await, [sound(1000, 1), frame(1040, 2)]);
}

/// Two seconds of a publisher, as the node comes to know it: frames, and audio before each.
async fn opening(node: &Node, publishers: &mut Publishers) -> (Raw, Accepted) {
    let mut raw = Raw::connect(node).await;
    raw.write(&wire().connect("live").call("publish", 4.0, [Value::string("x")]).0).await;
    let mut accepted = publishers.accept("x").await;
    for _ in 0..60 {
        raw.write(&wire().message(8, 0, &[0xaf; 300]).message(9, 0, &[0x27; 2000]).0).await;
        accepted.packets(2).await;
    }
    (raw, accepted)
}

#[tokio::test]
async fn audio_that_rides_with_the_next_frame_wakes_nobody_before() {
    let mut node = Node::start();
    let mut publishers = node.publishers("live");
    let _hub = node.hub("watch", Admission::Live, Settings::default());
    let (mut raw, mut accepted) = opening(&node, &mut publishers).await;
    let mut together = 0;
    for _ in 0..20 {
        raw.write(&wire().message(8, 0, &[0xaf; 300]).0).await;
        // Time for a node that would read it.
        tokio::time::sleep(Duration::from_millis(10)).await;
        raw.write(&wire().message(9, 0, &[0x27; 2000]).0).await;
        let mut came = 0;
        while came < 2 {
            let packets = accepted.media.next().await.expect("the publish goes on");
            came += packets.len();
            together += usize::from(packets.len() == 2);
        }
    }
    assert!(together > 10, "{together} of 20 frames came with their audio");

    // A frame that comes in pieces is read when it is whole, and one that is smaller than all before comes, too.
    let pieces = wire().message(9, 0, &[0x27; 60_000]).0;
    for piece in pieces.chunks(1_400) {
        raw.write(piece).await;
    }
    assert_eq!(accepted.packets(1).await[0].body.len(), 60_000);
    raw.write(&wire().message(9, 0, &[0x27; 9]).0).await;
    assert_eq!(accepted.packets(1).await[0].body.len(), 9);

    // Where no frame follows, audio is heard all the same, and so are last words.
    for _ in 0..3 {
        raw.write(&wire().message(8, 0, &[0xaf; 300]).0).await;
        accepted.packets(1).await;
    }
    let (mut raw, mut accepted) = opening(&node, &mut publishers).await;
    raw.write(&wire().call("FCUnpublish", 5.0, [Value::string("x")]).0).await;
    accepted.ended().await;
    raw.write(&wire().call("publish", 6.0, [Value::string("y")]).0).await;
    publishers.accept("y").await;
}

#[tokio::test]
async fn audio_does_not_wait_for_frames_where_somebody_watches_without_delay() {
    let mut node = Node::start();
    let mut publishers = node.publishers("live");
    let _riding = node.hub("watch", Admission::Live, Settings::default());
    let at_once = Settings { batching: Batching::Window(Duration::ZERO), ..Settings::default() };
    let _at_once = node.hub("now", Admission::Live, at_once);
    let (mut raw, mut accepted) = opening(&node, &mut publishers).await;
    let begun = std::time::Instant::now();
    for _ in 0..20 {
        raw.write(&wire().message(8, 0, &[0xaf; 300]).0).await;
        accepted.packets(1).await;
        raw.write(&wire().message(9, 0, &[0x27; 2000]).0).await;
        accepted.packets(1).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(4), "each waited for a quarter of a second");
}

#[tokio::test]
async fn a_refused_publisher_hears_why_and_is_closed_while_it_sends() {
    let mut node = Node::start();
    let mut publishers = node.publishers("live");
    let mut raw = Raw::connect(&node).await;
    let mut eager = wire().connect("live").call("publish", 4.0, [Value::string("x")]);
    for time in 0..100 {
        eager = eager.message(9, time, &[0x17; 2000]);
    }
    raw.write(&eager.0).await;
    publishers.next().await.reply.send(Err(Refused("taken".into()))).unwrap();
    // It goes on sending; the last words must reach it all the same, so there is no reset.
    raw.write(&wire().message(9, 200, &[0x17; 2000]).0).await;
    raw.hears("onStatus 0 NetStream.Publish.BadName").await;
    raw.closed().await;
    assert_eq!(node.refused("publish"), 1);

    // The same for one that was let in before.
    let mut peer = Peer::publish(&node, "live", "x").await;
    let (_, mut accepted) = tokio::join!(peer.started(), publishers.accept("x"));
    peer.send(&keyframe(0, 1)).await;
    accepted.evict.take().unwrap().send("another came".into()).unwrap();
    assert_eq!(peer.statuses_until_closed().await, [BAD_NAME]);

    // A step that is gone closes its publishers, too.
    let mut peer = Peer::publish(&node, "live", "x").await;
    let (_, accepted) = tokio::join!(peer.started(), publishers.accept("x"));
    drop(accepted);
    assert_eq!(peer.statuses_until_closed().await, [BAD_NAME]);
}

#[tokio::test]
async fn a_stream_that_nobody_takes_is_read_on_and_its_loss_counted() {
    let mut node = Node::start();
    let mut publishers = node.publishers("live");
    let mut peer = Peer::publish(&node, "live", "x").await;
    let (_, accepted) = tokio::join!(peer.started(), publishers.accept("x"));
    let Accepted { media, evict: _evict } = accepted;
    drop(media);
    for time in 0..100 {
        peer.send(&Packet::video(time, vec![0x27; 512 << 10].into())).await;
    }
    eventually("all of it is counted", || node.metrics.lost_total(Loss::NoOutlet) == 100).await;
    assert_eq!(node.metrics.received_messages_total.get(), 100);
}

#[tokio::test]
async fn a_late_viewer_gets_metadata_headers_and_a_keyframe_in_this_order() {
    let mut node = Node::start();
    let hub = node.hub("watch", Admission::Live, Settings::default());
    let source = hub.attach(&"x".parse().unwrap(), None);
    // The encoder's own order does not matter.
    let packets = [audio_header(), sound(0, 1), video_header(), metadata(), keyframe(40, 2), sound(50, 3)];
    source.push(&packets);
    let mut viewer = Peer::play(&node, "watch", "x").await;
    viewer.started().await;
    let mut got = Vec::new();
    for _ in 0..5 {
        got.push(viewer.media().await.body);
    }
    let want = [metadata(), video_header(), audio_header(), keyframe(40, 2), sound(50, 3)];
    assert_eq!(got, want.map(|packet| packet.body));
}

#[tokio::test]
async fn streams_of_one_kind_start_at_once() {
    let mut node = Node::start();
    let hub = node.hub("watch", Admission::Live, Settings::default());
    for (name, packets) in
        [("audio", [audio_header(), sound(20, 1)]), ("video", [video_header(), keyframe(20, 1)])]
    {
        let source = hub.attach(&name.parse().unwrap(), None);
        source.push(&packets);
        let mut viewer = Peer::play(&node, "watch", name).await;
        viewer.started().await;
        assert_eq!(viewer.media().await.body, packets[0].body, "{name}");
        soon(name, async { while viewer.media().await.body != packets[1].body {} }).await;
    }
}

#[tokio::test]
async fn a_viewer_that_zaps_in_one_breath_gets_what_it_asked_for_last() {
    let mut node = Node::start();
    let hub = node.hub("watch", Admission::Live, Settings::default());
    let (_a, _b) = (show(&hub, "a", 1), show(&hub, "b", 2));
    let mut raw = Raw::connect(&node).await;
    let zapping = wire()
        .connect("watch")
        .call("play", 4.0, [Value::string("a")])
        .call("deleteStream", 0.0, [Value::Number(1.0)])
        .call("play", 5.0, [Value::string("b")]);
    raw.write(&zapping.0).await;
    soon("the second stream", async { while raw.media().await.body != keyframe(0, 2).body {} }).await;
    eventually("one viewer", || node.metrics.viewers.get() == 1).await;
    drop(raw);
    eventually("no viewer", || node.metrics.viewers.get() == 0).await;
}

/// Viewers wait for a stream for longer than a test may take.
fn patient() -> Settings {
    Settings { start: SOON * 10, ..Settings::default() }
}

#[tokio::test]
async fn a_viewer_that_waits_for_a_stream_and_stops_is_heard_at_once() {
    let mut node = Node::start();
    let hub = node.hub("live", Admission::OnDemand, patient());
    let mut raw = Raw::connect(&node).await;
    raw.write(&wire().connect("live").call("createStream", 2.0, []).0).await;
    raw.hears("_result 2 -").await;
    for (name, end) in [
        ("a", wire().call("closeStream", 0.0, [])),
        ("b", wire().call("deleteStream", 0.0, [Value::Number(1.0)])),
        ("c", wire().call("play", 0.0, [Value::Boolean(false)])),
        // What else waits behind the play stands in nobody's way.
        ("d", wire().call("pause", 0.0, [Value::Boolean(true)]).call("closeStream", 0.0, [])),
    ] {
        raw.write(&wire().call("play", 4.0, [Value::string(name)]).0).await;
        assert_eq!(soon("the wish", hub.demand()).await, [Demand::Wanted(name.parse().unwrap())]);
        assert_eq!(node.metrics.viewers.get(), 1);
        raw.write(&end.0).await;
        assert_eq!(soon(name, hub.demand()).await, [Demand::Unwanted(name.parse().unwrap())]);
        eventually("no viewer", || node.metrics.viewers.get() == 0).await;
    }
    // The connection is as good as before.
    raw.write(&wire().call("createStream", 5.0, []).0).await;
    raw.hears("_result 5 -").await;
}

#[tokio::test]
async fn a_viewer_that_waits_for_a_stream_and_zaps_gets_the_other_one_at_once() {
    let mut node = Node::start();
    let hub = node.hub("live", Admission::OnDemand, patient());
    let _b = show(&hub, "b", 2);
    for zap in [
        wire().call("play", 5.0, [Value::string("b")]),
        wire().call("play2", 5.0, [Value::object([("streamName", Value::string("b"))])]),
        wire().call("deleteStream", 0.0, [Value::Number(1.0)]).call("play", 5.0, [Value::string("b")]),
        wire().call("play", 5.0, [Value::string("c")]).call("play", 6.0, [Value::string("b")]),
    ] {
        let mut raw = Raw::connect(&node).await;
        raw.write(&wire().connect("live").call("play", 4.0, [Value::string("a")]).0).await;
        eventually("the viewer", || node.metrics.viewers.get() == 1).await;
        raw.write(&zap.0).await;
        soon("the other stream", async { while raw.media().await.body != keyframe(0, 2).body {} }).await;
        eventually("one viewer", || node.metrics.viewers.get() == 1).await;
        drop(raw);
        eventually("no viewer", || node.metrics.viewers.get() == 0).await;
    }
    // The same in one breath, before anything was answered.
    let mut raw = Raw::connect(&node).await;
    let zapping = wire()
        .connect("live")
        .call("play", 4.0, [Value::string("a")])
        .call("pause", 0.0, [Value::Boolean(true)])
        .call("closeStream", 0.0, [])
        .call("play", 5.0, [Value::string("b")]);
    raw.write(&zapping.0).await;
    soon("the other stream", async { while raw.media().await.body != keyframe(0, 2).body {} }).await;
}

#[tokio::test]
async fn a_publisher_that_waits_and_stops_is_heard_at_once() {
    let mut node = Node::start();
    let mut publishers = node.publishers("live");
    let mut raw = Raw::connect(&node).await;
    raw.write(&wire().connect("live").0).await;
    for end in ["FCUnpublish", "closeStream", "deleteStream"] {
        // Media is sent without waiting for the answer, as encoders do.
        let eager = wire().call("publish", 4.0, [Value::string("x")]).message(9, 0, &keyframe(0, 1).body);
        raw.write(&eager.0).await;
        let request = publishers.next().await;
        raw.write(&wire().call(end, 0.0, [Value::string("x")]).0).await;
        soon(end, request.gone.cancelled()).await;
    }
    // It may ask for another name; what it sent for the first one is not part of it.
    raw.write(&wire().call("publish", 5.0, [Value::string("y")]).0).await;
    let mut accepted = publishers.accept("y").await;
    raw.hears("onStatus 0 NetStream.Publish.Start").await;
    raw.write(&wire().message(9, 0, &keyframe(0, 9).body).0).await;
    assert_eq!(accepted.packets(1).await, [keyframe(0, 9)]);
}

#[tokio::test]
async fn a_viewer_that_asks_and_never_listens_costs_no_memory() {
    /// More than the kernel holds in both directions.
    const FLOOD: usize = 24 << 20;
    let mut node = Node::start();
    let hub = node.hub("watch", Admission::Live, Settings::default());
    let _source = show(&hub, "x", 1);
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 << 10).unwrap();
    socket.set_send_buffer_size(64 << 10).unwrap();
    let mut raw = Raw::over(socket.connect(node.address()).await.unwrap()).await;
    raw.write(&wire().connect("watch").call("play", 4.0, [Value::string("x")]).0).await;
    assert_eq!(raw.media().await.body, video_header().body);
    let ping = [2, 0, 0, 0, 0, 0, 6, 4, 0, 0, 0, 0, 0, 6, 0, 0, 0, 1].repeat(1000);
    let mut sent = 0;
    while let Ok(written) = tokio::time::timeout(Duration::from_secs(1), raw.socket.write_all(&ping)).await {
        sent += ping.len();
        assert!(sent < FLOOD, "the node takes pings without end, and must keep the answers somewhere");
        if written.is_err() {
            break;
        }
    }
}

#[tokio::test]
async fn a_drain_sends_everybody_away_in_the_way_they_understand() {
    let mut node = Node::start();
    let mut publishers = node.publishers("live");
    let hub = node.hub("watch", Admission::Live, Settings::default());
    let _source = show(&hub, "x", 1);
    let mut publisher = Peer::publish(&node, "live", "x").await;
    let (_, mut accepted) = tokio::join!(publisher.started(), publishers.accept("x"));
    let mut viewer = Peer::play(&node, "watch", "x").await;
    viewer.started().await;
    let mut idle = Raw::connect(&node).await;
    idle.write(&wire().connect("watch").0).await;
    idle.hears("_result 1 NetConnection.Connect.Success").await;

    let begun = tokio::time::Instant::now();
    let drain = node.drain.clone();
    let stop = tokio::spawn(async move { drain.stop(SOON, Duration::from_secs(1)).await });
    assert!(
        publisher.statuses_until_closed().await.is_empty(),
        "an encoder comes back only after a bare disconnect"
    );
    accepted.ended().await;
    assert_eq!(
        viewer.statuses_until_closed().await,
        ["NetStream.Play.UnpublishNotify", "NetStream.Play.Stop"]
    );
    idle.closed().await;
    drop((publisher, viewer, idle));
    assert!(soon("the drain", stop).await.unwrap());
    assert!(begun.elapsed() < Duration::from_secs(8), "nobody's deadline held the drain up");
    assert!(TcpStream::connect(node.address()).await.is_err(), "nobody new is taken");
}

/// Plays `x`, takes nothing of what comes, and reads it all when the node has given up; `drains`: in the middle of a drain.
async fn left_over(drains: bool) -> Vec<u8> {
    let mut node = Node::with_spread(Limits::default(), SOON);
    let settings = Settings { stall: Duration::from_millis(300), ..Settings::default() };
    let hub = node.hub("watch", Admission::Live, settings);
    let source = show(&hub, "x", 1);
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 << 10).unwrap();
    let mut raw = Raw::over(socket.connect(node.address()).await.unwrap()).await;
    raw.write(&wire().connect("watch").call("play", 4.0, [Value::string("x")]).0).await;
    raw.media().await;
    // More than the kernel holds, so it ends somewhere in a message.
    for time in 0..100 {
        source.push(&[Packet::video(time, vec![0x27; 100_000].into())]);
    }
    let drain = node.drain.clone();
    let stop =
        drains.then(|| tokio::spawn(async move { drain.stop(SOON * 2, Duration::from_secs(1)).await }));
    eventually("the stall", || node.metrics.viewer_stalls_total.get() == 1).await;
    let mut rest = Vec::new();
    soon("the close", raw.socket.read_to_end(&mut rest)).await.unwrap();
    if let Some(stop) = stop {
        drop(raw);
        assert!(soon("the drain", stop).await.unwrap());
    }
    rest
}

#[tokio::test]
async fn nothing_is_written_into_the_middle_of_a_message_that_a_viewer_did_not_take() {
    for drains in [false, true] {
        let rest = left_over(drains).await;
        assert!(rest.len() < 9_000_000, "it took everything");
        let said = rest.windows(10).filter(|bytes| bytes == b"NetStream.").count();
        assert_eq!(said, 0, "drains: {drains}");
    }
}

/// A running pull, and the media of its attempt.
struct Pull {
    events: mpsc::Receiver<PullEvent>,
    media: Option<Media>,
    _running: pull::Pull,
}

impl Pull {
    fn start(node: &Node, location: &str) -> Pull {
        let location = Location::parse(location).unwrap();
        let limits = lb::rtmp::Limits::default();
        let (feeds, metrics) = (node.feeds.clone(), node.metrics.clone());
        let (running, events) =
            pull::start(location, pull_settings(), limits, feeds, metrics, Default::default());
        Pull { events, media: None, _running: running }
    }

    async fn begins(&mut self) {
        loop {
            match soon("an event of the pull", self.events.recv()).await {
                Some(PullEvent::Began(feed)) => return self.media = Some(Media::of(&feed)),
                Some(PullEvent::Ended { .. }) => {}
                None => panic!("the pull goes on"),
            }
        }
    }

    /// Waits until the attempt has brought a frame with this mark.
    async fn brings(&mut self, mark: u8) {
        let media = self.media.as_mut().expect("it began");
        loop {
            let packets = media.next().await.expect("the attempt goes on");
            if packets.iter().any(|packet| packet.body.last() == Some(&mark) && packet.body.len() == 6) {
                return;
            }
        }
    }

    async fn ends(&mut self) -> String {
        loop {
            match soon("an event of the pull", self.events.recv()).await {
                Some(PullEvent::Ended { reason, .. }) => return reason,
                Some(PullEvent::Began(feed)) => self.media = Some(Media::of(&feed)),
                None => panic!("the pull goes on"),
            }
        }
    }
}

fn pull_settings() -> pull::Settings {
    pull::Settings { silence: Duration::from_millis(500), ..pull::Settings::new("puller".parse().unwrap()) }
}

#[tokio::test]
async fn a_pull_comes_back_for_as_long_as_it_is_wanted() {
    let mut node = Node::start();
    let settings = Settings { grace: Duration::from_millis(50), ..Settings::default() };
    let hub = node.hub("src", Admission::Live, settings);
    let source = show(&hub, "x", 1);
    let mut pull = Pull::start(&node, &format!("rtmp://[::1]:{}/src/x?token=1", node.port));
    pull.begins().await;
    source.push(&[keyframe(40, 2)]);
    pull.brings(2).await;
    assert_eq!(node.metrics.pulls_in.with_label_values(&["native"]).get(), 1);

    // It stalls, and begins anew; then its stream is gone, and comes back.
    assert!(pull.ends().await.contains("nothing arrived"));
    drop(source);
    // The step's part: the hub ends streams whose grace time is over while somebody asks it what is wanted.
    let keeper = hub.clone();
    let _keeper = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move {
        keeper.demand().await;
    }));
    while !pull.ends().await.contains(NOT_FOUND) {}
    let _source = show(&hub, "x", 3);
    pull.begins().await;
    pull.brings(3).await;

    drop(pull);
    eventually("the end of the pull", || {
        node.metrics.pulls_in.with_label_values(&["native"]).get() == 0 && node.metrics.viewers.get() == 0
    })
    .await;
}

#[tokio::test]
async fn a_pull_says_that_an_lb_node_has_its_stream_before_anything_of_it_comes() {
    let mut node = Node::start();
    let hub = node.hub("src", Admission::Live, Settings::default());
    let source = hub.attach(&"x".parse().unwrap(), None);
    let mut pull = Pull::start(&node, &format!("rtmp://127.0.0.1:{}/src/x", node.port));
    pull.begins().await;
    source.push(&[video_header(), keyframe(40, 2)]);
    pull.brings(2).await;
}

#[tokio::test]
async fn a_pull_brings_each_publish_as_a_feed_of_its_own_and_nothing_of_one_in_another() {
    let mut node = Node::start();
    let hub = node.hub(
        "src",
        Admission::Live,
        Settings { batching: Batching::Window(Duration::ZERO), ..Settings::default() },
    );
    let mut source = show(&hub, "x", 1);
    let mut pull = Pull::start(&node, &format!("rtmp://[::1]:{}/src/x", node.port));
    pull.begins().await;
    pull.brings(1).await;
    // The last frame of each, that another begins, and the first ones of that arrive together.
    for publish in 1..20 {
        source.push(&[keyframe(publish * 100, 100)]);
        drop(source);
        source = show(&hub, "x", publish as u8 + 1);
        let before = pull.media.take().unwrap();
        let (before, feed) = tokio::join!(all(before), pull.events.recv());
        assert_eq!(before.last().unwrap().body.last(), Some(&100), "{before:?}");
        let Some(PullEvent::Began(feed)) = feed else { panic!("{feed:?}") };
        assert!(feed.follows_break() && feed.upstream().is_some());
        pull.media = Some(Media::of(&feed));
        let first = pull.media.as_mut().unwrap().next().await.unwrap();
        assert_eq!(first[0].body, video_header().body, "{first:?}");
        if first.len() == 1 {
            pull.brings(publish as u8 + 1).await;
        }
    }
    assert!(pull.events.try_recv().is_err());
    for loss in [Loss::NoOutlet, Loss::NoKeyframe, Loss::Unusable] {
        assert_eq!(node.metrics.lost_total(loss), 0, "{loss:?}");
    }
}

/// What a feed brings until it ends.
async fn all(mut media: Media) -> Vec<Packet> {
    let mut all = Vec::new();
    while let Some(some) = media.next().await {
        all.extend(some);
    }
    all
}

#[tokio::test]
async fn a_pull_that_pauses_begins_at_once_when_its_stream_is_there_again() {
    let mut node = Node::start();
    let hub = node.hub("src", Admission::Live, Settings::default());
    let nudge = std::sync::Arc::new(tokio::sync::Notify::new());
    let location = Location::parse(&format!("rtmp://127.0.0.1:{}/src/x", node.port)).unwrap();
    let pause = Duration::from_secs(3600);
    let settings = pull::Settings { retry_min: pause, retry_max: pause, ..pull_settings() };
    let (feeds, metrics) = (node.feeds.clone(), node.metrics.clone());
    let limits = lb::rtmp::Limits::default();
    let (_running, mut events) = pull::start(location, settings, limits, feeds, metrics, nudge.clone());
    let refused = soon("a refusal", events.recv()).await;
    assert!(matches!(refused, Some(PullEvent::Ended { retry_in, .. }) if retry_in >= pause), "{refused:?}");
    let _source = show(&hub, "x", 1);
    nudge.notify_one();
    assert!(matches!(soon("media", events.recv()).await, Some(PullEvent::Began(_))));
}

#[tokio::test]
async fn a_pull_that_went_round_in_a_circle_is_refused_unless_the_stream_is_here() {
    let mut node = Node::start();
    let on_demand = node.hub("live", Admission::OnDemand, Settings::default());
    let published = node.hub("src", Admission::Live, Settings::default());
    let _source = show(&published, "x", 1);
    let looped = "x?lb_hops=other,node-under-test";
    assert_eq!(Peer::play(&node, "live", looped).await.statuses_until_closed().await, [NOT_FOUND]);
    assert_eq!(node.refused("loop"), 1);
    Peer::play(&node, "src", looped).await.started().await;
    // Other nodes' names are no circle.
    let _waiting = Peer::play(&node, "live", "x?lb_hops=other").await.client.output();
    assert!(on_demand.streams().is_empty());
}

#[tokio::test]
async fn many_viewers_are_one_wish() {
    let mut node = Node::start();
    let hub = node.hub("live", Admission::OnDemand, Settings::default());
    let mut viewers = Vec::new();
    for _ in 0..20 {
        let mut viewer = Peer::play(&node, "live", "x").await;
        assert_eq!(viewer.event().await, Some(ClientEvent::Connected));
        viewers.push(viewer);
    }
    eventually("all viewers", || node.metrics.viewers.get() == 20).await;
    assert_eq!(soon("the wish", hub.demand()).await, [Demand::Wanted("x".parse().unwrap())]);
    assert!(hub.refuse(&"x".parse().unwrap(), lb::relay::End::Refused("nobody has it".to_owned())));
    for mut viewer in viewers {
        assert_eq!(viewer.statuses_until_closed().await, [NOT_FOUND]);
    }
    eventually("no viewer", || node.metrics.viewers.get() == 0).await;
    let keeper = hub.clone();
    let _keeper =
        tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move { keeper.demand().await }));
    eventually("no trace of the name", || hub.streams().is_empty()).await;
}
