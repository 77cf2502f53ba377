//! The URLs under which a reactor is found: a list that is tried in order.

use super::error::Error;
use std::fmt;
use std::str::FromStr;
use url::Url;

/// One or more `http` or `https` URLs of the same service, in the order in which they are tried.
///
/// Read from text with commas between them. Written without user names, passwords and query strings.
#[derive(Clone, PartialEq, Eq)]
pub struct Urls(Vec<Url>);

impl Urls {
    /// The URLs, at least one.
    pub fn as_slice(&self) -> &[Url] {
        &self.0
    }
}

impl FromStr for Urls {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let urls: Result<Vec<Url>, Error> = text.split(',').enumerate().map(one).collect();
        urls.map(Urls)
    }
}

impl fmt::Display for Urls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: Vec<String> = self.0.iter().map(shown).collect();
        f.write_str(&shown.join(","))
    }
}

impl fmt::Debug for Urls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn one((index, text): (usize, &str)) -> Result<Url, Error> {
    let bad = |why| Error::Url { position: index + 1, why };
    let text = text.trim();
    if text.is_empty() {
        return Err(bad("is empty"));
    }
    let url = Url::parse(text).map_err(|_| bad("cannot be read"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(bad("has another scheme"));
    }
    if url.port() == Some(0) {
        return Err(bad("has port 0"));
    }
    Ok(url)
}

/// A URL as it may stand in a log or an error: without user name, password, query and fragment.
pub(super) fn shown(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{host}{port}{}", url.scheme(), url.path())
}

/// The URL of an endpoint below a reactor's base URL, which may have a path of its own.
pub(super) fn endpoint(base: &Url, path: &[&str]) -> Url {
    let mut url = base.clone();
    // Only URLs without a host refuse this, and `Urls` holds none.
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().extend(path);
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_in_order() {
        let urls: Urls = "http://a:8080, https://[::1]/base/".parse().unwrap();
        assert_eq!(urls.to_string(), "http://a:8080/,https://[::1]/base/");
        assert_eq!(endpoint(&urls.as_slice()[0], &["events"]).as_str(), "http://a:8080/events");
        assert_eq!(endpoint(&urls.as_slice()[1], &["nodes", "n1"]).as_str(), "https://[::1]/base/nodes/n1");
    }

    #[test]
    fn a_bad_url_is_named_by_its_place_and_never_shown() {
        for (text, position) in [
            ("", 1),
            ("http://a,", 2),
            ("http://a,ftp://u:secret@b", 2),
            ("http://u:secret@:80", 1),
            ("http://a:0", 1),
        ] {
            let error = text.parse::<Urls>().unwrap_err();
            assert!(matches!(&error, Error::Url { position: at, .. } if *at == position), "{text}: {error}");
            assert!(!error.to_string().contains("secret"));
        }
    }

    #[test]
    fn secrets_in_urls_are_not_written() {
        let urls: Urls = "https://user:secret@host:81/path?key=secret#secret".parse().unwrap();
        assert_eq!(format!("{urls} {urls:?}"), "https://host:81/path https://host:81/path");
    }
}
