//! The command itself: its forms, its exit codes, and that no server can hold it up.

use super::common::endpoint::runtime;
use super::common::lb;
use super::faulty::{Fault, Faulty};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

fn url(server: &Faulty) -> String {
    format!("rtmp://127.0.0.1:{}/live/x", server.port)
}

fn start(fault: Fault) -> Faulty {
    runtime().block_on(Faulty::start(fault))
}

#[test]
fn wrong_usage_is_one_line_and_code_2() {
    for (words, said) in [
        (&["http://127.0.0.1/live/x"][..], "is not an rtmp:// or rtmps:// URL"),
        (&["rtmps://127.0.0.1/live/x"], "without TLS"),
        (&["rtmp://127.0.0.1/live"], "lacks an app or a stream name"),
        (&["rtmp://127.0.0.1/live/x", "--only", "nothing"], "no check or group is called 'nothing'"),
        (&["rtmp://127.0.0.1/live/x", "--quiet", "5s"], "--quiet: it must be less than --timeout"),
        (&[], "required"),
    ] {
        let finished = lb::run(&[&["conform"], words].concat());
        assert_eq!(finished.code, Some(2), "{words:?}: {finished:?}");
        assert!(finished.stderr.contains(said), "{words:?}: {finished:?}");
    }
}

#[test]
fn a_server_that_is_not_there_is_one_line_and_code_1() {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = format!("rtmp://127.0.0.1:{}/live/x?secret", free.local_addr().unwrap().port());
    drop(free);
    let finished = lb::run(&["conform", &url]);
    assert_eq!((finished.code, finished.stdout.as_str()), (Some(1), ""), "{finished:?}");
    assert!(finished.stderr.contains("cannot connect"), "{finished:?}");
    assert!(!finished.stderr.contains("secret"), "{finished:?}");
    assert_eq!(finished.stderr.lines().count(), 1, "{finished:?}");
}

#[test]
fn the_list_names_every_check() {
    let finished = lb::run(&["conform", "--list"]);
    let named: Vec<(&str, &str)> = finished
        .stdout
        .lines()
        .skip(1)
        .filter_map(|line| line.split_once(' ').map(|(group, rest)| (group, rest.trim())))
        .map(|(group, rest)| (group, rest.split(' ').next().unwrap()))
        .collect();
    let all = ::lb::conform::all();
    let all: Vec<(&str, &str)> = all.iter().map(|check| (check.group.name(), check.name)).collect();
    assert_eq!((finished.code, named), (Some(0), all));
}

#[test]
fn a_table_and_a_document_say_the_same_and_the_exit_code_too() {
    for (fault, code, failed) in [(Fault::None, 0, 0), (Fault::S2Random, 1, 1)] {
        let server = start(fault);
        let json = lb::run(&["conform", &url(&server), "--only", "handshake", "--json"]);
        let document: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
        let counts = ["passed", "failed", "info", "skipped"].map(|word| document[word].as_u64().unwrap());
        assert_eq!((json.code, counts), (Some(code), [8 - failed, failed, 0, 1]), "{document:#}");
        let first = &document["checks"][0];
        assert_eq!((first["group"].as_str(), first["name"].as_str()), (Some("handshake"), Some("simple")));
        assert_eq!(first["verdict"], if failed == 1 { "fail" } else { "pass" });
        assert!(
            ["expected", "source", "seen"].iter().all(|field| !first[field].as_str().unwrap().is_empty())
        );

        let text = lb::run(&["conform", &url(&server), "--only", "handshake"]);
        let line = text.stdout.lines().find(|line| line.contains("  simple ")).unwrap();
        assert!(line.trim_start().starts_with(if failed == 1 { "fail" } else { "pass" }), "{line}");
        assert_eq!(text.code, Some(code), "{text:?}");
        assert!(text.stdout.contains("\nHANDSHAKE\n") && text.stdout.contains("9 checks: "), "{text:?}");
        assert!(!text.stdout.contains('\x1b'), "no colours but at a terminal");
    }
}

#[test]
fn one_key_is_enough_for_a_server_that_lets_nothing_else_in() {
    let server = start(Fault::OnlyKey("x"));
    let words = ["--only", "publish,play,join", "--quiet", "150ms"];
    let own_names =
        lb::run(&[&["conform", &url(&server), "--timeout", "1s", "--jobs", "8"], &words[..]].concat());
    assert_eq!(own_names.code, Some(1), "each check has a name of its own: {own_names:?}");
    let exact = lb::run(&[&["conform", &url(&server), "--exact-key"], &words[..]].concat());
    assert_eq!(exact.code, Some(0), "{}", exact.stdout);
}

/// A server that takes whatever comes and sends the same bytes for ever.
fn flood(bytes: &'static [u8]) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut hello = [0; 1537];
                if socket.read_exact(&mut hello).is_err()
                    || socket.write_all(&[&[3], &[0; 3072][..]].concat()).is_err()
                {
                    return;
                }
                let bytes = bytes.repeat(1 + (64 << 10) / bytes.len());
                while socket.write_all(&bytes).is_ok() {}
            });
        }
    });
    port
}

#[test]
fn a_server_that_floods_or_says_nothing_costs_no_more_than_the_deadline() {
    // Audio of a byte; a header of 16 MB again and again; pings; nothing at all.
    let audio = b"\x04\0\0\0\0\0\x01\x08\x01\0\0\0a";
    let huge = b"\x04\0\0\0\xff\xff\xff\x08\x01\0\0\0";
    let pings = b"\x02\0\0\0\0\0\x06\x04\0\0\0\0\0\x06\0\0\0\x01";
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let ports = [flood(audio), flood(huge), flood(pings), silent.local_addr().unwrap().port()];
    for port in ports {
        let begun = Instant::now();
        let url = format!("rtmp://127.0.0.1:{port}/live/x");
        let words = [
            "conform",
            &url,
            "--only",
            "connect,join",
            "--timeout",
            "1s",
            "--quiet",
            "200ms",
            "--jobs",
            "30",
        ];
        let finished = lb::run(&words);
        assert_eq!(finished.code, Some(1), "{finished:?}");
        assert!(finished.stdout.contains("23 checks: 0 passed, 23 failed"), "{}", finished.stdout);
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    }
}
