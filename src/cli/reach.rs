//! Where the records are: what each operator's command is told of the store, and its way to the leader.

use std::borrow::Borrow;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::Failure;
use crate::config::{Config, EtcdParams, TlsFiles};
use crate::controller::Params;
use crate::plan::keyspace::{Key, Keyspace, LeaderRecord};
use crate::store::{EtcdAccess, EtcdStore, EtcdTls, EtcdUser, Listing, Select, Source, StoreError};

const ENDPOINT: &str = "http://127.0.0.1:2379";
/// A leader that does not answer within this is none to wait for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// The most that a leader's answer is read of: a pool of 1,000 members with ten tenants each takes less than a tenth.
const ANSWER_BYTES_MAX: usize = 16 << 20;

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
            let told = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
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
            let file = |given: &Option<PathBuf>, name: &str| given.clone().or_else(|| told(name).map(PathBuf::from));
            let ca = file(&args.ca, "TIDEGATE_ETCD_CA_FILE");
            let identity = (file(&args.cert, "TIDEGATE_ETCD_CERT_FILE"), file(&args.key, "TIDEGATE_ETCD_KEY_FILE"));
            let tls = match (ca, identity) {
                (Some(authorities), (Some(cert), Some(key))) => {
                    Some(TlsFiles { authorities, identity: Some((cert, key)) })
                }
                (Some(authorities), (None, None)) => Some(TlsFiles { authorities, identity: None }),
                (None, (None, None)) => None,
                _ => return Err(Failure::Usage("--etcd-cert and --etcd-key belong together, and to --etcd-ca".into())),
            };
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
    pub(super) async fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<T, NoAnswer> {
        let url = format!("{}{path}", self.record.report_url.trim_end_matches('/'));
        let silent = |why: String| NoAnswer::Silent { url: self.record.report_url.clone(), why };
        let failed = |error: reqwest::Error| silent(root(&error));
        let http = reqwest::Client::builder().no_proxy().timeout(ANSWER_TIMEOUT).build().map_err(failed)?;
        let mut answer = http.get(url).send().await.map_err(failed)?;
        let status = answer.status();
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(failed)? {
            body.extend_from_slice(&chunk);
            if body.len() > ANSWER_BYTES_MAX {
                return Err(silent(format!("more than {ANSWER_BYTES_MAX} bytes")));
            }
        }
        match (status.as_u16(), serde_json::from_slice(&body)) {
            (404, Ok(Unknown { error, nearest })) => return Err(NoAnswer::Unknown { error, nearest }),
            (200, _) => {}
            _ => return Err(silent(status.to_string())),
        }
        serde_json::from_slice(&body).map_err(|error| silent(format!("not understood: {error}")))
    }
}

/// The reason at the bottom: reqwest says that sending failed and leaves "connection refused" to its source.
fn root(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
