//! A small HTTP/1.1 server for tests that does exactly what it is told, also what no server should do.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

/// What the server does with a request.
#[derive(Clone)]
pub enum Deed {
    /// A proper answer: status, headers, body.
    Reply(u16, Vec<(&'static str, String)>, String),
    /// These bytes, then the connection is closed.
    Raw(Vec<u8>),
    /// Nothing, forever.
    Hang,
    /// These bytes, then one byte now and then, forever.
    Drip(Vec<u8>),
    /// Server-Sent Events, handed to the test.
    Stream(mpsc::Sender<EventStream>),
}

/// A proper answer without special headers.
pub fn answer(status: u16, body: &str) -> Deed {
    Deed::Reply(status, Vec::new(), body.to_owned())
}

/// A request that was received.
#[derive(Clone, Debug)]
pub struct Request {
    pub line: String,
    headers: Vec<(String, String)>,
    pub body: String,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

type Handler = dyn Fn(&Request) -> Deed + Send + Sync;

/// A server that runs for as long as this lives.
pub struct Server {
    pub url: String,
    requests: watch::Receiver<Vec<Request>>,
    task: JoinHandle<()>,
}

impl Server {
    pub async fn start(handler: impl Fn(&Request) -> Deed + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (log, requests) = watch::channel(Vec::new());
        let (log, handler): (_, Arc<Handler>) = (Arc::new(log), Arc::new(handler));
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                connections.spawn(serve(socket, handler.clone(), log.clone()));
            }
        });
        Server { url, requests, task }
    }

    /// A server whose every answer is a stream of events that the test writes.
    pub async fn streaming() -> (Server, Streams) {
        let (sender, receiver) = mpsc::channel(8);
        (Server::start(move |_| Deed::Stream(sender.clone())).await, Streams(receiver.into()))
    }

    /// The requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.borrow().clone()
    }

    /// Waits until so many requests were received.
    pub async fn received(&self, count: usize) {
        self.requests.clone().wait_for(|requests| requests.len() >= count).await.unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The streams of events that clients opened.
pub struct Streams(tokio::sync::Mutex<mpsc::Receiver<EventStream>>);

impl Streams {
    pub async fn accept(&self) -> EventStream {
        let mut streams = self.0.lock().await;
        timeout(Duration::from_secs(20), streams.recv()).await.unwrap().unwrap()
    }
}

/// One stream of events; its connection closes when this is dropped.
pub struct EventStream(mpsc::Sender<Vec<u8>>);

impl EventStream {
    pub async fn send(&self, bytes: &[u8]) {
        self.0.send(bytes.to_vec()).await.unwrap();
    }
}

async fn serve(mut socket: TcpStream, handler: Arc<Handler>, log: Arc<watch::Sender<Vec<Request>>>) {
    while let Some(request) = receive(&mut socket).await {
        let deed = handler(&request);
        log.send_modify(|requests| requests.push(request));
        // A client that gave up closes the connection: nothing to do but end.
        if !perform(&mut socket, deed).await.unwrap_or(false) {
            return;
        }
    }
}

/// Says whether the connection is good for another request.
async fn perform(socket: &mut TcpStream, deed: Deed) -> std::io::Result<bool> {
    match deed {
        Deed::Reply(status, headers, body) => {
            let mut head = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\n", body.len());
            for (name, value) in headers {
                head += &format!("{name}: {value}\r\n");
            }
            socket.write_all(format!("{head}\r\n{body}").as_bytes()).await?;
            Ok(true)
        }
        Deed::Raw(bytes) => {
            socket.write_all(&bytes).await?;
            Ok(false)
        }
        Deed::Hang => std::future::pending().await,
        Deed::Drip(bytes) => {
            socket.write_all(&bytes).await?;
            let mut drop = tokio::time::interval(Duration::from_millis(50));
            loop {
                drop.tick().await;
                socket.write_all(b"x").await?;
            }
        }
        Deed::Stream(streams) => {
            socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n").await?;
            let (sender, mut bytes) = mpsc::channel::<Vec<u8>>(8);
            if streams.send(EventStream(sender)).await.is_err() {
                return Ok(false);
            }
            while let Some(bytes) = bytes.recv().await {
                socket.write_all(&bytes).await?;
            }
            Ok(false)
        }
    }
}

async fn receive(socket: &mut TcpStream) -> Option<Request> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        if socket.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).ok()?;
    let mut lines = head.lines();
    let line = lines.next()?.to_owned();
    let headers: Vec<(String, String)> =
        lines.filter_map(|line| line.split_once(": ")).map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    let mut request = Request { line, headers, body: String::new() };
    let length: usize = request.header("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = bytes.split_off(end + 4);
    while body.len() < length {
        if socket.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    request.body = String::from_utf8(body).ok()?;
    Some(request)
}

/// A TLS server with a certificate that it signed itself, on this port, for one connection.
pub fn self_signed() -> u16 {
    lb::client::install_crypto_provider();
    let certificate = CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(KEY.as_bytes()).unwrap();
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut tls = rustls::ServerConnection::new(config).unwrap();
        let mut stream = rustls::Stream::new(&mut tls, &mut socket);
        let mut request = [0; 4096];
        // A client that refuses the certificate ends the handshake: the read fails.
        if stream.read(&mut request).is_ok() {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap_or_default();
        }
    });
    port
}

// Made for this test with `openssl req -x509`; it protects nothing.
const CERTIFICATE: &str = "\
-----BEGIN CERTIFICATE-----
MIIBmjCCAUGgAwIBAgIUdlnw37fVtVTQSd6/fc6U9TEXzLAwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMjA4Mjg1MVoYDzIxMjYxMDI5
MDgyODUxWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAASaB57Xv5LCcZuT6BlhtjGfY9zAb7kmjVCjPty9+asqGygf+vdgs+xk
kijX5Qcs6LmtAgduCRJfBbcSE+QwvTJFo28wbTAdBgNVHQ4EFgQUrcEgegvzdVni
eF5mAFSbd4ZRyIkwHwYDVR0jBBgwFoAUrcEgegvzdVnieF5mAFSbd4ZRyIkwDwYD
VR0TAQH/BAUwAwEB/zAaBgNVHREEEzARhwR/AAABgglsb2NhbGhvc3QwCgYIKoZI
zj0EAwIDRwAwRAIgKvD3ddljJwEl3nI91+2lqKI2eSyf9+1g511HsazBBfYCIDbR
Urnw63jtwPB1SOVY5qnDY0BVgnfvoljIDv0fDDyf
-----END CERTIFICATE-----
";

const KEY: &str = "\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgAhFNx9wtdKw7W0+f
3SugrRM5ytz8PZgoq4j2q++1KIGhRANCAASaB57Xv5LCcZuT6BlhtjGfY9zAb7km
jVCjPty9+asqGygf+vdgs+xkkijX5Qcs6LmtAgduCRJfBbcSE+QwvTJF
-----END PRIVATE KEY-----
";
