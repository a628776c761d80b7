//! Verification of history: every new commit, its tree, its signature, and who allowed it.

use std::cell::RefCell;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use mcp_spec::revision::commit::MAX_COMMIT_BYTES;
use mcp_spec::revision::{CommitHeaderError, CommitId, ParsedCommit};
use mcp_spec::signature::{
    ALLOWED_SIGNERS_PATH, AllowedSigners, AuthorisationError, GIT_NAMESPACE, ParentView, PublicKey,
    SignatureError, authorise, fingerprint, verify_sshsig,
};
use mcp_spec::tree::EntryMode;

use super::accepted::{AcceptedLog, Past, Record};
use super::error::{IntroductionFault, ReceiveError};
use super::faults::Bound;
use super::limits::{Clockwork, Limits};
use super::objects::{Id, Kind, ObjectError, Objects};
use super::trees::{Shapes, TreeWalkError, Trees};
use super::{TrustRoots, VerifiedRevision};

/// What a verification is made against.
pub(super) struct Verification<'a> {
    pub(super) objects: &'a Objects,
    pub(super) shapes: &'a Arc<Shapes>,
    pub(super) accepted: &'a AcceptedLog,
    /// What was accepted here before the repository was set back: the denylist does not count for it.
    pub(super) past: &'a Past,
    pub(super) trust: &'a TrustRoots,
    pub(super) limits: &'a Limits,
    pub(super) clock: &'a Clockwork,
    /// Whether the denylist counts: not for what the agent accepted before and verifies again.
    pub(super) denylist: bool,
}

/// New commits, parents before children, not yet verified.
pub(super) struct NewCommits {
    order: Vec<Sketch>,
    /// Accepted commits that new ones have for parents.
    pub(super) boundary: HashSet<CommitId>,
}

/// As much of a commit as the walk needs. Read leniently, since what lies before the introduction
/// is held against no rule.
struct Sketch {
    id: CommitId,
    tree: Id,
    parents: Vec<CommitId>,
}

type Signers = Rc<AllowedSigners>;

impl Verification<'_> {
    /// Walks from the tip to what is accepted.
    pub(super) fn new_commits(&self, tip: CommitId) -> Result<NewCommits, ReceiveError> {
        let mut order = Vec::new();
        let mut boundary = HashSet::new();
        let mut sketches = HashMap::from([(tip, self.sketch(tip)?)]);
        // A stack of commits with the number of their parents already gone into: a commit is put in
        // order once all its parents are.
        let mut stack = vec![(tip, 0)];
        while let Some((id, next)) = stack.last_mut() {
            self.clock.check()?;
            if sketches.len() > self.limits.commits {
                return Err(ReceiveError::TooLarge {
                    what: Bound::Commits,
                    limit: self.limits.commits as u64,
                });
            }
            let sketch = &sketches[id];
            let Some(parent) = sketch.parents.get(*next).copied() else {
                order.push(*id);
                stack.pop();
                continue;
            };
            *next += 1;
            if self.accepted.contains(parent) {
                boundary.insert(parent);
            } else if let Entry::Vacant(place) = sketches.entry(parent) {
                place.insert(self.sketch(parent)?);
                stack.push((parent, 0));
            }
        }
        let order = order
            .into_iter()
            .filter_map(|id| sketches.remove(&id))
            .collect();
        Ok(NewCommits { order, boundary })
    }

    /// Id of a commit's tree.
    pub(super) fn tree_of(&self, commit: CommitId) -> Result<Id, ReceiveError> {
        Ok(self.sketch(commit)?.tree)
    }

    fn sketch(&self, id: CommitId) -> Result<Sketch, ReceiveError> {
        let raw = self.raw_commit(id)?;
        let malformed = || ReceiveError::BadHeader {
            commit: id,
            fault: CommitHeaderError::Malformed {
                name: "tree".to_owned(),
                reason: "tree and parents cannot be read",
            },
        };
        let mut lines = raw.split(|byte| *byte == b'\n');
        let value = |line: Option<&[u8]>, name: &str| {
            let line = std::str::from_utf8(line?).ok()?;
            line.strip_prefix(name)?.parse::<CommitId>().ok()
        };
        let tree = value(lines.next(), "tree ").ok_or_else(malformed)?;
        let mut parents = Vec::new();
        // A commit may name ten thousands of them.
        let mut named = HashSet::new();
        for line in lines.take_while(|line| line.starts_with(b"parent ")) {
            let parent = value(Some(line), "parent ").ok_or_else(malformed)?;
            if named.insert(parent) {
                parents.push(parent);
            }
        }
        Ok(Sketch {
            id,
            tree: *tree.as_bytes(),
            parents,
        })
    }

    fn raw_commit(&self, id: CommitId) -> Result<Vec<u8>, ReceiveError> {
        let raw = self
            .objects
            .read_kind(id.as_bytes(), Kind::Commit)
            .map_err(|error| ReceiveError::object(id, "the commit", error))?;
        if raw.len() > MAX_COMMIT_BYTES {
            let fault = CommitHeaderError::TooLarge { bytes: raw.len() };
            return Err(ReceiveError::BadHeader { commit: id, fault });
        }
        Ok(raw)
    }

    /// Verifies all new commits and gives them, oldest first; what lies before the introduction is
    /// checked for completeness and left out.
    pub(super) fn verify(
        &self,
        tip: CommitId,
        new: &NewCommits,
    ) -> Result<Vec<VerifiedRevision>, ReceiveError> {
        let trees = Trees::with_shapes(self.objects, Arc::clone(self.shapes));
        let context = Context {
            verification: self,
            trees: &trees,
            signers: RefCell::default(),
            known_trees: RefCell::new(new.order.iter().map(|c| (c.id, c.tree)).collect()),
        };
        let introduction = if self.accepted.is_empty() {
            Some(context.introduction(tip, new)?)
        } else {
            None
        };
        let before = introduction.map_or_else(HashSet::new, |commit| new.ancestors_of(commit));
        let mut verified: Vec<VerifiedRevision> = Vec::new();
        let mut known = HashSet::new();
        for commit in &new.order {
            self.clock.check()?;
            if before.contains(&commit.id) {
                trees.check_present(commit.id, &commit.tree, self.clock)?;
                continue;
            }
            let revision = if introduction == Some(commit.id) {
                context.verify_introduction(tip, commit)?
            } else {
                let trusted =
                    |parent: &CommitId| known.contains(parent) || self.accepted.contains(*parent);
                if let Some(parent) = commit.parents.iter().find(|parent| !trusted(parent)) {
                    return Err(ReceiveError::BeforeIntroduction {
                        commit: commit.id,
                        parent: *parent,
                    });
                }
                context.adopt_accepted(commit);
                context.verify_commit(commit)?
            };
            known.insert(commit.id);
            verified.push(revision);
        }
        Ok(verified)
    }
}

impl NewCommits {
    /// All new ancestors of a commit, without itself.
    fn ancestors_of(&self, commit: CommitId) -> HashSet<CommitId> {
        let mut ancestors = HashSet::from([commit]);
        // Parents stand before children, so one pass from the end finds all.
        for sketch in self.order.iter().rev() {
            if ancestors.contains(&sketch.id) {
                ancestors.extend(sketch.parents.iter().copied());
            }
        }
        ancestors.remove(&commit);
        ancestors
    }

    /// The commits with their trees, parents first.
    pub(super) fn commits(&self) -> impl Iterator<Item = (CommitId, Id)> {
        self.order.iter().map(|commit| (commit.id, commit.tree))
    }
}

struct Context<'a> {
    verification: &'a Verification<'a>,
    trees: &'a Trees<'a>,
    signers: RefCell<HashMap<Id, Signers>>,
    known_trees: RefCell<HashMap<CommitId, Id>>,
}

impl Context<'_> {
    /// The commit that starts the trusted history: the pinned one, else the oldest that holds
    /// signers and is signed by an owner.
    fn introduction(&self, tip: CommitId, new: &NewCommits) -> Result<CommitId, ReceiveError> {
        let refused = |fault| ReceiveError::NoIntroduction { tip, fault };
        if let Some(pinned) = self.verification.trust.introduction {
            return if new.order.iter().any(|commit| commit.id == pinned) {
                Ok(pinned)
            } else {
                Err(refused(IntroductionFault::NotInHistory(pinned)))
            };
        }
        let began = self.verification.past.introduction();
        if let Some(began) = began.filter(|id| new.order.iter().any(|commit| commit.id == *id)) {
            return Ok(began);
        }
        let mut first_refusal = None;
        for commit in &new.order {
            self.verification.clock.check()?;
            // A history that is taken over may hold what no revision may: not a candidate then.
            let Ok(Some(_)) = self.trees.find(&commit.tree, ALLOWED_SIGNERS_PATH) else {
                continue;
            };
            match self.could_introduce(tip, commit) {
                Ok(()) => return Ok(commit.id),
                Err(
                    refusal @ (ReceiveError::NoIntroduction { .. }
                    | ReceiveError::HostileTree { .. }
                    | ReceiveError::DeniedKey { .. }
                    | ReceiveError::BadSigners { .. }),
                ) => {
                    first_refusal.get_or_insert(refusal);
                }
                Err(failure) => return Err(failure),
            }
        }
        Err(first_refusal.unwrap_or_else(|| refused(IntroductionFault::NoSigners)))
    }

    /// Whether a commit bears a pinned owner's signature, upon a tree that keeps the rules.
    fn could_introduce(&self, tip: CommitId, commit: &Sketch) -> Result<(), ReceiveError> {
        let refused = |fault| ReceiveError::NoIntroduction { tip, fault };
        let bad_signature = |fault| {
            refused(IntroductionFault::BadSignature {
                commit: commit.id,
                fault,
            })
        };
        let raw = self.verification.raw_commit(commit.id)?;
        let parsed =
            ParsedCommit::parse(&raw).map_err(|_| bad_signature(SignatureError::Malformed))?;
        let pem = parsed
            .signature
            .as_deref()
            .ok_or_else(|| refused(IntroductionFault::Unsigned(commit.id)))?;
        let key = verify_sshsig(pem, GIT_NAMESPACE, &parsed.payload).map_err(bad_signature)?;
        if !self.verification.trust.owners.contains(&key) {
            return Err(refused(IntroductionFault::NotOwner {
                commit: commit.id,
                fingerprint: fingerprint(&key),
            }));
        }
        self.verify_introduction(tip, commit).map(|_| ())
    }

    /// A pinned introduction may be signed by any key that its own tree allows: the pin vouches for
    /// the tree. A found one was chosen for its owner's signature.
    fn verify_introduction(
        &self,
        tip: CommitId,
        commit: &Sketch,
    ) -> Result<VerifiedRevision, ReceiveError> {
        let (parsed, key) = self.signed(commit)?;
        let refused = |fault| ReceiveError::NoIntroduction { tip, fault };
        let signers = self
            .signers(commit.id)?
            .ok_or_else(|| refused(IntroductionFault::NoSigners))?;
        if !signers.has_owner() {
            return Err(refused(IntroductionFault::NoOwner(commit.id)));
        }
        let principal = match signers.get(&key) {
            Some(signer) if signer.may_sign() => signer.principal.clone(),
            // The owner's key need not be in the file that it introduces.
            _ if self.verification.trust.owners.contains(&key) => "owner".to_owned(),
            // Nor need it be pinned still where the history is one that was accepted before.
            _ if self.verification.past.introduction() == Some(commit.id) => "owner".to_owned(),
            _ => {
                return Err(refused(IntroductionFault::NotOwner {
                    commit: commit.id,
                    fingerprint: fingerprint(&key),
                }));
            }
        };
        Ok(revision(commit, &parsed, principal, &key, true))
    }

    /// What accepted parents hold passed the door before, and is not looked up again.
    fn adopt_accepted(&self, commit: &Sketch) {
        for parent in &commit.parents {
            if !self.verification.accepted.contains(*parent) {
                continue;
            }
            let adopted = self
                .tree_of(*parent)
                .map(|tree| self.trees.adopt(&tree).map_err(|error| error.at(*parent)));
            if let Err(error) | Ok(Err(error)) = adopted {
                // Whatever is wrong with it is met again where it matters, and told there.
                tracing::debug!(%error, "an accepted tree cannot be walked");
            }
        }
    }

    fn verify_commit(&self, commit: &Sketch) -> Result<VerifiedRevision, ReceiveError> {
        let (parsed, key) = self.signed(commit)?;
        let mut views = Vec::new();
        for parent in &commit.parents {
            let signers = self
                .signers(*parent)?
                .ok_or(ReceiveError::BeforeIntroduction {
                    commit: commit.id,
                    parent: *parent,
                })?;
            if signers.get(&key).is_none() {
                return Err(ReceiveError::UnknownSigner {
                    commit: commit.id,
                    parent: *parent,
                    fingerprint: fingerprint(&key),
                });
            }
            let touched = self
                .trees
                .touched(
                    &self.tree_of(*parent)?,
                    &commit.tree,
                    self.verification.limits.tree_paths.saturating_mul(2),
                )
                .map_err(|error| error.at(commit.id))?;
            views.push((signers, touched));
        }
        let after = self.signers(commit.id)?;
        let parents: Vec<_> = views
            .iter()
            .map(|(signers, touched)| ParentView { signers, touched })
            .collect();
        let unauthorised = |fault: AuthorisationError| ReceiveError::Unauthorised {
            commit: commit.id,
            fault,
        };
        let signer = authorise(&parents, &key, after.as_deref()).map_err(unauthorised)?;
        Ok(revision(
            commit,
            &parsed,
            signer.principal.clone(),
            &key,
            false,
        ))
    }

    /// Strict headers, a clean tree, and a signature by a key that is not denied.
    fn signed(&self, commit: &Sketch) -> Result<(ParsedCommit, PublicKey), ReceiveError> {
        let id = commit.id;
        let raw = self.verification.raw_commit(id)?;
        let parsed = ParsedCommit::parse(&raw)
            .map_err(|fault| ReceiveError::BadHeader { commit: id, fault })?;
        self.trees.check(
            id,
            &commit.tree,
            self.verification.limits,
            self.verification.clock,
        )?;
        let pem = parsed
            .signature
            .as_deref()
            .ok_or(ReceiveError::Unsigned { commit: id })?;
        let key = verify_sshsig(pem, GIT_NAMESPACE, &parsed.payload)
            .map_err(|fault| ReceiveError::BadSignature { commit: id, fault })?;
        if self.verification.denylist
            && self.verification.trust.denied.contains(&key)
            && !self.verification.past.contains(id)
        {
            return Err(ReceiveError::DeniedKey {
                commit: id,
                fingerprint: fingerprint(&key),
            });
        }
        Ok((parsed, key))
    }

    fn tree_of(&self, commit: CommitId) -> Result<Id, ReceiveError> {
        if let Some(tree) = self.known_trees.borrow().get(&commit) {
            return Ok(*tree);
        }
        let tree = self.verification.tree_of(commit)?;
        self.known_trees.borrow_mut().insert(commit, tree);
        Ok(tree)
    }

    /// The signers that a commit's tree names, `None` where it names none.
    fn signers(&self, commit: CommitId) -> Result<Option<Signers>, ReceiveError> {
        let tree = self.tree_of(commit)?;
        let entry = self
            .trees
            .find(&tree, ALLOWED_SIGNERS_PATH)
            .map_err(|error: TreeWalkError| error.at(commit))?;
        let Some(entry) = entry.filter(|entry| entry.mode != EntryMode::Directory) else {
            return Ok(None);
        };
        if let Some(signers) = self.signers.borrow().get(&entry.id) {
            return Ok(Some(Rc::clone(signers)));
        }
        let bytes = self
            .verification
            .objects
            .read_kind(&entry.id, Kind::Blob)
            .map_err(|error: ObjectError| {
                ReceiveError::object(commit, ALLOWED_SIGNERS_PATH, error)
            })?;
        let signers = Rc::new(
            AllowedSigners::parse_bytes(&bytes)
                .map_err(|fault| ReceiveError::BadSigners { commit, fault })?,
        );
        self.signers
            .borrow_mut()
            .insert(entry.id, Rc::clone(&signers));
        Ok(Some(signers))
    }
}

fn revision(
    commit: &Sketch,
    parsed: &ParsedCommit,
    principal: String,
    key: &PublicKey,
    introduction: bool,
) -> VerifiedRevision {
    let record = Record {
        commit: commit.id,
        parents: commit.parents.clone(),
        fingerprint: fingerprint(key),
        principal,
        introduction,
    };
    VerifiedRevision::new(record, parsed.subject(), parsed.author.time)
}
