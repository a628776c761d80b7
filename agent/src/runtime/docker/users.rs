//! Users and groups by name, looked up in a container's own tables.

use mcp_spec::component::ComponentSpec;

/// Size of a header and of the blocks of a tar archive.
const BLOCK: usize = 512;

/// A name that has to be in a table.
pub(super) struct Named<'s> {
    /// The table's path in the container.
    pub table: &'static str,
    /// What it is a table of.
    pub what: &'static str,
    /// The name.
    pub name: &'s str,
}

impl Named<'_> {
    /// Whether podman's refusal is about this name.
    pub(super) fn is_missed_by(&self, message: &str) -> bool {
        message.contains(&format!("unknown {} error", self.what))
            && message.contains(&format!("\"{}\"", self.name))
    }
}

/// What has to be in which table. Nothing for numbers, and nothing where something is mounted over the
/// tables, since what is in it then shows only at the start.
pub(super) fn named(spec: &ComponentSpec) -> Vec<Named<'_>> {
    let Some(written) = &spec.user else {
        return Vec::new();
    };
    let (user, group) = match written.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (written.as_str(), None),
    };
    let mounted = |table: &str| {
        [table, "/etc"].iter().any(|path| {
            spec.volumes.contains_key(*path)
                || spec.files.contains_key(*path)
                || spec.tmpfs.contains_key(*path)
        })
    };
    let is_name = |text: &str| !text.bytes().all(|b| b.is_ascii_digit());
    [
        Some(("/etc/passwd", "user", user)),
        group.map(|group| ("/etc/group", "group", group)),
    ]
    .into_iter()
    .flatten()
    .map(|(table, what, name)| Named { table, what, name })
    .filter(|entry| is_name(entry.name) && !mounted(entry.table))
    .collect()
}

/// Whether a table, which an engine gives as a tar archive of one file, has an entry of this name. An
/// archive without a plain file (a link, as some images have) counts as one that has it.
pub(super) fn is_in(archive: &[u8], name: &str) -> bool {
    let Some(table) = plain_file(archive) else {
        return true;
    };
    table
        .split(|byte| *byte == b'\n')
        .any(|line| line.split(|byte| *byte == b':').next() == Some(name.as_bytes()))
}

/// The first plain file of an archive, beyond the headers that only extend the next one.
fn plain_file(mut archive: &[u8]) -> Option<&[u8]> {
    loop {
        let header = archive.get(..BLOCK)?;
        let size = std::str::from_utf8(header.get(124..136)?)
            .ok()?
            .trim_matches(|c: char| c == '\0' || c == ' ');
        let size = usize::from_str_radix(size, 8).ok()?;
        match header[156] {
            b'0' | 0 => return archive.get(BLOCK..BLOCK.checked_add(size)?),
            b'x' | b'g' => {
                let padded = size.checked_next_multiple_of(BLOCK)?;
                archive = archive.get(BLOCK.checked_add(padded)?..)?;
            }
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: u8, content: &str) -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        block[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        block[156] = kind;
        block.extend_from_slice(content.as_bytes());
        block.resize(block.len().next_multiple_of(BLOCK), 0);
        block
    }

    #[test]
    fn names_are_looked_up_behind_extended_headers() {
        let table = "root:x:0:0:root:/:/bin/sh\napp:x:1000:1000::/:/bin/sh\n";
        let archive = [entry(b'x', "30 mtime=1.5\n"), entry(b'0', table)].concat();
        for (name, known) in [("root", true), ("app", true), ("ap", false), ("x", false)] {
            assert_eq!(is_in(&archive, name), known, "{name}");
        }
    }

    #[test]
    fn podman_s_refusal_names_what_is_missing() {
        let message = "determining run gid: group: unknown group error looking up group \"staff\"";
        let named = |what, name| Named {
            table: "/etc/group",
            what,
            name,
        };
        assert!(named("group", "staff").is_missed_by(message));
        assert!(!named("group", "users").is_missed_by(message));
        assert!(!named("user", "staff").is_missed_by(message));
    }

    #[test]
    fn what_cannot_be_read_counts_as_known() {
        for archive in [
            entry(b'2', ""),
            Vec::new(),
            vec![0xff; 700],
            vec![b'7'; 512],
        ] {
            assert!(is_in(&archive, "nobody"));
        }
    }
}
