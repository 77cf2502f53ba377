//! What every RTMP socket is set to, and a socket as the relay writes to it.

use crate::relay::Sink;
use socket2::{SockRef, TcpKeepalive};
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;

/// Sent data that nobody acknowledges for so long means that the peer is gone. Pings make sure that there is such data.
const USER_TIMEOUT: Duration = Duration::from_secs(20);

/// A connection without traffic is probed after this time.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// The kernel's send buffer of one viewer (the kernel doubles it for its own needs). It bounds what a slow viewer holds in
/// the kernel, and is enough for 20 Mb/s at a round trip of 100 ms.
const VIEWER_SEND_BUFFER: usize = 256 << 10;

/// Sets the options of a new connection. None of them is worth refusing a peer for.
pub(super) fn prepare(socket: &TcpStream) {
    let options = SockRef::from(socket);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 4);
    let set = [
        socket.set_nodelay(true),
        options.set_tcp_user_timeout(Some(USER_TIMEOUT)),
        options.set_tcp_keepalive(&keepalive),
    ];
    for error in set.into_iter().filter_map(Result::err) {
        tracing::debug!(%error, "a socket option could not be set");
    }
}

/// A viewer's socket as the relay sees it. Held by the viewer alone, so that the relay lets go of it with the viewer.
#[derive(Debug)]
pub(super) struct ViewerSocket(Arc<TcpStream>);

impl ViewerSocket {
    pub fn new(socket: &Arc<TcpStream>) -> Arc<Self> {
        if let Err(error) = SockRef::from(socket.as_ref()).set_send_buffer_size(VIEWER_SEND_BUFFER) {
            tracing::debug!(%error, "the send buffer could not be set");
        }
        Arc::new(ViewerSocket(socket.clone()))
    }
}

impl Sink for ViewerSocket {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn try_write_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(pieces)
    }

    fn poll_writable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_write_ready(context)
    }
}
