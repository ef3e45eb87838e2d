//! The configuration file: TOML in, each module's own `Params` out.
//!
//! *Why here*: this is the only module that knows them all; nothing but the command imports it. Every mistake is
//! found in one run and named by file, line and key, with what was found and what is allowed. Unknown keys are
//! mistakes, so that a misspelt limit cannot be silently absent. `config/tidegate.toml` documents each key.

mod error;
mod pools;
mod section;

use std::net::SocketAddr;
use std::path::Path;

use crate::controller::Params;
use crate::plan::keyspace::Keyspace;
pub use error::{ConfigError, Mistake, Mistakes};
use section::{Document, Field, Section};

/// Where the controller listens unless told otherwise.
const LISTEN_DEFAULT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7676);
/// The controller's name when the machine has none.
const NAME_DEFAULT: &str = "controller";
const NAME_CHARS_MAX: usize = 128;

/// A configuration that was checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// The controller's part.
    pub controller: Params,
    /// Where etcd is; `None` is the in-memory store of one process.
    pub etcd: Option<EtcdParams>,
}

/// Where etcd is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdParams {
    /// Client URLs, at least one, such as `http://127.0.0.1:2379`.
    pub endpoints: Vec<String>,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`]: the file cannot be read, or it has mistakes: all of them.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let file = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&file, &text),
            Err(source) => Err(ConfigError::Read { file, source }),
        }
    }

    /// Checks a file's text; `file` is how mistakes name it.
    ///
    /// # Errors
    /// [`ConfigError::Mistakes`]: all of them.
    pub fn parse(file: &str, text: &str) -> Result<Self, ConfigError> {
        let document = Document::new(file, text);
        let config = config(document.root().map_err(ConfigError::Mistakes)?);
        document.end().map_err(ConfigError::Mistakes)?;
        Ok(config)
    }
}

/// Reads the whole file. Once a mistake is noted, what it returns is not used.
fn config(mut root: Section<'_>) -> Config {
    let mut controller = Params {
        name: hostname(),
        listen: LISTEN_DEFAULT,
        advertise_url: None,
        keyspace: Keyspace::default(),
        pools: pools::pools(&mut root),
    };
    if let Some(section) = root.take_section("controller") {
        read_controller(section, &mut controller);
    }
    if let Some(section) = root.take_section("keys") {
        controller.keyspace = keyspace(section).unwrap_or_default();
    }
    let etcd = root.take_section("etcd").map(etcd);
    root.end();
    Config { controller, etcd }
}

fn read_controller(mut section: Section<'_>, params: &mut Params) {
    if let Some(field) = section.take("name") {
        let good =
            |name: &str| (1..=NAME_CHARS_MAX).contains(&name.chars().count()) && !name.chars().any(char::is_control);
        let name = |name: &str| good(name).then(|| name.to_owned());
        if let Some(name) = field.text("1–128 characters without control characters", name) {
            params.name = name;
        }
    }
    if let Some(field) = section.take("listen") {
        params.listen = listen(&field).unwrap_or(LISTEN_DEFAULT);
    }
    if let Some(field) = section.take("advertise_url") {
        let url = |url: &str| is_http_url(url, true).then(|| url.to_owned());
        params.advertise_url = field.text("an http:// or https:// URL, such as \"http://10.0.0.5:7676\"", url);
    }
    section.end();
}

fn listen(field: &Field<'_>) -> Option<SocketAddr> {
    let listen: SocketAddr = field.text("an address and port, such as \"127.0.0.1:7676\"", |text| text.parse().ok())?;
    if !listen.ip().is_loopback() {
        field.place.expected(
            "a loopback address: reports are not authenticated yet, so whoever reaches this port could steer the limits",
        );
    }
    Some(listen)
}

fn keyspace(mut section: Section<'_>) -> Option<Keyspace> {
    let prefix = section.take("prefix");
    section.end();
    let field = prefix?;
    let expected =
        "an absolute path of 2–128 printable ASCII characters without a trailing slash, such as \"/tidegate/v1\"";
    field.text(expected, |prefix| Keyspace::new(prefix).ok())
}

fn etcd(mut section: Section<'_>) -> EtcdParams {
    let place = section.place.clone();
    let endpoints = section.take("endpoints");
    section.end();
    let expected = "a list of URLs, such as [\"http://127.0.0.1:2379\"]";
    let Some(field) = endpoints else {
        place.mistake(format!("\"endpoints\" is missing; expected {expected}"));
        return EtcdParams { endpoints: Vec::new() };
    };
    let at = field.place.clone();
    let Some(items) = field.into_items(expected) else { return EtcdParams { endpoints: Vec::new() } };
    if items.is_empty() {
        at.expected(expected);
    }
    // etcd-client is built without TLS.
    let url = |url: &str| is_http_url(url, false).then(|| url.to_owned());
    let expected = "an http:// URL of host and port, such as \"http://127.0.0.1:2379\" (no TLS in this build)";
    EtcdParams { endpoints: items.iter().filter_map(|item| item.text(expected, url)).collect() }
}

/// A URL of a server: a scheme, a host, no credentials, no query.
fn is_http_url(text: &str, tls: bool) -> bool {
    let Ok(uri) = text.parse::<http::Uri>() else { return false };
    let scheme = uri.scheme_str().is_some_and(|scheme| scheme == "http" || (tls && scheme == "https"));
    let host = uri.authority().is_some_and(|host| !host.as_str().contains('@') && !host.host().is_empty());
    scheme && host && uri.query().is_none()
}

fn hostname() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| NAME_DEFAULT.to_owned())
}
