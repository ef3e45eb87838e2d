//! HTTP with TLS where it is wanted, for those who ask another server: members the leader, the controller Prometheus.
//!
//! *Why not reqwest*: of its TLS features, one builds a second cryptography library from C, and the other lets every
//! `reqwest::Client::new()` of the service that embeds this panic until somebody has chosen a provider. Here hyper speaks through
//! the rustls with *ring* that the store's client brings anyway.
//!
//! No proxy is asked: who is asked is on the inside, and a proxy for the way out has no business here. No redirect is followed: a
//! token goes where it was meant to. An answer is read to a given length.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// How one speaks TLS to a server. Held as read.
#[derive(Clone)]
pub(crate) struct Trust(Arc<ClientConfig>);

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A key is nobody's business.
        f.write_str("Trust(..)")
    }
}

impl Trust {
    /// Trusts what these authorities have signed (PEM, one certificate or several), and shows a certificate of one's own (PEM,
    /// with those that lead to its authority, and its key) where it is asked for one.
    ///
    /// # Errors
    /// What is wrong with which, in one line.
    pub(crate) fn new(authorities_pem: &[u8], identity_pem: Option<(&[u8], &[u8])>) -> Result<Self, String> {
        let wrong = |what: &str, error: &dyn fmt::Display| format!("{what}: {error}");
        let certificates = |what: &str, text: &[u8]| -> Result<Vec<CertificateDer<'static>>, String> {
            let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
            let all = all.map_err(|error| wrong(what, &error))?;
            if all.is_empty() { Err(wrong(what, &"no certificate in it")) } else { Ok(all) }
        };
        let mut authorities = RootCertStore::empty();
        for authority in certificates("the authorities", authorities_pem)? {
            authorities.add(authority).map_err(|error| wrong("the authorities", &error))?;
        }
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()));
        let config = config.with_safe_default_protocol_versions().map_err(|error| wrong("the protocol", &error))?;
        let config = config.with_root_certificates(authorities);
        let config = match identity_pem {
            None => config.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates("the certificate", certificate)?;
                let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| wrong("the certificate's key", &error))?;
                config.with_client_auth_cert(chain, key).map_err(|error| wrong("the certificate", &error))?
            }
        };
        Ok(Self(Arc::new(config)))
    }

    fn nobody() -> Self {
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()));
        let config = config.with_safe_default_protocol_versions().expect("ring has suites for both versions");
        Self(Arc::new(config.with_root_certificates(RootCertStore::empty()).with_no_client_auth()))
    }
}

/// Why there was no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unanswered {
    /// Nobody was reached, or what came was no answer.
    Failed(String),
    /// It was too long.
    Long,
}

/// A client that keeps its connections.
#[derive(Clone)]
pub(crate) struct Https(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

impl Https {
    /// Trusts nobody's certificate when nothing is said.
    pub(crate) fn new(trust: Option<&Trust>) -> Self {
        let trust = trust.map_or_else(Trust::nobody, Trust::clone);
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        let connector = HttpsConnectorBuilder::new().with_tls_config((*trust.0).clone()).https_or_http().enable_http1();
        Self(Client::builder(TokioExecutor::new()).build(connector.wrap_connector(tcp)))
    }

    /// Asks, and reads an answer of so many bytes at most.
    ///
    /// # Errors
    /// [`Unanswered`].
    pub(crate) async fn ask(
        &self,
        request: Request<Full<Bytes>>,
        bytes_max: usize,
    ) -> Result<Response<Bytes>, Unanswered> {
        let answer = self.0.request(request).await.map_err(|error| Unanswered::Failed(root(&error)))?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, bytes_max).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() { Unanswered::Long } else { Unanswered::Failed(root(&*error)) }
        })?;
        Ok(Response::from_parts(head, body.to_bytes()))
    }
}

/// The reason at the bottom: hyper says that connecting failed and leaves "connection refused" to its source.
pub(crate) fn root(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
