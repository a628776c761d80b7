//! What is wrong with a definition, where, and how to mend it.
//!
//! [`DefinitionError`] is what callers get; [`Errors`] collects those of one file, so that one
//! pass reports them all. Texts that come from the file are made safe for a terminal here.

use std::fmt;
use std::ops::Range;

/// A place in a file, in bytes.
pub(super) type Place = Range<usize>;

/// Most errors reported of one file: enough for people, and a bound on what a hostile file costs.
pub(super) const MAX_ERRORS: usize = 200;

/// Longest piece of the offending line that is shown, in characters.
const MAX_LINE_CHARS: usize = 1000;

/// One refusal of one file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: {message}")]
pub struct DefinitionError {
    /// The file's path as the caller gave it.
    pub file: String,
    /// The offending bytes.
    pub span: Range<usize>,
    /// Line of the span's start, from 1.
    pub line: usize,
    /// Column of the span's start in characters, from 1.
    pub column: usize,
    /// The offending line without its end; control characters replaced, cut at 1000 characters.
    pub source_line: String,
    /// What is wrong.
    pub message: String,
    /// The mend.
    pub hint: Option<String>,
    /// The sort of error, for programs.
    pub kind: DefinitionErrorKind,
}

/// The sort of a [`DefinitionError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DefinitionErrorKind {
    /// A file, set or list is larger than this release reads.
    Bound,
    /// The bytes are not UTF-8.
    Encoding,
    /// The text is not TOML.
    Syntax,
    /// A key that does not exist here.
    UnknownKey,
    /// A key that exists in the format, and that this release does not carry out.
    NotSupportedYet,
    /// A value of the wrong TOML type.
    Type,
    /// A required key is absent.
    Missing,
    /// A value of the right type that means nothing here.
    Value,
    /// A key, name or item that stands twice.
    Duplicate,
    /// Two settings that cannot hold together.
    Conflict,
    /// A reference to something that is not there.
    Reference,
    /// Components that wait for each other.
    Cycle,
}

impl fmt::Display for DefinitionErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bound => "bound",
            Self::Encoding => "encoding",
            Self::Syntax => "syntax",
            Self::UnknownKey => "unknown-key",
            Self::NotSupportedYet => "not-supported-yet",
            Self::Type => "type",
            Self::Missing => "missing",
            Self::Value => "value",
            Self::Duplicate => "duplicate",
            Self::Conflict => "conflict",
            Self::Reference => "reference",
            Self::Cycle => "cycle",
        })
    }
}

impl DefinitionError {
    /// The offending line with its number, and a caret under each character of the span.
    #[must_use]
    pub fn caret(&self) -> String {
        let number = self.line.to_string();
        let gutter = " ".repeat(number.len());
        let shown = self.source_line.chars().count();
        let start = (self.column - 1).min(shown);
        let pad: String = self
            .source_line
            .chars()
            .take(start)
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        let carets = "^".repeat(self.caret_width().clamp(1, (shown - start).max(1)));
        format!(
            "{gutter} |\n{number} | {}\n{gutter} | {pad}{carets}",
            self.source_line
        )
    }

    /// Characters of the span on its first line; a span is given in bytes of the file, and only
    /// the line is at hand.
    fn caret_width(&self) -> usize {
        let mut bytes = self.span.len();
        let mut width = 0;
        for c in self.source_line.chars().skip(self.column - 1) {
            if bytes == 0 {
                break;
            }
            bytes = bytes.saturating_sub(c.len_utf8());
            width += 1;
        }
        width
    }

    /// The whole report: place and message, line and caret, and the mend.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = format!("{self}\n{}", self.caret());
        if let Some(hint) = &self.hint {
            let gutter = " ".repeat(self.line.to_string().len());
            text.push_str(&format!("\n{gutter} = {hint}"));
        }
        text
    }
}

/// The text with everything that a terminal would act upon replaced.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\t' => c,
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
            c if c.is_control() => '\u{fffd}',
            c => c,
        })
        .collect()
}

/// The errors of one file, collected while it is read.
#[derive(Debug)]
pub(super) struct Errors<'a> {
    file: &'a str,
    text: &'a str,
    line_starts: Vec<usize>,
    found: Vec<DefinitionError>,
    refused: usize,
}

impl<'a> Errors<'a> {
    /// No errors yet, of `file` with this text.
    pub(super) fn new(file: &'a str, text: &'a str) -> Self {
        let line_starts = std::iter::once(0)
            .chain(text.match_indices('\n').map(|(at, _)| at + 1))
            .collect();
        Self {
            file,
            text,
            line_starts,
            found: Vec::new(),
            refused: 0,
        }
    }

    /// Whether nothing was refused.
    pub(super) fn is_empty(&self) -> bool {
        self.refused == 0
    }

    /// Whether further errors are only counted.
    pub(super) fn is_full(&self) -> bool {
        self.found.len() >= MAX_ERRORS
    }

    /// Counts an error that is not worth describing any more.
    pub(super) fn count_one_more(&mut self) {
        self.refused += 1;
    }

    /// Whether every error found so far is of some sort.
    pub(super) fn all(&self, sort: impl Fn(&DefinitionError) -> bool) -> bool {
        self.refused <= MAX_ERRORS && self.found.iter().all(sort)
    }

    /// The line that holds the byte, from 1.
    pub(super) fn line_of(&self, byte: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= byte)
    }

    /// Adds an error.
    pub(super) fn push(
        &mut self,
        kind: DefinitionErrorKind,
        span: Place,
        message: impl AsRef<str>,
        hint: impl AsRef<str>,
    ) {
        self.refused += 1;
        if self.is_full() {
            return;
        }
        let end = self.text.len();
        let start = self.text.floor_char_boundary(span.start.min(end));
        let line = self.line_of(start);
        let line_start = self.line_starts[line - 1];
        let rest = &self.text[line_start..];
        let rest = &rest[..rest.find('\n').unwrap_or(rest.len())];
        let rest = rest.strip_suffix('\r').unwrap_or(rest);
        // A byte order mark is no character of the line.
        let mark = if line == 1 && rest.starts_with('\u{feff}') {
            '\u{feff}'.len_utf8()
        } else {
            0
        };
        let before = self.text.get(line_start + mark..start).unwrap_or("");
        let shown: String = rest[mark..].chars().take(MAX_LINE_CHARS).collect();
        self.found.push(DefinitionError {
            file: printable(self.file),
            span: start..span.end.clamp(start, end),
            line,
            column: before.chars().count() + 1,
            source_line: printable(&shown),
            message: printable(message.as_ref()),
            hint: Some(printable(hint.as_ref())),
            kind,
        });
    }

    /// The errors in the order of the file.
    pub(super) fn into_sorted(mut self) -> Vec<DefinitionError> {
        self.found
            .sort_by_key(|error| (error.span.start, error.span.end));
        // Recovery after a syntax error reports the same line again and again, and what was read
        // of such a line is not what was meant: the first syntax error of a line is enough.
        let mut syntax_lines: Vec<usize> = self
            .found
            .iter()
            .filter(|error| error.kind == DefinitionErrorKind::Syntax)
            .map(|error| error.line)
            .collect();
        let broken = !syntax_lines.is_empty();
        syntax_lines.dedup();
        let mut reported = 0;
        let mut within = 0;
        let text = self.text;
        let starts = &self.line_starts;
        self.found.retain(|error| {
            if error.kind != DefinitionErrorKind::Syntax {
                // A key may be absent only because its line did not parse.
                let guess = broken && error.kind == DefinitionErrorKind::Missing;
                return !guess && syntax_lines.binary_search(&error.line).is_err();
            }
            let first = error.line != reported;
            reported = error.line;
            // What is left open swallows line after line until one makes sense again.
            let swallowed = ["array", "inline table", "key-value pairs"]
                .iter()
                .any(|sort| error.message.contains(sort));
            let follows = swallowed && within != 0 && only_blank(text, starts, within, error.line);
            within = if swallowed { error.line } else { 0 };
            first && !follows
        });
        if self.refused > MAX_ERRORS
            && let Some(last) = self.found.last_mut()
        {
            last.hint = Some(format!(
                "{} (more errors of this file are not shown)",
                last.hint.as_deref().unwrap_or_default()
            ));
        }
        self.found
    }
}

/// Whether nothing but blank lines and comments stands between two lines.
fn only_blank(text: &str, starts: &[usize], line: usize, later: usize) -> bool {
    let from = starts.get(line).copied().unwrap_or(text.len());
    let to = starts.get(later - 1).copied().unwrap_or(text.len());
    text.get(from..to).is_none_or(|between| {
        between
            .lines()
            .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str, span: Place) -> DefinitionError {
        let mut errors = Errors::new("services/a.toml", text);
        errors.push(DefinitionErrorKind::Value, span, "it is wrong", "mend it");
        errors.into_sorted().remove(0)
    }

    #[test]
    fn columns_count_characters_and_carets_stand_under_the_span() {
        let error = one("a = 1\né\tß = \"über\"\r\nb = 2\n", 14..21);
        assert_eq!((error.line, error.column), (2, 7));
        assert_eq!(
            error.render(),
            "services/a.toml:2:7: it is wrong\n  |\n2 | é\tß = \"über\"\n  |  \t    ^^^^^^\n  = mend it"
        );
    }

    #[test]
    fn places_beyond_the_text_are_its_end() {
        for span in [3..3, 99..120, 0..99] {
            let error = one("a=1", span);
            assert_eq!(error.line, 1);
            assert!(error.caret().contains('^'));
        }
        assert_eq!(one("", 0..0).caret(), "  |\n1 | \n  | ^");
        assert_eq!(one("\u{feff}x", 3..4).column, 1);
    }

    #[test]
    fn terminal_controls_of_the_file_are_not_passed_on() {
        let error = one("a = \"\u{1b}[31m\"", 4..8);
        assert!(!error.render().contains('\u{1b}'));
    }
}
