//! Every crate that a release is made of has a licence that lets it be given away with ours.

use std::collections::BTreeSet;
use std::process::Command;

/// The same as in `deny.toml`.
fn allowed() -> BTreeSet<String> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deny.toml")).unwrap();
    let line =
        text.lines().find(|line| line.starts_with("allow = ")).expect("deny.toml lists what is allowed");
    line.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Whether an expression of names, `AND`, `OR` (also `/`) and brackets can be met with what is allowed. `AND` binds tighter.
fn is_met(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let expression = expression.replace('/', " OR ");
    let mut depth = 0;
    let mut parts = vec![(String::new(), "")];
    for word in expression.replace('(', " ( ").replace(')', " ) ").split_whitespace() {
        match word {
            "OR" | "AND" if depth == 0 => {
                parts.last_mut().unwrap().1 = if word == "OR" { "OR" } else { "AND" };
                parts.push((String::new(), ""));
                continue;
            }
            "(" => depth += 1,
            ")" => depth -= 1,
            _ => {}
        }
        let part = &mut parts.last_mut().unwrap().0;
        if !part.is_empty() {
            part.push(' ');
        }
        part.push_str(word);
    }
    let is_part_met = |part: &str| match part.strip_prefix("( ").and_then(|rest| rest.strip_suffix(" )")) {
        Some(inner) => is_met(inner, allowed),
        None => allowed.contains(part),
    };
    let mut all_of_group = true;
    for (part, joined_by) in &parts {
        all_of_group &= is_part_met(part);
        if *joined_by != "AND" {
            if all_of_group {
                return true;
            }
            all_of_group = true;
        }
    }
    false
}

#[test]
fn every_crate_may_be_given_away() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"]) // crates of other platforms may have to be fetched
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let allowed = allowed();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 50, "this is not the whole tree");
    let refused: Vec<String> = packages
        .iter()
        .filter(|package| !is_met(package["license"].as_str().unwrap_or_default(), &allowed))
        .map(|package| format!("{} {}: {}", package["name"], package["version"], package["license"]))
        .collect();
    assert!(refused.is_empty(), "not allowed by deny.toml:\n{}", refused.join("\n"));
}

#[test]
fn expressions_are_read_as_spdx_says() {
    let allowed = BTreeSet::from(["MIT".to_owned(), "Unicode-3.0".to_owned(), "Apache-2.0".to_owned()]);
    for met in [
        "MIT",
        "GPL-3.0 OR MIT",
        "MIT/GPL-3.0",
        "(GPL-3.0 OR MIT) AND Unicode-3.0",
        "GPL-3.0 AND BSL-1.0 OR MIT",
    ] {
        assert!(is_met(met, &allowed), "{met}");
    }
    for unmet in ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT OR Apache-2.0) AND GPL-3.0", "GPL-3.0 OR LGPL-2.1"]
    {
        assert!(!is_met(unmet, &allowed), "{unmet}");
    }
}
