//! What a revision holds that a plan is made of: its definitions, and digests of its files.

use std::collections::BTreeMap;

use mcp_spec::definition::{
    DefinitionError, DefinitionFile, DesiredSet, Sharing, compile_for_node, placements,
};
use mcp_spec::image::Digest;
use mcp_spec::name::{NodeName, ServiceName};
use thiserror::Error;

use crate::secrets::Keyring;

/// Most bytes that a draft of uncommitted edits may hold.
pub const MAX_DRAFT_BYTES: usize = 8 * 1024 * 1024;

/// Most files that a draft of uncommitted edits may hold.
pub const MAX_DRAFT_FILES: usize = 1000;

/// The definitions of one revision, or of a draft upon one, and the digests of its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeFiles {
    definitions: BTreeMap<String, Vec<u8>>,
    digests: BTreeMap<String, Digest>,
    /// Secrets as they are stored. Only those that a definition names are opened.
    sealed: BTreeMap<String, Vec<u8>>,
    /// What its services may share, or what is wrong with the file that says so.
    sharing: SharingRead,
}

/// A `shared.toml`, or every error of it.
type SharingRead = Result<Sharing, Vec<DefinitionError>>;

impl Default for TreeFiles {
    fn default() -> Self {
        Self::new(Ok(Sharing::default()))
    }
}

impl TreeFiles {
    /// No files yet, of a revision whose services may share this.
    pub(super) const fn new(sharing: SharingRead) -> Self {
        Self {
            definitions: BTreeMap::new(),
            digests: BTreeMap::new(),
            sealed: BTreeMap::new(),
            sharing,
        }
    }

    pub(super) fn insert_definition(&mut self, path: String, bytes: Vec<u8>) {
        self.digests.insert(path.clone(), Digest::of(&bytes));
        self.definitions.insert(path, bytes);
    }

    pub(super) fn insert_sealed(&mut self, path: String, bytes: Vec<u8>) {
        self.sealed.insert(path, bytes);
    }

    pub(super) fn insert_digest(&mut self, path: String, digest: Digest) {
        self.digests.insert(path, digest);
    }

    /// The definitions by path, `services/NAME.toml`.
    #[must_use]
    pub fn definitions(&self) -> Vec<DefinitionFile<'_>> {
        self.definitions
            .iter()
            .map(|(path, bytes)| DefinitionFile { path, bytes })
            .collect()
    }

    /// The digest of a file below `services/` or `files/`.
    #[must_use]
    pub fn digest(&self, path: &str) -> Option<Digest> {
        self.digests.get(path).copied()
    }

    /// Compiles what this node has to run; of other nodes' services only name and node are read. Blocking:
    /// secrets are opened.
    ///
    /// # Errors
    ///
    /// Every error of every file.
    pub fn compile_for_node(
        &self,
        node: &NodeName,
        keyring: &Keyring,
    ) -> Result<DesiredSet, Vec<DefinitionError>> {
        let lookup = |path: &str| match self.sealed.get(path) {
            Some(sealed) => Some(keyring.digest(path, sealed)),
            None => self.digest(path),
        };
        let set = compile_for_node(&self.definitions(), node, &lookup)?;
        let sharing = self.sharing.as_ref().map_err(Clone::clone)?;
        let errors = sharing.errors(&set, &|path| self.definitions.get(path).map(Vec::as_slice));
        if errors.is_empty() {
            Ok(set)
        } else {
            Err(errors)
        }
    }

    /// Which node runs which service.
    ///
    /// # Errors
    ///
    /// Every file whose name or node cannot be told.
    pub fn placements(&self) -> Result<BTreeMap<ServiceName, NodeName>, Vec<DefinitionError>> {
        placements(&self.definitions())
    }

    /// Lays uncommitted edits over: bytes replace a file, `None` removes it. Nothing is written.
    ///
    /// # Errors
    ///
    /// [`DraftError`] where the draft is too large or reaches beyond definitions and files.
    pub fn with_draft(&self, edits: &[(String, Option<Vec<u8>>)]) -> Result<Self, DraftError> {
        if edits.len() > MAX_DRAFT_FILES {
            return Err(DraftError::TooManyFiles { files: edits.len() });
        }
        let bytes = edits
            .iter()
            .map(|(_, bytes)| bytes.as_ref().map_or(0, Vec::len))
            .fold(0, usize::saturating_add);
        if bytes > MAX_DRAFT_BYTES {
            return Err(DraftError::TooLarge { bytes });
        }
        let mut drafted = self.clone();
        for (path, bytes) in edits {
            check_draft_path(path)?;
            drafted.definitions.remove(path);
            drafted.digests.remove(path);
            drafted.sealed.remove(path);
            match bytes {
                Some(bytes) if is_definition(path) => {
                    drafted.insert_definition(path.clone(), bytes.clone());
                }
                Some(bytes) if path.starts_with("secrets/") => {
                    drafted.insert_sealed(path.clone(), bytes.clone());
                }
                Some(bytes) => drafted.insert_digest(path.clone(), Digest::of(bytes)),
                None => {}
            }
        }
        Ok(drafted)
    }
}

/// Why a draft of uncommitted edits is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DraftError {
    /// More than [`MAX_DRAFT_FILES`].
    #[error(
        "the uncommitted edits touch {files} files, more than {MAX_DRAFT_FILES}: commit some with `mcp sync`"
    )]
    TooManyFiles {
        /// How many.
        files: usize,
    },
    /// More than [`MAX_DRAFT_BYTES`].
    #[error(
        "the uncommitted edits have {bytes} bytes, more than {MAX_DRAFT_BYTES}: commit some with `mcp sync`"
    )]
    TooLarge {
        /// How many.
        bytes: usize,
    },
    /// A path outside `services/`, `files/` and `secrets/`, or one that no revision could hold.
    #[error(
        "`{path}` cannot stand in a draft: only files below services/, files/ and secrets/ can"
    )]
    Path {
        /// The path.
        path: String,
    },
}

fn check_draft_path(path: &str) -> Result<(), DraftError> {
    let refused = || DraftError::Path {
        path: path
            .chars()
            .take(200)
            .flat_map(char::escape_default)
            .collect(),
    };
    let mut parts = path.split('/');
    if !matches!(parts.next(), Some("services" | "files" | "secrets")) || !path.contains('/') {
        return Err(refused());
    }
    for part in parts {
        mcp_spec::tree::check_name(part.as_bytes()).map_err(|_| refused())?;
    }
    Ok(())
}

/// Whether the path is a definition: a `.toml` file right below `services/`.
pub(super) fn is_definition(path: &str) -> bool {
    path.strip_prefix("services/")
        .is_some_and(|file| !file.contains('/') && file.ends_with(".toml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draft_replaces_adds_and_removes_without_touching_the_revision() {
        let mut files = TreeFiles::default();
        files.insert_definition("services/a.toml".to_owned(), b"a".to_vec());
        files.insert_definition("services/b.toml".to_owned(), b"b".to_vec());
        let drafted = files
            .with_draft(&[
                ("services/a.toml".to_owned(), Some(b"A".to_vec())),
                ("services/b.toml".to_owned(), None),
                ("files/a/conf".to_owned(), Some(b"conf".to_vec())),
            ])
            .unwrap();
        assert_eq!(drafted.definitions().len(), 1);
        assert_eq!(drafted.definitions()[0].bytes, b"A");
        assert_eq!(drafted.digest("files/a/conf"), Some(Digest::of(b"conf")));
        assert_eq!(files.definitions().len(), 2);
    }

    #[test]
    fn draft_stays_within_definitions_and_files() {
        let files = TreeFiles::default();
        for path in [
            ".mcp/allowed_signers",
            "services",
            "services/../.mcp/x",
            "files//x",
            "/files/x",
            "files/a/.git/x",
            "README.md",
        ] {
            let refused = files.with_draft(&[(path.to_owned(), Some(Vec::new()))]);
            assert!(matches!(refused, Err(DraftError::Path { .. })), "{path}");
        }
        let many: Vec<_> = (0..=MAX_DRAFT_FILES)
            .map(|number| (format!("files/a/{number}"), None))
            .collect();
        assert!(matches!(
            files.with_draft(&many),
            Err(DraftError::TooManyFiles { .. })
        ));
        let large = [("files/a/x".to_owned(), Some(vec![0; MAX_DRAFT_BYTES + 1]))];
        assert!(matches!(
            files.with_draft(&large),
            Err(DraftError::TooLarge { .. })
        ));
    }
}
