//! Hosts: the names by which a node may be asked for, so that a web page cannot reach it under a name of its own.
//!
//! ```text
//! Host: 127.0.0.1:8081   [::1]:8081      an address                            yes: a page of that origin came from there
//!       localhost   kvstore-1   node1    a name without a dot                  yes: nobody can register one
//!       a.localhost   host.internal      under a name set aside for inside     yes: likewise
//!       kvstore-0.kv.svc.cluster.local
//!       node1.example.com                a member's, this machine's, listed    yes
//!       evil.example                     anything else                         no
//! ```
//!
//! A page of `evil.example` may have that name point at 127.0.0.1 once it is loaded (DNS rebinding). To the browser it then
//! talks to its own server; the name in `Host` is what tells. Whoever can have a public resolver answer for a name owns a
//! registered domain, so the names that cannot be registered are let through: those that Docker, Compose and Kubernetes give.

use std::collections::BTreeSet;

/// Top-level names that are set aside for use inside a machine or a network, and the domain of a Kubernetes cluster.
const INSIDE: [&str; 4] = [".localhost", ".internal", ".svc", ".cluster.local"];

/// The names by which a node may be asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hosts {
    /// Names that are listed, in lower case, and ends of names, each with its leading dot.
    listed: BTreeSet<String>,
    suffixes: Vec<String>,
    /// `*` is listed: any name.
    any: bool,
    /// Names that this node knows without their being listed.
    known: BTreeSet<String>,
}

impl Hosts {
    /// Reads names separated by commas: `kv.example.com`, `*.example.com`, or `*` for any. The error is the rest of a
    /// sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut hosts = Self::default();
        for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            let name = entry.strip_prefix("*.").unwrap_or(entry).to_ascii_lowercase();
            if entry == "*" {
                hosts.any = true;
            } else if !is_name(&name) {
                return Err(format!("`{entry}` is no host name; ports and schemes are left out"));
            } else if entry.starts_with("*.") {
                hosts.suffixes.push(format!(".{name}"));
            } else {
                hosts.listed.insert(name);
            }
        }
        Ok(hosts)
    }

    /// Adds a name that need not be listed, with or without a port: a member's or this machine's.
    pub fn know(&mut self, name: &str) {
        self.known.insert(host_of(name.as_bytes()).to_ascii_lowercase());
    }

    /// Whether `host`, as a `Host` field has it, is listed.
    pub fn lists(&self, host: &[u8]) -> bool {
        let host = canonical(host);
        self.any
            || self.listed.contains(&host)
            || self.suffixes.iter().any(|suffix| host.ends_with(suffix.as_str()))
    }

    /// Whether a request for `host`, as a `Host` field has it, may be answered.
    pub fn allow(&self, host: &[u8]) -> bool {
        let is_of_address = |c: &u8| c.is_ascii_digit() || matches!(c, b'.' | b':');
        host.iter().all(is_of_address)
            || (host.is_ascii() && is_inside(host_of(host)))
            || self.known.contains(&canonical(host))
            || self.lists(host)
    }
}

/// Whether nobody can register the name, if it is one and no address.
fn is_inside(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let ends_with = |end: &&str| {
        let at = host.len().checked_sub(end.len());
        at.and_then(|at| host.get(at..)).is_some_and(|tail| tail.eq_ignore_ascii_case(end))
    };
    (host.starts_with('[') && host.ends_with(']')) || !host.contains('.') || INSIDE.iter().any(ends_with)
}

/// A host without its port and without the dot that may end it, in lower case.
fn canonical(host: &[u8]) -> String {
    let host = host_of(host);
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// A host without its port; nothing where it is no text.
fn host_of(host: &[u8]) -> &str {
    let host = std::str::from_utf8(host).unwrap_or_default();
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|c| c.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Whether it is labels with dots between them.
fn is_name(name: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_'))
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_names_that_nobody_can_register_are_let_through() {
        let hosts = Hosts::default();
        for host in [
            "127.0.0.1:8081",
            "127.0.0.1",
            "10.1.2.3:80",
            "[::1]:8081",
            "[::1]",
            "[fe80::1]",
            "localhost:8081",
            "LOCALHOST",
            "localhost.",
            "kvstore-1:8081",
            "kv_backend",
            "x",
            "",
            "app.localhost:8081",
            "host.docker.internal:8081",
            "kvstore-0.kvstore.default.svc:8081",
            "kvstore-0.kvstore.default.svc.cluster.local",
            "node.C.Project.INTERNAL",
        ] {
            assert!(hosts.allow(host.as_bytes()), "{host}");
        }
    }

    #[test]
    fn names_that_somebody_may_own_are_not() {
        let mut hosts = Hosts::parse("kv.example.com, *.shop.example").unwrap();
        hosts.know("node1.example.net:8081");
        for host in [
            "evil.test",
            "evil.test:8081",
            "127.0.0.1.evil.test:8081",
            "localhost.evil.test",
            "evil.test.",
            "1.2.3.4.nip.io",
            "kv.example.com.evil.test",
            "xkv.example.com",
            "shop.example",
            "evilshop.example",
            "evil.local",
            "internal.evil.test",
            "evil.test:8081:80",
            "\u{e9}.test",
            "a@evil.test",
        ] {
            assert!(!hosts.allow(host.as_bytes()), "{host}");
        }
        assert!(!hosts.allow(b"\xff.test"));
        for host in [
            "kv.example.com",
            "KV.Example.com:443",
            "kv.example.com.",
            "a.shop.example",
            "a.b.shop.example:1",
            "node1.example.net",
        ] {
            assert!(hosts.allow(host.as_bytes()), "{host}");
        }
        assert!(Hosts::parse("*").unwrap().allow(b"evil.test"));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for bad in
            ["http://kv.example.com", "kv.example.com:80", "*kv.example.com", "a..b", "a b", "*.", "[::1]"]
        {
            assert!(Hosts::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Hosts::parse(" , ").unwrap(), Hosts::default());
    }
}
