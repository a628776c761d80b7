//! Linux's signals by name and number. Definitions take both, docker tells names and podman numbers.

/// Signals as every architecture that engines run on numbers them.
const SIGNALS: [(&str, u8); 31] = [
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

/// The first real-time signal that programs may use.
const RTMIN: u8 = 34;
/// The last one.
const RTMAX: u8 = 64;

/// The names of the signals that have one, without their `SIG`.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    SIGNALS.iter().map(|(name, _)| *name)
}

/// The number of a signal written `SIGTERM`, `term`, `SIGRTMIN+3` or `15`.
#[must_use]
pub fn number(text: &str) -> Option<u8> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Ok(number) = name.parse::<u8>() {
        let known = (1..=31).contains(&number) || (RTMIN..=RTMAX).contains(&number);
        return known.then_some(number);
    }
    if let Some((_, number)) = SIGNALS.iter().find(|(known, _)| *known == name) {
        return Some(*number);
    }
    let offset = |prefix: &str, sign: char| {
        let rest = name.strip_prefix(prefix)?;
        if rest.is_empty() {
            return Some(0);
        }
        rest.strip_prefix(sign)?.parse::<u8>().ok()
    };
    offset("RTMIN", '+')
        .and_then(|above| RTMIN.checked_add(above))
        .or_else(|| offset("RTMAX", '-').and_then(|below| RTMAX.checked_sub(below)))
        .filter(|number| (RTMIN..=RTMAX).contains(number))
}

/// The one spelling of a signal: `SIGTERM`, `SIGRTMIN+3`, `SIGRTMAX-1`.
#[must_use]
pub fn canonical(text: &str) -> Option<String> {
    let number = number(text)?;
    if let Some((name, _)) = SIGNALS.iter().find(|(_, known)| *known == number) {
        return Some(format!("SIG{name}"));
    }
    // Whichever end is nearer, as kill(1) lists them.
    Some(match (number - RTMIN, RTMAX - number) {
        (0, _) => "SIGRTMIN".to_owned(),
        (_, 0) => "SIGRTMAX".to_owned(),
        (above @ 1..=15, _) => format!("SIGRTMIN+{above}"),
        (_, below) => format!("SIGRTMAX-{below}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_one_name() {
        for (text, name) in [
            ("SIGTERM", "SIGTERM"),
            ("term", "SIGTERM"),
            ("15", "SIGTERM"),
            ("SIGRTMIN+3", "SIGRTMIN+3"),
            ("37", "SIGRTMIN+3"),
            ("RTMAX-1", "SIGRTMAX-1"),
            ("SIGRTMAX-30", "SIGRTMIN"),
            ("49", "SIGRTMIN+15"),
            ("50", "SIGRTMAX-14"),
            ("64", "SIGRTMAX"),
            ("RTMIN", "SIGRTMIN"),
        ] {
            assert_eq!(canonical(text).as_deref(), Some(name), "{text}");
            assert_eq!(number(text), number(name));
        }
        for bad in [
            "", "0", "32", "65", "SIG", "RTMIN-1", "RTMIN+99", "RTMAX+1", "BANANA",
        ] {
            assert_eq!(canonical(bad), None, "{bad}");
        }
    }

    #[test]
    fn every_number_has_a_name_that_reads_back() {
        for number in 0..=u8::MAX {
            if let Some(name) = canonical(&number.to_string()) {
                assert_eq!(super::number(&name), Some(number), "{name}");
            }
        }
    }
}
