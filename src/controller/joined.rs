//! Two sorted lists side by side.

use std::cmp::Ordering;
use std::iter::Peekable;

/// Each key of either list once, in order, with what each has for it. Both are sorted by their keys, which are all different.
pub(super) fn joined<'a, K: Ord + 'a, A, B>(
    left: impl IntoIterator<Item = (&'a K, A)>,
    right: impl IntoIterator<Item = (&'a K, B)>,
) -> impl Iterator<Item = (&'a K, Option<A>, Option<B>)> {
    Joined { left: left.into_iter().peekable(), right: right.into_iter().peekable() }
}

struct Joined<L: Iterator, R: Iterator> {
    left: Peekable<L>,
    right: Peekable<R>,
}

impl<'a, K: Ord + 'a, A, B, L, R> Iterator for Joined<L, R>
where
    L: Iterator<Item = (&'a K, A)>,
    R: Iterator<Item = (&'a K, B)>,
{
    type Item = (&'a K, Option<A>, Option<B>);

    fn next(&mut self) -> Option<Self::Item> {
        let order = match (self.left.peek(), self.right.peek()) {
            (Some((left, _)), Some((right, _))) => left.cmp(right),
            (Some(_), None) => Ordering::Less,
            (None, _) => Ordering::Greater,
        };
        let left = if order.is_le() { self.left.next() } else { None };
        let right = if order.is_ge() { self.right.next() } else { None };
        let key = left.as_ref().map(|(key, _)| *key).or(right.as_ref().map(|(key, _)| *key))?;
        Some((key, left.map(|(_, a)| a), right.map(|(_, b)| b)))
    }
}
