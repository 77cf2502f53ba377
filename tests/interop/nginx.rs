//! nginx with its RTMP module: between an encoder and lb, between lb and a player, as an origin of lb, and as a target.

use crate::common::cluster::Cluster;
use crate::common::ffmpeg::{self, Clip};
use crate::common::nginx::Nginx;
use crate::run::{self, NAME};

/// It pushes what an encoder publishes to it.
pub fn publishes() {
    let mut nginx = None;
    run::publishes(true, |url| {
        let app = url.rsplit_once('/').unwrap().0;
        let nginx = nginx.insert(Nginx::start(&format!("push {app};")));
        ffmpeg::publish(Clip::Alpha, &nginx.url(NAME))
    });
}

/// lb pulls what an encoder publishes to it.
pub fn is_pulled_from() {
    let nginx = Nginx::start("");
    let _publisher = ffmpeg::publish(Clip::Alpha, &nginx.url(NAME));
    run::is_pulled_from(&nginx.url(NAME));
}

/// lb pushes to it what an encoder publishes to lb.
pub fn is_pushed_to() {
    run::is_pushed_to(&Nginx::start("").url(NAME));
}

/// It pulls from a playback node what a player wants.
pub fn pulls() {
    let cluster = Cluster::start(1);
    let _publisher = ffmpeg::publish(Clip::Alpha, &cluster.ingest_url(0, NAME));
    cluster.wait_published(NAME);
    let live = cluster.live_url(NAME);
    let nginx = Nginx::start(&format!("pull {};", live.rsplit_once('/').unwrap().0));
    run::serves(&nginx.url(NAME));
}
