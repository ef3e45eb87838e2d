//! What people read: columns, numbers and spans.

use jiff::SignedDuration;

/// Columns as wide as their widest cell, two blanks apart. Cells are anyone's text: a control character is a blank.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let plain = |cell: &str| cell.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>();
    let mut lines: Vec<Vec<String>> = vec![head.iter().map(|title| (*title).to_owned()).collect()];
    lines.extend(rows.iter().map(|row| row.iter().map(|cell| plain(cell)).collect()));
    let width = |column: usize| lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..head.len()).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for line in &lines {
        let padded: Vec<String> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(padded.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A number as people write it, to three decimals.
pub(super) fn number(x: f64) -> String {
    ((x * 1e3).round() / 1e3).to_string()
}

/// A span in its largest units, to the second from ten on and to its tenth from one on: `29m 12s`, `1.3s`, `350ms`.
pub(super) fn span(ms: i64) -> String {
    match ms.abs() {
        10_000.. => format!("{:#}", SignedDuration::from_millis(ms / 1_000 * 1_000)),
        1_000.. => format!("{}.{}s", ms / 1_000, ms.abs() % 1_000 / 100),
        _ => format!("{ms}ms"),
    }
}

/// Some of a noun: `1 record`, `2 records`.
pub(super) fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// What is not there.
pub(super) const NONE: &str = "-";
