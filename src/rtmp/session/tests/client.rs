//! The asking side, and both sides together.

use super::*;
use crate::rtmp::amf0;

#[test]
fn a_client_publishes_to_a_server_in_pieces_of_any_size() {
    for piece in [1, 7, 1537, usize::MAX] {
        let client = Client::publish(&target("x?token=1"), Limits::default(), NONCE);
        let (mut client, mut server, request) = established(client, piece);
        let Event::Publish(publish) = request else { panic!("{request:?}") };
        assert_eq!((&publish.stream_key[..], publish.query.as_deref()), ("x", Some("token=1")));
        assert_eq!(client_events(&mut client).last(), Some(&ClientEvent::Publishing));

        let metadata = media(message::DATA_AMF0, 0, b"\x02\0\x0aonMetaData\x05");
        let sent =
            [metadata, media(message::VIDEO, 3, &[9; 100_000]), media(message::AUDIO, 0x0100_0000, b"a")];
        assert!(sent.iter().all(|message| client.send_media(message)));
        exchange(&mut client, &mut server, piece);
        for message in sent {
            assert_eq!(server.event(), Some(Event::Media(message)));
        }
        client.close();
        exchange(&mut client, &mut server, piece);
        assert_eq!((server.event(), server.event()), (Some(Event::Unpublish(1)), None));
        assert_eq!(server.ignored(), 0);
    }
}

#[test]
fn a_client_plays_from_a_server_in_pieces_of_any_size() {
    for piece in [1, 7, 1537, usize::MAX] {
        let client = Client::play(&target("x"), Limits::default(), NONCE);
        let (mut client, mut server, request) = established(client, piece);
        assert!(
            matches!(&request, Event::Play(play) if play.stream_key == "x" && play.start < 0.0 && play.reset)
        );
        assert_eq!(client_events(&mut client).last(), Some(&ClientEvent::Playing { relay: None }));

        let sent = [media(message::VIDEO, 3, &[9; 100_000]), media(message::AUDIO, u32::MAX, b"a")];
        for message in &sent {
            let mut wire = BytesMut::new();
            let id = message.chunk_stream_id;
            let Message { timestamp, type_id, body, .. } = message;
            chunk::write_message(&mut wire, id, *timestamp, *type_id, PLAY_STREAM_ID, body, OUT_CHUNK_SIZE);
            wire.chunks(piece).for_each(|piece| client.input(piece).unwrap());
        }
        assert_eq!(client_events(&mut client), sent.map(ClientEvent::Media));
        server.end_play(1);
        exchange(&mut client, &mut server, piece);
        let events = client_events(&mut client);
        assert_eq!(events[0], ClientEvent::StreamEof);
        assert!(
            matches!(&events[1], ClientEvent::Status { code, .. } if code == "NetStream.Play.UnpublishNotify")
        );
        client.close();
        assert_eq!(client.ignored(), 0);
    }
}

#[test]
fn a_client_asks_for_everything_in_one_round_with_c2() {
    for (mut client, last) in [
        (Client::play(&target("x"), Limits::default(), NONCE), "play"),
        (Client::publish(&target("x"), Limits::default(), NONCE), "publish"),
    ] {
        client.output();
        client.input(&[&[3][..], &[0; 1536]].concat()).unwrap();
        let output = client.output();
        let mut reader = Reader::new(&Limits::default());
        let mut input = &output[1536..];
        let mut names = Vec::new();
        while let Some(message) = reader.read(&mut input).unwrap() {
            match Control::parse(&message).unwrap() {
                Some(Control::SetChunkSize(size)) => reader.set_chunk_size(size).unwrap(),
                Some(_) => {}
                None => names.push(Command::parse(&message, &Limits::default()).unwrap().name),
            }
        }
        assert_eq!((names[0].as_str(), names.last().unwrap().as_str()), ("connect", last));
        assert!(names.contains(&"createStream".to_owned()));
        client.input(&[0; 1536]).unwrap();
        assert!(client.output().is_empty(), "S2 changes nothing");
    }
}

/// What a client has to say, as the names of its commands, with the message stream and the first argument of each.
fn calls(client: &mut Client, reader: &mut Reader) -> Vec<String> {
    let output = client.output();
    let mut input = &output[..];
    let mut calls = Vec::new();
    while let Some(message) = reader.read(&mut input).unwrap() {
        match Control::parse(&message).unwrap() {
            Some(Control::SetChunkSize(size)) => reader.set_chunk_size(size).unwrap(),
            Some(_) => {}
            None => {
                let command = Command::parse(&message, &Limits::default()).unwrap();
                let key = command.argument(0).and_then(Value::as_str).unwrap_or_default();
                calls.push(format!("{} {} {key}", command.name, message.stream_id));
            }
        }
    }
    calls
}

fn answer(client: &mut Client, transaction: f64, object: Value, argument: Value) {
    let mut reply = BytesMut::new();
    Command::new("_result", transaction, object, [argument]).write(&mut reply, 3, 0, 128);
    client.input(&reply).unwrap();
}

fn play_start(client: &mut Client, level: &str) {
    let info = [("code", Value::string("NetStream.Play.Start")), ("level", Value::string(level))];
    let mut reply = BytesMut::new();
    Command::new("onStatus", 0.0, Value::Null, [Value::object(info)]).write(&mut reply, 3, 1, 128);
    client.input(&reply).unwrap();
}

#[test]
fn a_client_asks_an_unknown_server_for_one_thing_after_the_other() {
    let mut client = Client::connect(&target(""), Limits::default(), NONCE);
    client.output();
    client.input(&[&[3][..], &[0; 2 * 1536]].concat()).unwrap();
    let mut reader = Reader::new(&Limits::default());
    let output = client.output();
    let mut input = &output[1536..];
    let connect = reader.read(&mut input).unwrap().unwrap();
    assert_eq!(Command::parse(&connect, &Limits::default()).unwrap().name, "connect");
    assert!(input.is_empty(), "not even a chunk size comes with it");
    client.play_stream("early");
    assert!(calls(&mut client, &mut reader).is_empty(), "connect has not been answered");
    answer(&mut client, 4.0, Value::Null, Value::Number(9.0));
    assert!(calls(&mut client, &mut reader).is_empty(), "nobody asked for a stream");

    answer(&mut client, 1.0, Value::object([("fmsVer", Value::string("FMS/3"))]), Value::Null);
    assert_eq!(client_events(&mut client), [ClientEvent::Connected]);
    assert!(!client.is_lb());
    assert!(calls(&mut client, &mut reader).is_empty(), "the owner says what to play");
    client.play_stream("x");
    client.play_stream("y");
    assert_eq!(calls(&mut client, &mut reader), ["createStream 0 "]);
    for _ in 0..2 {
        answer(&mut client, 4.0, Value::Null, Value::Number(7.0));
    }
    assert_eq!(calls(&mut client, &mut reader), ["play 7 x"]);
    // No stream was guessed, so what is said on stream 1 counts.
    play_start(&mut client, "status");
    assert_eq!(client_events(&mut client), [ClientEvent::Playing { relay: None }]);
}

#[test]
fn a_client_asks_an_lb_server_for_all_the_rest_once_it_says_so() {
    let mut client = Client::connect(&target(""), Limits::default(), NONCE);
    let mut server = Server::new(Limits::default(), NONCE);
    exchange(&mut client, &mut server, usize::MAX);
    server.accept_connect();
    exchange(&mut client, &mut server, usize::MAX);
    assert_eq!(client_events(&mut client), [ClientEvent::Connected]);
    assert!(client.is_lb());
    client.play_stream("x");
    let mut reader = Reader::new(&Limits::default());
    assert_eq!(calls(&mut client, &mut reader), ["createStream 0 ", "play 1 x"]);
}

#[test]
fn a_client_takes_an_error_for_one_whatever_its_code() {
    let mut client = Client::play(&target("x"), Limits::default(), NONCE);
    client.input(&[&[3][..], &[0; 2 * 1536]].concat()).unwrap();
    play_start(&mut client, "error");
    let events = client_events(&mut client);
    assert!(
        matches!(&events[..], [ClientEvent::Status { level, .. }, ClientEvent::Closed] if level == "error")
    );
}

#[test]
fn a_client_repeats_its_request_on_the_stream_that_it_gets() {
    let mut client = Client::play(&target("x"), Limits::default(), NONCE);
    client.input(&[&[3][..], &[0; 2 * 1536]].concat()).unwrap();
    client.output();
    let mut reply = BytesMut::new();
    Command::new("_result", 4.0, Value::Null, [Value::Number(7.0)]).write(&mut reply, 3, 0, 128);
    let info = |code| Value::object([("level", Value::string("error")), ("code", Value::string(code))]);
    Command::new("onStatus", 0.0, Value::Null, [info("NetStream.Failed")]).write(&mut reply, 3, 1, 128);
    client.input(&reply).unwrap();
    assert_eq!(client.event(), None, "the guessed stream's failure does not matter");
    let mut reader = Reader::new(&Limits::default());
    let output = client.output();
    let mut input = &output[..];
    reader.read(&mut input).unwrap().unwrap();
    let play = reader.read(&mut input).unwrap().unwrap();
    assert_eq!(play.stream_id, 7);
    assert_eq!(Command::parse(&play, &Limits::default()).unwrap().name, "play");
}

#[test]
fn a_client_learns_which_relay_stream_it_plays() {
    for relay in [None, Some(0), Some(0x1234_5678_9abc_def0), Some(u64::MAX)] {
        let mut client = Client::play(&target("x"), Limits::default(), NONCE);
        let mut server = Server::new(Limits::default(), NONCE);
        exchange(&mut client, &mut server, usize::MAX);
        server.accept_connect();
        server.accept_play(1, relay);
        exchange(&mut client, &mut server, usize::MAX);
        assert_eq!(client_events(&mut client).last(), Some(&ClientEvent::Playing { relay }));
    }

    // What another server calls so, or a wrong value, is no relay stream.
    for value in [Value::Number(5.0), Value::string(""), Value::string("x"), Value::string("1".repeat(17))] {
        let mut client = Client::play(&target("x"), Limits::default(), NONCE);
        client.input(&[&[3][..], &[0; 2 * 1536]].concat()).unwrap();
        let info = Value::object([("code", Value::string("NetStream.Play.Start")), ("relayId", value)]);
        let mut reply = BytesMut::new();
        Command::new("onStatus", 0.0, Value::Null, [info]).write(&mut reply, 3, 1, 128);
        client.input(&reply).unwrap();
        assert_eq!(client_events(&mut client), [ClientEvent::Playing { relay: None }]);
    }
}

#[test]
fn a_refused_client_learns_why_and_closes() {
    let mut client = Client::play(&target("x"), Limits::default(), NONCE);
    let mut server = Server::new(Limits::default(), NONCE);
    exchange(&mut client, &mut server, usize::MAX);
    server.accept_connect();
    server.reject_play(1, "no such stream");
    exchange(&mut client, &mut server, usize::MAX);
    let events = client_events(&mut client);
    let [ClientEvent::Connected, ClientEvent::Status { code, description, level }, ClientEvent::Closed] =
        &events[..]
    else {
        panic!("{events:?}")
    };
    assert_eq!(
        (&code[..], &description[..], &level[..]),
        ("NetStream.Play.StreamNotFound", "no such stream", "error")
    );

    let mut client = Client::publish(&target("x"), Limits::default(), NONCE);
    let mut server = Server::new(Limits::default(), NONCE);
    exchange(&mut client, &mut server, usize::MAX);
    server.reject_connect("no");
    exchange(&mut client, &mut server, usize::MAX);
    let events = client_events(&mut client);
    assert!(matches!(&events[..], [ClientEvent::Status { .. }, ClientEvent::Closed]), "{events:?}");
}

#[test]
fn a_client_bears_what_it_does_not_understand_unless_there_is_no_end_of_it() {
    let (mut client, ..) = established(Client::play(&target("x"), Limits::default(), NONCE), usize::MAX);
    client_events(&mut client);
    let malformed = [
        media(message::USER_CONTROL, 0, &[0]),
        media(message::USER_CONTROL, 0, &[0, 3, 0, 0]),
        media(message::USER_CONTROL, 0, &[0, 99, 1]),
        media(message::WINDOW_ACK_SIZE, 0, &[1]),
        media(message::COMMAND_AMF0, 0, b"\x11"),
    ];
    for round in 1..=100 {
        for malformed in &malformed {
            client.input(&wire(malformed)).unwrap();
        }
        // Media that makes sense.
        (0..10).for_each(|_| client.input(&wire(&media(message::AUDIO, 5, b"a"))).unwrap());
        assert_eq!((client_events(&mut client).len(), client.ignored()), (10, 5 * round));
    }
    let endless = (0..1000).find_map(|_| client.input(&wire(&malformed[1])).err());
    assert!(matches!(endless, Some(Error::Malformed { .. })), "{endless:?}");
}

#[test]
fn the_count_of_received_bytes_wraps_on_both_sides() {
    let (mut client, mut server, _) =
        established(Client::publish(&target("x"), Limits::default(), NONCE), usize::MAX);
    server.set_received(u32::MAX - 999_999);
    let mut acknowledged = Vec::new();
    let mut reader = Reader::new(&Limits::default());
    for time in 0..200 {
        client.send_media(&media(message::VIDEO, time, &[7; 50_000]));
        server.input(&client.output()).unwrap();
        let output = server.output();
        acknowledgements(&mut reader, &output, &mut acknowledged);
        client.input(&output).unwrap();
        assert!(matches!(server.event(), Some(Event::Media(_))), "nothing is lost at {time}");
    }
    // The window is 2,500,000 bytes; a million of them were left up to the wrap.
    let near = |at: u32| (at..at + 50_100).contains(&acknowledged[0]);
    assert!(acknowledged.len() == 4 && near(1_500_000), "{acknowledged:?}");
    assert!(acknowledged.is_sorted(), "{acknowledged:?}");

    let (mut client, _, _) = established(Client::play(&target("x"), Limits::default(), NONCE), usize::MAX);
    client.set_received(u32::MAX - 999_999);
    client.output();
    let mut acknowledged = Vec::new();
    let mut reader = Reader::new(&Limits::default());
    reader.set_chunk_size(OUT_CHUNK_SIZE as u32).unwrap();
    let mut wire = BytesMut::new();
    chunk::write_message(&mut wire, 6, 7, message::VIDEO, 1, &[7; 50_000], OUT_CHUNK_SIZE);
    for _ in 0..200 {
        client.input(&wire).unwrap();
        acknowledgements(&mut reader, &client.output(), &mut acknowledged);
    }
    let near = |at: u32| (at..at + 50_100).contains(&acknowledged[0]);
    assert!(acknowledged.len() == 4 && near(1_500_000), "{acknowledged:?}");
}

fn acknowledgements(reader: &mut Reader, mut output: &[u8], acknowledged: &mut Vec<u32>) {
    while let Some(message) = reader.read(&mut output).unwrap() {
        if let Ok(Some(Control::Acknowledgement(bytes))) = Control::parse(&message) {
            acknowledged.push(bytes);
        }
    }
}

#[test]
fn a_client_keeps_the_servers_own_data_out_of_the_stream() {
    let client = Client::play(&target("x"), Limits::default(), NONCE);
    let (mut client, ..) = established(client, usize::MAX);
    client_events(&mut client);
    client.input(&wire(&media(message::DATA_AMF0, 0, b"\x02\0\x11|RtmpSampleAccess\x01\x01"))).unwrap();
    assert_eq!(client.event(), None);
    client.input(&wire(&media(message::DATA_AMF0, 0, b"\x02\0\x0aonTextData\x05"))).unwrap();
    assert!(matches!(client.event(), Some(ClientEvent::Media(_))));
}

#[test]
fn only_an_lb_node_says_that_another_publish_begins_and_no_publisher_does() {
    for is_lb in [true, false] {
        let mut client = Client::play(&target("x"), Limits::default(), NONCE);
        client.input(&[&[3][..], &[0; 2 * 1536]].concat()).unwrap();
        let name = if is_lb { "lb" } else { "other" };
        answer(&mut client, 1.0, Value::object([(name, Value::string("1"))]), Value::Null);
        play_start(&mut client, "status");
        client_events(&mut client);

        let mut wire = BytesMut::new();
        Control::SetChunkSize(OUT_CHUNK_SIZE as u32).write(&mut wire);
        let mut said = BytesMut::new();
        amf0::write(&mut said, &Value::string("onStatus"));
        let code = [("code", Value::string("NetStream.Play.PublishNotify"))];
        amf0::write(&mut said, &Value::object(code));
        let (frame, data) = (media(message::VIDEO, 0, &[0x17, 1]), media(message::DATA_AMF0, 0, &said));
        let write = |wire: &mut BytesMut, Message { type_id, body, .. }: &Message| {
            chunk::write_message(wire, 6, 0, *type_id, PLAY_STREAM_ID, body, OUT_CHUNK_SIZE);
        };
        // A data message may be the publisher's.
        [&frame, &data].into_iter().for_each(|message| write(&mut wire, message));
        wire.extend_from_slice(&publish_notify());
        write(&mut wire, &frame);
        client.input(&wire).unwrap();

        let events = client_events(&mut client);
        let said = events.iter().map(|event| match event {
            ClientEvent::Media(_) => "media",
            ClientEvent::PublishBegins => "begins",
            ClientEvent::Status { code, .. } => code,
            _ => "other",
        });
        let code = "NetStream.Play.PublishNotify";
        let of_server = if is_lb { "begins" } else { code };
        assert_eq!(said.collect::<Vec<_>>(), ["media", code, of_server, "media"]);
        assert_eq!(client.ignored(), 0);
    }
}
