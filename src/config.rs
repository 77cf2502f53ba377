//! From the command line to what runs: one pure step, the reading of files, and a look at which loopback address there is.

mod settings;

use crate::cli::{Args, PullBy, ReactorArgs, Role};
use crate::client::Urls;
use crate::ids::Origin;
use crate::net::certificate;
use crate::registry::Redis;
use crate::steps::{Config, ConfigError, definition, engine};
use crate::web::{Secret, Template};
use clap::ValueEnum;
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;

/// The bundled configuration of an ingest node.
pub const INGEST: (&str, &str) = ("ingest.mmids", include_str!("../mmids-configs/ingest.mmids"));

/// The bundled configuration of a playback node.
pub const PLAYBACK: (&str, &str) = ("playback.mmids", include_str!("../mmids-configs/playback.mmids"));

/// The bundled reply to a watcher lookup.
pub const WATCHER_REPLY: &str = include_str!("../mmids-configs/watcher_reply.mmids");

/// Where nodes look for a reactor when nobody said.
const DEFAULT_REACTOR_URL: &str = "http://127.0.0.1:8080";

/// The port of a reactor when nobody said.
pub const DEFAULT_REACTOR_PORT: u16 = 8080;

/// The port of viewers over HTTP when nobody said.
const DEFAULT_HTTP_PORT: u16 = 8081;

/// Why a flag of TLS alone is not enough.
const NEEDS_CERTIFICATE: &str =
    "--tls-cert is needed as well, or tls_cert_path among the settings of --config";

/// The file of the token among what the service manager hands over (systemd's `LoadCredential=`).
const TOKEN_CREDENTIAL: &str = "reactor.token";

/// Why a process does not start with these flags and files: one line that says what is wrong and what is allowed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A flag.
    #[error("{flag}: {why}")]
    Flag {
        /// Its name.
        flag: &'static str,
        /// What is wrong.
        why: String,
    },
    /// A file that cannot be read.
    #[error("{file}: cannot be read: {error}")]
    File {
        /// Its path.
        file: String,
        /// What the system says.
        error: std::io::Error,
    },
    /// A configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// The roles of a process, worked out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roles(BTreeSet<Role>);

impl Roles {
    fn new(args: &Args) -> Self {
        let mut roles: BTreeSet<Role> = args.role.iter().copied().collect();
        if roles.remove(&Role::All) {
            roles.extend([Role::Ingest, Role::Playback, Role::Reactor]);
        }
        if args.reactor_listen.is_some() {
            roles.insert(Role::Reactor);
        }
        Roles(roles)
    }

    /// Refuses a typed flag that is of use to other roles only.
    fn check_typed(&self, args: &Args) -> Result<(), Error> {
        let Some((flag, of)) = args.typed.misplaced(|role| self.has(role)) else { return Ok(()) };
        let of = Roles(of.iter().copied().collect()).names().join(" or ");
        let own = self.names().join(" and ");
        let why = format!("only a process with the role {of} uses it; the role here is {own}");
        Err(Error::Flag { flag, why })
    }

    /// Whether a role is among them.
    pub fn has(&self, role: Role) -> bool {
        self.0.contains(&role)
    }

    /// Whether the process has an RTMP side.
    pub fn is_node(&self) -> bool {
        self.has(Role::Ingest) || self.has(Role::Playback)
    }

    /// The admin port when nobody said: one for each kind of process, as several may run on a host.
    fn admin_port(&self) -> u16 {
        match () {
            () if self.has(Role::Ingest) => 9011,
            () if self.has(Role::Playback) => 9012,
            () => 9013,
        }
    }

    /// Their names, in a fixed order.
    pub fn names(&self) -> Vec<String> {
        let name = |role: &Role| role.to_possible_value().map(|value| value.get_name().to_owned());
        self.0.iter().filter_map(name).collect()
    }
}

/// What a process is to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The flags as they were given.
    pub args: Args,
    /// See [`Roles`].
    pub roles: Roles,
    /// Where the reactor listens, if there is one.
    pub reactor_listen: Option<SocketAddr>,
    /// Where the admin port listens, if there is one.
    pub admin_listen: Option<SocketAddr>,
    /// Where HAProxy's agent-check is answered, if it is.
    pub agent_listen: Option<SocketAddr>,
    /// Where viewers are served over HTTP, if they are.
    pub http_listen: Option<SocketAddr>,
    /// The token between nodes and reactors.
    pub token: Option<String>,
    /// The reactor's reply to watcher lookups.
    pub template: Template,
    /// What the settings of configuration files ask for and is not done, one line each.
    pub notes: Vec<String>,
    settings: Vec<settings::OfFile>,
    /// The configuration texts, each with its file's name.
    sources: Vec<(String, String)>,
}

/// A configuration that was read and checked, with the name of its file.
pub type Checked = (String, Config);

impl Plan {
    /// Works the flags out, and reads the files they name.
    pub fn new(mut args: Args) -> Result<Self, Error> {
        let roles = Roles::new(&args);
        roles.check_typed(&args)?;
        let flag = |flag: &'static str, why: String| Error::Flag { flag, why };
        let sources = sources(args.config.as_deref(), &roles)?;
        let settings = settings(&args, &sources)?;
        let notes = settings::apply(&mut args, &settings)?;
        let admin = (Ipv4Addr::LOCALHOST, roles.admin_port()).into();
        let admin_listen = listen("--admin-listen", args.admin_listen.as_deref(), Some(admin))?;
        let http = roles.has(Role::Playback).then(|| (Ipv6Addr::UNSPECIFIED, DEFAULT_HTTP_PORT).into());
        let http_listen = listen("--http-listen", args.http_listen.as_deref(), http)?;
        let agent_listen = listen("--agent-listen", args.agent_listen.as_deref(), None)?;
        let token = token(&args.reactor)?;
        if let Some(token) = &token {
            Secret::new(token).map_err(|error| flag("--reactor-token", error.to_string()))?;
        }
        let reactor_listen = match roles.has(Role::Reactor) {
            true => Some(reactor_listen(&args, token.is_some())?),
            false => None,
        };
        check_log(&args.log).map_err(|why| flag("--log", why))?;
        args.origin(1935).map_err(|error| flag("--advertise", error.to_string()))?;
        if let Some(text) = &args.http_advertise {
            Origin::parse(text, DEFAULT_HTTP_PORT)
                .map_err(|error| flag("--http-advertise", error.to_string()))?;
        }
        let template = template(args.reactor.watcher_template.as_deref())?;
        if args.reactor.store != "memory" {
            Redis::check(&args.reactor.store).map_err(|error| flag("--store", error.to_string()))?;
        }
        args.auth.settings().check().map_err(|error| flag("--auth-file or --auth-jwt-keys", error))?;
        let tls = &args.transport;
        match tls.certificate() {
            Some(files) => files.check().map_err(|error| flag("--tls-cert", error))?,
            None if tls.https => return Err(flag("--https", NEEDS_CERTIFICATE.to_owned())),
            None if tls.rtmps_port.is_some() => {
                return Err(flag("--rtmps-port", NEEDS_CERTIFICATE.to_owned()));
            }
            None => {}
        }
        certificate::client(tls.ca_file.as_deref()).map_err(|error| flag("--ca-file", error))?;
        if tls.https && roles.is_node() && roles.has(Role::Reactor) && args.reactor_url.is_none() {
            let why = "the nodes of this process need a name that the certificate is for; --reactor-url https://NAME:PORT is needed";
            return Err(flag("--https", why.to_owned()));
        }
        let plan = Plan {
            http_listen: http_listen.filter(|_| roles.is_node()),
            roles,
            reactor_listen,
            admin_listen,
            agent_listen,
            token,
            template,
            notes,
            settings,
            sources,
            args,
        };
        plan.reactor_urls(None)?;
        Ok(plan)
    }

    /// Where this process finds reactors. `embedded` is where its own one listens.
    pub fn reactor_urls(&self, embedded: Option<SocketAddr>) -> Result<Urls, Error> {
        let own = embedded.map(|mut address| {
            // A wildcard is no destination.
            if address.ip().is_unspecified() {
                address.set_ip(loopback(address.ip(), is_own));
            }
            format!("http://{address}")
        });
        let text = match (&self.args.reactor_url, own) {
            (Some(given), _) => given.clone(),
            (None, Some(own)) => own,
            (None, None) => DEFAULT_REACTOR_URL.to_owned(),
        };
        text.parse().map_err(|error: crate::client::Error| Error::Flag {
            flag: "--reactor-url",
            why: error.to_string(),
        })
    }

    /// Reads and checks the configurations, with `${NAME}` filled.
    pub fn configs(&self, rtmp_port: u16, reactors: &Urls) -> Result<Vec<Checked>, Error> {
        let variables = variables(rtmp_port, reactors);
        let read = |(file, text): &(String, String)| -> Result<Checked, Error> {
            let config = definition::parse(file, text, &variables)?;
            engine::check(file, &config, rtmp_port)?;
            Ok((file.clone(), config))
        };
        let configs: Vec<Checked> = self.sources.iter().map(read).collect::<Result<_, Error>>()?;
        engine::overlaps(&configs, rtmp_port)?;
        self.check_tls(&configs, rtmp_port)?;
        self.check_ffmpeg(&configs)?;
        Ok(configs)
    }

    /// Where ffmpeg is to pull, it must be there. Not where a reactor's answer may want it some day.
    fn check_ffmpeg(&self, configs: &[Checked]) -> Result<(), Error> {
        let media = &self.args.media;
        let by_flag = media.pull == PullBy::Ffmpeg && self.roles.has(Role::Playback);
        if (by_flag || engine::needs_ffmpeg(configs)) && !is_program(&media.ffmpeg_path) {
            let why = format!("there is no program '{}', and it is to pull", media.ffmpeg_path.display());
            return Err(Error::Flag { flag: "--ffmpeg-path", why });
        }
        Ok(())
    }

    /// What steps and flags want of TLS must fit together.
    fn check_tls(&self, configs: &[Checked], rtmp_port: u16) -> Result<(), Error> {
        let ports = engine::ports(configs, rtmp_port)?;
        let tls = &self.args.transport;
        let flag = |flag: &'static str, why: &str| Err(Error::Flag { flag, why: why.to_owned() });
        if ports.values().any(|tls| *tls) && tls.tls_cert.is_none() {
            return flag("--tls-cert", "it is needed for a step with rtmps");
        }
        if tls.rtmps_port.is_some_and(|port| port != 0 && ports.contains_key(&port)) {
            return flag("--rtmps-port", "a step listens on this port");
        }
        let at = engine::pulled_at(configs, rtmp_port, tls.rtmps_port);
        if tls.pull_tls && self.roles.has(Role::Ingest) && at.rtmps.is_none() {
            return flag("--pull-tls", "an ingest node needs --rtmps-port, or rtmps at its step for pulls");
        }
        Ok(())
    }

    /// The same plan with its configuration files read anew.
    ///
    /// Errors: a file cannot be read, or has other settings than at the start.
    pub fn reread(&self) -> Result<Plan, Error> {
        let sources = sources(self.args.config.as_deref(), &self.roles)?;
        let all = |files: &[settings::OfFile]| -> Vec<_> {
            let settings = files.iter().flat_map(|(_, settings)| settings.clone());
            settings.map(|setting| (setting.name, setting.value)).collect()
        };
        let settings = settings(&self.args, &sources)?;
        if all(&settings) != all(&self.settings) {
            let file = sources.first().map(|(file, _)| file.clone()).unwrap_or_default();
            let what = "settings: others than at the start take a restart".to_owned();
            return Err(ConfigError { file, line: None, what }.into());
        }
        Ok(Plan { sources, ..self.clone() })
    }

    /// Reads a text that is not among its files, with `${NAME}` filled.
    ///
    /// Errors: it is no configuration; with the line.
    pub fn read_text(&self, rtmp_port: u16, reactors: &Urls, text: &str) -> Result<Config, ConfigError> {
        definition::parse("the workflow", text, &variables(rtmp_port, reactors))
    }

    /// The configuration texts with `${NAME}` filled.
    pub fn print(&self, rtmp_port: u16, reactors: &Urls) -> Result<String, Error> {
        let variables = variables(rtmp_port, reactors);
        let mut printed = String::new();
        for (file, text) in &self.sources {
            printed.push_str(&format!("# {file}\n{}\n", definition::fill_text(file, text, &variables)?));
        }
        if self.roles.has(Role::Reactor) {
            let name = crate::ids::StreamName::parse("NAME")
                .map_err(|error| Error::Flag { flag: "--watcher-template", why: error.to_string() })?;
            let origin = Origin::from_ip([192, 0, 2, 1].into(), 1935);
            printed.push_str("# the reply to a watcher lookup of NAME, published on 192.0.2.1\n");
            printed.push_str(&self.template.render(&name, &origin, self.args.media.pull == PullBy::Native));
        }
        Ok(printed)
    }
}

/// A word without a level would be taken for the name of a module that logs everything, and all others nothing.
pub(crate) fn check_log(filter: &str) -> Result<(), String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    for directive in filter.split(',').map(str::trim).filter(|directive| !directive.is_empty()) {
        let level = directive.rsplit('=').next().unwrap_or_default();
        // Spans and fields have a grammar of their own.
        let is_level = LEVELS.iter().any(|known| level.eq_ignore_ascii_case(known));
        if !is_level && !directive.contains('[') {
            let known = LEVELS.join(", ");
            return Err(format!(
                "'{directive}' is not allowed; LEVEL and TARGET=LEVEL are, with the levels {known}"
            ));
        }
    }
    Ok(())
}

/// The token between nodes and reactors, from where it was given.
fn token(args: &ReactorArgs) -> Result<Option<String>, Error> {
    let handed = std::env::var_os("CREDENTIALS_DIRECTORY").map(|dir| Path::new(&dir).join(TOKEN_CREDENTIAL));
    let handed = handed.filter(|file| args.reactor_token.is_none() && file.exists());
    match args.reactor_token_file.clone().or(handed) {
        Some(file) => Ok(Some(read(&file)?.trim().to_owned())),
        None => Ok(args.reactor_token.clone()),
    }
}

/// Where the reactor listens. Beyond loopback it must be able to tell nodes from strangers.
fn reactor_listen(args: &Args, has_token: bool) -> Result<SocketAddr, Error> {
    let guarded = has_token || args.reactor.insecure || !args.reactor.trusted_nodes.is_empty();
    match args.reactor_listen {
        Some(given) if guarded || given.ip().to_canonical().is_loopback() => Ok(given),
        Some(given) => Err(Error::Flag {
            flag: "--reactor-listen",
            why: format!(
                "{given} is reached from other hosts; that takes --reactor-token-file, --trusted-nodes or --insecure"
            ),
        }),
        None if guarded => Ok((Ipv6Addr::UNSPECIFIED, DEFAULT_REACTOR_PORT).into()),
        None => Ok((loopback(Ipv6Addr::UNSPECIFIED.into(), is_own), DEFAULT_REACTOR_PORT).into()),
    }
}

fn variables(rtmp_port: u16, reactors: &Urls) -> HashMap<&'static str, String> {
    let urls: Vec<String> =
        reactors.as_slice().iter().map(|url| url.as_str().trim_end_matches('/').to_owned()).collect();
    named(rtmp_port, urls.join(","))
}

/// What `${NAME}` stands for in configurations.
fn named(rtmp_port: u16, reactor_urls: String) -> HashMap<&'static str, String> {
    HashMap::from([("RTMP_PORT", rtmp_port.to_string()), ("REACTOR_URL", reactor_urls)])
}

/// The settings of configurations, which decide about flags: so they are read before those are worked out.
fn settings(args: &Args, sources: &[(String, String)]) -> Result<Vec<settings::OfFile>, ConfigError> {
    let urls = args.reactor_url.clone().unwrap_or_else(|| DEFAULT_REACTOR_URL.to_owned());
    let variables = named(args.rtmp_port, urls);
    let read = |(file, text): &(String, String)| {
        definition::parse(file, text, &variables).map(|config| (file.clone(), config.settings))
    };
    sources.iter().map(read).collect()
}

/// Where something listens: what the flag says, which may be 'off'.
fn listen(
    flag: &'static str,
    given: Option<&str>,
    default: Option<SocketAddr>,
) -> Result<Option<SocketAddr>, Error> {
    match given {
        None => Ok(default),
        Some("off") => Ok(None),
        Some(text) => address(flag, text).map(Some),
    }
}

/// The reply to watcher lookups: from this file, or the bundled one.
fn template(file: Option<&Path>) -> Result<Template, Error> {
    let (name, text) = match file {
        Some(file) => (file.display().to_string(), read(file)?),
        None => ("watcher_reply.mmids".to_owned(), WATCHER_REPLY.to_owned()),
    };
    Template::parse(&text)
        .and_then(|template| template.check(&engine::check_answer).map(|()| template))
        .map_err(|error| Error::Flag { flag: "--watcher-template", why: format!("{name}: {error}") })
}

/// The configurations of a process' nodes, each with its file's name: from this file, or the bundled ones.
fn sources(file: Option<&Path>, roles: &Roles) -> Result<Vec<(String, String)>, Error> {
    if let Some(file) = file.filter(|_| roles.is_node()) {
        return Ok(vec![(file.display().to_string(), read(file)?)]);
    }
    let bundled = [(Role::Ingest, INGEST), (Role::Playback, PLAYBACK)];
    let ours = bundled.into_iter().filter(|(role, _)| roles.has(*role));
    Ok(ours.map(|(_, (name, text))| (name.to_owned(), text.to_owned())).collect())
}

fn address(flag: &'static str, text: &str) -> Result<SocketAddr, Error> {
    text.parse().map_err(|_| Error::Flag {
        flag,
        why: format!("'{text}' is not allowed; ADDR:PORT is, like 127.0.0.1:9011 or [::]:8080"),
    })
}

fn read(file: &Path) -> Result<String, Error> {
    std::fs::read_to_string(file).map_err(|error| Error::File { file: file.display().to_string(), error })
}

/// Whether a program can be run: a path, or a name that is looked up in `PATH`.
fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    let is = |file: &Path| {
        file.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    if path.components().count() > 1 {
        return is(path);
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).any(|folder| is(&folder.join(path)))
}

/// The loopback address at which a host reaches its own listener on a wildcard address. `[::]` takes IPv4 as well, which
/// most hosts have; not all have both.
fn loopback(wildcard: IpAddr, is_own: impl Fn(IpAddr) -> bool) -> IpAddr {
    let (v4, v6) = (IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST));
    if wildcard.is_ipv6() && !is_own(v4) && is_own(v6) { v6 } else { v4 }
}

/// Whether this host has an address: only then can it be bound.
fn is_own(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(args: &[&str]) -> Result<Plan, Error> {
        Plan::new(Args::read([&["lb"], args].concat()).unwrap())
    }

    #[test]
    fn roles_are_worked_out() {
        let names = |args: &[&str]| plan(args).unwrap().roles.names().join(",");
        assert_eq!(names(&["--role", "ingest"]), "ingest");
        assert_eq!(names(&["--role", "all"]), "ingest,playback,reactor");
        assert_eq!(names(&["--role", "playback,ingest"]), "ingest,playback");
        assert_eq!(names(&["--role", "playback", "--role", "reactor"]), "playback,reactor");
        assert_eq!(names(&["--role", "ingest", "--reactor-listen", "[::1]:0"]), "ingest,reactor");
    }

    #[test]
    fn processes_of_different_roles_have_admin_ports_of_their_own() {
        let port = |role: &str| plan(&["--role", role]).unwrap().admin_listen.unwrap().port();
        assert_eq!(["ingest", "playback", "reactor", "all"].map(port), [9011, 9012, 9013, 9011]);
        assert_eq!(plan(&["--role", "ingest", "--admin-listen", "off"]).unwrap().admin_listen, None);
    }

    #[test]
    fn the_port_of_the_api_is_taken_from_the_settings_unless_a_flag_says_otherwise() {
        let file = tempfile::NamedTempFile::new().unwrap();
        // Workflows may come by the API, so none is needed.
        std::fs::write(file.path(), "settings {\n http_api_port 9099\n ffmpeg_path /opt/ffmpeg\n}\n")
            .unwrap();
        let node = ["--role", "playback", "--config", file.path().to_str().unwrap()];
        let plan = |more: &[&str]| plan(&[&node[..], more].concat()).unwrap();
        let taken = plan(&[]);
        assert_eq!(taken.admin_listen.unwrap().to_string(), "127.0.0.1:9099");
        assert_eq!(taken.args.media.ffmpeg_path, Path::new("/opt/ffmpeg"));
        assert!(taken.notes.is_empty() && taken.configs(1935, &taken.reactor_urls(None).unwrap()).is_ok());
        let given = plan(&["--admin-listen", "off", "--ffmpeg-path", "ffmpeg"]);
        assert_eq!((given.admin_listen, given.notes.len()), (None, 2));
        assert_eq!(given.args.media.ffmpeg_path, Path::new("ffmpeg"));
    }

    #[test]
    fn a_reactor_is_reached_from_other_hosts_only_if_it_can_tell_nodes_from_strangers() {
        let listen = |args: &[&str]| {
            plan(&[&["--role", "reactor"], args].concat()).map(|plan| plan.reactor_listen.unwrap())
        };
        assert!(listen(&[]).unwrap().ip().is_loopback());
        assert!(listen(&["--reactor-listen", "127.0.0.2:1"]).is_ok());
        for guard in [&["--insecure"][..], &["--reactor-token", "t"], &["--trusted-nodes", "10.0.0.0/8"]] {
            assert_eq!(listen(guard).unwrap().to_string(), "[::]:8080");
            assert!(listen(&[guard, &["--reactor-listen", "10.0.0.1:1"]].concat()).is_ok());
        }
        for open in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1"] {
            let error = listen(&["--reactor-listen", open]).unwrap_err().to_string();
            assert!(error.starts_with("--reactor-listen: ") && error.contains("--trusted-nodes"), "{error}");
        }
    }

    #[test]
    fn the_bundled_configs_are_good() {
        let plan = plan(&["--role", "all", "--reactor-url", "http://a:1,http://b:2"]).unwrap();
        let configs = plan.configs(1936, &plan.reactor_urls(None).unwrap()).unwrap();
        assert_eq!(configs.len(), 2);
        let url = configs[0].1.reactors[0].parameters["url"].as_deref();
        assert_eq!(url, Some("http://a:1/publisher_lookup,http://b:2/publisher_lookup"));
        assert_eq!(engine::ports(&configs, 1936).unwrap(), [(1936, false)].into());
    }

    #[test]
    fn a_node_finds_the_reactor_beside_it() {
        let plan = plan(&["--role", "all"]).unwrap();
        let urls = |address: &str| plan.reactor_urls(Some(address.parse().unwrap())).unwrap().to_string();
        assert!(urls("[::]:4711").starts_with("http://127.0.0.1:4711"));
        assert!(urls("[::1]:4711").starts_with("http://[::1]:4711"));
    }

    #[test]
    fn a_wildcard_is_reached_by_the_loopback_address_that_the_host_has() {
        let (any_v4, any_v6) = (IpAddr::from([0; 4]), IpAddr::from([0; 16]));
        let found = |wildcard, has: &[&str]| {
            let has: Vec<IpAddr> = has.iter().map(|address| address.parse().unwrap()).collect();
            loopback(wildcard, |address| has.contains(&address)).to_string()
        };
        assert_eq!(found(any_v6, &["127.0.0.1", "::1"]), "127.0.0.1");
        assert_eq!(found(any_v6, &["::1"]), "::1");
        assert_eq!(found(any_v6, &["127.0.0.1"]), "127.0.0.1");
        assert_eq!(found(any_v4, &["127.0.0.1", "::1"]), "127.0.0.1");
        assert_eq!(found(any_v4, &["::1"]), "127.0.0.1", "it takes no IPv6");
        assert_eq!(found(any_v6, &[]), "127.0.0.1");
    }

    #[test]
    fn bad_flags_are_named_with_what_is_allowed() {
        for (args, part) in [
            (
                &["--role", "ingest", "--admin-listen", "nowhere"][..],
                "--admin-listen: 'nowhere' is not allowed; ADDR:PORT is",
            ),
            (&["--role", "ingest", "--advertise", "a b"], "--advertise: 'a b' is not an origin"),
            (&["--role", "reactor", "--store", "mysql"], "--store: 'memory' or redis://"),
            (&["--role", "reactor", "--store", "redis://host:port"], "--store: redis://[USER:PASSWORD@]HOST"),
            (&["--role", "reactor", "--store", "redis+sentinel://host"], "/MASTER-NAME[/DB]"),
            (
                &["--role", "reactor", "--store", "rediss://host?ca=/nonexistent"],
                "?ca=/nonexistent: No such file",
            ),
            (
                &["--role", "reactor", "--config", "x"],
                "--config: only a process with the role ingest or playback uses it; the role here is reactor",
            ),
            (
                &["--role", "playback", "--advertise", "x"],
                "--advertise: only a process with the role ingest uses it",
            ),
            (
                &["--role", "ingest,playback", "--store", "memory"],
                "--store: only a process with the role reactor uses it",
            ),
            (&["--role", "ingest", "--config", "/nonexistent"], "/nonexistent: cannot be read"),
            (&["--role", "ingest", "--reactor-url", "ftp://x"], "--reactor-url: "),
        ] {
            let error = plan(args).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
