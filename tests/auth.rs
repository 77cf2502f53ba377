//! Who may publish and play: real nodes, real ffmpeg, real web servers, tokens by OBS's way of writing and by ffmpeg's.

// A test says what it expects by `unwrap` and indexing; a panic is its verdict.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;
// Its other deeds are for other tests.
#[allow(dead_code)]
#[path = "reactor_client/server.rs"]
mod web;

use common::ffmpeg::{self, Clip};
use common::lb::{Lb, run};
use common::publisher::{Media, Publisher};
use common::secrets::Secrets;
use common::viewer::Viewer;
use common::{SOON, endpoint, http, poll, shown, wait_for};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;
use web::{Deed, Server};

fn start(secrets: &Secrets, more: &[&str]) -> Lb {
    Lb::start(&[&["--role", "all", "--auth-jwt-keys", &secrets.file("jwt.keys")], more].concat())
}

/// Waits until a publisher is sent away, and says why.
fn refusal(publisher: &Publisher) -> String {
    publisher.wait_for_end(SOON).1.join("; ")
}

#[test]
fn a_token_lets_ffmpeg_and_obs_publish_and_play_what_it_names() {
    let secrets = Secrets::new();
    let lb = start(&secrets, &[]);
    let token = secrets.publish("cam/1");
    let _publisher = ffmpeg::publish(Clip::Alpha, &lb.rtmp_url("ingest", &format!("cam/1?token={token}")));
    let play = secrets.sign("jwt.keys", &["play", "cam/*"]);
    ffmpeg::record(&lb.rtmp_url("live", &format!("cam/1?token={play}")), 2).assert_shows(Clip::Alpha, 2);

    // OBS is told a server and a key; the token may stand behind either.
    for (app, key) in [("ingest".to_owned(), "obs?token="), ("ingest?token=".to_owned(), "obs")] {
        let token = secrets.publish("obs");
        let fill = |text: &str| text.replace("token=", &format!("token={token}"));
        let publisher = Publisher::start(lb.rtmp(), &fill(&app), &fill(key), Media::default());
        publisher.wait_for_keyframe();
        publisher.leave();
    }
}

#[test]
fn who_has_no_token_or_a_wrong_one_is_refused_with_a_reason_and_a_close() {
    let secrets = Secrets::new();
    let lb = start(&secrets, &[]);
    let with = |token: &str| format!("x?token={token}");
    let viewers = secrets.sign("jwt.keys", &["play", "x"]);
    for (key, reason) in [
        ("x".to_owned(), "a token is needed"),
        (with("nonsense"), "the token is not valid"),
        (with(&secrets.expired("x")), "the token has expired"),
        (with(&secrets.sign("other.keys", &["publish", "x"])), "the token is not valid"),
        (with(&viewers), "the token is not for publishing this stream"),
        (with(&secrets.publish("y")), "the token is not for publishing this stream"),
    ] {
        let publisher = Publisher::start(lb.rtmp(), "ingest", &key, Media::default());
        let told = refusal(&publisher);
        assert!(told.contains(&format!("NetStream.Publish.BadName: {reason}")), "{told}");
        assert!(publisher.sent().accepted.is_empty());
    }
    ffmpeg::publish_in_vain(Clip::Alpha, &lb.rtmp_url("ingest", "x"));
    ffmpeg::watch_in_vain(&lb.rtmp_url("live", "x"));
    assert!(lb.metric("lb_refusals_total{reason=\"unauthorized\"}") >= 8.0);
}

#[test]
fn somebody_else_cannot_take_a_name_and_its_own_publisher_takes_it_over_at_once() {
    let secrets = Secrets::new();
    let reactor = Lb::start(&["--role", "reactor"]);
    let keys = secrets.file("jwt.keys");
    let ingest = || {
        Lb::start(&["--role", "ingest", "--reactor-url", &reactor.reactor_url(), "--auth-jwt-keys", &keys])
    };
    let (one, two) = (ingest(), ingest());
    let key = |who: &str| format!("x?token={}", secrets.sign("jwt.keys", &["publish", "x", "--sub", who]));
    let alice = Publisher::start(one.rtmp(), "ingest", &key("alice"), Media::default());
    alice.wait_for_keyframe();
    for node in [&one, &two] {
        let bob = Publisher::start(node.rtmp(), "ingest", &key("bob"), Media::default());
        let told = refusal(&bob);
        assert!(told.contains("BadName") && told.contains("published by somebody else"), "{told}");
    }
    // Her connection hangs half-open, and she comes back to the other node.
    alice.hang();
    let begun = std::time::Instant::now();
    let again =
        Publisher::start(two.rtmp(), "ingest", &key("alice"), Media { session: 2, ..Media::default() });
    let took = again.wait_for_keyframe() - begun;
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn a_file_maps_secret_keys_to_public_names_and_is_read_again() {
    let secrets = Secrets::new();
    let file = secrets.file("keys");
    std::fs::write(&file, "first-secret = show\n").unwrap();
    let lb = Lb::start(&["--role", "all", "--auth-file", &file]);
    let publisher = Publisher::start(lb.rtmp(), "ingest", "first-secret", Media::default());
    publisher.wait_for_keyframe();
    let viewer = Viewer::start(lb.rtmp(), "live", "show");
    viewer.wait_for_keyframe(1, SOON);
    for key in ["show", "second-secret"] {
        let told = refusal(&Publisher::start(lb.rtmp(), "ingest", key, Media::default()));
        assert!(told.contains("the stream key is not known"), "{told}");
    }
    let streams = http::get(lb.reactor(), "/streams").body;
    assert!(streams.contains("\"show\"") && !streams.contains("secret"), "{streams}");

    std::fs::write(&file, "second-secret = other\nbroken\n").unwrap();
    wait_for("the mistake to be logged", SOON, || lb.log().contains("line 2"));
    assert!(!lb.log().contains("-secret"));
    std::fs::write(&file, "second-secret = other\n").unwrap();
    wait_for("the file to be read", SOON, || lb.log().contains("read again"));
    Publisher::start(lb.rtmp(), "ingest", "second-secret", Media::default()).wait_for_keyframe();
    refusal(&Publisher::start(lb.rtmp(), "ingest", "first-secret", Media::default()));
    assert!(viewer.is_connected(), "what runs goes on");

    let bad = run(&["--role", "ingest", "--auth-file", &secrets.file("none"), "--check"]);
    assert_eq!(bad.code, Some(2));
    assert!(bad.stderr.contains("cannot be read") && bad.stderr.lines().count() == 1, "{}", bad.stderr);
}

/// A web server that decides as the closure says, by the question.
fn authority(decide: impl Fn(&Value) -> (u16, String) + Send + Sync + 'static) -> Server {
    let server = Server::start(move |request| {
        let asked: Value = serde_json::from_str(&request.body).unwrap();
        let (status, body) = decide(&asked);
        Deed::Reply(status, Vec::new(), body)
    });
    endpoint::runtime().block_on(server)
}

fn asked(server: &Server) -> Vec<Value> {
    server.requests().iter().map(|request| serde_json::from_str(&request.body).unwrap()).collect()
}

#[test]
fn a_web_server_decides_renames_and_hears_of_the_end() {
    let server = authority(|asked| match (asked["action"].as_str(), asked["name"].as_str()) {
        (Some("publish"), Some("k3y")) if asked["query"] == "u=1" => {
            (200, json!({"name": "show", "sub": "alice"}).to_string())
        }
        (Some("play"), Some("show")) => (200, json!({"cache_s": 60}).to_string()),
        (Some("unpublish" | "stop"), _) => (204, String::new()),
        (Some("publish"), _) => (403, "no such key".to_owned()),
        _ => (500, String::new()),
    });
    let lb = Lb::start(&["--role", "all", "--auth-url", &server.url, "--node-id", "n1"]);
    let publisher = Publisher::start(lb.rtmp(), "ingest", "k3y?u=1", Media::default());
    publisher.wait_for_keyframe();
    for _ in 0..2 {
        Viewer::start(lb.rtmp(), "live", "show").wait_for_keyframe(1, SOON);
    }
    let told = refusal(&Publisher::start(lb.rtmp(), "ingest", "k4y", Media::default()));
    assert!(told.contains("BadName: no such key"), "{told}");
    let outage = Viewer::start(lb.rtmp(), "live", "other").wait_for_end(SOON).join("; ");
    assert!(outage.contains("does not answer as it should"), "{outage}");
    publisher.leave();
    let over = || asked(&server).into_iter().find(|asked| asked["action"] == "unpublish");
    let over = poll(SOON, over).expect("the end of the publish is told");
    let all = asked(&server);
    let began = all.iter().find(|asked| asked["action"] == "publish").unwrap();
    assert_eq!(over["session"], began["session"]);
    assert_eq!(
        (&began["app"], &began["peer"], &began["node"]),
        (&json!("ingest"), &json!("127.0.0.1"), &json!("n1"))
    );
    let plays = all.iter().filter(|asked| asked["action"] == "play" && asked["name"] == "show").count();
    assert_eq!(plays, 1, "the second viewer is answered from the cache");
}

#[test]
fn while_the_web_server_is_away_nobody_new_gets_in_unless_that_is_set() {
    let nowhere = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}/auth", listener.local_addr().unwrap())
    };
    let closed = Lb::start(&["--role", "all", "--auth-url", &nowhere]);
    let told = refusal(&Publisher::start(closed.rtmp(), "ingest", "x", Media::default()));
    assert!(told.contains("the authorisation service does not answer, try again"), "{told}");
    assert!(closed.metric("lb_refusals_total{reason=\"auth_outage\"}") >= 1.0);
    assert_eq!(http::get(closed.http(), "/live/x.flv").status, 503, "a player may come again");
    let open = Lb::start(&["--role", "all", "--auth-url", &nowhere, "--auth-outage", "allow"]);
    Publisher::start(open.rtmp(), "ingest", "x", Media::default()).wait_for_keyframe();
}

/// A key pair made by openssl: the private key's file, and the public key in PEM.
fn key_pair(folder: &Path, name: &str, algorithm: &[&str]) -> (String, String) {
    let private = folder.join(name).display().to_string();
    let openssl = |args: &[&str]| {
        let made = Command::new("openssl").args(args).output().expect("openssl is there");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        String::from_utf8(made.stdout).unwrap()
    };
    openssl(&[&["genpkey", "-out", &private], algorithm].concat());
    let public = openssl(&["pkey", "-in", &private, "-pubout"]);
    (private, public)
}

fn signed(private: &str, algorithm: jsonwebtoken::Algorithm, id: Option<&str>, name: &str) -> String {
    use jsonwebtoken::{Algorithm, EncodingKey, Header};
    let pem = std::fs::read(private).unwrap();
    let key = match algorithm {
        Algorithm::RS256 => EncodingKey::from_rsa_pem(&pem),
        Algorithm::ES256 => EncodingKey::from_ec_pem(&pem),
        _ => EncodingKey::from_ed_pem(&pem),
    };
    let header = Header { kid: id.map(str::to_owned), ..Header::new(algorithm) };
    let claims = json!({"exp": 4_000_000_000_u64, "publish": [name]});
    jsonwebtoken::encode(&header, &claims, &key.unwrap()).unwrap()
}

#[test]
fn public_keys_check_tokens_that_others_sign() {
    use jsonwebtoken::Algorithm::{ES256, EdDSA, RS256};
    let secrets = Secrets::new();
    let folder = secrets.folder.path();
    let pairs = [
        (RS256, key_pair(folder, "rsa", &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"])),
        (ES256, key_pair(folder, "ec", &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"])),
        (EdDSA, key_pair(folder, "ed", &["-algorithm", "ed25519"])),
    ];
    let public: String = pairs.iter().map(|(_, (_, public))| public.as_str()).collect();
    std::fs::write(secrets.file("public.pem"), public).unwrap();
    let lb = Lb::start(&["--role", "all", "--auth-jwt-keys", &secrets.file("public.pem")]);
    for (algorithm, (private, _)) in &pairs {
        let key = format!("x?token={}", signed(private, *algorithm, None, "x"));
        Publisher::start(lb.rtmp(), "ingest", &key, Media::default()).wait_for_keyframe();
    }
    let (foreign, _) = key_pair(folder, "foreign", &["-algorithm", "ed25519"]);
    let key = format!("x?token={}", signed(&foreign, EdDSA, None, "x"));
    refusal(&Publisher::start(lb.rtmp(), "ingest", &key, Media::default()));
}

/// The JWK of an Ed25519 public key in PEM: its last 32 bytes (RFC 8410, RFC 8037).
fn jwk(public: &str, id: &str) -> Value {
    use base64::Engine;
    let body: String = public.lines().filter(|line| !line.starts_with('-')).collect();
    let der = base64::engine::general_purpose::STANDARD.decode(body).unwrap();
    let x = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&der[der.len() - 32..]);
    json!({"kty": "OKP", "crv": "Ed25519", "x": x, "kid": id, "alg": "EdDSA", "use": "sig"})
}

#[test]
fn keys_at_a_url_rotate_and_outlast_an_outage() {
    use std::sync::{Arc, Mutex};
    let folder = TempDir::new().unwrap();
    let (old, old_public) = key_pair(folder.path(), "old", &["-algorithm", "ed25519"]);
    let (new, new_public) = key_pair(folder.path(), "new", &["-algorithm", "ed25519"]);
    let served = Arc::new(Mutex::new((200, json!({"keys": [jwk(&old_public, "old")]}).to_string())));
    let serving = served.clone();
    let server = Server::start(move |_| {
        let (status, body) = serving.lock().unwrap().clone();
        Deed::Reply(status, Vec::new(), body)
    });
    let server = endpoint::runtime().block_on(server);
    let lb = Lb::start(&["--role", "all", "--auth-jwt-keys", &server.url]);
    let publish = |private: &str, id: &str| {
        let key = format!("x?token={}", signed(private, jsonwebtoken::Algorithm::EdDSA, Some(id), "x"));
        Publisher::start(lb.rtmp(), "ingest", &key, Media::default())
    };
    publish(&old, "old").wait_for_keyframe();
    *served.lock().unwrap() = (503, String::new());
    publish(&old, "old").wait_for_keyframe();
    refusal(&publish(&new, "new"));
    *served.lock().unwrap() = (200, json!({"keys": [jwk(&new_public, "new")]}).to_string());
    // An unknown key makes it fetch again, at most every few seconds.
    let let_in = || {
        let publisher = publish(&new, "new");
        poll(SOON, || {
            (publisher.sent().ended.is_some() || !publisher.sent().accepted.is_empty()).then_some(())
        });
        (!publisher.sent().accepted.is_empty()).then_some(())
    };
    assert!(poll(SOON, let_in).is_some(), "the new key is never known");
    refusal(&publish(&old, "old"));
}

#[test]
fn an_expired_token_ends_what_runs_if_that_is_set() {
    let secrets = Secrets::new();
    let file = secrets.file("jwt.keys");
    let lb = Lb::start(&["--role", "all", "--auth-jwt-keys", &file, "--auth-expiry", "close"]);
    let short = |action: &str| format!("x?token={}", secrets.sign("jwt.keys", &[action, "x", "--ttl", "4s"]));
    let publisher = Publisher::start(lb.rtmp(), "ingest", &short("publish"), Media::default());
    publisher.wait_for_keyframe();
    let viewer = Viewer::start(lb.rtmp(), "live", &short("play"));
    viewer.wait_for_keyframe(1, SOON);
    let told = refusal(&publisher);
    assert!(told.contains("the leave to publish has expired"), "{told}");
    viewer.wait_for_end(SOON);
}

#[test]
fn no_secret_shows_in_any_log_metric_or_answer() {
    let secrets = Secrets::new();
    let file = secrets.file("keys");
    std::fs::write(&file, "s3cret-key = show\n").unwrap();
    let keys = secrets.file("jwt.keys");
    let lb = Lb::start(&["--role", "all", "--auth-file", &file, "--auth-jwt-keys", &keys, "--log", "trace"]);
    let publisher = Publisher::start(lb.rtmp(), "ingest", "s3cret-key?pass=s3cret-query", Media::default());
    publisher.wait_for_keyframe();
    let play = secrets.sign("jwt.keys", &["play", "*"]);
    let viewer = Viewer::start(lb.rtmp(), "live", &format!("show?token={play}"));
    viewer.wait_for_keyframe(1, SOON);
    for key in ["s3cret-other", "s3cret-other?token=s3cret-token", "s3cret other"] {
        refusal(&Publisher::start(lb.rtmp(), "ingest", key, Media::default()));
        Viewer::start(lb.rtmp(), "live", key).wait_for_end(SOON);
    }
    let mut seen = shown::everything(&lb);
    publisher.leave();
    seen += &lb.log();
    assert!(seen.contains("show"), "the public name is what is seen");
    let hit = seen.lines().find(|line| line.contains("s3cret") || line.contains(&play));
    assert!(hit.is_none(), "{hit:?}");
}
