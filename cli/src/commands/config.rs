//! `mcp config`: the effective settings, and where each comes from.

use serde::Serialize;

use crate::config::Setting;
use crate::context::Context;
use crate::error::{Exit, Outcome};
use crate::output::style::Style;
use crate::output::table::{Cell, Table};

/// Show the effective settings and where each comes from
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp config
  MCP_REPO=/srv/desired mcp config -o json")]
pub(crate) struct Args {}

#[derive(Serialize)]
struct Row {
    name: String,
    value: String,
    origin: String,
}

fn row<T>(name: &str, setting: &Setting<T>, value: impl Fn(&T) -> String) -> Row {
    Row {
        name: name.to_owned(),
        value: value(&setting.value),
        origin: setting.origin.to_string(),
    }
}

/// Carries it out.
pub(crate) async fn run(context: &Context, _: Args) -> Outcome {
    let settings = &context.settings;
    let path = |path: &std::path::PathBuf| path.display().to_string();
    let mut rows = vec![
        row("config", &settings.config, path),
        row("repo", &settings.repo, path),
        row("auth.token_dir", &settings.token_dir, path),
    ];
    if let Some(file) = &settings.token_file {
        rows.push(row("token_file", file, path));
    }
    if !settings.token_command.is_empty() {
        rows.push(Row {
            name: "auth.token_command".to_owned(),
            value: settings.token_command.join(" "),
            origin: "mcp.toml".to_owned(),
        });
    }
    match &settings.key {
        Some(key) => rows.push(row("sign.key", key, Clone::clone)),
        None => rows.push(Row {
            name: "sign.key".to_owned(),
            value: "git's user.signingkey".to_owned(),
            origin: "default".to_owned(),
        }),
    }
    if let Some(issuer) = &settings.issuer {
        let from_file = |name: &str, value: &str| Row {
            name: format!("mcias.{name}"),
            value: value.to_owned(),
            origin: "mcp.toml".to_owned(),
        };
        rows.push(from_file("server_url", &issuer.server_url));
        if let Some(ca) = &issuer.ca_cert {
            rows.push(from_file("ca_cert", &ca.display().to_string()));
        }
        if let Some(name) = &issuer.service_name {
            rows.push(from_file("service_name", name));
        }
    }
    for node in &settings.nodes {
        rows.push(Row {
            name: format!("nodes.{}", node.name),
            value: node.address.clone(),
            origin: "mcp.toml".to_owned(),
        });
    }
    if !settings.selected.value.is_empty() {
        rows.push(row("node", &settings.selected, |names| names.join(",")));
    }
    if !context.out.is_table() {
        context.out.json_list(&rows)?;
        return Ok(Exit::Done);
    }
    let mut table = Table::with_header(&["SETTING", "VALUE", "FROM"]);
    for row in &rows {
        table.row([
            Cell::new(&row.name, Style::Bold),
            Cell::from(row.value.as_str()),
            Cell::new(&row.origin, Style::Dim),
        ]);
    }
    context.out.data(&table.render(context.out.width()))?;
    Ok(Exit::Done)
}
