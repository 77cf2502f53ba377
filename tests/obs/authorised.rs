//! OBS where publishing takes leave: a token or a secret key.

use crate::GOES_ON;
use crate::common::cluster::Cluster;
use crate::common::ffmpeg::{self, Clip};
use crate::common::http::{self, Events};
use crate::common::lb::{Lb, run};
use crate::common::publisher::{Media, Publisher};
use crate::common::secrets::{Secrets, token_of};
use crate::common::witness::Witness;
use crate::common::{SOON, poll, shown, wait_for};
use crate::studio::{Scene, Studio};
use std::time::{Duration, Instant};

/// How soon who owns a name has it back.
const TAKEOVER: Duration = Duration::from_secs(1);

fn start(authority: &str, file: &str) -> Lb {
    Lb::start(&["--role", "all", "--log", "trace", authority, file])
}

/// The rest of the line that begins with these words.
#[track_caller]
fn line<'a>(printed: &'a str, begin: &str) -> &'a str {
    let line = printed.lines().find_map(|line| line.trim().strip_prefix(begin));
    line.unwrap_or_else(|| panic!("no {begin:?} in: {printed}")).trim()
}

/// Checks that a secret does not show: neither one of the three parts of a token, nor the beginning of what is cut short.
#[track_caller]
fn assert_hidden(shown: &str, secret: &str) {
    let parts = secret.split('.').chain([&secret[..16]]);
    for part in parts {
        let hit = shown.lines().find(|line| line.contains(part));
        assert!(hit.is_none(), "{part}: {hit:?}");
    }
}

#[test]
fn what_lb_sign_prints_is_what_obs_and_players_are_told() {
    let secrets = Secrets::new();
    let lb = start("--auth-jwt-keys", &secrets.file("jwt.keys"));
    let (ingest, live) = (lb.rtmp_url("ingest", ""), lb.rtmp_url("live", ""));
    let sign = |action, server| {
        secrets.printed("jwt.keys", &[action, "studio/obs", "--ttl", "1h", "--server", server])
    };
    let (publish, play) = (sign("publish", &ingest), sign("play", &live));
    let studio =
        Studio::start(Scene::Moving, line(&publish, "OBS      server"), line(&publish, "stream key"));
    ffmpeg::record(line(&play, "players"), 2).assert_decodes();
    // OBS writes down its server and not its key; people hand its log to others.
    let shown = shown::everything(&lb) + &studio.said();
    for printed in [&publish, &play] {
        assert_hidden(&shown, &token_of(printed));
    }
}

#[test]
fn obs_without_a_good_token_is_refused_and_told_why() {
    let secrets = Secrets::new();
    let lb = start("--auth-jwt-keys", &secrets.file("jwt.keys"));
    let server = lb.rtmp_url("ingest", "");
    let refusals = || lb.metric("lb_refusals_total{reason=\"unauthorized\"}");
    let tokens = [
        (secrets.expired("obs"), "the token has expired"),
        (secrets.sign("other.keys", &["publish", "obs"]), "the token is not valid"),
        (secrets.sign("jwt.keys", &["play", "obs"]), "the token is not for publishing this stream"),
    ];
    let keys = tokens.iter().map(|(token, reason)| (format!("obs?token={token}"), *reason));
    for (key, reason) in keys.chain([("obs".to_owned(), "a token is needed")]) {
        let before = refusals();
        let said = Studio::start_in_vain(&server, &key).said();
        assert!(said.contains(&format!("NetStream.Publish.BadName ({reason})")), "{said}");
        assert_eq!(refusals(), before + 1.0, "OBS gives up at the first refusal");
        // The line of a refusal is held back where another was written in the same second; that of the connection's end is not.
        let ended = format!("connection closed: {reason} ");
        assert_eq!(lb.log().matches(&ended).count(), 1, "{reason}");
    }
    let log = lb.log();
    let refused: Vec<&str> = log.lines().filter(|line| line.contains(" refused: ")).collect();
    assert!(refused[0].contains("refused: the token has expired "), "{refused:?}");
    assert!(refused.iter().all(|line| line.contains("reason=\"unauthorized\"")), "{refused:?}");
    let shown = shown::everything(&lb);
    assert!(shown.contains("\"streams\":[]"), "nothing was published: {shown}");
    for (token, _) in &tokens {
        assert_hidden(&shown, token);
    }
}

#[test]
fn a_secret_key_publishes_its_public_name_and_shows_nowhere() {
    let secrets = Secrets::new();
    let key = run(&["token"]).stdout.trim().to_owned();
    std::fs::write(secrets.file("keys"), format!("{key} = studio\n")).unwrap();
    let lb = start("--auth-file", &secrets.file("keys"));
    let mut events = ["/events", "/cluster/events"].map(|path| Events::follow(lb.reactor(), path));
    let studio = Studio::start(Scene::Moving, &lb.rtmp_url("ingest", ""), &key);
    wait_for("the stream to be known by its public name", SOON, || {
        http::get(lb.reactor(), "/streams/studio").status == 200
    });
    ffmpeg::record(&lb.rtmp_url("live", "studio"), 2).assert_decodes();
    let mut seen = shown::everything(&lb);
    for events in &mut events {
        seen += &events.read_until("\"studio\"");
    }
    drop(studio);
    lb.wait_for_metric("lb_publishers", 0.0, SOON);
    seen += &shown::everything(&lb);
    assert_hidden(&seen, &key);
}

#[test]
fn only_its_own_identity_takes_the_name_of_an_obs_that_streams() {
    let secrets = Secrets::new();
    let cluster = Cluster::start_with(2, &["--auth-jwt-keys", &secrets.file("jwt.keys"), "--log", "trace"]);
    let token = |who| secrets.sign("jwt.keys", &["publish", "obs", "--sub", who]);
    // The token may stand behind the server as well as behind the key.
    let own = token("alice");
    let server = format!("{}?token={own}", cluster.ingest[0].rtmp_url("ingest", "").trim_end_matches('/'));
    let mut studio = Studio::start(Scene::Moving, &server, "obs");
    cluster.wait_published("obs");
    let witness = Witness::start(cluster.playback.rtmp(), "live", "obs");
    witness.wait_for_frames(0, GOES_ON);

    let foreign = token("bob");
    for node in &cluster.ingest {
        ffmpeg::publish_in_vain(Clip::Beta, &node.rtmp_url("ingest", &format!("obs?token={foreign}")));
        assert_eq!(node.metric("lb_refusals_total{reason=\"publish\"}"), 1.0);
        assert!(node.log().contains("published by somebody else"), "{}", node.log());
    }
    let sent = witness.kept().publishes()[0].video.len();
    witness.wait_for_frames(0, sent + GOES_ON);
    assert_eq!(witness.kept().publishes().len(), 1, "OBS goes on");

    let begun = Instant::now();
    let key = format!("obs?token={}", token("alice"));
    let again = Publisher::start(cluster.ingest[1].rtmp(), "ingest", &key, Media::default());
    let sent_away = || cluster.ingest[0].log().contains("sent away: another publisher took over");
    let sent_away = poll(SOON, || sent_away().then(Instant::now)).expect("OBS is sent away");
    let seen = witness.wait_for_frames(1, 1);
    for (what, at) in [
        ("the other publishes", again.wait_for_keyframe()),
        ("OBS is sent away", sent_away),
        ("first frame at the viewer", seen),
    ] {
        let took = at.saturating_duration_since(begun);
        println!("measured takeover from OBS: {what} after {:.2} s", took.as_secs_f64());
        assert!(took < TAKEOVER, "{what} after {took:?}");
    }
    studio.wait_to_say(&["Disconnected from "]);
    println!("measured takeover from OBS: OBS says so after {:.2} s", begun.elapsed().as_secs_f64());
    // It connects again by itself, is the same identity as well, and the newest wins.
    let back = witness.wait_for_frames(2, 1) - begun;
    println!("measured takeover from OBS: OBS has the name again after {:.2} s", back.as_secs_f64());

    let shown: String = cluster.ingest.iter().chain([&cluster.reactor]).map(shown::everything).collect();
    for token in [&own, &foreign, &token_of(&key)] {
        assert_hidden(&shown, token);
    }
}
