//! TLS below a session, by rustls: the same for accepted connections and for pulls.
//!
//! A viewer's records are made in its own task: the relay's pump finds that a write would block ([`Sink::try_write`]), hands
//! the viewer back with its place in the ring, and the task encrypts what is next. At most [`PENDING`] bytes wait for the
//! socket as records; while any do, no more is taken.

use super::socket;
use crate::relay::Sink;
use bytes::Bytes;
use rustls::Connection;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use tokio::net::TcpStream;

/// What waits as records for the socket: as much as a write of the relay hands over.
const PENDING: usize = 64 << 10;

/// How much plain text is taken at a time.
pub(super) const READ: usize = 16 << 10;

/// A connection with TLS. Its lock is held for the time of a system call, never across an await.
pub(super) struct TlsStream {
    socket: Arc<TcpStream>,
    connection: Mutex<Connection>,
}

impl std::fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsStream").field("socket", &self.socket).finish_non_exhaustive()
    }
}

/// The socket as rustls reads and writes it: without waiting.
struct Ready<'a>(&'a TcpStream);

impl Read for Ready<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

impl Write for Ready<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl TlsStream {
    /// Shakes hands, in whichever role the connection has.
    pub async fn begin(socket: TcpStream, mut connection: Connection) -> io::Result<Self> {
        connection.set_buffer_limit(Some(PENDING));
        let stream = TlsStream { socket: Arc::new(socket), connection: Mutex::new(connection) };
        while stream.lock().is_handshaking() {
            stream.flush().await?;
            if stream.lock().is_handshaking() {
                stream.socket.readable().await?;
                if stream.read_records()? == Some(0) {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
            }
        }
        stream.flush().await?;
        Ok(stream)
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes records from the socket, and says how many bytes they were; nothing if there are none yet.
    fn read_records(&self) -> io::Result<Option<usize>> {
        let mut connection = self.lock();
        let read = match connection.read_tls(&mut Ready(&self.socket)) {
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
        if let Err(error) = connection.process_new_packets() {
            // The peer is told why, if it takes it.
            drop(write_records(&mut connection, &self.socket));
            return Err(io::Error::new(ErrorKind::InvalidData, error));
        }
        // Answers to key updates; what does not fit goes with what is sent next.
        drop(write_records(&mut connection, &self.socket));
        Ok(Some(read))
    }

    /// Plain text that is there.
    fn read_plain(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match self.lock().reader().read(buffer) {
            Ok(read) => Ok(Some(read)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            // Closed without a goodbye, as most players do.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(Some(0)),
            Err(error) => Err(error),
        }
    }

    /// See [`super::transport::Transport::receive`].
    pub async fn receive<E: From<io::Error>>(
        &self,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<usize, E> {
        loop {
            if let Some(read) = self.take_plain(&mut take)? {
                return Ok(read);
            }
            self.wait_records().await?;
        }
    }

    /// Hands over plain text that is there. Not a part of the future above, which would be as large as the buffer.
    fn take_plain<E: From<io::Error>>(
        &self,
        take: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Option<usize>, E> {
        let mut buffer = [0; READ];
        match self.read_plain(&mut buffer)? {
            Some(read) => take(buffer.get(..read).unwrap_or_default()).map(|()| Some(read)),
            None => Ok(None),
        }
    }

    async fn wait_records(&self) -> io::Result<()> {
        while self.read_records()?.is_none() {
            std::future::poll_fn(|context| self.socket.poll_read_ready(context)).await?;
        }
        Ok(())
    }

    /// Sends everything; `sent` hears of each piece.
    pub async fn send(&self, bytes: Bytes, mut sent: impl FnMut(usize)) -> io::Result<()> {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let taken = self.lock().writer().write(rest)?;
            sent(taken);
            rest = rest.get(taken..).unwrap_or_default();
            self.flush().await?;
        }
        self.flush().await
    }

    async fn flush(&self) -> io::Result<()> {
        loop {
            let written = write_records(&mut self.lock(), &self.socket);
            match written {
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.socket.writable().await?,
                other => return other,
            }
        }
    }

    /// Says goodbye and ends the sending side.
    pub fn finish(&self) -> io::Result<()> {
        let mut connection = self.lock();
        connection.send_close_notify();
        drop(write_records(&mut connection, &self.socket));
        socket::finish(&self.socket)
    }
}

/// Writes what waits; [`ErrorKind::WouldBlock`]: some of it still does.
fn write_records(connection: &mut Connection, socket: &TcpStream) -> io::Result<()> {
    while connection.wants_write() {
        connection.write_tls(&mut Ready(socket))?;
    }
    Ok(())
}

impl Sink for TlsStream {
    /// The pump makes no records: it would make them for all viewers of a stream in one task.
    fn try_write(&self, _: &[u8]) -> io::Result<usize> {
        Err(ErrorKind::WouldBlock.into())
    }

    fn try_write_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut connection = self.lock();
        write_records(&mut connection, &self.socket)?;
        let mut taken = 0;
        for piece in pieces {
            let written = connection.writer().write(piece)?;
            taken += written;
            if written < piece.len() {
                break;
            }
        }
        match write_records(&mut connection, &self.socket) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(taken),
        }
    }

    fn try_flush(&self) -> io::Result<()> {
        write_records(&mut self.lock(), &self.socket)
    }

    fn poll_writable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_write_ready(context)
    }
}
