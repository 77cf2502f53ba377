//! Windows, acknowledgements, pings, and messages that nobody knows.

use crate::conform::bodies::{self, Media};
use crate::conform::check::{Check, Finding, Group, fail, info, pass};
use crate::conform::lab::{CONNECT, Lab, Side, publish};
use crate::conform::peer::{Peer, Trouble, answer_to};
use crate::conform::scene::{Scene, opening, send};
use crate::rtmp::amf0::Value;
use crate::rtmp::chunk;
use crate::rtmp::message::{self, Control, UserControl};
use bytes::BytesMut;
use std::time::Duration;

const G: Group = Group::Control;

pub(super) const CHECKS: &[Check] = &[
    Check::new(G, "window-ack-size", "told before connect is answered", "RTMP 1.0 §7.2.1.1", |lab| {
        Box::pin(before_answer(lab, "Window Acknowledgement Size", |control| {
            matches!(control, Control::WindowAckSize(_))
        }))
    }),
    Check::new(G, "peer-bandwidth", "told before connect is answered", "RTMP 1.0 §7.2.1.1", |lab| {
        Box::pin(before_answer(lab, "Set Peer Bandwidth", |control| {
            matches!(control, Control::SetPeerBandwidth { .. })
        }))
    }),
    Check::new(G, "acknowledgement", "one for each window of bytes", "RTMP 1.0 §5.4.3", |lab| {
        Box::pin(acknowledgement(lab))
    }),
    Check::new(G, "ping-answered", "a ping response with the same time", "RTMP 1.0 §7.1.7", |lab| {
        Box::pin(ping(lab))
    }),
    Check::new(G, "ping-while-playing", "a viewer's ping is answered too", "RTMP 1.0 §7.1.7", |lab| {
        Box::pin(ping_while_playing(lab))
    }),
    Check::new(G, "server-pings", "a ping request within 90 s", "RTMP 1.0 §7.1.7", |lab| {
        Box::pin(server_pings(lab))
    })
    .slow(Duration::from_secs(95)),
    Check::new(
        G,
        "unknown-event",
        "user control events 26, 31, 32 are ignored",
        "SRS (26), FMS (31, 32)",
        |lab| {
            Box::pin(ignored(lab, &[(4, &[0, 26, 1]), (4, &[0, 31, 0, 0, 0, 1]), (4, &[0, 32, 0, 0, 0, 1])]))
        },
    ),
    Check::new(
        G,
        "short-control",
        "control messages that are cut are ignored",
        "one bad message, not more",
        |lab| Box::pin(ignored(lab, &[(5, &[0, 1]), (3, &[0]), (4, &[0]), (4, &[0, 3, 0, 0])])),
    ),
    Check::new(G, "unknown-type", "messages of types 7, 16, 99 are ignored", "shared objects", |lab| {
        Box::pin(ignored(lab, &[(7, &[0; 4]), (16, &[0; 9]), (99, &[1, 2, 3])]))
    }),
];

async fn before_answer(lab: &Lab, what: &str, is: fn(&Control) -> bool) -> Finding {
    let mut peer = lab.greet(Side::Publish).await?;
    peer.command(0, &lab.plain_connect(Side::Publish).command()).await?;
    let mut told = None;
    peer.until("the answer to connect", |message| {
        told = told.or(Control::parse(message).ok().flatten().filter(is));
        answer_to(message, CONNECT)
    })
    .await?;
    match told {
        Some(Control::WindowAckSize(window)) => pass(format!("{window} bytes")),
        Some(Control::SetPeerBandwidth { window, limit }) => pass(format!("{window} bytes, type {limit}")),
        _ => fail(format!("no {what}")),
    }
}

async fn acknowledgement(lab: &Lab) -> Finding {
    const WINDOW: u32 = 20_000;
    let mut publisher = lab.ready(Side::Publish).await?;
    publisher.control(Control::WindowAckSize(WINDOW)).await?;
    publish(&mut publisher, [Value::string(lab.key(Side::Publish)), Value::string("live")]).await?;
    send(&mut publisher, &opening(1000)).await?;
    let frame = |mark| Media::video(1000 + 40 * mark, bodies::long_avc_key(mark, 10_000));
    send(&mut publisher, &[frame(1), frame(2), frame(3), frame(4), frame(5)]).await?;
    let received = publisher
        .until("an acknowledgement", |message| match Control::parse(message) {
            Ok(Some(Control::Acknowledgement(received))) => Some(received),
            _ => None,
        })
        .await?;
    // The handshake may count or not; more than was sent cannot have been received.
    match received {
        10_000..=60_000 => pass(format!("{received} bytes acknowledged")),
        other => fail(format!("{other} bytes acknowledged, of 55,000 sent")),
    }
}

async fn answered(peer: &mut Peer, time: u32) -> Finding {
    peer.control(Control::User(UserControl::PingRequest(time))).await?;
    let answer = peer
        .until("a ping response", |message| match Control::parse(message) {
            Ok(Some(Control::User(UserControl::PingResponse(time)))) => Some(time),
            _ => None,
        })
        .await?;
    match answer == time {
        true => pass("answered"),
        false => fail(format!("answered with {answer}, asked with {time}")),
    }
}

async fn ping(lab: &Lab) -> Finding {
    answered(&mut lab.ready(Side::Publish).await?, 0x0102_0304).await
}

async fn ping_while_playing(lab: &Lab) -> Finding {
    let mut scene = Scene::start(lab, 1000).await?;
    scene.viewer.control(Control::Acknowledgement(1000)).await?;
    answered(&mut scene.viewer, 0x0a0b_0c0d).await
}

async fn server_pings(lab: &Lab) -> Finding {
    let mut publisher = lab.publisher().await?;
    send(&mut publisher, &opening(1000)).await?;
    let begun = tokio::time::Instant::now();
    let pinged = publisher
        .until("a ping request", |message| {
            let control = Control::parse(message);
            matches!(control, Ok(Some(Control::User(UserControl::PingRequest(_))))).then_some(())
        })
        .await;
    match pinged {
        Ok(()) => pass(format!("after {} s", begun.elapsed().as_secs())),
        Err(Trouble::Silent(_)) => info("none: half-open peers are found by other means, or not"),
        Err(trouble) => Err(trouble),
    }
}

/// Messages that mean nothing cost themselves and not the connection.
async fn ignored(lab: &Lab, messages: &[(u8, &[u8])]) -> Finding {
    let mut scene = Scene::start(lab, 1000).await?;
    for (type_id, body) in messages {
        let mut wire = BytesMut::new();
        let chunk_stream_id =
            if *type_id <= message::SET_PEER_BANDWIDTH { chunk::CONTROL_CHUNK_STREAM } else { 3 };
        chunk::write_message(&mut wire, chunk_stream_id, 0, *type_id, 0, body, scene.publisher.chunk_size);
        scene.publisher.write(&wire).await?;
    }
    scene.relays(&[Media::video(1040, bodies::avc_key(1)), Media::audio(1040, bodies::aac_frame(1))]).await?;
    pass("the stream goes on")
}
