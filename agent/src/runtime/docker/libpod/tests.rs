//! What podman is asked for, by example.

use mcp_spec::component::Log;
use serde_json::{Value, json};

use super::super::super::super::runtime::EngineName;
use super::super::samples::every_key;
use super::*;

fn facts(version: &str, limits: bool) -> EngineFacts {
    EngineFacts {
        name: EngineName::Podman,
        version: version.to_owned(),
        rootless: !limits,
        limits,
        shares_pids: true,
    }
}

fn body(request: &ContainerRequest) -> Value {
    serde_json::to_value(spec_generator(request, &facts("4.3.1", true)).unwrap()).unwrap()
}

#[test]
fn every_key_is_compiled_for_podman() {
    let body = body(&every_key());
    assert_eq!(body["name"], "shop-web");
    assert_eq!(body["image"], "sha256:ff");
    assert_eq!(body["entrypoint"], json!(["/bin/web"]));
    assert_eq!(body["command"], json!(["--port", "8080"]));
    assert_eq!(body["env"], json!({ "A": "1", "B": "two words" }));
    assert_eq!(body["user"], "1000:1000");
    assert_eq!(body["work_dir"], "/srv");
    assert_eq!(body["hostname"], "hosty");
    assert_eq!(body["labels"], json!({ "x": "y", "mcp.node": "rift" }));
    assert_eq!(body["stop_signal"], 2);
    assert_eq!(body["stop_timeout"], 7);
    assert_eq!(body["restart_policy"], "no");
    assert_eq!(body["init"], true);
    assert_eq!(body["netns"], json!({ "nsmode": "bridge" }));
    assert_eq!(
        body["Networks"]["back"]["aliases"],
        json!(["shop-web", "w"])
    );
    assert_eq!(
        body["Networks"]["shop"]["aliases"],
        json!(["shop-web", "web"])
    );
    assert_eq!(body["portmappings"][1]["host_port"], 18081);
    assert_eq!(body["dns_server"], json!(["10.9.9.9"]));
    assert_eq!(body["hostadd"], json!(["db:10.1.2.3"]));
    assert_eq!(
        body["mounts"],
        json!([
            { "destination": "/data", "type": "bind", "source": "/srv/shop", "options": ["rbind", "rprivate", "ro"] },
            { "destination": "/etc/web.toml", "type": "bind", "source": "/var/lib/mcp/web.toml", "options": ["rbind", "rprivate", "ro"] },
            { "destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": ["exec", "size=1m", "nosuid", "nodev", "notmpcopyup"] }
        ])
    );
    assert_eq!(
        body["volumes"],
        json!([{ "Name": "shop_cache", "Dest": "/cache", "Options": ["rw"] }])
    );
    assert_eq!(
        body["resource_limits"],
        json!({
            "memory": { "limit": 64 << 20, "swap": 128 << 20 },
            "cpu": { "quota": 50_000, "period": 100_000 },
            "pids": { "limit": 99 }
        })
    );
    assert_eq!(body["read_only_filesystem"], true);
    assert_eq!(body["cap_add"], json!(["NET_RAW"]));
    assert_eq!(body["cap_drop"], json!(["CHOWN", "MKNOD"]));
    assert_eq!(body["no_new_privileges"], true);
    assert_eq!(body["privileged"], false);
    assert_eq!(body["devices"], json!([{ "path": "/dev/fuse:/dev/f:rw" }]));
    assert_eq!(
        body["r_limits"],
        json!([
            { "type": "core", "soft": 0, "hard": u64::MAX },
            { "type": "nofile", "soft": 100, "hard": 100 }
        ])
    );
    assert_eq!(body["sysctl"], json!({ "net.core.somaxconn": "7" }));
    assert_eq!(
        body["log_configuration"],
        json!({ "driver": "json-file", "size": 10 << 20 })
    );
    assert_eq!(
        body["healthconfig"],
        json!({ "Test": ["CMD", "/bin/web", "check"], "Interval": 0, "Timeout": 2_000_000_000, "Retries": 1 })
    );
}

#[test]
fn image_check_is_switched_off() {
    let mut request = every_key();
    request.spec.health = None;
    assert_eq!(body(&request)["healthconfig"]["Test"], json!(["NONE"]));
}

#[test]
fn engine_without_limits_is_asked_for_none() {
    let mut request = every_key();
    request.spec.devices.clear();
    let body = spec_generator(&request, &facts("4.3.1", false)).unwrap();
    let body = serde_json::to_value(body).unwrap();
    assert_eq!(body.get("resource_limits"), None);
}

#[test]
fn what_podman_cannot_do_is_refused_by_name() {
    let mut request = every_key();
    request.spec.stop_signal = Some("SIGNOPE".to_owned());
    assert!(matches!(
        spec_generator(&request, &facts("4.3.1", true)),
        Err(RuntimeError::Unsupported { what, .. }) if what.contains("SIGNOPE")
    ));
    let mut request = every_key();
    request.spec.log = Some(Log {
        driver: "local".to_owned(),
        options: BTreeMap::new(),
    });
    assert!(matches!(
        spec_generator(&request, &facts("4.3.1", true)),
        Err(RuntimeError::Unsupported { what, .. }) if what.contains("\"local\"")
    ));
    for (option, value, good) in [
        ("max-size", "10m", true),
        ("max-size", "ten", false),
        ("max-file", "3", false),
        ("tag", "x", false),
    ] {
        let mut request = every_key();
        request.spec.log = Some(Log {
            driver: "k8s-file".to_owned(),
            options: BTreeMap::from([(option.to_owned(), value.to_owned())]),
        });
        let compiled = spec_generator(&request, &facts("4.3.1", true));
        assert_eq!(compiled.is_ok(), good, "{option} = {value}");
    }
    // Without root there is no cgroup of devices that could hold permissions back.
    assert!(matches!(
        spec_generator(&every_key(), &facts("4.3.1", false)),
        Err(RuntimeError::Unsupported { what, .. }) if what.contains("/dev/fuse")
    ));
}

#[test]
fn confinement_is_taken_back_only_where_asked() {
    let mut request = every_key();
    request.spec.security_opt = [
        "apparmor=mine".to_owned(),
        "label=level:s0".to_owned(),
        "no-new-privileges=false".to_owned(),
        "seccomp=unconfined".to_owned(),
        "systempaths=unconfined".to_owned(),
    ]
    .into();
    let asked = body(&request);
    assert_eq!(asked["no_new_privileges"], false);
    assert_eq!(asked["seccomp_profile_path"], "unconfined");
    assert_eq!(asked["apparmor_profile"], "mine");
    assert_eq!(asked["selinux_opts"], json!(["level:s0"]));
    assert_eq!(asked["unmask"], json!(["ALL"]));
    let plain = body(&every_key());
    for absent in [
        "seccomp_profile_path",
        "apparmor_profile",
        "selinux_opts",
        "unmask",
    ] {
        assert_eq!(plain.get(absent), None, "{absent}");
    }
}

#[test]
fn hard_limits_are_read_from_the_kernel_s_table() {
    let table = "Limit                     Soft Limit           Hard Limit           Units     \n\
                 Max cpu time              unlimited            unlimited            seconds   \n\
                 Max open files            1024                 4096                 files     \n";
    assert_eq!(hard_limit(table, "nofile"), Some(4096));
    assert_eq!(hard_limit(table, "cpu"), None);
    assert_eq!(hard_limit(table, "stack"), None);
    assert_eq!(hard_limit("", "nofile"), None);
}
