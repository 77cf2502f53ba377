//! The RTMP ports that a node listens on.
//!
//! Those of the configuration at the start are bound before anything runs, and stay to the end of the process. Any other is opened
//! when the first route on it is added, and closed with the last one: a workflow may come by the admin port, by a reactor's
//! answer, or in a configuration that is read again.
//!
//! ```text
//! take ─▶ bound, accepting ──(last guard dropped)──▶ unused ──(its task comes to it)──▶ closed
//!                 ▲──────────────── take ──────────────┘
//! ```
//!
//! A port is closed by the task that accepts on it, which drops the listener while it holds the table's lock: whoever takes the port
//! meanwhile either finds it open, or finds it free to be bound again. How a port is bound and what is done with its connections is
//! not known here: that is an [`Opener`]'s.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::net::TcpListener;
use tokio::sync::Notify;

/// The most ports that are open beside those of the start. Each is a descriptor and a task; whoever needs more wants one port with
/// several apps.
const OPENED_MAX: usize = 64;

/// Binds a port, and takes connections on it, by TLS or not, until it is [`InUse`] no longer. Called within the runtime.
pub type Opener = dyn Fn(InUse, bool) -> Result<(), PortError> + Send + Sync;

/// See the module's head.
pub struct Ports {
    open: Box<Opener>,
    table: Mutex<HashMap<u16, Open>>,
}

/// What whoever accepts on a port knows of its use.
pub struct InUse {
    ports: Arc<Ports>,
    port: u16,
    unused: Arc<Notify>,
}

impl InUse {
    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Waits until nobody seems to use the port any more. Safe to drop and call again.
    pub async fn unused(&self) {
        self.unused.notified().await;
    }

    /// Closes the port, unless somebody uses it again by now: then its listener is given back.
    pub fn close(&self, listener: TcpListener) -> Option<TcpListener> {
        self.ports.close(self.port, listener)
    }
}

impl fmt::Debug for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ports").field("table", &self.table).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Open {
    /// Peers speak TLS.
    tls: bool,
    /// Nothing for a port that is open from the start to the end.
    used: Option<Used>,
}

#[derive(Debug)]
struct Used {
    guards: usize,
    /// Told when there is none any more.
    unused: Arc<Notify>,
}

/// Why a route cannot have its port.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// It is open in the other way.
    #[error("port {port} is open {}, and cannot be for steps with rtmps and for others as well", how(*.tls))]
    Tls {
        /// The port.
        port: u16,
        /// The way in which it is open.
        tls: bool,
    },
    /// There is no certificate for it.
    #[error("port {0} is to speak TLS, and this node has no certificate (--tls-cert)")]
    NoCertificate(u16),
    /// The system refuses it.
    #[error("port {port} cannot be bound: {error}")]
    Bind {
        /// The port.
        port: u16,
        /// What the system says.
        error: io::Error,
    },
    /// There are too many.
    #[error("port {0}: no more than {OPENED_MAX} ports are opened while a node runs")]
    TooMany(u16),
    /// The node is stopping.
    #[error("port {0}: the node is stopping")]
    Stopping(u16),
}

fn how(tls: bool) -> &'static str {
    if tls { "with TLS" } else { "without TLS" }
}

/// Keeps a port open for as long as it is there.
#[derive(Debug, Default)]
pub struct PortGuard(Option<(Arc<Ports>, u16)>);

impl Drop for PortGuard {
    fn drop(&mut self) {
        if let Some((ports, port)) = self.0.take() {
            ports.give_back(port);
        }
    }
}

impl Ports {
    /// The ports of a node. `fixed`: those that are bound already, and whether by TLS.
    pub fn new(fixed: impl IntoIterator<Item = (u16, bool)>, open: Box<Opener>) -> Arc<Self> {
        let fixed = fixed.into_iter().map(|(port, tls)| (port, Open { tls, used: None })).collect();
        Arc::new(Ports { open, table: Mutex::new(fixed) })
    }

    /// Has a port open for as long as what is returned is held. Must be called within the runtime.
    ///
    /// Errors: see [`PortError`].
    pub fn take(self: &Arc<Self>, port: u16, tls: bool) -> Result<PortGuard, PortError> {
        let mut table = self.lock();
        match table.get_mut(&port) {
            Some(open) if open.tls != tls => return Err(PortError::Tls { port, tls: open.tls }),
            Some(Open { used: None, .. }) => return Ok(PortGuard::default()),
            Some(Open { used: Some(used), .. }) => used.guards += 1,
            None => {
                if table.values().filter(|open| open.used.is_some()).count() >= OPENED_MAX {
                    return Err(PortError::TooMany(port));
                }
                let unused = Arc::new(Notify::new());
                (self.open)(InUse { ports: self.clone(), port, unused: unused.clone() }, tls)?;
                tracing::info!(port, tls, "port opened for a workflow");
                table.insert(port, Open { tls, used: Some(Used { guards: 1, unused }) });
            }
        }
        Ok(PortGuard(Some((self.clone(), port))))
    }

    fn give_back(&self, port: u16) {
        if let Some(Open { used: Some(used), .. }) = self.lock().get_mut(&port) {
            used.guards = used.guards.saturating_sub(1);
            if used.guards == 0 {
                used.unused.notify_one();
            }
        }
    }

    fn close(&self, port: u16, listener: TcpListener) -> Option<TcpListener> {
        let mut table = self.lock();
        let is_unused = |open: &Open| open.used.as_ref().is_some_and(|used| used.guards == 0);
        if !table.get(&port).is_some_and(is_unused) {
            return Some(listener);
        }
        table.remove(&port);
        drop(listener);
        tracing::info!(port, "port closed: no workflow uses it any more");
        None
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u16, Open>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Ports that are bound on loopback and closed by a task, as a server does it. Says how often one was opened.
    fn ports(fixed: &[(u16, bool)]) -> (Arc<Ports>, Arc<AtomicUsize>) {
        let opened = Arc::new(AtomicUsize::new(0));
        let count = opened.clone();
        let open = move |used: InUse, _| {
            let bound = std::net::TcpListener::bind(("127.0.0.1", used.port()));
            let bound = bound.and_then(|bound| bound.set_nonblocking(true).map(|()| bound));
            let listener = bound.and_then(TcpListener::from_std);
            let listener = listener.map_err(|error| PortError::Bind { port: used.port(), error })?;
            count.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let mut open = Some(listener);
                while let Some(listener) = open.take() {
                    used.unused().await;
                    open = used.close(listener);
                }
            });
            Ok(())
        };
        (Ports::new(fixed.iter().copied(), Box::new(open)), opened)
    }

    fn free_port() -> u16 {
        std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
    }

    #[tokio::test]
    async fn a_port_is_open_for_as_long_as_somebody_holds_it() {
        let (ports, opened) = ports(&[]);
        let port = free_port();
        let is_open = || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
        let (one, other) = (ports.take(port, false).unwrap(), ports.take(port, false).unwrap());
        drop(one);
        tokio::task::yield_now().await;
        assert!(is_open(), "the other holds it");
        drop(other);
        // Nobody has come to close it yet: it is found open, and not bound again.
        let again = ports.take(port, false).unwrap();
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        assert!(is_open() && opened.load(Ordering::Relaxed) == 1);
        drop(again);
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        assert!(!is_open());
        let _anew = ports.take(port, false).unwrap();
        assert!(is_open() && opened.load(Ordering::Relaxed) == 2);
    }

    #[tokio::test]
    async fn what_cannot_be_opened_is_said() {
        let (ports, opened) = ports(&[(1935, false)]);
        let error = |port, tls| ports.take(port, tls).unwrap_err().to_string();
        assert!(ports.take(1935, false).is_ok() && opened.load(Ordering::Relaxed) == 0, "it is there");
        assert!(error(1935, true).starts_with("port 1935 is open without TLS"));
        let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        assert!(error(port, false).starts_with(&format!("port {port} cannot be bound: ")));
        drop(taken);
        let _held = ports.take(port, false).unwrap();
        assert!(error(port, true).contains("open without TLS"));
    }
}
