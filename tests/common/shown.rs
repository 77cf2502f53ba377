//! All that a process shows: what it logs, and what its ports answer to whoever asks.

use super::http;
use super::lb::Lb;
use serde_json::Value;
use std::net::SocketAddr;

/// Its log so far, and the answer of every path of its admin port, and of its reactor's if it is one, that can be read. The
/// paths are those of the description that each port serves; where they have a name in them, it is asked about each that there is.
/// Event streams have no end and are left out: see [`http::Events`].
#[track_caller]
pub fn everything(lb: &Lb) -> String {
    let mut shown = port(lb.admin());
    if lb.ready_line().contains(" reactor=") {
        shown += &port(lb.reactor());
    }
    shown + &lb.log()
}

#[track_caller]
fn port(server: SocketAddr) -> String {
    let description = json(server, "/openapi.json");
    let paths = description["paths"].as_object().unwrap();
    let mut shown = String::new();
    for (path, methods) in paths {
        if methods.get("get").is_none() || path.ends_with("events") {
            continue;
        }
        for path in filled(server, path) {
            let answer = http::get(server, &path);
            assert_ne!(answer.status, 404, "{path}");
            shown += &format!("{path}: {}\n", answer.body);
        }
    }
    shown
}

/// A path with a name in it, once for each that there is.
#[track_caller]
fn filled(server: SocketAddr, path: &str) -> Vec<String> {
    let Some((before, _)) = path.split_once('{') else { return vec![path.to_owned()] };
    let (list, entries, name) = match before {
        "/workflows/" => ("/workflows", "workflows", None),
        "/streams/" | "/timelines/" => ("/streams", "streams", Some("stream_name")),
        "/nodes/" => ("/nodes", "nodes", Some("node")),
        _ => panic!("what is {path} asked about?"),
    };
    let list = json(server, list);
    let entries = list[entries].as_array().unwrap().iter();
    let names = entries.map(|entry| name.map_or(entry, |name| &entry[name]).as_str().unwrap());
    let (_, after) = path.split_once('}').unwrap();
    names.map(|name| format!("{before}{name}{after}")).collect()
}

#[track_caller]
fn json(server: SocketAddr, path: &str) -> Value {
    serde_json::from_str(&http::get(server, path).body).unwrap()
}
