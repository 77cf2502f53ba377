//! `lb explain`: what happened to a stream, on all nodes, in one list.

use super::table::{age, table};
use crate::api::report::TimelineEntry;
use crate::telemetry::shown;
use std::time::Duration;

/// The list, for people.
pub(super) fn timeline(name: &str, entries: &[TimelineEntry]) -> String {
    if entries.is_empty() {
        return format!("nothing is known to have happened to '{name}' lately");
    }
    let row = |TimelineEntry { node, event, what }: &TimelineEntry| {
        let node = node.as_ref().map_or("reactor", |node| node.as_str()).to_owned();
        let session = event.session.map_or_else(|| "-".to_owned(), |session| session.to_string());
        [format!("{} ago", ago(event.ago_ms)), node, session, shown(what)]
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::report::{Happening, StreamEvent};

    #[test]
    fn a_life_is_told_in_columns() {
        let event = |event, ago_ms, number| StreamEvent {
            stream_name: "x".parse().unwrap(),
            event,
            ago_ms,
            session: "0123456789ab".parse().ok(),
            number,
            detail: Some("10.0.0.1:1935".to_owned()),
        };
        let entries = [
            TimelineEntry::of(None, event(Happening::Registered, 61_500, Some(1))),
            TimelineEntry::of("edge".parse().ok(), event(Happening::Switched, 1_250, Some(53))),
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
