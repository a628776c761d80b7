//! Images: looked at, pulled, kept by a name.

use std::collections::BTreeMap;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use mcp_spec::image::{Digest, ImageRef};
use mcp_spec::observed::ImageId;
use serde::Deserialize;

use super::super::{EngineName, ImageFacts, KeepTag, PullProgress, RuntimeError};
use super::errors;
use super::http::{Answer, Call, Http, encoded};
use super::normalise::image_id;
use super::session::{LIBPOD, Session};

/// Longest time without a word from the engine in the midst of a pull.
const SILENCE_LIMIT: Duration = Duration::from_secs(600);

/// Longest word of a pull.
const WORD_LIMIT: usize = 1 << 20;

/// The name that an engine finds a local image by: with both tag and digest the digest decides.
pub(super) fn local_name(image: &ImageRef) -> String {
    match image.digest() {
        Some(digest) => format!("{}@{digest}", image.repository()),
        None => image.to_string(),
    }
}

/// The call that looks at a local image.
pub(super) fn inspect(prefix: &str, reference: &str) -> Call {
    Call::get(
        "image",
        format!("{prefix}/images/{}/json", encoded(reference)),
    )
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Image {
    id: String,
    #[serde(default)]
    repo_digests: Option<Vec<String>>,
    #[serde(default)]
    size: u64,
}

/// What such a call answered. The registry's digest is told where the engine knows it for certain:
/// podman invents one for imported images.
pub(super) fn facts(
    answer: &Answer,
    engine: EngineName,
    reference: Option<&ImageRef>,
) -> Result<Option<ImageFacts>, RuntimeError> {
    if errors::is_missing(answer) {
        return Ok(None);
    }
    if !answer.status.is_success() {
        return Err(answer.refusal());
    }
    let image: Image = answer.parsed()?;
    let digest = match engine {
        EngineName::Docker => reference.and_then(|reference| digest_of(&image, reference)),
        EngineName::Podman => None,
    };
    Ok(Some(ImageFacts {
        id: image_id(&image.id),
        digest,
        size_bytes: image.size,
    }))
}

/// The digest under which the reference's own repository holds the image.
fn digest_of(image: &Image, reference: &ImageRef) -> Option<Digest> {
    let repository = reference.repository();
    image
        .repo_digests
        .iter()
        .flatten()
        .filter_map(|entry| entry.split_once('@'))
        .filter(|(name, _)| {
            // Docker shortens the names of its default registry.
            *name == repository
                || repository.strip_prefix("docker.io/") == Some(name)
                || repository.strip_prefix("docker.io/library/") == Some(name)
        })
        .find_map(|(_, digest)| digest.parse().ok())
}

/// Gives an image one more name.
pub(super) fn tag(prefix: &str, id: &ImageId, name: &KeepTag) -> Call {
    let (repository, tag) = (encoded(&name.full_repository()), encoded(&name.tag));
    let id = encoded(id.as_str());
    Call::post(
        "tag",
        format!("{prefix}/images/{id}/tag?repo={repository}&tag={tag}"),
    )
}

/// Takes one name away, without force: an image that a container uses keeps its last name.
pub(super) fn untag(prefix: &str, name: &KeepTag) -> Call {
    let name = encoded(&format!("{}:{}", name.full_repository(), name.tag));
    Call::delete("untag", format!("{prefix}/images/{name}?force=0&noprune=1"))
}

/// Lists the images with their names. A filter by name means something else on each engine.
pub(super) fn list(prefix: &str) -> Call {
    Call::get("images", format!("{prefix}/images/json"))
}

/// The names of the agent's own in such a list.
pub(super) fn kept(answer: &Answer) -> Result<Vec<KeepTag>, RuntimeError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Listed {
        #[serde(default)]
        repo_tags: Option<Vec<String>>,
    }
    if !answer.status.is_success() {
        return Err(answer.refusal());
    }
    let listed: Vec<Listed> = answer.parsed()?;
    let names = listed.iter().filter_map(|image| image.repo_tags.as_ref());
    Ok(names
        .flatten()
        .filter_map(|name| KeepTag::shown_as(name))
        .collect())
}

/// How often an image is looked for that was just pulled. Podman 4.3 was seen not to know it for a moment, while
/// another process worked in the same store.
const LOOKS_AFTER_PULL: u32 = 5;

/// The pause between two such looks.
const BETWEEN_LOOKS: Duration = Duration::from_millis(300);

/// Pulls an image.
pub(super) async fn pull(
    http: &Http,
    session: &Session,
    image: &ImageRef,
    progress: &(dyn Fn(PullProgress) + Send + Sync),
) -> Result<ImageFacts, RuntimeError> {
    let path = pull_path(session, image);
    let failed = |cause: String| RuntimeError::Pull {
        image: image.to_string(),
        cause,
    };
    let silent = || RuntimeError::Uncertain {
        call: "pull",
        cause: format!("not a word within {} s", SILENCE_LIMIT.as_secs()),
    };
    let call = Call::post("pull", path);
    let response = tokio::time::timeout(SILENCE_LIMIT, http.open(&call))
        .await
        .map_err(|_| silent())??;
    if !response.status().is_success() {
        return Err(failed(Answer::of_refusal("pull", response).await.message()));
    }
    let mut words = Words::new(response.into_body());
    let mut layers = Layers::default();
    while let Some(word) = tokio::time::timeout(SILENCE_LIMIT, words.next())
        .await
        .map_err(|_| silent())??
    {
        if let Some(cause) = word.error.or(word.error_detail.and_then(|it| it.message)) {
            return Err(failed(cause));
        }
        if let Some(sum) = layers.take(&word.id, word.progress_detail) {
            progress(sum);
        }
    }

    let mut looks = 0;
    let answer = loop {
        let answer = http
            .send(inspect(&session.prefix, &local_name(image)))
            .await?;
        looks += 1;
        if !errors::is_missing(&answer) {
            break answer;
        }
        if looks == LOOKS_AFTER_PULL {
            return Err(failed(
                "the engine ended the pull without the image".to_owned(),
            ));
        }
        tokio::time::sleep(BETWEEN_LOOKS).await;
    };
    let pulled: Image = answer.ok()?.parsed()?;
    Ok(ImageFacts {
        id: image_id(&pulled.id),
        digest: image
            .digest()
            .copied()
            .or_else(|| digest_of(&pulled, image)),
        size_bytes: pulled.size,
    })
}

/// The pull call. Docker speaks plain HTTP to registries of this machine; podman does when it is told
/// to, which its docker-compatible call ignores. That call in turn tells more of the progress.
fn pull_path(session: &Session, image: &ImageRef) -> String {
    if session.engine == EngineName::Podman && is_loopback(image.registry()) {
        return format!(
            "{LIBPOD}/images/pull?reference={}&tlsVerify=false",
            encoded(&local_name(image))
        );
    }
    let version = match (image.digest(), image.tag()) {
        (Some(digest), _) => digest.to_string(),
        (None, tag) => tag.unwrap_or("latest").to_owned(),
    };
    format!(
        "{}/images/create?fromImage={}&tag={}",
        session.prefix,
        encoded(&image.repository()),
        encoded(&version)
    )
}

fn is_loopback(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    host == "localhost"
        || host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// One object of a pull's stream.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Word {
    id: Option<String>,
    error: Option<String>,
    error_detail: Option<ErrorDetail>,
    progress_detail: Option<ProgressDetail>,
}

#[derive(Debug, Deserialize)]
struct ErrorDetail {
    message: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
struct ProgressDetail {
    current: u64,
    total: u64,
}

/// The progress of all layers together. A layer that is unpacked tells its bytes a second time: the
/// sum never falls.
#[derive(Debug, Default)]
struct Layers {
    layers: BTreeMap<String, ProgressDetail>,
}

impl Layers {
    fn take(
        &mut self,
        id: &Option<String>,
        detail: Option<ProgressDetail>,
    ) -> Option<PullProgress> {
        let (id, detail) = (id.as_ref()?, detail?);
        if detail.total == 0 {
            return None;
        }
        let layer = self.layers.entry(id.clone()).or_default();
        layer.current = layer.current.max(detail.current);
        layer.total = layer.total.max(detail.total);
        Some(PullProgress {
            current_bytes: self.layers.values().map(|layer| layer.current).sum(),
            total_bytes: self.layers.values().map(|layer| layer.total).sum(),
        })
    }
}

/// The objects of a pull's stream.
struct Words {
    body: Incoming,
    buffer: Vec<u8>,
    ended: bool,
}

impl Words {
    fn new(body: Incoming) -> Self {
        Self {
            body,
            buffer: Vec::new(),
            ended: false,
        }
    }

    async fn next(&mut self) -> Result<Option<Word>, RuntimeError> {
        let broken = |cause: String| RuntimeError::Uncertain {
            call: "pull",
            cause,
        };
        loop {
            let end = self.buffer.iter().position(|byte| *byte == b'\n');
            if let Some(end) = end.or((self.ended && !self.buffer.is_empty())
                .then(|| self.buffer.len().saturating_sub(1)))
            {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(|cause| broken(format!("its answer does not parse: {cause}")));
            }
            if self.ended {
                return Ok(None);
            }
            if self.buffer.len() > WORD_LIMIT {
                return Err(broken("its answer has no end".to_owned()));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(cause)) => return Err(broken(format!("the stream broke off: {cause}"))),
                None => self.ended = true,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_summed_over_layers_and_never_falls() {
        let mut layers = Layers::default();
        let mut take = |id: &str, current, total| {
            layers.take(
                &Some(id.to_owned()),
                Some(ProgressDetail { current, total }),
            )
        };
        assert_eq!(take("a", 0, 0), None);
        take("a", 100, 100);
        let sum = take("b", 10, 50).unwrap();
        assert_eq!((sum.current_bytes, sum.total_bytes), (110, 150));
        // `a` is unpacked.
        let sum = take("a", 1, 100).unwrap();
        assert_eq!((sum.current_bytes, sum.total_bytes), (110, 150));
    }

    #[test]
    fn digest_is_that_of_the_own_repository() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let other = format!("sha256:{}", "b".repeat(64));
        let image = Image {
            id: "x".to_owned(),
            repo_digests: Some(vec![
                format!("elsewhere/x@{other}"),
                format!("redis@{digest}"),
            ]),
            size: 1,
        };
        let reference = "redis:7".parse().unwrap();
        assert_eq!(digest_of(&image, &reference).unwrap().to_string(), digest);
    }

    #[test]
    fn only_registries_of_this_machine_are_asked_without_tls() {
        let session = |engine| Session {
            engine,
            version: "1".to_owned(),
            prefix: "/v1.41".to_owned(),
        };
        let local = "127.0.0.1:5000/web:v1".parse().unwrap();
        let other = "registry.example.net/web:v1".parse().unwrap();
        let podman = session(EngineName::Podman);
        assert_eq!(
            pull_path(&podman, &local),
            "/v4.0.0/libpod/images/pull?reference=127.0.0.1%3A5000%2Fweb%3Av1&tlsVerify=false"
        );
        let compatible = "/v1.41/images/create?fromImage=registry.example.net%2Fweb&tag=v1";
        assert_eq!(pull_path(&podman, &other), compatible);
        assert_eq!(pull_path(&session(EngineName::Docker), &other), compatible);
    }

    #[test]
    fn registries_of_this_machine_are_known() {
        for registry in [
            "127.0.0.1:5000",
            "localhost:5000",
            "[::1]:5000",
            "localhost",
        ] {
            assert!(is_loopback(registry), "{registry}");
        }
        assert!(!is_loopback("registry.example.net:5000"));
        assert!(!is_loopback("10.0.0.1:5000"));
    }
}
