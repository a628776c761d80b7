//! Which engine answers, asked once and again after it was away.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use serde::Deserialize;

use super::super::{EngineFacts, EngineName, RuntimeError};
use super::http::{Answer, Call, Http};
use super::libpod::{INFO_LIMIT, LibpodInfo};

/// Path of podman's own API; podman 4 and later take it.
pub(super) const LIBPOD: &str = "/v4.0.0/libpod";

/// The newest version of the Docker API that is spoken, and the oldest that current dockerds take.
const NEWEST: (u32, u32) = (1, 44);

/// Who answers, as a ping tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Session {
    pub engine: EngineName,
    pub version: String,
    /// `/v1.41`: what docker-compatible paths begin with.
    pub prefix: String,
}

/// What is known of the engine so far.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    session: ArcSwapOption<Session>,
    facts: ArcSwapOption<(Session, EngineFacts)>,
}

impl Sessions {
    /// Who answers; asked by one ping where that is not known.
    pub(super) async fn current(&self, http: &Http) -> Result<Arc<Session>, RuntimeError> {
        if let Some(session) = self.session.load_full() {
            return Ok(session);
        }
        let answer = http.send(Call::get("ping", "/_ping")).await?.ok()?;
        let session = Arc::new(introduced(&answer)?);
        self.session.store(Some(Arc::clone(&session)));
        Ok(session)
    }

    /// The next call asks again who answers.
    pub(super) fn forget(&self) {
        self.session.store(None);
    }

    /// All that is known of the engine. What a ping does not tell costs podman a quarter of a second,
    /// so it is asked once for each release that answers.
    pub(super) async fn facts(&self, http: &Http) -> Result<EngineFacts, RuntimeError> {
        let session = self.current(http).await?;
        if let Some(known) = self.facts.load_full()
            && known.0 == *session
        {
            return Ok(known.1.clone());
        }
        let (rootless, limits) = match session.engine {
            EngineName::Podman => podman_facts(http).await?,
            EngineName::Docker => docker_facts(http, &session.prefix).await?,
        };
        let facts = EngineFacts {
            name: session.engine,
            version: session.version.clone(),
            rootless,
            limits,
            shares_pids: http.socket().shares_pids().await,
        };
        self.facts
            .store(Some(Arc::new(((*session).clone(), facts.clone()))));
        Ok(facts)
    }
}

/// Reads a ping: `Server: Libpod/4.3.1 (linux)`, `Api-Version: 1.41`.
fn introduced(answer: &Answer) -> Result<Session, RuntimeError> {
    let header = |name: &str| {
        answer
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let server = header("server");
    let (product, rest) = server.split_once('/').unwrap_or((server, ""));
    let version = rest.split(' ').next().unwrap_or_default();
    let engine = match product {
        "Libpod" => EngineName::Podman,
        "Docker" => EngineName::Docker,
        _ => {
            return Err(RuntimeError::Unsupported {
                what: "the calls of MCP".to_owned(),
                why: format!("it is neither podman nor docker: it calls itself `{server}`"),
            });
        }
    };
    let api = header("api-version");
    let Some(told) = api
        .split_once('.')
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
    else {
        return Err(RuntimeError::Unsupported {
            what: "the calls of MCP".to_owned(),
            why: format!("it tells no API version (`{api}`)"),
        });
    };
    let (major, minor): (u32, u32) = NEWEST.min(told);
    Ok(Session {
        engine,
        version: version.to_owned(),
        prefix: format!("/v{major}.{minor}"),
    })
}

async fn podman_facts(http: &Http) -> Result<(bool, bool), RuntimeError> {
    let call = Call::get("info", format!("{LIBPOD}/info")).within(INFO_LIMIT);
    let info: LibpodInfo = http.send(call).await?.ok()?.parsed()?;
    let controllers = info.host.cgroup_controllers.unwrap_or_default();
    let limits = ["memory", "pids"]
        .iter()
        .all(|needed| controllers.iter().any(|controller| controller == needed));
    Ok((info.host.security.rootless, limits))
}

async fn docker_facts(http: &Http, prefix: &str) -> Result<(bool, bool), RuntimeError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Info {
        #[serde(default)]
        memory_limit: bool,
        #[serde(default)]
        pids_limit: bool,
        #[serde(default)]
        security_options: Option<Vec<String>>,
    }
    let call = Call::get("info", format!("{prefix}/info")).within(INFO_LIMIT);
    let info: Info = http.send(call).await?.ok()?.parsed()?;
    let rootless = info
        .security_options
        .unwrap_or_default()
        .iter()
        .any(|option| option.starts_with("name=rootless"));
    Ok((rootless, info.memory_limit && info.pids_limit))
}

#[cfg(test)]
mod tests {
    use hyper::{HeaderMap, StatusCode};

    use super::*;

    fn ping(server: &'static str, api: &'static str) -> Answer {
        let mut headers = HeaderMap::new();
        headers.insert("server", server.parse().unwrap());
        headers.insert("api-version", api.parse().unwrap());
        Answer {
            call: "ping",
            status: StatusCode::OK,
            headers,
            body: "OK".into(),
        }
    }

    #[test]
    fn engine_is_known_by_its_ping() {
        let podman = introduced(&ping("Libpod/4.3.1 (linux)", "1.41")).unwrap();
        assert_eq!(podman.engine, EngineName::Podman);
        assert_eq!(podman.version, "4.3.1");
        assert_eq!(podman.prefix, "/v1.41");
        let docker = introduced(&ping("Docker/29.1.0 (linux)", "1.52")).unwrap();
        assert_eq!(docker.engine, EngineName::Docker);
        assert_eq!(docker.prefix, "/v1.44");
    }

    #[test]
    fn stranger_is_refused() {
        assert!(introduced(&ping("nginx", "1.41")).is_err());
        assert!(introduced(&ping("Docker/20.10", "new")).is_err());
    }
}
