//! The desired-state repository as commands need it: opened, checked, its changes told in words.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use mcp_cli::repo::{
    At, Changes, DesiredRepo, HistoryError, ManagedFiles, ReadError, Selection, git_signing_key,
};
use mcp_cli::sign::{KeyContext, KeySource, SigningKey, find_key};
use mcp_spec::definition::{
    DefinitionError, DefinitionErrorKind, DefinitionFile, DesiredSet, SHARED_PATH, Sharing,
    compile, parse_one,
};
use mcp_spec::diff;
use mcp_spec::image::Digest;
use mcp_spec::name::ServiceName;
use mcp_spec::revision::CommitId;
use mcp_spec::secret::{RECIPIENTS_PATH, Recipients, secret_path};
use mcp_spec::signature::{
    ALLOWED_SIGNERS_PATH, AllowedSigners, AuthorisationError, ParentView, PublicKey, authorise,
    parse_public_key,
};

use crate::config::Origin;
use crate::context::Context;
use crate::error::{Exit, Failure};
use crate::output::style::count;
use crate::output::{clean, diagnostics};

/// Opens the repository of the settings.
pub(crate) fn open(context: &Context) -> Result<DesiredRepo, Failure> {
    let setting = &context.settings.repo;
    if setting.origin == Origin::File
        && let Some(here) = crate::config::repository_around()
        && here.canonicalize().ok() != setting.value.canonicalize().ok()
    {
        context.out.note(&format!(
            "taking {}, as mcp.toml says; for the one that you are in: --repo {}",
            setting.value.display(),
            here.display()
        ));
    }
    DesiredRepo::open(&setting.value)
        .map_err(|error| Failure::of(Exit::Usage, &error).hint(error.hint()))
}

/// Opens the repository; none where nobody named one and the default is not there.
pub(crate) fn open_if_there(context: &Context) -> Result<Option<DesiredRepo>, Failure> {
    let setting = &context.settings.repo;
    if setting.origin == Origin::Default && !setting.value.join(".git").exists() {
        return Ok(None);
    }
    open(context).map(Some)
}

/// The operator's key: `--key`, `[sign] key`, else what git is set up with. It is opened once a command;
/// none where nobody names one.
pub(crate) fn key_if_named(
    context: &Context,
    repo: Option<&DesiredRepo>,
) -> Result<Option<Arc<SigningKey>>, Failure> {
    if let Some(opened) = context.key.get() {
        return Ok(opened.clone());
    }
    let opened = match find(context, repo)? {
        Some(source) => Some(Arc::new(load(context, &source)?)),
        None => None,
    };
    Ok(context.key.get_or_init(|| opened).clone())
}

/// Opens the operator's key for the requests that a command is about to sign: before any of them, since it
/// may have to ask for a passphrase. Where nobody names a key, the agents say whether they want one.
pub(crate) fn open_key(context: &Context) -> Result<(), Failure> {
    if context.key.get().is_some() {
        return Ok(());
    }
    let repo = open_if_there(context)?;
    key_if_named(context, repo.as_ref()).map(|_| ())
}

/// The operator's key, as [`key_if_named`].
pub(crate) fn key(
    context: &Context,
    repo: Option<&DesiredRepo>,
) -> Result<Arc<SigningKey>, Failure> {
    match key_if_named(context, repo)? {
        Some(key) => Ok(key),
        None => Err(Failure::usage("there is no signing key")
            .cause("neither --key nor [sign] key of mcp.toml nor git's user.signingkey names one")
            .hint("give one: --key ~/.ssh/id_ed25519")),
    }
}

/// What names the operator's key, if anything does.
pub(crate) fn find(
    context: &Context,
    repo: Option<&DesiredRepo>,
) -> Result<Option<mcp_cli::sign::KeySource>, Failure> {
    let named = context.settings.key.as_ref().map(|key| key.value.as_str());
    let git = git_signing_key(repo);
    find_key(named, None, git.as_deref())
        .map_err(|error| Failure::of(Exit::Usage, &error).hint(error.hint()))
}

/// Opens the key.
pub(crate) fn load(
    context: &Context,
    source: &mcp_cli::sign::KeySource,
) -> Result<SigningKey, Failure> {
    let key = SigningKey::load(source, &KeyContext::from_environment())
        .map_err(|error| Failure::of(Exit::Refused, &error).hint(error.hint()))?;
    for warning in key.warnings() {
        context.out.warn(&warning.to_string());
    }
    Ok(key)
}

/// Failures of reading history, at the call site of any command.
pub(crate) fn history_failure(error: &HistoryError) -> Failure {
    let failure = match error {
        HistoryError::UnknownRevision { .. } => named_badly(error),
        _ => Failure::of(Exit::Failed, error),
    };
    failure.hint(error.hint())
}

/// A revision that names nothing; of git's own words only those that say which ones it may have meant.
fn named_badly(error: &HistoryError) -> Failure {
    let mut failure = Failure::of(Exit::Usage, error);
    failure.causes.retain(|cause| cause.contains("ambiguous"));
    failure
}

/// Refuses what the nodes would refuse, before it is committed and in the way: a key that the
/// repository's signers do not allow these changes, or signers that leave nobody to change them.
///
/// # Errors
///
/// Exit code 7, with the mend.
pub(crate) fn require_authorised(
    repo: &DesiredRepo,
    changes: &Changes,
    selection: &Selection,
    key: &SigningKey,
) -> Result<(), Failure> {
    let Some(head) = changes.head else {
        return Ok(());
    };
    let before = repo
        .files(At::Commit(head))
        .and_then(|files| files.read(ALLOWED_SIGNERS_PATH))
        .map_err(|error| read_failure(&error))?;
    // Without signers nothing is authorised yet: the node judges the commit that introduces them.
    let Some(Ok(before)) = before.map(|bytes| AllowedSigners::parse_bytes(&bytes)) else {
        return Ok(());
    };
    let touched: Vec<String> = changes
        .selected(selection)
        .map(|change| change.path.clone())
        .collect();
    let after = if touched.iter().any(|path| path == ALLOWED_SIGNERS_PATH) {
        let bytes = repo
            .files(At::WorkTree)
            .and_then(|files| files.read(ALLOWED_SIGNERS_PATH))
            .map_err(|error| read_failure(&error))?;
        bytes
            .map(|bytes| AllowedSigners::parse_bytes(&bytes))
            .transpose()
            .map_err(|error| {
                Failure::of(Exit::Failed, &error).hint(format!(
                    "mend it, or: git checkout HEAD -- {ALLOWED_SIGNERS_PATH}"
                ))
            })?
    } else {
        Some(before.clone())
    };
    let parent = ParentView {
        signers: &before,
        touched: &touched,
    };
    match authorise(&[parent], key.public(), after.as_ref()) {
        Ok(_) => Ok(()),
        Err(error) => Err(unauthorised(&error, key)),
    }
}

/// Refuses a change of the signers that the nodes would refuse: by a key that is no owner's.
///
/// # Errors
///
/// Exit code 7, with the mend.
pub(crate) fn require_owner(
    before: &AllowedSigners,
    after: &AllowedSigners,
    key: &SigningKey,
) -> Result<(), Failure> {
    let touched = [ALLOWED_SIGNERS_PATH.to_owned()];
    let parent = ParentView {
        signers: before,
        touched: &touched,
    };
    authorise(&[parent], key.public(), Some(after))
        .map(drop)
        .map_err(|error| unauthorised(&error, key))
}

/// The public half of a key, where it can be had without a passphrase.
pub(crate) fn public_half(source: &KeySource) -> Option<PublicKey> {
    match source {
        KeySource::File(path) => {
            let public = if path.extension().is_some_and(|end| end == "pub") {
                path.clone()
            } else {
                let mut public = path.clone().into_os_string();
                public.push(".pub");
                public.into()
            };
            parse_public_key(&std::fs::read_to_string(public).ok()?).ok()
        }
        KeySource::AgentPublicKey(key) => parse_public_key(key).ok(),
        KeySource::AgentFingerprint(_) => None,
    }
}

fn unauthorised(error: &AuthorisationError, key: &SigningKey) -> Failure {
    let hint = match error {
        AuthorisationError::SignersDeleted | AuthorisationError::NoOwnerLeft => {
            format!("git checkout HEAD -- {ALLOWED_SIGNERS_PATH}")
        }
        AuthorisationError::OutsideServices { .. } => {
            "deploy a service of yours with mcp deploy SERVICE, or ask an owner to sign".to_owned()
        }
        AuthorisationError::UnknownSigner { .. } => format!(
            "sign with a key that is, as --key FILE; or an owner adds this one: mcp trust add \"{}\" --principal NAME",
            key.public_key()
        ),
        _ => "ask an owner to sign it".to_owned(),
    };
    Failure::new(
        Exit::Refused,
        "nothing is committed: every node would refuse the commit",
    )
    .cause(error.to_string())
    .hint(hint)
}

fn read_failure(error: &ReadError) -> Failure {
    Failure::of(Exit::Failed, error).hint(error.hint())
}

/// The name that the repository's signers know the key by, and its own comment where they do not.
pub(crate) fn signer_name(repo: &DesiredRepo, key: &SigningKey) -> Option<String> {
    signers(repo)?
        .iter()
        .find(|signer| signer.fingerprint() == key.fingerprint())
        .map(|signer| signer.principal.clone())
}

/// The working tree's signers; none where they cannot be read.
fn signers(repo: &DesiredRepo) -> Option<AllowedSigners> {
    let text = std::fs::read(repo.dir().join(ALLOWED_SIGNERS_PATH)).ok()?;
    AllowedSigners::parse_bytes(&text).ok()
}

/// The principals of the working tree's signers; none where they cannot be read.
pub(crate) fn principals(repo: &DesiredRepo) -> Option<Vec<String>> {
    Some(
        signers(repo)?
            .iter()
            .map(|one| one.principal.clone())
            .collect(),
    )
}

/// The full id of what git takes for a revision; one that only the nodes may know is passed on.
pub(crate) fn revision_id(context: &Context, rev: &str) -> Result<String, Failure> {
    let hexadecimal = (4..=40).contains(&rev.len()) && rev.bytes().all(|b| b.is_ascii_hexdigit());
    match open_if_there(context)? {
        Some(repo) => match repo.resolve(rev) {
            Ok(id) => Ok(id.to_string()),
            Err(_) if hexadecimal => Ok(rev.to_ascii_lowercase()),
            Err(error) => Err(named_badly(&error).hint("mcp revisions")),
        },
        None if hexadecimal => Ok(rev.to_ascii_lowercase()),
        None => Err(Failure::usage(format!(
            "`{rev}` is no commit id, and there is no repository to look in"
        ))
        .hint("mcp revisions")),
    }
}

/// The files that belong to a service: its definition, its files, its secrets.
pub(crate) fn own_files<'a>(services: impl IntoIterator<Item = &'a ServiceName>) -> Selection {
    let mut paths = Vec::new();
    for service in services {
        paths.push(format!("services/{service}.toml"));
        paths.push(format!("files/{service}"));
        paths.push(format!("secrets/{service}"));
    }
    Selection::Only(paths)
}

/// The managed files as the next commit of a selection would hold them.
pub(crate) struct Next<'a> {
    worktree: ManagedFiles<'a>,
    head: Option<ManagedFiles<'a>>,
    selection: &'a Selection,
}

impl<'a> Next<'a> {
    /// The files of the next commit of `selection` of these changes.
    pub(crate) fn new(
        repo: &'a DesiredRepo,
        changes: &Changes,
        selection: &'a Selection,
    ) -> Result<Self, Failure> {
        let head = match (changes.head, selection) {
            (Some(head), Selection::Only(_)) => Some(
                repo.files(At::Commit(head))
                    .map_err(|error| read_failure(&error))?,
            ),
            _ => None,
        };
        Ok(Self {
            worktree: repo.files_seen(changes),
            head,
            selection,
        })
    }

    /// The files of the work tree.
    pub(crate) const fn worktree(&self) -> &ManagedFiles<'a> {
        &self.worktree
    }

    fn side(&self, path: &str) -> Option<&ManagedFiles<'a>> {
        if self.selection.takes(path) {
            Some(&self.worktree)
        } else {
            self.head.as_ref()
        }
    }
}

/// Warns of files that look like definitions and are none: in folders of `services/`, or kept out by
/// `.gitignore`. Nothing else would tell that a service is missing.
pub(crate) fn warn_of_overlooked(
    context: &Context,
    repo: &DesiredRepo,
    worktree: &ManagedFiles<'_>,
) {
    let is_definition = |path: &str| path.ends_with(".toml");
    for path in worktree.paths() {
        let below = path
            .strip_prefix("services/")
            .filter(|rest| rest.contains('/'));
        if below.is_some_and(is_definition) {
            context.out.warn(&format!(
                "{} is not read: definitions lie in services/ itself, not in folders of it",
                clean::line(path)
            ));
        }
    }
    // What cannot be listed was told by the scan.
    let Ok(entries) = std::fs::read_dir(repo.dir().join("services")) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| is_definition(name)) else {
            continue;
        };
        let path = format!("services/{name}");
        if !worktree.contains(&path) && entry.file_type().is_ok_and(|kind| kind.is_file()) {
            context.out.warn(&format!(
                "{} is not read: git ignores it; git check-ignore -v {0} tells where that is said",
                clean::line(&path)
            ));
        }
    }
}

/// Where definitions and the files that they mount are read from.
pub(crate) trait Files {
    /// The paths of the definitions, sorted.
    fn definitions(&self) -> Vec<String>;
    /// A file's bytes.
    fn bytes(&self, path: &str) -> Result<Option<Vec<u8>>, ReadError>;
}

impl Files for ManagedFiles<'_> {
    fn definitions(&self) -> Vec<String> {
        ManagedFiles::definitions(self)
            .map(ToOwned::to_owned)
            .collect()
    }

    fn bytes(&self, path: &str) -> Result<Option<Vec<u8>>, ReadError> {
        self.read(path)
    }
}

impl Files for Next<'_> {
    fn definitions(&self) -> Vec<String> {
        let all: BTreeSet<&str> = std::iter::once(&self.worktree)
            .chain(self.head.as_ref())
            .flat_map(ManagedFiles::definitions)
            .filter(|path| self.side(path).is_some_and(|side| side.contains(path)))
            .collect();
        all.into_iter().map(ToOwned::to_owned).collect()
    }

    fn bytes(&self, path: &str) -> Result<Option<Vec<u8>>, ReadError> {
        self.side(path).map_or(Ok(None), |side| side.read(path))
    }
}

/// Why a set of definitions is not what nodes would take.
pub(crate) enum CheckError {
    /// These are wrong.
    Definitions(Vec<DefinitionError>),
    /// They could not be read.
    Read(Failure),
}

impl CheckError {
    /// Draws the errors, and gives the end of the command.
    pub(crate) fn tell(self, context: &Context) -> Failure {
        match self {
            Self::Read(failure) => failure,
            Self::Definitions(errors) => {
                context
                    .out
                    .error_text(&diagnostics::definition_errors(&errors));
                Failure::failed(format!(
                    "the definitions have {}",
                    count(errors.len(), "error")
                ))
                .hint("mend them, then: mcp service check")
            }
        }
    }
}

/// Checks every definition, against each other too.
pub(crate) fn check(files: &dyn Files) -> Result<DesiredSet, CheckError> {
    let mut definitions = Vec::new();
    for path in files.definitions() {
        let bytes = files
            .bytes(&path)
            .map_err(|error| CheckError::Read(read_failure(&error)))?;
        definitions.push((path, bytes.unwrap_or_default()));
    }
    let definitions: Vec<DefinitionFile<'_>> = definitions
        .iter()
        .map(|(path, bytes)| DefinitionFile { path, bytes })
        .collect();
    let lookup = Lookup::new(files);
    let set = compile(&definitions, &|path| lookup.digest(path));
    if let Some(failure) = lookup.failed.into_inner() {
        return Err(CheckError::Read(failure));
    }
    let set = set.map_err(CheckError::Definitions)?;
    let bytes = |path: &str| {
        let found = definitions.iter().find(|file| file.path == path);
        found.map(|file| file.bytes)
    };
    let mut errors = sharing(files)?.errors(&set, &bytes);
    errors.extend(sealed_to_others(files, &set)?);
    if errors.is_empty() {
        Ok(set)
    } else {
        Err(CheckError::Definitions(errors))
    }
}

/// Secrets that the node which is to use them could not open, or that are none.
fn sealed_to_others(
    files: &dyn Files,
    set: &DesiredSet,
) -> Result<Vec<DefinitionError>, CheckError> {
    let read = |path: &str| {
        files
            .bytes(path)
            .map_err(|error| CheckError::Read(read_failure(&error)))
    };
    let mut recipients = None;
    let mut errors = Vec::new();
    for service in set.services.values() {
        let used: BTreeSet<_> = service
            .components
            .values()
            .flat_map(|spec| spec.used_secrets().map(|(name, _)| name))
            .collect();
        for name in used {
            let recipients = match &recipients {
                Some(known) => known,
                None => {
                    let bytes = read(RECIPIENTS_PATH)?.unwrap_or_default();
                    let parsed = Recipients::parse(&bytes).map_err(|error| {
                        let line = error.line;
                        let error =
                            whole_file(RECIPIENTS_PATH, line, error.to_string(), "mend the line");
                        CheckError::Definitions(vec![error])
                    })?;
                    recipients.insert(parsed)
                }
            };
            let path = secret_path(&service.name, name);
            let sealed = read(&path)?.unwrap_or_default();
            let node = &service.node;
            let fault = match mcp_seal::recipients_of(&sealed) {
                Err(error) => Some((error.to_string(), "set", "")),
                Ok(nodes) => match (nodes.get(node), recipients.of(node)) {
                    (None, _) => Some((
                        format!("it is not encrypted to {node}, which runs {}", service.name),
                        "rekey",
                        "",
                    )),
                    (Some(to), Some(now)) if to != now => Some((
                        format!(
                            "it is encrypted to another recipient of {node} than {RECIPIENTS_PATH} has"
                        ),
                        "rekey",
                        // A deploy of one service commits what is its own, and leaves that file out.
                        "; where that file was changed just now: mcp sync, which commits it, too",
                    )),
                    _ => None,
                },
            };
            if let Some((fault, command, else_)) = fault {
                let hint = format!("mcp secret {command} {} {name}{else_}", service.name);
                errors.push(whole_file(&path, 1, fault, &hint));
            }
        }
    }
    Ok(errors)
}

/// An error of a file that is no definition.
fn whole_file(path: &str, line: usize, message: String, hint: &str) -> DefinitionError {
    DefinitionError {
        file: path.to_owned(),
        span: 0..0,
        line,
        column: 1,
        source_line: String::new(),
        message,
        hint: Some(hint.to_owned()),
        kind: DefinitionErrorKind::Reference,
    }
}

/// What services may share. Signers that cannot be read are told where they are changed or pushed.
fn sharing(files: &dyn Files) -> Result<Sharing, CheckError> {
    let bytes = |path| {
        files
            .bytes(path)
            .map_err(|error| CheckError::Read(read_failure(&error)))
    };
    let signers =
        bytes(ALLOWED_SIGNERS_PATH)?.and_then(|bytes| AllowedSigners::parse_bytes(&bytes).ok());
    let shared = bytes(SHARED_PATH)?;
    Sharing::read(signers.as_ref(), shared.as_deref()).map_err(CheckError::Definitions)
}

/// Digests of mounted files, with the first failure to read one.
pub(crate) struct Lookup<'a> {
    files: &'a dyn Files,
    known: RefCell<BTreeMap<String, Option<Digest>>>,
    failed: RefCell<Option<Failure>>,
}

impl<'a> Lookup<'a> {
    /// Digests of these files.
    pub(crate) fn new(files: &'a dyn Files) -> Self {
        Self {
            files,
            known: RefCell::default(),
            failed: RefCell::default(),
        }
    }

    /// The digest of the file, if there is one.
    pub(crate) fn digest(&self, path: &str) -> Option<Digest> {
        if let Some(known) = self.known.borrow().get(path) {
            return *known;
        }
        let digest = match self.files.bytes(path) {
            Ok(bytes) => bytes.map(|bytes| Digest::of(&bytes)),
            Err(error) => {
                self.failed
                    .borrow_mut()
                    .get_or_insert_with(|| read_failure(&error));
                None
            }
        };
        self.known.borrow_mut().insert(path.to_owned(), digest);
        digest
    }
}

/// What a commit changes, in words: a subject and the lines of its body.
pub(crate) fn commit_message(
    repo: &DesiredRepo,
    after: &DesiredSet,
    changes: &Changes,
    selection: &Selection,
) -> (String, Vec<String>) {
    let touched = Touched::of(after, changes, selection);
    let before = match changes.head {
        Some(head) => touched.at(repo, head),
        None => Some(DesiredSet::default()),
    };
    let differences = before
        .map(|before| diff::set_diff(&before, &touched.within(after)))
        .unwrap_or_default();
    let subject = diff::summary(&differences);
    if !subject.is_empty() {
        return (subject, diff::body(&differences));
    }
    // Comments, files that nobody mounts, signers: nothing that a node would do differently.
    let files: Vec<String> = changes
        .selected(selection)
        .map(|change| format!("{} {}", change.path, change.kind))
        .collect();
    let subject = match files.as_slice() {
        [] => "nothing".to_owned(),
        [one] => one.clone(),
        [first, rest @ ..] => format!("{first} (+{} more)", rest.len()),
    };
    (subject, files)
}

/// The services that a commit may change: one whose definition, or a file that it mounts, is among the
/// changes. All others are the same before and after, and need not be read.
struct Touched {
    definitions: BTreeSet<String>,
}

impl Touched {
    fn of(after: &DesiredSet, changes: &Changes, selection: &Selection) -> Self {
        let changed: BTreeSet<&str> = changes
            .selected(selection)
            .map(|change| change.path.as_str())
            .collect();
        let mounting = after.services.values().filter(|service| {
            let mut files = service
                .components
                .values()
                .flat_map(|spec| spec.files.values());
            let mut secrets = service
                .components
                .values()
                .flat_map(|spec| spec.used_secrets().map(|(name, _)| name));
            files.any(|file| changed.contains(file.from.as_str()))
                || secrets.any(|name| changed.contains(secret_path(&service.name, name).as_str()))
        });
        let definitions = mounting
            .map(|service| format!("services/{}.toml", service.name))
            .chain(changed.iter().map(|path| (*path).to_owned()))
            .collect();
        Self { definitions }
    }

    /// Those services at a commit, where their definitions are in order.
    fn at(&self, repo: &DesiredRepo, commit: CommitId) -> Option<DesiredSet> {
        let files = repo.files(At::Commit(commit)).ok()?;
        let lookup = Lookup::new(&files);
        let mut set = DesiredSet::default();
        for path in files
            .definitions()
            .filter(|path| self.definitions.contains(*path))
        {
            let bytes = files.read(path).ok()??;
            let file = DefinitionFile {
                path,
                bytes: &bytes,
            };
            let (service, _) = parse_one(file, &|path| lookup.digest(path));
            let service = service?;
            set.services.insert(service.name.clone(), service);
        }
        Some(set)
    }

    fn within(&self, set: &DesiredSet) -> DesiredSet {
        let services = set.services.values().filter(|service| {
            self.definitions
                .contains(&format!("services/{}.toml", service.name))
        });
        DesiredSet {
            services: services
                .map(|service| (service.name.clone(), service.clone()))
                .collect(),
        }
    }
}

/// The definition's file of a service in the work tree.
pub(crate) fn definition_path(context: &Context, service: &ServiceName) -> PathBuf {
    context
        .settings
        .repo
        .value
        .join(format!("services/{service}.toml"))
}
