//! What the fuzz targets beyond RTMP do with their input. `tests/corpora.rs` runs the same functions on the committed corpora.
//! The input's first byte picks what is read.

use futures::FutureExt;
use lb::api::{Change, Heartbeat, HeartbeatReply, PublisherLookup, WatcherLookup};
use lb::auth::PullKey;
use lb::auth::callback::{Verdict, judge};
use lb::auth::jwt::Keys;
use lb::auth::key_file::KeyFile;
use lb::media::flv;
use std::net::IpAddr;
use std::sync::LazyLock;
use warp::http::{HeaderMap, HeaderValue};

static KEYS: LazyLock<Option<Keys>> = LazyLock::new(|| Keys::parse("0123456789abcdef0123456789abcdef").ok());
static PULL_KEY: LazyLock<PullKey> = LazyLock::new(|| PullKey::of("token"));

fn steer(data: &[u8]) -> (u8, &[u8]) {
    data.split_first().map_or((0, data), |(first, rest)| (*first, rest))
}

/// Keys, tokens, answers and signatures: whatever they hold, nobody is let in by it.
pub fn auth(data: &[u8]) {
    let (steer, data) = steer(data);
    let text = String::from_utf8_lossy(data);
    match steer % 5 {
        0 => drop(KeyFile::parse(&text)),
        1 => drop(Keys::parse(&text)),
        2 => assert!(KEYS.as_ref().is_some_and(|keys| keys.claims(&text).is_err())),
        3 => {
            if let Verdict::Refused(reason) = judge(401, data) {
                assert!(!reason.is_empty() && !reason.chars().any(char::is_control));
            }
            drop(judge(200, data));
        }
        _ => {
            let name = "x".parse();
            assert!(name.is_ok_and(|name| PULL_KEY.check(&name, Some(&text), 1_800_000_000).is_err()));
        }
    }
}

/// What reactors and nodes tell each other, and what configurations hold.
pub fn texts(data: &[u8]) {
    let (steer, data) = steer(data);
    let text = String::from_utf8_lossy(data);
    match steer % 8 {
        0 => drop(serde_json::from_slice::<PublisherLookup>(data)),
        1 => drop(serde_json::from_slice::<WatcherLookup>(data)),
        2 => drop(serde_json::from_slice::<Heartbeat>(data)),
        3 => drop(serde_json::from_slice::<HeartbeatReply>(data)),
        4 => drop(serde_json::from_slice::<Change>(data)),
        5 => {
            if let Ok(location) = lb::net::location::Location::parse(&text) {
                assert!(!location.to_string().contains('?'), "a query is never shown");
            }
        }
        6 => drop(lb::steps::definition::parse("f", &text, &Default::default())),
        _ => drop(lb::web::Template::parse(&text)),
    }
}

/// What ffmpeg writes to its pipe: the same tags for whole input and for pieces, none beyond the limit.
pub fn flv(data: &[u8]) {
    const LIMIT: usize = 1 << 16;
    let (piece, data) = steer(data);
    let run = |piece: usize| {
        let mut reader = flv::Reader::new(LIMIT);
        let mut packets = Vec::new();
        for mut piece in data.chunks(piece.max(1)) {
            loop {
                match reader.read(&mut piece) {
                    Ok(Some(packet)) => packets.push(packet),
                    Ok(None) => break,
                    Err(_) => return packets,
                }
            }
        }
        packets
    };
    let packets = run(data.len());
    assert!(packets.iter().all(|packet| packet.body.len() <= LIMIT));
    assert_eq!(packets, run(piece.into()));
}

/// What stands in front of a proxied connection, and in the headers of a proxied request.
pub fn proxied(data: &[u8]) {
    let (steer, data) = steer(data);
    let mut rest = data;
    match steer % 3 {
        0 => {
            let before = rest.len();
            // Everything is there, so it never waits.
            let read = lb::net::proxy::read_header(&mut rest).now_or_never();
            assert!(read.is_some() && before - rest.len() <= 16 + 2048);
        }
        header => {
            let Ok(value) = HeaderValue::from_bytes(data) else { return };
            let mut headers = HeaderMap::new();
            headers.append(if header == 1 { "forwarded" } else { "x-forwarded-for" }, value);
            let peer = IpAddr::from([192, 0, 2, 1]);
            assert_eq!(lb::web::forwarded::client(peer, &headers, &[]), peer, "nobody is believed");
            let trusted = [peer.into()];
            lb::web::forwarded::client(peer, &headers, &trusted);
        }
    }
}

/// What a player over HTTP sends: the head of its request, or frames of its WebSocket.
pub fn player(data: &[u8]) {
    use lb::net::http::{request, websocket};
    let (steer, data) = steer(data);
    if steer % 2 == 0 {
        let whole = request::read(data);
        // What is not complete is no answer yet, and what was answered once is answered so again.
        for end in 0..data.len() {
            if let Some(early) = request::read(&data[..end]) {
                let refused = |read: &request::Request| matches!(read, request::Request::Refused(..));
                assert!(refused(&early) || whole.as_ref() == Some(&early));
            }
        }
        return;
    }
    let mut input = bytes::BytesMut::from(data);
    let mut left = input.len();
    while let Ok(Some(_)) = websocket::take(&mut input) {
        assert!(input.len() < left, "a frame has at least two bytes");
        left = input.len();
    }
}
