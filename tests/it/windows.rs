//! The windows against slow twins that recount from lists, over random operations; and what no sequence of operations
//! may bring about.
//!
//! Amounts are multiples of 1/8 and times of 1/1024 of a window, so sums are exact where the twins must agree exactly.

use std::collections::BTreeSet;

use fastrand::Rng;
use tidegate::clock::MonoTime;
use tidegate::limiter::{Alignment, ENTRIES_MAX, FixedWindow, SlidingLog, SlidingWindow};

/// About a second, so that a 1,024th is a whole number of nanoseconds.
const W: u64 = 1 << 30;
const TICK: u64 = W / 1_024;
const SECONDS: f64 = W as f64 / 1e9;
/// More than any rounding, less than any amount that is taken.
const NEAR: f64 = 1e-6;

fn at(ns: u64) -> MonoTime {
    MonoTime(ns)
}

/// Units that are exact in binary.
fn eighths(rng: &mut Rng, most: u64) -> f64 {
    rng.u64(1..=8 * most) as f64 / 8.0
}

/// A span to the next operation: mostly short, sometimes none, sometimes many windows.
fn span(rng: &mut Rng) -> u64 {
    match rng.u8(0..20) {
        0..3 => 0,
        3..16 => rng.u64(1..300) * TICK,
        16..19 => rng.u64(1..3_000) * TICK,
        _ => rng.u64(1..40_000) * TICK,
    }
}

/// What all three offer.
trait Windowed: Clone {
    fn level_at(&self, now: MonoTime) -> f64;
    fn reaches_at(&self, units: f64, now: MonoTime) -> Option<MonoTime>;
    fn supplies_at(&self, units: f64, now: MonoTime) -> Option<MonoTime>;
    fn burst(&self) -> f64;
    fn take(&mut self, units: f64, now: MonoTime);
    fn give_back(&mut self, units: f64, taken_at: MonoTime, now: MonoTime);
    fn is_fresh_at(&self, now: MonoTime) -> bool;
    fn set_limit(&mut self, limit: f64, now: MonoTime);
}

/// A fixed window that keeps its alignment.
#[derive(Clone)]
struct Fixed {
    window: FixedWindow,
    alignment: Alignment,
}

macro_rules! windowed {
    ($window:ty, [$($inner:tt)*], |$self:ident, $limit:ident, $now:ident| $retune:expr) => {
        impl Windowed for $window {
            fn level_at(&self, now: MonoTime) -> f64 {
                self$($inner)*.level_at(now)
            }
            fn reaches_at(&self, units: f64, now: MonoTime) -> Option<MonoTime> {
                self$($inner)*.reaches_at(units, now)
            }
            fn supplies_at(&self, units: f64, now: MonoTime) -> Option<MonoTime> {
                self$($inner)*.supplies_at(units, now)
            }
            fn burst(&self) -> f64 {
                self$($inner)*.burst()
            }
            fn take(&mut self, units: f64, now: MonoTime) {
                self$($inner)*.take(units, now);
            }
            fn give_back(&mut self, units: f64, taken_at: MonoTime, now: MonoTime) {
                self$($inner)*.give_back(units, taken_at, now);
            }
            fn is_fresh_at(&self, now: MonoTime) -> bool {
                self$($inner)*.is_fresh_at(now)
            }
            fn set_limit(&mut $self, $limit: f64, $now: MonoTime) {
                $retune;
            }
        }
    };
}

windowed!(Fixed, [.window], |self, limit, now| self.window.retune(limit, self.alignment, now));
windowed!(SlidingWindow, [], |self, limit, now| self.retune(limit, now));
windowed!(SlidingLog, [], |self, limit, now| self.retune(limit, now));

fn fixed(limit: f64, alignment: Alignment, now: u64) -> Fixed {
    Fixed { window: FixedWindow::new(limit, SECONDS, alignment, at(now)), alignment }
}

fn sliding(limit: f64) -> SlidingWindow {
    SlidingWindow::new(limit, SECONDS, at(0))
}

fn log(limit: f64) -> SlidingLog {
    SlidingLog::new(limit, SECONDS, at(0))
}

/// Admits as the limiter does: within the limit when there is as much, a larger cost from an untouched window.
fn admit<T: Windowed>(window: &mut T, units: f64, now: u64) -> bool {
    let ready = window.burst() > 0.0 && window.reaches_at(units.min(window.burst()), at(now)) == Some(at(now));
    if ready {
        window.take(units, at(now));
    }
    ready
}

// === Slow twins ===

/// Units left, recounted from a list of all that happened.
trait Twin {
    fn level(&self, now: u64) -> f64;
    fn happens(&mut self, event: Event);
}

#[derive(Debug, Clone, Copy)]
enum Event {
    Take { units: f64, at: u64 },
    GiveBack { units: f64, taken_at: u64, at: u64 },
    Limit { limit: f64, at: u64 },
}

/// Walks through all fixed windows one by one from the beginning.
struct SlowFixed {
    limit: f64,
    /// Where the first aligned window ends; `None` for windows that begin with their first use.
    ends: Option<u64>,
    events: Vec<Event>,
}

impl Twin for SlowFixed {
    fn happens(&mut self, event: Event) {
        self.events.push(event);
    }

    fn level(&self, now: u64) -> f64 {
        let mut limit = self.limit;
        let mut window = self.ends.map(|ends| (ends.saturating_sub(W), ends));
        let mut level = self.ends.map_or(limit, |ends| limit * ends as f64 / W as f64);
        let turn = |window: &mut Option<(u64, u64)>, level: &mut f64, limit: f64, until: u64| {
            while let Some((_, ends)) = window.filter(|(_, ends)| *ends <= until) {
                let debt = *level < 0.0;
                *level = if debt { *level + limit } else { limit };
                *window = (debt || self.ends.is_some()).then_some((ends, ends + W));
            }
        };
        for event in &self.events {
            let (Event::Take { at, .. } | Event::GiveBack { at, .. } | Event::Limit { at, .. }) = *event;
            turn(&mut window, &mut level, limit, at);
            match *event {
                Event::Take { units, at } => {
                    window = window.or(Some((at, at + W)));
                    level -= units;
                }
                Event::GiveBack { units, taken_at, .. } => {
                    if window.is_some_and(|(began, _)| began <= taken_at) {
                        level = (level + units).min(limit);
                    }
                }
                Event::Limit { limit: new, at } => {
                    let ahead = window.map_or(1.0, |(_, ends)| (ends - at) as f64 / W as f64);
                    level = (level + (new - limit) * ahead).min(new);
                    limit = new;
                }
            }
        }
        turn(&mut window, &mut level, limit, now);
        level
    }
}

/// One take: when it was, from when it counts, and what is left of it.
struct Taken {
    at: u64,
    counts: u64,
    units: f64,
}

/// A list of what was taken; what is given back is taken out of it. And what is owed.
struct Takes {
    limit: f64,
    list: Vec<Taken>,
    owed: f64,
    owed_at: u64,
    in_debt: bool,
    /// What the limit lacked when it was raised last, and when that was.
    lacked: f64,
    raised_at: u64,
    /// The last window's units, by the twin's way of counting.
    counted: fn(&Self, u64) -> f64,
    /// Whether entries beyond the limit's whole number join the newest.
    bounded: bool,
}

impl Takes {
    fn new(limit: f64, counted: fn(&Self, u64) -> f64, bounded: bool) -> Self {
        Self {
            limit,
            list: Vec::new(),
            owed: 0.0,
            owed_at: 0,
            in_debt: false,
            lacked: 0.0,
            raised_at: 0,
            counted,
            bounded,
        }
    }

    fn between(&self, from: u64, to: u64) -> f64 {
        self.list.iter().filter(|taken| (from..to).contains(&taken.counts)).map(|taken| taken.units).sum()
    }

    /// Exactly the last window.
    fn exact(&self, now: u64) -> f64 {
        self.list.iter().filter(|taken| taken.counts + W > now).map(|taken| taken.units).sum()
    }

    /// By buckets, evenly.
    fn weighted(&self, now: u64) -> f64 {
        let began = now / W * W;
        let before = if began < W { 0.0 } else { self.between(began - W, began) };
        before * (began + W - now) as f64 / W as f64 + self.between(began, began + W)
    }

    fn owed_by(&self, now: u64) -> f64 {
        (self.owed - self.limit * (now - self.owed_at) as f64 / W as f64).max(0.0)
    }

    /// The limit as far as it has risen: evenly over a window's length.
    fn risen(&self, now: u64) -> f64 {
        self.limit - self.lacked * (self.raised_at + W).saturating_sub(now) as f64 / W as f64
    }

    /// A log with as many entries as the limit allows has no place for another.
    fn join_newest(&mut self, now: u64) {
        let entries: BTreeSet<u64> =
            self.list.iter().filter(|t| t.units > 0.0 && t.counts + W > now).map(|t| t.counts).collect();
        if let Some(newest) = entries.last().filter(|_| entries.len() >= (self.limit as usize).max(1)) {
            self.list.iter_mut().filter(|taken| taken.counts == *newest).for_each(|taken| taken.counts = now);
        }
    }
}

impl Twin for Takes {
    fn level(&self, now: u64) -> f64 {
        self.risen(now) - (self.counted)(self, now).max(self.owed_by(now))
    }

    fn happens(&mut self, event: Event) {
        let (Event::Take { at, .. } | Event::GiveBack { at, .. } | Event::Limit { at, .. }) = event;
        (self.owed, self.owed_at) = (self.owed_by(at), at);
        self.in_debt &= self.owed > 0.0;
        match event {
            Event::Take { units, at } => {
                if self.bounded {
                    self.join_newest(at);
                }
                match self.list.iter_mut().find(|taken| taken.at == at) {
                    Some(taken) => taken.units += units,
                    None => self.list.push(Taken { at, counts: at, units }),
                }
                self.owed += units;
                let counted = (self.counted)(self, at);
                if counted > self.limit + NEAR {
                    (self.owed, self.in_debt) = (self.owed.max(counted.min(self.limit + units)), true);
                }
            }
            Event::GiveBack { units, taken_at, at } if taken_at + W > at => {
                let taken = self.list.iter_mut().find(|taken| taken.at == taken_at);
                taken.expect("was taken").units -= units;
                let counted = (self.counted)(self, at);
                self.owed = (self.owed - units).max(self.owed.min(counted)).max(0.0);
            }
            Event::GiveBack { .. } => {}
            Event::Limit { limit, at } => {
                (self.lacked, self.raised_at) = ((limit - self.risen(at)).max(0.0), at);
                self.owed = if self.in_debt { self.owed } else { self.owed.min(limit) };
                self.limit = limit;
            }
        }
    }
}

/// What one sequence does.
#[derive(Clone, Copy)]
struct Play {
    start: f64,
    retunes: bool,
    whole: bool,
}

/// Plays one random sequence on a window and its twin: levels agree after each operation, and every wait is exact.
fn play<T: Windowed>(rng: &mut Rng, make: impl Fn(f64) -> T, twin: impl Fn(f64) -> Box<dyn Twin>, play: Play) {
    let (mut window, mut twin) = (make(play.start), twin(play.start));
    let mut taken: Vec<(f64, u64)> = Vec::new();
    let mut now = 0;
    for _ in 0..rng.usize(5..40) {
        now += span(rng);
        let most = play.start.ceil() as u64 * 2 + 2;
        let units = if play.whole { rng.u64(1..=most) as f64 } else { eighths(rng, most) };
        let event = match rng.u8(0..10) {
            0 if play.retunes => {
                let limit = if rng.bool() { eighths(rng, 12) } else { 0.0 };
                window.set_limit(limit, at(now));
                Some(Event::Limit { limit, at: now })
            }
            1..3 if !taken.is_empty() => {
                let (units, taken_at) = taken.swap_remove(rng.usize(..taken.len()));
                let units = if play.whole { units } else { units * f64::from(rng.u8(1..=8)) / 8.0 };
                window.give_back(units, at(taken_at), at(now));
                Some(Event::GiveBack { units, taken_at, at: now })
            }
            3 => {
                window.give_back(-units, at(now.saturating_sub(span(rng))), at(now));
                Some(Event::Take { units, at: now })
            }
            _ => {
                let units = if play.whole && rng.bool() { 1.0 } else { units };
                admit(&mut window, units, now).then(|| {
                    taken.push((units, now));
                    Event::Take { units, at: now }
                })
            }
        };
        if let Some(event) = event {
            twin.happens(event);
        }
        let (level, slow) = (window.level_at(at(now)), twin.level(now));
        assert!((level - slow).abs() < NEAR, "{level}, recounted {slow} at {now}, after {event:?}");
        let later = now + span(rng);
        let (level, slow) = (window.level_at(at(later)), twin.level(later));
        assert!((level - slow).abs() < NEAR, "{level}, recounted {slow} at {later}, seen from {now}");
        assert_eq!(window.is_fresh_at(at(later)), level >= window.burst());
        wait_is_exact(rng, &window, now);
    }
}

/// Refused a nanosecond before, admitted at it; and never means never.
fn wait_is_exact<T: Windowed>(rng: &mut Rng, window: &T, now: u64) {
    let units = if rng.bool() { window.burst() } else { eighths(rng, window.burst() as u64 + 1) };
    let there = |ns: u64| window.level_at(at(ns)) >= units - 1e-9 * units.max(1.0);
    match window.reaches_at(units, at(now)) {
        Some(ready) if ready.0 == now => assert!(there(now)),
        Some(ready) => {
            assert!(there(ready.0), "not there at {ready:?}");
            assert!(!there(ready.0 - 1), "there before {ready:?}");
        }
        None => assert!(!there(now) && (window.burst() <= 0.0 || units > window.burst()), "{units} never"),
    }
}

fn limits(rng: &mut Rng) -> f64 {
    [0.125, 0.5, 1.0, 2.5, 3.0, 10.0, 37.0][rng.usize(..7)]
}

#[test]
fn a_fixed_window_agrees_with_one_walked_from_the_beginning() {
    for seed in 0..14_000 {
        let rng = &mut Rng::with_seed(seed);
        let how = Play { start: limits(rng), retunes: rng.bool(), whole: rng.bool() };
        let ends = rng.bool().then(|| rng.u64(1..=1_024) * TICK);
        let alignment = ends.map_or(Alignment::FirstUse, |ends| Alignment::EndsAt(at(ends)));
        let slow = |limit| Box::new(SlowFixed { limit, ends, events: Vec::new() }) as Box<dyn Twin>;
        play(rng, |limit| fixed(limit, alignment, 0), slow, how);
    }
}

#[test]
fn a_sliding_window_agrees_with_one_recounted_from_a_list() {
    for seed in 0..14_000 {
        let rng = &mut Rng::with_seed(seed);
        let how = Play { start: limits(rng), retunes: rng.bool(), whole: rng.bool() };
        let slow = |limit| Box::new(Takes::new(limit, Takes::weighted, false)) as Box<dyn Twin>;
        play(rng, sliding, slow, how);
    }
}

#[test]
fn a_log_agrees_with_one_recounted_from_a_list() {
    for seed in 0..14_000 {
        let rng = &mut Rng::with_seed(seed);
        let how = Play { start: limits(rng), retunes: rng.bool(), whole: rng.bool() };
        let slow = |limit| Box::new(Takes::new(limit, Takes::exact, true)) as Box<dyn Twin>;
        play(rng, log, slow, how);
    }
}

// === What nothing may bring about ===

/// Admitted requests: when, and units.
type Admitted = Vec<(u64, f64)>;

/// Asks at random, with costs up to `most`, and tells of each answer.
fn ask<T: Windowed>(rng: &mut Rng, window: &mut T, most: f64, mut told: impl FnMut(&Admitted, u64, f64, bool)) {
    let mut admitted = Admitted::new();
    let mut now = 0;
    for _ in 0..60 {
        now += if rng.u8(0..10) == 0 { span(rng) } else { rng.u64(0..200) * TICK };
        let units = (rng.f64() * most).max(0.01);
        let yes = admit(window, units, now);
        if yes {
            admitted.push((now, units));
        }
        told(&admitted, now, units, yes);
    }
}

fn sum(admitted: &Admitted, from: u64, to: u64) -> f64 {
    admitted.iter().filter(|(at, _)| (from..to).contains(at)).map(|(_, units)| units).sum()
}

#[test]
fn a_fixed_window_admits_its_limit_in_each_window_and_refuses_only_above_it() {
    for seed in 0..2_000 {
        let rng = &mut Rng::with_seed(seed);
        let limit = rng.f64() * 20.0 + 0.5;
        let mut window = fixed(limit, Alignment::EndsAt(at(W)), 0);
        ask(rng, &mut window, limit, |admitted, now, units, yes| {
            let began = now / W * W;
            let used = sum(admitted, began, now + 1);
            assert!(used <= limit + NEAR, "{used} of {limit}");
            assert!(yes || used + units > limit, "refused {units} with {used} of {limit} used");
        });
        let mut window = fixed(limit, Alignment::FirstUse, 0);
        let mut began = None;
        ask(rng, &mut window, limit, |admitted, now, units, yes| {
            began = began.filter(|began| began + W > now);
            if yes && began.is_none() {
                began = Some(now);
            }
            let used = sum(admitted, began.unwrap_or(now), now + 1);
            assert!(used <= limit + NEAR, "{used} of {limit}");
            assert!(yes || used + units > limit, "refused {units} with {used} of {limit} used");
        });
    }
}

#[test]
fn a_log_admits_its_limit_in_any_window_and_refuses_only_above_it() {
    for seed in 0..2_000 {
        let rng = &mut Rng::with_seed(seed);
        let limit = rng.u64(1..100) as f64;
        let mut window = log(limit);
        let (mut admitted, mut now) = (Admitted::new(), 0);
        for _ in 0..200 {
            now += rng.u64(0..100) * TICK;
            let units = rng.u64(1..=limit as u64) as f64;
            let used = sum(&admitted, (now + 1).saturating_sub(W), now + 1);
            let yes = admit(&mut window, units, now);
            assert_eq!(yes, used + units <= limit, "{units} more than {used} of {limit}");
            if yes {
                admitted.push((now, units));
            }
            assert!(window.entries() <= limit as usize);
        }
    }
}

/// What the head of `sliding.rs` says of its error, for the window that ends at each request.
#[test]
fn a_sliding_window_is_off_by_no_more_than_its_bound() {
    let (mut most, mut least): (f64, f64) = (0.0, 0.0);
    for seed in 0..4_000 {
        let rng = &mut Rng::with_seed(seed);
        let limit = rng.f64() * 20.0 + 0.5;
        let mut window = sliding(limit);
        ask(rng, &mut window, limit, |admitted, now, units, yes| {
            let began = now / W * W;
            let passed = (now - began) as f64 / W as f64;
            let before = sum(admitted, began.saturating_sub(W), began);
            let used = sum(admitted, (now + 1).saturating_sub(W), now + 1);
            assert!(used <= limit + passed * before + NEAR, "{used} of {limit}");
            assert!(used < 2.0 * limit);
            let refusable = limit - (1.0 - passed) * before;
            assert!(yes || used + units > refusable - NEAR, "refused {units} with {used} of {limit} used");
            most = most.max((used - limit) / limit);
            least = if yes { least } else { least.max((limit - used - units) / limit) };
        });
    }
    assert!(most > 0.5 && least > 0.5, "the bounds are reached for: {most} above, {least} below");
}

/// With requests larger than the limit, by any moment: a limit for each window so far, and one request's debt.
#[test]
fn debt_is_never_forgotten() {
    fn check<T: Windowed>(seed: u64, make: impl Fn(f64) -> T) {
        let rng = &mut Rng::with_seed(seed);
        let limit = rng.f64() * 3.0 + 0.1;
        let most = limit * 4.0;
        let mut window = make(limit);
        ask(rng, &mut window, most, |admitted, now, _, _| {
            let windows = now as f64 / W as f64 + 1.0;
            let used = sum(admitted, 0, now + 1);
            // Fixed windows end anywhere in the first.
            assert!(used <= limit * (windows + 1.0) + most - limit + NEAR, "{used} of {limit} in {windows}");
        });
    }
    for seed in 0..2_000 {
        check(seed, |limit| fixed(limit, Alignment::FirstUse, 0));
        check(seed, |limit| fixed(limit, Alignment::EndsAt(at(W / 3)), 0));
        check(seed, sliding);
        check(seed, log);
    }
}

#[test]
fn half_a_request_per_window_is_a_request_in_every_second_window() {
    fn check<T: Windowed>(name: &str, mut window: T) {
        let mut now = 0;
        for _ in 0..100 {
            assert!(admit(&mut window, 1.0, now), "{name} at {now}");
            let next = window.reaches_at(0.5, at(now)).expect("paid off some time").0;
            // To the slack, which is a billionth.
            assert!(next.abs_diff(now + 2 * W) <= 5, "{name}: {next} after {now}");
            now = next;
        }
    }
    check("first use", fixed(0.5, Alignment::FirstUse, 0));
    check("aligned", fixed(0.5, Alignment::EndsAt(at(W)), 0));
    check("sliding", sliding(0.5));
    check("log", log(0.5));
}

/// Plays the same requests with and without one that is given back later, whole: nothing comes of it when its window is
/// over, and otherwise no more than if it had never been.
#[test]
fn what_is_given_back_never_becomes_credit() {
    fn check<T: Windowed>(seed: u64, mut with: T, over: impl Fn(u64, u64) -> bool, same_windows: bool) {
        let rng = &mut Rng::with_seed(seed);
        let mut without = with.clone();
        let mut now = 0;
        let units = eighths(rng, 12);
        let (steps, place) = (rng.usize(1..14), rng.usize(0..8));
        let mut taken_at = 0;
        for step in 0..steps.max(place + 1) {
            now += rng.u64(0..400) * TICK;
            let other = eighths(rng, 6).min(without.burst());
            if step == place {
                taken_at = now;
                with.take(units, at(now));
            } else if admit(&mut without, other, now) {
                with.take(other, at(now));
            }
        }
        now += rng.u64(0..400) * TICK;
        let before = with.clone();
        with.give_back(units, at(taken_at), at(now));
        for later in (0..40).map(|n| at(now + n * W / 10)) {
            let (level, was, never) = (with.level_at(later), before.level_at(later), without.level_at(later));
            assert!(level <= was + units + NEAR, "{level}, from {was} by {units}");
            assert!(level <= never + NEAR || !same_windows, "{level}, and {never} had it never been");
            assert!(level == was || !over(taken_at, now), "{level}, from {was}, though its window is over");
        }
    }
    for seed in 0..3_000 {
        let limit = limits(&mut Rng::with_seed(seed));
        check(seed, fixed(limit, Alignment::EndsAt(at(W)), 0), |taken, now| taken / W < now / W, true);
        check(seed, fixed(limit, Alignment::FirstUse, 0), |taken, now| taken + W <= now, false);
        check(seed, sliding(limit), |taken, now| taken + W <= now, true);
        check(seed, log(limit), |taken, now| taken + W <= now, true);
    }
}

#[test]
fn a_refund_within_its_window_is_all_there() {
    fn check<T: Windowed>(mut window: T) {
        window.take(3.0, at(W / 4));
        window.give_back(2.0, at(W / 4), at(W / 2));
        assert!((window.level_at(at(W / 2)) - 9.0).abs() < NEAR);
        window.give_back(-4.0, at(W / 4), at(W / 2));
        assert!((window.level_at(at(W / 2)) - 5.0).abs() < NEAR, "and used beyond it counts");
        window.give_back(100.0, at(W / 2), at(W / 2));
        assert!(window.level_at(at(W / 2)) <= 10.0, "and nothing is there that was not");
        window.take(10.0, at(W / 2));
        assert!(window.level_at(at(3 * W / 4)) <= NEAR);
    }
    check(fixed(10.0, Alignment::FirstUse, 0));
    check(fixed(10.0, Alignment::EndsAt(at(W)), 0));
    check(sliding(10.0));
    check(log(10.0));
}

/// Limits that flap below one that stands still leave no more than it does.
#[test]
fn limits_that_flap_create_nothing() {
    fn check<T: Windowed>(seed: u64, make: impl Fn(f64) -> T) {
        let rng = &mut Rng::with_seed(seed);
        let limit = limits(rng);
        let (mut flaps, mut stands) = (make(limit), make(limit));
        let mut now = 0;
        for _ in 0..60 {
            now += rng.u64(0..300) * TICK;
            if rng.bool() {
                flaps.set_limit(if rng.bool() { limit } else { limit * rng.f64() }, at(now));
            }
            let units = eighths(rng, limit as u64 + 1);
            if admit(&mut flaps, units, now) {
                stands.take(units, at(now));
            } else if flaps.burst() == limit && rng.u8(0..5) == 0 {
                // More was used than reserved.
                flaps.take(units, at(now));
                stands.take(units, at(now));
            }
            for later in [now, now + W / 3, now + W, now + 2 * W] {
                let (level, most) = (flaps.level_at(at(later)), stands.level_at(at(later)));
                assert!(level <= most + NEAR, "{level} above {most} at {later}, seen from {now}");
            }
        }
    }
    for seed in 0..3_000 {
        check(seed, |limit| fixed(limit, Alignment::EndsAt(at(W / 3)), 0));
        check(seed, sliding);
    }
}

/// Shares of one limit move between members whose windows end together: what all of them have used and still have is
/// never more than a limit for each window so far.
#[test]
fn shares_that_move_between_members_create_nothing() {
    for seed in 0..3_000 {
        let rng = &mut Rng::with_seed(seed);
        let (limit, ends) = (limits(rng), rng.u64(1..=1_024) * TICK);
        let alignment = Alignment::EndsAt(at(ends));
        let shares = |rng: &mut Rng, n: usize| {
            let parts: Vec<f64> = (0..n).map(|_| rng.f64() * f64::from(rng.u8(0..3))).collect();
            let sum = parts.iter().sum::<f64>().max(1e-9);
            parts.into_iter().map(|part| limit * part / sum).collect::<Vec<_>>()
        };
        let mut members: Vec<Fixed> = shares(rng, 3).iter().map(|share| fixed(*share, alignment, 0)).collect();
        let (mut now, mut used) = (0, 0.0);
        for _ in 0..60 {
            now += rng.u64(0..200) * TICK;
            let member = rng.usize(..members.len());
            match rng.u8(0..10) {
                0 => {
                    let shares = shares(rng, members.len());
                    members.iter_mut().zip(shares).for_each(|(member, share)| member.set_limit(share, at(now)));
                }
                // One joins without a share.
                1 if members.len() < 6 => members.push(fixed(0.0, alignment, now)),
                _ => {
                    let units = eighths(rng, limit as u64 + 1);
                    if admit(&mut members[member], units, now) {
                        used += units;
                    }
                }
            }
            let left: f64 = members.iter().map(|member| member.level_at(at(now))).sum();
            let windows = if now < ends { 0 } else { 1 + (now - ends) / W };
            let given = limit * (ends as f64 / W as f64 + windows as f64);
            assert!(used + left <= given + NEAR, "{used} used and {left} left of {given}");
        }
    }
}

/// A member that has used all of a large share, and then more than it reserved when the share is small, does not pay for the
/// large share out of the small one.
#[test]
fn what_was_taken_under_a_higher_limit_is_no_debt_under_a_lower_one() {
    fn check<T: Windowed>(mut window: T) {
        window.take(10.0, at(0));
        window.set_limit(1.0, at(W / 4));
        assert!(window.level_at(at(W / 4)) <= -9.0 + NEAR, "it stays counted");
        window.take(0.5, at(W / 2));
        let whole = window.reaches_at(1.0, at(W / 2)).expect("some time").0;
        assert!(whole <= 2 * W, "at {whole}");
    }
    check(sliding(10.0));
    check(log(10.0));
}

#[test]
fn a_window_that_is_created_while_it_runs_has_what_is_ahead_of_it() {
    for (ahead, level) in [(W, 8.0), (W / 2, 4.0), (W / 8, 1.0), (5 * W + W / 4, 2.0), (W + W / 16, 8.0)] {
        let window = FixedWindow::new(8.0, SECONDS, Alignment::EndsAt(at(7 * W + ahead)), at(7 * W));
        assert_eq!(window.level_at(at(7 * W)), level, "{ahead} ahead");
    }
    let past = FixedWindow::new(8.0, SECONDS, Alignment::EndsAt(at(W / 4)), at(7 * W));
    assert_eq!(past.level_at(at(7 * W)), 2.0);
    assert_eq!(past.level_at(at(7 * W + W / 4)), 8.0);
    assert_eq!(fixed(8.0, Alignment::FirstUse, 7 * W).level_at(at(7 * W)), 8.0);
}

#[test]
fn a_window_told_a_little_differently_is_the_same_window() {
    const MS: u64 = W / 1_000;
    let told = |taken: f64, ends: u64, now: u64| {
        let mut window = FixedWindow::new(8.0, SECONDS, Alignment::EndsAt(at(W)), at(0));
        window.take(taken, at(W / 10));
        if now > W {
            window.take(taken, at(W));
        }
        window.retune(8.0, Alignment::EndsAt(at(ends)), at(now));
        (window.level_at(at(now)), window.reaches_at(8.0, at(now)).expect("at its end").0)
    };
    assert_eq!(told(3.0, W + MS, W / 2), (5.0, W + MS), "later");
    assert_eq!(told(3.0, W - MS, W / 2), (5.0, W - MS), "earlier");
    assert_eq!(told(3.0, 2 * W - MS, W - MS / 2), (8.0, W - MS / 2), "it is over by the other clock, and so here");
    assert_eq!(told(3.0, W + 2 * MS, W + MS), (5.0, 2 * W + 2 * MS), "it is not over there: no second limit");
    assert_eq!(told(3.0, W + W / 24, W / 2), (5.0, W + W / 24), "a day of 25 hours");
    assert_eq!(told(3.0, 2 * W + W / 24 - MS, W - MS / 2).0, 8.0, "and its first moment, told before it began here");
    assert_eq!(told(1.0, 3 * W / 4, W / 2), (5.0, 3 * W / 4), "another alignment: a quarter is cut off");
    assert_eq!(told(3.0, W + W / 4, W / 2), (5.0, W + W / 4), "moved back: no more for it");
}

/// By any moment of any sequence of alignments: 4/3 of the limit for the time so far, and what two windows hold.
#[test]
fn alignments_that_flap_give_little() {
    let mut most: f64 = 0.0;
    for seed in 0..6_000 {
        let rng = &mut Rng::with_seed(seed);
        let mut window = FixedWindow::new(8.0, SECONDS, Alignment::FirstUse, at(0));
        let (mut now, mut used) = (0, 0.0);
        let step = [1, 30, 300][rng.usize(..3)];
        for _ in 0..150 {
            now += rng.u64(0..=step) * TICK;
            if rng.u8(0..4) > 0 {
                let ends = now + 1 + rng.u64(0..1_200) * TICK;
                let alignment = if rng.u8(0..8) == 0 { Alignment::FirstUse } else { Alignment::EndsAt(at(ends)) };
                let limit = if rng.u8(0..6) == 0 { rng.f64() * 8.0 } else { 8.0 };
                window.retune(limit, alignment, at(now));
            }
            let left = window.level_at(at(now));
            if left > 0.0 {
                window.take(left, at(now));
                used += left;
            }
            let windows = now as f64 / W as f64;
            assert!(used <= 8.0 * (windows * 4.0 / 3.0 + 2.0) + NEAR, "{used} in {windows}");
            most = most.max(used / 8.0 - windows);
        }
    }
    assert!(most > 0.9, "units were there to be taken: {most}");
}

/// A queue of small requests, each taken as soon as it is there, has taken `units` when it was foretold.
#[test]
fn a_queue_is_supplied_when_it_was_foretold() {
    fn check<T: Windowed>(rng: &mut Rng, mut window: T) {
        let (mut now, mut debt) = (0, false);
        for _ in 0..rng.usize(0..10) {
            now += rng.u64(0..200) * TICK;
            let units = rng.u64(1..4) as f64;
            if rng.u8(0..8) == 0 {
                window.take(units * 16.0, at(now));
                debt = true;
            } else {
                admit(&mut window, units, now);
            }
        }
        let wanted = rng.u64(1..120);
        let foretold = window.supplies_at(wanted as f64, at(now)).expect("something comes").0;
        for _ in 0..wanted {
            now = window.reaches_at(1.0, at(now)).expect("something comes").0;
            window.take(1.0, at(now));
        }
        // One by one is not evenly; and what debt leaves of a bucket is not all of it.
        let near = if debt { W / 2 } else { W / 8 };
        assert!(now.abs_diff(foretold) <= near, "{now}, foretold {foretold}, of {}", std::any::type_name::<T>());
    }
    for seed in 0..2_000 {
        let rng = &mut Rng::with_seed(seed);
        let ends = rng.u64(1..=1_024) * TICK;
        check(rng, fixed(32.0, Alignment::EndsAt(at(ends)), 0));
        check(rng, fixed(32.0, Alignment::FirstUse, 0));
        check(rng, sliding(32.0));
        check(rng, log(32.0));
    }
}

#[test]
fn never_is_never_and_what_is_there_is_there_now() {
    fn check<T: Windowed>(mut window: T) {
        assert_eq!((window.reaches_at(2.5, at(0)), window.supplies_at(2.5, at(0))), (Some(at(0)), Some(at(0))));
        assert_eq!(window.reaches_at(2.6, at(0)), None, "above the limit");
        assert!(window.supplies_at(2.6, at(0)).is_some());
        window.take(1e30, at(0));
        assert_eq!(
            (window.reaches_at(1.0, at(0)), window.supplies_at(1.0, at(0))),
            (None, None),
            "not in any clock's time"
        );
        window.set_limit(0.0, at(0));
        assert_eq!((window.reaches_at(0.5, at(0)), window.supplies_at(0.5, at(0))), (None, None), "no limit");
        let far = at(u64::MAX);
        assert!(window.level_at(far) < 0.0 && window.reaches_at(0.5, far).is_none(), "the end of time");
    }
    check(fixed(2.5, Alignment::FirstUse, 0));
    check(fixed(2.5, Alignment::EndsAt(at(W)), 0));
    check(sliding(2.5));
    check(log(2.5));
}

#[test]
fn time_does_not_go_back() {
    fn check<T: Windowed>(mut window: T) {
        window.take(1.0, at(5 * W + W / 4));
        assert!(!window.is_fresh_at(at(0)));
        let mut late = window.clone();
        for (window, now) in [(&mut window, at(0)), (&mut late, at(5 * W + W / 4))] {
            assert_eq!(window.level_at(now), 7.0);
            window.take(1.0, now);
            window.set_limit(4.0, now);
            window.give_back(0.5, at(5 * W + W / 4), now);
        }
        for later in (0..30).map(|n| at(5 * W + W / 4 + n * W / 10)) {
            assert_eq!(window.level_at(later), late.level_at(later));
        }
        assert!(window.is_fresh_at(at(8 * W)));
    }
    check(fixed(8.0, Alignment::FirstUse, 0));
    check(fixed(8.0, Alignment::EndsAt(at(W / 2)), 0));
    check(sliding(8.0));
    check(log(8.0));
}

/// The worst that corrections can be made to do: to move a window's end to and fro while its limit flaps, and to cut short
/// windows shorter still.
#[test]
fn corrections_create_nothing() {
    let mut window = FixedWindow::new(8.0, SECONDS, Alignment::EndsAt(at(W)), at(0));
    window.take(8.0, at(0));
    for _ in 0..20 {
        window.retune(8.0, Alignment::EndsAt(at(W - W / 16)), at(W / 2));
        window.retune(0.0, Alignment::EndsAt(at(W + W / 16)), at(W / 2));
        window.retune(0.0, Alignment::EndsAt(at(W + W / 16)), at(W / 2));
        window.retune(8.0, Alignment::EndsAt(at(W - W / 16)), at(W / 2));
    }
    assert!(window.level_at(at(W / 2)) <= NEAR);

    let mut window = FixedWindow::new(8.0, SECONDS, Alignment::EndsAt(at(W)), at(0));
    let mut used = 0.0;
    for now in 0..60 {
        let left = window.level_at(at(now)).max(0.0);
        window.take(left, at(now));
        used += left;
        for ahead in [W / 6, W / 14, 1] {
            window.retune(8.0, Alignment::EndsAt(at(now + ahead)), at(now));
        }
    }
    assert!(used <= 16.0 + NEAR, "{used}");
}

#[test]
fn a_log_above_its_most_entries_is_bounded_and_admits_no_more() {
    let mut window = log(1e6);
    let mut admitted = Admitted::new();
    for n in 0..9_000 {
        let now = n * W / 3_000;
        let units = 400.0;
        if admit(&mut window, units, now) {
            admitted.push((now, units));
        }
        assert!(window.entries() <= ENTRIES_MAX);
    }
    for (now, _) in &admitted {
        assert!(sum(&admitted, (now + 1).saturating_sub(W), now + 1) <= 1e6);
    }
}
