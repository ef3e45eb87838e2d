//! One connection for the whole process: it is shared, many questions are under way on it at a time, and it is made anew when it
//! broke. Who asks says how long he waits.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, Pipeline,
    RedisError, RedisFuture, RedisResult, TlsCertificates, TlsMode, Value,
};
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::timeout;

/// How long a new connection may take, TLS and log-in included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The longest that anything is waited for on a connection; who asks may wait less.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Which servers there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Topology {
    /// One server.
    One,
    /// Sentinels, that tell which server leads the group of this name.
    Sentinel(String),
    /// A cluster, some of whose nodes these are.
    Cluster,
}

/// Where Redis is.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisParams {
    /// `redis://user:password@host:port/database`, or `rediss://` for TLS: one server, or several of those that
    /// [`topology`](Self::topology) names.
    pub urls: Vec<String>,
    /// Which servers these are.
    pub topology: Topology,
    /// Whom to trust, for `rediss://`.
    pub tls: RedisTls,
    /// What all keys begin with.
    pub prefix: String,
}

/// How one speaks TLS to Redis. Without authorities, those of the system are trusted.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct RedisTls {
    /// Trusted authorities, PEM.
    pub authorities_pem: Option<Vec<u8>>,
    /// One's own certificate, with those that lead to its authority, and its key: PEM.
    pub identity_pem: Option<(Vec<u8>, Vec<u8>)>,
}

/// Without the URLs, where passwords stand.
impl fmt::Debug for RedisParams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisParams").field("topology", &self.topology).finish_non_exhaustive()
    }
}

/// Without keys.
impl fmt::Debug for RedisTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RedisTls(..)")
    }
}

impl RedisParams {
    /// One server, without TLS unless the URL says so, keys beginning with `tidegate`.
    #[must_use]
    pub fn new(url: &str) -> Self {
        let (urls, tls) = (vec![url.to_owned()], RedisTls::default());
        Self { urls, topology: Topology::One, tls, prefix: "tidegate".to_owned() }
    }
}

/// Why Redis did not answer, or what it answered instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreachable {
    /// A URL, name or certificate is no good.
    #[error("redis: {0}")]
    Params(String),
    /// No answer in time.
    #[error("redis did not answer within {} ms", .0.as_millis())]
    Late(Duration),
    /// The connection could not be made, or broke, or an error was answered.
    #[error("redis: {0}")]
    Failed(String),
}

impl Unreachable {
    /// In a word, as metrics have it.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Params(_) => "params",
            Self::Late(_) => "late",
            Self::Failed(_) => "failed",
        }
    }
}

impl From<RedisError> for Unreachable {
    fn from(error: RedisError) -> Self {
        Self::Failed(error.to_string())
    }
}

enum Servers {
    One(Box<Client>),
    Sentinel(Box<AsyncMutex<SentinelClient>>),
    Cluster(Box<ClusterClient>),
}

/// A connection, to one server or to a cluster.
#[derive(Clone)]
pub(super) enum Connection {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::One(one) => one.req_packed_command(cmd),
            Self::Cluster(cluster) => cluster.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::One(one) => one.req_packed_commands(pipeline, offset, count),
            Self::Cluster(cluster) => cluster.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::One(one) => one.get_db(),
            Self::Cluster(cluster) => cluster.get_db(),
        }
    }
}

/// Redis, as this process reaches it. Cheap to clone; clones share the connection.
#[derive(Clone)]
pub struct Redis(Arc<Inner>);

struct Inner {
    servers: Servers,
    prefix: String,
    /// The connection in use, with its number.
    current: Mutex<(u64, Option<Connection>)>,
    /// One makes a new one at a time.
    connecting: Arc<AsyncMutex<()>>,
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis").field("prefix", &self.0.prefix).finish_non_exhaustive()
    }
}

impl Redis {
    /// Redis by these parameters. Nothing is asked yet: it may be away when a process starts.
    ///
    /// # Errors
    /// [`Unreachable::Params`], which repeats no URL: passwords stand in them.
    pub fn new(params: RedisParams) -> Result<Self, Unreachable> {
        let wrong = |error: RedisError| Unreachable::Params(error.to_string());
        let RedisParams { urls, topology, tls, prefix } = params;
        let mut infos: Vec<ConnectionInfo> = Vec::with_capacity(urls.len());
        for (nth, url) in urls.iter().enumerate() {
            let info = url.as_str().into_connection_info();
            infos.push(info.map_err(|_| {
                Unreachable::Params(format!("URL {}: expected redis://user:password@host:port/database", nth + 1))
            })?);
        }
        let Some(first) = infos.first().cloned() else {
            return Err(Unreachable::Params("expected the URL of a server at least".to_owned()));
        };
        let is_tls = matches!(first.addr(), ConnectionAddr::TcpTls { .. });
        if is_tls {
            // Of a process that has none yet: the crate asks for it, and without one it would panic.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let certificates = is_tls.then(|| TlsCertificates {
            client_tls: tls.identity_pem.map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key }),
            root_cert: tls.authorities_pem,
        });
        let servers = match topology {
            Topology::One if infos.len() > 1 => {
                return Err(Unreachable::Params(
                    "expected one URL, unless sentinels or a cluster are meant".to_owned(),
                ));
            }
            Topology::One => {
                let client = match certificates {
                    Some(certificates) => Client::build_with_tls(first, certificates),
                    None => Client::open(first),
                };
                Servers::One(Box::new(client.map_err(wrong)?))
            }
            Topology::Sentinel(service) => {
                let settings = first.redis_settings().clone();
                let addresses = infos.iter().map(|info| info.addr().clone());
                let built =
                    SentinelClientBuilder::new(addresses, service, SentinelServerType::Master).and_then(|building| {
                        let mut building = building.set_client_to_redis_db(settings.db());
                        if let Some(user) = settings.username() {
                            building =
                                building.set_client_to_redis_username(user).set_client_to_sentinel_username(user);
                        }
                        if let Some(password) = settings.password() {
                            building = building
                                .set_client_to_redis_password(password)
                                .set_client_to_sentinel_password(password);
                        }
                        if let Some(certificates) = certificates {
                            building = building
                                .set_client_to_redis_tls_mode(TlsMode::Secure)
                                .set_client_to_sentinel_tls_mode(TlsMode::Secure)
                                .set_client_to_redis_certificates(certificates.clone())
                                .set_client_to_sentinel_certificates(certificates);
                        }
                        building.build()
                    });
                Servers::Sentinel(Box::new(AsyncMutex::new(built.map_err(wrong)?)))
            }
            Topology::Cluster => {
                let mut builder = ClusterClientBuilder::new(infos).retries(1).connection_timeout(CONNECT_TIMEOUT);
                if let Some(certificates) = certificates {
                    builder = builder.tls(TlsMode::Secure).certs(certificates);
                }
                let client = builder.response_timeout(RESPONSE_TIMEOUT).build().map_err(wrong)?;
                Servers::Cluster(Box::new(client))
            }
        };
        let (current, connecting) = (Mutex::new((0, None)), Arc::default());
        Ok(Self(Arc::new(Inner { servers, prefix, current, connecting })))
    }

    /// A key: `<prefix>:1:{<tag>}:<rest>`. All keys of one tag are on one node of a cluster. The 1 is the format's version.
    pub(super) fn key(&self, tag: &str, rest: &str) -> String {
        format!("{}:1:{{{tag}}}:{rest}", self.0.prefix)
    }

    /// Asks, on the connection that all share; one that broke is made anew by the next who asks.
    pub(super) async fn ask<T, F, Fut>(&self, within: Duration, ask: F) -> Result<T, Unreachable>
    where
        F: FnOnce(Connection) -> Fut,
        Fut: Future<Output = RedisResult<T>>,
    {
        match timeout(within, self.asked(ask)).await {
            Ok(answer) => answer,
            Err(_) => Err(Unreachable::Late(within)),
        }
    }

    async fn asked<T, F, Fut>(&self, ask: F) -> Result<T, Unreachable>
    where
        F: FnOnce(Connection) -> Fut,
        Fut: Future<Output = RedisResult<T>>,
    {
        let (number, connection) = self.connection().await?;
        ask(connection).await.map_err(|error| {
            // A cluster's connection mends itself. A server that leads no more answers, and takes nothing.
            let is_another = error.code().is_some_and(|code| ["READONLY", "MASTERDOWN", "CLUSTERDOWN"].contains(&code));
            if (error.is_io_error() || error.is_unrecoverable_error() || is_another) && !error.is_timeout() {
                self.forget(number);
            }
            error.into()
        })
    }

    /// Lets a connection go, if it is still the one in use.
    fn forget(&self, number: u64) {
        let mut current = self.0.current.lock();
        if current.0 == number && !matches!(current.1, Some(Connection::Cluster(_))) {
            current.1 = None;
        }
    }

    /// Lets the connection go that is in use: it does not answer.
    pub(super) fn reconnect(&self) {
        let number = self.0.current.lock().0;
        self.forget(number);
    }

    fn in_use(&self) -> Option<(u64, Connection)> {
        let current = self.0.current.lock();
        Some((current.0, current.1.clone()?))
    }

    async fn connection(&self) -> Result<(u64, Connection), Unreachable> {
        if let Some(known) = self.in_use() {
            return Ok(known);
        }
        let one_at_a_time = self.0.connecting.clone().lock_owned().await;
        if let Some(known) = self.in_use() {
            return Ok(known);
        }
        let redis = self.clone();
        // On its own: whoever waits a few milliseconds only would otherwise begin it each time, and nobody would finish it.
        let making = tokio::spawn(async move {
            let _one_at_a_time = one_at_a_time;
            let made = redis.connect().await?;
            let mut current = redis.0.current.lock();
            *current = (current.0 + 1, Some(made.clone()));
            Ok((current.0, made))
        });
        making.await.unwrap_or_else(|error| Err(Unreachable::Failed(error.to_string())))
    }

    async fn connect(&self) -> Result<Connection, Unreachable> {
        let config = || {
            AsyncConnectionConfig::new()
                .set_connection_timeout(Some(CONNECT_TIMEOUT))
                .set_response_timeout(Some(RESPONSE_TIMEOUT))
        };
        Ok(match &self.0.servers {
            Servers::One(client) => {
                Connection::One(client.get_multiplexed_async_connection_with_config(&config()).await?)
            }
            Servers::Sentinel(client) => {
                let mut client = client.lock().await;
                Connection::One(client.get_async_connection_with_config(&config()).await?)
            }
            Servers::Cluster(client) => Connection::Cluster(client.get_async_connection().await?),
        })
    }
}
