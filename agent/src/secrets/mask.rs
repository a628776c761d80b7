//! Values in what programs write: where the agent tells or keeps a line of a container's, a value that it opened
//! stands there as `(secret)`.
//!
//! A program may print its own password as it fails, and what it prints goes into records, events and alerts, which
//! outlive it and go to others. This knows the values that were opened since the agent's start, as they are: not
//! encoded, hashed or broken over lines.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use mcp_seal::Value;
use mcp_spec::image::Digest;
use zeroize::Zeroizing;

/// What stands in the place of a value.
const SHOWN: &[u8] = b"(secret)";

/// Shorter ones are words that stand anywhere.
const MIN_BYTES: usize = 6;

/// Of a value of several lines each is one; shorter ones are braces and keywords.
const MIN_LINE_BYTES: usize = 12;

/// Most values that are known; the agent holds all of them in memory.
const MOST: usize = 1_000;

/// Most lines of one value: a chain of certificates with its key has some hundred.
const MOST_LINES: usize = 1_000;

type Needles = Vec<Zeroizing<Vec<u8>>>;

/// The values that were opened.
#[derive(Clone, Default)]
pub struct Mask(Arc<RwLock<BTreeMap<Digest, Needles>>>);

impl std::fmt::Debug for Mask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mask")
    }
}

impl Mask {
    /// Knows a value from now on, by what stands for it.
    pub fn learn(&self, digest: Digest, value: &Value) {
        let is_known = |known: &BTreeMap<Digest, Needles>| known.contains_key(&digest);
        if is_known(&self.0.read().unwrap_or_else(PoisonError::into_inner)) {
            return;
        }
        let needles = needles(value.expose());
        if needles.is_empty() {
            return;
        }
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() < MOST {
            known.insert(digest, needles);
        }
    }

    /// Text of a container without the values.
    #[must_use]
    pub fn hide<'a>(&self, text: &'a [u8]) -> Cow<'a, [u8]> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if known.is_empty() {
            return Cow::Borrowed(text);
        }
        let mut shown = Cow::Borrowed(text);
        // The longest first: what is left of it would tell where another stands within it.
        let mut needles: Vec<&Zeroizing<Vec<u8>>> = known
            .values()
            .flatten()
            .filter(|needle| needle.len() <= text.len())
            .collect();
        needles.sort_unstable_by_key(|needle| std::cmp::Reverse(needle.len()));
        for needle in needles {
            if let Some(hidden) = without(&shown, needle) {
                shown = Cow::Owned(hidden);
            }
        }
        shown
    }

    /// The same for text.
    #[must_use]
    pub fn hide_text(&self, text: String) -> String {
        match self.hide(text.as_bytes()) {
            Cow::Borrowed(_) => text,
            Cow::Owned(hidden) => String::from_utf8_lossy(&hidden).into_owned(),
        }
    }
}

/// What is looked for of a value.
fn needles(value: &[u8]) -> Needles {
    let whole = value.trim_ascii();
    if !whole.contains(&b'\n') {
        let is_long = whole.len() >= MIN_BYTES;
        return is_long
            .then(|| Zeroizing::new(whole.to_vec()))
            .into_iter()
            .collect();
    }
    whole
        .split(|byte| *byte == b'\n')
        .map(<[u8]>::trim_ascii)
        // `-----BEGIN CERTIFICATE-----` is no secret.
        .filter(|line| line.len() >= MIN_LINE_BYTES && !line.starts_with(b"-----"))
        .take(MOST_LINES)
        .map(|line| Zeroizing::new(line.to_vec()))
        .collect()
}

/// The text with each place of the needle replaced; `None` where there is none.
fn without(text: &[u8], needle: &[u8]) -> Option<Vec<u8>> {
    let finder = memchr::memmem::Finder::new(needle);
    let mut found = finder.find_iter(text).peekable();
    found.peek()?;
    let mut out = Vec::with_capacity(text.len());
    let mut from = 0;
    for at in found {
        out.extend_from_slice(&text[from..at]);
        out.extend_from_slice(SHOWN);
        from = at + needle.len();
    }
    out.extend_from_slice(&text[from..]);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(values: &[&str]) -> Mask {
        let mask = Mask::default();
        for value in values {
            let digest = Digest::of(value.as_bytes());
            mask.learn(digest, &Value::new(value.as_bytes().to_vec()));
        }
        mask
    }

    fn hidden(mask: &Mask, text: &str) -> String {
        mask.hide_text(text.to_owned())
    }

    #[test]
    fn a_value_stands_nowhere_in_what_a_program_wrote() {
        let mask = mask(&["hunter22", "hunter22-and-more\n"]);
        assert_eq!(
            hidden(&mask, "user x, password hunter22: refused hunter22"),
            "user x, password (secret): refused (secret)"
        );
        assert_eq!(hidden(&mask, "=hunter22-and-more="), "=(secret)=");
        assert_eq!(hidden(&mask, "nothing here"), "nothing here");
        assert!(matches!(mask.hide(b"hunter"), Cow::Borrowed(_)));
        let bytes = mask.hide(b"\xffhunter22\xfe").into_owned();
        assert_eq!(bytes, b"\xff(secret)\xfe");
    }

    #[test]
    fn each_line_of_a_long_value_is_hidden_and_what_is_common_is_not() {
        let key = "-----BEGIN KEY-----\nMC4CAQAwBQYDK2VwBCIEIE\n}\n-----END KEY-----\n";
        let mask = mask(&[key, "yes", " \n"]);
        assert_eq!(
            hidden(&mask, "read MC4CAQAwBQYDK2VwBCIEIE"),
            "read (secret)"
        );
        assert_eq!(
            hidden(&mask, "-----BEGIN KEY----- } yes"),
            "-----BEGIN KEY----- } yes"
        );
    }

    #[test]
    fn no_more_values_are_kept_than_are_bounded() {
        let mask = Mask::default();
        for number in 0..=MOST {
            let text = format!("value number {number:06}");
            mask.learn(Digest::of(text.as_bytes()), &Value::new(text.into_bytes()));
        }
        assert_eq!(mask.0.read().unwrap().len(), MOST);
        assert_eq!(format!("{mask:?}"), "Mask");
    }
}
