//! Forwards TCP connections to one address at a time, as a load balancer in front of ingest nodes does.

use crate::common::endpoint;
use std::net::{Ipv4Addr, SocketAddr};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

/// A running forwarder. Dropping it closes its connections.
pub struct Forwarder {
    address: SocketAddr,
    target: watch::Sender<SocketAddr>,
    _task: AbortOnDropHandle<()>,
}

impl Forwarder {
    pub fn start(to: SocketAddr) -> Forwarder {
        let listener = endpoint::runtime().block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let (target, current) = watch::channel(to);
        let task = endpoint::runtime().spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                let to = *current.borrow();
                connections.spawn(async move {
                    // A node that is gone closes the client's connection, which is all that the client learns.
                    let mut server = TcpStream::connect(to).await?;
                    copy_bidirectional(&mut client, &mut server).await
                });
            }
        });
        Forwarder { address, target, _task: AbortOnDropHandle::new(task) }
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections that come from now on go there; those that stand stay.
    pub fn forward_to(&self, to: SocketAddr) {
        self.target.send(to).unwrap();
    }
}
