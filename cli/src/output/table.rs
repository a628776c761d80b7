//! Tables without borders: columns two spaces apart, fitted to the terminal where there is one.
//!
//! A table with headings is cut: names and words lose their ends, ids and numbers stay whole. One
//! without them wraps its last column, since that is where reasons and mends stand.

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use super::clean;
use super::style::Style;

/// One cell: clean text and how it looks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Cell {
    text: String,
    style: Style,
    fit: Fit,
}

/// What may happen to a cell where the terminal is narrow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Fit {
    /// It loses its end.
    #[default]
    CutEnd,
    /// It loses its beginning: of an image or a path, the end tells more.
    CutStart,
    /// It stays whole.
    Whole,
}

impl Cell {
    /// A cell of this text and style; whatever could act on a terminal is written out.
    pub(crate) fn new(text: &str, style: Style) -> Self {
        Self {
            text: clean::line(text).into_owned(),
            style,
            fit: Fit::CutEnd,
        }
    }

    /// The cell, whole however narrow the terminal is: an id, a time, a number.
    pub(crate) fn whole(mut self) -> Self {
        self.fit = Fit::Whole;
        self
    }

    /// The cell, which loses its beginning where the terminal is narrow: an image, a path.
    pub(crate) fn keep_end(mut self) -> Self {
        self.fit = Fit::CutStart;
        self
    }

    fn fitted(&self, width: usize) -> String {
        match self.fit {
            Fit::CutStart => cut_start(&self.text, width),
            Fit::CutEnd | Fit::Whole => cut(&self.text, width),
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
        let mut widths = natural(&rows);
        let wraps = self.header.is_empty() && widths.len() > 1;
        if let Some(width) = width {
            let gaps = self.indent + GAP * widths.len().saturating_sub(1);
            let available = width.saturating_sub(gaps);
            if wraps {
                let last = widths.len() - 1;
                let least = widths[last].min(LEAST_WRAPPED);
                shrink(&mut widths[..last], &rows, available.saturating_sub(least));
                let others: usize = widths[..last].iter().sum();
                widths[last] = widths[last].min(available.saturating_sub(others).max(least));
            } else {
                shrink_headings(&mut widths, &rows, available);
                shrink(&mut widths, &rows, available);
            }
        }
        let mut out = String::new();
        for row in &rows {
            self.write_row(&mut out, row, &widths, wraps);
        }
        out
    }

    fn write_row(&self, out: &mut String, row: &[Cell], widths: &[usize], wraps: bool) {
        let mut line = " ".repeat(self.indent);
        let mut rest: Vec<String> = Vec::new();
        let last = row.iter().rposition(|cell| !cell.text.is_empty());
        for (column, cell) in row.iter().enumerate() {
            let text = if wraps && column + 1 == widths.len() {
                let mut lines = wrap(&cell.text, widths[column]).into_iter();
                let first = lines.next().unwrap_or_default();
                rest = lines.collect();
                first
            } else {
                cell.fitted(widths[column])
            };
            let used = text.width();
            line.push_str(&cell.style.paint(&text));
            if Some(column) >= last {
                break;
            }
            line.push_str(&" ".repeat(widths[column] - used + GAP));
        }
        out.push_str(line.trim_end());
        out.push('\n');
        let (Some(cell), Some((_, before))) = (row.last(), widths.split_last()) else {
            return;
        };
        let margin = self.indent + before.iter().sum::<usize>() + GAP * before.len();
        for text in rest {
            out.push_str(&" ".repeat(margin));
            out.push_str(&cell.style.paint(&text));
            out.push('\n');
        }
    }
}

/// Columns between columns.
const GAP: usize = 2;

/// Columns are first cut to this, and only where that is not enough to [`LEAST`].
const COMFORTABLE: usize = 8;

/// No column is cut below this.
const LEAST: usize = 4;

/// The last column of a table without headings is not wrapped to less.
const LEAST_WRAPPED: usize = 24;

/// The widths that nothing is cut at.
fn natural(rows: &[Vec<Cell>]) -> Vec<usize> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    (0..columns)
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.text.width()).max().unwrap_or(0)
        })
        .collect()
}

/// Takes from columns whose heading is wider than what stands below it, until all fit.
fn shrink_headings(widths: &mut [usize], rows: &[Vec<Cell>], available: usize) {
    let below = natural(rows.get(1..).unwrap_or_default());
    for (width, below) in widths.iter_mut().zip(below) {
        *width = below.max(LEAST).min(*width);
    }
    // What is left over goes back to the headings, from the left.
    let mut spare = available.saturating_sub(widths.iter().sum());
    for (width, full) in widths.iter_mut().zip(natural(rows)) {
        let back = (full - *width).min(spare);
        *width += back;
        spare -= back;
    }
}

/// Takes from the widest columns until all fit; what has to stay whole stays so.
fn shrink(widths: &mut [usize], rows: &[Vec<Cell>], available: usize) {
    let whole: Vec<usize> = (0..widths.len())
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            let whole = cells.filter(|cell| cell.fit == Fit::Whole);
            whole.map(|cell| cell.text.width()).max().unwrap_or(0)
        })
        .collect();
    for least in [COMFORTABLE, LEAST] {
        while widths.iter().sum::<usize>() > available {
            let widest = widths
                .iter_mut()
                .zip(&whole)
                .filter(|(width, whole)| **width > least.max(**whole))
                .max_by_key(|(width, _)| **width);
            match widest {
                Some((width, _)) => *width -= 1,
                None => break,
            }
        }
    }
}

/// `text` in lines of at most `width` columns, broken at spaces where there are any.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut rest = text;
    while rest.width() > width {
        let mut used = 0;
        let mut end = 0;
        let mut space = None;
        for (at, character) in rest.char_indices() {
            let next = character.width().unwrap_or(0);
            if character == ' ' && at > 0 {
                space = Some(at);
            }
            if used + next > width {
                break;
            }
            used += next;
            end = at + character.len_utf8();
        }
        let at = space.unwrap_or(end.max(rest.chars().next().map_or(1, char::len_utf8)));
        let (line, after) = rest.split_at(at);
        lines.push(line.trim_end().to_owned());
        rest = after.trim_start();
    }
    if !rest.is_empty() || lines.is_empty() {
        lines.push(rest.to_owned());
    }
    lines
}

/// `text` in at most `width` columns, its beginning replaced by `…` where it is longer.
fn cut_start(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut used = 1;
    let mut start = text.len();
    for (at, character) in text.char_indices().rev() {
        used += character.width().unwrap_or(0);
        if used > width {
            break;
        }
        start = at;
    }
    format!("…{}", &text[start..])
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

    fn shown(table: &Table, width: usize) -> String {
        anstream::adapter::strip_str(&table.render(Some(width))).to_string()
    }

    #[test]
    fn the_widest_column_is_cut_to_the_terminal() {
        let text = shown(&table(), 40);
        assert!(text.lines().all(|line| line.width() <= 40), "{text}");
        assert!(text.contains("registry.example.net:…"), "{text}");
    }

    #[test]
    fn an_image_keeps_its_tag_and_an_id_stays_whole() {
        let mut table = Table::with_header(&["CONTAINER", "SERVICE", "IMAGE"]);
        table.row([
            Cell::from("85bc106").whole(),
            Cell::from("a-service-with-a-long-name"),
            Cell::from("registry.example.net:5000/metacrypt:v1.4.0").keep_end(),
        ]);
        let text = shown(&table, 30);
        assert!(text.lines().all(|line| line.width() <= 30), "{text}");
        assert!(text.contains("85bc106  "), "{text}");
        assert!(text.contains("v1.4.0"), "{text}");
    }

    #[test]
    fn many_columns_fit_a_narrow_terminal_without_a_broken_line() {
        let words = ["nodename", "servicename", "component", "v1.4.0", "running"];
        let mut table = Table::with_header(&["NODE", "SERVICE", "COMPONENT", "VERSION", "DESIRED"]);
        table.row(words);
        let text = shown(&table, 40);
        assert!(text.lines().all(|line| line.width() <= 40), "{text}");
    }

    #[test]
    fn a_heading_is_cut_before_what_stands_below_it() {
        let mut table = Table::with_header(&["COMPONENT", "REVISION"]);
        table.row(["api", "3f2a9c1 (2 behind)"]);
        assert_eq!(
            shown(&table, 26),
            "COMPO…  REVISION\napi     3f2a9c1 (2 behind)\n"
        );
        assert_eq!(
            shown(&table, 40),
            "COMPONENT  REVISION\napi        3f2a9c1 (2 behind)\n"
        );
    }

    #[test]
    fn a_reason_is_wrapped_and_never_cut() {
        let mut table = Table::bare(2);
        let reason = "bind /var/cache lies outside the host paths that the policy allows";
        table.row(["cache", "blocked", reason]);
        table.row(["web", "replace", "image"]);
        let text = shown(&table, 44);
        assert_eq!(
            text,
            "  cache  blocked  bind /var/cache lies\n\
             \x20                 outside the host paths\n\
             \x20                 that the policy allows\n\
             \x20 web    replace  image\n"
        );
    }

    #[test]
    fn a_word_wider_than_the_terminal_is_broken() {
        assert_eq!(wrap("aaaaaaaa bb", 4), ["aaaa", "aaaa", "bb"]);
        assert_eq!(wrap("", 4), [""]);
        assert_eq!(wrap("日本語", 4), ["日本", "語"]);
    }
}
