//! `lb explain`: what happened to a stream, on all nodes, in one list.

use super::table::{age, table};
use crate::api::report::{Happening, StreamEvent, TimelineEntry};
use std::time::Duration;

/// The list, for people.
pub(super) fn timeline(name: &str, entries: &[TimelineEntry]) -> String {
    if entries.is_empty() {
        return format!("nothing is known to have happened to '{name}' lately");
    }
    let row = |TimelineEntry { node, event }: &TimelineEntry| {
        let node = node.as_ref().map_or("reactor", |node| node.as_str()).to_owned();
        let session = event.session.map_or_else(|| "-".to_owned(), |session| session.to_string());
        [format!("{} ago", ago(event.ago_ms)), node, session, sentence(event)]
    };
    table(["WHEN", "WHERE", "SESSION", "WHAT"], entries.iter().map(row))
}

/// An age to the millisecond while it is short: the order of what happened in one second matters.
fn ago(ms: u64) -> String {
    match ms {
        0..60_000 => format!("{}.{:03}s", ms / 1000, ms % 1000),
        _ => age(Duration::from_millis(ms)),
    }
}

fn sentence(event: &StreamEvent) -> String {
    let detail = event.detail.as_deref().unwrap_or("?");
    let number = event.number.unwrap_or_default();
    match event.event {
        Happening::Published => format!("published from {detail}"),
        Happening::Unpublished => "unpublished".to_owned(),
        Happening::Registered => format!("registered, epoch {number}, to be pulled from {detail}"),
        Happening::Unregistered => "no longer registered".to_owned(),
        Happening::Found => format!("found at {detail}"),
        Happening::Moved => format!("moved to {detail}"),
        Happening::PullBrings => format!("the pull brings media after {number} ms"),
        Happening::PullEnded => format!("the pull ended: {}", crate::telemetry::shown(detail)),
        Happening::FirstViewer => "the first viewer came".to_owned(),
        Happening::FirstPicture => format!("first picture after {number} ms"),
        Happening::LastViewerLeft => "the last viewer left".to_owned(),
        Happening::Switched => format!("switched: viewers saw nothing new for {number} ms"),
        Happening::Ended => "ended: the publisher did not come back".to_owned(),
        Happening::Refused => format!("refused: {}", crate::telemetry::shown(detail)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_is_told_in_sentences() {
        let event = |event, ago_ms, number| StreamEvent {
            stream_name: "x".parse().unwrap(),
            event,
            ago_ms,
            session: "0123456789ab".parse().ok(),
            number,
            detail: Some("10.0.0.1:1935".to_owned()),
        };
        let entries = [
            TimelineEntry { node: None, event: event(Happening::Registered, 61_500, Some(1)) },
            TimelineEntry { node: "edge".parse().ok(), event: event(Happening::Switched, 1_250, Some(53)) },
        ];
        let told = timeline("x", &entries);
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(
            lines[1],
            "1m 1s ago   reactor  0123456789ab  registered, epoch 1, to be pulled from 10.0.0.1:1935"
        );
        assert_eq!(
            lines[2],
            "1.250s ago  edge     0123456789ab  switched: viewers saw nothing new for 53 ms"
        );
        assert!(timeline("x", &[]).contains("nothing is known"));
    }
}
