//! Checks: from what nodes say to findings. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;

use super::figures::Figures;
use crate::cli::answers::{ClusterStatus, Health, Ring};
use crate::cli::output::{count, counted, millis, size, span};
use crate::tls::EXPIRES_SOON;

/// A disk with less is nearly full, whatever is on it.
const FREE_BYTES_FEW: u64 = 1 << 30;
/// A sync that usually takes longer makes every write slow, in microseconds.
const SYNC_SLOW: u64 = 25_000;
/// One that usually takes longer makes requests time out.
const SYNC_BROKEN: u64 = 250_000;
/// One in a hundred may take as long.
const SYNC_TAIL: u64 = 250_000;
/// A node with fewer descriptors refuses clients that others would take.
const DESCRIPTORS_FEW: u64 = 4_096;
/// `MAX_CLOCK_SKEW` of a node that does not say.
const CLOCK_SKEW_MAX_MS: u64 = 500;

/// A clock that was off so many seconds ago may be off still: members hear of each other's five times a second.
const OFF_NOW: u64 = 2;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// All is well.
    Ok,
    /// It works, and should be looked after.
    Warning,
    /// Something is wrong.
    Problem,
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Which check.
    pub check: &'static str,
    /// About which node; `None`: about the ring.
    pub node: Option<String>,
    /// What was found.
    pub found: String,
    /// What to do.
    pub advice: Option<String>,
}

/// A node that was asked.
#[derive(Debug, Clone, Default)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// `/health`.
    pub health: Health,
    /// `/cluster/status`; none while it starts or stops.
    pub cluster: Option<ClusterStatus>,
    /// `/ring`.
    pub ring: Option<Ring>,
    /// `/metrics`.
    pub figures: Figures,
}

/// All that could be learned.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// Nodes that answered, the one asked first at the head.
    pub nodes: Vec<Node>,
    /// Members that could not be asked from here, and why.
    pub silent: Vec<(String, String)>,
    /// When they were asked, in seconds since 1970.
    pub asked_at: u64,
}

fn finding(
    severity: Severity,
    check: &'static str,
    node: Option<&str>,
    text: String,
    advice: &str,
) -> Finding {
    let advice = (!advice.is_empty()).then(|| advice.to_owned());
    Finding { severity, check, node: node.map(str::to_owned), found: text, advice }
}

/// Every finding, node by node, then the ring's.
pub fn judge(evidence: &Evidence) -> Vec<Finding> {
    let mut findings = Vec::new();
    for node in &evidence.nodes {
        findings.extend([ready(node), engine(node), disk(node), sync(node), files(node)]);
        findings.extend(certificate(node, evidence.asked_at));
        findings.extend(token(node));
    }
    findings.extend(peers(evidence));
    findings.extend(settings(evidence));
    findings.extend(clocks(evidence));
    findings.extend(hints(evidence));
    findings
}

// ---- one node ----

fn ready(node: &Node) -> Finding {
    let (health, name) = (&node.health, Some(&*node.name));
    if health.ready {
        let uptime = span(Duration::from_secs(health.uptime_seconds));
        return finding(Severity::Ok, "ready", name, format!("version {}, up {uptime}", health.version), "");
    }
    let reasons = health.reasons.join("; ");
    if health.reasons.iter().all(|reason| reason.starts_with("voting")) {
        let advice = "wait: it reads its ranges from its peers, and needs enough of them up; `kvstore status` shows them";
        return finding(Severity::Warning, "ready", name, format!("rebuilding: {reasons}"), advice);
    }
    let advice = if reasons.contains("clock") {
        "set its clock: is NTP running?"
    } else {
        "wait while it starts or stops; its node.log says what it waits for"
    };
    finding(Severity::Problem, "ready", name, format!("not ready: {reasons}"), advice)
}

fn engine(node: &Node) -> Finding {
    let (figures, name) = (&node.figures, Some(&*node.name));
    let at = |severity, text: String, advice| finding(severity, "engine", name, text, advice);
    let damaged = figures.get("kvstore_corruptions_total").unwrap_or_default();
    if figures.is_on("kvstore_engine_poisoned") {
        let text = "a write or sync of its disk failed: it refuses all writes".to_owned();
        return at(Severity::Problem, text, "look at the disk (dmesg, smartctl), then restart the node");
    }
    if damaged > 0 {
        let text = format!("{} found damaged since it started", counted(damaged, "block"));
        let advice = "look at the disk (smartctl); a node with replicas is mended by starting it with an empty directory";
        return at(Severity::Problem, text, advice);
    }
    if figures.is_on("kvstore_engine_out_of_space") {
        return at(
            Severity::Problem,
            "out of space: it refuses writes".to_owned(),
            "make room; writes resume by themselves",
        );
    }
    if figures.is_on("kvstore_writes_throttled") {
        let l0 = figures.get("kvstore_l0_files").unwrap_or_default();
        let text =
            format!("writers are held back: compaction is behind ({} in level 0)", counted(l0, "table"));
        return at(Severity::Warning, text, "write slower, raise MEMTABLE_SIZE, or give it a faster disk");
    }
    at(Severity::Ok, "takes writes, nothing damaged".to_owned(), "")
}

fn disk(node: &Node) -> Finding {
    let name = Some(&*node.name);
    let Some(free) = node.figures.get("kvstore_disk_free_bytes") else {
        return finding(Severity::Ok, "disk", name, "it does not say how much is free".to_owned(), "");
    };
    let held = node.figures.get("kvstore_held_bytes").unwrap_or_default();
    let text = format!("{} free, {} held", size(free), size(held));
    if free >= FREE_BYTES_FEW.max(held / 4) {
        return finding(Severity::Ok, "disk", name, text, "");
    }
    let advice =
        "make room: compaction needs some, and writes stop when less than twice MEMTABLE_SIZE is left";
    finding(Severity::Warning, "disk", name, text, advice)
}

fn sync(node: &Node) -> Finding {
    let (syncs, [half, most]) = node.figures.quantiles("kvstore_wal_sync_duration_seconds", [0.5, 0.99]);
    let name = Some(&*node.name);
    if syncs == 0 {
        return finding(Severity::Ok, "sync", name, "no write was synced yet".to_owned(), "");
    }
    let shown = |bound: Option<u64>| {
        bound.map_or("over 2.5 s".to_owned(), |micros| format!("at most {}", millis(micros)))
    };
    let text = format!("half take {}, 99% {} ({})", shown(half), shown(most), counted(syncs, "sync"));
    let above = |bound: Option<u64>, limit: u64| bound.is_none_or(|micros| micros > limit);
    let advice =
        "every write waits for it: is the disk shared, worn out or remote? Give the node a disk of its own";
    let severity = match () {
        () if above(half, SYNC_BROKEN) => Severity::Problem,
        () if above(half, SYNC_SLOW) || above(most, SYNC_TAIL) => Severity::Warning,
        () => return finding(Severity::Ok, "sync", name, text, ""),
    };
    finding(severity, "sync", name, text, advice)
}

fn files(node: &Node) -> Finding {
    let name = Some(&*node.name);
    let (open, max) = (node.figures.get("process_open_fds"), node.figures.get("process_max_fds"));
    let (Some(open), Some(max)) = (open, max) else {
        return finding(Severity::Ok, "files", name, "no limit is known".to_owned(), "");
    };
    let text = format!("{} of {} descriptors open", count(open), count(max));
    let advice =
        "raise the limit: `ulimit -n 65536` before it starts, or LimitNOFILE=65536 in its systemd unit";
    match () {
        () if open > max / 10 * 8 => finding(Severity::Problem, "files", name, text, advice),
        () if max < DESCRIPTORS_FEW => finding(Severity::Warning, "files", name, text, advice),
        () => finding(Severity::Ok, "files", name, text, ""),
    }
}

fn certificate(node: &Node, now: u64) -> Option<Finding> {
    let expires = node.figures.get("kvstore_tls_certificate_expiry_timestamp_seconds")?;
    let name = Some(&*node.name);
    let advice = "replace it in TLS_CERT and TLS_KEY, and send the node SIGHUP";
    let left = Duration::from_secs(expires.saturating_sub(now));
    Some(match () {
        () if left.is_zero() => {
            finding(Severity::Problem, "certificate", name, "its certificate has expired".to_owned(), advice)
        }
        () if left < EXPIRES_SOON => {
            let text = format!("its certificate expires in {}", span(left));
            finding(Severity::Warning, "certificate", name, text, advice)
        }
        () => finding(Severity::Ok, "certificate", name, format!("good for {}", span(left)), ""),
    })
}

fn token(node: &Node) -> Option<Finding> {
    let open = node.cluster.as_ref()?.open_to_all;
    let text = "it listens beyond loopback without API_TOKEN: everyone may read, write and delete everything";
    let advice = "set API_TOKEN_FILE on every node, or bind to an address that only clients reach";
    open.then(|| finding(Severity::Problem, "token", Some(&node.name), text.to_owned(), advice))
}

// ---- the ring ----

/// What nodes say of each member, by the member's name.
fn views<'e, T>(
    evidence: &'e Evidence,
    of: impl Fn(&'e crate::cli::answers::Member) -> Option<T>,
) -> BTreeMap<&'e str, Vec<(&'e str, T)>> {
    let mut views: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for node in &evidence.nodes {
        for member in node.cluster.iter().flat_map(|cluster| &cluster.nodes) {
            let entry = views.entry(&*member.name).or_default();
            entry.extend(of(member).map(|view| (&*node.name, view)));
        }
    }
    views
}

fn peers(evidence: &Evidence) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mismatches = views(evidence, |member| member.mismatch.as_deref());
    for (name, views) in views(evidence, |member| Some(&*member.state)) {
        let seen = |state: &str| -> Vec<&str> {
            views.iter().filter(|(_, seen)| *seen == state).map(|(by, _)| *by).collect()
        };
        let (down, suspect, rebuilding) = (seen("down"), seen("suspect"), seen("rebuilding"));
        if let Some((by, why)) = mismatches.get(name).and_then(|views| views.first()) {
            let advice = "give all nodes the same CLUSTER_NAME, KVSTORE_PEERS, CLUSTER_REPLICATION_FACTOR and CLUSTER_RANGES";
            findings.push(finding(
                Severity::Problem,
                "peers",
                Some(name),
                format!("refused by {by}: {why}"),
                advice,
            ));
        } else if !down.is_empty() {
            let is_alive = evidence.nodes.iter().any(|node| node.name == name);
            let advice = if is_alive {
                "it answers from here: look for a firewall, a wrong ADVERTISE_ADDR or another CLUSTER_SECRET between them"
            } else {
                "start it; its node.log says why it stopped"
            };
            findings.push(finding(
                Severity::Problem,
                "peers",
                Some(name),
                format!("down, by {}", down.join(", ")),
                advice,
            ));
        } else if !suspect.is_empty() {
            let text = format!("slow to answer {}", suspect.join(", "));
            findings.push(finding(
                Severity::Warning,
                "peers",
                Some(name),
                text,
                "look again in a second; is it overloaded?",
            ));
        } else if !rebuilding.is_empty() {
            let text = "rebuilding: it counts for no quorum yet".to_owned();
            findings.push(finding(
                Severity::Warning,
                "peers",
                Some(name),
                text,
                "wait; it needs its peers up",
            ));
        }
    }
    for (name, why) in &evidence.silent {
        let text =
            format!("cannot be asked from here ({why}): its settings, disk and clock were not looked at");
        let advice = "run `kvstore doctor --connect` where it can be reached";
        let known = findings.iter().any(|finding| finding.node.as_ref() == Some(name));
        findings.extend((!known).then(|| finding(Severity::Warning, "peers", Some(name), text, advice)));
    }
    if findings.is_empty() {
        let members = evidence
            .nodes
            .first()
            .and_then(|node| node.cluster.as_ref())
            .map_or(1, |cluster| cluster.nodes.len());
        let text = if members == 1 {
            "this node is alone".to_owned()
        } else {
            format!("all {members} members are up")
        };
        findings.push(finding(Severity::Ok, "peers", None, text, ""));
    }
    findings
}

fn settings(evidence: &Evidence) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut compare = |what: &str, severity, advice: &str, of: &dyn Fn(&Node) -> Option<String>| {
        let mut by_value: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for node in &evidence.nodes {
            if let Some(value) = of(node) {
                by_value.entry(value).or_default().push(&node.name);
            }
        }
        if by_value.len() > 1 {
            let values = by_value.iter().map(|(value, nodes)| format!("{value} on {}", nodes.join(", ")));
            let text = format!("{what} differ: {}", values.collect::<Vec<_>>().join("; "));
            findings.push(finding(severity, "settings", None, text, advice));
        }
    };
    let cluster = |node: &Node| node.cluster.clone();
    compare(
        "quorums",
        Severity::Problem,
        "give all nodes the same CLUSTER_REPLICATION_FACTOR, CLUSTER_WRITE_QUORUM and CLUSTER_READ_QUORUM",
        &|node| {
            let ClusterStatus { replication_factor, write_quorum, read_quorum, .. } = cluster(node)?;
            Some(format!("N={replication_factor} W={write_quorum} R={read_quorum}"))
        },
    );
    compare("rings", Severity::Problem, "give all nodes the same CLUSTER_RANGES", &|node| {
        Some(counted(cluster(node)?.ranges.into(), "range"))
    });
    compare(
        "members",
        Severity::Problem,
        "give all nodes the same KVSTORE_PEERS, vnodes= and zone= included",
        &|node| {
            let members: BTreeSet<_> = node
                .ring
                .as_ref()?
                .members
                .iter()
                .map(|member| {
                    let zone = member.zone.as_ref().map_or(String::new(), |zone| format!(";zone={zone}"));
                    format!("{};vnodes={}{zone}", member.name, member.weight)
                })
                .collect();
            Some(members.into_iter().collect::<Vec<_>>().join(","))
        },
    );
    compare("versions", Severity::Warning, "finish the upgrade, one node at a time", &|node| {
        Some(node.health.version.clone()).filter(|version| !version.is_empty())
    });
    if let (true, Some(ClusterStatus { replication_factor, write_quorum, read_quorum, ranges, .. })) =
        (findings.is_empty(), evidence.nodes.first().and_then(cluster))
    {
        let mut text = format!(
            "N={replication_factor} W={write_quorum} R={read_quorum}, {}",
            counted(ranges.into(), "range")
        );
        if write_quorum + read_quorum <= replication_factor {
            text.push_str("; W+R is not above N, so a read may miss a write for a moment");
        }
        findings.push(finding(Severity::Ok, "settings", None, text, ""));
    }
    findings
}

fn clocks(evidence: &Evidence) -> Vec<Finding> {
    let skew_max = evidence.nodes.iter().filter_map(|node| node.cluster.as_ref()?.clock_skew_max_ms).min();
    let skew_max = skew_max.unwrap_or(CLOCK_SKEW_MAX_MS);
    let mut worst = 0;
    let mut findings = Vec::new();
    for (name, views) in views(evidence, |member| member.clock_offset_ms) {
        let Some((by, offset)) = views.into_iter().max_by_key(|(_, offset)| offset.unsigned_abs()) else {
            continue;
        };
        worst = worst.max(offset.unsigned_abs());
        if offset.unsigned_abs() <= skew_max / 2 {
            continue;
        }
        let beyond = offset.unsigned_abs() > skew_max;
        let text = format!("its clock is {offset:+} ms from {by}'s (MAX_CLOCK_SKEW is {skew_max} ms)");
        let severity = if beyond { Severity::Problem } else { Severity::Warning };
        let advice = "keep all clocks by NTP: a node whose clock is ahead of a majority's takes no writes; once it is put right it does at once";
        findings.push(finding(severity, "clock", Some(name), text, advice));
    }
    findings.extend(clocks_before(evidence));
    let ahead = evidence.nodes.iter().filter_map(|node| Some(node.cluster.as_ref()?.ring_ahead_ms)).max();
    if let Some(ahead @ 1..) = ahead {
        let text = format!(
            "the ring's time is {} ahead of its wall clocks: a majority of them was ahead once",
            span(Duration::from_millis(ahead))
        );
        let advice = "nothing has to be done: writes are ordered and values end as they should. New timestamps and X-KV-Expires \
                      show the ring's time. To bring it back, export, start a new ring, and import";
        findings.push(finding(Severity::Warning, "clock", None, text, advice));
    }
    if findings.is_empty() {
        let text = format!("clocks are within {worst} ms of each other");
        findings.push(finding(Severity::Ok, "clock", None, text, ""));
    }
    findings
}

/// Clocks that were out of bounds within the last hour, and are not any more.
fn clocks_before(evidence: &Evidence) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, views) in views(evidence, |member| member.clock_was_off) {
        let Some((by, was)) = views.into_iter().min_by_key(|(_, was)| was.seconds_ago) else { continue };
        if was.seconds_ago <= OFF_NOW {
            continue; // it is off now, and that is found by its offset
        }
        let ago = span(Duration::from_secs(was.seconds_ago));
        let text = format!("its clock was {:+} ms off {ago} ago, as {by} saw it", was.ms);
        let advice = "keep all clocks by NTP: it may be off again after the next start";
        findings.push(finding(Severity::Warning, "clock", Some(name), text, advice));
    }
    findings
}

fn hints(evidence: &Evidence) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, views) in
        views(evidence, |member| Some((member.hints_pending, member.hint_bytes, &*member.state)))
    {
        let total: u64 = views.iter().map(|(_, (pending, ..))| pending).sum();
        if total == 0 {
            continue;
        }
        let bytes: u64 = views.iter().map(|(_, (_, bytes, _))| bytes).sum();
        let is_down = views.iter().any(|(_, (.., state))| *state == "down");
        let text = format!("{} ({}) waiting for it", counted(total, "hint"), size(bytes));
        let advice = if is_down {
            "start it before HINTS_MAX_AGE is over: they are delivered then"
        } else {
            "they are being delivered; if there are no fewer in a minute, look at its node.log"
        };
        findings.push(finding(Severity::Warning, "hints", Some(name), text, advice));
    }
    for node in &evidence.nodes {
        let dropped = node.figures.get("kvstore_hints_dropped_total").unwrap_or_default();
        if dropped > 0 {
            let text =
                format!("{} dropped since it started, at the cap or of old age", counted(dropped, "hint"));
            let advice = "reads mend what is missing; raise HINTS_MAX_BYTES or HINTS_MAX_AGE if nodes stay away for long";
            findings.push(finding(Severity::Warning, "hints", Some(&node.name), text, advice));
        }
    }
    if findings.is_empty() {
        findings.push(finding(Severity::Ok, "hints", None, "none wait".to_owned(), ""));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::answers::{Member, RingMember};

    const WELL: &str = "process_open_fds 20\nprocess_max_fds 65536\nkvstore_disk_free_bytes 99000000000\n\
        kvstore_wal_sync_duration_seconds_bucket{le=\"0.001\"} 100\nkvstore_wal_sync_duration_seconds_bucket{le=\"+Inf\"} 100\n";

    fn node(name: &str, others: &[&str]) -> Node {
        let member = |name: &&str| Member {
            name: (*name).to_owned(),
            state: "up".to_owned(),
            clock_offset_ms: Some(1),
            ..Member::default()
        };
        let weighed =
            |name: &&str| RingMember { name: (*name).to_owned(), weight: 10, ..RingMember::default() };
        let names: Vec<_> = [&[name], others].concat();
        Node {
            name: name.to_owned(),
            health: Health { ready: true, version: "1".to_owned(), ..Health::default() },
            cluster: Some(ClusterStatus {
                nodes: names.iter().map(member).collect(),
                replication_factor: 3,
                write_quorum: 2,
                read_quorum: 2,
                ranges: 64,
                clock_skew_max_ms: Some(500),
                ..ClusterStatus::default()
            }),
            ring: Some(Ring { members: names.iter().map(weighed).collect(), ..Ring::default() }),
            figures: Figures::parse(WELL),
        }
    }

    fn ring() -> Evidence {
        let nodes =
            vec![node("a:1", &["b:1", "c:1"]), node("b:1", &["a:1", "c:1"]), node("c:1", &["a:1", "b:1"])];
        Evidence { nodes, ..Evidence::default() }
    }

    /// What is not well: severity, check and node.
    fn amiss(evidence: &Evidence) -> Vec<(Severity, &'static str, Option<String>)> {
        let findings = judge(evidence);
        for finding in &findings {
            assert_eq!(finding.advice.is_some(), finding.severity > Severity::Ok, "{finding:?}");
        }
        let amiss = findings.into_iter().filter(|finding| finding.severity > Severity::Ok);
        amiss.map(|finding| (finding.severity, finding.check, finding.node)).collect()
    }

    fn with_figures(lines: &str) -> Evidence {
        let mut evidence = ring();
        evidence.nodes[1].figures = Figures::parse(&format!("{WELL}{lines}\n"));
        evidence
    }

    #[test]
    fn a_ring_that_is_well_has_nothing_amiss() {
        assert_eq!(amiss(&ring()), []);
        let alone = Evidence { nodes: vec![node("a:1", &[])], ..Evidence::default() };
        assert_eq!(amiss(&alone), []);
    }

    #[test]
    fn every_figure_that_is_amiss_is_found_on_its_node() {
        use Severity::{Problem, Warning};
        for (lines, severity, check) in [
            ("kvstore_engine_poisoned 1", Problem, "engine"),
            ("kvstore_corruptions_total 2", Problem, "engine"),
            ("kvstore_engine_out_of_space 1", Problem, "engine"),
            ("kvstore_writes_throttled 1", Warning, "engine"),
            ("kvstore_disk_free_bytes 1000000", Warning, "disk"),
            ("kvstore_disk_free_bytes 2000000000\nkvstore_held_bytes 9000000000", Warning, "disk"),
            ("process_max_fds 1024", Warning, "files"),
            ("process_open_fds 60000", Problem, "files"),
            (
                "kvstore_wal_sync_duration_seconds_bucket{le=\"0.001\"} 2\nkvstore_wal_sync_duration_seconds_bucket{le=\"0.05\"} 99",
                Warning,
                "sync",
            ),
            ("kvstore_wal_sync_duration_seconds_bucket{le=\"0.001\"} 90", Warning, "sync"),
            ("kvstore_wal_sync_duration_seconds_bucket{le=\"0.001\"} 9", Problem, "sync"),
            ("kvstore_hints_dropped_total 3", Warning, "hints"),
        ] {
            assert_eq!(amiss(&with_figures(lines)), [(severity, check, Some("b:1".to_owned()))], "{lines}");
        }
    }

    #[test]
    fn a_node_that_is_not_ready_says_why() {
        let not_ready = |reason: &str| {
            let mut evidence = ring();
            let health = &mut evidence.nodes[1].health;
            (health.ready, health.reasons) = (false, vec![reason.to_owned()]);
            amiss(&evidence)
        };
        assert_eq!(not_ready("voting: rebuilding")[0].0, Severity::Warning);
        assert_eq!(not_ready("clock: behind")[0].0, Severity::Problem);
    }

    #[test]
    fn a_member_that_is_down_is_one_problem_however_many_say_so() {
        let mut evidence = ring();
        evidence.nodes.pop();
        evidence.silent.push(("c:1".to_owned(), "refused".to_owned()));
        for node in &mut evidence.nodes {
            let member =
                node.cluster.as_mut().unwrap().nodes.iter_mut().find(|member| member.name == "c:1").unwrap();
            (member.state, member.hints_pending) = ("down".to_owned(), 7);
        }
        let of_c = |severity, check| (severity, check, Some("c:1".to_owned()));
        assert_eq!(amiss(&evidence), [of_c(Severity::Problem, "peers"), of_c(Severity::Warning, "hints")]);
        let hints = judge(&evidence).into_iter().find(|finding| finding.check == "hints").unwrap();
        assert!(hints.found.starts_with("14 hints"), "{}", hints.found);
    }

    #[test]
    fn a_member_that_cannot_be_asked_is_told_of() {
        let mut evidence = ring();
        evidence.nodes.pop();
        evidence.silent.push(("c:1".to_owned(), "refused".to_owned()));
        assert_eq!(amiss(&evidence), [(Severity::Warning, "peers", Some("c:1".to_owned()))]);
    }

    #[test]
    fn settings_that_differ_are_found() {
        type Change<'a> = &'a dyn Fn(&mut Node);
        let differing: [(Change<'_>, Severity); 4] = [
            (&|node| node.cluster.as_mut().unwrap().write_quorum = 1, Severity::Problem),
            (&|node| node.cluster.as_mut().unwrap().ranges = 128, Severity::Problem),
            (&|node| node.ring.as_mut().unwrap().members[0].weight = 11, Severity::Problem),
            (&|node| node.health.version = "2".to_owned(), Severity::Warning),
        ];
        for (change, severity) in differing {
            let mut evidence = ring();
            change(&mut evidence.nodes[2]);
            assert_eq!(amiss(&evidence), [(severity, "settings", None)]);
        }
    }

    #[test]
    fn a_clock_is_judged_by_what_the_ring_bears() {
        for (offset, expected) in
            [(200, None), (-300, Some(Severity::Warning)), (501, Some(Severity::Problem))]
        {
            let mut evidence = ring();
            evidence.nodes[0].cluster.as_mut().unwrap().nodes[2].clock_offset_ms = Some(offset);
            let found = amiss(&evidence).first().map(|(severity, ..)| *severity);
            assert_eq!(found, expected, "{offset}");
        }
    }

    #[test]
    fn a_certificate_is_warned_of_two_weeks_before_it_expires() {
        let at = |now| {
            let mut evidence = with_figures("kvstore_tls_certificate_expiry_timestamp_seconds 10000000\n");
            evidence.asked_at = now;
            let found = judge(&evidence);
            found.iter().find(|finding| finding.check == "certificate").map(|finding| finding.severity)
        };
        assert_eq!(at(8_000_000), Some(Severity::Ok));
        assert_eq!(at(9_000_000), Some(Severity::Warning));
        assert_eq!(at(10_000_000), Some(Severity::Problem));
        let without = judge(&with_figures(""));
        assert!(without.iter().all(|finding| finding.check != "certificate"), "it speaks plaintext");
    }

    #[test]
    fn a_door_that_is_open_to_all_is_a_problem() {
        let mut evidence = ring();
        evidence.nodes[0].cluster.as_mut().unwrap().open_to_all = true;
        assert_eq!(amiss(&evidence), [(Severity::Problem, "token", Some("a:1".to_owned()))]);
    }
}
