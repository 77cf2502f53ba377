//! How the bytes of a connection travel: the one place that knows what stands between a session and its socket.

use super::socket::{self, ViewerSocket};
use super::tls::{self, TlsStream};
use crate::relay::Sink;
use bytes::{Buf, Bytes};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

/// How long a peer may take to close after this side has.
const LINGER: Duration = Duration::from_secs(1);

/// The bytes of one connection, in both directions.
#[derive(Debug)]
pub(super) enum Transport {
    Plain(Arc<TcpStream>),
    Tls(Arc<TlsStream>),
}

impl Transport {
    pub fn plain(socket: TcpStream) -> Self {
        Transport::Plain(Arc::new(socket))
    }

    /// With TLS, once hands are shaken.
    pub async fn tls(socket: TcpStream, connection: impl Into<rustls::Connection>) -> io::Result<Self> {
        Ok(Transport::Tls(Arc::new(TlsStream::begin(socket, connection.into()).await?)))
    }

    /// Waits for bytes, hands them to `take` once, and says how many they were; zero: the peer closed. Safe to drop. One task
    /// at a time may wait.
    pub async fn receive<E: From<io::Error>>(
        &self,
        take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<usize, E> {
        match self {
            Transport::Plain(socket) => socket::receive(socket, take).await,
            Transport::Tls(stream) => stream.receive(take).await,
        }
    }

    /// What is received at once, at most.
    pub fn full_read(&self) -> usize {
        match self {
            Transport::Plain(_) => socket::READ,
            Transport::Tls(_) => tls::READ,
        }
    }

    /// Sends everything; `sent` hears of each piece that went out.
    pub async fn send(&self, mut bytes: Bytes, mut sent: impl FnMut(usize)) -> io::Result<()> {
        let socket = match self {
            Transport::Plain(socket) => socket,
            Transport::Tls(stream) => return stream.send(bytes, sent).await,
        };
        while !bytes.is_empty() {
            match socket.try_write(&bytes) {
                Ok(n) => {
                    sent(n);
                    bytes.advance(n);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.writable().await?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether TLS stands between.
    pub fn is_tls(&self) -> bool {
        matches!(self, Transport::Tls(_))
    }

    /// Ends the sending side.
    pub fn finish(&self) -> io::Result<()> {
        match self {
            Transport::Plain(socket) => socket::finish(socket),
            Transport::Tls(stream) => stream.finish(),
        }
    }

    /// Closes gracefully: ends the sending side, and reads until the peer closes or the time is up. A close with unread
    /// input would be a reset, and could cost the peer what was sent last.
    pub async fn linger(&self) {
        if let Err(error) = self.finish() {
            tracing::debug!(%error, "shutdown");
            return;
        }
        let ignore = |_: &[u8]| Ok::<(), io::Error>(());
        let drained = async { while matches!(self.receive(ignore).await, Ok(n) if n > 0) {} };
        // After the timeout the connection is closed all the same.
        drop(tokio::time::timeout(LINGER, drained).await);
    }

    /// What the relay writes a viewer's media to.
    pub fn sink(&self) -> Arc<dyn Sink> {
        match self {
            Transport::Plain(socket) => ViewerSocket::new(socket),
            Transport::Tls(stream) => stream.clone(),
        }
    }

    /// See [`socket::set_low_water`]. Under TLS nothing is set: a part of a record may have been read already, and the rest
    /// of it is less than what the message lacks.
    pub fn set_low_water(&self, bytes: usize) {
        if let Transport::Plain(socket) = self {
            socket::set_low_water(socket, bytes);
        }
    }
}
