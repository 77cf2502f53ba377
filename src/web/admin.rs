//! The admin port: health, metrics, the workflows and peers of this process, and what an operator may change of them.
//!
//! | call | answers |
//! |---|---|
//! | `GET /` | `200`, JSON: the version, and whether it is ready |
//! | `GET /livez` | `200`, `ok` |
//! | `GET /readyz` | `200` or `503`, JSON with `ready` and `reasons` |
//! | `GET /metrics` | `200`, Prometheus text format 0.0.4 |
//! | `GET /workflows` | `200`, JSON |
//! | `PUT /workflows` | one workflow in the configuration's grammar, whatever the content type: `200`, JSON; `400`. Its steps that are equal to those that run under its name keep their connections |
//! | `GET /workflows/{name}` | `200`, JSON; `404` |
//! | `DELETE /workflows/{name}` | `204`; `404` |
//! | `GET /publishers`, `/viewers`, `/pulls` | `200`, JSON, in pages: `?after=ID&limit=N&stream=NAME` |
//! | `DELETE /publishers/{id}`, `/viewers/{id}`, `/pulls/{id}` | sends it away, `?reason=TEXT`: `204`; `404` |
//! | `GET /log`, `PUT /log` | what is logged: `200`, JSON with `filter`; `400` |
//! | `POST /drain` | `202`: the process drains and stops |
//! | `GET /openapi.json` | this, for programs |
//!
//! Looking is free to whoever reaches the port. Changing takes the token that nodes share, or, where there is none, a call from this host
//! that no foreign page made.

use super::door::Door;
use super::query::{self, Page};
use super::request::{Failure, Request, decoded, empty, request};
use super::{Routes, openapi, probes};
use crate::health::Health;
use crate::net::Peers;
use crate::net::peers::{Activity, Peer};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use warp::http::header::{CONTENT_TYPE, HeaderValue};
use warp::http::{Method, StatusCode};
use warp::reply::Response;
use warp::{Filter, Reply};

/// The longest text of a workflow, bytes: a line a step, and some dozen steps.
const WORKFLOW_MAX: usize = 64 << 10;

/// What the admin port shows and changes; where it comes from is the caller's business.
#[derive(Clone)]
pub struct Admin {
    /// Behind `/readyz`.
    pub health: Health,
    /// The body of `/metrics`, in Prometheus' text format.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// What runs; nothing where the process is no node.
    pub workflows: Option<Arc<dyn Workflows>>,
    /// Who is connected; nothing where the process is no node.
    pub peers: Option<Arc<Peers>>,
    /// What is logged.
    pub log: Log,
    /// Cancelled to have this process drain and stop.
    pub drain: CancellationToken,
    /// Who may change anything.
    pub door: Door,
}

/// The workflows of a process.
pub trait Workflows: Send + Sync {
    /// Their names.
    fn names(&self) -> BoxFuture<'static, Vec<String>>;
    /// What one does; nothing if there is none of this name.
    fn one(&self, name: String) -> BoxFuture<'static, Option<Value>>;
    /// Runs one that is given as text, and gives the names of those that were started; the error is for people.
    fn put(&self, text: String) -> BoxFuture<'static, Result<Vec<String>, String>>;
    /// Stops one; `false`: there is none of this name.
    fn remove(&self, name: String) -> BoxFuture<'static, bool>;
}

/// The filter of the log.
#[derive(Clone, Copy)]
pub struct Log {
    /// The one that is in force.
    pub get: fn() -> String,
    /// Puts another in force; the error is for people.
    pub set: fn(&str) -> Result<(), String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogFilter {
    filter: String,
}

/// The routes of the admin port; see the module's head.
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
        let path = request.path.clone();
        if let Some(name) = path.strip_prefix("/workflows/").filter(|name| !name.is_empty()) {
            return self.workflow(name, request).await;
        }
        match path.as_str() {
            "/livez" => request.expect("GET").map(|()| probes::live()),
            "/readyz" => request.expect("GET").map(|()| probes::ready(&self.health)),
            "/metrics" => {
                request.expect("GET")?;
                let mut response = (self.metrics)().into_response();
                let format = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                response.headers_mut().insert(CONTENT_TYPE, format);
                Ok(response)
            }
            "/" => {
                request.expect("GET")?;
                let ready = probes::is_ready(&self.health);
                Ok(json_reply(&json!({ "version": env!("CARGO_PKG_VERSION"), "ready": ready })))
            }
            "/openapi.json" => request.expect("GET").map(|()| json_reply(&openapi::admin())),
            "/workflows" => self.workflows(request).await,
            "/log" => self.log(request).await,
            "/drain" => {
                request.expect("POST")?;
                self.may_change(&request)?;
                self.drain.cancel();
                Ok(empty(StatusCode::ACCEPTED))
            }
            _ => match side(&path) {
                Some((activity, None)) => self.list(activity, &request),
                Some((activity, Some(id))) => self.kick(activity, id, &path, &request),
                None => Err(Failure::no_path(&path)),
            },
        }
    }

    /// Whoever changes something proves itself.
    fn may_change(&self, request: &Request) -> Result<(), Failure> {
        if self.door.token.is_none() && !request.peer.is_loopback() {
            let text = "without --reactor-token-file only this host may change anything here".to_owned();
            return Err(Failure::new(StatusCode::FORBIDDEN, text));
        }
        self.door.admit(request).map(drop)
    }

    async fn workflows(&self, mut request: Request) -> Result<Response, Failure> {
        match request.method {
            Method::GET | Method::HEAD => {
                let names = match &self.workflows {
                    Some(workflows) => workflows.names().await,
                    None => Vec::new(),
                };
                Ok(json_reply(&json!({ "workflows": names })))
            }
            Method::PUT => {
                self.may_change(&request)?;
                let workflows = self.workflows.clone().ok_or_else(no_node)?;
                let text = request.text(WORKFLOW_MAX).await?;
                let started = workflows.put(text).await.map_err(Failure::bad)?;
                Ok(json_reply(&json!({ "started": started })))
            }
            _ => Err(Failure::method("GET, PUT")),
        }
    }

    async fn workflow(&self, name: &str, request: Request) -> Result<Response, Failure> {
        let missing = || Failure::no_path(&request.path);
        let name = decoded(name).ok_or_else(missing)?;
        match request.method {
            Method::GET | Method::HEAD => {
                let workflow = match &self.workflows {
                    Some(workflows) => workflows.one(name).await,
                    None => None,
                };
                Ok(json_reply(&workflow.ok_or_else(missing)?))
            }
            Method::DELETE => {
                self.may_change(&request)?;
                let workflows = self.workflows.clone().ok_or_else(missing)?;
                match workflows.remove(name).await {
                    true => Ok(empty(StatusCode::NO_CONTENT)),
                    false => Err(missing()),
                }
            }
            _ => Err(Failure::method("GET, DELETE")),
        }
    }

    async fn log(&self, mut request: Request) -> Result<Response, Failure> {
        match request.method {
            Method::GET | Method::HEAD => {}
            Method::PUT => {
                self.may_change(&request)?;
                let LogFilter { filter } = request.json(WORKFLOW_MAX).await?;
                (self.log.set)(&filter).map_err(Failure::bad)?;
                tracing::info!(filter, "the log's filter was changed");
            }
            _ => return Err(Failure::method("GET, PUT")),
        }
        Ok(json_reply(&json!({ "filter": (self.log.get)() })))
    }

    fn list(&self, activity: Activity, request: &Request) -> Result<Response, Failure> {
        request.expect("GET")?;
        let (page, stream) = (Page::<u64>::read(&request.query)?, query::stream(&request.query)?);
        let (after, most) = (page.after.unwrap_or_default(), page.limit + 1);
        let peers = self.peers.as_ref();
        let peers = peers.map_or_else(Vec::new, |peers| peers.list(activity, stream.as_ref(), after, most));
        let (peers, next) = page.of(peers, |peer| &peer.id);
        Ok(warp::reply::json(&PeerList { peers, next }).into_response())
    }

    fn kick(&self, activity: Activity, id: &str, path: &str, request: &Request) -> Result<Response, Failure> {
        request.expect("DELETE")?;
        self.may_change(request)?;
        let reason = query::reason(&request.query)?;
        let id = id.parse().map_err(|_| Failure::no_path(path))?;
        match self.peers.as_ref().is_some_and(|peers| peers.kick(activity, id, &reason)) {
            true => Ok(empty(StatusCode::NO_CONTENT)),
            false => Err(Failure::no_path(path)),
        }
    }
}

#[derive(Serialize)]
struct PeerList {
    peers: Vec<Peer>,
    /// There are more: the value of `after` that leads to them.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<u64>,
}

/// Which peers a path is about, and which one of them.
fn side(path: &str) -> Option<(Activity, Option<&str>)> {
    let (side, id) = match path.strip_prefix('/')?.split_once('/') {
        Some((side, id)) => (side, Some(id)),
        None => (path.strip_prefix('/')?, None),
    };
    let activity = match side {
        "publishers" => Activity::Publishing,
        "viewers" => Activity::Watching,
        "pulls" => Activity::Pulling,
        _ => return None,
    };
    Some((activity, id))
}

fn no_node() -> Failure {
    Failure::new(StatusCode::NOT_FOUND, "this process runs no workflows".to_owned())
}

fn json_reply(value: &Value) -> Response {
    warp::reply::json(value).into_response()
}
