//! nginx with its RTMP module: between an encoder and lb, between lb and a player, and as an origin of lb.

use crate::common::cluster::Cluster;
use crate::common::ffmpeg::{self, Clip};
use crate::common::free_port;
use crate::common::process::Peer;
use crate::run::{self, NAME, command};
use tempfile::TempDir;

/// A running nginx; its app `a` relays as it was told.
struct Nginx {
    port: u16,
    _process: Peer,
    _folder: TempDir,
}

impl Nginx {
    fn start(relay: &str) -> Nginx {
        let (port, folder) = (free_port(), tempfile::tempdir().unwrap());
        let config = format!(
            "daemon off; master_process off; pid nginx.pid; error_log error.log;
load_module /usr/lib/nginx/modules/ngx_rtmp_module.so;
events {{ worker_connections 64; }}
rtmp {{ server {{ listen 127.0.0.1:{port}; application a {{ live on; {relay} }} }} }}
"
        );
        let file = folder.path().join("nginx.conf");
        std::fs::write(&file, config).unwrap();
        let prefix = folder.path().to_str().unwrap();
        let process = run::start(command(&["/usr/sbin/nginx", "-p", prefix, "-c", file.to_str().unwrap()]));
        crate::common::wait_for("nginx to listen", crate::common::SOON, || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Nginx { port, _process: process, _folder: folder }
    }

    fn url(&self) -> String {
        format!("rtmp://127.0.0.1:{}/a/{NAME}", self.port)
    }
}

/// It pushes what an encoder publishes to it.
pub fn publishes() {
    let mut nginx = None;
    run::publishes(true, |url| {
        let app = url.rsplit_once('/').unwrap().0;
        let nginx = nginx.insert(Nginx::start(&format!("push {app};")));
        ffmpeg::publish(Clip::Alpha, &nginx.url())
    });
}

/// lb pulls what an encoder publishes to it.
pub fn is_pulled_from() {
    let nginx = Nginx::start("");
    let _publisher = ffmpeg::publish(Clip::Alpha, &nginx.url());
    run::is_pulled_from(&nginx.url());
}

/// It pulls from a playback node what a player wants.
pub fn pulls() {
    let cluster = Cluster::start(1);
    let _publisher = ffmpeg::publish(Clip::Alpha, &cluster.ingest_url(0, NAME));
    cluster.wait_published(NAME);
    let live = cluster.live_url(NAME);
    let nginx = Nginx::start(&format!("pull {};", live.rsplit_once('/').unwrap().0));
    run::serves(&nginx.url());
}
