//! The accepted commits: in memory with their parents, and in a file beside the repository.
//!
//! The file is appended to and fsynced after the ref was moved. A line that a crash cut short is
//! dropped at the next start; the store then verifies what is missing anew. A file that is lost
//! or garbled is rebuilt in the same way.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use mcp_spec::revision::CommitId;

use crate::disk;

const FILE: &str = "accepted-commits";

/// Most bytes of the file: 256 bytes a commit for a million of them.
const MAX_FILE_BYTES: u64 = 256 * 1024 * 1024;

/// One accepted commit, as the file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) commit: CommitId,
    pub(super) parents: Vec<CommitId>,
    pub(super) fingerprint: String,
    pub(super) principal: String,
    pub(super) introduction: bool,
}

impl Record {
    fn to_line(&self) -> String {
        let parents = if self.parents.is_empty() {
            "-".to_owned()
        } else {
            let parents: Vec<_> = self.parents.iter().map(CommitId::to_string).collect();
            parents.join(",")
        };
        let kind = if self.introduction {
            "introduction"
        } else {
            "revision"
        };
        // Principals hold no white space: the reader of allowed_signers sees to it.
        format!(
            "{} {parents} {} {} {kind}\n",
            self.commit, self.fingerprint, self.principal
        )
    }

    fn parse(line: &str) -> Option<Self> {
        let [commit, parents, fingerprint, principal, kind] =
            line.split(' ').collect::<Vec<_>>().try_into().ok()?;
        let parents = match parents {
            "-" => Vec::new(),
            list => list
                .split(',')
                .map(|parent| parent.parse().ok())
                .collect::<Option<_>>()?,
        };
        Some(Self {
            commit: commit.parse().ok()?,
            parents,
            fingerprint: fingerprint.to_owned(),
            principal: principal.to_owned(),
            introduction: match kind {
                "introduction" => true,
                "revision" => false,
                _ => return None,
            },
        })
    }
}

/// All accepted commits, oldest first: a parent always stands before its children.
#[derive(Debug, Clone, Default)]
pub(super) struct AcceptedLog {
    order: Vec<Record>,
    index: BTreeMap<CommitId, usize>,
    /// Length of the file that holds exactly these.
    bytes: u64,
}

impl AcceptedLog {
    /// Reads the file; a missing or garbled one counts as empty, to be rebuilt by the caller.
    pub(super) fn read(data_dir: &Path) -> io::Result<Self> {
        let path = data_dir.join(FILE);
        let mut text = String::new();
        match File::open(&path) {
            Ok(file) => {
                if file.take(MAX_FILE_BYTES).read_to_string(&mut text).is_err() {
                    return Ok(Self::default());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error),
        }
        let mut log = Self::default();
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        for line in text[..whole].lines() {
            match Record::parse(line) {
                Some(record) if !log.contains(record.commit) => log.push(record),
                _ => return Ok(Self::default()),
            }
        }
        Ok(log)
    }

    /// Appends to file and memory.
    pub(super) fn append(&mut self, data_dir: &Path, records: Vec<Record>) -> io::Result<()> {
        let path = data_dir.join(FILE);
        let fresh = !path.exists();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)?;
        // What memory knows is what the file has to hold before: a line cut short by an earlier
        // failure must not run into the next.
        file.set_len(self.bytes)?;
        file.seek(SeekFrom::Start(self.bytes))?;
        let text: String = records.iter().map(Record::to_line).collect();
        file.write_all(text.as_bytes())?;
        disk::sync(&file, &path)?;
        if fresh {
            disk::sync_dir(data_dir)?;
        }
        for record in records {
            self.push(record);
        }
        Ok(())
    }

    /// Forgets what was accepted after the head, in memory, and gives it; the next [`Self::append`] does it
    /// in the file.
    pub(super) fn cut_at(&mut self, head: Option<CommitId>) -> Vec<Record> {
        // What is accepted leads to the head, so what came later stands behind it.
        let keep = head
            .and_then(|head| self.index.get(&head))
            .map_or(0, |at| at + 1);
        let cut: Vec<Record> = self.order.drain(keep..).collect();
        for record in &cut {
            self.bytes -= record.to_line().len() as u64;
            self.index.remove(&record.commit);
        }
        cut
    }

    /// The newest.
    pub(super) fn newest(&self) -> Option<CommitId> {
        self.order.last().map(|record| record.commit)
    }

    fn push(&mut self, record: Record) {
        self.bytes += record.to_line().len() as u64;
        self.index.insert(record.commit, self.order.len());
        self.order.push(record);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    pub(super) fn contains(&self, commit: CommitId) -> bool {
        self.index.contains_key(&commit)
    }

    pub(super) fn get(&self, commit: CommitId) -> Option<&Record> {
        self.index.get(&commit).map(|at| &self.order[*at])
    }

    /// Oldest first.
    pub(super) fn records(&self) -> &[Record] {
        &self.order
    }

    /// Those accepted after this commit, oldest first; all for `None`, and for a commit unknown.
    pub(super) fn after(&self, commit: Option<CommitId>) -> &[Record] {
        let from = commit
            .and_then(|commit| self.index.get(&commit))
            .map_or(0, |at| at + 1);
        &self.order[from..]
    }

    /// Commits whose id starts with these hexadecimal digits.
    pub(super) fn with_prefix(&self, digits: &str) -> Vec<CommitId> {
        let mut low = [0; 20];
        let padded = format!("{digits:0<40}");
        if digits.len() > 40 || hex::decode_to_slice(&padded, &mut low).is_err() {
            return Vec::new();
        }
        self.index
            .range(CommitId::from_bytes(low)..)
            .map(|(commit, _)| *commit)
            .take_while(|commit| commit.to_string().starts_with(digits))
            .take(2)
            .collect()
    }

    /// The commit and all its accepted ancestors.
    pub(super) fn ancestry(&self, commit: CommitId) -> HashSet<CommitId> {
        let mut seen = HashSet::new();
        let mut waiting = VecDeque::from([commit]);
        while let Some(commit) = waiting.pop_front() {
            if let Some(record) = self.get(commit)
                && seen.insert(commit)
            {
                waiting.extend(record.parents.iter().copied());
            }
        }
        seen
    }
}

/// What was accepted here once and the repository lacks now. It passed the door, so it is taken back
/// whatever the denylist says meanwhile, and begins where it began.
#[derive(Debug, Clone, Default)]
pub(super) struct Past {
    commits: HashSet<CommitId>,
    introduction: Option<CommitId>,
}

impl Past {
    /// Keeps what was cut off the accepted commits.
    pub(super) fn keep(&mut self, cut: &[Record]) {
        self.commits.extend(cut.iter().map(|record| record.commit));
        let introduction = cut.iter().find(|record| record.introduction);
        if let Some(record) = introduction {
            self.introduction = Some(record.commit);
        }
    }

    /// Keeps commits that another place knows to have been accepted.
    pub(super) fn extend(&mut self, commits: impl IntoIterator<Item = CommitId>) {
        self.commits.extend(commits);
    }

    pub(super) fn contains(&self, commit: CommitId) -> bool {
        self.commits.contains(&commit)
    }

    /// The commit that the history started with.
    pub(super) const fn introduction(&self) -> Option<CommitId> {
        self.introduction
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(byte: u8, parents: &[u8]) -> Record {
        Record {
            commit: CommitId::from_bytes([byte; 20]),
            parents: parents
                .iter()
                .map(|byte| CommitId::from_bytes([*byte; 20]))
                .collect(),
            fingerprint: "SHA256:abc".to_owned(),
            principal: "kyle@example.net".to_owned(),
            introduction: parents.is_empty(),
        }
    }

    #[test]
    fn log_reads_back_and_drops_a_line_cut_short() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = AcceptedLog::read(dir.path()).unwrap();
        log.append(dir.path(), vec![record(1, &[]), record(2, &[1])])
            .unwrap();
        let path = dir.path().join(FILE);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 5]).unwrap();
        let mut log = AcceptedLog::read(dir.path()).unwrap();
        assert_eq!(log.records(), [record(1, &[])]);
        log.append(dir.path(), vec![record(2, &[1])]).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        assert_eq!(
            log.after(Some(CommitId::from_bytes([1; 20]))),
            [record(2, &[1])]
        );
        assert_eq!(log.with_prefix("0202"), [CommitId::from_bytes([2; 20])]);
        assert_eq!(log.with_prefix("02021"), []);
        assert_eq!(log.ancestry(CommitId::from_bytes([2; 20])).len(), 2);
    }

    #[test]
    fn garbled_log_counts_as_none() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "nonsense\n").unwrap();
        assert!(AcceptedLog::read(dir.path()).unwrap().is_empty());
        std::fs::write(dir.path().join(FILE), b"\xff\xfe\n").unwrap();
        assert!(AcceptedLog::read(dir.path()).unwrap().is_empty());
    }
}
