//! What stands in a cell: names made safe and cut to their columns, numbers and spans in few characters, a curve in blocks.

use ratatui::style::Style;
use ratatui::text::Span;

/// What cannot be shown.
const REPLACED: char = '\u{fffd}';
const CUT: &str = "…";
const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Text that takes one line, moves no cursor and turns no direction.
pub(super) fn safe(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || is_unseen(c) { REPLACED } else { c }).collect()
}

/// Characters that are not seen, and change how others are.
fn is_unseen(c: char) -> bool {
    matches!(
        c,
        '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}'
    )
}

/// How many columns a text takes.
pub(super) fn width(text: &str) -> usize {
    Span::raw(text).width()
}

/// Safe text that takes so many columns at most; what is cut ends with an ellipsis.
pub(super) fn cut(text: &str, columns: usize) -> String {
    let text = safe(text);
    let mut cut = String::new();
    let (mut taken, mut fitting) = (0, 0);
    for grapheme in Span::raw(text.as_str()).styled_graphemes(Style::new()) {
        let wide = width(grapheme.symbol);
        // What takes no column of its own would hang on the column's neighbour.
        if wide == 0 {
            continue;
        }
        taken += wide;
        if taken > columns {
            cut.truncate(fitting);
            return if columns == 0 { cut } else { cut + CUT };
        }
        cut.push_str(grapheme.symbol);
        if taken < columns {
            fitting = cut.len();
        }
    }
    cut
}

/// Cut, and blanks behind it up to so many columns.
pub(super) fn left(text: &str, columns: usize) -> String {
    let text = cut(text, columns);
    let blanks = columns.saturating_sub(width(&text));
    text + &" ".repeat(blanks)
}

/// Cut, and blanks before it up to so many columns.
pub(super) fn right(text: &str, columns: usize) -> String {
    let text = cut(text, columns);
    " ".repeat(columns.saturating_sub(width(&text))) + &text
}

/// A number in five characters at most.
pub(super) fn short(x: f64) -> String {
    if !x.is_finite() {
        return "-".to_owned();
    }
    let size = x.abs();
    if size < 9.95 {
        let text = format!("{x:.1}");
        return text.strip_suffix(".0").map_or_else(|| text.clone(), str::to_owned);
    }
    if size < 9_999.5 {
        return format!("{x:.0}");
    }
    let scales = [(1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T")];
    let fits = scales.into_iter().find(|(scale, _)| size / scale < 999.5);
    fits.map_or_else(
        || format!("{x:.0e}"),
        |(scale, unit)| {
            let digits = usize::from(size / scale < 99.95);
            format!("{:.digits$}{unit}", x / scale)
        },
    )
}

/// A number in four characters at most, rounded.
pub(super) fn whole(x: f64) -> String {
    if x < 9_999.5 { format!("{:.0}", x.max(0.0)) } else { short((x / 1e3).round() * 1e3).replace(".0", "") }
}

/// A part of a whole, in four characters at most.
pub(super) fn percent(part: f64, of: f64) -> String {
    let percent = if part > 0.0 { 100.0 * part / of } else { 0.0 };
    if percent < 999.5 { format!("{percent:.0}%") } else { ">10×".to_owned() }
}

/// A count as a number.
#[allow(clippy::cast_precision_loss, reason = "shown to three digits")]
pub(super) fn float(count: u64) -> f64 {
    count as f64
}

/// How long something lasts yet, in its two largest units.
pub(super) fn remaining(ms: i64) -> String {
    let s = ms / 1_000;
    match s {
        86_400.. => format!("{}d {}h", s / 86_400, s % 86_400 / 3_600),
        3_600.. => format!("{}h {}m", s / 3_600, s % 3_600 / 60),
        60.. => format!("{}m", s / 60),
        _ => format!("{}s", s.max(0)),
    }
}

/// A curve from nothing up to its largest value, a character for each value; a blank where there is none.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 7")]
pub(super) fn curve(values: &[Option<f64>]) -> String {
    let top = values.iter().flatten().copied().fold(0.0, f64::max);
    let block = |value: f64| BLOCKS[if top > 0.0 { (value.max(0.0) / top * 7.0).round().min(7.0) as usize } else { 0 }];
    values.iter().map(|value| value.map_or(' ', block)).collect()
}
