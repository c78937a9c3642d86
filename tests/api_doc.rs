//! The examples of `docs/api.md`, run as they stand there: each `bash` block by `sh`, with curl, against a ring of three, a node
//! with tokens and a node whose peers are down.
//!
//! In a block, lines that begin with `#` are what the commands above them print. `…` stands for what varies: within a line for
//! any text, on a line of its own for any number of lines. Ports are those of this run; blocks marked `not-run` are counted.
//! What stands in an HTML comment is no part of the page.
#![allow(clippy::disallowed_methods)] // files and processes are real

mod http_support;

use std::path::Path;
use std::process::{Command, Stdio};

use http_support::Server;
use http_support::ring::Ring;
use kvstore::http::ApiSettings;
use kvstore::http::router::{Pattern, Route};
use kvstore::util::tokens::Tokens;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/api.md");
const TOKENS: &str = "ro:reader-token-1,rw:writer-token-1,admin:chief-token-1";
/// How the nodes are started is said in one block, which starts none: those of this test have ports of their own.
const NOT_RUN_MAX: usize = 1;
/// Ends what one step has printed.
const END_OF_STEP: &str = "\n\u{1e}\n";

/// Some commands, and what they print.
#[derive(Debug, Default, PartialEq, Eq)]
struct Step {
    /// Its first line in the document.
    line: usize,
    commands: Vec<String>,
    printed: Vec<String>,
}

/// One block of the document.
#[derive(Debug, Default)]
struct Block {
    is_run: bool,
    steps: Vec<Step>,
}

/// Reads the `bash` blocks of a page.
fn blocks(page: &str) -> Vec<Block> {
    let (mut found, mut open, mut in_comment) = (Vec::new(), None::<Block>, false);
    for (number, line) in page.lines().enumerate() {
        in_comment |= line.starts_with("<!--");
        if in_comment {
            in_comment = !line.contains("-->");
        } else if let Some(block) = &mut open {
            match line.strip_prefix('#') {
                _ if line == "```" => found.extend(open.take()),
                Some(printed) => {
                    let step = block.steps.last_mut().expect("what is printed stands beneath a command");
                    step.printed.push(printed.strip_prefix(' ').unwrap_or(printed).to_owned());
                }
                None => {
                    if block.steps.last().is_none_or(|step| !step.printed.is_empty()) {
                        block.steps.push(Step { line: number + 1, ..Step::default() });
                    }
                    block.steps.last_mut().expect("just pushed").commands.push(line.to_owned());
                }
            }
        } else if let Some(kind) = line.strip_prefix("```bash") {
            open = Some(Block { is_run: kind.is_empty(), steps: Vec::new() });
        }
    }
    assert!(open.is_none() && !in_comment, "every block and comment is closed");
    found
}

/// Whether a line is what a pattern with `…` says.
fn is_line(pattern: &str, line: &str) -> bool {
    let mut parts = pattern.split('…');
    let first = parts.next().expect("splitting gives one part at least");
    let Some(mut rest) = line.strip_prefix(first) else { return false };
    let parts: Vec<_> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// Whether lines are what patterns say.
fn are_lines(patterns: &[String], lines: &[&str]) -> bool {
    match (patterns.split_first(), lines.split_first()) {
        (None, first) => first.is_none(),
        (Some((pattern, others)), first) if pattern == "…" => {
            are_lines(others, lines) || first.is_some_and(|(_, rest)| are_lines(patterns, rest))
        }
        (Some((pattern, others)), Some((line, rest))) => is_line(pattern, line) && are_lines(others, rest),
        (Some(_), None) => false,
    }
}

/// The nodes that the document speaks to.
struct Nodes {
    _ring: Ring,
    _others: [Server; 2],
    /// Ports as they stand in the document, and those of this run.
    ports: Vec<(u16, u16)>,
}

impl Nodes {
    fn start() -> Self {
        let ring = Ring::start(3);
        let tokens = Tokens::parse(TOKENS).unwrap();
        let guarded = Server::start_with_settings(ApiSettings { tokens, ..ApiSettings::default() });
        let lonely = Server::start_lonely();
        let mut ports: Vec<_> = (0..3).map(|node| ring.at(node).addr.port()).collect();
        ports.sort_by_key(u16::to_string); // members are listed by name
        ports.extend([guarded.addr.port(), lonely.addr.port()]);
        Self { _ring: ring, _others: [guarded, lonely], ports: (8081..).zip(ports).collect() }
    }

    /// A command, to be sent to the nodes of this run.
    fn addressed(&self, command: &str) -> String {
        let replace = |text: String, (said, real): &(u16, u16)| {
            text.replace(&format!("http://localhost:{said}"), &format!("http://127.0.0.1:{real}"))
        };
        self.ports.iter().fold(command.to_owned(), replace)
    }

    /// What was printed, with the ports of the document.
    fn as_told(&self, printed: &str) -> String {
        let replace = |text: String, (said, real): &(u16, u16)| {
            text.replace(&format!("127.0.0.1:{real}"), &format!("127.0.0.1:{said}"))
        };
        self.ports.iter().fold(printed.replace('\r', ""), replace)
    }

    /// Runs a block in one shell, and says what differs.
    fn run(&self, block: &Block, dir: &Path) -> Vec<String> {
        let end = r"printf '\n\036\n'";
        let script = block.steps.iter().map(|step| format!("{}\n{end}\n", step.commands.join("\n")));
        let output = Command::new("sh")
            .args(["-c", &self.addressed(&script.collect::<String>())])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", dir) // no settings of curl's
            .current_dir(dir)
            .stdin(Stdio::null())
            .output()
            .expect("there is a shell");
        let printed = self.as_told(&String::from_utf8_lossy(&output.stdout));
        let mut printed = printed.split(END_OF_STEP);
        let mut wrong = Vec::new();
        for step in &block.steps {
            let text = printed.next().unwrap_or_default().trim_end_matches('\n');
            let lines: Vec<_> = if text.is_empty() { Vec::new() } else { text.split('\n').collect() };
            if !are_lines(&step.printed, &lines) {
                let (line, commands, says) = (step.line, step.commands.join("\n"), step.printed.join("\n"));
                wrong.push(format!(
                    "docs/api.md:{line}\n{commands}\n--- it says\n{says}\n--- it is\n{text}\n"
                ));
            }
        }
        wrong
    }
}

fn page() -> String {
    std::fs::read_to_string(DOCUMENT).unwrap()
}

#[test]
fn every_example_prints_what_stands_beneath_it() {
    if Command::new("curl").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("SKIPPED: the examples of docs/api.md were not run: there is no curl");
        return;
    }
    let (nodes, dir) = (Nodes::start(), tempfile::tempdir().unwrap());
    let blocks = blocks(&page());
    let wrong: Vec<_> =
        blocks.iter().filter(|block| block.is_run).flat_map(|block| nodes.run(block, dir.path())).collect();
    assert!(wrong.is_empty(), "{} examples are not true any more:\n\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn hardly_a_block_is_not_run() {
    let blocks = blocks(&page());
    let not_run = blocks.iter().filter(|block| !block.is_run).count();
    assert!(not_run <= NOT_RUN_MAX, "{not_run} of {} blocks", blocks.len());
    let steps: usize = blocks.iter().map(|block| block.steps.len()).sum();
    assert!(steps > 60, "{steps} examples were found");
}

#[test]
fn there_is_an_example_of_every_path() {
    let blocks = blocks(&page());
    let run = blocks.iter().filter(|block| block.is_run);
    let commands: String = run
        .flat_map(|block| &block.steps)
        .flat_map(|step| &step.commands)
        .fold(String::new(), |all, line| all + line + "\n");
    for route in Route::ALL {
        let is_shown = |path: &str, ends: &[char]| {
            commands.match_indices(path).any(|(at, _)| {
                let is_path =
                    commands[..at].rsplit_once("http://localhost:").is_some_and(|(_, port)| port.len() == 4);
                is_path && (ends.is_empty() || commands[at + path.len()..].starts_with(ends))
            })
        };
        let shown = match route.row().pattern {
            Pattern::Is(path) => is_shown(path, &['"', '?', ' ', '\n']),
            Pattern::Under(prefix) => is_shown(prefix, &[]),
            Pattern::Other => true,
        };
        assert!(shown, "{}", route.name());
    }
}

#[test]
fn an_ellipsis_stands_for_what_varies_and_for_no_more() {
    assert!(is_line("a…c", "abbc") && is_line("a…c", "ac") && is_line("…", "x") && is_line("a", "a"));
    assert!(is_line("a…b…c", "a1b2c") && is_line("a…bc…c", "abcc"));
    assert!(!is_line("a…c", "acd") && !is_line("a", "ab") && !is_line("a…a", "a") && !is_line("b…", "ab"));
    let patterns = |text: &str| text.split('\n').map(str::to_owned).collect::<Vec<_>>();
    assert!(are_lines(&patterns("a\n…\nc"), &["a", "b", "b", "c"]) && are_lines(&patterns("a\n…"), &["a"]));
    assert!(!are_lines(&patterns("a\n…\nc"), &["a", "b"]) && !are_lines(&patterns("a"), &["a", "b"]));
    assert!(!are_lines(&patterns("a\nb"), &["a"]) && are_lines(&[], &[]));
}

#[test]
fn blocks_are_read_with_their_steps() {
    let page = "```bash\na\nb \\\n  c\n# 1\n#\n# 2\nd\n```\ntext\n<!-- x\n```bash\ne\n```\n-->\n```bash not-run\nf\n```\n";
    let blocks = blocks(page);
    let lines = |text: &[&str]| text.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
    let first = Step { line: 2, commands: lines(&["a", "b \\", "  c"]), printed: lines(&["1", "", "2"]) };
    let second = Step { line: 8, commands: lines(&["d"]), printed: lines(&[]) };
    assert_eq!(blocks[0].steps, [first, second]);
    assert_eq!((blocks.len(), blocks[0].is_run, blocks[1].is_run), (2, true, false));
}
