//! From texts to a [`Config`]: parses, checks ranges, and checks what one setting says against another.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cluster::membership::{MemberEntry, canonical_name, canonical_of_ip};
use crate::cluster::{Member, Membership};
use crate::tls;
use crate::types::NodeId;
use crate::util::hosts::Hosts;
use crate::util::secret_file::{self, Readers};
use crate::util::tokens::{self, Tokens};

use super::settings::{Raw, Setting, Unset};
use super::sources::{Origin, Values};
use super::{Config, Error, half_the_cores, majority};
use crate::util::units::{format_duration, format_size};

/// A file that holds a secret is never larger, in bytes.
const SECRET_FILE_SIZE_MAX: u64 = 4096;
/// How many characters a secret has.
const SECRET_LEN: std::ops::RangeInclusive<usize> = 8..=1024;
/// Below this many vnodes a member, one more or less is a tenth of its load.
const VNODES_PER_MEMBER_MIN: usize = 10;

/// What a hint weighs beside its value, at most: its key and what it is stored with.
const HINT_MARGIN: usize = 8 << 10;

/// The bounds on what clients send, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sizes {
    value: usize,
    body: usize,
    inflight: usize,
    hints: u64,
}

impl Sizes {
    /// What was given, and what follows from it for the others: a default gives way to a bound that was given.
    fn derive(value: Option<usize>, body: Option<usize>, inflight: Option<usize>, hints: u64) -> Self {
        let defaults = Config::default();
        let body = body.unwrap_or_else(|| defaults.body_size_max.min(inflight.unwrap_or(usize::MAX)));
        let inflight = inflight.unwrap_or_else(|| defaults.inflight_bytes_max.max(body));
        let value = value.unwrap_or_else(|| defaults.value_size_max.min(body));
        Self { value, body, inflight, hints }
    }
}

/// Settings with their texts and origins.
struct Checker<'a> {
    raw: Raw,
    values: &'a Values,
    cwd: &'a Path,
    warnings: Vec<String>,
}

/// Reads one field of `Raw` by its name, so that a message can name it.
macro_rules! read {
    ($checker:ident.$kind:ident($field:ident)) => {
        $checker.$kind(stringify!($field), $checker.raw.$field.as_deref())
    };
}

/// Reads one field of `Raw` that has a default, as text.
macro_rules! read_text {
    ($checker:ident.$field:ident) => {
        Checker::text(stringify!($field), $checker.raw.$field.as_deref())
    };
}

/// Checks everything; returns the settings in force and what to warn of.
pub(super) fn check(values: &Values, cwd: &Path) -> Result<(Config, Vec<String>), Error> {
    let pairs = values.iter().map(|(field, (value, _))| ((*field).to_owned(), value.clone()));
    let raw: Raw = envy::from_iter(pairs).map_err(|error| Error::CommandLine(error.to_string()))?;
    let mut checker = Checker { raw, values, cwd, warnings: Vec::new() };
    let config = checker.config()?;
    Ok((config, checker.warnings))
}

impl Checker<'_> {
    fn config(&mut self) -> Result<Config, Error> {
        let port = read!(self.number(net_port))? as u16;
        let bind_addr = self.bind_addr()?;
        let own = self.own_name(bind_addr, port)?;
        let members = self.members(&own, bind_addr)?;
        let replication_factor = read!(self.number(cluster_replication_factor))? as usize;
        let in_force = replication_factor.min(members.len());
        let range_count = read!(self.number(cluster_ranges))? as u32;
        self.warn_of_few_ranges(range_count, in_force, members.len());
        let tls = self.tls(&own, members.len())?;
        let sizes = self.sizes()?;
        let config = Config {
            open_tables_max: Config::default().open_tables_max, // the process's limit decides, when it is known
            port,
            bind_addr,
            advertise_addr: own.to_string(),
            replication_factor,
            write_quorum: self.quorum(
                "cluster_write_quorum",
                self.raw.cluster_write_quorum.as_deref(),
                in_force,
                members.len(),
            )?,
            read_quorum: self.quorum(
                "cluster_read_quorum",
                self.raw.cluster_read_quorum.as_deref(),
                in_force,
                members.len(),
            )?,
            members,
            allowed_hosts: self.allowed_hosts()?,
            idle_timeout: read!(self.time(http_idle_timeout))?,
            dir: read_text!(self.kvstore_dir).into(),
            memtable_size: read!(self.number(memtable_size))? as usize,
            l0_files_max: read!(self.number(max_l0_files))? as usize,
            sparse_index_interval: read!(self.number(sparse_index_interval))? as usize,
            block_cache_size: read!(self.number(block_cache_size))? as usize,
            wal_commit_interval: read!(self.time(wal_commit_interval))?,
            wal_batch_max: read!(self.number(wal_max_batch_size))? as usize,
            bloom_bits_per_key: read!(self.number(bloom_bits_per_key))? as usize,
            bloom_size_l0: read!(self.optional_number(bloom_size_l0))?.map(|bits| bits as usize),
            bloom_size_l1: read!(self.optional_number(bloom_size_l1))?.map(|bits| bits as usize),
            value_size_max: sizes.value,
            body_size_max: sizes.body,
            worker_threads: read!(self.optional_number(worker_threads))?
                .map_or_else(half_the_cores, |count| count as usize),
            cluster_name: self.cluster_name()?,
            range_count,
            secret: self.secret()?,
            secret_readers: self.secret_readers()?,
            volume_id: self.volume_id()?,
            api_tokens: self.api_tokens()?,
            api_token_file: self.raw.api_token_file.as_ref().map(|file| self.path(file)),
            tls,
            drain_delay: read!(self.time(drain_delay))?,
            network_timeout: read!(self.time(network_timeout))?,
            batch_concurrency: read!(self.number(batch_concurrency))? as usize,
            read_repair_chance: self.read_repair_chance()?,
            hints_bytes_max: sizes.hints,
            hints_age_max: read!(self.time(hints_max_age))?,
            clock_skew_max: read!(self.time(max_clock_skew))?,
            inflight_bytes_max: sizes.inflight,
            slow_request_time: read!(self.time(slow_request_time))?,
            log_json: self.log_json()?,
            log_size_max: read!(self.number(log_max_size))?,
            log_files_max: read!(self.number(log_max_files))? as u32,
            log_filter: self.log_filter()?,
        };
        self.warn_of_settings_without_effect(&config);
        self.warn_of_open_doors(&config);
        Ok(config)
    }

    // ---- one setting ----

    /// The error about a setting as it was given, or about its default.
    fn error(&self, field: &'static str, problem: impl Into<String>) -> Error {
        let setting = Setting::of_field(field);
        let default = || (setting.unset.to_string(), Origin::Default);
        let (value, origin) = self.values.get(field).cloned().unwrap_or_else(default);
        let value = if setting.is_secret() { "…".to_owned() } else { value };
        Error::Setting { name: setting.name(), value, origin, problem: problem.into() }
    }

    fn optional_number(&self, field: &'static str, text: Option<&str>) -> Result<Option<u64>, Error> {
        let kind = Setting::of_field(field).kind;
        text.map(|text| kind.parse(text).map_err(|problem| self.error(field, problem))).transpose()
    }

    fn number(&self, field: &'static str, text: Option<&str>) -> Result<u64, Error> {
        let number = self.optional_number(field, Some(Self::text(field, text)))?;
        Ok(number.expect("a text was given"))
    }

    fn time(&self, field: &'static str, text: Option<&str>) -> Result<Duration, Error> {
        self.number(field, text).map(Duration::from_micros)
    }

    /// What was given, or the default of a setting that has one.
    fn text<'t>(field: &'static str, text: Option<&'t str>) -> &'t str {
        match (text, Setting::of_field(field).unset) {
            (Some(text), _) | (None, Unset::Is(text)) => text.trim(),
            (None, Unset::Follows(_)) => unreachable!("asked only for settings with a default of their own"),
        }
    }

    /// The error that a value is not what the table allows.
    fn not_allowed(&self, field: &'static str) -> Error {
        self.error(field, format!("allowed are {}", Setting::of_field(field).kind))
    }

    // ---- who and where ----

    fn bind_addr(&self) -> Result<IpAddr, Error> {
        let text = read_text!(self.bind_addr).to_ascii_lowercase();
        let literal = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&text);
        let literal = if literal == "localhost" { "127.0.0.1" } else { literal };
        literal.parse().map_err(|_| self.not_allowed("bind_addr"))
    }

    fn allowed_hosts(&self) -> Result<Hosts, Error> {
        let listed = self.raw.kvstore_allowed_hosts.as_deref().unwrap_or_default();
        Hosts::parse(listed).map_err(|problem| self.error("kvstore_allowed_hosts", problem))
    }

    fn own_name(&self, bind_addr: IpAddr, port: u16) -> Result<NodeId, Error> {
        let Some(text) = &self.raw.advertise_addr else {
            if bind_addr.is_unspecified() {
                if self.raw.kvstore_peers.is_some() {
                    let problem =
                        "with peers, ADVERTISE_ADDR must say under which host:port they reach this node";
                    return Err(self.error("bind_addr", problem));
                }
                return Ok(canonical_of_ip(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), port));
            }
            return Ok(canonical_of_ip(bind_addr, port));
        };
        let name =
            canonical_name(text).map_err(|problem| self.error("advertise_addr", format!("it {problem}")))?;
        if is_wildcard(&name) {
            return Err(self.error("advertise_addr", "nobody can reach a wildcard; name this machine"));
        }
        Ok(name)
    }

    fn members(&mut self, own: &NodeId, bind_addr: IpAddr) -> Result<Vec<Member>, Error> {
        let weight = read!(self.number(cluster_virtual_nodes))? as u32;
        let zone = self.raw.cluster_zone.clone().map(|zone| zone.trim().to_owned());
        if zone.as_deref().is_some_and(|zone| !Member::is_zone(zone)) {
            return Err(self.not_allowed("cluster_zone"));
        }
        let own = Member { id: own.clone(), weight, zone };
        let listed = self.raw.kvstore_peers.clone().unwrap_or_default();
        let refuse = |checker: &Self, problem: String| Err(checker.error("kvstore_peers", problem));
        let entries = match MemberEntry::parse_list(&listed) {
            Ok(entries) => entries,
            Err(error) => return refuse(self, error.to_string()),
        };
        let (mut others, mut members) = (Vec::new(), vec![own.clone()]);
        for entry in entries {
            if is_wildcard(&entry.id) {
                return refuse(self, format!("`{}` is a wildcard, which nobody can reach", entry.id));
            }
            if entry.id == own.id {
                self.warn_of_own_entry(&own, &entry);
            } else {
                let member = entry.or(weight);
                others.push(member.to_string());
                members.push(member);
            }
        }
        if let Err(error) = Membership::parse(&others.join(","), weight) {
            return refuse(self, error.to_string());
        }
        self.warn_of_unreachable_name(&own.id, bind_addr, &members);
        Ok(Membership::new(members).members().to_vec())
    }

    /// A node's own entry changes nothing. The others read the same list, so it should at least say nothing else.
    fn warn_of_own_entry(&mut self, own: &Member, entry: &MemberEntry) {
        let other_weight = entry.weight.is_some_and(|weight| weight != own.weight);
        let other_zone = entry.zone.is_some() && entry.zone != own.zone;
        if other_weight || other_zone {
            self.warnings.push(format!(
                "KVSTORE_PEERS lists this node otherwise than as {own}, which CLUSTER_VIRTUAL_NODES and CLUSTER_ZONE \
                 make it; nodes that read the list will count it as unreachable until both say the same"
            ));
        }
    }

    fn warn_of_unreachable_name(&mut self, own: &NodeId, bind_addr: IpAddr, members: &[Member]) {
        let is_loopback = |id: &NodeId| id.as_str().starts_with("127.0.0.1:");
        let elsewhere = members.iter().find(|member| !is_loopback(&member.id) && member.id != *own);
        if let Some(elsewhere) = elsewhere
            && (bind_addr.is_loopback() || is_loopback(own))
        {
            self.warnings.push(format!(
                "{elsewhere} cannot reach this node as {own} on {bind_addr}; set BIND_ADDR and ADVERTISE_ADDR",
                elsewhere = elsewhere.id
            ));
        }
    }

    fn warn_of_few_ranges(&mut self, range_count: u32, in_force: usize, member_count: usize) {
        let vnodes = range_count as usize * in_force;
        if vnodes < VNODES_PER_MEMBER_MIN * member_count {
            self.warnings.push(format!(
                "CLUSTER_RANGES={range_count} leaves {member_count} members fewer than {VNODES_PER_MEMBER_MIN} vnodes \
                 each, so their loads differ"
            ));
        }
    }

    fn cluster_name(&self) -> Result<String, Error> {
        let name = read_text!(self.cluster_name);
        // A cluster's name is made like a zone's: it goes into handshakes and log lines.
        if Member::is_zone(name) { Ok(name.to_owned()) } else { Err(self.not_allowed("cluster_name")) }
    }

    fn volume_id(&self) -> Result<String, Error> {
        let id = read_text!(self.volume_id);
        if Member::is_zone(id) { Ok(id.to_owned()) } else { Err(self.not_allowed("volume_id")) }
    }

    // ---- sizes ----

    /// The bounds on what clients send, which must let each other through: one that was not given follows from those that
    /// were, and two that were given and contradict each other are refused.
    fn sizes(&self) -> Result<Sizes, Error> {
        let given = |field, text: &Option<String>| {
            self.optional_number(field, text.as_deref()).map(|size| size.map(|size| size as usize))
        };
        let value = given("max_value_size", &self.raw.max_value_size)?;
        let body = given("max_body_size", &self.raw.max_body_size)?;
        let inflight = given("max_inflight_bytes", &self.raw.max_inflight_bytes)?;
        let hints = read!(self.number(hints_max_bytes))?;
        let sizes = Sizes::derive(value, body, inflight, hints);
        let contradicts = |field, outer: &str, size: usize| {
            Err(self.error(field, format!("{outer}={} is too small for it", format_size(size as u64))))
        };
        if sizes.value > sizes.inflight {
            return contradicts("max_value_size", "MAX_INFLIGHT_BYTES", sizes.inflight);
        }
        if sizes.value > sizes.body {
            return contradicts("max_value_size", "MAX_BODY_SIZE", sizes.body);
        }
        if sizes.body > sizes.inflight {
            return contradicts("max_body_size", "MAX_INFLIGHT_BYTES", sizes.inflight);
        }
        if hints > 0 && hints < (sizes.value + HINT_MARGIN) as u64 {
            let value = format_size(sizes.value as u64);
            let problem =
                format!("no hint for a value of MAX_VALUE_SIZE={value} would fit; 0 turns hints off");
            return Err(self.error("hints_max_bytes", problem));
        }
        Ok(sizes)
    }

    // ---- quorums ----

    fn quorum(
        &self,
        field: &'static str,
        text: Option<&str>,
        in_force: usize,
        member_count: usize,
    ) -> Result<usize, Error> {
        match self.optional_number(field, text)? {
            None => Ok(majority(in_force)),
            Some(quorum) if quorum as usize <= in_force => Ok(quorum as usize),
            Some(_) => {
                let members = if member_count == 1 { "member" } else { "members" };
                let problem = format!("it is above N, which is {in_force} with {member_count} {members}");
                Err(self.error(field, problem))
            }
        }
    }

    fn read_repair_chance(&self) -> Result<f64, Error> {
        let chance = read_text!(self.read_repair_chance).parse::<f64>();
        chance
            .ok()
            .filter(|chance| (0.0..=1.0).contains(chance))
            .ok_or_else(|| self.not_allowed("read_repair_chance"))
    }

    // ---- secrets ----

    fn secret(&mut self) -> Result<Option<String>, Error> {
        let (field, secret) = match (&self.raw.cluster_secret, &self.raw.cluster_secret_file) {
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => {
                return Err(
                    self.error("cluster_secret_file", "CLUSTER_SECRET is given too; one of them is enough")
                );
            }
            (Some(secret), None) => ("cluster_secret", secret.clone()),
            (None, Some(file)) => ("cluster_secret_file", self.read_secret("cluster_secret_file", file)?),
        };
        if !SECRET_LEN.contains(&secret.chars().count()) {
            let (min, max) = (SECRET_LEN.start(), SECRET_LEN.end());
            return Err(self.error(field, format!("a secret has {min} to {max} characters")));
        }
        self.warn_of_shown_secret("cluster_secret", "the secret", "CLUSTER_SECRET_FILE");
        Ok(Some(secret))
    }

    fn secret_readers(&self) -> Result<Readers, Error> {
        match read_text!(self.allow_world_readable_secrets) {
            "true" => Ok(Readers::Everyone),
            "false" => Ok(Readers::OwnerAndGroup),
            _ => Err(self.not_allowed("allow_world_readable_secrets")),
        }
    }

    fn api_tokens(&mut self) -> Result<Tokens, Error> {
        let (field, text) = match (&self.raw.api_token, &self.raw.api_token_file) {
            (None, None) => return Ok(Tokens::default()),
            (Some(_), Some(_)) => {
                return Err(self.error("api_token_file", "API_TOKEN is given too; one of them is enough"));
            }
            (Some(text), None) => ("api_token", text.clone()),
            (None, Some(file)) => {
                return read_tokens(&self.path(file), self.secret_readers()?)
                    .map_err(|problem| self.error("api_token_file", problem));
            }
        };
        self.warn_of_shown_secret("api_token", "the tokens", "API_TOKEN_FILE");
        Tokens::parse(&text).map_err(|problem| self.error(field, problem))
    }

    fn warn_of_shown_secret(&mut self, field: &str, what: &str, file: &str) {
        if let Some((_, Origin::Flag(flag))) = self.values.get(field) {
            self.warnings.push(format!("{flag} shows {what} to everyone who lists processes; use {file}"));
        }
    }

    fn read_secret(&self, field: &'static str, file: &str) -> Result<String, Error> {
        let secret = read_secret(&self.path(file), self.secret_readers()?)
            .map_err(|problem| self.error(field, problem))?;
        Ok(secret.trim_end_matches(['\r', '\n']).to_owned()) // the line end that editors add
    }

    fn path(&self, file: &str) -> PathBuf {
        self.cwd.join(file.trim())
    }

    /// What TLS is made from, once it is known that it can be.
    fn tls(&self, own: &NodeId, member_count: usize) -> Result<Option<tls::Settings>, Error> {
        let takes_plaintext = match read_text!(self.tls_plaintext) {
            "true" => true,
            "false" => false,
            _ => return Err(self.not_allowed("tls_plaintext")),
        };
        let ca = self.raw.tls_ca.as_ref().map(|ca| self.path(ca));
        let (cert, key) = match (&self.raw.tls_cert, &self.raw.tls_key) {
            (Some(cert), Some(key)) => (self.path(cert), self.path(key)),
            (Some(_), None) => return Err(self.error("tls_cert", "it is of no use without TLS_KEY")),
            (None, Some(_)) => return Err(self.error("tls_key", "it is of no use without TLS_CERT")),
            (None, None) => {
                let problem = "it is of no use without TLS_CERT and TLS_KEY";
                return match (ca, takes_plaintext) {
                    (None, false) => Ok(None),
                    (Some(_), _) => Err(self.error("tls_ca", problem)),
                    (None, true) => Err(self.error("tls_plaintext", problem)),
                };
            }
        };
        let has_peers = member_count > 1;
        if has_peers && ca.is_none() {
            let problem =
                "with peers, TLS_CA must say who signs the certificates by which nodes know each other";
            return Err(self.error("tls_cert", problem));
        }
        let key_readers = self.secret_readers()?;
        let own = has_peers.then(|| own.clone());
        let settings = tls::Settings { cert, key, key_readers, ca, own, takes_plaintext };
        match tls::Material::load(&settings) {
            Ok(_) => Ok(Some(settings)),
            Err(error) => Err(self.error(error.file.field(), error.problem)),
        }
    }

    // ---- logs ----

    fn log_json(&self) -> Result<bool, Error> {
        match read_text!(self.log_format) {
            "text" => Ok(false),
            "json" => Ok(true),
            _ => Err(self.not_allowed("log_format")),
        }
    }

    fn log_filter(&self) -> Result<String, Error> {
        let filter = read_text!(self.rust_log);
        match tracing_subscriber::EnvFilter::builder().parse(filter) {
            Ok(_) => Ok(filter.to_owned()),
            Err(_) => Err(self.not_allowed("rust_log")),
        }
    }

    // ---- one setting against another ----

    /// Whoever reaches an open door may read, write and delete everything.
    fn warn_of_open_doors(&mut self, config: &Config) {
        if !config.bind_addr.is_loopback() && config.api_tokens.is_empty() {
            self.warnings.push(format!(
                "EVERYONE WHO REACHES {}:{} MAY READ, WRITE AND DELETE EVERYTHING: there is no API_TOKEN",
                config.bind_addr, config.port
            ));
        }
        if !config.bind_addr.is_loopback() && !config.api_tokens.is_empty() && config.tls.is_none() {
            self.warnings.push(format!(
                "API_TOKEN is shown in clear to everyone between {}:{} and its clients; set TLS_CERT and TLS_KEY",
                config.bind_addr, config.port
            ));
        }
        if config.tls.as_ref().is_some_and(|tls| tls.takes_plaintext) {
            self.warnings.push(
                "TLS_PLAINTEXT=true: THIS NODE ALSO SPEAKS PLAINTEXT, SO NOTHING IS KEPT FROM WHO LISTENS; once every \
                 node speaks TLS, restart them one by one without it"
                    .to_owned(),
            );
        }
    }

    /// The default says nothing that anybody could rely on; another value may be meant to tune something.
    fn warn_of_settings_without_effect(&mut self, config: &Config) {
        if config.wal_commit_interval != Config::default().wal_commit_interval {
            let interval = format_duration(config.wal_commit_interval);
            self.warnings.push(format!(
                "WAL_COMMIT_INTERVAL={interval} has no effect: no write waits for others to share its sync; those that \
                 come while one is under way share the next"
            ));
        }
    }
}

/// The tokens in a file, one a line. The error is the rest of a sentence, and repeats no token.
pub(super) fn read_tokens(path: &Path, readers: Readers) -> Result<Tokens, String> {
    Tokens::parse(&tokens::without_comments(&read_secret(path, readers)?))
}

fn read_secret(path: &Path, readers: Readers) -> Result<String, String> {
    let secret = secret_file::read(path, SECRET_FILE_SIZE_MAX, readers)?;
    String::from_utf8(secret).map_err(|_| "it is not valid UTF-8".to_owned())
}

fn is_wildcard(name: &NodeId) -> bool {
    name.as_str().starts_with("0.0.0.0:") || name.as_str().starts_with("[::]:")
}
