//! A real HAProxy in front: the address that it names is the peer's.

// A test says what it expects by `unwrap` and indexing; a panic is its verdict.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use common::ffmpeg::{self, Clip};
use common::lb::Lb;
use common::process::{self, Peer};
use common::{SOON, wait_for};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use tempfile::NamedTempFile;

/// An HAProxy at an address of its own, since nodes pull from each other at this one, that hands connections on, with the header of this version.
struct Proxy {
    address: SocketAddr,
    _process: Peer,
    _config: NamedTempFile,
}

impl Proxy {
    fn start(lb: &Lb, send: &str) -> Proxy {
        // HAProxy takes a port that the system picked, as it cannot say which one it got.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut config = NamedTempFile::new().unwrap();
        write!(
            config,
            "defaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n\
             listen rtmp\n bind {address}\n server lb {} source 127.0.0.9 {send}\n",
            lb.rtmp()
        )
        .unwrap();
        let mut command = Command::new("/usr/sbin/haproxy");
        command.args(["-db", "-f"]).arg(config.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = Peer::new(process::spawn_tool(command));
        wait_for("HAProxy to listen", SOON, || TcpStream::connect(address).is_ok());
        Proxy { address, _process: process, _config: config }
    }

    fn url(&self, app: &str, key: &str) -> String {
        format!("rtmp://{}/{app}/{key}", self.address)
    }
}

/// Connects from another of this host's addresses, and says whether the handshake was answered.
fn is_served(from: &str, to: SocketAddr) -> bool {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&format!("{from}:0").parse::<SocketAddr>().unwrap().into()).unwrap();
    socket.connect(&to.into()).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(&[&[3][..], &[0; 1536]].concat()).unwrap();
    stream.read_exact(&mut [0; 1537]).is_ok()
}

#[test]
fn the_address_that_haproxy_names_is_the_peers() {
    for send in ["send-proxy", "send-proxy-v2"] {
        let lb = Lb::start(&["--role", "all", "--proxy-protocol-from", "127.0.0.9/32", "--log", "lb=debug"]);
        let proxy = Proxy::start(&lb, send);
        let _publisher = ffmpeg::publish(Clip::Alpha, &proxy.url("ingest", "x"));
        lb.wait_for_metric("lb_publishers", 1.0, SOON);
        ffmpeg::record(&proxy.url("live", "x"), 2).assert_shows(Clip::Alpha, 2);
        assert!(is_served("127.0.0.5", proxy.address));
        wait_for("the address in the log", SOON, || lb.log().contains("peer=127.0.0.5:"));
    }
}

#[test]
fn a_limit_counts_the_address_that_is_named() {
    let flags = ["--max-connections-per-address", "1", "--proxy-protocol-from", "127.0.0.9/32"];
    let lb = Lb::start(&[&["--role", "all"], &flags[..]].concat());
    let proxy = Proxy::start(&lb, "send-proxy-v2");
    // The connection by which it was found to listen has come and gone.
    wait_for("a connection", SOON, || lb.metric("lb_connections_total") >= 1.0);
    lb.wait_for_metric("lb_connections", 0.0, SOON);
    let held = {
        let mut stream = TcpStream::connect(proxy.address).unwrap();
        stream.write_all(&[&[3][..], &[0; 1536]].concat()).unwrap();
        stream.read_exact(&mut [0; 1537]).unwrap();
        stream
    };
    assert!(!is_served("127.0.0.1", proxy.address), "the second connection of one address");
    assert!(is_served("127.0.0.6", proxy.address), "another address");
    drop(held);
}

#[test]
fn a_listed_proxy_must_send_the_header_and_nobody_else_may() {
    let lb = Lb::start(&["--role", "all", "--proxy-protocol-from", "127.0.0.9/32"]);
    assert!(!is_served("127.0.0.9", lb.rtmp()), "no header");
    wait_for("the refusal", SOON, || lb.metric("lb_refusals_total{reason=\"proxy_protocol\"}") == 1.0);
    assert!(is_served("127.0.0.1", lb.rtmp()));
    let mut spoofed = TcpStream::connect(lb.rtmp()).unwrap();
    spoofed.set_read_timeout(Some(SOON)).unwrap();
    spoofed.write_all(b"PROXY TCP4 192.0.2.7 127.0.0.1 4660 80\r\n").unwrap();
    spoofed.write_all(&[&[3][..], &[0; 1536]].concat()).unwrap_or_default();
    assert!(spoofed.read_exact(&mut [0; 1537]).is_err(), "it is no handshake");
}
