//! Whose request it is, when proxies may stand between.

use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};
use warp::http::HeaderMap;

/// The address a request came from: the peer's, or, when the peer is a trusted proxy, the rightmost address in `Forwarded`
/// (RFC 7239), else in `X-Forwarded-For`, that is no trusted proxy. What stands left of it could be written by anybody.
pub fn client(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let is_trusted = |ip: &IpAddr| trusted.iter().any(|net| net.contains(ip));
    let lines = |name| headers.get_all(name).iter().map(|line| line.to_str().unwrap_or("?"));
    let hops: Vec<&str> = match headers.contains_key("forwarded") {
        true => lines("forwarded").flat_map(|line| line.split(',')).map(forwarded_for).collect(),
        false => lines("x-forwarded-for").flat_map(|line| line.split(',')).collect(),
    };
    let mut client = peer.to_canonical();
    for hop in hops.into_iter().rev() {
        if !is_trusted(&client) {
            break;
        }
        // A proxy that writes something else than an address says nothing about who is behind it.
        let Some(ip) = address(hop.trim()) else { break };
        client = ip;
    }
    client
}

/// The value of `for` in one element of `Forwarded`, without quotes; anything else is no address. No value that is an
/// address holds a comma or a semicolon, so quotes need not be looked at to take elements and parameters apart.
fn forwarded_for(element: &str) -> &str {
    let parameters = element.split(';').filter_map(|parameter| parameter.trim().split_once('='));
    let value = parameters
        .filter(|(name, _)| name.trim().eq_ignore_ascii_case("for"))
        .map(|(_, value)| value.trim())
        .next();
    value.unwrap_or_default().trim_matches('"')
}

/// Reads `IP`, `IPv4:PORT` or `[IPv6]:PORT`; proxies write all of them.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let ip = bare.parse().ok().or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()))?;
    Some(IpAddr::to_canonical(&ip))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(peer: &str, lines: &[&str]) -> String {
        let trusted: Vec<IpNet> = ["10.0.0.0/8", "fd00::/8"].iter().map(|net| net.parse().unwrap()).collect();
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append("x-forwarded-for", line.parse().unwrap());
        }
        client(peer.parse().unwrap(), &headers, &trusted).to_string()
    }

    #[test]
    fn only_trusted_proxies_are_believed_and_only_for_their_own_peer() {
        assert_eq!(from("192.0.2.1", &["198.51.100.9"]), "192.0.2.1", "a stranger says who he is");
        assert_eq!(from("10.0.0.1", &["198.51.100.9"]), "198.51.100.9");
        assert_eq!(from("10.0.0.1", &["1.1.1.1, 198.51.100.9"]), "198.51.100.9", "the left part is spoofed");
        assert_eq!(from("10.0.0.1", &["1.1.1.1", "198.51.100.9, 10.0.0.2"]), "198.51.100.9", "two proxies");
        assert_eq!(from("10.0.0.1", &["10.0.0.7, 10.0.0.2"]), "10.0.0.7", "a client in the proxies' network");
        assert_eq!(from("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(from("10.0.0.1", &["unknown"]), "10.0.0.1");
        assert_eq!(from("10.0.0.1", &["198.51.100.9, nonsense, 10.0.0.2"]), "10.0.0.2");
    }

    #[test]
    fn the_standard_header_comes_first() {
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap()];
        for (line, ip) in [
            ("for=198.51.100.9", "198.51.100.9"),
            ("For=\"[2001:db8::1]:4711\";proto=https", "2001:db8::1"),
            ("for=1.1.1.1, by=x;for=198.51.100.9;proto=http, for=10.0.0.2", "198.51.100.9"),
            ("for=unknown", "10.0.0.1"),
            ("for=_hidden, for=10.0.0.2", "10.0.0.2"),
            ("proto=http", "10.0.0.1"),
            ("", "10.0.0.1"),
        ] {
            let mut headers = HeaderMap::new();
            headers.append("forwarded", line.parse().unwrap());
            headers.append("x-forwarded-for", "192.0.2.99".parse().unwrap());
            assert_eq!(client([10, 0, 0, 1].into(), &headers, &trusted).to_string(), ip, "{line}");
            let stranger = [192, 0, 2, 1].into();
            assert_eq!(client(stranger, &headers, &trusted), stranger);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_header_leaves_an_address(line in "[ -~]{0,80}") {
            for name in ["forwarded", "x-forwarded-for"] {
                let mut headers = HeaderMap::new();
                headers.append(name, line.parse().unwrap());
                client([10, 0, 0, 1].into(), &headers, &["10.0.0.0/8".parse().unwrap()]);
            }
        }
    }

    #[test]
    fn every_form_of_address_is_read() {
        for (hop, ip) in [
            ("198.51.100.9:4711", "198.51.100.9"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:4711", "2001:db8::1"),
            ("::ffff:198.51.100.9", "198.51.100.9"),
        ] {
            assert_eq!(from("fd00::1", &[hop]), ip);
        }
        assert_eq!(
            from("::ffff:10.0.0.1", &["198.51.100.9"]),
            "198.51.100.9",
            "a mapped peer is an IPv4 peer"
        );
    }
}
