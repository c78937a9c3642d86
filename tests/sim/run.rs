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
use super::checker_versions::Promises;
use super::checks;
use super::faults::{self, Faults};
use super::history::{Action, Outcome, key_of};
use super::member::{How, Starter};
use super::shape::Shape;
use super::workload::{self, Client};
use super::world::World;
use crate::trace;

/// How long a healed ring may take until all are up and vote.
const HEAL_PATIENCE: Duration = Duration::from_secs(120);
/// How long it may then take until every hint is delivered.
const HINTS_PATIENCE: Duration = Duration::from_secs(60);

/// All that a seed decides before the run starts.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    pub seed: u64,
    /// Whether real nodes run, or toys.
    pub is_real: bool,
    pub shape: Shape,
    pub storm: Duration,
    pub clients: u64,
    pub keys: usize,
    pub value_len_max: usize,
    pub think_ms_max: u64,
    pub mix: Mix,
    pub memtable_size: usize,
    pub hints_bytes_max: u64,
    pub clock_skew_max: Duration,
    pub pool_delay_max: Duration,
    pub faults: Faults,
    /// Whether all events are kept, not only the last ones.
    pub trace: bool,
}

/// How often clients ask for what, relative to each other.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Mix {
    pub puts: u64,
    pub deletes: u64,
    pub batches: u64,
    pub scans: u64,
    pub delete_ranges: u64,
    pub gets: u64,
    /// The share of requests that say their own W or R.
    pub own_quorums: f64,
    /// The share of those that are sloppy.
    pub sloppy: f64,
    /// The share of puts whose values are written for a time.
    pub expiring: f64,
}

impl Mix {
    /// The sum of all.
    pub fn total(&self) -> u64 {
        self.puts + self.deletes + self.batches + self.scans + self.delete_ranges + self.gets
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
        let network_timeout = Duration::from_millis(rng.below(300..1500));
        let shape = Shape::draw(&rng, network_timeout, faults.damages());
        Self {
            seed,
            is_real: true,
            storm: Duration::from_secs(60),
            clients: rng.below(2..6),
            keys: match rng.below(0..4) {
                0 => rng.below(9..60),
                1 if rng.chance(0.4) => rng.below(60..201),
                _ => rng.below(2..9),
            } as usize,
            value_len_max: [64, 400, 2000][rng.below(0..3) as usize],
            think_ms_max: [60, 200, 500][rng.below(0..3) as usize],
            mix: Mix {
                puts: 40,
                deletes: [0, 10, 25][rng.below(0..3) as usize],
                batches: [0, 5, 15][rng.below(0..3) as usize],
                scans: [0, 2][rng.below(0..2) as usize],
                delete_ranges: [0, 0, 1][rng.below(0..3) as usize],
                gets: 45,
                own_quorums: [0.0, 0.0, 0.3][rng.below(0..3) as usize],
                sloppy: [0.0, 0.3][rng.below(0..2) as usize],
                expiring: [0.0, 0.2, 0.6][rng.below(0..3) as usize],
            },
            memtable_size: [8 << 10, 16 << 10, 64 << 10][rng.below(0..3) as usize],
            hints_bytes_max: [1 << 30, 1 << 30, 1 << 30, 4 << 10][rng.below(0..4) as usize],
            clock_skew_max: Duration::from_millis(500),
            pool_delay_max: Duration::from_micros([1000, 4000, 20_000][rng.below(0..3) as usize]),
            shape: Shape::plain(3, network_timeout),
            faults,
            trace: std::env::var_os("SIM_TRACE").is_some(),
        }
        .with_shape(shape)
    }

    /// The same over another ring.
    #[must_use]
    pub fn with_shape(mut self, shape: Shape) -> Self {
        self.shape = shape;
        if self.shape.nodes.len() == 1 {
            // A node alone has nobody to be rebuilt from: its disk loses nothing that was synced.
            self.faults = Faults {
                wipes: false,
                wipes_in_turn: false,
                rot: false,
                swaps: false,
                copies: false,
                restores: false,
                set_backs: false,
                ..self.faults
            };
        }
        self
    }

    /// The smallest W whose acknowledgements every fault of the run leaves on a disk.
    pub fn needed_min(&self) -> usize {
        if self.faults.damages() { self.shape.replicas() / 2 + 1 } else { 1 }
    }

    /// The same for toy registers, which know no standing, no hints and no marks of their clock.
    pub fn toy(seed: u64) -> Self {
        let mut options = Self::swarm(seed);
        options.storm = Duration::from_secs(20);
        options.is_real = false;
        options.shape = Shape::plain(3, Duration::from_secs(1));
        options.keys = options.keys.min(8);
        options.think_ms_max = 60;
        options.mix =
            Mix { scans: 0, delete_ranges: 0, own_quorums: 0.0, sloppy: 0.0, expiring: 0.0, ..options.mix };
        let Faults { crashes, power_cuts, partitions, one_way, .. } = options.faults;
        let Faults { clock_offsets, clock_drift, weather, gap_max, down_max, .. } = options.faults;
        options.faults = Faults {
            crashes,
            power_cuts,
            partitions,
            one_way,
            clock_offsets,
            clock_drift,
            weather,
            gap_max,
            down_max,
            ..Faults::none()
        };
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
    let needed_min = world.shared.options.needed_min();
    let mut wrong = world.wrongs();
    wrong.extend(checker_versions::check(&operations, &history.scans(), Promises { needed_min }));
    wrong.extend(checker_values::check(&operations, needed_min));
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
    // Until each has heard of the others, and the last stragglers have hints.
    sleep(world.shared.options.shape.timeout_max() * 3 + Duration::from_secs(2)).await;
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

/// How many times keys are read at nodes in the end, beside one read of each key.
const LAST_READS: usize = 120;

/// Looks whether replicas are equal; reads every key once, which must make those equal that were not; writes at every node;
/// reads many keys at many nodes; and looks whether all that was held is given back.
async fn ask_last_questions(world: &World) {
    trace!(world.shared.trace, "last questions");
    let options = &world.shared.options;
    checks::converged(world, "before any read", |key| world.may_be_uneven(key));
    let read = async |node: usize, key: usize| {
        let majority = Some(options.shape.replicas() / 2 + 1);
        let how = How { quorum: majority, sloppy: false };
        if !workload::read(world, node, key, how).await {
            world.wrong(format!("healed, but key {key} cannot be read at node {node}"));
        }
    };
    for key in 0..options.keys {
        read(key % world.len(), key).await;
    }
    sleep(Duration::from_secs(2)).await;
    checks::converged(world, "after a read", |_| false);
    for node in 0..world.len() {
        if let Some((member, _)) = world.up(node)
            && !member.health().problems.is_empty()
        {
            world.wrong(format!("healed, but node {node} is not ready: {:?}", member.health()));
        }
        let value = (1 << 50) | node as u64;
        let item = (node % options.keys, Action::Put(value));
        if !workload::write(world, node, vec![item], How::default()).await {
            world.wrong(format!("healed, but nothing can be written at node {node}"));
        }
        if options.is_real && workload::scan(world, node, How::default()).await.is_none() {
            world.wrong(format!("healed, but node {node} cannot scan"));
        }
    }
    let all = world.len() * options.keys;
    for number in (0..all).step_by(all.div_ceil(LAST_READS)) {
        read(number / options.keys, number % options.keys).await;
    }
    sleep(Duration::from_secs(2)).await;
    for key in (0..options.keys).step_by(options.keys.div_ceil(20)) {
        let Some((member, _)) = world.up(key % world.len()) else {
            world.wrong("a node went down in the calm".to_owned());
            return;
        };
        let mut states = member.explain(key_of(key)).await;
        let count = states.len();
        let all = format!("{states:?}");
        states.dedup();
        if count != options.shape.replicas()
            || states.len() != 1
            || matches!(states[0], ReplicaState::Unreachable(_))
        {
            world.wrong(format!("replicas of key {key} differ in the end: {all}"));
        }
    }
    if options.is_real {
        checks::at_rest(world).await;
    }
}
