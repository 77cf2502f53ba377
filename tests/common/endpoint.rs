//! What the synthetic publishers and viewers share: their runtime, their connection, and the marks in their media.
//!
//! They are cheap enough for thousands in one process. They speak RTMP with the library's own client, which the tests
//! with ffmpeg keep honest.

use lb::rtmp::session::{Client, Target};
use std::io;
use std::net::SocketAddr;
use std::sync::OnceLock;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

/// The runtime of all synthetic peers; it lives as long as the test process.
pub fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        raise_descriptor_limit();
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    })
}

/// Thousands of viewers need thousands of sockets, here and in the nodes that inherit the limit.
pub fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls only read and write the structure that is passed.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}

/// What a peer publishes or plays.
pub fn target(server: SocketAddr, app: &str, key: &str) -> Target {
    Target { app: app.to_owned(), tc_url: format!("rtmp://{server}/{app}"), stream_key: key.to_owned() }
}

/// A nonce for the handshake, see [`lb::rtmp::Nonce`].
pub fn nonce() -> lb::rtmp::Nonce {
    std::array::from_fn(|index| (index as u8).wrapping_mul(31))
}

/// Sends what the client has to say.
pub async fn flush(socket: &TcpStream, client: &mut Client) -> io::Result<()> {
    let mut output = client.output();
    while !output.is_empty() {
        match socket.try_write(&output) {
            Ok(n) => output = output.slice(n..),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads once into the client; zero: the server closed. Safe to drop.
pub async fn receive(socket: &TcpStream, client: &mut Client, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        socket.readable().await?;
        match socket.try_read(buffer) {
            Ok(n) => {
                client.input(&buffer[..n]).map_err(io::Error::other)?;
                return Ok(n);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Which publish a message is from, and its number among the audio or video messages of that publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// The publish.
    pub session: u16,
    /// Counted from 0.
    pub number: u32,
}

const MAGIC: &[u8] = b"mark";

impl Mark {
    /// Appends the mark to a body's head.
    pub fn write(self, body: &mut Vec<u8>) {
        body.extend_from_slice(MAGIC);
        body.extend_from_slice(&self.session.to_be_bytes());
        body.extend_from_slice(&self.number.to_be_bytes());
    }

    /// The mark of a body whose head is `head` bytes long; bodies of other publishers have none.
    pub fn read(body: &[u8], head: usize) -> Option<Mark> {
        let mark = body.get(head..)?.strip_prefix(MAGIC)?;
        let session = u16::from_be_bytes(mark.get(..2)?.try_into().ok()?);
        let number = u32::from_be_bytes(mark.get(2..6)?.try_into().ok()?);
        Some(Mark { session, number })
    }
}
