//! Tables and times for people at a terminal.

use std::time::Duration;

/// A time in its two largest units.
pub(super) fn age(time: Duration) -> String {
    let whole = Duration::from_secs(time.as_secs());
    let shown = humantime::format_duration(whole).to_string();
    shown.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// A part of a whole.
pub(super) fn share(part: u64, whole: u64) -> String {
    match whole {
        0 => "-".to_owned(),
        _ => format!("{:.1} %", 100.0 * part as f64 / whole as f64),
    }
}

/// Columns as wide as what stands in them.
pub(super) fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &[String; N]| {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_stands_in_them() {
        let rows = [["a", "long one"], ["öö", "b"]].map(|row| row.map(str::to_owned));
        assert_eq!(table(["X", "Y"], rows.into_iter()), "X   Y\na   long one\nöö  b");
        assert_eq!(table(["X"], std::iter::empty()), "X");
    }

    #[test]
    fn a_time_has_two_units() {
        for (seconds, shown) in [(0, "0s"), (59, "59s"), (3_661, "1h 1m"), (90_061, "1day 1h")] {
            assert_eq!(age(Duration::from_millis(seconds * 1000 + 999)), shown);
        }
    }
}
