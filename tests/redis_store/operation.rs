//! What an operator meets: what is logged, which rights a user needs, and what calls cost.

use super::redis_server::RedisServer;
use super::*;
use lb::registry::store::Kind;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

#[tokio::test]
async fn these_rights_of_a_user_are_enough() {
    let server = RedisServer::on_tcp(&[]);
    make_user(&server, RIGHTS);
    let store = connect(&server.url().replace("redis://", "redis://reactor:secret@")).await;
    let mut announcements = store.announcements();
    let change = announcing(write(&stream("x"), None, Some("1")), "changed");
    assert_eq!(store.write(vec![change]).await, Ok(vec![Written::Done]));
    assert_eq!(heard(&mut announcements).await, "changed");
    assert_eq!(store.list(Kind::Stream).await.unwrap().len(), 1);
    assert_eq!(store.write(vec![write(&stream("x"), Some("1"), None)]).await, Ok(vec![Written::Done]));
    assert!(store.memory().is_some());
}

/// What is logged, as lines.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// What all stores of this process log from now on.
    fn start() -> Log {
        let log = Log::default();
        let writer = log.clone();
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).init();
        log
    }

    /// The lines about one store.
    fn about(&self, store: SocketAddr) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let store = format!("store={store}/");
        text.lines().filter(|line| line.contains(&store)).map(str::to_owned).collect()
    }
}

#[tokio::test]
async fn an_outage_is_said_once_and_so_is_its_end() {
    let log = Log::start();
    let mut server = RedisServer::on_tcp(&["--requirepass", "secret"]);
    let address = server.address();
    server.kill();
    let begin = Instant::now();
    let store = Redis::start(&format!("redis://:secret@{address}/2")).unwrap();
    eventually("the outage at the start", async || (log.about(address).len() == 1).then_some(())).await;
    assert!(begin.elapsed() < Duration::from_secs(1), "at once: {:?}", begin.elapsed());
    // Long enough for several more attempts.
    tokio::time::sleep(Duration::from_secs(2)).await;
    server.restart();
    eventually("the end of it", async || (log.about(address).len() > 1).then_some(())).await;
    assert!(store.memory().is_some());
    let lines = log.about(address);
    assert_eq!(lines.len(), 2, "{lines:#?}");
    let first =
        format!("WARN lb::registry::redis::keeper: the store cannot be reached store={address}/2 error=");
    assert!(lines[0].contains(&first) && lines[0].contains("onnection refused"), "{}", lines[0]);
    assert!(lines[1].contains(" INFO lb::registry::redis::keeper: the store is reached"), "{}", lines[1]);

    let wrong = Redis::start(&format!("redis://:another-secret@{address}/2")).unwrap();
    eventually("a wrong password", async || (log.about(address).len() > 2).then_some(())).await;
    let lines = log.about(address);
    assert!(lines[2].contains("authentication failed"), "{}", lines[2]);
    assert_eq!(wrong.memory(), None);
    assert!(!lines.iter().any(|line| line.contains("secret")), "{lines:#?}");
}

/// On a way that takes 50 ms in each direction.
#[tokio::test]
async fn a_read_of_two_records_and_a_write_cost_a_round_trip_each() {
    let server = RedisServer::on_tcp(&[]);
    let far = slow_way(server.address(), Duration::from_millis(50)).await;
    let store = connect(&format!("redis://{far}")).await;
    let (x, n) = (stream("x"), node("n"));
    // The scripts are known after this.
    set(&store, &x, "1").await;
    get(&store, &x).await;
    server.cli(&["CONFIG", "RESETSTAT"]);
    let begin = Instant::now();
    store.read(vec![x.clone(), n]).await.unwrap();
    let read = begin.elapsed();
    store.write(vec![announcing(write(&x, Some("1"), Some("2")), "2")]).await.unwrap();
    let write = begin.elapsed() - read;
    measured("read of two and write of one, over 100 ms there and back", (read, write));
    for took in [read, write] {
        assert!(took >= Duration::from_millis(100) && took < Duration::from_millis(190), "{took:?}");
    }
    let stats = server.cli(&["INFO", "commandstats"]);
    let calls = |command: &str| stats.lines().find(|line| line.starts_with(command)).map(str::to_owned);
    assert!(calls("cmdstat_evalsha:").unwrap().contains("calls=3,"), "{stats}");
    assert_eq!(calls("cmdstat_eval:"), None);
}

/// Passes connections on to a server, each direction late by `delay`. Ends with the test's runtime.
async fn slow_way(server: SocketAddr, delay: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut ways = JoinSet::new();
        while let Ok((near, _)) = listener.accept().await {
            let far = TcpStream::connect(server).await.unwrap();
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            ways.spawn(late(near_in, far_out, delay));
            ways.spawn(late(far_in, near_out, delay));
        }
    });
    address
}

async fn late(mut from: impl AsyncReadExt + Unpin, mut to: impl AsyncWriteExt + Unpin, delay: Duration) {
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<(tokio::time::Instant, Vec<u8>)>(1024);
    let read = async {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let due = tokio::time::Instant::now() + delay;
            if sender.send((due, buffer[..length].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let write = async {
        while let Some((due, bytes)) = receiver.recv().await {
            tokio::time::sleep_until(due).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(read, write);
}
