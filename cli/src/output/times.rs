//! Times as people say them: `3m ago`, `41d`.

use jiff::Timestamp;

/// RFC 3339 without fractions of a second; what is no time is shown as it is.
pub(crate) fn to_the_second(at: &str) -> String {
    let time = at
        .parse::<Timestamp>()
        .and_then(|time| Timestamp::from_second(time.as_second()));
    time.map_or_else(
        |_| super::clean::line(at).into_owned(),
        |time| time.to_string(),
    )
}

/// The span since `at`, in its largest unit: `12s`, `3m`, `2h`, `41d`; `-` where there is no time.
pub(crate) fn since(now: Timestamp, at: &str) -> String {
    match seconds(now, at) {
        None => "-".to_owned(),
        Some(seconds) => length(seconds.max(0).unsigned_abs()),
    }
}

/// How long ago `at` was: `3m ago`; `in 3m` for what is to come; `-` where there is no time.
pub(crate) fn ago(now: Timestamp, at: &str) -> String {
    match seconds(now, at) {
        None => "-".to_owned(),
        Some(seconds) if seconds >= 0 => format!("{} ago", length(seconds.unsigned_abs())),
        // Two clocks differ by a little.
        Some(seconds) if seconds > -2 => "0s ago".to_owned(),
        Some(seconds) => format!("in {}", length(seconds.unsigned_abs())),
    }
}

fn seconds(now: Timestamp, at: &str) -> Option<i64> {
    let at: Timestamp = at.parse().ok()?;
    Some(now.as_second() - at.as_second())
}

fn length(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_said_in_their_largest_unit() {
        let now: Timestamp = "2026-11-23T12:00:00Z".parse().unwrap();
        assert_eq!(ago(now, "2026-11-23T11:57:00Z"), "3m ago");
        assert_eq!(ago(now, "2026-11-23T12:00:01Z"), "0s ago");
        assert_eq!(ago(now, "2026-11-24T13:00:00Z"), "in 1d");
        assert_eq!(since(now, "2026-10-13T00:00:00Z"), "41d");
        assert_eq!(since(now, ""), "-");
        assert_eq!(ago(now, "soon"), "-");
    }
}
