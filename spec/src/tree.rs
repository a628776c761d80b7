//! Which trees a revision may hold: the pure rules over one raw tree object.
//!
//! Git's own `fsck` lets much pass that a control plane must not see: symlinks out of the
//! repository, submodules, `A` beside `a`, names with escape sequences. Here a tree has regular
//! files and directories with printable, distinct names, and nothing else.

use std::collections::HashMap;
use std::fmt;

use thiserror::Error;
use unicode_normalization::UnicodeNormalization;

/// Longest name of one entry, in bytes, as file systems have it.
pub const MAX_ENTRY_NAME_BYTES: usize = 255;

/// Most entries of one tree: as many files as a whole revision may have.
pub const MAX_TREE_ENTRIES: usize = 100_000;

/// Most bytes of a refused name that an error repeats.
const SHOWN_BYTES: usize = 80;

/// What an entry of a tree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EntryMode {
    /// A regular file, `100644`.
    File,
    /// An executable file, `100755`.
    Executable,
    /// A directory, `40000`.
    Directory,
}

/// One entry of a tree that keeps the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeEntry {
    /// What it is.
    pub mode: EntryMode,
    /// Its name, one path component.
    pub name: String,
    /// Id of its blob or tree.
    pub id: [u8; 20],
}

/// A tree breaks a rule, and where.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{name}` {fault}")]
pub struct TreeError {
    /// The entry, with everything unprintable escaped.
    pub name: String,
    /// The rule that it breaks.
    pub fault: TreeFault,
}

/// The rules of a tree, each named by how it is broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TreeFault {
    /// The raw object ends early or is garbled.
    Garbled,
    /// A symbolic link.
    Symlink,
    /// A submodule.
    Submodule,
    /// Any other mode than the three that are allowed.
    Mode(String),
    /// An empty name.
    EmptyName,
    /// A name longer than [`MAX_ENTRY_NAME_BYTES`].
    LongName,
    /// A name that is not UTF-8.
    NotUtf8,
    /// `.` or `..`.
    Dots,
    /// A slash or backslash within a name.
    Slash,
    /// Control, format or other invisible characters.
    Unprintable(char),
    /// A name that starts with a hyphen, which commands take for an option.
    LeadingDash,
    /// `.git`, however it is disguised.
    DotGit,
    /// `.mcp` in another spelling.
    DotMcp,
    /// Entries out of git's order.
    Unsorted,
    /// The same name twice.
    Duplicate,
    /// A name that equals another's but for case or Unicode normalisation.
    Alike(String),
    /// `.gitmodules`, however it is disguised.
    Gitmodules,
    /// More than [`MAX_TREE_ENTRIES`].
    TooMany,
}

impl TreeFault {
    /// The rule's name, for events and audit.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Garbled => "garbled-tree",
            Self::Symlink => "symlink",
            Self::Submodule => "submodule",
            Self::Mode(_) => "odd-mode",
            Self::EmptyName => "empty-name",
            Self::LongName => "long-name",
            Self::NotUtf8 => "name-not-utf8",
            Self::Dots => "path-escape",
            Self::Slash => "slash-in-name",
            Self::Unprintable(_) => "invisible-character",
            Self::LeadingDash => "leading-hyphen",
            Self::DotGit => "dot-git",
            Self::DotMcp => "dot-mcp",
            Self::Unsorted => "unsorted-tree",
            Self::Duplicate => "duplicate-entry",
            Self::Alike(_) => "alike-names",
            Self::Gitmodules => "gitmodules",
            Self::TooMany => "too-many-entries",
        }
    }
}

impl fmt::Display for TreeFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Garbled => f.write_str("is no entry: the tree object is garbled"),
            Self::Symlink => f.write_str("is a symbolic link"),
            Self::Submodule => f.write_str("is a submodule"),
            Self::Mode(mode) => write!(
                f,
                "has the mode {mode}; only 100644, 100755 and 40000 are allowed"
            ),
            Self::EmptyName => f.write_str("is an empty name"),
            Self::LongName => write!(f, "has more than {MAX_ENTRY_NAME_BYTES} bytes"),
            Self::NotUtf8 => f.write_str("is not UTF-8"),
            Self::Dots => f.write_str("is not a name but a way through directories"),
            Self::Slash => f.write_str("has a slash or backslash in it"),
            Self::Unprintable(c) => {
                write!(f, "holds the invisible character U+{:04X}", u32::from(*c))
            }
            Self::LeadingDash => f.write_str("starts with a hyphen"),
            Self::DotGit => f.write_str("is `.git` in disguise"),
            Self::DotMcp => f.write_str("is `.mcp` in another spelling"),
            Self::Unsorted => f.write_str("stands out of git's order"),
            Self::Duplicate => f.write_str("stands there twice"),
            Self::Alike(other) => write!(
                f,
                "differs from `{other}` in nothing but case or Unicode form"
            ),
            Self::Gitmodules => f.write_str("asks git for submodules"),
            Self::TooMany => write!(f, "is one entry more than {MAX_TREE_ENTRIES}"),
        }
    }
}

/// Reads a raw tree object and holds it against the rules.
///
/// # Errors
///
/// [`TreeError`] with the first entry that breaks one.
pub fn parse_tree(raw: &[u8]) -> Result<Vec<TreeEntry>, TreeError> {
    let mut entries: Vec<TreeEntry> = Vec::new();
    let mut folded: HashMap<String, usize> = HashMap::new();
    let mut rest = raw;
    while !rest.is_empty() {
        let garbled = || TreeError {
            name: escaped(&rest[..rest.len().min(40)]),
            fault: TreeFault::Garbled,
        };
        let gap = rest
            .iter()
            .take(8)
            .position(|c| *c == b' ')
            .ok_or_else(garbled)?;
        let end = rest
            .iter()
            .position(|c| *c == 0)
            .filter(|end| *end > gap)
            .ok_or_else(garbled)?;
        let id = rest
            .get(end + 1..end + 21)
            .and_then(|id| <[u8; 20]>::try_from(id).ok())
            .ok_or_else(garbled)?;
        let bytes = &rest[gap + 1..end];
        let fault = |fault| TreeError {
            name: escaped(bytes),
            fault,
        };
        let mode = match &rest[..gap] {
            b"100644" => EntryMode::File,
            b"100755" => EntryMode::Executable,
            b"40000" => EntryMode::Directory,
            b"120000" => return Err(fault(TreeFault::Symlink)),
            b"160000" => return Err(fault(TreeFault::Submodule)),
            other => return Err(fault(TreeFault::Mode(escaped(other)))),
        };
        if entries.len() == MAX_TREE_ENTRIES {
            return Err(fault(TreeFault::TooMany));
        }
        let name = check_name(bytes).map_err(fault)?;
        if let Some(last) = entries.last() {
            if last.name == name {
                return Err(fault(TreeFault::Duplicate));
            }
            if order_key(last.mode, &last.name).ge(order_key(mode, name)) {
                return Err(fault(TreeFault::Unsorted));
            }
        }
        if let Some(other) = folded.insert(fold(name), entries.len()) {
            // A file `a` and a directory `a` need not stand side by side, so this catches them too.
            let other = &entries[other].name;
            let alike = if other == name {
                TreeFault::Duplicate
            } else {
                TreeFault::Alike(other.clone())
            };
            return Err(fault(alike));
        }
        entries.push(TreeEntry {
            mode,
            name: name.to_owned(),
            id,
        });
        rest = &rest[end + 21..];
    }
    Ok(entries)
}

/// The ids of a raw tree object whose names and modes are, one for one, those of entries that keep the
/// rules; `None` where any is another. Most commits change contents alone, and names need no second look.
#[must_use]
pub fn parse_like(raw: &[u8], entries: &[TreeEntry]) -> Option<Vec<[u8; 20]>> {
    let mut ids = Vec::with_capacity(entries.len());
    let mut rest = raw;
    for entry in entries {
        let mode = match entry.mode {
            EntryMode::File => "100644 ",
            EntryMode::Executable => "100755 ",
            EntryMode::Directory => "40000 ",
        };
        rest = rest
            .strip_prefix(mode.as_bytes())?
            .strip_prefix(entry.name.as_bytes())?
            .strip_prefix(&[0])?;
        let (id, after) = rest.split_first_chunk::<20>()?;
        ids.push(*id);
        rest = after;
    }
    rest.is_empty().then_some(ids)
}

/// Git sorts a directory as though its name ended with a slash.
fn order_key(mode: EntryMode, name: &str) -> impl Iterator<Item = u8> + '_ {
    let slash = (mode == EntryMode::Directory).then_some(b'/');
    name.bytes().chain(slash)
}

/// Checks one name and gives it as text.
///
/// # Errors
///
/// The first rule that it breaks.
pub fn check_name(bytes: &[u8]) -> Result<&str, TreeFault> {
    if bytes.is_empty() {
        return Err(TreeFault::EmptyName);
    }
    if bytes.len() > MAX_ENTRY_NAME_BYTES {
        return Err(TreeFault::LongName);
    }
    let name = std::str::from_utf8(bytes).map_err(|_| TreeFault::NotUtf8)?;
    if name == "." || name == ".." {
        return Err(TreeFault::Dots);
    }
    match disguised(name) {
        Some(Disguised::Git) => return Err(TreeFault::DotGit),
        Some(Disguised::Gitmodules) => return Err(TreeFault::Gitmodules),
        Some(Disguised::Dots) => return Err(TreeFault::Dots),
        None => {}
    }
    if name.contains(['/', '\\']) {
        return Err(TreeFault::Slash);
    }
    if let Some(c) = name.chars().find(|c| is_invisible(*c)) {
        return Err(TreeFault::Unprintable(c));
    }
    if name.starts_with('-') {
        return Err(TreeFault::LeadingDash);
    }
    let may_be_dot_mcp = !name.is_ascii() || name.starts_with('.');
    if may_be_dot_mcp && name != ".mcp" {
        let folded = fold(&name.nfkc().collect::<String>());
        let stem = folded.split(':').next().unwrap_or_default();
        if stem.trim_end_matches([' ', '.']) == ".mcp" {
            return Err(TreeFault::DotMcp);
        }
    }
    Ok(name)
}

/// What a name is to some file system, whatever it looks like.
enum Disguised {
    Git,
    Gitmodules,
    Dots,
}

/// Whether some file system would take the name for `.git`, `.gitmodules`, `.` or `..`: in another case,
/// with characters that HFS+ ignores, with the dots, spaces and streams that NTFS ignores, by NTFS's
/// short name, or in the compatibility forms that ZFS can be told to fold.
fn disguised(name: &str) -> Option<Disguised> {
    // Nearly every name: what comes to one of them starts with a dot, a `g`, or what is ignored.
    if name.is_ascii() && name.starts_with(|c: char| c.is_ascii_alphanumeric() && !"gG".contains(c))
    {
        return None;
    }
    let visible: String = name.nfkc().filter(|c| !is_invisible(*c)).collect();
    let folded = fold(&visible);
    if !name.is_ascii() && matches!(folded.as_str(), "." | "..") {
        return Some(Disguised::Dots);
    }
    let stem = folded.split([':', '\\', '/']).next().unwrap_or_default();
    match stem.trim_end_matches([' ', '.']) {
        ".git" | "git~1" => Some(Disguised::Git),
        // Windows gives the first four files of a short name numbers, and then its hash.
        ".gitmodules" | "gitmod~1" | "gitmod~2" | "gitmod~3" | "gitmod~4" => {
            Some(Disguised::Gitmodules)
        }
        short if short.starts_with("gi7eba~") => Some(Disguised::Gitmodules),
        _ => None,
    }
}

/// Control, format and default-ignorable characters, and separators other than the plain space.
fn is_invisible(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_control();
    }
    c.is_control()
        || (c.is_whitespace() && c != ' ')
        || matches!(
            u32::from(c),
            0x00AD
                | 0x034F
                | 0x0600..=0x0605
                | 0x0890..=0x0891
                | 0x061C
                | 0x06DD
                | 0x070F
                | 0x08E2
                | 0x115F..=0x1160
                | 0x17B4..=0x17B5
                | 0x180B..=0x180F
                | 0x200B..=0x200F
                | 0x2028..=0x202E
                | 0x2060..=0x206F
                | 0x3164
                | 0xFE00..=0xFE0F
                | 0xFEFF
                | 0xFFA0
                | 0xFFF0..=0xFFFB
                | 0xFDD0..=0xFDEF
                | 0x1_10BD
                | 0x1_10CD
                | 0x1_3430..=0x1_345F
                | 0x1_BCA0..=0x1_BCA3
                | 0x1_D173..=0x1_D17A
                | 0xE_0000..=0xE_0FFF
                | 0xE000..=0xF8FF
                | 0xF_0000..=0x10_FFFF
        )
        // The two of each plane that are no characters.
        || u32::from(c) & 0xFFFE == 0xFFFE
}

/// The form under which two names count as alike. By way of the upper case, so that `ß` meets `ss`, and `ſ`
/// `s`; and to that from the lower case, so that `ẞ` meets both.
#[must_use]
pub fn fold(name: &str) -> String {
    if name.is_ascii() {
        // Nearly every name, and worth it: a large tree is held against the rules at each commit.
        return name.to_ascii_lowercase();
    }
    name.nfd()
        .flat_map(char::to_lowercase)
        .flat_map(char::to_uppercase)
        .flat_map(char::to_lowercase)
        .nfc()
        .collect()
}

fn escaped(bytes: &[u8]) -> String {
    let mut text = String::new();
    let whole = bytes.len();
    let bytes = &bytes[..whole.min(SHOWN_BYTES)];
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if is_invisible(c) {
                text.extend(c.escape_default());
            } else {
                text.push(c);
            }
        }
        for byte in chunk.invalid() {
            text.extend(byte.escape_ascii().map(char::from));
        }
    }
    if bytes.len() < whole {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tree(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut raw = Vec::new();
        for (mode, name) in entries {
            raw.extend(mode.as_bytes());
            raw.push(b' ');
            raw.extend(*name);
            raw.push(0);
            raw.extend([7; 20]);
        }
        raw
    }

    fn fault(entries: &[(&str, &[u8])]) -> TreeFault {
        parse_tree(&tree(entries)).unwrap_err().fault
    }

    #[test]
    fn plain_tree_is_read_in_gits_order() {
        let raw = tree(&[
            ("100644", b"a.b"),
            ("40000", b"a"),
            ("100755", b"a0"),
            ("100644", "grün €".as_bytes()),
        ]);
        let names: Vec<_> = parse_tree(&raw)
            .unwrap()
            .into_iter()
            .map(|entry| entry.name)
            .collect();
        assert_eq!(names, ["a.b", "a", "a0", "grün €"]);
        assert!(parse_tree(b"").unwrap().is_empty());
        for name in [
            ".gitignore",
            ".gitattributes",
            ".mcp",
            "git",
            "x.git",
            "-".repeat(0).as_str(),
            "a b",
        ] {
            if !name.is_empty() {
                assert!(check_name(name.as_bytes()).is_ok(), "{name}");
            }
        }
    }

    #[test]
    fn tree_of_the_same_names_is_read_as_by_the_rules() {
        let mut raw = tree(&[("100644", b"a"), ("40000", b"b"), ("100755", b"c")]);
        let entries = parse_tree(&raw).unwrap();
        let last = raw.len() - 1;
        raw[last] = 9;
        let ids: Vec<_> = parse_tree(&raw).unwrap().iter().map(|e| e.id).collect();
        assert_eq!(parse_like(&raw, &entries), Some(ids));
        for other in [
            tree(&[("100644", b"a"), ("40000", b"b")]),
            tree(&[("100644", b"a"), ("40000", b"b"), ("100644", b"c")]),
            tree(&[("100644", b"a"), ("40000", b"b"), ("100755", b"d")]),
            tree(&[
                ("100644", b"a"),
                ("40000", b"b"),
                ("100755", b"c"),
                ("100644", b"d"),
            ]),
            raw[..last].to_vec(),
        ] {
            assert_eq!(parse_like(&other, &entries), None);
        }
    }

    #[test]
    fn every_disguise_of_dot_git_is_refused() {
        for name in [
            ".git",
            ".GIT",
            ".Git",
            "git~1",
            "GIT~1",
            ".git.",
            ".git ",
            ".git . .",
            ".g\u{200c}it",
            "\u{feff}.git",
            ".gi\u{200d}T",
            ".git::$INDEX_ALLOCATION",
            ".git\\x",
            ".git:x",
            // The i without a dot has the I for its upper case.
            ".g\u{131}t",
            ".git\u{200b}",
            ".g\u{2060}it",
            ".\u{202e}git\u{202c}",
            ".git\u{206f}",
            "\u{ff0e}git",
            ".\u{ff47}\u{ff49}\u{ff54}",
            "\u{2024}git",
            ".git:$I30:$Bitmap",
            "git~1.",
            "git~1:x",
            ".GIT/config",
        ] {
            assert_eq!(
                check_name(name.as_bytes()),
                Err(TreeFault::DotGit),
                "{name:?}"
            );
        }
    }

    #[test]
    fn what_merely_resembles_dot_git_is_a_name() {
        for name in [
            "git~2", "git", "digit", ".github", "x.git", ".gitx", "…git", "gitmod~5",
        ] {
            assert_eq!(check_name(name.as_bytes()), Ok(name));
        }
    }

    #[test]
    fn submodules_are_asked_for_in_no_spelling() {
        for name in [
            ".gitmodules",
            ".GITMODULES",
            ".gitmodules ",
            ".gitmodules:$DATA",
            ".git\u{200c}modules",
            "GITMOD~1",
            "gi7eba~1",
        ] {
            assert_eq!(
                check_name(name.as_bytes()),
                Err(TreeFault::Gitmodules),
                "{name:?}"
            );
        }
    }

    #[test]
    fn dots_in_compatibility_forms_are_a_way_out() {
        for name in [
            "\u{2025}",
            "\u{2024}",
            "\u{ff0e}\u{ff0e}",
            ".\u{200b}.",
            "\u{feff}.",
        ] {
            assert_eq!(
                check_name(name.as_bytes()),
                Err(TreeFault::Dots),
                "{name:?}"
            );
        }
    }

    #[test]
    fn refusal_of_a_long_name_is_short() {
        let error = parse_tree(&tree(&[("100644", &[b'a'; 100_000])])).unwrap_err();
        assert_eq!(error.fault, TreeFault::LongName);
        assert!(error.to_string().len() < 200, "{}", error.to_string().len());
        let error = parse_tree(&tree(&[("120000", &[0xe2; 100_000])])).unwrap_err();
        assert!(error.to_string().len() < 500);
    }

    #[test]
    fn tree_has_as_many_entries_as_a_revision_may_have_files() {
        let raw = |count: usize| {
            let mut raw = Vec::new();
            for number in 0..count {
                raw.extend(format!("100644 {number:06}\0").into_bytes());
                raw.extend([7; 20]);
            }
            raw
        };
        assert_eq!(
            parse_tree(&raw(MAX_TREE_ENTRIES)).unwrap().len(),
            MAX_TREE_ENTRIES
        );
        let error = parse_tree(&raw(MAX_TREE_ENTRIES + 1)).unwrap_err();
        assert_eq!(error.fault, TreeFault::TooMany);
    }

    #[test]
    fn dot_mcp_has_one_spelling() {
        for name in [".MCP", ".Mcp", ".mcp.", ".mcp ", "\u{ff0e}mcp", ".mcp:x"] {
            assert_eq!(
                check_name(name.as_bytes()),
                Err(TreeFault::DotMcp),
                "{name:?}"
            );
        }
    }

    #[test]
    fn hostile_names_and_modes_are_refused_by_name() {
        assert_eq!(fault(&[("120000", b"l")]), TreeFault::Symlink);
        assert_eq!(fault(&[("160000", b"s")]), TreeFault::Submodule);
        for mode in ["100664", "100600", "040000", "0", "777", "1006440"] {
            assert!(
                matches!(
                    fault(&[(mode, b"f")]),
                    TreeFault::Mode(_) | TreeFault::Garbled
                ),
                "{mode}"
            );
        }
        assert_eq!(fault(&[("100644", b"")]), TreeFault::EmptyName);
        assert_eq!(fault(&[("100644", b"..")]), TreeFault::Dots);
        assert_eq!(fault(&[("40000", b".")]), TreeFault::Dots);
        assert_eq!(fault(&[("100644", b"a/b")]), TreeFault::Slash);
        assert_eq!(fault(&[("100644", b"a\\b")]), TreeFault::Slash);
        assert_eq!(fault(&[("100644", b"-rf")]), TreeFault::LeadingDash);
        assert_eq!(fault(&[("100644", b"a\nb")]), TreeFault::Unprintable('\n'));
        assert_eq!(
            fault(&[("100644", b"a\x1bb")]),
            TreeFault::Unprintable('\x1b')
        );
        assert_eq!(
            fault(&[("100644", "a\u{202e}b".as_bytes())]),
            TreeFault::Unprintable('\u{202e}')
        );
        assert_eq!(fault(&[("100644", b"a\xff")]), TreeFault::NotUtf8);
        assert_eq!(fault(&[("100644", &[b'a'; 256])]), TreeFault::LongName);
    }

    #[test]
    fn names_that_some_file_system_confuses_are_refused() {
        assert_eq!(
            fault(&[("100644", b"a"), ("100644", b"a")]),
            TreeFault::Duplicate
        );
        assert_eq!(
            fault(&[("100644", b"a"), ("100644", b"a.b"), ("40000", b"a")]),
            TreeFault::Duplicate
        );
        assert_eq!(
            fault(&[("100644", b"b"), ("100644", b"a")]),
            TreeFault::Unsorted
        );
        for (one, other) in [
            ("A", "a"),
            ("D", "d"),
            ("e\u{301}", "é"),
            ("STRASSE", "straße"),
            ("\u{212a}", "k"),
            ("\u{131}", "i"),
            ("I", "\u{131}"),
            ("\u{130}", "i\u{307}"),
            ("Σ", "ς"),
            ("\u{fb01}", "fi"),
            ("\u{17f}", "S"),
            ("\u{1e9e}", "ss"),
            ("\u{212b}", "\u{e5}"),
            ("\u{ac00}", "\u{1100}\u{1161}"),
        ] {
            let mut pair = [one, other];
            pair.sort_unstable();
            assert!(
                matches!(
                    fault(&[
                        ("100644", pair[0].as_bytes()),
                        ("40000", pair[1].as_bytes())
                    ]),
                    TreeFault::Alike(_)
                ),
                "{pair:?}"
            );
        }
    }

    #[test]
    fn truncated_tree_is_garbled() {
        let raw = tree(&[("100644", b"abc")]);
        for end in 1..raw.len() {
            assert_eq!(
                parse_tree(&raw[..end]).unwrap_err().fault,
                TreeFault::Garbled,
                "{end}"
            );
        }
    }

    proptest! {
        #[test]
        fn reading_any_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_tree(&bytes);
            let _ = check_name(&bytes);
        }
    }
}
