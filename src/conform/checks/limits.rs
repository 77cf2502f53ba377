//! What the server does with peers that go too far: it may close their connection, and nobody else may notice.

use crate::conform::bodies::{self, Media, noise};
use crate::conform::check::{Check, Finding, Group, fail, info, pass};
use crate::conform::chunk::Header;
use crate::conform::lab::{Connect, Lab, Side};
use crate::conform::peer::{Peer, Trouble};
use crate::conform::scene::Scene;
use crate::rtmp::amf0::Value;
use crate::rtmp::chunk::put_basic_header;
use crate::rtmp::message::{Command, Control, VIDEO};
use bytes::{BufMut, BytesMut};

const G: Group = Group::Limits;

pub(super) const CHECKS: &[Check] = &[
    Check::new(
        G,
        "garbage",
        "an HTTP request to the RTMP port is closed",
        "port scanners, browsers",
        |lab| Box::pin(garbage(lab)),
    ),
    Check::new(G, "chunk-size-0", "closed, or ignored", "RTMP 1.0 §5.4.1", |lab| {
        Box::pin(chunk_size_0(lab))
    }),
    Check::new(G, "format-3-first", "a chunk that refers to nothing", "RTMP 1.0 §5.3.1.2", |lab| {
        Box::pin(format_3_first(lab))
    }),
    Check::new(G, "unfinished-message", "16 MB announced, never finished", "denial of service", |lab| {
        Box::pin(unfinished(lab))
    }),
    Check::new(G, "many-chunk-streams", "5,000 chunk streams, all unfinished", "denial of service", |lab| {
        Box::pin(many_chunk_streams(lab))
    }),
    Check::new(G, "many-streams", "1,000 calls of createStream", "denial of service", |lab| {
        Box::pin(many_streams(lab))
    }),
    Check::new(G, "many-calls", "2,000 calls that nobody knows", "denial of service", |lab| {
        Box::pin(many_calls(lab))
    }),
    Check::new(G, "random-chunks", "64 KB of noise behind connect", "broken encoders", |lab| {
        Box::pin(random_chunks(lab))
    }),
    Check::new(G, "long-app", "an app of 60,000 characters", "denial of service", |lab| {
        Box::pin(long_app(lab))
    }),
    Check::new(G, "alive", "after all this, a plain publish and play", "everybody else", |lab| {
        Box::pin(alive(lab))
    }),
];

async fn garbage(lab: &Lab) -> Finding {
    let mut peer = lab.open(Side::Publish).await?;
    let request = format!("GET / HTTP/1.1\r\nHost: x\r\nCookie: {}\r\n\r\n", "c".repeat(4000));
    // It may be closed while it is written.
    let written = peer.write(request.as_bytes()).await;
    match (written, peer.bytes(1, "a close").await) {
        (Err(trouble), _) | (_, Err(trouble)) if trouble.is_closed() => pass("closed"),
        (_, Ok(_)) => fail("answered"),
        (_, Err(trouble)) => Err(trouble),
    }
}

async fn chunk_size_0(lab: &Lab) -> Finding {
    let witness = lab.witness().await?;
    let mut scene = Scene::start(lab, 1000).await?;
    let mut wire = BytesMut::new();
    Control::SetChunkSize(0).write(&mut wire);
    let media = [Media::video(1040, bodies::avc_key(1))];
    let went_on = match scene.publisher.write(&wire).await {
        Ok(()) if scene.publisher.closes_within(lab.quiet()).await => {
            Err(Trouble::Closed("the next message".to_owned()))
        }
        Ok(()) => scene.relays(&media).await.map(drop),
        closed => closed,
    };
    witness.sees_it_alive().await?;
    match went_on {
        Err(trouble) if trouble.is_closed() => pass("closed"),
        Ok(()) => info("ignored: the stream goes on"),
        Err(_) => fail("neither closed nor ignored: nothing is read any more"),
    }
}

/// Sends what goes too far on one connection, and looks at another one. `what` is said if the first one goes on.
async fn survives(lab: &Lab, mut peer: Peer, wire: &[u8], what: &str) -> Finding {
    let witness = lab.witness().await?;
    let sent = peer.write(wire).await;
    let closed = sent.is_err() || peer.closes_within(lab.quiet()).await;
    witness.sees_it_alive().await?;
    match closed {
        true => pass("its connection is closed, others go on"),
        false => pass(format!("{what}, others go on")),
    }
}

async fn format_3_first(lab: &Lab) -> Finding {
    let peer = lab.connected(Side::Publish).await?;
    let mut wire = BytesMut::new();
    // An even number, which the noise of another check never has.
    put_basic_header(&mut wire, 3, 10);
    wire.put_slice(&noise(1, 200));
    survives(lab, peer, &wire, "it is read as something").await
}

async fn unfinished(lab: &Lab) -> Finding {
    let publisher = lab.publisher().await?;
    let mut wire = BytesMut::new();
    let header = Header {
        format: 0,
        chunk_stream_id: 6,
        time: 0,
        length: 0xFF_FFFF,
        type_id: VIDEO,
        stream_id: publisher.stream_id,
    };
    header.put(&mut wire);
    for (index, piece) in noise(1, 200_000).chunks(publisher.chunk_size).enumerate() {
        if index > 0 {
            put_basic_header(&mut wire, 3, 6);
        }
        wire.put_slice(piece);
    }
    survives(lab, publisher, &wire, "it waits for the rest").await
}

async fn many_chunk_streams(lab: &Lab) -> Finding {
    let publisher = lab.publisher().await?;
    let mut wire = BytesMut::new();
    for chunk_stream_id in 10..5010 {
        let header = Header {
            format: 0,
            chunk_stream_id,
            time: 0,
            length: 1000,
            type_id: VIDEO,
            stream_id: publisher.stream_id,
        };
        header.put(&mut wire);
        wire.put_slice(&noise(chunk_stream_id, publisher.chunk_size));
    }
    survives(lab, publisher, &wire, "all are held").await
}

async fn many_streams(lab: &Lab) -> Finding {
    let witness = lab.witness().await?;
    let mut peer = lab.connected(Side::Publish).await?;
    let mut last = 0.0;
    for _ in 0..1000 {
        match peer.call(0, "createStream", []).await {
            Ok(transaction) => last = transaction,
            Err(_) => break,
        }
    }
    let answered = peer.answer(last, "the last answer").await;
    witness.sees_it_alive().await?;
    match answered {
        Ok(answer) => pass(format!("the last is answered with {}", answer.name)),
        Err(trouble) if trouble.is_closed() => pass("its connection is closed, others go on"),
        Err(trouble) => Err(trouble),
    }
}

async fn many_calls(lab: &Lab) -> Finding {
    let witness = lab.witness().await?;
    let mut peer = lab.connected(Side::Publish).await?;
    let went_on = call_in_vain(&mut peer).await;
    witness.sees_it_alive().await?;
    match went_on {
        Ok(()) => pass("all are taken"),
        Err(trouble) if trouble.is_closed() => pass("its connection is closed, others go on"),
        Err(trouble) => Err(trouble),
    }
}

/// In batches, behind each of which the answers are read: a server may stop reading while its answers are not.
async fn call_in_vain(peer: &mut Peer) -> Result<(), Trouble> {
    for _ in 0..20 {
        let mut wire = BytesMut::new();
        for transaction in 1000..1100_u32 {
            let call = Command::new("conformNoSuchCall", transaction.into(), Value::Null, []);
            call.write(&mut wire, 3, 0, peer.chunk_size);
        }
        peer.write(&wire).await?;
        peer.goes_on().await?;
    }
    Ok(())
}

async fn random_chunks(lab: &Lab) -> Finding {
    let peer = lab.connected(Side::Publish).await?;
    survives(lab, peer, &noise(7, 64 << 10), "it is read as something").await
}

async fn long_app(lab: &Lab) -> Finding {
    let witness = lab.witness().await?;
    let connect = Connect { app: "a".repeat(60_000), ..lab.plain_connect(Side::Publish) };
    let said = match lab.connected_by(Side::Publish, connect).await {
        Ok(_) => "it is let in".to_owned(),
        Err(Trouble::Refused { code, .. }) => code,
        Err(trouble) if trouble.is_closed() => "closed".to_owned(),
        Err(trouble) => return Err(trouble),
    };
    witness.sees_it_alive().await?;
    pass(format!("{said}, others go on"))
}

async fn alive(lab: &Lab) -> Finding {
    let mut scene = Scene::start(lab, 1000).await?;
    scene.relays(&[Media::video(1040, bodies::avc_key(1)), Media::audio(1040, bodies::aac_frame(1))]).await?;
    pass("published and played")
}
