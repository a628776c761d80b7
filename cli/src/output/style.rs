//! The few colours that output uses, and the signs that say the same without them.

use owo_colors::OwoColorize as _;

use super::clean;

/// Done, running, healthy.
pub(crate) const GOOD: &str = "✓";
/// Failed, unreachable.
pub(crate) const BAD: &str = "✗";

/// How a piece of text looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Style {
    /// As it is.
    #[default]
    Plain,
    /// Green: as wanted.
    Good,
    /// Red: failed.
    Bad,
    /// Yellow: needs a look.
    Warn,
    /// Faint: beside the point.
    Dim,
    /// Bold: a heading or a name.
    Bold,
}

impl Style {
    /// `text` in this style; `text` must be clean already.
    pub(crate) fn paint(self, text: &str) -> String {
        match self {
            _ if text.is_empty() => String::new(),
            Self::Plain => text.to_owned(),
            Self::Good => text.green().to_string(),
            Self::Bad => text.red().to_string(),
            Self::Warn => text.yellow().to_string(),
            Self::Dim => text.dimmed().to_string(),
            Self::Bold => text.bold().to_string(),
        }
    }
}

/// Green text.
pub(crate) fn green(text: &str) -> String {
    Style::Good.paint(&clean::line(text))
}

/// Red text.
pub(crate) fn red(text: &str) -> String {
    Style::Bad.paint(&clean::line(text))
}

/// Yellow text.
pub(crate) fn yellow(text: &str) -> String {
    Style::Warn.paint(&clean::line(text))
}

/// Faint text.
pub(crate) fn dim(text: &str) -> String {
    Style::Dim.paint(&clean::line(text))
}

/// Bold text.
pub(crate) fn bold(text: &str) -> String {
    Style::Bold.paint(&clean::line(text))
}

/// One of a few colours that are told apart, by number.
pub(crate) fn nth_colour(number: usize, text: &str) -> String {
    let text = clean::line(text);
    match number % 6 {
        0 => text.cyan().to_string(),
        1 => text.yellow().to_string(),
        2 => text.green().to_string(),
        3 => text.magenta().to_string(),
        4 => text.blue().to_string(),
        _ => text.bright_red().to_string(),
    }
}

/// The first seven characters of an id, its algorithm left out; `-` where there is none.
pub(crate) fn short(id: &str) -> String {
    let bare = id.strip_prefix("sha256:").unwrap_or(id);
    if bare.is_empty() {
        return "-".to_owned();
    }
    clean::line(&bare.chars().take(7).collect::<String>()).into_owned()
}

/// Bytes in the largest unit that leaves a number of at least one: `38 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut scale = 1_u64;
    while unit + 1 < UNITS.len() && count / scale >= 1024 {
        scale *= 1024;
        unit += 1;
    }
    let whole = count / scale;
    let tenth = (count % scale) * 10 / scale;
    if unit > 0 && whole < 10 && tenth > 0 {
        format!("{whole}.{tenth} {}", UNITS[unit])
    } else {
        format!("{whole} {}", UNITS[unit])
    }
}

/// A part of a whole, the unit said once where it is the same: `4.1/8 GiB`.
pub(crate) fn bytes_of(part: u64, whole: u64) -> String {
    let (part, whole) = (bytes(part), bytes(whole));
    match (part.split_once(' '), whole.split_once(' ')) {
        (Some((number, unit)), Some((_, same))) if unit == same => format!("{number}/{whole}"),
        _ => format!("{part}/{whole}"),
    }
}

/// Milliseconds as people say them: `61ms`, `2.0s`, `3m 20s`.
pub(crate) fn milliseconds(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms}ms"),
        1_000..60_000 => format!("{}.{}s", ms / 1_000, ms % 1_000 / 100),
        60_000..3_600_000 => format!("{}m {}s", ms / 60_000, ms % 60_000 / 1_000),
        _ => format!("{}h {}m", ms / 3_600_000, ms % 3_600_000 / 60_000),
    }
}

/// `1 component`, `2 components`.
pub(crate) fn count(number: usize, one: &str) -> String {
    if number == 1 {
        format!("1 {one}")
    } else {
        format!("{number} {one}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_seven_characters_without_their_algorithm() {
        assert_eq!(short("sha256:1f0c9b2aaaa"), "1f0c9b2");
        assert_eq!(short(""), "-");
    }

    #[test]
    fn sizes_and_times_are_said_in_the_fitting_unit() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(38 * 1024 * 1024), "38 MiB");
        assert_eq!(bytes(4_402_341_480), "4.1 GiB");
        assert_eq!(bytes_of(4_402_341_480, 8 << 30), "4.1/8 GiB");
        assert_eq!(bytes_of(38 << 20, 8 << 30), "38 MiB/8 GiB");
        assert_eq!(milliseconds(61), "61ms");
        assert_eq!(milliseconds(6_420), "6.4s");
        assert_eq!(milliseconds(200_000), "3m 20s");
    }
}
