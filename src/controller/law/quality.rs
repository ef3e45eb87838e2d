//! How good readings are: rounding, caching and age, and whether they are good enough for a bucket of this depth.
//!
//! *Rounded*: all of the last levels are multiples of their smallest distance.
//! *Cached*: a level that stays the same though it should have moved by more than could be hidden. It tells nothing new.
//! *Too coarse*: what rounding, caching or age hide is as much as the bucket holds. Then its level cannot be steered by.
//! Source: CONTROL §2.3 (information quality).

use std::collections::VecDeque;

use super::{Refilled, Sample};
use crate::clock::MonoTime;

/// Constants of [`Quality`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QualityParams {
    /// Levels looked back at, 3–1,000. Fewer take chance for rounding, more notice later that it has ended.
    pub levels: usize,
    /// A smaller distance of levels, as a part of the limit over a minute, is no rounding, 0–1.
    pub grain_part_min: f64,
    /// A level that stays the same for less is chance, in seconds, 0 or more.
    pub freeze_min_s: f64,
    /// A longer freeze counts as this, in seconds.
    pub freeze_max_s: f64,
    /// What is kept of the longest freeze with each reading, 0–1. Smaller trusts again sooner.
    pub freeze_kept: f64,
    /// So much use that a level does not show is not missed, in units, 0 or more.
    pub unmissed: f64,
    /// Weight of a reading in the mean age, 0–1.
    pub age_weight: f64,
    /// So many mean ages' refill are hidden by it, 0 or more. Larger gives up levels of shallow buckets sooner.
    pub age_margin: f64,
}

impl Default for QualityParams {
    fn default() -> Self {
        Self {
            levels: 60,
            grain_part_min: 0.004,
            freeze_min_s: 2.5,
            freeze_max_s: 60.0,
            freeze_kept: 0.99,
            unmissed: 3.0,
            age_weight: 0.1,
            age_margin: 1.2,
        }
    }
}

/// What is known of how readings are made.
#[derive(Debug, Clone)]
pub struct Quality {
    params: QualityParams,
    levels: VecDeque<f64>,
    grain: f64,
    /// When the request of the last reading was sent.
    sent_at: MonoTime,
    changed_at: MonoTime,
    freeze_s: f64,
    age_s: f64,
}

impl Quality {
    /// Nothing is known yet: readings are taken as they are.
    #[must_use]
    pub fn new(params: QualityParams) -> Self {
        let never = MonoTime::default();
        let levels = VecDeque::new();
        Self { params, levels, grain: 0.0, sent_at: never, changed_at: never, freeze_s: 0.0, age_s: 0.0 }
    }

    /// Takes a reading, `predicted` where its level was thought to be if it is one that can be predicted: a full bucket stays full,
    /// and what is told of a new limit or window is news. Returns it with what is found to be hidden taken for half
    /// of that; `None` when it tells nothing new.
    pub fn take(&mut self, sample: &Sample, predicted: Option<f64>, now: MonoTime) -> Option<Sample> {
        let params = self.params;
        if sample.sent_at <= self.sent_at {
            return None;
        }
        self.sent_at = sample.sent_at;
        self.age_s += params.age_weight * (now.seconds_since(sample.sent_at) - self.age_s);
        self.freeze_s *= params.freeze_kept;
        let same = self.levels.back() == Some(&sample.level);
        let missed = predicted.map_or(0.0, |predicted| (predicted - sample.level).abs());
        if same && missed > params.unmissed.max(2.0 * self.grain) {
            let frozen_s = sample.sent_at.seconds_since(self.changed_at);
            if frozen_s > params.freeze_min_s {
                self.freeze_s = self.freeze_s.max(frozen_s.min(params.freeze_max_s));
            }
            return None;
        }
        self.changed_at = sample.sent_at;
        self.levels.push_back(sample.level);
        if self.levels.len() > params.levels {
            self.levels.pop_front();
        }
        // Where it is known, it is to the nearest, and nothing is to be found out. In a window that nothing flows into, costs that
        // are alike look like rounding.
        if sample.slack > 0.0 || sample.refill != Refilled::Always {
            self.grain = 2.0 * sample.slack;
            return Some(*sample);
        }
        self.grain = self.measured_grain(sample.limit_per_s);
        let half = self.grain / 2.0;
        Some(Sample { level: sample.level + half, slack: half, ..*sample })
    }

    /// What levels are rounded down to multiples of, in units; 0 where they are not.
    fn measured_grain(&self, limit_per_s: f64) -> f64 {
        let mut distinct: Vec<f64> = self.levels.iter().copied().collect();
        distinct.sort_by(f64::total_cmp);
        distinct.dedup();
        let gap = distinct.windows(2).map(|pair| pair[1] - pair[0]).fold(f64::INFINITY, f64::min);
        let multiples = || distinct.iter().all(|level| (level / gap - (level / gap).round()).abs() < 1e-6);
        let rounded = gap.is_finite() && gap >= self.params.grain_part_min * 60.0 * limit_per_s && multiples();
        if rounded { gap } else { 0.0 }
    }

    /// Whether a bucket of this depth cannot be steered by readings like these.
    #[must_use]
    pub fn is_too_coarse(&self, burst: f64, limit_per_s: f64) -> bool {
        let hidden_s = self.freeze_s.max(self.params.age_margin * self.age_s);
        burst < (2.0 * self.grain).max(limit_per_s * hidden_s)
    }
}
