//! status: a node, and the members of its ring as it sees them.

use std::process::ExitCode;
use std::time::Duration;

use anstyle::Style;
use bytes::Bytes;
use hyper::StatusCode;

use super::answers::{ClusterStatus, Health, Member};
use super::client::{self, Client};
use super::exit::Error;
use super::options::Connect;
use super::output::{BAD, CARE, FAINT, GOOD, Out, STRONG, count, counted, size, span};
use super::table::{Align, Cell, Table};

/// Shows a node and the members of its ring
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    connect: Connect,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    client::run(&args.connect, async |client, out| status(args, client, out).await)
}

async fn status(args: &Args, client: &mut Client, out: &mut Out) -> Result<(), Error> {
    let health: Bytes = client.get("/health").await?.good().await?.bytes().await?.into();
    let answer = client.get("/cluster/status").await?;
    let is_ready = answer.status != StatusCode::SERVICE_UNAVAILABLE;
    let cluster = answer.good().await;
    if is_ready {
        let cluster = cluster?.bytes().await?;
        if args.connect.json {
            return out.bytes(&[br#"{"health":"#, &health[..], br#","cluster":"#, &cluster, b"}\n"].concat());
        }
        node(&read(&health)?, client.target().authority(), out)?;
        return ring(&read(&cluster)?, out);
    }
    // A node that starts or stops knows itself, and no ring.
    if args.connect.json {
        out.bytes(&[br#"{"health":"#, &health[..], b",\"cluster\":null}\n"].concat())?;
    } else {
        node(&read(&health)?, client.target().authority(), out)?;
    }
    out.flush()?;
    cluster.map(drop)
}

fn read<'a, T: serde::Deserialize<'a>>(json: &'a [u8]) -> Result<T, Error> {
    serde_json::from_slice(json)
        .map_err(|error| Error::Failed(format!("an answer that this version does not know: {error}")))
}

fn node(health: &Health, target: &str, out: &mut Out) -> Result<(), Error> {
    let name = health.node_id.as_deref().unwrap_or(target);
    let uptime = span(Duration::from_secs(health.uptime_seconds));
    let ready =
        if health.ready { out.paint(GOOD, "ready") } else { out.paint(BAD, "not ready") }.into_owned();
    let name = out.paint(STRONG, name).into_owned();
    out.line(&format!("{name}  {ready}  version {}, up {uptime}", health.version))?;
    for reason in &health.reasons {
        out.line(&format!("  {reason}"))?;
    }
    let held = size((health.total_mb * f64::from(1 << 20)) as u64);
    let keys = counted(health.keys, "key");
    out.line(&format!("  {keys}, {held} in {}", counted(health.segments, "file")))
}

fn ring(cluster: &ClusterStatus, out: &mut Out) -> Result<(), Error> {
    let ClusterStatus { nodes, replication_factor, write_quorum, read_quorum, ranges, .. } = cluster;
    let members = counted(nodes.len() as u64, "member");
    let ranges = counted(u64::from(*ranges), "range");
    out.line(&format!("  {members}, {ranges}, N={replication_factor} W={write_quorum} R={read_quorum}\n"))?;
    let mut table = Table::new([
        ("MEMBER", Align::Left),
        ("STATE", Align::Left),
        ("SHARE", Align::Right),
        ("HINTS WAITING", Align::Right),
        ("CLOCK", Align::Right),
        ("", Align::Left),
    ]);
    for member in nodes {
        let note = match &member.mismatch {
            Some(mismatch) => Cell::styled(format!("refused: {mismatch}"), BAD),
            None if member.name == cluster.node_id => Cell::styled("this node", FAINT),
            None => Cell::default(),
        };
        table.row([
            member.name.as_str().into(),
            Cell::styled(&*member.state, style_of(&member.state)),
            format!("{:.1}%", member.share * 100.0).into(),
            hints(member),
            offset(member),
            note,
        ]);
    }
    table.print(out)
}

fn hints(member: &Member) -> Cell {
    match member.hints_pending {
        0 => "0".into(),
        pending => Cell::styled(format!("{} ({})", count(pending), size(member.hint_bytes)), CARE),
    }
}

fn offset(member: &Member) -> Cell {
    member.clock_offset_ms.map_or_else(|| "-".into(), |offset| format!("{offset:+} ms").into())
}

/// How a member's state looks.
pub fn style_of(state: &str) -> Style {
    match state {
        "up" => GOOD,
        "down" => BAD,
        _ => CARE,
    }
}
