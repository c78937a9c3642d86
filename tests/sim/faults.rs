//! The storm: faults at random moments, of the classes that a seed has switched on.
//!
//! A replica whose disk is wiped or rotten is *damaged* until it votes again; there is never more than one, since
//! W = 2 of N = 3 promises no more. Crashes that lose only what was not synced are no damage.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use kvstore::engine::files::LogFile;
use kvstore::env::vfs::read_file;
use kvstore::env::vfs_fault::{Op, Verdict};
use kvstore::env::{MemVfs, Rng, Vfs as _};
use tokio::time::{Instant, sleep};

use super::net::Weather;
use super::real_node;
use super::world::{Crash, World};
use crate::trace;

/// Which classes of faults there are in a run.
#[derive(Debug, Clone)]
pub struct Faults {
    /// One machine loses power, or its process is killed.
    pub crashes: bool,
    /// All machines lose power at once.
    pub power_cuts: bool,
    /// A write or sync fails, once or from then on.
    pub sync_failures: bool,
    /// Nodes that cannot reach each other.
    pub partitions: bool,
    /// Nodes that can reach another, but not the other way.
    pub one_way: bool,
    /// Clocks that are off by less than is forgiven.
    pub clock_offsets: bool,
    /// Clocks that run too fast or too slow.
    pub clock_drift: bool,
    /// Clocks that jump, by more than is forgiven too.
    pub clock_jumps: bool,
    /// Disks replaced by empty ones.
    pub wipes: bool,
    /// Nodes stopped in good order and started again, all in turn.
    pub restarts: bool,
    /// Bytes of a log that change on the disk.
    pub rot: bool,
    /// A node whose disk was wiped crashes again before it can be whole.
    pub crash_in_rebuild: bool,
    /// A node is restarted with its clock set back, among peers that have not heard of what it did before.
    pub turn_backs: bool,
    /// A node's disk is wiped, and the node is left alone with the one that missed what it had.
    pub wipes_apart: bool,
    /// How messages fare.
    pub weather: Weather,
    /// The longest pause between two faults.
    pub gap_max: Duration,
    /// The longest that a machine stays down.
    pub down_max: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Crash,
    PowerCut,
    SyncFailure,
    Partition,
    OneWay,
    ClockJump,
    Wipe,
    Restarts,
    Rot,
    TurnBack,
    WipeApart,
}

impl Faults {
    /// Tosses a coin for every class.
    pub fn swarm(rng: &Rng) -> Self {
        let coin = || rng.chance(0.5);
        Self {
            crashes: rng.chance(0.7),
            power_cuts: coin(),
            sync_failures: coin(),
            partitions: coin(),
            one_way: coin(),
            clock_offsets: coin(),
            clock_drift: coin(),
            clock_jumps: rng.chance(0.3),
            wipes: coin(),
            restarts: coin(),
            rot: rng.chance(0.3),
            crash_in_rebuild: rng.chance(0.2),
            turn_backs: false,
            wipes_apart: false,
            weather: Weather {
                delay_max: Duration::from_millis([2, 10, 40][rng.below(0..3) as usize]),
                slow: [0.0, 0.01, 0.1][rng.below(0..3) as usize],
                slow_max: Duration::from_millis(rng.below(50..3000)),
                lost: [0.0, 0.01, 0.1][rng.below(0..3) as usize],
                repeated: [0.0, 0.05][rng.below(0..2) as usize],
            },
            gap_max: Duration::from_millis(rng.below(2000..12_000)),
            down_max: Duration::from_millis(rng.below(200..4000)),
        }
    }

    /// No faults at all.
    #[cfg(feature = "planted-mistakes")]
    pub fn none() -> Self {
        Self {
            crashes: false,
            power_cuts: false,
            sync_failures: false,
            partitions: false,
            one_way: false,
            clock_offsets: false,
            clock_drift: false,
            clock_jumps: false,
            wipes: false,
            restarts: false,
            rot: false,
            crash_in_rebuild: false,
            turn_backs: false,
            wipes_apart: false,
            weather: Weather::fair(),
            gap_max: Duration::from_secs(1),
            down_max: Duration::from_secs(1),
        }
    }

    fn classes(&self) -> Vec<Class> {
        let classes = [
            (self.crashes, Class::Crash),
            (self.power_cuts, Class::PowerCut),
            (self.sync_failures, Class::SyncFailure),
            (self.partitions, Class::Partition),
            (self.one_way, Class::OneWay),
            (self.clock_jumps, Class::ClockJump),
            (self.wipes, Class::Wipe),
            (self.restarts, Class::Restarts),
            (self.rot, Class::Rot),
            (self.turn_backs, Class::TurnBack),
            (self.wipes_apart, Class::WipeApart),
        ];
        classes.into_iter().filter(|(on, _)| *on).map(|(_, class)| class).collect()
    }
}

struct Storm {
    world: World,
    rng: Rng,
    end: Instant,
    /// A replica that has lost synced bytes, and which start of it may be the one that mends it.
    damaged: Option<(usize, u64)>,
}

/// Makes faults until `end`.
pub async fn storm(world: World, end: Instant) {
    let faults = world.shared.options.faults.clone();
    let rng = world.shared.rng.fork();
    set_clocks(&world, &faults, &rng);
    world.shared.net.set_weather(faults.weather);
    let classes = faults.classes();
    let mut storm = Storm { world, rng, end, damaged: None };
    loop {
        let gap = storm.draw(faults.gap_max);
        if Instant::now() + gap >= end || classes.is_empty() {
            return;
        }
        sleep(gap).await;
        let class = classes[storm.rng.below(0..classes.len() as u64) as usize];
        storm.make(class).await;
    }
}

/// Ends all faults, but for what they broke.
pub fn end(world: &World) {
    world.shared.net.heal();
    world.shared.net.set_weather(Weather::fair());
    world.mend_disks();
    for node in 0..world.len() {
        world.clock(node).set_drift(0);
        world.clock(node).set_offset(0);
    }
}

fn set_clocks(world: &World, faults: &Faults, rng: &Rng) {
    for node in 0..world.len() {
        let clock = world.clock(node);
        if faults.clock_offsets {
            clock.set_offset(rng.below(0..400_000).cast_signed() - 200_000);
        }
        if faults.clock_drift {
            clock.set_drift(rng.below(0..2000).cast_signed() - 1000);
        }
    }
}

impl Storm {
    /// Any time up to `longest`, short ones as often as long ones.
    fn draw(&self, longest: Duration) -> Duration {
        let longest = longest.as_micros() as u64;
        let scale = self.rng.below(0..3);
        Duration::from_micros(self.rng.below(0..(longest >> scale) + 1000))
    }

    fn node(&self) -> usize {
        self.rng.below(0..self.world.len() as u64) as usize
    }

    async fn make(&mut self, class: Class) {
        let down_max = self.world.shared.options.faults.down_max;
        match class {
            Class::Crash => {
                let crash = if self.rng.chance(0.7) { Crash::Power } else { Crash::Kill };
                self.world.crash(self.node(), crash, self.draw(down_max));
            }
            Class::PowerCut => {
                for node in 0..self.world.len() {
                    self.world.crash(node, Crash::Power, self.draw(down_max));
                }
            }
            Class::SyncFailure => self.fail_disk(),
            Class::Partition => self.cut(true),
            Class::OneWay => self.cut(false),
            Class::ClockJump => self.jump(),
            Class::Wipe => self.wipe(down_max),
            Class::Restarts => {
                let first = self.node();
                let nodes = if self.rng.chance(0.5) { self.world.len() } else { 1 };
                for step in 0..nodes {
                    let node = (first + step) % self.world.len();
                    self.world.restart(node, self.draw(down_max)).await;
                    sleep(self.draw(Duration::from_secs(2))).await;
                }
            }
            Class::Rot => self.rot(down_max),
            Class::TurnBack => self.turn_back().await,
            Class::WipeApart => self.wipe_apart().await,
        }
    }

    fn fail_disk(&self) {
        let node = self.node();
        let mut skipped = self.rng.below(0..30);
        let sticky = self.rng.chance(0.3);
        let any_change = self.rng.chance(0.4);
        let kind = if self.rng.chance(0.1) { io::ErrorKind::StorageFull } else { io::ErrorKind::Other };
        trace!(
            self.world.shared.trace,
            "disk of {node} fails after {skipped}, sticky {sticky}, changes {any_change}"
        );
        let mut done = false;
        self.world.fail_disk(node, move |operation| {
            let chosen = if any_change { operation.op.is_change() } else { operation.op.is_sync() };
            if !chosen || operation.op == Op::Lock || (done && !sticky) {
                return Verdict::Pass;
            }
            if skipped > 0 {
                skipped -= 1;
                return Verdict::Pass;
            }
            done = true;
            Verdict::Fail(kind)
        });
    }

    /// Cuts one node off from another or from all, for a while.
    fn cut(&self, both_ways: bool) {
        let node = self.node();
        let one = self.rng.chance(0.5).then(|| (node + 1 + self.rng.below(0..2) as usize) % self.world.len());
        let outward = self.rng.chance(0.5);
        let mut pairs = Vec::new();
        for other in
            (0..self.world.len()).filter(|other| *other != node && one.is_none_or(|one| one == *other))
        {
            if both_ways || outward {
                pairs.push((node, other));
            }
            if both_ways || !outward {
                pairs.push((other, node));
            }
        }
        let lasting = self.draw(Duration::from_secs(6));
        trace!(self.world.shared.trace, "cut {pairs:?} for {lasting:?}");
        let net = self.world.shared.net.clone();
        for (from, to) in &pairs {
            net.set_cut(*from, *to, true);
        }
        tokio::spawn(async move {
            sleep(lasting).await;
            for (from, to) in pairs {
                net.set_cut(from, to, false);
            }
        });
    }

    fn jump(&self) {
        let node = self.node();
        let micros = match self.rng.below(0..4) {
            0 => -self.rng.below(0..3_600_000_000).cast_signed(),
            1 => self.rng.below(0..5_000_000).cast_signed(),
            _ => self.rng.below(0..800_000).cast_signed() - 400_000,
        };
        trace!(self.world.shared.trace, "clock of {node} jumps to {micros} µs");
        self.world.clock(node).set_offset(micros);
    }

    /// Whether one more replica may lose synced bytes: all others must be there and vote.
    fn may_damage(&mut self, node: usize) -> bool {
        if let Some((damaged, life)) = self.damaged {
            let mended = self.world.life(damaged) >= life
                && self.world.up(damaged).is_some_and(|(member, _)| member.health().voting);
            if !mended {
                return false;
            }
            self.damaged = None;
        }
        (0..self.world.len())
            .filter(|other| *other != node)
            .all(|other| self.world.up(other).is_some_and(|(member, _)| member.health().voting))
    }

    fn wipe(&mut self, down_max: Duration) {
        let node = self.node();
        if !self.may_damage(node) {
            return;
        }
        let pause = self.draw(down_max);
        if self.world.crash(node, Crash::Wipe, pause) {
            self.damaged = Some((node, self.world.life(node) + 1));
            if self.world.shared.options.faults.crash_in_rebuild {
                let (world, again) = (self.world.clone(), pause + self.draw(Duration::from_secs(2)));
                let pause = self.draw(down_max);
                let end = self.end;
                tokio::spawn(async move {
                    sleep(again).await;
                    if Instant::now() < end {
                        world.crash(node, Crash::Power, pause);
                    }
                });
            }
        }
    }

    /// Lets one node, its clock ahead, write with a second while the third is away; then cuts its power and its clock
    /// back, and lets it write with the third while the second is away: nobody it meets knows of the last writes
    /// that reached the second alone.
    async fn turn_back(&self) {
        let one = self.node();
        let (second, third) = ((one + 1) % 3, (one + 2) % 3);
        let world = &self.world;
        let set_away = |node: usize, away: bool| {
            for other in (0..3).filter(|other| *other != node) {
                world.shared.net.set_cut(node, other, away);
                world.shared.net.set_cut(other, node, away);
            }
        };
        trace!(world.shared.trace, "turn back of {one}, first without {third}, then without {second}");
        world.clock(one).set_offset(3_000_000);
        set_away(third, true);
        sleep(Duration::from_millis(2500)).await;
        set_away(second, true);
        world.crash(one, Crash::Power, Duration::from_millis(20));
        world.clock(one).set_offset(3_000_000 - self.rng.below(1000..2500).cast_signed() * 1000);
        set_away(third, false);
        world.shared.net.set_cut(second, third, true);
        world.shared.net.set_cut(third, second, true);
        sleep(Duration::from_millis(2500)).await;
        set_away(second, false);
        sleep(Duration::from_secs(4)).await; // true time overtakes what was given
    }

    /// Lets two nodes write while the third is away; then wipes the disk of one and leaves it with the third alone: of what
    /// was written neither has anything, and an empty disk that voted would make them a quorum that knows nothing.
    async fn wipe_apart(&mut self) {
        let one = self.node();
        if !self.may_damage(one) {
            return sleep(Duration::from_millis(500)).await;
        }
        let (second, third) = ((one + 1) % 3, (one + 2) % 3);
        let net = self.world.shared.net.clone();
        let cut = |a: usize, b: usize, away: bool| {
            net.set_cut(a, b, away);
            net.set_cut(b, a, away);
        };
        trace!(self.world.shared.trace, "wipe of {one}, first without {third}, then without {second}");
        cut(third, one, true);
        cut(third, second, true);
        sleep(Duration::from_millis(2500)).await;
        cut(one, second, true);
        if self.world.crash(one, Crash::Wipe, Duration::from_millis(20)) {
            self.damaged = Some((one, self.world.life(one) + 1));
        }
        cut(third, one, false);
        sleep(Duration::from_millis(2500)).await;
        cut(one, second, false);
        cut(third, second, false);
        sleep(Duration::from_secs(4)).await; // for the rebuild
    }

    /// Kills a node and spoils a byte in the middle of its newest log, where a later frame knows that it was synced.
    fn rot(&mut self, down_max: Duration) {
        let node = self.node();
        if !self.may_damage(node) {
            return;
        }
        let pause = self.draw(down_max);
        let disk = self.world.disk(node);
        let Some((path, synced)) = newest_log(&disk) else { return };
        if synced == 0 || !self.world.crash(node, Crash::Kill, pause) {
            return;
        }
        let offset = self.rng.below(0..synced);
        trace!(self.world.shared.trace, "rot in {} of {node} at {offset} of {synced}", path.display());
        disk.flip_byte(&path, offset).expect("the log is there");
        self.damaged = Some((node, self.world.life(node) + 1));
    }
}

/// The newest log of a node's own data, and how much of it its own frames know to be synced.
fn newest_log(disk: &MemVfs) -> Option<(PathBuf, u64)> {
    let dir = Path::new(real_node::DIR).join("data");
    let logs = disk.list(&dir).ok()?.into_iter().filter_map(|name| {
        name.strip_suffix(".log")
            .and_then(|number| number.parse::<u64>().ok())
            .map(|number| (number, name.clone()))
    });
    let (number, name) = logs.max()?;
    let path = dir.join(name);
    let bytes = Bytes::from(read_file(disk, &path).ok()?);
    let synced = LogFile::read(number, &bytes, None).synced_through;
    Some((path, synced))
}
