//! What those who run a node meet: its log, its stop, its addresses. The real binary, in a process of its own.
#![allow(clippy::disallowed_methods)] // files, processes and time are real

mod http_support;

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use http_support::{Answer, Client, until};
use rustix::process::{Pid, Signal, kill_process};

/// How long a node may take to start or to stop on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A node in a process of its own; killed when dropped.
struct Node {
    child: Child,
    addr: SocketAddr,
}

impl Node {
    /// Starts a node in `dir`, whose stdout is what `stdout` makes, and waits until it is ready.
    fn start_to(dir: &Path, settings: &[(&str, &str)], mut stdout: impl FnMut() -> Stdio) -> Self {
        for _ in 0..10 {
            // Another process may take the port in between; the node then ends, and another port is tried.
            let addr = free_addr(Ipv4Addr::LOCALHOST.into());
            let mut node = Self { child: spawn(dir, addr, "", settings, stdout()), addr };
            if node.is_ready_in_time() {
                return node;
            }
        }
        panic!("no port stays free");
    }

    fn start(dir: &Path, settings: &[(&str, &str)]) -> Self {
        Self::start_to(dir, settings, Stdio::null)
    }

    /// Waits for readiness; false if the node ends instead.
    fn is_ready_in_time(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait().unwrap().is_none() {
            if try_ask(self.addr, "GET", "/readyz").is_ok_and(|answer| answer.code == 200) {
                return true;
            }
            assert!(Instant::now() < deadline, "not ready");
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    fn ask(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        Client::to(self.addr).ask(method, target, headers, body)
    }

    fn put(&self, key: &str, value: &str) -> Answer {
        self.ask("PUT", &format!("/v1/kv/{key}"), &[], value.as_bytes())
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end.
    fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_addr(ip: IpAddr) -> SocketAddr {
    TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap()
}

fn spawn(dir: &Path, addr: SocketAddr, peers: &str, settings: &[(&str, &str)], stdout: Stdio) -> Child {
    Command::new(env!("CARGO_BIN_EXE_kvstore"))
        .current_dir(dir)
        .args(["-port", &addr.port().to_string(), "-dir", "data", "-peers", peers])
        .env_clear()
        .env("BIND_ADDR", addr.ip().to_string())
        .env("NETWORK_TIMEOUT", "30s") // a busy machine's disk is no concern of these tests
        .envs(settings.iter().copied())
        .stdout(stdout)
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Asks on a connection of its own, which may be refused.
fn try_ask(addr: SocketAddr, method: &str, target: &str) -> io::Result<Answer> {
    let stream = TcpStream::connect(addr)?;
    drop(stream);
    Ok(Client::to(addr).ask(method, target, &[], b""))
}

fn log_of(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("data/node.log")).unwrap_or_default()
}

// ---- logs ----

#[test]
fn a_full_pipe_on_stdout_stops_neither_requests_nor_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let (unread, pipe) = io::pipe().unwrap();
    let settings = [("SLOW_REQUEST_TIME", "1us")]; // a line for every request
    let mut node = Node::start_to(dir.path(), &settings, || pipe.try_clone().unwrap().into());
    // Nobody reads the pipe, and this thread keeps it full.
    let mut filler = pipe.try_clone().unwrap();
    std::thread::spawn(move || filler.write_all(&vec![b'x'; 1 << 20]));
    for number in 0..50 {
        assert_eq!(node.put(&format!("k{number}"), "v").code, 204);
    }
    assert_eq!(node.ask("GET", "/livez", &[], b"").code, 200);
    until("node.log has what stdout does not take", || {
        log_of(dir.path()).matches("slow request").count() >= 5 // of so many it logs ten a second
    });
    node.signal(Signal::TERM);
    assert!(node.ended().success(), "and it ends, although its last lines are not taken either");
    assert!(log_of(dir.path()).contains(" stopped"), "{}", log_of(dir.path()));
    drop(unread);
}

#[test]
fn the_last_lines_come_out_before_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start_to(dir.path(), &[], Stdio::piped);
    let mut stdout = node.child.stdout.take().unwrap();
    node.signal(Signal::TERM);
    assert!(node.ended().success());
    let mut said = String::new();
    stdout.read_to_string(&mut said).unwrap();
    for text in [&said, &log_of(dir.path())] {
        assert!(text.trim_end().ends_with(" stopped"), "{text}");
    }
    assert!(said.contains(&format!("Node running on port {}", node.addr.port())), "{said}");
}

#[test]
fn a_hangup_opens_node_log_again_and_the_node_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &[]);
    let (log, moved) = (dir.path().join("data/node.log"), dir.path().join("node.log.monday"));
    std::fs::rename(&log, &moved).unwrap();
    node.signal(Signal::HUP);
    until("node.log is there again", || log_of(dir.path()).contains("reopened"));
    assert!(std::fs::read_to_string(&moved).unwrap().contains("directory opened"));
    assert_eq!(node.put("k", "v").code, 204);
}

#[test]
fn node_log_is_rotated_before_it_grows_beyond_its_bound() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("node.log"), "an earlier run\n".repeat((1 << 20) / 15)).unwrap();
    let mut node = Node::start(dir.path(), &[("LOG_MAX_SIZE", "1MiB"), ("LOG_MAX_FILES", "1")]);
    node.signal(Signal::TERM);
    assert!(node.ended().success());
    assert!(std::fs::read_to_string(data.join("node.log.1")).unwrap().starts_with("an earlier run\n"));
    let log = log_of(dir.path());
    assert!(log.len() < 1 << 20 && log.contains(" stopped"), "{} bytes", log.len());
}

// ---- the stop ----

#[test]
fn a_stopping_node_says_503_and_serves_for_as_long_as_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(dir.path(), &[("DRAIN_DELAY", "2s")]);
    let mut kept = Client::to(node.addr);
    assert_eq!(kept.ask("GET", "/livez", &[], b"").header("connection"), None);
    node.signal(Signal::TERM);
    let signalled = Instant::now();
    until("/readyz says 503", || node.ask("GET", "/readyz?verbose", &[], b"").code == 503);
    let not_ready = node.ask("GET", "/readyz?verbose", &[], b"");
    assert!(not_ready.text().contains("stopping"), "{}", not_ready.text());
    let mut served = 0;
    while signalled.elapsed() < Duration::from_millis(1500) {
        let put = node.put("k", "v");
        assert_eq!((put.code, put.header("connection")), (204, Some("close")));
        assert_eq!(node.ask("GET", "/get?key=k", &[], b"").text(), "v");
        served += 1;
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(served > 0);
    assert_eq!(kept.ask("GET", "/get?key=k", &[], b"").header("connection"), Some("close"));
    assert!(kept.is_closed_silently(), "a connection that was kept ends behind its next answer");
    assert!(node.ended().success());
    assert!(signalled.elapsed() >= Duration::from_secs(2), "{:?}", signalled.elapsed());
}

#[test]
fn a_health_check_right_behind_the_signal_sees_503_even_without_a_delay() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(dir.path(), &[]);
    node.signal(Signal::TERM);
    until("a new connection is told 503", || {
        try_ask(node.addr, "GET", "/readyz").expect("not refused before it was told").code == 503
    });
    assert!(node.ended().success());
}

#[test]
fn a_second_signal_ends_the_node_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(dir.path(), &[("DRAIN_DELAY", "1h")]);
    node.signal(Signal::TERM);
    until("it is stopping", || node.ask("GET", "/readyz", &[], b"").code == 503);
    node.signal(Signal::INT);
    assert_eq!(node.ended().code(), Some(1));
    assert!(log_of(dir.path()).contains("stopped at once by a second signal"), "{}", log_of(dir.path()));
}

// ---- addresses ----

#[test]
fn three_nodes_on_the_ipv6_loopback_are_a_ring() {
    let loopback = IpAddr::V6(Ipv6Addr::LOCALHOST);
    if TcpListener::bind((loopback, 0)).is_err() {
        println!("skipped: there is no IPv6 loopback here");
        return;
    }
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    for _ in 0..10 {
        let addrs = [(); 3].map(|()| free_addr(loopback));
        let others = |own: usize| {
            let others = addrs.iter().enumerate().filter(|(at, _)| *at != own);
            others.map(|(_, addr)| addr.to_string()).collect::<Vec<_>>().join(",")
        };
        let mut nodes: Vec<_> = (0..3)
            .map(|at| {
                let child = spawn(dirs[at].path(), addrs[at], &others(at), &[], Stdio::null());
                Node { child, addr: addrs[at] }
            })
            .collect();
        if !nodes.iter_mut().all(Node::is_ready_in_time) {
            for dir in &dirs {
                let _ = std::fs::remove_dir_all(dir.path().join("data")); // the members have other names now
            }
            continue;
        }
        until("all three have a write", || {
            nodes[0].ask("POST", "/put?w=3", &[], br#"{"key":"k","value":"v"}"#).code == 200
        });
        assert_eq!(nodes[2].ask("GET", "/get?key=k&r=3", &[], b"").text(), "v");
        let status = nodes[1].ask("GET", "/cluster/status", &[], b"").json();
        let states = status["nodes"].as_array().unwrap().iter().map(|node| node["state"].as_str());
        assert!(states.into_iter().all(|state| state == Some("up")), "{status}");
        return;
    }
    panic!("no ports stay free");
}
