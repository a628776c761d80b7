//! What a component asks of the node beyond the usual: `devices`, `ulimits`, `sysctls`, `security_opt`,
//! `privileged` and `log`. Whether the node's owner allows it is left to `policy`.

use std::collections::{BTreeMap, BTreeSet};

use toml::de::DeValue;

use super::error::{DefinitionErrorKind as Kind, Errors};
use super::reader::{
    Entry, Refusal, Schema, Table, insert_once, integer, parse_text, string, wrong_type,
};
use super::{suggest, values};
use crate::component::{Device, Log, Network, Ulimit};

/// Everything of this module, read.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub(super) devices: BTreeMap<String, Device>,
    pub(super) ulimits: BTreeMap<String, Ulimit>,
    pub(super) sysctls: BTreeMap<String, String>,
    pub(super) security_opt: BTreeSet<String>,
    pub(super) privileged: bool,
    pub(super) log: Option<Log>,
}

/// Reads it all.
pub(super) fn read(table: &Table<'_, '_>, network: &Network, errors: &mut Errors<'_>) -> Asked {
    let privileged = table.boolean("privileged", false, errors);
    if privileged {
        for key in ["cap_add", "cap_drop"] {
            if table.get(key).is_some() {
                errors.push(
                    Kind::Conflict,
                    table.place_of(key),
                    format!("`{key}` means nothing with `privileged = true`, which grants every capability"),
                    "leave `privileged` out, and name what the program needs with `cap_add`",
                );
            }
        }
    }
    Asked {
        devices: read_devices(table, errors),
        ulimits: read_ulimits(table, errors),
        sysctls: read_sysctls(table, network, errors),
        security_opt: read_security_opt(table, errors),
        privileged,
        log: read_log(table, errors),
    }
}

fn read_devices(table: &Table<'_, '_>, errors: &mut Errors<'_>) -> BTreeMap<String, Device> {
    let mut devices = BTreeMap::new();
    for text in table.strings("devices", errors).unwrap_or_default() {
        if let Some((target, device)) = parse_text(&text, parse_device, errors) {
            insert_once(
                &mut devices,
                target,
                device,
                "the device",
                text.place,
                errors,
            );
        }
    }
    devices
}

/// `HOST[:CONTAINER][:PERMISSIONS]`.
fn parse_device(text: &str) -> Result<(String, Device), Refusal> {
    const FORM: &str =
        "write `HOST[:CONTAINER][:rwm]`, as in `/dev/fuse` or `/dev/sdb:/dev/disk:r`";
    let parts: Vec<&str> = text.split(':').collect();
    let (host, target, permissions) = match parts[..] {
        [host] => (host, host, Device::ALL),
        [host, target] if target.starts_with('/') => (host, target, Device::ALL),
        [host, permissions] => (host, host, permissions),
        [host, target, permissions] => (host, target, permissions),
        _ => {
            return Err(Refusal::new(
                format!("`{text}` is not a device: it has too many `:`"),
                FORM,
            ));
        }
    };
    if !host.starts_with('/') {
        return Err(Refusal::new(
            format!("`{host}` is no path of a device"),
            FORM,
        ));
    }
    let host = values::absolute_path("the device", host)?;
    let target = values::mount_target(target)?;
    let distinct: BTreeSet<char> = permissions.chars().collect();
    if permissions.is_empty()
        || distinct.len() != permissions.len()
        || !permissions.chars().all(|c| Device::ALL.contains(c))
    {
        return Err(Refusal::new(
            format!("`{permissions}` is no permission of a device"),
            "write some of `r` (read), `w` (write) and `m` (make nodes), each once; all three where left out",
        ));
    }
    let permissions = Device::ALL
        .chars()
        .filter(|c| distinct.contains(c))
        .collect();
    Ok((target, Device { host, permissions }))
}

/// The limits of setrlimit(2) that both engines take.
const ULIMITS: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

const LIMIT: Schema = Schema {
    what: "a limit of `ulimits`",
    keys: &["soft", "hard"],
    not_yet: &[],
    elsewhere: |_| None,
};

fn read_ulimits(table: &Table<'_, '_>, errors: &mut Errors<'_>) -> BTreeMap<String, Ulimit> {
    const FORM: &str = "write `ulimits = { nofile = 65536 }`";
    let mut ulimits = BTreeMap::new();
    let Some(entry) = table.get("ulimits") else {
        return ulimits;
    };
    let DeValue::Table(inner) = entry.value.get_ref() else {
        wrong_type("`ulimits`", "a table", entry.value, FORM, errors);
        return ulimits;
    };
    for (key, value) in inner {
        let name = key.get_ref().as_ref();
        if !ULIMITS.contains(&name) {
            errors.push(
                Kind::Value,
                key.span(),
                format!("`{name}` is no limit of a process"),
                suggest::hint(
                    name.trim_start_matches("RLIMIT_")
                        .to_ascii_lowercase()
                        .as_str(),
                    ULIMITS,
                    "the limits are",
                ),
            );
            continue;
        }
        let entry = Entry {
            key: name,
            key_place: key.span(),
            value,
        };
        if let Some(limit) = read_ulimit(&entry, errors) {
            ulimits.insert(name.to_owned(), limit);
        }
    }
    ulimits
}

/// A number, `"SOFT:HARD"`, `"unlimited"`, or a table of both.
fn read_ulimit(entry: &Entry<'_, '_>, errors: &mut Errors<'_>) -> Option<Ulimit> {
    let name = entry.key;
    let what = format!("`ulimits.{name}`");
    let limit = match entry.value.get_ref() {
        DeValue::String(_) => {
            let text = string(&what, entry.value, errors)?;
            parse_text(&text, parse_ulimit, errors)?
        }
        DeValue::Table(inner) => {
            let table = Table::new(inner, entry.key_place.clone(), &LIMIT, errors);
            let mut side = |key: &str| -> Option<Option<u64>> {
                let Some(entry) = table.get(key) else {
                    table.missing(key, "write `{ soft = 1024, hard = 4096 }`", errors);
                    return None;
                };
                if let DeValue::String(_) = entry.value.get_ref() {
                    let text = string(&format!("`{key}`"), entry.value, errors)?;
                    return parse_text(&text, parse_limit, errors);
                }
                integer(&format!("`{key}`"), entry.value, (-1, i64::MAX), errors).map(limited)
            };
            let (soft, hard) = (side("soft"), side("hard"));
            Ulimit {
                soft: soft?,
                hard: hard?,
            }
        }
        _ => {
            let both = limited(integer(&what, entry.value, (-1, i64::MAX), errors)?);
            Ulimit {
                soft: both,
                hard: both,
            }
        }
    };
    if limit
        .hard
        .is_some_and(|hard| limit.soft.is_none_or(|soft| soft > hard))
    {
        errors.push(
            Kind::Value,
            entry.value.span(),
            format!("{what} has a soft limit above the hard one"),
            "write the soft limit first, as in `\"1024:4096\"`",
        );
        return None;
    }
    Some(limit)
}

/// A number as engines write it: -1 is unlimited.
fn limited(number: i64) -> Option<u64> {
    u64::try_from(number).ok()
}

fn parse_limit(text: &str) -> Result<Option<u64>, Refusal> {
    if matches!(text, "unlimited" | "-1") {
        return Ok(None);
    }
    text.parse::<u64>()
        .ok()
        .filter(|limit| i64::try_from(*limit).is_ok())
        .map(Some)
        .ok_or_else(|| {
            Refusal::new(
                format!("`{text}` is not a limit"),
                "write a number, `unlimited`, or both limits as in `1024:4096`",
            )
        })
}

fn parse_ulimit(text: &str) -> Result<Ulimit, Refusal> {
    let (soft, hard) = text.split_once(':').unwrap_or((text, text));
    Ok(Ulimit {
        soft: parse_limit(soft)?,
        hard: parse_limit(hard)?,
    })
}

/// The parameters below `kernel.` that an IPC namespace has of its own.
const IPC_SYSCTLS: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shm_rmid_forced",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
];

fn read_sysctls(
    table: &Table<'_, '_>,
    network: &Network,
    errors: &mut Errors<'_>,
) -> BTreeMap<String, String> {
    let mut sysctls = BTreeMap::new();
    for (name, value) in table.plain_values("sysctls", errors) {
        let refused = match sysctl(name.text, &value, network) {
            Ok(()) => {
                sysctls.insert(name.text.to_owned(), value);
                continue;
            }
            Err(refused) => refused,
        };
        errors.push(Kind::Value, name.place, refused.message, refused.hint);
    }
    sysctls
}

fn sysctl(name: &str, value: &str, network: &Network) -> Result<(), Refusal> {
    if name.contains('/') {
        return Err(Refusal::new(
            format!("`{name}` is no kernel parameter"),
            format!("write `\"{}\"`", name.replace('/', ".")),
        ));
    }
    let plain = name.split('.').all(|part| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
    });
    let namespaced =
        name.starts_with("net.") || name.starts_with("fs.mqueue.") || IPC_SYSCTLS.contains(&name);
    if !plain || !namespaced {
        return Err(Refusal::new(
            format!("`{name}` is not a container's own kernel parameter"),
            match suggest::closest(name, IPC_SYSCTLS) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "set it on the node; a container has `net.*`, `fs.mqueue.*` and the IPC limits of `kernel.*` of its own".to_owned(),
            },
        ));
    }
    if name.starts_with("net.") && *network == Network::Host {
        return Err(Refusal::new(
            format!("`{name}` is the node's with `network = \"host\"`"),
            "set it on the node, or join a user network",
        ));
    }
    if matches!(value, "true" | "false") {
        let number = u8::from(value == "true");
        return Err(Refusal::new(
            format!("the kernel does not take `{value}` for `{name}`"),
            format!("write `\"{name}\" = {number}`"),
        ));
    }
    if value.is_empty() || value.chars().any(|c| c.is_control() && c != '\t') {
        return Err(Refusal::new(
            format!("the value of `{name}` is empty or has a control character"),
            "write it on one line, numbers with blanks between them",
        ));
    }
    Ok(())
}

fn read_security_opt(table: &Table<'_, '_>, errors: &mut Errors<'_>) -> BTreeSet<String> {
    let mut options: BTreeMap<String, String> = BTreeMap::new();
    for text in table.strings("security_opt", errors).unwrap_or_default() {
        if let Some((key, option)) = parse_text(&text, security_option, errors) {
            insert_once(&mut options, key, option, "the option", text.place, errors);
        }
    }
    options
        .into_values()
        // What every container has is no option.
        .filter(|option| option != "no-new-privileges=true")
        .collect()
}

const SECURITY_OPTIONS: [&str; 5] = [
    "no-new-privileges",
    "seccomp",
    "apparmor",
    "label",
    "systempaths",
];

/// One option with what it is about, as in `seccomp` and `seccomp=unconfined`.
fn security_option(text: &str) -> Result<(String, String), Refusal> {
    let (key, value) = match text.split_once(['=', ':']) {
        Some((key, value)) => (key, Some(value)),
        None => (text, None),
    };
    let refused = |message: String, hint: &str| Err(Refusal::new(message, hint));
    match (key, value) {
        ("no-new-privileges", None | Some("true")) => {
            Ok((key.to_owned(), "no-new-privileges=true".to_owned()))
        }
        ("no-new-privileges", Some("false")) => Ok((key.to_owned(), format!("{key}=false"))),
        ("no-new-privileges", Some(value)) => refused(
            format!("`{value}` is no value of `{key}`"),
            "write `no-new-privileges=false`; true is the default",
        ),
        ("seccomp" | "systempaths", Some("unconfined")) => {
            Ok((key.to_owned(), format!("{key}=unconfined")))
        }
        ("seccomp", _) => refused(
            format!(
                "`{text}` cannot be asked for: no seccomp profile but the engine's own is known"
            ),
            "leave it out for the engine's own profile, or write `seccomp=unconfined`",
        ),
        ("systempaths", _) => refused(
            format!("`{text}` is no security option"),
            "write `systempaths=unconfined`, or leave it out",
        ),
        ("apparmor", Some(profile)) if is_profile(profile) => {
            Ok((key.to_owned(), format!("{key}={profile}")))
        }
        ("apparmor", _) => refused(
            format!("`{text}` names no AppArmor profile"),
            "write `apparmor=NAME`, a profile that the node has loaded, or `apparmor=unconfined`",
        ),
        ("label", Some("disable")) => Ok((key.to_owned(), format!("{key}=disable"))),
        ("label", Some(label)) => match label.split_once(':') {
            Some((part, value))
                if ["user", "role", "type", "level", "filetype"].contains(&part)
                    && is_label(value) =>
            {
                Ok((format!("{key}={part}"), format!("{key}={part}:{value}")))
            }
            _ => refused(
                format!("`{text}` is no SELinux label"),
                "write `label=disable`, or `label=type:NAME` and the like for user, role, level and filetype",
            ),
        },
        ("mask" | "unmask", _) => refused(
            format!("`{text}` is podman's alone"),
            "write `systempaths=unconfined`, which both engines know",
        ),
        _ => Err(Refusal::new(
            format!("`{text}` is no security option"),
            suggest::hint(key, SECURITY_OPTIONS, "the options are"),
        )),
    }
}

fn is_profile(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_-./+".contains(&b))
}

fn is_label(text: &str) -> bool {
    (1..=256).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_-.:,".contains(&b))
}

const LOG: Schema = Schema {
    what: "`log`",
    keys: &["driver", "options"],
    not_yet: &[],
    elsewhere: |key| match key {
        "opts" | "opt" => Some("did you mean `options`?".to_owned()),
        "max-size" | "max-file" | "tag" => Some(format!(
            "it is an option of the driver: `options = {{ {key} = … }}`"
        )),
        _ => None,
    },
};

fn read_log(table: &Table<'_, '_>, errors: &mut Errors<'_>) -> Option<Log> {
    const FORM: &str = "write `log = { driver = \"json-file\", options = { max-size = \"10m\" } }`";
    let log = table.table("log", &LOG, FORM, errors)?;
    if log.get("driver").is_none() {
        log.missing("driver", FORM, errors);
    }
    let driver = log.parsed("driver", log_driver, errors);
    let mut options = BTreeMap::new();
    for (name, value) in log.plain_values("options", errors) {
        if name.text == "path" {
            errors.push(
                Kind::Value,
                name.place,
                "the engine would write to this path of the node with its own rights",
                "leave `path` out: the engine keeps the lines, and `mcp logs` shows them",
            );
        } else if name.text.is_empty() || name.text.contains(|c: char| c.is_control() || c == '=') {
            errors.push(
                Kind::Value,
                name.place,
                format!("`{}` is no name of an option", name.text),
                "write a name that is not empty and has no `=`",
            );
        } else {
            options.insert(name.text.to_owned(), value);
        }
    }
    Some(Log {
        driver: driver?,
        options,
    })
}

fn log_driver(text: &str) -> Result<String, Refusal> {
    let good = text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.len() <= 128
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_-./:".contains(&b));
    if good {
        return Ok(text.to_owned());
    }
    Err(Refusal::new(
        format!("`{text}` is no name of a log driver"),
        "write the engine's name of it, as in `json-file` or `journald`",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_one_form() {
        for (text, target, host, permissions) in [
            ("/dev/fuse", "/dev/fuse", "/dev/fuse", "rwm"),
            ("/dev/fuse:mr", "/dev/fuse", "/dev/fuse", "rm"),
            ("/dev//a:/dev/b", "/dev/b", "/dev/a", "rwm"),
            ("/dev/a:/dev/b:r", "/dev/b", "/dev/a", "r"),
        ] {
            let (found, device) = parse_device(text).unwrap();
            assert_eq!(found, target);
            assert_eq!(
                (device.host.as_str(), device.permissions.as_str()),
                (host, permissions)
            );
        }
        for (text, hint) in [
            ("", "write `HOST"),
            ("nvidia.com/gpu=all", "write `HOST"),
            ("/dev/a:/dev/b:r:w", "write `HOST"),
            ("/dev/a:x", "each once"),
            ("/dev/a:rr", "each once"),
            ("/dev/a:", "each once"),
            ("/dev/../etc:r", "the path that it leads to"),
            ("/dev/a:/", "below it"),
        ] {
            let refusal = parse_device(text).unwrap_err();
            assert!(refusal.hint.contains(hint), "{text}: {refusal:?}");
        }
    }

    #[test]
    fn limits_read_back_as_shown() {
        for (text, shown) in [
            ("1024", "1024"),
            ("1024:4096", "1024:4096"),
            ("7:7", "7"),
            ("unlimited", "unlimited"),
            ("0:-1", "0:unlimited"),
        ] {
            let limit = parse_ulimit(text).unwrap();
            assert_eq!(limit.to_string(), shown);
            assert_eq!(parse_ulimit(shown).unwrap(), limit);
        }
        for bad in ["", "1:", ":1", "a", "-2", "1:2:3", "9999999999999999999"] {
            assert!(parse_ulimit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_parameters_of_the_container_s_own_namespaces_are_taken() {
        let own = Network::None;
        for good in ["net.core.somaxconn", "fs.mqueue.msg_max", "kernel.shmmax"] {
            assert!(sysctl(good, "1", &own).is_ok(), "{good}");
        }
        for (name, value, hint) in [
            ("vm.swappiness", "1", "on the node"),
            ("kernel.shmmaxx", "1", "`kernel.shmmax`"),
            ("net/core/somaxconn", "1", "net.core.somaxconn"),
            ("net..x", "1", "on the node"),
            ("net.x", "true", "= 1"),
            ("net.x", "", "one line"),
            ("net.x", "1\n2", "one line"),
        ] {
            let refusal = sysctl(name, value, &own).unwrap_err();
            assert!(refusal.hint.contains(hint), "{name}: {refusal:?}");
        }
        assert!(sysctl("net.core.somaxconn", "1", &Network::Host).is_err());
    }

    #[test]
    fn security_options_have_one_spelling() {
        for (text, option) in [
            ("seccomp:unconfined", "seccomp=unconfined"),
            ("no-new-privileges", "no-new-privileges=true"),
            ("no-new-privileges:false", "no-new-privileges=false"),
            ("apparmor=mine", "apparmor=mine"),
            ("label:type:svirt_t", "label=type:svirt_t"),
            ("label=level:s0:c1,c2", "label=level:s0:c1,c2"),
            ("label=disable", "label=disable"),
            ("systempaths=unconfined", "systempaths=unconfined"),
        ] {
            assert_eq!(security_option(text).unwrap().1, option, "{text}");
        }
        for (text, hint) in [
            ("seccomp=/etc/profile.json", "engine's own profile"),
            ("secomp=unconfined", "`seccomp`"),
            ("unmask=ALL", "systempaths"),
            ("apparmor=", "apparmor=NAME"),
            ("label=x:y", "label=type"),
            ("no-new-privileges=maybe", "=false"),
        ] {
            let refusal = security_option(text).unwrap_err();
            assert!(refusal.hint.contains(hint), "{text}: {refusal:?}");
        }
    }
}
