//! What the fuzz targets do with their input. The ordinary tests run the same functions on generated input, so they are
//! exercised without cargo-fuzz too. Whoever includes this file has `rtmp` in scope.

use super::rtmp::session::{Client, ClientEvent, Event, Server, Target};
use super::rtmp::{Limits, amf0, chunk, handshake};
use bytes::BytesMut;

const NONCE: handshake::Nonce = [3; 32];

/// Splits the input's first byte off: it steers, the rest is fed.
fn steer(data: &[u8]) -> (u8, &[u8]) {
    data.split_first().map_or((0, data), |(first, rest)| (*first, rest))
}

/// Whatever can be read can be written and read again.
pub fn amf0(data: &[u8]) {
    let Ok(values) = amf0::read_all(data, &amf0::Limits::default()) else {
        return;
    };
    let mut written = BytesMut::new();
    values.iter().for_each(|value| amf0::write(&mut written, value));
    // Text that was not UTF-8 grows when it is written, which may make a short string a long one.
    let again = amf0::read_all(&written, &amf0::Limits::default());
    assert_eq!(again.map(|values| values.len()), Ok(values.len()));
}

/// The reader gives the same messages for whole input and for pieces, and stays within its limits.
pub fn chunk(data: &[u8]) {
    let (piece, data) = steer(data);
    let limits = Limits { message_bytes: 1 << 16, partial_bytes: 1 << 17, ..Limits::default() };
    let run = |piece: usize| {
        let mut reader = chunk::Reader::new(&limits);
        let mut messages = Vec::new();
        for mut piece in data.chunks(piece.max(1)) {
            loop {
                match reader.read(&mut piece) {
                    Ok(Some(message)) => messages.push(message),
                    Ok(None) => break,
                    Err(_) => return messages,
                }
                assert!(reader.partial_bytes() <= limits.partial_bytes);
            }
            assert!(piece.is_empty());
        }
        messages
    };
    assert_eq!(run(data.len()), run(piece.into()));
}

/// Neither side of the handshake takes or gives more than its share.
pub fn handshake(data: &[u8]) {
    let (piece, data) = steer(data);
    let mut out = BytesMut::new();
    let mut server = handshake::Server::new(NONCE);
    for mut piece in data.chunks(usize::from(piece) + 1) {
        if !matches!(server.read(&mut piece, &mut out), Ok(false)) {
            break;
        }
    }
    assert!(out.is_empty() || out.len() == 1 + 2 * handshake::PART);
    out.clear();
    let mut client = handshake::Client::new(NONCE, &mut out);
    for mut piece in data.chunks(usize::from(piece) + 1) {
        if !matches!(
            client.read(&mut piece, &mut out),
            Ok(handshake::Progress::Waiting | handshake::Progress::MaySend)
        ) {
            break;
        }
    }
    assert!([1, 2].map(|parts| 1 + (parts * handshake::PART)).contains(&out.len()));
}

/// A server past its handshake, with an owner that accepts or refuses as the first byte says.
pub fn server_session(data: &[u8]) {
    let (steer, data) = steer(data);
    let mut server = Server::new(Limits::default(), NONCE);
    let mut greeting = vec![3];
    greeting.resize(1 + 2 * handshake::PART, 0);
    assert_eq!(server.input(&greeting), Ok(()));
    for piece in data.chunks(usize::from(steer % 64) + 1) {
        if server.input(piece).is_err() {
            break;
        }
        while let Some(event) = server.event() {
            match event {
                Event::Connect(_) if steer & 64 == 0 => server.accept_connect(),
                Event::Connect(_) => server.reject_connect("no"),
                Event::Publish(publish) if steer & 128 == 0 => server.accept_publish(publish.stream_id),
                Event::Publish(publish) => server.reject_publish(publish.stream_id, "no"),
                Event::Play(play) if steer & 128 == 0 => {
                    server.accept_play(play.stream_id, Some(steer.into()))
                }
                Event::Play(play) => server.reject_play(play.stream_id, "no"),
                _ => {}
            }
        }
        server.output();
    }
}

/// A client past its handshake.
pub fn client_session(data: &[u8]) {
    let (steer, data) = steer(data);
    let target = Target { app: "a".into(), tc_url: "rtmp://h/a".into(), stream_key: "k".into() };
    let mut client = match steer & 64 {
        0 => Client::play(&target, Limits::default(), NONCE),
        _ => Client::publish(&target, Limits::default(), NONCE),
    };
    let mut greeting = vec![3];
    greeting.resize(1 + 2 * handshake::PART, 0);
    assert_eq!(client.input(&greeting), Ok(()));
    for piece in data.chunks(usize::from(steer % 64) + 1) {
        if client.input(piece).is_err() {
            break;
        }
        while let Some(event) = client.event() {
            if let ClientEvent::Media(message) = event {
                client.send_media(&message);
            }
        }
        client.output();
    }
}
