//! The tables `[controller.reporters.<name>]` and `[controller.tls]`: who may report, and what they speak.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::keys;
use super::names::Names;
use super::said;
use super::section::{Field, Section};
use super::spec::Key;
use crate::controller::TlsParams;
use crate::controller::access::{Glob, ReporterParams, TOKENS_MAX, TokenDigest};

/// Reads `reporters`. What is left out has a mistake noted.
pub(super) fn reporters(field: Field<'_>) -> BTreeMap<String, ReporterParams> {
    let mut of_whom: BTreeMap<TokenDigest, String> = BTreeMap::new();
    let mut reporters = BTreeMap::new();
    for (name, at, field) in field.entries().unwrap_or_default() {
        if !keys::is_reporter(&name) {
            let error = format!("reporter {name:?}: expected 1–64 letters, digits, '.', '_', '-'");
            at.name_refused(Names::Reporters, &name, &error);
        }
        if let Some(section) = field.section() {
            let params = reporter(&name, section, &mut of_whom);
            reporters.insert(name, params);
        }
    }
    reporters
}

fn reporter(name: &str, mut section: Section<'_>, of_whom: &mut BTreeMap<TokenDigest, String>) -> ReporterParams {
    let mut tokens = Vec::new();
    for (n, item) in items(&mut section, &keys::TOKEN_SHA256).into_iter().enumerate() {
        if n == TOKENS_MAX {
            item.place.mistake(format!("a token too many, expected at most {TOKENS_MAX}: the one in use and the next"));
        }
        let Some(digest) = item.text(|text| text.parse::<TokenDigest>().ok()) else { continue };
        if let Some(other) = of_whom.insert(digest, name.to_owned()) {
            item.place.mistake(format!("this is {other}'s token already, expected one for each reporter"));
        }
        tokens.push(digest);
    }
    let mut globs = |key: &'static Key| -> Vec<Glob> {
        items(&mut section, key).iter().filter_map(|item| item.text(|text| text.parse().ok())).collect()
    };
    let (pools, tenants) = (globs(&keys::REPORTED_POOLS), globs(&keys::REPORTED_TENANTS));
    let read = section.take(&keys::READ).and_then(|field| field.truth()).unwrap_or_default();
    section.end();
    ReporterParams { tokens, pools, tenants, read }
}

fn items<'a>(section: &mut Section<'a>, key: &'static Key) -> Vec<Field<'a>> {
    section.take(key).and_then(Field::items).unwrap_or_default()
}

/// Reads `tls`; `None` only with a mistake noted.
pub(super) fn tls(mut section: Section<'_>) -> Option<TlsParams> {
    let files = [&keys::SERVER_CERT_FILE, &keys::SERVER_KEY_FILE, &keys::CLIENT_CA_FILE];
    let [certificate, key, client_authorities] =
        files.map(|file| said(&mut section, file).map(|(file, _)| PathBuf::from(file)));
    section.end();
    Some(TlsParams { certificate: certificate?, key: key?, client_authorities })
}
