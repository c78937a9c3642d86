//! The command line: the real binary against nodes of this process, and on directories.
#![allow(clippy::disallowed_methods)] // files and processes are real

mod http_support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;

use http_support::ring::Ring;
use http_support::{Server, Start, limits, output_of, program};
use kvstore::cluster::Member;
use kvstore::config::Config;
use kvstore::env::Env;
use kvstore::http::{ApiSettings, bind};
use kvstore::types::NodeId;
use kvstore::util::tokens::Tokens;
use serde_json::{Value, json};

/// What a run of the binary told.
#[derive(Debug)]
struct Told {
    code: i32,
    out: Vec<u8>,
    err: String,
}

impl Told {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.out).unwrap()
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_slice(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn json_lines(&self) -> Vec<Value> {
        self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[track_caller]
    fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self:?}");
        assert_eq!(self.err, "", "nothing to talk of: {self:?}");
        self
    }

    /// Asserts an exit code, and that stderr says so.
    #[track_caller]
    fn failed(self, code: i32, says: &str) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        assert!(self.err.contains(says), "{says}: {self:?}");
        self
    }
}

fn run_with(args: &[&str], env: &[(&str, &str)], stdin: &[u8]) -> Told {
    let mut command = program(args);
    command.envs(env.iter().copied());
    let output = output_of(command, stdin);
    Told {
        code: output.status.code().expect("it ended by itself"),
        out: output.stdout,
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs a command on a node.
fn on(server: &Server, args: &[&str]) -> Told {
    let addr = server.addr.to_string();
    run_with(&[args, &["--connect", &addr]].concat(), &[], b"")
}

fn with_tokens() -> Server {
    let tokens = Tokens::parse("ro:read-only-token,rw:read-write-token,admin:administrator").unwrap();
    Server::start_with_settings(ApiSettings { tokens, ..ApiSettings::default() })
}

/// An address at which nobody listens.
fn nobody() -> String {
    let listener = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), false).unwrap();
    listener.local_addr().unwrap().to_string()
}

// ---- data ----

#[test]
fn a_value_is_put_got_and_deleted() {
    let server = Server::start();
    let put = on(&server, &["put", "user:1", "Alice Smith"]).ok();
    assert_eq!(put.text(), "11 B stored under user:1 (on 1 of 1 replica)\n");
    assert_eq!(on(&server, &["get", "user:1"]).ok().out, b"Alice Smith", "byte for byte where nobody looks");
    let del = on(&server, &["del", "user:1"]).ok();
    assert_eq!(del.text(), "user:1 deleted (on 1 of 1 replica)\n");
    let gone = on(&server, &["get", "user:1"]).failed(3, "error: user:1 has no value");
    assert_eq!(gone.text(), "");
    on(&server, &["delete", "user:1"]).ok();
}

#[test]
fn what_json_says_of_a_value_is_the_same_for_all_bytes() {
    let server = Server::start();
    let addr = server.addr.to_string();
    let put = on(&server, &["put", "k", "v", "--json", "--content-type", "text/x-v"]).ok().json();
    assert_eq!((&put["key"], &put["size"], &put["acks"]["durable"]), (&json!("k"), &json!(1), &json!(1)));
    let got = on(&server, &["get", "k", "--json"]).ok().json();
    assert_eq!(got["timestamp"], put["timestamp"]);
    let etag = &got["etag"];
    let expected = json!({"key": "k", "found": true, "value": "v", "size": 1, "content_type": "text/x-v",
                          "etag": etag, "timestamp": put["timestamp"]});
    assert_eq!(got, expected);
    run_with(&["put", "k", "-", "--connect", &addr], &[], b"\xff\x00\n").ok();
    assert_eq!(on(&server, &["get", "k"]).ok().out, b"\xff\x00\n");
    assert_eq!(on(&server, &["get", "k", "--json"]).ok().json()["value_base64"], "/wAK");
    let absent = on(&server, &["get", "none", "--json"]);
    assert_eq!((absent.code, absent.json()), (3, json!({"key": "none", "found": false})));
    assert_eq!(on(&server, &["del", "k", "--json"]).ok().json()["key"], "k");
}

#[test]
fn keys_are_any_bytes_and_values_come_from_where_they_are_said_to() {
    use std::os::unix::ffi::OsStrExt as _;
    let server = Server::start();
    let addr = server.addr.to_string();
    let key = std::ffi::OsStr::from_bytes(b"a/b?\xff &%");
    let put = program(&["put", "--connect", &addr]).arg(key).arg("v").output().unwrap();
    assert!(put.status.success(), "{put:?}");
    assert_eq!(program(&["get", "--connect", &addr]).arg(key).output().unwrap().stdout, b"v");
    assert_eq!(on(&server, &["scan"]).ok().text(), "\"a/b?\\xff &%\"\tv\n");
    assert_eq!(on(&server, &["scan", "--json"]).ok().json()["key_base64"], "YS9iP/8gJiU=");

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("page.html");
    std::fs::write(&file, "<p>one\n").unwrap();
    on(&server, &["put", "page", "--file", file.to_str().unwrap(), "-t", "text/html"]).ok();
    assert_eq!(server.get("/v1/kv/page").header("content-type"), Some("text/html"));
    run_with(&["put", "piped", "--connect", &addr], &[], b"from stdin").ok();
    assert_eq!(on(&server, &["get", "piped"]).ok().out, b"from stdin");
    run_with(&["put", "--connect", &addr, "--", "dash", "-v"], &[], b"").ok();
    on(&server, &["put", "number", "-5"]).ok();
    on(&server, &["put", "empty", ""]).ok();
    assert_eq!(on(&server, &["get", "empty"]).ok().out, b"");
    on(&server, &["put", "page", "--file", "/no/such/file"]).failed(1, "/no/such/file");
}

/// Writes `a:0000` to `a:2499`, a hundred bytes each.
fn load(server: &Server) {
    let value = "v".repeat(100);
    let items: Vec<_> =
        (0..2_500).map(|number| json!({"key": format!("a:{number:04}"), "value": value})).collect();
    assert_eq!(server.post("/batch", json!({"items": items}).to_string()).code, 200);
}

#[test]
fn a_scan_streams_all_pages_in_either_direction() {
    let server = Server::start();
    load(&server);
    server.put("b", "last");
    let keys = |args: &[&str]| -> Vec<String> {
        let told = on(&server, &[&["scan", "--keys-only"], args].concat()).ok();
        told.text().lines().map(str::to_owned).collect()
    };
    let all = keys(&[]);
    assert_eq!((all.len(), all[0].as_str(), all[2_500].as_str()), (2_501, "a:0000", "b"));
    assert!(all.is_sorted());
    let back = keys(&["--reverse"]);
    assert!(back.iter().eq(all.iter().rev()));
    assert_eq!(keys(&["--limit", "1500"]).len(), 1_500);
    assert_eq!(keys(&["--limit", "0"]).len(), 0);
    assert_eq!(keys(&["--prefix", "a:1"]).len(), 1_000);
    assert_eq!(keys(&["--start", "a:0001", "--end", "a:0003"]), ["a:0001", "a:0002", "a:0003"]);
    assert_eq!(keys(&["--prefix", "a:", "--reverse", "--limit", "2"]), ["a:2499", "a:2498"]);
    let items = on(&server, &["scan", "--prefix", "b", "--json"]).ok().json_lines();
    assert_eq!(items, [json!({"key": "b", "value": "last"})]);
    assert_eq!(on(&server, &["scan", "--start", "b"]).ok().text(), "b\tlast\n");
}

#[test]
fn a_reader_that_goes_is_no_failure() {
    let server = Server::start();
    load(&server);
    for args in [&["scan"][..], &["scan", "--json"], &["completions", "bash"], &["man"]] {
        let mut args = args.to_vec();
        let addr = server.addr.to_string();
        if args[0] == "scan" {
            args.extend(["--connect", &addr]);
        }
        let mut child = program(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        drop(stdout);
        let mut err = String::new();
        child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        assert_eq!((child.wait().unwrap().code(), err.as_str()), (Some(0), ""), "{args:?}");
        assert!(!line.is_empty());
    }
}

// ---- which node, which token ----

#[test]
fn nodes_that_cannot_be_reached_are_skipped_and_none_is_exit_code_5() {
    let server = Server::start();
    server.put("k", "v");
    let (addr, nobody) = (server.addr.to_string(), nobody());
    let both = format!("{nobody},{addr}");
    assert_eq!(run_with(&["get", "k", "--connect", &both], &[], b"").ok().out, b"v");
    assert_eq!(run_with(&["get", "k"], &[("KVSTORE_CONNECT", &both)], b"").ok().out, b"v");
    for command in [
        &["get", "k"][..],
        &["put", "k", "v"],
        &["del", "k"],
        &["scan"],
        &["status"],
        &["ring"],
        &["explain", "k"],
        &["doctor"],
        &["repl"],
    ] {
        let told = run_with(&[command, &["--connect", &nobody]].concat(), &[], b"get k\n");
        let told = told.failed(5, "--connect host:port");
        assert!(told.err.contains(&nobody) && told.out.is_empty(), "{told:?}");
    }
    let told = run_with(&["get", "k", "--json", "--connect", &nobody], &[], b"");
    let error: Value = serde_json::from_str(&told.err).unwrap();
    assert_eq!((told.code, &error["exit_code"]), (5, &json!(5)));
}

#[test]
fn a_node_that_is_not_ready_or_lacks_a_quorum_is_unavailable_and_another_is_asked() {
    let (server, lims) = limits();
    let unready = Server::start_unready(server, lims);
    on(&unready, &["get", "k"]).failed(5, "not ready");
    let status = on(&unready, &["status"]).failed(5, "not ready");
    assert!(status.text().contains("not ready  version"), "{status:?}");
    assert_eq!(on(&unready, &["status", "--json"]).json()["cluster"], Value::Null);
    let lonely = Server::start_lonely();
    on(&lonely, &["put", "k", "v"]).failed(5, "nothing was done");
    let alone = Server::start();
    alone.put("k", "v");
    let nodes = format!("{},{},{}", unready.addr, lonely.addr, alone.addr);
    assert_eq!(run_with(&["get", "k", "--connect", &nodes], &[], b"").ok().out, b"v");
}

#[test]
fn a_server_that_speaks_something_else_is_told_apart() {
    let listener = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), false).unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    listener.set_nonblocking(false).unwrap();
    let speaking = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"SSH-2.0-x\r\n").unwrap();
        let _ = stream.read(&mut [0; 1024]);
    });
    run_with(&["get", "k", "--connect", &addr], &[], b"").failed(5, "not HTTP");
    speaking.join().unwrap();
}

#[test]
fn a_token_is_shown_from_wherever_it_is_said() {
    let server = with_tokens();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "rw:read-write-token\n").unwrap();
    let file = file.to_str().unwrap();
    on(&server, &["put", "k", "v"]).failed(1, "--token-file FILE");
    on(&server, &["put", "k", "v", "--token", "no-such-token"]).failed(1, "not known here");
    on(&server, &["put", "k", "v", "--token", "read-only-token"]).failed(1, "another scope");
    on(&server, &["put", "k", "v", "--token-file", file]).ok();
    let addr = server.addr.to_string();
    for env in [("KVSTORE_TOKEN", "read-only-token"), ("KVSTORE_TOKEN_FILE", file)] {
        assert_eq!(run_with(&["get", "k", "--connect", &addr], &[env], b"").ok().out, b"v");
    }
    let wrong = [("KVSTORE_TOKEN", "no-such-token")];
    let told = run_with(&["get", "k", "--connect", &addr, "--token-file", file], &wrong, b"");
    assert_eq!(told.ok().out, b"v", "what is said on the command line counts");
    on(&server, &["status", "--token-file", file]).failed(1, "another scope");
    on(&server, &["status", "--token", "administrator"]).ok();
    on(&server, &["get", "k", "--token-file", "/no/such/file"]).failed(2, "/no/such/file");
    run_with(&["repl", "--connect", &addr], &[("KVSTORE_TOKEN", "read-only-token")], b"set k w\nget k\n")
        .failed(1, "line 1: ");
}

#[test]
fn data_goes_out_and_in_with_a_token_from_a_file_as_for_every_other_command() {
    let server = with_tokens();
    let addr = server.addr.to_string();
    let dir = tempfile::tempdir().unwrap();
    // As the node's own file of tokens has them: with a scope before it.
    let file = dir.path().join("token");
    std::fs::write(&file, "\u{feff}# the importer's\r\nrw:read-write-token\r\n").unwrap();
    let file = file.to_str().unwrap();
    let connect = ["--connect", &addr];
    for env in [&[("KVSTORE_TOKEN_FILE", file)][..], &[]] {
        let option: &[&str] = if env.is_empty() { &["--token-file", file] } else { &[] };
        run_with(&[&["put", "k", "v"], option, &connect].concat(), env, b"").ok();
        let exported = run_with(&[&["export"], option, &connect].concat(), env, b"");
        assert_eq!((exported.code, exported.text().lines().count()), (0, 1), "{exported:?}");
        let imported = run_with(&[&["import", "-"], option, &connect].concat(), env, &exported.out);
        assert_eq!(imported.code, 0, "{imported:?}");
    }
    run_with(&[&["export"], &connect[..]].concat(), &[("KVSTORE_TOKEN_FILE", "/no/such/file")], b"")
        .failed(2, "token file /no/such/file");
}

#[test]
fn every_place_that_says_how_much_a_node_holds_says_the_same() {
    let server = Server::start();
    for number in 0..40 {
        server.put(&format!("key{number}"), &"x".repeat(100_000));
    }
    // None of it is in a table yet: the log alone has it, and nothing else is written now.
    let bytes = server.get("/metrics").json()["total_bytes"].as_u64().unwrap();
    assert!(bytes > 4_000_000, "{bytes}");
    let prometheus = server.get("/metrics?format=prometheus");
    assert!(prometheus.text().contains(&format!("\nkvstore_held_bytes {bytes}\n")));
    let held = kvstore::cli::output::size(bytes);
    for command in ["status", "doctor"] {
        let told = on(&server, &[command]);
        assert!(told.text().contains(&held), "{command} does not say {held}: {told:?}");
    }
    let mut events = server.connect();
    events.send("GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut seen = String::new();
    while !seen.contains("\n\n") || !seen.contains("data: ") {
        let mut some = [0; 4096];
        let count = events.stream.read(&mut some).unwrap();
        assert!(count > 0, "{seen}");
        seen.push_str(std::str::from_utf8(&some[..count]).unwrap());
    }
    assert!(seen.contains(&format!("\"held_bytes\":{bytes},")), "{seen}");
}

#[test]
fn the_load_generator_shows_its_token() {
    let server = with_tokens();
    let target = format!("http://{}", server.addr);
    let bench = ["bench", "--targets", &target, "-c", "2", "-n", "20", "--keys", "5", "--json"];
    assert_eq!(run_with(&bench, &[], b"").code, 1, "no token");
    let told = run_with(&bench, &[("KVSTORE_TOKEN", "read-write-token")], b"").ok().json();
    assert_eq!(told["problems"], json!({}));
    let told = run_with(&[&bench[..], &["--token", "read-write-token"]].concat(), &[], b"").ok();
    assert!(told.json()["operations"]["put"]["ok"].as_u64().unwrap() > 0);
}

#[test]
fn what_cannot_be_meant_is_exit_code_2() {
    let server = Server::start();
    for (args, says) in [
        (&["get"][..], "KEY"),
        (&["get", ""], "at least one byte"),
        (&["get", "k", "--connect", "x:1", "--ca", "f"], "https://"),
        (&["get", "k", "--connect", "a b"], "host:port"),
        (&["get", "k", "--timeout", "5"], "unit"),
        (&["get", "k", "--frobnicate"], "--frobnicate"),
        (&["scan", "--limit", "many"], "many"),
        (&["sacn"], "scan"),
        (&["completions", "tcl"], "bash"),
        (&["repl", "./x", "--connect", "a:1"], "--connect"),
        (&["put", "k", "v", "--file", "f"], "--file"),
        (&["-port", "many"], "NET_PORT=many"),
        (&["serve", "-prot", "1"], "did you mean -port"),
        (&["config", "-port", "0"], "NET_PORT=0"),
    ] {
        run_with(args, &[], b"").failed(2, says);
    }
    on(&server, &["put", "k", "v", "--w", "9"]).failed(2, "\"w\" must be");
    on(&server, &["get", "k", "-r", "0"]).failed(2, "\"r\" must be");
}

// ---- the ring ----

/// Runs a command on a node of a ring.
fn at(ring: &Ring, node: usize, args: &[&str]) -> Told {
    on(ring.at(node), args)
}

#[test]
fn a_ring_is_shown_explained_and_looked_after() {
    let mut ring = Ring::start(3);
    let names: Vec<_> = (0..3).map(|node| ring.name(node)).collect();
    assert!(at(&ring, 0, &["put", "k", "v", "--w", "3"]).ok().text().contains("on 3 of 3 replicas)"));
    let acks = &at(&ring, 0, &["put", "k", "value", "--w", "3", "--sloppy", "--json"]).ok().json()["acks"];
    assert_eq!(acks["durable"], 3);
    assert_eq!(at(&ring, 1, &["get", "k", "--r", "3"]).ok().out, b"value");

    let status = at(&ring, 0, &["status"]).ok();
    for name in &names {
        assert!(status.text().contains(name.as_str()), "{status:?}");
    }
    assert!(status.text().contains("3 members, 64 ranges, N=3 W=2 R=2"), "{status:?}");
    assert!(status.text().contains("this node") && !status.text().contains('\x1b'), "{status:?}");
    let status = at(&ring, 0, &["status", "--json"]).ok().json();
    assert_eq!((&status["health"]["ready"], &status["cluster"]["write_quorum"]), (&json!(true), &json!(2)));

    let table = at(&ring, 0, &["ring"]).ok();
    assert!(table.text().contains("VIRTUAL NODES") && table.text().contains("33.3%"), "{table:?}");
    assert_eq!(at(&ring, 0, &["ring", "--ranges"]).ok().text().lines().count(), 65);
    let place = at(&ring, 0, &["ring", "k"]).ok();
    assert_eq!(place.text().matches("holds it").count(), 3, "{place:?}");
    assert_eq!(at(&ring, 0, &["ring", "k", "--json"]).ok().json()["primaries"].as_array().unwrap().len(), 3);
    assert_eq!(at(&ring, 0, &["ring", "--json"]).ok().json()["ranges"].as_array().unwrap().len(), 64);

    let explained = at(&ring, 2, &["explain", "k"]).ok();
    assert!(explained.text().starts_with("k  5 B of 20"), "{explained:?}");
    assert_eq!(explained.text().matches("the same").count(), 2, "{explained:?}");
    assert_eq!(explained.text().matches("wins").count(), 1, "{explained:?}");
    assert_eq!(
        at(&ring, 2, &["explain", "k", "--json"]).ok().json()["replicas"].as_array().unwrap().len(),
        3
    );

    let doctor = at(&ring, 0, &["doctor"]).ok();
    assert!(doctor.text().contains("all 3 members are up"), "{doctor:?}");
    let told = at(&ring, 0, &["doctor", "--json"]).ok().json();
    assert_eq!(told["ok"], true);
    let checked =
        |check: &str| told["findings"].as_array().unwrap().iter().filter(|f| f["check"] == check).count();
    assert_eq!(["ready", "engine", "disk", "sync", "files"].map(checked), [3; 5], "{told}");
    assert_eq!(["peers", "settings", "clock", "hints"].map(checked), [1; 4], "{told}");
    let sync = told["findings"].as_array().unwrap().iter().find(|f| f["check"] == "sync").unwrap();
    assert!(sync["found"].as_str().unwrap().starts_with("half take "), "{sync}");

    ring.stop(2);
    http_support::until("it is down", || {
        [0, 1].iter().all(|asked| ring.status(*asked, 2)["state"] == "down")
    });
    at(&ring, 0, &["put", "k", "w"]).ok();
    http_support::until("the hint is stored", || ring.status(0, 2)["hints_pending"] == 1);
    let doctor = at(&ring, 0, &["doctor"]);
    assert_eq!((doctor.code, doctor.err.as_str()), (1, ""), "{doctor:?}");
    assert!(
        doctor.text().contains(&format!("{}  down, by {}, {}", names[2], names[0], names[1])),
        "{doctor:?}"
    );
    assert!(doctor.text().contains("1 hint ") && doctor.text().contains("1 problem, "), "{doctor:?}");
    let told = at(&ring, 1, &["doctor", "--json"]);
    assert_eq!((told.code, &told.json()["ok"]), (1, &json!(false)));
    let status = at(&ring, 0, &["status"]).ok();
    assert!(status.text().contains("down"), "{status:?}");
    let explained = at(&ring, 0, &["explain", "k"]).ok();
    assert!(explained.text().contains("unreachable"), "{explained:?}");
}

#[test]
fn a_door_that_is_open_to_all_is_a_problem_to_the_doctor() {
    let settings = ApiSettings { beyond_loopback: true, ..ApiSettings::default() };
    let server = Server::start_with_settings(settings);
    let told = on(&server, &["doctor"]);
    assert_eq!(told.code, 1);
    assert!(told.text().contains("without API_TOKEN"), "{told:?}");
}

// ---- sessions ----

#[test]
fn a_piped_session_talks_to_a_node_and_its_first_error_is_its_exit_code() {
    let server = Server::start();
    let addr = server.addr.to_string();
    let session =
        |args: &[&str], lines: &[u8]| run_with(&[&["repl", "--connect", &addr], args].concat(), &[], lines);
    let told =
        session(&[], b"set a 1\nset \"b\\xff\" two words\n\n# nothing\nget a\nlist\nscan a b\ndelete a\n")
            .ok();
    assert_eq!(told.text(), "OK\nOK\n1\na\n\"b\\xff\"\na\t1\nOK\n");
    let told = session(&[], b"get none\nfrobnicate\nget \"b\\xff\"\n").failed(3, "line 1: none has no value");
    assert_eq!(told.text(), "two words\n");
    assert!(told.err.contains("line 2: unknown command `frobnicate`"), "{told:?}");
    session(&[], b"get\nget none\n").failed(2, "line 1: get takes KEY");
    let told =
        session(&["--json"], b"set k \"\\xff\"\nget k\nlist\nexplain k\nstats\nhelp\nquit\nget none\n").ok();
    let lines = told.json_lines();
    assert_eq!(lines.len(), 7, "{told:?}");
    assert_eq!((&lines[0]["key"], &lines[1]["value_base64"]), (&json!("k"), &json!("/w==")));
    assert_eq!((&lines[2], &lines[3]), (&json!({"key_base64": "Yv8="}), &json!({"key": "k"})));
    assert_eq!((&lines[4]["key"], &lines[5]["writes"]), (&json!("k"), &json!(3)));
}

fn config_in(dir: &Path, members: &[&str]) -> Config {
    let member = |name: &&str| Member { id: NodeId::from_canonical(name), weight: 10, zone: None };
    Config {
        advertise_addr: members[0].to_owned(),
        members: members.iter().map(member).collect(),
        dir: dir.to_owned(),
        range_count: 64,
        write_quorum: 1,
        read_quorum: 1,
        ..Config::default()
    }
}

/// A node on a directory.
fn serve_in(dir: &Path, members: &[&str]) -> Server {
    let listener = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), false).unwrap();
    let (server, api) = limits();
    let start = Start { config: config_in(dir, members), env: Env::real(), meets_peers: false };
    Server::serve_on(listener, server, api, Some(start))
}

#[test]
fn a_piped_session_on_a_directory_writes_what_its_node_then_serves() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node");
    let named = path.to_str().unwrap();
    let session = |args: &[&str], lines: &[u8]| run_with(&[&["repl", named], args].concat(), &[], lines);
    session(&[], b"get k\n").failed(1, "holds no node's data");
    assert!(!path.exists(), "nothing is made");

    let server = serve_in(&path, &["127.0.0.1:1"]);
    server.put("k", "of the node");
    server.put("gone", "v");
    session(&[], b"get k\n").failed(1, "--connect");
    server.stop();

    let told =
        session(&[], b"get k\nset k by hand\nset new \"\\x00\\xff\"\ndelete gone\nget gone\nlist\nget new\n");
    let told = told.failed(3, "line 5: gone has no value");
    assert_eq!(told.text(), "of the node\nOK\nOK\nOK\nk\nnew\n\"\\x00\\xff\"\n");
    let told = session(&["--json"], b"scan\nstats\ncompact\nexplain k\nexplain gone\nlist n 1\n").ok();
    let lines = told.json_lines();
    assert_eq!(lines[0], json!({"key": "k", "value": "by hand"}));
    assert_eq!(lines[1]["value_base64"], "AP8=");
    assert_eq!((&lines[2]["members"], &lines[3]), (&json!(1), &json!({"compacted": true})));
    assert_eq!((&lines[4]["state"], &lines[4]["size"]), (&json!("value"), &json!(7)));
    assert_ne!(lines[5]["state"], "value");
    assert_eq!(lines[6], json!({"key": "new"}));
    let told = session(&[], b"stats\nexplain k\n").ok();
    assert!(told.text().contains("cluster") && told.text().contains("k: value of 7 B"), "{told:?}");

    let server = serve_in(&path, &["127.0.0.1:1"]);
    assert_eq!(server.get("/get?key=k").text(), "by hand");
    assert_eq!(server.get("/get?key=gone").code, 404);
    server.put("k", "of the node again");
    assert_eq!(
        server.get("/get?key=k").text(),
        "of the node again",
        "its clock is ahead of what was written by hand"
    );
}

#[test]
fn one_directory_of_several_members_is_read_and_not_written() {
    let dir = tempfile::tempdir().unwrap();
    serve_in(dir.path(), &["127.0.0.1:1", "127.0.0.1:2"]).stop();
    let named = dir.path().to_str().unwrap();
    run_with(&["repl", named], &[], b"list\nset k v\n")
        .failed(1, "line 2: this directory is one of 2 members'");
}

// ---- about itself ----

#[test]
fn the_settings_in_force_are_told_with_where_they_come_from_and_secrets_are_not() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(".env"), "CLUSTER_NAME=from-file\nNET_PORT=1003\n").unwrap();
    let told = |args: &[&str]| {
        let mut command = program(args);
        command.current_dir(dir.path()).env("NET_PORT", "1002").env("CLUSTER_SECRET", "not-to-be-told");
        let output = command.output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(!text.contains("not-to-be-told"), "{text}");
        text
    };
    let told_json: Value = serde_json::from_str(&told(&["config", "--json", "-dir", "./here"])).unwrap();
    let setting = |name: &str| {
        let all = told_json["settings"].as_array().unwrap();
        all.iter().find(|setting| setting["name"] == name).unwrap().clone()
    };
    let brief = |name| {
        (setting(name)["value"].clone(), setting(name)["origin"].clone(), setting(name)["place"].clone())
    };
    assert_eq!(brief("KVSTORE_DIR"), (json!("./here"), json!("flag"), json!("-dir")));
    assert_eq!(brief("NET_PORT"), (json!("1002"), json!("environment"), Value::Null));
    assert_eq!(brief("CLUSTER_NAME"), (json!("from-file"), json!("file"), json!(".env:1")));
    assert_eq!(brief("MEMTABLE_SIZE"), (json!("64MiB"), json!("default"), Value::Null));
    assert_eq!(brief("CLUSTER_WRITE_QUORUM"), (json!("1"), json!("default"), Value::Null));
    assert_eq!(setting("CLUSTER_SECRET")["set"], true);
    let text = told(&["config", "--changed"]);
    assert_eq!(text.lines().count(), 4, "a heading and what is no default: {text}");
    assert!(text.contains("(hidden)") && text.contains(".env line 1"), "{text}");
    assert_eq!(told(&["config"]).lines().count(), kvstore::config::SETTINGS.len() + 1);
}

#[test]
fn help_lists_every_command_in_its_group_with_an_example() {
    let help = run_with(&["help"], &[], b"").ok();
    for line in ["\nData\n", "\nThe ring\n", "kvstore get user:1", "kvstore doctor", "Exit codes: "] {
        assert!(help.text().contains(line), "{line}: {help:?}");
    }
    assert_eq!(run_with(&["--help"], &[], b"").ok().out, help.out);
    assert!(run_with(&["help", "serve"], &[], b"").ok().text().contains("-port, -net-port <NET_PORT>"));
    assert!(run_with(&["help", "scan"], &[], b"").ok().text().contains("--reverse"));
    assert!(run_with(&["-port", "1", "--help"], &[], b"").ok().text().contains("-net-port <NET_PORT>"));
    assert!(run_with(&["--version"], &[], b"").ok().text().starts_with("kvstore "));
    let plain = run_with(&["help"], &[("NO_COLOR", "1"), ("CLICOLOR_FORCE", "1")], b"").ok();
    assert!(!plain.text().contains('\x1b'));
    assert!(run_with(&["help"], &[("CLICOLOR_FORCE", "1")], b"").ok().text().contains('\x1b'));
}

#[test]
fn completions_and_manual_pages_know_commands_options_and_settings() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run_with(&["completions", shell], &[], b"").ok();
        for word in ["explain", "keys-only", "wal-commit-interval"] {
            assert!(script.text().contains(word), "{shell}: {word}");
        }
    }
    let page = run_with(&["man"], &[], b"").ok();
    assert!(page.text().starts_with(".ie") || page.text().contains(".TH kvstore 1"), "{page:?}");
    let dir = tempfile::tempdir().unwrap();
    let written = run_with(&["man", dir.path().join("man1").to_str().unwrap()], &[], b"").ok();
    for path in written.text().lines() {
        assert!(Path::new(path).is_file(), "{path}");
    }
    assert!(written.text().contains("kvstore-scan.1"));
}

#[test]
fn health_asks_the_node_that_the_settings_describe() {
    let server = Server::start();
    let port = server.addr.port().to_string();
    let told = run_with(&["health", "-port", &port], &[], b"").ok();
    assert_eq!(told.json()["status"], "ready");
    assert_eq!(run_with(&["health", "-port", nobody().split_once(':').unwrap().1], &[], b"").code, 1);
}
