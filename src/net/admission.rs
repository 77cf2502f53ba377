//! Lets a viewer in: the same for whoever plays, in whatever way.

use super::routes::PlayRoute;
use super::server::Server;
use crate::ids::StreamName;
use crate::relay::stream::End;
use crate::relay::{Admission, Interest, JoinError};
use crate::telemetry::Counted;
use std::net::SocketAddr;

/// A viewer that is let in.
pub(super) struct Admitted {
    pub route: PlayRoute,
    pub interest: Interest,
    /// Counts it for as long as it is here.
    pub _counted: Counted,
}

/// Why one is not.
pub(super) struct NotAdmitted {
    /// The label of the refusal's counter.
    pub reason: &'static str,
    /// For the peer.
    pub text: String,
}

impl NotAdmitted {
    fn new(reason: &'static str, text: impl Into<String>) -> Self {
        NotAdmitted { reason, text: text.into() }
    }
}

/// Lets a viewer in at a port and an app, if there is a route and room. `looped`: it is a pull that came through this node before.
pub(super) fn admit(
    server: &Server,
    port: u16,
    app: &str,
    name: &StreamName,
    peer: SocketAddr,
    looped: bool,
) -> Result<Admitted, NotAdmitted> {
    let route = server
        .routes
        .play(port, app, name, peer)
        .map_err(|no| NotAdmitted::new(no.reason(), no.to_string()))?;
    if looped && route.hub.admission() == Admission::OnDemand {
        // A stream that is published here may be pulled from here; one that is not would be pulled in a loop.
        return Err(NotAdmitted::new("loop", "this node would pull from itself"));
    }
    let taken = usize::try_from(server.metrics.connections.get()).unwrap_or(0);
    let (connections, reserve) = (server.limits.connections, server.limits.reserve);
    if !route.pulls && taken > connections.saturating_sub(reserve.min(connections / 10)) {
        return Err(NotAdmitted::new("reserve", "this node is full"));
    }
    let gauge = if route.pulls { &server.metrics.pulls_out } else { &server.metrics.viewers };
    let _counted = Counted::new(gauge);
    let interest = route.hub.join(name).map_err(|error| {
        let reason = match error {
            JoinError::Unknown => "unknown_stream",
            JoinError::Full => "names",
            JoinError::Closed => "closed",
        };
        NotAdmitted::new(reason, error.to_string())
    })?;
    Ok(Admitted { route, interest, _counted })
}

/// What a viewer is told whose stream ended before it began.
pub(super) fn refusal(end: &End) -> NotAdmitted {
    match end {
        End::Refused(text) => NotAdmitted::new("unknown_stream", text),
        End::Unknown => {
            NotAdmitted::new("reactor", "it cannot be found out now where this stream is, try again")
        }
        End::Unpublished => NotAdmitted::new("unpublished", "the stream has ended"),
        End::Closed => NotAdmitted::new("closed", "the node is stopping"),
    }
}
