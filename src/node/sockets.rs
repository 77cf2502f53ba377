//! Everything a process listens with, bound before anything runs.

use super::error::{Error, start_error};
use super::listen;
use crate::config::Plan;
use crate::net::routes::Apps;
use crate::net::{Entrance, Protocol};
use crate::steps::engine;
use rustls::ServerConfig;
use std::io::{self, Write};
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use tokio::net::TcpListener;

/// See the module's head.
pub(super) struct Sockets {
    pub rtmp: Vec<Rtmp>,
    /// The port of steps that name none.
    pub rtmp_port: u16,
    /// The port that leads to the same apps by TLS.
    pub rtmps_port: Option<u16>,
    pub reactor: Option<TcpListener>,
    pub admin: Option<TcpListener>,
    pub agent: Option<TcpListener>,
    pub addresses: Addresses,
}

/// A port for publishers and viewers.
pub(super) struct Rtmp {
    listener: TcpListener,
    address: SocketAddr,
    protocol: Protocol,
    tls: bool,
    /// The port whose routes it leads to.
    routes: u16,
}

/// The ports for publishers and viewers that are open from the start.
pub(super) struct Entrances {
    pub listeners: Vec<(TcpListener, Entrance)>,
    /// The node's certificate, if it has one.
    pub certificate: Option<Arc<ServerConfig>>,
}

impl Entrances {
    /// Of these ports that of the steps which name them, and whether by TLS: not those that lead to the apps of another.
    pub fn steps_ports(&self) -> Result<Vec<(u16, bool)>, Error> {
        let own = |(listener, entrance): &(TcpListener, Entrance)| {
            let port = listener.local_addr().map_err(start_error)?.port();
            let is_own = entrance.protocol == Protocol::Rtmp && entrance.port == port;
            Ok(is_own.then_some((port, entrance.tls.is_some())))
        };
        self.listeners.iter().map(own).filter_map(Result::transpose).collect()
    }
}

/// The addresses that were bound.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    rtmp: Vec<SocketAddr>,
    rtmps: Vec<SocketAddr>,
    pub(super) reactor: Option<SocketAddr>,
    admin: Option<SocketAddr>,
    agent: Option<SocketAddr>,
    pub(super) http: Option<SocketAddr>,
}

impl Sockets {
    pub fn bind(plan: &Plan) -> Result<Self, Error> {
        let http = |what, address: Option<SocketAddr>| address.map(|address| bind(what, address)).transpose();
        let reactor = http("the reactor", plan.reactor_listen)?;
        let admin = http("the admin port", plan.admin_listen)?;
        let agent = http("the agent-check", plan.agent_listen)?;
        let local = |bound: &Option<(TcpListener, SocketAddr)>| bound.as_ref().map(|(_, address)| *address);
        let mut addresses = Addresses {
            reactor: local(&reactor),
            admin: local(&admin),
            agent: local(&agent),
            ..Addresses::default()
        };
        let (mut rtmp, mut rtmp_port, mut rtmps_port) = (Vec::new(), plan.args.rtmp_port, None);
        if plan.roles.is_node() {
            let mut free = if rtmp_port == 0 { Some(Rtmp::bind(0, false)?) } else { None };
            rtmp_port = free.as_ref().map_or(rtmp_port, |free| free.routes);
            let configs = plan.configs(rtmp_port, &plan.reactor_urls(addresses.reactor)?)?;
            for (port, tls) in engine::ports(&configs, rtmp_port)? {
                rtmp.push(match free.take_if(|free| free.routes == port) {
                    Some(bound) => Rtmp { tls, ..bound },
                    None => Rtmp::bind(port, tls)?,
                });
            }
            if let Some(port) = plan.args.transport.rtmps_port {
                let bound = Rtmp::bind(port, true)?;
                rtmps_port = Some(bound.routes);
                rtmp.push(Rtmp { routes: rtmp_port, ..bound });
            }
        }
        for bound in &rtmp {
            let list = if bound.tls { &mut addresses.rtmps } else { &mut addresses.rtmp };
            list.push(bound.address);
        }
        if let Some(address) = plan.http_listen {
            let (listener, address) = bind("HTTP-FLV", address)?;
            let (protocol, tls) = (Protocol::Http, plan.args.transport.https);
            rtmp.push(Rtmp { listener, address, protocol, tls, routes: rtmp_port });
            addresses.http = Some(address);
        }
        let listener = |bound: Option<(TcpListener, SocketAddr)>| bound.map(|(listener, _)| listener);
        let (reactor, admin, agent) = (listener(reactor), listener(admin), listener(agent));
        Ok(Sockets { rtmp, rtmp_port, rtmps_port, reactor, admin, agent, addresses })
    }
}

impl Rtmp {
    fn bind(port: u16, tls: bool) -> Result<Self, Error> {
        let what = if tls { "RTMPS" } else { "RTMP" };
        let (listener, address) = bind(what, SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))?;
        Ok(Rtmp { listener, address, protocol: Protocol::Rtmp, tls, routes: address.port() })
    }

    /// The listener, and what it leads to.
    pub fn entrance(self, certificate: Option<&Arc<ServerConfig>>) -> Result<(TcpListener, Entrance), Error> {
        let tls = certificate.filter(|_| self.tls).cloned();
        if self.tls && tls.is_none() {
            // The plan saw to it.
            return Err(Error::Start("a port for TLS needs --tls-cert".to_owned()));
        }
        Ok((self.listener, Entrance { port: self.routes, protocol: self.protocol, tls }))
    }
}

fn bind(what: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), Error> {
    let bound = listen::bind(address).and_then(|listener| {
        let address = listener.local_addr()?;
        Ok((listener, address))
    });
    bound.map_err(|error| Error::Bind { what, address, error })
}

impl Addresses {
    /// The first port for RTMP without TLS.
    pub fn rtmp_port(&self) -> Option<u16> {
        self.rtmp.first().map(SocketAddr::port)
    }

    /// Says where to publish, to watch, and to look, for whoever started it by hand.
    pub(super) fn guide(&self, apps: &Apps, https: bool) {
        let host = |address: &SocketAddr| match address.ip().is_unspecified() {
            true => format!("{}:{}", host_name(), address.port()),
            false => address.to_string(),
        };
        let scheme = if https { "https" } else { "http" };
        let rtmp = |(port, app): &(u16, String)| {
            let address = self.rtmp.iter().find(|address| address.port() == *port)?;
            Some(format!("rtmp://{}/{app}", host(address)))
        };
        let mut lines = String::new();
        for server in apps.publish.iter().filter_map(rtmp) {
            lines += &format!("  publish  {server}/NAME    in OBS: server {server}, stream key NAME\n");
        }
        for place in &apps.play {
            let over_http =
                self.http.iter().map(|address| format!("{scheme}://{}/{}/NAME.flv", host(address), place.1));
            let all: Vec<String> =
                rtmp(place).map(|server| format!("{server}/NAME")).into_iter().chain(over_http).collect();
            lines += &format!("  play     {}\n", all.join("  "));
        }
        if let Some(address) = &self.reactor {
            lines += &format!("  page     {scheme}://{}/\n", host(address));
        }
        if let Err(error) = io::stdout().write_all(lines.as_bytes()) {
            tracing::debug!(%error, "stdout");
        }
    }

    /// The one line that says that the process is ready, for people and for scripts.
    pub fn announce(&self, plan: &Plan) {
        let mut line = format!("lb ready: roles={}", plan.roles.names().join(","));
        let one = |name: &str, address: &SocketAddr| format!(" {name}={address}");
        self.rtmp.iter().for_each(|address| line += &one("rtmp", address));
        self.rtmps.iter().for_each(|address| line += &one("rtmps", address));
        self.http.iter().for_each(|address| line += &one("http", address));
        self.admin.iter().for_each(|address| line += &one("admin", address));
        self.reactor.iter().for_each(|address| line += &one("reactor", address));
        self.agent.iter().for_each(|address| line += &one("agent", address));
        // Whoever closed our output does not want the line; the service goes on.
        if let Err(error) = writeln!(io::stdout(), "{line}") {
            tracing::debug!(%error, "stdout");
        }
    }
}

/// What this host calls itself.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "localhost".to_owned() } else { name.to_owned() }
}
