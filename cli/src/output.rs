//! All that the process prints: the one place that writes to standard output and standard error.
//!
//! Data goes to standard output, everything else to standard error. Text is built with colours in it
//! and stripped here where none are wanted, so that nothing else has to ask.

pub(crate) mod clean;
pub(crate) mod deployment;
pub(crate) mod diagnostics;
pub(crate) mod json;
pub(crate) mod plan;
pub(crate) mod progress;
pub(crate) mod style;
pub(crate) mod table;
pub(crate) mod times;

use std::io::{IsTerminal as _, Write as _};

use anstream::{AutoStream, ColorChoice};
use serde::Serialize;

use crate::args::{Colour, Format, Global, ProgressChoice};
use crate::error::{Exit, Failure};
use style::{bold, dim, red, yellow};

/// The widest that anything is drawn, however wide the terminal is.
const MAX_WIDTH: usize = 200;

/// Prints what a command has to say.
#[derive(Debug)]
pub(crate) struct Printer {
    format: Format,
    quiet: bool,
    verbose: u8,
    out_colour: ColorChoice,
    err_colour: ColorChoice,
    /// Columns of the terminal on standard output; none off a terminal.
    width: Option<usize>,
    err_terminal: bool,
    /// Columns of the terminal on standard error; none off a terminal.
    err_width: Option<usize>,
    progress: ProgressChoice,
    now: jiff::Timestamp,
}

impl Printer {
    /// A printer for these flags and this terminal.
    pub(crate) fn new(global: &Global) -> Self {
        let out_terminal = std::io::stdout().is_terminal();
        let err_terminal = std::io::stderr().is_terminal();
        let choice = |colour: Colour, auto: ColorChoice| match colour {
            Colour::Auto => auto,
            Colour::Always => ColorChoice::AlwaysAnsi,
            Colour::Never => ColorChoice::Never,
        };
        let width = out_terminal.then(|| columns(std::io::stdout()));
        let err_width = err_terminal.then(|| columns(std::io::stderr()));
        Self {
            format: global.output,
            quiet: global.quiet,
            verbose: global.verbose,
            out_colour: choice(global.color, AutoStream::choice(&std::io::stdout())),
            err_colour: choice(global.color, AutoStream::choice(&std::io::stderr())),
            width,
            err_terminal,
            err_width,
            progress: global.progress,
            now: jiff::Timestamp::now(),
        }
    }

    /// Whether people read the data, not programs.
    pub(crate) fn is_table(&self) -> bool {
        self.format == Format::Table
    }

    /// Columns of the terminal on standard output; none off a terminal.
    pub(crate) fn width(&self) -> Option<usize> {
        self.width
    }

    /// Whether `-v` was given at least this often.
    pub(crate) fn is_verbose(&self, level: u8) -> bool {
        self.verbose >= level
    }

    /// A time as it is shown: relative on a terminal, RFC 3339 off it, `-` where there is none.
    pub(crate) fn time(&self, at: &str) -> String {
        if self.width.is_some() {
            times::ago(self.now, at)
        } else if at.is_empty() {
            "-".to_owned()
        } else {
            times::to_the_second(at)
        }
    }

    /// A time since then, as a length (`41d`), whether on a terminal or not.
    pub(crate) fn since(&self, at: &str) -> String {
        times::since(self.now, at)
    }

    /// How progress is shown.
    pub(crate) fn progress(&self) -> progress::Progress {
        use progress::Mode;
        let mode = match self.progress {
            _ if self.quiet => Mode::Quiet,
            ProgressChoice::Quiet => Mode::Quiet,
            ProgressChoice::Plain => Mode::Plain,
            ProgressChoice::Tty => Mode::Bars,
            ProgressChoice::Auto if self.err_terminal => Mode::Bars,
            ProgressChoice::Auto => Mode::Plain,
        };
        progress::Progress::new(mode, self.err_colour)
    }

    /// Writes data; a line's end is added where there is none.
    ///
    /// A reader that went away ends the command in silence, as it would any filter.
    pub(crate) fn data(&self, text: &str) -> Result<(), Failure> {
        if text.is_empty() {
            return Ok(());
        }
        let mut text = text.to_owned();
        if !text.ends_with('\n') {
            text.push('\n');
        }
        self.bytes(text.as_bytes())
    }

    /// Writes bytes of data as they are.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut out = AutoStream::new(std::io::stdout().lock(), self.out_colour);
        match out.write_all(bytes).and_then(|()| out.flush()) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
                Err(Failure::told(Exit::Done))
            }
            Err(error) => Err(Failure::failed("standard output cannot be written").because(&error)),
        }
    }

    /// Copies a file's bytes as they are, on a terminal as well.
    pub(crate) fn copy(&self, from: &mut impl std::io::Read) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        match std::io::copy(from, &mut out).and_then(|_| out.flush()) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
                Err(Failure::told(Exit::Done))
            }
            Err(error) => Err(Failure::failed("standard output cannot be written").because(&error)),
        }
    }

    /// Writes one document.
    pub(crate) fn json<T: Serialize>(&self, value: &T) -> Result<(), Failure> {
        let text = match self.format {
            Format::Jsonl => serde_json::to_string(value),
            Format::Json | Format::Table => serde_json::to_string_pretty(value),
        };
        self.data(&text.expect("output types hold only strings, numbers and lists"))
    }

    /// Writes one object of a stream on a line of its own.
    pub(crate) fn json_line<T: Serialize>(&self, value: &T) -> Result<(), Failure> {
        self.data(
            &serde_json::to_string(value)
                .expect("output types hold only strings, numbers and lists"),
        )
    }

    /// Writes a list: one document with `-o json`, an object a line with `-o jsonl`.
    pub(crate) fn json_list<T: Serialize>(&self, values: &[T]) -> Result<(), Failure> {
        if self.format == Format::Jsonl {
            return values.iter().try_for_each(|value| self.json_line(value));
        }
        self.json(&values)
    }

    /// Says something beside the data, unless `-q`.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet {
            self.error_text(&format!("{text}\n"));
        }
    }

    /// Says something that the operator should know.
    pub(crate) fn warn(&self, text: &str) {
        self.error_text(&format!("{} {}\n", yellow("warning:"), text));
    }

    /// Says the next command, unless `-q`.
    pub(crate) fn hint(&self, text: &str) {
        if !self.quiet {
            self.error_text(&format!("{} {}\n", bold("hint:"), text));
        }
    }

    /// Says something for `-v`.
    pub(crate) fn detail(&self, text: &str) {
        if self.is_verbose(1) {
            self.error_text(&format!("{}\n", dim(text)));
        }
    }

    /// Tells a failure.
    pub(crate) fn failure(&self, failure: &Failure) {
        if !failure.told {
            self.error_text(&failure_text(failure, self.err_width));
        }
    }

    /// Writes text to standard error as it is.
    pub(crate) fn error_text(&self, text: &str) {
        let mut err = AutoStream::new(std::io::stderr().lock(), self.err_colour);
        // There is nowhere left to complain to.
        let _ = err.write_all(text.as_bytes()).and_then(|()| err.flush());
    }

    /// Asks a yes-or-no question on the terminal; no where there is none.
    pub(crate) fn confirm(&self, question: &str) -> bool {
        if !self.can_ask() {
            return false;
        }
        self.error_text(&format!("{question} [y/N] "));
        let mut answer = String::new();
        match std::io::stdin().read_line(&mut answer) {
            Ok(_) => matches!(answer.trim(), "y" | "Y" | "yes" | "Yes" | "YES"),
            Err(_) => false,
        }
    }

    /// Whether somebody is there to be asked.
    pub(crate) fn can_ask(&self) -> bool {
        self.err_terminal && std::io::stdin().is_terminal()
    }
}

/// The columns of a terminal, 80 where it does not say.
fn columns(terminal: impl std::os::fd::AsFd) -> usize {
    let size = rustix::termios::tcgetwinsize(terminal).ok();
    let columns = size.map(|size| usize::from(size.ws_col));
    columns
        .filter(|columns| *columns > 0)
        .unwrap_or(80)
        .min(MAX_WIDTH)
}

/// A failure as text: `error:`, `caused by:` a line each, a blank line, `hint:`. On a terminal what is
/// longer than a line goes on below, a little to the right; a hint stays as it can be copied.
pub(crate) fn failure_text(failure: &Failure, width: Option<usize>) -> String {
    let told = |what: &str, said: &str| {
        let mut lines = String::new();
        for (number, line) in clean::lines(said).lines().enumerate() {
            let room = width.map_or(usize::MAX, |width| width.saturating_sub(BEFORE).max(40));
            for (part, text) in table::wrap(line, room).into_iter().enumerate() {
                if number + part > 0 {
                    lines.push_str("\n  ");
                }
                lines.push_str(&text);
            }
        }
        format!("{what} {lines}\n")
    };
    let mut text = told(&red("error:"), &failure.message);
    for cause in &failure.causes {
        text.push_str(&told(&dim("caused by:"), cause));
    }
    if let Some(hint) = &failure.hint {
        text.push_str(&format!("\n{} {}\n", bold("hint:"), clean::lines(hint)));
    }
    text
}

/// Columns that `caused by:` and a space take.
const BEFORE: usize = 11;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_cause_goes_on_below_on_a_terminal_and_nothing_of_it_is_lost() {
        let cause = "the engine refused `image`: ".repeat(10);
        let failure = Failure::failed("it failed")
            .cause(cause.trim_end())
            .hint("x ".repeat(60));
        let text = failure_text(&failure, Some(80));
        let text = anstream::adapter::strip_str(&text).to_string();
        let (told, hint) = text.split_once("\n\n").unwrap();
        assert!(
            told.lines().all(|line| line.chars().count() <= 80),
            "{told}"
        );
        assert!(told.lines().skip(2).all(|line| line.starts_with("  ")));
        let whole: Vec<&str> = told.split_whitespace().collect();
        assert!(whole.join(" ").contains(cause.trim_end()));
        assert_eq!(hint.lines().count(), 1);
    }

    #[test]
    fn failure_tells_causes_a_line_each_and_then_the_hint() {
        let failure = Failure::failed("rift is unreachable")
            .cause("connection refused")
            .cause("nothing listens")
            .hint("mcp node info rift");
        assert_eq!(
            anstream::adapter::strip_str(&failure_text(&failure, None)).to_string(),
            "error: rift is unreachable\ncaused by: connection refused\ncaused by: nothing listens\n\nhint: mcp node info rift\n"
        );
    }
}
