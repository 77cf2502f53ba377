//! Connections: to one server, to the master that Sentinels name, to a cluster. Everything else calls [`Connection`] and
//! does not know which of them it has.

use super::address::{Address, Way, client};
use redis::aio::{MultiplexedConnection, PubSub};
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo, SingleNodeRoutingInfo};
use redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, RedisError, RedisResult, Value,
};
use std::time::Duration;

/// The beginning of all keys and channels.
pub(super) const PREFIX: &str = "lb:";

/// The longest that a read or a write may take. Below the 2 s after which nodes give a reactor up.
pub(super) const CALL_DEADLINE: Duration = Duration::from_millis(1500);

/// How long one attempt to connect to one server may take.
const CONNECT_ATTEMPT: Duration = Duration::from_secs(1);

/// The same for a member of a cluster. Shorter, because the client of a cluster answers nobody while it learns the
/// masters anew, and waits this long for a member that does not answer.
const CONNECT_MEMBER: Duration = Duration::from_millis(400);

/// How often a cluster's client tries a call that was redirected, or whose server was gone.
const CLUSTER_RETRIES: u32 = 3;

/// The longest and the shortest pause between these, in milliseconds.
const CLUSTER_RETRY_PAUSE: (u64, u64) = (20, 200);

/// A connection that any number of calls share. Cheap to clone.
#[derive(Clone)]
pub(super) enum Connection {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

/// A connection, and where it leads.
pub(super) struct Connected {
    pub(super) connection: Connection,
    /// The server, where there is one.
    pub(super) server: Option<Client>,
}

impl Connection {
    /// Calls a command, on the server that has its key.
    pub(super) async fn call(&self, command: Cmd) -> RedisResult<Value> {
        match self {
            Connection::One(connection) => command.query_async(&mut connection.clone()).await,
            Connection::Cluster(connection) => command.query_async(&mut connection.clone()).await,
        }
    }

    /// Calls a command on one of the masters that [`Connection::on_masters`] named.
    pub(super) async fn call_on(&self, master: &str, command: Cmd) -> RedisResult<Value> {
        let Connection::Cluster(connection) = self else { return self.call(command).await };
        let (host, port) = host_and_port(master)?;
        let master = RoutingInfo::SingleNode(SingleNodeRoutingInfo::ByAddress { host, port });
        connection.clone().route_command(command, master).await?.extract_error()
    }

    /// Calls a command on all masters and says what each of them answered. An error if one of them did not.
    pub(super) async fn on_masters(&self, command: Cmd) -> RedisResult<Vec<(String, String)>> {
        let connection = match self {
            Connection::One(connection) => {
                let text = command.query_async(&mut connection.clone()).await?;
                return Ok(vec![(String::new(), text)]);
            }
            Connection::Cluster(connection) => connection,
        };
        let masters = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
        let answers = connection.clone().route_command(command, masters).await?.extract_error()?;
        Ok(redis::from_redis_value(answers)?)
    }
}

impl Address {
    /// Connects once.
    pub(super) async fn connect(&self, call_deadline: Duration) -> RedisResult<Connected> {
        let server = match &self.way {
            Way::Cluster { seeds } => {
                let cluster = self.cluster(seeds, call_deadline)?.get_async_connection().await?;
                return Ok(Connected { connection: Connection::Cluster(cluster), server: None });
            }
            Way::Single(server) => server.as_ref().clone(),
            Way::Sentinel { .. } => match self.master().await {
                Some(master) => master?,
                None => return Err(misuse("no Sentinel")),
            },
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_ATTEMPT))
            .set_response_timeout(Some(call_deadline));
        let connection = server.get_multiplexed_async_connection_with_config(&config).await?;
        Ok(Connected { connection: Connection::One(connection), server: Some(server) })
    }

    /// Which server the Sentinels name, and that says itself that it is the master. Nothing: there are no Sentinels.
    pub(super) async fn master(&self) -> Option<RedisResult<Client>> {
        let Way::Sentinel { sentinels, master } = &self.way else { return None };
        let ask = async {
            let addresses = sentinels.iter().map(|sentinel| sentinel.addr().clone()).collect::<Vec<_>>();
            let mut builder =
                SentinelClientBuilder::new(addresses, master.clone(), SentinelServerType::Master)?
                    .set_client_to_redis_db(self.login.db());
            if let Some(user) = self.login.username() {
                builder = builder.set_client_to_redis_username(user);
            }
            if let Some(password) = self.login.password() {
                builder = builder.set_client_to_redis_password(password);
            }
            if let Some(login) = sentinels.first().map(ConnectionInfo::redis_settings) {
                if let Some(user) = login.username() {
                    builder = builder.set_client_to_sentinel_username(user);
                }
                if let Some(password) = login.password() {
                    builder = builder.set_client_to_sentinel_password(password);
                }
            }
            if let (Some(mode), Some(certificates)) = (self.tls_mode(), &self.tls) {
                builder = builder
                    .set_client_to_redis_tls_mode(mode)
                    .set_client_to_redis_certificates(certificates.clone())
                    .set_client_to_sentinel_tls_mode(mode)
                    .set_client_to_sentinel_certificates(certificates.clone());
            }
            builder.build()?.async_get_client().await
        };
        Some(ask.await)
    }

    fn cluster(
        &self,
        seeds: &[ConnectionInfo],
        deadline: Duration,
    ) -> RedisResult<redis::cluster::ClusterClient> {
        let mut builder = ClusterClientBuilder::new(seeds.iter().cloned())
            .connection_timeout(CONNECT_MEMBER)
            .response_timeout(deadline)
            .overall_response_timeout(Some(deadline))
            .retries(CLUSTER_RETRIES)
            .min_retry_wait(CLUSTER_RETRY_PAUSE.0)
            .max_retry_wait(CLUSTER_RETRY_PAUSE.1);
        if let Some(certificates) = &self.tls {
            builder = builder.certs(certificates.clone());
        }
        builder.build()
    }

    /// Subscribes to a channel: on `server`, or else on the first of these members of a cluster, or of its seeds, that
    /// takes it. What is published on one member reaches the subscribers of all.
    pub(super) async fn subscribe(
        &self,
        server: Option<&Client>,
        masters: &[String],
        channel: &str,
    ) -> RedisResult<PubSub> {
        let mut last = None;
        for server in self.members(server, masters)? {
            match tokio::time::timeout(CONNECT_ATTEMPT, subscribe(&server, channel)).await {
                Ok(Ok(subscription)) => return Ok(subscription),
                Ok(Err(error)) => last = Some(error),
                Err(_) => last = Some(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
            }
        }
        Err(last.unwrap_or_else(|| misuse("no server")))
    }

    fn members(&self, server: Option<&Client>, masters: &[String]) -> RedisResult<Vec<Client>> {
        let Way::Cluster { seeds } = &self.way else { return Ok(server.cloned().into_iter().collect()) };
        let member = |master: &String| {
            let (host, port) = host_and_port(master)?;
            let address = match self.tls {
                None => ConnectionAddr::Tcp(host, port),
                Some(_) => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
            };
            seeds
                .first()
                .map(|seed| client(seed.clone().set_addr(address), self.tls.as_ref()))
                .unwrap_or_else(|| Err(misuse("no seed")))
        };
        let seeds = seeds.iter().map(|seed| client(seed.clone(), self.tls.as_ref()));
        masters.iter().map(member).chain(seeds).collect()
    }
}

async fn subscribe(server: &Client, channel: &str) -> RedisResult<PubSub> {
    let mut subscription = server.get_async_pubsub().await?;
    subscription.subscribe(channel).await?;
    Ok(subscription)
}

/// The crate writes IPv6 addresses without brackets.
fn host_and_port(address: &str) -> RedisResult<(String, u16)> {
    let parts = address.rsplit_once(':').and_then(|(host, port)| Some((host.to_owned(), port.parse().ok()?)));
    parts.ok_or_else(|| misuse("a member without a port"))
}

fn misuse(what: &'static str) -> RedisError {
    (redis::ErrorKind::InvalidClientConfig, what).into()
}

/// What is safe to log of an error: its kind, the server's code, and the operating system's words, never what was sent.
pub(super) fn describe(error: &RedisError) -> String {
    let source = std::error::Error::source(error);
    match (source, error.code()) {
        (_, Some(code)) => format!("{} ({code})", error.category()).trim_start().to_owned(),
        (Some(source), None) if error.is_io_error() => format!("{}: {source}", error.category()),
        _ => error.category().to_owned(),
    }
}
