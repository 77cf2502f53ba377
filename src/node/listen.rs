//! Binds the TCP ports of a process, the same way for RTMP and HTTP: the parts get listeners that are bound, and know
//! nothing of addresses.

use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use tokio::net::TcpListener;

/// The accept backlog: 5,000 viewers may come within a second, while the accepting task has no turn.
const BACKLOG: i32 = 4096;

/// Binds an address. `[::]` takes IPv4 as well, whatever the host's default; where a host has no IPv6 at all, `0.0.0.0` is
/// bound instead. A port whose last process was just stopped or
/// killed can be bound again at once.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let wildcard = address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    match bind_exactly(address) {
        Err(error) if wildcard && error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            bind_exactly(SocketAddr::from(([0, 0, 0, 0], address.port())))
        }
        other => other,
    }
}

/// Binds a port on all addresses of the host, as [`bind`] does.
pub fn bind_port(port: u16) -> io::Result<TcpListener> {
    bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))
}

fn bind_exactly(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}
