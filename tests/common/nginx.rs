//! nginx with its RTMP module, from Debian: a server by somebody else, to push to and to pull from.

use super::process::{self, Peer};
use super::{SOON, free_port, wait_for};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// Where Debian has the module.
const MODULE: &str = "/usr/lib/nginx/modules/ngx_rtmp_module.so";

/// A running nginx. Dropping it ends it.
pub struct Nginx {
    address: SocketAddr,
    _folder: TempDir,
    _process: Peer,
}

impl Nginx {
    /// Starts one with the app `live`, which takes publishers and serves viewers, and is as its defaults are. `directives` stand in
    /// that app as well.
    #[track_caller]
    pub fn start(directives: &str) -> Nginx {
        assert!(Path::new(MODULE).exists(), "this test needs libnginx-mod-rtmp: run scripts/setup test");
        let folder = tempfile::tempdir().unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let at = folder.path().display();
        let text = format!(
            "load_module {MODULE};\ndaemon off;\nmaster_process off;\npid {at}/nginx.pid;\nerror_log {at}/error.log info;\n\
             events {{ worker_connections 256; }}\n\
             rtmp {{ server {{ listen {address}; chunk_size 4096; access_log off;\n\
             application live {{ live on; {directives} }} }} }}\n"
        );
        let config = folder.path().join("nginx.conf");
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new("/usr/sbin/nginx");
        command.arg("-c").arg(&config).arg("-p").arg(folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut process = Peer::new(process::spawn_tool(command));
        wait_for("nginx to listen", SOON, || {
            assert!(process.is_running(), "nginx ends");
            TcpStream::connect(address).is_ok()
        });
        Nginx { address, _process: process, _folder: folder }
    }

    /// Where it speaks RTMP.
    pub fn rtmp(&self) -> SocketAddr {
        self.address
    }

    /// A URL in its app.
    pub fn url(&self, key: &str) -> String {
        format!("rtmp://{}/live/{key}", self.address)
    }
}
