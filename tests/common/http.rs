//! HTTP by hand, so that the tests judge `lb` with nothing of `lb`, and know every byte they send.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A server that takes longer than this has failed the test.
const DEADLINE: Duration = Duration::from_secs(10);

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: String,
}

/// Sends a GET.
#[track_caller]
pub fn get(server: SocketAddr, path: &str) -> Response {
    try_call(server, "GET", path, "").unwrap_or_else(|error| panic!("GET http://{server}{path}: {error}"))
}

/// Sends a POST with a JSON body.
#[track_caller]
pub fn post(server: SocketAddr, path: &str, body: &str) -> Response {
    try_call(server, "POST", path, body).unwrap_or_else(|error| panic!("POST http://{server}{path}: {error}"))
}

/// Sends a request, and leaves it to the caller what a failure means.
pub fn try_call(server: SocketAddr, method: &str, path: &str, body: &str) -> std::io::Result<Response> {
    let mut stream = TcpStream::connect_timeout(&server, DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    // HTTP/1.0: the body ends with the connection, so there is no chunked encoding to undo.
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: {server}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let bad = || std::io::Error::other(format!("not an HTTP answer: {answer:?}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(bad)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(bad)?;
    Ok(Response { status, body: body.to_owned() })
}

/// A stream of events that somebody follows. What is sent meanwhile waits to be read.
pub struct Events {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Events {
    /// Sends a GET, and waits for the head of the answer.
    #[track_caller]
    pub fn follow(server: SocketAddr, path: &str) -> Events {
        let mut stream = TcpStream::connect_timeout(&server, DEADLINE).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {server}\r\n\r\n").unwrap();
        let mut events = Events { stream, read: Vec::new() };
        let head = events.read_until("\r\n\r\n");
        assert_eq!(head.split(' ').nth(1), Some("200"), "GET http://{server}{path}: {head}");
        events
    }

    /// Reads on until `words` have come, and gives back all that came so far.
    #[track_caller]
    pub fn read_until(&mut self, words: &str) -> String {
        // Comments keep the connection alive, so the deadline of a read does not end this.
        let end = Instant::now() + DEADLINE;
        let mut buffer = [0; 4096];
        loop {
            let so_far = String::from_utf8_lossy(&self.read);
            if so_far.contains(words) {
                return so_far.into_owned();
            }
            assert!(Instant::now() < end, "no {words:?} in {so_far}");
            match self.stream.read(&mut buffer) {
                Ok(n) if n > 0 => self.read.extend_from_slice(&buffer[..n]),
                over => panic!("{over:?} before {words:?}: {so_far}"),
            }
        }
    }
}

/// A request as a [`WebServer`] saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The request line without the protocol: `POST /watcher_lookup`.
    pub line: String,
    /// The body.
    pub body: String,
}

/// A web server that somebody else could have written: it knows the contract's two calls and nothing of `lb`.
pub struct WebServer {
    addr: SocketAddr,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl WebServer {
    /// Serves on a port picked by the system until the test process ends; one request a connection.
    pub fn start(answer: impl Fn(&Request) -> Response + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (record, answer) = (Arc::clone(&seen), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (record, answer) = (Arc::clone(&record), Arc::clone(&answer));
                // A client that breaks off shows in what the test then misses.
                std::thread::spawn(move || serve(stream, &record, &*answer).ok());
            }
        });
        WebServer { addr, seen }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The requests so far.
    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }
}

fn serve(
    stream: TcpStream,
    record: &Mutex<Vec<Request>>,
    answer: &dyn Fn(&Request) -> Response,
) -> std::io::Result<()> {
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut reader = BufReader::new(&stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let line = line.rsplit_once(' ').map_or("", |(request, _protocol)| request).to_owned();
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        match header.trim_end().split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.trim().parse().unwrap_or(0);
            }
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let request = Request { line, body: String::from_utf8_lossy(&body).into_owned() };
    record.lock().unwrap().push(request.clone());
    let Response { status, body } = answer(&request);
    write!(
        &stream,
        "HTTP/1.1 {status} -\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}
