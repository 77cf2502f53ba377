//! The first 3073 bytes of each direction.

use crate::conform::check::{Check, Finding, Group, fail, judge, pass};
use crate::conform::lab::{CONNECT, Lab, Side};
use crate::conform::peer::{Peer, Trouble};
use crate::rtmp::handshake::{PART, SCHEMAS, digest_c1, is_signed, is_signed_for};
use bytes::Bytes;
use std::time::Duration;

const G: Group = Group::Handshake;

pub(super) const CHECKS: &[Check] = &[
    Check::new(G, "simple", "S2 repeats C1", "RTMP 1.0 §5.2.4", |lab| Box::pin(simple(lab))),
    Check::new(G, "digest-schema-0", "S2 is signed for C1's digest", "Flash Player", |lab| {
        Box::pin(digest(lab, 0, false))
    }),
    Check::new(G, "digest-schema-1", "S2 is signed for C1's digest", "Flash Player", |lab| {
        Box::pin(digest(lab, 1, false))
    }),
    Check::new(G, "digest-of-s1", "S1 is signed in C1's schema", "librtmp", |lab| {
        Box::pin(digest(lab, 0, true))
    }),
    Check::new(G, "byte-by-byte", "3073 pieces of a byte are taken", "slow and lossy lines", |lab| {
        Box::pin(byte_by_byte(lab))
    }),
    Check::new(G, "early-c2", "C2 in one write with C1 is taken", "clients that pipeline", |lab| {
        Box::pin(early_c2(lab))
    }),
    Check::new(G, "foreign-c2", "a C2 that does not repeat S1 is taken", "clients that do not echo", |lab| {
        Box::pin(foreign_c2(lab))
    }),
    Check::new(G, "other-version", "C0 of 6 is closed, or answered with 3", "RTMP 1.0 §5.2.2", |lab| {
        Box::pin(other_version(lab))
    }),
    Check::new(G, "silent-client", "who says nothing is closed within 90 s", "port scanners", |lab| {
        Box::pin(silent(lab))
    })
    .slow(Duration::from_secs(95)),
];

const VERSION: u8 = 3;

/// A C1 of the simple form.
fn simple_c1() -> Vec<u8> {
    let random = (0..PART - 8).map(|index| (index * 7) as u8);
    [0, 0, 0, 9, 0, 0, 0, 0].into_iter().chain(random).collect()
}

async fn answer(peer: &mut Peer) -> Result<(Bytes, Bytes), Trouble> {
    let s0 = peer.bytes(1, "S0").await?;
    if *s0 != [VERSION] {
        return Err(Trouble::other(format!("S0 is {}", s0.first().copied().unwrap_or_default())));
    }
    Ok((peer.bytes(PART, "S1").await?, peer.bytes(PART, "S2").await?))
}

/// The connection is good for a connect.
async fn connects(lab: &Lab, peer: &mut Peer) -> Result<(), Trouble> {
    peer.command(0, &lab.plain_connect(Side::Publish).command()).await?;
    peer.answer(CONNECT, "the answer to connect").await.map(drop)
}

async fn simple(lab: &Lab) -> Finding {
    let mut peer = lab.open(Side::Publish).await?;
    let c1 = simple_c1();
    peer.write(&[&[VERSION], &c1[..]].concat()).await?;
    let (s1, s2) = answer(&mut peer).await?;
    peer.write(&s1).await?;
    connects(lab, &mut peer).await?;
    // The first eight bytes are times: C1's, and when it was read.
    judge(
        s2.get(8..) == c1.get(8..),
        if s2.get(8..) == c1.get(8..) { "S2 repeats C1" } else { "S2 is something else" },
    )
}

async fn digest(lab: &Lab, schema: usize, look_at_s1: bool) -> Finding {
    let base = SCHEMAS.get(schema).copied().unwrap_or_default();
    let mut peer = lab.open(Side::Publish).await?;
    let c1 = digest_c1(base, &[11; 32]);
    peer.write(&[&[VERSION], &c1[..]].concat()).await?;
    let (s1, s2) = answer(&mut peer).await?;
    peer.write(&s1).await?;
    connects(lab, &mut peer).await?;
    if look_at_s1 {
        let by_version =
            if s1.get(4..8) == Some(&[0; 4]) { "the simple form" } else { "a version, no digest" };
        return match is_signed(&s1, base) {
            true => pass("S1 is signed"),
            false => fail(format!("S1 is not signed: {by_version}")),
        };
    }
    match is_signed_for(&s2, &c1, base) {
        true => pass("S2 is signed"),
        false if s2 == c1 => fail("S2 repeats C1: only the simple form"),
        false => fail("S2 is signed for something else"),
    }
}

async fn byte_by_byte(lab: &Lab) -> Finding {
    let mut peer = lab.open(Side::Publish).await?;
    for byte in [&[VERSION], &simple_c1()[..]].concat() {
        peer.write(&[byte]).await?;
    }
    let (s1, _) = answer(&mut peer).await?;
    for byte in s1 {
        peer.write(&[byte]).await?;
    }
    connects(lab, &mut peer).await?;
    pass("connect is answered")
}

async fn early_c2(lab: &Lab) -> Finding {
    let mut peer = lab.open(Side::Publish).await?;
    peer.write(&[&[VERSION], &simple_c1()[..], &[0; PART]].concat()).await?;
    answer(&mut peer).await?;
    connects(lab, &mut peer).await?;
    pass("connect is answered")
}

async fn foreign_c2(lab: &Lab) -> Finding {
    let mut peer = lab.open(Side::Publish).await?;
    peer.write(&[&[VERSION], &simple_c1()[..]].concat()).await?;
    answer(&mut peer).await?;
    peer.write(&[0xC2; PART]).await?;
    connects(lab, &mut peer).await?;
    pass("connect is answered")
}

async fn other_version(lab: &Lab) -> Finding {
    let mut peer = lab.open(Side::Publish).await?;
    // A server that has seen enough may close while this is written.
    let written = peer.write(&[&[6], &simple_c1()[..]].concat()).await;
    match peer.bytes(1, "S0").await {
        Err(Trouble::Closed(_)) => pass("closed"),
        Ok(s0) if *s0 == [VERSION] => pass("answered with 3"),
        Ok(s0) => fail(format!("S0 is {}", s0.first().copied().unwrap_or_default())),
        Err(trouble) => written.and(Err(trouble)),
    }
}

async fn silent(lab: &Lab) -> Finding {
    let mut peer = lab.open(Side::Publish).await?;
    let begun = tokio::time::Instant::now();
    match peer.bytes(1, "the end of its patience").await {
        Err(Trouble::Closed(_)) => pass(format!("closed after {} s", begun.elapsed().as_secs())),
        Ok(_) => fail("spoke first"),
        Err(trouble) => Err(trouble),
    }
}
