//! explain: what each replica holds of a key, and which one wins.

use std::ffi::OsString;
use std::process::ExitCode;

use super::answers::{Explanation, Replica};
use super::client::{self, Client, with_query};
use super::exit::Error;
use super::options::{self, Connect};
use super::output::{BAD, CARE, FAINT, GOOD, Out, moment, shown, size};
use super::table::{Align, Cell, Table};

/// Shows what each replica holds of a key, and which one wins
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The key
    key: OsString,
    #[command(flatten)]
    connect: Connect,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    client::run(&args.connect, async |client, out| {
        let key = options::key(&args.key)?;
        explain(key, args.connect.json, client, out).await
    })
}

/// Prints what the replicas hold of a key.
pub async fn explain(key: &[u8], json: bool, client: &mut Client, out: &mut Out) -> Result<(), Error> {
    let answer = client.get(&with_query("/explain", &[("key", key.to_vec())])).await?.good().await?;
    if json {
        out.bytes(&answer.bytes().await?)?;
        return out.bytes(b"\n");
    }
    let explanation: Explanation = answer.json().await?;
    let winner =
        explanation.replicas.iter().find(|replica| Some(&replica.node) == explanation.winner.as_ref());
    let verdict = match winner {
        None => "no replica that answers holds anything".to_owned(),
        Some(winner) if winner.state == "tombstone" => {
            format!("deleted {}", winner.timestamp.map_or_else(String::new, moment))
        }
        Some(winner) => format!(
            "{} of {}",
            size(winner.size.unwrap_or_default()),
            winner.timestamp.map_or_else(String::new, moment)
        ),
    };
    out.line(&format!("{}  {verdict}\n", shown(key)))?;
    let mut table = Table::new([
        ("REPLICA", Align::Left),
        ("HOLDS", Align::Left),
        ("WRITTEN", Align::Left),
        ("TIMESTAMP", Align::Right),
        ("SIZE", Align::Right),
        ("", Align::Left),
    ]);
    for replica in &explanation.replicas {
        table.row([
            replica.node.as_str().into(),
            held(replica),
            replica.timestamp.map_or_else(|| "-".into(), |at| moment(at).into()),
            replica.timestamp.map_or_else(|| "-".into(), |at| at.to_string().into()),
            replica
                .size
                .filter(|_| replica.state == "value")
                .map_or_else(|| "-".into(), |bytes| size(bytes).into()),
            note(replica, winner),
        ]);
    }
    table.print(out)
}

fn held(replica: &Replica) -> Cell {
    let style = match replica.state.as_str() {
        "value" | "tombstone" => GOOD,
        "unreachable" => BAD,
        _ => CARE,
    };
    Cell::styled(replica.state.as_str(), style)
}

fn note(replica: &Replica, winner: Option<&Replica>) -> Cell {
    match (&replica.reason, winner) {
        (Some(reason), _) => Cell::styled(reason.as_str(), FAINT),
        (None, Some(winner)) if winner.node == replica.node => "wins".into(),
        (None, Some(winner)) if replica.timestamp == winner.timestamp && replica.state == winner.state => {
            "the same".into()
        }
        (None, Some(_)) => Cell::styled("behind: reading the key mends it", CARE),
        (None, None) => Cell::default(),
    }
}
