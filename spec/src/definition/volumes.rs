//! Everything mounted: `volumes`, `tmpfs`, `files` and `secrets`, whose targets share one space.

use std::collections::{BTreeMap, BTreeSet};

use toml::de::DeValue;

use super::FileLookup;
use super::error::{DefinitionErrorKind as Kind, Errors, Place};
use super::reader::{Refusal, Schema, Table, Text, parse_text, wrong_type};
use super::secrets;
use super::suggest;
use super::values;
use crate::component::{
    FileMount, OnChange, SecretFile, SecretVariable, Tmpfs, Volume, VolumeSource,
};
use crate::name::ServiceName;

/// Permission bits of a mounted file, unless the definition says others.
pub(crate) const FILE_MODE: u32 = 0o644;

const FILE: Schema = Schema {
    what: "an item of `files`",
    keys: &["from", "to", "mode", "owner", "on_change"],
    not_yet: &[],
    elsewhere: |key| match key {
        "source" | "src" => Some("did you mean `from`?".to_owned()),
        "target" | "dst" | "destination" => Some("did you mean `to`?".to_owned()),
        "user" | "uid" => Some("did you mean `owner`?".to_owned()),
        _ => None,
    },
};

/// What a component mounts, by target path.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    pub(super) volumes: BTreeMap<String, Volume>,
    pub(super) tmpfs: BTreeMap<String, Tmpfs>,
    pub(super) files: BTreeMap<String, FileMount>,
    pub(super) secrets: BTreeMap<String, SecretFile>,
    pub(super) secret_env: BTreeMap<String, SecretVariable>,
}

/// The targets taken so far, with where.
#[derive(Default)]
struct Targets(BTreeMap<String, Place>);

impl Targets {
    /// Takes a target, or reports who has it.
    fn take(&mut self, target: &str, place: &Place, errors: &mut Errors<'_>) -> bool {
        if let Some(first) = self.0.get(target) {
            let line = errors.line_of(first.start);
            errors.push(
                Kind::Conflict,
                place.clone(),
                format!("`{target}` is a mount target already (line {line})"),
                "mount one of them at another path: `volumes`, `tmpfs`, `files` and `secrets` share their targets",
            );
            return false;
        }
        self.0.insert(target.to_owned(), place.clone());
        true
    }
}

/// Reads `volumes`, `tmpfs`, `files` and `secrets`.
pub(super) fn read(
    component: &Table<'_, '_>,
    service: &ServiceName,
    lookup: &FileLookup<'_>,
    errors: &mut Errors<'_>,
) -> Mounts {
    let mut mounts = Mounts::default();
    let mut targets = Targets::default();
    for item in component.strings("volumes", errors).unwrap_or_default() {
        if let Some((target, volume)) =
            parse_text(&item, |text| parse_volume(text, service), errors)
            && targets.take(&target, &item.place, errors)
        {
            mounts.volumes.insert(target, volume);
        }
    }
    for item in component.strings("tmpfs", errors).unwrap_or_default() {
        if let Some((target, tmpfs)) = parse_text(&item, parse_tmpfs, errors)
            && targets.take(&target, &item.place, errors)
        {
            mounts.tmpfs.insert(target, tmpfs);
        }
    }
    for (target, place, file) in read_files(component, service, lookup, errors) {
        if targets.take(&target, &place, errors) {
            mounts.files.insert(target, file);
        }
    }
    let read = secrets::read(component, service, lookup, errors);
    for (target, place, secret) in read.files {
        if targets.take(&target, &place, errors) {
            mounts.secrets.insert(target, secret);
        }
    }
    mounts.secret_env = read.variables;
    mounts
}

/// `SOURCE:TARGET[:ro|rw]`, or `volume:NAME:TARGET[:ro|rw]` for a volume by its full name.
fn parse_volume(text: &str, service: &ServiceName) -> Result<(String, Volume), Refusal> {
    const FORM: &str =
        "write `SOURCE:TARGET[:ro|rw]`, as in `/srv/web:/srv/web:ro` or `cache:/var/cache`";
    let malformed = |why: &str| Refusal::new(format!("`{text}` is not a volume: {why}"), FORM);
    let mut parts: Vec<&str> = text.split(':').collect();
    let verbatim = parts.len() > 2 && parts[0] == "volume" && !parts[1].starts_with('/');
    if verbatim {
        parts.remove(0);
    }
    let (source, target, access) = match parts[..] {
        [source, target] => (source, target, "rw"),
        [source, target, access] => (source, target, access),
        [target] if target.starts_with('/') => {
            return Err(Refusal::new(
                format!("`{text}` names no source, and an anonymous volume would be lost"),
                format!("give it a name, as in `data:{target}`, or use `tmpfs`"),
            ));
        }
        _ => return Err(malformed("it has no source, or too many `:`")),
    };
    let read_only = match access {
        "ro" => true,
        "rw" => false,
        other => {
            return Err(Refusal::new(
                format!("`{other}` is no access of a volume"),
                "write `:ro` or `:rw`, or nothing for read and write",
            ));
        }
    };
    let source = if !verbatim && source.contains('/') || source.starts_with('~') {
        if source.starts_with('.') {
            return Err(Refusal::new(
                format!(
                    "the source `{source}` is relative, and the node has no copy of the repository"
                ),
                "write the absolute path on the node, or mount a file of the repository with `files`",
            ));
        }
        let path = values::absolute_path("the source", source)?;
        if path == "/" {
            return Err(Refusal::new(
                "the node's whole file system cannot be mounted",
                "mount the directory that the program needs",
            ));
        }
        VolumeSource::Bind(path)
    } else if verbatim {
        VolumeSource::Named(volume_name(source, source)?)
    } else {
        VolumeSource::Named(volume_name(source, &format!("{service}_{source}"))?)
    };
    let target = values::mount_target(target)?;
    Ok((target, Volume { source, read_only }))
}

/// A volume's name on the engine, which both engines would take.
fn volume_name(written: &str, full: &str) -> Result<String, Refusal> {
    let good = |text: &str| {
        text.bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric())
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
    };
    if good(written) && full.len() <= 128 {
        return Ok(full.to_owned());
    }
    Err(Refusal::new(
        format!("`{written}` is not a volume's name"),
        "write letters, digits, `_`, `.` and `-`, and start with a letter or digit; a directory of the node starts with `/`",
    ))
}

const TMPFS_FLAGS: [&str; 14] = [
    "ro",
    "rw",
    "exec",
    "noexec",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "atime",
    "noatime",
    "sync",
    "async",
    "relatime",
    "norelatime",
];
const TMPFS_VALUES: [&str; 6] = ["size", "mode", "uid", "gid", "nr_inodes", "nr_blocks"];

/// `/PATH` or `/PATH:OPTION,OPTION`.
fn parse_tmpfs(text: &str) -> Result<(String, Tmpfs), Refusal> {
    let (target, options) = match text.split_once(':') {
        Some((target, options)) => (target, Some(options)),
        None => (text, None),
    };
    let target = values::mount_target(target)?;
    let mut tmpfs = Tmpfs::default();
    let mut seen = BTreeSet::new();
    for option in options.into_iter().flat_map(|options| options.split(',')) {
        let (key, value) = match option.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (option, None),
        };
        let known = match value {
            None => TMPFS_FLAGS.contains(&key),
            Some(value) => TMPFS_VALUES.contains(&key) && tmpfs_value(key, value),
        };
        if !known {
            return Err(Refusal::new(
                format!("`{option}` is no option of a tmpfs"),
                if TMPFS_VALUES.contains(&key) {
                    format!(
                        "write a value as mount(8) takes it, as in `{}`",
                        match key {
                            "size" => "size=64m",
                            "mode" => "mode=1777",
                            "uid" => "uid=1000",
                            "gid" => "gid=1000",
                            _ => "nr_inodes=10k",
                        }
                    )
                } else {
                    suggest::hint(
                        key,
                        TMPFS_VALUES.into_iter().chain(TMPFS_FLAGS),
                        "the options are",
                    )
                },
            ));
        }
        if !seen.insert(key) {
            return Err(Refusal::new(
                format!("the option `{key}` stands twice in `{text}`"),
                "leave one of them out",
            ));
        }
        tmpfs.options.insert(option.to_owned());
    }
    Ok((target, tmpfs))
}

fn tmpfs_value(key: &str, value: &str) -> bool {
    let digits = |text: &str, digit: fn(&u8) -> bool| {
        (1..=15).contains(&text.len()) && text.as_bytes().iter().all(digit)
    };
    match key {
        "mode" => value.len() <= 5 && digits(value, |b| (b'0'..=b'7').contains(b)),
        "uid" | "gid" => value.parse::<u32>().is_ok() && digits(value, u8::is_ascii_digit),
        _ => digits(
            value
                .strip_suffix(['k', 'm', 'g', 'K', 'M', 'G', '%'])
                .unwrap_or(value),
            u8::is_ascii_digit,
        ),
    }
}

fn read_files(
    component: &Table<'_, '_>,
    service: &ServiceName,
    lookup: &FileLookup<'_>,
    errors: &mut Errors<'_>,
) -> Vec<(String, Place, FileMount)> {
    const FORM: &str = "write `files = [{ from = \"files/…\", to = \"/…\" }]`";
    let mut files = Vec::new();
    let Some((_, items)) =
        component.array("files", "a list of tables", |_| FORM.to_owned(), errors)
    else {
        return files;
    };
    for item in items {
        let DeValue::Table(inner) = item.get_ref() else {
            wrong_type("an item of `files`", "a table", item, FORM, errors);
            continue;
        };
        let table = Table::new(inner, item.span(), &FILE, errors);
        let from = required(&table, "from", errors);
        let to = required(&table, "to", errors);
        let mode = table.parsed("mode", values::mode, errors);
        let owner = table.parsed("owner", values::owner, errors);
        let on_change = table.parsed("on_change", parse_on_change, errors);
        let target = to
            .as_ref()
            .and_then(|to| parse_text(to, values::mount_target, errors));
        let Some(from) = from else { continue };
        let Some(path) = parse_text(&from, |text| parse_from(text, service), errors) else {
            continue;
        };
        let Some(digest) = lookup(&path) else {
            errors.push(
                Kind::Reference,
                from.place,
                format!("the revision holds no file `{path}`"),
                "add the file to the repository, or mend the path: it counts from the repository's root",
            );
            continue;
        };
        if let (Some(to), Some(target)) = (to, target) {
            files.push((
                target,
                to.place,
                FileMount {
                    from: path,
                    digest,
                    mode: mode.unwrap_or(FILE_MODE),
                    owner,
                    on_change: on_change.unwrap_or(OnChange::Recreate),
                },
            ));
        }
    }
    files
}

fn required<'t>(table: &Table<'t, '_>, key: &str, errors: &mut Errors<'_>) -> Option<Text<'t>> {
    if table.get(key).is_none() {
        table.missing(key, "write `{ from = \"files/…\", to = \"/…\" }`", errors);
    }
    table.string(key, errors)
}

/// A path in the repository, below the service's own directory of files.
fn parse_from(text: &str, service: &ServiceName) -> Result<String, Refusal> {
    if text.starts_with('/') {
        return Err(Refusal::new(
            format!("`{text}` is absolute, and `from` is a path in the repository"),
            format!("write `files/{service}/…`, or mount a file of the node with `volumes`"),
        ));
    }
    if text.split('/').any(|segment| segment == "..") {
        return Err(Refusal::new(
            format!("`{text}` has a `..`"),
            format!("write the path from the repository's root, `files/{service}/…`"),
        ));
    }
    if text.chars().any(char::is_control) || text.contains('\\') {
        return Err(Refusal::new(
            format!("`{text}` holds a control character or a `\\`"),
            "write the path with `/` between its parts",
        ));
    }
    let segments: Vec<&str> = text
        .split('/')
        .filter(|segment| !matches!(*segment, "" | "."))
        .collect();
    match segments[..] {
        ["files", owner, _, ..] if owner == service.as_str() => Ok(segments.join("/")),
        ["files", owner, _, ..] => Err(Refusal::new(
            format!("`{text}` belongs to `{owner}`, and `{service}` mounts only files of its own"),
            format!("put a copy at `files/{service}/…` and mount that"),
        )),
        _ => Err(Refusal::new(
            format!("`{text}` is outside of the service's files"),
            format!("put the file at `files/{service}/…` and write that path"),
        )),
    }
}

fn parse_on_change(text: &str) -> Result<OnChange, Refusal> {
    match text {
        "recreate" => Ok(OnChange::Recreate),
        "restart" => Ok(OnChange::Restart),
        "none" => Ok(OnChange::None),
        "signal" => Err(Refusal::new(
            "`signal` does not say which one",
            "write `on_change = \"signal:HUP\"`",
        )),
        _ => match text.strip_prefix("signal:") {
            Some(name) => values::signal(name).map(OnChange::Signal),
            None => Err(Refusal::new(
                format!("`{text}` is no value of `on_change`"),
                suggest::hint(
                    text,
                    ["recreate", "restart", "signal:HUP", "none"],
                    "write one of",
                ),
            )),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(text: &str) -> Result<(String, Volume), Refusal> {
        parse_volume(text, &"shop".parse().unwrap())
    }

    #[test]
    fn a_source_with_a_slash_is_a_bind_and_any_other_a_volume_of_the_service() {
        for (text, source, read_only) in [
            ("/srv/x:/x", VolumeSource::Bind("/srv/x".into()), false),
            ("/srv//x/:/x:ro", VolumeSource::Bind("/srv/x".into()), true),
            (
                "cache:/x:rw",
                VolumeSource::Named("shop_cache".into()),
                false,
            ),
            (
                "volume:/x",
                VolumeSource::Named("shop_volume".into()),
                false,
            ),
            (
                "volume:/x:ro",
                VolumeSource::Named("shop_volume".into()),
                true,
            ),
            (
                "volume:other_x:/x",
                VolumeSource::Named("other_x".into()),
                false,
            ),
            (
                "volume:other_x:/x:ro",
                VolumeSource::Named("other_x".into()),
                true,
            ),
        ] {
            assert_eq!(
                volume(text).unwrap(),
                ("/x".to_owned(), Volume { source, read_only }),
                "{text}"
            );
        }
        for (text, hint) in [
            ("/x", "give it a name"),
            ("", "write `SOURCE:TARGET"),
            ("a:b:c:d", "write `SOURCE:TARGET"),
            ("./a:/x", "`files`"),
            ("../a:/x", "`files`"),
            ("/a/../b:/x", "the path that it leads to"),
            ("~/a:/x", "home directory"),
            ("a:x", "write `/x`"),
            ("a:/", "below it"),
            ("/:/x", "that the program needs"),
            ("a:/x:z", "`:ro` or `:rw`"),
            ("_a:/x", "start with a letter"),
            (":/x", "start with a letter"),
        ] {
            let refusal = volume(text).unwrap_err();
            assert!(refusal.hint.contains(hint), "{text}: {refusal:?}");
        }
    }

    #[test]
    fn tmpfs_options_are_known_and_stand_once() {
        let (target, tmpfs) = parse_tmpfs("/run:size=64m,mode=1777,noexec").unwrap();
        assert_eq!(target, "/run");
        assert_eq!(tmpfs.options.len(), 3);
        for (text, hint) in [
            ("run", "write `/run`"),
            ("/run:", "the options are"),
            ("/run:noexe", "`noexec`"),
            ("/run:size=big", "size=64m"),
            ("/run:size=1m,size=2m", "leave one"),
            ("/run:size", "size=64m"),
            ("/run:mode=999", "mode=1777"),
        ] {
            let refusal = parse_tmpfs(text).unwrap_err();
            assert!(refusal.hint.contains(hint), "{text}: {refusal:?}");
        }
    }
}
