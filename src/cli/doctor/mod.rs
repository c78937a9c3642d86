//! doctor: looks at a node and its ring, and says what to do about what it finds.
//!
//! ```text
//! the node asked ── /health /cluster/status /ring /metrics ──> its members' names
//! each member    ── the same, with the same token ───────────> Evidence ── checks ──> findings
//! ```

mod checks;
mod figures;

use std::process::ExitCode;
use std::time::Duration;

use anstyle::Style;
use futures_util::future::join_all;
use hyper::StatusCode;

use super::client::{self, Client};
use super::exit::Error;
use super::options::Connect;
use super::output::{BAD, CARE, FAINT, GOOD, Out, counted};
use checks::{Evidence, Finding, Node, Severity};
use figures::Figures;

/// How long a member may take, so that one that is gone does not keep the others waiting.
const MEMBER_PATIENCE: Duration = Duration::from_secs(3);
/// How long a node may take to look at its disk.
const LOOK_PATIENCE: Duration = Duration::from_millis(100);

/// Looks for what is wrong with a node and its ring, and says what to do
///
/// Asks the node and every member it names: clocks, disk space and sync time, descriptors, hints, members that are away,
/// settings that differ, doors that are open to all.
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Exit code 1 when there is a problem (with --strict also for a warning), 5 when the node cannot be asked.
A node with tokens must be shown one of admin scope."
)]
pub struct Args {
    /// Exit code 1 for warnings, too
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    connect: Connect,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    client::run(&args.connect, async |client, out| doctor(args, client, out).await)
}

async fn doctor(args: &Args, client: &mut Client, out: &mut Out) -> Result<(), Error> {
    let evidence = gather(client).await?;
    let findings = checks::judge(&evidence);
    let worst = findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Ok);
    let is_bad = worst == Severity::Problem || (args.strict && worst == Severity::Warning);
    if args.connect.json {
        let object = serde_json::json!({"node": evidence.nodes[0].name, "ok": !is_bad, "findings": findings});
        out.json(&object)?;
    } else {
        print(&findings, out)?;
    }
    if is_bad { Err(Error::Told(1)) } else { Ok(()) }
}

async fn gather(client: &mut Client) -> Result<Evidence, Error> {
    let first = node(client).await?;
    let members = first.cluster.iter().flat_map(|cluster| &cluster.nodes);
    let others: Vec<_> =
        members.map(|member| member.name.clone()).filter(|name| *name != first.name).collect();
    let asked = others.iter().map(|name| {
        let mut client = client.of_member(name, MEMBER_PATIENCE);
        async move { node(&mut client).await }
    });
    let mut evidence = Evidence { nodes: vec![first], silent: Vec::new(), asked_at: now() };
    for (name, answered) in others.iter().zip(join_all(asked).await) {
        match answered {
            Ok(node) => evidence.nodes.push(node),
            Err(error) => evidence.silent.push((name.clone(), brief(&error))),
        }
    }
    Ok(evidence)
}

/// The first part of what went wrong; what to do about it is said once.
fn brief(error: &Error) -> String {
    let text = error.to_string();
    text.split(". ").next().unwrap_or_default().to_owned()
}

/// This machine's clock, in seconds since 1970.
fn now() -> u64 {
    #[allow(clippy::disallowed_methods)] // a client on the command line: its clock is the real one
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

async fn node(client: &mut Client) -> Result<Node, Error> {
    let health: super::answers::Health = client.get_json("/health").await?;
    let mut figures = figures(client).await?;
    if health.ready && figures.get("kvstore_disk_free_bytes").is_none() {
        tokio::time::sleep(LOOK_PATIENCE).await; // it looks at its disk when it is asked, and tells the next one
        figures = self::figures(client).await?;
    }
    let answer = client.get("/cluster/status").await?;
    let (cluster, ring) = match answer.status {
        StatusCode::SERVICE_UNAVAILABLE => (None, None), // it starts or stops: /health says so
        _ => (Some(answer.good().await?.json().await?), Some(client.get_json("/ring").await?)),
    };
    let name = health.node_id.clone().unwrap_or_else(|| client.target().authority().to_owned());
    Ok(Node { name, health, cluster, ring, figures })
}

async fn figures(client: &mut Client) -> Result<Figures, Error> {
    let metrics = client.get("/metrics?format=prometheus").await?.good().await?.bytes().await?;
    Ok(Figures::parse(&String::from_utf8_lossy(&metrics)))
}

fn print(findings: &[Finding], out: &mut Out) -> Result<(), Error> {
    let width = |text: &dyn Fn(&Finding) -> usize| findings.iter().map(text).max().unwrap_or_default();
    let checks = width(&|finding| finding.check.len());
    let nodes = width(&|finding| finding.node.as_ref().map_or(4, String::len));
    for finding in findings {
        let (word, style) = worded(finding.severity);
        let mark = out.paint(style, word).into_owned();
        let (check, node) = (finding.check, finding.node.as_deref().unwrap_or("ring"));
        let space = " ".repeat(8 - word.len());
        out.line(&format!("{mark}{space} {check:<checks$}  {node:<nodes$}  {}", finding.found))?;
        if let Some(advice) = &finding.advice {
            out.line(&format!("{:width$}{advice}", "", width = 9 + checks + 2 + nodes + 2 + 2))?;
        }
    }
    let number = |severity| findings.iter().filter(|finding| finding.severity == severity).count() as u64;
    let summary = match (number(Severity::Problem), number(Severity::Warning)) {
        (0, 0) => "All is well.".to_owned(),
        (problems, warnings) => {
            format!("{}, {}.", counted(problems, "problem"), counted(warnings, "warning"))
        }
    };
    let summary =
        out.paint(if summary.starts_with("All") { GOOD } else { Style::new().bold() }, &summary).into_owned();
    out.line(&format!("\n{summary}"))
}

fn worded(severity: Severity) -> (&'static str, Style) {
    match severity {
        Severity::Ok => ("ok", FAINT),
        Severity::Warning => ("warning", CARE),
        Severity::Problem => ("problem", BAD),
    }
}
