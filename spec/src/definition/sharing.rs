//! `.mcp/shared.toml`: what services share, and who may.
//!
//! A signer who is limited to services must not reach another service through a network or a volume. So as
//! soon as `.mcp/allowed_signers` limits anybody, all that services share has to be listed, in a file that
//! owners alone sign. Without limits there is no such rule, and the file is only read.
//!
//! Files and secrets of the repository belong to one service each, and a definition cannot name another's.

use std::collections::{BTreeMap, BTreeSet};

use toml::de::{DeTable, DeValue};

use super::error::{DefinitionError, DefinitionErrorKind as Kind, Errors, Place};
use super::reader::{Schema, Table, string, wrong_type};
use super::values;
use crate::component::{ComponentSpec, Network, ServiceSpec, VolumeSource};
use crate::definition::DesiredSet;
use crate::name::{NodeName, ServiceName};
use crate::signature::AllowedSigners;

/// Where the file stands in a desired-state repository.
pub const SHARED_PATH: &str = ".mcp/shared.toml";

/// Largest file: a thousand times what people write.
const MAX_BYTES: usize = 1 << 20;

const FORM: &str = "write `NAME = [\"SERVICE\", \"SERVICE\"]`";

const SHARED: Schema = Schema {
    what: "shared.toml",
    keys: &["networks", "volumes"],
    not_yet: &[],
    elsewhere: |key| match key {
        "network" => Some("did you mean `networks`?".to_owned()),
        "volume" => Some("did you mean `volumes`?".to_owned()),
        "files" | "secrets" => Some(format!(
            "{key} belong to one service each: put a copy below `{key}/SERVICE/`"
        )),
        _ => None,
    },
};

/// What a service reaches beyond itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    Network,
    Volume,
}

impl Thing {
    const fn word(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Volume => "volume",
        }
    }
}

/// Who may use what.
type Listed = BTreeMap<(Thing, String), BTreeSet<ServiceName>>;

/// Who may use what, and whether that is asked at all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sharing {
    /// Services that limited signers sign for; where there are none nothing is asked.
    limited: BTreeSet<ServiceName>,
    listed: Listed,
}

/// What the services of a set use that is not their own, and what they answer to.
#[derive(Default)]
struct Uses<'a> {
    by: BTreeMap<(&'a NodeName, Thing, &'a str), BTreeSet<&'a ServiceName>>,
    of: BTreeMap<&'a ServiceName, BTreeSet<(Thing, &'a str)>>,
    /// By node, network and name.
    names: BTreeMap<(&'a NodeName, &'a str, &'a str), BTreeSet<&'a ServiceName>>,
}

impl Sharing {
    /// What a revision's signers and its `shared.toml`, if it has one, say.
    ///
    /// # Errors
    ///
    /// Every error of `shared.toml`, also where nobody is limited.
    pub fn read(
        signers: Option<&AllowedSigners>,
        shared: Option<&[u8]>,
    ) -> Result<Self, Vec<DefinitionError>> {
        let limited = signers
            .iter()
            .flat_map(|signers| signers.iter())
            .filter(|signer| signer.may_sign())
            .flat_map(|signer| signer.services.iter().flatten().cloned())
            .collect();
        let listed = shared.map(read_file).transpose()?.unwrap_or_default();
        Ok(Self { limited, listed })
    }

    /// Whether anything is asked: some signer is limited to services.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        !self.limited.is_empty()
    }

    /// Everything in a set that is shared and not listed, as errors of the definitions, whose texts `text`
    /// gives by path.
    #[must_use]
    pub fn errors<'t>(
        &self,
        set: &DesiredSet,
        text: &dyn Fn(&str) -> Option<&'t [u8]>,
    ) -> Vec<DefinitionError> {
        if !self.is_asked() {
            return Vec::new();
        }
        let uses = Uses::of(set);
        let mut all = Vec::new();
        for service in set.services.values() {
            let path = format!("services/{}.toml", service.name);
            let text = text(&path).and_then(|bytes| std::str::from_utf8(bytes).ok());
            let text = text.unwrap_or_default();
            let mut errors = Errors::new(&path, text);
            for (thing, name) in uses.of.get(&service.name).into_iter().flatten() {
                let Some(why) = self.refusal(set, &uses, service, *thing, name) else {
                    continue;
                };
                let thing = thing.word();
                errors.push(
                    Kind::Conflict,
                    place(text, name),
                    format!(
                        "`{}` uses the {thing} `{name}`, {why}, and .mcp/shared.toml does not list it for it",
                        service.name
                    ),
                    format!(
                        "an owner adds it to .mcp/shared.toml: under `[{thing}s]`, `{name} = [\"{}\", …]`",
                        service.name
                    ),
                );
            }
            self.taken_names(&uses, service, text, &mut errors);
            all.extend(errors.into_sorted());
        }
        all
    }

    /// Whether a set shares nothing that is not listed.
    #[must_use]
    pub fn allows(&self, set: &DesiredSet) -> bool {
        self.errors(set, &|_| None).is_empty()
    }

    fn lists(&self, thing: Thing, name: &str, service: &ServiceName) -> bool {
        self.listed
            .get(&(thing, name.to_owned()))
            .is_some_and(|services| services.contains(service))
    }

    /// Why a service may not use something that is not its own; `None` where it may.
    fn refusal(
        &self,
        set: &DesiredSet,
        uses: &Uses<'_>,
        service: &ServiceSpec,
        thing: Thing,
        name: &str,
    ) -> Option<String> {
        if self.lists(thing, name, &service.name) {
            return None;
        }
        let owner = match thing {
            Thing::Network => Some(name),
            Thing::Volume => prefix(name),
        };
        let owner = owner.and_then(|owner| owner.parse::<ServiceName>().ok());
        if let Some(owner) = owner.filter(|owner| set.services.contains_key(owner)) {
            return Some(format!("which is `{owner}`'s"));
        }
        let users = uses.by.get(&(&service.node, thing, name));
        let other = users
            .into_iter()
            .flatten()
            .find(|other| ***other != service.name);
        if let Some(other) = other {
            return Some(format!("as `{other}` does"));
        }
        if self.listed.contains_key(&(thing, name.to_owned())) {
            return Some("which others share".to_owned());
        }
        self.limited
            .contains(&service.name)
            .then(|| "which is not its own, while its signer is limited to it".to_owned())
    }

    /// On a network that is shared, a limited service must not answer to the name of another's component.
    fn taken_names(
        &self,
        uses: &Uses<'_>,
        service: &ServiceSpec,
        text: &str,
        errors: &mut Errors<'_>,
    ) {
        if !self.limited.contains(&service.name) {
            return;
        }
        for spec in service.components.values() {
            for (network, name) in names(spec) {
                let taken = uses
                    .names
                    .get(&(&service.node, network, name))
                    .into_iter()
                    .flatten()
                    .find(|other| ***other != service.name);
                if let Some(other) = taken {
                    errors.push(
                        Kind::Conflict,
                        place(text, name),
                        format!(
                            "on the network `{network}`, `{}` would answer to `{name}`, as `{other}` does",
                            service.name
                        ),
                        "take another name",
                    );
                }
            }
        }
    }
}

impl<'a> Uses<'a> {
    fn of(set: &'a DesiredSet) -> Self {
        let mut uses = Self::default();
        for service in set.services.values() {
            for spec in service.components.values() {
                match &spec.network {
                    Network::None => {}
                    // The node's own, and that of everything that names no other: shared by nature.
                    Network::Host => uses.add(service, Thing::Network, "host"),
                    Network::Bridge => uses.add(service, Thing::Network, "bridge"),
                    Network::User(networks) => {
                        for name in networks.keys() {
                            if name != service.name.as_str() {
                                uses.add(service, Thing::Network, name);
                            }
                        }
                    }
                }
                for volume in spec.volumes.values() {
                    if let VolumeSource::Named(name) = &volume.source
                        && prefix(name) != Some(service.name.as_str())
                    {
                        uses.add(service, Thing::Volume, name);
                    }
                }
                for (network, name) in names(spec) {
                    let named = uses.names.entry((&service.node, network, name));
                    named.or_default().insert(&service.name);
                }
            }
        }
        uses
    }

    fn add(&mut self, service: &'a ServiceSpec, thing: Thing, name: &'a str) {
        let by = self.by.entry((&service.node, thing, name));
        by.or_default().insert(&service.name);
        let of = self.of.entry(&service.name);
        of.or_default().insert((thing, name));
    }
}

/// What a component answers to, network by network; newer engines resolve the host name as well.
fn names(spec: &ComponentSpec) -> impl Iterator<Item = (&str, &str)> {
    let networks = match &spec.network {
        Network::User(networks) => Some(networks),
        _ => None,
    };
    networks
        .into_iter()
        .flatten()
        .flat_map(|(network, attachment)| {
            let aliases = attachment.aliases.iter().map(String::as_str);
            aliases
                .chain(spec.hostname.as_deref())
                .map(move |name| (network.as_str(), name))
        })
}

/// The service's name before a volume's own: no service has an underscore in its name.
fn prefix(volume: &str) -> Option<&str> {
    volume.split_once('_').map(|(service, _)| service)
}

/// Where a name stands in a definition, whole.
fn place(text: &str, name: &str) -> Place {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let found = text.match_indices(name).find(|(at, _)| {
        !text[..*at].ends_with(is_part) && !text[at + name.len()..].starts_with(is_part)
    });
    found.map_or(0..0, |(at, _)| at..at + name.len())
}

fn read_file(bytes: &[u8]) -> Result<Listed, Vec<DefinitionError>> {
    let text = std::str::from_utf8(bytes);
    let mut errors = Errors::new(SHARED_PATH, text.unwrap_or_default());
    if bytes.len() > MAX_BYTES {
        errors.push(Kind::Bound, 0..0, "the file has more than 1 MiB", FORM);
        return Err(errors.into_sorted());
    }
    let Ok(text) = text else {
        errors.push(
            Kind::Encoding,
            0..0,
            "the file is not UTF-8",
            "save it as UTF-8",
        );
        return Err(errors.into_sorted());
    };
    let (tree, refused) = DeTable::parse_recoverable(text);
    for error in refused {
        errors.push(
            Kind::Syntax,
            error.span().unwrap_or(0..0),
            format!("this is not TOML: {}", error.message()),
            FORM,
        );
    }
    let mut listed = BTreeMap::new();
    if errors.is_empty() {
        let table = Table::new(tree.get_ref(), 0..0, &SHARED, &mut errors);
        for (key, thing) in [("networks", Thing::Network), ("volumes", Thing::Volume)] {
            let Some(entry) = table.get(key) else {
                continue;
            };
            let DeValue::Table(names) = entry.value.get_ref() else {
                wrong_type(
                    &format!("`{key}`"),
                    "a table",
                    entry.value,
                    FORM,
                    &mut errors,
                );
                continue;
            };
            read_names(thing, names, &mut listed, &mut errors);
        }
    }
    if errors.is_empty() {
        Ok(listed)
    } else {
        Err(errors.into_sorted())
    }
}

fn read_names(thing: Thing, names: &DeTable<'_>, listed: &mut Listed, errors: &mut Errors<'_>) {
    for (name, value) in names {
        let DeValue::Array(items) = value.get_ref() else {
            let what = format!("the {} `{}`", thing.word(), name.get_ref());
            wrong_type(&what, "a list of services", value, FORM, errors);
            continue;
        };
        let mut services = BTreeSet::new();
        for item in items {
            let Some(text) = string("a service", item, errors) else {
                continue;
            };
            match values::service_name(text.text) {
                Ok(service) if services.insert(service.clone()) => {}
                Ok(service) => errors.push(
                    Kind::Duplicate,
                    text.place,
                    format!("`{service}` stands here twice"),
                    "leave one of them out",
                ),
                Err(refusal) => {
                    errors.push(Kind::Value, text.place, refusal.message, refusal.hint);
                }
            }
        }
        listed.insert((thing, name.get_ref().to_string()), services);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::{DefinitionFile, compile};
    use crate::samples;
    use crate::signature::testing::public;

    /// `shop` and `cart` by one signer each, `mail` by an owner.
    fn signers() -> AllowedSigners {
        let lines = [
            AllowedSigners::line_for("owner", &public(1), &["git", "mcp-owner"]),
            AllowedSigners::line_for("shop", &public(2), &["git", "mcp-service-shop"]),
            AllowedSigners::line_for("cart", &public(3), &["git", "mcp-service-cart"]),
        ];
        AllowedSigners::parse(&lines.join("\n")).unwrap()
    }

    fn definition(name: &str, node: &str, keys: &str) -> (String, String) {
        let text = format!(
            "name = \"{name}\"\nnode = \"{node}\"\n[[components]]\nname = \"api\"\nimage = \"localhost/a:v1\"\n{keys}\n"
        );
        (format!("services/{name}.toml"), text)
    }

    fn verdict(shared: &str, definitions: &[(String, String)]) -> Vec<DefinitionError> {
        let sharing = Sharing::read(Some(&signers()), Some(shared.as_bytes())).unwrap();
        let files: Vec<DefinitionFile<'_>> = definitions
            .iter()
            .map(|(path, text)| DefinitionFile {
                path,
                bytes: text.as_bytes(),
            })
            .collect();
        let set = compile(&files, &samples::lookup).unwrap();
        let errors = sharing.errors(&set, &|path| {
            let found = definitions.iter().find(|(known, _)| known == path);
            found.map(|(_, text)| text.as_bytes())
        });
        assert_eq!(errors.is_empty(), sharing.allows(&set));
        // Without a limited signer nothing is asked.
        assert!(Sharing::default().allows(&set));
        errors
    }

    #[test]
    fn own_network_and_volumes_need_no_listing() {
        let all = [
            definition(
                "shop",
                "rift",
                "volumes = [\"data:/data\", \"/srv/shop:/x\"]",
            ),
            definition("cart", "rift", "network = \"none\""),
            definition("mail", "rift", "networks = [\"mail\", \"backend\"]"),
        ];
        assert_eq!(verdict("", &all), []);
    }

    #[test]
    fn limited_service_reaches_nothing_of_others_unless_it_is_listed() {
        for (keys, name, listing) in [
            (
                "network = \"mail\"",
                "mail",
                "[networks]\nmail = [\"shop\"]",
            ),
            (
                "network = \"backend\"",
                "backend",
                "[networks]\nbackend = [\"shop\", \"mail\"]",
            ),
            (
                "networks = { mail = { aliases = [\"x\"] }, shop = {} }",
                "mail",
                "[networks]\nmail = [\"shop\"]",
            ),
            (
                "network = \"host\"",
                "host",
                "[networks]\nhost = [\"shop\"]",
            ),
            (
                "network = \"bridge\"",
                "bridge",
                "[networks]\nbridge = [\"shop\"]",
            ),
            (
                "volumes = [\"volume:mail_data:/x:ro\"]",
                "mail_data",
                "[volumes]\nmail_data = [\"shop\"]",
            ),
            (
                "volumes = [\"volume:anything:/x\"]",
                "anything",
                "[volumes]\nanything = [\"shop\"]",
            ),
            (
                "volumes = [\"volume:gone_data:/x\"]",
                "gone_data",
                "[volumes]\ngone_data = [\"shop\"]",
            ),
        ] {
            let all = [
                definition("shop", "rift", keys),
                definition(
                    "mail",
                    "rift",
                    "networks = [\"mail\"]\nvolumes = [\"data:/data\"]",
                ),
            ];
            let errors = verdict("", &all);
            assert_eq!(errors.len(), 1, "{keys}: {errors:?}");
            assert_eq!(errors[0].file, "services/shop.toml");
            assert_eq!(errors[0].line, 6, "{keys}");
            assert!(errors[0].message.contains(name));
            assert_eq!(verdict(listing, &all), [], "{keys}");
            // Listed for another it is still not shop's.
            let others = listing.replace("\"shop\"", "\"cart\"");
            assert_eq!(verdict(&others, &all).len(), 1, "{keys}");
        }
    }

    #[test]
    fn what_two_services_share_is_listed_for_both() {
        let all = [
            definition("mail", "rift", "network = \"backend\""),
            definition("wiki", "rift", "network = \"backend\""),
        ];
        assert_eq!(verdict("", &all).len(), 2);
        assert_eq!(verdict("[networks]\nbackend = [\"mail\"]", &all).len(), 1);
        assert_eq!(
            verdict("[networks]\nbackend = [\"mail\", \"wiki\"]", &all),
            []
        );
        // A network is a node's own.
        let apart = [
            definition("mail", "rift", "network = \"backend\""),
            definition("wiki", "ember", "network = \"backend\""),
        ];
        assert_eq!(verdict("", &apart), []);
    }

    #[test]
    fn limited_service_takes_no_name_of_anothers_component() {
        let listing = "[networks]\nmail = [\"shop\"]\nback = [\"shop\", \"mail\"]";
        for keys in [
            "networks = { mail = { aliases = [\"api\"] } }",
            "networks = { mail = { aliases = [\"mail-api\"] } }",
            "networks = { back = { aliases = [\"db\"] } }",
            "network = \"mail\"\nhostname = \"mail-api\"",
        ] {
            let all = [
                definition("shop", "rift", keys),
                definition(
                    "mail",
                    "rift",
                    "networks = { mail = {}, back = { aliases = [\"db\"] } }",
                ),
            ];
            let errors = verdict(listing, &all);
            assert_eq!(errors.len(), 1, "{keys}: {errors:?}");
            assert!(errors[0].message.contains("answer to"));
        }
    }

    #[test]
    fn shared_file_is_refused_with_its_places() {
        let refused = |text: &str| {
            let errors = Sharing::read(None, Some(text.as_bytes())).unwrap_err();
            assert!(errors.iter().all(|error| error.file == SHARED_PATH));
            errors[0].line
        };
        assert_eq!(refused("[network]\n"), 1);
        assert_eq!(refused("\n[files]\n"), 2);
        assert_eq!(refused("networks = 1"), 1);
        assert_eq!(refused("[networks]\nback = \"shop\""), 2);
        assert_eq!(refused("[networks]\nback = [\"Shop\"]"), 2);
        assert_eq!(refused("[networks]\nback = [\"shop\", \"shop\"]"), 2);
        assert_eq!(refused("[networks\n"), 1);
        assert!(Sharing::read(None, Some(b"\xff")).is_err());
        assert!(Sharing::read(None, Some(&vec![b'#'; MAX_BYTES + 1])).is_err());
        let fine = Sharing::read(None, Some(b"# nothing\n[networks]\n")).unwrap();
        assert!(!fine.is_asked());
    }
}
