//! The token that nodes and reactors share.

use sha2::{Digest, Sha256};
use std::fmt;
use subtle::ConstantTimeEq;

/// The text cannot be a bearer token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a token is 1 to 4096 visible ASCII characters without spaces")]
pub struct SecretError;

/// A bearer token (RFC 6750), of which only a digest is kept. Shows nothing when printed.
#[derive(Clone)]
pub struct Secret([u8; 32]);

impl Secret {
    /// Takes a token of 1 to 4096 visible ASCII characters.
    pub fn new(token: &str) -> Result<Self, SecretError> {
        if !(1..=4096).contains(&token.len()) || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(SecretError);
        }
        Ok(Secret(Sha256::digest(token).into()))
    }

    /// Whether a token is this one. The time it takes does not depend on where they differ.
    pub fn matches(&self, token: &str) -> bool {
        let given: [u8; 32] = Sha256::digest(token).into();
        self.0.ct_eq(&given).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_matches_itself_only_and_is_never_shown() {
        let secret = Secret::new("s3cret").unwrap();
        assert!(secret.matches("s3cret"));
        for other in ["", "s3cre", "s3cret ", "S3cret"] {
            assert!(!secret.matches(other), "{other:?}");
        }
        assert_eq!(format!("{secret:?}"), "Secret(..)");
        for bad in ["", "a b", "a\n", "ä"] {
            assert_eq!(Secret::new(bad).err(), Some(SecretError), "{bad:?}");
        }
    }
}
