//! The run as a picture: an SVG that can be read in black and white, without colours and without a word of explanation
//! beside it. Two panels of one scale, one for each way, under one row of marks for what was done.

use plotters::backend::SVGBackend;
use plotters::chart::{ChartBuilder, ChartContext};
use plotters::coord::Shift;
use plotters::coord::cartesian::Cartesian2d;
use plotters::coord::types::RangedCoordf64;
use plotters::drawing::{DrawingArea, DrawingAreaErrorKind, IntoDrawingArea};
use plotters::element::{PathElement, Polygon, Rectangle, Text};
use plotters::series::{DashedLineSeries, LineSeries};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{BLACK, Color, IntoFont, RGBColor, ShapeStyle, TextStyle, WHITE};

use super::record::{Point, Record, WAYS, Way};
use super::verdict::Verdict;

const SIZE: (u32, u32) = (1_000, 744);
const HEAD: u32 = 116;
const LEFT: u32 = 64;
/// The right margin, where each panel's result stands.
const RIGHT: u32 = 150;
const FONT: &str = "sans-serif";

const LIMIT_GREY: RGBColor = RGBColor(190, 190, 190);
const REFUSED: RGBColor = RGBColor(200, 60, 40);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Panel<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// Draws the run.
///
/// # Errors
/// The drawing library's, in words.
pub(super) fn svg(record: &Record, verdict: &Verdict) -> Result<String, String> {
    let mut text = String::new();
    draw(&mut text, record, verdict).map_err(|error| error.to_string())?;
    Ok(text)
}

fn draw(text: &mut String, record: &Record, verdict: &Verdict) -> Drawn {
    let root = SVGBackend::with_string(text, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (head, panels) = root.split_vertically(HEAD);
    let curves = WAYS.map(|way| record.curves(way));
    let top = curves
        .iter()
        .flatten()
        .map(|point| point.sent.max(point.limit).max(point.threshold.min(1.3 * point.limit)))
        .fold(1.0, f64::max)
        * 1.06;
    legend(&head)?;
    marks(&head, record)?;
    for ((way, area), curve) in WAYS.into_iter().zip(panels.split_evenly((2, 1))).zip(&curves) {
        panel(&area, way, curve, record, verdict, top)?;
    }
    root.present()
}

fn font(size: i32) -> TextStyle<'static> {
    (FONT, size).into_font().into()
}

fn anchored(size: i32, horizontal: HPos, vertical: VPos) -> TextStyle<'static> {
    font(size).pos(Pos::new(horizontal, vertical))
}

/// The strokes and what they mean.
fn legend(head: &Area<'_>) -> Drawn {
    let title = "The same requests at the same moments, through adaptive and through static limits";
    head.draw(&Text::new(title, (LEFT.cast_signed(), 8), font(17)))?;
    let y = 48;
    head.draw(&Text::new("requests/minute", (LEFT.cast_signed(), y), anchored(14, HPos::Left, VPos::Center)))?;
    let words = |x: i32, words: &'static str| Text::new(words, (x, y), anchored(14, HPos::Left, VPos::Center));
    head.draw(&PathElement::new([(250, y), (290, y)], LIMIT_GREY.stroke_width(7)))?;
    head.draw(&words(298, "the provider's limit"))?;
    for x in [450, 464, 478] {
        head.draw(&PathElement::new([(x, y), (x + 8, y)], BLACK.stroke_width(2)))?;
    }
    head.draw(&words(494, "our limits, all tenants"))?;
    head.draw(&PathElement::new([(660, y), (700, y)], BLACK.stroke_width(2)))?;
    head.draw(&words(708, "sent"))?;
    head.draw(&Rectangle::new([(760, y - 7), (790, y + 7)], REFUSED.filled()))?;
    head.draw(&words(798, "of it answered 429"))
}

/// What was done, above the moment it was done at.
fn marks(head: &Area<'_>, record: &Record) -> Drawn {
    let span = record.elapsed_s().max(1e-3);
    let width = f64::from(SIZE.0 - LEFT - RIGHT);
    for event in record.events().iter().filter(|event| !event.mark[0].is_empty()) {
        let x = LEFT.cast_signed() + whole(event.at_s / span * width);
        for (line, y) in event.mark.into_iter().zip([76, 92]) {
            head.draw(&Text::new(line, (x, y), anchored(14, HPos::Center, VPos::Center)))?;
        }
        head.draw(&Polygon::new([(x - 5, 104), (x + 5, 104), (x, 114)], BLACK.filled()))?;
    }
    Ok(())
}

fn panel(area: &Area<'_>, way: Way, curve: &[Point], record: &Record, verdict: &Verdict, top: f64) -> Drawn {
    let last = way == Way::Static;
    let end = record.elapsed_s().max(1e-3);
    let mut chart = ChartBuilder::on(area)
        .margin_top(6)
        .margin_bottom(if last { 4 } else { 12 })
        .x_label_area_size(if last { 38 } else { 24 })
        .y_label_area_size(LEFT)
        .margin_right(RIGHT)
        .build_cartesian_2d(0.0..end, 0.0..top)?;
    let mut mesh = chart.configure_mesh();
    mesh.disable_x_mesh().light_line_style(WHITE).bold_line_style(RGBColor(232, 232, 232));
    mesh.x_label_formatter(&|s| format!("{s:.0} s")).y_label_formatter(&|n| format!("{n:.0}"));
    mesh.x_labels(12).y_labels(6).label_style(font(13)).draw()?;

    refused(&mut chart, curve)?;
    chart.draw_series(LineSeries::new(steps(curve), LIMIT_GREY.stroke_width(7)))?;
    let ours = curve.iter().map(|point| (point.at_s, point.threshold.min(top)));
    let style: ShapeStyle = BLACK.stroke_width(2);
    chart.draw_series(DashedLineSeries::new(ours.collect::<Vec<_>>(), 8, 6, style))?;
    chart.draw_series(LineSeries::new(curve.iter().map(|point| (point.at_s, point.sent)), BLACK.stroke_width(2)))?;
    for event in record.events().iter().filter(|event| !event.mark[0].is_empty()) {
        let line = [(event.at_s, 0.0), (event.at_s, top)];
        chart.draw_series(DashedLineSeries::new(line, 1, 4, BLACK.stroke_width(1)))?;
    }

    let judged = verdict.whole.of(way);
    let x = (SIZE.0 - RIGHT + 14).cast_signed();
    let lines = [
        (way.as_str().to_owned(), 24, 24),
        ("limits".to_owned(), 24, 50),
        (format!("{:.1} % used", 100.0 * judged.used), 17, 92),
        (format!("{:.2} % 429s", 100.0 * judged.throttled), 17, 116),
        (format!("fairness {:.3}", judged.fairness), 17, 140),
    ];
    for (line, size, y) in lines {
        area.draw(&Text::new(line, (x, y), font(size)))?;
    }
    Ok(())
}

/// The 429s, filled from the ground up.
fn refused(chart: &mut Panel<'_, '_>, curve: &[Point]) -> Drawn {
    let Some((first, last)) = curve.first().zip(curve.last()) else { return Ok(()) };
    let mut outline = vec![(first.at_s, 0.0)];
    outline.extend(curve.iter().map(|point| (point.at_s, point.refused)));
    outline.push((last.at_s, 0.0));
    chart.draw_series([Polygon::new(outline, REFUSED.filled())])?;
    Ok(())
}

/// The limit does not glide: it jumps.
fn steps(curve: &[Point]) -> Vec<(f64, f64)> {
    let mut steps: Vec<(f64, f64)> = Vec::with_capacity(2 * curve.len());
    for point in curve {
        if let Some((_, limit)) = steps.last().copied().filter(|(_, limit)| *limit != point.limit) {
            steps.push((point.at_s, limit));
        }
        steps.push((point.at_s, point.limit));
    }
    steps
}

#[allow(clippy::cast_possible_truncation, reason = "a pixel")]
fn whole(x: f64) -> i32 {
    x.round() as i32
}
