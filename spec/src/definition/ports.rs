//! Published ports: `[IP:]HOST[-HOST]:CONTAINER[-CONTAINER][/tcp|udp]`.

use std::net::{IpAddr, Ipv4Addr};

use super::error::{DefinitionErrorKind as Kind, Errors, Place};
use super::reader::{Refusal, Table};
use crate::component::{Port, Protocol};

/// Most ports of one component after ranges are expanded: each costs the engine a rule or a proxy.
pub(super) const MAX_PORTS: usize = 1024;

const FORM: &str =
    "write `[IP:]HOST:CONTAINER[/tcp|udp]`, as in `127.0.0.1:8080:80` or `8080:80/udp`";

/// Reads `ports`, each port with the place of the item that it came from.
pub(super) fn read(component: &Table<'_, '_>, errors: &mut Errors<'_>) -> Vec<(Port, Place)> {
    let mut ports = Vec::new();
    let Some(items) = component.strings("ports", errors) else {
        return ports;
    };
    for item in items {
        match parse(item.text) {
            Ok(found) => ports.extend(found.into_iter().map(|port| (port, item.place.clone()))),
            Err(refusal) => {
                errors.push(Kind::Value, item.place, refusal.message, refusal.hint);
                continue;
            }
        }
        if ports.len() > MAX_PORTS {
            errors.push(
                Kind::Bound,
                component.place_of("ports"),
                format!("a component publishes at most {MAX_PORTS} ports"),
                "publish a smaller range, or use `network = \"host\"` where the node allows it",
            );
            ports.truncate(MAX_PORTS);
            break;
        }
    }
    ports
}

/// The ports that one item publishes, ranges expanded.
fn parse(text: &str) -> Result<Vec<Port>, Refusal> {
    let malformed = |why: &str| Refusal::new(format!("`{text}` is not a port: {why}"), FORM);
    let (rest, protocol) = match text.rsplit_once('/') {
        None => (text, Protocol::Tcp),
        Some((rest, "tcp")) => (rest, Protocol::Tcp),
        Some((rest, "udp")) => (rest, Protocol::Udp),
        Some((rest, other)) => {
            let hint = match other.to_ascii_lowercase().as_str() {
                lower @ ("tcp" | "udp") => format!("did you mean `{rest}/{lower}`?"),
                _ => "write `/tcp` or `/udp`, or nothing for tcp".to_owned(),
            };
            return Err(Refusal::new(
                format!("`{other}` is no protocol of a published port"),
                hint,
            ));
        }
    };
    let Some((rest, container)) = rest.rsplit_once(':') else {
        if let Ok((first, _)) = range(rest)
            && first > 0
        {
            return Err(Refusal::new(
                format!("`{text}` leaves the port on the node to chance"),
                format!("write `{rest}:{text}` to publish it under the same number"),
            ));
        }
        return Err(malformed("it has no `:`"));
    };
    let (ip, host) = match rest.rsplit_once(':') {
        None => (IpAddr::V4(Ipv4Addr::LOCALHOST), rest),
        Some((ip, host)) => (
            address(ip).ok_or_else(|| not_an_address(ip, host, container))?,
            host,
        ),
    };
    if host.is_empty() {
        return Err(malformed("the node's port is missing"));
    }
    let (host_first, host_last) = range(host).map_err(malformed)?;
    let (container_first, container_last) = range(container).map_err(malformed)?;
    if host_first == 0 {
        return Err(Refusal::new(
            format!("`{text}` asks for port 0 on the node"),
            "write the port that clients shall connect to: 0 would be another one at every start",
        ));
    }
    if container_first == 0 {
        return Err(malformed("the container's port cannot be 0"));
    }
    if host_last - host_first != container_last - container_first {
        return Err(Refusal::new(
            format!(
                "`{text}` pairs {} ports of the node with {} of the container",
                u32::from(host_last - host_first) + 1,
                u32::from(container_last - container_first) + 1
            ),
            "write ranges of equal length, as in `8000-8010:9000-9010`",
        ));
    }
    Ok((host_first..=host_last)
        .zip(container_first..=container_last)
        .map(|(host, container)| Port {
            ip,
            host,
            container,
            protocol,
        })
        .collect())
}

fn range(text: &str) -> Result<(u16, u16), &'static str> {
    let number = |text: &str| {
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err("it has a part that is no number");
        }
        text.parse::<u16>().map_err(|_| "a port is at most 65535")
    };
    match text.split_once('-') {
        None => number(text).map(|port| (port, port)),
        Some((first, last)) => {
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return Err("the range ends before it starts");
            }
            Ok((first, last))
        }
    }
}

/// An address; IPv6 in brackets. An IPv4 address mapped into IPv6 is the IPv4 address.
fn address(text: &str) -> Option<IpAddr> {
    let ip = match text.strip_prefix('[') {
        Some(rest) => IpAddr::V6(rest.strip_suffix(']')?.parse().ok()?),
        None => IpAddr::V4(text.parse().ok()?),
    };
    Some(ip.to_canonical())
}

fn not_an_address(ip: &str, host: &str, container: &str) -> Refusal {
    let hint = match ip {
        "localhost" => format!("write `127.0.0.1:{host}:{container}`"),
        "" | "*" => format!("write `0.0.0.0:{host}:{container}` for every address of the node"),
        _ if ip.contains(':') => {
            "put an IPv6 address in brackets, as in `[::1]:8080:80`".to_owned()
        }
        _ => "write an address of the node, as in `127.0.0.1` or `0.0.0.0`".to_owned(),
    };
    Refusal::new(format!("`{ip}` is not an IP address"), hint)
}

/// Whether both would listen on one socket: same transport and port, and addresses that overlap.
///
/// `0.0.0.0` covers every IPv4 address and `[::]` every IPv6 one; engines open them as two sockets.
pub(super) fn overlap(a: &Port, b: &Port) -> bool {
    a.protocol == b.protocol
        && a.host == b.host
        && a.ip.is_ipv4() == b.ip.is_ipv4()
        && (a.ip == b.ip || a.ip.is_unspecified() || b.ip.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Vec<String> {
        parse(text).unwrap().iter().map(Port::to_string).collect()
    }

    #[test]
    fn ports_default_to_loopback_and_tcp() {
        assert_eq!(shown("8080:80"), ["127.0.0.1:8080:80/tcp"]);
        assert_eq!(shown("0.0.0.0:53:53/udp"), ["0.0.0.0:53:53/udp"]);
        assert_eq!(shown("[::1]:80:80"), ["[::1]:80:80/tcp"]);
        assert_eq!(shown("[::ffff:10.0.0.1]:80:80"), ["10.0.0.1:80:80/tcp"]);
    }

    #[test]
    fn ranges_of_equal_length_are_paired() {
        assert_eq!(
            shown("8000-8001:9000-9001/udp"),
            ["127.0.0.1:8000:9000/udp", "127.0.0.1:8001:9001/udp"]
        );
        assert_eq!(shown("65535:65535").len(), 1);
        assert!(parse("8000-8001:9000").is_err());
        assert!(parse("1-65535:1-65535").is_ok());
    }

    #[test]
    fn malformed_ports_are_refused_with_a_mend() {
        for (text, hint) in [
            ("8080", "write `8080:8080`"),
            ("localhost:80:80", "write `127.0.0.1:80:80`"),
            (":80:80", "`0.0.0.0:80:80`"),
            ("::1:80:80", "brackets"),
            ("0:80", "port that clients"),
            ("80:0", "write `[IP:]"),
            ("80:80/TCP", "`80:80/tcp`"),
            ("80:80/sctp", "`/tcp` or `/udp`"),
            ("70000:80", "write `[IP:]"),
            ("90-80:90-80", "write `[IP:]"),
            ("a:b", "write `[IP:]"),
            ("", "write `[IP:]"),
            (":", "write `[IP:]"),
            ("80:", "write `[IP:]"),
            ("+80:80", "write `[IP:]"),
            ("1.2.3.4::80", "write `[IP:]"),
        ] {
            let refusal = parse(text).unwrap_err();
            assert!(refusal.hint.contains(hint), "{text}: {refusal:?}");
        }
    }

    #[test]
    fn a_wildcard_overlaps_every_address_of_its_family() {
        let port = |text: &str| parse(text).unwrap().remove(0);
        assert!(overlap(&port("0.0.0.0:80:80"), &port("127.0.0.1:80:81")));
        assert!(overlap(&port("[::]:80:80"), &port("[::1]:80:81")));
        assert!(!overlap(&port("10.0.0.1:80:80"), &port("127.0.0.1:80:80")));
        assert!(!overlap(&port("80:80/udp"), &port("80:80")));
        assert!(!overlap(&port("0.0.0.0:80:80"), &port("[::]:80:80")));
    }
}
