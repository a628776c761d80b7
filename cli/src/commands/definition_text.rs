//! A definition of the work tree as text, changed in place: comments, layout and everything that is not
//! asked for stay as they are.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use mcp_spec::component::ServiceSpec;
use mcp_spec::definition::{DefinitionError, DefinitionFile, parse_one};
use mcp_spec::image::Digest;
use mcp_spec::name::{ComponentName, ServiceName};
use toml_edit::{DocumentMut, Item, TableLike};

use super::repository;
use crate::context::Context;
use crate::error::{Exit, Failure};

/// Mode of a definition that is new.
const MODE: u32 = 0o644;

/// One definition's text.
#[derive(Debug, Clone)]
pub(crate) struct DefinitionText {
    /// Its path from the repository's root.
    pub(crate) name: String,
    file: PathBuf,
    before: Option<String>,
    text: String,
}

impl DefinitionText {
    /// The definition of `service`, whether it is there or not.
    pub(crate) fn read(context: &Context, service: &ServiceName) -> Result<Self, Failure> {
        let file = repository::definition_path(context, service);
        let before = match std::fs::read_to_string(&file) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                return Err(
                    Failure::failed(format!("{} cannot be read", file.display())).because(&error),
                );
            }
        };
        Ok(Self {
            name: format!("services/{service}.toml"),
            text: before.clone().unwrap_or_default(),
            before,
            file,
        })
    }

    /// Whether there is one.
    pub(crate) const fn exists(&self) -> bool {
        self.before.is_some()
    }

    /// Whether it is another than in the work tree.
    pub(crate) fn is_changed(&self) -> bool {
        self.before.as_deref() != Some(&self.text)
    }

    /// Its text.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// What it says, or what is wrong with it. Files that it names are taken to be there.
    pub(crate) fn spec(&self) -> Result<ServiceSpec, Vec<DefinitionError>> {
        let file = DefinitionFile {
            path: &self.name,
            bytes: self.text.as_bytes(),
        };
        match parse_one(file, &|_| Some(Digest::of(b""))) {
            (Some(spec), _) => Ok(spec),
            (None, errors) => Err(errors),
        }
    }

    /// Puts a text in place of the whole.
    pub(crate) fn replace(&mut self, text: String) {
        self.text = text;
    }

    /// Adds a part at the end, after an empty line.
    pub(crate) fn add(&mut self, part: &str) {
        if !self.text.is_empty() {
            if !self.text.ends_with('\n') {
                self.text.push('\n');
            }
            self.text.push('\n');
        }
        self.text.push_str(part);
    }

    /// Changes one component's table; `None` where there is no such component.
    pub(crate) fn edit<T>(
        &mut self,
        component: &ComponentName,
        change: impl FnOnce(&mut dyn TableLike) -> T,
    ) -> Option<T> {
        let mut document: DocumentMut = self.text.parse().ok()?;
        let table = component_mut(&mut document, component)?;
        let changed = change(table);
        self.text = document.to_string();
        Some(changed)
    }

    /// Writes it into the work tree, all of it or nothing.
    pub(crate) fn save(&self) -> Result<(), Failure> {
        let write = || -> std::io::Result<()> {
            let folder = self
                .file
                .parent()
                .ok_or_else(|| std::io::Error::other("it lies in no folder"))?;
            std::fs::create_dir_all(folder)?;
            let mode = std::fs::metadata(&self.file).map_or(MODE, |meta| meta.permissions().mode());
            let mut new = tempfile::NamedTempFile::new_in(folder)?;
            new.write_all(self.text.as_bytes())?;
            new.as_file()
                .set_permissions(std::fs::Permissions::from_mode(mode))?;
            new.as_file().sync_all()?;
            new.persist(&self.file).map_err(|error| error.error)?;
            Ok(())
        };
        write().map_err(|error| {
            Failure::new(
                Exit::Failed,
                format!("{} cannot be written", self.file.display()),
            )
            .because(&error)
        })
    }
}

/// The table of a component, however `components` is written.
fn component_mut<'d>(
    document: &'d mut DocumentMut,
    component: &ComponentName,
) -> Option<&'d mut dyn TableLike> {
    let is_it = |table: &dyn TableLike| {
        table.get("name").and_then(Item::as_str) == Some(component.as_str())
    };
    match document.get_mut("components")? {
        Item::ArrayOfTables(tables) => tables
            .iter_mut()
            .find(|table| is_it(*table))
            .map(|table| table as &mut dyn TableLike),
        Item::Value(toml_edit::Value::Array(tables)) => tables
            .iter_mut()
            .filter_map(toml_edit::Value::as_inline_table_mut)
            .find(|table| is_it(*table))
            .map(|table| table as &mut dyn TableLike),
        _ => None,
    }
}

/// Sets a key and keeps what stands around its value, as a comment behind it.
pub(crate) fn set(table: &mut dyn TableLike, key: &str, new: impl Into<toml_edit::Value>) {
    let mut new = new.into();
    match table.get_mut(key) {
        Some(Item::Value(old)) => {
            *new.decor_mut() = old.decor().clone();
            *old = new;
        }
        Some(item) => *item = Item::Value(new),
        None => drop(table.insert(key, Item::Value(new))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> DefinitionText {
        DefinitionText {
            name: "services/shop.toml".to_owned(),
            file: PathBuf::from("shop.toml"),
            before: Some(text.to_owned()),
            text: text.to_owned(),
        }
    }

    const SHOP: &str = "# the shop\nname = \"shop\"\nnode = \"rift\"\n\n[[components]] # front\nname  = \"web\"   # it\nimage = \"web:v1\"\nresources = { memory = \"256MiB\", pids = 99 } # enough\n";

    #[test]
    fn a_value_is_set_and_every_comment_stays() {
        let mut shop = text(SHOP);
        let web = "web".parse().unwrap();
        shop.edit(&web, |table| {
            let resources = table.get_mut("resources").unwrap();
            set(resources.as_table_like_mut().unwrap(), "memory", "512MiB");
        })
        .unwrap();
        assert_eq!(shop.text(), SHOP.replace("256MiB", "512MiB"));
        assert_eq!(shop.edit(&"db".parse().unwrap(), |_| ()), None);
    }

    #[test]
    fn a_component_is_added_behind_the_others() {
        let mut shop = text(SHOP);
        shop.add("[[components]]\nname = \"db\"\nimage = \"db:v1\"\n");
        assert!(shop.text().starts_with(SHOP));
        let spec = shop.spec().unwrap();
        assert_eq!(spec.components.len(), 2);
        assert!(shop.is_changed());
    }
}
