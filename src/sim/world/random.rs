//! Worlds drawn at random: the numbers to trust, as no law was tuned on them. What is drawn from which range stands in
//! config/scenarios/README.md.

use std::collections::BTreeMap;

use super::scenario::{Event, Happening, Headers, Members, Network, Provider, Requests, Scenario, Tenant};
use crate::quota::Meter;
use crate::sim::emulator::Emulated;
use crate::sim::events::Dice;

const SECONDS: f64 = 300.0;
const ROUNDED: [f64; 3] = [0.01, 0.05, 0.1];
const PATIENCE_S: f64 = 5.0;

/// The world of a seed: always the same one.
#[must_use]
pub fn random(seed: u64) -> Scenario {
    let mut dice = Dice::new(seed ^ 0x7A2D_0817);
    let provider = provider(&mut dice);
    let limit_per_s = Meter::REQUESTS_PER_MINUTE.per_second(provider.requests_per_minute);
    let configured = *dice.pick(&[1.0, 1.0, 0.5, 2.0]) * provider.requests_per_minute;
    let tenants = tenants(limit_per_s, &mut dice);
    let events = events(&tenants, &provider, limit_per_s, &mut dice);
    let provider = Provider { others_per_second: 0.0, ..provider };
    Scenario {
        name: format!("random-{seed}"),
        about: "Drawn at random.".to_owned(),
        seed,
        seconds: SECONDS,
        provider,
        configured_requests_per_minute: Some(configured),
        members: Members { split: split(&mut dice), ..Members::default() },
        tenants,
        requests: Requests::default(),
        network: Network::default(),
        events,
        accept: BTreeMap::new(),
    }
}

/// Between two numbers, evenly.
fn even(least: f64, most: f64, dice: &mut Dice) -> f64 {
    least + (most - least) * dice.part()
}

/// Between two numbers, evenly by their logarithms.
fn log_even(least: f64, most: f64, dice: &mut Dice) -> f64 {
    even(least.ln(), most.ln(), dice).exp()
}

fn provider(dice: &mut Dice) -> Provider {
    let dialect = if dice.chance(0.25) { Emulated::FixedWindow } else { Emulated::OpenAi };
    let requests_per_minute = log_even(95.0, 4_800.0, dice).round();
    let burst_seconds = log_even(2.0, 60.0, dice);
    let headers = match dice.part() {
        x if x < 0.4 => Headers::Exact,
        x if x < 0.6 => Headers::Rounded(*dice.pick(&ROUNDED)),
        x if x < 0.8 => Headers::Cached(even(1.0, 8.0, dice)),
        _ => Headers::None,
    };
    let (heads_at_end, charges_refused) = (dice.chance(1.0 / 3.0), dice.chance(0.25));
    Provider {
        dialect,
        requests_per_minute,
        burst_seconds,
        charges_refused,
        headers,
        heads_at_end,
        ..Provider::default()
    }
}

#[allow(clippy::cast_precision_loss, reason = "at most 4")]
fn tenants(limit_per_s: f64, dice: &mut Dice) -> BTreeMap<String, Tenant> {
    let parts: Vec<f64> = (0..dice.number(2..9)).map(|_| even(0.2, 1.0, dice)).collect();
    let per_second = limit_per_s * even(0.7, 2.0, dice) / parts.iter().sum::<f64>();
    let tenant = |(n, part): (usize, &f64)| {
        let weight = dice.number(1..5) as f64;
        let patience_s = dice.chance(0.5).then_some(PATIENCE_S);
        let tenant =
            Tenant { weight, per_second: part * per_second, patience_s, floor: None, ceiling: None, batch: false };
        (format!("t{n}"), tenant)
    };
    parts.iter().enumerate().map(tenant).collect()
}

fn split(dice: &mut Dice) -> Vec<f64> {
    let parts: Vec<f64> = (0..dice.number(1..6)).map(|_| even(0.2, 1.0, dice)).collect();
    let sum: f64 = parts.iter().sum();
    parts.into_iter().map(|part| part / sum).collect()
}

fn events(tenants: &BTreeMap<String, Tenant>, provider: &Provider, limit_per_s: f64, dice: &mut Dice) -> Vec<Event> {
    let mut events = Vec::new();
    if dice.chance(0.5) {
        let names: Vec<&String> = tenants.keys().collect();
        let tenant = (*dice.pick(&names)).clone();
        let usual = tenants[&tenant].per_second;
        let (at_s, times, lasts_s) = (even(40.0, 200.0, dice), even(2.0, 5.0, dice), even(10.0, 40.0, dice));
        let mut traffic = |at_s: f64, per_second: f64| {
            events.push(Event { at_s, what: Happening::Traffic { tenant: tenant.clone(), per_second } });
        };
        traffic(at_s, usual * times);
        traffic(at_s + lasts_s, usual);
    }
    if dice.chance(1.0 / 3.0) {
        // Whole requests a minute, as a provider would.
        let limit = (log_even(0.4, 2.5, dice) * provider.requests_per_minute).round();
        let what = Happening::Limit(limit / provider.requests_per_minute);
        events.push(Event { at_s: even(60.0, 220.0, dice), what });
    }
    if dice.chance(1.0 / 3.0) {
        let per_second = limit_per_s * even(0.1, 0.5, dice);
        let (begins_s, ends_s) =
            if dice.chance(0.5) { (0.0, None) } else { (even(30.0, 150.0, dice), Some(even(160.0, 280.0, dice))) };
        events.push(Event { at_s: begins_s, what: Happening::OthersPerSecond(per_second) });
        events.extend(ends_s.map(|at_s| Event { at_s, what: Happening::OthersPerSecond(0.0) }));
    }
    events
}
