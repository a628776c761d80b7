//! `mcp service new`.

use std::io::Write as _;

use mcp_spec::definition::{DefinitionFile, parse_one};
use mcp_spec::image::ImageRef;
use mcp_spec::name::{NodeName, ServiceName};

use crate::commands::repository::{self, CheckError};
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::style::{self, green};

/// Write a first definition, with comments
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp service new metacrypt --node rift --image registry.example.net:5000/metacrypt:v1.4.0
  mcp service new web --image web:v1 --port 8080:80 --port 127.0.0.1:8443:443")]
pub(super) struct Args {
    /// Its name
    #[arg(value_name = "NAME")]
    name: ServiceName,
    /// The image of its component
    #[arg(long, value_name = "IMAGE")]
    image: Option<ImageRef>,
    /// A published port.
    #[arg(
        help = "A published port: [IP:]HOST:CONTAINER[/tcp|udp]",
        long,
        value_name = "PORT"
    )]
    port: Vec<String>,
}

/// Carries it out.
pub(super) fn run(context: &Context, args: &Args) -> Outcome {
    let repo = repository::open(context)?;
    let node = node(context)?;
    let text = template(args, &node);
    let path = format!("services/{}.toml", args.name);
    let (_, errors) = parse_one(
        DefinitionFile {
            path: &path,
            bytes: text.as_bytes(),
        },
        &|_| None,
    );
    if !errors.is_empty() {
        return Err(CheckError::Definitions(errors).tell(context));
    }
    let file = repo.dir().join(&path);
    let failed = |error: &std::io::Error| {
        Failure::failed(format!("{} cannot be written", file.display())).because(error)
    };
    std::fs::create_dir_all(repo.dir().join("services")).map_err(|error| failed(&error))?;
    let mut new = match std::fs::File::create_new(&file) {
        Ok(new) => new,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Failure::usage(format!("{} exists already", file.display()))
                .hint(format!("mcp service edit {}", args.name)));
        }
        Err(error) => return Err(failed(&error)),
    };
    new.write_all(text.as_bytes())
        .map_err(|error| failed(&error))?;
    context
        .out
        .note(&format!("{} {}", green(style::GOOD), file.display()));
    context.out.hint(&format!(
        "mcp service edit {0}, then: mcp plan {0}",
        args.name
    ));
    Ok(Exit::Done)
}

/// The one node that --node names, or that is configured.
fn node(context: &Context) -> Result<NodeName, Failure> {
    let settings = &context.settings;
    match (
        settings.selected.value.as_slice(),
        settings.nodes.as_slice(),
    ) {
        ([one], _) => one
            .parse()
            .map_err(|error: mcp_spec::name::NameError| Failure::of(Exit::Usage, &error)),
        ([], [one]) => Ok(one.name.clone()),
        ([], []) => {
            Err(Failure::usage("which node runs it is not known").hint("give it with --node NAME"))
        }
        ([], many) => {
            let names: Vec<&str> = many.iter().map(|node| node.name.as_str()).collect();
            Err(Failure::usage(format!(
                "which of {} runs it is not known",
                names.join(", ")
            ))
            .hint("give it with --node NAME"))
        }
        (many, _) => Err(Failure::usage(format!(
            "a service has one node, and --node names {}",
            many.len()
        ))),
    }
}

fn quoted(text: &str) -> String {
    toml_edit::Value::from(text).to_string()
}

fn template(args: &Args, node: &NodeName) -> String {
    let name = &args.name;
    let image = args
        .image
        .as_ref()
        .map_or_else(|| format!("localhost/{name}:latest"), ToString::to_string);
    let ports = if args.port.is_empty() {
        "# ports = [\"127.0.0.1:8080:8080\"]       # [IP:]HOST:CONTAINER; the address is 127.0.0.1 where none is given".to_owned()
    } else {
        let all: Vec<String> = args.port.iter().map(|port| quoted(port)).collect();
        format!("ports = [{}]", all.join(", "))
    };
    format!(
        r#"# What {name} is, and whom to ask about it.
name = {name_text}
node = {node_text}
# active = false                        # keeps it defined, and stopped

[[components]]
name  = {name_text}
image = {image_text}
{ports}
# cmd     = ["server", "--verbose"]     # in place of the image's own
# env     = {{ LOG_LEVEL = "info" }}
# volumes = ["data:/var/lib/{name}", "/srv/{name}:/srv/{name}:ro"]
# files   = [{{ from = "files/{name}/{name}.toml", to = "/etc/{name}.toml" }}]
# restart = "unless-stopped"            # no | on-failure | on-failure:N | always | unless-stopped

  # A new version is deployed once this says yes, and the old one comes back if it never does.
  # [components.health]
  # http     = "http://:8080/healthz"   # or cmd = ["check"], or tcp = 8080
  # interval = "10s"
"#,
        name_text = quoted(name.as_str()),
        node_text = quoted(node.as_str()),
        image_text = quoted(&image),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(port: &[&str]) -> Args {
        Args {
            name: "shop".parse().unwrap(),
            image: Some("registry.example.net:5000/shop:v1".parse().unwrap()),
            port: port.iter().map(ToString::to_string).collect(),
        }
    }

    fn errors(text: &str) -> usize {
        let file = DefinitionFile {
            path: "services/shop.toml",
            bytes: text.as_bytes(),
        };
        parse_one(file, &|_| Some(mcp_spec::image::Digest::of(b"")))
            .1
            .len()
    }

    #[test]
    fn template_is_a_definition_that_checks() {
        let node = "rift".parse().unwrap();
        assert_eq!(errors(&template(&args(&[]), &node)), 0);
        assert_eq!(errors(&template(&args(&["8080:80"]), &node)), 0);
    }

    #[test]
    fn every_commented_line_of_the_template_is_valid_when_uncommented() {
        let node = "rift".parse().unwrap();
        let text: String = template(&args(&[]), &node)
            .lines()
            .map(|line| {
                let bare = line.trim_start();
                match bare.strip_prefix("# ") {
                    Some(code) if code.contains(" = ") || code.starts_with('[') => {
                        format!("{code}\n")
                    }
                    _ => format!("{line}\n"),
                }
            })
            .collect();
        let file = DefinitionFile {
            path: "services/shop.toml",
            bytes: text.as_bytes(),
        };
        let (_, found) = parse_one(file, &|_| Some(mcp_spec::image::Digest::of(b"")));
        assert!(found.is_empty(), "{found:?}\n{text}");
    }
}
