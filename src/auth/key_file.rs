//! `--auth-file`: secret keys and the public names they publish, one pair a line.
//!
//! ```text
//! # key = public name
//! 8f14e45fceea167a = studio-1
//! ```

use super::grant::{Denied, Grant, Opinion};
use super::request::{Action, Request};
use crate::ids::{Identity, StreamName};
use sha2::{Digest, Sha256};
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
            // A key may hold the sign, a name does not.
            let (key, name) =
                line.rsplit_once('=').ok_or_else(|| bad("'key = public name' is allowed".to_owned()))?;
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
        match self.0.get(&digest(&request.key)) {
            Some(name) => {
                let identity = Some(Identity::of("key", &request.key));
                Opinion::Granted(Grant { identity, ..Grant::of(name.clone()) })
            }
            None => Opinion::Denied(Denied::new("the stream key is not known")),
        }
    }
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
