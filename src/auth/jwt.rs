//! `--auth-jwt-keys`: tokens (JWT, RFC 7519) in the query of the stream key or of the app.
//!
//! A key decides the algorithm, never the token: HS256 for secrets, RS256, ES256 or EdDSA for public keys. With an empty stream key the
//! token names the stream, if it is for a single one.

use super::grant::{Denied, Grant, Opinion};
use super::request::{Action, Request};
use crate::ids::{Identity, StreamName};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// The parameter of the query.
const PARAMETER: &str = "token";

/// The shortest secret: as long as the digest of HS256 (RFC 7518, section 3.2).
const SECRET_MIN: usize = 32;

/// The longest token. Real ones have some hundred bytes.
const TOKEN_MAX: usize = 4096;

/// The most keys of one file.
const KEYS_MAX: usize = 64;

/// How far the clocks of whoever signs and whoever checks may be apart, seconds.
const LEEWAY: u64 = 60;

/// The keys that tokens are checked with.
#[derive(Default)]
pub struct Keys(Vec<Key>);

struct Key {
    /// The token's header names it; without, it is tried for each token.
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
    /// Only secrets sign too.
    secret: Option<String>,
}

/// Shows no key.
impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.iter().map(|key| (key.algorithm, key.id.as_deref()));
        f.debug_list().entries(shown).finish()
    }
}

/// What a token says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Claims {
    /// When it is over, seconds since 1970.
    pub exp: u64,
    /// When it begins, seconds since 1970. It is checked by the library, for which one that is no number is none: here it is an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbf: Option<f64>,
    /// Who it was given to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub: Option<String>,
    /// What may be published.
    #[serde(default, skip_serializing_if = "Patterns::is_empty")]
    pub publish: Patterns,
    /// What may be played.
    #[serde(default, skip_serializing_if = "Patterns::is_empty")]
    pub play: Patterns,
}

/// Stream names, or what they begin with and a `*`: `team-a/*`, or `*` for all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Patterns {
    /// None.
    #[default]
    None,
    /// One.
    One(String),
    /// Several.
    Several(Vec<String>),
}

impl Patterns {
    fn is_empty(&self) -> bool {
        matches!(self, Patterns::None)
    }

    /// Whether a name is among them.
    pub fn matches(&self, name: &StreamName) -> bool {
        let matches = |pattern: &String| match pattern.strip_suffix('*') {
            Some(begin) => name.as_str().starts_with(begin),
            None => name.as_str() == pattern,
        };
        match self {
            Patterns::None => false,
            Patterns::One(pattern) => matches(pattern),
            Patterns::Several(patterns) => patterns.iter().any(matches),
        }
    }
}

impl Patterns {
    /// The name, if there is one only.
    fn only(&self) -> Option<StreamName> {
        match self {
            Patterns::One(name) => name.parse().ok(),
            Patterns::Several(names) => match &names[..] {
                [name] => name.parse().ok(),
                _ => None,
            },
            Patterns::None => None,
        }
    }
}

impl Keys {
    /// Reads keys in one of three forms: a JWK set (RFC 7517), public keys in PEM, or secrets of 32 bytes or more, one a
    /// line, as `ID = SECRET` or alone. An error says what is wrong and shows no key.
    pub fn parse(text: &str) -> Result<Self, String> {
        let keys = match text.trim_start() {
            json if json.starts_with('{') => from_jwks(json)?,
            pem if pem.contains("-----BEGIN") => from_pem(pem)?,
            lines => from_lines(lines)?,
        };
        match keys.len() {
            0 => Err("it holds no key that can be used".to_owned()),
            count if count > KEYS_MAX => {
                Err(format!("it holds {count} keys; at most {KEYS_MAX} are allowed"))
            }
            _ => Ok(Keys(keys)),
        }
    }

    /// Whether a token names a key that is not here, or there is none at all: keys may have been rotated, or not been fetched
    /// yet.
    pub(super) fn lacks(&self, request: &Request) -> bool {
        let header = token(request).and_then(|token| jsonwebtoken::decode_header(&token).ok());
        if header.is_some() && self.0.is_empty() {
            return true;
        }
        let id = header.and_then(|header| header.kid);
        id.is_some_and(|id| !self.0.iter().any(|key| key.id.as_ref().is_none_or(|own| *own == id)))
    }

    /// Decides by the token of a request; without one there is no opinion.
    pub(super) fn ask(&self, request: &Request) -> Opinion {
        let Some(token) = token(request) else { return Opinion::None };
        match self.check(&token, request) {
            Ok(grant) => Opinion::Granted(grant),
            Err(text) => Opinion::Denied(Denied::new(text)),
        }
    }

    fn check(&self, token: &str, request: &Request) -> Result<Grant, &'static str> {
        let claims = self.claims(token)?;
        let (patterns, refused) = match request.action {
            Action::Publish => (&claims.publish, "the token is not for publishing this stream"),
            Action::Play => (&claims.play, "the token is not for playing this stream"),
        };
        let name = match request.key.as_str() {
            "" => patterns.only().ok_or("a stream key is needed: the token is not for a single stream")?,
            key => StreamName::parse(key).map_err(|_| "the stream key is no stream name")?,
        };
        if !patterns.matches(&name) {
            return Err(refused);
        }
        let identity = claims.sub.as_deref().map(|sub| Identity::of("sub", sub));
        Ok(Grant { identity, until: Some(instant(claims.exp)), ..Grant::of(name) })
    }

    /// What a token says, if one of the keys made it and it is in force.
    pub fn claims(&self, token: &str) -> Result<Claims, &'static str> {
        const FORGED: &str = "the token is not valid";
        if token.len() > TOKEN_MAX {
            return Err("the token is too long");
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| FORGED)?;
        let fits = |key: &&Key| {
            let same = match (&header.kid, &key.id) {
                (Some(named), Some(own)) => named == own,
                _ => true,
            };
            key.algorithm == header.alg && same
        };
        let mut refused = FORGED;
        for key in self.0.iter().filter(fits) {
            let mut validation = Validation::new(key.algorithm);
            validation.leeway = LEEWAY;
            validation.validate_nbf = true;
            validation.validate_aud = false;
            match jsonwebtoken::decode::<Claims>(token, &key.key, &validation) {
                Ok(data) => return Ok(data.claims),
                Err(error) => match error.kind() {
                    jsonwebtoken::errors::ErrorKind::ExpiredSignature => refused = "the token has expired",
                    jsonwebtoken::errors::ErrorKind::ImmatureSignature => {
                        refused = "the token is not valid yet"
                    }
                    jsonwebtoken::errors::ErrorKind::MissingRequiredClaim(_)
                    | jsonwebtoken::errors::ErrorKind::Json(_) => refused = "the token lacks what is needed",
                    _ => {}
                },
            }
        }
        Err(refused)
    }

    /// Makes a token with the first secret.
    ///
    /// Errors: there is none among the keys.
    pub fn sign(&self, claims: &Claims) -> Result<String, String> {
        let signing = self.0.iter().find_map(|key| Some((key.id.clone(), key.secret.as_ref()?)));
        let (id, secret) =
            signing.ok_or_else(|| "only a file of secrets can sign; it holds public keys".to_owned())?;
        let header = Header { kid: id, ..Header::new(Algorithm::HS256) };
        let key = EncodingKey::from_secret(secret.as_bytes());
        jsonwebtoken::encode(&header, claims, &key).map_err(|error| error.to_string())
    }
}

/// The token in the query of a request.
fn token(request: &Request) -> Option<String> {
    let query = request.query.as_deref()?;
    let mut pairs = url::form_urlencoded::parse(query.as_bytes());
    pairs.find(|(name, value)| name == PARAMETER && !value.is_empty()).map(|(_, value)| value.into_owned())
}

/// A time of the wall clock on the clock of the process.
fn instant(unix_seconds: u64) -> Instant {
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(unix_seconds.min(u64::from(u32::MAX)));
    Instant::now() + at.duration_since(SystemTime::now()).unwrap_or_default()
}

fn from_lines(text: &str) -> Result<Vec<Key>, String> {
    let mut keys: Vec<Key> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (id, secret) = match line.split_once(" = ") {
            Some((id, secret)) => (Some(id.trim().to_owned()), secret.trim()),
            None => (None, line),
        };
        if secret.len() < SECRET_MIN || secret.contains(char::is_whitespace) {
            let line = index + 1;
            return Err(format!("line {line}: a secret has {SECRET_MIN} characters or more and no spaces"));
        }
        if id.is_some() && keys.iter().any(|key| key.id == id) {
            return Err(format!("line {}: this id stands in a line before", index + 1));
        }
        let key = DecodingKey::from_secret(secret.as_bytes());
        keys.push(Key { id, algorithm: Algorithm::HS256, key, secret: Some(secret.to_owned()) });
    }
    Ok(keys)
}

fn from_pem(text: &str) -> Result<Vec<Key>, String> {
    const END: &str = "-----END PUBLIC KEY-----";
    let blocks = text.split_inclusive(END).filter(|block| block.contains("-----BEGIN"));
    blocks
        .enumerate()
        .map(|(index, block)| {
            let bytes = block.trim().as_bytes();
            let read = [
                (Algorithm::RS256, DecodingKey::from_rsa_pem(bytes)),
                (Algorithm::ES256, DecodingKey::from_ec_pem(bytes)),
                (Algorithm::EdDSA, DecodingKey::from_ed_pem(bytes)),
            ];
            let found = read.into_iter().find_map(|(algorithm, key)| Some((algorithm, key.ok()?)));
            let (algorithm, key) = found.ok_or_else(|| {
                let what = "a PUBLIC KEY of RSA, P-256 or Ed25519 is allowed";
                format!("PEM block {}: {what}", index + 1)
            })?;
            Ok(Key { id: None, algorithm, key, secret: None })
        })
        .collect()
}

/// Keys of other kinds are left out: a provider publishes what it likes.
fn from_jwks(text: &str) -> Result<Vec<Key>, String> {
    let set: JwkSet = serde_json::from_str(text).map_err(|_| "it is no JWK set".to_owned())?;
    Ok(set.keys.iter().filter_map(from_jwk).collect())
}

fn from_jwk(jwk: &Jwk) -> Option<Key> {
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => Algorithm::ES256,
        AlgorithmParameters::OctetKeyPair(_) => Algorithm::EdDSA,
        _ => return None,
    };
    let key = DecodingKey::from_jwk(jwk).ok()?;
    Some(Key { id: jwk.common.key_id.clone(), algorithm, key, secret: None })
}

#[cfg(test)]
mod tests {
    use super::super::tests::request;
    use super::*;
    use proptest::prelude::*;

    const SECRET: &str = "an-old-secret-of-thirty-two-bytes";
    const OTHER: &str = "a-new-secret-of-thirty-two-bytes!";

    fn now() -> u64 {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
    }

    fn claims(exp: u64) -> Claims {
        let publish = Patterns::Several(vec!["cam-1".to_owned(), "team-a/*".to_owned()]);
        let play = Patterns::One("show".to_owned());
        Claims { exp, nbf: None, sub: Some("alice".to_owned()), publish, play }
    }

    fn decide(keys: &Keys, token: &str, action: Action, key: &str) -> String {
        match keys.ask(&request(action, key, Some(&format!("x=1&token={token}")))) {
            Opinion::Granted(grant) => {
                format!("{} {}", grant.name, grant.identity == Some(Identity::of("sub", "alice")))
            }
            Opinion::Denied(denied) => denied.text,
            Opinion::None => "none".to_owned(),
        }
    }

    #[test]
    fn a_token_is_for_what_it_names_and_for_its_time() {
        let keys = Keys::parse(SECRET).unwrap();
        let token = keys.sign(&claims(now() + 100)).unwrap();
        let publish = |name: &str| decide(&keys, &token, Action::Publish, name);
        assert_eq!(publish("cam-1"), "cam-1 true");
        assert_eq!(publish("team-a/x/y"), "team-a/x/y true");
        for other in ["cam-11", "team-a", "team-b/x", "show"] {
            assert_eq!(publish(other), "the token is not for publishing this stream", "{other}");
        }
        assert_eq!(decide(&keys, &token, Action::Play, "show"), "show true");
        assert_eq!(decide(&keys, &token, Action::Play, "cam-1"), "the token is not for playing this stream");
        assert_eq!(publish("a b"), "the stream key is no stream name");
        // With an empty key the token names the stream, if it names one.
        assert_eq!(decide(&keys, &token, Action::Play, ""), "show true");
        assert!(publish("").starts_with("a stream key is needed"));
        let one = Claims { publish: Patterns::One("a=b".to_owned()), ..claims(now() + 100) };
        let one = keys.sign(&one).unwrap();
        assert_eq!(decide(&keys, &one, Action::Publish, ""), "a=b true");
        let old = keys.sign(&claims(now() - LEEWAY - 5)).unwrap();
        assert_eq!(decide(&keys, &old, Action::Publish, "cam-1"), "the token has expired");
        assert!(matches!(keys.ask(&request(Action::Publish, "cam-1", None)), Opinion::None));
        assert!(matches!(keys.ask(&request(Action::Publish, "cam-1", Some("token="))), Opinion::None));
    }

    #[test]
    fn a_token_is_not_valid_before_its_time_however_that_is_written() {
        let keys = Keys::parse(SECRET).unwrap();
        let said = |nbf: serde_json::Value| {
            let claims = serde_json::json!({ "exp": now() + 1000, "nbf": nbf, "publish": "cam-1" });
            let key = EncodingKey::from_secret(SECRET.as_bytes());
            let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap();
            decide(&keys, &token, Action::Publish, "cam-1")
        };
        let later = now() + LEEWAY + 100;
        assert_eq!(said(now().into()), "cam-1 false");
        assert_eq!(said(0.5.into()), "cam-1 false");
        assert_eq!(said(later.into()), "the token is not valid yet");
        assert_eq!(said((later as f64 + 0.5).into()), "the token is not valid yet");
        assert_eq!(said(later.to_string().into()), "the token lacks what is needed");
        assert_eq!(said(vec![later].into()), "the token lacks what is needed");
    }

    #[test]
    fn only_a_known_key_makes_a_token_and_keys_rotate_by_their_ids() {
        let old = Keys::parse(&format!("one = {SECRET}\n")).unwrap();
        let both = Keys::parse(&format!("# new first\ntwo = {OTHER}\none = {SECRET}\n")).unwrap();
        let new = Keys::parse(&format!("two = {OTHER}\n")).unwrap();
        let (early, late) =
            (old.sign(&claims(now() + 100)).unwrap(), both.sign(&claims(now() + 100)).unwrap());
        for (keys, token, valid) in [
            (&old, &early, true),
            (&both, &early, true),
            (&both, &late, true),
            (&new, &late, true),
            (&new, &early, false),
            (&old, &late, false),
        ] {
            assert_eq!(keys.claims(token).is_ok(), valid, "{keys:?}");
            let asked = request(Action::Publish, "cam-1", Some(&format!("token={token}")));
            assert_eq!(keys.lacks(&asked), !valid);
        }
        for cut in 0..early.len() {
            assert!(old.claims(&early[..cut]).is_err());
        }
    }

    #[test]
    fn a_token_cannot_choose_its_algorithm() {
        let public = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";
        let keys = Keys::parse(public).unwrap();
        let token = |header: &Header, secret: &str| {
            jsonwebtoken::encode(header, &claims(now() + 100), &EncodingKey::from_secret(secret.as_bytes()))
                .unwrap()
        };
        let confused = token(&Header::new(Algorithm::HS256), public);
        assert_eq!(keys.claims(&confused), Err("the token is not valid"));
        // {"alg":"none"}
        let body = confused.split('.').nth(1).unwrap();
        assert_eq!(keys.claims(&format!("eyJhbGciOiJub25lIn0.{body}.")), Err("the token is not valid"));
        assert!(keys.sign(&claims(1)).unwrap_err().contains("public keys"));
    }

    #[test]
    fn bad_keys_are_refused_without_being_shown() {
        for (text, part) in [
            ("", "no key"),
            ("# only a comment", "no key"),
            ("secret-that-is-short", "line 1: a secret has 32"),
            (&format!("a = {SECRET}\na = {OTHER}"), "line 2: this id"),
            ("-----BEGIN PUBLIC KEY-----\nsecret\n-----END PUBLIC KEY-----", "PEM block 1"),
            ("{\"keys\": 7}", "no JWK set"),
            ("{\"keys\": []}", "no key"),
        ] {
            let error = Keys::parse(text).unwrap_err();
            assert!(error.contains(part) && !error.contains("secret-"), "{error}");
        }
        assert!(!format!("{:?}", Keys::parse(SECRET).unwrap()).contains(SECRET));
    }

    proptest! {
        #[test]
        fn any_text_is_a_key_or_refused_and_any_token_too(text in "(\\PC|\n|=|\\.){0,300}") {
            drop(Keys::parse(&text));
            prop_assert!(Keys::parse(SECRET).unwrap().claims(&text).is_err());
        }
    }
}
