//! `mcp forget`: lets go of components without touching their containers.

use mcp_proto::v1;
use mcp_spec::name::Target;
use serde::Serialize;

use super::place::{self, Placed};
use super::{repository, rows};
use crate::client;
use crate::context::Context;
use crate::error::Outcome;
use crate::output::clean;
use crate::output::plan::path;
use crate::output::style::{self, bold, green, short};

/// Let go of components; their containers stay as they are, unmanaged
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp forget shop/cache        its container runs on, and is shown as unmanaged
  mcp forget shop --yes        also where the definitions still have it

A component that the head defines would find its name taken at the next deploy: take it out of the
definition first, or agree with --yes. Take it back with: mcp adopt")]
pub(crate) struct Args {
    /// Services or components, as metacrypt or metacrypt/api
    #[arg(add = super::complete::targets(), value_name = "TARGET", required = true)]
    targets: Vec<Target>,
    /// Also where the head defines them
    #[arg(short, long)]
    yes: bool,
}

#[derive(Serialize)]
struct Document {
    node: String,
    service: String,
    component: String,
    container: String,
    container_id: String,
}

/// Carries it out.
pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    let placed = place::place(context, &args.targets).await?;
    repository::open_key(context)?;
    let answers = client::ask(
        context,
        &placed,
        |placed: &Placed<'_>| placed.node,
        async |client, placed| {
            let request = v1::ForgetRequest {
                targets: placed.wire(),
                yes: args.yes,
            };
            Ok(client.forget(request).await?.forgotten)
        },
    )
    .await;
    let mut documents = Vec::new();
    let mut lines = String::new();
    for answer in &answers {
        for one in answer.result.iter().flatten() {
            let target = one.target.clone().unwrap_or_default();
            lines.push_str(&format!(
                "{}  {} {}  container {} {}  forgotten, not touched\n",
                clean::line(&answer.node),
                green(style::GOOD),
                bold(&path(&target.service, &target.component)),
                clean::line(&one.container),
                short(&one.container_id),
            ));
            documents.push(Document {
                node: answer.node.clone(),
                service: target.service,
                component: target.component,
                container: one.container.clone(),
                container_id: one.container_id.clone(),
            });
        }
    }
    if context.out.is_table() {
        context.out.data(&lines)?;
    } else {
        context.out.json_list(&documents)?;
    }
    rows::end(context, &answers)
}
