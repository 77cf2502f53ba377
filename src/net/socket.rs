//! What every RTMP socket is set to, how it is read, and how the relay writes to it.

use crate::relay::Sink;
use socket2::{SockRef, TcpKeepalive};
use std::cell::RefCell;
use std::io::{self, IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};

/// A peer that acknowledges nothing of what was sent for so long is gone. Pings see to it that there is something to
/// acknowledge.
const USER_TIMEOUT: Duration = Duration::from_secs(20);

/// A connection without traffic is probed after this time.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// The kernel's send buffer of one viewer (the kernel doubles it for its own needs). It bounds what a slow viewer holds in
/// the kernel, and is enough for 20 Mb/s at a round trip of 100 ms.
const VIEWER_SEND_BUFFER: usize = 256 << 10;

/// How much one read takes. One buffer a thread serves all connections: nothing is read into it across an await.
pub(super) const READ: usize = 64 << 10;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ]);
}

/// Sets the options of a connection. None of them is worth refusing a peer for.
pub(super) fn prepare(socket: &impl AsFd) {
    let options = SockRef::from(socket);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 4);
    let set = [
        options.set_tcp_nodelay(true),
        options.set_tcp_user_timeout(Some(USER_TIMEOUT)),
        options.set_tcp_keepalive(&keepalive),
    ];
    for error in set.into_iter().filter_map(Result::err) {
        tracing::debug!(%error, "a socket option could not be set");
    }
}

/// Sets the options of all connections that a listener will take: they inherit its own (tcp(7)), which saves each of them
/// half a dozen system calls.
pub(super) fn prepare_listener(listener: &TcpListener) {
    prepare(listener);
    if let Err(error) = SockRef::from(listener).set_send_buffer_size(VIEWER_SEND_BUFFER) {
        tracing::debug!(%error, "the send buffer could not be set");
    }
}

/// Ends the sending side.
pub(super) fn finish(socket: &TcpStream) -> io::Result<()> {
    SockRef::from(socket).shutdown(std::net::Shutdown::Write)
}

/// Sets the receive low-water mark (SO_RCVLOWAT, socket(7)): the socket is not reported as readable below so many bytes.
/// Where the option is not supported, it is readable at the first byte, which costs wake-ups and nothing else.
pub(super) fn set_low_water(socket: &TcpStream, bytes: usize) {
    let value = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    let length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: `value` is an int of this length and outlives the call, which does not keep it.
    let result = unsafe {
        let value = std::ptr::from_ref(&value).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVLOWAT, value, length)
    };
    if result != 0 {
        tracing::debug!(error = %io::Error::last_os_error(), "the low-water mark could not be set");
    }
}

/// Waits for bytes, hands them to `take` once, and says how many they were; zero: the peer closed. Safe to drop. One task
/// at a time may wait for a socket's bytes.
pub(super) async fn receive<E: From<io::Error>>(
    socket: &TcpStream,
    mut take: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<usize, E> {
    loop {
        std::future::poll_fn(|context| socket.poll_read_ready(context)).await?;
        let read = SCRATCH.with_borrow_mut(|buffer| match read_now(socket, buffer) {
            Ok(n) => take(buffer.get(..n).unwrap_or_default()).map(|()| Some(n)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        })?;
        if let Some(n) = read {
            return Ok(n);
        }
    }
}

/// Reads once. A read that did not fill the buffer took all there was, so the socket counts as not ready until the kernel
/// says otherwise: another read only to be told so would be a system call for every message.
fn read_now(socket: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let mut short = None;
    let read = socket.try_io(Interest::READABLE, || {
        let n = (&*SockRef::from(socket)).read(buffer)?;
        if n == 0 || n == buffer.len() {
            return Ok(n);
        }
        short = Some(n);
        Err(io::ErrorKind::WouldBlock.into())
    });
    short.map_or(read, Ok)
}

/// A viewer's socket as the relay sees it.
#[derive(Debug)]
pub(super) struct ViewerSocket {
    /// The descriptor of `socket`, kept here so that a write by the pump need not follow the pointer.
    fd: RawFd,
    socket: Arc<TcpStream>,
}

impl ViewerSocket {
    pub fn new(socket: &Arc<TcpStream>) -> Arc<Self> {
        Arc::new(ViewerSocket { fd: socket.as_raw_fd(), socket: socket.clone() })
    }
}

impl Sink for ViewerSocket {
    /// Calls send(2) without the runtime's readiness check. Nobody waits for the outcome here: only the viewer's own task
    /// waits for the socket, by [`Sink::poll_writable`], after a write of its own that would have blocked.
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        // SAFETY: `socket` owns this descriptor and lives as long as `self`.
        let socket = unsafe { BorrowedFd::borrow_raw(self.fd) };
        SockRef::from(&socket).send_with_flags(bytes, libc::MSG_NOSIGNAL)
    }

    fn try_write_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        self.socket.try_write_vectored(pieces)
    }

    fn poll_writable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_write_ready(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[tokio::test]
    async fn a_connection_has_the_options_of_its_listener() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        prepare_listener(&listener);
        let _peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        let options = SockRef::from(&socket);
        assert!(options.tcp_nodelay().unwrap());
        assert!(options.keepalive().unwrap());
        assert_eq!(options.tcp_keepalive_time().unwrap(), KEEPALIVE);
        assert_eq!(options.tcp_user_timeout().unwrap(), Some(USER_TIMEOUT));
        let buffer = options.send_buffer_size().unwrap();
        assert!((VIEWER_SEND_BUFFER..=2 * VIEWER_SEND_BUFFER).contains(&buffer), "{buffer}");
    }
}
