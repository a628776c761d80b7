//! The example repository is one that MCP takes: its definitions compile, and hold what the docs say.

use std::path::{Path, PathBuf};

use mcp_spec::definition::{DefinitionFile, compile};
use mcp_spec::image::Digest;

fn example_repo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../example-repo")
}

#[test]
fn every_definition_compiles() {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(example_repo().join("services")).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("services/{}", path.file_name().unwrap().to_str().unwrap());
        files.push((name, std::fs::read(&path).unwrap()));
    }
    let files: Vec<_> = files
        .iter()
        .map(|(path, bytes)| DefinitionFile { path, bytes })
        .collect();
    let digest: Digest = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
    let lookup = |file: &str| example_repo().join(file).is_file().then_some(digest);
    let set = compile(&files, &lookup).unwrap_or_else(|errors| {
        panic!(
            "{}",
            errors
                .iter()
                .map(|error| error.render())
                .collect::<String>()
        )
    });
    let components: Vec<String> = set
        .services
        .values()
        .flat_map(|service| {
            service
                .components
                .iter()
                .map(move |component| format!("{}/{}", service.name, component.0))
        })
        .collect();
    assert_eq!(
        components,
        [
            "ledger/app",
            "ledger/db",
            "ledger/migrate",
            "metacrypt/api",
            "metacrypt/web"
        ]
    );
}
