//! Connects to another server, by TLS where its address says so.

use super::location::Location;
use super::socket;
use super::transport::Transport;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("{0}")]
    Socket(#[from] io::Error),
    #[error("no connection within {0:?}")]
    Time(Duration),
    #[error("this node connects without TLS only")]
    NoTls,
}

/// Connects to the first address of a location that answers. `each` is for the name, each address and the handshake of TLS.
pub(super) async fn dial(
    location: &Location,
    each: Duration,
    tls: Option<&Arc<ClientConfig>>,
) -> Result<Transport, DialError> {
    let socket = connect(location, each).await?;
    socket::prepare(&socket);
    if !location.tls {
        return Ok(Transport::plain(socket));
    }
    let config = tls.cloned().ok_or(DialError::NoTls)?;
    let name = ServerName::try_from(location.host.clone()).map_err(io::Error::other)?;
    let connection = ClientConnection::new(config, name).map_err(io::Error::other)?;
    let begun = timeout(each, Transport::tls(socket, connection)).await;
    Ok(begun.map_err(|_| DialError::Time(each))??)
}

async fn connect(Location { host, port, .. }: &Location, each: Duration) -> Result<TcpStream, DialError> {
    let resolved = timeout(each, lookup_host((host.as_str(), *port))).await;
    let addresses: Vec<SocketAddr> = resolved.map_err(|_| DialError::Time(each))??.collect();
    let mut last = DialError::Socket(io::Error::new(io::ErrorKind::NotFound, "the host has no address"));
    for address in addresses {
        match timeout(each, TcpStream::connect(address)).await {
            Ok(Ok(socket)) => return Ok(socket),
            Ok(Err(error)) => last = error.into(),
            Err(_) => last = DialError::Time(each),
        }
    }
    Err(last)
}
