//! What single strings mean: names, images, paths, sizes, signals, users, capabilities.
//!
//! Each function takes the text as written and answers the canonical value, or a [`Refusal`].

use std::net::IpAddr;

use super::reader::Refusal;
use super::suggest;
use crate::component::HOST_GATEWAY;
use crate::image::{ImageError, ImageRef};
use crate::name::{ComponentName, NameError, NodeName, RESERVED_SERVICE_NAMES, ServiceName};
use crate::signal;

fn name_refusal(error: &NameError) -> Refusal {
    let hint = match error {
        NameError::Empty => "write a name, as in `web`".to_owned(),
        NameError::TooLong { .. } => "write a shorter name: it becomes a host name".to_owned(),
        NameError::BadCharacter { name, .. } => {
            let lower: String = name
                .to_lowercase()
                .chars()
                .map(|c| if matches!(c, '_' | '.' | ' ') { '-' } else { c })
                .collect();
            match lower.parse::<ComponentName>() {
                Ok(good) => format!("write `{good}`"),
                Err(_) => "write lower-case letters, digits and inner hyphens".to_owned(),
            }
        }
        NameError::Reserved { .. } => format!(
            "take another name: {} are reserved",
            RESERVED_SERVICE_NAMES.join(", ")
        ),
    };
    let message = match error {
        NameError::BadCharacter { name, found } => {
            format!("`{name}` is not a name: `{found}` cannot stand there")
        }
        _ => error.to_string(),
    };
    Refusal::new(message, hint)
}

/// A service's name.
pub(super) fn service_name(text: &str) -> Result<ServiceName, Refusal> {
    text.parse().map_err(|error| name_refusal(&error))
}

/// A node's name.
pub(super) fn node_name(text: &str) -> Result<NodeName, Refusal> {
    text.parse().map_err(|error| name_refusal(&error))
}

/// A component's name.
pub(super) fn component_name(text: &str) -> Result<ComponentName, Refusal> {
    text.parse().map_err(|error| name_refusal(&error))
}

/// An image reference, completed.
pub(super) fn image(text: &str) -> Result<ImageRef, Refusal> {
    text.parse().map_err(|error: ImageError| {
        let hint = match &error {
            ImageError::Digest { .. } => {
                "write `@sha256:` and 64 hexadecimal digits after the tag, or leave it out"
            }
            ImageError::Reference { .. } => {
                "write `NAME:TAG` or `REGISTRY/NAME:TAG`, as in `registry.example.net:5000/web:v1.4.0`"
            }
        };
        let message = match &error {
            ImageError::Digest { text } => format!("`{text}` is not an image digest"),
            ImageError::Reference { .. } => error.to_string(),
        };
        Refusal::new(message, hint)
    })
}

/// An absolute path, `//`, `/./` and a `/` at the end taken out.
pub(super) fn absolute_path(what: &str, text: &str) -> Result<String, Refusal> {
    if !text.starts_with('/') {
        let hint = if text.starts_with('~') {
            "write the home directory out: there is no shell that knows it".to_owned()
        } else {
            format!("write `/{}`", text.trim_start_matches("./"))
        };
        return Err(Refusal::new(
            format!("{what} `{text}` is not absolute"),
            hint,
        ));
    }
    if text.chars().any(char::is_control) {
        return Err(Refusal::new(
            format!("{what} `{text}` holds a control character"),
            "take it out",
        ));
    }
    let mut path = String::new();
    for segment in text.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                return Err(Refusal::new(
                    format!("{what} `{text}` has a `..`"),
                    "write the path that it leads to",
                ));
            }
            segment => {
                path.push('/');
                path.push_str(segment);
            }
        }
    }
    if path.is_empty() {
        path.push('/');
    }
    if path.len() > 4095 {
        return Err(Refusal::new(
            format!("{what} is longer than 4095 bytes"),
            "write a shorter path",
        ));
    }
    Ok(path)
}

/// A path in the container at which something is mounted.
pub(super) fn mount_target(text: &str) -> Result<String, Refusal> {
    let path = absolute_path("the target", text)?;
    if path == "/" {
        return Err(Refusal::new(
            "nothing can be mounted over `/`",
            "write a directory below it, as in `/srv/data`",
        ));
    }
    if path.contains(':') {
        return Err(Refusal::new(
            format!("the target `{text}` has a `:`"),
            "mount it at a path without one",
        ));
    }
    Ok(path)
}

const SIZE_UNITS: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// A text that is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SizeError {
    /// What is wrong.
    pub message: String,
    /// The mend.
    pub hint: String,
}

/// A size in bytes, as definitions write it.
///
/// # Errors
///
/// [`SizeError`].
pub fn size_bytes(text: &str) -> Result<u64, SizeError> {
    size(text).map_err(|Refusal { message, hint }| SizeError { message, hint })
}

/// A size in bytes: `512MiB`, `1.5GiB`, and as docker reads them `512m`, `512MB`, all powers of 1024.
pub(super) fn size(text: &str) -> Result<u64, Refusal> {
    let malformed = || {
        Refusal::new(
            format!("`{text}` is not a size"),
            "write a number and a unit, as in `512MiB` or `2GiB`",
        )
    };
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > 6 {
        return Err(malformed());
    }
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" => {
            return Err(Refusal::new(
                format!("the size `{text}` has no unit"),
                format!("write `{text}MiB` or another of B, KiB, MiB, GiB, TiB"),
            ));
        }
        "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => {
            return Err(Refusal::new(
                format!("`{unit}` is no unit of size"),
                "write one of B, KiB, MiB, GiB, TiB",
            ));
        }
    };
    let scale = 10_u128.pow(fraction.len() as u32);
    let whole: u128 = whole.parse().map_err(|_| malformed())?;
    let fraction: u128 = fraction.parse().map_err(|_| malformed())?;
    whole
        .checked_mul(scale)
        .and_then(|whole| whole.checked_add(fraction))
        .and_then(|all| all.checked_mul(1 << shift))
        .map(|bytes| bytes / scale)
        .and_then(|bytes| u64::try_from(bytes).ok())
        .filter(|bytes| i64::try_from(*bytes).is_ok())
        .ok_or_else(|| {
            Refusal::new(
                format!("the size `{text}` is larger than any machine"),
                "write a smaller one",
            )
        })
}

/// A size as [`size`] reads it back, in the largest unit that is exact.
#[must_use]
pub fn size_text(bytes: u64) -> String {
    let (unit, scale) = SIZE_UNITS
        .iter()
        .find(|(_, scale)| bytes >= *scale && bytes.is_multiple_of(*scale))
        .unwrap_or(&("B", 1));
    format!("{}{unit}", bytes / scale)
}

/// A signal by name or Linux number, as `SIGTERM` or `SIGRTMIN+3`.
pub(super) fn signal(text: &str) -> Result<String, Refusal> {
    signal::canonical(text).ok_or_else(|| {
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        Refusal::new(
            format!("`{text}` is not a signal"),
            match suggest::closest(name, signal::names()) {
                Some(near) => format!("did you mean `SIG{near}`?"),
                None => "write its name, as in `SIGTERM`, or its Linux number".to_owned(),
            },
        )
    })
}

/// `USER[:GROUP]`, by name or number.
pub(super) fn user(text: &str) -> Result<String, Refusal> {
    let part = |part: &str| {
        let mut bytes = part.bytes();
        let Some(first) = bytes.next() else {
            return false;
        };
        if first.is_ascii_digit() {
            return part.parse::<u32>().is_ok_and(|id| id.to_string() == part);
        }
        part.len() <= 64
            && (first.is_ascii_alphabetic() || first == b'_')
            && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'$'))
    };
    let good = match text.split_once(':') {
        Some((user, group)) => part(user) && part(group),
        None => part(text),
    };
    if good {
        Ok(text.to_owned())
    } else {
        Err(Refusal::new(
            format!("`{text}` is not a user"),
            "write `USER` or `USER:GROUP`, by name or number, as in `1000:1000` or `nginx`",
        ))
    }
}

/// `UID:GID`, numbers only.
pub(super) fn owner(text: &str) -> Result<(u32, u32), Refusal> {
    text.split_once(':')
        .and_then(|(uid, gid)| Some((digits(uid)?, digits(gid)?)))
        .ok_or_else(|| {
            Refusal::new(
                format!("`{text}` is not an owner"),
                "write two numbers, as in `owner = \"1000:1000\"`: names are known only inside the container",
            )
        })
}

fn digits(text: &str) -> Option<u32> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// Permission bits in octal digits.
pub(super) fn mode(text: &str) -> Result<u32, Refusal> {
    let octal = text.strip_prefix("0o").unwrap_or(text);
    if (3..=5).contains(&octal.len())
        && octal.bytes().all(|b| (b'0'..=b'7').contains(&b))
        && let Ok(mode) = u32::from_str_radix(octal, 8)
        && mode <= 0o7777
    {
        return Ok(mode);
    }
    Err(Refusal::new(
        format!("`{text}` is not a file mode"),
        "write octal digits, as in `mode = \"0640\"`",
    ))
}

fn is_host_name(text: &str) -> bool {
    text.split('.').all(|label| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    })
}

/// A host name: labels of letters, digits and inner hyphens, 64 bytes in all (Linux' bound).
pub(super) fn hostname(text: &str) -> Result<String, Refusal> {
    if text.len() <= 64 && is_host_name(text) {
        return Ok(text.to_owned());
    }
    Err(Refusal::new(
        format!("`{text}` is not a host name"),
        "write at most 64 letters, digits and inner hyphens, as in `web` or `web.example.net`",
    ))
}

/// A name to which a container answers on a network.
pub(super) fn alias(text: &str) -> Result<String, Refusal> {
    // Underscores are no host name, yet resolvers answer to them and compose files use them.
    if text.len() <= 253 && is_host_name(&text.replace('_', "x")) {
        return Ok(text.to_owned());
    }
    Err(Refusal::new(
        format!("`{text}` is not an alias"),
        "write a host name, as in `db` or `db.internal`",
    ))
}

/// The address of a line of `/etc/hosts`.
pub(super) fn host_address(text: &str) -> Result<String, Refusal> {
    if text == HOST_GATEWAY {
        return Ok(text.to_owned());
    }
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .unwrap_or(text);
    bare.parse::<IpAddr>()
        .map(|ip| ip.to_string())
        .map_err(|_| {
            Refusal::new(
                format!("`{text}` is not an IP address"),
                "write an address, as in `10.0.0.5`, or `host-gateway` for the node",
            )
        })
}

/// A name server.
pub(super) fn name_server(text: &str) -> Result<IpAddr, Refusal> {
    text.parse().map_err(|_| {
        Refusal::new(
            format!("`{text}` is not an IP address"),
            "write the name server's address, as in `10.0.0.53`",
        )
    })
}

const CAPABILITIES: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

/// A Linux capability without its `CAP_`, upper case, or `ALL`.
pub(super) fn capability(text: &str) -> Result<String, Refusal> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if name == "ALL" || CAPABILITIES.contains(&name) {
        return Ok(name.to_owned());
    }
    Err(Refusal::new(
        format!("`{text}` is not a capability"),
        match suggest::closest(name, CAPABILITIES) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "write a name of capabilities(7), as in `NET_ADMIN`, or `ALL`".to_owned(),
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_back_as_written() {
        for (text, bytes, canonical) in [
            ("512MiB", 512 << 20, "512MiB"),
            ("512MB", 512 << 20, "512MiB"),
            ("512m", 512 << 20, "512MiB"),
            ("1.5GiB", 1536 << 20, "1536MiB"),
            ("1g", 1 << 30, "1GiB"),
            ("1024k", 1 << 20, "1MiB"),
            ("7b", 7, "7B"),
        ] {
            assert_eq!(size(text).unwrap(), bytes, "{text}");
            assert_eq!(size_text(bytes), canonical);
            assert_eq!(size(canonical).unwrap(), bytes);
        }
        for bad in [
            "",
            "512",
            "MiB",
            "1.MiB",
            ".5GiB",
            "-1g",
            "1 GiB",
            "1x",
            "1.2.3g",
            "99999999999g",
            "9999999999999999999999999999999999999999999999g",
        ] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn misspelt_signal_is_told_the_near_one() {
        assert_eq!(signal("term").unwrap(), "SIGTERM");
        assert!(signal("SIGTREM").unwrap_err().hint.contains("SIGTERM"));
    }

    #[test]
    fn paths_are_absolute_and_have_one_form() {
        for (text, path) in [("/a/b", "/a/b"), ("//a/./b/", "/a/b"), ("/", "/")] {
            assert_eq!(absolute_path("it", text).unwrap(), path);
        }
        for bad in ["", "a", "./a", "~/a", "/a/../b", "/a\nb"] {
            assert!(absolute_path("it", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn users_and_modes_follow_their_grammar() {
        for good in ["0", "0:0", "nginx", "www-data:1000", "_x", "1000:staff"] {
            assert!(user(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            ":",
            "a:",
            ":b",
            "a b",
            "-a",
            "4294967296",
            "a:b:c",
            "007",
        ] {
            assert!(user(bad).is_err(), "{bad}");
        }
        assert_eq!(mode("0640").unwrap(), 0o640);
        assert_eq!(mode("644").unwrap(), 0o644);
        for bad in ["", "64", "0999", "rw-", "77777"] {
            assert!(mode(bad).is_err(), "{bad}");
        }
    }
}
