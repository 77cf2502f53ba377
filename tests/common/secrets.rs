//! Secrets that tokens are signed with, and tokens of all kinds.

use super::lb::run;
use serde_json::json;
use tempfile::TempDir;

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const OTHER_SECRET: &str = "fedcba9876543210fedcba9876543210";

/// A folder with files of secrets (`jwt.keys`, `other.keys`), and what is signed with them.
pub struct Secrets {
    pub folder: TempDir,
}

impl Secrets {
    pub fn new() -> Secrets {
        let secrets = Secrets { folder: TempDir::new().unwrap() };
        std::fs::write(secrets.file("jwt.keys"), SECRET).unwrap();
        std::fs::write(secrets.file("other.keys"), OTHER_SECRET).unwrap();
        secrets
    }

    /// The path of a file in the folder.
    pub fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// What `lb sign` prints.
    #[track_caller]
    pub fn printed(&self, keys: &str, args: &[&str]) -> String {
        let signed = run(&[&["sign"], args, &["--auth-jwt-keys", &self.file(keys)]].concat());
        assert_eq!(signed.code, Some(0), "{}", signed.stderr);
        signed.stdout
    }

    /// The token in what `lb sign` prints.
    #[track_caller]
    pub fn sign(&self, keys: &str, args: &[&str]) -> String {
        token_of(&self.printed(keys, args))
    }

    /// A token to publish a stream.
    #[track_caller]
    pub fn publish(&self, name: &str) -> String {
        self.sign("jwt.keys", &["publish", name])
    }

    /// A token to publish a stream, which expired years ago.
    pub fn expired(&self, name: &str) -> String {
        let claims = json!({"exp": 1_700_000_000, "publish": name});
        let signing = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
        jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &signing).unwrap()
    }
}

/// The token in a key or a URL, or in what `lb sign` prints.
#[track_caller]
pub fn token_of(text: &str) -> String {
    let token = text.split("?token=").nth(1).and_then(|rest| rest.split_whitespace().next());
    token.unwrap_or_else(|| panic!("no token in: {text}")).trim_matches('\'').to_owned()
}
