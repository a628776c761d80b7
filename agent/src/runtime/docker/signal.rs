//! Signals by name and number: podman tells numbers, docker names.

/// Linux's signals as every architecture that engines run on numbers them.
const SIGNALS: [(&str, i32); 31] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];

const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// The number of a signal written `SIGTERM`, `TERM`, `SIGRTMIN+3` or `15`.
pub(super) fn number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let name = text.strip_prefix("SIG").unwrap_or(text);
    if let Some((_, number)) = SIGNALS.iter().find(|(known, _)| *known == name) {
        return Some(*number);
    }
    let (base, offset) = if let Some(rest) = name.strip_prefix("RTMIN") {
        (RTMIN, rest)
    } else {
        (RTMAX, name.strip_prefix("RTMAX")?)
    };
    let offset: i32 = if offset.is_empty() {
        0
    } else {
        offset.parse().ok()?
    };
    (-RTMAX..=RTMAX)
        .contains(&offset)
        .then(|| base + offset)
        .filter(|number| (RTMIN..=RTMAX).contains(number))
}

/// One spelling for a signal that an engine tells, by name or by number.
pub(super) fn canonical(text: &str) -> String {
    let Some(number) = number(text) else {
        return text.to_owned();
    };
    SIGNALS
        .iter()
        .find(|(_, known)| *known == number)
        .map_or_else(
            || format!("SIGRTMIN+{}", number - RTMIN),
            |(name, _)| format!("SIG{name}"),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_have_one_spelling() {
        assert_eq!(canonical("15"), "SIGTERM");
        assert_eq!(canonical("SIGINT"), "SIGINT");
        assert_eq!(canonical("HUP"), "SIGHUP");
        assert_eq!(canonical("37"), "SIGRTMIN+3");
        assert_eq!(canonical("SIGRTMIN+3"), "SIGRTMIN+3");
        assert_eq!(canonical("SIGRTMAX-30"), "SIGRTMIN+0");
        assert_eq!(canonical("nonsense"), "nonsense");
    }

    #[test]
    fn unknown_signal_has_no_number() {
        assert_eq!(number("SIGNOPE"), None);
        assert_eq!(number("0"), None);
        assert_eq!(number("SIGRTMAX+1"), None);
    }
}
