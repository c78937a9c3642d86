//! The storm: faults at random moments, of the classes that a seed has switched on.
//!
//! A replica whose disk is wiped, rotten, set back or another one's is *damaged* until it votes again; of one key there is
//! never more than one, since W = 2 of N = 3 promises no more. Crashes that lose only what was not synced are no damage.
//!
//! Classes that a seed switches off change nothing else, so that a seed that is wrong can be shrunk by switching off class
//! after class (`sim::shrink`).

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use kvstore::engine::files::LogFile;
use kvstore::env::vfs::read_file;
use kvstore::env::vfs_fault::{Op, Verdict};
use kvstore::env::{MemVfs, Rng, Vfs as _};
use kvstore::node::restore;
use tokio::time::{Instant, sleep};

use super::net::Weather;
use super::real_node::env_of;
use super::world::{Crash, Trouble, World};
use crate::trace;

/// Which classes of faults there are in a run.
#[derive(Debug, Clone, Default, PartialEq)]
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
    /// Disks replaced by empty ones, the next as soon as the one before counts again.
    pub wipes_in_turn: bool,
    /// Nodes stopped in good order and started again, all in turn.
    pub restarts: bool,
    /// Bytes of a log that change on the disk.
    pub rot: bool,
    /// Bytes of a table that change on the disk, of its data or of its hints. What is damaged stays so.
    pub rot_tables: bool,
    /// A node whose disk was damaged crashes again before it can be whole.
    pub crash_in_rebuild: bool,
    /// A node is restarted with its clock set back, among peers that have not heard of what it did before.
    pub turn_backs: bool,
    /// A node's disk is wiped, and the node is left alone with the one that missed what it had.
    pub wipes_apart: bool,
    /// A node's disk is wiped, and for a while the node hears nobody.
    pub wipes_alone: bool,
    /// Of five nodes three write while two are away; then two of the three are wiped, and the third is away.
    pub wipes_of_two: bool,
    /// One clock that is ahead by far more than is forgiven, while all others are right.
    pub far_jumps: bool,
    /// Disks set back to what they held before.
    pub set_backs: bool,
    /// Two machines whose disks change places.
    pub swaps: bool,
    /// Disks replaced by a copy of another machine's.
    pub copies: bool,
    /// A node's directory is restored from a checkpoint of its own.
    pub restores: bool,
    /// Disks without space, for a while.
    pub full_disks: bool,
    /// Disks that take long, for a while.
    pub slow_disks: bool,
    /// Disks that answer nothing, for a while.
    pub hung_disks: bool,
    /// Processes that stand still, for a while.
    pub pauses: bool,
    /// Requests with a W below the majority although disks are lost.
    pub small_w: bool,
    /// Messages are lost and late only now and then, not all the time.
    pub fair_spells: bool,
    /// How messages fare.
    pub weather: Weather,
    /// The longest pause between two faults.
    pub gap_max: Duration,
    /// The longest that a machine stays down.
    pub down_max: Duration,
}

/// How far a clock that is right may be ahead of true time: what is forgiven a peer, and a mark after a restart.
const FOLLOWED_MAX: Duration = Duration::from_millis(1200);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Crash,
    PowerCut,
    SyncFailure,
    Partition,
    OneWay,
    ClockJump,
    Wipe,
    WipeInTurn,
    Restarts,
    Rot,
    RotTable,
    TurnBack,
    WipeApart,
    WipeAlone,
    WipeTwo,
    FarJump,
    SetBack,
    Swap,
    Copy,
    Restore,
    Trouble(Trouble),
}

impl Faults {
    /// Tosses a coin for every class.
    pub fn swarm(rng: &Rng) -> Self {
        let coin = || rng.chance(0.5);
        let seldom = || rng.chance(0.25);
        Self {
            crashes: rng.chance(0.7),
            power_cuts: coin(),
            sync_failures: coin(),
            partitions: coin(),
            one_way: coin(),
            clock_offsets: coin(),
            clock_drift: coin(),
            clock_jumps: seldom(),
            wipes: coin(),
            restarts: coin(),
            rot: seldom(),
            crash_in_rebuild: rng.chance(0.2),
            wipes_in_turn: seldom(),
            full_disks: seldom(),
            slow_disks: seldom(),
            hung_disks: seldom(),
            pauses: seldom(),
            swaps: rng.chance(0.15),
            copies: rng.chance(0.15),
            restores: seldom(),
            set_backs: false, // searched for by the planted bugs only, until long runs have passed with it
            fair_spells: coin(),
            weather: Weather {
                delay_max: Duration::from_millis([2, 10, 40][rng.below(0..3) as usize]),
                slow: [0.0, 0.01, 0.1][rng.below(0..3) as usize],
                slow_max: Duration::from_millis(rng.below(50..3000)),
                lost: [0.0, 0.01, 0.1][rng.below(0..3) as usize],
                repeated: [0.0, 0.05][rng.below(0..2) as usize],
            },
            gap_max: Duration::from_millis(rng.below(2000..12_000)),
            down_max: Duration::from_millis(rng.below(200..4000)),
            ..Self::default()
        }
    }

    /// No faults at all.
    pub fn none() -> Self {
        Self {
            weather: Weather::fair(),
            gap_max: Duration::from_secs(1),
            down_max: Duration::from_secs(1),
            ..Self::default()
        }
    }

    /// Every switch, by name.
    pub fn switches(&mut self) -> Vec<(&'static str, &mut bool)> {
        vec![
            ("crashes", &mut self.crashes),
            ("power_cuts", &mut self.power_cuts),
            ("sync_failures", &mut self.sync_failures),
            ("partitions", &mut self.partitions),
            ("one_way", &mut self.one_way),
            ("clock_offsets", &mut self.clock_offsets),
            ("clock_drift", &mut self.clock_drift),
            ("clock_jumps", &mut self.clock_jumps),
            ("wipes", &mut self.wipes),
            ("wipes_in_turn", &mut self.wipes_in_turn),
            ("restarts", &mut self.restarts),
            ("rot", &mut self.rot),
            ("rot_tables", &mut self.rot_tables),
            ("crash_in_rebuild", &mut self.crash_in_rebuild),
            ("turn_backs", &mut self.turn_backs),
            ("wipes_apart", &mut self.wipes_apart),
            ("wipes_alone", &mut self.wipes_alone),
            ("wipes_of_two", &mut self.wipes_of_two),
            ("far_jumps", &mut self.far_jumps),
            ("set_backs", &mut self.set_backs),
            ("swaps", &mut self.swaps),
            ("copies", &mut self.copies),
            ("restores", &mut self.restores),
            ("full_disks", &mut self.full_disks),
            ("slow_disks", &mut self.slow_disks),
            ("hung_disks", &mut self.hung_disks),
            ("pauses", &mut self.pauses),
            ("small_w", &mut self.small_w),
        ]
    }

    /// Whether disks lose what was synced.
    pub fn damages(&self) -> bool {
        let is_wiped =
            self.wipes || self.wipes_in_turn || self.wipes_apart || self.wipes_alone || self.wipes_of_two;
        is_wiped || self.rots() || self.set_backs || self.swaps || self.copies || self.restores
    }

    /// Whether bytes change on disks.
    pub fn rots(&self) -> bool {
        self.rot || self.rot_tables
    }

    /// Whether clocks go back, or further ahead than is forgiven.
    pub fn moves_clocks(&self) -> bool {
        self.clock_jumps || self.turn_backs || self.far_jumps
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
            (self.wipes_in_turn, Class::WipeInTurn),
            (self.restarts, Class::Restarts),
            (self.rot, Class::Rot),
            (self.rot_tables, Class::RotTable),
            (self.turn_backs, Class::TurnBack),
            (self.wipes_apart, Class::WipeApart),
            (self.wipes_alone, Class::WipeAlone),
            (self.wipes_of_two, Class::WipeTwo),
            (self.far_jumps, Class::FarJump),
            (self.set_backs, Class::SetBack),
            (self.swaps, Class::Swap),
            (self.copies, Class::Copy),
            (self.restores, Class::Restore),
            (self.full_disks, Class::Trouble(Trouble::Full)),
            (self.slow_disks, Class::Trouble(Trouble::Slow)),
            (self.hung_disks, Class::Trouble(Trouble::Hung)),
            (self.pauses, Class::Trouble(Trouble::Paused)),
        ];
        classes.into_iter().filter(|(on, _)| *on).map(|(_, class)| class).collect()
    }
}

/// How old a state of a disk must be before the disk is put back to it: marks lie 0.4 s ahead and are told every 0.2 s.
const SNAPSHOT_AGE_MIN: Duration = Duration::from_secs(1);

struct Storm {
    world: World,
    rng: Rng,
    end: Instant,
    /// Replicas that have lost synced bytes, and which start of each may be the one that mends it.
    damaged: Vec<(usize, u64)>,
    /// Earlier states of disks.
    snapshots: BTreeMap<usize, (Instant, MemVfs, PathBuf)>,
    /// Checkpoints made so far.
    checkpoints: u64,
}

/// Makes faults until `end`.
pub async fn storm(world: World, end: Instant) {
    let faults = world.shared.options.faults.clone();
    let rng = world.shared.rng.fork();
    set_clocks(&world, &faults, &rng);
    world.shared.net.set_weather(faults.weather);
    let classes = faults.classes();
    if faults.fair_spells {
        tokio::spawn(weather_in_spells(world.clone(), rng.fork(), end));
    }
    let (damaged, snapshots) = (Vec::new(), BTreeMap::new());
    let mut storm = Storm { world, rng, end, damaged, snapshots, checkpoints: 0 };
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

/// Fair weather and foul in turn.
async fn weather_in_spells(world: World, rng: Rng, end: Instant) {
    let foul = world.shared.options.faults.weather;
    let fair = Weather { slow: 0.0, lost: 0.0, ..foul };
    loop {
        for (weather, longest) in [(fair, 20_000), (foul, 6_000)] {
            world.shared.net.set_weather(weather);
            sleep(Duration::from_millis(rng.below(500..longest))).await;
            if Instant::now() >= end {
                return;
            }
        }
    }
}

/// Ends all faults, but for what they broke.
pub fn end(world: &World) {
    world.shared.net.heal();
    world.shared.net.set_weather(Weather::fair());
    world.mend_machines();
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
            Class::Partition | Class::OneWay if self.world.len() == 1 => {}
            Class::Partition => self.cut(true),
            Class::OneWay => self.cut(false),
            Class::ClockJump => self.jump(),
            Class::Wipe => {
                let _ = self.damage_one(down_max, |_, _| Some(Crash::Wipe));
            }
            Class::WipeInTurn => self.wipe_in_turn(down_max).await,
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
            Class::RotTable => self.rot_table(),
            Class::TurnBack => self.turn_back().await,
            Class::WipeApart => self.wipe_apart().await,
            Class::WipeAlone => self.wipe_alone().await,
            Class::WipeTwo => self.wipe_two().await,
            Class::FarJump => self.jump_far().await,
            Class::SetBack => self.set_back(down_max),
            Class::Swap => self.swap(down_max),
            Class::Copy => self.copy(down_max),
            Class::Restore => self.restore().await,
            Class::Trouble(trouble) => self.trouble(trouble),
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
        let one = if self.rng.chance(0.5) { self.other_than(node) } else { None };
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

    fn other_than(&self, node: usize) -> Option<usize> {
        let others = self.world.len() as u64 - 1;
        (others > 0).then(|| (node + 1 + self.rng.below(0..others) as usize) % self.world.len())
    }

    /// Whether one more replica may lose synced bytes: all others must be there and vote, and reach each other.
    fn may_damage(&mut self, node: usize) -> bool {
        let world = self.world.clone();
        let votes = |node: usize| world.up(node).is_some_and(|(member, _)| member.health().voting);
        self.damaged.retain(|(damaged, life)| world.life(*damaged) < *life || !votes(*damaged));
        let others = || (0..world.len()).filter(|other| *other != node);
        let damaged = |node: usize| self.damaged.iter().any(|(damaged, _)| *damaged == node);
        let is_another = !damaged(node) && self.damaged.len() < self.damaged_max();
        is_another && world.len() > 1 && others().all(|other| votes(other) || damaged(other))
    }

    /// How many disks may be lost at once: one less than W.
    fn damaged_max(&self) -> usize {
        self.world.shared.options.shape.replicas() / 2
    }

    fn note_damaged(&mut self, node: usize) {
        self.damaged.push((node, self.world.life(node) + 1));
    }

    /// Crashes a node in a way that loses what it had, if another one may be lost; says which.
    fn damage_one(
        &mut self,
        down_max: Duration,
        how: impl FnOnce(&Self, usize) -> Option<Crash>,
    ) -> Option<usize> {
        let node = self.node();
        if !self.may_damage(node) {
            return None;
        }
        let pause = self.draw(down_max);
        let crash = how(self, node)?;
        if !self.world.crash(node, crash, pause) {
            return None;
        }
        self.note_damaged(node);
        self.crash_again(node, pause);
        Some(node)
    }

    /// Cuts the power of a node whose disk was damaged once more, soon after its start.
    fn crash_again(&self, node: usize, pause: Duration) {
        let down_max = self.world.shared.options.faults.down_max;
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

    /// Wipes one disk after the other, each as soon as the one before counts again.
    async fn wipe_in_turn(&mut self, down_max: Duration) {
        for _ in 0..self.world.len().min(3) {
            if self.damage_one(down_max, |_, _| Some(Crash::Wipe)).is_none() {
                return;
            }
            let latest = self.end.min(Instant::now() + Duration::from_secs(15));
            while Instant::now() < latest && !self.is_whole() {
                sleep(Duration::from_millis(50)).await;
            }
        }
    }

    fn is_whole(&self) -> bool {
        let votes = |node: usize| self.world.up(node).is_some_and(|(member, _)| member.health().voting);
        (0..self.world.len()).all(votes)
    }

    /// Remembers what a disk holds, or puts it back to what was remembered.
    fn set_back(&mut self, down_max: Duration) {
        let node = self.node();
        if self.rng.chance(0.4) || !self.snapshots.contains_key(&node) {
            if self.is_whole() {
                trace!(self.world.shared.trace, "snapshot of {node}");
                let state = (Instant::now(), self.world.disk(node).fork(), self.world.dir(node));
                self.snapshots.insert(node, state);
            }
            return;
        }
        // Who remembers more of it than it holds must be there to say so.
        if !self.may_damage(node) || self.world.shared.net.is_cut_anywhere() {
            return;
        }
        // A state that is hardly older than what its peers remember cannot be told from theirs (docs/guarantees.md).
        if self.snapshots.get(&node).is_some_and(|(taken, ..)| taken.elapsed() < SNAPSHOT_AGE_MIN) {
            return;
        }
        let Some((_, before, dir)) = self.snapshots.remove(&node) else { return };
        if self.world.crash(node, Crash::Replace(before), self.draw(down_max)) {
            self.world.set_dir(node, &dir);
            self.note_damaged(node);
        }
    }

    /// Lets two machines change disks.
    fn swap(&mut self, down_max: Duration) {
        let one = self.node();
        let Some(other) = self.other_than(one) else { return };
        if !self.may_damage(one) || !self.may_damage(other) {
            return;
        }
        if !self.damaged.is_empty() {
            return;
        }
        let disk_of = |node: usize| (self.world.disk(node).fork(), self.world.dir(node));
        let (first, second) = (disk_of(one), disk_of(other));
        for (node, (disk, dir)) in [(one, second), (other, first)] {
            if self.world.crash(node, Crash::Replace(disk), self.draw(down_max)) {
                self.world.set_dir(node, &dir);
                self.note_damaged(node);
            }
        }
    }

    /// Puts a copy of another machine's disk in the place of a machine's own.
    fn copy(&mut self, down_max: Duration) {
        let mut dir = None;
        let copied = self.damage_one(down_max, |storm, node| {
            let other = storm.other_than(node)?;
            dir = Some(storm.world.dir(other));
            Some(Crash::Replace(storm.world.disk(other).fork()))
        });
        if let (Some(node), Some(dir)) = (copied, dir) {
            self.world.set_dir(node, &dir);
        }
    }

    /// Makes a checkpoint of a node, and after a while puts its directory back to it.
    async fn restore(&mut self) {
        let node = self.node();
        let Some((member, tasks)) = self.world.up(node) else { return };
        self.checkpoints += 1;
        let name = format!("c{}", self.checkpoints);
        let making = tasks.spawn({
            let name = name.clone();
            async move { member.checkpoint(name).await }
        });
        let made = tokio::time::timeout(Duration::from_secs(10), making).await;
        let from = self.world.dir(node).join("checkpoints").join(&name);
        trace!(self.world.shared.trace, "checkpoint {name} of {node}: {}", matches!(made, Ok(Ok(true))));
        if !matches!(made, Ok(Ok(true))) {
            return;
        }
        sleep(self.draw(Duration::from_secs(5))).await;
        let disk = self.world.disk(node);
        if !disk.exists(&from).unwrap_or(false) || !self.may_damage(node) {
            return;
        }
        if !self.world.crash(node, Crash::Kill, Duration::from_millis(500)) {
            return;
        }
        let to = PathBuf::from(format!("/restored-{name}"));
        let env = env_of(disk, self.world.shared.planted());
        match restore(&env, &from, &to, false, &mut |_, _| {}) {
            Ok(_) => {
                self.world.set_dir(node, &to);
                self.world.note_damage(node);
                self.note_damaged(node);
            }
            Err(error) => self.world.wrong(format!("checkpoint {name} of {node} is not restored: {error}")),
        }
    }

    /// Makes a machine fall short for a while.
    fn trouble(&self, trouble: Trouble) {
        let node = self.node();
        let bytes_left = self.rng.below(0..256 << 10);
        let delay_max = Duration::from_millis(self.rng.below(50..1500));
        let longest = match trouble {
            Trouble::Paused if self.rng.chance(0.1) => 120,
            Trouble::Hung if self.rng.chance(0.1) => 30,
            _ => 8,
        };
        let lasting = self.draw(Duration::from_secs(longest));
        if self.world.trouble(node, trouble, bytes_left, delay_max) {
            let (world, life) = (self.world.clone(), self.world.life(node));
            tokio::spawn(async move {
                sleep(lasting).await;
                // A process that was killed while it stood still is another one now.
                if trouble != Trouble::Paused || world.life(node) == life {
                    world.relieve(node, trouble);
                }
            });
        }
    }

    /// Lets two nodes write while the third is away; then wipes the disk of one of the two and lets it hear nobody: it knows
    /// nothing, and must not count before it has heard a majority.
    async fn wipe_alone(&mut self) {
        let one = self.node();
        if !self.may_damage(one) {
            return sleep(Duration::from_millis(500)).await;
        }
        let (second, third) = ((one + 1) % 3, (one + 2) % 3);
        trace!(
            self.world.shared.trace,
            "wipe of {one} alone, without {third} before, with {third} first after"
        );
        self.cut_both(third, one, true);
        self.cut_both(third, second, true);
        sleep(Duration::from_millis(2500)).await;
        self.cut_both(one, second, true);
        if self.world.crash(one, Crash::Wipe, Duration::from_millis(20)) {
            self.note_damaged(one);
        }
        sleep(Duration::from_millis(1500)).await;
        self.cut_both(third, one, false);
        sleep(Duration::from_millis(2500)).await;
        self.cut_both(one, second, false);
        self.cut_both(third, second, false);
        sleep(Duration::from_secs(4)).await; // for the rebuild
    }

    /// Lets three of five nodes write while two are away; then wipes two of the three and lets them hear the two, who know
    /// nothing of it, and not the third, who alone has it.
    async fn wipe_two(&mut self) {
        let first = self.node();
        let at = |step: usize| (first + step) % 5;
        if !self.is_whole() || !self.damaged.is_empty() {
            return sleep(Duration::from_millis(500)).await;
        }
        trace!(self.world.shared.trace, "wipe of {} and {}", at(0), at(1));
        for writer in 0..3 {
            (3..5).for_each(|away| self.cut_both(at(writer), at(away), true));
        }
        sleep(Duration::from_millis(2500)).await;
        for wiped in 0..2 {
            self.cut_both(at(wiped), at(2), true);
            if self.world.crash(at(wiped), Crash::Wipe, Duration::from_millis(20)) {
                self.note_damaged(at(wiped));
            }
            (3..5).for_each(|away| self.cut_both(at(wiped), at(away), false));
        }
        sleep(Duration::from_secs(4)).await;
        self.world.shared.net.heal();
        sleep(Duration::from_secs(4)).await; // for the rebuild
    }

    /// Sets one clock far ahead and back again; the others must not follow it.
    async fn jump_far(&self) {
        let node = self.node();
        trace!(self.world.shared.trace, "clock of {node} is far ahead");
        self.world.clock(node).set_offset(5_000_000);
        let until = Instant::now() + Duration::from_millis(2500);
        while Instant::now() < until {
            sleep(Duration::from_millis(100)).await;
            for other in (0..self.world.len()).filter(|other| *other != node) {
                let Some((member, _)) = self.world.up(other) else { continue };
                let ahead = member.clock().since(self.world.now());
                if ahead > FOLLOWED_MAX {
                    self.world
                        .wrong(format!("clocks: {other} follows the wrong clock of {node}: {ahead:?} ahead"));
                    break;
                }
            }
        }
        self.world.clock(node).set_offset(0);
        sleep(Duration::from_secs(6)).await; // true time overtakes what was given
    }

    fn cut_both(&self, one: usize, other: usize, away: bool) {
        self.world.shared.net.set_cut(one, other, away);
        self.world.shared.net.set_cut(other, one, away);
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
            self.note_damaged(one);
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
        let Some((path, synced)) = newest_log(&disk, &self.world.dir(node)) else { return };
        if synced == 0 || !self.world.crash(node, Crash::Kill, pause) {
            return;
        }
        let offset = self.rng.below(0..synced);
        trace!(self.world.shared.trace, "rot in {} of {node} at {offset} of {synced}", path.display());
        disk.flip_byte(&path, offset).expect("the log is there");
        self.world.note_damage(node);
        self.note_damaged(node);
        self.crash_again(node, pause);
    }
}

impl Storm {
    /// Spoils a byte of a table of a node that runs.
    fn rot_table(&mut self) {
        let node = self.node();
        if !self.may_damage(node) {
            return;
        }
        let disk = self.world.disk(node);
        let part = if self.rng.chance(0.7) { "data" } else { "hints" };
        let dir = self.world.dir(node).join(part);
        let names = disk.list(&dir).unwrap_or_default();
        let tables: Vec<_> =
            names.iter().filter(|name| Path::new(name).extension().is_some_and(|end| end == "sst")).collect();
        if tables.is_empty() {
            return;
        }
        let path = dir.join(tables[self.rng.below(0..tables.len() as u64) as usize]);
        let Ok(bytes) = read_file(&disk, &path) else { return };
        let offset = self.rng.below(0..bytes.len().max(1) as u64);
        trace!(self.world.shared.trace, "rot in {} of {node} at {offset}", path.display());
        if disk.flip_byte(&path, offset).is_ok() {
            self.world.note_damage(node);
            self.damaged.push((node, u64::MAX)); // nothing mends it
        }
    }
}

/// The newest log of a node's own data, and how much of it its own frames know to be synced.
fn newest_log(disk: &MemVfs, dir: &Path) -> Option<(PathBuf, u64)> {
    let dir = dir.join("data");
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
