//! A rate for each of a few meters, in the order of meters: a map in one piece of memory. A tick looks at all of a pool's,
//! and a tree for each took three times as long.

use std::ops::Index;

use smallvec::SmallVec;

use super::Rate;
use crate::quota::Meter;

/// Rates by meter.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rates(SmallVec<[(Meter, Rate); 4]>);

impl Rates {
    /// How many meters there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn find(&self, meter: Meter) -> Result<usize, usize> {
        self.0.binary_search_by_key(&meter, |(known, _)| *known)
    }

    /// A meter's rate.
    #[must_use]
    pub fn get(&self, meter: &Meter) -> Option<&Rate> {
        self.find(*meter).ok().map(|at| &self.0[at].1)
    }

    /// A meter's rate, to be changed.
    pub fn get_mut(&mut self, meter: &Meter) -> Option<&mut Rate> {
        self.find(*meter).ok().map(|at| &mut self.0[at].1)
    }

    /// Whether there is a rate for a meter.
    #[must_use]
    pub fn contains_key(&self, meter: &Meter) -> bool {
        self.find(*meter).is_ok()
    }

    /// Sets a meter's rate; returns what it was.
    pub fn insert(&mut self, meter: Meter, rate: Rate) -> Option<Rate> {
        match self.find(meter) {
            Ok(at) => Some(std::mem::replace(&mut self.0[at].1, rate)),
            Err(at) => {
                self.0.insert(at, (meter, rate));
                None
            }
        }
    }

    /// Takes a meter's rate away.
    pub fn remove(&mut self, meter: &Meter) -> Option<Rate> {
        self.find(*meter).ok().map(|at| self.0.remove(at).1)
    }

    /// The meters, in order.
    pub fn keys(&self) -> impl Iterator<Item = &Meter> {
        self.0.iter().map(|(meter, _)| meter)
    }

    /// The rates, in the order of meters.
    pub fn values(&self) -> impl Iterator<Item = &Rate> {
        self.0.iter().map(|(_, rate)| rate)
    }

    /// The rates, to be changed.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Rate> {
        self.0.iter_mut().map(|(_, rate)| rate)
    }

    /// All of them, in the order of meters.
    pub fn iter(&self) -> impl Iterator<Item = (&Meter, &Rate)> {
        self.into_iter()
    }

    /// All of them, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&Meter, &mut Rate)> {
        self.into_iter()
    }
}

impl Index<&Meter> for Rates {
    type Output = Rate;

    /// # Panics
    /// When there is none.
    fn index(&self, meter: &Meter) -> &Rate {
        self.get(meter).unwrap_or_else(|| panic!("no rate for {meter}"))
    }
}

impl FromIterator<(Meter, Rate)> for Rates {
    fn from_iter<I: IntoIterator<Item = (Meter, Rate)>>(all: I) -> Self {
        let mut rates = Self::default();
        for (meter, rate) in all {
            rates.insert(meter, rate);
        }
        rates
    }
}

impl<const N: usize> From<[(Meter, Rate); N]> for Rates {
    fn from(all: [(Meter, Rate); N]) -> Self {
        all.into_iter().collect()
    }
}

impl IntoIterator for Rates {
    type Item = (Meter, Rate);
    type IntoIter = smallvec::IntoIter<[(Meter, Rate); 4]>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// What a walk over rates returns.
type Pair<'a> = fn(&'a (Meter, Rate)) -> (&'a Meter, &'a Rate);
type PairMut<'a> = fn(&'a mut (Meter, Rate)) -> (&'a Meter, &'a mut Rate);

impl<'a> IntoIterator for &'a Rates {
    type Item = (&'a Meter, &'a Rate);
    type IntoIter = std::iter::Map<std::slice::Iter<'a, (Meter, Rate)>, Pair<'a>>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter().map(|(meter, rate)| (meter, rate))
    }
}

impl<'a> IntoIterator for &'a mut Rates {
    type Item = (&'a Meter, &'a mut Rate);
    type IntoIter = std::iter::Map<std::slice::IterMut<'a, (Meter, Rate)>, PairMut<'a>>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter_mut().map(|(meter, rate)| (&*meter, rate))
    }
}
