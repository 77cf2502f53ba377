//! Whom a reactor hears, and what it believes of them.
//!
//! A node proves itself by the token, or stands where nodes are trusted by their address, as plain mmids nodes must, which
//! can send no header. Where neither is set, whoever reaches the reactor is heard; that is meant for loopback.
//!
//! Who shows no token could be a browser that a foreign page sends: what a page can make it send without being asked
//! (<https://fetch.spec.whatwg.org/#cors-safelisted-request-header>) is refused, and so are names that were made to point
//! here (DNS rebinding).
//!
//! A lookup whose body is the bare name as `text/plain`, as the guide of mmids has it, is such a request: a page can make a
//! browser send it. It is taken only without any header by which browsers say that a page is behind a request. Each browser of
//! today sends `Origin` with every POST (<https://fetch.spec.whatwg.org/#origin-header>), most send `Sec-Fetch-Site` and `Referer` as
//! well, and no page can take `Origin` away; nodes send none of them. That holds for trusted addresses too, as a browser may
//! run on a host that is trusted. A `PUT` needs no such care: a browser asks before it sends one, and gets no leave.

use super::forwarded;
use super::request::{Failure, Request};
use super::secret::Secret;
use crate::ids::Origin;
use ipnet::IpNet;
use std::net::IpAddr;
use std::str::FromStr;
use warp::http::header::{AUTHORIZATION, HOST, HeaderMap, ORIGIN, REFERER};
use warp::http::{Method, StatusCode};

/// See the module's head.
#[derive(Clone, Debug, Default)]
pub struct Door {
    /// What nodes show.
    pub token: Option<Secret>,
    /// Where nodes need not show it.
    pub trusted_nodes: Vec<IpNet>,
    /// The proxies whose word about the client's address is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// The names under which the reactor is called, besides addresses and `localhost`, by who shows no token.
    pub hosts: Vec<String>,
    /// What may be registered as an origin; empty: by who shows the token anything, by others their own address.
    pub allowed_origins: Vec<AllowedOrigin>,
}

/// An origin that may be registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedOrigin {
    /// An address or network.
    Net(IpNet),
    /// A host name.
    Host(String),
}

impl FromStr for AllowedOrigin {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(net) = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)) {
            return Ok(AllowedOrigin::Net(net));
        }
        match Origin::parse(text, crate::ids::DEFAULT_RTMP_PORT) {
            Ok(origin) if origin.ip().is_none() && origin.host() == text => {
                Ok(AllowedOrigin::Host(text.to_ascii_lowercase()))
            }
            _ => Err(format!("'{text}' is neither an address, a network nor a host name")),
        }
    }
}

/// Somebody who is heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    /// Where the call came from.
    pub source: IpAddr,
    /// It showed the token.
    pub proven: bool,
}

impl Door {
    /// Whether somebody is heard. A refusal is about the node, and not about what it asks.
    pub(super) fn admit(&self, request: &Request) -> Result<Caller, Failure> {
        self.hear(request, false)
    }

    /// As [`Door::admit`], for a call whose body may be plain text.
    pub(super) fn admit_text(&self, request: &Request) -> Result<Caller, Failure> {
        self.hear(request, true)
    }

    fn hear(&self, request: &Request, takes_text: bool) -> Result<Caller, Failure> {
        let source = forwarded::client(request.peer, &request.headers, &self.trusted_proxies);
        if self.token.as_ref().is_some_and(|token| shows(&request.headers, token)) {
            request.set_known();
            return Ok(Caller { source, proven: true });
        }
        let trusted = self.trusted_nodes.iter().any(|net| net.contains(&source));
        match (&self.token, self.trusted_nodes.is_empty()) {
            _ if trusted => request.set_known(),
            (None, true) => {}
            (Some(_), _) => {
                let text = "a valid bearer token is needed".to_owned();
                return Err(Failure::new(StatusCode::UNAUTHORIZED, text).about_node());
            }
            (None, false) => {
                let text = format!("{source} is not among the trusted nodes");
                return Err(Failure::new(StatusCode::FORBIDDEN, text).about_node());
            }
        }
        self.refuse_browsers(request, takes_text)?;
        Ok(Caller { source, proven: false })
    }

    fn refuse_browsers(&self, request: &Request, takes_text: bool) -> Result<(), Failure> {
        let forbidden = |text: String| Err(Failure::new(StatusCode::FORBIDDEN, text).about_node());
        let header = |name| request.headers.get(name).map(|value| value.to_str().unwrap_or("?"));
        if let Some(host) = header(HOST).filter(|host| !self.is_own_name(host)) {
            let host: String = host.chars().take(100).collect();
            return forbidden(format!(
                "this reactor does not answer to the name '{host}'; see --reactor-hosts"
            ));
        }
        let foreign_page =
            request.headers.get("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none");
        let changes = !matches!(request.method, Method::GET | Method::HEAD);
        let is_text = takes_text && request.is_of_type("text/plain");
        if foreign_page
            || (changes && request.headers.contains_key(ORIGIN))
            || (is_text && tells_of_a_page(&request.headers))
        {
            return forbidden("pages of other sites may not call the reactor".to_owned());
        }
        if request.method == Method::POST && !is_text && !request.is_of_type("application/json") {
            let or_text = if takes_text { " or text/plain" } else { "" };
            let text = format!("without a token the content type must be application/json{or_text}");
            return Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text).about_node());
        }
        Ok(())
    }

    /// Whether a `Host` header names this reactor.
    fn is_own_name(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<warp::http::uri::Authority>() else { return false };
        let name = authority.host().to_ascii_lowercase();
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        name == "localhost"
            || bare.parse::<IpAddr>().is_ok()
            || self.hosts.iter().any(|own| own.eq_ignore_ascii_case(&name))
    }

    /// Whether somebody may register an origin.
    pub(super) fn believes(&self, caller: Caller, origin: &Origin) -> Result<(), Failure> {
        let listed = |allowed: &AllowedOrigin| match allowed {
            AllowedOrigin::Net(net) => origin.ip().is_some_and(|ip| net.contains(&ip)),
            AllowedOrigin::Host(host) => origin.ip().is_none() && origin.host().eq_ignore_ascii_case(host),
        };
        let text = if !self.allowed_origins.is_empty() {
            if self.allowed_origins.iter().any(listed) {
                return Ok(());
            }
            format!("{origin} is not among the allowed origins")
        } else {
            if caller.proven || origin.ip() == Some(caller.source) {
                return Ok(());
            }
            let source = caller.source;
            format!(
                "without a token only {source} itself can be registered, not {origin}; see --allowed-origins"
            )
        };
        Err(Failure::new(StatusCode::FORBIDDEN, text).about_node())
    }
}

/// Whether a browser says that a page is behind a request.
fn tells_of_a_page(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| *name == ORIGIN || *name == REFERER || name.as_str().starts_with("sec-fetch-"))
}

/// RFC 6750, section 2.1.
fn shows(headers: &HeaderMap, token: &Secret) -> bool {
    let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.split_once(' '));
    given.is_some_and(|(scheme, given)| scheme.eq_ignore_ascii_case("bearer") && token.matches(given.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_was_made_to_point_here_is_not_its_own() {
        let door = Door { hosts: vec!["reactor.example.org".to_owned()], ..Door::default() };
        for own in ["127.0.0.1:8080", "[::1]:8080", "localhost", "Reactor.example.org:80", "10.0.0.1"] {
            assert!(door.is_own_name(own), "{own}");
        }
        for foreign in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "a b"] {
            assert!(!door.is_own_name(foreign), "{foreign}");
        }
    }

    #[test]
    fn an_origin_is_believed_by_whoever_vouches_for_it() {
        let ask = |allowed: &[&str], proven, origin: &str| {
            let allowed_origins = allowed.iter().map(|text| text.parse().unwrap()).collect();
            let door = Door { allowed_origins, ..Door::default() };
            door.believes(Caller { source: [10, 0, 0, 1].into(), proven }, &origin.parse().unwrap()).is_ok()
        };
        assert!(ask(&[], false, "10.0.0.1:1999"));
        assert!(!ask(&[], false, "10.0.0.5:6379"));
        assert!(!ask(&[], false, "host.example"));
        assert!(ask(&[], true, "host.example"));
        assert!(ask(&["10.0.0.0/8", "host.example"], false, "10.0.0.5"));
        assert!(ask(&["10.0.0.0/8", "host.example"], false, "HOST.example"));
        assert!(!ask(&["192.0.2.0/24"], true, "10.0.0.1"), "a list limits those with a token as well");
        for bad in ["a b", "host:1", "10.0.0.0/99"] {
            assert!(bad.parse::<AllowedOrigin>().is_err(), "{bad}");
        }
    }
}
