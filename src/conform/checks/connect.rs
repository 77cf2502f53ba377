//! The connect command, and the names in it.

use crate::conform::bodies::{self, Media};
use crate::conform::check::{Check, Finding, Group, fail, info, pass};
use crate::conform::lab::{CONNECT, Connect, Lab, PUBLISH_START, Side, create_stream, publish};
use crate::conform::peer::{Peer, Status, Trouble};
use crate::conform::scene::{arrive, opening, send};
use crate::rtmp::amf0::{Properties, Value};
use crate::rtmp::chunk;
use crate::rtmp::message::{COMMAND_AMF3, Command};
use bytes::BytesMut;

const G: Group = Group::Connect;

pub(super) const CHECKS: &[Check] = &[
    Check::new(G, "success", "_result with Connect.Success", "RTMP 1.0 §7.2.1.1", |lab| {
        Box::pin(connects(lab, lab.plain_connect(Side::Publish)))
    }),
    Check::new(G, "app-alone", "a connect that names only its app", "small clients", |lab| {
        let connect = Connect { after: Properties::new(), ..lab.plain_connect(Side::Publish) };
        Box::pin(connects(lab, connect))
    }),
    Check::new(G, "long-connect", "a connect of 3 KB, in chunks of 128", "tokens in tcUrl", |lab| {
        let connect = lab.plain_connect(Side::Publish).with("pageUrl", Value::string("u".repeat(3000)));
        Box::pin(connects(lab, connect))
    }),
    Check::new(G, "object-encoding-3", "a client that offers AMF 3 is let in", "Flash", |lab| {
        let connect = lab.plain_connect(Side::Publish).with("objectEncoding", Value::Number(3.0));
        Box::pin(connects(lab, connect))
    }),
    Check::new(G, "extra-arguments", "values behind the command object", "RTMP 1.0 §7.2.1.1", |lab| {
        let arguments = vec![Value::string("user"), Value::string("password"), Value::Null];
        Box::pin(connects(lab, Connect { arguments, ..lab.plain_connect(Side::Publish) }))
    }),
    Check::new(G, "app-slash", "an app that ends in a slash", "OBS with rtmp://host/app/", |lab| {
        Box::pin(app(lab, |app| format!("{app}/")))
    }),
    Check::new(G, "app-query", "an app with a query", "encoders with tokens in the server", |lab| {
        Box::pin(app(lab, |app| format!("{app}?token=x")))
    }),
    Check::new(G, "app-instance", "an app with an instance: app/inst", "Wowza's form of addresses", |lab| {
        Box::pin(app(lab, |app| format!("{app}/inst")))
    }),
    Check::new(G, "key-query", "the query of a key is not part of the name", "tokens in the key", |lab| {
        Box::pin(key_query(lab))
    }),
    Check::new(G, "unknown-app", "refused with a status", "RTMP 1.0 §7.2.1.1, OBS", |lab| {
        Box::pin(unknown_app(lab))
    }),
    Check::new(G, "pipelined", "all calls up to publish in one write", "clients that pipeline", |lab| {
        Box::pin(pipelined(lab))
    }),
    Check::new(G, "amf3-commands", "commands of type 17: a zero, then AMF 0", "Flash", |lab| {
        Box::pin(amf3(lab))
    }),
];

async fn connects(lab: &Lab, connect: Connect) -> Finding {
    lab.connected_by(Side::Publish, connect).await?;
    pass("NetConnection.Connect.Success")
}

/// Publishes and plays by another spelling of the app.
async fn app(lab: &Lab, spell: fn(&str) -> String) -> Finding {
    let connect = |side| {
        let plain = lab.plain_connect(side);
        Connect { app: spell(&plain.app), ..plain }
    };
    let (mut publisher, _) = lab.connected_by(Side::Publish, connect(Side::Publish)).await?;
    create_stream(&mut publisher).await?;
    publish(&mut publisher, [Value::string(lab.key(Side::Publish)), Value::string("live")]).await?;
    send(&mut publisher, &opening(1000)).await?;
    let (mut viewer, _) = lab.connected_by(Side::Play, connect(Side::Play)).await?;
    create_stream(&mut viewer).await?;
    lab.watch(&mut viewer).await?;
    let media = [Media::video(1040, bodies::avc_key(1))];
    send(&mut publisher, &media).await?;
    arrive(&mut viewer, &media).await?;
    pass("published and played")
}

async fn key_query(lab: &Lab) -> Finding {
    let with_more = |side| {
        let key = lab.key(side);
        let joint = if key.contains('?') { '&' } else { '?' };
        format!("{key}{joint}conform=1")
    };
    let mut publisher = lab.publisher_of(&with_more(Side::Publish)).await?;
    send(&mut publisher, &opening(1000)).await?;
    let mut viewer = lab.viewer().await?;
    let media = [Media::video(1040, bodies::avc_key(1))];
    send(&mut publisher, &media).await?;
    arrive(&mut viewer, &media).await?;
    pass("played without it")
}

async fn unknown_app(lab: &Lab) -> Finding {
    let mut peer = lab.greet(Side::Publish).await?;
    let connect = Connect { app: "conform-no-such-app".to_owned(), ..lab.plain_connect(Side::Publish) };
    peer.command(0, &connect.command()).await?;
    let answer = match peer.answer(CONNECT, "an answer").await {
        Err(Trouble::Closed(_)) => return info("closed without a word"),
        answer => answer?,
    };
    let Status { code, .. } = Status::of(&answer);
    if answer.name == "_error" {
        return pass(code);
    }
    // It takes any app, or refuses later.
    create_stream(&mut peer).await?;
    match publish(&mut peer, [Value::string(lab.key(Side::Publish)), Value::string("live")]).await {
        Ok(_) => info("any app is let in"),
        Err(Trouble::Refused { code, .. }) => pass(format!("connected, then {code}")),
        Err(trouble) => Err(trouble),
    }
}

/// Everything up to publish, for the first message stream.
async fn pipelined(lab: &Lab) -> Finding {
    let mut peer = lab.greet(Side::Publish).await?;
    let key = Value::string(lab.key(Side::Publish));
    let mut wire = BytesMut::new();
    lab.plain_connect(Side::Publish).command().write(&mut wire, 3, 0, peer.chunk_size);
    Command::new("createStream", 2.0, Value::Null, []).write(&mut wire, 3, 0, peer.chunk_size);
    let publish = Command::new("publish", 3.0, Value::Null, [key, Value::string("live")]);
    publish.write(&mut wire, 3, 1, peer.chunk_size);
    peer.write(&wire).await?;
    peer.status("the answer to publish", &[PUBLISH_START]).await?;
    pass("NetStream.Publish.Start")
}

async fn amf3(lab: &Lab) -> Finding {
    let mut peer = lab.connected(Side::Publish).await?;
    as_amf3(&mut peer, 0, &Command::new("createStream", 2.0, Value::Null, [])).await?;
    peer.answer(2.0, "the answer to createStream").await?;
    let key = [Value::string(lab.key(Side::Publish)), Value::string("live")];
    as_amf3(&mut peer, 1, &Command::new("publish", 3.0, Value::Null, key)).await?;
    match peer.status("the answer to publish", &[PUBLISH_START]).await {
        Ok(_) => pass("NetStream.Publish.Start"),
        Err(Trouble::Silent(_)) => fail("ignored"),
        Err(trouble) => Err(trouble),
    }
}

async fn as_amf3(peer: &mut Peer, stream_id: u32, command: &Command) -> Result<(), Trouble> {
    let Command { name, transaction, object, arguments } = command;
    let head = [Value::string(name.as_str()), Value::Number(*transaction), object.clone()];
    let body = bodies::values(&[&head[..], arguments].concat());
    let mut wire = BytesMut::new();
    let body = [&[0], &body[..]].concat();
    chunk::write_message(&mut wire, 3, 0, COMMAND_AMF3, stream_id, &body, peer.chunk_size);
    peer.write(&wire).await
}
