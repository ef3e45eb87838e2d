//! The live view: one screen of 80 × 24, drawn from the record.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, Chart, Dataset, GraphType, LineGauge, Paragraph, Wrap};

use super::record::{Point, Record, WAYS, Way};
use super::script::{Phase, TENANTS};

/// What stands on the screen beside the record.
#[derive(Debug, Clone)]
pub(super) struct View<'a> {
    /// The run so far.
    pub record: &'a Record,
    /// The phase under way.
    pub phase: &'a Phase,
    /// How long the whole run takes, in seconds.
    pub total_s: f64,
}

const SENT: Color = Color::Cyan;
const REFUSED: Color = Color::Red;
const LIMIT: Color = Color::Yellow;
const DIM: Style = Style::new().add_modifier(Modifier::DIM);
const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);

/// Draws the view.
pub(super) fn draw(frame: &mut Frame<'_>, view: &View<'_>) {
    let rows = [1, 1, 10, 1, 4, 1, 2, 4].map(Constraint::Length);
    let [bar, words, charts, groups, tenants, _, why, events] = Layout::vertical(rows).areas(frame.area());
    progress(frame, bar, view);
    let phase = Line::from(vec![Span::styled(format!("{:<9}", view.phase.name), BOLD), view.phase.words.into()]);
    frame.render_widget(phase, words);

    let curves = WAYS.map(|way| view.record.curves(way));
    let top = curves.iter().flatten().map(|point| point.sent.max(point.limit)).fold(1.0, f64::max);
    let top = (top / 250.0).ceil() * 250.0;
    let halves = Layout::horizontal([Constraint::Percentage(50); 2]).split(charts);
    for ((way, curve), area) in WAYS.into_iter().zip(&curves).zip(halves.iter()) {
        chart(frame, *area, way, curve, view.total_s, top);
    }
    let heads = format!("{:>16}{:^35}{:^29}", "", "── adaptive ─────────────────", "── static ────────────");
    frame.render_widget(Line::styled(heads, BOLD), groups);
    table(frame, tenants, view.record);
    let reason = view.record.last().map_or("", |sample| sample.reason.as_str());
    let leader = view.record.last().and_then(|sample| sample.leader.as_deref()).unwrap_or("nobody leads");
    let why_line = Line::from(vec![Span::styled("why      ", BOLD), format!("{leader}: {reason}").into()]);
    frame.render_widget(Paragraph::new(why_line).wrap(Wrap { trim: true }), why);
    let last = view.record.events().iter().rev().take(4).rev();
    let lines: Vec<Line<'_>> = last
        .map(|event| Line::from(vec![Span::styled(format!("{:>4.0} s   ", event.at_s), BOLD), event.words.into()]))
        .collect();
    frame.render_widget(Paragraph::new(lines), events);
}

fn progress(frame: &mut Frame<'_>, area: Rect, view: &View<'_>) {
    let elapsed_s = view.record.elapsed_s().min(view.total_s);
    let label = format!("tidegate demo  {elapsed_s:>3.0}/{:.0} s", view.total_s);
    let gauge = LineGauge::default().ratio((elapsed_s / view.total_s).clamp(0.0, 1.0)).label(label);
    frame.render_widget(gauge.filled_style(BOLD).unfilled_style(DIM), area);
}

fn chart(frame: &mut Frame<'_>, area: Rect, way: Way, curve: &[Point], total_s: f64, top: f64) {
    let series = |value: fn(&Point) -> f64| curve.iter().map(|point| (point.at_s, value(point))).collect::<Vec<_>>();
    let (limit, sent) = (series(|p| p.limit), series(|p| p.sent));
    // A bar of nothing is drawn as a little one.
    let refused: Vec<_> = series(|p| p.refused).into_iter().filter(|(_, refused)| *refused > 0.0).collect();
    let dataset = |data, marker, graph, colour| {
        Dataset::default().data(data).marker(marker).graph_type(graph).style(Style::new().fg(colour))
    };
    let sets = vec![
        dataset(&refused, Marker::Bar, GraphType::Bar, REFUSED),
        dataset(&sent, Marker::Braille, GraphType::Line, SENT),
        dataset(&limit, Marker::Dot, GraphType::Line, LIMIT),
    ];
    // The words in the colours, and with the marks, of what they stand for: the chart's legend.
    let word = |text: String, colour| Span::styled(text, BOLD.fg(colour));
    let title = curve.last().map_or_else(Line::default, |now| {
        Line::from(vec![
            Span::styled(way.as_str(), BOLD),
            word(format!(" sent {:.0}", now.sent), SENT),
            word(format!(" ▄429s {:.0}", now.refused), REFUSED),
            word(format!(" •limit {:.0}", now.limit), LIMIT),
        ])
    });
    let y = Axis::default().bounds([0.0, top]).labels(["0".to_owned(), format!("{top:.0}")]);
    let chart = Chart::new(sets)
        .block(Block::new().title(title))
        .x_axis(Axis::default().bounds([0.0, total_s]))
        .y_axis(y.style(DIM))
        .legend_position(None);
    frame.render_widget(chart, area);
}

fn table(frame: &mut Frame<'_>, area: Rect, record: &Record) {
    const WIDTHS: [usize; 9] = [8, 8, 9, 10, 9, 7, 11, 10, 7];
    let line = |cells: [String; 9]| -> Line<'static> {
        let cells = cells.into_iter().zip(WIDTHS).enumerate();
        // Names to the left, numbers to the right.
        cells
            .map(|(n, (cell, width))| if n == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") })
            .collect()
    };
    let n = |value: f64| format!("{value:.0}");
    let names = ["/minute", "offers", "limit", "admitted", "waiting", "429s", "limit", "admitted", "429s"];
    let mut lines = vec![line(names.map(str::to_owned)).style(DIM)];
    for offer in TENANTS {
        let now = record.last().and_then(|sample| sample.tenants.get(offer.tenant)).copied().unwrap_or_default();
        let [admitted, refused] = record.tenant_now(Way::Adaptive, offer.tenant);
        let [admitted_static, refused_static] = record.tenant_now(Way::Static, offer.tenant);
        lines.push(line([
            offer.tenant.to_owned(),
            n(60.0 * offer.per_s),
            n(now.threshold),
            n(admitted),
            now.waiting.to_string(),
            n(refused),
            n(now.quota),
            n(admitted_static),
            n(refused_static),
        ]));
    }
    frame.render_widget(Paragraph::new(lines), area);
}
