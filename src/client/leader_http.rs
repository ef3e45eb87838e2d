//! HTTP to the leader, with a token and TLS where those are given.
use std::fmt;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::Full;
use tokio::time::timeout;

use crate::https::{Https, Trust, Unanswered, root};
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
#[derive(Debug, Clone)]
pub struct ReportTls(Trust);

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
        Trust::new(authorities_pem, identity_pem).map(Self).map_err(ReportTlsError::Pem)
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
    http: Https,
    token: Option<ReportToken>,
    is_tls: bool,
}

impl LeaderHttp {
    pub(crate) fn new(token: Option<ReportToken>, tls: Option<&ReportTls>) -> Self {
        let http = Https::new(tls.map(|ReportTls(trust)| trust));
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
            match self.http.ask(request, ANSWER_BYTES_MAX).await {
                Ok(answer) => Ok((answer.status(), answer.into_body())),
                Err(Unanswered::Failed(why)) => Err(NoAnswer::Failed(why)),
                Err(Unanswered::Long) => {
                    Err(NoAnswer::Failed(format!("an answer of more than {ANSWER_BYTES_MAX} bytes")))
                }
            }
        };
        timeout(at_most, asked).await.unwrap_or(Err(NoAnswer::Late(at_most)))
    }
}
