//! `health`: what is asked, how often, and when it counts.

use super::error::{DefinitionErrorKind as Kind, Errors};
use super::reader::{Refusal, Schema, Table};
use crate::component::{Health, Network, Probe};
use crate::duration::Span;

/// Time between two probes, unless the definition says another.
pub(crate) const INTERVAL: Span = Span::from_secs(10);
/// Longest time of one probe, unless the definition says another.
pub(crate) const TIMEOUT: Span = Span::from_secs(3);
/// Failures in a row that make unhealthy, unless the definition says another.
pub(crate) const RETRIES: u32 = 3;
/// Time after the start in which failures do not count, unless the definition says another.
pub(crate) const START_PERIOD: Span = Span::from_secs(0);

const HEALTH: Schema = Schema {
    what: "`health`",
    keys: &[
        "cmd",
        "http",
        "tcp",
        "interval",
        "timeout",
        "retries",
        "start_period",
    ],
    not_yet: &[],
    elsewhere: |key| match key {
        "test" | "command" => Some("did you mean `cmd`?".to_owned()),
        "start_interval" => Some("leave it out: every probe keeps to `interval`".to_owned()),
        _ if super::component::COMPONENT.keys.contains(&key) => Some(format!(
            "`{key}` is a key of the component: write it above `[components.health]`"
        )),
        _ => None,
    },
};

/// Reads the health check of a component.
pub(super) fn read(
    component: &Table<'_, '_>,
    network: &Network,
    errors: &mut Errors<'_>,
) -> Option<Health> {
    let health = component.table(
        "health",
        &HEALTH,
        "write `health = { cmd = [\"/bin/check\"] }`, or leave it out",
        errors,
    )?;
    let probe = read_probe(&health, network, errors);
    let interval = health.positive_span("interval", INTERVAL, errors);
    let timeout = health.positive_span("timeout", TIMEOUT, errors);
    let retries = health.integer("retries", (1, 1000), errors);
    let start_period = health.span("start_period", START_PERIOD, errors);
    Some(Health {
        probe: probe?,
        interval,
        timeout,
        retries: retries
            .and_then(|retries| u32::try_from(retries).ok())
            .unwrap_or(RETRIES),
        start_period,
    })
}

fn read_probe(health: &Table<'_, '_>, network: &Network, errors: &mut Errors<'_>) -> Option<Probe> {
    let asked: Vec<&str> = ["cmd", "http", "tcp"]
        .into_iter()
        .filter(|key| health.get(key).is_some())
        .collect();
    let [key] = asked[..] else {
        match asked.get(1) {
            None => health.missing("cmd",
                "write one of `cmd = [\"/bin/check\"]`, `http = \"http://:8080/healthz\"`, `tcp = 8080`",
                errors,
            ),
            Some(second) => errors.push(
                Kind::Conflict,
                health.place_of(second),
                format!("`health` asks in two ways: `{}`", asked.join("` and `")),
                "keep one of them",
            ),
        }
        return None;
    };
    if *network == Network::None && key != "cmd" {
        errors.push(
            Kind::Conflict,
            health.place_of(key),
            format!("the agent cannot reach a container without a network by `{key}`"),
            "use `cmd`, which runs inside the container",
        );
    }
    match key {
        "cmd" => super::component::argv(health, "cmd", errors).map(Probe::Cmd),
        "http" => health
            .parsed("http", parse_http, errors)
            .map(|(port, path, tls)| Probe::Http { port, path, tls }),
        _ => health
            .integer("tcp", (1, 65535), errors)
            .and_then(|port| u16::try_from(port).ok())
            .map(Probe::Tcp),
    }
}

/// `http://:PORT/PATH` or `https://`: no host, since it is the container that is asked.
fn parse_http(text: &str) -> Result<(u16, String, bool), Refusal> {
    const FORM: &str = "write `http://:PORT/PATH`, as in `http://:8080/healthz`, or `https://`";
    let malformed = |why: &str| Refusal::new(format!("`{text}` is no health URL: {why}"), FORM);
    let (rest, scheme) = match (text.strip_prefix("http://"), text.strip_prefix("https://")) {
        (Some(rest), _) => (rest, "http"),
        (None, Some(rest)) => (rest, "https"),
        (None, None) => return Err(malformed("it does not start with `http://` or `https://`")),
    };
    let tls = scheme == "https";
    let (authority, path) = match rest.find(['/', '?', '#']) {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, port),
        None => (authority, if tls { "443" } else { "80" }),
    };
    if !host.is_empty() {
        return Err(Refusal::new(
            format!("a health check asks its own container, and no `{host}`"),
            format!("write `{scheme}://:{port}{path}`"),
        ));
    }
    if authority.is_empty() {
        return Err(malformed("the port is missing"));
    }
    let port = port
        .parse::<u16>()
        .ok()
        .filter(|number| *number > 0 && number.to_string() == port)
        .ok_or_else(|| malformed("the port is no number from 1 to 65535"))?;
    if path.contains('#') {
        return Err(malformed("a server never sees what follows a `#`"));
    }
    if !path.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(malformed(
            "the path has a character that must be written as `%XX`",
        ));
    }
    let path = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    };
    Ok((port, path, tls))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_urls_name_port_and_path_only() {
        for (text, port, path, tls) in [
            ("http://:8443/healthz", 8443, "/healthz", false),
            ("https://:8443/healthz", 8443, "/healthz", true),
            ("http://:80", 80, "/", false),
            ("http://:80?x=1", 80, "/?x=1", false),
            ("http://:80/a?x=%20", 80, "/a?x=%20", false),
        ] {
            assert_eq!(parse_http(text).unwrap(), (port, path.to_owned(), tls));
        }
        for (text, hint) in [
            ("https://localhost/x", "write `https://:443/x`"),
            ("http://localhost:80/x", "write `http://:80/x`"),
            ("http://example.net/x", "write `http://:80/x`"),
            (":80/x", "write `http://:PORT/PATH`"),
            ("http:///x", "write `http://:PORT/PATH`"),
            ("http://:0/x", "write `http://:PORT/PATH`"),
            ("http://:80/#x", "write `http://:PORT/PATH`"),
            ("http://:80/a b", "write `http://:PORT/PATH`"),
            ("", "write `http://:PORT/PATH`"),
        ] {
            let refusal = parse_http(text).unwrap_err();
            assert!(refusal.hint.contains(hint), "{text}: {refusal:?}");
        }
    }
}
