//! The page: what is seen, as lines of so many columns. Pure.

use ratatui::Frame;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::cell::{curve, cut, float, left, percent, remaining, right, safe, short, whole, width};
use super::history::{Held, PoolHistory, TRACE_CELLS, binding, waiting};
use super::state::{Selected, State, seconds};
use crate::cli::overrides::{act, target_name, tenant_name};
use crate::cli::table::{NONE, counted, span};
use crate::clock::{MonoTime, UnixMillis};
use crate::controller::law::Headers;
use crate::controller::{LeaderAccount, MeterAccount, OverrideAccount, PoolAccount, SignalAccount, TenantAccount};
use crate::plan::{Mode, Target};
use crate::quota::{Grantee, Meter, PoolId, Unit, Window};

/// The page as it is printed, and as it is meant to be seen.
pub(super) const COLUMNS: u16 = 80;
/// Its lines.
pub(super) const LINES: u16 = 24;

/// Most lines of each part; what does not fit is counted in the last of them.
const POOLS_MAX: usize = 6;
const OVERRIDES_MAX: usize = 3;
/// At least, where tenants fill the page.
const SIGNALS_MAX: usize = 2;
/// The blank line before a pool, its tenants' head, and the keys.
const LINES_BESIDE: usize = 3;
/// Most columns of a pool's name, and of the names below it.
const POOL_COLUMNS: (usize, usize) = (6, 16);
const NAME_COLUMNS: usize = 18;
/// What stands before the lines at the bottom.
const LABEL_COLUMNS: usize = 11;
/// A meter that is used so far is about to bind.
const FULL: f64 = 0.95;
/// More of what lies idle is lent than is worth a word.
const LENT_SAID: f64 = 1.005;
/// Answers that are slower than this, times as usual, are worth a word.
const SLOW_SAID: f64 = 1.25;

const PLAIN: Style = Style::new();
const DIM: Style = Style::new().add_modifier(Modifier::DIM);
const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const GOOD: Style = Style::new().fg(Color::Green);
const WARN: Style = Style::new().fg(Color::Yellow);
const BAD: Style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
const CHOSEN: Style = Style::new().add_modifier(Modifier::REVERSED);

/// What is drawn.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a> {
    /// What is seen.
    pub state: &'a State,
    /// Now, for the data's age.
    pub now: MonoTime,
    /// Now, for how long overrides hold.
    pub wall: UnixMillis,
    /// Whether there are keys to speak of.
    pub keys: bool,
}

/// Draws the page.
pub(super) fn draw(frame: &mut Frame<'_>, view: &View<'_>) {
    let Rect { width, height, .. } = frame.area();
    let lines = page(view, width.into(), height.into());
    frame.render_widget(Paragraph::new(lines), frame.area());
}

/// The page as plain text of [`LINES`] lines, without colours.
pub(super) fn text(view: &View<'_>) -> String {
    let Ok(mut terminal) = Terminal::new(TestBackend::new(COLUMNS, LINES));
    let Ok(_) = terminal.draw(|frame| draw(frame, view));
    let buffer = terminal.backend().buffer();
    let mut text = String::new();
    for y in 0..LINES {
        let (mut line, mut x) = (String::new(), 0);
        while x < COLUMNS {
            let symbol = buffer[(x, y)].symbol();
            line.push_str(symbol);
            // The cell behind a wide character is its other half.
            x += u16::try_from(width(symbol)).unwrap_or(1).max(1);
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn page(view: &View<'_>, columns: usize, rows: usize) -> Vec<Line<'static>> {
    let mut lines = vec![health(view, columns)];
    let Some((account, seen_at)) = view.state.seen() else {
        if view.keys {
            lines.push(Line::styled("q quit", DIM));
        }
        return lines;
    };
    lines.push(facts(view, account, columns));
    lines.extend(pools(view, account, columns));
    let Some(selected) = view.state.selected() else {
        lines.push(Line::styled("the leader has no pools", DIM));
        return lines;
    };
    let about = about(&selected, columns);
    let mut bottom = overrides(selected.told, view.wall, columns);
    // What tenants leave free is theirs.
    let taken = lines.len() + about.len() + selected.told.busiest.len() + bottom.len() + LINES_BESIDE;
    bottom.extend(signals(account, SIGNALS_MAX.max(rows.saturating_sub(taken)), columns));
    if view.keys {
        let keys = "q quit   ↑↓ pool   m meter   p pause";
        bottom.push(Line::styled(cut(keys, columns), DIM));
    }
    lines.push(Line::default());
    lines.extend(about);
    let room = rows.saturating_sub(lines.len() + bottom.len());
    let mut middle = tenants(&selected, seen_at, columns, room);
    middle.resize_with(room, Line::default);
    lines.extend(middle);
    lines.extend(bottom);
    lines
}

/// What is wrong, the worst first, as far as it fits.
fn health(view: &View<'_>, columns: usize) -> Line<'static> {
    let problems = view.state.problems(view.now);
    let Some(worst) = problems.first() else {
        return Line::styled(cut("ok  nothing is wrong", columns), GOOD);
    };
    let style = if worst.severe { BAD } else { WARN };
    let mut said = String::new();
    for (n, problem) in problems.iter().enumerate() {
        let behind = problems.len() - n;
        let more = |behind: usize| if behind > 0 { format!("  (+{behind} more)") } else { String::new() };
        let longer = if n == 0 { safe(&problem.text) } else { format!("{said} | {}", safe(&problem.text)) };
        if n > 0 && width(&longer) + width(&more(behind - 1)) > columns {
            return Line::styled(said + &more(behind), style);
        }
        said = cut(&longer, columns.saturating_sub(width(&more(behind - 1))));
    }
    Line::styled(said, style)
}

/// Who leads, since when, how old this is, and how much there is of everything.
fn facts(view: &View<'_>, account: &LeaderAccount, columns: usize) -> Line<'static> {
    let age = view.state.age(view.now).map(seconds).unwrap_or_default();
    let led = span(i64::try_from(account.led_for_ms / 1_000 * 1_000).unwrap_or(i64::MAX));
    let name = cut(&account.name, NAME_COLUMNS);
    let (before, data) = (format!("leader {name}, term {}, led for {led}  ", account.term), format!("data {age} old"));
    let (pools, members) = (counted(account.pools.len(), "pool"), counted(view.state.members(), "member"));
    let paused = if view.state.paused() { "PAUSED  " } else { "" };
    let spans = [
        (paused.to_owned(), WARN),
        (before, PLAIN),
        (data, if view.state.stale(view.now) { BAD } else { PLAIN }),
        (format!("  {pools}, {members}"), PLAIN),
    ];
    fitted(spans, columns)
}

/// Spans up to so many columns; the one that does not fit is cut, and those behind it are left out.
fn fitted(spans: impl IntoIterator<Item = (String, Style)>, columns: usize) -> Line<'static> {
    let (mut room, mut line) = (columns, Line::default());
    for (text, style) in spans {
        let text = cut(&text, room);
        room -= width(&text).min(room);
        line.push_span(Span::styled(text, style));
    }
    line
}

// === Pools ===

/// A line for each pool, as far as there is room around the selected one.
fn pools(view: &View<'_>, account: &LeaderAccount, columns: usize) -> Vec<Line<'static>> {
    let longest = account.pools.keys().map(|id| width(id.as_str())).max().unwrap_or(0);
    let most = POOL_COLUMNS.1 + columns.saturating_sub(COLUMNS.into()) / 2;
    let name_columns = longest.clamp(POOL_COLUMNS.0, most);
    let name = left("POOL", name_columns);
    let head = format!("  {name} MODE METER   USED  CAP  OTH 429/M  WAIT    FLIGHT WHY");
    let mut lines = vec![Line::styled(cut(&head, columns), DIM)];
    let chosen = view.state.selected().map(|selected| selected.id);
    let all: Vec<(&PoolId, &PoolAccount)> = account.pools.iter().collect();
    let shown = if all.len() > POOLS_MAX { POOLS_MAX - 1 } else { all.len() };
    let at = all.iter().position(|(id, _)| Some(*id) == chosen).unwrap_or(0);
    let first = at.saturating_sub(shown / 2).min(all.len() - shown);
    for (id, told) in all.iter().skip(first).take(shown) {
        let rates = view.state.past(id).and_then(PoolHistory::rates);
        let line = pool(id, told, rates.map(|[_, _, throttled]| 60.0 * throttled), name_columns, columns);
        let is_chosen = Some(*id) == chosen;
        let mark = (if is_chosen { "> " } else { "  " }).to_owned();
        let line = fitted(std::iter::once((mark, PLAIN)).chain(line), columns);
        lines.push(if is_chosen { line.style(CHOSEN) } else { line });
    }
    if shown < all.len() {
        let more = format!("  … {} more: {} before, {} behind", all.len() - shown, first, all.len() - shown - first);
        lines.push(Line::styled(cut(&more, columns), DIM));
    }
    lines
}

fn pool(
    id: &PoolId,
    told: &PoolAccount,
    throttled_per_minute: Option<f64>,
    name_columns: usize,
    columns: usize,
) -> Vec<(String, Style)> {
    let none = || NONE.to_owned();
    let full = |of: &MeterAccount| of.used > FULL * of.capacity;
    let bound = binding(told);
    let (mut used, mut capacity, mut others) = (none(), none(), none());
    if let Some((_, of)) = bound {
        used = percent(of.used, of.capacity);
        capacity = of.limit.map_or_else(none, |limit| percent(of.capacity, limit));
        others = of.others.map_or_else(none, |others| percent(others, of.limit.unwrap_or(of.capacity)));
    }
    let waits = waiting(told);
    let flight = told.places.map_or_else(
        || whole(float(told.in_flight)),
        |places| format!("{}/{}", whole(float(told.in_flight)), whole(places)),
    );
    let mode = match told.mode {
        Mode::Enforce => "on",
        Mode::Observe => "obs",
        Mode::Off => "off",
    };
    let style = |bad: bool, style: Style| if bad { style } else { PLAIN };
    let throttles = throttled_per_minute.is_some_and(|rate| rate > 0.0);
    let places_gone = told.places.is_some_and(|places| float(told.in_flight) >= places.floor());
    let cells = [
        (left(id.as_str(), name_columns), BOLD),
        (left(mode, 4), style(!told.mode.enforces(), WARN)),
        (left(&bound.map_or_else(none, |(meter, _)| meter_name(meter)), 7), PLAIN),
        (right(&used, 4), style(bound.is_some_and(|(_, of)| full(of)), WARN)),
        (right(&capacity, 4), PLAIN),
        (right(&others, 4), PLAIN),
        (right(&throttled_per_minute.map_or_else(none, short), 5), style(throttles, BAD)),
        (right(&short(float(waits)), 5), style(waits > 0, WARN)),
        (right(&flight, 9), style(places_gone, WARN)),
        (cut(&told.reason.text, columns), PLAIN),
    ];
    spaced(cells)
}

/// Cells with a blank between.
fn spaced<const N: usize>(cells: [(String, Style); N]) -> Vec<(String, Style)> {
    let blank = (" ".to_owned(), PLAIN);
    let mut line: Vec<_> = cells.into_iter().flat_map(|cell| [cell, blank.clone()]).collect();
    line.pop();
    line
}

/// A meter in seven characters, but for odd windows.
fn meter_name(meter: Meter) -> String {
    let unit = match meter.unit {
        Unit::Requests => "req",
        Unit::Tokens => "tok",
        Unit::InputTokens => "in",
        Unit::OutputTokens => "out",
    };
    match meter.window {
        Window::Seconds(n) => format!("{unit}/{n}s"),
        Window::Second => format!("{unit}/s"),
        Window::Minute => format!("{unit}/min"),
        Window::Hour => format!("{unit}/h"),
        Window::Day => format!("{unit}/day"),
        Window::Month => format!("{unit}/mon"),
    }
}

// === The selected pool ===

/// The selected pool's meter in numbers, in two lines; why it is so; and the head of the tenants.
fn about(selected: &Selected<'_>, columns: usize) -> [Line<'static>; 4] {
    let Selected { id, told, past } = selected;
    let shown = past.meter.and_then(|meter| Some((meter, told.meters.get(&meter)?)));
    let mut words = shown.map_or_else(|| vec!["no meter".to_owned()], |(meter, of)| meter_words(meter, of));
    let slow = told.slowness.filter(|times| *times > SLOW_SAID);
    words.extend(slow.map(|times| format!("answers {}× as slow as usual", short(times))));
    let name = cut(id.as_str(), NAME_COLUMNS);
    let room = columns.saturating_sub(width(&name) + 2);
    let fits = |count: &usize| width(&words[..*count].join(", ")) < room;
    let first = (1..=words.len()).take_while(fits).last().unwrap_or(1);
    let comma = if first < words.len() { "," } else { "" };
    let title = [(name, BOLD), (format!("  {}{comma}", words[..first].join(", ")), PLAIN)];
    let rest = [(format!("  {}", words[first..].join(", ")), PLAIN)];
    let why = [("why  ".to_owned(), DIM), (told.reason.text.clone(), PLAIN)];
    let name = left("TENANT", tenant_columns(columns));
    let head = format!("  {name} GRANTED LAST 60 s    ASKS  WAIT  ADM/S REF/S 429/S OVERRIDE");
    let head = Line::styled(cut(&head, columns), DIM);
    [fitted(title, columns), fitted(rest, columns), fitted(why, columns), head]
}

fn meter_words(meter: Meter, of: &MeterAccount) -> Vec<String> {
    let mut words = vec![format!("used {} of {}", short(of.used), short(of.capacity))];
    words.extend(of.limit.map(|limit| format!("limit {}", short(limit))));
    // Below zero where the limit is better than told: nobody else uses any.
    words.extend(of.others.map(|others| format!("others {}", short(others.max(0.0)))));
    words.push(format!("asked {}", short(of.demand)));
    words.extend(of.level.map(|level| format!("left {}", short(level))));
    words.extend(match of.shared {
        Some(bucket) => Some(format!("together, {} at once", short(bucket.burst))),
        None => (of.overcommit > LENT_SAID).then(|| format!("lent ×{:.2}", of.overcommit)),
    });
    let headers = match of.headers {
        Some(Headers::Contradicted) => Some("429s contradict headers"),
        Some(Headers::Coarse) => Some("headers too coarse"),
        Some(Headers::None) => Some("no headers"),
        Some(Headers::Steer) | None => None,
    };
    words.extend(headers.map(str::to_owned));
    words[0] = format!("{meter} {}", words[0]);
    words
}

fn tenant_columns(columns: usize) -> usize {
    NAME_COLUMNS + columns.saturating_sub(COLUMNS.into()).min(40)
}

/// The tenants that there is room for.
fn tenants(selected: &Selected<'_>, seen_at: MonoTime, columns: usize, room: usize) -> Vec<Line<'static>> {
    let Selected { told, past, .. } = selected;
    let order = past.order();
    // `@default` has a grant too.
    let all = told.tenants.max(order.len());
    let shown = if all > room { room.saturating_sub(1) } else { room };
    let rows = order.iter().take(shown).filter_map(|name| Some((name, told.busiest.get(name)?)));
    let mut lines: Vec<Line<'static>> =
        rows.map(|(name, account)| fitted(tenant(selected, name, account, seen_at, columns), columns)).collect();
    if all > lines.len() && room > 0 {
        let more = all - lines.len();
        lines.push(Line::styled(
            cut(&format!("  … {} for whom fewer wait", counted(more, "more tenant")), columns),
            DIM,
        ));
    }
    lines
}

fn tenant(
    selected: &Selected<'_>,
    name: &Grantee,
    account: &TenantAccount,
    seen_at: MonoTime,
    columns: usize,
) -> Vec<(String, Style)> {
    let Selected { told, past, .. } = selected;
    let granted = past.meter.and_then(|meter| account.held().get(&meter).copied());
    let trace = past.meter.map_or([None; TRACE_CELLS], |meter| past.trace(name, meter, seen_at));
    let rates = past.rates_of(name);
    let rate = |n: usize| rates.map_or_else(|| NONE.to_owned(), |rates| short(rates[n]));
    let some = |n: usize| rates.is_some_and(|rates| rates[n] > 0.0);
    let style = |bad: bool, style: Style| if bad { style } else { PLAIN };
    let mut cells = vec![("  ".to_owned(), PLAIN)];
    cells.extend(spaced([
        (left(&tenant_name(name), tenant_columns(columns)), BOLD),
        (right(&granted.map_or_else(|| NONE.to_owned(), short), 7), PLAIN),
        (curve(&trace), GOOD),
        (right(&short(account.demand_per_s), 6), PLAIN),
        (right(&short(float(account.waiting)), 5), style(account.waiting > 0, WARN)),
        (right(&rate(0), 6), PLAIN),
        (right(&rate(1), 5), style(some(1), WARN)),
        (right(&rate(2), 5), style(some(2), BAD)),
        (override_mark(told, name), WARN),
    ]));
    cells
}

/// What an operator does to a tenant: by its own override, or with `*` before it by that of each tenant.
fn override_mark(told: &PoolAccount, name: &Grantee) -> String {
    let word = |target: Target| told.overrides.get(&target.to_string()).map(|one| one.record.action.as_str());
    let own = word(Target::One(name.clone())).map(str::to_owned);
    own.or_else(|| word(Target::Every).map(|word| format!("*{word}"))).unwrap_or_default()
}

// === The bottom ===

/// The overrides that hold in the pool, those first that end first.
fn overrides(told: &PoolAccount, wall: UnixMillis, columns: usize) -> Vec<Line<'static>> {
    if told.overrides.is_empty() {
        return vec![labelled("overrides", "none", DIM, columns)];
    }
    let mut all: Vec<(&String, &OverrideAccount)> = told.overrides.iter().collect();
    all.sort_by_key(|(_, one)| one.record.expires_at.map_or((true, 0), |end| (false, end.as_millisecond())));
    let rows: Vec<(String, Style)> = all.iter().map(|(target, one)| (override_row(target, one, wall), WARN)).collect();
    listed("overrides", rows, OVERRIDES_MAX, columns)
}

fn override_row(target: &str, one: &OverrideAccount, wall: UnixMillis) -> String {
    let name = target.parse().map_or_else(|_| target.to_owned(), |target| target_name(&target));
    let now_ms = i64::try_from(wall.0).unwrap_or(i64::MAX);
    let ends = one.record.expires_at.map_or_else(
        || "until cleared".to_owned(),
        |end| match end.as_millisecond().saturating_sub(now_ms) {
            left_ms @ 1.. => format!("ends in {}", remaining(left_ms)),
            _ => "ended".to_owned(),
        },
    );
    let by = one.record.by.as_deref().unwrap_or(NONE);
    format!("{} {} {} {ends}", left(&name, 16), left(&act(&one.record.action), 22), left(&format!("by {by}"), 13))
}

/// What the leader asks elsewhere, those first that do not answer.
fn signals(account: &LeaderAccount, most: usize, columns: usize) -> Vec<Line<'static>> {
    let rank = |signal: &SignalAccount| match signal.state.as_str() {
        "fresh" => 2,
        "stale" => 1,
        _ => 0,
    };
    let mut all: Vec<(&String, &SignalAccount)> = account.signals.iter().collect();
    all.sort_by_key(|(_, signal)| rank(signal));
    let row = |(name, signal): &(&String, &SignalAccount)| {
        let age = signal.age_ms.map_or_else(|| NONE.to_owned(), |ms| span(i64::try_from(ms).unwrap_or(i64::MAX)));
        let what = signal.error.clone().unwrap_or_else(|| format!("{} series", signal.series));
        let (role, state) = (left(signal.role.as_str(), 10), left(&signal.state, 7));
        let style = [BAD, WARN, PLAIN][rank(signal)];
        (format!("{} {role} {state} {} {what}", left(name, 16), right(&age, 7)), style)
    };
    listed("signals", all.iter().map(row).collect(), most, columns)
}

/// Rows behind a label; what does not fit is counted in the last line.
fn listed(label: &str, rows: Vec<(String, Style)>, most: usize, columns: usize) -> Vec<Line<'static>> {
    let (count, shown) = (rows.len(), if rows.len() > most { most - 1 } else { rows.len() });
    let label_of = |n: usize| if n == 0 { label } else { "" };
    let rows = rows.into_iter().take(shown).enumerate();
    let mut lines: Vec<_> = rows.map(|(n, (row, style))| labelled(label_of(n), &row, style, columns)).collect();
    if shown < count {
        lines.push(labelled(label_of(shown), &format!("… {} more", count - shown), DIM, columns));
    }
    lines
}

fn labelled(label: &str, text: &str, style: Style, columns: usize) -> Line<'static> {
    fitted([(left(label, LABEL_COLUMNS), DIM), (text.to_owned(), style)], columns)
}
