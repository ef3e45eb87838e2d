//! The tables `[pools.<id>]`.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error as ValueError, StrDeserializer};

use super::section::{Field, Place, Section};
use crate::controller::{PoolParams, TenantParams};
use crate::plan::Rate;
use crate::provider::Dialect;
use crate::quota::{Meter, PoolId, QuotaError, TenantId};

/// Seconds of its rate that a meter stores when no burst is given: long enough that members' reports and retunes
/// do not starve a steady sender, short enough that a burst is no second helping of the window.
const BURST_SECONDS: f64 = 3.0;
/// No provider counts this high; the bound keeps sums exact.
const UNITS_MAX: f64 = 1e12;
const CONCURRENCY: RangeInclusive<u32> = 1..=1_000_000;
const WEIGHT: RangeInclusive<f64> = 0.001..=1_000.0;
const RATE: RangeInclusive<f64> = 0.001..=UNITS_MAX;
const BURST: RangeInclusive<f64> = 1.0..=UNITS_MAX;
const FLOOR: RangeInclusive<f64> = 0.0..=UNITS_MAX;

const RATE_EXPECTED: &str = "a number from 0.001 to 1e12 (units per window)";

/// Reads `pools`: at least one.
pub(super) fn pools(root: &mut Section<'_>) -> Vec<PoolParams> {
    let missing = "no pools; expected at least one table [pools.<id>] with a dialect and a capacity";
    let Some(field) = root.take("pools") else {
        root.place.mistake(missing);
        return Vec::new();
    };
    let Some(section) = field.into_section("tables [pools.<id>]") else { return Vec::new() };
    let place = section.place.clone();
    let mut entries = section.entries().peekable();
    if entries.peek().is_none() {
        place.mistake(missing);
    }
    entries.filter_map(|(id, at, field)| pool(&id, &at, field)).collect()
}

fn pool(id: &str, at: &Place<'_>, field: Field<'_>) -> Option<PoolParams> {
    let id = id.parse::<PoolId>().map_err(|error| at.mistake(error.to_string())).ok();
    let mut section = field.into_section("a table")?;
    let dialect = if let Some(field) = section.take("dialect") {
        dialect(&field)
    } else {
        at.mistake("\"dialect\" is missing; expected how the provider writes its limits, such as dialect = \"openai\"");
        None
    };
    let expected = "a whole number from 1 to 1000000 (calls in flight)";
    let concurrency =
        section.take("concurrency").map(|field| (field.place.clone(), field.count(expected, &CONCURRENCY)));
    let capacity = if let Some(field) = section.take("capacity") {
        field.into_section("a table of meters").map(capacity)
    } else {
        at.mistake("\"capacity\" is missing; expected meters, such as capacity = { \"requests/minute\" = 600 }");
        None
    };
    let meters = capacity.as_ref().and_then(|capacity| capacity.meters.clone());
    let tenants = section.take_section("tenants").map(|section| tenants(section, meters.as_ref()));
    let default_tenant = section.take_section("default").map(|section| tenant(section, meters.as_ref()));
    section.end();
    // One place each, or somebody would wait for ever.
    let grantees = tenants.as_ref().map_or(0, BTreeMap::len) + 1;
    if let Some((at, Some(places))) = &concurrency
        && usize::try_from(*places).is_ok_and(|places| places < grantees)
    {
        at.mistake(format!(
            "found {places}, expected at least {grantees} (one for each tenant and one for the default)"
        ));
    }
    Some(PoolParams {
        id: id?,
        dialect: dialect?,
        capacity: capacity?.rates,
        concurrency: concurrency.and_then(|(_, places)| places),
        tenants: tenants.unwrap_or_default(),
        default_tenant: default_tenant.unwrap_or_default(),
    })
}

fn dialect(field: &Field<'_>) -> Option<Dialect> {
    let named = field.text("the name of a dialect, such as \"openai\"", |name| Some(name.to_owned()))?;
    let deserializer: StrDeserializer<'_, ValueError> = named.as_str().into_deserializer();
    // serde's message lists the dialects there are: "unknown variant `x`, expected …".
    let refused = |error: ValueError| {
        let text = error.to_string();
        field.place.expected(text.split_once(", expected ").map_or(&text, |(_, known)| known));
    };
    Dialect::deserialize(deserializer).map_err(refused).ok()
}

/// What a pool's `capacity` says.
struct Capacity {
    rates: BTreeMap<Meter, Rate>,
    /// The meters named, with a good value or not; `None` when a name could not be read.
    meters: Option<BTreeSet<Meter>>,
}

fn capacity(section: Section<'_>) -> Capacity {
    let place = section.place.clone();
    let mut capacity = Capacity { rates: BTreeMap::new(), meters: Some(BTreeSet::new()) };
    let mut empty = true;
    for (name, at, field) in section.entries() {
        empty = false;
        let Some(meter) = meter(&name, &at) else {
            capacity.meters = None;
            continue;
        };
        if let Some(meters) = &mut capacity.meters
            && !meters.insert(meter)
        {
            at.mistake(format!("the meter {meter} is given twice"));
        }
        if let Some(rate) = rate(meter, field) {
            capacity.rates.insert(meter, rate);
        }
    }
    if empty {
        place.mistake("no meters; expected at least one, such as \"requests/minute\" = 600");
    }
    capacity
}

fn meter(name: &str, at: &Place<'_>) -> Option<Meter> {
    if name == "concurrency" {
        at.mistake("concurrency is no meter; expected it as a key of the pool itself");
        return None;
    }
    name.parse().map_err(|error: QuotaError| at.mistake(error.to_string())).ok()
}

/// `600`, or `{ rate = 600, burst = 30 }`.
fn rate(meter: Meter, field: Field<'_>) -> Option<Rate> {
    if !field.is_table() {
        let rate = field.number(&format!("{RATE_EXPECTED}, or {{ rate, burst }}"), &RATE)?;
        return Some(Rate { rate, burst: default_burst(meter, rate) });
    }
    let mut section = field.into_section("a table")?;
    let rate = if let Some(field) = section.take("rate") {
        field.number(RATE_EXPECTED, &RATE)
    } else {
        section.place.mistake(format!("\"rate\" is missing; expected {RATE_EXPECTED}"));
        None
    };
    let burst = section.take("burst").map(|field| field.number("a number from 1 to 1e12 (units)", &BURST));
    section.end();
    let rate = rate?;
    Some(Rate { rate, burst: burst.unwrap_or_else(|| Some(default_burst(meter, rate)))? })
}

fn default_burst(meter: Meter, rate: f64) -> f64 {
    (meter.per_second(rate) * BURST_SECONDS).max(1.0)
}

fn tenants(section: Section<'_>, meters: Option<&BTreeSet<Meter>>) -> BTreeMap<TenantId, TenantParams> {
    let entry = |(name, at, field): (String, Place<'_>, Field<'_>)| {
        let id = name.parse::<TenantId>().map_err(|error| at.mistake(error.to_string())).ok();
        let params = tenant(field.into_section("a table")?, meters);
        Some((id?, params))
    };
    section.entries().filter_map(entry).collect()
}

fn tenant(mut section: Section<'_>, meters: Option<&BTreeSet<Meter>>) -> TenantParams {
    let weight = section.take("weight").and_then(|field| field.number("a number from 0.001 to 1000", &WEIGHT));
    let floor = section.take_section("floor");
    let floor = floor.map(|table| bounds(table, meters, "a number from 0 to 1e12 (units per window)", &FLOOR));
    let ceiling = section.take_section("ceiling");
    let ceiling = ceiling.map(|table| bounds(table, meters, RATE_EXPECTED, &RATE)).unwrap_or_default();
    let mut params = TenantParams::default();
    for (meter, (floor, at)) in floor.unwrap_or_default() {
        if let Some((ceiling, _)) = ceiling.get(&meter).filter(|(ceiling, _)| floor > *ceiling) {
            at.expected(&format!("at most the ceiling, {ceiling}"));
        }
        params.floor.insert(meter, floor);
    }
    params.ceiling = ceiling.into_iter().map(|(meter, (ceiling, _))| (meter, ceiling)).collect();
    section.end();
    params.weight = weight.unwrap_or(params.weight);
    params
}

/// Reads a floor or ceiling: numbers per meter that the pool has.
fn bounds<'a>(
    section: Section<'a>,
    meters: Option<&BTreeSet<Meter>>,
    expected: &str,
    range: &RangeInclusive<f64>,
) -> BTreeMap<Meter, (f64, Place<'a>)> {
    let mut bounds = BTreeMap::new();
    for (name, at, field) in section.entries() {
        let Some(meter) = meter(&name, &at) else { continue };
        if let Some(meters) = meters.filter(|meters| !meters.contains(&meter)) {
            let has: Vec<String> = meters.iter().map(Meter::to_string).collect();
            at.mistake(format!("the pool's capacity has no such meter; expected one of: {}", has.join(", ")));
        }
        let Some(bound) = field.number(expected, range) else { continue };
        if bounds.insert(meter, (bound, field.place)).is_some() {
            at.mistake(format!("the meter {meter} is given twice"));
        }
    }
    bounds
}
