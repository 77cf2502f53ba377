//! The reactor service over real sockets: the contract to the letter, bad input, hostile peers, and its store going away.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use bytes::Bytes;
use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt};
use lb::api::{HEARTBEAT_STREAMS, Heartbeat, HeartbeatReply, NodeList, PUSHING_STREAMS, StreamList};
use lb::health::Health;
use lb::ids::SessionId;
use lb::node::listen;
use lb::registry::store::{Key, Kind, Memory as Age, Read, Store, Unreachable, Write, Written};
use lb::registry::{Memory, Policy, Registry, Settings};
use lb::telemetry::Metrics;
use lb::web::reactor::{self, HEARTBEAT_BODY_MAX, Reactor};
use lb::web::server::{self, Limits, Server};
use lb::web::{Door, ReactorMetrics, Routes, Secret, Template, admin};
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn plain_nodes_get_the_contract_to_the_letter() {
    let service = Service::start().await;
    let reply = service.post("/watcher_lookup", r#"{"stream_name":"x"}"#).await;
    assert_eq!(reply.status(), 404);
    assert_eq!(error(reply).await, "stream 'x' is not published");
    let reply = service.post("/publisher_lookup", r#"{"stream_name":"x"}"#).await;
    assert_eq!(reply.status(), 200);
    assert!(reply.headers().get("lb-epoch").is_none());
    assert_eq!(reply.text().await.unwrap(), "");
    let reply = service.post("/watcher_lookup", r#"{"stream_name":"x"}"#).await;
    assert_eq!(reply.status(), 200);
    assert!(header(&reply, "content-type").starts_with("text/plain"));
    assert_eq!(header(&reply, "lb-origin"), "127.0.0.1");
    assert_eq!(
        reply.text().await.unwrap(),
        "workflow ingest_x {\n    ffmpeg_pull location=rtmp://127.0.0.1/pull_source/x stream_name=x\n}\n"
    );
}

#[tokio::test]
async fn every_form_of_a_lookup_that_mmids_sent_or_documents_is_heard() {
    let open = Service::start().await;
    let token = Some(Secret::new("s3cret").unwrap());
    let guarded = Service::start_with(Setup { token, ..Setup::default() }).await;
    for (service, token) in [(&open, None), (&guarded, Some("s3cret"))] {
        let call = |method: &str, path: &str, kind: Option<&str>, body: &str| {
            let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
            let call = service.client.request(method, service.at(path)).body(body.to_owned());
            let call = token.into_iter().fold(call, |call, token| call.bearer_auth(token));
            kind.into_iter().fold(call, |call, kind| call.header("content-type", kind)).send()
        };
        for (number, (method, kind)) in [
            ("POST", Some("text/plain")),
            ("POST", Some("Text/Plain; charset=utf-8")),
            ("PUT", Some("text/plain")),
            ("PUT", None),
            ("PUT", Some("application/x-www-form-urlencoded")),
        ]
        .into_iter()
        .enumerate()
        {
            let name = format!("bare/{number}");
            let said = format!("{method} {kind:?}");
            let missing = call(method, "/watcher_lookup", kind, &name).await.unwrap();
            assert_eq!(missing.status(), 404, "{said}");
            let line = format!("{name}\n");
            assert_eq!(call(method, "/publisher_lookup", kind, &line).await.unwrap().status(), 200, "{said}");
            let found = call(method, "/watcher_lookup", kind, &name).await.unwrap();
            assert_eq!(found.status(), 200, "{said}");
            assert!(found.text().await.unwrap().starts_with(&format!("workflow ingest_{name} {{")));
            let json = json!({"stream_name": name, "node": "n"}).to_string();
            assert_eq!(call(method, "/watcher_lookup", kind, &json).await.unwrap().status(), 200, "{said}");
            for (wrong, reason) in
                [("a b", "position 2"), ("", "empty"), ("{", "not valid"), ("a\n}", "position 2")]
            {
                let refused = call(method, "/publisher_lookup", kind, wrong).await.unwrap();
                assert_eq!(refused.status(), 400, "{said} {wrong:?}");
                assert!(error(refused).await.contains(reason), "{said} {wrong:?}");
            }
        }
    }
}

#[tokio::test]
async fn addresses_are_written_as_a_url_has_them() {
    for (listen, connect, origin) in [
        ("[::1]:0", "[::1]", "[::1]"),
        ("[::]:0", "127.0.0.1", "127.0.0.1"),
        ("[::]:0", "[::1]", "[::1]"),
        ("0.0.0.0:0", "127.0.0.1", "127.0.0.1"),
    ] {
        let mut service = Service::start_with(Setup { listen, ..Setup::default() }).await;
        service.url = format!("http://{connect}:{}", service.addr.port());
        service.publish(json!({"stream_name": "a/b"})).await;
        let reply = service.watch("a/b").await;
        assert_eq!(header(&reply, "lb-origin"), origin);
        let text = reply.text().await.unwrap();
        assert!(text.contains(&format!(" location=rtmp://{origin}/pull_source/a/b ")), "{text}");
    }
}

#[tokio::test]
async fn origins_ports_and_the_native_pull_are_taken_from_the_body() {
    let service = Service::start().await;
    for (body, origin) in [
        (json!({"stream_name": "p", "rtmp_port": 1936}), "127.0.0.1:1936"),
        (
            json!({"stream_name": "o", "origin": "ingest-1.example.org", "rtmp_port": 7}),
            "ingest-1.example.org",
        ),
        (json!({"stream_name": "v", "origin": "[2001:db8::2]:99"}), "[2001:db8::2]:99"),
        (json!({"stream_name": "m", "origin": "::ffff:10.0.0.1"}), "10.0.0.1"),
    ] {
        service.publish(body.clone()).await;
        let lookup = json!({"stream_name": body["stream_name"], "accept": ["other", "rtmp_pull"]});
        let text = service.post("/watcher_lookup", &lookup.to_string()).await.text().await.unwrap();
        let name = body["stream_name"].as_str().unwrap();
        assert_eq!(
            text,
            format!(
                "workflow ingest_{name} {{\n    rtmp_pull location=rtmp://{origin}/pull_source/{name} stream_name={name}\n}}\n"
            )
        );
    }
}

#[tokio::test]
async fn a_stream_is_pushed_by_one_node() {
    let service = Service::start().await;
    let sessions = [SessionId::random(), SessionId::random()];
    let claim = async |session: SessionId, node: &str, instance: SessionId| {
        let body =
            json!({"stream_name": "x", "session": session, "node": node, "instance": instance, "turn": 1});
        service.post("/push_claim", &body.to_string()).await
    };
    let instances = [SessionId::random(), SessionId::random()];
    let early = claim(sessions[0], "a", instances[0]).await;
    assert_eq!((early.status().as_u16(), &*header(&early, "retry-after")), (503, "1"));
    assert_eq!(error(early).await, "node 'a' is not heard yet: its heartbeats come first");
    for (node, instance) in ["a", "b"].into_iter().zip(instances) {
        let beat = Heartbeat { interval_ms: 5000, instance: Some(instance), ..Heartbeat::default() };
        let beat = serde_json::to_string(&beat).unwrap();
        assert_eq!(service.put(&format!("/nodes/{node}"), beat).await.status(), 200);
    }
    let early = claim(sessions[0], "a", instances[0]).await;
    assert_eq!((early.status().as_u16(), &*header(&early, "retry-after")), (409, "1"));
    assert_eq!(error(early).await, "stream 'x' is not registered for this publish yet");
    service.publish(json!({"stream_name": "x", "session": sessions[0], "node": "a"})).await;
    let granted = claim(sessions[0], "a", instances[0]).await;
    assert_eq!((granted.status().as_u16(), granted.text().await.unwrap()), (204, String::new()));
    service.publish(json!({"stream_name": "x", "session": sessions[1], "node": "b"})).await;
    let held = claim(sessions[1], "b", instances[1]).await;
    assert_eq!((held.status().as_u16(), &*header(&held, "retry-after")), (409, "1"));
    assert_eq!(
        error(held).await,
        "stream 'x' may still be pushed by node 'a', where it was published before"
    );
    let lost = claim(sessions[0], "a", instances[0]).await;
    assert_eq!(lost.status(), 410);
    assert_eq!(error(lost).await, "stream 'x': this publish was superseded by a newer one");
    let release = json!({"stream_name": "x", "session": sessions[0], "turn": 1}).to_string();
    for _ in 0..2 {
        assert_eq!(service.post("/push_release", &release).await.status(), 204);
    }
    assert_eq!(claim(sessions[1], "b", instances[1]).await.status(), 204);
    let many: Vec<_> =
        (0..=PUSHING_STREAMS).map(|_| json!({"stream_name": "x", "session": sessions[0]})).collect();
    let reply =
        service.put("/nodes/a", json!({"interval_ms": 5000, "still_pushing": many}).to_string()).await;
    assert_eq!(reply.status(), 400);
}

#[tokio::test]
async fn bad_bodies_get_a_reason() {
    let service = Service::start().await;
    let name = "the stream name has a character at position 2";
    for path in ["/publisher_lookup", "/watcher_lookup"] {
        for (body, status, reason) in [
            ("", 400, "the body is not valid"),
            ("stream_name=x", 400, "the body is not valid"),
            ("{}", 400, "missing field `stream_name`"),
            (r#"{"stream_name":7}"#, 400, "invalid type"),
            (r#"{"stream_name":""}"#, 400, "the stream name is empty"),
            (r#"{"stream_name":"a b"}"#, 400, name),
            (r#"{"stream_name":"a\n}\nworkflow w {"}"#, 400, name),
            (r#"{"stream_name":"a/../b"}"#, 400, "'..' path element"),
            (&format!(r#"{{"stream_name":"{}"}}"#, "n".repeat(256)), 400, "longer than 255"),
            (
                &format!(r#"{{"stream_name":"x","pad":"{}"}}"#, "n".repeat(16 << 10)),
                413,
                "larger than 16384 bytes",
            ),
            (&"[".repeat(10_000), 400, "the body is not valid"),
        ] {
            let reply = service.post(path, body).await;
            assert_eq!(reply.status(), status, "{path} {body}");
            let error = error(reply).await;
            assert!(error.contains(reason), "{path} {body}: {error}");
        }
    }
    for body in [
        json!({"stream_name": "x", "session": "ab"}),
        json!({"stream_name": "x", "origin": "a b"}),
        json!({"stream_name": "x", "rtmp_port": 0}),
        json!({"stream_name": "x", "rtmp_port": 65536}),
        json!({"stream_name": "x", "node": "a/b"}),
    ] {
        assert_eq!(service.post("/publisher_lookup", &body.to_string()).await.status(), 400, "{body}");
    }
    // Chunked, so that no length is announced.
    let chunks = futures::stream::iter((0..5000).map(|_| Ok::<_, std::io::Error>("x".repeat(1024))));
    let reply = service
        .client
        .post(service.at("/watcher_lookup"))
        .header("content-type", "application/json")
        .body(reqwest::Body::wrap_stream(chunks));
    assert_eq!(reply.send().await.unwrap().status(), 413);
    assert_eq!(service.watch("x").await.status(), 404, "it serves on");
}

#[tokio::test]
async fn wrong_paths_and_methods_are_refused_as_json() {
    let service = Service::start().await;
    for (method, path, status, allow) in [
        ("GET", "/publisher_lookup", 405, "POST, PUT"),
        ("DELETE", "/watcher_lookup", 405, "POST, PUT"),
        ("POST", "/streams", 405, "GET"),
        ("DELETE", "/events", 405, "GET"),
        ("GET", "/nodes/a", 405, "PUT, DELETE"),
        ("POST", "/watcher_lookup/x", 404, ""),
        ("GET", "/nodes/a/b", 404, ""),
        ("DELETE", "/nodes/a%20b", 400, ""),
    ] {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let reply = service.client.request(method, service.at(path)).send().await.unwrap();
        assert_eq!(reply.status(), status, "{path}");
        assert_eq!(header(&reply, "allow"), allow, "{path}");
        assert!(!error(reply).await.is_empty());
    }
}

#[tokio::test]
async fn the_newest_publish_wins_and_an_older_one_is_told() {
    let service = Service::start().await;
    let (old, new) = (SessionId::random(), SessionId::random());
    let lookup = |session, origin| json!({"stream_name": "x", "session": session, "origin": origin});
    let first = epoch(&service.publish(lookup(old, "a")).await);
    let second = epoch(&service.publish(lookup(new, "b")).await);
    assert!(second > first);
    let reply = service.post("/publisher_lookup", &lookup(old, "a").to_string()).await;
    assert_eq!(reply.status(), 409);
    assert_eq!(error(reply).await, "stream 'x': this publish was superseded by a newer one");
    assert_eq!(service.release("x", old).await, 204, "whether or not it still owned the name");
    let found = service.watch("x").await;
    assert_eq!((header(&found, "lb-origin"), epoch(&found)), ("b".into(), second));
    assert_eq!(service.release("x", new).await, 204);
    assert_eq!(service.watch("x").await.status(), 404);
    let metrics = service.metrics();
    for line in [
        "lb_reactor_lookups_total{kind=\"publisher\",result=\"ok\"} 2",
        "lb_reactor_lookups_total{kind=\"publisher\",result=\"refused\"} 1",
        "lb_reactor_lookups_total{kind=\"watcher\",result=\"ok\"} 1",
        "lb_reactor_lookups_total{kind=\"watcher\",result=\"unknown\"} 1",
        "lb_reactor_takeovers_total 1",
        "lb_reactor_streams 0",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}

#[tokio::test]
async fn first_wins_refuses_the_newcomer() {
    let settings = Settings { policy: Policy::FirstWins, ..settings() };
    let service = Service::start_with(Setup { settings, ..Setup::default() }).await;
    service.publish(json!({"stream_name": "x", "session": SessionId::random(), "origin": "a"})).await;
    let body = json!({"stream_name": "x", "session": SessionId::random(), "origin": "b"});
    let reply = service.post("/publisher_lookup", &body.to_string()).await;
    assert_eq!(reply.status(), 409);
    assert_eq!(error(reply).await, "stream 'x' is already published at a");
}

#[tokio::test]
async fn a_fresh_reactor_never_says_that_a_stream_does_not_exist() {
    let settings = Settings { warm_up: Duration::from_millis(1200), ..settings() };
    let service = Service::start_with(Setup { settings, ..Setup::default() }).await;
    let reply = service.watch("x").await;
    assert_eq!(
        (reply.status(), header(&reply, "retry-after").as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "2")
    );
    assert!(!error(reply).await.is_empty());
    let ready = service.get("/readyz").await;
    assert_eq!(ready.status(), 503);
    assert!(ready.text().await.unwrap().contains("registry: warming up"));
    service.publish(json!({"stream_name": "y"})).await;
    assert_eq!(service.watch("y").await.status(), 200, "what is known is answered at once");
    eventually(async || service.watch("x").await.status() == 404).await;
    assert_eq!(service.get("/readyz").await.status(), 200);
    assert_eq!(service.get("/livez").await.text().await.unwrap(), "ok");
}

#[tokio::test]
async fn a_token_is_needed_where_one_is_set() {
    let token = Some(Secret::new("s3cret").unwrap());
    let service = Service::start_with(Setup { token, ..Setup::default() }).await;
    for (method, path) in [
        ("POST", "/publisher_lookup"),
        ("POST", "/watcher_lookup"),
        ("POST", "/publisher_release"),
        ("PUT", "/nodes/a"),
        ("DELETE", "/nodes/a"),
        ("GET", "/nodes"),
        ("GET", "/streams"),
        ("GET", "/events"),
    ] {
        for authorization in [None, Some("Bearer wrong"), Some("Basic s3cret"), Some("s3cret")] {
            let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
            let mut request = service.client.request(method, service.at(path)).body(r#"{"stream_name":"x"}"#);
            if let Some(authorization) = authorization {
                request = request.header("authorization", authorization);
            }
            let reply = request.send().await.unwrap();
            assert_eq!(reply.status(), 401, "{path} {authorization:?}");
            assert_eq!(header(&reply, "www-authenticate"), "Bearer");
        }
    }
    let request = service.client.post(service.at("/publisher_lookup")).body(r#"{"stream_name":"x"}"#);
    assert_eq!(request.bearer_auth("s3cret").send().await.unwrap().status(), 200);
    assert_eq!(service.get("/readyz").await.status(), 200, "probes need none");
}

#[tokio::test]
async fn a_forwarded_address_is_believed_from_listed_proxies_only() {
    for (trusted, forwarded, origin) in [
        (vec![], "192.0.2.7", "127.0.0.1"),
        (vec!["10.0.0.0/8"], "192.0.2.7", "127.0.0.1"),
        (vec!["127.0.0.0/8"], "192.0.2.7", "192.0.2.7"),
        (vec!["127.0.0.0/8"], "203.0.113.1, 192.0.2.7", "192.0.2.7"),
        (vec!["127.0.0.0/8"], "2001:db8::7", "[2001:db8::7]"),
        (vec!["127.0.0.0/8"], "nonsense", "127.0.0.1"),
    ] {
        let service = Service::start_with(Setup { trusted: trusted.clone(), ..Setup::default() }).await;
        let request =
            service.client.post(service.at("/publisher_lookup")).header("x-forwarded-for", forwarded);
        let request = request.header("content-type", "application/json").body(r#"{"stream_name":"x"}"#);
        assert_eq!(request.send().await.unwrap().status(), 200);
        assert_eq!(header(&service.watch("x").await, "lb-origin"), origin, "{trusted:?} {forwarded}");
    }
}

#[tokio::test]
async fn lists_are_given_in_pages() {
    let service = Service::start().await;
    let names: Vec<String> = (0..1_203).map(|n| format!("s{n:04}")).collect();
    for (index, names) in names.chunks(401).enumerate() {
        let streams: Vec<Value> = names
            .iter()
            .map(|name| json!({"stream_name": name, "session": SessionId::random(), "epoch": 1}))
            .collect();
        service.beat(&format!("n{index}"), json!({"interval_ms": 5000, "streams": streams})).await;
    }
    let (mut seen, mut sizes, mut query) = (Vec::new(), Vec::new(), String::new());
    while sizes.len() < 5 {
        let page: StreamList = service.get(&format!("/streams{query}")).await.json().await.unwrap();
        sizes.push(page.streams.len());
        seen.extend(page.streams.iter().map(|stream| stream.stream_name.to_string()));
        let Some(next) = page.next else { break };
        query = format!("?limit=200&after={next}");
    }
    assert_eq!(sizes, [1000, 200, 3]);
    assert_eq!(seen, names);
    let nodes: NodeList = service.get("/nodes?limit=2").await.json().await.unwrap();
    assert_eq!((nodes.nodes.len(), nodes.next.as_ref().map(|node| node.as_str())), (2, Some("n1")));
    let nodes: NodeList = service.get("/nodes?after=n1").await.json().await.unwrap();
    assert_eq!((nodes.nodes.len(), nodes.next), (1, None));
    for bad in ["limit=0", "limit=1001", "limit=x", "after=a//b"] {
        assert_eq!(service.get(&format!("/streams?{bad}")).await.status(), 400, "{bad}");
    }
}

#[tokio::test]
async fn the_peers_of_a_node_that_drains_may_go_on_at_others_of_its_role() {
    let service = Service::start().await;
    for (node, origin, role, viewers, draining) in [
        ("a", "10.0.0.1", "playback", 5, false),
        ("b", "10.0.0.2", "playback", 90, false),
        ("c", "10.0.0.3", "playback", 0, true),
        ("d", "10.0.0.4", "ingest", 0, false),
        ("e", "10.0.0.5", "playback", 7, false),
    ] {
        let load = json!({"interval_ms": 5000, "origin": origin, "roles": [role], "viewers": viewers,
            "capacity": 100, "draining": draining});
        assert_eq!(service.put(&format!("/nodes/{node}"), load.to_string()).await.status(), 200);
    }
    let origins =
        async |path: &str| service.get(path).await.json::<Value>().await.unwrap()["origins"].clone();
    assert_eq!(origins("/nodes/a/successors?role=playback").await, json!(["10.0.0.5", "10.0.0.2"]));
    assert_eq!(origins("/nodes/x/successors?role=ingest").await, json!(["10.0.0.4"]));
    assert_eq!(origins("/nodes/d/successors?role=ingest").await, json!([]));
    for bad in ["/nodes/a/successors", "/nodes/a/successors?role=reactor"] {
        assert_eq!(service.get(bad).await.status(), 400, "{bad}");
    }
}

#[tokio::test]
async fn heartbeats_are_the_full_picture_of_a_node() {
    let service = Service::start().await;
    let (x, y) = (SessionId::random(), SessionId::random());
    let epoch = epoch(&service.publish(json!({"stream_name": "x", "session": x, "node": "n1"})).await);
    let reply = service
        .beat("n1", json!({"interval_ms": 5000, "rtmp_port": 1936, "viewers": 3, "roles": ["ingest"], "streams": [
            {"stream_name": "x", "session": x, "epoch": epoch}, {"stream_name": "y", "session": y, "epoch": 77}]}))
        .await;
    assert_eq!((reply.owned.len(), reply.superseded.len()), (2, 0));
    assert_eq!((reply.owned[0].epoch, reply.owned[1].epoch), (Some(epoch), Some(77)));
    assert_eq!(header(&service.watch("y").await, "lb-origin"), "127.0.0.1:1936");
    let streams: StreamList = service.get("/streams").await.json().await.unwrap();
    assert_eq!(streams.streams.iter().map(|s| s.stream_name.as_str()).collect::<Vec<_>>(), ["x", "y"]);
    assert!(streams.streams.iter().all(|s| s.lease_ms <= 15_000 && s.lease_ms > 10_000), "{streams:?}");
    let nodes: NodeList = service.get("/nodes").await.json().await.unwrap();
    assert_eq!((nodes.nodes[0].node.as_str(), nodes.nodes[0].heartbeat.viewers), ("n1", 3));
    assert_eq!((nodes.nodes[0].heartbeat.published, nodes.nodes[0].heartbeat.streams.len()), (2, 0));
    service.publish(json!({"stream_name": "x", "session": SessionId::random(), "node": "n2"})).await;
    let lost = service
        .beat("n1", json!({"interval_ms": 5000, "streams": [{"stream_name": "x", "session": x}]}))
        .await;
    assert_eq!(lost.superseded[0].session, x);
    let gone = service.client.delete(service.at("/nodes/n1")).send().await.unwrap();
    assert_eq!(gone.status(), 204);
    assert_eq!(service.watch("y").await.status(), 404);
    assert_eq!(service.watch("x").await.status(), 200, "another node's stream stays");
    for bad in [
        json!({}),
        json!({"interval_ms": 1, "rtmp_port": 0}),
        json!({"interval_ms": 1, "roles": vec!["r"; 17]}),
    ] {
        assert_eq!(service.put("/nodes/n1", bad.to_string()).await.status(), 400, "{bad}");
    }
}

#[tokio::test]
async fn the_biggest_heartbeat_is_taken_and_a_bigger_one_refused_with_a_reason() {
    let service = Service::start().await;
    let names = |count| (0..count).map(|i| format!("{i:03}{}", "n".repeat(252)));
    let body = |count| {
        let streams: Vec<_> = names(count)
            .map(|name| json!({"stream_name": name, "session": SessionId::random(), "epoch": 1_u64 << 32}))
            .collect();
        let ended: Vec<_> =
            names(count).map(|name| json!({"stream_name": name, "session": SessionId::random()})).collect();
        json!({"interval_ms": 5000, "instance": SessionId::random(), "published": 100_000, "streams": streams,
            "ended": ended, "origin": LONG_HOST, "roles": ["ingest"]})
    };
    let reply = service.beat("n1", body(HEARTBEAT_STREAMS)).await;
    assert_eq!((reply.owned.len(), reply.want_all), (HEARTBEAT_STREAMS, true));
    let reply = service.put("/nodes/n1", body(HEARTBEAT_STREAMS + 1).to_string()).await;
    assert_eq!(reply.status(), 400);
    let error = error(reply).await;
    assert!(error.starts_with("at most 500 streams and 500 ends of publishes are allowed"), "{error}");
    let reply = service.put("/nodes/n1", " ".repeat(HEARTBEAT_BODY_MAX + 1)).await;
    assert_eq!(reply.status(), 413);
}

#[tokio::test]
async fn a_node_is_asked_for_what_is_not_known_and_keeps_the_rest_without_naming_it() {
    let service = Service::start().await;
    let instance = SessionId::random();
    let stream = |name: &str| json!({"stream_name": name, "session": SessionId::random()});
    let body = |since: &str, streams: &[Value], complete: bool| {
        json!({"interval_ms": 200, "instance": instance, "since": since, "published": 3, "streams": streams,
            "complete": complete})
    };
    let (x, y, z) = (stream("x"), stream("y"), stream("z"));
    let asked = service.beat("n1", body("never heard of", std::slice::from_ref(&x), true)).await;
    assert!(asked.want_all, "most of the list is not known, whatever the node thinks");
    let first = service.beat("n1", body(&asked.since, &[x.clone(), y.clone()], false)).await;
    let last = service.beat("n1", body(&first.since, &[z], true)).await;
    assert!(!first.want_all && !last.want_all, "{first:?} {last:?}");
    // Kept for longer than the lease by heartbeats that say nothing of them.
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(900) {
        let reply = service.beat("n1", body(&last.since, &[], false)).await;
        assert!(!reply.want_all && reply.owned.is_empty() && reply.superseded.is_empty(), "{reply:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for name in ["x", "y", "z"] {
        assert_eq!(service.watch(name).await.status(), 200);
    }
    let ended = json!({"interval_ms": 200, "instance": instance, "since": last.since, "published": 2,
        "ended": [{"stream_name": "y", "session": y["session"]}]});
    service.beat("n1", ended).await;
    assert_eq!(service.watch("y").await.status(), 404, "an end that a heartbeat tells is one");
    // Asked anew, a list without x ends it.
    let anew = service.beat("n1", body("", &[], false)).await;
    assert!(anew.want_all);
    assert_eq!(service.watch("x").await.status(), 200, "until the list is there, the one before counts");
    let whole = json!({"interval_ms": 200, "instance": instance, "since": anew.since, "published": 1,
        "streams": [stream("w")], "complete": true});
    assert!(!service.beat("n1", whole).await.want_all);
    assert_eq!(
        (service.watch("w").await.status(), service.watch("x").await.status()),
        (StatusCode::OK, StatusCode::NOT_FOUND)
    );
    eventually(async || service.watch("w").await.status() == 404).await;
    assert!(service.get("/nodes").await.json::<NodeList>().await.unwrap().nodes.is_empty(), "it fell silent");
}

#[tokio::test]
async fn what_an_earlier_process_says_late_ends_nothing_of_its_successor() {
    let service = Service::start().await;
    let (before, after) = (SessionId::random(), SessionId::random());
    let body = |instance, name, since| {
        json!({"interval_ms": 5000, "instance": instance, "published": 1, "complete": true, "since": since,
            "streams": [{"stream_name": name, "session": instance}]})
    };
    let asked = service.beat("n1", body(before, "x", "")).await;
    service.beat("n1", body(before, "x", &asked.since)).await;
    let asked = service.beat("n1", body(after, "y", "")).await;
    assert!(asked.want_all, "it has to show that it is no late call");
    assert_eq!(service.watch("x").await.status(), 200);
    let reply = service.beat("n1", body(after, "y", &asked.since)).await;
    assert_eq!((reply.owned.len(), reply.want_all), (1, false));
    assert_eq!(service.watch("x").await.status(), 404, "the streams of the one before ended with it");
    let late = service.put("/nodes/n1", body(before, "x", "").to_string()).await;
    assert_eq!(late.status(), 409);
    assert_eq!(error(late).await, "node 'n1': another process with this name has taken its place");
    let sign_off = async |query: &str| {
        service.client.delete(service.at(&format!("/nodes/n1{query}"))).send().await.unwrap().status()
    };
    assert_eq!(sign_off(&format!("?instance={before}")).await, 204);
    assert_eq!(service.watch("y").await.status(), 200);
    assert_eq!(service.get("/nodes").await.json::<NodeList>().await.unwrap().nodes.len(), 1);
    assert_eq!(sign_off("?instance=nonsense").await, 400);
    assert_eq!(sign_off(&format!("?instance={after}")).await, 204);
    assert_eq!(service.watch("y").await.status(), 404);
    let again = service.put("/nodes/n2", body(after, "y", "").to_string()).await;
    assert_eq!(
        again.json::<HeartbeatReply>().await.unwrap().superseded.len(),
        1,
        "it ended with its process"
    );
}

#[tokio::test]
async fn subscribers_hear_hello_and_then_each_change() {
    let service = Service::start().await;
    let mut events = Events::open(&service).await;
    assert_eq!(events.next().await.unwrap(), "event:hello\ndata:{}");
    let session = SessionId::random();
    let epoch =
        epoch(&service.publish(json!({"stream_name": "x", "session": session, "origin": "a:7"})).await);
    assert_eq!(
        events.next().await.unwrap(),
        format!("event:change\ndata:{{\"stream_name\":\"x\",\"origin\":\"a:7\",\"epoch\":{epoch}}}")
    );
    service.release("x", session).await;
    assert_eq!(
        events.next().await.unwrap(),
        format!("event:change\ndata:{{\"stream_name\":\"x\",\"epoch\":{epoch}}}")
    );
    assert!(events.next().await.unwrap().starts_with(':'), "silence is broken by a comment");
    service.stop.cancel();
    assert_eq!(events.next().await, None, "the stream ends with the server");
    service.task.await.unwrap();
}

#[tokio::test]
async fn a_subscriber_that_does_not_read_is_told_that_it_missed_something() {
    let service = Service::start().await;
    let mut slow = Events::open(&service).await;
    assert_eq!(slow.next().await.unwrap(), "event:hello\ndata:{}");
    let session = SessionId::random();
    let beat = |i| {
        let mut streams = Vec::new();
        for n in 0..HEARTBEAT_STREAMS {
            streams.push(json!({"stream_name": format!("{n}-{}", "n".repeat(200)), "session": session}));
        }
        json!({"interval_ms": 5000, "origin": format!("10.1.{}.{}", i / 256, i % 256), "streams": streams})
    };
    for i in 0..120 {
        service.beat("n1", beat(i)).await;
    }
    let hello = async { while slow.next().await.expect("the stream goes on") != "event:hello\ndata:{}" {} };
    tokio::time::timeout(Duration::from_secs(20), hello).await.expect("a second hello");
}

#[tokio::test]
async fn slow_peers_cost_their_own_connection() {
    let head_deadline = Duration::from_millis(300);
    let limits = Limits { connections: 4, head_deadline, ..Limits::default() };
    let service = Service::start_with(Setup { limits, ..Setup::default() }).await;
    let mut slow = Vec::new();
    for _ in 0..4 {
        let mut stream = TcpStream::connect(service.addr).await.unwrap();
        stream.write_all(b"POST /watcher_lookup HTTP/1.1\r\nhost: x\r\nx: ").await.unwrap();
        slow.push(stream);
    }
    assert_eq!(service.try_watch("x").await, Some(404), "a fifth is served in the place of the oldest");
    let mut oldest = slow.remove(0);
    let closed = tokio::time::timeout(Duration::from_secs(1), oldest.read(&mut [0; 8])).await;
    assert!(matches!(closed.expect("given up at once"), Ok(0) | Err(_)));
    for mut stream in slow {
        let end = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut Vec::new())).await;
        end.expect("closed at the deadline").ok();
    }
    eventually(async || service.try_watch("x").await == Some(404)).await;
}

#[tokio::test]
async fn garbage_and_half_requests_do_not_hurt_the_server() {
    let service = Service::start().await;
    for bytes in [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(),
        b"\x03\x00\x00\x00\x00",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /watcher_lookup HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999\r\n\r\n{",
        b"POST /watcher_lookup HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{\"stream",
        b"POST /watcher_lookup HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        &[b'a'; 100_000],
    ] {
        let mut stream = TcpStream::connect(service.addr).await.unwrap();
        stream.write_all(bytes).await.ok();
        stream.shutdown().await.ok();
        let end = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut Vec::new())).await;
        end.expect("the connection ends").ok();
    }
    assert_eq!(service.watch("x").await.status(), 404);
}

#[tokio::test]
async fn nobody_holds_up_a_stop() {
    let service = Service::start().await;
    let mut events = Events::open(&service).await;
    events.next().await.unwrap();
    service.watch("x").await;
    service.watch("y").await;
    let begin = Instant::now();
    service.stop.cancel();
    service.task.await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(1), "idle and streaming: {:?}", begin.elapsed());
    let service = Service::start_with(Setup {
        limits: Limits { stop_deadline: Duration::from_millis(200), ..Limits::default() },
        ..Setup::default()
    })
    .await;
    let mut half_head = TcpStream::connect(service.addr).await.unwrap();
    half_head.write_all(b"GET /li").await.unwrap();
    let mut half_body = TcpStream::connect(service.addr).await.unwrap();
    half_body
        .write_all(b"POST /watcher_lookup HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{")
        .await
        .unwrap();
    service.watch("x").await;
    let begin = Instant::now();
    service.stop.cancel();
    service.task.await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(2), "half requests: {:?}", begin.elapsed());
}

#[tokio::test]
async fn a_port_in_use_is_an_error_and_a_stopped_server_s_port_is_free() {
    let service = Service::start().await;
    service.watch("x").await;
    assert_eq!(listen::bind(service.addr).unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
    service.stop.cancel();
    service.task.await.unwrap();
    listen::bind(service.addr).unwrap();
}

#[tokio::test]
async fn a_template_of_ones_own_is_used() {
    let template =
        Template::parse("w {\n  {pull} {ip_address} {stream_name} ${x}\n}").err().unwrap().to_string();
    assert!(template.starts_with("line 2: '{x}' is not a placeholder"), "{template}");
    let template = Template::parse("w { {ip_address} {stream_name} }").unwrap();
    let service = Service::start_with(Setup { template, ..Setup::default() }).await;
    service.publish(json!({"stream_name": "x", "rtmp_port": 5})).await;
    assert_eq!(service.watch("x").await.text().await.unwrap(), "w { 127.0.0.1:5 x }");
}

struct TwoWorkflows;

impl admin::Workflows for TwoWorkflows {
    fn names(&self) -> BoxFuture<'static, Vec<String>> {
        async { vec!["live".to_owned()] }.boxed()
    }
    fn one(&self, name: String) -> BoxFuture<'static, Option<Value>> {
        async move { (name == "ingest_a/b").then(|| json!({ "name": name })) }.boxed()
    }
    fn put(&self, _: String) -> BoxFuture<'static, Result<Vec<String>, String>> {
        async { Err("no".to_owned()) }.boxed()
    }
    fn remove(&self, _: String) -> BoxFuture<'static, bool> {
        async { false }.boxed()
    }
}

#[tokio::test]
async fn the_admin_port_shows_health_metrics_and_workflows() {
    let health = Health::new();
    let rtmp = health.register("rtmp");
    let service = Service::serve("127.0.0.1:0", Limits::default(), CancellationToken::new(), {
        admin::routes(admin::Admin {
            health,
            metrics: Arc::new(|| "lb_up 1\n".into()),
            workflows: Some(Arc::new(TwoWorkflows)),
            peers: None,
            log: admin::Log { get: || "info".to_owned(), set: |_| Ok(()) },
            drain: CancellationToken::new(),
            door: Door::default(),
        })
    })
    .await;
    assert_eq!(service.get("/livez").await.status(), 200);
    let unready = service.get("/readyz").await;
    assert_eq!(unready.status(), 503);
    assert_eq!(unready.json::<Value>().await.unwrap()["reasons"], json!(["rtmp: starting"]));
    rtmp.set_ready();
    let ready = service.get("/readyz").await;
    assert_eq!(ready.status(), 200);
    assert_eq!(ready.json::<Value>().await.unwrap()["ready"], json!(true));
    let metrics = service.get("/metrics").await;
    assert!(header(&metrics, "content-type").starts_with("text/plain; version=0.0.4"));
    assert_eq!(metrics.text().await.unwrap(), "lb_up 1\n");
    let names = service.get("/workflows").await.json::<Value>().await.unwrap();
    assert_eq!(names, json!({ "workflows": ["live"] }));
    for path in ["/workflows/ingest_a/b", "/workflows/ingest_a%2Fb"] {
        assert_eq!(service.get(path).await.json::<Value>().await.unwrap()["name"], "ingest_a/b");
    }
    for path in ["/workflows/no", "/workflows/", "/x"] {
        let reply = service.get(path).await;
        assert_eq!(reply.status(), 404, "{path}");
        assert!(!error(reply).await.is_empty());
    }
    assert_eq!(service.post("/metrics", "").await.status(), 405);
}

#[tokio::test]
async fn two_reactors_on_one_store_are_one() {
    let store = Arc::new(Memory::new());
    let (one, two) = (Service::on(&store).await, Service::on(&store).await);
    let mut events = Events::open(&two).await;
    assert_eq!(events.next().await.unwrap(), "event:hello\ndata:{}");
    let (old, new) = (SessionId::random(), SessionId::random());
    let first = epoch(&one.publish(json!({"stream_name": "x", "session": old, "origin": "a"})).await);
    assert_eq!(header(&two.watch("x").await, "lb-origin"), "a");
    assert_eq!(
        events.next().await.unwrap(),
        format!("event:change\ndata:{{\"stream_name\":\"x\",\"origin\":\"a\",\"epoch\":{first}}}")
    );
    let second = epoch(&two.publish(json!({"stream_name": "x", "session": new, "origin": "b"})).await);
    assert!(second > first);
    let body = json!({"stream_name": "x", "session": old, "origin": "a"}).to_string();
    assert_eq!(one.post("/publisher_lookup", &body).await.status(), 409);
    two.beat(
        "n2",
        json!({"interval_ms": 5000, "streams": [{"stream_name": "x", "session": new, "epoch": second}]}),
    )
    .await;
    let streams: StreamList = one.get("/streams").await.json().await.unwrap();
    assert_eq!((streams.streams.len(), streams.streams[0].epoch), (1, second));
    let nodes: NodeList = one.get("/nodes").await.json().await.unwrap();
    assert_eq!(nodes.nodes[0].heartbeat.published, 1);
    assert_eq!(one.release("x", new).await, 204);
    eventually(async || two.watch("x").await.status() == 404).await;
}

#[tokio::test]
async fn a_store_that_dies_and_comes_back_empty_costs_no_stream() {
    let store = Unsteady::start();
    let service = Service::on(&store).await;
    let session = SessionId::random();
    let beat = async |epoch: u64| {
        let streams = json!([{"stream_name": "x", "session": session, "epoch": epoch}]);
        service.beat("n1", json!({"interval_ms": 5000, "streams": streams})).await
    };
    beat(41).await;
    assert_eq!(service.watch("x").await.status(), 200);
    store.kill();
    let begin = Instant::now();
    for _ in 0..20 {
        assert_eq!(service.watch("x").await.status(), 200, "what was known is answered");
        let unknown = service.watch("y").await;
        assert_eq!((unknown.status().as_u16(), header(&unknown, "retry-after").as_str()), (503, "1"));
    }
    assert!(begin.elapsed() < Duration::from_secs(2), "nobody waits for a dead store: {:?}", begin.elapsed());
    assert_eq!(service.post("/publisher_lookup", r#"{"stream_name":"z"}"#).await.status(), 503);
    let renewal = json!({"stream_name": "x", "session": session, "node": "n1"}).to_string();
    assert_eq!(service.post("/publisher_lookup", &renewal).await.status(), 200, "a renewal is no news");
    let reply = beat(41).await;
    assert_eq!((reply.owned.len(), reply.superseded.len()), (1, 0), "nobody loses a name in an outage");
    let ready = service.get("/readyz").await;
    assert_eq!(ready.status(), 200);
    assert!(ready.text().await.unwrap().contains("store cannot be reached"));
    let mut events = Events::open(&service).await;
    assert_eq!(events.next().await.unwrap(), "event:hello\ndata:{}");
    store.restart();
    assert_eq!(events.next().await.unwrap(), "event:hello\ndata:{}", "what was missed is said");
    for _ in 0..20 {
        assert_eq!(service.watch("x").await.status(), 200);
        assert_ne!(service.watch("y").await.status(), 404, "not before it is whole");
    }
    assert_eq!(beat(41).await.owned[0].epoch, Some(41), "the lease is back, with its epoch");
    eventually(async || service.watch("y").await.status() == 404).await;
    assert_eq!(service.watch("x").await.status(), 200);
    let epoch = epoch(&service.publish(json!({"stream_name": "x", "session": SessionId::random()})).await);
    assert!(epoch > 41, "epochs never go back");
}

#[tokio::test]
async fn a_reactor_that_joins_a_living_store_is_whole_at_once() {
    let store = Arc::new(Memory::new());
    let one = Service::on(&store).await;
    eventually(async || one.watch("y").await.status() == 404).await;
    let two = Service::on(&store).await;
    assert_eq!(two.watch("y").await.status(), 404);
}

#[tokio::test]
async fn a_store_that_is_away_at_the_start_is_said_and_found_later() {
    let store = Unsteady::start();
    store.kill();
    let service = Service::on(&store).await;
    let ready = service.get("/readyz").await;
    assert_eq!(ready.status(), 200);
    assert!(ready.text().await.unwrap().contains("store cannot be reached"));
    assert_eq!(service.watch("x").await.status(), 503);
    assert_eq!(service.post("/publisher_lookup", r#"{"stream_name":"x"}"#).await.status(), 503);
    store.restart();
    service.publish(json!({"stream_name": "x", "session": SessionId::random()})).await;
    assert_eq!(service.watch("x").await.status(), 200);
}

/// The longest label of a host name.
const LONG_HOST: &str = "ooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooo";

/// What a service under test differs in.
struct Setup {
    listen: &'static str,
    settings: Settings,
    limits: Limits,
    token: Option<Secret>,
    trusted: Vec<&'static str>,
    origins: Vec<&'static str>,
    door: Door,
    template: Template,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            listen: "127.0.0.1:0",
            settings: settings(),
            limits: Limits::default(),
            token: None,
            trusted: Vec::new(),
            // Tests that are about something else register what they like.
            origins: vec!["0.0.0.0/0", "::/0", "a", "b", LONG_HOST, "ingest-1.example.org"],
            door: Door::default(),
            template: Template::default(),
        }
    }
}

fn settings() -> Settings {
    Settings { warm_up: Duration::ZERO, ..Settings::default() }
}

struct Service {
    addr: SocketAddr,
    url: String,
    client: Client,
    metrics: prometheus::Registry,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Service {
    async fn start() -> Service {
        Service::start_with(Setup::default()).await
    }

    async fn start_with(setup: Setup) -> Service {
        let store = Arc::new(Memory::new());
        Service::over(store, setup).await
    }

    /// On a store that it shares, with a warm-up of 400 ms.
    async fn on<S: Store>(store: &Arc<S>) -> Service {
        let settings = Settings { warm_up: Duration::from_millis(400), ..settings() };
        Service::over(store.clone(), Setup { settings, ..Setup::default() }).await
    }

    async fn over(store: Arc<dyn Store>, setup: Setup) -> Service {
        let registry = Registry::start(store, setup.settings);
        let (metrics, stop) = (prometheus::Registry::new(), CancellationToken::new());
        let reactor = Reactor {
            observed: Default::default(),
            metrics: ReactorMetrics::register(&metrics, &registry).unwrap(),
            registry,
            template: setup.template,
            door: Door {
                token: setup.token,
                trusted_proxies: setup.trusted.iter().map(|net| net.parse().unwrap()).collect(),
                allowed_origins: setup.origins.iter().map(|origin| origin.parse().unwrap()).collect(),
                ..setup.door
            },
            health: Health::new(),
            stop: stop.clone(),
        };
        let service = Service::serve(setup.listen, setup.limits, stop, reactor::routes(reactor)).await;
        Service { metrics, ..service }
    }

    async fn serve(listen: &str, limits: Limits, stop: CancellationToken, routes: Routes) -> Service {
        static CRYPTO: Once = Once::new();
        CRYPTO.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
        let listener = listen::bind(listen.parse().unwrap()).unwrap();
        let addr = listener.local_addr().unwrap();
        let counted = Arc::new(Metrics::new().unwrap());
        let task = tokio::spawn(server::serve(
            Server { tls: None, limits, metrics: counted.clone() },
            listener,
            routes,
            stop.clone(),
        ));
        let client = Client::builder().timeout(Duration::from_secs(10)).no_proxy().build().unwrap();
        Service {
            addr,
            url: format!("http://{addr}"),
            client,
            metrics: prometheus::Registry::new(),
            stop,
            task,
        }
    }

    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    async fn get(&self, path: &str) -> Response {
        self.client.get(self.at(path)).send().await.unwrap()
    }

    async fn post(&self, path: &str, body: &str) -> Response {
        let request = self.client.post(self.at(path)).header("content-type", "application/json");
        request.body(body.to_owned()).send().await.unwrap()
    }

    async fn put(&self, path: &str, body: String) -> Response {
        let request = self.client.put(self.at(path)).header("content-type", "application/json");
        request.body(body).send().await.unwrap()
    }

    async fn publish(&self, body: Value) -> Response {
        let reply = self.post("/publisher_lookup", &body.to_string()).await;
        assert_eq!(reply.status(), 200, "{body}");
        reply
    }

    async fn watch(&self, stream: &str) -> Response {
        self.post("/watcher_lookup", &json!({ "stream_name": stream }).to_string()).await
    }

    async fn try_watch(&self, stream: &str) -> Option<u16> {
        let body = json!({ "stream_name": stream }).to_string();
        Some(
            self.client
                .post(self.at("/watcher_lookup"))
                .header("content-type", "application/json")
                .body(body)
                .send()
                .await
                .ok()?
                .status()
                .as_u16(),
        )
    }

    async fn release(&self, stream: &str, session: SessionId) -> StatusCode {
        self.post("/publisher_release", &json!({"stream_name": stream, "session": session}).to_string())
            .await
            .status()
    }

    async fn beat(&self, node: &str, heartbeat: Value) -> HeartbeatReply {
        serde_json::from_value::<Heartbeat>(heartbeat.clone()).expect("a heartbeat");
        let reply = self.put(&format!("/nodes/{node}"), heartbeat.to_string()).await;
        assert_eq!(reply.status(), 200);
        reply.json().await.unwrap()
    }

    fn metrics(&self) -> String {
        prometheus::TextEncoder::new().encode_to_string(&self.metrics.gather()).unwrap()
    }
}

/// An event stream, as blocks of text between empty lines.
struct Events {
    body: futures::stream::BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    text: String,
}

impl Events {
    async fn open(service: &Service) -> Events {
        let client = Client::builder().no_proxy().build().unwrap();
        let reply = client.get(service.at("/events")).send().await.unwrap();
        assert_eq!(reply.status(), 200);
        assert_eq!(header(&reply, "content-type"), "text/event-stream");
        Events { body: reply.bytes_stream().boxed(), text: String::new() }
    }

    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let block = block.to_owned();
                self.text = rest.to_owned();
                return Some(block);
            }
            let chunk =
                tokio::time::timeout(Duration::from_secs(10), self.body.next()).await.expect("an event");
            self.text.push_str(std::str::from_utf8(&chunk?.ok()?).unwrap());
        }
    }
}

fn header(reply: &Response, name: &str) -> String {
    reply.headers().get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
}

fn epoch(reply: &Response) -> u64 {
    header(reply, "lb-epoch").parse().expect("an epoch")
}

async fn error(reply: Response) -> String {
    assert!(header(&reply, "content-type").starts_with("application/json"));
    reply.json::<Value>().await.unwrap()["error"].as_str().unwrap().to_owned()
}

/// A store that goes away, and comes back with an empty memory.
#[derive(Debug)]
struct Unsteady {
    memory: Mutex<Option<Arc<Memory>>>,
    announcements: broadcast::Sender<Bytes>,
}

impl Unsteady {
    fn start() -> Arc<Self> {
        let memory = Mutex::new(Some(Arc::new(Memory::new())));
        Arc::new(Unsteady { memory, announcements: broadcast::Sender::new(64) })
    }

    fn kill(&self) {
        *self.memory.lock().unwrap() = None;
    }

    fn restart(&self) {
        *self.memory.lock().unwrap() = Some(Arc::new(Memory::new()));
        self.announcements.send(Bytes::new()).ok();
    }

    fn reach(&self) -> Result<Arc<Memory>, Unreachable> {
        self.memory.lock().unwrap().clone().ok_or(Unreachable)
    }
}

impl Store for Unsteady {
    fn read(&self, keys: Vec<Key>) -> BoxFuture<'_, Result<Vec<Read>, Unreachable>> {
        async { self.reach()?.read(keys).await }.boxed()
    }

    fn write(&self, writes: Vec<Write>) -> BoxFuture<'_, Result<Vec<Written>, Unreachable>> {
        async {
            let announcements: Vec<_> = writes.iter().map(|write| write.announce.clone()).collect();
            let written = self.reach()?.write(writes).await?;
            for (announcement, written) in announcements.into_iter().zip(&written) {
                if let (Some(announcement), Written::Done) = (announcement, written) {
                    self.announcements.send(announcement).ok();
                }
            }
            Ok(written)
        }
        .boxed()
    }

    fn list(&self, kind: Kind) -> BoxFuture<'_, Result<Vec<(Key, Read)>, Unreachable>> {
        async move { self.reach()?.list(kind).await }.boxed()
    }

    fn announcements(&self) -> broadcast::Receiver<Bytes> {
        self.announcements.subscribe()
    }

    fn memory(&self) -> Option<Age> {
        self.reach().ok()?.memory()
    }
}

async fn eventually(mut condition: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), wait).await.expect("within 5 s");
}

#[tokio::test]
async fn nodes_without_a_token_are_known_by_where_they_stand() {
    let door = Door { trusted_nodes: vec!["10.0.0.0/8".parse().unwrap()], ..Door::default() };
    let setup = || Setup { door: door.clone(), trusted: vec!["127.0.0.1/32"], ..Setup::default() };
    let service = Service::start_with(setup()).await;
    let ask = |from: &'static str, token: Option<&'static str>| {
        let request = service.client.post(service.at("/publisher_lookup")).header("x-forwarded-for", from);
        let request = request.header("content-type", "application/json").body(r#"{"stream_name":"x"}"#);
        token.into_iter().fold(request, reqwest::RequestBuilder::bearer_auth).send()
    };
    assert_eq!(ask("10.1.2.3", None).await.unwrap().status(), 200);
    let refused = ask("192.0.2.1", None).await.unwrap();
    assert_eq!(refused.status(), 403);
    assert_eq!(header(&refused, "lb-node-refused"), "1");
    assert_eq!(error(refused).await, "192.0.2.1 is not among the trusted nodes");
    assert_eq!(service.get("/readyz").await.status(), 200);

    let service = Service::start_with(Setup { token: Some(Secret::new("s3cret").unwrap()), ..setup() }).await;
    let ask = |from: &'static str, token: Option<&'static str>| {
        let request = service.client.post(service.at("/publisher_lookup")).header("x-forwarded-for", from);
        let request = request.header("content-type", "application/json").body(r#"{"stream_name":"x"}"#);
        token.into_iter().fold(request, reqwest::RequestBuilder::bearer_auth).send()
    };
    assert_eq!(ask("10.1.2.3", None).await.unwrap().status(), 200);
    assert_eq!(ask("192.0.2.1", Some("s3cret")).await.unwrap().status(), 200);
    assert_eq!(ask("192.0.2.1", None).await.unwrap().status(), 401);
}

#[tokio::test]
async fn a_browser_cannot_be_made_to_call() {
    let service = Service::start().await;
    let post = |headers: &[(&'static str, &'static str)]| {
        let request = service.client.post(service.at("/publisher_lookup")).body(r#"{"stream_name":"x"}"#);
        headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).send()
    };
    const JSON: (&str, &str) = ("content-type", "application/json");
    const TEXT: (&str, &str) = ("content-type", "text/plain");
    assert_eq!(post(&[JSON]).await.unwrap().status(), 200);
    assert_eq!(post(&[("content-type", "application/json; charset=utf-8")]).await.unwrap().status(), 200);
    for (headers, status) in [
        (&[][..], 415),
        (&[("content-type", "application/x-www-form-urlencoded")], 415),
        (&[TEXT, ("origin", "https://evil.example")], 403),
        (&[TEXT, ("origin", "null")], 403),
        (&[TEXT, ("sec-fetch-mode", "no-cors")], 403),
        (&[TEXT, ("referer", "https://evil.example/")], 403),
        (&[TEXT, ("host", "evil.example")], 403),
        (&[JSON, ("origin", "https://evil.example")], 403),
        (&[JSON, ("sec-fetch-site", "cross-site")], 403),
        (&[JSON, ("host", "evil.example")], 403),
    ] {
        let reply = post(headers).await.unwrap();
        assert_eq!(reply.status(), status, "{headers:?}");
        assert!(!error(reply).await.is_empty());
    }
    let put = service.client.put(service.at("/publisher_lookup")).header("origin", "https://evil.example");
    assert_eq!(put.body("x").send().await.unwrap().status(), 403);
    let beat = service.client.post(service.at("/publisher_release")).header("content-type", "text/plain");
    assert_eq!(beat.body("x").send().await.unwrap().status(), 415, "only lookups are made as plain text");
    let rebound = service.client.get(service.at("/streams")).header("host", "evil.example:8080");
    assert_eq!(rebound.send().await.unwrap().status(), 403);
    let embedded = service.client.get(service.at("/events")).header("sec-fetch-site", "cross-site");
    assert_eq!(embedded.send().await.unwrap().status(), 403);
}

#[tokio::test]
async fn a_stranger_registers_its_own_address_only_and_sees_no_session() {
    let service = Service::start_with(Setup { origins: Vec::new(), ..Setup::default() }).await;
    let body = json!({"stream_name": "x", "session": SessionId::random(), "origin": "10.0.0.5:6379"});
    let refused = service.post("/publisher_lookup", &body.to_string()).await;
    assert_eq!(refused.status(), 403);
    assert!(error(refused).await.contains("only 127.0.0.1 itself can be registered"));
    let beat = json!({"interval_ms": 5000, "origin": "10.0.0.5:6379"}).to_string();
    assert_eq!(service.put("/nodes/n", beat).await.status(), 403);
    service
        .publish(json!({"stream_name": "x", "session": SessionId::random(), "origin": "127.0.0.1:1999"}))
        .await;
    let streams: StreamList = service.get("/streams").await.json().await.unwrap();
    assert_eq!((streams.streams.len(), streams.streams[0].session), (1, None));

    let token = Some(Secret::new("s3cret").unwrap());
    let service = Service::start_with(Setup { token, origins: Vec::new(), ..Setup::default() }).await;
    let with_token = |request: reqwest::RequestBuilder| request.bearer_auth("s3cret").send();
    let claim = service.client.post(service.at("/publisher_lookup")).body(body.to_string());
    assert_eq!(with_token(claim).await.unwrap().status(), 200);
    let streams: StreamList =
        with_token(service.client.get(service.at("/streams"))).await.unwrap().json().await.unwrap();
    assert!(streams.streams[0].session.is_some());
}

#[tokio::test]
async fn idle_sockets_and_subscribers_of_strangers_keep_no_node_out() {
    raise_descriptor_limit();
    let token = Some(Secret::new("s3cret").unwrap());
    let service = Service::start_with(Setup { token, ..Setup::default() }).await;
    // A node that is there before, with an event stream.
    let subscribe = service.client.get(service.at("/events")).bearer_auth("s3cret").send();
    let mut events = subscribe.await.unwrap().bytes_stream();
    assert!(events.next().await.unwrap().unwrap().starts_with(b"event:hello"));
    let mut idle = Vec::new();
    for _ in 0..2100 {
        idle.push(TcpStream::connect(service.addr).await.unwrap());
    }
    let started = Instant::now();
    let fresh = Client::builder().timeout(Duration::from_secs(10)).no_proxy().build().unwrap();
    let beat = fresh.put(service.at("/nodes/n1")).bearer_auth("s3cret").body(r#"{"interval_ms":5000}"#);
    assert_eq!(beat.send().await.unwrap().status(), 200);
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    let claim =
        fresh.post(service.at("/publisher_lookup")).bearer_auth("s3cret").body(r#"{"stream_name":"x"}"#);
    assert_eq!(claim.send().await.unwrap().status(), 200);
    let change = tokio::time::timeout(Duration::from_secs(5), events.next()).await.unwrap().unwrap().unwrap();
    assert!(change.starts_with(b"event:change"), "the node that was there hears on: {change:?}");
}

#[tokio::test]
async fn who_is_known_is_not_given_up_for_a_stranger() {
    let limits = Limits { connections: 2, ..Limits::default() };
    let token = Some(Secret::new("s3cret").unwrap());
    let service = Service::start_with(Setup { limits, token, ..Setup::default() }).await;
    let mut known = Vec::new();
    for _ in 0..2 {
        let subscribe = service.client.get(service.at("/events")).bearer_auth("s3cret").send();
        known.push(subscribe.await.unwrap().bytes_stream());
    }
    let mut stranger = TcpStream::connect(service.addr).await.unwrap();
    let closed = tokio::time::timeout(Duration::from_secs(5), stranger.read(&mut [0; 8])).await;
    assert!(matches!(closed.expect("refused at once"), Ok(0) | Err(_)));
    for events in &mut known {
        assert!(events.next().await.unwrap().unwrap().starts_with(b"event:hello"));
    }
}

/// 2,100 connections take as many descriptors on both sides.
fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live value of the right type.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
    }
}
