//! `/livez` and `/readyz`, the same on every port.

use crate::health::Health;
use warp::Reply;
use warp::http::StatusCode;
use warp::reply::Response;

/// The process answers: that is all.
pub(super) fn live() -> Response {
    "ok".into_response()
}

/// Whether nothing stands against it.
pub(super) fn is_ready(health: &Health) -> bool {
    health.reasons().is_empty()
}

/// `200` when nothing stands against it, else `503`; as JSON with the reasons, and remarks that do not count.
pub(super) fn ready(health: &Health) -> Response {
    let (reasons, remarks) = (health.reasons(), health.remarks());
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = serde_json::json!({ "ready": reasons.is_empty(), "reasons": reasons, "remarks": remarks });
    warp::reply::with_status(warp::reply::json(&body), status).into_response()
}
