//! ring: who owns what, and where a key lives.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::process::ExitCode;

use super::answers::{Place, Ring};
use super::client::{self, Client, with_query};
use super::exit::Error;
use super::options::{self, Connect};
use super::output::{FAINT, Out, count, counted, shown};
use super::table::{Align, Cell, Table};

/// Shows who owns which part of the ring, or where a key lives
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// A key: who holds it, and who stands in
    key: Option<OsString>,
    /// List every range with its tokens and owners
    #[arg(long, conflicts_with = "key")]
    ranges: bool,
    #[command(flatten)]
    connect: Connect,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    client::run(&args.connect, async |client, out| ring(args, client, out).await)
}

async fn ring(args: &Args, client: &mut Client, out: &mut Out) -> Result<(), Error> {
    let key = args.key.as_ref().map(options::key).transpose()?;
    let parameters: Vec<_> = key.iter().map(|key| ("key", key.to_vec())).collect();
    let answer = client.get(&with_query("/ring", &parameters)).await?.good().await?;
    if args.connect.json {
        out.bytes(&answer.bytes().await?)?;
        return out.bytes(b"\n");
    }
    match key {
        Some(key) => place(key, &answer.json().await?, out),
        None if args.ranges => ranges(&answer.json().await?, out),
        None => members(&answer.json().await?, out),
    }
}

fn place(key: &[u8], place: &Place, out: &mut Out) -> Result<(), Error> {
    out.line(&format!("{}  token {}, range {}\n", shown(key), place.token, count(place.range.into())))?;
    let mut table = Table::new([("", Align::Right), ("NODE", Align::Left), ("ROLE", Align::Left)]);
    let primaries = place.primaries.iter().map(|node| (node, Cell::from("holds it")));
    let fallbacks = place.fallbacks.iter().map(|node| (node, Cell::styled("stands in", FAINT)));
    for (at, (node, role)) in primaries.chain(fallbacks).enumerate() {
        table.row([(at + 1).to_string().into(), node.as_str().into(), role]);
    }
    table.print(out)
}

fn members(ring: &Ring, out: &mut Out) -> Result<(), Error> {
    let (members, ranges) = (ring.members.len() as u64, ring.ranges.len() as u64);
    let (members, ranges) = (counted(members, "member"), counted(ranges, "range"));
    out.line(&format!("{members}, {ranges}, N={}\n", ring.replication_factor))?;
    let mut held: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for range in &ring.ranges {
        for (at, node) in range.primaries.iter().enumerate() {
            let (first, all) = held.entry(node).or_default();
            *first += u64::from(at == 0);
            *all += 1;
        }
    }
    let mut table = Table::new([
        ("MEMBER", Align::Left),
        ("VIRTUAL NODES", Align::Right),
        ("ZONE", Align::Left),
        ("SHARE", Align::Right),
        ("RANGES HELD", Align::Right),
        ("FIRST IN", Align::Right),
    ]);
    for member in &ring.members {
        let (first, all) = held.get(member.name.as_str()).copied().unwrap_or_default();
        table.row([
            member.name.as_str().into(),
            count(member.weight.into()).into(),
            member.zone.as_deref().unwrap_or("-").into(),
            format!("{:.1}%", member.share * 100.0).into(),
            count(all).into(),
            count(first).into(),
        ]);
    }
    table.print(out)
}

fn ranges(ring: &Ring, out: &mut Out) -> Result<(), Error> {
    let mut table = Table::new([
        ("RANGE", Align::Right),
        ("FIRST TOKEN", Align::Left),
        ("LAST TOKEN", Align::Left),
        ("HELD BY", Align::Left),
    ]);
    for range in &ring.ranges {
        table.row([
            range.range.to_string().into(),
            range.first.as_str().into(),
            range.last.as_str().into(),
            range.primaries.join(" ").into(),
        ]);
    }
    table.print(out)
}
