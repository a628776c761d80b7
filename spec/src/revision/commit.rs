//! A commit object read from its raw bytes, more strictly than git does.
//!
//! Git reads a commit leniently: of two `tree` or `gpgsig` headers it takes one and passes over the
//! other, so that two readers can see two commits in the same bytes. Here everything that could be
//! read in two ways is refused.

use std::collections::BTreeSet;

use jiff::Timestamp;
use thiserror::Error;

use super::CommitId;

/// Largest commit object that is read, in bytes. Real ones have a few hundred.
pub const MAX_COMMIT_BYTES: usize = 1024 * 1024;

/// Most parents of one commit. Git's own octopus merges stay far below.
pub const MAX_PARENTS: usize = 16;

/// Longest name of a header, in bytes. The longest of git's own has 13.
const MAX_HEADER_NAME_BYTES: usize = 64;

/// The last second of the year 9999: a later date is no date.
const MAX_SECONDS: i64 = 253_402_300_799;

/// Author or committer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// Name, possibly empty.
    pub name: String,
    /// What stands between the angle brackets.
    pub email: String,
    /// When, as that machine's clock said. Nothing is decided by it.
    pub time: Timestamp,
}

/// A commit whose headers are in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedCommit {
    /// Id of the tree.
    pub tree: [u8; 20],
    /// Parents in their order, each once.
    pub parents: Vec<CommitId>,
    /// Who wrote it.
    pub author: Person,
    /// Who committed it.
    pub committer: Person,
    /// The signature's PEM block, unfolded, where there is one.
    pub signature: Option<String>,
    /// The bytes that the signature is over: the object without its `gpgsig` header.
    pub payload: Vec<u8>,
    /// The message; bytes that are no UTF-8 are replaced.
    pub message: String,
}

/// What is wrong with a commit's headers.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CommitHeaderError {
    /// Larger than [`MAX_COMMIT_BYTES`].
    #[error("the commit object has {bytes} bytes, more than {MAX_COMMIT_BYTES}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// A NUL byte, at which git would stop reading.
    #[error("it holds a NUL byte")]
    Nul,
    /// No empty line ends the headers.
    #[error("its headers do not end")]
    NoEnd,
    /// A header that is missing or stands in the wrong place.
    #[error("expected `{expected}` in line {line} of the headers, found `{found}`")]
    Order {
        /// The header that has to stand there.
        expected: &'static str,
        /// What stands there.
        found: String,
        /// Line in the object, from 1.
        line: usize,
    },
    /// A header that may stand once stands twice.
    #[error("it has two `{name}` headers")]
    Duplicate {
        /// The header's name.
        name: String,
    },
    /// The same parent twice.
    #[error("it names the parent {parent} twice")]
    DuplicateParent {
        /// The parent.
        parent: CommitId,
    },
    /// More than [`MAX_PARENTS`].
    #[error("it has more than {MAX_PARENTS} parents")]
    TooManyParents,
    /// A header whose value cannot be read.
    #[error("its `{name}` header is malformed: {reason}")]
    Malformed {
        /// The header's name.
        name: String,
        /// What is wrong with the value.
        reason: &'static str,
    },
    /// A header that this reader refuses outright.
    #[error("it has a `{name}` header, which is not accepted")]
    Refused {
        /// The header's name.
        name: String,
    },
}

impl CommitHeaderError {
    /// The rule's name, for events and audit.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "commit-too-large",
            Self::Nul => "nul-in-commit",
            Self::NoEnd => "headers-do-not-end",
            Self::Order { .. } => "header-order",
            Self::Duplicate { .. } => "duplicate-header",
            Self::DuplicateParent { .. } => "duplicate-parent",
            Self::TooManyParents => "too-many-parents",
            Self::Malformed { .. } => "malformed-header",
            Self::Refused { .. } => "refused-header",
        }
    }
}

struct Header<'a> {
    name: &'a str,
    /// The value's lines, the first and then the folded ones without their leading space.
    lines: Vec<&'a [u8]>,
    /// Where the header's bytes lie in the object.
    range: std::ops::Range<usize>,
    line: usize,
}

impl ParsedCommit {
    /// Reads a raw commit object (the content alone, without git's `commit SIZE\0`).
    ///
    /// # Errors
    ///
    /// [`CommitHeaderError`] for anything that could be read in more than one way.
    pub fn parse(raw: &[u8]) -> Result<Self, CommitHeaderError> {
        if raw.len() > MAX_COMMIT_BYTES {
            return Err(CommitHeaderError::TooLarge { bytes: raw.len() });
        }
        if raw.contains(&0) {
            return Err(CommitHeaderError::Nul);
        }
        let end = raw
            .windows(2)
            .position(|pair| pair == b"\n\n")
            .ok_or(CommitHeaderError::NoEnd)?;
        let headers = headers(&raw[..=end])?;
        let mut rest = headers.iter().peekable();

        let tree = object_id(single(&mut rest, "tree")?)?;
        let mut parents = Vec::new();
        while let Some(header) = rest.next_if(|header| header.name == "parent") {
            let parent = CommitId::from_bytes(object_id(header)?);
            if parents.contains(&parent) {
                return Err(CommitHeaderError::DuplicateParent { parent });
            }
            if parents.len() == MAX_PARENTS {
                return Err(CommitHeaderError::TooManyParents);
            }
            parents.push(parent);
        }
        let author = person(single(&mut rest, "author")?)?;
        let committer = person(single(&mut rest, "committer")?)?;

        let mut seen = BTreeSet::from(["tree", "parent", "author", "committer"]);
        let mut signature = None;
        let mut payload = raw.to_vec();
        for header in rest {
            if !seen.insert(header.name) {
                return Err(CommitHeaderError::Duplicate {
                    name: header.name.to_owned(),
                });
            }
            match header.name {
                "gpgsig" => {
                    signature = Some(signature_text(header)?);
                    payload = [&raw[..header.range.start], &raw[header.range.end..]].concat();
                }
                // Git leaves it out of the payload as well, so a second reader would see other bytes.
                "gpgsig-sha256" => {
                    return Err(CommitHeaderError::Refused {
                        name: header.name.to_owned(),
                    });
                }
                "encoding" if !only_line(header)?.eq_ignore_ascii_case(b"utf-8") => {
                    return Err(CommitHeaderError::Malformed {
                        name: header.name.to_owned(),
                        reason: "only UTF-8 is accepted",
                    });
                }
                _ => {}
            }
        }
        Ok(Self {
            tree,
            parents,
            author,
            committer,
            signature,
            payload,
            message: String::from_utf8_lossy(&raw[end + 2..]).into_owned(),
        })
    }

    /// The message's first line that is not blank, with control characters replaced.
    #[must_use]
    pub fn subject(&self) -> String {
        self.message
            .lines()
            .map(str::trim)
            .find(|line| !line.is_empty())
            .unwrap_or_default()
            .chars()
            .take(500)
            .map(|c| {
                if c.is_control() {
                    char::REPLACEMENT_CHARACTER
                } else {
                    c
                }
            })
            .collect()
    }
}

fn headers(bytes: &[u8]) -> Result<Vec<Header<'_>>, CommitHeaderError> {
    let mut headers: Vec<Header<'_>> = Vec::new();
    let mut start = 0;
    for (index, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let range = start..start + line.len();
        start = range.end;
        let line_bytes = line.strip_suffix(b"\n").unwrap_or(line);
        if let Some(folded) = line_bytes.strip_prefix(b" ") {
            let Some(header) = headers.last_mut() else {
                return Err(CommitHeaderError::Order {
                    expected: "tree",
                    found: shown(line_bytes),
                    line: index + 1,
                });
            };
            header.lines.push(folded);
            header.range.end = range.end;
            continue;
        }
        let gap = line_bytes
            .iter()
            .position(|byte| *byte == b' ')
            .unwrap_or(line_bytes.len());
        let name = std::str::from_utf8(&line_bytes[..gap])
            .ok()
            .filter(|name| {
                !name.is_empty()
                    && name.len() <= MAX_HEADER_NAME_BYTES
                    && name
                        .bytes()
                        .all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b':')
            })
            .ok_or_else(|| CommitHeaderError::Malformed {
                name: shown(&line_bytes[..gap]),
                reason: "this is no name of a header",
            })?;
        headers.push(Header {
            name,
            lines: vec![line_bytes.get(gap + 1..).unwrap_or_default()],
            range,
            line: index + 1,
        });
    }
    Ok(headers)
}

/// The next header, which must bear this name.
fn single<'a, 'b: 'a>(
    rest: &mut impl Iterator<Item = &'a Header<'b>>,
    expected: &'static str,
) -> Result<&'a Header<'b>, CommitHeaderError> {
    match rest.next() {
        Some(header) if header.name == expected => Ok(header),
        found => Err(CommitHeaderError::Order {
            expected,
            found: found.map_or_else(|| "the end".to_owned(), |header| header.name.to_owned()),
            line: found.map_or(0, |header| header.line),
        }),
    }
}

fn only_line<'a>(header: &Header<'a>) -> Result<&'a [u8], CommitHeaderError> {
    match header.lines.as_slice() {
        [line] => Ok(line),
        _ => Err(malformed(header, "it goes on over several lines")),
    }
}

fn malformed(header: &Header<'_>, reason: &'static str) -> CommitHeaderError {
    CommitHeaderError::Malformed {
        name: header.name.to_owned(),
        reason,
    }
}

fn object_id(header: &Header<'_>) -> Result<[u8; 20], CommitHeaderError> {
    let text = only_line(header)?;
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse::<CommitId>().ok())
        .map(|id| *id.as_bytes())
        .ok_or_else(|| malformed(header, "it is no object id"))
}

fn person(header: &Header<'_>) -> Result<Person, CommitHeaderError> {
    let line = std::str::from_utf8(only_line(header)?)
        .map_err(|_| malformed(header, "it is not UTF-8"))?;
    if line.chars().any(char::is_control) {
        return Err(malformed(header, "it holds control characters"));
    }
    let shape = || malformed(header, "expected `NAME <EMAIL> SECONDS ZONE`");
    let (name, rest) = line.split_once('<').ok_or_else(shape)?;
    let (email, rest) = rest.split_once('>').ok_or_else(shape)?;
    if name.contains('>') || email.contains('<') || rest.contains(['<', '>']) {
        return Err(malformed(header, "it has stray angle brackets"));
    }
    if !name.is_empty() && !name.ends_with(' ') {
        return Err(shape());
    }
    let rest = rest.strip_prefix(' ').ok_or_else(shape)?;
    let (seconds, zone) = rest.split_once(' ').ok_or_else(shape)?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    if !digits(seconds) || (seconds.len() > 1 && seconds.starts_with('0')) {
        return Err(malformed(header, "its date is no number of seconds"));
    }
    let time = seconds
        .parse::<i64>()
        .ok()
        .filter(|seconds| *seconds <= MAX_SECONDS)
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .ok_or_else(|| malformed(header, "its date lies after the year 9999"))?;
    let zone = zone
        .strip_prefix(['+', '-'])
        .filter(|zone| zone.len() == 4 && digits(zone))
        .and_then(|zone| zone.parse::<u32>().ok())
        .filter(|zone| zone / 100 <= 14 && zone % 100 < 60);
    if zone.is_none() {
        return Err(malformed(header, "its time zone is none"));
    }
    Ok(Person {
        name: name.trim().to_owned(),
        email: email.to_owned(),
        time,
    })
}

fn signature_text(header: &Header<'_>) -> Result<String, CommitHeaderError> {
    // Git takes a header without a value for none, and leaves its lines in what is signed.
    if header.lines.first().is_none_or(|line| line.is_empty()) {
        return Err(malformed(header, "it does not begin on its line"));
    }
    let bytes = header.lines.join(&b'\n');
    if !bytes
        .iter()
        .all(|c| c.is_ascii_graphic() || *c == b' ' || *c == b'\n')
    {
        return Err(malformed(header, "it is no PEM block"));
    }
    String::from_utf8(bytes).map_err(|_| malformed(header, "it is no PEM block"))
}

fn shown(bytes: &[u8]) -> String {
    bytes
        .iter()
        .take(40)
        .flat_map(|c| c.escape_ascii())
        .map(char::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TREE: &str = "tree 4b825dc642cb6eb9a060e54bf8d69288fbee4904\n";
    const PARENT: &str = "parent 1111111111111111111111111111111111111111\n";
    const AUTHOR: &str = "author Kyle <kyle@example.net> 1700000000 +0100\n";
    const COMMITTER: &str = "committer Kyle <kyle@example.net> 1700000001 +0100\n";
    const SIGNATURE: &str =
        "gpgsig -----BEGIN SSH SIGNATURE-----\n U1NI\n -----END SSH SIGNATURE-----\n";

    fn parse(parts: &[&str]) -> Result<ParsedCommit, CommitHeaderError> {
        ParsedCommit::parse(parts.concat().as_bytes())
    }

    #[test]
    fn payload_is_the_object_without_its_signature() {
        let commit = parse(&[
            TREE,
            PARENT,
            AUTHOR,
            COMMITTER,
            SIGNATURE,
            "\nsubject\n\nbody\n",
        ])
        .unwrap();
        assert_eq!(
            commit.payload,
            [TREE, PARENT, AUTHOR, COMMITTER, "\nsubject\n\nbody\n"]
                .concat()
                .as_bytes()
        );
        assert_eq!(
            commit.signature.as_deref(),
            Some("-----BEGIN SSH SIGNATURE-----\nU1NI\n-----END SSH SIGNATURE-----")
        );
        assert_eq!(commit.subject(), "subject");
        assert_eq!(commit.parents.len(), 1);
        assert_eq!(commit.author.name, "Kyle");
        assert_eq!(commit.author.time.as_second(), 1_700_000_000);
    }

    #[test]
    fn headers_after_the_signature_stay_in_the_payload() {
        let commit =
            parse(&[TREE, AUTHOR, COMMITTER, SIGNATURE, "change-id abc\n", "\nm"]).unwrap();
        assert_eq!(
            commit.payload,
            [TREE, AUTHOR, COMMITTER, "change-id abc\n", "\nm"]
                .concat()
                .as_bytes()
        );
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        let bad_date = |date: &str| AUTHOR.replace("1700000000 +0100", date);
        let cases: Vec<Vec<String>> = [
            vec![TREE, TREE, AUTHOR, COMMITTER, "\n"],
            vec![AUTHOR, TREE, COMMITTER, "\n"],
            vec![TREE, COMMITTER, AUTHOR, "\n"],
            vec![TREE, AUTHOR, AUTHOR, COMMITTER, "\n"],
            vec![TREE, AUTHOR, COMMITTER, COMMITTER, "\n"],
            vec![TREE, PARENT, PARENT, AUTHOR, COMMITTER, "\n"],
            vec![TREE, AUTHOR, PARENT, COMMITTER, "\n"],
            vec![TREE, AUTHOR, COMMITTER, PARENT, "\n"],
            vec![TREE, AUTHOR, COMMITTER, SIGNATURE, SIGNATURE, "\n"],
            vec![TREE, AUTHOR, COMMITTER, "gpgsig-sha256 x\n", "\n"],
            vec![TREE, AUTHOR, COMMITTER, "encoding latin1\n", "\n"],
            vec![TREE, AUTHOR, COMMITTER, "encoding utf\n -8\n", "\n"],
            vec![TREE, AUTHOR, COMMITTER, "gpgsig\n x\n", "\n"],
            vec![TREE, AUTHOR, COMMITTER, "gpgsig \n x\n", "\n"],
            vec![TREE, AUTHOR, COMMITTER, "\tgpgsig x\n", "\n"],
            vec![TREE, AUTHOR, COMMITTER, "GPGSIG\u{e9} x\n", "\n"],
            vec![TREE, AUTHOR, COMMITTER, "x 1\nx 2\n", "\n"],
            vec![TREE, " folded\n", AUTHOR, COMMITTER, "\n"],
            vec![" folded\n", TREE, AUTHOR, COMMITTER, "\n"],
            vec![TREE, AUTHOR, COMMITTER],
            vec![TREE, AUTHOR, COMMITTER, "\nmess\0age"],
            vec![TREE, AUTHOR, COMMITTER, "gpgsig a\x1bb\n", "\n"],
            vec!["tree 4b825dc\n", AUTHOR, COMMITTER, "\n"],
            vec![""],
        ]
        .into_iter()
        .map(|parts| parts.into_iter().map(str::to_owned).collect())
        .chain(
            [
                "9223372036854775808 +0000",
                "253402300800 +0000",
                "-1 +0000",
                "007 +0000",
                "1 0000",
                "1 +9900",
                "1 +0060",
                "1",
                "",
            ]
            .iter()
            .map(|date| {
                vec![
                    TREE.to_owned(),
                    bad_date(date),
                    COMMITTER.to_owned(),
                    "\n".to_owned(),
                ]
            }),
        )
        .chain(
            [
                "author K\x1b[2J <k> 1 +0000\n",
                "author K <k<> 1 +0000\n",
                "author K<k> 1 +0000\n",
            ]
            .iter()
            .map(|author| {
                vec![
                    TREE.to_owned(),
                    (*author).to_owned(),
                    COMMITTER.to_owned(),
                    "\n".to_owned(),
                ]
            }),
        )
        .collect();
        for case in cases {
            assert!(
                ParsedCommit::parse(case.concat().as_bytes()).is_err(),
                "{case:?}"
            );
        }
    }

    #[test]
    fn refusal_of_a_long_header_is_short() {
        let long = format!("{} x\n", "a".repeat(100_000));
        for place in [
            vec![TREE, AUTHOR, COMMITTER, &long, &long, "\n"],
            vec![&long, AUTHOR, COMMITTER, "\n"],
        ] {
            let error = parse(&place).unwrap_err();
            assert!(error.to_string().len() < 200, "{error}");
        }
    }

    #[test]
    fn subject_holds_no_control_characters() {
        let commit = parse(&[TREE, AUTHOR, COMMITTER, "\n\n  a\x1b[31mb  \nrest"]).unwrap();
        assert_eq!(commit.subject(), "a\u{fffd}[31mb");
    }

    proptest! {
        #[test]
        fn reading_any_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = ParsedCommit::parse(&bytes);
            let mut framed = [TREE, AUTHOR, COMMITTER].concat().into_bytes();
            framed.extend(bytes);
            let _ = ParsedCommit::parse(&framed);
        }
    }
}
