//! Viewers that hold a kind of media back, or play on another message stream.

use super::*;
use crate::relay::ring::Ring;
use std::time::Instant;

const SOUND_ONLY: Receives = Receives { audio: true, video: false };
const PICTURE_ONLY: Receives = Receives { audio: false, video: true };

#[tokio::test(start_paused = true)]
async fn a_kind_of_media_is_held_back_for_one_viewer_and_comes_again_where_it_can() {
    let (world, source) = World::live(|_| {});
    source.push(&opening());
    source.push(&[key(0, "1"), audio(1, "1")]);
    let (viewer, other) = (world.viewer(), world.viewer());
    world.settle().await;
    let mut seen = viewer.got().len();
    let mut news = || {
        let got = viewer.got()[seen..].to_vec();
        seen += got.len();
        got
    };
    viewer.ask(Ask::Receive(SOUND_ONLY));
    world.settle().await;
    source.push(&[video(40, "2"), audio(41, "2"), metadata(41)]);
    source.push(&[video(80, "3")]);
    source.push(&[audio(81, "3")]);
    world.settle().await;
    assert_eq!(news(), ["a@41:2", "meta@41", "a@81:3"], "data comes always");

    viewer.ask(Ask::Receive(Receives::ALL));
    world.settle().await;
    source.push(&[video(120, "4"), audio(121, "4")]);
    world.settle().await;
    assert_eq!(news(), ["a@121:4"], "no picture without a keyframe");
    source.push(&[audio(150, "5")]);
    source.push(&[key(160, "5"), audio(161, "6")]);
    source.push(&[video(200, "6")]);
    world.settle().await;
    assert_eq!(news(), ["a@150:5", "meta@0", "vhead@160:h", "key@160:5", "a@161:6", "v@200:6"]);

    viewer.ask(Ask::Receive(PICTURE_ONLY));
    world.settle().await;
    source.push(&[video(240, "7"), audio(241, "7")]);
    world.settle().await;
    assert_eq!(news(), ["v@240:7"]);
    viewer.ask(Ask::Receive(Receives::ALL));
    world.settle().await;
    source.push(&[audio(281, "8"), video(280, "8")]);
    world.settle().await;
    assert_eq!(news(), ["meta@0", "ahead@240:h", "a@281:8", "v@280:8"], "sound comes at once");

    let rest = other.got().len() - 5;
    assert_eq!(rest, 5 + 2 + 4 + 2 + 2, "the other viewer got all of it");
    assert_eq!(world.metrics.viewer_skipped_messages_total.get(), 0, "what is not wanted is not lost");
    drop(source);
    viewer.leave().await;
    other.leave().await;
    world.is_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_viewer_that_wants_nothing_for_a_while_is_still_there() {
    let (world, source) = World::live(|_| {});
    source.push(&[key(0, "1")]);
    let viewer = world.viewer();
    world.settle().await;
    viewer.ask(Ask::Receive(Receives { audio: false, video: false }));
    world.settle().await;
    for n in 1..100 {
        source.push(&[if n % 10 == 0 { key(n * 40, "k") } else { video(n * 40, "2") }, audio(n * 40, "2")]);
        world.pass(40).await;
    }
    assert_eq!(viewer.got(), ["key@0:1"]);
    viewer.ask(Ask::Reply(reply()));
    viewer.ask(Ask::Receive(Receives::ALL));
    world.settle().await;
    source.push(&[key(4_000, "3")]);
    world.settle().await;
    assert_eq!(viewer.got()[1..], ["3", "key@4000:3"]);
    world.hub.close();
    world.settle().await;
    assert!(matches!(viewer.turn().await, Turn::Ended(_)));
}

#[tokio::test(start_paused = true)]
async fn a_change_at_any_byte_of_a_slow_socket_keeps_messages_whole() {
    for room in 0..260 {
        let (world, source) = World::live(|_| {});
        source.push(&opening());
        source.push(&[key(0, "first"), audio(1, "first"), video(40, "second")]);
        let socket = Socket::with(room, usize::MAX);
        let viewer = world.watch(&socket);
        world.settle().await;
        viewer.ask(Ask::Receive(SOUND_ONLY));
        world.settle().await;
        source.push(&[video(80, "third"), audio(81, "third")]);
        world.settle().await;
        viewer.ask(Ask::Receive(Receives::ALL));
        world.settle().await;
        source.push(&[video(120, "fourth"), key(160, "fifth")]);
        world.settle().await;
        socket.room(usize::MAX);
        world.settle().await;
        source.push(&[video(200, "sixth")]);
        world.settle().await;
        assert!(socket.read().1, "after {room} bytes");
        let got = viewer.got();
        assert_eq!(got.last().unwrap(), "v@200:sixth", "after {room} bytes: {got:?}");
        let key = got.iter().rposition(|text| text == "key@160:fifth");
        let keys = got.iter().filter(|text| *text == "key@160:fifth").count();
        assert!(key.is_some() && keys == 1, "after {room} bytes: {got:?}");
        assert!(
            !got.contains(&"v@120:fourth".to_owned()) || got.contains(&"v@80:third".to_owned()),
            "{got:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_waits_or_fell_off_starts_with_what_it_wants() {
    let (world, source) = World::live(|settings| settings.lag = Duration::from_millis(10));
    let waits = world.viewer();
    waits.ask(Ask::Receive(SOUND_ONLY));
    world.settle().await;
    source.push(&opening());
    source.push(&[key(0, "1"), audio(1, "1")]);
    world.settle().await;
    assert_eq!(waits.got(), ["meta@0", "ahead@0:h", "a@1:1"]);

    let socket = Socket::with(150, usize::MAX);
    let slow = world.watch(&socket);
    world.settle().await;
    for n in 1..6 {
        world.pass(100).await;
        source.push(&[key(n * 100, "a longer picture"), audio(n * 100 + 1, "2")]);
        world.settle().await;
    }
    slow.ask(Ask::Receive(PICTURE_ONLY));
    world.settle().await;
    socket.room(usize::MAX);
    world.settle().await;
    assert_eq!(slow.got().last().unwrap(), "key@500:a longer picture");
}

#[tokio::test(start_paused = true)]
async fn a_viewer_on_another_message_stream_gets_the_same_with_its_id() {
    let (world, source) = World::live(|_| {});
    source.push(&opening());
    source.push(&[key(0, "1")]);
    let socket = Socket::open();
    let format = Format::rtmp(2, Receives::ALL);
    let second = Watcher::run(
        world.hub.join(&name()).unwrap().watch(socket.clone(), Bytes::new(), format),
        socket.clone(),
    );
    let first = world.viewer();
    world.settle().await;
    source.push(&[video(40, "2"), audio(41, "2")]);
    world.settle().await;
    assert_eq!(second.got(), first.got());
    assert!(socket.messages().iter().all(|message| message.stream_id == 2));
    assert!(first.socket.messages().iter().all(|message| message.stream_id == 1));
}

#[tokio::test(start_paused = true)]
async fn cleared_metadata_is_kept_for_nobody_and_said_to_no_viewer() {
    let clear = || Packet::data(50, Bytes::from_static(b"\x02\0\x0f@clearDataFrame\x02\0\x0aonMetaData"));
    for for_nodes in [false, true] {
        let (world, source) = World::live(|settings| settings.for_nodes = for_nodes);
        source.push(&opening());
        source.push(&[key(0, "1")]);
        let early = world.viewer();
        world.settle().await;
        source.push(&[clear(), video(60, "2")]);
        world.settle().await;
        // A node that pulls keeps metadata of its own, and hears of it.
        let said = early.socket.messages().iter().filter(|message| message.type_id == 18).count();
        assert_eq!(said, 1 + usize::from(for_nodes));
        source.push(&[key(80, "3")]);
        let late = world.viewer();
        world.settle().await;
        assert_eq!(late.got(), ["vhead@80:h", "ahead@80:h", "key@80:3"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_known_before_anything_of_it_has_come() {
    let world = World::new(Admission::OnDemand, |_| {});
    let interest = world.hub.join(&name()).unwrap();
    let waits = tokio::spawn(async move {
        let known = interest.known().await;
        (known, interest)
    });
    world.settle().await;
    assert!(!waits.is_finished(), "nobody has it yet");
    let source = world.attach().of_session(None);
    let (known, interest) = waits.await.unwrap();
    assert_eq!(known, Ok(()));
    let socket = Socket::open();
    let viewer = Watcher::run(interest.watch(socket.clone(), reply(), Format::Rtmp), socket.clone());
    world.settle().await;
    assert_eq!(viewer.got(), ["3"], "its answer does not wait for media");
    assert_eq!(world.metrics.first_picture.get_sample_count(), 0);
    source.push(&opening());
    source.push(&[key(0, "1")]);
    world.settle().await;
    assert_eq!(viewer.got()[1..], ["meta@0", "vhead@0:h", "ahead@0:h", "key@0:1"]);
    assert_eq!(world.metrics.first_picture.get_sample_count(), 1);
}

#[test]
fn a_form_is_made_once_and_all_forms_together_are_bounded() {
    let settings = Settings { ring_bytes: 100_000, lag: Duration::from_secs(3600), ..Settings::default() };
    let (mut ring, start) = (Ring::new(&settings), Instant::now());
    let body = "x".repeat(1_000);
    for n in 0..60 {
        ring.push(&if n == 0 { key(0, &body) } else { video(n * 40, &body) }, n * 40, start);
        ring.seal();
    }
    let format = |stream_id| Format::rtmp(stream_id, Receives::ALL);
    let first = |ring: &mut Ring| ring.since(0, format(2)).next().unwrap().wire;
    assert_eq!(first(&mut ring).as_ptr(), first(&mut ring).as_ptr());
    for stream_id in 2..9 {
        assert_eq!(ring.since(0, format(stream_id)).count(), 60);
    }
    ring.push(&video(4_000, "x"), 4_000, start);
    ring.seal();
    let held = ring.held() - ring.bytes();
    assert!(held <= 200_000, "{held} bytes of derived forms beside a ring of 100,000");
    assert_eq!(ring.since(0, format(5)).count(), 61, "they are made again for who wants them");
}
