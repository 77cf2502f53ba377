//! Which roles a flag is of use to. One that is given to a process which has no use for it is a mistake, most likely about the host that
//! it is typed on, and is refused; a variable is not, as one file of them may serve all services of a host.

use super::role::Role;
use clap::ArgMatches;
use clap::parser::ValueSource;

const NODES: &[Role] = &[Role::Ingest, Role::Playback];
const REACTORS: &[Role] = &[Role::Reactor];

/// The flags that not all roles use.
const SCOPES: [(&str, &[Role]); 38] = [
    ("--reactor-url", NODES),
    ("--rtmp-port", NODES),
    ("--http-listen", NODES),
    ("--http-advertise", NODES),
    ("--advertise", &[Role::Ingest]),
    ("--node-id", NODES),
    ("--config", NODES),
    ("--pull", NODES),
    ("--ffmpeg-path", NODES),
    ("--batch-ms", NODES),
    ("--gather-ms", NODES),
    ("--publisher-grace", NODES),
    ("--auth-jwt-keys", NODES),
    ("--auth-url", NODES),
    ("--auth-file", NODES),
    ("--auth-outage", NODES),
    ("--auth-expiry", NODES),
    ("--rtmps-port", NODES),
    ("--pull-tls", NODES),
    ("--proxy-protocol-from", NODES),
    ("--max-connections", NODES),
    ("--max-connections-per-address", NODES),
    ("--max-joins-per-address", NODES),
    ("--handshake-timeout", NODES),
    ("--max-message-bytes", NODES),
    ("--stream-metrics", NODES),
    ("--max-publish-messages", NODES),
    ("--max-publish-bytes", NODES),
    ("--memory-budget", NODES),
    ("--report-interval", NODES),
    ("--store", REACTORS),
    ("--watcher-template", REACTORS),
    ("--duplicate-publish", REACTORS),
    ("--trusted-nodes", REACTORS),
    ("--insecure", REACTORS),
    ("--allowed-origins", REACTORS),
    ("--reactor-hosts", REACTORS),
    ("--trusted-proxies", REACTORS),
];

/// The flags of [`SCOPES`] that were typed, and not taken from the environment or left as they are.
#[derive(Clone, Debug, Default)]
pub struct Typed {
    typed: Vec<(&'static str, &'static [Role])>,
    /// Those that were typed or taken from the environment.
    given: Vec<&'static str>,
}

impl Typed {
    pub(super) fn of(matches: &ArgMatches) -> Self {
        let source = |flag: &str| matches.value_source(&id(flag));
        let typed = |(flag, _): &(&str, _)| source(flag) == Some(ValueSource::CommandLine);
        let given = |flag: &&str| source(flag).is_some_and(|source| source != ValueSource::DefaultValue);
        Typed {
            typed: SCOPES.into_iter().filter(typed).collect(),
            given: SCOPES.into_iter().map(|(flag, _)| flag).filter(given).collect(),
        }
    }

    /// Whether a flag of [`SCOPES`] has its value from whoever started the process.
    pub fn given(&self, flag: &str) -> bool {
        self.given.contains(&flag)
    }

    /// A flag that none of these roles uses, with those that do.
    pub fn misplaced(&self, has: impl Fn(Role) -> bool) -> Option<(&'static str, &'static [Role])> {
        self.typed.iter().find(|(_, roles)| !roles.iter().any(|role| has(*role))).copied()
    }
}

/// What clap calls a flag.
fn id(flag: &str) -> String {
    flag.trim_start_matches('-').replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_flag_has_its_scope() {
        // Of use to a process of any role.
        const ALL: [&str; 17] = [
            "--role",
            // It makes a reactor of any process.
            "--reactor-listen",
            "--reactor-token",
            "--reactor-token-file",
            "--admin-listen",
            "--agent-listen",
            "--check",
            "--print-config",
            "--log",
            "--log-format",
            "--https",
            "--tls-cert",
            "--tls-key",
            "--tls-password-file",
            "--drain-timeout",
            "--ca-file",
            "--heartbeat",
        ];
        let mut scoped: Vec<String> = SCOPES.iter().map(|(flag, _)| *flag).chain(ALL).map(id).collect();
        let command = crate::cli::Args::command();
        let mut flags: Vec<String> = command.get_arguments().map(|flag| flag.get_id().to_string()).collect();
        scoped.sort();
        flags.sort();
        assert_eq!(scoped, flags);
    }
}
