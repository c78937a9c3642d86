//! What the process takes of the machine, under the names that Prometheus's client libraries have for it.
#![allow(clippy::disallowed_methods)] // the machine's own figures, read from the machine; no part of a node's work

use std::fmt::Write as _;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// Processor time that the process has used since it started.
pub fn cpu() -> Duration {
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(cpu.tv_sec as u64, cpu.tv_nsec as u32)
}

/// Bytes of memory that the process has in the machine's; `None` where the system does not say.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    Some(kib << 10)
}

/// File descriptors that the process has open; `None` where the system does not say.
fn open_descriptors() -> Option<u64> {
    let listed = std::fs::read_dir("/proc/self/fd").ok()?;
    Some(listed.count().saturating_sub(1) as u64) // the listing has one too
}

/// Appends all of it as Prometheus text.
pub fn render(out: &mut String) {
    let mut line = |name: &str, kind: &str, help: &str, value: &dyn std::fmt::Display| {
        // Writing to memory does not fail.
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
    };
    line(
        "process_cpu_seconds_total",
        "counter",
        "Processor time used, all threads together.",
        &cpu().as_secs_f64(),
    );
    if let Some(bytes) = resident_bytes() {
        line("process_resident_memory_bytes", "gauge", "Memory in use.", &bytes);
    }
    if let Some(open) = open_descriptors() {
        line("process_open_fds", "gauge", "File descriptors open.", &open);
    }
    if let Some(most) = getrlimit(Resource::Nofile).current {
        line("process_max_fds", "gauge", "File descriptors allowed.", &most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_says_what_this_process_takes() {
        let mut text = String::new();
        render(&mut text);
        let value = |name: &str| -> f64 {
            let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).expect(name);
            line.rsplit(' ').next().unwrap().parse().unwrap()
        };
        assert!(value("process_cpu_seconds_total") > 0.0);
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_max_fds") > value("process_open_fds"));
    }
}
