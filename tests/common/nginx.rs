//! nginx with its RTMP module, from Debian: a server by somebody else, to push to and to pull from.

use super::process::{self, Peer};
use super::{SOON, wait_for};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// Where Debian has the module.
const MODULE: &str = "/usr/lib/nginx/modules/ngx_rtmp_module.so";

/// A running nginx. Dropping it ends it.
pub struct Nginx {
    address: SocketAddr,
    folder: TempDir,
    _process: Peer,
}

impl Nginx {
    /// Starts one with the app `live`, which takes publishers and serves viewers, who may wait for a publisher. `directives` stand in
    /// that app as well.
    #[track_caller]
    pub fn start(directives: &str) -> Nginx {
        assert!(Path::new(MODULE).exists(), "this test needs libnginx-mod-rtmp: run scripts/setup test");
        let folder = tempfile::tempdir().unwrap();
        // nginx takes no port from the system, so this one is free now and most likely in a moment.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let at = folder.path().display();
        let text = format!(
            "load_module {MODULE};\ndaemon off;\nmaster_process off;\npid {at}/nginx.pid;\nerror_log {at}/error.log info;\n\
             events {{ worker_connections 256; }}\n\
             rtmp {{ server {{ listen {address}; chunk_size 4096; access_log off;\n\
             application live {{ live on; idle_streams on; {directives} }} }} }}\n"
        );
        let config = folder.path().join("nginx.conf");
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new("/usr/sbin/nginx");
        command.arg("-c").arg(&config).arg("-p").arg(folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let nginx = Nginx { address, _process: Peer::new(process::spawn_tool(command)), folder };
        wait_for("nginx", SOON, || TcpStream::connect(address).is_ok());
        nginx
    }

    /// Where it speaks RTMP.
    pub fn rtmp(&self) -> SocketAddr {
        self.address
    }

    /// A URL in its app.
    pub fn url(&self, key: &str) -> String {
        format!("rtmp://{}/live/{key}", self.address)
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("error.log")).unwrap_or_default()
    }
}
