//! The answering side.

use super::*;
use proptest::prelude::*;

#[test]
fn answers_to_a_pipelined_round_leave_together_and_in_order() {
    let mut raw = Raw::greeted();
    raw.connect([("app", Value::string("live"))]);
    raw.call("releaseStream", 2.0, [Value::string("x")]);
    raw.call("FCPublish", 3.0, [Value::string("x")]);
    raw.call("createStream", 4.0, []);
    raw.call("publish", 5.0, [Value::string("x"), Value::string("LIVE")]);
    raw.send_message(&media(message::VIDEO, 1, b"early"));
    assert!(raw.server.output().is_empty(), "nothing before the connect is answered");
    raw.server.accept_connect();
    assert!(matches!(raw.server.event(), Some(Event::Connect(_))));
    assert!(matches!(raw.server.event(), Some(Event::Publish(_))));
    assert_eq!(raw.server.event(), None);
    raw.server.accept_publish(1);
    assert!(matches!(raw.server.event(), Some(Event::Media(_))));
    assert_eq!(
        raw.replies(),
        [
            "WindowAckSize(2500000)",
            "SetPeerBandwidth { window: 2500000, limit: 2 }",
            "SetChunkSize(60000)",
            "_result 1 NetConnection.Connect.Success",
            "_result 2 -",
            "_result 3 -",
            "onFCPublish 0 NetStream.Publish.Start",
            "_result 4 -",
            "User(StreamBegin(1))",
            "onStatus 0 NetStream.Publish.Start",
        ]
    );
}

#[test]
fn a_viewer_gets_its_status_messages_in_the_order_players_expect() {
    let mut raw = Raw::connected("live");
    raw.call("play", 5.0, [Value::string("x"), Value::Number(-1000.0)]);
    raw.server.accept_play(1, None);
    let begin = "User(StreamBegin(1))";
    let want = [begin, "onStatus 0 NetStream.Play.Reset", "onStatus 0 NetStream.Play.Start"];
    assert_eq!(raw.replies(), want);
    raw.server.end_play(1);
    let stop = "onStatus 0 NetStream.Play.Stop";
    assert_eq!(raw.replies(), ["User(StreamEof(1))", "onStatus 0 NetStream.Play.UnpublishNotify", stop]);

    let mut raw = Raw::connected("live");
    let arguments = [Value::string("x"), Value::Number(-2.0), Value::Number(-1.0), Value::Boolean(false)];
    raw.call("play", 5.0, arguments);
    raw.server.accept_play(1, None);
    assert_eq!(raw.replies(), [begin, "onStatus 0 NetStream.Play.Start"]);
}

#[test]
fn a_request_that_waits_is_withdrawn_by_what_ends_it() {
    for (request, taken) in [("publish", Event::Unpublish(1)), ("play", Event::StopPlay(1))] {
        for end in ["FCUnpublish", "closeStream", "deleteStream"] {
            if (request, end) == ("play", "FCUnpublish") {
                continue;
            }
            // The owner has taken the request.
            let mut raw = Raw::connected("live");
            raw.call(request, 5.0, [Value::string("x")]);
            assert!(matches!(raw.server.event(), Some(Event::Publish(_) | Event::Play(_))));
            raw.send_message(&media(message::VIDEO, 1, b"early"));
            raw.call(end, 0.0, []);
            assert_eq!((raw.server.event(), raw.server.event()), (Some(taken.clone()), None), "{end}");
            assert_eq!(raw.server.ignored(), 1, "media without a stream");
            raw.server.accept_publish(1);
            raw.server.accept_play(1, None);
            let replies = raw.replies();
            assert!(!replies.iter().any(|reply| reply.ends_with(".Start")), "{replies:?}");
            raw.call("createStream", 6.0, []);
            assert_eq!(raw.replies(), ["_result 6 -"]);

            // The owner has not taken it.
            let mut raw = Raw::connected("live");
            raw.call(request, 5.0, [Value::string("x")]);
            raw.call(end, 0.0, []);
            raw.call(request, 6.0, [Value::string("y")]);
            let key = match raw.server.event() {
                Some(Event::Publish(publish)) => publish.stream_key,
                Some(Event::Play(play)) => play.stream_key,
                other => panic!("{other:?}"),
            };
            assert_eq!((&key[..], raw.server.event()), ("y", None));
        }
    }
}

#[test]
fn a_play_that_waits_is_replaced_and_a_publish_is_not() {
    let mut raw = Raw::connected("live");
    raw.call("play", 5.0, [Value::string("x")]);
    assert!(matches!(raw.server.event(), Some(Event::Play(play)) if play.stream_key == "x"));
    raw.call("publish", 6.0, [Value::string("p")]);
    raw.call("play", 7.0, [Value::string("y")]);
    assert_eq!(raw.server.event(), Some(Event::StopPlay(1)));
    assert!(matches!(raw.server.event(), Some(Event::Publish(publish)) if publish.stream_key == "p"));
    raw.server.accept_publish(1);
    assert_eq!(raw.server.event(), None);
    assert_eq!(raw.replies().last().unwrap(), "onStatus 0 NetStream.Play.Failed");
}

#[test]
fn endless_zapping_keeps_nothing() {
    let mut raw = Raw::connected("live");
    for round in 0..10_000 {
        raw.call("play", 5.0, [Value::string(format!("x{round}"))]);
        raw.call("publish", 5.0, [Value::string("p")]);
        raw.call("closeStream", 0.0, []);
        raw.server.output();
    }
    assert_eq!(raw.server.event(), None);
    raw.call("play", 5.0, [Value::string("y")]);
    assert!(matches!(raw.server.event(), Some(Event::Play(play)) if play.stream_key == "y"));
}

#[test]
fn a_publisher_is_refused_and_evicted_by_bad_name() {
    let mut raw = Raw::connected("live");
    raw.call("publish", 5.0, [Value::string("x")]);
    raw.send_message(&media(message::VIDEO, 1, b"early"));
    raw.server.event();
    raw.server.reject_publish(1, "taken");
    assert_eq!(raw.replies(), ["onStatus 0 NetStream.Publish.BadName"]);
    assert_eq!((raw.server.event(), raw.server.ignored()), (None, 1));

    let mut raw = Raw::publishing();
    raw.server.end_publish(1, "another publisher took over");
    raw.send_message(&media(message::VIDEO, 1, b"late"));
    assert_eq!(raw.replies(), ["onStatus 0 NetStream.Publish.BadName"]);
    assert_eq!((raw.server.event(), raw.server.ignored()), (None, 1));
}

#[test]
fn a_refused_connect_is_an_error_and_the_end() {
    let mut raw = Raw::greeted();
    raw.connect([("app", Value::string("x"))]);
    raw.server.reject_connect("no such app");
    assert_eq!(raw.replies(), ["_error 1 NetConnection.Connect.Rejected"]);
    raw.call("createStream", 4.0, []);
    assert!(raw.replies().is_empty());
}

#[test]
fn answers_that_nobody_waits_for_do_nothing() {
    let mut raw = Raw::connected("live");
    raw.server.accept_connect();
    raw.server.accept_publish(1);
    raw.server.accept_play(1, None);
    raw.server.reject_play(1, "no");
    raw.server.end_play(1);
    raw.server.end_publish(1, "no");
    assert!(raw.replies().is_empty());
}

#[test]
fn names_arrive_in_one_form() {
    for (app, key, want_app, want_key, query) in [
        ("live", "x", "live", "x", None),
        ("live/", "x?token=1", "live", "x", Some("token=1")),
        ("live/inst", "x", "live", "inst/x", None),
        ("live?token=1", "x", "live", "x", Some("token=1")),
        ("live/x?token=1", "", "live", "x", Some("token=1")),
        ("live", "?token=1", "live", "", Some("token=1")),
    ] {
        for name in ["publish", "play"] {
            let mut raw = Raw::greeted();
            raw.connect([("app", Value::string(app))]);
            raw.server.accept_connect();
            raw.call(name, 5.0, [Value::string(key)]);
            let Some(Event::Connect(connect)) = raw.server.event() else { panic!() };
            assert_eq!(connect.app, want_app);
            let (got_key, got_query) = match raw.server.event() {
                Some(Event::Publish(publish)) => (publish.stream_key, publish.query),
                Some(Event::Play(play)) => (play.stream_key, play.query),
                other => panic!("{other:?}"),
            };
            assert_eq!((&got_key[..], got_query.as_deref()), (want_key, query), "{app} {key}");
        }
    }
}

#[test]
fn the_publish_type_may_be_anything() {
    for (kind, want) in [
        (Value::string("live"), PublishKind::Live),
        (Value::string("RECORD"), PublishKind::Record),
        (Value::string("Append"), PublishKind::Append),
        (Value::string("?"), PublishKind::Live),
        (Value::Null, PublishKind::Live),
    ] {
        let mut raw = Raw::connected("live");
        raw.call("publish", 5.0, [Value::string("x"), kind]);
        assert!(matches!(raw.server.event(), Some(Event::Publish(publish)) if publish.kind == want));
    }
}

#[test]
fn queries_are_in_no_debug_text() {
    let mut raw = Raw::greeted();
    raw.connect([
        ("app", Value::string("live?a=secret")),
        ("tcUrl", Value::string("rtmp://h/live?a=secret")),
    ]);
    raw.server.accept_connect();
    raw.call("publish", 5.0, [Value::string("x?b=secret")]);
    let events = [raw.server.event(), raw.server.event()];
    let target = target("x?c=secret");
    let text = format!("{events:?} {target:?}");
    assert!(text.contains("\"x\"") && !text.contains("secret"), "{text}");
}

#[test]
fn every_known_command_is_answered_and_unknown_ones_politely_refused() {
    for (name, want) in [
        ("_checkbw", vec!["_result 9 -"]),
        ("releaseStream", vec!["_result 9 -"]),
        ("getStreamLength", vec!["_result 9 -"]),
        ("FCSubscribe", vec!["_result 9 -", "onFCSubscribe 0 NetStream.Play.Start"]),
        ("FCUnpublish", vec!["_result 9 -", "onFCUnpublish 0 NetStream.Unpublish.Success"]),
        ("seek", vec!["onStatus 0 NetStream.Seek.Failed"]),
        ("closeStream", vec![]),
        ("deleteStream", vec![]),
        ("brew", vec!["_error 9 NetConnection.Call.Failed"]),
        ("_result", vec![]),
        ("_error", vec![]),
    ] {
        let mut raw = Raw::connected("live");
        raw.call(name, 9.0, [Value::string("x")]);
        assert_eq!(raw.replies(), want, "{name}");
    }
    let mut raw = Raw::connected("live");
    raw.call("brew", 0.0, []);
    assert!(raw.replies().is_empty());
    assert_eq!(raw.server.ignored(), 1);
}

#[test]
fn media_arrives_as_it_was_sent_and_bad_data_costs_only_itself() {
    let mut raw = Raw::publishing();
    let metadata = &b"\x02\0\x0aonMetaData\x05"[..];
    raw.send_message(&media(message::DATA_AMF0, 0, &[message::SET_DATA_FRAME, metadata].concat()));
    raw.send_message(&media(message::DATA_AMF3, 0, &[&[0], metadata].concat()));
    raw.send_message(&media(message::DATA_AMF0, 0, b"\x05junk"));
    raw.send_message(&media(99, 0, b"unknown"));
    raw.send_message(&media(message::VIDEO, 0, b""));
    let tags = [&b"\x09\0\0\x01\0\0\x05\0\0\0\0v\0\0\0\x0c"[..], b"\x08\0\0\x01\0\0\x07\0\0\0\0a\0\0\0\x0c"];
    raw.send_message(&media(message::AGGREGATE, 100, &tags.concat()));
    for (type_id, timestamp, body) in [
        (message::DATA_AMF0, 0, metadata),
        (message::DATA_AMF0, 0, metadata),
        (message::VIDEO, 100, b"v"),
        (message::AUDIO, 102, b"a"),
    ] {
        let Some(Event::Media(got)) = raw.server.event() else { panic!() };
        assert_eq!((got.type_id, got.timestamp, &got.body[..]), (type_id, timestamp, body));
    }
    assert_eq!((raw.server.event(), raw.server.ignored()), (None, 3));
}

#[test]
fn what_makes_no_sense_costs_itself_and_a_flood_of_it_the_connection() {
    let malformed = [
        media(message::COMMAND_AMF0, 0, b"\x05"),
        media(message::COMMAND_AMF0, 0, b"\x11\x04"),
        media(message::COMMAND_AMF3, 0, b"\0\xff"),
        media(message::USER_CONTROL, 0, b""),
        media(message::USER_CONTROL, 0, &[0, 3, 0, 0, 0, 1]),
        media(message::USER_CONTROL, 0, &[0, 26, 0]),
        media(message::ABORT, 0, &[1]),
        media(message::ACKNOWLEDGEMENT, 0, &[1, 2, 3]),
        media(message::WINDOW_ACK_SIZE, 0, b""),
        media(message::SET_PEER_BANDWIDTH, 0, &[1]),
    ];
    for message in &malformed {
        let mut raw = Raw::publishing();
        raw.send_message(message);
        raw.send_message(&media(message::VIDEO, 7, b"v"));
        assert!(matches!(raw.server.event(), Some(Event::Media(_))), "{message:?}");
        assert_eq!((raw.server.event(), raw.server.ignored()), (None, 1), "{message:?}");

        // Now and then is borne for ever.
        for _ in 0..1000 {
            raw.send_message(message);
            (0..2).for_each(|_| raw.send_message(&media(message::VIDEO, 7, b"v")));
        }
        let flood = (0..1000).map(|_| raw.server.input(&wire(message)).err());
        let (borne, error) = flood.enumerate().find_map(|(n, error)| Some((n, error?))).unwrap();
        assert!((60..=64).contains(&borne), "{borne} in a row of {message:?}");
        let Error::Malformed { max: 64, last } = error else { panic!("{error:?}") };
        assert!(!matches!(*last, Error::Malformed { .. }));
    }
    // How the peer cuts its messages is not known after this.
    let mut raw = Raw::publishing();
    for body in [&[0, 0][..], &[0; 4]] {
        assert!(raw.server.input(&wire(&media(message::SET_CHUNK_SIZE, 0, body))).is_err());
    }
}

#[test]
fn acknowledgements_follow_the_peers_window() {
    let mut raw = Raw::publishing();
    let mut window = BytesMut::new();
    Control::WindowAckSize(1000).write(&mut window);
    raw.server.input(&window).unwrap();
    raw.replies();
    let message = wire(&media(message::AUDIO, 0, &[1; 900]));
    let mut acknowledgements = 0;
    for _ in 0..10 {
        raw.server.input(&message).unwrap();
        acknowledgements +=
            raw.replies().iter().filter(|reply| reply.starts_with("Acknowledgement(")).count();
    }
    assert_eq!(acknowledgements, 5, "two messages exceed the window");
    let mut zero = BytesMut::new();
    Control::WindowAckSize(0).write(&mut zero);
    raw.server.input(&zero).unwrap();
    raw.replies();
    raw.server.input(&zero).unwrap();
    assert!(raw.replies().is_empty(), "a window of 0 is no window");
}

#[test]
fn pings_are_answered_in_both_directions() {
    let mut raw = Raw::playing();
    let mut ping = BytesMut::new();
    Control::User(UserControl::PingRequest(77)).write(&mut ping);
    raw.server.input(&ping).unwrap();
    assert_eq!(raw.replies(), ["User(PingResponse(77))"]);
    raw.server.ping(5);
    assert_eq!(raw.replies(), ["User(PingRequest(5))"]);
    let mut pong = BytesMut::new();
    Control::User(UserControl::PingResponse(5)).write(&mut pong);
    raw.server.input(&pong).unwrap();
    assert_eq!(raw.server.event(), Some(Event::Pong(5)));

    let (mut client, mut server, _) =
        established(Client::play(&target("x"), Limits::default(), NONCE), usize::MAX);
    client_events(&mut client);
    client.ping(6);
    exchange(&mut client, &mut server, usize::MAX);
    assert_eq!(client.event(), Some(ClientEvent::Pong(6)));
}

#[test]
fn enhanced_rtmp_is_answered_in_kind_and_only_when_offered() {
    let answer = |offer: Vec<(&str, Value)>| {
        let mut raw = Raw::greeted();
        let offer = offer.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        raw.send(Command::new("connect", 1.0, Value::Object(offer), []));
        raw.server.accept_connect();
        let output = raw.server.output();
        let mut input = &output[..];
        std::iter::from_fn(|| {
            let message = raw.reader.read(&mut input).unwrap()?;
            if let Some(Control::SetChunkSize(size)) = Control::parse(&message).unwrap() {
                raw.reader.set_chunk_size(size).unwrap();
            }
            Some(message)
        })
        .filter(|message| message.type_id == message::COMMAND_AMF0)
        .map(|message| Command::parse(&message, &Limits::default()).unwrap().object)
        .last()
        .unwrap()
    };
    let codecs = Value::StrictArray(vec![Value::string("av01"), Value::string("hvc1")]);
    let map = Value::object([("av01", Value::Number(1.0))]);
    let object = answer(vec![
        ("fourCcList", codecs.clone()),
        ("videoFourCcInfoMap", map.clone()),
        ("audioFourCcInfoMap", map),
        ("capsEx", Value::Number(3.0)),
    ]);
    assert_eq!(object.get("fourCcList"), Some(&codecs));
    assert_eq!(object.get("videoFourCcInfoMap"), Some(&Value::object([("*", Value::Number(4.0))])));
    assert_eq!(object.get("audioFourCcInfoMap"), Some(&Value::object([("*", Value::Number(4.0))])));
    assert_eq!(object.get("capsEx"), Some(&Value::Number(3.0)), "reconnects, and several tracks");
    let object = answer(vec![("app", Value::string("live"))]);
    for name in ["fourCcList", "videoFourCcInfoMap", "audioFourCcInfoMap", "capsEx"] {
        assert_eq!(object.get(name), None);
    }
}

#[test]
fn who_follows_reconnect_requests_is_told_where_to_go_and_nobody_else() {
    for (caps, address, tc_url) in [
        (Some(1.0), Some("rtmp://b/live"), Some(Some("rtmp://b/live/inst?token=1"))),
        (Some(15.0), None, Some(None)),
        (Some(14.0), Some("rtmp://b/live"), None),
        (None, Some("rtmp://b/live"), None),
    ] {
        let mut raw = Raw::greeted();
        let mut connect = vec![("app".to_owned(), Value::string("live/inst?token=1"))];
        connect.extend(caps.map(|caps| ("capsEx".to_owned(), Value::Number(caps))));
        raw.send(Command::new("connect", 1.0, Value::Object(connect), []));
        assert!(!raw.server.request_reconnect(address), "not before it is connected");
        raw.server.accept_connect();
        raw.replies();
        assert_eq!(raw.server.request_reconnect(address), tc_url.is_some());
        let output = raw.server.output();
        let request = raw.reader.read(&mut &output[..]).unwrap();
        assert_eq!(request.is_some(), tc_url.is_some());
        let Some((request, tc_url)) = request.zip(tc_url) else { continue };
        assert_eq!(request.stream_id, 0);
        let command = Command::parse(&request, &Limits::default()).unwrap();
        let text = |name| command.argument(0).and_then(|info| info.get(name)?.as_str());
        assert_eq!(command.name, "onStatus");
        assert_eq!(text("code"), Some("NetConnection.Connect.ReconnectRequest"));
        assert_eq!((text("level"), text("tcUrl")), (Some("status"), tc_url));
    }
}

#[test]
fn impatience_and_long_names_have_limits() {
    let limits = Limits { deferred_messages: 3, name_bytes: 100, ..Limits::default() };
    let mut raw = Raw::with(limits);
    raw.connect([("app", Value::string("live"))]);
    let message = wire(&media(message::VIDEO, 0, b"v"));
    for _ in 0..3 {
        raw.server.input(&message).unwrap();
    }
    assert!(matches!(raw.server.input(&message), Err(Error::Impatient { messages: 3, .. })));

    let mut raw = Raw::with(limits);
    let mut connect = BytesMut::new();
    let app = Value::object([("app", Value::string("a".repeat(101)))]);
    Command::new("connect", 1.0, app, []).write(&mut connect, 3, 0, 128);
    let error = Error::NameTooLong { what: "app", length: 101, max: 100 };
    assert_eq!(raw.server.input(&connect), Err(error));
}

#[test]
fn an_error_in_what_was_held_back_comes_out_of_the_next_input() {
    let mut raw = Raw::with(Limits { name_bytes: 100, ..Limits::default() });
    raw.connect([("app", Value::string("live"))]);
    raw.call("play", 2.0, [Value::string("x".repeat(101))]);
    raw.server.accept_connect();
    assert!(matches!(raw.server.input(b""), Err(Error::NameTooLong { .. })));
}

#[test]
fn idle_sessions_are_small_and_keep_no_buffers() {
    assert!(size_of::<Server>() < 1024, "{}", size_of::<Server>());
    assert!(size_of::<Client>() < 1024, "{}", size_of::<Client>());
    let mut raw = Raw::playing();
    raw.server.output();
    assert_eq!(raw.server.event(), None);
    assert!(raw.server.owns_nothing());
}

proptest! {
    #[test]
    fn a_server_says_the_same_however_its_input_is_cut(
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..30),
        length in 1..5000usize,
    ) {
        let mut wire_bytes = vec![3];
        wire_bytes.resize(1 + 2 * 1536, 0);
        let app = Value::object([("app", Value::string("live"))]);
        let mut commands = BytesMut::new();
        Command::new("connect", 1.0, app, []).write(&mut commands, 3, 0, 128);
        Command::new("createStream", 2.0, Value::Null, []).write(&mut commands, 3, 0, 128);
        Command::new("publish", 3.0, Value::Null, [Value::string("x")]).write(&mut commands, 3, 1, 128);
        wire_bytes.extend(&commands);
        wire_bytes.extend(&wire(&media(message::VIDEO, 7, &vec![5; length])));

        let run = |cuts: &[usize]| {
            let mut server = Server::new(Limits::default(), NONCE);
            let (mut events, mut output, mut start) = (Vec::new(), Vec::new(), 0);
            for &end in cuts.iter().chain([&wire_bytes.len()]) {
                server.input(&wire_bytes[start..end]).unwrap();
                start = end;
                while let Some(event) = server.event() {
                    match event {
                        Event::Connect(_) => server.accept_connect(),
                        Event::Publish(_) => server.accept_publish(1),
                        _ => {}
                    }
                    events.push(event);
                }
                output.extend(server.output());
            }
            (events, output)
        };
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(wire_bytes.len() + 1)).collect();
        cuts.sort();
        let whole = run(&[]);
        prop_assert_eq!(whole.0.len(), 3);
        prop_assert_eq!(run(&cuts), whole);
    }
}
