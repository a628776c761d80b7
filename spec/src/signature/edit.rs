//! Changing `.mcp/allowed_signers` as a text: a line more, a line less, another key in a line.
//!
//! Comments, order and every other line stay as they are. Each change is read back before it is given,
//! so nothing is written that the nodes would not read in the same way.

use std::collections::BTreeSet;

use ssh_key::PublicKey;
use thiserror::Error;

use super::keys::{self, KeyFault};
use super::signers::{self, AllowedSigners, AllowedSignersError, Signer};
use super::{
    GIT_NAMESPACE, OWNER_NAMESPACE, REQUEST_NAMESPACE, SERVICE_NAMESPACE_PREFIX, fingerprint,
};
use crate::name::ServiceName;

/// What a key is to be allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grant {
    /// To sign everything, `.mcp/` included.
    Owner,
    /// To sign everything but `.mcp/`.
    Everything,
    /// To sign for these services alone.
    Services(BTreeSet<ServiceName>),
}

impl Grant {
    /// The namespaces that say so.
    #[must_use]
    pub fn namespaces(&self) -> Vec<String> {
        let mut names = vec![GIT_NAMESPACE.to_owned()];
        if matches!(self, Self::Owner) {
            names.push(OWNER_NAMESPACE.to_owned());
        }
        names.push(REQUEST_NAMESPACE.to_owned());
        if let Self::Services(services) = self {
            let limits = services
                .iter()
                .map(|service| format!("{SERVICE_NAMESPACE_PREFIX}{service}"));
            names.extend(limits);
        }
        names
    }
}

/// Why the signers cannot be changed in this way.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SignersEditError {
    /// The changed file would be refused.
    #[error("the changed file would be refused: {0}")]
    Refused(AllowedSignersError),
    /// The name would end a line, or start a comment.
    #[error("`{principal}` cannot name a signer: write one name such as kyle@example.net")]
    Principal {
        /// The refused text.
        principal: String,
    },
    /// The key is there already.
    #[error("the key {fingerprint} is there already, as {principal}'s")]
    AlreadyThere {
        /// The key.
        fingerprint: String,
        /// Whose it is.
        principal: String,
    },
    /// Neither a principal nor a key of the file.
    #[error("`{wanted}` is neither the name nor the key of a signer")]
    Unknown {
        /// What was asked for.
        wanted: String,
    },
    /// Several keys of one principal.
    #[error("{principal} has {} keys: {}", fingerprints.len(), fingerprints.join(", "))]
    Ambiguous {
        /// The principal.
        principal: String,
        /// Its keys.
        fingerprints: Vec<String>,
    },
    /// Nobody could change `.mcp/` any more.
    #[error("it would leave no owner, and nobody could ever change the signers again")]
    NoOwnerLeft,
}

/// Reads `TYPE BASE64 [COMMENT]` as a key that may sign.
///
/// # Errors
///
/// [`KeyFault`]: anything but one Ed25519 public key.
pub fn parse_public_key(text: &str) -> Result<PublicKey, KeyFault> {
    let lines = keys::lines(text).map_err(|error| error.fault)?;
    match lines.as_slice() {
        [(_, line)] => keys::signing_key(line),
        [] => Err(KeyFault::Empty),
        [..] => Err(KeyFault::NoKey),
    }
}

/// The text of an `allowed_signers` file that was read without a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignersText {
    text: String,
    signers: AllowedSigners,
}

impl SignersText {
    /// Reads the file's bytes.
    ///
    /// # Errors
    ///
    /// [`AllowedSignersError`] with the first line that is refused.
    pub fn parse(bytes: &[u8]) -> Result<Self, AllowedSignersError> {
        let signers = AllowedSigners::parse_bytes(bytes)?;
        Ok(Self {
            text: String::from_utf8_lossy(bytes).into_owned(),
            signers,
        })
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What it says.
    #[must_use]
    pub const fn signers(&self) -> &AllowedSigners {
        &self.signers
    }

    /// The signers in the order of their lines.
    #[must_use]
    pub fn in_order(&self) -> Vec<&Signer> {
        self.lines()
            .into_iter()
            .filter_map(|(_, key)| self.signers.get(&key))
            .collect()
    }

    /// The one signer of this principal, fingerprint or public key.
    ///
    /// # Errors
    ///
    /// [`SignersEditError::Unknown`], and [`SignersEditError::Ambiguous`] for a principal of several keys.
    pub fn find(&self, wanted: &str) -> Result<&Signer, SignersEditError> {
        let wanted = wanted.trim();
        let as_key = parse_public_key(wanted).ok();
        let found: Vec<&Signer> = self
            .in_order()
            .into_iter()
            .filter(|signer| {
                signer.principal == wanted
                    || signer.fingerprint() == wanted.trim_end_matches('=')
                    || as_key
                        .as_ref()
                        .is_some_and(|key| key.key_data() == signer.key.key_data())
            })
            .collect();
        match found.as_slice() {
            [one] => Ok(one),
            [] => Err(SignersEditError::Unknown {
                wanted: wanted.chars().take(200).collect(),
            }),
            [first, ..] => Err(SignersEditError::Ambiguous {
                principal: first.principal.clone(),
                fingerprints: found.iter().map(|signer| signer.fingerprint()).collect(),
            }),
        }
    }

    /// With a line more, at the end.
    ///
    /// # Errors
    ///
    /// [`SignersEditError`]: a key that is there, a principal that is none.
    pub fn with(
        &self,
        principal: &str,
        key: &PublicKey,
        grant: &Grant,
    ) -> Result<Self, SignersEditError> {
        if let Some(known) = self.signers.get(key) {
            return Err(SignersEditError::AlreadyThere {
                fingerprint: known.fingerprint(),
                principal: known.principal.clone(),
            });
        }
        self.appended(principal, key, grant)
    }

    /// With this line for the key, whatever the file says of it now.
    ///
    /// # Errors
    ///
    /// [`SignersEditError`].
    pub fn with_in_place(
        &self,
        principal: &str,
        key: &PublicKey,
        grant: &Grant,
    ) -> Result<Self, SignersEditError> {
        let text = self.text_without(key);
        let rest = Self::parse(text.as_bytes()).map_err(SignersEditError::Refused)?;
        rest.appended(principal, key, grant)
    }

    /// Without the key's line.
    ///
    /// # Errors
    ///
    /// [`SignersEditError::Unknown`], and [`SignersEditError::NoOwnerLeft`].
    pub fn without(&self, key: &PublicKey) -> Result<Self, SignersEditError> {
        self.known(key)?;
        Self::checked(self.text_without(key))
    }

    /// With another key in the line of `old`, for the same principal and with the same rights.
    ///
    /// # Errors
    ///
    /// [`SignersEditError`].
    pub fn replaced(&self, old: &PublicKey, new: &PublicKey) -> Result<Self, SignersEditError> {
        let signer = self.known(old)?;
        if let Some(known) = self.signers.get(new) {
            return Err(SignersEditError::AlreadyThere {
                fingerprint: known.fingerprint(),
                principal: known.principal.clone(),
            });
        }
        let namespaces = signer.namespaces();
        let namespaces: Vec<&str> = namespaces.iter().map(String::as_str).collect();
        let line = AllowedSigners::line_for(&signer.principal, new, &namespaces);
        let number = self.line_of(old);
        let text = self
            .text
            .split('\n')
            .enumerate()
            .map(|(index, text)| {
                if Some(index + 1) == number {
                    line.as_str()
                } else {
                    text
                }
            })
            .collect::<Vec<_>>()
            .join("\n");
        Self::checked(text)
    }

    fn appended(
        &self,
        principal: &str,
        key: &PublicKey,
        grant: &Grant,
    ) -> Result<Self, SignersEditError> {
        let namespaces = grant.namespaces();
        let namespaces: Vec<&str> = namespaces.iter().map(String::as_str).collect();
        let mut text = self.text.clone();
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(&AllowedSigners::line_for(principal, key, &namespaces));
        text.push('\n');
        let refused = || SignersEditError::Principal {
            principal: principal.chars().take(80).collect(),
        };
        let changed = match Self::parse(text.as_bytes()) {
            Ok(changed) => changed,
            Err(_) if principal.is_empty() || principal.contains(char::is_whitespace) => {
                return Err(refused());
            }
            Err(error) => return Err(SignersEditError::Refused(error)),
        };
        // A line end or a comment sign in the name would make other lines of this one.
        let one_more = changed.signers.iter().count() == self.signers.iter().count() + 1;
        let is_named = changed
            .signers
            .get(key)
            .is_some_and(|signer| signer.principal == principal);
        if !one_more || !is_named {
            return Err(refused());
        }
        if !changed.signers.has_owner() {
            return Err(SignersEditError::NoOwnerLeft);
        }
        Ok(changed)
    }

    fn checked(text: String) -> Result<Self, SignersEditError> {
        let changed = Self::parse(text.as_bytes()).map_err(SignersEditError::Refused)?;
        if !changed.signers.has_owner() {
            return Err(SignersEditError::NoOwnerLeft);
        }
        Ok(changed)
    }

    fn known(&self, key: &PublicKey) -> Result<&Signer, SignersEditError> {
        self.signers
            .get(key)
            .ok_or_else(|| SignersEditError::Unknown {
                wanted: fingerprint(key),
            })
    }

    fn text_without(&self, key: &PublicKey) -> String {
        let number = self.line_of(key);
        self.text
            .split('\n')
            .enumerate()
            .filter(|(index, _)| Some(index + 1) != number)
            .map(|(_, text)| text)
            .collect::<Vec<_>>()
            .join("\n")
    }

    fn line_of(&self, key: &PublicKey) -> Option<usize> {
        self.lines()
            .into_iter()
            .find(|(_, known)| known.key_data() == key.key_data())
            .map(|(number, _)| number)
    }

    /// The numbers of the signers' lines, and their keys.
    fn lines(&self) -> Vec<(usize, PublicKey)> {
        keys::lines(&self.text)
            .unwrap_or_default()
            .into_iter()
            .filter_map(|(number, text)| Some((number, signers::signer(text).ok()?.key)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{openssh, public};
    use super::*;
    use proptest::prelude::*;

    const FILE: &str = "# who signs\n\nalice namespaces=\"git,mcp-owner\" KEY1 laptop\n# bob was asked\nbob@example.net namespaces=\"git,mcp-service-shop\" KEY2\nalice namespaces=\"git\" KEY3\n";

    fn file() -> SignersText {
        let mut text = FILE.to_owned();
        for seed in 1..=3 {
            text = text.replace(&format!("KEY{seed}"), &openssh(seed));
        }
        SignersText::parse(text.as_bytes()).unwrap()
    }

    fn services(names: &[&str]) -> Grant {
        Grant::Services(names.iter().map(|name| name.parse().unwrap()).collect())
    }

    #[test]
    fn line_is_added_at_the_end_and_all_else_stays() {
        let file = file();
        let added = file
            .with("carol", &public(4), &services(&["shop", "cart"]))
            .unwrap();
        let line = format!(
            "carol namespaces=\"git,mcp-request,mcp-service-cart,mcp-service-shop\" {}\n",
            openssh(4)
        );
        assert_eq!(added.as_str(), format!("{}{line}", file.as_str()));
        let carol = added.signers().get(&public(4)).unwrap();
        assert!(carol.may_sign() && carol.may_request() && !carol.is_owner());
        // A file without a last line end gets one first.
        let cut = SignersText::parse(file.as_str().trim_end().as_bytes()).unwrap();
        let owner = cut.with("dora", &public(5), &Grant::Owner).unwrap();
        assert!(owner.signers().get(&public(5)).unwrap().is_owner());
        assert_eq!(owner.in_order().len(), 4);
    }

    #[test]
    fn key_that_is_there_is_not_added_with_other_rights() {
        assert_eq!(
            file().with("eve", &public(2), &Grant::Owner),
            Err(SignersEditError::AlreadyThere {
                fingerprint: fingerprint(&public(2)),
                principal: "bob@example.net".to_owned()
            })
        );
        let placed = file()
            .with_in_place("bob", &public(2), &Grant::Owner)
            .unwrap();
        assert!(placed.signers().get(&public(2)).unwrap().is_owner());
        assert_eq!(placed.in_order().len(), 3);
    }

    #[test]
    fn principal_that_would_write_other_lines_is_refused() {
        for principal in [
            "",
            "a b",
            "eve\neve2",
            "#eve",
            "*",
            "eve,bob",
            "\"eve\"",
            "!eve",
            "eve namespaces=\"git,mcp-owner\" ssh-ed25519 AAAA\nx",
            &"e".repeat(200),
        ] {
            assert!(
                file()
                    .with(principal, &public(4), &Grant::Everything)
                    .is_err(),
                "{principal:?}"
            );
        }
    }

    #[test]
    fn line_is_removed_with_nothing_else() {
        let removed = file().without(&public(2)).unwrap();
        assert!(removed.as_str().contains("# bob was asked\nalice"));
        assert!(removed.signers().get(&public(2)).is_none());
        assert_eq!(removed.in_order().len(), 2);
        assert_eq!(
            file().without(&public(1)),
            Err(SignersEditError::NoOwnerLeft)
        );
        assert!(matches!(
            file().without(&public(9)),
            Err(SignersEditError::Unknown { .. })
        ));
    }

    #[test]
    fn key_is_replaced_in_its_line_with_its_rights() {
        let rotated = file().replaced(&public(1), &public(7)).unwrap();
        let alice = rotated.signers().get(&public(7)).unwrap();
        assert!(alice.is_owner() && alice.principal == "alice");
        assert!(rotated.signers().get(&public(1)).is_none());
        assert_eq!(rotated.in_order()[0].key.key_data(), public(7).key_data());
        assert!(matches!(
            file().replaced(&public(1), &public(2)),
            Err(SignersEditError::AlreadyThere { .. })
        ));
    }

    #[test]
    fn signer_is_found_by_name_fingerprint_or_key() {
        let file = file();
        assert_eq!(
            file.find("bob@example.net").unwrap().key.key_data(),
            public(2).key_data()
        );
        for wanted in [fingerprint(&public(3)), openssh(3)] {
            assert_eq!(
                file.find(&wanted).unwrap().key.key_data(),
                public(3).key_data()
            );
        }
        assert!(matches!(
            file.find("alice"),
            Err(SignersEditError::Ambiguous { fingerprints, .. }) if fingerprints.len() == 2
        ));
        assert!(matches!(
            file.find("bob"),
            Err(SignersEditError::Unknown { .. })
        ));
    }

    #[test]
    fn public_key_is_one_line() {
        assert!(parse_public_key(&format!("{} alice\n", openssh(1))).is_ok());
        assert_eq!(parse_public_key("# none\n"), Err(KeyFault::Empty));
        assert_eq!(
            parse_public_key(&format!("{}\n{}\n", openssh(1), openssh(2))),
            Err(KeyFault::NoKey)
        );
    }

    proptest! {
        #[test]
        fn any_name_is_refused_or_reads_back_as_itself(name in "\\PC{0,40}|[ -~\\n\\t]{0,40}") {
            if let Ok(added) = file().with(&name, &public(4), &Grant::Everything) {
                let signer = added.signers().get(&public(4)).unwrap();
                prop_assert_eq!(&signer.principal, &name);
                prop_assert!(signer.services.is_none() && !signer.is_owner());
                prop_assert_eq!(added.in_order().len(), 4);
            }
        }
    }
}
