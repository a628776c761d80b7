//! `docs/cli-reference.md`, rendered from the command line itself, and the test that keeps it current.
//!
//! Written anew with `MCP_WRITE_REFERENCE=1 cargo test -p mcp --bin mcp reference`.

use std::fmt::Write as _;

use clap::builder::StyledStr;
use clap::{Arg, ArgAction, Command};

const HEAD: &str = "\
# Command reference

Generated from the command line itself; `mcp help COMMAND` says the same. Do not edit.

";

fn plain(text: &StyledStr) -> String {
    anstream::adapter::strip_str(&text.to_string()).to_string()
}

/// `--flag <VALUE>` as it is written.
fn spelled(arg: &Arg) -> String {
    let value = arg
        .get_value_names()
        .filter(|_| !matches!(arg.get_action(), ArgAction::SetTrue | ArgAction::Count))
        .map(|names| {
            names
                .iter()
                .map(|name| format!(" <{name}>"))
                .collect::<String>()
        })
        .unwrap_or_default();
    match (arg.get_short(), arg.get_long()) {
        (Some(short), Some(long)) => format!("`-{short}, --{long}{value}`"),
        (None, Some(long)) => format!("`--{long}{value}`"),
        (Some(short), None) => format!("`-{short}{value}`"),
        (None, None) => format!("`{}`", value.trim()),
    }
}

fn arguments<'a>(out: &mut String, args: impl Iterator<Item = &'a Arg>) {
    let mut rows = String::new();
    for arg in args
        .filter(|arg| !arg.is_hide_set() && !matches!(arg.get_id().as_str(), "help" | "version"))
    {
        let mut help = arg.get_help().map(plain).unwrap_or_default();
        let values: Vec<String> = arg
            .get_possible_values()
            .iter()
            .filter(|_| arg.get_action().takes_values())
            .map(|value| format!("`{}`", value.get_name()))
            .collect();
        if !values.is_empty() {
            let _ = write!(help, ": {}", values.join(", "));
        }
        let defaults: Vec<String> = arg
            .get_default_values()
            .iter()
            .map(|value| value.to_string_lossy().into_owned())
            .collect();
        if !defaults.is_empty()
            && !arg.is_hide_default_value_set()
            && arg.get_action().takes_values()
        {
            let _ = write!(help, " (default `{}`)", defaults.join(", "));
        }
        if let Some(variable) = arg.get_env() {
            let _ = write!(help, " [`{}`]", variable.to_string_lossy());
        }
        let _ = writeln!(rows, "| {} | {} |", spelled(arg), help.replace('|', "\\|"));
    }
    if !rows.is_empty() {
        let _ = write!(out, "| | |\n| --- | --- |\n{rows}\n");
    }
}

fn section(out: &mut String, path: &str, command: &Command, level: usize) {
    let _ = write!(out, "{} {path}\n\n", "#".repeat(level));
    if let Some(about) = command.get_about() {
        let _ = write!(out, "{}.\n\n", plain(about).trim_end_matches('.'));
    }
    // One that takes arguments of its own is used without a subcommand as well.
    let is_used_alone = command.get_positionals().next().is_some();
    if is_used_alone || command.get_subcommands().next().is_none() {
        let mut usage = path.to_owned();
        if command.get_opts().next().is_some()
            || command.get_arguments().any(|arg| !arg.is_positional())
        {
            usage.push_str(" [OPTIONS]");
        }
        for arg in command.get_positionals() {
            let name = arg
                .get_value_names()
                .map_or_else(|| arg.get_id().to_string(), |names| names.join(" "));
            let many = if matches!(arg.get_action(), ArgAction::Append) {
                "..."
            } else {
                ""
            };
            let shown = if arg.is_required_set() {
                format!(" {name}{many}")
            } else {
                format!(" [{name}]{many}")
            };
            usage.push_str(&shown);
        }
        let _ = write!(out, "```\n{usage}\n```\n\n");
    }
    arguments(
        out,
        command.get_arguments().filter(|arg| !arg.is_global_set()),
    );
    if let Some(after) = command.get_after_help() {
        let _ = write!(out, "```\n{}\n```\n\n", plain(after).trim_end());
    }
    for sub in command
        .get_subcommands()
        .filter(|sub| sub.get_name() != "help")
    {
        section(out, &format!("{path} {}", sub.get_name()), sub, level + 1);
    }
}

fn render() -> String {
    let command = super::plain_command();
    let mut out = HEAD.to_owned();
    out.push_str("## Global options\n\nTaken before and after the command.\n\n");
    arguments(
        &mut out,
        command.get_arguments().filter(|arg| arg.is_global_set()),
    );
    let _ = write!(out, "## Exit codes\n\n```\n{}\n```\n\n", super::EXIT_CODES);
    for (heading, names) in super::GROUPS {
        let _ = write!(out, "## {heading}\n\n");
        for name in names {
            if let Some(sub) = command.find_subcommand(name) {
                section(&mut out, &format!("mcp {name}"), sub, 3);
            }
        }
    }
    let mut text = out.trim_end().to_owned();
    text.push('\n');
    text
}

#[test]
fn reference_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cli-reference.md");
    let wanted = render();
    if std::env::var_os("MCP_WRITE_REFERENCE").is_some() {
        std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs")).unwrap();
        std::fs::write(path, &wanted).unwrap();
    }
    let held = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        held == wanted,
        "docs/cli-reference.md is not current: MCP_WRITE_REFERENCE=1 cargo test -p mcp --bin mcp reference"
    );
}
