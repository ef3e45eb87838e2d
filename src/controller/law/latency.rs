//! Concurrency from latency: answers that take longer than usual because we ask for too many at a time.
//!
//! *Why.* A server past its knee refuses nothing, it slows down; with fewer requests in flight as many are done, each of them
//! sooner.
//! *Signals.* The logarithms of the time to first byte and of the time per output token: whole-request times would tell how long
//! answers are, not how fast. Each is compared in windows of 6 s with a slow baseline by Welch's test.
//! *Rule.* In two windows in a row at least 1.3 times the baseline, and not by chance: N = min(N, in flight)·max(0.6, 1.15 ÷ ρ).
//! While answers are about as fast as usual and the places are used, N grows by 3 % a second; it ends when it does not bind.
//! *Causality.* Where five cuts have not taken away a third of what there was too much, or N is as low as it may be, it is not our
//! load that slows the server: what is now is the baseline then, and there is no limit for a minute.
//! Source: CONTROL §2.6; B. L. Welch, Biometrika 34 (1947).

use std::time::Duration;

use statrs::distribution::{ContinuousCDF, StudentsT};

use super::span_s;
use crate::clock::MonoTime;
use crate::observation::LogSums;

/// Constants of [`LatencyLaw`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LatencyParams {
    /// A window, 1 s or more. Shorter has fewer answers to judge by, longer reacts later.
    pub window: Duration,
    /// With fewer answers a window is not judged, 2 or more.
    pub answers_min: f64,
    /// A baseline of fewer answers is none yet, 2 or more.
    pub baseline_answers_min: f64,
    /// Nor is one of fewer windows, 1 or more.
    pub baseline_windows_min: u32,
    /// The chance of a window to be called slow by mistake, 0–1. The larger, the more healthy pools are slowed down.
    pub significance: f64,
    /// From so many times the baseline on answers are slow, above 1. Smaller cuts for less.
    pub slow: f64,
    /// Up to so many times the baseline they are as fast as usual, 1 to `slow`.
    pub usual: f64,
    /// So many slow windows in a row are needed, 1 or more.
    pub windows: u32,
    /// A cut leaves this part at least, 0–1.
    pub cut_min: f64,
    /// How much more than by its share of the slowness a cut leaves, 1 or more.
    pub cut_margin: f64,
    /// Never fewer than this part of what is usually in flight, 0–1, and never fewer than `places_min`.
    pub part_min: f64,
    /// In flight.
    pub places_min: f64,
    /// Growth while the places are used, in parts a second, 0–1. Larger recovers sooner and overshoots further.
    pub growth_per_s: f64,
    /// From this part of them on places count as used, 0–1.
    pub used: f64,
    /// So many times what is usually in flight bind no more, above 1.
    pub ends_at: f64,
    /// So many windows of usual answers in a row with places to spare end it, 1 or more.
    pub spare_windows: u32,
    /// After so many cuts it is asked whether they help, 1 or more.
    pub cuts: u32,
    /// They help if they took away this part of what there was too much, 0–1.
    pub helped: f64,
    /// Where they do not, nothing is limited for so long.
    pub pause: Duration,
    /// Weight of a usual window in the baseline, 0–1.
    pub baseline_weight: f64,
    /// The same of one that is faster.
    pub baseline_weight_faster: f64,
}

impl Default for LatencyParams {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(6),
            answers_min: 8.0,
            baseline_answers_min: 100.0,
            baseline_windows_min: 4,
            significance: 1e-5,
            slow: 1.3,
            usual: 1.1,
            windows: 2,
            cut_min: 0.6,
            cut_margin: 1.15,
            part_min: 0.3,
            places_min: 4.0,
            growth_per_s: 0.03,
            used: 0.8,
            ends_at: 1.5,
            spare_windows: 5,
            cuts: 5,
            helped: 0.3,
            pause: Duration::from_secs(60),
            baseline_weight: 0.1,
            baseline_weight_faster: 0.5,
        }
    }
}

/// What is told at a tick.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Latencies {
    /// Of all answers until now: the logarithm of the time to first byte.
    pub ttfb: LogSums,
    /// The same of the time per output token.
    pub tpot: LogSums,
    /// Requests in flight now.
    pub in_flight: f64,
}

/// Mean and variance of a logarithm.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Sampled {
    n: f64,
    mean: f64,
    variance: f64,
}

impl Sampled {
    #[allow(clippy::cast_precision_loss, reason = "a count of answers")]
    fn between(before: &LogSums, after: &LogSums) -> Option<Self> {
        let n = after.n.saturating_sub(before.n) as f64;
        let mean = (after.sum - before.sum) / n;
        let variance = (after.sum_sq - before.sum_sq) / n - mean * mean;
        let sane = n >= 2.0 && mean.is_finite() && variance.is_finite();
        sane.then(|| Self { n, mean, variance: variance.max(0.0) * n / (n - 1.0) })
    }

    /// The chance that this is as slow as it is though nothing has changed: Welch's test, one-sided.
    fn chance(&self, baseline: &Self) -> f64 {
        let (a, b) = (self.variance / self.n, baseline.variance / baseline.n);
        // Two constants differ, or they do not.
        if a + b <= 0.0 {
            return if self.mean > baseline.mean { 0.0 } else { 1.0 };
        }
        let t = (self.mean - baseline.mean) / (a + b).sqrt();
        let freedom = (a + b).powi(2) / (a.powi(2) / (self.n - 1.0) + b.powi(2) / (baseline.n - 1.0));
        StudentsT::new(0.0, 1.0, freedom).map_or(1.0, |student| student.sf(t))
    }
}

/// What one of the two times is like, when all is well.
#[derive(Debug, Clone, Default)]
struct Baseline {
    sampled: Option<Sampled>,
    windows: u32,
}

impl Baseline {
    /// How many times slower than usual a window was, and whether that is more than chance; `None` before anything is usual.
    fn judge(&self, window: &Sampled, params: &LatencyParams) -> Option<(f64, bool)> {
        let mature = |usual: &&Sampled| usual.n >= params.baseline_answers_min && !self.is_new(params);
        let usual = self.sampled.as_ref().filter(mature)?;
        let ratio = (window.mean - usual.mean).exp();
        Some((ratio, ratio > params.slow && window.chance(usual) < params.significance))
    }

    fn is_new(&self, params: &LatencyParams) -> bool {
        self.windows < params.baseline_windows_min
    }

    fn take(&mut self, window: &Sampled, params: &LatencyParams) {
        let new = self.is_new(params);
        self.windows += 1;
        let Some(usual) = &mut self.sampled else {
            self.sampled = Some(*window);
            return;
        };
        let weight = match window.mean < usual.mean {
            // The first answers count alike.
            _ if new => window.n / (usual.n + window.n),
            true => params.baseline_weight_faster,
            false => params.baseline_weight,
        };
        usual.mean += weight * (window.mean - usual.mean);
        usual.variance += weight * (window.variance - usual.variance);
        usual.n += window.n;
    }
}

/// A limit under way.
#[derive(Debug, Clone, Copy)]
struct Cap {
    places: f64,
    /// Usually in flight, and how many times slower than usual answers were when it began.
    usual: f64,
    began_at_ratio: f64,
    cuts: u32,
    /// Windows of usual answers in a row with places to spare.
    spare_windows: u32,
}

/// What was decided about concurrency.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LatencyStep {
    /// In flight at a time, all tenants together; `None` when latency sets no limit.
    pub places: Option<f64>,
    /// How many times slower than usual answers came in the last window, where anything is usual yet.
    pub slowness: Option<f64>,
}

/// The law of one pool's concurrency.
#[derive(Debug, Clone)]
pub struct LatencyLaw {
    params: LatencyParams,
    began: Option<(MonoTime, Latencies)>,
    stepped_at: Option<MonoTime>,
    ttfb: Baseline,
    tpot: Baseline,
    slow_windows: u32,
    slowness: Option<f64>,
    /// The most in flight in this window, and in usual ones.
    in_flight: f64,
    usual_in_flight: Option<f64>,
    cap: Option<Cap>,
    paused_until: MonoTime,
}

impl LatencyLaw {
    /// Nothing is usual yet, and there is no limit.
    #[must_use]
    pub fn new(params: LatencyParams) -> Self {
        Self {
            params,
            began: None,
            stepped_at: None,
            ttfb: Baseline::default(),
            tpot: Baseline::default(),
            slow_windows: 0,
            slowness: None,
            in_flight: 0.0,
            usual_in_flight: None,
            cap: None,
            paused_until: MonoTime::default(),
        }
    }

    /// One tick.
    pub fn step(&mut self, now: MonoTime, told: &Latencies) -> LatencyStep {
        let span_s = span_s(self.stepped_at, now);
        self.stepped_at = Some(now);
        let (began_at, before) = *self.began.get_or_insert((now, *told));
        self.in_flight = self.in_flight.max(told.in_flight);
        if now.since(began_at) >= self.params.window {
            self.began = Some((now, *told));
            self.judge(now, &before, told);
            self.in_flight = told.in_flight;
        }
        self.grow(told.in_flight, span_s);
        LatencyStep { places: self.cap.map(|cap| cap.places), slowness: self.slowness }
    }

    /// A window is over.
    fn judge(&mut self, now: MonoTime, before: &Latencies, told: &Latencies) {
        let params = self.params;
        let window = |before: &LogSums, after: &LogSums| {
            Sampled::between(before, after).filter(|window| window.n >= params.answers_min)
        };
        let ttfb = window(&before.ttfb, &told.ttfb);
        let tpot = window(&before.tpot, &told.tpot);
        let judged = [(&self.ttfb, &ttfb), (&self.tpot, &tpot)]
            .into_iter()
            .filter_map(|(baseline, window)| baseline.judge(window.as_ref()?, &params));
        let (slowness, slow) = judged
            .fold((None, false), |(most, any), (ratio, slow)| (Some(ratio.max(most.unwrap_or(0.0))), any || slow));
        self.slowness = slowness;
        self.slow_windows = if slow { self.slow_windows + 1 } else { 0 };
        self.end_if_spare();
        if !slow && self.cap.is_none() {
            let known = *self.usual_in_flight.get_or_insert(self.in_flight);
            self.usual_in_flight = Some(known + params.baseline_weight * (self.in_flight - known));
        }
        if now < self.paused_until || !slow {
            for (baseline, window) in [(&mut self.ttfb, &ttfb), (&mut self.tpot, &tpot)] {
                if let Some(window) = window {
                    baseline.take(window, &params);
                }
            }
            return;
        }
        if self.slow_windows >= params.windows
            && let Some(ratio) = slowness
        {
            self.cut(now, ratio, [ttfb, tpot]);
        }
    }

    /// What is not used for a while limits nobody.
    fn end_if_spare(&mut self) {
        let usual = self.is_usual();
        let Some(cap) = &mut self.cap else { return };
        let spare = usual && self.in_flight < self.params.used * cap.places;
        cap.spare_windows = if spare { cap.spare_windows + 1 } else { 0 };
        if cap.spare_windows >= self.params.spare_windows {
            self.cap = None;
        }
    }

    fn is_usual(&self) -> bool {
        self.slowness.is_none_or(|slowness| slowness <= self.params.usual)
    }

    fn cut(&mut self, now: MonoTime, ratio: f64, window: [Option<Sampled>; 2]) {
        let (params, in_flight) = (self.params, self.in_flight);
        let mut cap = self.cap.unwrap_or(Cap {
            places: in_flight,
            usual: self.usual_in_flight.unwrap_or(in_flight),
            began_at_ratio: ratio,
            cuts: 0,
            spare_windows: 0,
        });
        let least = params.places_min.max(params.part_min * cap.usual);
        let helped = ratio - 1.0 <= (1.0 - params.helped) * (cap.began_at_ratio - 1.0);
        if cap.cuts >= params.cuts && (!helped || cap.places <= least) {
            // It is not our load.
            for (baseline, window) in [&mut self.ttfb, &mut self.tpot].into_iter().zip(window) {
                baseline.sampled = window.or(baseline.sampled);
            }
            self.paused_until = now + params.pause;
            (self.cap, self.slow_windows) = (None, 0);
            return;
        }
        let left = params.cut_min.max(params.cut_margin / ratio).min(1.0);
        cap.places = (cap.places.min(in_flight) * left).max(least);
        cap.cuts += 1;
        self.cap = Some(cap);
        // What follows is another congestion.
        self.slow_windows = 0;
    }

    fn grow(&mut self, in_flight: f64, span_s: f64) {
        let params = self.params;
        let usual = self.is_usual();
        let Some(cap) = &mut self.cap else { return };
        if usual && in_flight >= params.used * cap.places {
            cap.places *= 1.0 + params.growth_per_s * span_s;
        }
        if cap.places > params.ends_at * cap.usual {
            self.cap = None;
        }
    }
}
