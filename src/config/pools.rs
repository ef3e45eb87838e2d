//! The tables `[pools.<id>]`.

use std::collections::{BTreeMap, BTreeSet};

use jiff::tz::TimeZone;

use super::keys;
use super::names::Names;
use super::section::{Field, Place, Section};
use crate::controller::law::LawParams;
use crate::controller::{PoolParams, TenantParams};
use crate::limiter::Priority;
use crate::plan::{Algorithm, Mode, Rate};
use crate::provider::{Dialect, Refill, ResetForm, TaughtMeter, TaughtParams};
use crate::quota::{Meter, PoolId, QuotaError, TenantId};

/// What is written per meter, and where.
type PerMeter<'a, T> = BTreeMap<Meter, (T, Place<'a>)>;

/// Reads `pools`.
pub(super) fn pools(field: Field<'_>) -> Option<Vec<PoolParams>> {
    let entries = field.entries()?;
    Some(entries.into_iter().filter_map(|(id, at, field)| pool(&id, &at, field)).collect())
}

/// `None` only with a mistake noted.
pub(super) fn pool(name: &str, at: &Place<'_>, field: Field<'_>) -> Option<PoolParams> {
    let refused = |error: QuotaError| at.name_refused(Names::Pools, name, &error.to_string());
    let id = name.parse::<PoolId>().map_err(refused).ok();
    let mut section = field.section()?;
    let dialect = section.take(&keys::DIALECT).and_then(dialect);
    let mode = section.take(&keys::MODE).and_then(|field| field.text(Mode::named));
    let concurrency = section.take(&keys::CONCURRENCY).map(|field| (field.count(), field.place));
    let capacity = section.take(&keys::CAPACITY).and_then(Field::entries).map(capacity);
    let meters = capacity.as_ref().and_then(|capacity| capacity.meters.as_deref());
    let tenants = section.take(&keys::TENANTS).and_then(Field::entries).map(|entries| tenants(entries, meters));
    let default = section.take(&keys::DEFAULT).and_then(Field::section).map(|section| tenant(section, meters));
    section.end();
    let (capacity, tenants, default) = (capacity?, tenants?, default?);
    // One place each, or somebody would wait for ever.
    let grantees = tenants.len() + 1;
    if let Some((Some(places), at)) = &concurrency
        && usize::try_from(*places).is_ok_and(|places| places < grantees)
    {
        at.expected(&format!("at least {grantees} (one for each tenant and one for the default)"));
    }
    let declared: BTreeMap<_, _> = tenants.into_iter().filter_map(|(id, params)| Some((id?, params?))).collect();
    let all: Vec<&TenantParams> = declared.values().chain([&default]).collect();
    floors_fit(&capacity.rates, &all);
    Some(PoolParams {
        id: id?,
        dialect: dialect?,
        mode: mode?,
        algorithms: capacity.algorithms,
        shared: capacity.shared,
        zones: capacity.zones,
        capacity: capacity.rates.into_iter().map(|(meter, (rate, _))| (meter, rate)).collect(),
        concurrency: concurrency.and_then(|(places, _)| places),
        tenants: declared,
        law: LawParams::default(),
        default_tenant: default,
    })
}

/// A dialect by its name, or one that is taught.
fn dialect(field: Field<'_>) -> Option<Dialect> {
    if !field.is_table() {
        return field.text(|name| name.parse().ok());
    }
    let at = field.place.clone();
    let mut section = field.section()?;
    let name = section.take(&keys::DIALECT_NAME).and_then(|field| field.text(|name| Some(name.to_owned())));
    let refill = section.take(&keys::REFILL).and_then(|field| {
        field.text(|text| match text {
            "continuous" => Some(Refill::Continuous),
            "fixed_window" => Some(Refill::FixedWindow),
            _ => None,
        })
    });
    let known = |text: &str| ResetForm::ALL.into_iter().find(|form| form.as_str() == text);
    let reset_form = section.take(&keys::RESET_FORM).and_then(|field| field.text(known));
    let headers = section.take(&keys::HEADERS).and_then(Field::entries);
    section.end();
    let mut meters = Vec::new();
    for_each_meter(headers?, |meter, _, field| {
        let Some(mut section) = field.section() else { return };
        let mut header = |key| section.take(key).and_then(|field| field.text(|text| Some(text.to_owned())));
        let limit = header(&keys::LIMIT_HEADER);
        let remaining = header(&keys::REMAINING_HEADER);
        let reset = header(&keys::RESET_HEADER);
        section.end();
        meters.push(TaughtMeter { meter, limit, remaining, reset });
    });
    let params = TaughtParams { name: name?, refill: refill?, reset_form: reset_form?, meters };
    params.teach().map(Dialect::Taught).map_err(|error| at.mistake(error.to_string())).ok()
}

/// Warns of floors that add up to more than the capacity: all would shrink in proportion.
fn floors_fit(rates: &PerMeter<'_, Rate>, tenants: &[&TenantParams]) {
    for (meter, (rate, at)) in rates {
        let sum: f64 = tenants.iter().filter_map(|tenant| tenant.floor.get(meter)).sum();
        if sum > rate.rate {
            at.warning(&format!("at least {sum}, the sum of the floors; with less, all floors shrink in proportion"));
        }
    }
}

/// What a pool's `capacity` says.
struct Capacity<'a> {
    rates: PerMeter<'a, Rate>,
    /// Those that are no token buckets.
    algorithms: BTreeMap<Meter, Algorithm>,
    /// Those that are counted together.
    shared: BTreeSet<Meter>,
    /// Of fixed windows that do not begin with their first use.
    zones: BTreeMap<Meter, TimeZone>,
    /// The meters named, with a good value or not; `None` when a name could not be read.
    meters: Option<Vec<Meter>>,
}

fn capacity<'a>(entries: Vec<(String, Place<'a>, Field<'a>)>) -> Capacity<'a> {
    let (mut rates, mut algorithms, mut zones) = (PerMeter::new(), BTreeMap::new(), BTreeMap::new());
    let mut shared = BTreeSet::new();
    let named = entries.len();
    let mut meters: Vec<Meter> = Vec::new();
    for_each_meter(entries, |meter, _, field| {
        meters.push(meter);
        let place = field.place.clone();
        if let Some(counted) = counted(meter, field) {
            rates.insert(meter, (counted.rate, place));
            if counted.algorithm != Algorithm::default() {
                algorithms.insert(meter, counted.algorithm);
            }
            shared.extend(counted.is_shared.then_some(meter));
            zones.extend(counted.zone.map(|zone| (meter, zone)));
        }
    });
    let meters = (meters.len() == named).then_some(meters);
    Capacity { rates, algorithms, shared, zones, meters }
}

/// Reads the names of entries whose keys are meters. Mistakes are noted: what is no meter, and what is given twice.
fn for_each_meter<'a>(
    entries: Vec<(String, Place<'a>, Field<'a>)>,
    mut read: impl FnMut(Meter, &Place<'a>, Field<'a>),
) {
    let mut seen: BTreeMap<Meter, Place<'a>> = BTreeMap::new();
    for (name, at, field) in entries {
        if name == keys::CONCURRENCY.name {
            at.mistake("concurrency is no meter, expected it as a key of the pool itself");
            continue;
        }
        match name.parse::<Meter>() {
            Ok(meter) => {
                if let Some(first) = seen.get(&meter) {
                    at.mistake(format!("the meter {meter} is given twice, first on line {}", first.line()));
                }
                read(meter, &at, field);
                seen.entry(meter).or_insert(at);
            }
            Err(error) => at.name_refused(Names::Meters, &name, &error.to_string()),
        }
    }
}

/// What is said of a meter.
struct Counted {
    rate: Rate,
    algorithm: Algorithm,
    is_shared: bool,
    zone: Option<TimeZone>,
}

/// `600`, or `{ rate = 600, burst = 30 }`, or `{ rate = 600, algorithm = "fixed_window", alignment = "clock" }`, or
/// `{ rate = 600, enforcement = "shared" }`.
fn counted(meter: Meter, field: Field<'_>) -> Option<Counted> {
    let default_burst = |rate| (meter.per_second(rate) * keys::BURST_SECONDS).max(1.0);
    if !field.is_table() {
        let rate = field.number()?;
        let rate = Rate { rate, burst: default_burst(rate) };
        return Some(Counted { rate, algorithm: Algorithm::default(), is_shared: false, zone: None });
    }
    let mut section = field.section()?;
    let rate = section.take(&keys::RATE).map(|field| (field.number(), field.place));
    let burst = section.take(&keys::BURST).map(|field| field.number());
    let known = |name: &str| Algorithm::ALL.into_iter().find(|algorithm| algorithm.as_str() == name);
    let algorithm = section.take(&keys::ALGORITHM).and_then(|field| field.text(known));
    let alignment = section.take(&keys::ALIGNMENT).map(|field| (field.text(begin), field.place));
    let is_shared = section.take(&keys::ENFORCEMENT).and_then(|field| field.text(is_shared));
    section.end();
    if let (Some((_, at)), Some(algorithm)) = (&alignment, algorithm)
        && algorithm != Algorithm::FixedWindow
    {
        at.expected(&format!("no alignment for a {}: only a fixed_window has one", algorithm.as_str()));
    }
    let (rate, at) = rate?;
    if algorithm == Some(Algorithm::SlidingLog) && rate.is_some_and(|rate| rate > keys::LOG_RATE_MAX) {
        let most = keys::LOG_RATE_MAX;
        at.expected(&format!("at most {most} (units per window) for a sliding_log, which remembers each request"));
    }
    let rate = rate?;
    let rate = Rate { rate, burst: burst.unwrap_or_else(|| Some(default_burst(rate)))? };
    let zone = match alignment.map_or(Some(Begin::FirstUse), |(begin, _)| begin)? {
        Begin::FirstUse => None,
        Begin::Clock(zone) => Some(zone),
    };
    Some(Counted { rate, algorithm: algorithm?, is_shared: is_shared?, zone })
}

fn is_shared(text: &str) -> Option<bool> {
    match text {
        "local" => Some(false),
        "shared" => Some(true),
        _ => None,
    }
}

/// When fixed windows begin.
enum Begin {
    FirstUse,
    Clock(TimeZone),
}

fn begin(text: &str) -> Option<Begin> {
    match text {
        "first_use" => Some(Begin::FirstUse),
        "clock" => Some(Begin::Clock(TimeZone::UTC)),
        zone => TimeZone::get(zone).ok().filter(|zone| !zone.is_unknown()).map(Begin::Clock),
    }
}

/// Every tenant, those with mistakes too, so that they can be counted.
fn tenants(
    entries: Vec<(String, Place<'_>, Field<'_>)>,
    meters: Option<&[Meter]>,
) -> Vec<(Option<TenantId>, Option<TenantParams>)> {
    let read = |(name, at, field): (String, Place<'_>, Field<'_>)| {
        let refused = |error: QuotaError| at.name_refused(Names::Tenants, &name, &error.to_string());
        (name.parse().map_err(refused).ok(), field.section().map(|section| tenant(section, meters)))
    };
    entries.into_iter().map(read).collect()
}

fn tenant(mut section: Section<'_>, meters: Option<&[Meter]>) -> TenantParams {
    let mut params = TenantParams::default();
    if let Some(weight) = section.take(&keys::WEIGHT).and_then(|field| field.number()) {
        params.weight = weight;
    }
    if let Some(priority) = section.take(&keys::PRIORITY).and_then(|field| field.text(priority)) {
        params.priority = priority;
    }
    let mut bounds = |key| section.take(key).and_then(Field::entries).map(|entries| bounds(entries, meters));
    let floors = bounds(&keys::FLOOR).unwrap_or_default();
    let ceilings = bounds(&keys::CEILING).unwrap_or_default();
    for (meter, (floor, at)) in floors {
        if let Some((ceiling, _)) = ceilings.get(&meter).filter(|(ceiling, _)| floor > *ceiling) {
            at.expected(&format!("at most the ceiling, {ceiling}"));
        }
        params.floor.insert(meter, floor);
    }
    params.ceiling = ceilings.into_iter().map(|(meter, (ceiling, _))| (meter, ceiling)).collect();
    section.end();
    params
}

fn priority(text: &str) -> Option<Priority> {
    match text {
        "interactive" => Some(Priority::Interactive),
        "batch" => Some(Priority::Batch),
        _ => None,
    }
}

/// Reads a floor or ceiling: numbers per meter that the pool has.
fn bounds<'a>(entries: Vec<(String, Place<'a>, Field<'a>)>, meters: Option<&[Meter]>) -> PerMeter<'a, f64> {
    let mut bounds = PerMeter::new();
    for_each_meter(entries, |meter, at, field| {
        if let Some(meters) = meters.filter(|meters| !meters.contains(&meter)) {
            let has: Vec<String> = meters.iter().map(Meter::to_string).collect();
            let has = has.join(", ");
            at.mistake(format!("the pool's capacity has no such meter, expected one of: {has}"));
        }
        if let Some(bound) = field.number() {
            bounds.insert(meter, (bound, field.place));
        }
    });
    bounds
}
