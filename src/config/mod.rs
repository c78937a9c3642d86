//! Config and its checks; each field has a unit, a default and a sane range.
//!
//! ```text
//! flags ┐
//! env   ├─ sources ── name, value, origin ── envy ── Raw ── check ── Config ── banner
//! .env  ┘                      settings: the one table of names, ranges, defaults ┘
//! ```
//!
//! [`load`] is pure but for reading the files it may be pointed at (settings, secrets, certificates): whoever starts the process hands it the
//! arguments and the environment. A setting that cannot hold is refused in one line that says where it came from.

mod bounds;
mod check;
pub mod settings;
pub mod sources;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cluster::{Member, Membership, RingSettings};
use crate::tls;
use crate::types::NodeId;
use crate::util::hosts::Hosts;
use crate::util::secret_file::Readers;
use crate::util::tokens::Tokens;
use crate::util::units;

pub use crate::util::units::{parse_duration, parse_size};
pub use bounds::Bounds;
pub use settings::{Raw, SETTINGS, Setting};
pub use sources::Origin;

/// Why a node cannot be set up as it was asked to be. Whoever started it gets the line, and exit code
/// [`Error::EXIT_CODE`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting's value cannot hold.
    #[error("{name}={value} ({origin}): {problem}")]
    Setting {
        /// Its name.
        name: String,
        /// What was given; masked if it is a secret.
        value: String,
        /// Where.
        origin: Origin,
        /// What is wrong, and what is allowed.
        problem: String,
    },
    /// An argument that is no setting.
    #[error("{0}")]
    CommandLine(String),
    /// A file of settings, or the file of a secret, cannot be read.
    #[error("{}{}: {problem}", .path.display(), .line.map_or(String::new(), |line| format!(" line {line}")))]
    File {
        /// Which, as it was named.
        path: PathBuf,
        /// Where in it.
        line: Option<usize>,
        /// What is wrong.
        problem: String,
    },
}

impl Error {
    /// The process ends with this for every error here.
    pub const EXIT_CODE: u8 = 2;
}

/// What is said in place of a secret.
const HIDDEN: &str = "(hidden)";

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Loaded {
    /// To serve.
    Serve {
        /// With these settings.
        config: Box<Config>,
        /// Lines to log: what was given and will not have the effect that it seems to.
        warnings: Vec<String>,
    },
    /// `--help`: [`settings::help_table`].
    Help,
    /// `--version`.
    Version,
}

/// Settles what holds, from the arguments (without the program's name), the environment, and `.env` in `cwd` or the
/// file that `-config` names.
pub fn load(
    args: impl Iterator<Item = OsString>,
    env: impl Iterator<Item = (OsString, OsString)>,
    cwd: &Path,
) -> Result<Loaded, Error> {
    let command_line = sources::CommandLine::parse(args)?;
    if command_line.help {
        return Ok(Loaded::Help);
    }
    if command_line.version {
        return Ok(Loaded::Version);
    }
    let (merged, mut warnings) = gather(command_line, env, cwd)?;
    let (config, more) = check::check(&merged, cwd)?;
    warnings.extend(more);
    Ok(Loaded::Serve { config: Box::new(config), warnings })
}

/// A setting as it is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InForce {
    /// Its name.
    pub name: String,
    /// Its value: as it was given, its default, or what follows from the others; `None` if there is none.
    pub value: Option<String>,
    /// Whether it is one: then the value is only a sign that there is one.
    pub is_secret: bool,
    /// Where it comes from.
    pub origin: Origin,
}

/// What [`load`] would settle, setting by setting, and what it would warn of. Flags that ask for something else are
/// ignored.
pub fn survey(
    args: impl Iterator<Item = OsString>,
    env: impl Iterator<Item = (OsString, OsString)>,
    cwd: &Path,
) -> Result<(Vec<InForce>, Vec<String>), Error> {
    let (merged, mut warnings) = gather(sources::CommandLine::parse(args)?, env, cwd)?;
    let (config, more) = check::check(&merged, cwd)?;
    warnings.extend(more);
    let in_force = |setting: &Setting| {
        let given = merged.get(setting.field);
        let value = match (given, setting.unset) {
            (Some((value, _)), _) if setting.is_secret() => Some(HIDDEN.to_owned()),
            (Some((value, _)), _) => Some(value.trim().to_owned()),
            (None, settings::Unset::Is(value)) => Some(value.to_owned()),
            (None, settings::Unset::Follows(_)) => config.followed(setting.field),
        };
        let origin = given.map_or(Origin::Default, |(_, origin)| origin.clone());
        InForce { name: setting.name(), value, is_secret: setting.is_secret(), origin }
    };
    Ok((SETTINGS.iter().map(in_force).collect(), warnings))
}

/// What all sources together say, by field, and what to warn of.
fn gather(
    command_line: sources::CommandLine,
    env: impl Iterator<Item = (OsString, OsString)>,
    cwd: &Path,
) -> Result<(sources::Values, Vec<String>), Error> {
    let named = command_line.file.as_deref().filter(|file| !file.as_os_str().is_empty());
    let shown = named.unwrap_or(Path::new(".env"));
    let file = sources::from_file(&cwd.join(shown), shown)?;
    if let (None, Some(path)) = (&file, named) {
        return Err(Error::File { path: path.to_owned(), line: None, problem: "no such file".to_owned() });
    }
    let (from_file, mut warnings) = file.unwrap_or_default();

    let mut merged = BTreeMap::new();
    let sources = [from_file, sources::from_environment(env)?, command_line.values];
    // Names of other stores first, so that our own override them wherever they stand.
    for foreign in [true, false] {
        let says = |value: &str, origin: &Origin| {
            !value.trim().is_empty() && matches!(origin, Origin::Foreign(_)) == foreign
        };
        for source in &sources {
            let said = source.iter().filter(|(_, (value, origin))| says(value, origin));
            merged.extend(said.map(|(field, said)| (*field, said.clone())));
        }
    }
    for (field, (value, origin)) in &merged {
        let setting = Setting::of_field(field);
        let is_raw = matches!(origin, Origin::Environment | Origin::Foreign(_));
        let Some(problem) = sources::problem_of_unread(value).filter(|_| is_raw) else { continue };
        if setting.is_secret() {
            // A secret may be any text, and this one may be meant.
            warnings.push(format!("{} ({origin}): {problem}", setting.name()));
        } else {
            let (name, value, origin) = (setting.name(), value.clone(), origin.clone());
            return Err(Error::Setting { name, value, origin, problem: problem.to_owned() });
        }
    }
    Ok((merged, warnings))
}

/// The settings of one node, checked. DESIGN's table of names and defaults stands in the README.
#[derive(Clone, PartialEq)]
pub struct Config {
    /// `NET_PORT`.
    pub port: u16,
    /// `BIND_ADDR`.
    pub bind_addr: IpAddr,
    /// `ADVERTISE_ADDR`, made canonical: this node's name.
    pub advertise_addr: String,
    /// All members, this node among them, sorted by name.
    pub members: Vec<Member>,
    /// `KVSTORE_ALLOWED_HOSTS`.
    pub allowed_hosts: Hosts,
    /// `HTTP_IDLE_TIMEOUT`.
    pub idle_timeout: Duration,
    /// `KVSTORE_DIR`.
    pub dir: PathBuf,
    /// `MEMTABLE_SIZE`, bytes.
    pub memtable_size: usize,
    /// `MAX_L0_FILES`.
    pub l0_files_max: usize,
    /// `SPARSE_INDEX_INTERVAL`, keys.
    pub sparse_index_interval: usize,
    /// `BLOCK_CACHE_SIZE`, bytes.
    pub block_cache_size: usize,
    /// Files of tables open at a time; follows from the descriptors that the process may have.
    pub open_tables_max: usize,
    /// `WAL_COMMIT_INTERVAL`, an upper bound that is met by not waiting; nothing reads it.
    pub wal_commit_interval: Duration,
    /// `WAL_MAX_BATCH_SIZE`, batches.
    pub wal_batch_max: usize,
    /// `BLOOM_BITS_PER_KEY`.
    pub bloom_bits_per_key: usize,
    /// `BLOOM_SIZE_L0`, bits.
    pub bloom_size_l0: Option<usize>,
    /// `BLOOM_SIZE_L1`, bits.
    pub bloom_size_l1: Option<usize>,
    /// `MAX_VALUE_SIZE`, bytes.
    pub value_size_max: usize,
    /// `MAX_BODY_SIZE`, bytes.
    pub body_size_max: usize,
    /// `WORKER_THREADS`.
    pub worker_threads: usize,
    /// `CLUSTER_NAME`.
    pub cluster_name: String,
    /// `CLUSTER_RANGES`.
    pub range_count: u32,
    /// `CLUSTER_REPLICATION_FACTOR`, as configured; in force is min(N, members).
    pub replication_factor: usize,
    /// `CLUSTER_WRITE_QUORUM`, in force.
    pub write_quorum: usize,
    /// `CLUSTER_READ_QUORUM`, in force.
    pub read_quorum: usize,
    /// `CLUSTER_SECRET` or the content of `CLUSTER_SECRET_FILE`.
    pub secret: Option<String>,
    /// `ALLOW_WORLD_READABLE_SECRETS`.
    pub secret_readers: Readers,
    /// `VOLUME_ID`.
    pub volume_id: String,
    /// `API_TOKEN` or the content of `API_TOKEN_FILE`.
    pub api_tokens: Tokens,
    /// `API_TOKEN_FILE`, for reading it again.
    pub api_token_file: Option<PathBuf>,
    /// `TLS_CERT`, `TLS_KEY`, `TLS_CA` and `TLS_PLAINTEXT`; `None`: plaintext is spoken.
    pub tls: Option<tls::Settings>,
    /// `DRAIN_DELAY`.
    pub drain_delay: Duration,
    /// `NETWORK_TIMEOUT`.
    pub network_timeout: Duration,
    /// `BATCH_CONCURRENCY`, groups in flight.
    pub batch_concurrency: usize,
    /// `READ_REPAIR_CHANCE`, 0 to 1.
    pub read_repair_chance: f64,
    /// `HINTS_MAX_BYTES`, per target.
    pub hints_bytes_max: u64,
    /// `HINTS_MAX_AGE`.
    pub hints_age_max: Duration,
    /// `MAX_CLOCK_SKEW`.
    pub clock_skew_max: Duration,
    /// `MAX_INFLIGHT_BYTES`.
    pub inflight_bytes_max: usize,
    /// `SLOW_REQUEST_TIME`; zero logs none.
    pub slow_request_time: Duration,
    /// `LOG_FORMAT`: `text` or `json`.
    pub log_json: bool,
    /// `LOG_MAX_SIZE`, bytes.
    pub log_size_max: u64,
    /// `LOG_MAX_FILES`, old files beside `node.log`.
    pub log_files_max: u32,
    /// `RUST_LOG`.
    pub log_filter: String,
}

impl std::fmt::Debug for Config {
    /// Its banner: what people ask for, and without the secret, which no log must hold.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.banner())
    }
}

impl Default for Config {
    /// One node on 127.0.0.1:8081, alone, with the documented defaults.
    fn default() -> Self {
        Self {
            port: 8081,
            bind_addr: IpAddr::V4(Ipv4Addr::LOCALHOST),
            advertise_addr: "127.0.0.1:8081".to_owned(),
            members: vec![Member { id: NodeId::from_canonical("127.0.0.1:8081"), weight: 10, zone: None }],
            allowed_hosts: Hosts::default(),
            idle_timeout: Duration::from_secs(75),
            dir: PathBuf::from("./data"),
            memtable_size: 64 << 20,
            l0_files_max: 4,
            sparse_index_interval: 128,
            block_cache_size: 256 << 20,
            open_tables_max: 1024,
            wal_commit_interval: Duration::from_millis(5),
            wal_batch_max: 512,
            bloom_bits_per_key: 10,
            bloom_size_l0: None,
            bloom_size_l1: None,
            value_size_max: 8 << 20,
            body_size_max: 64 << 20,
            worker_threads: half_the_cores(),
            cluster_name: "kvstore".to_owned(),
            range_count: 1024,
            replication_factor: 3,
            write_quorum: 1,
            read_quorum: 1,
            secret: None,
            secret_readers: Readers::OwnerAndGroup,
            volume_id: "vol-1".to_owned(),
            api_tokens: Tokens::default(),
            api_token_file: None,
            tls: None,
            drain_delay: Duration::ZERO,
            network_timeout: Duration::from_secs(2),
            batch_concurrency: 50,
            read_repair_chance: 1.0,
            hints_bytes_max: 1 << 30,
            hints_age_max: Duration::from_secs(3 * 3600),
            clock_skew_max: Duration::from_millis(500),
            inflight_bytes_max: 64 << 20,
            slow_request_time: Duration::from_millis(500),
            log_json: false,
            log_size_max: 64 << 20,
            log_files_max: 4,
            log_filter: "info".to_owned(),
        }
    }
}

/// The default of `WORKER_THREADS`: the other half is for clients, peers' requests and the log.
fn half_the_cores() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1))
}

/// The majority of N: half of it, and one more.
fn majority(replication_factor: usize) -> usize {
    replication_factor / 2 + 1
}

impl Config {
    /// Reads the tokens in `API_TOKEN_FILE` again; `None` where there is none. Blocks on the file.
    ///
    /// # Errors
    /// The rest of a sentence about the file; it repeats no token.
    pub fn read_tokens_again(&self) -> Result<Option<Tokens>, String> {
        self.api_token_file.as_deref().map(|file| check::read_tokens(file, self.secret_readers)).transpose()
    }

    /// This node's name.
    pub fn own_id(&self) -> NodeId {
        NodeId::from_canonical(&self.advertise_addr)
    }

    /// All members.
    pub fn membership(&self) -> Membership {
        Membership::new(self.members.clone())
    }

    /// Q and N as configured.
    pub fn ring_settings(&self) -> RingSettings {
        RingSettings { range_count: self.range_count, replication_factor: self.replication_factor }
    }

    /// What a setting without a default of its own comes to when it is not given.
    fn followed(&self, field: &str) -> Option<String> {
        match field {
            "advertise_addr" => Some(self.advertise_addr.clone()),
            "worker_threads" => Some(self.worker_threads.to_string()),
            "cluster_write_quorum" => Some(self.write_quorum.to_string()),
            "cluster_read_quorum" => Some(self.read_quorum.to_string()),
            _ => None,
        }
    }

    /// N in force: min(configured, members).
    pub fn replication_factor_in_force(&self) -> usize {
        self.replication_factor.min(self.members.len())
    }

    /// This node's weight.
    pub fn weight(&self) -> u32 {
        let own = self.own_id();
        self.members.iter().find(|member| member.id == own).map_or(0, |member| member.weight)
    }

    /// What a node says of itself when it starts, without the lines on what it found on disk.
    pub fn banner(&self) -> String {
        let in_force = self.replication_factor_in_force();
        let members = match self.members.len() {
            1 => "1 member".to_owned(),
            count => format!("{count} members"),
        };
        let replication = match self.replication_factor {
            configured if configured == in_force => configured.to_string(),
            configured => format!("{in_force} ({configured} configured, {members})"),
        };
        let memtable = match self.memtable_size >> 20 {
            mib if mib << 20 == self.memtable_size => format!("{mib} MB"),
            _ => units::format_size(self.memtable_size as u64),
        };
        let rule = "=".repeat(47);
        let names: Vec<&str> = self.members.iter().map(|member| member.id.as_str()).collect();
        format!(
            "{rule}\n kv-store Starting...\n{rule}\n\
             Port:             {}\n\
             Data Directory:   {}\n\
             MemTable Size:    {memtable}\n\
             Virtual Nodes:    {}\n\
             Replication (N):  {replication}\n\
             Write Quorum (W): {}\n\
             Read Quorum (R):  {}\n\
             Node:             {} of cluster {}\n\
             Members:          {}\n\
             {rule}",
            self.port,
            self.dir.display(),
            self.weight(),
            self.write_quorum,
            self.read_quorum,
            self.advertise_addr,
            self.cluster_name,
            names.join(", "),
        )
    }
}
