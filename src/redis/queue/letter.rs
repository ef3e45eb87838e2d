//! A request as it is written down: what is needed to send it again, and nothing that is secret.
//!
//! Headers are left out unless they are on a list; what stands in the way of secrets in URLs is a list of parameters. Bodies are
//! written down as they are.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;
use reqwest::{Method, Request, Url};
use serde::{Deserialize, Serialize};

use crate::client::{CacheKey, Requeued};
use crate::quota::{Cost, TenantId};

/// Most that URL, headers and cache key of a request may take together, in bytes.
pub(super) const HEAD_BYTES_MAX: usize = 32 << 10;
/// The header that makes a request recognisable which is sent again.
pub(super) const ID_HEADER: HeaderName = HeaderName::from_static("idempotency-key");

/// Headers that are written down.
const KEPT: [&str; 13] = [
    "accept",
    "accept-language",
    "anthropic-beta",
    "anthropic-version",
    "content-encoding",
    "content-language",
    "content-type",
    "idempotency-key",
    "openai-beta",
    "openai-organization",
    "openai-project",
    "user-agent",
    "x-goog-user-project",
];
/// Headers that never are.
const SECRET: [&str; 11] = [
    "api-key",
    "authorization",
    "cookie",
    "ocp-apim-subscription-key",
    "proxy-authorization",
    "set-cookie",
    "x-amz-security-token",
    "x-api-key",
    "x-auth-token",
    "x-goog-api-key",
    "x-goog-iam-authorization-token",
];
/// Parameters of URLs that never are, in lower case.
const SECRET_PARAMETERS: [&str; 20] = [
    "client_secret",
    "code",
    "id_token",
    "refresh_token",
    "secret",
    "access_token",
    "api-key",
    "api_key",
    "apikey",
    "auth",
    "key",
    "password",
    "sig",
    "signature",
    "subscription-key",
    "token",
    "x-amz-credential",
    "x-amz-security-token",
    "x-amz-signature",
    "x-goog-signature",
];

/// Whether a header is one of those in which credentials stand.
pub(super) fn is_secret(header: &HeaderName) -> bool {
    SECRET.contains(&header.as_str())
}

/// What of requests is written down beside the usual, and what is not.
#[derive(Debug, Clone, Default)]
pub(super) struct Discretion {
    /// More headers that are.
    pub headers: Vec<HeaderName>,
    /// More parameters of URLs that are not, in lower case.
    pub secret_parameters: Vec<String>,
    /// Largest body, in bytes.
    pub body_bytes_max: usize,
}

/// Why a request cannot be written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unwritable {
    #[error("its body is streamed")]
    Streamed,
    #[error("its body is larger than the queue takes")]
    Body,
    #[error("its URL and headers are larger than the queue takes")]
    Head,
}

impl Unwritable {
    /// As metrics have it.
    pub(super) const fn kind(self) -> &'static str {
        match self {
            Self::Streamed => "streamed",
            Self::Body => "body_too_large",
            Self::Head => "head_too_large",
        }
    }
}

/// What is left of a request.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Letter {
    /// Which no other has.
    pub id: String,
    pub tenant: TenantId,
    pub cost: Cost,
    pub head: Head,
    pub body: Bytes,
}

/// All of it that is text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    pub method: String,
    pub url: String,
    headers: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_key: Option<String>,
}

/// A letter's names in a stream.
const ID: &str = "id";
const TENANT: &str = "tenant";
const COST: &str = "cost";
const HEAD: &str = "head";
const BODY: &str = "body";

impl Letter {
    /// Writes a request down, without what is secret.
    pub(super) fn write(id: String, requeued: &Requeued, discretion: &Discretion) -> Result<Self, Unwritable> {
        let Requeued { request, tenant, cost, cache_key, .. } = requeued;
        let body = match request.body() {
            None => Bytes::new(),
            Some(body) => Bytes::copy_from_slice(body.as_bytes().ok_or(Unwritable::Streamed)?),
        };
        if body.len() > discretion.body_bytes_max {
            return Err(Unwritable::Body);
        }
        let is_kept = |name: &HeaderName, value: &HeaderValue| {
            let listed = KEPT.contains(&name.as_str()) || discretion.headers.contains(name);
            listed && !is_secret(name) && !value.is_sensitive()
        };
        let kept = request.headers().iter().filter(|(name, value)| is_kept(name, value));
        let texts = kept.filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned())));
        let head = Head {
            method: request.method().as_str().to_owned(),
            url: public(request.url(), &discretion.secret_parameters).into(),
            headers: texts.collect(),
            cache_key: cache_key.as_ref().map(|key| key.0.clone()),
        };
        let headers: usize = head.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        if head.url.len() + headers + head.cache_key.as_ref().map_or(0, String::len) > HEAD_BYTES_MAX {
            return Err(Unwritable::Head);
        }
        Ok(Self { id, tenant: tenant.clone(), cost: *cost, head, body })
    }

    /// As a stream has it: names and values.
    pub(super) fn fields(&self) -> [(&'static str, Vec<u8>); 5] {
        let Cost { requests, input_tokens, output_tokens } = self.cost;
        let cost = format!("{requests} {input_tokens} {output_tokens}");
        // Text and lists of text: this cannot fail.
        let head = serde_json::to_vec(&self.head).unwrap_or_default();
        [
            (ID, self.id.clone().into_bytes()),
            (TENANT, self.tenant.as_str().as_bytes().to_vec()),
            (COST, cost.into_bytes()),
            (HEAD, head),
            (BODY, self.body.to_vec()),
        ]
    }

    /// The letter in a stream's fields, names and values in turn; none when they are not one.
    pub(super) fn read(fields: Vec<Vec<u8>>) -> Option<Self> {
        let mut named = named(fields);
        let mut text = |name: &str| String::from_utf8(named.remove(name)?).ok();
        let (id, tenant, cost, head) = (text(ID)?, text(TENANT)?.parse().ok()?, text(COST)?, text(HEAD)?);
        let head = serde_json::from_str(&head).ok()?;
        let body = named.remove(BODY)?.into();
        Some(Self { id, tenant, cost: read_cost(&cost)?, head, body })
    }

    /// The cache key under which its answer may be kept.
    pub(super) fn cache_key(&self) -> Option<CacheKey> {
        self.head.cache_key.clone().map(CacheKey)
    }

    /// The request, to be sent again: recognisable by its id, unless its caller gave it one.
    pub(super) fn request(&self) -> Option<Request> {
        let method = Method::from_bytes(self.head.method.as_bytes()).ok()?;
        let mut request = Request::new(method, self.head.url.parse().ok()?);
        for (name, value) in &self.head.headers {
            request.headers_mut().append(HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?);
        }
        if !request.headers().contains_key(&ID_HEADER) {
            request.headers_mut().insert(ID_HEADER, HeaderValue::try_from(&self.id).ok()?);
        }
        if !self.body.is_empty() {
            *request.body_mut() = Some(self.body.clone().into());
        }
        Some(request)
    }
}

/// Values by their names.
pub(super) fn named(fields: Vec<Vec<u8>>) -> BTreeMap<String, Vec<u8>> {
    let mut fields = fields.into_iter();
    let mut named = BTreeMap::new();
    while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
        named.insert(String::from_utf8_lossy(&name).into_owned(), value);
    }
    named
}

/// A cost as it is written: requests, input tokens, output tokens.
pub(super) fn read_cost(text: &str) -> Option<Cost> {
    let mut numbers = text.split(' ');
    let requests = numbers.next()?.parse().ok()?;
    let (input_tokens, output_tokens) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
    numbers.next().is_none().then_some(Cost { requests, input_tokens, output_tokens })
}

/// A URL without user, password and secret parameters. What stays of it stays as it is written.
fn public(url: &Url, more: &[String]) -> Url {
    let mut public = url.clone();
    // Both fail for URLs without a host alone, which have neither.
    let _ = public.set_username("");
    let _ = public.set_password(None);
    public.set_fragment(None);
    let is_secret = |pair: &str| {
        let name = pair.split_once('=').map_or(pair, |(name, _)| name).replace('+', " ");
        let name = percent_decode_str(&name).decode_utf8_lossy().to_lowercase();
        SECRET_PARAMETERS.contains(&name.as_str()) || more.contains(&name)
    };
    let kept = url.query().map(|query| query.split('&').filter(|pair| !is_secret(pair)).collect::<Vec<_>>().join("&"));
    public.set_query(kept.as_deref().filter(|query| !query.is_empty()));
    public
}
