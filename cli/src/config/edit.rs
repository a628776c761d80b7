//! Changing `mcp.toml` in place: comments, order and white space survive.
//!
//! The new text is written beside the file and renamed over it, so a crash leaves either.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use mcp_spec::name::NodeName;
use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, value};

use super::file::{self, ConfigError};

/// A node to be added.
#[derive(Debug)]
pub(crate) struct AddNode<'a> {
    /// Its name.
    pub(crate) name: &'a NodeName,
    /// `HOST:PORT`.
    pub(crate) address: &'a str,
    /// The CA's file, absolute.
    pub(crate) ca_cert: Option<&'a Path>,
    /// A pinned certificate.
    pub(crate) fingerprint: Option<&'a str>,
    /// The name in its certificate.
    pub(crate) server_name: Option<&'a str>,
}

/// Adds a `[[nodes]]` entry.
pub(crate) fn add_node(path: &Path, node: &AddNode<'_>) -> Result<(), ConfigError> {
    change(path, |document| {
        let mut table = Table::new();
        table["name"] = value(node.name.as_str());
        table["address"] = value(node.address);
        if let Some(ca) = node.ca_cert {
            table["ca_cert"] = value(ca.to_string_lossy().as_ref());
        }
        if let Some(fingerprint) = node.fingerprint {
            table["fingerprint"] = value(fingerprint);
        }
        if let Some(name) = node.server_name {
            table["server_name"] = value(name);
        }
        let nodes = document
            .entry("nodes")
            .or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
        // `nodes = []` is valid too; entries cannot be appended to that form.
        if !nodes.is_array_of_tables() {
            *nodes = Item::ArrayOfTables(
                nodes
                    .clone()
                    .into_array_of_tables()
                    .unwrap_or_else(|_| ArrayOfTables::new()),
            );
        }
        if let Some(nodes) = nodes.as_array_of_tables_mut() {
            nodes.push(table);
        }
    })
}

/// Takes a `[[nodes]]` entry away; whether there was one.
pub(crate) fn remove_node(path: &Path, name: &str) -> Result<bool, ConfigError> {
    let mut found = false;
    change(path, |document| {
        if let Some(nodes) = document
            .get_mut("nodes")
            .and_then(Item::as_array_of_tables_mut)
        {
            let before = nodes.len();
            nodes.retain(|node| node.get("name").and_then(Item::as_str) != Some(name));
            found = nodes.len() != before;
        }
    })?;
    Ok(found)
}

/// Sets a string at the top (`section` absent) or in a section.
pub(crate) fn set_string(
    path: &Path,
    section: Option<&str>,
    key: &str,
    text: &str,
) -> Result<(), ConfigError> {
    change(path, |document| match section {
        None => document[key] = value(text),
        Some(section) => {
            let table = document.entry(section).or_insert(Item::Table(Table::new()));
            table[key] = value(text);
        }
    })
}

fn change(path: &Path, edit: impl FnOnce(&mut DocumentMut)) -> Result<(), ConfigError> {
    let before = file::text(path)?;
    file::parse(path, &before)?;
    let mut document: DocumentMut =
        before
            .parse()
            .map_err(|error: toml_edit::TomlError| ConfigError::Syntax {
                path: path.to_owned(),
                line: 1,
                column: 1,
                message: error.message().to_owned(),
            })?;
    edit(&mut document);
    let after = document.to_string();
    if after != before {
        file::parse(path, &after)?;
        write(path, &after).map_err(|source| ConfigError::Write {
            path: path.to_owned(),
            source,
        })?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> std::io::Result<()> {
    // A configuration that is a link into somebody's dotfiles stays one.
    let target: PathBuf = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let folder = match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    };
    std::fs::create_dir_all(&folder)?;
    let mut file = tempfile::NamedTempFile::new_in(&folder)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(&target).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &NodeName) -> AddNode<'_> {
        AddNode {
            name,
            address: "127.0.0.1:9444",
            ca_cert: Some(Path::new("/ca.pem")),
            fingerprint: None,
            server_name: None,
        }
    }

    #[test]
    fn comments_survive_an_added_and_a_removed_node() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mcp.toml");
        let text = "# mine\nrepo = \"/x\" # here\n\n[[nodes]] # first\nname = \"rift\"\naddress = \"rift:9444\"\nca_cert = \"/ca\"\n";
        std::fs::write(&path, text).unwrap();
        let quill = "quill".parse().unwrap();
        add_node(&path, &node(&quill)).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            format!(
                "{text}\n[[nodes]]\nname = \"quill\"\naddress = \"127.0.0.1:9444\"\nca_cert = \"/ca.pem\"\n"
            )
        );
        assert!(remove_node(&path, "quill").unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        assert!(!remove_node(&path, "quill").unwrap());
    }

    #[test]
    fn setting_a_string_keeps_the_nodes_last() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/mcp.toml");
        let rift = "rift".parse().unwrap();
        add_node(&path, &node(&rift)).unwrap();
        set_string(&path, Some("sign"), "key", "~/.ssh/id").unwrap();
        set_string(&path, None, "repo", "/srv/desired").unwrap();
        let file = file::read(&path).unwrap();
        assert_eq!(file.repo.as_deref(), Some("/srv/desired"));
        assert_eq!(
            file.sign.and_then(|sign| sign.key).as_deref(),
            Some("~/.ssh/id")
        );
        assert_eq!(file.nodes.len(), 1);
    }
}
