//! What every benchmark prints: one line for each goal, ours against a named peer's in the same run.
//!
//! These machines are noisy. So each side is measured in turn, many times over, and what counts is the median of the
//! ratios of neighbours, which a disturbance that both sides felt leaves as it is.

use std::process::ExitCode;

/// How often each side is measured.
pub(crate) const ROUNDS: usize = 15;

/// What a figure is to be at most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// What is aimed at.
    pub(crate) goal: f64,
    /// Above which the benchmark fails.
    pub(crate) must: f64,
}

/// One bound for both.
impl From<f64> for Bounds {
    fn from(most: f64) -> Self {
        Self { goal: most, must: most }
    }
}

/// The goals of one benchmark, and whether each was kept.
#[derive(Debug, Default)]
pub(crate) struct Goals {
    missed: Vec<String>,
}

impl Goals {
    /// Measures both sides in turn and prints the line. Each gives what one operation takes, in `unit`; ours is returned, at
    /// the median.
    pub(crate) fn compare(
        &mut self,
        name: &str,
        unit: &str,
        bounds: Option<Bounds>,
        mut ours: impl FnMut() -> f64,
        mut peer: impl FnMut() -> f64,
    ) -> f64 {
        let mut rounds: Vec<(f64, f64)> = Vec::with_capacity(ROUNDS);
        // One to warm up.
        let _ = (ours(), peer());
        for round in 0..ROUNDS {
            // Who is first has the colder caches: each in turn.
            let (mine, theirs);
            if round % 2 == 0 {
                mine = ours();
                theirs = peer();
            } else {
                theirs = peer();
                mine = ours();
            }
            rounds.push((mine, theirs));
        }
        self.tell(name, unit, bounds, &rounds)
    }

    /// Prints the line of what was measured already: of each round ours and the peer's. Ours is returned, at the median.
    pub(crate) fn tell(&mut self, name: &str, unit: &str, bounds: Option<Bounds>, rounds: &[(f64, f64)]) -> f64 {
        let median = |of: &dyn Fn(&(f64, f64)) -> f64| median(rounds.iter().map(of).collect());
        let (mine, theirs) = (median(&|round| round.0), median(&|round| round.1));
        let ratio = median(&|round| round.0 / round.1);
        let bounds_told = bounds.map(|bounds| format!(" goal<={} must<={}", bounds.goal, bounds.must));
        println!(
            "{name} ours={mine:.1}{unit} peer={theirs:.1}{unit} ratio={ratio:.3}{}",
            bounds_told.unwrap_or_default()
        );
        if let Some(bounds) = bounds {
            self.keep(name, ratio, bounds);
        }
        mine
    }

    /// Prints a figure that has bounds of its own and no peer.
    pub(crate) fn at_most(&mut self, name: &str, unit: &str, ours: f64, bounds: impl Into<Bounds>) {
        let bounds = bounds.into();
        let must = (bounds.must > bounds.goal).then(|| format!(" must<={}{unit}", bounds.must));
        println!("{name} ours={ours:.1}{unit} goal<={}{unit}{}", bounds.goal, must.unwrap_or_default());
        self.keep(name, ours, bounds);
    }

    fn keep(&mut self, name: &str, figure: f64, bounds: Bounds) {
        if figure > bounds.must {
            self.missed.push(format!("{name}: {figure:.3} is above {}", bounds.must));
        } else if figure > bounds.goal {
            println!("# {name}: within what it must be, above what it aims at");
        }
    }

    /// Fails when one was missed, and says which.
    pub(crate) fn verdict(self) -> ExitCode {
        for missed in &self.missed {
            eprintln!("missed: {missed}");
        }
        if self.missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
