//! The IETF's `RateLimit` fields, each revision of the draft that servers have taken up: three fields (00–06), one
//! dictionary (07), a list of items (08 on), and `RateLimit-Policy` beside them.
//!
//! A reset is delta seconds in all of them. What has not the syntax of its field is ignored, as the draft demands, and
//! noted; one thing is taken more widely, a second bare string, which Hugging Face writes where a parameter should be.
//! <https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/>

use std::time::Duration;

use smallvec::SmallVec;
use smol_str::SmolStr;

use super::head::Head;
use super::level::Frame;
use super::lines::{Other, Subject};
use super::missing::{Missing, Reason};
use super::print::Shown;
use super::table::Row;
use super::value::{Number, ResetForm, number};
use super::{OtherReading, ReceivedAt, Seen};
use crate::observation::MeterReading;
use crate::quota::{Meter, Unit, Window};

/// The fields, by name.
pub(super) const FIELDS: [&str; 5] =
    ["ratelimit-limit", "ratelimit-remaining", "ratelimit-reset", "ratelimit-policy", "ratelimit"];
/// More items than this are not read: no server has so many policies.
const ITEMS_MAX: usize = 64;

type Few<T> = SmallVec<[T; 4]>;

/// `"default";q=100;w=60`.
#[derive(Debug, Clone, Default)]
struct Item<'a> {
    /// The bare item, without quotes.
    name: &'a str,
    params: Few<(&'a str, &'a str)>,
}

/// One policy: so many units over a window.
#[derive(Debug, Clone, Copy)]
struct Policy<'a> {
    name: &'a str,
    quota: Option<f64>,
    window: Option<Window>,
    subject: Subject,
}

/// What is left of one.
#[derive(Debug, Clone, Copy, Default)]
struct State<'a> {
    name: &'a str,
    limit: Option<f64>,
    remaining: Option<f64>,
    reset: Option<Duration>,
}

/// What all the fields tell.
pub(super) fn read(row: &Row, head: &Head<'_>, received_at: ReceivedAt, seen: &mut Seen<'_>) {
    let mut fields: [Few<&str>; FIELDS.len()] = Default::default();
    head.headers.for_each(&mut |name, value| {
        if let Some(n) = FIELDS.iter().position(|field| *field == name) {
            match std::str::from_utf8(value) {
                Ok(text) => fields[n].push(text),
                Err(_) => miss(seen, name, Reason::NotText),
            }
        }
    });
    let [limits, remaining, reset, policy, combined] = &fields;
    let mut policies: Few<Policy<'_>> = SmallVec::new();
    for item in items(FIELDS[3], policy, seen) {
        policies.push(item.policy());
    }
    let mut states = combined_states(combined, seen);
    states.extend(separate_state(limits, remaining, reset, &mut policies, seen));
    join(row, &states, &policies, received_at, seen);
}

/// The list of the draft's latest revisions, and the policies. They know no unit of ours but requests.
pub(super) fn print(shown: &[Shown]) -> Vec<(String, String)> {
    let requests = || shown.iter().filter(|shown| shown.meter.unit == Unit::Requests);
    let list = |item: &dyn Fn(&Shown) -> String| requests().map(item).collect::<Vec<_>>().join(", ");
    if requests().next().is_none() {
        return Vec::new();
    }
    let state = |shown: &Shown| {
        // Who comes back by it must not come too early.
        let reset = shown.reset.map(|reset| format!(";t={:.0}", reset.as_secs_f64().ceil())).unwrap_or_default();
        format!("\"{}\";r={:.0}{reset}", shown.meter.window, shown.remaining.max(0.0).floor())
    };
    let policy = |shown: &Shown| {
        let Meter { window, .. } = shown.meter;
        format!("\"{window}\";q={:.0};w={:.0}", shown.limit.floor(), window.seconds())
    };
    vec![(FIELDS[3].to_owned(), list(&policy)), (FIELDS[4].to_owned(), list(&state))]
}

fn miss(seen: &mut Seen<'_>, header: &str, reason: Reason) {
    seen.missing.push(Missing { header: SmolStr::new(header), reason });
}

/// The items of a field, all its lines together; none when one of them is malformed.
fn items<'a>(field: &'static str, lines: &[&'a str], seen: &mut Seen<'_>) -> Few<Item<'a>> {
    let mut found = SmallVec::new();
    for text in lines.iter().flat_map(|line| split(line, b',')).take(ITEMS_MAX) {
        if let Some(item) = item(text) {
            found.push(item);
        } else {
            miss(seen, field, Reason::Malformed);
            return SmallVec::new();
        }
    }
    found
}

/// Parts between separators that stand outside of quotes.
fn split(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let mut quoted = false;
        let mut end = None;
        for (n, byte) in text.bytes().enumerate() {
            quoted ^= byte == b'"';
            if byte == separator && !quoted {
                end = Some(n);
                break;
            }
        }
        let (part, after) = end.map_or((text, None), |end| (&text[..end], Some(&text[end + 1..])));
        rest = after;
        Some(part.trim_matches([' ', '\t']))
    })
}

fn item(text: &str) -> Option<Item<'_>> {
    let mut parts = split(text, b';');
    let mut item = Item { name: bare(parts.next()?)?, params: SmallVec::new() };
    for part in parts {
        match part.split_once('=') {
            Some((key, value)) if token(key) => item.params.push((key, bare(value)?)),
            // A second string: the name that is meant.
            None if part.starts_with('"') => item.name = bare(part)?,
            None if token(part) => item.params.push((part, "?1")),
            _ => return None,
        }
    }
    Some(item)
}

/// A string, token, number or byte sequence, without its quotes.
fn bare(text: &str) -> Option<&str> {
    if let Some(rest) = text.strip_prefix('"') {
        return rest.strip_suffix('"').filter(|inside| !inside.contains('"'));
    }
    token(text).then_some(text)
}

fn token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/=".contains(&b))
}

impl<'a> Item<'a> {
    fn param(&self, key: &str) -> Option<&'a str> {
        self.params.iter().find(|(known, _)| *known == key).map(|(_, value)| *value)
    }

    fn number(&self, key: &str) -> Option<f64> {
        number(self.param(key)?, Number::Whole).ok()
    }

    /// Of `RateLimit-Policy`: the name of a quota `q`, or, until revision 07, the quota itself.
    fn policy(&self) -> Policy<'a> {
        let quota = self.number("q").or_else(|| number(self.name, Number::Whole).ok());
        let window = self.param("w").and_then(|text| text.parse().ok()).and_then(Window::from_seconds);
        let subject = match self.param("qu") {
            None | Some("requests") => Subject::Unit(Unit::Requests),
            Some("content-bytes" | "bytes") => Subject::Other(Other::ContentBytes),
            Some("concurrent-requests") => Subject::Other(Other::ConcurrentRequests),
            Some(_) => Subject::Other(Other::Units),
        };
        Policy { name: self.name, quota: quota.filter(|quota| *quota > 0.0), window, subject }
    }
}

fn delta(text: &str) -> Result<Duration, Reason> {
    ResetForm::DeltaSeconds.read(text, None)
}

/// Of `RateLimit`: a dictionary with a limit of its own, or a list of named states.
fn combined_states<'a>(lines: &[&'a str], seen: &mut Seen<'_>) -> Few<State<'a>> {
    let field = FIELDS[4];
    let mut states = SmallVec::new();
    if lines.iter().any(|line| line.trim_start().starts_with("limit=")) {
        let mut state = State::default();
        for member in lines.iter().flat_map(|line| split(line, b',')).take(ITEMS_MAX) {
            let read = |text: &str| number(text, Number::Whole);
            let told = match member.split_once('=') {
                Some(("limit", text)) => read(text).map(|n| state.limit = Some(n)),
                Some(("remaining", text)) => read(text).map(|n| state.remaining = Some(n)),
                Some(("reset", text)) => delta(text).map(|span| state.reset = Some(span)),
                _ => Err(Reason::Malformed),
            };
            if told.is_err() {
                miss(seen, field, Reason::Malformed);
                return SmallVec::new();
            }
        }
        states.push(state);
        return states;
    }
    for item in items(field, lines, seen) {
        let remaining = item.number("r");
        if remaining.is_none() {
            // Required of each item.
            miss(seen, field, Reason::Malformed);
            continue;
        }
        // Optional; but what is there and cannot be read is noted.
        let reset = item.param("t").and_then(|text| delta(text).map_err(|reason| miss(seen, field, reason)).ok());
        states.push(State { name: item.name, limit: item.number("q"), remaining, reset });
    }
    states
}

/// Of the three fields: the limit's first item is the one in force, and those after it are policies.
fn separate_state<'a>(
    limits: &[&'a str],
    remaining: &[&'a str],
    reset: &[&'a str],
    policies: &mut Few<Policy<'a>>,
    seen: &mut Seen<'_>,
) -> Option<State<'a>> {
    let mut state = State::default();
    let told = |field, lines: &[&str], seen: &mut Seen<'_>| {
        let first = lines.first()?.trim_matches([' ', '\t']);
        let same = lines.iter().all(|line| line.trim_matches([' ', '\t']) == first);
        let read = if same { number(first, Number::Whole) } else { Err(Reason::Repeated) };
        read.map_err(|reason| miss(seen, field, reason)).ok()
    };
    state.remaining = told(FIELDS[1], remaining, seen);
    state.reset = told(FIELDS[2], reset, seen).and_then(|n| Duration::try_from_secs_f64(n).ok());
    let listed = items(FIELDS[0], limits, seen);
    if let Some(first) = listed.first() {
        match number(first.name, Number::Whole) {
            Ok(limit) => state.limit = Some(limit),
            Err(reason) => miss(seen, FIELDS[0], reason),
        }
        policies.extend(listed.iter().filter(|item| item.param("w").is_some()).map(Item::policy));
    }
    if state.limit.is_none() && state.remaining.is_none() {
        if state.reset.is_some() {
            miss(seen, FIELDS[2], Reason::NoLimit);
        }
        return None;
    }
    Some(state)
}

/// Each state with the policy that it is of, and each policy that has none.
fn join(row: &Row, states: &[State<'_>], policies: &[Policy<'_>], received_at: ReceivedAt, seen: &mut Seen<'_>) {
    let mut used: SmallVec<[bool; 8]> = SmallVec::from_elem(false, policies.len());
    for state in states {
        let at = policies
            .iter()
            .position(|policy| !state.name.is_empty() && policy.name == state.name)
            .or_else(|| policies.iter().position(|policy| state.limit.is_some() && policy.quota == state.limit))
            .or_else(|| (policies.len() == 1 && state.name.is_empty()).then_some(0));
        let policy = at.and_then(|at| policies.get(at));
        if let Some(used) = at.and_then(|at| used.get_mut(at)) {
            *used = true;
        }
        let limit = state.limit.or_else(|| policy.and_then(|policy| policy.quota));
        if limit == Some(0.0) {
            miss(seen, if state.name.is_empty() { FIELDS[0] } else { FIELDS[4] }, Reason::Zero);
        }
        let limit = limit.filter(|limit| *limit > 0.0);
        let subject = policy.map_or(Subject::Unit(Unit::Requests), |policy| policy.subject);
        let told = State { limit, ..*state };
        push(row, subject, policy.and_then(|policy| policy.window), told, received_at, seen);
    }
    for (policy, _) in policies.iter().zip(&used).filter(|(policy, used)| !**used && policy.quota.is_some()) {
        let told = State { limit: policy.quota, ..State::default() };
        push(row, policy.subject, policy.window, told, received_at, seen);
    }
}

fn push(
    row: &Row,
    subject: Subject,
    window: Option<Window>,
    told: State<'_>,
    received_at: ReceivedAt,
    seen: &mut Seen<'_>,
) {
    let semantics = &row.semantics;
    let frame = Frame {
        windows: window.as_ref().map_or(semantics.windows, std::slice::from_ref),
        default: window.unwrap_or(semantics.default_request_window),
        grain: 1.0,
        reset_grain: semantics.reset_grain,
    };
    let place = frame.fixed(told.remaining.unwrap_or(0.0), told.reset);
    let State { limit, remaining, .. } = told;
    match subject {
        Subject::Unit(unit) => {
            let meter = Meter { unit, window: place.window };
            let sent_at = received_at.sent_at;
            seen.add_tightest(MeterReading { meter, sent_at, limit, remaining, level: remaining, reset: place.reset });
        }
        Subject::Other(what) => {
            seen.others.push(OtherReading {
                what: what.as_str(),
                window: window.map(|_| place.window),
                limit,
                remaining,
                reset: place.reset,
            });
        }
    }
}
