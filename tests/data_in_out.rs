//! Data in and out: export and import, checkpoint and restore, verify and inspect, as a user runs them.
#![allow(clippy::disallowed_methods)] // a user lives in the real world

mod http_support;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_support::{Answer, Client, Server, says_that_it_runs, until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// What a record comes to: value and content type.
type Content = (Vec<u8>, Option<String>);
type Model = BTreeMap<Vec<u8>, Content>;

/// A key and a value of every sort: text, bytes, empty values, escapes, content types.
fn model(count: u32) -> Model {
    (0..count)
        .map(|n| {
            let key = match n % 4 {
                0 => [&[0xff, 0x00], &n.to_be_bytes()[..]].concat(),
                1 => format!("plain:{n:06}").into_bytes(),
                2 => format!("\"quoted\"\n\u{1f600}:{n}").into_bytes(),
                _ => [b"mixed\xc3", &n.to_be_bytes()[..]].concat(),
            };
            let value = match n % 5 {
                0 => Vec::new(),
                1 => format!("value {n}").into_bytes(),
                2 => n.to_le_bytes().repeat(9),
                3 => vec![0xfe; (n % 200) as usize],
                _ => format!("{{\"n\":{n},\"text\":\"ä\\u0000\"}}").into_bytes(),
            };
            let of = (n % 7 == 0).then(|| format!("text/x-{}; a=\"{n}\"", n % 3));
            (key, (value, of))
        })
        .collect()
}

/// A model as lines, written by other hands than the program's.
fn lines(model: &Model) -> String {
    let mut text = String::new();
    for (key, (value, of)) in model {
        let mut line = serde_json::Map::new();
        for (name, bytes) in [("key", key), ("value", value)] {
            match std::str::from_utf8(bytes) {
                Ok(text) => line.insert(name.to_owned(), text.into()),
                Err(_) => line.insert(format!("{name}_base64"), STANDARD.encode(bytes).into()),
            };
        }
        if let Some(of) = of {
            line.insert("content_type".to_owned(), of.clone().into());
        }
        text += &Value::Object(line).to_string();
        text.push('\n');
    }
    text
}

/// What an export says, in the order in which it says it.
fn read(text: &str) -> Vec<(Vec<u8>, Content)> {
    text.lines()
        .map(|line| {
            let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            let bytes = |name: &str| match (&line[name], &line[format!("{name}_base64")]) {
                (Value::String(text), Value::Null) => text.clone().into_bytes(),
                (Value::Null, Value::String(text)) => STANDARD.decode(text).unwrap(),
                other => panic!("{name}: {other:?}"),
            };
            assert!(line["timestamp"].as_u64().unwrap() > 0);
            (bytes("key"), (bytes("value"), line["content_type"].as_str().map(str::to_owned)))
        })
        .collect()
}

fn assert_is(text: &str, model: &Model) {
    let exported = read(text);
    assert!(exported.is_sorted(), "in key order");
    assert_eq!(exported.len(), model.len());
    for (one, other) in exported.iter().zip(model) {
        assert_eq!((&one.0, &one.1), other);
    }
}

/// Runs the program in a directory.
fn kvstore(dir: &Path, args: &[&str]) -> Output {
    command(dir, args).stdin(Stdio::null()).output().unwrap()
}

fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvstore"));
    command.args(args).env_clear().current_dir(dir);
    command
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("it was not killed")
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Runs the program, which is to do what it is asked for.
fn done(dir: &Path, args: &[&str]) -> Output {
    let output = kvstore(dir, args);
    assert_eq!(code(&output), 0, "{args:?}: {}{}", out(&output), err(&output));
    output
}

/// A node in a process of its own; killed when dropped.
struct Node {
    child: Child,
    addr: SocketAddr,
}

impl Node {
    /// Starts one that is alone, in `dir`, on a port that is free.
    fn alone(dir: &Path, settings: &[(&str, &str)]) -> Self {
        for _ in 0..10 {
            // Somebody else may take the port between here and there; then another is tried.
            let port = free_ports(1)[0];
            let args = ["-advertise-addr", "127.0.0.1:1"]; // the same whatever the port is
            if let Some(node) = Self::start(dir, port, &args, settings) {
                return node;
            }
        }
        panic!("no node on any of ten ports");
    }

    fn start(dir: &Path, port: u16, args: &[&str], settings: &[(&str, &str)]) -> Option<Self> {
        let child = Command::new(env!("CARGO_BIN_EXE_kvstore"))
            .args(["-port", &port.to_string(), "-dir"])
            .arg(dir)
            .args(args)
            .env_clear()
            .env("NETWORK_TIMEOUT", "20s")
            .envs(settings.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut node = Self { child, addr: SocketAddr::from(([127, 0, 0, 1], port)) };
        says_that_it_runs(&mut node.child).then_some(node)
    }

    fn name(&self) -> String {
        self.addr.to_string()
    }

    fn ask(&self, method: &str, target: &str, body: &str) -> Answer {
        Client::to(self.addr).ask(method, target, &[], body.as_bytes())
    }

    fn get(&self, target: &str) -> Answer {
        self.ask("GET", target, "")
    }

    /// Stops it as an operator does.
    fn stop(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }

    /// Ends it at once; what it had not flushed is in its logs.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

fn free_ports(count: usize) -> Vec<u16> {
    let held: Vec<_> = (0..count).map(|_| TcpListener::bind(("127.0.0.1", 0)).unwrap()).collect();
    held.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}

/// Every file below a directory, with its bytes.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    found
}

// ---- export and import ----

#[test]
fn twenty_thousand_records_of_every_sort_come_through_nodes_and_directories() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let model = model(20_000);
    std::fs::write(dir.join("in.jsonl"), lines(&model)).unwrap();
    let server = Server::start();
    let connect = server.addr.to_string();

    let imported = done(dir, &["import", "in.jsonl", "--connect", &connect, "--json"]);
    let said: Value = serde_json::from_slice(&imported.stdout).unwrap();
    assert_eq!((&said["written"], &said["complete"]), (&json!(20_000), &json!(true)));
    assert!(!dir.join("in.jsonl.progress").exists(), "nothing is left to go on with");

    let exported = done(dir, &["export", "--connect", &connect]);
    assert!(err(&exported).contains("exported 20000 keys"), "{}", err(&exported));
    assert_is(&out(&exported), &model);
    done(dir, &["export", "--connect", &connect, "--output", "out.jsonl"]);
    assert_eq!(std::fs::read_to_string(dir.join("out.jsonl")).unwrap(), out(&exported));

    // Into a new directory, twice: the second time changes nothing but timestamps.
    let own = ["--", "-advertise-addr", "127.0.0.1:1"];
    done(dir, &[&["import", "out.jsonl", "--dir", "node"], &own[..]].concat());
    done(dir, &[&["import", "out.jsonl", "--dir", "node"], &own[..]].concat());
    let before = files(&dir.join("node"));
    let from_directory = done(dir, &["export", "--dir", "node"]);
    assert!(err(&from_directory).contains("one node's copy"));
    assert_is(&out(&from_directory), &model);
    assert_eq!(files(&dir.join("node")), before, "an export changes nothing");
    done(dir, &["verify", "node"]);

    // And a node starts on it, with nothing lost: what it exports is the same to the last timestamp.
    let node = Node::alone(&dir.join("node"), &[]);
    let in_use = kvstore(dir, &["export", "--dir", "node"]);
    assert_eq!((code(&in_use), err(&in_use).contains("in use")), (1, true), "{}", err(&in_use));
    let exported = done(dir, &["export", "--connect", &node.name()]);
    assert_eq!(out(&exported), out(&from_directory));
    assert_eq!(node.get("/get?key=plain:000001").text(), "value 1");
}

#[test]
fn what_ends_goes_on_to_end_wherever_it_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (from, to) = (Server::start(), Server::start());
    let [from_name, to_name] = [&from, &to].map(|server| server.addr.to_string());
    let items = r#"{"items":[{"key":"a","value":"1","ttl":"1h"},{"key":"b","value":"2"},
        {"key":"c","value":"3","expires_at":"2112-01-02T03:04:05.5Z"},{"key":"d","value":"4","ttl":"1s"}]}"#;
    assert_eq!(from.post("/v1/kv:put", items).text(), r#"{"written":4}"#);
    let end_of = |server: &Server, key: &str| {
        server.get(&format!("/get?key={key}")).header("x-kv-expires").map(str::to_owned)
    };
    let hour = end_of(&from, "a").expect("a ttl of its own");
    assert_eq!(end_of(&from, "b"), None);
    assert_eq!(end_of(&from, "c").as_deref(), Some("2112-01-02T03:04:05.500000Z"));

    done(dir, &["export", "--connect", &from_name, "--output", "all.jsonl"]);
    until("its second is over", || from.get("/get?key=d").code == 404);

    done(dir, &["import", "all.jsonl", "--connect", &to_name]);
    assert_eq!(end_of(&to, "a").as_ref(), Some(&hour), "not an hour from now");
    assert_eq!((end_of(&to, "b"), to.get("/get?key=d").code), (None, 404));

    done(dir, &["import", "all.jsonl", "--dir", "node", "--", "-advertise-addr", "127.0.0.1:1"]);
    let exported = out(&done(dir, &["export", "--dir", "node"]));
    let ends: Vec<_> = exported
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|line| {
            (line["key"].as_str().unwrap().to_owned(), line["expires_at"].as_str().map(str::to_owned))
        })
        .collect();
    let expected = [("a", Some(hour.as_str())), ("b", None), ("c", Some("2112-01-02T03:04:05.500000Z"))];
    assert_eq!(ends, expected.map(|(key, end)| (key.to_owned(), end.map(str::to_owned))));

    let both = r#"{"items":[{"key":"a","value":"","ttl":1,"expires_at":"2112-01-02T03:04:05Z"}]}"#;
    for (items, wrong) in [
        (both, "both `ttl` and `expires_at`"),
        (&both.replace(r#""ttl":1,"#, "").replace("2112", "12"), "a moment such as"),
    ] {
        let refused = from.post("/v1/kv:put", items);
        assert_eq!(refused.code, 400);
        assert!(refused.text().contains(wrong), "{}", refused.text());
    }
}

#[test]
fn ranges_and_keys_alone_are_exported_alike_from_nodes_and_directories() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let text = (0..3000)
        .fold(String::new(), |text, n| text + &format!("{{\"key\":\"k{n:04}\",\"value\":\"{n}\"}}\n"));
    std::fs::write(dir.join("in"), text).unwrap();
    done(dir, &["import", "in", "--dir", "node", "--", "-advertise-addr", "127.0.0.1:1"]);
    let node = Node::alone(&dir.join("node"), &[]);
    let deleted = node.ask("POST", "/delete?key=k0007", "");
    assert_eq!(deleted.code, 200);
    let connect = node.name();
    let asked = [
        (vec![], 2999),
        (vec!["--prefix", "k00"], 99),
        (vec!["--start", "k0100", "--end", "k0199"], 100),
        (vec!["--start", "k2990", "--keys-only"], 10),
        (vec!["--prefix", "none"], 0),
    ];
    let from_node: Vec<_> = asked
        .iter()
        .map(|(args, count)| {
            let exported = out(&done(dir, &[&["export", "--connect", &connect], &args[..]].concat()));
            assert_eq!(exported.lines().count(), *count, "{args:?}");
            exported
        })
        .collect();
    assert!(from_node[3].starts_with("{\"key\":\"k2990\",\"timestamp\":"), "{}", from_node[3]);
    node.stop();
    for ((args, _), expected) in asked.iter().zip(from_node) {
        let exported = out(&done(dir, &[&["export", "--dir", "node"], &args[..]].concat()));
        assert_eq!(exported, expected, "{args:?}");
    }
}

#[test]
fn an_export_that_was_cut_off_goes_on_behind_its_last_whole_line() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let server = Server::start();
    let connect = server.addr.to_string();
    std::fs::write(dir.join("in"), lines(&model(2500))).unwrap();
    done(dir, &["import", "in", "--connect", &connect]);
    done(dir, &["import", "in", "--dir", "node"]);
    let sources = [["--connect", &connect[..]], ["--dir", "node"]];
    for source in sources {
        let whole = done(dir, &[&["export"], &source[..]].concat()).stdout;
        let first_line = whole.iter().position(|byte| *byte == b'\n').unwrap();
        let cuts =
            [0, 1, first_line, first_line + 1, first_line + 5, whole.len() / 2, whole.len() - 1, whole.len()];
        for cut in cuts {
            std::fs::write(dir.join("part"), &whole[..cut]).unwrap();
            done(dir, &[&["export", "--output", "part", "--resume"], &source[..]].concat());
            assert!(std::fs::read(dir.join("part")).unwrap() == whole, "cut at {cut}");
        }
        let over = kvstore(dir, &[&["export", "--output", "part"], &source[..]].concat());
        assert_eq!(code(&over), 2, "a file that holds something is not overwritten: {}", err(&over));
        let other =
            kvstore(dir, &[&["export", "--output", "part", "--resume", "--keys-only"], &source[..]].concat());
        assert_eq!(code(&other), 2, "{}", err(&other));
        std::fs::write(dir.join("part"), "no export\n").unwrap();
        let other = kvstore(dir, &[&["export", "--output", "part", "--resume"], &source[..]].concat());
        assert_eq!((code(&other), err(&other).contains("no export's")), (1, true), "{}", err(&other));
    }
}

#[test]
fn a_reader_that_has_gone_is_no_failure() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("in"), lines(&model(20_000))).unwrap();
    done(dir.path(), &["import", "in", "--dir", "node"]);
    let table = files(&dir.path().join("node/data"))
        .into_keys()
        .find(|path| path.extension().is_some_and(|e| e == "sst"));
    let table = table.unwrap().to_string_lossy().into_owned();
    for args in [&["export", "--dir", "node"][..], &["inspect", &table]] {
        let mut child =
            command(dir.path(), args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut first = [0; 10];
        child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
        drop(child.stdout.take());
        let ended = child.wait_with_output().unwrap();
        assert_eq!((code(&ended), err(&ended).contains("error")), (0, false), "{}", err(&ended));
    }
}

/// Answers import's requests by a script, then ends.
fn scripted(listener: TcpListener, answers: Vec<&'static str>) -> std::thread::JoinHandle<u64> {
    std::thread::spawn(move || {
        let mut lines_taken = 0;
        for answer in answers {
            let (stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut head, mut len) = (String::new(), 0);
            while reader.read_line(&mut head).unwrap() > 2 {
                let line = head.to_ascii_lowercase();
                if let Some(length) = line.strip_prefix("content-length:") {
                    len = length.trim().parse().unwrap();
                }
                head.clear();
            }
            let mut body = vec![0; len];
            reader.read_exact(&mut body).unwrap();
            let body: Value = serde_json::from_slice(&body).unwrap();
            if answer.starts_with("HTTP/1.1 200") {
                lines_taken += body["items"].as_array().unwrap().len() as u64;
            }
            // The connection is closed after each answer: the next request opens another.
            (&stream).write_all(answer.as_bytes()).unwrap();
        }
        lines_taken
    })
}

const TAKEN: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 16\r\n\r\n{\"written\":1000}";
const TOO_MANY: &str =
    "HTTP/1.1 429 Too Many Requests\r\nconnection: close\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n";
const LATER: &str = "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 600\r\ncontent-length: 5\r\n\r\nlater";

#[test]
fn an_import_that_nobody_takes_any_more_goes_on_where_it_was_acknowledged_last() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let text = (0..20_000)
        .fold(String::new(), |text, n| text + &format!("{{\"key\":\"k{n:05}\",\"value\":\"{n}\"}}\n"));
    std::fs::write(dir.join("in"), &text).unwrap();
    let listener = kvstore::http::bind(SocketAddr::from(([127, 0, 0, 1], 0)), false).unwrap();
    listener.set_nonblocking(false).unwrap();
    let addr = listener.local_addr().unwrap();
    let script = scripted(listener, vec![TAKEN, TOO_MANY, TAKEN, TAKEN, LATER]);
    let connect = addr.to_string();
    let args = ["import", "in", "--connect", &connect, "--retry-for", "5s", "--json"];
    let ended = kvstore(dir, &[&args[..], &["--concurrency", "1"]].concat());
    assert_eq!(code(&ended), 5, "{}", err(&ended));
    assert!(err(&ended).contains("503 later") && err(&ended).contains("--resume goes on"), "{}", err(&ended));
    let said: Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!(
        (&said["written"], &said["lines"], &said["complete"]),
        (&json!(3000), &json!(3000), &json!(false))
    );
    assert_eq!(script.join().unwrap(), 3000);

    // Another target has none of it yet.
    let elsewhere = kvstore(dir, &["import", "in", "--connect", "127.0.0.1:1", "--resume"]);
    assert_eq!(code(&elsewhere), 2, "{}", err(&elsewhere));

    // A node in the place of the one that took the first three thousand: it gets the others, and only them.
    let node_dir = dir.join("node");
    let node = Node::start(&node_dir, addr.port(), &["-advertise-addr", "127.0.0.1:1"], &[])
        .expect("the port is free again");
    let ended = done(dir, &[&args[..], &["--resume"]].concat());
    assert!(err(&ended).contains("going on behind line 3000"), "{}", err(&ended));
    let exported = out(&done(dir, &["export", "--connect", &connect]));
    assert_eq!(exported.lines().count(), 17_000);
    assert!(exported.starts_with("{\"key\":\"k03000\","));
    drop(node);

    // The same file name with other bytes in it is not gone on with.
    std::fs::write(
        dir.join("in.progress"),
        r#"{"version":1,"target":"x:1","bytes":10,"lines":1,"written":1,"skipped":0,"crc":1}"#,
    )
    .unwrap();
    let changed = kvstore(dir, &["import", "in", "--connect", "x:1", "--resume"]);
    assert_eq!(code(&changed), 2, "{}", err(&changed));
}

#[test]
fn an_import_from_a_pipe_that_is_interrupted_says_how_many_lines_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let server = Server::start();
    let connect = server.addr.to_string();
    let text = |n: u32| format!("{{\"key\":\"k{n:05}\",\"value\":\"{n}\"}}\n");
    let mut child = command(dir, &["import", "--connect", &connect, "--concurrency", "1"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap(); // open until it has ended: else the input's end may be heard first
    input.write_all((0..2000).map(text).collect::<String>().as_bytes()).unwrap();
    until("the second thousand is there", || server.get("/get?key=k01999").code == 200);
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap(); // a shell's background job would not hear INT
    let ended = child.wait_with_output().unwrap();
    drop(input);
    assert_eq!(code(&ended), 1);
    let said = err(&ended);
    let skip = said.split("--skip-lines ").nth(1).unwrap_or_else(|| panic!("{said}"));
    let skip: u32 = skip.split_whitespace().next().unwrap().parse().unwrap();
    assert!((1000..=2000).contains(&skip), "{said}");

    let rest = (0..5000).map(text).collect::<String>();
    let mut child = command(dir, &["import", "-", "--connect", &connect, "--skip-lines", &skip.to_string()])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(rest.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(out(&done(dir, &["export", "--connect", &connect])).lines().count(), 5000);
}

#[test]
fn a_bad_line_is_named_and_ends_it_or_is_skipped_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let server = Server::start();
    let connect = server.addr.to_string();
    let huge = "x".repeat(3 << 20); // beyond the test server's largest value
    let text = [
        r#"{"key":"a","value":"1"}"#.to_owned(),
        r#"{"key":"b","value":2}"#.to_owned(),
        String::new(),
        format!(r#"{{"key":"c","value":"{huge}"}}"#),
        r#"{"key":"d","value":"4"}"#.to_owned(),
        r#"{"key":"e","val"#.to_owned(), // torn
    ]
    .join("\n");
    std::fs::write(dir.join("in"), text).unwrap();
    let bad = kvstore(dir, &["import", "in", "--connect", &connect]);
    assert_eq!(code(&bad), 1);
    assert!(err(&bad).contains("error: in, line 2: bad JSON: invalid type"), "{}", err(&bad));
    assert_eq!(server.get("/scan").text(), r#"{"a":"1"}"#, "what stands before it is written");

    let skipped = done(dir, &["import", "in", "--connect", &connect, "--skip-bad", "--json"]);
    let said: Value = serde_json::from_slice(&skipped.stdout).unwrap();
    assert_eq!((&said["written"], &said["skipped"]), (&json!(2), &json!(3)), "{}", err(&skipped));
    for told in ["in, line 2: bad JSON", "in, line 4: value has", "in, line 6: bad JSON: EOF"] {
        assert!(err(&skipped).contains(told), "{told}: {}", err(&skipped));
    }
    assert_eq!(server.get("/scan").text(), r#"{"a":"1","d":"4"}"#);
    let in_directory =
        kvstore(dir, &["import", "in", "--dir", "node", "--skip-bad", "--", "-max-value-size", "1MiB"]);
    assert_eq!(code(&in_directory), 0, "{}", err(&in_directory));
    assert_eq!(out(&done(dir, &["export", "--dir", "node"])).lines().count(), 2);
}

#[test]
fn of_two_lines_with_one_key_the_later_wins() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let server = Server::start();
    let text = (0..12_000)
        .fold(String::new(), |text, n| text + &format!("{{\"key\":\"k{}\",\"value\":\"{n}\"}}\n", n % 1500));
    std::fs::write(dir.join("in"), text).unwrap();
    done(dir, &["import", "in", "--connect", &server.addr.to_string(), "--concurrency", "8"]);
    done(dir, &["import", "in", "--dir", "node"]);
    for (key, value) in server.get("/scan").json().as_object().unwrap() {
        let number: u32 = key[1..].parse().unwrap();
        assert_eq!(value, &json!((10_500 + number).to_string()));
    }
    let from_directory = out(&done(dir, &["export", "--dir", "node"]));
    assert!(read(&from_directory).iter().all(|(key, (value, _))| {
        let number: u32 = std::str::from_utf8(&key[1..]).unwrap().parse().unwrap();
        value == (10_500 + number).to_string().as_bytes()
    }));
}

#[test]
fn nobody_there_is_5_and_nonsense_is_2() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("in"), r#"{"key":"a","value":"1"}"#).unwrap();
    let nobody = format!("127.0.0.1:{}", free_ports(1)[0]);
    for args in [&["export"][..], &["import", "in"], &["checkpoint", "copy"], &["checkpoint", "--list"]] {
        let refused = kvstore(dir, &[args, &["--connect", &nobody, "--retry-for", "300ms"]].concat());
        assert_eq!(code(&refused), 5, "{args:?}: {}", err(&refused));
        assert!(out(&refused).is_empty());
        let nonsense = kvstore(dir, &[args, &["--connect", "no:port"]].concat());
        assert_eq!(code(&nonsense), 2, "{args:?}: {}", err(&nonsense));
    }
    assert_eq!(code(&kvstore(dir, &["import", "nowhere", "--connect", &nobody])), 1);
    assert_eq!(code(&kvstore(dir, &["export", "--dir", "nowhere"])), 1);
    assert_eq!(code(&kvstore(dir, &["verify", "nowhere"])), 1);
    let ring = ["import", "in", "--dir", "node", "--", "-peers", "127.0.0.1:9"];
    let ring = kvstore(dir, &ring);
    assert_eq!(
        (code(&ring), err(&ring).contains("import through a running node")),
        (1, true),
        "{}",
        err(&ring)
    );
    assert!(!dir.join("node").exists());
}

#[test]
fn tokens_are_shown_from_wherever_they_are_given() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let node = Node::alone(&dir.join("node"), &[("API_TOKEN", "rw:readwrite,admin:administrator")]);
    std::fs::write(dir.join("in"), r#"{"key":"a","value":"1"}"#).unwrap();
    std::fs::write(dir.join("token"), "administrator\n").unwrap();
    let refused = kvstore(dir, &["import", "in", "--connect", &node.name()]);
    assert_eq!((code(&refused), err(&refused).contains("401")), (1, true), "{}", err(&refused));
    let from_env = |args: &[&str]| {
        let mut command = command(dir, args);
        command.env("KVSTORE_CONNECT", node.name()).env("KVSTORE_TOKEN", "readwrite").output().unwrap()
    };
    assert_eq!(code(&from_env(&["import", "in"])), 0);
    assert_eq!(out(&from_env(&["export", "--keys-only"])).lines().count(), 1);
    let lesser = from_env(&["checkpoint", "copy"]);
    assert_eq!((code(&lesser), err(&lesser).contains("403")), (1, true), "{}", err(&lesser));
    done(dir, &["checkpoint", "copy", "--connect", &node.name(), "--token-file", "token"]);
}

// ---- checkpoint and restore ----

#[test]
fn a_checkpoint_under_load_is_whole_and_a_node_starts_on_it() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let node = Node::alone(&dir.join("node"), &[("MEMTABLE_SIZE", "64KiB")]);
    let (acknowledged, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let writer = {
        let (acknowledged, stop, addr) = (acknowledged.clone(), stop.clone(), node.addr);
        std::thread::spawn(move || {
            let mut client = Client::to(addr);
            for n in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return n;
                }
                let body = json!({"key": format!("k{n:06}"), "value": format!("{n}").repeat(60)}).to_string();
                assert_eq!(client.ask("POST", "/put", &[], body.as_bytes()).code, 200);
                acknowledged.store(n + 1, Ordering::Relaxed);
            }
            0
        })
    };
    until("there are tables", || acknowledged.load(Ordering::Relaxed) > 700);
    let before = acknowledged.load(Ordering::Relaxed);
    let made = done(dir, &["checkpoint", "copies/first", "--connect", &node.name(), "--json"]);
    let said: Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!((&said["moved"], &said["path"]), (&json!(true), &json!("copies/first")));
    assert!(said["tables"].as_u64().unwrap() > 0 && said["records"].as_u64().unwrap() >= before);
    until("writes went on", || acknowledged.load(Ordering::Relaxed) > before + 100);
    stop.store(true, Ordering::Relaxed);
    let written = writer.join().unwrap();

    // It stays as it is while the node goes on, and after that has gone.
    done(dir, &["verify", "copies/first"]);
    let copied = files(&dir.join("copies/first"));
    assert!(copied.keys().all(|path| path.extension().is_none_or(|extension| extension != "log")));
    node.kill();
    let restored = done(dir, &["restore", "copies/first", "again", "--json"]);
    let said: Value = serde_json::from_slice(&restored.stdout).unwrap();
    assert_eq!(said["rebuilds"], false, "a node that is alone has nobody to read from");
    let over = kvstore(dir, &["restore", "copies/first", "again"]);
    assert_eq!((code(&over), err(&over).contains("not empty")), (1, true), "{}", err(&over));
    let node = Node::alone(&dir.join("again"), &[("MEMTABLE_SIZE", "64KiB")]);
    for n in (0..before).step_by(37) {
        assert_eq!(node.get(&format!("/get?key=k{n:06}")).text(), format!("{n}").repeat(60));
    }
    let keys = out(&done(dir, &["export", "--connect", &node.name(), "--keys-only"])).lines().count() as u64;
    assert!((before..=written).contains(&keys), "{before} {keys} {written}");
    assert_eq!(node.ask("POST", "/put", r#"{"key":"k000000","value":"new"}"#).code, 200);
    assert_eq!(node.get("/get?key=k000000").text(), "new", "newer than all that the copy holds");
    node.stop();
    assert!(
        files(&dir.join("copies/first")) == copied,
        "a node on what was restored does not touch the copy"
    );
    done(dir, &["verify", "copies/first"]);
    done(dir, &["verify", "again"]);
}

#[test]
fn checkpoints_lie_under_their_names_and_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let node = Node::alone(&dir.join("node"), &[]);
    node.ask("POST", "/put", r#"{"key":"k","value":"v"}"#);
    for name in ["", "..", ".a", "%2e%2e%2fx", "a%2fb", "/tmp/x", "a%00", "a%20b"] {
        assert_eq!(node.ask("POST", &format!("/checkpoint?name={name}"), "").code, 400, "{name}");
        assert_eq!(node.ask("DELETE", &format!("/checkpoint?name={name}"), "").code, 400, "{name}");
    }
    assert_eq!(node.ask("POST", "/checkpoint", "").code, 400);
    let made = node.ask("POST", "/checkpoint?name=nightly.1", "");
    assert_eq!(made.code, 201);
    let path = dir.join("node/checkpoints/nightly.1").canonicalize().unwrap();
    assert_eq!(Path::new(made.json()["path"].as_str().unwrap()).canonicalize().unwrap(), path);
    assert_eq!(made.json()["records"], 1);
    assert_eq!(node.ask("POST", "/checkpoint?name=nightly.1", "").code, 409);
    assert_eq!(node.get("/checkpoint").json()["checkpoints"][0], made.json());
    let listed = out(&done(dir, &["checkpoint", "--list", "--connect", &node.name()]));
    assert!(listed.starts_with("nightly.1\t"), "{listed}");
    done(dir, &["verify", path.to_str().unwrap()]);
    done(dir, &["checkpoint", "--remove", "nightly.1", "--connect", &node.name()]);
    assert!(!path.exists());
    assert_eq!(node.ask("DELETE", "/checkpoint?name=nightly.1", "").code, 404);
    assert_eq!(node.get("/checkpoint").json(), json!({"checkpoints": []}));
    let exists = kvstore(dir, &["checkpoint", "node", "--connect", &node.name()]);
    assert_eq!((code(&exists), err(&exists).contains("exists")), (1, true));
}

/// Three nodes, each in a process and a directory of its own.
struct Three {
    dir: tempfile::TempDir,
    ports: Vec<u16>,
    nodes: Vec<Option<Node>>,
}

impl Three {
    fn start() -> Self {
        for _ in 0..5 {
            let mut ring = Self {
                dir: tempfile::tempdir().unwrap(),
                ports: free_ports(3),
                nodes: vec![None, None, None],
            };
            if (0..3).all(|node| ring.run(node, "node")) {
                ring.until_up(&[0, 1, 2]);
                return ring;
            }
        }
        panic!("no ports for three nodes");
    }

    /// Starts a node in its directory of a kind.
    fn run(&mut self, node: usize, kind: &str) -> bool {
        let others =
            (0..3).filter(|other| *other != node).map(|other| format!("127.0.0.1:{}", self.ports[other]));
        let peers = others.collect::<Vec<_>>().join(",");
        let dir = self.dir.path().join(format!("{kind}{node}"));
        self.nodes[node] =
            Node::start(&dir, self.ports[node], &["-peers", &peers], &[("NETWORK_TIMEOUT", "2s")]);
        self.nodes[node].is_some()
    }

    fn at(&self, node: usize) -> &Node {
        self.nodes[node].as_ref().expect("it runs")
    }

    /// Waits until each of these nodes believes that all of them are up and vote.
    fn until_up(&self, nodes: &[usize]) {
        let is_up = |asked: usize, of: usize| {
            let name = format!("127.0.0.1:{}", self.ports[of]);
            let status = self.at(asked).get("/cluster/status").json();
            let all = status["nodes"].as_array().unwrap();
            all.iter().any(|node| node["name"] == name.as_str() && node["state"] == "up")
        };
        until("all are up", || nodes.iter().all(|asked| nodes.iter().all(|of| is_up(*asked, *of))));
    }

    fn put(&self, node: usize, key: &str, value: &str) {
        let body = json!({"key": key, "value": value}).to_string();
        let answer = self.at(node).ask("POST", "/put", &body);
        assert_eq!(answer.code, 200, "{}", answer.text());
    }

    fn value(&self, node: usize, key: &str) -> String {
        self.at(node).get(&format!("/get?key={key}")).text().to_owned()
    }

    /// What a node's own disk holds of a key, as another hears it.
    fn held(&self, asked: usize, of: usize, key: &str) -> Value {
        let explained = self.at(asked).get(&format!("/explain?key={key}")).json();
        let name = format!("127.0.0.1:{}", self.ports[of]);
        explained["replicas"]
            .as_array()
            .unwrap()
            .iter()
            .find(|held| held["node"] == name.as_str())
            .unwrap()
            .clone()
    }

    fn kvstore(&self, args: &[&str]) -> Output {
        done(self.dir.path(), args)
    }
}

#[test]
fn a_node_that_is_set_back_reads_what_it_lacks_before_it_counts() {
    let mut ring = Three::start();
    for n in 0..50 {
        ring.put(n % 3, &format!("old{n}"), "1");
    }
    ring.kvstore(&["checkpoint", "copy", "--connect", &ring.at(0).name()]);
    for n in 0..50 {
        ring.put(n % 3, &format!("old{n}"), "2");
        ring.put(n % 3, &format!("new{n}"), "2");
    }
    ring.nodes[0].take().unwrap().kill();
    let restored = ring.kvstore(&["restore", "copy", "again0", "--json"]);
    let said: Value = serde_json::from_slice(&restored.stdout).unwrap();
    assert_eq!((&said["rebuilds"], &said["members"]), (&json!(true), &json!(3)));
    let identity = ring.kvstore(&["inspect", "again0/IDENTITY", "--json"]);
    let identity: Value = serde_json::from_slice(&identity.stdout).unwrap();
    assert_eq!((&identity["standing"], &identity["has_voted"]), (&json!("rebuilding"), &json!(true)));
    assert!(ring.run(0, "again"));
    ring.until_up(&[0, 1, 2]);
    // Its own disk has everything by the time that it counts: the others need not be asked.
    for n in 0..50 {
        let (own, other) = (ring.held(0, 0, &format!("old{n}")), ring.held(0, 1, &format!("old{n}")));
        assert_eq!((&own["state"], &own["timestamp"]), (&json!("value"), &other["timestamp"]));
        assert_eq!(ring.held(0, 0, &format!("new{n}"))["state"], "value");
        assert_eq!(ring.value(0, &format!("old{n}")), "2");
    }
}

#[test]
fn a_whole_ring_that_is_set_back_counts_at_once() {
    let mut ring = Three::start();
    for n in 0..30 {
        ring.put(n % 3, &format!("k{n}"), "before");
    }
    for node in 0..3 {
        // Not at the same moment: what is written in between is on some copies and not on others.
        ring.kvstore(&["checkpoint", &format!("copy{node}"), "--connect", &ring.at(node).name()]);
        ring.put(node, "between", &node.to_string());
    }
    for n in 0..30 {
        ring.put(n % 3, &format!("k{n}"), "after");
    }
    for node in &mut ring.nodes {
        node.take().unwrap().kill();
    }
    for node in 0..3 {
        let (copy, to) = (format!("copy{node}"), format!("again{node}"));
        ring.kvstore(&["restore", &copy, &to, "--whole-ring"]);
        let identity = ring.kvstore(&["inspect", &format!("{to}/IDENTITY"), "--json"]);
        let identity: Value = serde_json::from_slice(&identity.stdout).unwrap();
        assert_eq!((&identity["standing"], &identity["peers"]), (&json!("voting"), &json!([])));
    }
    // Two of them are enough.
    assert!(ring.run(0, "again") && ring.run(1, "again"));
    ring.until_up(&[0, 1]);
    assert_eq!(ring.value(0, "k7"), "before");
    assert!(ring.run(2, "again"));
    ring.until_up(&[0, 1, 2]);
    for n in 0..30 {
        assert_eq!(ring.value(n % 3, &format!("k{n}")), "before");
    }
    until("reads mend what the copies differ in", || ring.value(0, "between") == ring.value(2, "between"));
    ring.put(1, "k1", "again");
    assert_eq!(ring.value(2, "k1"), "again");
}

// ---- verify and inspect ----

/// A directory with every kind of file in it: tables of several levels, a log that no table holds yet.
fn every_kind(dir: &Path) -> PathBuf {
    let settings = [("MEMTABLE_SIZE", "64KiB"), ("MAX_L0_FILES", "2")];
    let node = Node::alone(&dir.join("node"), &settings);
    std::fs::write(dir.join("in"), lines(&model(4000))).unwrap();
    done(dir, &["import", "in", "--connect", &node.name()]);
    for n in 0..5 {
        let body = json!({"key": format!("last{n}"), "value": "x"}).to_string();
        assert_eq!(node.ask("POST", "/put", &body).code, 200); // one after the other: each knows the one before synced
    }
    node.ask("POST", "/delete?key=last0", "");
    until("something was flushed", || {
        let levels = node.get("/metrics").json()["level_files"].clone();
        levels.as_array().unwrap().iter().any(|files| *files != 0)
    });
    node.kill();
    dir.join("node")
}

/// The manifest in force, and the tables that it names.
fn in_force(data: &Path) -> (PathBuf, Vec<PathBuf>) {
    let current = std::fs::read_to_string(data.join("CURRENT")).unwrap();
    let manifest = data.join(current.split(' ').next().unwrap());
    let shown = done(data, &["inspect", manifest.to_str().unwrap(), "--json"]);
    let mut numbers = std::collections::BTreeSet::new();
    for line in out(&shown).lines().skip(1) {
        let edit: Value = serde_json::from_str(line).unwrap();
        let of = |name: &str| {
            edit[name]
                .as_array()
                .unwrap()
                .iter()
                .map(|table| table["number"].as_u64().unwrap())
                .collect::<Vec<_>>()
        };
        let (removed, added) = (of("removed"), of("added"));
        numbers.retain(|number| !removed.contains(number));
        numbers.extend(added);
    }
    let tables = numbers.iter().map(|number| data.join(format!("{number:06}.sst"))).collect();
    (manifest, tables)
}

/// Files of a directory by their names or endings.
fn of_kind(dir: &Path, kind: &str) -> Vec<PathBuf> {
    let mut all: Vec<_> = files(dir)
        .into_keys()
        .filter(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            name.ends_with(kind)
        })
        .collect();
    all.sort();
    all
}

fn flip(path: &Path, offset: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[offset] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

/// What verify finds, as (path, offset).
fn damage(dir: &Path) -> Vec<(String, u64)> {
    let output = kvstore(dir, &["verify", "node", "--json"]);
    let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", err(&output)));
    let found: Vec<_> = said["damage"]
        .as_array()
        .unwrap()
        .iter()
        .map(|found| (found["path"].as_str().unwrap().to_owned(), found["offset"].as_u64().unwrap()))
        .collect();
    assert_eq!(code(&output), i32::from(!found.is_empty()));
    assert_eq!(said["clean"], found.is_empty());
    found
}

#[test]
fn a_flipped_byte_in_any_file_is_found_and_named_and_nothing_is_changed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let node = every_kind(dir);
    let before = files(&node);
    assert_eq!(damage(dir), []);
    let clean = done(dir, &["verify", "node"]);
    assert!(out(&clean).is_empty() && err(&clean).contains("nothing is damaged"), "{}", err(&clean));
    assert!(files(&node) == before, "verify changes nothing");

    let data = node.join("data");
    let (manifest, tables) = in_force(&data);
    assert!(!tables.is_empty());
    let log = of_kind(&data, ".log").pop().unwrap();
    let hints = in_force(&node.join("hints")).0;
    let len = |path: &Path| before[path].len();
    let mut places: Vec<(&Path, usize)> = vec![
        (&manifest, 3),
        (&manifest, 13),
        (&manifest, 30),
        (&hints, 34),
        (&log, 5),
        (&log, 40),
        (&log, 200),
    ];
    let (identity, current) = (node.join("IDENTITY"), data.join("CURRENT"));
    places.extend([0, 20, len(&identity) - 1].map(|at| (&*identity, at)));
    places.extend([0, 10, 20].map(|at| (&*current, at)));
    for table in [&tables[0], tables.last().unwrap()] {
        let end = len(table);
        places.extend(
            [0, 7, end / 3, end / 2, end - 300, end - 100, end - 60, end - 30, end - 4]
                .map(|at| (&**table, at)),
        );
    }
    for (path, at) in places {
        flip(path, at);
        let found = damage(dir);
        let name = path.strip_prefix(dir).unwrap().to_string_lossy().into_owned();
        assert!(found.iter().any(|(path, _)| *path == name), "byte {at} of {name}: {found:?}");
        assert!(found.iter().all(|(path, offset)| *path != name || *offset <= at as u64), "{at} {found:?}");
        flip(path, at);
    }
    // One slot of the clock is what a torn write leaves, and counts for nothing; both are damage.
    let clock = node.join("CLOCK");
    flip(&clock, 9);
    assert_eq!(damage(dir), []);
    flip(&clock, 4096 + 9);
    assert_eq!(damage(dir)[0].0, "node/CLOCK");
    flip(&clock, 9);
    flip(&clock, 4096 + 9);
    // What is missing is named too.
    for path in [&tables[0], &manifest, &node.join("IDENTITY")] {
        let aside = dir.join("aside");
        std::fs::rename(path, &aside).unwrap();
        let found = damage(dir);
        assert!(found.iter().any(|(found, _)| dir.join(found) == **path), "{path:?} {found:?}");
        std::fs::rename(&aside, path).unwrap();
    }
    assert!(files(&node) == before);
    assert_eq!(damage(dir), []);

    let restored = kvstore(dir, &["restore", "node", "again"]);
    assert_eq!(
        code(&restored),
        0,
        "a stopped node's directory is as good as a checkpoint: {}",
        err(&restored)
    );
    let rows = |dir_of: &str| out(&done(dir, &["export", "--dir", dir_of]));
    assert_eq!(rows("again"), rows("node"));
    flip(&tables[0], 7);
    let refused = kvstore(dir, &["restore", "node", "third"]);
    assert_eq!((code(&refused), dir.join("third").exists()), (1, false), "{}", err(&refused));
}

#[test]
fn every_kind_of_file_is_shown_for_what_its_bytes_say() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let node = every_kind(dir);
    let data = node.join("data");
    let objects = |args: &[&str]| -> Vec<Value> {
        let shown = done(dir, &[&["inspect", "--json"], args].concat());
        out(&shown).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let text = |path: &Path| path.to_str().unwrap().to_owned();

    // Under another name, so that it is the bytes that tell.
    let (manifest, tables) = in_force(&data);
    let table = &tables[0];
    std::fs::copy(table, dir.join("a-copy")).unwrap();
    let shown = objects(&["a-copy", "--values"]);
    let head = &shown[0];
    assert_eq!(head["kind"], "table");
    assert_eq!(shown.len() as u64 - 1, head["entries"].as_u64().unwrap());
    assert_eq!(shown[1].get("key"), head.get("smallest"));
    assert_eq!(shown[1].get("key_base64"), head.get("smallest_base64"));
    assert!(shown[1..].iter().all(|entry| entry["timestamp"].as_u64().is_some() && entry["kind"] == "value"));
    assert!(
        shown[1..].iter().all(|entry| entry.get("value").is_some() || entry.get("value_base64").is_some())
    );
    assert!(shown[1..].iter().any(|entry| entry["content_type"].as_str().is_some()));
    assert!(objects(&["a-copy"])[1].get("value").is_none());
    assert_eq!(objects(&["a-copy", "--limit", "3"]).len(), 4);
    assert_eq!(objects(&["a-copy", "--limit", "0"]), shown[..1]);
    let as_text = out(&done(dir, &["inspect", "a-copy", "--limit", "1"]));
    assert!(as_text.starts_with("kind: table\n") && as_text.contains("\nentries: "), "{as_text}");

    let log = of_kind(&data, ".log").pop().unwrap();
    let shown = objects(&[&text(&log)]);
    assert_eq!(shown[0]["kind"], "log");
    let last = shown.last().unwrap();
    assert_eq!((&last["key"], &last["kind"]), (&json!("last0"), &json!("tombstone")));
    assert!(last["offset"].as_u64().unwrap() > 0);
    let shown = objects(&[&text(&manifest)]);
    assert_eq!(shown[0]["kind"], "manifest");
    assert_eq!(shown.len() as u64 - 1, shown[0]["edits"].as_u64().unwrap());
    assert!(shown[1..].iter().any(|edit| !edit["added"].as_array().unwrap().is_empty()));
    assert_eq!(objects(&[&text(&data.join("CURRENT"))])[0]["kind"], "current");
    let identity = &objects(&[&text(&node.join("IDENTITY"))])[0];
    assert_eq!((&identity["kind"], &identity["standing"]), (&json!("identity"), &json!("voting")));
    assert_eq!(identity["members"][0]["name"], "127.0.0.1:1");
    let clock = &objects(&[&text(&node.join("CLOCK"))])[0];
    assert!(clock["kind"] == "clock" && clock["mark"].as_u64().unwrap() > 0, "{clock}");

    // What is damaged is shown as far as it goes.
    let damaged = |path: &Path, at: usize| {
        let copy = dir.join("damaged");
        std::fs::copy(path, &copy).unwrap();
        flip(&copy, at);
        let shown = kvstore(dir, &["inspect", "damaged", "--json"]);
        assert_eq!(code(&shown), 1, "{path:?} {}", out(&shown));
        let lines: Vec<Value> = out(&shown).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(lines.iter().any(|line| line.get("damage").is_some()), "{path:?} {lines:?}");
        lines
    };
    let some = damaged(table, 5);
    let entries = head["entries"].as_u64().unwrap() as usize;
    assert!(some.len() > 2 && some.len() < entries, "{} of {entries}", some.len());
    assert!(some.last().unwrap()["damage"]["offset"] == 0);
    damaged(table, std::fs::metadata(table).unwrap().len() as usize - 40);
    assert!(damaged(&log, 90).len() > 2);
    damaged(&manifest, 30);
    damaged(&node.join("IDENTITY"), 30);
    damaged(&data.join("CURRENT"), 12);
    std::fs::write(dir.join("other"), "no file of ours").unwrap();
    let other = kvstore(dir, &["inspect", "other"]);
    assert_eq!((code(&other), err(&other).contains("not a file of this store")), (1, true));
}
