//! Aligned columns for a screen.

use std::iter;

/// Rows under titles; nothing if there are none.
#[must_use]
pub fn titled(titles: &[&str], rows: impl Iterator<Item = Vec<String>>, right: &[usize]) -> String {
    let titles = titles.iter().map(|title| (*title).to_owned()).collect();
    let rows: Vec<_> = iter::once(titles).chain(rows).collect();
    if rows.len() == 1 {
        return String::new();
    }
    table(&rows, right)
}

/// Aligned columns, two spaces apart; those in `right` are flush right.
#[must_use]
pub fn table(rows: &[Vec<String>], right: &[usize]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cells = |column: usize| rows.iter().filter_map(move |row| row.get(column));
    let widths: Vec<_> = (0..columns)
        .map(|column| cells(column).map(|cell| width(cell)).max().unwrap_or(0))
        .collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let gap = " ".repeat(widths[column] - width(cell));
            let (before, after) = if right.contains(&column) {
                (gap.as_str(), "")
            } else {
                ("", gap.as_str())
            };
            line.push_str(&format!("{before}{cell}{after}  "));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// Columns on the screen: colour codes take none.
fn width(cell: &str) -> usize {
    let mut coded = false;
    let visible = cell.chars().filter(|c| match (coded, *c) {
        (false, '\x1b') => {
            coded = true;
            false
        }
        (true, 'm') => {
            coded = false;
            false
        }
        (coded, _) => !coded,
    });
    visible.count()
}

/// `text` in the colour with that ANSI code, if colours are wanted.
#[must_use]
pub fn paint(text: &str, ansi: &str, colour: bool) -> String {
    match colour {
        true => format!("\x1b[{ansi}m{text}\x1b[0m"),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_whatever_their_colour() {
        let red = paint("RED", "31", true);
        let rows = [
            vec!["a".to_owned(), red, "1".to_owned()],
            vec!["bb".to_owned(), "GREEN".to_owned(), "22".to_owned()],
        ];
        let text = table(&rows, &[2]);
        assert_eq!(text, "a   \x1b[31mRED\x1b[0m     1\nbb  GREEN  22\n");
    }
}
