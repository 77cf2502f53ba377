//! One publisher sends the smallest messages there are, as fast as the node takes them. It costs its own stream, a core and
//! a bounded amount of memory; other streams lose nothing. How late others are is measured by `scripts/bench`, not here.

use crate::common::endpoint;
use crate::common::lb::Lb;
use crate::common::publisher::Publisher;
use crate::common::viewer::Viewer;
use crate::common::{SOON, poll, wait_for};
use crate::nodes::*;
use lb::rtmp::session::{Client, ClientEvent, PLAY_STREAM_ID, Target};
use lb::rtmp::{Limits, Message};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// The other streams of the node, with a viewer each.
const OTHERS: usize = 10;

/// How many frames each of them publishes beside the flood: eight seconds of them.
const FRAMES: u64 = 200;

/// What a flooded stream may cost a node, beyond what it used before:
/// - 32 MiB: the flooded stream's ring with all that it counts (`relay::Settings::ring_bytes`);
/// - 32 MiB: as much again. Blocks are allocated by whichever worker thread reads the publisher, and the allocator does not
///   give what one thread's arena has free to another's: with glibc's 74 MiB in all were seen with two threads, and 40 with one arena;
/// - 16 MiB: one read of 64 KiB, which holds 22,000 messages of three bytes, in each of its forms (messages, events and
///   packets of some hundred bytes each), and what is gathered for the next block, in either arena;
/// - 16 MiB: the rings of ten streams of 35 kB/s, and all else that grows while a node runs.
const MEMORY: u64 = 96 << 20;

/// A connection that publishes, once it may.
struct Flood {
    over: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

/// A viewer that reads as fast as it can and looks at nothing.
struct Drain {
    socket: TcpStream,
    bytes: Arc<AtomicU64>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

fn target(server: SocketAddr, app: &str) -> Target {
    endpoint::target(server, app, "flood")
}

/// Shakes hands and asks, until the server has answered with this.
fn negotiate(
    socket: &mut TcpStream,
    client: &mut Client,
    done: impl Fn(&ClientEvent) -> bool,
) -> io::Result<()> {
    let mut scratch = [0; 4096];
    loop {
        socket.write_all(&client.output())?;
        let n = socket.read(&mut scratch)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        client.input(&scratch[..n]).map_err(io::Error::other)?;
        while let Some(event) = client.event() {
            if done(&event) {
                return socket.write_all(&client.output());
            }
        }
    }
}

impl Flood {
    /// Publishes a keyframe; the rest comes with [`Flood::begin`].
    #[track_caller]
    fn publish(node: &Lb) -> (TcpStream, Client) {
        let mut socket = TcpStream::connect(node.rtmp()).unwrap();
        let mut client =
            Client::publish(&target(node.rtmp(), "ingest"), Limits::default(), endpoint::nonce());
        negotiate(&mut socket, &mut client, |event| matches!(event, ClientEvent::Publishing)).unwrap();
        let body = bytes::Bytes::from_static(&[0x12, 1]);
        let stream_id = PLAY_STREAM_ID;
        client.send_media(&Message { type_id: 9, stream_id, chunk_stream_id: 0, timestamp: 0, body });
        socket.write_all(&client.output()).unwrap();
        (socket, client)
    }

    /// Sends until it is dropped: after one whole header, chunks of format 3 that repeat it, with a frame of two bytes each,
    /// in a codec whose frames have no longer head. A keyframe comes now and then: who falls behind goes on there.
    fn begin((mut socket, client): (TcpStream, Client)) -> Flood {
        let (over, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stop, count) = (over.clone(), sent.clone());
        let thread = std::thread::spawn(move || {
            let _client = client;
            let [a, b, c, d] = PLAY_STREAM_ID.to_le_bytes();
            socket.write_all(&[8, 0, 0, 1, 0, 0, 2, 9, a, b, c, d, 0x22, 1])?;
            let wire = [&[0xc8, 0x12, 1][..], &[0xc8, 0x22, 1].repeat((32 << 10) - 1)].concat();
            while !stop.load(Ordering::Relaxed) {
                socket.write_all(&wire)?;
                count.fetch_add(32 << 10, Ordering::Relaxed);
            }
            Ok(())
        });
        Flood { over, sent, thread: Some(thread) }
    }

    /// Ends it, and says how many messages went out.
    #[track_caller]
    fn end(mut self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap().expect("the node takes what it can, and does not close");
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

impl Drain {
    #[track_caller]
    fn watch(node: &Lb, app: &str) -> Drain {
        let mut socket = TcpStream::connect(node.rtmp()).unwrap();
        let mut client = Client::play(&target(node.rtmp(), app), Limits::default(), endpoint::nonce());
        let media =
            |event: &ClientEvent| matches!(event, ClientEvent::Media(message) if message.type_id == 9);
        negotiate(&mut socket, &mut client, media).unwrap();
        let bytes = Arc::new(AtomicU64::new(0));
        let (mut reader, count) = (socket.try_clone().unwrap(), bytes.clone());
        let thread = std::thread::spawn(move || {
            let mut scratch = vec![0; 256 << 10];
            loop {
                match reader.read(&mut scratch)? {
                    0 => return Ok(()),
                    n => count.fetch_add(n as u64, Ordering::Relaxed),
                };
            }
        });
        Drain { socket, bytes, thread: Some(thread) }
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        // The thread's read ends; it fails only if the node has closed already.
        self.socket.shutdown(Shutdown::Both).ok();
        drop(self.thread.take().map(JoinHandle::join));
    }
}

fn key(number: usize) -> String {
    format!("small{number}")
}

fn frames_of(publishers: &[Publisher]) -> Vec<u64> {
    publishers.iter().map(|publisher| publisher.sent().frames).collect()
}

/// Floods one stream of the ingest node while ten others are watched at `edge`, and checks what the head of this file says.
#[track_caller]
fn flood(nodes: &[(&str, &Lb)], ingest: &Lb, edge: &Lb, app: &str) {
    let publishers: Vec<Publisher> = (0..OTHERS).map(|n| publish(ingest, &key(n), session(1))).collect();
    let viewers: Vec<Viewer> = (0..OTHERS).map(|n| Viewer::start(edge.rtmp(), app, &key(n))).collect();
    wait_for_all(&viewers, 1);
    let flood = Flood::publish(ingest);
    let drain = Drain::watch(edge, app);
    let before: Vec<u64> = nodes.iter().map(|(_, node)| node.resident()).collect();

    let flood = Flood::begin(flood);
    let begun = frames_of(&publishers);
    let mut most = before.clone();
    let went_on = poll(SOON + Duration::from_secs(8), || {
        for (most, (_, node)) in most.iter_mut().zip(nodes) {
            *most = node.resident().max(*most);
        }
        let now = frames_of(&publishers);
        now.iter().zip(&begun).all(|(now, begun)| now - begun >= FRAMES).then_some(())
    });
    assert!(went_on.is_some(), "publishers could not go on: {:?}, {begun:?}", frames_of(&publishers));
    // What has left the publishers by now comes, although the flood goes on.
    let published = frames_of(&publishers);
    for (viewer, published) in viewers.iter().zip(published) {
        wait_for("all that was published", SOON, || {
            // A frame and its audio have a mark each.
            viewer.seen().frames(1) as u64 >= 2 * published
        });
    }
    let (read, sent) = (drain.bytes.load(Ordering::Relaxed), flood.end());
    measured("messages of the flood", sent);
    measured("bytes that its viewer read", read);
    assert_none_lost(&viewers);
    for viewer in &viewers {
        let first = viewer.seen().arrivals.iter().find_map(|arrival| arrival.mark).map(|mark| mark.number);
        assert!(
            first.is_some_and(|first| first < 2 * 25),
            "a viewer begins at the newest keyframe: {first:?}"
        );
    }
    for (((name, _), before), most) in nodes.iter().zip(before).zip(most) {
        measured(&format!("MiB of the {name} node before and at most"), (before >> 20, most >> 20));
        assert!(most - before < MEMORY, "the {name} node grew from {before} to {most} bytes");
    }
    assert!(sent > 500_000, "{sent} messages are no flood");
    // 10,000 messages a second, of five bytes each on their way to viewers.
    assert!(read > 300_000, "the flooded stream is served, too, as far as it may: {read} bytes");
}

#[test]
fn a_flood_of_tiny_messages_costs_other_streams_nothing() {
    let _machine = whole_machine();
    let reactor = reactor(&[]);
    let node = ingest(&reactor.reactor_url(), &[]);
    flood(&[("ingest", &node)], &node, &node, "pull_source");
}

#[test]
fn a_pulled_flood_of_tiny_messages_costs_other_streams_nothing() {
    let _machine = whole_machine();
    let reactor = reactor(&[]);
    let url = reactor.reactor_url();
    let (ingest, playback) = (ingest(&url, &[]), playback(&url, &[]));
    flood(&[("ingest", &ingest), ("playback", &playback)], &ingest, &playback, "live");
}
