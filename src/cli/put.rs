//! put: gives a key a value.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Read as _};
use std::path::PathBuf;
use std::process::ExitCode;

use bytes::Bytes;
use hyper::Method;
use hyper::header::HeaderValue;

use super::client::{self, Answer, Client, path_of};
use super::exit::Error;
use super::options::{self, Connect, WriteQuorum};
use super::output::{Out, about_key, shown, size};

/// Gives a key a value
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  kvstore put user:1 'Alice Smith'
  kvstore put page:1 --file index.html --content-type text/html
  date | kvstore put now -")]
pub struct Args {
    /// The key
    key: OsString,
    /// The value; `-`, or none, for standard input
    #[arg(allow_negative_numbers = true)]
    value: Option<OsString>,
    /// Take the value from this file
    #[arg(short, long, value_name = "FILE", conflicts_with = "value")]
    file: Option<PathBuf>,
    /// What type the value is of, such as text/html
    #[arg(short = 't', long, value_name = "TYPE")]
    content_type: Option<String>,
    #[command(flatten)]
    write: WriteQuorum,
    #[command(flatten)]
    connect: Connect,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    client::run(&args.connect, async |client, out| put(args, client, out).await)
}

async fn put(args: &Args, client: &mut Client, out: &mut Out) -> Result<(), Error> {
    let key = options::key(&args.key)?;
    let content_type = args.content_type.as_deref().map(content_type).transpose()?;
    let value = value(args)?;
    let len = value.len() as u64;
    let path = path_of(key, &args.write.query());
    let answer = client.send(Method::PUT, &path, content_type, value).await?.good().await?;
    if args.connect.json {
        let mut object = about_key(key);
        object.insert("size".to_owned(), len.into());
        object.append(&mut receipt(&answer));
        return out.json(&object);
    }
    out.line(&format!("{} stored under {}{}", size(len), shown(key), standing(&answer)))
}

fn content_type(text: &str) -> Result<HeaderValue, Error> {
    HeaderValue::from_str(text).map_err(|_| Error::Usage("--content-type must be printable ASCII".to_owned()))
}

fn value(args: &Args) -> Result<Bytes, Error> {
    use std::os::unix::ffi::OsStrExt as _;
    if let Some(path) = &args.file {
        #[allow(clippy::disallowed_methods)] // a file of whoever calls
        let read = std::fs::read(path);
        return read.map(Bytes::from).map_err(|error| Error::Failed(format!("{}: {error}", path.display())));
    }
    match &args.value {
        Some(value) if value != "-" => Ok(Bytes::copy_from_slice(value.as_bytes())),
        None if io::stdin().is_terminal() => Err(Error::Usage(
            "no value: say it, or --file FILE, or `-` to type it and end with Ctrl-D".to_owned(),
        )),
        _ => {
            let mut bytes = Vec::new();
            let read = io::stdin().lock().read_to_end(&mut bytes);
            read.map_err(|error| Error::Failed(format!("cannot read standard input: {error}")))?;
            Ok(bytes.into())
        }
    }
}

/// Where a write stood when it was answered, as JSON.
pub fn receipt(answer: &Answer) -> serde_json::Map<String, serde_json::Value> {
    let acks: serde_json::Map<_, _> =
        acks(answer).map(|(name, count)| (name.to_owned(), count.into())).collect();
    let mut object = serde_json::Map::new();
    object.insert("timestamp".to_owned(), answer.number("x-kv-timestamp").into());
    object.insert("acks".to_owned(), acks.into());
    object.insert("overtaken_by".to_owned(), answer.number("x-kv-overtaken").into());
    object
}

/// ` (on 2 of 3 replicas, 1 pending)`; what is said of every write is left out.
pub fn standing(answer: &Answer) -> String {
    let acks: Vec<_> = acks(answer).collect();
    let total: u64 = acks.iter().map(|(_, count)| count).sum();
    let durable = acks.iter().find(|(name, _)| *name == "durable").map_or(0, |(_, count)| *count);
    if total == 0 {
        return String::new();
    }
    let mut text = format!(" (on {durable} of {total} replica{}", if total == 1 { "" } else { "s" });
    for (name, count) in acks.iter().filter(|(name, count)| *name != "durable" && *count > 0) {
        let _ = write!(text, ", {count} {name}"); // writing to memory does not fail
    }
    if answer.number("x-kv-overtaken").is_some() {
        text.push_str("; a newer write was there already, and wins");
    }
    text + ")"
}

/// `durable=2 hinted=0 failed=0 pending=1`, taken apart.
fn acks(answer: &Answer) -> impl Iterator<Item = (&str, u64)> {
    let pairs = answer.header("x-kv-acks").unwrap_or_default().split(' ');
    pairs
        .filter_map(|pair| pair.split_once('='))
        .filter_map(|(name, count)| Some((name, count.parse().ok()?)))
}
