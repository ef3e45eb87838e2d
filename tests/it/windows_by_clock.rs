//! What is left of windows that end by a clock on the wall: over clock changes, month ends and odd zones.

use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use tidegate::clock::UnixMillis;
use tidegate::controller::alignment::window_left;
use tidegate::quota::Window;

fn wall(text: &str) -> UnixMillis {
    let at: Timestamp = text.parse().expect("a time");
    UnixMillis(at.as_millisecond().try_into().expect("after 1970"))
}

fn zone(name: &str) -> TimeZone {
    TimeZone::get(name).expect("is in the database, without files of the system")
}

const S: u64 = 1_000;
const H: u64 = 3_600 * S;
const DAY: u64 = 24 * H;

#[test]
fn windows_end_where_the_clock_of_their_zone_says() {
    for (name, window, at, left_ms) in [
        ("UTC", Window::Second, "2026-11-24T12:00:00.250Z", 750),
        ("UTC", Window::Minute, "2026-11-24T12:00:01Z", 59 * S),
        ("UTC", Window::Minute, "2026-11-24T12:00:00Z", 60 * S),
        ("UTC", Window::Hour, "2026-11-24T12:15:00Z", 45 * 60 * S),
        ("UTC", Window::Day, "2026-11-24T23:59:59.999Z", 1),
        ("UTC", Window::Day, "2026-11-24T00:00:00Z", DAY),
        ("UTC", Window::Month, "2026-11-24T00:00:00Z", 7 * DAY),
        // Multiples of seven seconds since 1970, in every zone.
        ("UTC", Window::Seconds(7), "1970-01-01T00:00:15Z", 6 * S),
        ("Asia/Kolkata", Window::Seconds(86_400), "1970-01-01T01:00:00Z", 23 * H),
        // Half an hour off UTC, and three quarters.
        ("Asia/Kolkata", Window::Hour, "2026-11-24T12:15:00Z", 15 * 60 * S),
        ("Asia/Kathmandu", Window::Hour, "2026-11-24T12:00:00Z", 15 * 60 * S),
        ("Asia/Kolkata", Window::Day, "2026-11-24T18:29:00Z", 60 * S),
        // West of UTC it is still the day before, and the month.
        ("America/Los_Angeles", Window::Day, "2026-11-24T07:59:00Z", 60 * S),
        ("America/Los_Angeles", Window::Month, "2026-12-01T07:00:00Z", H),
        ("Pacific/Kiritimati", Window::Month, "2026-12-01T07:00:00Z", 31 * DAY - 21 * H),
        // Clocks go forward at 02:00 on 8 March: 23 hours; back on 1 November: 25.
        ("America/Los_Angeles", Window::Day, "2026-03-08T08:00:00Z", 23 * H),
        ("America/Los_Angeles", Window::Day, "2026-03-08T11:00:00Z", 20 * H),
        ("America/Los_Angeles", Window::Day, "2026-11-01T07:00:00Z", 25 * H),
        ("America/Los_Angeles", Window::Day, "2026-11-01T09:30:00Z", 22 * H + H / 2),
        ("America/Los_Angeles", Window::Hour, "2026-11-01T09:30:00Z", H / 2),
        ("Europe/Berlin", Window::Month, "2026-02-28T23:00:00Z", 31 * DAY - H),
        // Lord Howe Island's clocks go half an hour.
        ("Australia/Lord_Howe", Window::Day, "2026-04-04T13:00:00Z", DAY + H / 2),
        // In Havana the day's first hour comes twice; in Beirut it did not come at all on 2021-03-28.
        ("America/Havana", Window::Day, "2024-11-03T04:30:00Z", 24 * H + H / 2),
        ("America/Havana", Window::Day, "2024-11-03T05:30:00Z", 23 * H + H / 2),
        ("Asia/Beirut", Window::Day, "2021-03-27T21:00:00Z", H),
        // Samoa had no 30 December 2011.
        ("Pacific/Apia", Window::Day, "2011-12-30T09:00:00Z", H),
        // Month ends: leap years, and the year's end.
        ("UTC", Window::Month, "2028-02-01T00:00:00Z", 29 * DAY),
        ("UTC", Window::Month, "2026-02-28T12:00:00Z", DAY / 2),
        ("UTC", Window::Month, "2026-12-31T23:00:00Z", H),
    ] {
        let left = window_left(&zone(name), window, wall(at));
        assert_eq!(left, Duration::from_millis(left_ms), "{name}, {window:?}, at {at}");
    }
}

#[test]
fn a_window_ends_once_and_the_next_begins_at_its_end() {
    let mut days = 0;
    for name in
        ["UTC", "America/Los_Angeles", "Europe/Berlin", "Australia/Lord_Howe", "America/Havana", "Pacific/Chatham"]
    {
        let zone = zone(name);
        let mut at = wall("2024-01-01T12:34:56Z");
        while at < wall("2028-03-02T00:00:00Z") {
            let ends = at + window_left(&zone, Window::Day, at);
            let shown = zone.to_datetime(Timestamp::from_millisecond(ends.0.try_into().unwrap()).unwrap());
            assert!(shown.hour() <= 1 && shown.minute() == 0, "{name}: {shown}");
            let before = UnixMillis(ends.0 - 1);
            assert_eq!(window_left(&zone, Window::Day, before), Duration::from_millis(1), "{name}: {shown}");
            let length = window_left(&zone, Window::Day, ends).as_secs();
            assert!((23 * 3_600..=25 * 3_600).contains(&length), "{name}: {shown} lasts {length} s");
            (at, days) = (ends, days + 1);
        }
    }
    assert!(days > 9_000);
}

#[test]
fn beyond_the_calendar_a_window_has_its_nominal_length() {
    for far in [UnixMillis(u64::MAX), UnixMillis(253_402_207_200_000)] {
        for window in [Window::Second, Window::Hour, Window::Day, Window::Month] {
            let left = window_left(&TimeZone::UTC, window, far);
            assert!(!left.is_zero() && left <= Duration::from_secs_f64(window.seconds()), "{left:?}");
        }
    }
}
