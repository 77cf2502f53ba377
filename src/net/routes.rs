//! Who may publish and play what: ports, apps and stream keys, filled by the floors above.
//!
//! A publish is a request that the route's owner accepts or refuses, so policy stays outside. A play is a join of the
//! route's hub, which says by itself what it lets in.

use super::acl::Acl;
use super::ports::{PortError, PortGuard, Ports};
use crate::api::PULL_APP;
use crate::ids::{Identity, SessionId, StreamName};
use crate::relay::{Batching, FeedRef, Hub};
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Which stream keys a route is for: the `stream_key` of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyPattern {
    /// `*`: every name.
    Any,
    /// This name only.
    Exact(StreamName),
}

impl KeyPattern {
    fn matches(&self, name: &StreamName) -> bool {
        match self {
            KeyPattern::Any => true,
            KeyPattern::Exact(exact) => exact == name,
        }
    }

    /// Whether there is a key that both match, with the same precedence.
    pub fn overlaps(&self, other: &KeyPattern) -> bool {
        match (self, other) {
            (KeyPattern::Exact(one), KeyPattern::Exact(two)) => one == two,
            _ => self == other,
        }
    }
}

/// What a route is for: a port, an app, and which stream keys and addresses there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The TCP port of a listener.
    pub port: u16,
    /// Peers speak TLS on it.
    pub tls: bool,
    /// The RTMP app, without a slash at its end.
    pub app: String,
    /// The stream keys.
    pub key: KeyPattern,
    /// Which addresses may use it.
    pub acl: Acl,
}

/// A request to publish.
pub struct PublishRequest {
    /// The stream.
    pub name: StreamName,
    /// This publish.
    pub session: SessionId,
    /// Who it is, if authorisation knows.
    pub identity: Option<Identity>,
    /// The query of the stream key or of the app. Secret.
    pub query: Option<String>,
    /// The publisher's address.
    pub peer: SocketAddr,
    /// The connection's number, for logs.
    pub connection: u64,
    /// The feed that its media will be pushed into.
    pub feed: FeedRef,
    /// Cancelled when the connection closes; no answer is needed then.
    pub gone: CancellationToken,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Result<Publication, Refused>>,
}

/// Leaves out what may hold secrets.
impl fmt::Debug for PublishRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublishRequest")
            .field("name", &self.name)
            .field("session", &self.session)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

/// Why a publish is refused; the text is for the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused(pub String);

/// An accepted publish.
#[derive(Debug)]
pub struct Publication {
    /// Resolves with the reason when this side ends the publish, for example after a takeover; with an error when the step
    /// is gone.
    pub evicted: oneshot::Receiver<String>,
}

/// Takes the publishers of a place.
#[derive(Clone, Debug)]
pub struct PublishRoute {
    /// Where requests go. Bounded; a full channel refuses the publisher with a reason that lets it try again.
    pub requests: mpsc::Sender<PublishRequest>,
}

/// Takes the viewers of a place.
#[derive(Clone, Debug)]
pub struct PlayRoute {
    /// The streams.
    pub hub: Arc<Hub>,
    /// Its viewers are downstream relays, that is pulls of other nodes: they are counted as pulls (`lb_pulls_out`), and are
    /// closed at once when the node drains, so that they look for another origin.
    pub pulls: bool,
}

/// Why a step's route cannot be added.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// Another step has the place.
    #[error("port {port}, app '{app}' and this stream key are taken by another step")]
    Taken {
        /// The port.
        port: u16,
        /// The app.
        app: String,
    },
    /// The port cannot be had.
    #[error(transparent)]
    Port(#[from] PortError),
}

/// Why no route takes a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRoute {
    /// No step has this app on this port.
    #[error("no such app")]
    App,
    /// The app is for viewers; with those on this port that take publishers.
    #[error("this app takes no publishers{}", .0.as_ref().map(|app| format!("; '{app}' does")).unwrap_or_default())]
    OnlyViewers(Option<String>),
    /// The app is for publishers; with one on this port that serves viewers.
    #[error("this app serves no viewers{}", .0.as_ref().map(|app| format!("; '{app}' does")).unwrap_or_default())]
    OnlyPublishers(Option<String>),
    /// The app has no step for this key.
    #[error("no such stream key")]
    Key,
    /// The address is not allowed, or denied.
    #[error("your address is not allowed")]
    Address,
}

impl NoRoute {
    /// The label of the refusal's counter.
    pub fn reason(&self) -> &'static str {
        match self {
            NoRoute::App | NoRoute::OnlyViewers(_) | NoRoute::OnlyPublishers(_) => "app",
            NoRoute::Key => "stream_key",
            NoRoute::Address => "address",
        }
    }
}

/// The apps of a node, with their ports.
#[derive(Clone, Debug, Default)]
pub struct Apps {
    /// Those that take publishers.
    pub publish: BTreeSet<(u16, String)>,
    /// Those that serve viewers.
    pub play: BTreeSet<(u16, String)>,
}

/// All routes of a node.
#[derive(Debug, Default)]
pub struct Routes {
    table: RwLock<Table>,
    /// Who opens ports; without, all that there are going to be are open.
    ports: OnceLock<Arc<Ports>>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    apps: HashMap<(u16, String), App>,
}

#[derive(Debug, Default)]
struct App {
    publish: Vec<(u64, Place, PublishRoute)>,
    play: Vec<(u64, Place, PlayRoute)>,
}

/// Takes its route away when it is dropped.
#[derive(Debug)]
pub struct RouteGuard {
    routes: Arc<Routes>,
    at: (u16, String),
    id: u64,
    /// Given back after the route is gone.
    _port: PortGuard,
}

impl Drop for RouteGuard {
    fn drop(&mut self) {
        let mut table = self.routes.table.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(app) = table.apps.get_mut(&self.at) {
            app.publish.retain(|(id, ..)| *id != self.id);
            app.play.retain(|(id, ..)| *id != self.id);
            if app.publish.is_empty() && app.play.is_empty() {
                table.apps.remove(&self.at);
            }
        }
    }
}

impl Routes {
    /// No routes.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Has the ports of routes opened from now on.
    pub fn open_by(&self, ports: Arc<Ports>) {
        // A second call would be a fault of this program, and changes nothing.
        let _first = self.ports.set(ports);
    }

    /// Has a port open for as long as what is returned is held.
    ///
    /// Errors: see [`PortError`].
    pub fn hold(&self, port: u16, tls: bool) -> Result<PortGuard, PortError> {
        self.ports.get().map_or_else(|| Ok(PortGuard::default()), |ports| ports.take(port, tls))
    }

    /// Lets publishers in at a place.
    pub fn add_publish(
        self: &Arc<Self>,
        place: Place,
        route: PublishRoute,
    ) -> Result<RouteGuard, RouteError> {
        self.add(place, |app| &mut app.publish, route)
    }

    /// Lets viewers in at a place.
    pub fn add_play(self: &Arc<Self>, place: Place, route: PlayRoute) -> Result<RouteGuard, RouteError> {
        self.add(place, |app| &mut app.play, route)
    }

    fn add<T>(
        self: &Arc<Self>,
        place: Place,
        list: impl Fn(&mut App) -> &mut Vec<(u64, Place, T)>,
        route: T,
    ) -> Result<RouteGuard, RouteError> {
        let port = self.hold(place.port, place.tls)?;
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.next += 1;
        let id = table.next;
        let at = (place.port, place.app.clone());
        let list = list(table.apps.entry(at.clone()).or_default());
        if list.iter().any(|(_, other, _)| other.key.overlaps(&place.key)) {
            return Err(RouteError::Taken { port: place.port, app: place.app });
        }
        list.push((id, place, route));
        // An exact key is looked at before the pattern for every key.
        list.sort_by_key(|(id, place, _)| (place.key == KeyPattern::Any, *id));
        Ok(RouteGuard { routes: self.clone(), at, id, _port: port })
    }

    /// Where viewers and nodes play, by app.
    pub fn watch_points(&self) -> Vec<(String, PlayRoute)> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let plays = |((_, name), app): (&(u16, String), &App)| {
            let routes: Vec<_> = app.play.iter().map(|(_, _, route)| (name.clone(), route.clone())).collect();
            routes
        };
        table.apps.iter().flat_map(plays).collect()
    }

    /// The apps that take publishers, and those that serve viewers, without those for nodes.
    pub fn apps(&self) -> Apps {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let mut apps = Apps::default();
        for ((port, name), app) in &table.apps {
            if !app.publish.is_empty() {
                apps.publish.insert((*port, name.clone()));
            }
            if app.play.iter().any(|(_, _, route)| !route.pulls) {
                apps.play.insert((*port, name.clone()));
            }
        }
        apps
    }

    /// Whether all viewers of this node get audio together with the next video frame. Only then may a publisher's audio wait
    /// in its socket for that frame.
    pub fn audio_waits_for_video(&self) -> bool {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let mut plays = table.apps.values().flat_map(|app| &app.play);
        plays.all(|(_, _, route)| route.hub.batching() == Batching::AudioWithVideo)
    }

    /// Whether a port has an app.
    pub fn has_app(&self, port: u16, app: &str) -> bool {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.apps.contains_key(&(port, app.to_owned()))
    }

    /// Whether an app serves pulls of other nodes and no viewers.
    pub fn serves_pulls(&self, port: u16, app: &str) -> bool {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let app = table.apps.get(&(port, app.to_owned()));
        app.is_some_and(|app| !app.play.is_empty() && app.play.iter().all(|(_, _, route)| route.pulls))
    }

    /// Whether the step that takes a play names the peer's address in its `allow_ips`.
    pub fn lists_viewer(&self, port: u16, app: &str, name: &StreamName, peer: IpAddr) -> bool {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let plays = table.apps.get(&(port, app.to_owned())).map(|app| &app.play);
        let mut matching = plays.into_iter().flatten().filter(|(_, place, _)| place.key.matches(name));
        matching.next().is_some_and(|(_, place, _)| place.acl.lists(peer))
    }

    /// The route of a publish.
    pub fn publish(
        &self,
        port: u16,
        app: &str,
        name: &StreamName,
        peer: SocketAddr,
    ) -> Result<PublishRoute, NoRoute> {
        self.find(port, app, name, peer, |app| &app.publish, NoRoute::OnlyViewers)
    }

    /// The route of a play.
    pub fn play(
        &self,
        port: u16,
        app: &str,
        name: &StreamName,
        peer: SocketAddr,
    ) -> Result<PlayRoute, NoRoute> {
        self.find(port, app, name, peer, |app| &app.play, NoRoute::OnlyPublishers)
    }

    fn find<T: Clone>(
        &self,
        port: u16,
        app: &str,
        name: &StreamName,
        peer: SocketAddr,
        list: impl Fn(&App) -> &Vec<(u64, Place, T)>,
        only_others: fn(Option<String>) -> NoRoute,
    ) -> Result<T, NoRoute> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let app = table.apps.get(&(port, app.to_owned())).ok_or(NoRoute::App)?;
        if list(app).is_empty() {
            // Pulls between nodes are not what somebody meant who was wrong about the app.
            let meant = |((on, name), app): (&(u16, String), &App)| {
                (*on == port && name != PULL_APP && !list(app).is_empty()).then(|| name.clone())
            };
            return Err(only_others(table.apps.iter().filter_map(meant).min()));
        }
        let matching = list(app).iter().find(|(_, place, _)| place.key.matches(name));
        let (_, place, route) = matching.ok_or(NoRoute::Key)?;
        if !place.acl.permits(peer.ip()) {
            return Err(NoRoute::Address);
        }
        Ok(route.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(port: u16, app: &str, key: &str, acl: Acl) -> Place {
        let key = match key {
            "*" => KeyPattern::Any,
            exact => KeyPattern::Exact(exact.parse().unwrap()),
        };
        Place { port, tls: false, app: app.to_owned(), key, acl }
    }

    #[test]
    fn a_request_finds_the_route_of_its_port_app_key_and_address() {
        let routes = Routes::new();
        let (any, mut at_any) = mpsc::channel::<PublishRequest>(1);
        let (exact, _at_exact) = mpsc::channel::<PublishRequest>(2);
        let guard = routes
            .add_publish(place(1935, "live", "*", Acl::default()), PublishRoute { requests: any })
            .unwrap();
        let acl = Acl::parse(Some("10.0.0.0/8"), None).unwrap();
        let _exact =
            routes.add_publish(place(1935, "live", "vip", acl), PublishRoute { requests: exact }).unwrap();
        let find = |port, app: &str, key: &str, peer: &str| {
            let peer = SocketAddr::new(peer.parse().unwrap(), 1);
            routes.publish(port, app, &key.parse().unwrap(), peer).map(|route| route.requests.max_capacity())
        };
        assert_eq!(find(1935, "live", "x", "192.0.2.1"), Ok(1));
        assert_eq!(find(1935, "live", "vip", "10.1.1.1"), Ok(2), "an exact key comes first");
        assert_eq!(find(1935, "live", "vip", "192.0.2.1"), Err(NoRoute::Address));
        assert_eq!(find(1936, "live", "x", "192.0.2.1"), Err(NoRoute::App));
        assert_eq!(find(1935, "other", "x", "192.0.2.1"), Err(NoRoute::App));
        drop(guard);
        assert_eq!(find(1935, "live", "x", "192.0.2.1"), Err(NoRoute::Key));
        assert!(at_any.try_recv().is_err());
    }

    #[test]
    fn a_place_has_one_owner() {
        let routes = Routes::new();
        let (requests, _keep) = mpsc::channel(1);
        let route = PublishRoute { requests };
        let _guard = routes.add_publish(place(1, "a", "*", Acl::default()), route.clone()).unwrap();
        assert!(routes.add_publish(place(1, "a", "*", Acl::default()), route.clone()).is_err());
        assert!(routes.add_publish(place(1, "b", "*", Acl::default()), route).is_ok());
    }
}
