//! `lb top`: the cluster on a terminal, again and again.

use super::table::{age, share, table};
use crate::api::cluster::{Cluster, NodeView, StreamView};
use crate::ids::{NodeId, StreamName};
use std::time::{Duration, SystemTime};

/// Nodes, and the streams with the most viewers, as many as fit.
pub(super) fn screen(cluster: &Cluster, rows: usize) -> String {
    let viewers: u64 = cluster.nodes.values().map(|node| node.viewers).sum();
    let head = format!("{} streams, {viewers} viewers, {} nodes", cluster.streams.len(), cluster.nodes.len());
    let nodes = table(
        ["NODE", "STATE", "PUBLISHERS", "VIEWERS", "PULLS", "OF ITS CAPACITY", "IN", "OUT"],
        cluster.nodes.iter().map(node),
    );
    let mut streams: Vec<(&StreamName, &StreamView)> = cluster.streams.iter().collect();
    streams.sort_by_key(|(name, stream)| (std::cmp::Reverse(stream.viewers), *name));
    let left = rows.saturating_sub(cluster.nodes.len() + 6).max(3);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let shown = table(
        ["STREAM", "NODE", "VIEWERS", "BITRATE", "FRAMES/S", "KEYFRAMES", "PICTURE", "CODECS", "AGE"],
        streams.iter().take(left).map(|(name, view)| stream(name, view, now)),
    );
    let more = streams.len().saturating_sub(left);
    let rest = if more > 0 { format!("\n… and {more} more") } else { String::new() };
    format!("{head}\n\n{nodes}\n\n{shown}{rest}")
}

fn node((name, node): (&NodeId, &NodeView)) -> [String; 8] {
    let used = node.viewers + node.published + node.pulls;
    [
        name.as_str().to_owned(),
        node.state.name().to_owned(),
        node.published.to_string(),
        node.viewers.to_string(),
        node.pulls.to_string(),
        share(used, node.capacity),
        bits(node.received_bits_per_second),
        bits(node.sent_bits_per_second),
    ]
}

fn stream(name: &StreamName, view: &StreamView, now: u64) -> [String; 9] {
    let source = view.source.as_ref();
    let unknown = || "-".to_owned();
    let codecs = source
        .map(|source| [&source.video, &source.audio].map(|codec| codec.as_deref().unwrap_or("-")).join(", "));
    [
        name.as_str().to_owned(),
        view.node.as_ref().map_or_else(|| view.origin.to_string(), |node| node.as_str().to_owned()),
        view.viewers.to_string(),
        source.map_or_else(unknown, |source| bits(source.bits_per_second)),
        source.map_or_else(unknown, |source| format!("{:.1}", source.frames_per_second)),
        source.and_then(|source| source.keyframe_ms).map_or_else(unknown, |ms| format!("{ms} ms")),
        source
            .and_then(|source| source.size)
            .map_or_else(unknown, |(width, height)| format!("{width}x{height}")),
        codecs.map_or_else(unknown, |codecs| crate::telemetry::shown(&codecs)),
        age(Duration::from_secs(now.saturating_sub(view.since))),
    ]
}

fn bits(per_second: u64) -> String {
    match per_second {
        0..1_000 => format!("{per_second} b/s"),
        1_000..1_000_000 => format!("{} kb/s", per_second / 1_000),
        _ => format!("{:.1} Mb/s", per_second as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busiest_streams_come_first_and_the_rest_is_counted() {
        let stream = |viewers| StreamView {
            node: "n".parse().ok(),
            origin: "10.0.0.1:1935".parse().unwrap(),
            epoch: 1,
            session: None,
            since: 0,
            viewers,
            source: None,
            pulls: Vec::new(),
        };
        let streams = (0..10).map(|n| (format!("s{n}").parse().unwrap(), stream(n))).collect();
        let shown = screen(&Cluster { streams, ..Cluster::default() }, 0);
        let order: Vec<&str> =
            shown.lines().filter(|line| line.starts_with('s')).map(|line| &line[..2]).collect();
        assert_eq!(order, ["s9", "s8", "s7"]);
        assert!(shown.starts_with("10 streams") && shown.ends_with("… and 7 more"), "{shown}");
        assert_eq!(
            (bits(999), bits(1_999), bits(2_500_000)),
            ("999 b/s".into(), "1 kb/s".into(), "2.5 Mb/s".into())
        );
    }
}
