//! A reactor, ingest nodes and a playback node, each a process of its own: a stream is pulled on its way.

use super::lb::Lb;
use super::{SOON, http, wait_for};

/// A cluster whose nodes are ready.
pub struct Cluster {
    pub playback: Lb,
    pub ingest: Vec<Lb>,
    pub reactor: Lb,
}

impl Cluster {
    /// A cluster with so many ingest nodes.
    #[track_caller]
    pub fn start(ingest: usize) -> Cluster {
        Cluster::start_with(ingest, &[])
    }

    /// As [`Cluster::start`], with flags for the ingest nodes.
    #[track_caller]
    pub fn start_with(ingest: usize, flags: &[&str]) -> Cluster {
        let reactor = Lb::start(&["--role", "reactor"]);
        let url = reactor.reactor_url();
        let node =
            |role, flags: &[&str]| Lb::start(&[&["--role", role, "--reactor-url", &url], flags].concat());
        let ingest = (0..ingest).map(|_| node("ingest", flags)).collect();
        let playback = node("playback", &[]);
        Cluster { playback, ingest, reactor }
    }

    /// Where a stream is published: at the ingest node of this number.
    #[track_caller]
    pub fn ingest_url(&self, node: usize, name: &str) -> String {
        self.ingest[node].rtmp_url("ingest", name)
    }

    /// Where a stream is played.
    #[track_caller]
    pub fn live_url(&self, name: &str) -> String {
        self.playback.rtmp_url("live", name)
    }

    /// Waits until the reactor knows a stream.
    #[track_caller]
    pub fn wait_published(&self, name: &str) {
        wait_for(&format!("{name} to be published"), SOON, || {
            http::get(self.reactor.reactor(), &format!("/streams/{name}")).status == 200
        });
    }
}
