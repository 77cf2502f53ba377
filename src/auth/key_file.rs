//! `--auth-file`: secret keys and the public names they publish, one pair a line.
//!
//! ```text
//! # key = public name
//! 8f14e45fceea167a = studio-1
//! ```
//!
//! The key is the stream key, or `key` in the query of an empty one: `rtmp://host/ingest/?key=8f14e45fceea167a`.

use super::grant::{Denied, Grant, Opinion};
use super::request::{Action, Request};
use crate::ids::{Identity, StreamName};
use percent_encoding::percent_decode_str;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::HashMap;

/// The shortest key. What is shorter is guessed; `lb token` makes one of 64.
const KEY_MIN: usize = 8;

/// What a file says. Keys are kept as digests: a lookup takes the same time whatever a wrong key has in common with a
/// right one.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct KeyFile(HashMap<[u8; 32], StreamName>);

impl KeyFile {
    /// Reads the text of a file. An error names the line, and never a key.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut keys = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let bad = |what: String| format!("line {}: {what}", index + 1);
            let (key, name) = pair(line).ok_or_else(|| bad("'key = public name' is allowed".to_owned()))?;
            let key = key.trim();
            if key.len() < KEY_MIN || key.chars().any(|c| c.is_whitespace() || c.is_control() || c == '?') {
                let what = format!("a key has {KEY_MIN} characters or more, and no spaces and no '?'");
                return Err(bad(what));
            }
            let name = StreamName::parse(name.trim()).map_err(|error| bad(error.to_string()))?;
            if keys.insert(digest(key), name).is_some() {
                return Err(bad("this key stands in a line before".to_owned()));
            }
        }
        Ok(KeyFile(keys))
    }

    /// Decides about publishing; about playing it has no opinion.
    pub(super) fn ask(&self, request: &Request) -> Opinion {
        if request.action != Action::Publish {
            return Opinion::None;
        }
        let key = key(request);
        match self.0.get(&digest(&key)) {
            Some(name) => {
                let identity = Some(Identity::of("key", &key));
                Opinion::Granted(Grant { identity, ..Grant::of(name.clone()) })
            }
            None => Opinion::Denied(Denied::new("the stream key is not known")),
        }
    }
}

/// Takes a line apart. Key and name may both hold the sign and no space, so it is the one between two spaces that counts, or else
/// beside one, at which a key may still end in the sign; where there is none, the last one, and the name holds none.
fn pair(line: &str) -> Option<(&str, &str)> {
    let begins = |text: Option<&str>| text.is_some_and(|text| text.starts_with(char::is_whitespace));
    let signs = || {
        line.match_indices('=').map(|(at, _)| {
            let before = line.get(..at).is_some_and(|text| text.ends_with(char::is_whitespace));
            (at, before, begins(line.get(at + 1..)))
        })
    };
    let at = signs()
        .find(|(_, before, after)| *before && *after)
        .or_else(|| signs().find(|(_, before, _)| *before))
        .or_else(|| signs().rfind(|(.., after)| *after))
        .map_or_else(|| line.rfind('='), |(at, ..)| Some(at))?;
    let (key, name) = line.split_at_checked(at)?;
    Some((key, name.strip_prefix('=')?))
}

/// The key of a publisher: its stream key, or what the query of an empty one says. A plus sign is one, as keys hold no spaces.
fn key(request: &Request) -> Cow<'_, str> {
    if !request.key.is_empty() {
        return Cow::Borrowed(&request.key);
    }
    let parameters = request.query.as_deref().unwrap_or_default().split('&');
    let key = parameters.filter_map(|parameter| parameter.strip_prefix("key=")).next().unwrap_or_default();
    percent_decode_str(key).decode_utf8_lossy()
}

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key).into()
}

#[cfg(test)]
mod tests {
    use super::super::tests::request;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_key_publishes_its_name_and_nothing_else() {
        let file =
            KeyFile::parse("# studios\n\nsecret-1=a/one\n sec=ret==2 = two \nother-secret = two\n").unwrap();
        let name = |action, key: &str| match file.ask(&request(action, key, None)) {
            Opinion::Granted(grant) => Some((grant.name.to_string(), grant.identity.unwrap())),
            _ => None,
        };
        let publish = |key: &str| name(Action::Publish, key);
        assert_eq!(publish("secret-1").unwrap().0, "a/one");
        let (one, other) = (publish("sec=ret==2").unwrap(), publish("other-secret").unwrap());
        assert_eq!((one.0.as_str(), other.0.as_str()), ("two", "two"));
        assert_ne!(one.1, other.1, "two keys are two publishers");
        for wrong in ["", "a/one", "secret-1 ", "SECRET-1", "two"] {
            assert_eq!(publish(wrong), None, "{wrong:?}");
        }
        assert!(matches!(file.ask(&request(Action::Play, "secret-1", None)), Opinion::None));
    }

    #[test]
    fn an_empty_key_has_its_key_in_the_query() {
        let file = KeyFile::parse("ab+/cd== = studio").unwrap();
        let name = |key: &str, query: &str| match file.ask(&request(Action::Publish, key, Some(query))) {
            Opinion::Granted(grant) => Some(grant.name.to_string()),
            _ => None,
        };
        for query in ["key=ab+/cd==", "x=1&key=ab%2B%2Fcd%3D%3D", "key=ab+/cd==&key=other"] {
            assert_eq!(name("", query).as_deref(), Some("studio"), "{query}");
        }
        for query in ["key=ab /cd==", "key=", "", "akey=ab+/cd==", "ab+/cd=="] {
            assert_eq!(name("", query), None, "{query}");
        }
        assert_eq!(name("other", "key=ab+/cd=="), None, "a key that is there counts");
    }

    #[test]
    fn the_sign_beside_a_space_parts_a_line() {
        for (line, key, name) in [
            ("c2VjcmV0==a", "c2VjcmV0=", "a"),
            ("c2VjcmV0== = a=b==", "c2VjcmV0==", "a=b=="),
            ("c2VjcmV0=\ta=b", "c2VjcmV0", "a=b"),
            ("c2VjcmV0 =a=b", "c2VjcmV0", "a=b"),
            ("c2VjcmV0== a", "c2VjcmV0=", "a"),
        ] {
            assert_eq!(pair(line).map(|(key, name)| (key.trim(), name.trim())), Some((key, name)), "{line}");
        }
        assert!(KeyFile::parse("c2VjcmV0 = a = b").is_err());
    }

    #[test]
    fn a_mistake_is_named_by_its_line_and_shows_no_key() {
        for (text, part) in [
            ("secret-1 one", "line 1: 'key = public name'"),
            ("\nsecret-1 =", "line 2: the stream name is empty"),
            ("short=one", "line 1: a key has 8 characters"),
            ("secret 12=one", "line 1: a key"),
            ("secret-1=one\nsecret-1=two", "line 2: this key stands"),
            ("secret-1=a b", "line 1: the stream name has a character"),
        ] {
            let error = KeyFile::parse(text).unwrap_err();
            assert!(error.starts_with(part) && !error.contains("secret"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(\\PC|\n|=|#){0,200}") {
            if let Err(error) = KeyFile::parse(&text) {
                prop_assert!(error.starts_with("line "), "{error}");
            }
        }
    }
}
