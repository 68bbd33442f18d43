//! The metrics of this process, by the names that Prometheus' client libraries share:
//! <https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>.
//!
//! Sources: proc(5), clock_gettime(2), getrlimit(2). What can't be had has no sample.

use std::{fs, sync::LazyLock};

use nix::{
    sys::resource::{RLIM_INFINITY, Resource, getrlimit},
    time::{ClockId, clock_gettime},
};

use super::metrics::Families;

/// The unit of times in `/proc`: `USER_HZ`, on every architecture that Rust has Linux for.
const TICKS_PER_SECOND: f64 = 100.0;

/// Kept, so that a clock that is set doesn't look like a restart.
static STARTED_UNIX_S: LazyLock<Option<f64>> = LazyLock::new(started);

/// Adds the families.
pub fn families(families: &mut Families) {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut gauge = |name, help, value: Option<f64>| {
        let mut samples = families.gauge(name, help);
        if let Some(value) = value {
            samples.add(&[], value);
        }
    };
    gauge(
        "process_resident_memory_bytes",
        "Memory of the process that is in RAM.",
        bytes(&status, "VmRSS:"),
    );
    gauge(
        "process_virtual_memory_bytes",
        "Memory that the process has addresses for.",
        bytes(&status, "VmSize:"),
    );
    gauge(
        "process_open_fds",
        "File descriptors that are open.",
        open_files(),
    );
    gauge(
        "process_max_fds",
        "File descriptors that may be open.",
        files_max(),
    );
    gauge(
        "process_start_time_seconds",
        "When the process started; Unix time.",
        *STARTED_UNIX_S,
    );
    let help = "CPU time of the process, in user space and in the kernel.";
    let mut cpu = families.counter("process_cpu_seconds_total", help);
    if let Ok(time) = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID) {
        cpu.add(&[], std::time::Duration::from(time).as_secs_f64());
    }
}

/// A line of `/proc/self/status`, in kB there.
fn bytes(status: &str, name: &str) -> Option<f64> {
    let mut lines = status.lines();
    let value = lines.find_map(|line| line.strip_prefix(name))?;
    let kib: f64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0)
}

fn open_files() -> Option<f64> {
    let files = fs::read_dir("/proc/self/fd").ok()?;
    let count = u32::try_from(files.count()).ok()?;
    // One of them is the directory.
    Some(f64::from(count.saturating_sub(1)))
}

fn files_max() -> Option<f64> {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    #[expect(clippy::cast_precision_loss, reason = "Prometheus values are floats")]
    let max = soft as f64;
    (soft != RLIM_INFINITY).then_some(max)
}

fn started() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let system = fs::read_to_string("/proc/stat").ok()?;
    let mut lines = system.lines();
    let booted = lines.find_map(|line| line.strip_prefix("btime "))?;
    let booted: f64 = booted.trim().parse().ok()?;
    // Field 22; the second one, the name, ends with the last parenthesis.
    let (_, after_name) = stat.rsplit_once(')')?;
    let ticks: f64 = after_name.split_whitespace().nth(19)?.parse().ok()?;
    Some(booted + ticks / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        time::{SystemTime, UNIX_EPOCH},
    };

    use super::*;

    fn values() -> impl Fn(&str) -> f64 {
        let mut page = Families::default();
        families(&mut page);
        let text = page.encode().expect("encodes");
        move |name| {
            let mut lines = text.lines();
            let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            value
                .unwrap_or_else(|| panic!("no {name} in {text}"))
                .parse()
                .expect("a number")
        }
    }

    #[test]
    fn the_process_is_measured() {
        let before = values();
        let opened: Vec<_> = (0..100)
            .map(|_| File::open("/dev/null").expect("it is there"))
            .collect();
        let mut held = vec![0_u8; 64 << 20];
        held.iter_mut().for_each(|byte| *byte = 1);
        let after = values();
        let grown = |name: &str| after(name) - before(name);
        // Other tests open and close files meanwhile, but not so many.
        assert!(grown("process_open_fds") > 50.0);
        assert!(after("process_open_fds") < after("process_max_fds"));
        assert!(grown("process_resident_memory_bytes") > f64::from(32 << 20));
        let resident = after("process_resident_memory_bytes");
        assert!(resident < after("process_virtual_memory_bytes"));
        let cpu = grown("process_cpu_seconds_total");
        assert!(cpu > 0.0 && cpu < 600.0, "{cpu}");
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let age = now.expect("after 1970").as_secs_f64() - after("process_start_time_seconds");
        assert!((-2.0..3600.0).contains(&age), "{age}");
        assert_eq!(grown("process_start_time_seconds"), 0.0);
        drop((opened, held));
    }
}
