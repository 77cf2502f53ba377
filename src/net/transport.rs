//! How the bytes of a connection travel: the one place that knows what stands between a session and its socket.

use super::socket::{self, ViewerSocket};
use crate::relay::Sink;
use bytes::{Buf, Bytes};
use socket2::SockRef;
use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use tokio::net::TcpStream;

/// The bytes of one connection, in both directions.
#[derive(Debug)]
pub(super) struct Transport {
    socket: Arc<TcpStream>,
}

impl Transport {
    pub fn plain(socket: TcpStream) -> Self {
        Transport { socket: Arc::new(socket) }
    }

    /// Waits for bytes, hands them to `take` once, and says how many they were; zero: the peer closed. Safe to drop. One task
    /// at a time may wait.
    pub async fn receive<E: From<io::Error>>(
        &self,
        take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<usize, E> {
        socket::receive(&self.socket, take).await
    }

    /// Sends everything; `sent` hears of each piece that went out.
    pub async fn send(&self, mut bytes: Bytes, mut sent: impl FnMut(usize)) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.socket.try_write(&bytes) {
                Ok(n) => {
                    sent(n);
                    bytes.advance(n);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.socket.writable().await?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Ends the sending side.
    pub fn finish(&self) -> io::Result<()> {
        SockRef::from(self.socket.as_ref()).shutdown(Shutdown::Write)
    }

    /// What the relay writes a viewer's media to.
    pub fn sink(&self) -> Arc<dyn Sink> {
        ViewerSocket::new(&self.socket)
    }

    /// See [`socket::set_low_water`].
    pub fn set_low_water(&self, bytes: usize) {
        socket::set_low_water(&self.socket, bytes);
    }
}
