//! Configuration: every source, form and refusal, as one who starts a node meets them.
#![allow(clippy::disallowed_methods)] // the files are real

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use kvstore::config::{Config, Error, Loaded, SETTINGS, load, settings};
use kvstore::util::tokens::Tokens;

/// What one test starts a node with.
#[derive(Default)]
struct Start {
    args: Vec<&'static str>,
    env: Vec<(&'static str, &'static str)>,
    file: Option<&'static str>,
}

fn args(line: &'static str) -> Start {
    Start { args: line.split_whitespace().collect(), ..Start::default() }
}

fn env(name: &'static str, value: &'static str) -> Start {
    Start { env: vec![(name, value)], ..Start::default() }
}

fn file(content: &'static str) -> Start {
    Start { file: Some(content), ..Start::default() }
}

impl Start {
    fn load(&self) -> Result<(Config, Vec<String>), String> {
        let cwd = tempfile::tempdir().unwrap();
        if let Some(content) = self.file {
            std::fs::write(cwd.path().join(".env"), content).unwrap();
        }
        let env = self.env.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
        match load(self.args.iter().map(OsString::from), env, cwd.path()) {
            Ok(Loaded::Serve { config, warnings }) => Ok((*config, warnings)),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[track_caller]
    fn config(&self) -> Config {
        self.load().expect("these settings hold").0
    }

    #[track_caller]
    fn warnings(&self) -> String {
        self.load().expect("these settings hold").1.join("\n")
    }

    /// The one line a refusal prints.
    #[track_caller]
    fn refused(&self) -> String {
        let line = self.load().expect_err("these settings cannot hold");
        assert!(!line.contains('\n'), "{line}");
        line
    }
}

fn names(config: &Config) -> Vec<&str> {
    config.members.iter().map(|member| member.id.as_str()).collect()
}

// ---- sources ----

#[test]
fn nothing_given_means_the_defaults() {
    let config = args("").config();
    assert!(config == Config::default(), "{config:?}");
    assert_eq!(names(&config), ["127.0.0.1:8081"]);
    assert_eq!((config.replication_factor, config.write_quorum, config.read_quorum), (3, 1, 1));
}

#[test]
fn flags_beat_the_environment_which_beats_the_file() {
    let mut start = Start {
        args: vec!["-port", "1001"],
        env: vec![("NET_PORT", "1002"), ("KVSTORE_DIR", "/env"), ("PATH", "/bin")],
        file: Some("NET_PORT=1003\nKVSTORE_DIR=/file\nCLUSTER_NAME=from-file\n"),
    };
    let config = start.config();
    assert_eq!(
        (config.port, config.dir.as_path(), config.cluster_name.as_str()),
        (1001, Path::new("/env"), "from-file")
    );
    start.args.clear();
    assert_eq!(start.config().port, 1002);
    start.env.clear();
    assert_eq!(start.config().port, 1003);
}

#[test]
fn an_empty_value_means_unset_so_that_the_next_source_decides() {
    assert_eq!(file("NET_PORT=\nKVSTORE_PEERS=   # none yet\n").config().port, 8081);
    let start = Start { args: vec!["-port="], env: vec![("NET_PORT", "")], file: Some("NET_PORT=1003") };
    assert_eq!(start.config().port, 1003);
}

#[test]
fn every_form_of_a_flag_works() {
    for line in
        ["-port 9000", "-port=9000", "--port 9000", "--port=9000", "-net-port 9000", "--net-port=9000"]
    {
        assert_eq!(args(line).config().port, 9000, "{line}");
    }
    let config = args("-port 8081 -peers a:1,b:2 -dir ./data/node1").config();
    assert_eq!(names(&config), ["127.0.0.1:8081", "a:1", "b:2"]);
    assert_eq!(config.dir, Path::new("./data/node1"));
}

#[test]
fn every_setting_has_a_flag() {
    for setting in SETTINGS {
        let flag: &'static str = format!("-{}=", setting.flag()).leak();
        args(flag).config();
    }
}

#[test]
fn the_config_flag_names_another_file() {
    let cwd = tempfile::tempdir().unwrap();
    std::fs::write(cwd.path().join(".env"), "NET_PORT=1\n").unwrap();
    std::fs::write(cwd.path().join("node2.env"), "NET_PORT=2\n").unwrap();
    let load = |args: &[&str]| load(args.iter().map(OsString::from), std::iter::empty(), cwd.path());
    let Ok(Loaded::Serve { config, .. }) = load(&["-config", "node2.env"]) else { panic!("it loads") };
    assert_eq!(config.port, 2);
    assert_eq!(load(&["-config=gone.env"]).unwrap_err().to_string(), "gone.env: no such file");
    assert!(load(&["-config", "."]).unwrap_err().to_string().starts_with(".: "));
}

#[test]
fn help_and_version_are_asked_for_in_either_form() {
    for (arg, asked) in [
        ("--help", Loaded::Help),
        ("-h", Loaded::Help),
        ("-version", Loaded::Version),
        ("-V", Loaded::Version),
    ] {
        let loaded = load(
            [OsString::from("-port"), OsString::from("1"), OsString::from(arg)].into_iter(),
            std::iter::empty(),
            Path::new("."),
        );
        assert_eq!(loaded, Ok(asked), "{arg}");
    }
}

// ---- files ----

#[test]
fn the_samples_of_the_main_seed_load_as_they_stand() {
    let (config, warnings) = file(include_str!("data/config/seed.env")).load().unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(names(&config), ["127.0.0.1:8081", "127.0.0.1:8082", "127.0.0.1:8083"]);
    assert_eq!((config.memtable_size, config.l0_files_max, config.sparse_index_interval), (64 << 20, 4, 128));
    assert_eq!((config.wal_commit_interval, config.wal_batch_max), (Duration::from_millis(5), 512));
    assert_eq!((config.replication_factor, config.write_quorum, config.read_quorum), (3, 1, 1));
    assert_eq!((config.network_timeout, config.batch_concurrency), (Duration::from_secs(2), 50));
    assert_eq!((config.bloom_size_l0, config.bloom_size_l1), (Some(650_000), Some(3_000_000)));

    let write_heavy = "MEMTABLE_SIZE=134217728       # 128MB\nWAL_COMMIT_INTERVAL=10ms\nMAX_L0_FILES=8\n";
    assert_eq!(file(write_heavy).config().memtable_size, 128 << 20);
    let read_heavy = "MEMTABLE_SIZE=33554432        # 32MB\nMAX_L0_FILES=2\nBLOOM_SIZE_L0=2000000\n";
    assert_eq!(file(read_heavy).config().bloom_size_l0, Some(2_000_000));
}

#[test]
fn a_file_may_have_comments_quotes_exports_and_windows_line_ends() {
    let config = file("\u{feff}# mine\r\n\r\nexport NET_PORT = 9000 # why not\r\nKVSTORE_DIR='/a b/$c'\r\nKVSTORE_PEERS=\"a:1, b:2\"\r\n").config();
    assert_eq!((config.port, config.dir.as_path()), (9000, Path::new("/a b/$c")));
    assert_eq!(names(&config), ["127.0.0.1:9000", "a:1", "b:2"]);
}

#[test]
fn an_unknown_name_in_a_file_is_a_warning_that_guesses() {
    let warnings = file("CLUSTER_WRITE_QUORUMS=2\nnet_port=1\nFAVOURITE_COLOUR=red\n").warnings();
    assert_eq!(
        warnings,
        ".env line 1: unknown setting CLUSTER_WRITE_QUORUMS; did you mean CLUSTER_WRITE_QUORUM?\n\
         .env line 2: unknown setting net_port; did you mean NET_PORT?\n\
         .env line 3: unknown setting FAVOURITE_COLOUR"
    );
    assert_eq!(env("CLUSTER_WRITE_QUORUMS", "2").warnings(), "", "the environment is not ours");
}

#[test]
fn a_name_said_twice_in_a_file_is_a_warning_and_the_last_holds() {
    let start = file("NET_PORT=1\nNET_PORT=2\n");
    assert_eq!(start.config().port, 2);
    assert!(
        start.warnings().starts_with(".env line 2: NET_PORT is said a second time"),
        "{}",
        start.warnings()
    );
}

#[test]
fn a_line_that_cannot_be_read_is_refused_with_its_number() {
    for line in ["NET_PORT 9000", "NET_PORT: 9000", "export NET_PORT 9000"] {
        let content: &str = format!("VOLUME_ID=a\n{line}\n").leak();
        assert_eq!(
            file(content).refused(),
            ".env line 2: it is not NAME=value; there is no `=` after the name",
            "{line}"
        );
    }
    assert_eq!(file("KVSTORE_DIR=\"./data\n").refused(), ".env line 1: a quote in its value is not closed");
    assert!(file("CLUSTER_SECRET=pa$HOME-word\n").refused().contains("put the value in single quotes"));
    assert_eq!(file("CLUSTER_SECRET='pa$HOME-word'\n").config().secret.as_deref(), Some("pa$HOME-word"));
    assert!(args("-config /dev/zero").refused().contains("at most 1048576 bytes"));
}

#[test]
fn lines_of_other_programs_are_passed_over_however_they_are_written() {
    for lines in [
        "APP_KEY=\"-----BEGIN KEY-----\nNET_PORT_OF_OTHERS=\nabc+/=\n-----END KEY-----\"\n",
        "DB_URL=postgres://u:pa$$w0rd@db/x\n",
        "HOST=a.test\nURL=https://${HOST}/x\n",
        "APP_NAME=My nice app\n",
        "OWNER=O'Neil\n",
        "BROKEN=\"never closed\n",
        "npm-token=abc\n",
        "SOME_FLAG\n",
        "hello there, this is no setting\n",
        "WIN_PATH=C:\\Users\\x\n",
        "PORT=$APP_PORT\n", // another store's name for ours, but not a value of ours
    ] {
        let start = file(format!("{lines}NET_PORT=9123\n").leak());
        assert_eq!(start.config().port, 9123, "{lines}");
    }
    let cwd = tempfile::tempdir().unwrap();
    std::fs::write(cwd.path().join(".env"), b"# caf\xe9\nNAME=\xff\nNET_PORT=9123\n").unwrap();
    let loaded = load(std::iter::empty(), std::iter::empty(), cwd.path());
    let Ok(Loaded::Serve { config, .. }) = loaded else { panic!("{loaded:?}") };
    assert_eq!(config.port, 9123);
    std::fs::write(cwd.path().join(".env"), b"\xff\xfeN\0E\0T\0").unwrap();
    let error = load(std::iter::empty(), std::iter::empty(), cwd.path()).unwrap_err();
    assert_eq!(error.to_string(), ".env: it is UTF-16; save it as UTF-8");
}

#[test]
fn many_names_of_other_programs_are_one_warning_and_their_values_are_not_shown() {
    let start = file("A1=x\nDB_PASSWORD=hunter2\nC3=x\nD4=x\nNET_PROT=1\nNET_PORT=9000\n");
    let warnings = start.warnings();
    assert_eq!(
        warnings,
        ".env line 5: unknown setting NET_PROT; did you mean NET_PORT?\n\
         .env: 4 lines set other names and are ignored: A1, DB_PASSWORD, C3, …"
    );
}

#[test]
fn blanks_around_our_own_values_are_no_part_of_them() {
    for line in [
        "NET_PORT=9123 ",
        "NET_PORT=9123\t",
        "NET_PORT = 9123",
        "NET_PORT=9123\t# port",
        "NET_PORT=\"9123\" ",
    ] {
        assert_eq!(file(format!("{line}\n").leak()).config().port, 9123, "{line:?}");
    }
    let config = file("KVSTORE_PEERS=a:1, b:2 # two\nKVSTORE_DIR=/srv/my data\n").config();
    assert_eq!((names(&config).len(), config.dir.as_path()), (3, Path::new("/srv/my data")));
    assert_eq!(file("NET_PORT\n").warnings(), ".env line 1: NET_PORT is ignored, since it has no value");
}

#[test]
fn quotes_and_comments_in_the_environment_are_refused_since_nobody_takes_them_away() {
    assert_eq!(
        env("KVSTORE_DIR", "\"./data\"").refused(),
        "KVSTORE_DIR=\"./data\" (environment): the quotes are part of the value here; leave them out"
    );
    assert_eq!(
        env("KVSTORE_DIR", "./data   # mine").refused(),
        "KVSTORE_DIR=./data   # mine (environment): the comment is part of the value here; leave it out"
    );
    assert!(env("DATA_DIR", "'x'").refused().contains("quotes"), "another store's name too");
    assert!(env("CLUSTER_NAME", "\"a\"").refused().contains("quotes"));
    let secret = env("CLUSTER_SECRET", "\"correct horse\"");
    assert_eq!(secret.config().secret.as_deref(), Some("\"correct horse\""), "it may be meant");
    assert!(
        secret.warnings().contains("quotes are part of the value") && !secret.warnings().contains("horse")
    );
    assert_eq!(env("KVSTORE_DIR", "/srv/a#b").config().dir, Path::new("/srv/a#b"));
    assert_eq!(args("-dir \"x\"").config().dir, Path::new("\"x\""), "a shell has taken its own away");
}

#[test]
fn a_setting_without_effect_is_taken_and_said_to_be_one() {
    let warnings = file("WAL_COMMIT_INTERVAL=10ms # of another store\n").warnings();
    assert!(warnings.starts_with("WAL_COMMIT_INTERVAL=10ms has no effect: no write waits"), "{warnings}");
    assert_eq!(file("WAL_COMMIT_INTERVAL=5ms\n").warnings(), "", "the default, which many files repeat");
    assert!(file("WAL_COMMIT_INTERVAL=2s\n").refused().contains("allowed are"));
}

// ---- refusals ----

#[test]
fn a_refusal_names_the_setting_its_value_its_origin_and_what_is_allowed() {
    assert_eq!(args("-port 99999").refused(), "NET_PORT=99999 (flag -port): allowed are 1 to 65535");
    assert_eq!(
        env("NETWORK_TIMEOUT", "5").refused(),
        "NETWORK_TIMEOUT=5 (environment): a time is a whole number with a unit: us, ms, s, m, h or d, as in 5ms or 2s; \
         allowed are 10ms to 5m"
    );
    assert_eq!(
        file("# size\nMEMTABLE_SIZE=1KB  # small\n").refused(),
        "MEMTABLE_SIZE=1KB (.env line 2): allowed are 64KiB to 2GiB"
    );
}

#[test]
fn every_setting_refuses_what_is_beyond_its_range_or_makes_no_sense() {
    for setting in SETTINGS {
        let beyond: &[&str] = match setting.kind {
            settings::Kind::Number(..) => &["-1", "1.5", "many", "99999999999999999999", "68719476737"],
            settings::Kind::PowerOfTwo(..) => &["0", "3", "1000", "131072"],
            settings::Kind::Size(..) => &["-1", "1XB", "big", "2048TB"],
            settings::Kind::Time(..) => &["1", "-1s", "soon", "366d"],
            settings::Kind::Probability => &["-0.1", "1.1", "NaN", "half"],
            settings::Kind::Text(_) => continue,
        };
        for value in beyond {
            let start =
                Start { args: vec![format!("-{}={value}", setting.flag()).leak()], ..Start::default() };
            let line = start.refused();
            assert!(
                line.starts_with(&format!("{}={value} (flag -{})", setting.name(), setting.flag())),
                "{line}"
            );
        }
    }
}

#[test]
fn texts_that_make_no_sense_are_refused() {
    for (line, refusal) in [
        ("-bind-addr here", "BIND_ADDR=here (flag -bind-addr): allowed are an IP address or localhost"),
        (
            "-advertise-addr node1",
            "ADVERTISE_ADDR=node1 (flag -advertise-addr): it has no port: write host:port",
        ),
        (
            "-advertise-addr 0.0.0.0:1",
            "ADVERTISE_ADDR=0.0.0.0:1 (flag -advertise-addr): nobody can reach a wildcard; name this machine",
        ),
        ("-peers a", "KVSTORE_PEERS=a (flag -peers): `a` has no port: write host:port"),
        (
            "-peers a:1;rack=2",
            "KVSTORE_PEERS=a:1;rack=2 (flag -peers): `a:1;rack=2` has the unknown option `rack`; known are vnodes and zone",
        ),
        (
            "-peers a:1;vnodes=0",
            "KVSTORE_PEERS=a:1;vnodes=0 (flag -peers): `a:1;vnodes=0` has vnodes=0; allowed are 1 to 10000",
        ),
        (
            "-peers a:1,A:1;zone=b",
            "KVSTORE_PEERS=a:1,A:1;zone=b (flag -peers): `a:1` is listed twice: as `a:1;vnodes=10` and as `a:1;vnodes=10;zone=b`",
        ),
        (
            "-peers 0.0.0.0:1",
            "KVSTORE_PEERS=0.0.0.0:1 (flag -peers): `0.0.0.0:1` is a wildcard, which nobody can reach",
        ),
        (
            "-cluster-name a/b",
            "CLUSTER_NAME=a/b (flag -cluster-name): allowed are 1 to 64 letters, digits, `.`, `_` and `-`",
        ),
        (
            "-cluster-zone a/b",
            "CLUSTER_ZONE=a/b (flag -cluster-zone): allowed are 1 to 64 letters, digits, `.`, `_` and `-`",
        ),
        ("-log-format xml", "LOG_FORMAT=xml (flag -log-format): allowed are text or json"),
        (
            "-rust-log a=b=c",
            "RUST_LOG=a=b=c (flag -rust-log): allowed are a level, or target=level, separated by commas",
        ),
    ] {
        assert_eq!(args(line).refused(), refusal);
    }
}

#[test]
fn flags_that_make_no_sense_are_refused() {
    for (line, refusal) in [
        ("-prot 1", "unknown flag -prot; did you mean -port?"),
        (
            "--cluster-write-qourum=2",
            "unknown flag --cluster-write-qourum; did you mean -cluster-write-quorum?",
        ),
        ("-xyzzy", "unknown flag -xyzzy"),
        ("-port", "flag -port needs a value"),
        ("-port -peers a:1", "flag -port needs a value"),
        ("-port 1 --port 2", "flag --port is given twice"),
        ("-port 1 -net-port 2", "flag -net-port is given twice"),
        ("-config a -config b", "flag -config is given twice"),
        ("-port 1 hello", "unexpected argument `hello`; settings are given as -name value"),
        ("-", "unexpected argument `-`; settings are given as -name value"),
    ] {
        assert_eq!(args(line).refused(), refusal, "{line}");
    }
    let error = load([OsString::from("-prot")].into_iter(), std::iter::empty(), Path::new(".")).unwrap_err();
    assert!(matches!(error, Error::CommandLine(_)));
    assert_eq!(Error::EXIT_CODE, 2);
}

// ---- quorums ----

#[test]
fn quorums_default_to_the_majority_of_n_in_force() {
    for (line, in_force, quorum) in [
        ("", 1, 1),
        ("-peers a:1", 2, 2),
        ("-peers a:1,b:1", 3, 2),
        ("-peers a:1,b:1,c:1,d:1", 3, 2),
        ("-peers a:1,b:1,c:1,d:1,e:1 -cluster-replication-factor 5", 5, 3),
        ("-peers a:1,b:1 -cluster-replication-factor 1", 1, 1),
    ] {
        let config = args(line).config();
        assert_eq!(config.replication_factor_in_force(), in_force, "{line}");
        assert_eq!((config.write_quorum, config.read_quorum), (quorum, quorum), "{line}");
    }
}

#[test]
fn an_explicit_quorum_above_n_in_force_is_refused() {
    assert_eq!(
        args("-cluster-write-quorum 2").refused(),
        "CLUSTER_WRITE_QUORUM=2 (flag -cluster-write-quorum): it is above N, which is 1 with 1 member"
    );
    assert_eq!(
        args("-peers a:1,b:1,c:1 -cluster-read-quorum=4").refused(),
        "CLUSTER_READ_QUORUM=4 (flag -cluster-read-quorum): it is above N, which is 3 with 4 members"
    );
    assert_eq!(
        args("-peers a:1,b:1 -cluster-write-quorum 3 -cluster-read-quorum 1").config().write_quorum,
        3
    );
}

// ---- who is who ----

#[test]
fn its_own_address_in_the_peer_list_changes_nothing() {
    let without = args("-port 8081 -peers localhost:8082").config();
    for peers in
        ["-port 8081 -peers localhost:8081,localhost:8082", "-port 8081 -peers [::1]:8081,127.0.0.2:8082,"]
    {
        assert!(args(peers).config() == without, "{peers}");
        assert_eq!(args(peers).warnings(), "");
    }
}

#[test]
fn its_own_entry_that_says_otherwise_is_a_warning_and_changes_nothing() {
    let start = args("-port 8081 -peers localhost:8081;vnodes=20;zone=b,localhost:8082");
    assert!(start.config() == args("-port 8081 -peers localhost:8082").config());
    assert!(start.warnings().contains("otherwise than as 127.0.0.1:8081;vnodes=10"), "{}", start.warnings());
    let same =
        args("-port 8081 -cluster-virtual-nodes 20 -cluster-zone b -peers localhost:8081;vnodes=20;zone=b");
    assert_eq!(same.warnings(), "");
}

#[test]
fn weights_and_zones_come_from_the_peer_list_and_from_settings() {
    let config = args("-cluster-virtual-nodes 20 -cluster-zone a -peers x:1;vnodes=5;zone=b,y:1").config();
    let members: Vec<String> = config.members.iter().map(ToString::to_string).collect();
    assert_eq!(members, ["127.0.0.1:8081;vnodes=20;zone=a", "x:1;vnodes=5;zone=b", "y:1;vnodes=20"]);
    assert_eq!(config.weight(), 20);
}

#[test]
fn a_wildcard_with_peers_needs_an_advertised_address() {
    for bind in ["0.0.0.0", "::", "[::]"] {
        let alone = Start { args: vec!["-bind-addr", bind], ..Start::default() };
        assert_eq!(alone.config().advertise_addr, "127.0.0.1:8081");
        let mut with_peers = Start { args: vec!["-bind-addr", bind, "-peers", "b:1"], ..Start::default() };
        assert!(
            with_peers
                .refused()
                .ends_with("ADVERTISE_ADDR must say under which host:port they reach this node")
        );
        with_peers.args.extend(["-advertise-addr", "Node-A:8081"]);
        assert_eq!(names(&with_peers.config()), ["b:1", "node-a:8081"]);
    }
}

#[test]
fn a_node_on_loopback_with_peers_elsewhere_is_a_warning() {
    let warnings = args("-peers node2:8081").warnings();
    assert_eq!(
        warnings,
        "node2:8081 cannot reach this node as 127.0.0.1:8081 on 127.0.0.1; set BIND_ADDR and ADVERTISE_ADDR"
    );
    let with_token = "-bind-addr 10.0.0.1 -peers node2:8081";
    let with_token = Start { env: vec![("API_TOKEN", "correct-horse")], ..args(with_token) };
    assert!(with_token.warnings().starts_with("API_TOKEN is shown in clear"), "and nothing else");
    assert_eq!(args("-peers localhost:8082").warnings(), "");
}

#[test]
fn doors_that_are_open_to_the_network_are_a_loud_warning() {
    let warning =
        "EVERYONE WHO REACHES 0.0.0.0:8081 MAY READ, WRITE AND DELETE EVERYTHING: there is no API_TOKEN";
    assert_eq!(args("-bind-addr 0.0.0.0").warnings(), warning);
    let closed = Start { env: vec![("API_TOKEN", "ro:correct-horse")], ..args("-bind-addr 0.0.0.0") };
    let warning = "API_TOKEN is shown in clear to everyone between 0.0.0.0:8081 and its clients; set TLS_CERT and TLS_KEY";
    assert_eq!(closed.warnings(), warning);
    assert_eq!(args("-bind-addr ::1").warnings(), "");
}

#[test]
fn tokens_come_from_the_environment_or_a_file_and_are_never_repeated() {
    let (config, _) = env("API_TOKEN", "ro:aaaaaaaa,rw:bbbbbbbb").load().unwrap();
    assert_eq!(config.api_tokens, Tokens::parse("ro:aaaaaaaa,rw:bbbbbbbb").unwrap());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens");
    std::fs::write(&path, "ro:aaaaaaaa\nadmin:bbbbbbbb\n").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let path: &'static str = path.to_str().unwrap().to_owned().leak();
    let (config, warnings) = env("API_TOKEN_FILE", path).load().unwrap();
    assert_eq!(config.api_tokens, Tokens::parse("ro:aaaaaaaa,admin:bbbbbbbb").unwrap());
    assert_eq!(warnings, Vec::<String>::new());
    std::fs::write(path, "\u{feff}# one a line\r\nro:aaaaaaaa # dashboards\r\nadmin:bbbbbbbb\r\n").unwrap();
    assert_eq!(
        env("API_TOKEN_FILE", path).config().api_tokens,
        config.api_tokens,
        "comments and a mark are none"
    );
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(env("API_TOKEN_FILE", path).refused().contains("chmod 600"));
    let both = Start { env: vec![("API_TOKEN", "aaaaaaaa"), ("API_TOKEN_FILE", path)], ..Start::default() };
    assert!(both.refused().contains("one of them is enough"));
    let refused = env("API_TOKEN", "read:swordfish").refused();
    assert!(refused.contains("ro, rw or admin") && !refused.contains("swordfish"), "{refused}");
    assert!(args("-api-token correct-horse").warnings().contains("everyone who lists processes"));
}

#[test]
fn names_that_another_store_uses_are_heard_unless_our_own_are_there() {
    let start = Start {
        env: vec![
            ("PORT", "9002"),
            ("VOLUME_ID", "my-vol"),
            ("DATA_DIR", "./blobs"),
            ("MAX_REQUEST_SIZE_MB", "16"),
        ],
        ..Start::default()
    };
    let config = start.config();
    assert_eq!((config.port, config.volume_id.as_str()), (9002, "my-vol"));
    assert_eq!(config.dir, Path::new("./blobs"));
    assert_eq!((config.body_size_max, config.value_size_max), (16 << 20, 16 << 20));
    let both = Start { env: vec![("NET_PORT", "8085"), ("PORT", "9002")], ..Start::default() };
    assert_eq!(both.config().port, 8085);
    let empty = Start {
        env: vec![("NET_PORT", ""), ("PORT", "9002"), ("MAX_REQUEST_SIZE_MB", "")],
        ..Start::default()
    };
    assert_eq!((empty.config().port, empty.config().value_size_max), (9002, 8 << 20));
    let (config, warnings) = file("PORT=9003\nDATA_DIR=./d\n").load().unwrap();
    assert_eq!((config.port, config.dir.as_path(), warnings.len()), (9003, Path::new("./d"), 0));
    let in_file = Start { env: vec![("PORT", "9002")], ..file("NET_PORT=8087\n") };
    assert_eq!(in_file.config().port, 8087, "our own name overrides, wherever it stands");
    let flagged = Start { env: vec![("PORT", "9002")], ..args("-port 8086") };
    assert_eq!(flagged.config().port, 8086);
    assert_eq!(
        env("PORT", "x").refused(),
        "NET_PORT=x (PORT): a whole number is expected; allowed are 1 to 65535"
    );
    assert_eq!(
        env("VOLUME_ID", "a b").refused(),
        "VOLUME_ID=a b (environment): allowed are 1 to 64 letters, digits, `.`, `_` and `-`"
    );
    assert_eq!(args("").config().volume_id, "vol-1");
}

#[test]
fn bounds_follow_from_each_other_where_they_are_not_given_and_are_refused_where_they_contradict() {
    let sizes = |line| {
        let config = args(line).config();
        [config.value_size_max, config.body_size_max, config.inflight_bytes_max].map(|size| size >> 10)
    };
    assert_eq!(sizes(""), [8 << 10, 64 << 10, 64 << 10]);
    assert_eq!(sizes("-max-body-size 100MB"), [8 << 10, 100 << 10, 100 << 10]);
    assert_eq!(sizes("-max-body-size 2MB"), [2 << 10, 2 << 10, 64 << 10]);
    assert_eq!(sizes("-max-inflight-bytes 4MB"), [4 << 10, 4 << 10, 4 << 10]);
    assert_eq!(sizes("-max-value-size 64MB"), [64 << 10; 3]);
    assert_eq!(
        args("-max-value-size 3MB -max-body-size 2MB").refused(),
        "MAX_VALUE_SIZE=3MB (flag -max-value-size): MAX_BODY_SIZE=2MiB is too small for it"
    );
    assert_eq!(
        args("-max-value-size 3MB -max-inflight-bytes 2MB -max-body-size 4MB").refused(),
        "MAX_VALUE_SIZE=3MB (flag -max-value-size): MAX_INFLIGHT_BYTES=2MiB is too small for it"
    );
    assert_eq!(
        args("-max-body-size 4MB -max-inflight-bytes 2MB -max-value-size 1MB").refused(),
        "MAX_BODY_SIZE=4MB (flag -max-body-size): MAX_INFLIGHT_BYTES=2MiB is too small for it"
    );
    assert_eq!(
        args("-hints-max-bytes 8MB").refused(),
        "HINTS_MAX_BYTES=8MB (flag -hints-max-bytes): no hint for a value of MAX_VALUE_SIZE=8MiB would fit; 0 turns hints off"
    );
    assert_eq!(args("-hints-max-bytes 0").config().hints_bytes_max, 0);
    assert!(args("-max-value-size 65MB").refused().contains("allowed are 1 to 64MiB"));
}

#[test]
fn rings_too_coarse_are_a_warning() {
    assert!(
        args("-peers localhost:1,localhost:2 -cluster-ranges 4")
            .warnings()
            .starts_with("CLUSTER_RANGES=4 leaves")
    );
}

// ---- secrets ----

#[test]
fn a_secret_is_never_repeated() {
    let refusal = args("-cluster-secret short").refused();
    assert_eq!(refusal, "CLUSTER_SECRET=… (flag -cluster-secret): a secret has 8 to 1024 characters");
    let start = env("CLUSTER_SECRET", "correct horse");
    assert_eq!(start.config().secret.as_deref(), Some("correct horse"));
    assert!(!format!("{:?}{}", start.config(), start.config().banner()).contains("horse"));
    assert_eq!(start.warnings(), "");
    assert!(args("-cluster-secret correct-horse").warnings().contains("everyone who lists processes"));
}

#[test]
fn a_secret_file_must_be_readable_by_few() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    std::fs::write(&path, "correct horse\n").unwrap();
    let start = env("CLUSTER_SECRET_FILE", path.to_str().unwrap().to_owned().leak());
    let chmod = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    chmod(0o644);
    assert!(start.refused().contains("everyone on this machine may use it (mode 644); chmod 600 it, or set"));
    // A container's secrets are mounted like this, and neither chmod nor compose can change it.
    chmod(0o444);
    assert!(start.refused().contains("ALLOW_WORLD_READABLE_SECRETS=true"), "{}", start.refused());
    let allowed = ("ALLOW_WORLD_READABLE_SECRETS", "true");
    let mounted = Start { env: vec![start.env[0], allowed], ..Start::default() };
    assert_eq!(mounted.config().secret.as_deref(), Some("correct horse"));
    let tokens = Start { env: vec![("API_TOKEN_FILE", start.env[0].1), allowed], ..Start::default() };
    assert!(tokens.refused().contains("a token has"), "read, and found to be no token: {}", tokens.refused());
    chmod(0o646);
    assert!(mounted.refused().ends_with("everyone on this machine may use it (mode 646); chmod 600 it"));
    chmod(0o640);
    assert_eq!(start.config().secret.as_deref(), Some("correct horse"));
    std::fs::write(&path, "short\n").unwrap();
    assert!(start.refused().ends_with("a secret has 8 to 1024 characters"));
    std::fs::remove_file(&path).unwrap();
    assert!(start.refused().contains("CLUSTER_SECRET_FILE="), "{}", start.refused());
    let both = Start { env: vec![("CLUSTER_SECRET", "correct horse"), start.env[0]], ..Start::default() };
    assert!(both.refused().ends_with("CLUSTER_SECRET is given too; one of them is enough"));
}

// ---- what is generated from the table ----

/// Compares a file of the repository, or a part of one, with what the table says; `REWRITE=1` writes it.
fn compare(path: &str, between: Option<(&str, &str)>, wanted: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    let whole = match between {
        None => wanted.to_owned(),
        Some((begin, end)) => {
            let (before, rest) = written.split_once(begin).expect("the place is marked");
            let (_, after) = rest.split_once(end).expect("its end is marked");
            format!("{before}{begin}\n{wanted}{end}{after}")
        }
    };
    if std::env::var_os("REWRITE").is_some() {
        std::fs::write(&path, whole).unwrap();
    } else {
        assert!(
            written == whole,
            "{} is not what the table of settings says (REWRITE=1 writes it)",
            path.display()
        );
    }
}

#[test]
fn the_readme_and_the_default_preset_say_what_the_table_says() {
    let marks = ("<!-- settings: generated from src/config; a test compares -->", "<!-- /settings -->");
    compare("README.md", Some(marks), &settings::markdown_table());
    compare("config/default.env", None, &settings::default_env());
}

#[test]
fn every_preset_loads_without_a_warning() {
    for (preset, quorums_set) in
        [("default", false), ("write-heavy", false), ("read-heavy", false), ("low-latency", true)]
    {
        let path = format!("{}/config/{preset}.env", env!("CARGO_MANIFEST_DIR"));
        let content: &'static str = std::fs::read_to_string(&path).unwrap().leak();
        let with_peers = Start {
            args: vec!["-peers", "localhost:8082,localhost:8083"],
            file: Some(content),
            ..Start::default()
        };
        let (config, warnings) = with_peers.load().unwrap();
        assert_eq!(warnings, Vec::<String>::new(), "{preset}");
        let quorum = if quorums_set { 1 } else { 2 };
        assert_eq!(
            (config.replication_factor, config.write_quorum, config.read_quorum),
            (3, quorum, quorum),
            "{preset}"
        );
        let alone = file(content).config();
        assert_eq!(alone == Config::default(), preset == "default", "{preset}");
        for line in content.lines().filter(|line| !line.starts_with('#') && line.contains("_QUORUM")) {
            assert!(quorums_set || line.contains("=  "), "{preset} sets {line}");
        }
    }
}

#[test]
fn the_banner_says_what_is_in_force() {
    let three = args("-port 8081 -peers localhost:8082,localhost:8083 -dir ./data/node1").config();
    assert_eq!(
        three.banner(),
        "===============================================\n \
         kv-store Starting...\n\
         ===============================================\n\
         Port:             8081\n\
         Data Directory:   ./data/node1\n\
         MemTable Size:    64 MB\n\
         Virtual Nodes:    10\n\
         Replication (N):  3\n\
         Write Quorum (W): 2\n\
         Read Quorum (R):  2\n\
         Node:             127.0.0.1:8081 of cluster kvstore\n\
         Members:          127.0.0.1:8081, 127.0.0.1:8082, 127.0.0.1:8083\n\
         ==============================================="
    );
    assert!(args("").config().banner().contains("Replication (N):  1 (3 configured, 1 member)\n"));
}

#[test]
fn further_host_names_and_the_idle_timeout_are_settings() {
    let config = env("KVSTORE_ALLOWED_HOSTS", "kv.example.com, *.shop.example").config();
    assert!(
        config.allowed_hosts.lists(b"kv.example.com:443") && config.allowed_hosts.lists(b"eu.shop.example")
    );
    assert!(!config.allowed_hosts.lists(b"evil.test"));
    assert!(!Start::default().config().allowed_hosts.allow(b"kv.example.com"));
    for wrong in ["http://kv.example.com", "kv.example.com:8081", "a b"] {
        let refused = env("KVSTORE_ALLOWED_HOSTS", wrong).refused();
        assert!(
            refused.contains("KVSTORE_ALLOWED_HOSTS") && refused.contains("is no host name"),
            "{refused}"
        );
    }
    assert_eq!(Start::default().config().idle_timeout, Duration::from_secs(75));
    assert_eq!(args("-http-idle-timeout 2m").config().idle_timeout, Duration::from_secs(120));
    assert!(env("HTTP_IDLE_TIMEOUT", "0s").refused().contains("HTTP_IDLE_TIMEOUT"));
}
