//! The admin port: health, metrics and the workflows of this process. Read only.

use super::request::{Failure, Request, decoded, request};
use super::{Routes, probes};
use crate::health::Health;
use futures::future::BoxFuture;
use serde_json::Value;
use std::convert::Infallible;
use std::sync::Arc;
use warp::http::header::{CONTENT_TYPE, HeaderValue};
use warp::reply::Response;
use warp::{Filter, Reply};

/// What the admin port shows; where it comes from is the caller's business.
#[derive(Clone)]
pub struct Admin {
    /// Behind `/readyz`.
    pub health: Health,
    /// The body of `/metrics`, in Prometheus' text format.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// The body of `/workflows`.
    pub workflows: Arc<dyn Fn() -> BoxFuture<'static, Value> + Send + Sync>,
    /// The body of `/workflows/{name}`; nothing if there is no workflow of that name.
    pub workflow: Arc<dyn Fn(String) -> BoxFuture<'static, Option<Value>> + Send + Sync>,
}

/// The routes of the admin port:
///
/// | call | answers |
/// |---|---|
/// | `GET /livez` | `200`, `ok` |
/// | `GET /readyz` | `200` or `503`, JSON with `ready` and `reasons` |
/// | `GET /metrics` | `200`, Prometheus text format 0.0.4 |
/// | `GET /workflows` | `200`, JSON |
/// | `GET /workflows/{name}` | `200`, JSON; `404` |
pub fn routes(admin: Admin) -> Routes {
    request()
        .and_then(move |request: Request| {
            let admin = admin.clone();
            async move { Ok::<_, Infallible>(admin.answer(request).await.unwrap_or_else(Reply::into_response)) }
        })
        .boxed()
}

impl Admin {
    async fn answer(&self, request: Request) -> Result<Response, Failure> {
        let path = request.path.as_str();
        let workflow = path.strip_prefix("/workflows/").filter(|name| !name.is_empty());
        if !matches!(path, "/livez" | "/readyz" | "/metrics" | "/workflows") && workflow.is_none() {
            return Err(Failure::no_path(path));
        }
        request.expect("GET")?;
        Ok(match path {
            "/livez" => probes::live(),
            "/readyz" => probes::ready(&self.health),
            "/metrics" => {
                let mut response = (self.metrics)().into_response();
                let format = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                response.headers_mut().insert(CONTENT_TYPE, format);
                response
            }
            _ => match workflow {
                None => warp::reply::json(&(self.workflows)().await).into_response(),
                Some(name) => {
                    let name = decoded(name).ok_or_else(|| Failure::no_path(path))?;
                    let workflow = (self.workflow)(name).await.ok_or_else(|| Failure::no_path(path))?;
                    warp::reply::json(&workflow).into_response()
                }
            },
        })
    }
}
