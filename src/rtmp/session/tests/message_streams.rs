//! Message streams of one connection: how they come and go, and what each publishes or plays for itself.

use super::*;

#[test]
fn each_create_gives_a_new_stream_up_to_the_limit_and_deleted_ones_are_free() {
    let ids = |raw: &mut Raw| {
        let output = raw.server.output();
        let mut input = &output[..];
        std::iter::from_fn(|| raw.reader.read(&mut input).unwrap())
            .map(|message| Command::parse(&message, &Limits::default()).unwrap())
            .map(|answer| answer.argument(0).and_then(Value::as_number).ok_or(answer.name))
            .collect::<Vec<_>>()
    };
    let mut raw = Raw::with(Limits { message_streams: 3, ..Limits::default() });
    raw.connect([("app", Value::string("live"))]);
    raw.server.accept_connect();
    raw.replies();
    (0..4).for_each(|_| raw.call_on(0, "createStream", 2.0, []));
    assert_eq!(ids(&mut raw), [Ok(1.0), Ok(2.0), Ok(3.0), Err("_error".to_owned())]);
    raw.call_on(0, "deleteStream", 0.0, [Value::Number(2.0)]);
    raw.call_on(0, "createStream", 3.0, []);
    assert_eq!(ids(&mut raw), [Ok(2.0)]);
    // Nobody makes one that was not given out.
    raw.call_on(9, "publish", 0.0, [Value::string("x")]);
    raw.call_on(9, "play", 0.0, [Value::string("x")]);
    let refused = ["onStatus 0 NetStream.Publish.BadName", "onStatus 0 NetStream.Play.Failed"];
    assert_eq!(raw.replies_by_stream(), refused.map(|words| (9, words.to_owned())));
    raw.server.event();
    assert_eq!(raw.server.event(), None);
}

/// A connection that publishes on stream 2 and plays on stream 3.
fn both() -> Raw {
    let mut raw = Raw::connected("live");
    (0..3).for_each(|_| raw.call_on(0, "createStream", 2.0, []));
    raw.call_on(2, "publish", 0.0, [Value::string("p")]);
    raw.call_on(3, "play", 0.0, [Value::string("v")]);
    assert!(matches!(raw.server.event(), Some(Event::Publish(publish)) if publish.stream_id == 2));
    assert!(matches!(raw.server.event(), Some(Event::Play(play)) if play.stream_id == 3), "nor does it wait");
    raw.replies();
    raw
}

#[test]
fn message_streams_publish_and_play_each_for_itself() {
    let mut raw = both();
    let media_on = |stream_id| Message { stream_id, ..media(message::VIDEO, 7, b"v") };
    raw.send_message(&media_on(2));
    raw.send_message(&media_on(3));
    raw.call_on(0, "createStream", 9.0, []);
    assert_eq!(raw.replies(), ["_result 9 -"], "what waits on other streams is in nobody's way");
    raw.server.accept_play(3, None);
    let play = ["User(StreamBegin(3))", "onStatus 0 NetStream.Play.Reset", "onStatus 0 NetStream.Play.Start"];
    let replies = raw.replies_by_stream();
    assert_eq!(replies.iter().map(|(_, words)| &words[..]).collect::<Vec<_>>(), play);
    assert_eq!((replies[1].0, replies[2].0), (3, 3));
    raw.server.accept_publish(2);
    let publish = [(0, "User(StreamBegin(2))"), (2, "onStatus 0 NetStream.Publish.Start")];
    assert_eq!(raw.replies_by_stream(), publish.map(|(id, words)| (id, words.to_owned())));
    assert_eq!(raw.server.event(), Some(Event::Media(media_on(2))));
    assert_eq!((raw.server.event(), raw.server.ignored()), (None, 1), "media of the viewer is none");

    // Media of a stream that does not publish is not taken for that of another; 0 is what some call their only one.
    raw.send_message(&media_on(1));
    raw.send_message(&media_on(7));
    assert_eq!((raw.server.event(), raw.server.ignored()), (None, 3));
    raw.call_on(3, "pause", 0.0, [Value::Boolean(true)]);
    assert_eq!(raw.replies_by_stream(), [(3, "onStatus 0 NetStream.Pause.Notify".to_owned())]);
    assert_eq!(raw.server.event(), Some(Event::Pause { stream_id: 3, paused: true, millis: 0.0 }));
}

#[test]
fn a_message_stream_ends_alone() {
    for (stream, end, ends) in [
        (2, "closeStream", Event::Unpublish(2)),
        (3, "closeStream", Event::StopPlay(3)),
        (0, "FCUnpublish", Event::Unpublish(2)),
    ] {
        let mut raw = both();
        raw.server.accept_play(3, None);
        raw.server.accept_publish(2);
        raw.call_on(stream, end, 0.0, [Value::string("p")]);
        assert_eq!((raw.server.event(), raw.server.event()), (Some(ends), None), "{end} on {stream}");
        assert_eq!(raw.server.publishes(), (stream, end) == (3, "closeStream"));
    }
    for (id, ends) in [(2, Event::Unpublish(2)), (3, Event::StopPlay(3))] {
        // Also while they wait.
        for answered in [true, false] {
            let mut raw = both();
            if answered {
                raw.server.accept_play(3, None);
                raw.server.accept_publish(2);
            }
            raw.call_on(0, "deleteStream", 0.0, [Value::Number(id.into())]);
            assert_eq!((raw.server.event(), raw.server.event()), (Some(ends.clone()), None));
            raw.server.accept_play(3, None);
            raw.server.accept_publish(2);
            raw.call_on(0, "deleteStream", 0.0, [Value::Number((5 - id).into())]);
            assert!(raw.server.event().is_some(), "the other one went on");
        }
    }
    let mut raw = both();
    raw.server.reject_publish(2, "taken");
    raw.server.fail_play(3, "no");
    let said = [(2, "onStatus 0 NetStream.Publish.BadName"), (3, "onStatus 0 NetStream.Play.Failed")];
    assert_eq!(raw.replies_by_stream(), said.map(|(id, words)| (id, words.to_owned())));
    raw.call_on(2, "publish", 0.0, [Value::string("again")]);
    assert!(matches!(raw.server.event(), Some(Event::Publish(_))), "a message stream is used again");
}

#[test]
fn a_viewer_chooses_kinds_of_media() {
    let receive = |audio, video| Event::Receive { stream_id: 1, wanted: Receives { audio, video } };
    let mut raw = Raw::playing();
    raw.call("receiveVideo", 0.0, [Value::Boolean(false)]);
    raw.call("receiveVideo", 0.0, [Value::Boolean(false)]);
    raw.call("receiveAudio", 0.0, [Value::Boolean(false)]);
    assert!(raw.replies().is_empty());
    raw.call("receiveVideo", 0.0, [Value::Boolean(true)]);
    assert_eq!(raw.replies(), ["onStatus 0 NetStream.Seek.Notify", "onStatus 0 NetStream.Play.Start"]);
    for event in [receive(true, false), receive(false, false), receive(false, true)] {
        assert_eq!(raw.server.event(), Some(event));
    }
    assert_eq!(raw.server.event(), None);
    // It counts for what is played next on this message stream, too.
    raw.call("play", 0.0, [Value::string("y")]);
    raw.server.event();
    let wanted = Receives { audio: false, video: true };
    assert!(matches!(raw.server.event(), Some(Event::Play(play)) if play.receives == wanted));
}

#[test]
fn a_stream_ends_once_however_its_end_is_said() {
    for (mut raw, end) in [(Raw::publishing(), Event::Unpublish(1)), (Raw::playing(), Event::StopPlay(1))] {
        for name in ["closeStream", "FCUnpublish", "deleteStream"] {
            raw.call(name, 0.0, [Value::Number(1.0)]);
        }
        assert_eq!((raw.server.event(), raw.server.event()), (Some(end), None));
    }
}

#[test]
fn a_viewer_may_pause_switch_and_play_another() {
    let mut raw = Raw::playing();
    raw.call("pause", 0.0, [Value::Boolean(true), Value::Number(5.0)]);
    raw.call("pauseRaw", 0.0, [Value::Boolean(false), Value::Number(6.0)]);
    raw.call("receiveAudio", 0.0, [Value::Boolean(true)]);
    raw.call("receiveVideo", 0.0, [Value::Boolean(true)]);
    raw.call("play2", 0.0, [Value::object([("streamName", Value::string("y"))])]);
    assert_eq!(raw.server.event(), Some(Event::Pause { stream_id: 1, paused: true, millis: 5.0 }));
    assert_eq!(raw.server.event(), Some(Event::Pause { stream_id: 1, paused: false, millis: 6.0 }));
    assert_eq!(raw.server.event(), Some(Event::StopPlay(1)));
    assert!(matches!(raw.server.event(), Some(Event::Play(play)) if play.stream_key == "y"));
    assert_eq!(raw.replies(), ["onStatus 0 NetStream.Pause.Notify", "onStatus 0 NetStream.Unpause.Notify"]);
}
