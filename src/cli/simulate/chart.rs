//! A world second by second: what each law got, against what the oracle got, and what was refused.

use std::path::{Path, PathBuf};

use plotters::backend::SVGBackend;
use plotters::chart::ChartBuilder;
use plotters::drawing::{DrawingAreaErrorKind, IntoDrawingArea};
use plotters::element::Rectangle;
use plotters::series::LineSeries;
use plotters::style::{BLACK, Color, RGBColor, WHITE};

use super::worlds::{ORACLE, runs};
use crate::cli::Failure;
use crate::sim::world::{Run, Scenario, Second};

const WIDTH: u32 = 1_000;
const PANEL: u32 = 170;
const ORACLE_GREY: RGBColor = RGBColor(170, 170, 170);
const EVENT_BLUE: RGBColor = RGBColor(90, 130, 200);
const REFUSED: RGBColor = RGBColor(200, 60, 40);
/// Curves are means over so many seconds: single ones are noise.
const MEAN_S: usize = 5;

/// The name of a picture's file.
pub(super) fn svg(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let is_svg = path.extension().is_some_and(|end| end == "svg");
    if is_svg { Ok(path) } else { Err("expected a name that ends in .svg".to_owned()) }
}

/// Lives through a world under each law, and draws that: a panel for each law.
pub(super) fn write(path: &Path, scenario: &Scenario, seed: u64, laws: &[&str]) -> Result<(), Failure> {
    let wrong = |why: String| Failure::Run(format!("{}: {why}", path.display()));
    let oracle = runs(scenario, seed, &[ORACLE])?;
    let others: Vec<&str> = laws.iter().copied().filter(|law| *law != ORACLE).collect();
    let runs = runs(scenario, seed, &others)?;
    let mut text = String::new();
    draw(&mut text, scenario, &oracle[0], &runs).map_err(|error| wrong(error.to_string()))?;
    std::fs::write(path, text).map_err(|error| wrong(format!("cannot be written: {error}")))
}

fn draw(
    text: &mut String,
    scenario: &Scenario,
    oracle: &Run,
    runs: &[Run],
) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
    let panels = u32::try_from(runs.len().max(1)).unwrap_or(1);
    let root = SVGBackend::with_string(text, (WIDTH, 50 + PANEL * panels)).into_drawing_area();
    root.fill(&WHITE)?;
    let unit = if scenario.provider.tokens_per_minute.is_some() { "tokens/second" } else { "requests/second" };
    let title = format!("{}: got (black), by the oracle (grey), refused requests (red), events (blue)", scenario.name);
    let root = root.titled(&title, ("sans-serif", 18))?;
    let best = curve(oracle, |second| second.got);
    let curves: Vec<_> = runs.iter().map(|run| (curve(run, |s| s.got), curve(run, |s| s.refused))).collect();
    let all = curves.iter().map(|(got, _)| got).chain([&best]).flatten();
    let top = all.map(|(_, y)| *y).fold(1e-3, f64::max) * 1.1;
    for ((area, run), (got, refused)) in root.split_evenly((runs.len().max(1), 1)).iter().zip(runs).zip(&curves) {
        let mut chart = ChartBuilder::on(area)
            .caption(&run.law, ("sans-serif", 14))
            .margin_right(20)
            .x_label_area_size(34)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..scenario.seconds, 0.0..top)?;
        chart.configure_mesh().disable_mesh().y_labels(4).x_desc("seconds").y_desc(unit).draw()?;
        for event in &scenario.events {
            let line = [(event.at_s, 0.0), (event.at_s, top)];
            chart.draw_series(LineSeries::new(line, EVENT_BLUE.stroke_width(1)))?;
        }
        let red = refused.iter().map(|(x, y)| Rectangle::new([(*x, 0.0), (*x + 1.0, y.min(top))], REFUSED.filled()));
        chart.draw_series(red)?;
        chart.draw_series(LineSeries::new(best.iter().copied(), ORACLE_GREY.stroke_width(4)))?;
        chart.draw_series(LineSeries::new(got.iter().copied(), BLACK.stroke_width(1)))?;
    }
    root.present()
}

#[allow(clippy::cast_precision_loss, reason = "seconds of a run")]
fn curve(run: &Run, of: impl Fn(&Second) -> f64) -> Vec<(f64, f64)> {
    let seconds: Vec<f64> = run.books.seconds().iter().map(of).collect();
    let mean = |(at, span): (usize, &[f64])| ((at + MEAN_S / 2) as f64, span.iter().sum::<f64>() / MEAN_S as f64);
    seconds.windows(MEAN_S).enumerate().map(mean).collect()
}
