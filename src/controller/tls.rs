//! TLS on the report port: handshakes beside the accepting, each with its own time and not too many at once, so that who
//! connects and says nothing keeps nobody else waiting.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::Listener;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;

use crate::store::pem::pem;
use crate::telemetry::{Metric, Telemetry};

/// A member shakes hands within milliseconds; across continents, within one second.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes at a time; those beyond wait to be accepted. A fleet of 1,000 that comes back at once is through in a second.
const HANDSHAKES_MAX: usize = 128;

/// The report port's PEM files. Read at the start: files that change are read at the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsParams {
    /// The certificate, with those that lead to its authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authorities of which every peer has to show a certificate; `None`: no certificate is asked for.
    pub client_authorities: Option<PathBuf>,
}

impl TlsParams {
    /// Whether the files are there, and good.
    ///
    /// # Errors
    /// Which one is wrong, and how, in one line.
    pub fn check(&self) -> Result<(), String> {
        self.read().map(drop)
    }

    /// Reads the files; which one is wrong, and how, in one line.
    pub(super) fn read(&self) -> Result<Arc<ServerConfig>, String> {
        let of = |file: &PathBuf, why: &str| format!("{}: {why}", file.display());
        let certificates = |file: &PathBuf| {
            let read = pem(file).map_err(|error| error.to_string())?;
            let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read).collect();
            match all {
                Ok(all) if !all.is_empty() => Ok(all),
                Ok(_) => Err(of(file, "no certificate in it")),
                Err(error) => Err(of(file, &error.to_string())),
            }
        };
        let chain = certificates(&self.certificate)?;
        let read = pem(&self.key).map_err(|error| error.to_string())?;
        let key = PrivateKeyDer::from_pem_slice(&read).map_err(|error| of(&self.key, &error.to_string()))?;
        let provider = Arc::new(default_provider());
        let config = ServerConfig::builder_with_provider(provider.clone());
        let config = config.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
        let config = match &self.client_authorities {
            None => config.with_no_client_auth(),
            Some(file) => {
                let mut authorities = RootCertStore::empty();
                for authority in certificates(file)? {
                    authorities.add(authority).map_err(|error| of(file, &error.to_string()))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), provider).build();
                config.with_client_cert_verifier(verifier.map_err(|error| of(file, &error.to_string()))?)
            }
        };
        let mut config =
            config.with_single_cert(chain, key).map_err(|error| of(&self.certificate, &error.to_string()))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// A listener whose connections have shaken hands.
#[derive(Debug)]
pub(super) struct TlsListener {
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    local_addr: SocketAddr,
    accepting: JoinHandle<()>,
}

impl TlsListener {
    /// Begins to accept.
    pub(super) fn new(
        tcp: TcpListener,
        local_addr: SocketAddr,
        config: Arc<ServerConfig>,
        telemetry: Arc<Telemetry>,
    ) -> Self {
        let (shaken, ready) = mpsc::channel(HANDSHAKES_MAX);
        let accepting = tokio::spawn(accept(tcp, TlsAcceptor::from(config), shaken, telemetry));
        Self { ready, local_addr, accepting }
    }
}

impl Drop for TlsListener {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        match self.ready.recv().await {
            Some(connection) => connection,
            // The accepting ends with this listener, not before.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        Ok(self.local_addr)
    }
}

/// Handshakes that failed are counted, and said once in so long.
const SAID_EVERY: Duration = Duration::from_secs(60);

async fn accept(
    mut tcp: TcpListener,
    acceptor: TlsAcceptor,
    shaken: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
    telemetry: Arc<Telemetry>,
) {
    let places = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let said_at: Arc<Mutex<Option<Instant>>> = Arc::default();
    // It is never closed.
    while let Ok(place) = places.clone().acquire_owned().await {
        // axum's own, which waits where the process has no more files to open.
        let (stream, peer) = Listener::accept(&mut tcp).await;
        let (handshake, shaken, telemetry) = (acceptor.accept(stream), shaken.clone(), telemetry.clone());
        let said_at = said_at.clone();
        tokio::spawn(async move {
            let (why, error) = match timeout(HANDSHAKE_TIMEOUT, handshake).await {
                Ok(Ok(stream)) => return drop(shaken.send((stream, peer)).await),
                Ok(Err(error)) => ("handshake", error.to_string()),
                Err(_) => ("handshake_timeout", format!("nothing within {HANDSHAKE_TIMEOUT:?}")),
            };
            let is_due = |at: &Instant| at.elapsed() >= SAID_EVERY;
            if said_at.lock().as_ref().is_none_or(is_due) {
                *said_at.lock() = Some(Instant::now());
                tracing::warn!(%peer, "a TLS handshake failed: {error}; said once a minute");
            }
            telemetry.add(Metric::ConnectionsRefused, &[why], 1.0);
            drop(place);
        });
    }
}
