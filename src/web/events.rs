//! `GET /events`: changes of ownership as Server-Sent Events (WHATWG HTML, section 9.2).

use crate::registry::{Changes, Notice};
use futures::stream::{self, StreamExt};
use std::convert::Infallible;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use warp::Reply;
use warp::http::header::HeaderValue;
use warp::reply::Response;
use warp::sse::Event;

/// A comment goes out after this much silence, so that both sides find a dead connection.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// `hello`, then a `change` for each change; `hello` again when some were missed. Ends with the stop signal.
pub(super) fn reply(changes: Changes, stop: CancellationToken) -> Response {
    let rest = stream::unfold((changes, stop), |(mut changes, stop)| async move {
        let notice = tokio::select! {
            biased;
            () = stop.cancelled() => None,
            notice = changes.next() => notice,
        };
        Some((event(notice?), (changes, stop)))
    });
    let events = stream::iter([event(Notice::Resync)]).chain(rest).map(Ok::<_, Infallible>);
    let mut response =
        warp::sse::reply(warp::sse::keep_alive().interval(KEEP_ALIVE).stream(events)).into_response();
    // nginx in front would gather events otherwise.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

fn event(notice: Notice) -> Event {
    let hello = || Event::default().event("hello").data("{}");
    match notice {
        Notice::Resync => hello(),
        // A change that could not be written would be a missed one.
        Notice::Change(change) => {
            Event::default().event("change").json_data(change).unwrap_or_else(|_| hello())
        }
    }
}
