//! HTTP to the leader, with a token and TLS where those are given.
//!
//! *Why not reqwest*: of its TLS features, one builds a second cryptography library from C, and the other lets every
//! `reqwest::Client::new()` of the service that embeds this panic until somebody has chosen a provider. Here hyper speaks through
//! the rustls with *ring* that the store's client brings anyway.
//!
//! No proxy is asked: the leader is on the inside, and a proxy for the way out has no business here. No redirect is followed: a
//! token goes where it was meant to.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tokio::time::timeout;

use crate::observation::TOKEN_BYTES_MAX;
use crate::store::StoreError;
use crate::store::pem::pem;

/// The most that an answer is read of: a pool of 1,000 members with ten tenants each takes less than a tenth.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// What a reporter shows to a controller that asks who it is. `tidegate token` makes one.
#[derive(Clone, PartialEq, Eq)]
pub struct ReportToken(HeaderValue);

/// Text that is no token. It is not repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a reporter's token is 1–{TOKEN_BYTES_MAX} printable ASCII characters without spaces")]
pub struct NoToken;

impl ReportToken {
    /// A token: what stands in its file, without a line's end behind it.
    ///
    /// # Errors
    /// [`NoToken`]: it is empty, longer than 512 bytes, or has others than printable ASCII characters.
    pub fn new(token: &str) -> Result<Self, NoToken> {
        let token = token.trim_end_matches(['\r', '\n']);
        let good = (1..=TOKEN_BYTES_MAX).contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_graphic());
        let header = good.then(|| HeaderValue::try_from(format!("Bearer {token}")).ok()).flatten();
        let mut header = header.ok_or(NoToken)?;
        // So that no library shows it either.
        header.set_sensitive(true);
        Ok(Self(header))
    }
}

impl fmt::Debug for ReportToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReportToken(..)")
    }
}

/// How one speaks TLS to the leader. Held as read: files that change are read at the next start.
#[derive(Clone)]
pub struct ReportTls(Arc<ClientConfig>);

impl fmt::Debug for ReportTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A key is nobody's business.
        f.write_str("ReportTls(..)")
    }
}

/// Why there is no [`ReportTls`].
#[derive(Debug, thiserror::Error)]
pub enum ReportTlsError {
    /// A file is no good.
    #[error(transparent)]
    File(#[from] StoreError),
    /// What stands in the PEM texts does not do.
    #[error("TLS to the leader: {0}")]
    Pem(String),
}

impl ReportTls {
    /// Trusts what these authorities have signed (PEM, one certificate or several), and shows a certificate of one's own (PEM,
    /// with those that lead to its authority, and its key) where it is asked for one.
    ///
    /// # Errors
    /// [`ReportTlsError::Pem`].
    pub fn new(authorities_pem: &[u8], identity_pem: Option<(&[u8], &[u8])>) -> Result<Self, ReportTlsError> {
        let wrong = |what: &str, error: &dyn fmt::Display| ReportTlsError::Pem(format!("{what}: {error}"));
        let certificates = |what: &str, text: &[u8]| -> Result<Vec<CertificateDer<'static>>, ReportTlsError> {
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

    /// The same from files: the authorities', and those of a certificate of one's own and its key.
    ///
    /// # Errors
    /// [`ReportTlsError`].
    pub fn from_files(authorities: &Path, identity: Option<(&Path, &Path)>) -> Result<Self, ReportTlsError> {
        let identity =
            identity.map(|(certificate, key)| Ok::<_, StoreError>((pem(certificate)?, pem(key)?))).transpose()?;
        Self::new(&pem(authorities)?, identity.as_ref().map(|(certificate, key)| (&certificate[..], &key[..])))
    }
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoAnswer {
    /// The address and what is known of TLS do not fit.
    #[error("{0}")]
    Scheme(&'static str),
    /// Nobody was reached, or what came was no answer.
    #[error("{0}")]
    Failed(String),
    /// It took too long.
    #[error("no answer within {0:?}")]
    Late(Duration),
}

/// HTTP to whoever leads. Connections are kept.
#[derive(Clone)]
pub(crate) struct LeaderHttp {
    http: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    token: Option<ReportToken>,
    is_tls: bool,
}

impl LeaderHttp {
    pub(crate) fn new(token: Option<ReportToken>, tls: Option<&ReportTls>) -> Self {
        let nobody_trusted = || {
            let config = ClientConfig::builder_with_provider(Arc::new(default_provider()));
            let config = config.with_safe_default_protocol_versions().expect("ring has suites for both versions");
            config.with_root_certificates(RootCertStore::empty()).with_no_client_auth()
        };
        let config = tls.map_or_else(nobody_trusted, |tls| (*tls.0).clone());
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        let connector = HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1();
        let http = Client::builder(TokioExecutor::new()).build(connector.wrap_connector(tcp));
        Self { http, token, is_tls: tls.is_some() }
    }

    /// Asks for what is under a URL; a body is JSON.
    ///
    /// # Errors
    /// [`NoAnswer`], also for one that is too long.
    pub(crate) async fn ask(
        &self,
        method: Method,
        url: &str,
        json: Vec<u8>,
        at_most: Duration,
    ) -> Result<(StatusCode, Bytes), NoAnswer> {
        let failed = |error: &(dyn std::error::Error + 'static)| NoAnswer::Failed(root(error));
        let url: Uri = url.parse().map_err(|error| failed(&error))?;
        // Nothing goes in the clear where TLS was meant.
        match (url.scheme_str(), self.is_tls) {
            (Some("http"), true) => return Err(NoAnswer::Scheme("its address is http://, but TLS was asked for")),
            (Some("https"), false) => {
                return Err(NoAnswer::Scheme("its address is https://, but no authority is given"));
            }
            _ => {}
        }
        let request = Request::builder().method(method).uri(url).header(CONTENT_TYPE, "application/json");
        let mut request = request.body(Full::new(json.into())).map_err(|error| failed(&error))?;
        if let Some(ReportToken(token)) = &self.token {
            request.headers_mut().insert(AUTHORIZATION, token.clone());
        }
        let asked = async {
            let answer = self.http.request(request).await.map_err(|error| failed(&error))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            Ok((status, body.map_err(|error| failed(&*error))?.to_bytes()))
        };
        timeout(at_most, asked).await.unwrap_or(Err(NoAnswer::Late(at_most)))
    }
}

/// The reason at the bottom: hyper says that connecting failed and leaves "connection refused" to its source.
fn root(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
