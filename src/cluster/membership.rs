//! The members of a cluster, as decided: names, weights, zones.
//!
//! ```text
//! Localhost:8081;vnodes=20;zone=b     as an operator writes it
//! 127.0.0.1:8081   20       b         canonical name, weight, zone
//! ```
//!
//! A name is canonical when two ways to write one address have become the same text: lower case, every loopback
//! address read as 127.0.0.1, numeric addresses in their shortest form. Host names are kept as text and never
//! resolved for this: what a resolver says differs between nodes and days, and who holds a key must not.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::types::NodeId;

/// One member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its canonical name.
    pub id: NodeId,
    /// Its share of the ring, relative to the others' (`CLUSTER_VIRTUAL_NODES`, `vnodes=`). At least 1.
    pub weight: u32,
    /// Where it stands; replicas are spread over zones when there are enough. The members without one stand together.
    pub zone: Option<String>,
}

/// All members, sorted by name, each name once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Membership {
    members: Vec<Member>,
}

/// A member as it was written, before defaults are filled in: what it does not say is `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberEntry {
    /// The canonical name.
    pub id: NodeId,
    /// `vnodes=`.
    pub weight: Option<u32>,
    /// `zone=`.
    pub zone: Option<String>,
}

/// Why a text names no member.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` {problem}")]
pub struct MemberError {
    /// What was written.
    pub text: String,
    /// What is wrong with it, as the rest of a sentence.
    pub problem: String,
}

impl Member {
    /// The largest weight. Beyond it a cluster's weights say nothing that smaller ones cannot.
    pub const WEIGHT_MAX: u32 = 10_000;
    /// The longest zone name, in bytes.
    pub const ZONE_LEN_MAX: usize = 64;

    /// Whether `zone` can name a zone: letters, digits, `.`, `_` and `-`.
    pub fn is_zone(zone: &str) -> bool {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        (1..=Self::ZONE_LEN_MAX).contains(&zone.len()) && zone.bytes().all(allowed)
    }
}

impl MemberEntry {
    /// Reads `host:port[;vnodes=N][;zone=Z]`.
    pub fn parse(text: &str) -> Result<Self, MemberError> {
        let error = |problem: String| MemberError { text: text.trim().to_owned(), problem };
        let mut parts = text.split(';').map(str::trim);
        let address = parts.next().unwrap_or_default();
        let mut entry = Self { id: canonical_name(address).map_err(error)?, weight: None, zone: None };
        for option in parts {
            let (name, value) = option
                .split_once('=')
                .ok_or_else(|| error(format!("has the option `{option}` without a value")))?;
            match (name.trim(), value.trim()) {
                ("vnodes", value) if entry.weight.is_none() => {
                    let weight =
                        value.parse().ok().filter(|weight| (1..=Member::WEIGHT_MAX).contains(weight));
                    let problem = || format!("has vnodes={value}; allowed are 1 to {}", Member::WEIGHT_MAX);
                    entry.weight = Some(weight.ok_or_else(|| error(problem()))?);
                }
                ("zone", value) if entry.zone.is_none() => {
                    if !Member::is_zone(value) {
                        let max = Member::ZONE_LEN_MAX;
                        return Err(error(format!(
                            "has zone={value}; allowed are 1 to {max} letters, digits, `.`, `_` and `-`"
                        )));
                    }
                    entry.zone = Some(value.to_owned());
                }
                ("vnodes" | "zone", _) => return Err(error(format!("says `{name}` twice"))),
                (name, _) => {
                    return Err(error(format!("has the unknown option `{name}`; known are vnodes and zone")));
                }
            }
        }
        Ok(entry)
    }

    /// Reads a comma-separated list. Empty items are skipped, so that a trailing comma does no harm.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, MemberError> {
        text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(Self::parse).collect()
    }

    /// Fills in what was not said.
    pub fn or(self, default_weight: u32) -> Member {
        Member { id: self.id, weight: self.weight.unwrap_or(default_weight), zone: self.zone }
    }
}

impl Membership {
    /// Sorts the members; of two with one name the first stays.
    pub fn new(mut members: Vec<Member>) -> Self {
        members.sort_by(|a, b| a.id.cmp(&b.id));
        members.dedup_by(|a, b| a.id == b.id);
        Self { members }
    }

    /// Reads a comma-separated list of members. One that is listed twice must say the same both times.
    pub fn parse(text: &str, default_weight: u32) -> Result<Self, MemberError> {
        let mut by_name: BTreeMap<NodeId, Member> = BTreeMap::new();
        for entry in MemberEntry::parse_list(text)? {
            let member = entry.or(default_weight);
            if let Some(earlier) = by_name.insert(member.id.clone(), member.clone())
                && earlier != member
            {
                let problem = format!("is listed twice: as `{earlier}` and as `{member}`");
                return Err(MemberError { text: member.id.to_string(), problem });
            }
        }
        Ok(Self { members: by_name.into_values().collect() })
    }

    /// The members, sorted by name.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The member of that name.
    pub fn get(&self, id: &NodeId) -> Option<&Member> {
        let index = self.members.binary_search_by(|member| member.id.cmp(id)).ok()?;
        Some(&self.members[index])
    }
}

impl fmt::Display for Member {
    /// As an operator would write it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{};vnodes={}", self.id, self.weight)?;
        self.zone.as_ref().map_or(Ok(()), |zone| write!(f, ";zone={zone}"))
    }
}

impl fmt::Display for Membership {
    /// As an operator would write it. Equal texts are equal memberships.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, member) in self.members.iter().enumerate() {
            write!(f, "{}{member}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// The canonical name of `host:port`; the error is the rest of a sentence about it.
pub fn canonical_name(address: &str) -> Result<NodeId, String> {
    let address = address.trim();
    let no_port = || "has no port: write host:port".to_owned();
    let (host, port) = if let Some(rest) = address.strip_prefix('[') {
        let (literal, port) = rest.split_once(']').ok_or("has a `[` without its `]`")?;
        let ip: Ipv6Addr =
            literal.parse().map_err(|_| format!("has `[{literal}]`, which is no IPv6 address"))?;
        (canonical_ip(IpAddr::V6(ip)), port.strip_prefix(':').ok_or_else(no_port)?)
    } else {
        let (host, port) = address.rsplit_once(':').ok_or_else(no_port)?;
        if host.contains(':') {
            return Err(
                "has more than one `:`; write an IPv6 address in brackets, as in [::1]:8081".to_owned()
            );
        }
        (canonical_host(host)?, port)
    };
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    match port.parse::<u16>() {
        Ok(port) if digits && port > 0 => Ok(NodeId::from_canonical(&format!("{host}:{port}"))),
        _ => Err(format!("has the port `{port}`; allowed are 1 to 65535")),
    }
}

/// The canonical name of a node that listens on `ip` and `port`.
pub fn canonical_of_ip(ip: IpAddr, port: u16) -> NodeId {
    NodeId::from_canonical(&format!("{}:{port}", canonical_ip(ip)))
}

/// Where a node of a loopback name may listen: a name reads every loopback address as 127.0.0.1, and on a machine without
/// IPv4 that is `::1`. `None` for all other names, which say themselves where.
pub fn loopback_addresses(name: &str) -> Option<[SocketAddr; 2]> {
    let (host, port) = name.rsplit_once(':')?;
    let port = port.parse().ok()?;
    let is_loopback = host == Ipv4Addr::LOCALHOST.to_string();
    is_loopback.then(|| [(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()])
}

/// The host part of a name: a number in its shortest form, or a name as text.
fn canonical_host(host: &str) -> Result<String, String> {
    if let Ok(ip) = host.parse::<Ipv4Addr>() {
        return Ok(canonical_ip(IpAddr::V4(ip)));
    }
    let host = host.to_ascii_lowercase();
    match host.as_str() {
        "" => Err("has no host: write host:port".to_owned()),
        "localhost" => Ok(Ipv4Addr::LOCALHOST.to_string()),
        // The longest name that DNS allows; a zone, a path or a URL put here by mistake holds other characters.
        _ if host.len() > 253 => Err("has a host of more than 253 characters".to_owned()),
        _ => match host.chars().find(|c| !(c.is_ascii_alphanumeric() || "-._".contains(*c))) {
            Some(bad) => {
                Err(format!("has `{bad}` in its host; allowed are letters, digits, `.`, `-` and `_`"))
            }
            None => Ok(host),
        },
    }
}

fn canonical_ip(ip: IpAddr) -> String {
    match ip.to_canonical() {
        ip if ip.is_loopback() => Ipv4Addr::LOCALHOST.to_string(),
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_loopback_name_is_looked_for_on_both_loopbacks() {
        let texts = |name: &str| loopback_addresses(name).map(|both| both.map(|address| address.to_string()));
        let both = ["127.0.0.1:8081".to_owned(), "[::1]:8081".to_owned()];
        assert_eq!(texts(&name("[::1]:8081")), Some(both));
        for other in ["10.0.0.7:8081", "[fd00::1]:8081", "node1:8081"] {
            assert_eq!(texts(other), None, "{other}");
        }
    }

    fn name(address: &str) -> String {
        canonical_name(address).map_or_else(|problem| format!("error: {problem}"), |id| id.to_string())
    }

    #[test]
    fn every_way_to_write_loopback_is_one_name() {
        for host in
            ["localhost", "LocalHost", "127.0.0.1", "127.9.8.7", "[::1]", "[0:0::1]", "[::ffff:127.0.0.2]"]
        {
            assert_eq!(name(&format!("{host}:8081")), "127.0.0.1:8081", "{host}");
        }
    }

    #[test]
    fn other_names_are_kept_as_text_in_lower_case() {
        assert_eq!(name("Node-1.Example.COM:9000"), "node-1.example.com:9000");
        assert_eq!(name("10.0.0.7:080"), "10.0.0.7:80");
        assert_eq!(name("[2001:DB8:0:0::1]:8081"), "[2001:db8::1]:8081");
        assert_eq!(name(" kv_1:1 "), "kv_1:1");
    }

    #[test]
    fn an_error_says_what_is_wrong_with_the_address() {
        for (address, problem) in [
            ("node1", "has no port: write host:port"),
            (":8081", "has no host: write host:port"),
            ("node1:", "has the port ``; allowed are 1 to 65535"),
            ("node1:0", "has the port `0`; allowed are 1 to 65535"),
            ("node1:+80", "has the port `+80`; allowed are 1 to 65535"),
            ("node1:65536", "has the port `65536`; allowed are 1 to 65535"),
            ("::1:8081", "has more than one `:`; write an IPv6 address in brackets, as in [::1]:8081"),
            ("[::1]8081", "has no port: write host:port"),
            ("[::1:8081", "has a `[` without its `]`"),
            ("[node]:1", "has `[node]`, which is no IPv6 address"),
            ("no de:1", "has ` ` in its host; allowed are letters, digits, `.`, `-` and `_`"),
        ] {
            assert_eq!(canonical_name(address), Err(problem.to_owned()), "{address}");
        }
    }

    #[test]
    fn a_member_may_say_its_weight_and_its_zone() {
        let membership = Membership::parse("B:2, a:1 ; zone=x ;vnodes=20,", 10).expect("two members");
        assert_eq!(membership.to_string(), "a:1;vnodes=20;zone=x,b:2;vnodes=10");
        assert_eq!(membership.get(&NodeId::from_canonical("b:2")).map(|member| member.weight), Some(10));
        assert_eq!(membership.get(&NodeId::from_canonical("c:2")), None);
    }

    #[test]
    fn a_bad_option_is_refused_with_what_is_allowed() {
        for (text, message) in [
            ("a:1;vnodes=0", "`a:1;vnodes=0` has vnodes=0; allowed are 1 to 10000"),
            ("a:1;vnodes=x", "`a:1;vnodes=x` has vnodes=x; allowed are 1 to 10000"),
            ("a:1;vnodes=1;vnodes=1", "`a:1;vnodes=1;vnodes=1` says `vnodes` twice"),
            ("a:1;zone", "`a:1;zone` has the option `zone` without a value"),
            ("a:1;rack=b", "`a:1;rack=b` has the unknown option `rack`; known are vnodes and zone"),
            ("a:1;zone=", "`a:1;zone=` has zone=; allowed are 1 to 64 letters, digits, `.`, `_` and `-`"),
        ] {
            assert_eq!(MemberEntry::parse(text).map_err(|error| error.to_string()), Err(message.to_owned()));
        }
    }

    #[test]
    fn a_member_listed_twice_must_say_the_same_both_times() {
        assert_eq!(Membership::parse("localhost:1,127.0.0.1:1", 10).expect("one member").members().len(), 1);
        let error = Membership::parse("localhost:1,127.0.0.1:1;vnodes=3", 10).expect_err("two weights");
        assert!(error.to_string().contains("listed twice"), "{error}");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,40}") {
            let _ = Membership::parse(&text, 10);
        }

        #[test]
        fn a_canonical_name_is_its_own_canonical_name(text in "[A-Za-z0-9.\\[\\]:-]{1,20}:[0-9]{1,5}") {
            if let Ok(id) = canonical_name(&text) {
                prop_assert_eq!(canonical_name(id.as_str()), Ok(id));
            }
        }

        #[test]
        fn the_order_of_the_list_does_not_matter(mut names in proptest::collection::vec("[a-z]{1,4}:[1-9]", 1..9)) {
            let one = Membership::parse(&names.join(","), 10);
            names.reverse();
            prop_assert_eq!(one, Membership::parse(&names.join(","), 10));
        }
    }
}
