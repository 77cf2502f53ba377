//! Who may publish and play: asks the authorities that are configured, in their order.
//!
//! What a publisher types into its encoder is a secret; the name of a stream is public. An authority maps the one to the
//! other and may say who the publisher is.
//!
//! | file | what |
//! |---|---|
//! | [`gate`] | the authorities in their order |
//! | [`jwt`], [`jwks`] | signed tokens, and keys that are published at a URL |
//! | [`callback`] | a web server that decides |
//! | [`key_file`] | a file of keys and names |
//! | [`request`], [`grant`], [`notice`] | what is asked, what is answered, and who hears that it is over |
//! | [`pull_key`] | how a node that pulls shows that it is one |
//!
//! Nothing here knows connections, routes or reactors, nor how HTTP is spoken: that is handed in as a [`Web`].

pub mod callback;
mod gate;
mod grant;
mod jwks;
pub mod jwt;
pub mod key_file;
mod notice;
mod pull_key;
mod request;
mod web;

pub use gate::{Gate, KeySource, Settings};
pub use grant::{Denied, Grant};
pub use pull_key::{PullKey, Unsigned};
pub use request::{Action, Request};
pub use web::{Fetched, Web};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SessionId;

    pub(super) fn request(action: Action, key: &str, query: Option<&str>) -> Request {
        Request {
            action,
            app: "ingest".to_owned(),
            key: key.to_owned(),
            query: query.map(str::to_owned),
            peer: [192, 0, 2, 1].into(),
            session: SessionId::random(),
        }
    }

    #[test]
    fn a_request_shows_no_secret() {
        let shown = format!("{:?}", request(Action::Publish, "s3cret", Some("token=s3cret")));
        assert!(!shown.contains("s3cret"), "{shown}");
    }

    #[tokio::test]
    async fn without_authorities_a_key_is_a_name() {
        let gate = Gate::open();
        assert_eq!(gate.ask(&request(Action::Publish, "x", None)).await.unwrap().name.as_str(), "x");
        let denied = gate.ask(&request(Action::Play, "a b", None)).await.unwrap_err();
        assert_eq!(denied.reason, "stream_name");
    }
}
