//! A node under a small limit of file descriptors: clients cannot take those that it needs, and neither can its own tables.
#![cfg(target_os = "linux")]
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // processes of the real world

mod http_support;

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};

use http_support::{Client, says_that_it_runs, until};

/// Descriptors that the node may have.
const LIMIT: usize = 100;

struct Limited {
    child: Child,
    addr: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Limited {
    fn start(settings: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let addr = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
        let script = format!("ulimit -n {LIMIT}; exec \"$0\" \"$@\"");
        let mut child = Command::new("/bin/sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_kvstore")])
            .args(["-port", &addr.port().to_string(), "-dir", "data"])
            .env_clear()
            .envs(settings.iter().copied())
            .envs([("MEMTABLE_SIZE", "64KiB"), ("NETWORK_TIMEOUT", "20s"), ("RUST_LOG", "warn")])
            .current_dir(dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        assert!(says_that_it_runs(&mut child));
        Self { child, addr, _dir: dir }
    }

    fn open_descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    fn metric(&self, name: &str) -> f64 {
        let answer = Client::to(self.addr).ask("GET", "/metrics?format=prometheus", &[], b"");
        let line =
            answer.text().lines().find(|line| line.starts_with(&format!("{name} "))).unwrap().to_owned();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn idle_connections_leave_the_engine_its_descriptors() {
    let node = Limited::start(&[]);
    let mut writer = Client::to(node.addr);
    assert_eq!(writer.ask("PUT", "/v1/kv/first", &[], b"x").code, 204);
    let mut idle: Vec<Client> = Vec::new();
    for _ in 0..2 * LIMIT {
        let mut client = Client::to(node.addr);
        let _ = client.send("GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"); // refused or not, it stays open
        idle.push(client);
    }
    until("those that are served are there", || node.open_descriptors() > LIMIT / 3);
    for number in 0..600 {
        let answer = writer.ask("PUT", &format!("/v1/kv/key-{number:04}"), &[], &[b'y'; 1000]);
        assert_eq!(answer.code, 204, "{number}: {}", answer.text());
        assert!(node.open_descriptors() < LIMIT);
    }
    let refused = idle.iter_mut().filter_map(Client::answer).filter(|answer| answer.code == 503).count();
    assert!(refused > LIMIT / 2, "{refused} of {} were told that there are too many", idle.len());
    drop(idle);
    until("others are served again", || {
        Client::try_to(node.addr)
            .ok()
            .and_then(|mut client| client.try_ask("GET", "/v1/kv/key-0007", &[], b""))
            .is_some_and(|answer| answer.code == 200)
    });
    assert_eq!(Client::to(node.addr).ask("GET", "/readyz", &[], b"").code, 200);
}

#[test]
fn more_tables_than_descriptors_are_written_and_read() {
    let node = Limited::start(&[("MAX_L0_FILES", "1000"), ("BLOCK_CACHE_SIZE", "1MiB")]);
    let mut client = Client::to(node.addr);
    let keys = 1500;
    for number in 0..keys {
        let answer = client.ask("PUT", &format!("/v1/kv/key-{number:05}"), &[], &[b'y'; 8000]);
        assert_eq!(answer.code, 204, "{number}: {}", answer.text());
    }
    until("tables are written", || node.metric("kvstore_flushes_total") > 1.2 * LIMIT as f64);
    for number in (0..keys).step_by(7) {
        let answer = client.ask("GET", &format!("/v1/kv/key-{number:05}"), &[], b"");
        assert_eq!((answer.code, answer.body.len()), (200, 8000), "{number}");
    }
    assert!(node.open_descriptors() < LIMIT);
    assert_eq!(client.ask("GET", "/readyz", &[], b"").code, 200);
}
