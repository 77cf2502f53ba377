//! Both sides against each other, and each against commands written by hand.

mod client;
mod message_streams;
mod server;

use super::*;
use crate::rtmp::amf0::Value;
use crate::rtmp::chunk::{self, Reader};
use crate::rtmp::message::{self, Command, Control, Message, UserControl};
use crate::rtmp::{Error, Limits};
use bytes::{Bytes, BytesMut};

const NONCE: [u8; 32] = [1; 32];

fn target(stream_key: &str) -> Target {
    Target { app: "live".into(), tc_url: "rtmp://h/live".into(), stream_key: stream_key.into() }
}

fn media(type_id: u8, timestamp: u32, body: &[u8]) -> Message {
    let chunk_stream_id = chunk_stream(type_id);
    Message { type_id, timestamp, stream_id: 1, chunk_stream_id, body: Bytes::copy_from_slice(body) }
}

/// A server past its handshake, and the bytes of a peer that writes by hand.
struct Raw {
    server: Server,
    reader: Reader,
}

impl Raw {
    fn greeted() -> Raw {
        Raw::with(Limits::default())
    }

    fn with(limits: Limits) -> Raw {
        let mut server = Server::new(limits, NONCE);
        server.input(&[&[3][..], &[0; 2 * 1536]].concat()).unwrap();
        assert!(server.handshake_done());
        assert_eq!(server.output().len(), 1 + 2 * 1536);
        Raw { server, reader: Reader::new(&Limits::default()) }
    }

    fn connected(app: &str) -> Raw {
        let mut raw = Raw::greeted();
        raw.connect([("app", Value::string(app))]);
        assert!(matches!(raw.server.event(), Some(Event::Connect(_))));
        raw.server.accept_connect();
        raw.replies();
        raw
    }

    fn publishing() -> Raw {
        let mut raw = Raw::connected("live");
        raw.call("publish", 5.0, [Value::string("x")]);
        assert!(matches!(raw.server.event(), Some(Event::Publish(_))));
        raw.server.accept_publish(1);
        raw.replies();
        raw
    }

    fn playing() -> Raw {
        let mut raw = Raw::connected("live");
        raw.call("play", 5.0, [Value::string("x")]);
        assert!(matches!(raw.server.event(), Some(Event::Play(_))));
        raw.server.accept_play(1, None);
        raw.replies();
        raw
    }

    fn connect<const N: usize>(&mut self, object: [(&str, Value); N]) {
        self.send(Command::new("connect", 1.0, Value::object(object), []));
    }

    fn call(&mut self, name: &str, transaction: f64, arguments: impl Into<Vec<Value>>) {
        self.call_on(1, name, transaction, arguments);
    }

    /// A call on a message stream.
    fn call_on(&mut self, stream: u32, name: &str, transaction: f64, arguments: impl Into<Vec<Value>>) {
        let mut wire = BytesMut::new();
        Command::new(name, transaction, Value::Null, arguments).write(&mut wire, 3, stream, 128);
        self.server.input(&wire).unwrap();
    }

    fn send(&mut self, command: Command) {
        let mut wire = BytesMut::new();
        command.write(&mut wire, 3, 1, 128);
        self.server.input(&wire).unwrap();
    }

    fn send_message(&mut self, message: &Message) {
        self.server.input(&wire(message)).unwrap();
    }

    /// Everything that was sent back, in words.
    fn replies(&mut self) -> Vec<String> {
        self.replies_by_stream().into_iter().map(|(_, words)| words).collect()
    }

    /// The same, each with its message stream.
    fn replies_by_stream(&mut self) -> Vec<(u32, String)> {
        let output = self.server.output();
        let mut input = &output[..];
        let mut words = Vec::new();
        while let Some(message) = self.reader.read(&mut input).unwrap() {
            let said = match Control::parse(&message).unwrap() {
                Some(control) => {
                    if let Control::SetChunkSize(size) = control {
                        self.reader.set_chunk_size(size).unwrap();
                    }
                    format!("{control:?}")
                }
                None if message.type_id == message::DATA_AMF0 => "data".into(),
                None => {
                    let command = Command::parse(&message, &Limits::default()).unwrap();
                    let code = command.argument(0).and_then(|info| info.get("code")?.as_str());
                    format!("{} {} {}", command.name, command.transaction, code.unwrap_or("-"))
                }
            };
            words.push((message.stream_id, said));
        }
        words
    }
}

fn wire(message: &Message) -> BytesMut {
    let mut wire = BytesMut::new();
    let Message { type_id, timestamp, stream_id, chunk_stream_id, body } = message;
    chunk::write_message(&mut wire, *chunk_stream_id, *timestamp, *type_id, *stream_id, body, 128);
    wire
}

/// Client and server exchange what they have, in pieces of `piece` bytes, until both are silent.
fn exchange(client: &mut Client, server: &mut Server, piece: usize) {
    loop {
        let (up, down) = (client.output(), server.output());
        if up.is_empty() && down.is_empty() {
            return;
        }
        up.chunks(piece).for_each(|piece| server.input(piece).unwrap());
        down.chunks(piece).for_each(|piece| client.input(piece).unwrap());
    }
}

fn established(mut client: Client, piece: usize) -> (Client, Server, Event) {
    let mut server = Server::new(Limits::default(), NONCE);
    exchange(&mut client, &mut server, piece);
    assert!(matches!(server.event(), Some(Event::Connect(_))));
    assert_eq!(server.event(), None, "the rest waits");
    server.accept_connect();
    let request = server.event().unwrap();
    match request {
        Event::Publish(_) => server.accept_publish(1),
        _ => server.accept_play(1, None),
    }
    exchange(&mut client, &mut server, piece);
    assert_eq!(client.event(), Some(ClientEvent::Connected));
    (client, server, request)
}

fn client_events(client: &mut Client) -> Vec<ClientEvent> {
    std::iter::from_fn(|| client.event()).collect()
}
