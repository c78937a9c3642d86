//! What an operator sees of requests: their ids, the slow ones, the hottest keys.
#![allow(clippy::disallowed_methods)] // an operator lives in the real world

mod http_support;

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use http_support::{Client, Server};
use serde_json::Value;

#[test]
fn a_clients_request_id_comes_back_on_whatever_is_answered() {
    let server = Server::start();
    let mut client = server.connect();
    for (method, target, code) in [
        ("POST", "/delete?key=k", 200),
        ("GET", "/get?key=k", 404),
        ("GET", "/get", 400),
        ("GET", "/no", 404),
    ] {
        let answer = client.ask(method, target, &[("X-Request-Id", "7f9c24e8-3b12:a/b")], b"");
        assert_eq!(
            (answer.code, answer.header("x-request-id")),
            (code, Some("7f9c24e8-3b12:a/b")),
            "{target}"
        );
    }
    for unusable in ["", "two words", "a\"b", &"x".repeat(129)] {
        let answer = client.ask("GET", "/livez", &[("X-Request-Id", unusable)], b"");
        assert_eq!((answer.code, answer.header("x-request-id")), (200, None), "{unusable}");
    }
    assert_eq!(client.ask("GET", "/livez", &[], b"").header("x-request-id"), None, "an id costs bytes");
}

#[test]
fn an_answer_that_somebody_will_ask_about_has_an_id_of_its_own() {
    let server = Server::start_lonely();
    let ids: Vec<_> = (0..3)
        .map(|_| {
            let answer = server.put("k", "v");
            assert_eq!(answer.code, 503);
            answer.header("x-request-id").unwrap().to_owned()
        })
        .collect();
    assert!(ids[0] != ids[1] && ids[1] != ids[2], "{ids:?}");
}

#[test]
fn the_hottest_keys_are_named() {
    let server = Server::start();
    server.put("hot", "v");
    let mut client = server.connect();
    for number in 0..3000 {
        let key = if number % 3 == 0 { format!("cold{number}") } else { "hot".to_owned() };
        client.ask("GET", &format!("/get?key={key}"), &[], b"");
    }
    let hottest = server.get("/debug/hotkeys?limit=3").json();
    let (looked_at, first) = (hottest["looked_at"].as_u64().unwrap(), &hottest["keys"][0]);
    assert_eq!((hottest["sampled"].as_u64(), first["key"].as_str()), (Some(64), Some("hot")), "{hottest}");
    assert!((20..90).contains(&looked_at), "one in 64 of three thousand: {hottest}");
    assert!((0.4..0.95).contains(&first["share"].as_f64().unwrap()), "{hottest}");
    assert!(first["reads"].as_u64() > Some(10) && first["key_base64"].is_null(), "{hottest}");
    assert_eq!(hottest["keys"].as_array().unwrap().len(), 3);
    for _ in 0..400 {
        client.ask("GET", "/get?key=%ff%fe", &[], b"");
    }
    let all = server.get("/debug/hotkeys?limit=256").json();
    let raw = all["keys"].as_array().unwrap().iter().find(|hot| hot["key_base64"] == "//4=");
    assert_eq!(raw.expect("a key of any bytes")["key"], "\u{fffd}\u{fffd}");
    for limit in ["0", "257", "x"] {
        assert_eq!(server.get(&format!("/debug/hotkeys?limit={limit}")).code, 400);
    }
}

/// A node as a process of its own; killed when dropped.
struct Process {
    child: Child,
    port: u16,
}

impl Process {
    fn start(dir: &Path, settings: &[(&str, &str)]) -> Self {
        // The port was free a moment ago; whoever takes it in between makes the node end, and it is tried again.
        for _ in 0..10 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let mut child = Command::new(env!("CARGO_BIN_EXE_kvstore"))
                .current_dir(dir)
                .args(["-port", &port.to_string(), "-dir", "data"])
                .envs(settings.iter().copied())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let deadline = Instant::now() + Duration::from_secs(30);
            while child.try_wait().unwrap().is_none() {
                if health(dir, port).success() {
                    return Self { child, port };
                }
                assert!(Instant::now() < deadline, "not ready");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        panic!("no port stays free");
    }

    fn ask(&self, target: &str, headers: &[(&str, &str)]) -> http_support::Answer {
        Client::to(([127, 0, 0, 1], self.port).into()).ask("GET", target, headers, b"")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn health(dir: &Path, port: u16) -> std::process::ExitStatus {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvstore"));
    command.current_dir(dir).args(["health", "-port", &port.to_string()]);
    command.stdout(Stdio::null()).status().unwrap()
}

/// The first line of the log that has all of `words`; waited for.
fn line_with(dir: &Path, words: &[&str]) -> String {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let log = std::fs::read_to_string(dir.join("data/node.log")).unwrap_or_default();
        if let Some(line) = log.lines().find(|line| words.iter().all(|word| line.contains(word))) {
            return line.to_owned();
        }
        assert!(Instant::now() < deadline, "no line has {words:?} in:\n{log}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_slow_request_is_logged_with_its_id_and_without_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let node = Process::start(dir.path(), &[("SLOW_REQUEST_TIME", "1us"), ("LOG_FORMAT", "json")]);
    let answer = node.ask("/get?key=private", &[("X-Request-Id", "mine-1")]);
    assert_eq!((answer.code, answer.header("x-request-id")), (404, Some("mine-1")));
    let line = line_with(dir.path(), &["slow request", "mine-1"]);
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["request_id"], "mine-1");
    let fields = &line["fields"];
    assert_eq!(
        (&fields["route"], &fields["status"], &fields["method"]),
        (&"get".into(), &404.into(), &"GET".into())
    );
    assert!(!line.to_string().contains("private"));
    assert!(node.ask("/metrics", &[]).json()["slow_requests"].as_u64() > Some(0));
}

#[test]
fn an_id_that_the_node_made_leads_from_the_answer_to_the_line() {
    let dir = tempfile::tempdir().unwrap();
    let node = Process::start(dir.path(), &[("SLOW_REQUEST_TIME", "1us")]);
    let answer = node.ask("/explain?key=k", &[]);
    let id = answer.header("x-request-id").expect("it was slow, so it has one").to_owned();
    line_with(dir.path(), &["slow request", "route=\"explain\"", &format!("request_id={id}")]);
}

#[test]
fn health_is_said_by_the_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let node = Process::start(dir.path(), &[]);
    assert_eq!(health(dir.path(), node.port).code(), Some(0));
    let port = node.port;
    drop(node);
    assert_eq!(health(dir.path(), port).code(), Some(1));
    assert_eq!(health(dir.path(), 0).code(), Some(2), "a bad setting");
}
