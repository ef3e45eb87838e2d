//! Buckets of a head, read by a dialect's row: numbers, windows and levels.

use std::cell::OnceCell;
use std::time::Duration;

use jiff::Timestamp;

use super::level::{Frame, Place};
use super::lines::{Bucket, Cell, Lines, Single, Subject};
use super::missing::{Missing, Reason};
use super::semantics::ResetMeaning;
use super::table::{Resets, Row};
use super::value::{Minute, Number, fixdate, http_date, number};
use super::{OtherReading, ReceivedAt, Seen};
use crate::observation::MeterReading;
use crate::quota::{Meter, Unit, Window};

/// A smaller limit is none: far below one a month, and no number to divide by.
const LIMIT_MIN: f64 = 1e-9;

/// The time by the provider's own clock, where a time of day must be measured: the response's `Date`, or else when it
/// was received by ours. Read once, and only when it is needed.
pub(super) struct Now<'a> {
    date: Option<Cell<'a>>,
    received_at: ReceivedAt,
    read: OnceCell<Option<Timestamp>>,
}

impl<'a> Now<'a> {
    pub(super) fn new(lines: &Lines<'a>, received_at: ReceivedAt) -> Self {
        Self { date: lines.single(Single::Date).copied(), received_at, read: OnceCell::new() }
    }

    pub(super) fn get(&self) -> Option<Timestamp> {
        *self.read.get_or_init(|| {
            let ours = || {
                let ms = i64::try_from(self.received_at.wall?.0).ok()?;
                Timestamp::from_millisecond(ms).ok()
            };
            let plain = self.date.and_then(|date| fixdate(date.bytes()?));
            plain.or_else(|| http_date(self.date?.text().ok()?)).or_else(ours)
        })
    }
}

/// What all the buckets tell.
pub(super) fn read<'a>(row: &Row, lines: &Lines<'a>, now: &Now<'a>, seen: &mut Seen<'_>) {
    let mut minute = Minute::EPOCH;
    for bucket in &lines.buckets {
        read_bucket(row, lines, bucket, &mut minute, now, seen);
    }
}

fn read_bucket<'a>(
    row: &Row,
    lines: &Lines<'a>,
    bucket: &Bucket<'a>,
    minute: &mut Minute,
    now: &Now<'a>,
    seen: &mut Seen<'_>,
) {
    let missing = &mut *seen.missing;
    let limit_of = |n: f64| match n {
        n if n < LIMIT_MIN => Err(Reason::Zero),
        n if n >= row.unlimited_from => Err(Reason::Unlimited),
        n => Ok(n),
    };
    let limit = bucket.limit.and_then(|cell| number_of(&cell, row.number, missing, limit_of));
    let remaining = bucket.remaining.and_then(|cell| number_of(&cell, row.number, missing, Ok));
    let period = bucket.period.and_then(|cell| cell.read(missing, seconds));
    let reset = bucket.reset.and_then(|cell| match row.resets {
        Resets::Form(form) => {
            let date = if form.is_instant() { now.get() } else { None };
            let plain = cell.bytes().and_then(|value| form.read_plain(value, date, minute));
            plain.or_else(|| cell.read(missing, |text| form.read(text, date)))
        }
        Resets::Azure => {
            let by_seconds = lines.single(Single::LimitKey).is_some();
            cell.read(missing, |text| azure(text, limit, remaining, period, by_seconds))
        }
    });
    // A limit that is there but makes no sense discredits what stands beside it; a reset alone is of nothing.
    if limit.is_none() && (remaining.is_none() || bucket.limit.is_some()) {
        let read = [bucket.remaining.filter(|_| remaining.is_some()), bucket.reset.filter(|_| reset.is_some())];
        read.into_iter().flatten().for_each(|cell| cell.miss(missing, Reason::NoLimit));
        return;
    }
    let named = bucket.window.or_else(|| period.and_then(Window::from_seconds));
    let unit = if let Subject::Unit(unit) = bucket.subject { Some(unit) } else { None };
    let place = place(row, unit.unwrap_or(Unit::Requests), named, (limit, remaining), reset);
    if let (Some(cell), Some(_), None) = (bucket.reset, reset, place.reset) {
        cell.miss(missing, Reason::Contradicts);
    }
    let level = remaining.map(|_| place.level);
    match bucket.subject {
        Subject::Unit(unit) => {
            let meter = Meter { unit, window: place.window };
            let sent_at = now.received_at.sent_at;
            seen.add(MeterReading { meter, sent_at, limit, remaining, level, reset: place.reset });
        }
        Subject::Other(what) => {
            let window = Some(place.window);
            let what = what.as_str();
            seen.others.push(OtherReading { what, window, limit, remaining, reset: place.reset });
        }
    }
}

fn place(
    row: &Row,
    unit: Unit,
    named: Option<Window>,
    (limit, remaining): (Option<f64>, Option<f64>),
    reset: Option<Duration>,
) -> Place {
    let semantics = &row.semantics;
    let default = named.unwrap_or_else(|| semantics.default_window(unit));
    let windows = named.as_ref().map_or(semantics.windows, std::slice::from_ref);
    let frame = Frame { windows, default, grain: semantics.remaining_grain(unit), reset_grain: semantics.reset_grain };
    let as_told = Place { window: default, level: remaining.unwrap_or(0.0), reset };
    // An instant is of the moment of admission, and in whole seconds: no measure of the level.
    let instant = matches!(row.resets, Resets::Form(form) if form.is_instant());
    match (semantics.reset, limit, remaining) {
        (ResetMeaning::ToFull, Some(limit), Some(remaining)) if !instant => frame.continuous(limit, remaining, reset),
        (ResetMeaning::ToFull, ..) if !instant => Place { reset: None, ..as_told },
        (ResetMeaning::ToNextWindow, ..) => frame.fixed(remaining.unwrap_or(0.0), reset),
        _ => as_told,
    }
}

/// A cell's number, if `accept` takes it.
#[inline]
fn number_of(
    cell: &Cell<'_>,
    form: Number,
    missing: &mut Vec<Missing>,
    accept: impl Fn(f64) -> Result<f64, Reason>,
) -> Option<f64> {
    match cell.digits().map(&accept) {
        Some(Ok(n)) => Some(n),
        _ => cell.read(missing, |text| number(text, form).and_then(&accept)),
    }
}

/// `60`, or `1s` as a Go duration.
fn seconds(text: &str) -> Result<u64, Reason> {
    let text = text.strip_suffix('s').unwrap_or(text);
    number(text, Number::Whole)?;
    text.parse().map_err(|_| Reason::NotANumber)
}

/// Azure writes whole milliseconds until spring 2026, whole seconds rounded down since; the name of the header is the same.
/// The one that fits limit, remaining and window is meant; when none does, neither is.
fn azure(
    text: &str,
    limit: Option<f64>,
    remaining: Option<f64>,
    period: Option<u64>,
    by_seconds: bool,
) -> Result<Duration, Reason> {
    let n = number(text, Number::Whole)?;
    let (Some(limit), Some(remaining)) = (limit, remaining) else { return Err(Reason::NoLimit) };
    #[allow(clippy::cast_precision_loss, reason = "at most a day")]
    let window = period.map_or(Window::Minute.seconds(), |seconds| seconds as f64);
    let full = |spent: f64| spent.max(0.0) / limit * window;
    let (least, most) = (full(limit - remaining - 1.0), full(limit - remaining));
    let in_ms = (least - 1e-3..=most + 1e-3).contains(&(n / 1e3));
    let in_seconds = (least - 1.0..=most + 1e-3).contains(&n);
    let nearer = (n - most.floor()).abs() < (n / 1e3 - most).abs();
    let seconds = in_seconds && (by_seconds || nearer || !in_ms);
    if !in_ms && !in_seconds {
        return Err(Reason::Contradicts);
    }
    Duration::try_from_secs_f64(if seconds { n } else { n / 1e3 }).map_err(|_| Reason::TooLong)
}
