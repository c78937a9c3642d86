//! The storage engine on its own, without a cluster: open, write, read, scan, check the figures, back up.
//!
//! ```text
//! cargo run --example embedded [directory]
//! ```

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use kvstore::engine::{Engine, Options, WriteBatch};
use kvstore::env::Env;
use kvstore::hlc::Hlc;
use kvstore::types::{Key, KeyRange, Value};

fn main() -> Result<(), Box<dyn Error>> {
    let dir = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| "./data/embedded".to_owned()));

    // Env is the world outside: disk, wall clock, threads, chance. Tests hand in another one.
    let env = Env::real();
    let (engine, recovery) = Engine::open(&env, &dir, Options::default())?;
    println!(
        "opened {}: {} tables, {} frames replayed",
        dir.display(),
        recovery.tables,
        recovery.frames_replayed
    );

    // Every write carries a timestamp, and the highest one wins, whenever it arrives. A hybrid logical clock gives
    // timestamps that rise even if the wall clock was set back; it must start beyond what the directory holds.
    let hlc = Hlc::unlimited(env.clock.clone(), Duration::from_millis(500));
    hlc.recover(recovery.newest);

    // When `put` returns, the value is on disk.
    let city = Key::new("city:AT:2761369")?;
    engine.put(city.clone(), Value::new("Vienna"), hlc.tick()?)?;
    println!("{city:?} = {:?}", engine.get(&city)?.as_ref().and_then(|record| record.as_value()));

    // A batch is recovered whole or not at all.
    let mut batch = WriteBatch::default();
    for (id, name) in [("2643743", "London"), ("2655603", "Birmingham"), ("2650225", "Edinburgh")] {
        batch.put(Key::new(format!("city:GB:{id}"))?, Value::new(name), hlc.tick()?);
    }
    engine.write(batch)?;

    // A delete is a record, too: it hides what is older, also what arrives later. Scans show it.
    engine.delete(Key::new("city:GB:2655603")?, hlc.tick()?)?;
    for item in engine.scan(&KeyRange::prefix(b"city:GB:")) {
        let (key, record) = item?;
        match record.as_value() {
            Some(value) => println!("{key:?} = {value:?}"),
            None => println!("{key:?} was deleted"),
        }
    }

    // From memory to sorted tables, and the tables into the last level. Both happen by themselves, too.
    engine.flush()?;
    engine.compact()?;
    let stats = engine.stats();
    println!(
        "{} batches, {} syncs, {} flushes; tables in each level: {:?}",
        stats.batches_written, stats.wal_syncs, stats.flushes, stats.level_files
    );

    // A consistent copy, by hard links: an engine's directory of its own.
    let copy = dir.with_extension(format!("copy-{}", hlc.now()));
    engine.checkpoint(&copy)?;
    engine.close()?;
    let (copied, _) = Engine::open(&env, &copy, Options::default())?;
    println!("the copy in {} says {:?}", copy.display(), copied.get(&city)?);
    copied.close()?;
    Ok(())
}
