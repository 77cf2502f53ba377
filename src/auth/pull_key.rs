//! Pulls between nodes that share a token: whoever pulls shows, without sending the token, that it knows it.
//!
//! The signature travels in the query of the stream key, as `lb_pull=NODE.EXPIRY.HMAC`. It is good for one stream and a
//! short time, on the clock of the node that is pulled from: a puller learns that clock with the answer to its connect, so
//! that clocks of hosts may differ.

use crate::ids::{NodeId, StreamName};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use std::fmt;

/// The parameter of the query.
const PARAMETER: &str = "lb_pull=";

/// How long a signature holds, seconds: a pull uses it at once.
const VALID: u64 = 60;

/// How far off the clock of a puller may be that cannot learn the other one, seconds: ffmpeg's.
const LEEWAY: u64 = 300;

/// What pulls are signed with: derived from the token, and good for nothing else. Shows nothing when printed.
#[derive(Clone)]
pub struct PullKey(Hmac<Sha256>);

impl fmt::Debug for PullKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PullKey(..)")
    }
}

/// Why a pull is refused; the text is for the puller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsigned {
    /// No signature, or one for something else, or made with another token.
    #[error("this node is pulled from by nodes that hold its token")]
    Unknown,
    /// The time is over, or far ahead.
    #[error("the signature of this pull has expired")]
    Expired,
}

impl PullKey {
    /// The key of nodes that share a token.
    pub fn of(token: &str) -> Self {
        let derived = mac(token.as_bytes()).chain_update("lb pull 1").finalize().into_bytes();
        PullKey(mac(&derived))
    }

    /// The parameter for the query of a pull. `now`: seconds since 1970, on the clock of the node that is pulled from.
    pub fn sign(&self, name: &str, node: &NodeId, now: u64) -> String {
        let expiry = now.saturating_add(VALID);
        let code = self.mac(name, node.as_str(), expiry).finalize().into_bytes();
        let hex: String = code.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{PARAMETER}{node}.{expiry}.{hex}")
    }

    /// Checks a pull by its query, and says which node it is.
    pub fn check(&self, name: &StreamName, query: Option<&str>, now: u64) -> Result<NodeId, Unsigned> {
        let parameters = query.unwrap_or_default().split('&');
        let signature = parameters.filter_map(|parameter| parameter.strip_prefix(PARAMETER)).next();
        // A node's name may hold dots.
        let mut parts = signature.ok_or(Unsigned::Unknown)?.rsplitn(3, '.');
        let (Some(hex), Some(expiry), Some(node)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(Unsigned::Unknown);
        };
        let node: NodeId = node.parse().map_err(|_| Unsigned::Unknown)?;
        let expiry: u64 = expiry.parse().map_err(|_| Unsigned::Unknown)?;
        let code = bytes(hex).ok_or(Unsigned::Unknown)?;
        self.mac(name.as_str(), node.as_str(), expiry).verify_slice(&code).map_err(|_| Unsigned::Unknown)?;
        let timely = (now.saturating_sub(LEEWAY)..=now.saturating_add(VALID + LEEWAY)).contains(&expiry);
        if timely { Ok(node) } else { Err(Unsigned::Expired) }
    }

    fn mac(&self, name: &str, node: &str, expiry: u64) -> Hmac<Sha256> {
        // Neither a name nor a node holds a line break.
        self.0.clone().chain_update(format!("{name}\n{node}\n{expiry}"))
    }
}

fn mac(key: &[u8]) -> Hmac<Sha256> {
    // A key of any length is taken; the type does not say so.
    <Hmac<Sha256> as Mac>::new_from_slice(key).unwrap_or_else(|_| Mac::new(&Default::default()))
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let digits = hex.len() == 64 && hex.bytes().all(|digit| digit.is_ascii_hexdigit());
    let pairs = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok());
    pairs.collect::<Option<Vec<u8>>>().filter(|_| digits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 1_800_000_000;

    #[test]
    fn a_signature_is_for_one_stream_one_token_and_a_short_time() {
        let (key, node) = (PullKey::of("token"), "node-1.example".parse::<NodeId>().unwrap());
        let query = format!("lb_hops=a&{}", key.sign("live/x", &node, NOW));
        let check = |key: &PullKey, name: &str, now| key.check(&name.parse().unwrap(), Some(&query), now);
        assert_eq!(check(&key, "live/x", NOW), Ok(node));
        assert_eq!(check(&key, "live/y", NOW), Err(Unsigned::Unknown));
        assert_eq!(check(&PullKey::of("other"), "live/x", NOW), Err(Unsigned::Unknown));
        assert_eq!(check(&key, "live/x", NOW + VALID + LEEWAY + 1), Err(Unsigned::Expired));
        assert_eq!(check(&key, "live/x", NOW - LEEWAY - 1), Err(Unsigned::Expired));
        assert_eq!(key.check(&"live/x".parse().unwrap(), None, NOW), Err(Unsigned::Unknown));
        assert!(!query.contains("token") && !format!("{key:?}").contains("token"));
    }

    proptest! {
        #[test]
        fn whatever_is_altered_or_made_up_is_refused(made_up in "[ -~]{0,120}", at in 0..90usize, to in "[0-9a-z.]") {
            let (key, name) = (PullKey::of("token"), "x".parse::<StreamName>().unwrap());
            let parameter = format!("{PARAMETER}{made_up}");
            prop_assert!(key.check(&name, Some(&parameter), NOW).is_err());
            let signed = key.sign("x", &"n".parse().unwrap(), NOW);
            let mut altered = signed.clone();
            if at < signed.len() {
                altered.replace_range(at..=at, &to);
            }
            if !altered.eq_ignore_ascii_case(&signed) {
                prop_assert!(key.check(&name, Some(&altered), NOW).is_err(), "{altered}");
            }
        }
    }
}
