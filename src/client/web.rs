//! The pool of connections as authorisation sees it: [`crate::auth::Web`].

use super::http::Http;
use crate::auth::{Fetched, Web};
use futures::future::{BoxFuture, FutureExt};
use reqwest::Method;
use url::Url;

impl Web for Http {
    fn get(&self, url: &Url) -> BoxFuture<'static, Result<Fetched, String>> {
        call(self.clone(), Method::GET, url.clone(), None)
    }

    fn post(&self, url: &Url, json: Vec<u8>) -> BoxFuture<'static, Result<Fetched, String>> {
        call(self.clone(), Method::POST, url.clone(), Some(json))
    }
}

fn call(
    http: Http,
    method: Method,
    url: Url,
    json: Option<Vec<u8>>,
) -> BoxFuture<'static, Result<Fetched, String>> {
    async move {
        let reply = http.call(method, &url, json.map(Into::into)).await.map_err(|error| error.to_string())?;
        Ok(Fetched { status: reply.status.as_u16(), body: reply.body })
    }
    .boxed()
}
