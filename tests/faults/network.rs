//! Addresses: more than one, none of IPv4, behind proxies; and clocks that differ.

use crate::common::host::Host;
use crate::common::lb::Lb;
use crate::common::{SOON, http, process, wait_for};
use crate::nodes::*;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

/// A reactor believes the hosts of the tests whatever they advertise.
const HOSTS: [&str; 2] = ["--allowed-origins", "10.0.0.0/8,127.0.0.0/8"];

#[test]
fn an_advertised_address_is_where_streams_are_pulled_from() {
    let _machine = shared_machine();
    let host = Host::start();
    // The node speaks to the reactor from its first address and is to be pulled from by its second one.
    host.run(&["ip", "address", "add", "10.127.255.9/32", "dev", "lo"]);
    let listen = format!("{}:0", host.gateway());
    let reactor = reactor(&[&["--reactor-listen", &listen][..], &HOSTS].concat());
    let url = reactor.reactor_url();
    let a = Lb::start_on(&host, &ingest_flags(&url, &["--advertise", "10.127.255.9"]));
    let wrong = Lb::start_on(&host, &ingest_flags(&url, &["--advertise", "127.0.0.1"]));
    // Pulls are asked for on the same host, so that the second address is reached without routes.
    let playback = Lb::start_on(&host, &playback_flags(&url, &[]));
    let _publisher = publish(&a, "x", session(1));
    wait_for_owner(reactor.reactor(), "x", &a);
    let origin = stream(reactor.reactor(), "x").unwrap()["origin"].as_str().unwrap().to_owned();
    assert_eq!(origin, format!("10.127.255.9:{}", a.rtmp_port()));
    assert_none_lost(&watch(&playback, "x", 1, 1));
    // An address that only the node itself understands is said loudly.
    let _other = publish(&wrong, "y", session(2));
    wait_for("a warning", SOON, || {
        reactor.log().contains("a node registers an origin that others cannot pull from")
    });
    measured("origin registered with --advertise", origin);
}

#[test]
fn the_port_of_the_step_that_is_pulled_from_is_registered() {
    let _machine = shared_machine();
    // On a host of its own every port is free.
    let host = Host::start();
    let listen = format!("{}:0", host.gateway());
    let reactor = reactor(&[&["--reactor-listen", &listen][..], &HOSTS].concat());
    let url = reactor.reactor_url();
    let text = include_str!("../../mmids-configs/ingest.mmids");
    let port_of_its_own = "rtmp_app=pull_source stream_key=* port=65501";
    let text = text.replace("rtmp_app=pull_source stream_key=* port=${RTMP_PORT}", port_of_its_own);
    assert!(text.contains(port_of_its_own));
    let file = config(&text);
    let a = Lb::start_on(&host, &ingest_flags(&url, &["--config", path(&file)]));
    let playback = Lb::start_on(&host, &playback_flags(&url, &[]));
    let _publisher = publish(&a, "x", session(1));
    wait_for("the owner", SOON, || stream(reactor.reactor(), "x").is_some());
    let origin = stream(reactor.reactor(), "x").unwrap()["origin"].as_str().unwrap().to_owned();
    assert_eq!(origin, format!("{}:65501", host.address()));
    assert_none_lost(&watch(&playback, "x", 1, 1));
}

/// A lookup with a forwarded address.
fn claim(server: SocketAddr, name: &str, forwarded: &str) -> u16 {
    let body = format!("{{\"stream_name\":\"{name}\"}}");
    let mut socket = TcpStream::connect(server).unwrap();
    write!(
        socket,
        "POST /publisher_lookup HTTP/1.0\r\nX-Forwarded-For: {forwarded}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_forwarded_address_is_believed_from_listed_proxies_only() {
    let _machine = shared_machine();
    let trusting = reactor(&["--insecure", "--trusted-proxies", "127.0.0.0/8,::1/128"]);
    let wary = reactor(&["--insecure"]);
    let origin = |reactor: SocketAddr, name: &str| stream(reactor, name).unwrap()["origin"].clone();
    assert_eq!(claim(trusting.reactor(), "x", "192.0.2.7"), 200);
    assert_eq!(origin(trusting.reactor(), "x"), "192.0.2.7");
    // Only what the proxy itself appended counts; what its client made up before that does not.
    assert_eq!(claim(trusting.reactor(), "y", "203.0.113.66, 192.0.2.8"), 200);
    assert_eq!(origin(trusting.reactor(), "y"), "192.0.2.8");
    assert_eq!(claim(wary.reactor(), "x", "192.0.2.7"), 200);
    assert_eq!(origin(wary.reactor(), "x"), "127.0.0.1", "anybody could take any address");
    measured("spoofed addresses believed", 0);
}

#[test]
fn hosts_without_ipv4_do_everything() {
    let _machine = shared_machine();
    let host = Host::start_ipv6_only();
    let listen = ["--role", "reactor", "--heartbeat", "300ms", "--reactor-listen", "[::1]:0"];
    let reactor = Lb::start_on(&host, &[&listen[..], &["--allowed-origins", "::/0"]].concat());
    let url = reactor.reactor_url();
    assert!(url.starts_with("http://[::1]:"), "{url}");
    let a = Lb::start_on(&host, &ingest_flags(&url, &[]));
    let b = Lb::start_on(&host, &ingest_flags(&url, &["--advertise", &format!("[{}]", host.address())]));
    let playback = Lb::start_on(&host, &playback_flags(&url, &[]));
    let first = publish(&a, "x", session(1));
    let viewers = watch(&playback, "x", 5, 1);
    measured("join on a host without IPv4", viewers[0].join_time().unwrap());
    drop(first);
    let _second = publish(&b, "x", session(2));
    wait_for_all(&viewers, 2);
    assert_none_lost(&viewers);
}

/// A node and its reactor in one process, which listens to whatever the host has; a viewer sees what is published there.
#[track_caller]
fn one_process_serves(host: &Host) {
    let flags = ["--role", "all", "--heartbeat", "300ms", "--drain-timeout", "3s"];
    let all = Lb::start_on(host, &[&flags[..], &["--reactor-listen", "[::]:0", "--insecure"]].concat());
    let _publisher = publish(&all, "x", session(1));
    wait_for("the stream to be known", SOON, || stream(all.reactor(), "x").is_some());
    assert_none_lost(&watch(&all, "x", 1, 1));
}

#[test]
fn a_node_finds_the_reactor_beside_it_on_hosts_of_one_family() {
    let _machine = shared_machine();
    one_process_serves(&Host::start_ipv6_only());
    let host = Host::start();
    host.run(&["sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"]);
    host.run(&["sh", "-c", "! ip -6 address show dev lo | grep -q inet6"]);
    one_process_serves(&host);
}

#[test]
fn clocks_an_hour_apart_change_nothing() {
    let _machine = shared_machine();
    let shift = ClockShift::build();
    let (behind, ahead) = (shift.variables(-3600), shift.variables(3600));
    let start = |flags: &[&str], clock: &[(String, String)]| {
        let clock: Vec<(&str, &str)> = clock.iter().map(|(name, value)| (&**name, &**value)).collect();
        Lb::start_with(flags, &clock)
    };
    // What nodes sign with their token holds for a minute.
    const TOKEN: [&str; 2] = ["--reactor-token", "0123456789abcdef"];
    let reactor = reactor(&[&TOKEN[..], &["--trusted-nodes", "127.0.0.0/8"]].concat());
    let url = reactor.reactor_url();
    let a = start(&ingest_flags(&url, &TOKEN), &behind);
    let b = start(&ingest_flags(&url, &TOKEN), &ahead);
    let playback = start(&playback_flags(&url, &TOKEN), &behind);
    let first = publish(&a, "x", session(1));
    let viewers = watch(&playback, "x", 5, 1);
    // Longer than a lease: if clocks were compared it would have lapsed, or never would.
    let_pass(HEARTBEAT * 5);
    wait_for_owner(reactor.reactor(), "x", &a);
    let second = publish(&b, "x", session(2));
    let sent = second.wait_for_keyframe();
    let last = viewers.iter().map(|viewer| viewer.wait_for_keyframe(2, SOON)).max().unwrap();
    measured("takeover between hosts two hours apart", last.saturating_duration_since(sent));
    first.wait_for_end(SOON);
    assert_none_lost(&viewers);
    b.kill();
    wait_for("the lease to lapse", HEARTBEAT * 10, || stream(reactor.reactor(), "x").is_none());
}

/// A library that moves the wall clock of a process.
struct ClockShift {
    library: tempfile::TempPath,
}

impl ClockShift {
    #[track_caller]
    fn build() -> Self {
        let source = "#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    const char *shift = getenv(\"CLOCK_SHIFT\");
    if (result == 0 && clock == CLOCK_REALTIME && shift) now->tv_sec += atol(shift);
    return result;
}
";
        let mut file = tempfile::Builder::new().suffix(".c").tempfile().unwrap();
        file.write_all(source.as_bytes()).unwrap();
        let library = tempfile::Builder::new().suffix(".so").tempfile().unwrap().into_temp_path();
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(file.path());
        let built = process::run(compiler, Duration::from_secs(60));
        assert_eq!(built.code, Some(0), "{}", built.stderr);
        ClockShift { library }
    }

    fn variables(&self, seconds: i64) -> Vec<(String, String)> {
        let library = self.library.to_str().unwrap().to_owned();
        vec![("LD_PRELOAD".to_owned(), library), ("CLOCK_SHIFT".to_owned(), seconds.to_string())]
    }
}

#[test]
fn the_clock_of_a_process_can_be_moved() {
    // The test above proves nothing if this does not hold: the library moves the clock that the nodes read.
    let shift = ClockShift::build();
    let mut date = Command::new("date");
    date.arg("+%s").envs(shift.variables(7200));
    let shown: u64 = process::run(date, Duration::from_secs(10)).stdout.trim().parse().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(shown.abs_diff(now + 7200) < 60, "{shown} at {now}");
    assert!(http::try_call(SocketAddr::from(([127, 0, 0, 1], 1)), "GET", "/", "").is_err());
}
