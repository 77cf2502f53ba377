//! Hosts of their own: network namespaces with one cable to the machine that runs the tests. They need root.

use super::process;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(20);

/// How many hosts one test process may make.
const HOSTS: u32 = 32;

/// A network namespace. It is removed, cable and all, when this is dropped; processes in it must have ended.
pub struct Host {
    name: String,
    address: IpAddr,
    gateway: IpAddr,
}

impl Host {
    /// A host with an IPv4 address.
    #[track_caller]
    pub fn start() -> Host {
        let number = number();
        // 10.128.0.0/9 has room for 2^21 nets of four addresses; the process id keeps test processes apart.
        let net = (10 << 24) | (1 << 23) | (((std::process::id() * HOSTS + number) << 2) & 0x7f_fffc);
        let (gateway, address) = (Ipv4Addr::from(net | 1), Ipv4Addr::from(net | 2));
        Host::plug(number, gateway.into(), address.into(), 30)
    }

    /// A host without any IPv4 address, not even on its loopback interface.
    #[track_caller]
    pub fn start_ipv6_only() -> Host {
        let number = number();
        let id = std::process::id();
        let address =
            |last| Ipv6Addr::new(0xfd4c, (id >> 16) as u16, id as u16, number as u16, 0, 0, 0, last);
        let host = Host::plug(number, address(1).into(), address(2).into(), 64);
        host.run(&["ip", "address", "delete", "127.0.0.1/8", "dev", "lo"]);
        host
    }

    #[track_caller]
    fn plug(number: u32, gateway: IpAddr, address: IpAddr, prefix: u8) -> Host {
        // SAFETY: it cannot fail and touches no memory.
        assert_eq!(unsafe { libc::geteuid() }, 0, "network namespaces need root: run the tests as root");
        let id = std::process::id();
        let name = format!("lbt{id}-{number}");
        let (near, far) = (format!("lbn{id}-{number}"), format!("lbf{id}-{number}"));
        run(&["ip", "netns", "add", &name]);
        // From here on the guard removes what was made.
        let host = Host { name: name.clone(), address, gateway };
        run(&["ip", "link", "add", &near, "type", "veth", "peer", "name", &far, "netns", &name]);
        let with_prefix = |address: IpAddr| format!("{address}/{prefix}");
        run(&["ip", "address", "add", &with_prefix(gateway), "dev", &near, "nodad"]);
        run(&["ip", "link", "set", &near, "up"]);
        host.run(&["ip", "link", "set", "lo", "up"]);
        host.run(&["ip", "address", "add", &with_prefix(address), "dev", &far, "nodad"]);
        host.run(&["ip", "link", "set", &far, "up"]);
        host
    }

    /// Its address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The address of the machine that runs the tests, as this host sees it.
    pub fn gateway(&self) -> IpAddr {
        self.gateway
    }

    /// The words before a command that is to run here.
    pub fn prefix(&self) -> [&str; 4] {
        ["ip", "netns", "exec", &self.name]
    }

    /// Runs a command here.
    #[track_caller]
    pub fn run(&self, words: &[&str]) {
        run(&[&self.prefix(), words].concat());
    }

    /// Cuts the cable so that nobody notices: nothing passes any more, and nobody is told.
    #[track_caller]
    pub fn cut(&self) {
        let iptables = if self.address.is_ipv4() { "iptables" } else { "ip6tables" };
        for chain in ["INPUT", "OUTPUT"] {
            self.run(&[iptables, "-w", "-I", chain, "-j", "DROP"]);
        }
    }

    /// Mends the cable.
    #[track_caller]
    pub fn mend(&self) {
        let iptables = if self.address.is_ipv4() { "iptables" } else { "ip6tables" };
        self.run(&[iptables, "-w", "-F"]);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Its end of the cable goes with it, and with that the other end.
        Command::new("ip").args(["netns", "delete", &self.name]).status().ok();
    }
}

fn number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    assert!(number < HOSTS, "too many hosts");
    number
}

#[track_caller]
fn run(words: &[&str]) {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    let finished = process::run(command, DEADLINE);
    assert_eq!(finished.code, Some(0), "{words:?}: {}{}", finished.stderr, finished.stdout);
}
