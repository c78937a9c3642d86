//! The machines: each with a disk, a clock and a node that is started, stopped, crashed and started again.

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use kvstore::cluster::Ring;
use kvstore::env::vfs_fault::{Operation, Verdict};
use kvstore::env::{Clock as _, Env, FaultVfs, MemVfs, Planted, Pool, Rng, SimulatedPace, Tasks};
use kvstore::types::Timestamp;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout};

use super::checks;
use super::clock::SimClock;
use super::history::{Action, History, Outcome, key_of};
use super::member::{Member, Start, Starter};
use super::net::SimNet;
use super::real_node;
use super::run::Options;
use super::shape::{name_of, replicas_of};
use super::trace::Trace;
use crate::trace;

/// How long a start may take before it counts as failed.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How long a graceful stop may take before it counts as hung.
const STOP_PATIENCE: Duration = Duration::from_secs(20);

/// All of a simulated ring. A clone is the same one.
#[derive(Clone)]
pub struct World {
    pub shared: Arc<Shared>,
}

pub struct Shared {
    pub options: Options,
    pub rng: Rng,
    pub trace: Trace,
    pub net: SimNet,
    pub history: History,
    /// Who holds what.
    pub ring: Ring,
    /// Chance of the checks, so that they disturb nothing else.
    pub checks: Rng,
    /// How many acknowledgements were held against a loss of power.
    pub power_checked: AtomicU64,
    planted: Planted,
    starter: Starter,
    /// A clock that is always right.
    truth: SimClock,
    pub begun: Instant,
    machines: Mutex<Vec<Machine>>,
    wrong: Mutex<Vec<String>>,
    uneven: Mutex<Uneven>,
}

/// Which keys may differ between their replicas until somebody reads them, because a fault took the hints that would have
/// made them equal.
#[derive(Default)]
struct Uneven {
    keys: BTreeSet<usize>,
    /// Why it may be any key.
    all: Option<String>,
    /// Writes that may be under way: when each began, at which node, of which keys.
    writes: VecDeque<(Instant, usize, Vec<usize>)>,
}

/// What keeps a machine from doing its work in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// Operations of its disk fail.
    Failing,
    /// Its disk is full.
    Full,
    /// Its disk is slow.
    Slow,
    /// Its disk answers nothing.
    Hung,
    /// Its process is stopped.
    Paused,
}

impl Trouble {
    /// Whether what a node has begun waits until it is over.
    fn holds_up_work(self) -> bool {
        matches!(self, Self::Slow | Self::Hung | Self::Paused)
    }
}

struct Machine {
    disk: MemVfs,
    /// Where its node's data lies on it.
    dir: PathBuf,
    clock: Arc<SimClock>,
    pace: SimulatedPace,
    troubles: BTreeSet<Trouble>,
    /// Since when nothing has happened to it.
    quiet_since: Instant,
    /// Whether its last trouble held up its work.
    was_troubled: bool,
    /// When its disk was last seen to vote.
    voted: Option<Instant>,
    /// Since when it was seen to vote every time.
    votes_since: Option<Instant>,
    /// When its disk last lost something that was synced.
    damaged: Option<Instant>,
    state: State,
    /// Counts starts, so that a late event of an earlier life is known as such.
    life: u64,
    /// Starts that failed since the last that did not.
    failed_starts: u32,
    /// Why the last start failed.
    last_failure: String,
}

#[derive(Clone)]
enum State {
    Down { until: Instant },
    Starting { vfs: FaultVfs, tasks: Tasks },
    Up { vfs: FaultVfs, tasks: Tasks, member: Arc<dyn Member> },
    Stopping,
}

/// What a crash does to the disk.
#[derive(Debug, Clone)]
pub enum Crash {
    /// The machine loses power: any subset of what is unsynced survives.
    Power,
    /// The process is killed: all it wrote survives.
    Kill,
    /// The machine loses power and the disk is replaced by an empty one.
    Wipe,
    /// The machine loses power and the disk is replaced by this one.
    Replace(MemVfs),
}

impl Crash {
    /// Whether what was synced is lost.
    fn is_damage(&self) -> bool {
        matches!(self, Self::Wipe | Self::Replace(_))
    }
}

impl Shared {
    /// Which bug is planted, if any.
    pub fn planted(&self) -> Planted {
        self.planted
    }
}

impl World {
    /// A world whose machines are all down and due to start at once.
    pub fn new(options: &Options, planted: Planted, starter: Starter) -> Self {
        let rng = Rng::from_seed(options.seed);
        let trace = Trace::new(options.trace);
        let names = (0..options.shape.nodes.len()).map(name_of);
        let start = Instant::now();
        let machines = options.shape.nodes.iter().map(|_| Machine {
            disk: MemVfs::new(),
            dir: PathBuf::from(real_node::DIR),
            clock: Arc::new(SimClock::right(start)),
            pace: SimulatedPace::new(options.pool_delay_max),
            troubles: BTreeSet::new(),
            quiet_since: start,
            was_troubled: false,
            voted: None,
            votes_since: None,
            damaged: None,
            state: State::Down { until: start },
            life: 0,
            failed_starts: 0,
            last_failure: String::new(),
        });
        let machines = Mutex::new(machines.collect());
        Self {
            shared: Arc::new(Shared {
                net: SimNet::new(names.collect(), rng.fork(), trace.clone()),
                ring: options.shape.ring(),
                checks: rng.fork(),
                power_checked: AtomicU64::new(0),
                options: options.clone(),
                rng,
                trace,
                history: History::default(),
                planted,
                starter,
                truth: SimClock::right(start),
                begun: start,
                machines,
                wrong: Mutex::default(),
                uneven: Mutex::default(),
            }),
        }
    }

    /// Notes that something is wrong.
    pub fn wrong(&self, what: String) {
        trace!(self.shared.trace, "WRONG {what}");
        self.shared.wrong.lock().push(what);
    }

    /// What is wrong so far.
    pub fn wrongs(&self) -> Vec<String> {
        self.shared.wrong.lock().clone()
    }

    /// True time, as a clock's reading.
    pub fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.shared.truth.wall_micros())
    }

    /// How far the slowest clock is behind true time.
    pub fn lag(&self) -> Duration {
        let machines = self.shared.machines.lock();
        let slowest = machines.iter().map(|machine| machine.clock.offset()).min().unwrap_or_default();
        Duration::from_micros(slowest.min(0).unsigned_abs())
    }

    /// How many machines there are.
    pub fn len(&self) -> usize {
        self.shared.options.shape.nodes.len()
    }

    /// The node on a machine and its tasks, if it is up.
    pub fn up(&self, node: usize) -> Option<(Arc<dyn Member>, Tasks)> {
        match &self.shared.machines.lock()[node].state {
            State::Up { member, tasks, .. } => Some((member.clone(), tasks.clone())),
            _ => None,
        }
    }

    /// The nodes that are up.
    pub fn all_up(&self) -> Vec<usize> {
        (0..self.len()).filter(|node| self.up(*node).is_some()).collect()
    }

    /// A machine's disk.
    pub fn disk(&self, node: usize) -> MemVfs {
        self.shared.machines.lock()[node].disk.clone()
    }

    /// A machine's clock.
    pub fn clock(&self, node: usize) -> Arc<SimClock> {
        self.shared.machines.lock()[node].clock.clone()
    }

    /// How often a machine was started.
    pub fn life(&self, node: usize) -> u64 {
        self.shared.machines.lock()[node].life
    }

    /// Where a node's data lies on its machine.
    pub fn dir(&self, node: usize) -> PathBuf {
        self.shared.machines.lock()[node].dir.clone()
    }

    /// From the next start on a node's data lies there.
    pub fn set_dir(&self, node: usize, dir: &Path) {
        dir.clone_into(&mut self.shared.machines.lock()[node].dir);
    }

    /// Makes operations of a node's disk fail by a rule, until its next start.
    pub fn fail_disk(&self, node: usize, rule: impl FnMut(&Operation<'_>) -> Verdict + Send + 'static) {
        let mut machines = self.shared.machines.lock();
        if let State::Up { vfs, .. } | State::Starting { vfs, .. } = &machines[node].state {
            vfs.set_rule(rule);
            machines[node].trouble(Trouble::Failing);
        }
    }

    /// Lets every disk and process work again.
    pub fn mend_machines(&self) {
        let troubles = [Trouble::Full, Trouble::Slow, Trouble::Hung, Trouble::Paused];
        for node in 0..self.len() {
            let mut machines = self.shared.machines.lock();
            let machine = &mut machines[node];
            if let State::Up { vfs, .. } | State::Starting { vfs, .. } = &machine.state {
                vfs.clear_rule();
            }
            machine.relieve(Trouble::Failing);
            drop(machines);
            for trouble in troubles {
                self.relieve(node, trouble);
            }
        }
    }

    /// Makes a machine fall short; says whether it is up and did not before.
    pub fn trouble(&self, node: usize, trouble: Trouble, bytes_left: u64, delay_max: Duration) -> bool {
        let mut machines = self.shared.machines.lock();
        let machine = &mut machines[node];
        let State::Up { tasks, .. } = &machine.state else { return false };
        if machine.troubles.contains(&trouble) {
            return false;
        }
        match trouble {
            Trouble::Failing => {}
            Trouble::Full => machine.disk.set_capacity(Some(machine.disk.used_space() + bytes_left)),
            Trouble::Slow => machine.pace.set_delay_max(delay_max),
            Trouble::Hung => machine.pace.hang(),
            Trouble::Paused => tasks.pause(),
        }
        trace!(self.shared.trace, "{node} is in trouble: {trouble:?}");
        machine.trouble(trouble);
        true
    }

    /// Ends a trouble.
    pub fn relieve(&self, node: usize, trouble: Trouble) {
        let mut machines = self.shared.machines.lock();
        let machine = &mut machines[node];
        if !machine.troubles.contains(&trouble) {
            return;
        }
        trace!(self.shared.trace, "{node} is out of trouble: {trouble:?}");
        match trouble {
            Trouble::Failing => {}
            Trouble::Full => machine.disk.set_capacity(None),
            Trouble::Slow => machine.pace.set_delay_max(self.shared.options.pool_delay_max),
            Trouble::Hung => machine.pace.release(),
            Trouble::Paused => {
                if let State::Up { tasks, .. } = &machine.state {
                    tasks.resume();
                }
            }
        }
        machine.relieve(trouble);
    }

    /// Whether a machine has been up, untroubled and unharmed since `since`.
    pub fn is_quiet(&self, node: usize, since: Instant) -> bool {
        let machines = self.shared.machines.lock();
        let machine = &machines[node];
        matches!(machine.state, State::Up { .. })
            && machine.troubles.is_empty()
            && machine.quiet_since <= since
    }

    /// Whether a machine's disk was seen to vote at `since` or later.
    pub fn has_voted_since(&self, node: usize, since: Instant) -> bool {
        if self.up(node).is_some_and(|(member, _)| member.health().voting) {
            return true;
        }
        let machines = self.shared.machines.lock();
        let machine = &machines[node];
        // One that is stopping serves its peers until its engine is closed.
        let is_stopping = matches!(machine.state, State::Stopping);
        machine.voted.is_some_and(|voted| is_stopping || voted >= since)
    }

    /// Whether a machine's disk was seen to vote all the time since `since`.
    pub fn has_voted_all_since(&self, node: usize, since: Instant) -> bool {
        self.shared.machines.lock()[node].votes_since.is_some_and(|from| from <= since)
    }

    /// Whether a machine's disk lost something at `since` or later.
    pub fn was_damaged_since(&self, node: usize, since: Instant) -> bool {
        self.shared.machines.lock()[node].damaged.is_some_and(|damaged| damaged >= since)
    }

    /// Notes that a disk lost something that was synced.
    pub fn note_damage(&self, node: usize) {
        self.shared.machines.lock()[node].damaged = Some(Instant::now());
        self.forget_writes_of_all();
        // A rebuild reads as many peers as hold what was acknowledged; what was not may be on one that it does not read.
        let majority = self.shared.options.shape.replicas() / 2 + 1;
        let is_weak = |outcome: Outcome, needed: usize, sloppy: bool| match outcome {
            Outcome::Acknowledged { .. } => sloppy || needed < majority,
            Outcome::NotSent => false,
            Outcome::Seen(_) | Outcome::Unknown => true,
        };
        let weak: Vec<usize> = self
            .shared
            .history
            .operations()
            .into_iter()
            .filter(|write| write.action != Action::Get)
            .filter(|write| is_weak(write.outcome, write.quorum.needed, write.quorum.sloppy))
            .map(|write| write.key)
            .collect();
        self.shared.uneven.lock().keys.extend(weak);
    }

    /// The nodes that hold a key.
    pub fn replicas_of(&self, key: usize) -> Vec<usize> {
        replicas_of(&self.shared.ring, &key_of(key))
    }

    /// Notes that a write begins.
    pub fn note_write(&self, node: usize, keys: Vec<usize>) {
        let mut uneven = self.shared.uneven.lock();
        let oldest = Instant::now() - self.longest_write().min(Instant::now() - self.shared.begun);
        while uneven.writes.front().is_some_and(|(begun, ..)| *begun < oldest) {
            uneven.writes.pop_front();
        }
        uneven.writes.push_back((Instant::now(), node, keys));
    }

    /// Notes that any key may differ between its replicas.
    pub fn uneven_everywhere(&self, why: &str) {
        let mut uneven = self.shared.uneven.lock();
        if uneven.all.is_none() {
            trace!(self.shared.trace, "replicas of any key may differ: {why}");
            uneven.all = Some(why.to_owned());
        }
    }

    /// Whether the replicas of a key may differ until it is read.
    pub fn may_be_uneven(&self, key: usize) -> bool {
        let uneven = self.shared.uneven.lock();
        uneven.all.is_some() || uneven.keys.contains(&key)
    }

    /// How long a coordinator may be busy with a write: until stragglers have hints.
    fn longest_write(&self) -> Duration {
        self.shared.options.shape.timeout_max() * 3 + Duration::from_secs(2)
    }

    /// A coordinator is gone, and with it the hints that it had not stored yet.
    fn forget_writes_of(&self, node: usize) {
        self.forget_writes(|by| by == node);
    }

    fn forget_writes_of_all(&self) {
        self.forget_writes(|_| true);
    }

    fn forget_writes(&self, is_lost: impl Fn(usize) -> bool) {
        let mut uneven = self.shared.uneven.lock();
        let oldest = Instant::now() - self.longest_write().min(Instant::now() - self.shared.begun);
        let lost: Vec<usize> = uneven
            .writes
            .iter()
            .filter(|(begun, by, _)| is_lost(*by) && *begun >= oldest)
            .flat_map(|(_, _, keys)| keys.iter().copied())
            .collect();
        uneven.keys.extend(lost);
    }

    /// Crashes a node that is up or starting; it starts again after `pause`. Says whether there was one.
    #[allow(clippy::needless_pass_by_value)] // a crash happens once
    pub fn crash(&self, node: usize, crash: Crash, pause: Duration) -> bool {
        let mut machines = self.shared.machines.lock();
        let machine = &mut machines[node];
        let (State::Up { vfs, tasks, .. } | State::Starting { vfs, tasks }) = &machine.state else {
            return false;
        };
        let holds_hints = match &machine.state {
            State::Up { member, .. } => member.health().hints > 0,
            _ => true, // nobody knows
        };
        let is_held_up = machine.troubles.iter().any(|trouble| trouble.holds_up_work());
        let was_held_up = machine.was_troubled && machine.quiet_since + self.longest_write() > Instant::now();
        trace!(
            self.shared.trace,
            "crash of {node} by {crash:?}, {:?} unsynced, pause {pause:?}",
            machine.disk.unsynced()
        );
        vfs.halt();
        self.shared.net.remove(node);
        tasks.abort_all();
        match &crash {
            Crash::Power => machine.disk.crash(&self.shared.rng),
            Crash::Kill => machine.disk.crash_keep_all(),
            Crash::Wipe => {
                machine.disk.wipe();
                machine.dir = PathBuf::from(real_node::DIR);
            }
            Crash::Replace(other) => machine.disk.replace_by(other),
        }
        machine.relieve(Trouble::Paused);
        machine.relieve(Trouble::Failing);
        machine.quiet_since = Instant::now();
        machine.votes_since = None;
        let gone = std::mem::replace(&mut machine.state, State::Down { until: Instant::now() + pause });
        drop(machines);
        self.forget_writes_of(node);
        if crash.is_damage() {
            self.note_damage(node);
            if holds_hints {
                self.uneven_everywhere("hints were lost with a disk");
            }
        } else if is_held_up || was_held_up {
            self.uneven_everywhere("a node crashed that had held up its writes");
        }
        drop(gone); // what the node's parts do when they are dropped finds no lock held
        true
    }

    /// Stops a node in good order, unless it is in trouble; it starts again after `pause`.
    pub async fn restart(&self, node: usize, pause: Duration) {
        let (is_troubled, was_troubled) = {
            let machines = self.shared.machines.lock();
            (!machines[node].troubles.is_empty(), machines[node].was_troubled)
        };
        if is_troubled {
            return;
        }
        let Some(tasks) = self.stop(node).await else { return };
        trace!(self.shared.trace, "stopped {node}, pause {pause:?}");
        tasks.abort_all();
        if was_troubled {
            self.uneven_everywhere("a node was stopped that had held up its writes");
        }
        let mut machines = self.shared.machines.lock();
        machines[node].disk.crash_keep_all();
        machines[node].state = State::Down { until: Instant::now() + pause };
    }

    /// Stops a node in good order, for good.
    pub async fn stop_for_good(&self, node: usize) {
        self.stop(node).await;
    }

    async fn stop(&self, node: usize) -> Option<Tasks> {
        let (vfs, tasks, member) = {
            let mut machines = self.shared.machines.lock();
            let machine = &mut machines[node];
            match std::mem::replace(&mut machine.state, State::Stopping) {
                State::Up { vfs, tasks, member } => {
                    machine.quiet_since = Instant::now();
                    machine.votes_since = None;
                    (vfs, tasks, member)
                }
                other => {
                    machine.state = other;
                    return None;
                }
            }
        };
        trace!(self.shared.trace, "stop of {node}");
        if timeout(STOP_PATIENCE, member.stop()).await.is_err() {
            self.wrong(format!("node {node} did not stop within {STOP_PATIENCE:?}"));
        }
        vfs.halt();
        self.shared.net.remove(node);
        let machine = &mut self.shared.machines.lock()[node];
        machine.voted = machine.voted.map(|_| Instant::now()); // its engine served until now
        Some(tasks)
    }

    /// Starts what is due, and restarts what is poisoned, for ever.
    pub async fn supervise(self) {
        loop {
            sleep(Duration::from_millis(20)).await;
            for node in 0..self.len() {
                let due = matches!(self.shared.machines.lock()[node].state, State::Down { until } if until <= Instant::now());
                if due {
                    self.start(node);
                }
                let Some((member, _)) = self.up(node) else { continue };
                let health = member.health();
                let begins_to_vote = {
                    let machine = &mut self.shared.machines.lock()[node];
                    let now = health.voting.then(Instant::now);
                    let begins = health.voting && machine.votes_since.is_none();
                    machine.voted = now.or(machine.voted);
                    machine.votes_since = now.and(machine.votes_since).or(now);
                    begins
                };
                if begins_to_vote {
                    checks::standing(&self, node);
                }
                if health.hints_dropped > 0 {
                    self.uneven_everywhere("hints were dropped");
                }
                if health.poisoned {
                    let pause = Duration::from_millis(self.shared.rng.below(50..1500));
                    self.crash(node, Crash::Power, pause);
                }
            }
        }
    }

    fn start(&self, node: usize) {
        let tasks = Tasks::abortable();
        let (life, start) = {
            let mut machines = self.shared.machines.lock();
            let machine = &mut machines[node];
            machine.life += 1;
            let vfs = FaultVfs::new(Arc::new(machine.disk.boot()));
            machine.state = State::Starting { vfs: vfs.clone(), tasks: tasks.clone() };
            let rng = self.shared.rng.fork();
            let env = Env {
                fs: Arc::new(vfs),
                clock: machine.clock.clone(),
                pool: Pool::simulated_at(tasks.clone(), rng.fork(), machine.pace.clone()),
                rng,
                tasks: tasks.clone(),
                planted: self.shared.planted,
            };
            let transport = self.shared.net.transport(node);
            let (options, dir) = (self.shared.options.clone(), machine.dir.clone());
            (machine.life, Start { node, dir, options, env, transport })
        };
        trace!(self.shared.trace, "start of {node}, life {life}");
        let world = self.clone();
        let starting = (self.shared.starter)(start);
        tasks.clone().spawn(async move {
            let started = timeout(START_PATIENCE, starting).await;
            world.started(node, life, started.unwrap_or_else(|_| Err("timed out".to_owned())));
        });
    }

    fn started(&self, node: usize, life: u64, started: Result<Arc<dyn Member>, String>) {
        let mut machines = self.shared.machines.lock();
        let machine = &mut machines[node];
        let State::Starting { vfs, tasks } = machine.state.clone() else { return };
        if machine.life != life {
            return;
        }
        match started {
            Ok(member) => {
                trace!(self.shared.trace, "{node} is up, offset {} µs", machine.clock.offset());
                machine.failed_starts = 0;
                machine.quiet_since = Instant::now();
                machine.was_troubled = false;
                self.shared.net.serve(node, member.handler(), tasks.clone());
                machine.state = State::Up { vfs, tasks, member };
            }
            Err(why) => {
                trace!(self.shared.trace, "{node} did not start: {why}");
                machine.failed_starts += 1;
                machine.last_failure = why;
                vfs.halt();
                self.shared.net.remove(node);
                machine.disk.crash_keep_all();
                machine.state = State::Down { until: Instant::now() + Duration::from_millis(300) };
            }
        }
    }

    /// Why a node fails to start, if it has failed more than `times` in a row.
    pub fn start_failure(&self, node: usize, times: u32) -> Option<String> {
        let machines = self.shared.machines.lock();
        (machines[node].failed_starts > times).then(|| machines[node].last_failure.clone())
    }
}

impl Machine {
    fn trouble(&mut self, trouble: Trouble) {
        self.troubles.insert(trouble);
        self.quiet_since = Instant::now();
    }

    fn relieve(&mut self, trouble: Trouble) {
        if self.troubles.remove(&trouble) {
            self.quiet_since = Instant::now();
            self.was_troubled |= trouble.holds_up_work();
        }
    }
}
