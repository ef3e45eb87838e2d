//! The configuration file: TOML in, each module's own `Params` out.
//!
//! *Why here*: this is the only module that knows them all; nothing but the command imports it. Every mistake is
//! found in one run and named by file, line, column and key, with what was found, what is allowed and what was probably
//! meant. Unknown keys are mistakes, so that a misspelt limit cannot be silently absent. `keys` has each key once; the
//! reader, the [`schema()`] and the [`reference()`] are made from it. A pool's [`policy()`] in the store is read by the same.

mod error;
mod keys;
mod names;
mod policy;
mod pools;
mod reference;
mod reporters;
mod schema;
mod section;
mod signals;
mod spec;

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::controller::access::ReporterParams;
use crate::controller::{Params, TlsParams};
use crate::plan::keyspace::Keyspace;
pub use error::{Mistake, Mistakes, Severity};
pub use policy::policy;
pub use reference::reference;
pub use schema::schema;
use section::{Document, Field, Place, Section};
use spec::Key;

/// Largest file that is read: room for 10,000 tenants with every key.
pub const FILE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The controller's name when the machine has none.
const NAME_DEFAULT: &str = "controller";
/// Names standard input, as a file.
const STDIN: &str = "-";

/// A configuration that was checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// The controller's part.
    pub controller: Params,
    /// Where etcd is; `None` is the in-memory store of one process.
    pub etcd: Option<EtcdParams>,
    /// What somebody should look at, though the file is taken.
    pub warnings: Mistakes,
}

/// Where etcd is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdParams {
    /// Client URLs, at least one, such as `http://127.0.0.1:2379`.
    pub endpoints: Vec<String>,
    /// Who the controller is to etcd, and the file that has the password.
    pub user: Option<(String, PathBuf)>,
    /// For `https://` endpoints.
    pub tls: Option<TlsFiles>,
}

/// PEM files for TLS with etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authorities that etcd's certificate is to be signed by.
    pub authorities: PathBuf,
    /// A certificate of one's own, and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl EtcdParams {
    /// The user's name and password, which is read now.
    ///
    /// # Errors
    /// Why the file cannot be read, in one line.
    pub fn sign_in(&self) -> Result<Option<(String, String)>, String> {
        let Some((name, file)) = &self.user else { return Ok(None) };
        let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
        let password = text.trim_end_matches(['\r', '\n']).to_owned();
        Ok(Some((name.clone(), password)))
    }
}

impl Config {
    /// Reads and checks a file; `-` is standard input.
    ///
    /// # Errors
    /// [`Mistakes`]: all of them, or why the file cannot be read.
    pub fn load(path: &Path) -> Result<Self, Mistakes> {
        let name = if path == Path::new(STDIN) { "<stdin>".to_owned() } else { path.display().to_string() };
        let bytes = read(path).map_err(|message| Mistakes { list: vec![Mistake::of_file(&name, message)] })?;
        match String::from_utf8(bytes) {
            Ok(text) => Self::parse(&name, &text),
            Err(error) => {
                let (good, bad) = error.as_bytes().split_at(error.utf8_error().valid_up_to());
                let good = String::from_utf8_lossy(good);
                let document = Document::new(&name, &good);
                let byte = bad.first().copied().unwrap_or_default();
                document
                    .at(good.len()..good.len())
                    .mistake(format!("found the byte 0x{byte:02x}, expected UTF-8 text"));
                Err(document.end())
            }
        }
    }

    /// Checks a file's text; `file` is how mistakes name it.
    ///
    /// # Errors
    /// [`Mistakes`]: all of them.
    pub fn parse(file: &str, text: &str) -> Result<Self, Mistakes> {
        let document = Document::new(file, text);
        let config = config(document.root()?);
        let mistakes = document.end();
        match config {
            Some(config) if mistakes.errors() == 0 => Ok(Self { warnings: mistakes, ..config }),
            _ => Err(mistakes),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let unreadable = |error: io::Error| format!("cannot be read: {error}");
    let mut bytes = Vec::new();
    let most = u64::try_from(FILE_BYTES_MAX).unwrap_or(u64::MAX).saturating_add(1);
    if path == Path::new(STDIN) {
        io::stdin().lock().take(most).read_to_end(&mut bytes).map_err(unreadable)?;
    } else {
        let file = std::fs::File::open(path).map_err(unreadable)?;
        if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
            return Err("found a directory, expected a file".to_owned());
        }
        file.take(most).read_to_end(&mut bytes).map_err(unreadable)?;
    }
    if bytes.len() > FILE_BYTES_MAX {
        return Err(format!("found more than {FILE_BYTES_MAX} bytes, expected at most so many"));
    }
    Ok(bytes)
}

/// Reads the whole file; `None` only with a mistake noted.
fn config(mut root: Section<'_>) -> Option<Config> {
    let controller = root.take(&keys::CONTROLLER).and_then(Field::section).map(controller);
    let keyspace = root.take(&keys::KEYS).and_then(Field::section).map(keyspace);
    let etcd = root.take(&keys::ETCD).and_then(Field::section).map(etcd);
    let prometheus = root.take(&keys::PROMETHEUS).and_then(Field::section);
    let pools = root.take(&keys::POOLS).and_then(pools::pools);
    root.end();
    let prometheus = prometheus.map(|section| signals::prometheus(section, pools.as_deref()));
    let controller = controller?;
    let (etcd, store_quota_bytes) = match etcd {
        Some((etcd, quota)) => (Some(etcd), quota?),
        // Memory has no quota.
        None => (None, u64::MAX),
    };
    let (keyspace, pools) = (keyspace??, pools?);
    let Front { name, listen, advertise_url, reporters, tls } = controller;
    let listen = listen?;
    let controller = Params {
        name,
        listen,
        reporters,
        tls,
        advertise_url,
        keyspace,
        store_quota_bytes,
        pools,
        prometheus: prometheus.flatten(),
        read_policy: policy::read,
    };
    Some(Config { controller, etcd, warnings: Mistakes::default() })
}

/// What `[controller]` says.
struct Front {
    name: String,
    listen: Option<SocketAddr>,
    advertise_url: Option<String>,
    reporters: BTreeMap<String, ReporterParams>,
    tls: Option<TlsParams>,
}

fn controller(mut section: Section<'_>) -> Front {
    let good =
        |name: &str| (1..=keys::NAME_CHARS_MAX).contains(&name.chars().count()) && !name.chars().any(char::is_control);
    let name = section.take(&keys::NAME).and_then(|field| field.text(|name| good(name).then(|| name.to_owned())));
    let url = |url: &str| is_http_url(url, true).then(|| url.to_owned());
    let advertised = section.take(&keys::ADVERTISE_URL);
    let is_advertised = advertised.is_some();
    let advertised = advertised.and_then(|field| Some((field.text(url)?, field.place)));
    let reporters = section.take(&keys::REPORTERS);
    let tls = section.take(&keys::TLS);
    // A table with a mistake in it is not missing too.
    let mut is_guarded = reporters.is_some();
    let reporters = reporters.map(reporters::reporters).unwrap_or_default();
    let tls = tls.and_then(Field::section).map(|section| {
        is_guarded |= section.has(&keys::CLIENT_CA_FILE);
        reporters::tls(section)
    });
    let listen = section.take(&keys::LISTEN).and_then(|field| listen(&field, is_guarded, is_advertised));
    section.end();
    if let Some((url, at)) = &advertised
        && tls.is_some()
        && !is_https(url)
    {
        at.warning("an https:// URL, since the port speaks TLS: see [controller.tls]");
    }
    let (name, advertise_url) = (name.unwrap_or_else(hostname), advertised.map(|(url, _)| url));
    Front { name, listen, advertise_url, reporters, tls: tls.flatten() }
}

fn listen(field: &Field<'_>, is_guarded: bool, is_advertised: bool) -> Option<SocketAddr> {
    let listen: SocketAddr = field.text(|text| text.parse().ok())?;
    if !listen.ip().is_loopback() && !is_guarded {
        field.place.expected(
            "a loopback address, or [controller.reporters.<name>] to say who may report, or client_ca_file in [controller.tls]: \
             whoever reaches this port could steer the limits",
        );
    } else if listen.ip().is_unspecified() && !is_advertised {
        field.place.expected("an address that members can reach, or that one as advertise_url beside it");
    }
    Some(listen)
}

fn keyspace(mut section: Section<'_>) -> Option<Keyspace> {
    let prefix = section.take(&keys::PREFIX);
    section.end();
    prefix?.text(|prefix| Keyspace::new(prefix).ok())
}

fn etcd(mut section: Section<'_>) -> (EtcdParams, Option<u64>) {
    let items = section.take(&keys::ENDPOINTS).and_then(Field::items);
    let quota_bytes = section.take(&keys::QUOTA_BYTES).and_then(|field| field.number());
    let user = pair(&mut section, [&keys::USER, &keys::PASSWORD_FILE]);
    let authorities = said(&mut section, &keys::CA_FILE);
    let identity = pair(&mut section, [&keys::CERT_FILE, &keys::KEY_FILE]);
    section.end();
    let tls = match (authorities, identity) {
        (Some((file, _)), identity) => Some(TlsFiles {
            authorities: PathBuf::from(file),
            identity: identity.map(|(certificate, key, _)| (PathBuf::from(certificate), key)),
        }),
        (None, Some((_, _, place))) => {
            place.expected("a ca_file beside it");
            None
        }
        (None, None) => None,
    };
    let url = |url: &str| (is_http_url(url, true) && is_https(url) == tls.is_some()).then(|| url.to_owned());
    let endpoints = items.unwrap_or_default().iter().filter_map(|item| item.text(url)).collect();
    let user = user.map(|(name, file, _)| (name, file));
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a million to 10^12")]
    (EtcdParams { endpoints, user, tls }, quota_bytes.map(|bytes| bytes as u64))
}

/// What a key says, and where.
fn said<'a>(section: &mut Section<'a>, key: &'static Key) -> Option<(String, Place<'a>)> {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    section.take(key).and_then(|field| Some((field.text(text)?, field.place)))
}

/// A text and the file that belongs to it: both, or neither.
fn pair<'a>(section: &mut Section<'a>, keys: [&'static Key; 2]) -> Option<(String, PathBuf, Place<'a>)> {
    match keys.map(|key| said(section, key)) {
        [Some((text, place)), Some((file, _))] => Some((text, PathBuf::from(file), place)),
        [Some((_, place)), None] => {
            place.expected(&format!("a {} beside it", keys[1].name));
            None
        }
        [None, Some((_, place))] => {
            place.expected(&format!("a {} beside it", keys[0].name));
            None
        }
        [None, None] => None,
    }
}

/// A URL of a server: a scheme, a host, no credentials, no query, no fragment.
fn is_http_url(text: &str, tls: bool) -> bool {
    if text.contains(['@', '?', '#', ' ']) {
        return false;
    }
    let Ok(uri) = text.parse::<http::Uri>() else { return false };
    let scheme = uri.scheme_str().is_some_and(|scheme| scheme == "http" || (tls && scheme == "https"));
    scheme && uri.authority().is_some_and(|authority| !authority.host().is_empty())
}

fn is_https(url: &str) -> bool {
    url.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"))
}

fn hostname() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| NAME_DEFAULT.to_owned())
}
