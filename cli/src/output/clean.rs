//! Making text of others harmless: what an agent, a container or a file says must not move the
//! cursor, repaint the terminal or hide a line.

use std::borrow::Cow;

/// Whether a character could do more than be read.
fn is_active(character: char) -> bool {
    character.is_control()
        // Bidirectional overrides and isolates reorder what is around them; the separators end lines.
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

fn escape(text: &str, keep: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.chars().any(|c| is_active(c) && !keep(c)) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            c if !is_active(c) || keep(c) => out.push(c),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push(' '),
            c if (c as u32) < 0x100 => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push_str(&format!("\\u{{{:x}}}", c as u32)),
        }
    }
    Cow::Owned(out)
}

/// Text for one line or cell: every active character is written out.
pub(crate) fn line(text: &str) -> Cow<'_, str> {
    escape(text, |_| false)
}

/// Text of several lines: line ends and tabs stay, every other active character is written out.
pub(crate) fn lines(text: &str) -> Cow<'_, str> {
    escape(text, |c| c == '\n' || c == '\t')
}

/// A line of a container's log for a terminal: tabs and colours stay, and nothing else that acts.
pub(crate) fn log_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_ref();
    let mut coloured = false;
    while let Some(character) = rest.chars().next() {
        if let Some(length) = colour_sequence(rest) {
            out.push_str(&rest[..length]);
            coloured = true;
            rest = &rest[length..];
            continue;
        }
        let (this, after) = rest.split_at(character.len_utf8());
        if character == '\t' {
            out.push('\t');
        } else if character != '\r' || !after.is_empty() {
            // A carriage return at the very end is a line end of another system.
            out.push_str(&line(this));
        }
        rest = after;
    }
    if coloured {
        out.push_str("\x1b[0m");
    }
    out
}

/// The length of the colour sequence (`ESC [ digits ; … m`) that `text` starts with.
fn colour_sequence(text: &str) -> Option<usize> {
    let body = text.strip_prefix("\x1b[")?;
    let end = body.find(|c: char| !(c.is_ascii_digit() || c == ';' || c == ':'))?;
    body[end..].starts_with('m').then_some(2 + end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_sequences_are_written_out() {
        assert_eq!(line("a\x1b]0;title\x07b"), "a\\x1b]0;title\\x07b");
        assert_eq!(line("one\r\ntwo\u{202e}"), "one\\r\\ntwo\\u{202e}");
        assert_eq!(lines("one\n\ttwo\x1b[2J"), "one\n\ttwo\\x1b[2J");
        assert!(matches!(line("plain ✓"), Cow::Borrowed(_)));
    }

    #[test]
    fn log_line_keeps_colours_and_ends_them() {
        assert_eq!(
            log_line(b"\x1b[31mred\x1b[2Jx\r"),
            "\x1b[31mred\\x1b[2Jx\x1b[0m"
        );
        assert_eq!(log_line(b"a\tb\xff"), "a\tb\u{fffd}");
    }
}
