//! The one table of settings: names, defaults, what is allowed, what they mean.
//!
//! Flags, environment, `.env`, `--help`, the README's table and `config/default.env` all come from here.

use std::fmt::{self, Write as _};
use std::time::Duration;

use crate::util::units::{format_duration, format_size, parse_duration, parse_size};

/// What a setting's text has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A whole number, both bounds allowed.
    Number(u64, u64),
    /// A power of two, both bounds allowed.
    PowerOfTwo(u64, u64),
    /// Bytes, both bounds allowed.
    Size(u64, u64),
    /// A time, both bounds allowed.
    Time(Duration, Duration),
    /// A number from 0 to 1.
    Probability,
    /// Anything that its reader accepts; the text says what that is.
    Text(&'static str),
}

/// What holds when a setting is not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unset {
    /// This value.
    Is(&'static str),
    /// Something that follows from other settings or from the machine, in words.
    Follows(&'static str),
}

/// One setting.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Its name in lower case, as in [`Raw`].
    pub field: &'static str,
    /// What it has to be.
    pub kind: Kind,
    /// What holds without it.
    pub unset: Unset,
    /// What it means, in one line.
    pub meaning: &'static str,
}

macro_rules! settings {
    ($($field:ident: $kind:expr, $unset:expr, $meaning:literal;)*) => {
        /// Every setting as text, as it was given; deserialized by name.
        #[derive(Debug, Clone, Default, PartialEq, Eq, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        #[allow(clippy::doc_markdown)] // the meanings are read outside of rustdoc too
        pub struct Raw {
            $(#[doc = $meaning] pub $field: Option<String>,)*
        }

        /// Every setting, in the order people read about them.
        pub const SETTINGS: &[Setting] = &[
            $(Setting { field: stringify!($field), kind: $kind, unset: $unset, meaning: $meaning },)*
        ];
    };
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const NOTHING: Unset = Follows("none");

use Kind::{Number, PowerOfTwo, Probability, Size, Text, Time};
use Unset::{Follows, Is};

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

const fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

settings! {
    net_port: Number(1, 65_535), Is("8081"), "port for clients and peers";
    bind_addr: Text("an IP address or localhost"), Is("127.0.0.1"), "address to listen on; 0.0.0.0 for all";
    advertise_addr: Text("host:port"), Follows("bind address and port"),
        "this node's name, and where its peers reach it; needed when BIND_ADDR is a wildcard and there are peers";
    kvstore_peers: Text("host:port[;vnodes=N][;zone=Z], separated by commas"), NOTHING,
        "the other members; listing this node too changes nothing";
    kvstore_allowed_hosts: Text("host names separated by commas; `*.` before one for all under it, `*` for any"), NOTHING,
        "further host names under which clients without a token may reach this node; addresses, names without a dot, the members' names and this machine's always may";
    http_idle_timeout: Time(seconds(1), seconds(86_400)), Is("75s"),
        "how long a client may keep a connection open without a request; longer than a proxy in front keeps its own";
    kvstore_dir: Text("a directory, made if missing"), Is("./data"), "where data, identity and node.log lie";
    volume_id: Text("1 to 64 letters, digits, `.`, `_` and `-`"), Is("vol-1"),
        "what this node calls itself to clients of the blob door";
    api_token: Text("tokens separated by commas, each 8 to 1024 letters, digits or `-._~+/=`, with ro:, rw: or admin: before it"), NOTHING,
        "what clients must show as bearer token; one without a scope may do everything; unset: everyone may";
    api_token_file: Text("a file that others may not read"), NOTHING, "holds the tokens, one a line, in place of API_TOKEN; read again on SIGHUP";
    tls_cert: Text("a file of PEM"), NOTHING,
        "certificate chain, this node's own first: with it and TLS_KEY the port speaks TLS; read again on SIGHUP, like the next two";
    tls_key: Text("a file that others may not read"), NOTHING, "the certificate's private key: PKCS#8, PKCS#1 or SEC1 in PEM";
    tls_ca: Text("a file of PEM"), NOTHING,
        "who signs the certificates of nodes, by which peers know each other; needed with TLS_CERT when there are peers";
    tls_plaintext: Text("true or false"), Is("false"),
        "true: a ring on its way to TLS also speaks plaintext, with clients and peers that do not speak TLS";

    memtable_size: Size(64 * KIB, 2 * GIB), Is("64MiB"), "writes gathered in memory before a table is written";
    max_l0_files: Number(1, 1_000), Is("4"), "tables in level 0 from which on they are compacted";
    sparse_index_interval: Number(1, 65_536), Is("128"), "keys between two entries of a table's index, at most";
    block_cache_size: Size(MIB, TIB), Is("256MiB"), "table blocks and records kept in memory";
    wal_commit_interval: Time(Duration::ZERO, seconds(1)), Is("5ms"),
        "accepted and without effect: an upper bound on a wait that does not exist; writes that come during a sync share the next";
    wal_max_batch_size: Number(1, 65_536), Is("512"), "writes that share one sync, at most";
    bloom_bits_per_key: Number(1, 32), Is("10"), "bits of bloom filter a key; 10 let 1% of vain lookups through";
    bloom_size_l0: Number(64, 1 << 36), NOTHING, "bits of bloom filter a table of level 0, in place of bits a key";
    bloom_size_l1: Number(64, 1 << 36), NOTHING, "bits of bloom filter a table of the first level below level 0, in place of bits a key";

    max_value_size: Size(1, 64 * MIB), Is("8MiB"), "the largest value; no larger than MAX_BODY_SIZE, which lowers the default";
    max_body_size: Size(KIB, 4 * GIB), Is("64MiB"), "the largest request body, so the largest batch";
    max_inflight_bytes: Size(MIB, TIB), Is("64MiB"), "request bodies in memory at a time; beyond it 503; at least MAX_BODY_SIZE, which raises the default";
    worker_threads: Number(1, 1_024), Follows("half the cores, at least 1"), "threads that serve requests";

    cluster_name: Text("1 to 64 letters, digits, `.`, `_` and `-`"), Is("kvstore"),
        "nodes of another name are refused as peers";
    cluster_virtual_nodes: Number(1, 10_000), Is("10"),
        "weight of this node, and of every peer that does not say vnodes=";
    cluster_ranges: PowerOfTwo(1, 65_536), Is("1024"), "equal parts of the ring; fixed when a cluster is made";
    cluster_zone: Text("1 to 64 letters, digits, `.`, `_` and `-`"), NOTHING,
        "where this node stands; replicas are put in different zones when there are enough";
    cluster_replication_factor: Number(1, 16), Is("3"), "N: copies of every key; in force is min(N, members)";
    cluster_write_quorum: Number(1, 16), Follows("majority of N"),
        "W: replicas that have a write on disk before it is acknowledged";
    cluster_read_quorum: Number(1, 16), Follows("majority of N"), "R: replicas that answer a read";
    cluster_secret: Text("8 to 1024 characters"), NOTHING,
        "shared by all nodes; without it, and without TLS_CA, only loopback peers are accepted";
    cluster_secret_file: Text("a file that others may not read"), NOTHING, "holds the secret, in place of CLUSTER_SECRET";
    allow_world_readable_secrets: Text("true or false"), Is("false"),
        "true: files of secrets, tokens and keys may be readable by everyone on this machine, as Docker and compose mount them (mode 0444)";
    max_clock_skew: Time(millis(1), seconds(3_600)), Is("500ms"), "a node whose clock is further ahead of a majority's takes no writes";

    drain_delay: Time(Duration::ZERO, seconds(3_600)), Is("0"),
        "how long after SIGTERM /readyz says 503 while requests are still served, so that load balancers notice; at least 100ms";
    network_timeout: Time(millis(10), seconds(300)), Is("2s"), "how long a request waits for its quorum";
    batch_concurrency: Number(1, 10_000), Is("50"), "groups of a batch in flight at a time";
    read_repair_chance: Probability, Is("1.0"), "share of reads that compare all replicas";
    hints_max_bytes: Size(0, 1_024 * TIB), Is("1GiB"), "writes kept for a node that is away, a node; 0 for none, or more than MAX_VALUE_SIZE";
    hints_max_age: Time(seconds(1), seconds(365 * 86_400)), Is("3h"), "how long they are kept";

    slow_request_time: Time(Duration::ZERO, seconds(3_600)), Is("500ms"), "requests that take longer are logged; 0 logs none";
    log_format: Text("text or json"), Is("text"), "how log lines look";
    log_max_size: Size(MIB, TIB), Is("64MiB"), "node.log is renamed to node.log.1 before it grows beyond this";
    log_max_files: Number(0, 100), Is("4"), "old log files that are kept, node.log.1 being the newest";
    rust_log: Text("a level, or target=level, separated by commas"), Is("info"), "what is logged";
}

impl Setting {
    /// The flag that stands for a name shorter than its own.
    const ALIASES: [(&'static str, &'static str); 3] =
        [("port", "net_port"), ("peers", "kvstore_peers"), ("dir", "kvstore_dir")];

    /// Names by which the stores we replace were told the same, in the environment and in files: what each sets, and the
    /// unit that it leaves out.
    const FOREIGN: [(&'static str, &'static [&'static str], &'static str); 3] = [
        ("PORT", &["net_port"], ""),
        ("DATA_DIR", &["kvstore_dir"], ""),
        ("MAX_REQUEST_SIZE_MB", &["max_body_size", "max_value_size"], "MiB"),
    ];

    /// The settings that another store's name sets, each with what a value of it means here.
    pub(super) fn foreign(name: &str, value: &str) -> impl Iterator<Item = (&'static Self, String)> {
        let found = Self::FOREIGN.iter().find(|(foreign, ..)| *foreign == name);
        let (fields, unit) = found.map_or((&[][..], ""), |(_, fields, unit)| (*fields, *unit));
        let value = match value.trim() {
            "" => String::new(), // says nothing, with its unit too
            value => format!("{value}{unit}"),
        };
        fields.iter().map(move |field| (Self::of_field(field), value.clone()))
    }

    /// The setting of that field.
    pub(super) fn of_field(field: &str) -> &'static Self {
        SETTINGS
            .iter()
            .find(|setting| setting.field == field)
            .expect("fields and table are made by one macro")
    }

    /// The setting of that name, in upper case as in a file or the environment.
    pub fn named(name: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|setting| setting.name() == name)
    }

    /// The setting that a flag (without its dashes) means.
    pub fn of_flag(flag: &str) -> Option<&'static Self> {
        let field = Self::ALIASES.iter().find(|(alias, _)| *alias == flag).map(|(_, field)| *field);
        SETTINGS.iter().find(|setting| Some(setting.field) == field || setting.flag() == flag)
    }

    /// Every flag, aliases first, for guesses.
    pub(super) fn flags() -> impl Iterator<Item = String> {
        let aliases = Self::ALIASES.iter().map(|(alias, _)| (*alias).to_owned());
        aliases.chain(SETTINGS.iter().map(Self::flag)).chain(["config", "help", "version"].map(str::to_owned))
    }

    /// Its name in the environment and in files.
    pub fn name(&self) -> String {
        self.field.to_ascii_uppercase()
    }

    /// Its flag, without dashes: lower case, `-` for `_`.
    pub fn flag(&self) -> String {
        self.field.replace('_', "-")
    }

    /// Its short flag, if it has one.
    pub fn alias(&self) -> Option<&'static str> {
        Self::ALIASES.iter().find(|(_, field)| *field == self.field).map(|(alias, _)| *alias)
    }

    /// Whether its value must not be repeated in messages.
    pub fn is_secret(&self) -> bool {
        ["cluster_secret", "api_token"].contains(&self.field)
    }
}

impl fmt::Display for Unset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Is(text) | Self::Follows(text)) = self;
        f.write_str(text)
    }
}

impl fmt::Display for Kind {
    /// What is allowed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Number(min, max) => write!(f, "{min} to {max}"),
            PowerOfTwo(min, max) => write!(f, "powers of two from {min} to {max}"),
            Size(min, max) => write!(f, "{} to {}", format_size(min), format_size(max)),
            Time(min, max) => write!(f, "{} to {}", format_duration(min), format_duration(max)),
            Probability => f.write_str("0 to 1"),
            Text(allowed) => f.write_str(allowed),
        }
    }
}

impl Kind {
    /// Reads a number, a size in bytes or a time in microseconds; the error says what is allowed.
    pub(super) fn parse(self, text: &str) -> Result<u64, String> {
        let not_a_number = || "a whole number is expected".to_owned();
        let (number, min, max) = match self {
            Number(min, max) | PowerOfTwo(min, max) => {
                (text.trim().parse().map_err(|_| not_a_number()), min, max)
            }
            Size(min, max) => (parse_size(text).map_err(|error| error.to_string()), min, max),
            Time(min, max) => {
                let micros = |duration: Duration| duration.as_micros() as u64;
                (
                    parse_duration(text).map(micros).map_err(|error| error.to_string()),
                    micros(min),
                    micros(max),
                )
            }
            Probability | Text(_) => return Err(not_a_number()),
        };
        let allowed = |number: &u64| {
            (min..=max).contains(number) && (!matches!(self, PowerOfTwo(..)) || number.is_power_of_two())
        };
        match number {
            Ok(number) if allowed(&number) => Ok(number),
            Ok(_) => Err(format!("allowed are {self}")),
            Err(problem) => Err(format!("{problem}; allowed are {self}")),
        }
    }
}

/// Why writing to a `String` is expected to go well.
const GROWS: &str = "a String takes all that is written to it";

/// The README's table.
pub fn markdown_table() -> String {
    let mut table = String::from("| name | default | allowed | what it is |\n| --- | --- | --- | --- |\n");
    for setting in SETTINGS {
        let (name, kind) = (setting.name(), setting.kind.to_string().replace('|', "\\|"));
        let default = match setting.unset {
            Is(value) => format!("`{value}`"),
            Follows(words) => words.to_owned(),
        };
        writeln!(table, "| `{name}` | {default} | {kind} | {} |", setting.meaning).expect(GROWS);
    }
    table
}

/// What `--help` says of the settings.
pub fn help_table() -> String {
    let mut text = String::new();
    for setting in SETTINGS {
        let alias = setting.alias().map_or(String::new(), |alias| format!("-{alias}, "));
        writeln!(text, "  {alias}-{} <{}>", setting.flag(), setting.name()).expect(GROWS);
        writeln!(
            text,
            "      {}\n      default: {}; allowed: {}",
            setting.meaning, setting.unset, setting.kind
        )
        .expect(GROWS);
    }
    text
}

/// `config/default.env`: every setting with its meaning, what is allowed and its default.
pub fn default_env() -> String {
    let mut text = String::from(
        "# Every setting with its default. Copy this file to `.env` in the working directory, or name it with\n\
         # `-config FILE`; the environment and flags override it. `NAME=` means unset.\n",
    );
    for setting in SETTINGS {
        writeln!(text, "\n# {}\n# allowed: {}", setting.meaning, setting.kind).expect(GROWS);
        match setting.unset {
            Is(value) => writeln!(text, "{}={value}", setting.name()),
            Follows(words) => writeln!(text, "{}=    # {words}", setting.name()),
        }
        .expect(GROWS);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_allowed() {
        for setting in SETTINGS {
            if let (Is(value), Number(..) | PowerOfTwo(..) | Size(..) | Time(..)) =
                (setting.unset, setting.kind)
            {
                assert!(setting.kind.parse(value).is_ok(), "{}={value}", setting.name());
            }
        }
    }

    #[test]
    fn every_setting_is_found_by_name_flag_and_alias() {
        for setting in SETTINGS {
            assert_eq!(Setting::named(&setting.name()).map(|found| found.field), Some(setting.field));
            assert_eq!(Setting::of_flag(&setting.flag()).map(|found| found.field), Some(setting.field));
            if let Some(alias) = setting.alias() {
                assert_eq!(Setting::of_flag(alias).map(|found| found.field), Some(setting.field));
            }
        }
    }
}
