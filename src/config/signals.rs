//! The table `[prometheus]`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::section::{Field, Place, Section};
use super::spec::Key;
use super::{is_http_url, is_https, keys, names, pair, said};
use crate::controller::PoolParams;
use crate::controller::signal::{Counts, Role};
use crate::controller::source::{Named, PrometheusParams, PrometheusTls, QueryParams, SignIn};
use crate::quota::{Grantee, Meter, PoolId, TenantId};

/// Mostly none waits: whoever is answered makes room for the next one at once.
const AIM_REQUESTS: f64 = 0.5;
/// So full, there is room for the next one.
const AIM_PART: f64 = 0.9;
/// Characters of a query.
const QUERY_CHARS_MAX: usize = 4_096;
/// A signal is fresh for that long, for three of its intervals, or until the next scrape has been asked for.
const FRESH_FOR_S: f64 = 30.0;
const FRESH_INTERVALS: f64 = 3.0;

/// Reads `prometheus`; `None` only with a mistake noted. Pools that the file does not have are warned of.
pub(super) fn prometheus(mut section: Section<'_>, pools: Option<&[PoolParams]>) -> Option<PrometheusParams> {
    let url = section.take(&keys::PROMETHEUS_URL);
    let user = pair(&mut section, [&keys::PROMETHEUS_USER, &keys::PROMETHEUS_PASSWORD_FILE]);
    let token = said(&mut section, &keys::TOKEN_FILE);
    let authorities = said(&mut section, &keys::PROMETHEUS_CA_FILE);
    let identity = pair(&mut section, [&keys::PROMETHEUS_CERT_FILE, &keys::PROMETHEUS_KEY_FILE]);
    let queries = section.take(&keys::QUERIES).and_then(Field::entries);
    section.end();
    if let (None, Some((_, _, place))) = (&authorities, &identity) {
        place.expected("a ca_file beside it");
    }
    let tls = authorities.map(|(file, _)| PrometheusTls {
        authorities: PathBuf::from(file),
        identity: identity.map(|(certificate, key, _)| (PathBuf::from(certificate), key)),
    });
    let sign_in = match (user, token) {
        (Some(_), Some((_, place))) => {
            place.expected("no token beside a user: one or the other");
            None
        }
        (Some((user, file, _)), None) => Some(SignIn::Basic(user, file)),
        (None, token) => token.map(|(file, _)| SignIn::Bearer(PathBuf::from(file))),
    };
    let url = url?;
    let place = url.place.clone();
    let url = url.text(|url| is_http_url(url, true).then(|| url.to_owned()));
    match url.as_deref().map(is_https) {
        Some(true) if tls.is_none() => place.expected("a ca_file beside it: whose word its certificate is good for"),
        Some(false) if tls.is_some() => place.expected("https://, for a ca_file is beside it"),
        _ => {}
    }
    let mut read = BTreeMap::new();
    for (name, at, field) in queries? {
        if !keys::is_reporter(&name) {
            let error = format!("query {name:?}: expected 1–64 letters, digits, '.', '_', '-'");
            at.name_refused(names::Names::Queries, &name, &error);
        }
        if let Some(params) = field.section().and_then(|section| query(section, &at, pools)) {
            read.insert(name, params);
        }
    }
    Some(PrometheusParams { url: url?, sign_in, tls, queries: read })
}

/// What stands in a query's table, and where.
struct Written<'a> {
    query: Option<String>,
    role: Option<Role>,
    pool: Said<'a, PoolId>,
    pool_label: Said<'a, String>,
    tenant: Said<'a, TenantId>,
    tenant_label: Said<'a, String>,
    meter: Said<'a, Meter>,
    counts: Said<'a, Counts>,
    aim: Said<'a, f64>,
    every_s: Option<f64>,
    timeout_s: Option<f64>,
    scrape_s: Option<f64>,
    fresh_for_s: Said<'a, f64>,
}

/// Nothing where the key is absent; a value that could not be read has its mistake noted.
type Said<'a, T> = Option<(Option<T>, Place<'a>)>;

fn written<'a>(section: &mut Section<'a>) -> Written<'a> {
    let good = |text: &str| (1..=QUERY_CHARS_MAX).contains(&text.chars().count()).then(|| text.to_owned());
    let role = |text: &str| Role::ALL.into_iter().find(|role| role.as_str() == text);
    let counts = |text: &str| Counts::ALL.into_iter().find(|counts| counts.as_str() == text);
    let mut number = |key: &'static Key| section.take(key).map(|field| (field.number(), field.place));
    let (aim, fresh_for_s) = (number(&keys::AIM), number(&keys::FRESH_FOR_S));
    let mut seconds = |key: &'static Key| section.take(key).and_then(|field| field.number());
    let [every_s, timeout_s, scrape_s] = [&keys::EVERY_S, &keys::TIMEOUT_S, &keys::SCRAPE_S].map(&mut seconds);
    Written {
        query: section.take(&keys::QUERY).and_then(|field| field.text(good)),
        role: section.take(&keys::ROLE).and_then(|field| field.text(role)),
        pool: section.take(&keys::POOL).map(|field| (field.text(|text| text.parse().ok()), field.place)),
        pool_label: label(section, &keys::POOL_LABEL),
        tenant: section.take(&keys::QUEUE_OF).map(|field| (field.text(|text| text.parse().ok()), field.place)),
        tenant_label: label(section, &keys::TENANT_LABEL),
        meter: section.take(&keys::METER).map(|field| (field.text(|text| text.parse().ok()), field.place)),
        counts: section.take(&keys::SIGNAL_COUNTS).map(|field| (field.text(counts), field.place)),
        aim,
        every_s,
        timeout_s,
        scrape_s,
        fresh_for_s,
    }
}

fn query(mut section: Section<'_>, at: &Place<'_>, pools: Option<&[PoolParams]>) -> Option<QueryParams> {
    let written = written(&mut section);
    section.end();
    let role = written.role?;
    let pool = pool_of(written.pool, written.pool_label, at, pools);
    let tenant = tenant_of(role, written.tenant, written.tenant_label, at);
    if let (Some(Named::Fixed(id)), Some((Some(meter), place))) = (&pool, &written.meter) {
        warn_of_no_meter(id, *meter, place, pools);
    }
    let meter = meter_of(role, written.meter, at);
    let (counts, aim) = aim_of(role, written.counts, written.aim)?;
    let (every_s, scrape_s) = (written.every_s?, written.scrape_s?);
    let fresh_for_s = match written.fresh_for_s {
        Some((fresh_for, place)) => {
            let (fresh_for_s, least) = (fresh_for?, every_s.max(scrape_s));
            if fresh_for_s < least {
                place.expected(&format!(
                    "at least {least}, the longer of every_s and scrape_s: it would be stale in between"
                ));
            }
            fresh_for_s
        }
        None => (FRESH_INTERVALS * every_s).max(every_s + scrape_s).max(FRESH_FOR_S),
    };
    let span = Duration::from_secs_f64;
    Some(QueryParams {
        query: written.query?,
        role,
        pool: pool?,
        tenant: tenant?,
        meter: meter?,
        counts,
        aim,
        every: span(every_s),
        timeout: span(written.timeout_s?),
        fresh_for: span(fresh_for_s),
        scrape: span(scrape_s),
    })
}

fn pool_of(
    pool: Said<'_, PoolId>,
    label: Said<'_, String>,
    at: &Place<'_>,
    pools: Option<&[PoolParams]>,
) -> Option<Named<PoolId>> {
    match (pool, label) {
        (Some(_), Some((_, place))) => {
            place.expected("no pool_label beside pool: one or the other");
            None
        }
        (Some((id, place)), None) => id.map(|id| {
            warn_of_unknown(&id, &place, pools);
            Named::Fixed(id)
        }),
        (None, Some((label, _))) => label.map(Named::Label),
        (None, None) => {
            at.mistake("a pool or a pool_label is missing, expected one of them to say whose it is");
            None
        }
    }
}

/// What congestion counts, and what it is to be.
fn aim_of(role: Role, counts: Said<'_, Counts>, aim: Said<'_, f64>) -> Option<(Counts, f64)> {
    if role != Role::Congestion {
        let places = [counts.as_ref().map(|(_, place)| place), aim.as_ref().map(|(_, place)| place)];
        places.into_iter().flatten().for_each(|place| place.expected("to be absent: it is of role congestion alone"));
    }
    let counts = counts.map_or(Some(Counts::Requests), |(counts, _)| counts)?;
    let Some((aim, place)) = aim else {
        return Some(match counts {
            Counts::Requests => (counts, AIM_REQUESTS),
            Counts::Part => (counts, AIM_PART),
        });
    };
    let aim = aim?;
    if counts == Counts::Part && aim > 1.0 {
        place.expected("at most 1, for a part that is full");
    }
    Some((counts, aim))
}

fn label<'a>(section: &mut Section<'a>, key: &'static Key) -> Said<'a, String> {
    let good = |text: &str| {
        let begins = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        (begins && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')).then(|| text.to_owned())
    };
    section.take(key).map(|field| (field.text(good), field.place))
}

fn tenant_of(
    role: Role,
    tenant: Said<'_, TenantId>,
    label: Said<'_, String>,
    at: &Place<'_>,
) -> Option<Named<Grantee>> {
    match (role, tenant, label) {
        (Role::Demand, Some(_), Some((_, place))) => {
            place.expected("no tenant_label beside tenant: one or the other");
            None
        }
        (Role::Demand, Some((tenant, _)), None) => tenant.map(|tenant| Named::Fixed(Grantee::Tenant(tenant))),
        (Role::Demand, None, Some((label, _))) => label.map(Named::Label),
        (Role::Demand, None, None) => {
            at.mistake("a tenant or a tenant_label is missing, expected one of them to say whose queue it is");
            None
        }
        (_, Some((_, place)), _) | (_, None, Some((_, place))) => {
            place.expected("to be absent: it is of role demand alone");
            None
        }
        // Nobody asks.
        (_, None, None) => Some(Named::Fixed(Grantee::Default)),
    }
}

/// The outer `None` only with a mistake noted.
#[allow(clippy::option_option, reason = "a mistake is not an absence")]
fn meter_of(role: Role, meter: Said<'_, Meter>, at: &Place<'_>) -> Option<Option<Meter>> {
    match (role, meter) {
        (Role::Capacity, Some((meter, _))) => meter.map(Some),
        (Role::Capacity, None) => {
            at.mistake("a meter is missing, expected one to say whose capacity it is");
            None
        }
        (_, Some((_, place))) => {
            place.expected("to be absent: it is of role capacity alone");
            None
        }
        (_, None) => Some(None),
    }
}

fn warn_of_unknown(id: &PoolId, place: &Place<'_>, pools: Option<&[PoolParams]>) {
    if let Some(pools) = pools
        && !pools.iter().any(|pool| pool.id == *id)
    {
        let known: Vec<&str> = pools.iter().map(|pool| pool.id.as_str()).collect();
        place.warning(&format!("a pool of this file ({}), unless a policy in the store adds it", known.join(", ")));
    }
}

fn warn_of_no_meter(id: &PoolId, meter: Meter, place: &Place<'_>, pools: Option<&[PoolParams]>) {
    let pool = pools.and_then(|pools| pools.iter().find(|pool| pool.id == *id));
    if let Some(pool) = pool.filter(|pool| !pool.capacity.contains_key(&meter)) {
        let known: Vec<String> = pool.capacity.keys().map(ToString::to_string).collect();
        place.warning(&format!("a meter of that pool ({}): of another it tells nothing", known.join(", ")));
    }
}
