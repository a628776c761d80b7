//! What an engine's refusal means. The status alone tells little (podman says 500 for a taken name, a
//! missing init and a port in use alike), so the words decide.

use hyper::StatusCode;

use super::super::RuntimeError;
use super::http::Answer;

/// The meaning of an answer that is no success. `subject`: what the call was about.
pub(super) fn meaning(answer: &Answer, subject: &str) -> RuntimeError {
    let message = answer.message();
    let lower = message.to_lowercase();
    let says = |words: &str| lower.contains(words);
    if says("name") && says("already in use") && says("container") {
        return RuntimeError::NameTaken {
            name: subject.to_owned(),
        };
    }
    if says("port is already allocated") || says("address already in use") {
        return RuntimeError::PortTaken { cause: message };
    }
    // Dockerd that was killed in a start: containerd has the task, and dockerd neither ends nor takes it.
    if says("task") && says("already exists") {
        return RuntimeError::Stuck { cause: message };
    }
    if says("docker-init") || says("container-init") || says("catatonit") {
        return RuntimeError::Unsupported {
            what: "init = true".to_owned(),
            why: format!("its init program is not installed: {message}"),
        };
    }
    // Podman says 500 for an image that it does not have.
    if is_missing(answer) || says("image not known") {
        return RuntimeError::NotFound {
            what: missing_thing(&message, subject),
        };
    }
    answer.refusal()
}

/// Whether the engine says that the thing does not exist: not that it does not know the call.
pub(super) fn is_missing(answer: &Answer) -> bool {
    if answer.status != StatusCode::NOT_FOUND {
        return false;
    }
    let message = answer.message().to_lowercase();
    !message.contains("page not found")
        && (message.contains("no such")
            || message.contains("not found")
            || message.contains("does not exist")
            || message.contains("not known")
            || message.contains("unable to find"))
}

/// A start or create can miss an image or a network as well as the container.
fn missing_thing(message: &str, subject: &str) -> String {
    let lower = message.to_lowercase();
    if lower.contains("image") || lower.contains("network") || lower.contains("volume") {
        message.to_owned()
    } else {
        subject.to_owned()
    }
}

/// Whether a network or a volume is refused because something uses it.
pub(super) fn is_in_use(answer: &Answer) -> bool {
    let message = answer.message().to_lowercase();
    !answer.status.is_success()
        && [
            "has active endpoints",
            "being used",
            "in use",
            "is using",
            "associated containers",
            "image used by",
        ]
        .iter()
        .any(|words| message.contains(words))
}

/// Whether something of that name exists already.
pub(super) fn exists_already(answer: &Answer) -> bool {
    let message = answer.message().to_lowercase();
    !answer.status.is_success()
        && (message.contains("already exists") || message.contains("already used"))
}

#[cfg(test)]
mod tests {
    use hyper::HeaderMap;
    use serde_json::json;

    use super::*;

    fn answer(status: u16, message: &str) -> Answer {
        Answer {
            call: "test",
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::new(),
            body: json!({ "message": message }).to_string().into(),
        }
    }

    #[test]
    fn taken_name_is_told_by_its_words() {
        for (status, message) in [
            (
                500,
                "container create: creating container storage: the container name \"full\" is already in use by cb3b. You have to remove that container to be able to reuse that name: that name is already in use",
            ),
            (
                409,
                "Conflict. The container name \"/full\" is already in use by container \"3716\". You have to remove (or rename) that container to be able to reuse that name.",
            ),
        ] {
            assert!(matches!(
                meaning(&answer(status, message), "full"),
                RuntimeError::NameTaken { name } if name == "full"
            ));
        }
    }

    #[test]
    fn port_in_use_is_told_by_its_words() {
        for message in [
            "driver failed programming external connectivity on endpoint x: Bind for 127.0.0.1:80 failed: port is already allocated",
            "rootlessport listen tcp 127.0.0.1:18080: bind: address already in use",
        ] {
            assert!(matches!(
                meaning(&answer(500, message), "x"),
                RuntimeError::PortTaken { .. }
            ));
        }
    }

    #[test]
    fn task_that_exists_already_is_told_by_its_words() {
        let message =
            "task 49616e2819bb8a40b8fd2aa3a216624b61433b7ee940530b7c258d6522b462de: already exists";
        assert!(matches!(
            meaning(&answer(409, message), "x"),
            RuntimeError::Stuck { .. }
        ));
    }

    #[test]
    fn unknown_call_is_not_taken_for_a_missing_thing() {
        assert!(!is_missing(&answer(404, "404 page not found")));
        assert!(is_missing(&answer(404, "No such container: x")));
        assert!(matches!(
            meaning(&answer(404, "page not found"), "x"),
            RuntimeError::Refused { status: 404, .. }
        ));
    }
}
