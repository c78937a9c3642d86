//! The lines of `docs/migrate.md`, run as they stand there: our own doors in place of the stores that are left.
#![allow(clippy::disallowed_methods)] // a user lives in the real world

mod http_support;

use std::path::Path;
use std::process::{Command, Stdio};

use http_support::Server;
use serde_json::json;

/// The shell lines behind a mark in the document.
fn lines_of(name: &str) -> String {
    let text = include_str!("../docs/migrate.md");
    let block =
        text.split(&format!("<!-- run: {name} -->\n```sh\n")).nth(1).unwrap_or_else(|| panic!("{name}"));
    block.split("\n```").next().unwrap().to_owned()
}

/// Whether the machine has what the lines need.
fn has_tools() -> bool {
    let missing: Vec<_> = ["curl", "jq", "base64"]
        .into_iter()
        .filter(|tool| {
            let tried =
                Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
            !tried.is_ok_and(|status| status.success())
        })
        .collect();
    if !missing.is_empty() {
        eprintln!("skipped: {missing:?} is missing on this machine");
    }
    missing.is_empty()
}

fn run(name: &str, dir: &Path, old: &Server, new: &Server) {
    let program = Path::new(env!("CARGO_BIN_EXE_kvstore")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    let script = format!("set -eu\n{}\n", lines_of(name));
    let ended = Command::new("sh")
        .args(["-c", &script])
        .current_dir(dir)
        .env("PATH", path)
        .env("OLD", old.addr.to_string())
        .env("NEW", new.addr.to_string())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(ended.status.success(), "{name}: {}", String::from_utf8_lossy(&ended.stderr));
}

/// Runs lines between two stores; what the old one held is read from the new one, by its export.
fn moved(name: &str, dir: &Path, old: &Server) -> Server {
    let new = Server::start();
    run(name, dir, old, &new);
    new
}

#[test]
fn a_user_of_kv_store_brings_the_data_along() {
    if !has_tools() {
        return;
    }
    let (old, dir) = (Server::start(), tempfile::tempdir().unwrap());
    for (key, value) in
        [("user:1001", "Alice \"Smith\"\n"), ("product:101", ""), ("ключ", "значение"), ("~", "😀")]
    {
        assert_eq!(old.put(key, value).code, 200);
    }
    let new = moved("kv-store", dir.path(), &old);
    assert_eq!(new.get("/scan").json(), old.get("/scan").json());
    assert_eq!(new.get("/get?key=user:1001").text(), "Alice \"Smith\"\n");
    run("back", dir.path(), &old, &new);
    let lines = std::fs::read_to_string(dir.path().join("all.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 4);
}

#[test]
fn a_user_of_vikdb_brings_the_data_along() {
    if !has_tools() {
        return;
    }
    let (old, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let batch = json!({"keys": ["a2V5MQ==", "/wA="], "values": ["dmFsdWUx", "iVBOR/4="]});
    assert_eq!(old.post("/kv/batch", batch.to_string()).json()["count"], 2);
    let new = moved("vikdb", dir.path(), &old);
    assert_eq!(new.get("/kv/a2V5MQ==").json(), json!({"success": true, "value": "dmFsdWUx"}));
    let all = r#"{"start_key":"AA=="}"#;
    assert_eq!(new.post("/kv/range", all).json(), old.post("/kv/range", all).json());
}

#[test]
fn a_user_of_simple_kv_brings_the_data_along() {
    if !has_tools() {
        return;
    }
    let (old, dir) = (Server::start(), tempfile::tempdir().unwrap());
    old.post("/set", r#"{"colour":"blue"}"#);
    old.post("/set", json!({"key": "a b\\c&d", "value": "two\nlines\n"}).to_string());
    std::fs::write(dir.path().join("keys.txt"), "colour\nnever set\na b\\c&d\n").unwrap();
    let new = moved("simple-kv", dir.path(), &old);
    assert_eq!(new.get("/get?key=colour").text(), "blue");
    assert_eq!(new.get("/scan").json(), old.get("/scan").json());
    assert_eq!(new.ask("DELETE", "/del?key=colour", b"").text(), "blue");
}

#[test]
fn a_user_of_mini_kvstore_brings_the_data_along() {
    if !has_tools() {
        return;
    }
    let (old, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let mut client = old.connect();
    let large = vec![0xfe; 300_000]; // more than an argument of a command may have
    for (key, of, bytes) in [
        ("user:123", "text/plain", &b"Hello, World!"[..]),
        ("a%2Fb%20c%25", "image/png", b"\x89PNG\0"),
        ("large", "application/octet-stream", &large),
    ] {
        let put = client.ask("POST", &format!("/blobs/{key}"), &[("Content-Type", of)], bytes);
        assert_eq!(put.code, 201);
    }
    let new = moved("mini-kvstore", dir.path(), &old);
    assert_eq!(new.get("/blobs").json(), json!(["a/b c%", "large", "user:123"]));
    for key in ["user:123", "a%2Fb%20c%25", "large"] {
        let (was, is) = (old.get(&format!("/blobs/{key}")), new.get(&format!("/blobs/{key}")));
        assert!(was.body == is.body, "{key}");
        assert_eq!(
            (was.header("content-type"), was.header("etag")),
            (is.header("content-type"), is.header("etag"))
        );
    }
}
