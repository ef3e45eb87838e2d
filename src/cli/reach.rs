//! Where the records are: what each operator's command is told of the store, and its way to the leader.

use std::borrow::Borrow;
use std::path::PathBuf;
use std::time::Duration;

use http::Method;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::Failure;
use crate::client::{LeaderHttp, ReportTls, ReportToken};
use crate::config::{Config, EtcdParams, TlsFiles};
use crate::controller::Params;
use crate::plan::keyspace::{Key, Keyspace, LeaderRecord};
use crate::store::{EtcdAccess, EtcdStore, EtcdTls, EtcdUser, Listing, Select, Source, StoreError};

const ENDPOINT: &str = "http://127.0.0.1:2379";
/// A leader that does not answer within this is none to wait for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// The most of a refusal that is shown.
const LINE_BYTES_MAX: usize = 256;

/// Where the store is.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Where the records are")]
pub(super) struct ReachArgs {
    /// A client URL of etcd, <http://127.0.0.1:2379> unless the environment says otherwise; repeat it for more.
    #[arg(long = "etcd", value_name = "URL", conflicts_with = "config")]
    etcd: Vec<String>,
    /// Whom etcd knows one as, where it wants to know, unless the environment says it; the password is the environment's alone.
    #[arg(long = "etcd-user", value_name = "NAME", conflicts_with = "config")]
    user: Option<String>,
    /// PEM of the authorities behind an https:// etcd, unless the environment names it.
    #[arg(long = "etcd-ca", value_name = "FILE", conflicts_with = "config")]
    ca: Option<PathBuf>,
    /// PEM of the certificate to show to etcd, unless the environment names it.
    #[arg(long = "etcd-cert", value_name = "FILE", conflicts_with = "config")]
    cert: Option<PathBuf>,
    /// PEM of its key, unless the environment names it.
    #[arg(long = "etcd-key", value_name = "FILE", conflicts_with = "config")]
    key: Option<PathBuf>,
    /// Under which the keys live, /tidegate/v1 unless the environment says otherwise.
    #[arg(long, value_name = "PATH", conflicts_with = "config")]
    prefix: Option<String>,
    /// Take all of this from a controller's configuration.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// The way to the leader, whose address is in the store.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Where the leader asks who one is")]
pub(super) struct LeaderArgs {
    /// A file with the token of a reporter that may read, unless the environment has the token.
    #[arg(id = "leader-token", long = "leader-token", value_name = "FILE")]
    token: Option<PathBuf>,
    /// PEM of the authorities behind an https:// leader, unless the environment names it.
    #[arg(id = "leader-ca", long = "leader-ca", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// PEM of the certificate to show to it, unless the environment names it.
    #[arg(id = "leader-cert", long = "leader-cert", value_name = "FILE")]
    cert: Option<PathBuf>,
    /// PEM of its key, unless the environment names it.
    #[arg(id = "leader-key", long = "leader-key", value_name = "FILE")]
    key: Option<PathBuf>,
}

impl LeaderArgs {
    /// What they come to; files are read now.
    pub(super) fn http(&self) -> Result<LeaderHttp, Failure> {
        let wrong = |error: &dyn std::fmt::Display| Failure::Usage(error.to_string());
        let of_file = |file: &PathBuf| {
            let named = |error: &dyn std::fmt::Display| Failure::Usage(format!("{}: {error}", file.display()));
            let text = std::fs::read_to_string(file).map_err(|error| named(&error))?;
            ReportToken::new(&text).map_err(|error| named(&error))
        };
        let of_environment = |token: String| {
            ReportToken::new(&token).map_err(|error| Failure::Usage(format!("TIDEGATE_LEADER_TOKEN: {error}")))
        };
        let token = match &self.token {
            Some(file) => Some(of_file(file)?),
            None => told("TIDEGATE_LEADER_TOKEN").map(of_environment).transpose()?,
        };
        let files = tls_files("leader", "LEADER", [&self.ca, &self.cert, &self.key])?;
        let tls = files.map(|TlsFiles { authorities, identity }| {
            let identity = identity.as_ref().map(|(certificate, key)| (certificate.as_path(), key.as_path()));
            ReportTls::from_files(&authorities, identity).map_err(|error| wrong(&error))
        });
        Ok(LeaderHttp::new(token, tls.transpose()?.as_ref()))
    }
}

/// What the environment says, if anything.
fn told(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The PEM files that arguments name, or else the environment: of authorities, of a certificate, of its key.
fn tls_files(option: &str, variable: &str, given: [&Option<PathBuf>; 3]) -> Result<Option<TlsFiles>, Failure> {
    let file = |given: &Option<PathBuf>, what: &str| {
        given.clone().or_else(|| told(&format!("TIDEGATE_{variable}_{what}_FILE")).map(PathBuf::from))
    };
    let [ca, cert, key] = given;
    match (file(ca, "CA"), file(cert, "CERT"), file(key, "KEY")) {
        (Some(authorities), Some(cert), Some(key)) => Ok(Some(TlsFiles { authorities, identity: Some((cert, key)) })),
        (Some(authorities), None, None) => Ok(Some(TlsFiles { authorities, identity: None })),
        (None, None, None) => Ok(None),
        _ => {
            let [cert, key, ca] = ["cert", "key", "ca"].map(|what| format!("--{option}-{what}"));
            Err(Failure::Usage(format!("{cert} and {key} belong together, and to {ca}")))
        }
    }
}

/// The store, and how its keys are called.
pub(super) struct Reach {
    pub store: EtcdStore,
    pub keys: Keyspace,
    pub endpoints: Vec<String>,
    /// How much the store may hold, where a configuration says so.
    pub quota_bytes: Option<u64>,
}

impl Reach {
    /// Finds out where the store is. Nothing is asked of it yet.
    pub(super) async fn open(args: &ReachArgs) -> Result<Self, Failure> {
        let (endpoints, access, keys, quota_bytes) = if let Some(file) = &args.config {
            let config = Config::load(file).map_err(|mistakes| Failure::Usage(mistakes.to_string()))?;
            let none = || Failure::Usage(format!("{}: no [etcd]: its records are in no other process", file.display()));
            let Params { keyspace, store_quota_bytes, .. } = config.controller;
            let etcd = config.etcd.ok_or_else(none)?;
            let access = access_of(&etcd)?;
            (etcd.endpoints, access, keyspace, Some(store_quota_bytes))
        } else {
            let endpoints = match (&args.etcd[..], told("TIDEGATE_ETCD")) {
                ([], None) => vec![ENDPOINT.to_owned()],
                ([], Some(list)) => list.split(',').map(|one| one.trim().to_owned()).collect(),
                (given, _) => given.to_vec(),
            };
            let prefix = args.prefix.clone().or_else(|| told("TIDEGATE_PREFIX"));
            let keys = prefix.map_or_else(|| Ok(Keyspace::default()), |prefix| Keyspace::new(&prefix));
            let user = args.user.clone().or_else(|| told("TIDEGATE_ETCD_USER"));
            let password = || told("TIDEGATE_ETCD_PASSWORD").unwrap_or_default();
            let user = user.map(|name| EtcdUser { name, password: password() });
            let tls = tls_files("etcd", "ETCD", [&args.ca, &args.cert, &args.key])?;
            let access = EtcdAccess { user, tls: tls.as_ref().map(tls_of).transpose()? };
            (endpoints, access, keys.map_err(|error| Failure::Usage(error.to_string()))?, None)
        };
        let store = EtcdStore::connect_with(&endpoints, access).await;
        let store = store.map_err(|error| Failure::Usage(error.to_string()))?;
        Ok(Self { store, keys, endpoints, quota_bytes })
    }

    pub(super) async fn list(&self, selects: &[Select]) -> Result<Listing, Failure> {
        Ok(self.store.list(selects).await?)
    }

    /// Who leads, if anyone.
    pub(super) async fn leader(&self) -> Result<Option<Leader>, Failure> {
        let listing = self.list(&[Select::Key(self.keys.key(&Key::Leader))]).await?;
        Ok(Leader::find(&listing, &self.keys))
    }
}

/// What a refusal says, which is one line, and not to be more.
fn first_line(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body.get(..LINE_BYTES_MAX).unwrap_or(body));
    text.lines().next().unwrap_or_default().chars().filter(|c| !c.is_control()).collect()
}

/// Who a controller's configuration says that one is to etcd, and what it trusts.
pub(super) fn access_of(etcd: &EtcdParams) -> Result<EtcdAccess, Failure> {
    let signed = etcd.sign_in().map_err(|error| Failure::Usage(format!("etcd.password_file: {error}")))?;
    let user = signed.map(|(name, password)| EtcdUser { name, password });
    Ok(EtcdAccess { user, tls: etcd.tls.as_ref().map(tls_of).transpose()? })
}

fn tls_of(files: &TlsFiles) -> Result<EtcdTls, Failure> {
    let identity = files.identity.as_ref().map(|(certificate, key)| (certificate.as_path(), key.as_path()));
    EtcdTls::from_files(&files.authorities, identity).map_err(|error| Failure::Usage(error.to_string()))
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Run(error.to_string())
    }
}

/// The leading controller, as its key tells.
#[derive(Debug, Clone)]
pub(super) struct Leader {
    pub record: LeaderRecord,
    pub term: u64,
}

/// What a 404 says.
#[derive(Deserialize)]
struct Unknown {
    error: String,
    nearest: Vec<String>,
}

/// Why the leader gave no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoAnswer {
    /// It does not know what was asked for; what may have been meant.
    #[error("{error}{}", meant(.nearest))]
    Unknown { error: String, nearest: Vec<String> },
    #[error("the leader at {url} gives no answer: {why}")]
    Silent { url: String, why: String },
    #[error("the leader at {url} refuses: {why}; --leader-token names the file of a token")]
    Refused { url: String, why: String },
}

impl From<NoAnswer> for Failure {
    fn from(error: NoAnswer) -> Self {
        Self::Run(error.to_string())
    }
}

/// The question that follows an unknown name.
pub(super) fn meant<T: Borrow<str>>(nearest: &[T]) -> String {
    if nearest.is_empty() { String::new() } else { format!("; did you mean {}?", nearest.join(" or ")) }
}

impl Leader {
    /// The leader in a list that has its key.
    pub(super) fn find(listing: &Listing, keys: &Keyspace) -> Option<Self> {
        let key = keys.key(&Key::Leader);
        let entry = listing.entries.iter().find(|entry| entry.key == key)?;
        let record = serde_json::from_slice(&entry.value).ok()?;
        Some(Self { record, term: entry.create_revision })
    }

    /// Asks the leader for what is under `path`.
    pub(super) async fn ask<T: DeserializeOwned>(&self, http: &LeaderHttp, path: &str) -> Result<T, NoAnswer> {
        let address = &self.record.report_url;
        let silent = |why: String| NoAnswer::Silent { url: address.clone(), why };
        let url = format!("{}{path}", address.trim_end_matches('/'));
        let answer = http.ask(Method::GET, &url, Vec::new(), ANSWER_TIMEOUT).await;
        let (status, body) = answer.map_err(|error| {
            let why = error.to_string();
            let hint = if why.contains("certificate") { "; --leader-ca names its authorities" } else { "" };
            silent(format!("{why}{hint}"))
        })?;
        match (status.as_u16(), serde_json::from_slice(&body)) {
            (404, Ok(Unknown { error, nearest })) => return Err(NoAnswer::Unknown { error, nearest }),
            (200, _) => {}
            (401 | 403, _) => return Err(NoAnswer::Refused { url: address.clone(), why: first_line(&body) }),
            _ => return Err(silent(status.to_string())),
        }
        serde_json::from_slice(&body).map_err(|error| silent(format!("not understood: {error}")))
    }
}
