//! Durations as an operator writes them: `10s`, `5m`, `1h30m`, `250ms`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A span of time with a unit, at millisecond precision, from 0 to 365 days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(u64);

/// Longest span: 365 days, in milliseconds.
const MAX_MS: u64 = 365 * 24 * 3600 * 1000;

/// Why a text is not a [`Span`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SpanError {
    /// A bare number.
    #[error("`{text}` has no unit: write `{text}s` or another of ms, s, m, h, d")]
    NoUnit {
        /// The refused text.
        text: String,
    },
    /// Anything else that does not parse.
    #[error("`{text}` is not a duration: write a number and a unit, as in `10s`, `250ms`, `1h30m`")]
    Malformed {
        /// The refused text.
        text: String,
    },
    /// Over 365 days.
    #[error("`{text}` is longer than 365 days")]
    TooLong {
        /// The refused text.
        text: String,
    },
}

impl Span {
    /// A span of whole milliseconds, cut off at 365 days.
    #[must_use]
    pub const fn from_millis(ms: u64) -> Self {
        Self(if ms > MAX_MS { MAX_MS } else { ms })
    }

    /// A span of whole seconds, cut off at 365 days.
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        Self::from_millis(seconds.saturating_mul(1000))
    }

    /// Milliseconds.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// The same span as a [`Duration`].
    #[must_use]
    pub const fn as_duration(self) -> Duration {
        Duration::from_millis(self.0)
    }

    /// Whole seconds, rounded up: engines take stop timeouts in seconds only.
    #[must_use]
    pub const fn as_secs_ceil(self) -> u64 {
        self.0.div_ceil(1000)
    }
}

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, SpanError> {
        let malformed = || SpanError::Malformed {
            text: text.chars().take(80).collect(),
        };
        if text.is_empty() || text.len() > 64 {
            return Err(malformed());
        }
        if text.bytes().all(|b| b.is_ascii_digit()) && text != "0" {
            return Err(SpanError::NoUnit {
                text: text.to_owned(),
            });
        }
        if text == "0" {
            return Ok(Self(0));
        }
        let mut total: u64 = 0;
        let mut rest = text;
        let mut last_unit = u64::MAX;
        while !rest.is_empty() {
            let digits = rest
                .find(|c: char| !c.is_ascii_digit())
                .ok_or_else(malformed)?;
            let number: u64 = rest[..digits].parse().map_err(|_| malformed())?;
            rest = &rest[digits..];
            let letters = rest
                .find(|c: char| !c.is_ascii_alphabetic())
                .unwrap_or(rest.len());
            let unit = match &rest[..letters] {
                "ms" => 1,
                "s" => 1000,
                "m" => 60_000,
                "h" => 3_600_000,
                "d" => 86_400_000,
                _ => return Err(malformed()),
            };
            if unit >= last_unit {
                return Err(malformed());
            }
            last_unit = unit;
            rest = &rest[letters..];
            total = number
                .checked_mul(unit)
                .and_then(|part| total.checked_add(part))
                .filter(|total| *total <= MAX_MS)
                .ok_or_else(|| SpanError::TooLong {
                    text: text.to_owned(),
                })?;
        }
        Ok(Self(total))
    }
}

impl TryFrom<String> for Span {
    type Error = SpanError;

    fn try_from(text: String) -> Result<Self, SpanError> {
        text.parse()
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.to_string()
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.pad("0s");
        }
        let mut text = String::new();
        let mut rest = self.0;
        for (unit, name) in [
            (86_400_000, "d"),
            (3_600_000, "h"),
            (60_000, "m"),
            (1000, "s"),
            (1, "ms"),
        ] {
            if rest >= unit {
                text.push_str(&format!("{}{name}", rest / unit));
                rest %= unit;
            }
        }
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_round_trip_in_canonical_form() {
        for (text, ms, canonical) in [
            ("10s", 10_000, "10s"),
            ("90s", 90_000, "1m30s"),
            ("1h30m", 5_400_000, "1h30m"),
            ("250ms", 250, "250ms"),
            ("0s", 0, "0s"),
            ("1d", 86_400_000, "1d"),
        ] {
            let span: Span = text.parse().unwrap();
            assert_eq!(span.as_millis(), ms);
            assert_eq!(span.to_string(), canonical);
            assert_eq!(canonical.parse::<Span>().unwrap(), span);
        }
    }

    #[test]
    fn a_number_without_a_unit_is_refused() {
        assert!(matches!(
            "10".parse::<Span>(),
            Err(SpanError::NoUnit { .. })
        ));
        for bad in [
            "",
            "s",
            "10x",
            "1m1h",
            "-1s",
            "1.5s",
            "1s ",
            "400d",
            "99999999999999999999s",
        ] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }
}
