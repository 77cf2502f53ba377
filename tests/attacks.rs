//! A thousand hostile connections beside a healthy stream: its viewers lose nothing, the process stays within its budget, and
//! afterwards it is what it was. Figures are printed.

// A test says what it expects by `unwrap` and indexing; a panic is its verdict.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use bytes::BytesMut;
use common::endpoint;
use common::lb::Lb;
use common::publisher::{Media, Publisher};
use common::viewer::Viewer;
use common::{SOON, http, poll, wait_for};
use lb::rtmp::chunk::write_message;
use lb::rtmp::session::{Client, ClientEvent};
use lb::rtmp::{Limits, Message};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

/// Hostile connections.
const HOSTILE: usize = 1000;

/// Frames that the healthy stream sends beside them.
const FRAMES: u64 = 150;

/// The budget of the node under attack, and what else it may take: code, tasks, buffers of reads, and the allocator.
const BUDGET: u64 = 64 << 20;
const BASE: u64 = 112 << 20;

/// How soon the process is as small again as it was.
const SETTLES: Duration = Duration::from_secs(10);

/// What it may have more than a tenth of what it had: what node and reactor remember of a thousand names for some minutes, and pages
/// of which one piece is in use; and the same of the ten thousand that a flood of publishes brings.
const REMEMBERED: u64 = 8 << 20;
const REMEMBERED_OF_FLOOD: u64 = 24 << 20;

static MACHINE: Mutex<()> = Mutex::new(());

/// The runtime of the attackers. Publisher and viewers go before its threads: real attackers bring machines of their own, so what counts is
/// what they send, and not the processor time that sending takes here.
fn attackers() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(2).enable_all().on_thread_start(go_last).build().unwrap()
    })
}

/// The calling thread gets what the others leave of the processors.
fn go_last() {
    // SAFETY: it takes numbers; on Linux it concerns the calling thread only.
    let refused = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
    assert_eq!(refused, 0, "{}", std::io::Error::last_os_error());
}

/// A node under attack: with a publisher and viewers.
struct Target {
    /// One at a time: the tests measure the machine.
    _machine: MutexGuard<'static, ()>,
    lb: Lb,
    publisher: Publisher,
    viewers: Vec<Viewer>,
    before: u64,
}

fn resident(lb: &Lb) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", lb.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() << 10
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

impl Target {
    fn start() -> Target {
        let _machine = MACHINE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        endpoint::raise_descriptor_limit();
        let budget = BUDGET.to_string();
        let lb = Lb::start_release(&["--role", "all", "--memory-budget", &budget, "--log", "warn"]);
        let publisher = Publisher::start(lb.rtmp(), "ingest", "healthy", Media::default());
        publisher.wait_for_keyframe();
        let viewers: Vec<Viewer> = (0..5).map(|_| Viewer::start(lb.rtmp(), "live", "healthy")).collect();
        for viewer in &viewers {
            viewer.wait_for_keyframe(1, SOON);
        }
        let before = resident(&lb);
        Target { _machine, lb, publisher, viewers, before }
    }

    /// Lets the healthy stream go on beside an attack on an address, and checks what became of it.
    fn endure<F>(
        self,
        address: SocketAddr,
        what: &str,
        remembered: u64,
        attack: impl Fn(SocketAddr, usize) -> F,
    ) where
        F: Future<Output = std::io::Result<()>> + Send + 'static,
    {
        let (peak, delay) = self.bear(address, what, attack);
        let (after, settled) = self.settle(what);
        let before = self.before;
        let in_use = self.lb.metric("lb_memory_allocated_bytes") as u64;
        assert!((1 << 20..after).contains(&in_use), "{what}: {in_use} of {after} bytes are in use");
        println!(
            "{what}: {:.1} MiB before, {:.1} at most, {:.1} {}, {:.1} of them in use; 99 of 100 frames within {delay:?}, longest gap {:?}",
            mib(before),
            mib(peak),
            mib(after),
            if settled { "within 10 s" } else { "after 10 s" },
            mib(in_use),
            self.viewers[0].seen().longest_gap()
        );
        assert!(peak <= before + BUDGET + BASE, "{what}: {:.1} MiB", mib(peak));
        assert!(after <= before + before / 10 + remembered, "{what}: {:.1} MiB", mib(after));
        assert!(self.publisher.sent().ended.is_none(), "{what}: {:?}", self.publisher.sent());
    }

    /// The attack, for as long as some seconds of the healthy stream take. Gives how much of memory was resident at most, and how late
    /// 99 of 100 of its frames were at most.
    fn bear<F>(
        &self,
        address: SocketAddr,
        what: &str,
        attack: impl Fn(SocketAddr, usize) -> F,
    ) -> (u64, Duration)
    where
        F: Future<Output = std::io::Result<()>> + Send + 'static,
    {
        let Target { lb, publisher, viewers, .. } = self;
        let peak = AtomicU64::new(0);
        let mut attackers = JoinSet::new();
        let _entered = self::attackers().enter();
        for number in 0..HOSTILE {
            attackers.spawn(attack(address, number));
        }
        let (begun, started) = (publisher.sent().frames, Instant::now());
        wait_for("the healthy stream to go on", Duration::from_secs(30), || {
            peak.fetch_max(resident(lb), Relaxed);
            let sent = publisher.sent();
            assert!(sent.ended.is_none(), "{what}: {sent:?}\n{}", lb.log());
            sent.frames >= begun + FRAMES
        });
        for viewer in viewers {
            assert!(viewer.is_connected(), "{what}: a viewer was lost");
            let seen = viewer.seen();
            seen.assert_in_order();
            assert!(seen.longest_gap() < Duration::from_secs(1), "{what}: {:?}", seen.longest_gap());
        }
        let delay = viewers.iter().map(|viewer| viewer.seen().delay_p99(started)).max().unwrap_or_default();
        (peak.into_inner(), delay)
    }

    /// Waits until the attackers are gone and the process is as small as it was, or ten seconds are over. Gives what is resident then, and
    /// whether it is as small.
    fn settle(&self, what: &str) -> (u64, bool) {
        let few = || self.lb.metric("lb_connections") <= 10.0;
        let small = || resident(&self.lb) <= self.before + self.before / 10;
        let settled = poll(SETTLES, || (few() && small()).then_some(())).is_some();
        let left = ["lb_connections", "lb_streams", "lb_publishers"].map(|name| (name, self.lb.metric(name)));
        assert!(few(), "{what}: {left:?}");
        (resident(&self.lb), settled)
    }
}

/// An attack on one of the ports of a node, beside a healthy stream.
fn endures<F>(port: fn(&Lb) -> SocketAddr, what: &str, attack: impl Fn(SocketAddr, usize) -> F)
where
    F: Future<Output = std::io::Result<()>> + Send + 'static,
{
    let target = Target::start();
    let address = port(&target.lb);
    target.endure(address, what, REMEMBERED, attack);
}

async fn greeted(server: SocketAddr) -> std::io::Result<TcpStream> {
    let mut socket = TcpStream::connect(server).await?;
    socket.write_all(&[&[3][..], &[0; 2 * 1536]].concat()).await?;
    socket.read_exact(&mut [0; 1 + 2 * 1536]).await?;
    Ok(socket)
}

/// A connection that publishes, as encoders do.
async fn publishing(server: SocketAddr, key: &str) -> std::io::Result<(TcpStream, Client)> {
    let socket = TcpStream::connect(server).await?;
    let mut client =
        Client::publish(&endpoint::target(server, "ingest", key), Limits::default(), endpoint::nonce());
    let mut scratch = vec![0; 4096];
    loop {
        endpoint::flush(&socket, &mut client).await?;
        if endpoint::receive(&socket, &mut client, &mut scratch).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        while let Some(event) = client.event() {
            if matches!(event, ClientEvent::Publishing) {
                return Ok((socket, client));
            }
        }
    }
}

fn message(type_id: u8, timestamp: u32, body: Vec<u8>) -> Message {
    Message { type_id, stream_id: 1, chunk_stream_id: 0, timestamp, body: body.into() }
}

/// Whatever the node still sends is read, so that it is the attack that counts.
async fn until_closed(mut socket: TcpStream) -> std::io::Result<()> {
    let mut scratch = [0; 4096];
    while socket.read(&mut scratch).await? > 0 {}
    Ok(())
}

#[test]
fn silent_connections() {
    endures(Lb::rtmp, "silent", |server, _| async move {
        loop {
            until_closed(TcpStream::connect(server).await?).await?;
        }
    });
}

#[test]
fn a_byte_at_a_time() {
    endures(Lb::rtmp, "a byte at a time", |server, _| async move {
        let mut socket = TcpStream::connect(server).await?;
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        loop {
            ticks.tick().await;
            socket.write_all(&[3]).await?;
        }
    });
}

#[test]
fn the_largest_unfinished_messages_of_who_does_not_publish() {
    endures(Lb::rtmp, "unfinished messages, idle", |server, _| async move {
        let mut socket = greeted(server).await?;
        let mut wire = BytesMut::new();
        write_message(&mut wire, 3, 0, 20, 0, &vec![0; 64 << 10], 128);
        // Chunks of the default size, all but the last: the message is never whole.
        socket.write_all(&wire[..wire.len() - 100]).await?;
        until_closed(socket).await
    });
}

#[test]
fn the_largest_unfinished_messages_of_publishers() {
    endures(Lb::rtmp, "unfinished messages, publishing", |server, number| async move {
        let (mut socket, mut client) = publishing(server, &format!("evil{number}")).await?;
        client.send_media(&message(9, 0, vec![0x17; 4 << 20]));
        let wire = client.output();
        socket.write_all(&wire[..wire.len() - 100]).await?;
        until_closed(socket).await
    });
}

#[test]
fn streams_that_fill_their_rings() {
    endures(Lb::rtmp, "full rings", |server, number| async move {
        let (mut socket, mut client) = publishing(server, &format!("evil{number}")).await?;
        for frame in 0..64 {
            let head = if frame == 0 { 0x17 } else { 0x27 };
            client.send_media(&message(9, frame, [&[head, 1, 0, 0, 0][..], &vec![7; 512 << 10]].concat()));
            socket.write_all(&client.output()).await?;
        }
        until_closed(socket).await
    });
}

#[test]
fn messages_of_two_bytes_without_end() {
    endures(Lb::rtmp, "2-byte messages", |server, number| async move {
        let (mut socket, mut client) = publishing(server, &format!("evil{number}")).await?;
        for frame in 0..200 {
            client.send_media(&message(9, frame, vec![0x27, 1]));
        }
        let wire = client.output();
        // A thousand publishers that each send a hundred times what an encoder does.
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        loop {
            ticks.tick().await;
            socket.write_all(&wire).await?;
        }
    });
}

#[test]
fn headers_without_end() {
    endures(Lb::rtmp, "header bombs", |server, number| async move {
        let (mut socket, mut client) = publishing(server, &format!("evil{number}")).await?;
        for track in 0..=255_u8 {
            let body = [&[0x96, 0x00][..], b"hvc1", &[track], &vec![7; 60 << 10]].concat();
            client.send_media(&message(9, 0, body));
            socket.write_all(&client.output()).await?;
        }
        until_closed(socket).await
    });
}

#[test]
fn viewers_that_never_read() {
    endures(Lb::rtmp, "viewers that never read", |server, _| async move {
        let socket = TcpStream::connect(server).await?;
        let mut client =
            Client::play(&endpoint::target(server, "live", "healthy"), Limits::default(), endpoint::nonce());
        endpoint::flush(&socket, &mut client).await?;
        std::future::pending().await
    });
}

#[test]
fn floods_of_pings_and_acknowledgements() {
    endures(Lb::rtmp, "pings and acknowledgements", |server, _| async move {
        loop {
            let mut socket = greeted(server).await?;
            let mut wire = BytesMut::new();
            for number in 0..500_u32 {
                write_message(&mut wire, 2, 0, 4, 0, &[&[0, 6][..], &number.to_be_bytes()].concat(), 128);
                write_message(&mut wire, 2, 0, 3, 0, &number.to_be_bytes(), 128);
            }
            while socket.write_all(&wire).await.is_ok() {
                let mut scratch = [0; 16 << 10];
                if socket.read(&mut scratch).await.unwrap_or(0) == 0 {
                    break;
                }
            }
        }
    });
}

#[test]
fn many_names_are_published_and_left() {
    let target = Target::start();
    let rtmp = target.lb.rtmp();
    target.endure(rtmp, "publish flood", REMEMBERED_OF_FLOOD, |server, number| async move {
        for round in 0.. {
            let published = publishing(server, &format!("evil{number}-{round}")).await?;
            tokio::time::sleep(Duration::from_millis(500)).await;
            drop(published);
        }
        Ok(())
    });
}

#[test]
fn many_connect_and_leave() {
    endures(Lb::rtmp, "connect storm", |server, _| async move {
        loop {
            drop(greeted(server).await);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
}

#[test]
fn plays_of_names_that_do_not_exist() {
    endures(Lb::rtmp, "plays of unknown names", |server, number| async move {
        for round in 0.. {
            let socket = TcpStream::connect(server).await?;
            let target = endpoint::target(server, "live", &format!("none{number}-{round}"));
            let mut client = Client::play(&target, Limits::default(), endpoint::nonce());
            endpoint::flush(&socket, &mut client).await?;
            until_closed(socket).await.ok();
        }
        Ok(())
    });
}

/// A server that answers a handshake and then makes whoever pulls from it hold as much as it can.
async fn evil_origin() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let Ok((mut socket, _)) = listener.accept().await else { return };
            tokio::spawn(async move {
                socket.read_exact(&mut [0; 1 + 1536]).await?;
                socket.write_all(&[&[3][..], &[0; 2 * 1536]].concat()).await?;
                let mut wire = BytesMut::new();
                write_message(&mut wire, 3, 0, 20, 0, &vec![2; 8 << 20], 128);
                socket.write_all(&wire[..wire.len() - 100]).await?;
                until_closed(socket).await
            });
        }
    });
    address
}

#[test]
fn origins_that_send_the_largest_unfinished_messages() {
    let target = Target::start();
    let evil = attackers().block_on(evil_origin());
    for number in 0..200 {
        let claim = format!("{{\"stream_name\":\"evil{number}\",\"rtmp_port\":{}}}", evil.port());
        assert_eq!(http::post(target.lb.reactor(), "/publisher_lookup", &claim).status, 200);
    }
    let rtmp = target.lb.rtmp();
    target.endure(rtmp, "evil origins", REMEMBERED, |server, number| async move {
        loop {
            let socket = TcpStream::connect(server).await?;
            let target = endpoint::target(server, "live", &format!("evil{}", number % 200));
            let mut client = Client::play(&target, Limits::default(), endpoint::nonce());
            endpoint::flush(&socket, &mut client).await?;
            until_closed(socket).await.ok();
        }
    });
}

#[test]
fn http_heads_a_byte_at_a_time() {
    endures(Lb::reactor, "slow heads", |server, _| async move {
        let mut socket = TcpStream::connect(server).await?;
        socket.write_all(b"GET /streams HTTP/1.1\r\nx: ").await?;
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        loop {
            ticks.tick().await;
            socket.write_all(b"y").await?;
        }
    });
}

#[test]
fn heads_of_players_a_byte_at_a_time() {
    endures(Lb::http, "slow heads of players", |server, _| async move {
        loop {
            let mut socket = TcpStream::connect(server).await?;
            socket.write_all(b"GET /live/healthy.flv HTTP/1.1\r\nx: ").await?;
            let mut ticks = tokio::time::interval(Duration::from_millis(100));
            while socket.write_all(b"y").await.is_ok() {
                ticks.tick().await;
            }
        }
    });
}

#[test]
fn players_that_never_read_and_ping_without_end() {
    endures(Lb::http, "players that never read", |server, _| async move {
        loop {
            let mut socket = TcpStream::connect(server).await?;
            let head = "GET /live/healthy.flv HTTP/1.1\r\nupgrade: websocket\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
            socket.write_all(head.as_bytes()).await?;
            let mut ticks = tokio::time::interval(Duration::from_millis(20));
            while socket.write_all(b"\x89\x80\0\0\0\0").await.is_ok() {
                ticks.tick().await;
            }
        }
    });
}

#[test]
fn http_bodies_a_byte_at_a_time() {
    endures(Lb::reactor, "slow bodies", |server, _| async move {
        let mut socket = TcpStream::connect(server).await?;
        let head = "POST /watcher_lookup HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 16000\r\n\r\n";
        socket.write_all(head.as_bytes()).await?;
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        loop {
            ticks.tick().await;
            socket.write_all(b" ").await?;
        }
    });
}

#[test]
fn lookups_of_names_that_do_not_exist() {
    endures(Lb::reactor, "lookup flood", |server, number| async move {
        let mut socket = TcpStream::connect(server).await?;
        let mut scratch = [0; 4096];
        for round in 0.. {
            let body = format!("{{\"stream_name\":\"none{number}-{round}\"}}");
            let head = format!(
                "POST /watcher_lookup HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            socket.write_all(format!("{head}{body}").as_bytes()).await?;
            if socket.read(&mut scratch).await? == 0 {
                break;
            }
            // A hundred a second each, as fast as two cores let them.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    });
}

#[test]
fn event_subscribers_that_never_read() {
    endures(Lb::reactor, "event subscribers", |server, _| async move {
        let mut socket = TcpStream::connect(server).await?;
        socket.write_all(b"GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n").await?;
        std::future::pending().await
    });
}
