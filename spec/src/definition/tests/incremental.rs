//! Compiling again gives what compiling in full gives, and reads what changed alone.

use std::cell::Cell;
use std::convert::Infallible;

use proptest::prelude::*;

use super::*;

/// The contents of a repository, by path.
type Tree = BTreeMap<String, String>;

fn content(text: &str) -> ContentId {
    let digest = Digest::of(text.as_bytes());
    let mut id = [0; 20];
    id.copy_from_slice(&digest.as_bytes()[..20]);
    id
}

/// Compiles what is in the tree, once more and in full; tells how many definitions were read.
fn again(compiled: &mut Compiled, tree: &Tree, node: &str) -> (Option<DesiredSet>, usize) {
    let node = node.parse().unwrap();
    let lookup = |path: &str| tree.get(path).map(|text| Digest::of(text.as_bytes()));
    let files: Vec<(&str, ContentId)> = tree
        .iter()
        .filter(|(path, _)| path.starts_with("services/"))
        .map(|(path, text)| (path.as_str(), content(text)))
        .collect();
    let reads = Cell::new(0);
    let bytes = |path: &str, _: &ContentId| {
        reads.set(reads.get() + 1);
        Ok::<_, Infallible>(tree[path].clone().into_bytes())
    };
    let found = compiled
        .compile_for_node(&files, &node, &bytes, &lookup)
        .unwrap();
    let full: Vec<DefinitionFile<'_>> = files
        .iter()
        .map(|(path, _)| DefinitionFile {
            path,
            bytes: tree[*path].as_bytes(),
        })
        .collect();
    assert_eq!(found, compile_for_node(&full, &node, &lookup).ok());
    (found, reads.get())
}

fn service(name: &str, node: &str, rest: &str) -> (String, String) {
    (
        format!("services/{name}.toml"),
        format!(
            "name = \"{name}\"\nnode = \"{node}\"\n[[components]]\nname = \"web\"\nimage = \"x:1\"\n{rest}"
        ),
    )
}

#[test]
fn unchanged_definitions_are_not_read_again() {
    let mut compiled = Compiled::default();
    let mut tree = Tree::from_iter([
        service("a", "rift", ""),
        service(
            "b",
            "rift",
            "files = [{ from = \"files/b/x\", to = \"/x\" }]\n",
        ),
        service("c", "quill", ""),
    ]);
    tree.insert("files/b/x".to_owned(), "one".to_owned());
    let (set, reads) = again(&mut compiled, &tree, "rift");
    assert_eq!((set.unwrap().services.len(), reads), (2, 3));
    assert_eq!(again(&mut compiled, &tree, "rift").1, 0);
    tree.extend([service("a", "rift", "env = { A = \"1\" }\n")]);
    assert_eq!(again(&mut compiled, &tree, "rift").1, 1);
    // A mounted file is a part of what mounts it.
    tree.insert("files/b/x".to_owned(), "two".to_owned());
    assert_eq!(again(&mut compiled, &tree, "rift").1, 1);
    tree.remove("services/c.toml");
    assert_eq!(again(&mut compiled, &tree, "rift").1, 0);
    // Another node's are others.
    assert_eq!(again(&mut compiled, &tree, "quill").1, 2);
}

#[test]
fn what_is_wrong_is_wrong_at_each_time() {
    let mut compiled = Compiled::default();
    let mut tree = Tree::from_iter([
        service("a", "rift", "ports = [\"80:80\"]\n"),
        service("b", "rift", "ports = [\"80:80\"]\n"),
    ]);
    for _ in 0..2 {
        assert_eq!(again(&mut compiled, &tree, "rift").0, None);
    }
    tree.extend([service("b", "rift", "ports = [\"81:80\"]\n")]);
    assert!(again(&mut compiled, &tree, "rift").0.is_some());
    tree.extend([service("b", "rift", "nonsense = 1\n")]);
    for _ in 0..2 {
        assert_eq!(again(&mut compiled, &tree, "rift").0, None);
    }
}

fn rest() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(vec![
        "",
        "env = { A = \"1\" }\n",
        "ports = [\"80:80\"]\n",
        "ports = [\"127.0.0.1:80:80\"]\n",
        "files = [{ from = \"files/x\", to = \"/x\" }]\n",
        "depends_on = [\"web\"]\n",
        "[[components]]\nname = \"b\"\nimage = \"y\"\n",
        "[[components]]\nname = \"web\"\nimage = \"y\"\n",
        "nonsense",
    ])
}

proptest! {
    #[test]
    fn compiling_again_is_compiling(
        edits in proptest::collection::vec(
            // `a` with a component `b-web` and `a-b` with `web` want the same container.
            (proptest::sample::select(vec!["a", "b", "a-b"]), proptest::sample::select(vec!["rift", "quill", "?"]),
             rest(), 0..6_u8),
            1..30,
        ),
    ) {
        let mut compiled = Compiled::default();
        let mut tree = Tree::new();
        for (name, node, rest, what) in edits {
            let (path, text) = service(name, node, rest);
            match what {
                0 => drop(tree.remove(&path)),
                1 => drop(tree.insert("files/x".to_owned(), rest.to_owned())),
                2 => drop(tree.remove("files/x")),
                _ => drop(tree.insert(path, text)),
            }
            again(&mut compiled, &tree, "rift");
        }
    }
}
