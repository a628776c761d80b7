//! Tables without borders: columns two spaces apart, cut to the terminal where there is one.

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use super::clean;
use super::style::Style;

/// One cell: clean text and how it looks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// A cell of this text and style; whatever could act on a terminal is written out.
    pub(crate) fn new(text: &str, style: Style) -> Self {
        Self {
            text: clean::line(text).into_owned(),
            style,
        }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::new(text, Style::Plain)
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::new(&text, Style::Plain)
    }
}

/// Rows whose columns are aligned.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
    indent: usize,
}

impl Table {
    /// A table with a heading a column.
    pub(crate) fn with_header(header: &[&'static str]) -> Self {
        Self {
            header: header.to_vec(),
            ..Self::default()
        }
    }

    /// A table without headings, so far to the right.
    pub(crate) fn bare(indent: usize) -> Self {
        Self {
            indent,
            ..Self::default()
        }
    }

    /// Adds a row.
    pub(crate) fn row<C: Into<Cell>>(&mut self, cells: impl IntoIterator<Item = C>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// Whether there is no row.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table as text of at most `width` columns where a width is given.
    pub(crate) fn render(&self, width: Option<usize>) -> String {
        const GAP: usize = 2;
        /// No column is cut below this.
        const LEAST: usize = 8;
        let mut rows: Vec<Vec<Cell>> = Vec::with_capacity(self.rows.len() + 1);
        if !self.header.is_empty() {
            rows.push(
                self.header
                    .iter()
                    .map(|name| Cell::new(name, Style::Dim))
                    .collect(),
            );
        }
        rows.extend(self.rows.iter().cloned());
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let mut widths: Vec<usize> = (0..columns)
            .map(|column| {
                let cells = rows.iter().filter_map(|row| row.get(column));
                cells.map(|cell| cell.text.width()).max().unwrap_or(0)
            })
            .collect();
        if let Some(width) = width {
            let available = width.saturating_sub(self.indent + GAP * columns.saturating_sub(1));
            let mut total: usize = widths.iter().sum();
            while total > available {
                let Some(widest) = widths.iter_mut().max() else {
                    break;
                };
                if *widest <= LEAST {
                    break;
                }
                *widest -= 1;
                total -= 1;
            }
        }
        let mut out = String::new();
        for row in rows {
            let mut line = " ".repeat(self.indent);
            let last = row.iter().rposition(|cell| !cell.text.is_empty());
            for (column, cell) in row.iter().enumerate() {
                let text = cut(&cell.text, widths[column]);
                let used = text.width();
                line.push_str(&cell.style.paint(&text));
                if Some(column) >= last {
                    break;
                }
                line.push_str(&" ".repeat(widths[column] - used + GAP));
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

/// `text` in at most `width` columns, its end replaced by `…` where it is longer.
pub(crate) fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut used = 0;
    for character in text.chars() {
        let next = character.width().unwrap_or(0);
        if used + next + 1 > width {
            break;
        }
        out.push(character);
        used += next;
    }
    out.push('…');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::with_header(&["NODE", "SERVICE", "IMAGE"]);
        table.row([
            "rift",
            "metacrypt",
            "registry.example.net:5000/metacrypt:v1.4.0",
        ]);
        table.row(["quill", "gitea", ""]);
        table
    }

    #[test]
    fn columns_are_aligned_and_lines_end_without_spaces() {
        let text = anstream::adapter::strip_str(&table().render(None)).to_string();
        assert_eq!(
            text,
            "NODE   SERVICE    IMAGE\nrift   metacrypt  registry.example.net:5000/metacrypt:v1.4.0\nquill  gitea\n"
        );
    }

    #[test]
    fn the_widest_column_is_cut_to_the_terminal() {
        let text = anstream::adapter::strip_str(&table().render(Some(40))).to_string();
        assert!(text.lines().all(|line| line.width() <= 40), "{text}");
        assert!(text.contains("registry.example.net:…"), "{text}");
    }
}
