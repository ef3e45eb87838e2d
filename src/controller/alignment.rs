//! Where fixed windows end that follow a clock on the wall: at the boundaries of its minutes, hours, days and months.
//!
//! Members are told how much of a window is left, not when it ends: no wall clocks are compared.

use std::time::Duration;

use jiff::civil::Time;
use jiff::tz::TimeZone;

use crate::clock::UnixMillis;
use crate::quota::Window;

/// What is left at `wall` of the window that runs by the clock of `zone`: always more than nothing.
///
/// A day ends at the next day's first instant, so it has 23 or 25 hours when clocks change; a month at the first of the
/// next. Windows of `<n>s` end at multiples of n since 1970-01-01T00:00:00Z, in every zone. Beyond the calendar's end
/// (the year 9999) it is the window's nominal length.
#[must_use]
pub fn window_left(zone: &TimeZone, window: Window, wall: UnixMillis) -> Duration {
    let nominal = Duration::from_secs_f64(window.seconds());
    let by_clock = match window {
        Window::Seconds(_) | Window::Second => Some(left_of(nominal, i128::from(wall.0))),
        Window::Minute | Window::Hour => local_ms(zone, wall).map(|local| left_of(nominal, local)),
        Window::Day | Window::Month => left_of_days(zone, window, wall),
    };
    by_clock.unwrap_or(nominal)
}

/// What is left of a window of fixed length, those before it having begun at zero.
fn left_of(length: Duration, at_ms: i128) -> Duration {
    let length_ms = i128::try_from(length.as_millis()).unwrap_or(i128::MAX);
    Duration::from_millis(u64::try_from(length_ms - at_ms.rem_euclid(length_ms)).unwrap_or(0))
}

/// What the zone's clock shows, in ms. A zone may differ from UTC by part of an hour.
fn local_ms(zone: &TimeZone, wall: UnixMillis) -> Option<i128> {
    let offset_s = zone.to_offset(wall.timestamp()?).seconds();
    Some(i128::from(wall.0) + 1_000 * i128::from(offset_s))
}

/// Up to the first instant of the next day, or month.
fn left_of_days(zone: &TimeZone, window: Window, wall: UnixMillis) -> Option<Duration> {
    let now = wall.timestamp()?;
    let today = zone.to_datetime(now).date();
    let last = if window == Window::Month { today.last_of_month() } else { today };
    let ends = zone.to_timestamp(last.tomorrow().ok()?.to_datetime(Time::midnight())).ok()?;
    Duration::try_from(ends.duration_since(now)).ok()
}
