//! Definitions that tests write: as short as the rule under test allows.

use crate::engine::BUSYBOX;

/// The text of `services/NAME.toml`.
#[must_use]
pub fn service(name: &str, node: &str, components: &[String]) -> String {
    format!(
        "name = \"{name}\"\nnode = \"{node}\"\n\n{}",
        components.join("\n")
    )
}

/// A component that runs `/bin/pause` of the test image in `version`; `keys` are lines of its own, and a
/// `cmd` among them takes the place of the pause.
#[must_use]
pub fn component(name: &str, version: &str, keys: &str) -> String {
    let has = |key: &str| keys.lines().any(|line| line.trim_start().starts_with(key));
    let cmd = if has("cmd") {
        ""
    } else {
        "cmd = [\"/bin/pause\"]\n"
    };
    let ready = if has("ready_for") || has("health") || has("kind") {
        ""
    } else {
        "ready_for = \"0s\"\n"
    };
    format!(
        "[[components]]\nname = \"{name}\"\nimage = \"{BUSYBOX}:{version}\"\n{cmd}{ready}{keys}\n"
    )
}
