//! The page of the reactor, for browsers: one document, one script, one style sheet, all embedded. It holds no secrets, so it is served to
//! whoever asks; what it shows it asks of the reactor's API, which may want the token.

use super::request::Failure;
use warp::Reply;
use warp::http::StatusCode;
use warp::http::header::{HeaderName, HeaderValue};
use warp::reply::Response;

const DOCUMENT: &str = include_str!(concat!(env!("OUT_DIR"), "/index.html"));
const SCRIPT: &str = include_str!(concat!(env!("OUT_DIR"), "/page.js"));
const STYLE: &str = include_str!(concat!(env!("OUT_DIR"), "/page.css"));

/// What the page may do: run its own script, and ask the reactor and playback nodes, whose addresses are not known before. The chart's
/// library sets styles on elements, and the player plays from memory.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
    connect-src *; media-src blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// The part of the page at this path, if there is one.
pub(super) fn answer(path: &str, method: &str) -> Option<Result<Response, Failure>> {
    let (kind, content) = match path {
        "/" => ("text/html; charset=utf-8", DOCUMENT),
        "/page.js" => ("text/javascript; charset=utf-8", SCRIPT),
        "/page.css" => ("text/css; charset=utf-8", STYLE),
        _ => return None,
    };
    if !matches!(method, "GET" | "HEAD") {
        return Some(Err(Failure::method("GET")));
    }
    let mut response = warp::reply::with_status(content, StatusCode::OK).into_response();
    for (name, value) in [
        ("content-type", kind),
        ("content-security-policy", POLICY),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        // The next version of the program has another one under the same name.
        ("cache-control", "no-cache"),
    ] {
        response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    Some(Ok(response))
}
