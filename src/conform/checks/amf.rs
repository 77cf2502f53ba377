//! AMF values beyond the common ones. They stand in front of the app in a connect, so that a server which cannot read
//! past them finds none.

use crate::conform::bodies::{self, Media};
use crate::conform::check::{Check, Finding, Group, pass};
use crate::conform::lab::{CONNECT, Connect, Lab, Side};
use crate::conform::peer::{Peer, Status, Trouble};
use crate::conform::scene::Scene;
use crate::rtmp::amf0::Value;
use crate::rtmp::chunk;
use crate::rtmp::message::{COMMAND_AMF0, DATA_AMF0};
use bytes::BytesMut;

const G: Group = Group::Amf;

pub(super) const CHECKS: &[Check] = &[
    Check::new(G, "long-string", "type 12 is read", "AMF 0 §2.14", |lab| {
        Box::pin(value(lab, Value::LongString("l".repeat(200))))
    }),
    Check::new(G, "date", "type 11 is read", "AMF 0 §2.13", |lab| {
        Box::pin(value(lab, Value::Date { millis: 1.7e12, time_zone: 0 }))
    }),
    Check::new(G, "undefined", "type 6 is read", "AMF 0 §2.8, Flash", |lab| {
        Box::pin(value(lab, Value::Undefined))
    }),
    Check::new(G, "unsupported", "type 13 is read", "AMF 0 §2.15", |lab| {
        Box::pin(value(lab, Value::Unsupported))
    }),
    Check::new(G, "xml", "type 15 is read", "AMF 0 §2.17", |lab| {
        Box::pin(value(lab, Value::XmlDocument("<a/>".to_owned())))
    }),
    Check::new(G, "typed-object", "type 16 is read", "AMF 0 §2.18, Flash", |lab| {
        let properties = vec![("a".to_owned(), Value::Number(1.0))];
        Box::pin(value(lab, Value::TypedObject { class: "Conform".to_owned(), properties }))
    }),
    Check::new(G, "reference", "type 7 is read", "AMF 0 §2.9", |lab| {
        Box::pin(value(lab, Value::Reference(0)))
    }),
    Check::new(G, "strict-array", "type 10 is read", "AMF 0 §2.12, fourCcList", |lab| {
        Box::pin(value(lab, Value::StrictArray(vec![Value::string("avc1"), Value::Number(1.0)])))
    }),
    Check::new(G, "ecma-array-count", "the count of type 8 is not believed", "encoders that send 0", |lab| {
        Box::pin(ecma_array(lab))
    }),
    Check::new(
        G,
        "unknown-marker",
        "costs the message, not the connection",
        "AMF 3 values in AMF 0",
        |lab| Box::pin(unknown_marker(lab)),
    ),
    Check::new(G, "deep-nesting", "50,000 levels do not hurt the server", "denial of service", |lab| {
        Box::pin(deep_nesting(lab))
    }),
    Check::new(G, "claimed-count", "a count of four billion costs nothing", "denial of service", |lab| {
        Box::pin(claimed_count(lab))
    }),
];

async fn value(lab: &Lab, value: Value) -> Finding {
    let before = vec![("conform".to_owned(), value)];
    lab.connected_by(Side::Publish, Connect { before, ..lab.plain_connect(Side::Publish) }).await?;
    pass("the app behind it is found")
}

/// A connect by hand, with a body of its own.
async fn connects_with(lab: &Lab, object: &[u8]) -> Finding {
    let mut peer = lab.greet(Side::Publish).await?;
    let body = [&bodies::values(&[Value::string("connect"), Value::Number(CONNECT)]), object].concat();
    message(&mut peer, COMMAND_AMF0, 0, &body).await?;
    let answer = peer.answer(CONNECT, "the answer to connect").await?;
    match Status::of(&answer) {
        Status { code, .. } if answer.name == "_result" => pass(code),
        Status { code, .. } => Err(Trouble::Refused { what: "connect".to_owned(), code }),
    }
}

async fn message(peer: &mut Peer, type_id: u8, stream_id: u32, body: &[u8]) -> Result<(), Trouble> {
    let mut wire = BytesMut::new();
    chunk::write_message(&mut wire, 3, 0, type_id, stream_id, body, peer.chunk_size);
    peer.write(&wire).await
}

/// The command object as an associative array that says it has no members.
async fn ecma_array(lab: &Lab) -> Finding {
    let connect = lab.plain_connect(Side::Publish).command();
    let properties = connect.object.properties().unwrap_or_default().to_vec();
    let mut object = bodies::values(&[Value::EcmaArray(properties)]).to_vec();
    object.iter_mut().skip(1).take(4).for_each(|byte| *byte = 0);
    connects_with(lab, &object).await
}

async fn unknown_marker(lab: &Lab) -> Finding {
    let mut scene = Scene::start(lab, 1000).await?;
    let call = bodies::values(&[Value::string("conformNoSuchCall"), Value::Number(0.0), Value::Null]);
    for body in [&[&call[..], &[0x11, 4, 4]].concat()[..], &[&call[..], &[0x77, 1, 2]].concat(), &[0x77, 1]] {
        message(&mut scene.publisher, COMMAND_AMF0, 0, body).await?;
    }
    scene.relays(&[Media::video(1040, bodies::avc_key(1))]).await?;
    pass("the stream goes on")
}

/// Sends data that hurts who parses it carelessly, and looks at another connection.
async fn survives(lab: &Lab, body: &[u8]) -> Finding {
    let witness = lab.witness().await?;
    let mut scene = Scene::start(lab, 1000).await?;
    let stream_id = scene.publisher.stream_id;
    // The server may close at any moment.
    let sent = message(&mut scene.publisher, DATA_AMF0, stream_id, body).await;
    let media = [Media::video(1040, bodies::avc_key(1))];
    let went_on = match sent {
        Ok(()) => scene.relays(&media).await.map(drop),
        closed => closed,
    };
    witness.sees_it_alive().await?;
    match went_on {
        Ok(()) => pass("the stream goes on"),
        Err(trouble) if trouble.is_closed() => pass("its connection is closed"),
        Err(trouble) => Err(trouble),
    }
}

async fn deep_nesting(lab: &Lab) -> Finding {
    let name = bodies::values(&[Value::string("onConform")]);
    survives(lab, &[&name[..], &b"\x03\x00\x01a".repeat(50_000)].concat()).await
}

async fn claimed_count(lab: &Lab) -> Finding {
    let name = bodies::values(&[Value::string("onConform")]);
    survives(lab, &[&name[..], b"\x0a\xff\xff\xff\xff\x05\x05"].concat()).await
}
