//! Arrows go one way: `use crate::` and `crate::` paths in `src/` are held to the import table of the layers.
#![allow(clippy::disallowed_methods)] // reads the sources themselves

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Who may import whom, besides themselves and what is open to all (`util`, `types`).
///
/// As in the style guide, but that `gossip` may use `hlc`, since its pings carry clock readings, and that `config`,
/// which is handed to those who may import everything, itself needs no more than the names of members and whether
/// certificates fit.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("util", &[]),
    ("types", &[]),
    ("env", &[]),
    ("hlc", &["env"]),
    ("cluster", &[]),
    ("engine", &["env"]),
    ("tls", &[]),
    ("rpc", &["cluster", "env", "tls"]),
    ("gossip", &["rpc", "cluster", "env", "hlc"]),
    ("hints", &["rpc", "engine", "env"]),
    ("replication", &["hints", "gossip", "rpc", "engine", "cluster", "env", "hlc"]),
    ("http", &["replication", "cluster", "tls"]),
    ("config", &["cluster", "tls"]),
];
const OPEN_TO_ALL: [&str; 2] = ["util", "types"];
/// What starts and wires everything may import everything; nobody imports it.
const ABOVE_ALL: [&str; 6] = ["node", "node_state", "cli", "main", "lib", "fuzz"];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The layers that a source names by `crate::`, its unit tests and comments aside.
fn named_layers(source: &str) -> BTreeSet<String> {
    let code = source.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let after = lines.flat_map(|line| line.split("crate::").skip(1).map(str::to_owned).collect::<Vec<_>>());
    after
        .map(|rest| rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect::<String>())
        .filter(|layer| !layer.is_empty())
        .collect()
}

#[test]
fn imports_follow_the_arrows() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    assert!(files.len() > 20, "the sources are in {}", src.display());
    let mut wrong = Vec::new();
    for file in files {
        let inside = file.strip_prefix(&src).unwrap();
        let layer = inside.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        if ABOVE_ALL.contains(&layer) {
            continue;
        }
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(name, _)| *name == layer) else {
            wrong.push(format!("{}: `{layer}` is not in the table", inside.display()));
            continue;
        };
        // A file of unit tests may use what its layer may not.
        if inside.ends_with("tests.rs") {
            continue;
        }
        for named in named_layers(&std::fs::read_to_string(&file).unwrap()) {
            if named != layer && !allowed.contains(&named.as_str()) && !OPEN_TO_ALL.contains(&named.as_str())
            {
                wrong.push(format!("{}: `{layer}` imports `{named}`", inside.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn a_path_in_the_middle_of_a_line_is_seen() {
    let source = "use crate::types::Key;\nlet x: crate::env::Lane;\n// crate::http\n#[cfg(test)]\nmod tests { use crate::cli; }";
    assert_eq!(named_layers(source), BTreeSet::from(["env".to_owned(), "types".to_owned()]));
}
