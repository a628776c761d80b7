//! The laws of the comparison, and how changes read.

use proptest::prelude::*;

use super::*;
use crate::definition::{DefinitionFile, DesiredSet, compile};
use crate::image::Digest;
use crate::samples;

fn set(services: &[(&str, &str)]) -> DesiredSet {
    let texts: Vec<(String, String)> = services
        .iter()
        .map(|(name, rest)| {
            (
                format!("services/{name}.toml"),
                format!("name = \"{name}\"\nnode = \"rift\"\n{rest}"),
            )
        })
        .collect();
    let files: Vec<DefinitionFile<'_>> = texts
        .iter()
        .map(|(path, text)| DefinitionFile {
            path,
            bytes: text.as_bytes(),
        })
        .collect();
    compile(&files, &samples::lookup).unwrap()
}

fn api(keys: &str) -> String {
    format!("[[components]]\nname = \"api\"\n{keys}\n")
}

fn component(keys: &str) -> ComponentSpec {
    let set = set(&[("shop", &api(keys))]);
    set.services["shop"].components["api"].clone()
}

fn shown(from: &str, to: &str) -> Vec<String> {
    diff(&component(from), &component(to))
        .iter()
        .map(ToString::to_string)
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_diff_is_empty_exactly_where_two_are_equal(
        a in samples::one_component(),
        b in samples::one_component(),
    ) {
        prop_assert_eq!(diff(&a, &b).is_empty(), a == b);
        prop_assert!(diff(&a, &a.clone()).is_empty());
        prop_assert_eq!(a.digest() == b.digest(), a == b);
    }

    /// Two unrelated specs differ in nearly everything; here only one field is taken over.
    #[test]
    fn no_single_field_is_forgotten(
        a in samples::one_component(),
        b in samples::one_component(),
        field in 0..34_usize,
    ) {
        let fields = serde_json::to_value(&a).unwrap();
        let other = serde_json::to_value(&b).unwrap();
        // A field that is not used is not written.
        let (fields, other) = (fields.as_object().unwrap(), other.as_object().unwrap());
        let names: BTreeSet<&String> = fields.keys().chain(other.keys()).collect();
        let name = *names.iter().nth(field % names.len()).unwrap();
        let mut mixed = fields.clone();
        match other.get(name) {
            Some(value) => drop(mixed.insert(name.clone(), value.clone())),
            None => drop(mixed.remove(name)),
        }
        let mixed = serde_json::Value::Object(mixed);
        let mixed: ComponentSpec = serde_json::from_value(mixed).unwrap();
        prop_assert_eq!(diff(&a, &mixed).is_empty(), a == mixed, "{}", name);
    }

    #[test]
    fn a_diff_backwards_is_the_diff_swapped(
        a in samples::one_component(),
        b in samples::one_component(),
    ) {
        let swapped: Vec<FieldChange> = diff(&b, &a)
            .into_iter()
            .map(|FieldChange { field, from, to }| FieldChange { field, from: to, to: from })
            .collect();
        prop_assert_eq!(diff(&a, &b), swapped);
    }
}

#[test]
fn changes_read_as_people_say_them() {
    let image = "image = \"reg.example.net/api:v1.4.0\"\n";
    for (from, to, expected) in [
        (
            "image = \"reg.example.net/api:v1.4.0\"",
            "image = \"reg.example.net/api:v1.5.0\"",
            vec!["image: v1.4.0 -> v1.5.0"],
        ),
        (
            "image = \"api:v1\"",
            "image = \"web:v1\"",
            vec!["image: docker.io/library/api:v1 -> docker.io/library/web:v1"],
        ),
        (
            "image = \"api:v1\"",
            "image = \"api:v1@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"",
            vec!["image: v1 -> v1@aaaaaaa"],
        ),
    ] {
        assert_eq!(shown(from, to), expected);
    }
    for (from, to, expected) in [
        (
            "env = { A = \"info\" }",
            "env = { A = \"debug\", B = \"1\" }",
            vec!["env.A: info -> debug", "env.B: (none) -> 1"],
        ),
        (
            "network = \"none\"",
            "network = \"edge\"",
            vec!["network: none -> edge"],
        ),
        (
            "networks = { edge = {} }",
            "networks = { edge = { aliases = [\"x\"] } }",
            vec!["networks.edge: shop-api -> shop-api x"],
        ),
        (
            "",
            "ports = [\"80:80\", \"81:81/udp\"]",
            vec!["ports: (none) -> 127.0.0.1:80:80/tcp 127.0.0.1:81:81/udp"],
        ),
        (
            "volumes = [\"/srv/x:/x\"]",
            "volumes = [\"x:/x:ro\"]",
            vec!["volumes./x: /srv/x rw -> volume:shop_x ro"],
        ),
        (
            "cmd = [\"a\", \"b\"]",
            "cmd = [\"a b\"]",
            vec!["cmd: [a b] -> [\"a b\"]"],
        ),
        (
            "resources = { memory = \"512MiB\" }",
            "resources = { memory = \"1g\", cpus = 0.5 }",
            vec![
                "resources.cpus: (none) -> 0.5",
                "resources.memory: 512MiB -> 1GiB",
            ],
        ),
        (
            "health = { tcp = 80 }",
            "health = { tcp = 81, interval = \"1m\" }",
            vec!["health.interval: 10s -> 1m", "health.tcp: 80 -> 81"],
        ),
        (
            "",
            "kind = \"job\"",
            vec![
                "exit_codes: (none) -> 0",
                "kind: service -> job",
                "restart: unless-stopped -> no",
            ],
        ),
    ] {
        assert_eq!(
            shown(&format!("{image}{from}"), &format!("{image}{to}")),
            expected
        );
    }
}

#[test]
fn a_file_of_other_content_is_shown_by_its_digests() {
    let keys = "image = \"x\"\nfiles = [{ from = \"files/shop/a\", to = \"/a\" }]";
    let before = component(keys);
    let mut after = before.clone();
    after.files.get_mut("/a").unwrap().digest = Digest::of(b"new");
    let change = diff(&before, &after).remove(0);
    let digest = |spec: &ComponentSpec| spec.files["/a"].digest.short();
    assert_eq!(change.shown(), (digest(&before), digest(&after)));
    after.files.get_mut("/a").unwrap().mode = 0o600;
    let change = diff(&before, &after).remove(0);
    assert!(change.shown().0.starts_with("files/shop/a@"));
}

#[test]
fn only_changed_bytes_are_told_from_any_other_change() {
    let keys = "image = \"x\"\nfiles = [{ from = \"files/shop/a\", to = \"/a\", on_change = \"signal:HUP\" }, { from = \"files/shop/b\", to = \"/b\" }]";
    let before = component(keys);
    assert_eq!(file_changes_only(&before, &before), Some(vec![]));
    let mut after = before.clone();
    after.files.get_mut("/a").unwrap().digest = Digest::of(b"new");
    assert_eq!(
        file_changes_only(&before, &after),
        Some(vec![(
            "/a".to_owned(),
            OnChange::Signal("SIGHUP".to_owned())
        )])
    );
    assert_eq!(diff(&before, &after).len(), 1);
    let mut other = after.clone();
    other.init = true;
    assert_eq!(file_changes_only(&before, &other), None);
    let mut moved = after.clone();
    moved.files.get_mut("/a").unwrap().mode = 0o600;
    assert_eq!(file_changes_only(&before, &moved), None);
    let mut fewer = before.clone();
    fewer.files.remove("/b");
    assert_eq!(file_changes_only(&before, &fewer), None);
    assert_eq!(file_changes_only(&fewer, &before), None);
}

#[test]
fn digests_that_look_alike_still_differ() {
    let before = component("image = \"x\"\nfiles = [{ from = \"files/shop/a\", to = \"/a\" }]");
    let mut bytes = *before.files["/a"].digest.as_bytes();
    bytes[31] ^= 1;
    let mut after = before.clone();
    after.files.get_mut("/a").unwrap().digest = Digest::from_bytes(bytes);
    let changes = diff(&before, &after);
    assert_eq!(changes.len(), 1);
    assert_ne!(changes[0].from, changes[0].to);
}

#[test]
fn a_set_diff_tells_what_a_commit_does() {
    let v = |version: &str| api(&format!("image = \"api:{version}\""));
    let none = DesiredSet::default();
    let before = set(&[("shop", &v("v1"))]);
    assert_eq!(set_diff(&before, &before), []);
    assert_eq!(summary(&[]), "");
    for (from, to, line) in [
        (&none, set(&[("shop", &v("v1"))]), "shop: added (api v1)"),
        (&before, none.clone(), "shop: removed"),
        (
            &before,
            set(&[("shop", &v("v2"))]),
            "shop/api: image v1 -> v2",
        ),
        (
            &before,
            set(&[(
                "shop",
                &format!("{}env = {{ A = \"1\" }}\ninit = true\n", v("v2")),
            )]),
            "shop/api: image v1 -> v2 (+2 more)",
        ),
        (
            &before,
            set(&[("shop", &format!("active = false\n{}", v("v1")))]),
            "shop: active true -> false",
        ),
        (
            &before,
            set(&[(
                "shop",
                &format!(
                    "{}[[components]]\nname = \"web\"\nimage = \"web:v3\"\n",
                    v("v1")
                ),
            )]),
            "shop/web: added (v3)",
        ),
    ] {
        let changes = set_diff(from, &to);
        assert_eq!(summary(&changes), line);
        assert_eq!(changes.len(), 1);
    }
    let after = set(&[
        ("blog", &v("v7")),
        ("shop", &format!("{}init = true\n", v("v2"))),
    ]);
    let changes = set_diff(&before, &after);
    assert_eq!(summary(&changes), "blog: added (api v7) (+2 more)");
    assert_eq!(
        body(&changes),
        [
            "blog: added (api v7)",
            "shop/api: image v1 -> v2",
            "shop/api: init false -> true"
        ]
    );
}

#[test]
fn a_generated_line_is_one_short_line() {
    let long = format!("image = \"x\"\nenv = {{ A = \"{}\\n\" }}", "y".repeat(500));
    let before = set(&[("shop", &api("image = \"x\""))]);
    let after = set(&[("shop", &api(&long))]);
    let line = summary(&set_diff(&before, &after));
    assert!(
        line.chars().count() <= 120 && !line.contains('\n'),
        "{line}"
    );
}
