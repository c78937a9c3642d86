//! One run: a storm of a simulated minute, then calm, then the questions that must have one answer.

use std::cell::{Cell, RefCell};
use std::sync::Once;
use std::time::Duration;

use kvstore::env::{Planted, Rng};
use kvstore::replication::api::ReplicaState;
use kvstore::types::Timestamp;
use tokio::time::{Instant, sleep};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use super::checker_values;
use super::checker_versions;
use super::faults::{self, Faults};
use super::history::{Outcome, key_of};
use super::member::Starter;
use super::workload::{self, Client};
use super::world::World;
use crate::trace;

/// How long a healed ring may take until all are up and vote.
const HEAL_PATIENCE: Duration = Duration::from_secs(120);
/// How long it may then take until every hint is delivered.
const HINTS_PATIENCE: Duration = Duration::from_secs(60);

/// All that a seed decides before the run starts.
#[derive(Debug, Clone)]
pub struct Options {
    pub seed: u64,
    pub nodes: usize,
    pub storm: Duration,
    pub clients: u64,
    pub keys: usize,
    pub value_len_max: usize,
    pub think_ms_max: u64,
    pub mix: Mix,
    pub memtable_size: usize,
    pub network_timeout: Duration,
    pub clock_skew_max: Duration,
    pub pool_delay_max: Duration,
    pub faults: Faults,
}

/// How often clients ask for what, relative to each other.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mix {
    pub puts: u64,
    pub deletes: u64,
    pub batches: u64,
    pub scans: u64,
    pub gets: u64,
    /// The share of puts whose values are written for a time.
    pub expiring: f64,
}

impl Mix {
    /// The sum of all.
    pub fn total(&self) -> u64 {
        self.puts + self.deletes + self.batches + self.scans + self.gets
    }
}

/// What became of a run.
#[derive(Debug)]
pub struct Report {
    pub options: Options,
    /// The hash of all that happened.
    pub hash: u64,
    pub events: u64,
    pub operations: usize,
    pub answered: usize,
    /// What is wrong, a line each; empty for a good run.
    pub wrong: Vec<String>,
    /// The last events.
    pub last: Vec<String>,
}

impl Options {
    /// The options of a seed: it switches every class of faults on or off and sets every size.
    pub fn swarm(seed: u64) -> Self {
        let rng = Rng::from_seed(seed ^ 0x5EED_0F09_710A_5000);
        let faults = Faults::swarm(&rng);
        let mut options = Self {
            seed,
            nodes: 3,
            storm: Duration::from_secs(60),
            clients: rng.below(2..6),
            keys: rng.below(2..9) as usize,
            value_len_max: [64, 400, 2000][rng.below(0..3) as usize],
            think_ms_max: [60, 200, 500][rng.below(0..3) as usize],
            mix: Mix {
                puts: 40,
                deletes: [0, 10, 25][rng.below(0..3) as usize],
                batches: [0, 5, 15][rng.below(0..3) as usize],
                scans: [0, 2][rng.below(0..2) as usize],
                gets: 45,
                expiring: 0.0,
            },
            memtable_size: [8 << 10, 16 << 10, 64 << 10][rng.below(0..3) as usize],
            network_timeout: Duration::from_millis(rng.below(300..1500)),
            clock_skew_max: Duration::from_millis(500),
            pool_delay_max: Duration::from_micros([1000, 4000, 20_000][rng.below(0..3) as usize]),
            faults,
        };
        options.mix.expiring = [0.0, 0.2, 0.6][rng.below(0..3) as usize];
        options
    }

    /// The options of a seed in search of one mistake: what the mistake needs is always on.
    #[cfg(feature = "planted-mistakes")]
    pub fn directed(seed: u64, mistake: kvstore::env::Mistake) -> Self {
        use kvstore::env::Mistake;
        let mut options = Self::swarm(seed);
        options.storm = Duration::from_secs(30);
        options.think_ms_max = options.think_ms_max.min(100);
        options.keys = options.keys.min(4);
        if mistake != Mistake::ExpiredForgotten {
            options.mix.expiring = 0.0;
        }
        let faults = &mut options.faults;
        match mistake {
            Mistake::AckBeforeSync | Mistake::DirectoryNotSynced => faults.power_cuts = true,
            Mistake::HintCountsAsAck => (faults.partitions, faults.crashes) = (true, true),
            Mistake::ReplicaStampsItsOwnTime => faults.clock_offsets = true,
            Mistake::NoWriteBack => faults.weather.lost = 0.1,
            Mistake::EmptyDiskVotes => {
                options.clients = 5;
                options.mix = Mix { puts: 50, gets: 50, ..Mix::default() };
                options.faults = Faults { wipes_apart: true, ..Faults::none() };
            }
            Mistake::RebuildMarkForgotten => (faults.wipes, faults.crash_in_rebuild) = (true, true),
            Mistake::LogCutAtFirstBadFrame => faults.rot = true,
            Mistake::RetryUnderNewTimestamp => {
                faults.weather.slow = 0.1;
                options.keys = 1;
                options.mix.deletes = 0;
            }
            Mistake::TimestampReusedAfterRestart => {
                // Many keys, so that what the last writes before the crash wrote can be read in the end.
                options.keys = 64;
                options.value_len_max = 64;
                options.pool_delay_max = Duration::from_millis(20);
                options.clients = 6;
                options.think_ms_max = 3;
                options.storm = Duration::from_secs(16);
                options.mix = Mix { puts: 50, gets: 50, ..Mix::default() };
                options.network_timeout = Duration::from_millis(300);
                options.clock_skew_max = Duration::from_secs(5);
                options.faults = Faults { turn_backs: true, ..Faults::none() };
            }
            Mistake::ExpiredForgotten => {
                // Keys that are left alone for long enough, and tables that are compacted as often as can be.
                (options.keys, options.clients) = (32, 5);
                (options.memtable_size, options.value_len_max) = (8 << 10, 2000);
                options.mix = Mix { puts: 40, gets: 50, expiring: 0.5, ..Mix::default() };
                options.faults = Faults::none();
            }
        }
        options
    }

    /// The same for toy registers, which know no standing, no hints and no marks of their clock.
    pub fn toy(seed: u64) -> Self {
        let mut options = Self::swarm(seed);
        options.storm = Duration::from_secs(20);
        options.think_ms_max = 60;
        (options.mix.scans, options.mix.expiring) = (0, 0.0);
        options.faults.wipes = false;
        options.faults.rot = false;
        options.faults.sync_failures = false;
        options.faults.clock_jumps = false;
        options
    }
}

/// Runs one seed.
pub fn run(options: &Options, planted: Planted, starter: &Starter) -> Report {
    note_panics();
    show_logs();
    PANICS.with_borrow_mut(|panics| *panics = Some(Vec::new()));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without threads needs nothing");
    let mut report = runtime.block_on(simulate(options, planted, starter.clone()));
    drop(runtime);
    let panics = PANICS.with_borrow_mut(Option::take).unwrap_or_default();
    report.wrong.splice(0..0, panics);
    report
}

thread_local! {
    /// Panics of this thread while it simulates; `None` while it does not.
    static PANICS: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
    /// When this thread's run began.
    static START: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Prints what nodes log, at virtual times, when `SIM_LOG` holds a filter.
fn show_logs() {
    struct VirtualTime;
    impl FormatTime for VirtualTime {
        fn format_time(&self, w: &mut Writer<'_>) -> std::fmt::Result {
            let start = START.get();
            write!(w, "{:>9.3}", start.map_or(0.0, |start| start.elapsed().as_secs_f64()))
        }
    }
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if let Ok(filter) = std::env::var("SIM_LOG") {
            tracing_subscriber::fmt().with_env_filter(filter).with_timer(VirtualTime).with_ansi(false).init();
        }
    });
}

/// A panic in a task of a node would end that task in silence.
fn note_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let noted = PANICS.try_with(|panics| match panics.try_borrow_mut().as_deref_mut() {
                Ok(Some(panics)) => {
                    panics.push(format!("panic: {info}"));
                    true
                }
                _ => false,
            });
            if noted != Ok(true) {
                usual(info);
            }
        }));
    });
}

fn panicked() -> bool {
    PANICS.with_borrow(|panics| panics.as_ref().is_some_and(|panics| !panics.is_empty()))
}

async fn simulate(options: &Options, planted: Planted, starter: Starter) -> Report {
    START.set(Some(Instant::now()));
    let world = World::new(options, planted, starter);
    tokio::spawn(world.clone().supervise());
    let end = Instant::now() + options.storm;
    let clients: Vec<_> =
        (0..options.clients).map(|number| tokio::spawn(Client::new(&world, number + 1).run(end))).collect();
    let nemesis = tokio::spawn(faults::storm(world.clone(), end));
    for client in clients {
        let _ = client.await;
    }
    let _ = nemesis.await;
    if !panicked() && calm(&world).await {
        ask_last_questions(&world).await;
    }
    report(&world)
}

fn report(world: &World) -> Report {
    let history = &world.shared.history;
    let operations = history.operations();
    world.shared.trace.draw(&world.shared.rng);
    let mut wrong = world.wrongs();
    wrong.extend(checker_versions::check(&operations, &history.scans()));
    wrong.extend(checker_values::check(&operations));
    let answered = operations
        .iter()
        .filter(|operation| matches!(operation.outcome, Outcome::Acknowledged { .. } | Outcome::Seen(_)));
    Report {
        options: world.shared.options.clone(),
        hash: world.shared.trace.hash(),
        events: world.shared.trace.len(),
        answered: answered.count(),
        operations: operations.len(),
        wrong,
        last: world.shared.trace.last(),
    }
}

/// Ends all faults and waits until the ring is whole; says whether it is.
async fn calm(world: &World) -> bool {
    trace!(world.shared.trace, "calm");
    faults::end(world);
    let whole = |world: &World| {
        (0..world.len()).all(|node| world.up(node).is_some_and(|(member, _)| member.health().voting))
    };
    if !until(HEAL_PATIENCE, || whole(world)).await {
        for node in 0..world.len() {
            let state = match world.up(node) {
                Some((member, _)) => format!("{:?}", member.health()),
                None => format!("down: {:?}", world.start_failure(node, 0)),
            };
            world.wrong(format!("healed, but node {node} does not vote: {state}"));
        }
        return false;
    }
    sleep(Duration::from_secs(2)).await; // until each has heard of the others
    // Clocks that had run ahead gave timestamps that the others may still refuse.
    let up = world.all_up().into_iter().filter_map(|node| world.up(node));
    let clocks: Vec<Timestamp> = up.map(|(member, _)| member.clock()).collect();
    let true_time = world.now();
    sleep(clocks.into_iter().max().unwrap_or_default().since(true_time)).await;
    if world.shared.options.mix.expiring > 0.0 {
        sleep(Duration::from_secs(8)).await; // until what was written for a time is over by every clock
    }
    let hints = |world: &World| -> u64 {
        (0..world.len()).filter_map(|node| world.up(node)).map(|(member, _)| member.health().hints).sum()
    };
    if !until(HINTS_PATIENCE, || hints(world) == 0).await {
        for node in 0..world.len() {
            let health = world.up(node).map(|(member, _)| member.health());
            world.wrong(format!(
                "hints are left {HINTS_PATIENCE:?} after all were up: node {node}: {health:?}"
            ));
        }
        return false;
    }
    true
}

async fn until(patience: Duration, holds: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    while !holds() {
        if Instant::now() >= deadline {
            return false;
        }
        sleep(Duration::from_millis(50)).await;
    }
    true
}

/// Reads every key at every node, twice; then all replicas must hold the same.
async fn ask_last_questions(world: &World) {
    trace!(world.shared.trace, "last questions");
    for _ in 0..2 {
        for node in 0..world.len() {
            for key in 0..world.shared.options.keys {
                if !workload::read(world, node, key).await {
                    world.wrong(format!("healed, but key {key} cannot be read at node {node}"));
                }
            }
            if world.shared.options.mix.scans > 0 && !workload::scan(world, node).await {
                world.wrong(format!("healed, but node {node} cannot scan"));
            }
        }
        sleep(Duration::from_secs(2)).await;
    }
    for key in 0..world.shared.options.keys {
        let Some((member, _)) = world.up(0) else {
            world.wrong("node 0 went down in the calm".to_owned());
            return;
        };
        let mut states = member.explain(key_of(key)).await;
        let count = states.len();
        let all = format!("{states:?}");
        states.dedup();
        if count != world.len() || states.len() != 1 || matches!(states[0], ReplicaState::Unreachable(_)) {
            world.wrong(format!("replicas of key {key} differ in the end: {all}"));
        }
    }
}
