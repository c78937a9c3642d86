//! The machines: each with a disk, a clock and a node that is started, stopped, crashed and started again.

use std::sync::Arc;
use std::time::Duration;

use kvstore::env::vfs_fault::{Operation, Verdict};
use kvstore::env::{Clock as _, Env, FaultVfs, MemVfs, Planted, Pool, Rng, Tasks};
use kvstore::types::{NodeId, Timestamp};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout};

use super::clock::SimClock;
use super::history::History;
use super::member::{Member, Start, Starter};
use super::net::SimNet;
use super::run::Options;
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
    planted: Planted,
    starter: Starter,
    /// A clock that is always right.
    truth: SimClock,
    machines: Mutex<Vec<Machine>>,
    wrong: Mutex<Vec<String>>,
}

struct Machine {
    disk: MemVfs,
    clock: Arc<SimClock>,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// The machine loses power: any subset of what is unsynced survives.
    Power,
    /// The process is killed: all it wrote survives.
    Kill,
    /// The machine loses power and the disk is replaced by an empty one.
    Wipe,
}

impl World {
    /// A world whose machines are all down and due to start at once.
    pub fn new(options: &Options, planted: Planted, starter: Starter) -> Self {
        let rng = Rng::from_seed(options.seed);
        let trace = Trace::new();
        let names =
            (0..options.nodes).map(|node| NodeId::from_canonical(&format!("10.0.0.{}:8081", node + 1)));
        let start = Instant::now();
        let machines = (0..options.nodes).map(|_| Machine {
            disk: MemVfs::new(),
            clock: Arc::new(SimClock::right(start)),
            state: State::Down { until: start },
            life: 0,
            failed_starts: 0,
            last_failure: String::new(),
        });
        let machines = Mutex::new(machines.collect());
        Self {
            shared: Arc::new(Shared {
                net: SimNet::new(names.collect(), rng.fork(), trace.clone()),
                options: options.clone(),
                rng,
                trace,
                history: History::default(),
                planted,
                starter,
                truth: SimClock::right(start),
                machines,
                wrong: Mutex::default(),
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
        self.shared.options.nodes
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

    /// Makes operations of a node's disk fail by a rule, until its next start.
    pub fn fail_disk(&self, node: usize, rule: impl FnMut(&Operation<'_>) -> Verdict + Send + 'static) {
        if let State::Up { vfs, .. } | State::Starting { vfs, .. } = &self.shared.machines.lock()[node].state
        {
            vfs.set_rule(rule);
        }
    }

    /// Lets every disk work again.
    pub fn mend_disks(&self) {
        for machine in self.shared.machines.lock().iter() {
            if let State::Up { vfs, .. } | State::Starting { vfs, .. } = &machine.state {
                vfs.clear_rule();
            }
        }
    }

    /// Crashes a node that is up or starting; it starts again after `pause`. Says whether there was one.
    pub fn crash(&self, node: usize, crash: Crash, pause: Duration) -> bool {
        let mut machines = self.shared.machines.lock();
        let machine = &mut machines[node];
        let (State::Up { vfs, tasks, .. } | State::Starting { vfs, tasks }) = &machine.state else {
            return false;
        };
        trace!(
            self.shared.trace,
            "crash of {node} by {crash:?}, {:?} unsynced, pause {pause:?}",
            machine.disk.unsynced()
        );
        vfs.halt();
        self.shared.net.remove(node);
        tasks.abort_all();
        match crash {
            Crash::Power => machine.disk.crash(&self.shared.rng),
            Crash::Kill => machine.disk.crash_keep_all(),
            Crash::Wipe => machine.disk.wipe(),
        }
        let gone = std::mem::replace(&mut machine.state, State::Down { until: Instant::now() + pause });
        drop(machines);
        drop(gone); // what the node's parts do when they are dropped finds no lock held
        true
    }

    /// Stops a node in good order; it starts again after `pause`.
    pub async fn restart(&self, node: usize, pause: Duration) {
        let stopping = {
            let mut machines = self.shared.machines.lock();
            let machine = &mut machines[node];
            match std::mem::replace(&mut machine.state, State::Stopping) {
                State::Up { vfs, tasks, member } => Some((vfs, tasks, member)),
                other => {
                    machine.state = other;
                    None
                }
            }
        };
        let Some((vfs, tasks, member)) = stopping else { return };
        trace!(self.shared.trace, "stop of {node}");
        if timeout(STOP_PATIENCE, member.stop()).await.is_err() {
            self.wrong(format!("node {node} did not stop within {STOP_PATIENCE:?}"));
        }
        trace!(self.shared.trace, "stopped {node}, pause {pause:?}");
        vfs.halt();
        self.shared.net.remove(node);
        tasks.abort_all();
        drop(member);
        let mut machines = self.shared.machines.lock();
        machines[node].disk.crash_keep_all();
        machines[node].state = State::Down { until: Instant::now() + pause };
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
                if let Some((member, _)) = self.up(node)
                    && member.health().poisoned
                {
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
            let vfs = FaultVfs::new(Arc::new(machine.disk.clone()));
            machine.state = State::Starting { vfs: vfs.clone(), tasks: tasks.clone() };
            let rng = self.shared.rng.fork();
            let env = Env {
                fs: Arc::new(vfs),
                clock: machine.clock.clone(),
                pool: Pool::simulated(tasks.clone(), rng.fork(), self.shared.options.pool_delay_max),
                rng,
                tasks: tasks.clone(),
                planted: self.shared.planted,
            };
            let transport = self.shared.net.transport(node);
            (machine.life, Start { node, options: self.shared.options.clone(), env, transport })
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
