//! What one viewer gets.

use super::*;
use crate::relay::stream::End;

#[tokio::test(start_paused = true)]
async fn a_late_viewer_gets_metadata_headers_and_the_newest_keyframe_in_one_write() {
    let (world, source) = World::live(|_| {});
    source.push(&opening());
    source.push(&[
        key(0, "1"),
        audio(10, "1"),
        video(40, "2"),
        key(80, "3"),
        audio(81, "2"),
        video(120, "4"),
    ]);
    let viewer = world.viewer();
    world.settle().await;
    let all = ["meta@0", "vhead@80:h", "ahead@80:h", "key@80:3", "a@81:2", "v@120:4"];
    assert_eq!((viewer.got(), viewer.socket.writes()), (all.map(String::from).to_vec(), 1));
    source.push(&[audio(130, "3")]);
    world.settle().await;
    assert_eq!((viewer.got()[6..].to_vec(), viewer.socket.writes()), (vec!["a@130:3".to_owned()], 2));
    drop(source);
    viewer.leave().await;
    world.is_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_late_viewer_gets_the_colours_and_the_order_of_channels() {
    let (world, source) = World::live(|_| {});
    let colours = Packet::video(0, Bytes::from_static(b"\x94avc1\x02\0\x09colorInfo"));
    let channels = Packet::audio(0, Bytes::from_static(b"\x94Opus\x01\x02\0\0\0\x03"));
    source.push(&[video_header("h"), colours.clone(), channels.clone(), key(0, "1"), video(40, "2")]);
    source.push(&[key(80, "3")]);
    let viewer = world.viewer();
    world.settle().await;
    let got: Vec<Bytes> = viewer.socket.messages().into_iter().map(|message| message.body).collect();
    assert_eq!(got, [video_header("h").body, colours.body, channels.body, key(80, "3").body]);
}

#[tokio::test(start_paused = true)]
async fn a_viewer_that_comes_first_starts_with_the_first_keyframe() {
    let (world, source) = World::live(|_| {});
    let viewer = world.viewer();
    source.push(&opening());
    source.push(&[audio(0, "1"), video(1, "1")]);
    world.settle().await;
    assert_eq!(viewer.got(), [""; 0]);
    source.push(&[key(40, "2")]);
    world.settle().await;
    assert_eq!(viewer.got(), ["meta@0", "vhead@40:h", "ahead@40:h", "key@40:2"]);
}

#[tokio::test(start_paused = true)]
async fn streams_of_one_kind_start_at_once() {
    let (world, source) = World::live(|_| {});
    let viewer = world.viewer();
    source.push(&[audio_header("h"), audio(0, "1")]);
    world.settle().await;
    assert_eq!(viewer.got(), ["ahead@0:h", "a@0:1"]);
    for n in 1..100 {
        source.push(&[audio(n * 20, "2")]);
        world.pass(20).await;
    }
    assert_eq!(viewer.got().len(), 101);
    let late = world.viewer();
    world.settle().await;
    assert_eq!(late.got()[..2], ["ahead@1480:h", "a@1480:2"], "half a second of the past");
    assert_eq!(late.got().last(), viewer.got().last());

    let (world, source) = World::live(|_| {});
    source.push(&[video_header("h"), key(5, "1")]);
    let viewer = world.viewer();
    world.settle().await;
    assert_eq!(viewer.got(), ["vhead@5:h", "key@5:1"]);
}

/// Sends one group of pictures with so many frames, from `time` on.
fn group(source: &Source, time: u32, frames: u32) {
    source.push(&[key(time, "key")]);
    (1..frames).for_each(|n| source.push(&[video(time + 40 * n, "frame")]));
}

#[tokio::test(start_paused = true)]
async fn partial_writes_at_every_byte_keep_messages_whole() {
    for step in 1..70 {
        let (world, source) = World::live(|_| {});
        source.push(&opening());
        let (slow, fast) = (world.watch(&Socket::with(usize::MAX, step)), world.viewer());
        for n in 0..4 {
            group(&source, n * 200, 5);
            world.settle().await;
        }
        assert_eq!(slow.got(), fast.got(), "{step} bytes a write");
        assert_eq!(fast.got().len(), 3 + 20);
        assert!(slow.socket.read().1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_socket_that_blocks_at_any_byte_goes_on_there() {
    let (world, source) = World::live(|_| {});
    source.push(&opening());
    let reference = world.viewer();
    let sockets: Vec<_> = (0..400).map(|room| Socket::with(room, usize::MAX)).collect();
    let viewers: Vec<_> = sockets.iter().map(|socket| world.watch(socket)).collect();
    for n in 0..2 {
        group(&source, n * 200, 5);
        world.settle().await;
    }
    for socket in &sockets {
        socket.room(usize::MAX);
    }
    group(&source, 400, 5);
    world.settle().await;
    for (room, viewer) in viewers.iter().enumerate() {
        assert_eq!(viewer.got(), reference.got(), "blocked after {room} bytes");
    }
    assert_eq!(world.metrics.viewer_skips_total.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_slow_viewer_skips_whole_messages_to_a_keyframe_and_its_loss_is_counted() {
    let (world, source) = World::live(|settings| settings.lag = Duration::from_secs(1));
    source.push(&opening());
    let socket = Socket::with(70, usize::MAX);
    let (slow, fast) = (world.watch(&socket), world.viewer());
    // One group a second.
    for n in 0..4 {
        for frame in 0..25 {
            let time = n * 1000 + frame * 40;
            let body = format!("{time:08}");
            source.push(&[if frame == 0 { key(time, &body) } else { video(time, &body) }]);
            world.pass(40).await;
        }
    }
    socket.room(usize::MAX);
    world.settle().await;
    source.push(&[video(4000, "now")]);
    world.settle().await;
    let (slow_got, fast_got) = (slow.got(), fast.got());
    assert!(slow.socket.read().1);
    assert_eq!(fast_got.len(), 3 + 101);
    let gap = slow_got.iter().zip(&fast_got).position(|(one, two)| one != two).unwrap();
    assert_eq!(slow_got[gap], "key@3000:00003000", "after {:?}", slow_got[gap - 1]);
    let lost = fast_got.len() - slow_got.len();
    assert_eq!(slow_got[gap..], fast_got[gap + lost..], "and nothing more is lost");
    assert_eq!(world.metrics.viewer_skips_total.get(), 1);
    assert_eq!(world.metrics.viewer_skipped_messages_total.get(), lost as u64);
}

#[tokio::test(start_paused = true)]
async fn a_viewer_that_skips_over_a_new_header_gets_it_first() {
    let (world, source) = World::live(|settings| settings.lag = Duration::from_millis(100));
    source.push(&opening());
    let socket = Socket::with(70, usize::MAX);
    let slow = world.watch(&socket);
    group(&source, 0, 5);
    world.pass(200).await;
    source.push(&[Packet { timestamp: 200, ..video_header("new") }]);
    group(&source, 200, 5);
    world.pass(200).await;
    group(&source, 400, 5);
    world.pass(1).await;
    socket.room(usize::MAX);
    world.settle().await;
    let got = slow.got();
    let at = got.iter().position(|text| text.starts_with("key@400")).unwrap();
    assert_eq!(got[at - 3..at], ["meta@0", "vhead@400:new", "ahead@400:h"]);
}

#[tokio::test(start_paused = true)]
async fn a_viewer_that_takes_nothing_is_closed_in_time() {
    let (world, source) = World::live(|settings| settings.stall = Duration::from_secs(10));
    source.push(&opening());
    source.push(&[key(0, "1")]);
    let stalled = world.watch(&Socket::with(40, usize::MAX));
    let slow = Socket::with(40, usize::MAX);
    let alive = world.watch(&slow);
    for n in 1..=9 {
        world.pass(1000).await;
        slow.room(1);
        source.push(&[video(n * 1000, "2")]);
    }
    world.pass(900).await;
    assert!(!stalled.task.is_finished());
    world.pass(200).await;
    assert!(stalled.task.is_finished());
    assert!(matches!(stalled.turn().await, Turn::Stalled));
    assert!(!alive.task.is_finished(), "a byte a second is slow, not gone");
    assert_eq!(world.metrics.viewer_stalls_total.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_broken_socket_ends_its_viewer_wherever_it_stands() {
    let (world, source) = World::live(|_| {});
    source.push(&opening());
    source.push(&[key(0, "1")]);
    let (at_live_edge, behind) = (world.viewer(), world.watch(&Socket::with(40, usize::MAX)));
    world.settle().await;
    at_live_edge.socket.breaks();
    behind.socket.breaks();
    source.push(&[video(40, "2")]);
    for viewer in [at_live_edge, behind] {
        assert!(matches!(viewer.turn().await, Turn::Gone(_)));
    }
    drop(source);
    world.is_empty().await;
}

#[tokio::test(start_paused = true)]
async fn replies_stand_between_messages() {
    let (world, source) = World::live(|_| {});
    source.push(&opening());
    source.push(&[key(0, "1")]);
    let narrow = Socket::with(40, usize::MAX);
    let (at_live_edge, behind) = (world.viewer(), world.watch(&narrow));
    world.settle().await;
    for viewer in [&at_live_edge, &behind] {
        viewer.ask(Ask::Reply(reply()));
        viewer.ask(Ask::Reply(reply()));
    }
    world.settle().await;
    narrow.room(usize::MAX);
    world.settle().await;
    source.push(&[video(40, "2")]);
    world.settle().await;
    for viewer in [&at_live_edge, &behind] {
        let got = viewer.got();
        assert_eq!(got.iter().filter(|text| *text == "3").count(), 2, "{got:?}");
        assert_eq!(got.iter().filter(|text| *text != "3").count(), 5, "{got:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_answers_and_stops_at_once() {
    let (world, source) = World::live(|_| {});
    source.push(&[key(0, "1")]);
    let (talks, stops) = (world.viewer(), world.viewer());
    world.settle().await;
    talks.ask(Ask::Reply(reply()));
    stops.ask(Ask::Stop);
    world.settle().await;
    assert_eq!(talks.got(), ["key@0:1", "3"]);
    assert!(stops.task.is_finished());
    assert!(matches!(stops.turn().await, Turn::Stopped));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_asks_and_never_reads_is_closed() {
    let (world, source) = World::live(|_| {});
    source.push(&[key(0, "1")]);
    let viewer = world.watch(&Socket::with(5, usize::MAX));
    for _ in 0..10_000 {
        if viewer.task.is_finished() {
            break;
        }
        viewer.ask(Ask::Reply(reply()));
        tokio::task::yield_now().await;
    }
    assert!(viewer.task.is_finished());
    assert!(matches!(viewer.turn().await, Turn::Stalled));
}

#[tokio::test(start_paused = true)]
async fn a_pause_ends_at_the_newest_keyframe() {
    let (world, source) = World::live(|_| {});
    source.push(&opening());
    source.push(&[key(0, "1")]);
    let viewer = world.viewer();
    world.settle().await;
    viewer.ask(Ask::Pause(true));
    world.settle().await;
    source.push(&[video(40, "2"), key(80, "3"), video(120, "4")]);
    world.settle().await;
    assert_eq!(viewer.got().len(), 4);
    viewer.ask(Ask::Pause(false));
    world.settle().await;
    source.push(&[video(160, "5")]);
    world.settle().await;
    assert_eq!(viewer.got()[4..], ["key@80:3", "v@120:4", "v@160:5"]);
    for paused in [true, false] {
        viewer.ask(Ask::Pause(paused));
        world.settle().await;
        source.push(&[video(200, "6")]);
        world.settle().await;
    }
    assert_eq!(viewer.got()[7..], ["v@200:6", "v@200:6"], "nothing twice after a short pause");
    assert_eq!(world.metrics.viewer_skipped_messages_total.get(), 0, "what was not wanted is not lost");
}

#[tokio::test(start_paused = true)]
async fn a_paused_viewer_hears_that_the_stream_ended() {
    let (world, source) = World::live(|_| {});
    source.push(&[key(0, "1")]);
    let viewer = world.viewer();
    world.settle().await;
    viewer.ask(Ask::Pause(true));
    world.settle().await;
    source.push(&[video(40, "2")]);
    world.settle().await;
    assert_eq!(viewer.got().len(), 1);
    world.hub.close();
    world.settle().await;
    assert!(viewer.task.is_finished());
    assert!(matches!(viewer.turn().await, Turn::Ended(End::Closed)));
    drop(source);
    world.is_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_finishes_the_message_that_was_begun() {
    for room in 1..60 {
        let (world, source) = World::live(|_| {});
        source.push(&[key(0, "first"), video(40, "second")]);
        let socket = Socket::with(room, usize::MAX);
        let viewer = world.watch(&socket);
        world.settle().await;
        viewer.ask(Ask::Stop);
        world.settle().await;
        socket.room(usize::MAX);
        world.settle().await;
        assert!(socket.read().1, "after {room} bytes");
        assert!(matches!(viewer.turn().await, Turn::Stopped));
    }
}

#[tokio::test(start_paused = true)]
async fn an_ended_stream_delivers_everything_first() {
    let (world, source) = World::live(|_| {});
    source.push(&opening());
    let prelude = world.hub.join(&name()).unwrap();
    source.push(&[key(0, "1"), video(40, "2")]);
    let narrow = Socket::with(50, usize::MAX);
    let (at_live_edge, behind) = (world.viewer(), world.watch(&narrow));
    world.settle().await;
    source.push(&[video(80, "3")]);
    world.hub.close();
    world.settle().await;
    let late = Watcher::run(prelude.watch(Socket::open(), reply(), Format::Rtmp), Socket::open());
    assert!(!behind.task.is_finished(), "what it has not is still to come");
    narrow.room(usize::MAX);
    world.settle().await;
    assert_eq!(at_live_edge.got().last().unwrap(), "v@80:3");
    assert_eq!(behind.got(), at_live_edge.got());
    for viewer in [at_live_edge, behind, late] {
        assert!(matches!(viewer.turn().await, Turn::Ended(End::Closed)));
    }
    drop(source);
    world.is_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_message_is_whole_even_when_its_stream_ends_under_a_viewer_that_fell_off() {
    for gone in [false, true] {
        let (world, source) = World::live(|settings| settings.lag = Duration::from_millis(10));
        source.push(&[key(0, "a long first frame")]);
        let socket = Socket::with(20, usize::MAX);
        let viewer = world.watch(&socket);
        world.settle().await;
        for n in 1..4 {
            world.pass(100).await;
            source.push(&[key(n * 100, "1")]);
            world.settle().await;
        }
        let source = (!gone).then_some(source);
        world.hub.close();
        world.settle().await;
        assert!(!viewer.task.is_finished(), "its message is not whole");
        socket.room(usize::MAX);
        world.settle().await;
        assert!(socket.read().1);
        // The newest keyframe is no place to start when its source is gone.
        let (got, lost) = if gone { (1, 3) } else { (2, 2) };
        assert_eq!(viewer.got().len(), got);
        assert_eq!(world.metrics.viewer_skipped_messages_total.get(), lost);
        assert!(matches!(viewer.turn().await, Turn::Ended(End::Closed)));
        drop(source);
    }
}
