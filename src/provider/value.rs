//! Values as providers write them: numbers and times. What a value does not plainly say is a [`Reason`], not a guess.

use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;
use jiff::fmt::strtime;

use super::duration::{SPAN_MAX, go_duration, parse_go_duration, plain_go_duration};
use super::missing::Reason;
use crate::clock::UnixMillis;

/// Larger numbers are placeholders for "unlimited" (`u64::MAX`) or errors, and no longer exact as `f64` from 2^53 on.
pub(super) const NUMBER_MAX: u64 = 1_000_000_000_000_000;
/// From here on a count of seconds is a time of day (September 2001), and from a thousand times that on, of ms.
const EPOCH_SECONDS_MIN: f64 = 1e9;
const EPOCH_MILLIS_MIN: f64 = 1e12;

/// How numbers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Number {
    /// Digits only.
    Whole,
    /// Digits, perhaps with a fraction.
    Fraction,
}

/// How a reset is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResetForm {
    /// `1m1.23s`, as Go prints a duration.
    GoDuration,
    /// `2025-10-09T21:49:43Z`.
    Rfc3339,
    /// Seconds from now, perhaps with a fraction.
    DeltaSeconds,
    /// Milliseconds from now.
    DeltaMillis,
    /// Seconds since 1970, perhaps with a fraction.
    EpochSeconds,
    /// Milliseconds since 1970.
    EpochMillis,
    /// Seconds from now, or seconds or milliseconds since 1970: told by the number's size.
    BySize,
    /// `Sun, 06 Nov 1994 08:49:37 GMT`.
    HttpDate,
}

impl ResetForm {
    /// All forms.
    pub const ALL: [Self; 8] = [
        Self::GoDuration,
        Self::Rfc3339,
        Self::DeltaSeconds,
        Self::DeltaMillis,
        Self::EpochSeconds,
        Self::EpochMillis,
        Self::BySize,
        Self::HttpDate,
    ];

    /// The form's name in configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::GoDuration => "go_duration",
            Self::Rfc3339 => "rfc3339",
            Self::DeltaSeconds => "delta_seconds",
            Self::DeltaMillis => "delta_millis",
            Self::EpochSeconds => "epoch_seconds",
            Self::EpochMillis => "epoch_millis",
            Self::BySize => "by_size",
            Self::HttpDate => "http_date",
        }
    }

    /// Whether it names a moment, not a delay.
    pub(super) const fn is_instant(self) -> bool {
        matches!(self, Self::Rfc3339 | Self::EpochSeconds | Self::EpochMillis | Self::BySize | Self::HttpDate)
    }

    /// The delay that a value in the form that is nearly always sent means; `None` where it must be looked at as text.
    #[inline]
    pub(super) fn read_plain(self, value: &[u8], now: Option<Timestamp>, minute: &mut Minute) -> Option<Duration> {
        match self {
            Self::GoDuration => plain_go_duration(value),
            Self::Rfc3339 => until(minute.rfc3339(value)?, now).ok(),
            _ => None,
        }
    }

    /// The delay that `text` means. A time of day is measured from `now`, the response's own `Date` where it has one; one
    /// that has passed is zero.
    pub(super) fn read(self, text: &str, now: Option<Timestamp>) -> Result<Duration, Reason> {
        if text.is_empty() {
            return Err(Reason::Empty);
        }
        let digits = || number(text, Number::Fraction);
        match self {
            Self::GoDuration => parse_go_duration(text).ok_or(Reason::NotADuration),
            Self::Rfc3339 => until(rfc3339(text).ok_or(Reason::NotATime)?, now),
            Self::HttpDate => until(http_date(text).ok_or(Reason::NotATime)?, now),
            Self::DeltaSeconds => span(digits()?, 1.0),
            Self::DeltaMillis => span(digits()?, 1e3),
            Self::EpochSeconds => until(epoch(digits()?, 1.0)?, now),
            Self::EpochMillis => until(epoch(digits()?, 1e3)?, now),
            Self::BySize => match digits()? {
                n if n >= EPOCH_MILLIS_MIN => until(epoch(n, 1e3)?, now),
                n if n >= EPOCH_SECONDS_MIN => until(epoch(n, 1.0)?, now),
                n => span(n, 1.0),
            },
        }
    }
}

/// Whether a reset that falls between two times that can be written becomes the earlier or the later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rounding {
    Down,
    Up,
}

impl Rounding {
    fn whole(self, ms: u64, grain_ms: u64) -> u64 {
        match self {
            Self::Down => ms / grain_ms * grain_ms,
            Self::Up => ms.div_ceil(grain_ms).saturating_mul(grain_ms),
        }
    }
}

impl ResetForm {
    /// A delay as it is written `at` this time, to a multiple of `grain`: never finer than a millisecond, and seconds
    /// are whole.
    pub(super) fn write(self, delay: Duration, at: UnixMillis, grain: Duration, rounding: Rounding) -> String {
        let ms = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let grain_ms = match self {
            Self::GoDuration | Self::DeltaMillis | Self::EpochMillis => ms(grain).max(1),
            _ => ms(grain).max(1_000),
        };
        let instant = rounding.whole((at + delay).0, grain_ms);
        let delay = rounding.whole(ms(delay), grain_ms);
        match self {
            Self::GoDuration => go_duration(delay),
            Self::DeltaSeconds => (delay / 1_000).to_string(),
            Self::DeltaMillis => delay.to_string(),
            Self::EpochSeconds | Self::BySize => (instant / 1_000).to_string(),
            Self::EpochMillis => instant.to_string(),
            Self::Rfc3339 => timestamp(instant).to_string(),
            Self::HttpDate => strtime::format("%a, %d %b %Y %H:%M:%S GMT", timestamp(instant)).unwrap_or_default(),
        }
    }
}

/// A time beyond the calendar is "not set", 1970.
fn timestamp(unix_ms: u64) -> Timestamp {
    let ms = i64::try_from(unix_ms).unwrap_or_default();
    Timestamp::from_millisecond(ms).unwrap_or_default()
}

/// Decimal digits, at most [`NUMBER_MAX`]. The same number several times, joined by commas on the way, is that number.
#[allow(clippy::cast_precision_loss, reason = "NUMBER_MAX is below 2^53")]
pub(super) fn number(text: &str, form: Number) -> Result<f64, Reason> {
    if text.is_empty() {
        return Err(Reason::Empty);
    }
    if text.bytes().all(|b| b.is_ascii_digit()) {
        // Above the largest it stays above, however many digits follow.
        let next = |n: u64, digit: u8| (n.min(NUMBER_MAX + 1)) * 10 + u64::from(digit - b'0');
        let n = text.bytes().fold(0, next);
        return if n <= NUMBER_MAX { Ok(n as f64) } else { Err(Reason::Unlimited) };
    }
    if text.contains(',') {
        let mut items = text.split(',').map(|item| number(item.trim(), form));
        let first = items.next().unwrap_or(Err(Reason::Empty))?;
        return items.try_fold(first, |first, item| if item? == first { Ok(first) } else { Err(Reason::Repeated) });
    }
    // One sign: a header of nothing but dashes is no number, and must not take a call for each.
    if let Some(rest) = text.strip_prefix('-').filter(|rest| !rest.starts_with('-')) {
        return Err(number(rest, form).map_or(Reason::NotANumber, |_| Reason::Negative));
    }
    let plain = text.starts_with(|c: char| c.is_ascii_digit()) && text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    match text.parse::<f64>() {
        Ok(n) if plain && form == Number::Fraction => {
            if n <= NUMBER_MAX as f64 {
                Ok(n)
            } else {
                Err(Reason::Unlimited)
            }
        }
        _ => Err(Reason::NotANumber),
    }
}

fn span(n: f64, per_second: f64) -> Result<Duration, Reason> {
    let span = Duration::try_from_secs_f64(n / per_second).map_err(|_| Reason::TooLong)?;
    if span <= SPAN_MAX { Ok(span) } else { Err(Reason::TooLong) }
}

fn epoch(n: f64, per_second: f64) -> Result<Timestamp, Reason> {
    let since = span_of_epoch(n / per_second)?;
    Timestamp::from_duration(since).map_err(|_| Reason::NotATime)
}

fn span_of_epoch(seconds: f64) -> Result<jiff::SignedDuration, Reason> {
    jiff::SignedDuration::try_from_secs_f64(seconds).map_err(|_| Reason::NotATime)
}

/// From `now` to `at`; what has passed is zero. The epoch itself means "not set".
pub(super) fn until(at: Timestamp, now: Option<Timestamp>) -> Result<Duration, Reason> {
    if at == Timestamp::UNIX_EPOCH {
        return Err(Reason::Unset);
    }
    let now = now.ok_or(Reason::NoDate)?;
    if at <= now {
        return Ok(Duration::ZERO);
    }
    let span = Duration::try_from(at.duration_since(now)).map_err(|_| Reason::TooLong)?;
    if span <= SPAN_MAX { Ok(span) } else { Err(Reason::TooLong) }
}

/// A time of day (RFC 3339).
fn rfc3339(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

/// The minute in which an instant was read last. The resets of a head are mostly of one: it is read once.
#[derive(Debug)]
pub(super) struct Minute {
    text: [u8; 17],
    /// In seconds since 1970.
    begins: i64,
}

impl Minute {
    pub(super) const EPOCH: Self = Self { text: *b"1970-01-01T00:00:", begins: 0 };

    /// `2025-10-09T21:49:43Z`, the one form that is really sent, 24,144 of 24,144: the digits stand where they stand.
    #[inline]
    fn rfc3339(&mut self, text: &[u8]) -> Option<Timestamp> {
        let text: &[u8; 20] = text.try_into().ok()?;
        if text[..17] != self.text {
            self.begin(text)?;
        }
        let second = two_digits(text, 17).filter(|second| *second < 60 && text[19] == b'Z')?;
        Timestamp::from_second(self.begins + i64::from(second)).ok()
    }

    fn begin(&mut self, text: &[u8; 20]) -> Option<()> {
        let two = |at| two_digits(text, at);
        if [text[4], text[7], text[10], text[13], text[16]] != *b"--T::" {
            return None;
        }
        self.begins = unix_s([two(0)? * 100 + two(2)?, two(5)?, two(8)?], [two(11)?, two(14)?, 0])?;
        self.text.copy_from_slice(&text[..17]);
        Some(())
    }
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`, the form that everybody sends. Which day of the week it was is not checked.
pub(super) fn fixdate(text: &[u8]) -> Option<Timestamp> {
    const MONTHS: [&[u8; 3]; 12] =
        [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];
    let text: &[u8; 29] = text.try_into().ok()?;
    let form =
        [text[3], text[4], text[7], text[11], text[16], text[19], text[22]] == *b",    ::" && text[25..] == *b" GMT";
    if !form {
        return None;
    }
    let month = (1..).zip(MONTHS).find(|(_, name)| [text[8], text[9], text[10]] == **name)?.0;
    let two = |at| two_digits(text, at);
    let at = unix_s([two(12)? * 100 + two(14)?, month, two(5)?], [two(17)?, two(20)?, two(23)?])?;
    Timestamp::from_second(at).ok()
}

#[inline]
fn two_digits<const N: usize>(text: &[u8; N], at: usize) -> Option<u32> {
    let [tens, ones] = [text[at], text[at + 1]].map(|byte| byte.wrapping_sub(b'0'));
    (tens < 10 && ones < 10).then(|| u32::from(tens * 10 + ones))
}

/// Seconds from 1970 to a year, month and day, at an hour, minute and second, in UTC.
#[inline]
fn unix_s([year, month, day]: [u32; 3], [hour, minute, second]: [u32; 3]) -> Option<i64> {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let month_days = match month {
        4 | 6 | 9 | 11 => 30,
        2 => 28 + u32::from(leap),
        _ => 31,
    };
    let valid = (1..=12).contains(&month) && (1..=month_days).contains(&day) && hour < 24 && minute < 60 && second < 60;
    if !valid {
        return None;
    }
    // Years that begin in March end with the day that is not always there. From the year -400 on, as the calendar repeats.
    let (years, months) = if month > 2 { (year + 400, month - 3) } else { (year + 399, month + 9) };
    let days = 365 * years + years / 4 - years / 100 + years / 400 + (153 * months + 2) / 5 + day;
    let days = i64::from(days) - 719_469 - 146_097;
    Some(days * 86_400 + i64::from((hour * 60 + minute) * 60 + second))
}

/// An HTTP date (RFC 9110 §5.6.7) in any of its three forms, and with UTC for GMT, as one gateway writes it.
pub(super) fn http_date(text: &str) -> Option<Timestamp> {
    const OBSOLETE: [&str; 2] = ["%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"];
    let by_format = |format: &str| {
        let time = strtime::parse(format, text).ok()?;
        time.to_datetime().ok()?.to_zoned_datetime(jiff::tz::TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
    };
    fixdate(text.as_bytes())
        .or_else(|| DateTimeParser::new().parse_timestamp(text).ok())
        .or_else(|| OBSOLETE.into_iter().find_map(by_format))
}

/// Units of time in prose.
const PROSE: [(&str, f64); 18] = [
    ("milliseconds", 1e-3),
    ("ms", 1e-3),
    ("seconds", 1.0),
    ("second", 1.0),
    ("secs", 1.0),
    ("sec", 1.0),
    ("s", 1.0),
    ("minutes", 60.0),
    ("minute", 60.0),
    ("mins", 60.0),
    ("min", 60.0),
    ("m", 60.0),
    ("hours", 3_600.0),
    ("hour", 3_600.0),
    ("hr", 3_600.0),
    ("h", 3_600.0),
    ("days", 86_400.0),
    ("d", 86_400.0),
];
/// Where prose tells a wait.
const BEFORE_WAIT: [&str; 7] =
    ["ry again in ", "etry in ", "etry after ", "vailable in ", "esets in ", "ait for ", "Wait "];

/// The wait that an error message tells: "Please try again in 6m0s.", "retry after 20 seconds", "Resets in 4hr 59min".
/// A number without a unit is none.
pub(super) fn told_wait(message: &str) -> Option<Duration> {
    let waits = BEFORE_WAIT.iter().filter_map(|before| message.split_once(before));
    waits.filter_map(|(_, after)| prose(after)).find(|span| !span.is_zero())
}

fn prose(text: &str) -> Option<Duration> {
    let (mut rest, mut total) = (text, None);
    loop {
        rest = rest.trim_start_matches(' ');
        let Some((n, after)) = leading_number(rest) else { break };
        let after = after.trim_start_matches(' ');
        let word = after.split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default();
        let Some((_, seconds)) = PROSE.iter().find(|(name, _)| *name == word) else { break };
        total = Some(total.unwrap_or(0.0) + n * seconds);
        rest = &after[word.len()..];
    }
    let span = Duration::try_from_secs_f64(total?).ok()?;
    // To a whole number of µs: floats add up to a little less or more.
    let span = Duration::from_micros(u64::try_from((span.as_nanos() + 500) / 1_000).ok()?);
    (span <= SPAN_MAX).then_some(span)
}

/// The number that `text` begins with, and what follows. Thousands may have commas; a stop that no digit follows is the
/// sentence's.
pub(super) fn leading_number(text: &str) -> Option<(f64, &str)> {
    let bytes = text.as_bytes();
    let digit = |n: usize| bytes.get(n).is_some_and(u8::is_ascii_digit);
    let mut end = 0;
    while digit(end) || (end > 0 && matches!(bytes.get(end), Some(b'.' | b',')) && digit(end + 1)) {
        end += 1;
    }
    let (number, rest) = text.split_at(end);
    let n = if number.contains(',') { number.replace(',', "").parse() } else { number.parse() };
    n.ok().map(|n: f64| (n, rest))
}
