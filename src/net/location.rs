//! The address of a stream on another server: `rtmp://host[:port]/app/name[?query]`.

use crate::ids::DEFAULT_RTMP_PORT;
use std::fmt;
use url::{Host, Url};

/// The port of `rtmps://` without one, as encoders and platforms have it.
const DEFAULT_RTMPS_PORT: u16 = 443;

/// A parsed RTMP URL. `Debug` and `Display` leave the query out, which may hold a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Location {
    /// A name or an address, without brackets.
    pub host: String,
    /// The TCP port.
    pub port: u16,
    /// The application: the path's first element.
    pub app: String,
    /// The rest of the path: the stream key without its query.
    pub name: String,
    /// What stands behind the question mark.
    pub query: Option<String>,
    /// By TLS, with the server's certificate verified.
    pub tls: bool,
    authority: String,
}

/// Why a text is not a [`Location`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    /// Not a URL at all.
    #[error("'{0}' is not a URL; rtmp://HOST[:PORT]/APP/NAME is allowed")]
    Url(String),
    /// Another scheme.
    #[error("'{0}' is not an rtmp:// or rtmps:// URL")]
    Scheme(String),
    /// No app or no stream name.
    #[error("'{0}' lacks an app or a stream name; rtmp://HOST[:PORT]/APP/NAME is allowed")]
    Path(String),
}

impl Location {
    /// Reads a URL. App and name are what stands in the path, letter for letter: RTMP has no percent-encoding, so `%2F` is no slash, and
    /// a stream key is no file name in which `.` would mean something.
    pub fn parse(text: &str) -> Result<Self, LocationError> {
        let text = text.trim();
        // What is shown of a bad URL ends before anything that could be a secret.
        let shown = || text.split('?').next().unwrap_or_default().to_owned();
        let url = Url::parse(text).ok().filter(|_| !text.contains(char::is_control));
        let url = url.ok_or_else(|| LocationError::Url(shown()))?;
        let tls = match url.scheme() {
            "rtmp" => false,
            "rtmps" => true,
            _ => return Err(LocationError::Scheme(shown())),
        };
        let host = match url.host() {
            Some(Host::Domain(name)) => name.to_owned(),
            Some(Host::Ipv4(ip)) => ip.to_string(),
            Some(Host::Ipv6(ip)) => ip.to_string(),
            None => return Err(LocationError::Url(shown())),
        };
        let (path, query) = path_and_query(text);
        let path = path.trim_start_matches('/');
        let (app, name) = path.split_once('/').unwrap_or((path, ""));
        if app.is_empty() || name.is_empty() {
            return Err(LocationError::Path(shown()));
        }
        let port = url.port().unwrap_or(if tls { DEFAULT_RTMPS_PORT } else { DEFAULT_RTMP_PORT });
        let shown_host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        Ok(Location {
            tls,
            authority: format!("{shown_host}:{port}"),
            port,
            app: app.to_owned(),
            name: name.to_owned(),
            query: query.map(str::to_owned),
            host,
        })
    }

    /// The `tcUrl` of the connect command.
    pub fn tc_url(&self) -> String {
        let scheme = if self.tls { "rtmps" } else { "rtmp" };
        format!("{scheme}://{}/{}", self.authority, self.app)
    }
}

/// Path and query of a URL as they are written; a URL parser would resolve `.` and `..` and their escapes in a path.
fn path_and_query(url: &str) -> (&str, Option<&str>) {
    let place = url.split_once("://").map_or("", |(_, place)| place);
    let path = place.find(['/', '?', '#']).and_then(|begin| place.get(begin..)).unwrap_or_default();
    let path = path.split('#').next().unwrap_or_default();
    path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)))
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tc_url(), self.name)
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_address_is_read() {
        let location = Location::parse("rtmp://10.0.0.1/pull_source/a/b?t=1").unwrap();
        assert_eq!((location.host.as_str(), location.port), ("10.0.0.1", 1935));
        assert_eq!((location.app.as_str(), location.name.as_str()), ("pull_source", "a/b"));
        assert_eq!(location.query.as_deref(), Some("t=1"));
        assert_eq!(location.tc_url(), "rtmp://10.0.0.1:1935/pull_source");
        assert_eq!(format!("{location:?}"), "rtmp://10.0.0.1:1935/pull_source/a/b", "no query is shown");
        let location = Location::parse("rtmp://[2001:db8::1]:99/app/x").unwrap();
        assert_eq!((location.host.as_str(), location.port), ("2001:db8::1", 99));
        assert_eq!(location.tc_url(), "rtmp://[2001:db8::1]:99/app");
    }

    #[test]
    fn a_name_is_taken_letter_for_letter() {
        for name in ["a/./b", "a/%2e%2e/b", "%2F", "%", "a+b=c~@d:e,f", "x.flv"] {
            let location = Location::parse(&format!("rtmp://h/pull_source/{name}")).unwrap();
            assert_eq!((location.app.as_str(), location.name.as_str()), ("pull_source", name));
        }
        let location = Location::parse("rtmp://user:pass@h:9/app/a@b?c=/d?e#f").unwrap();
        assert_eq!((location.host.as_str(), location.name.as_str()), ("h", "a@b"));
        assert_eq!(location.query.as_deref(), Some("c=/d?e"));
    }

    #[test]
    fn what_is_not_one_is_refused_without_showing_its_query() {
        for bad in [
            "",
            "x",
            "http://h/a/b",
            "rtmp://h",
            "rtmp://h/app",
            "rtmp://h/app/",
            "rtmp:///a/b",
            "rtmp://h:0x/a/b",
        ] {
            assert!(Location::parse(bad).is_err(), "{bad}");
        }
        let error = Location::parse("rtmp://h/app?secret").unwrap_err();
        assert!(!error.to_string().contains("secret"));
    }
}
