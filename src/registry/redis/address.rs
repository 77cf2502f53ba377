//! The text after `--store`: which servers, by which way, with whose password. Pure, but that it reads the file of a CA.

use redis::{
    Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo, TlsCertificates, TlsMode,
};

/// The port of a server that needs no mention.
const REDIS_PORT: u16 = 6379;

/// The port of a Sentinel that needs no mention.
const SENTINEL_PORT: u16 = 26379;

/// Why a text is not the address of a store. No message holds any of the text but the name of a CA's file: it may hold
/// a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RedisUrlError {
    /// The beginning is unknown.
    #[error(
        "'memory' or redis://HOST[:PORT][/DB] is allowed; with TLS rediss://, for a Unix socket unix:///PATH, for \
         Sentinel redis+sentinel://HOST[,HOST...]/MASTER-NAME, for a cluster redis+cluster://HOST[,HOST...]"
    )]
    Scheme,
    /// The rest does not fit the beginning.
    #[error("{0} is allowed")]
    Form(&'static str),
    /// A parameter after the question mark.
    #[error(
        "an unknown parameter; allowed are ca=FILE (with rediss://), and sentinel_user=USER and \
         sentinel_password=PASSWORD (with redis+sentinel://)"
    )]
    Parameter,
    /// The CA's file.
    #[error("the CA's file of rediss://...?ca={0}: {1}")]
    Ca(String, String),
}

const SINGLE: &str = "redis://[USER:PASSWORD@]HOST[:PORT][/DB] (rediss:// with TLS)";
const UNIX: &str = "unix:///PATH[?db=DB]";
const SENTINEL: &str = "redis+sentinel://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]...]/MASTER-NAME[/DB] \
                        (rediss+sentinel:// with TLS)";
const CLUSTER: &str =
    "redis+cluster://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]...] (rediss+cluster:// with TLS)";

/// How the master of a record is found.
pub(super) enum Way {
    /// One server.
    Single(Box<Client>),
    /// Sentinels say which server is the master of that name.
    Sentinel { sentinels: Vec<ConnectionInfo>, master: String },
    /// Records are spread over the masters of a cluster; these are some of its servers.
    Cluster { seeds: Vec<ConnectionInfo> },
}

/// An address that was understood. Holds passwords and is never logged; [`Address::place`] is.
pub(super) struct Address {
    pub(super) way: Way,
    /// Without user names and passwords.
    pub(super) place: String,
    /// The user, password and database on the servers that keep records.
    pub(super) login: RedisConnectionInfo,
    /// With TLS: the CA to trust instead of the system's.
    pub(super) tls: Option<TlsCertificates>,
}

/// What comes after the question mark.
#[derive(Default)]
struct Parameters {
    ca: Option<String>,
    sentinel_user: Option<String>,
    sentinel_password: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Single,
    Sentinel,
    Cluster,
}

impl Address {
    pub(super) fn parse(text: &str) -> Result<Self, RedisUrlError> {
        let (scheme, rest) = text.split_once("://").ok_or(RedisUrlError::Scheme)?;
        let (kind, form, tls) = match scheme {
            "unix" => return Self::unix(text),
            "redis" => (Kind::Single, SINGLE, false),
            "rediss" => (Kind::Single, SINGLE, true),
            "redis+sentinel" => (Kind::Sentinel, SENTINEL, false),
            "rediss+sentinel" => (Kind::Sentinel, SENTINEL, true),
            "redis+cluster" => (Kind::Cluster, CLUSTER, false),
            "rediss+cluster" => (Kind::Cluster, CLUSTER, true),
            _ => return Err(RedisUrlError::Scheme),
        };
        let wrong = || RedisUrlError::Form(form);
        // The crate would take `#insecure` for a wish not to check certificates.
        if rest.contains('#') {
            return Err(wrong());
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) = match authority.rsplit_once('@') {
            Some((user, hosts)) => (format!("{user}@"), hosts),
            None => (String::new(), authority),
        };
        let (master, db) = match kind {
            Kind::Single => ("", path),
            Kind::Sentinel => path.split_once('/').unwrap_or((path, "")),
            Kind::Cluster => (path, ""),
        };
        if master.is_empty() != (kind != Kind::Sentinel) || (kind == Kind::Single && hosts.contains(',')) {
            return Err(wrong());
        }
        let default_port = if kind == Kind::Sentinel { SENTINEL_PORT } else { REDIS_PORT };
        let server = |host: &str| server(&user, host, default_port, db, tls).ok_or_else(wrong);
        let servers = hosts.split(',').map(server).collect::<Result<Vec<_>, _>>()?;
        let login = servers.first().ok_or_else(wrong)?.redis_settings().clone();
        let parameters = Parameters::parse(query, kind, tls)?;
        let tls = tls.then(|| parameters.certificates()).transpose()?;
        let place = place(scheme, hosts, master, login.db());
        let way = match kind {
            Kind::Single => {
                let server = servers.into_iter().next().ok_or_else(wrong)?;
                let client = client(server, tls.as_ref()).map_err(|error| parameters.ca_error(error))?;
                Way::Single(Box::new(client))
            }
            Kind::Sentinel => {
                let login = parameters.sentinel_login();
                let sentinels = servers.into_iter().map(|server| server.set_redis_settings(login.clone()));
                Way::Sentinel { sentinels: sentinels.collect(), master: master.to_owned() }
            }
            Kind::Cluster => Way::Cluster { seeds: servers },
        };
        Ok(Address { way, place, login, tls })
    }

    fn unix(text: &str) -> Result<Self, RedisUrlError> {
        let wrong = |_| RedisUrlError::Form(UNIX);
        let info = text.into_connection_info().map_err(wrong)?;
        let ConnectionAddr::Unix(path) = info.addr() else { return Err(RedisUrlError::Form(UNIX)) };
        let login = info.redis_settings().clone();
        let place = format!("{}?db={}", path.display(), login.db());
        let client = Client::open(info).map_err(wrong)?;
        Ok(Address { way: Way::Single(Box::new(client)), place, login, tls: None })
    }

    /// The transport encryption of all connections.
    pub(super) fn tls_mode(&self) -> Option<TlsMode> {
        self.tls.is_some().then_some(TlsMode::Secure)
    }
}

/// What is logged.
fn place(scheme: &str, hosts: &str, master: &str, db: i64) -> String {
    match scheme.split_once('+') {
        None => format!("{hosts}/{db}"),
        Some((_, "sentinel")) => format!("master {master}/{db} of Sentinel {hosts}"),
        Some(_) => format!("cluster {hosts}"),
    }
}

/// One server of a list. The crate takes the text apart and decodes what is percent-encoded.
fn server(user: &str, host: &str, default_port: u16, db: &str, tls: bool) -> Option<ConnectionInfo> {
    // A colon inside the brackets of an IPv6 address names no port.
    let has_port = host.rsplit(']').next().is_some_and(|end| end.contains(':'));
    let port = if has_port { String::new() } else { format!(":{default_port}") };
    let scheme = if tls { "rediss" } else { "redis" };
    let info = format!("{scheme}://{user}{host}{port}/{db}").into_connection_info().ok()?;
    (info.redis_settings().db() >= 0).then_some(info)
}

/// A client of one server.
pub(super) fn client(server: ConnectionInfo, tls: Option<&TlsCertificates>) -> redis::RedisResult<Client> {
    match tls {
        Some(certificates) => Client::build_with_tls(server, certificates.clone()),
        None => Client::open(server),
    }
}

impl Parameters {
    fn parse(query: &str, kind: Kind, tls: bool) -> Result<Self, RedisUrlError> {
        let mut parameters = Parameters::default();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            let place = match &*name {
                "ca" if tls => &mut parameters.ca,
                "sentinel_user" if kind == Kind::Sentinel => &mut parameters.sentinel_user,
                "sentinel_password" if kind == Kind::Sentinel => &mut parameters.sentinel_password,
                _ => return Err(RedisUrlError::Parameter),
            };
            *place = Some(value.into_owned());
        }
        Ok(parameters)
    }

    fn certificates(&self) -> Result<TlsCertificates, RedisUrlError> {
        let read = |file: &String| {
            let pem = std::fs::read(file).map_err(|error| self.ca_error(error))?;
            // Checked here, since the crate would say so at each connection only.
            let unused = "rediss://localhost".into_connection_info().map_err(|error| self.ca_error(error))?;
            let certificates = TlsCertificates { client_tls: None, root_cert: Some(pem.clone()) };
            client(unused, Some(&certificates)).map_err(|error| self.ca_error(error))?;
            if !pem.windows(27).any(|words| words == b"-----BEGIN CERTIFICATE-----") {
                return Err(self.ca_error("there is no certificate in it (PEM)"));
            }
            Ok(pem)
        };
        let root_cert = self.ca.as_ref().map(read).transpose()?;
        Ok(TlsCertificates { client_tls: None, root_cert })
    }

    fn ca_error(&self, error: impl ToString) -> RedisUrlError {
        RedisUrlError::Ca(self.ca.clone().unwrap_or_default(), error.to_string())
    }

    /// Sentinels have users of their own.
    fn sentinel_login(&self) -> RedisConnectionInfo {
        let mut login = RedisConnectionInfo::default();
        if let Some(user) = &self.sentinel_user {
            login = login.set_username(user);
        }
        if let Some(password) = &self.sentinel_password {
            login = login.set_password(password);
        }
        login
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place_of(text: &str) -> String {
        Address::parse(text).map_or_else(|error| panic!("{text}: {error}"), |address| address.place)
    }

    #[test]
    fn places_are_shown_without_secrets() {
        for (text, place) in [
            ("redis://user:secret@10.0.0.1", "10.0.0.1/0"),
            ("redis://:secret@[::1]:7000/3", "[::1]:7000/3"),
            ("rediss://redis.example.com/1", "redis.example.com/1"),
            ("unix:///run/redis.sock?db=2&pass=secret", "/run/redis.sock?db=2"),
            ("redis+sentinel://:secret@a,b:26380/main", "master main/0 of Sentinel a,b:26380"),
            ("rediss+sentinel://a/main/4?sentinel_password=secret", "master main/4 of Sentinel a"),
            ("redis+cluster://u:secret@a:7000,[fe80::1]", "cluster a:7000,[fe80::1]"),
            ("rediss+cluster://a", "cluster a"),
        ] {
            assert_eq!(place_of(text), place);
        }
    }

    #[test]
    fn servers_have_the_ports_and_passwords_that_the_text_names() {
        let address = Address::parse("redis+sentinel://u:p%40ss@a,[::1]:7/main/4?sentinel_user=s").unwrap();
        assert_eq!((address.login.username(), address.login.password()), (Some("u"), Some("p@ss")));
        assert_eq!(address.login.db(), 4);
        let Way::Sentinel { sentinels, master } = address.way else { panic!() };
        let addresses: Vec<_> = sentinels.iter().map(|sentinel| sentinel.addr().to_string()).collect();
        assert_eq!((master.as_str(), addresses), ("main", vec!["a:26379".to_owned(), "::1:7".to_owned()]));
        for sentinel in &sentinels {
            let login = sentinel.redis_settings();
            assert_eq!((login.username(), login.password(), login.db()), (Some("s"), None, 0));
        }
        let address = Address::parse("redis+cluster://a,b:7").unwrap();
        let Way::Cluster { seeds } = address.way else { panic!() };
        let addresses: Vec<_> = seeds.iter().map(|seed| seed.addr().to_string()).collect();
        assert_eq!(addresses, ["a:6379", "b:7"]);
    }

    #[test]
    fn wrong_addresses_are_refused_without_repeating_them() {
        for text in [
            "",
            "redis",
            "mysql://user:secret@host",
            "redis://user:secret@host:port",
            "redis://user:secret@host/x",
            "redis://user:secret@host/-1",
            "redis://user:secret@a,b",
            "redis://user:secret@",
            "rediss://user:secret@host/#insecure",
            "redis://user:secret@host?ca=/secret",
            "rediss://user:secret@host?protocol=secret",
            "unix://secret",
            "redis+sentinel://user:secret@a",
            "redis+sentinel://user:secret@a,:1/main",
            "redis+sentinel://user:secret@/main",
            "redis+cluster://user:secret@a/3",
            "redis+cluster://user:secret@a,,b",
        ] {
            let error = Address::parse(text).err().unwrap_or_else(|| panic!("{text}")).to_string();
            assert!(error.contains("allowed") && !error.contains("secret"), "{text}: {error}");
        }
        let error = Address::parse("rediss://user:secret@host?ca=/no/such.pem").err().unwrap().to_string();
        assert!(error.contains("/no/such.pem: No such file") && !error.contains("secret"), "{error}");
        let error = Address::parse("rediss://host?ca=/dev/null").err().unwrap().to_string();
        assert!(error.contains("no certificate"), "{error}");
    }
}
