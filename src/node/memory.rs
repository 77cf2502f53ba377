//! How much memory this process may use, and what it gives back.

use crate::telemetry::Metrics;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// What is assumed where the system does not say.
const UNKNOWN: usize = 1 << 30;

/// The default of `--memory-budget`: half of what the process may use. The other half is for what no peer decides: code,
/// tasks, the kernel's socket buffers, which count against a unit's `MemoryMax=`, and what the allocator cannot give back.
pub(super) fn default_budget() -> usize {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = [total(&meminfo), group_limit(&groups)].into_iter().flatten();
    limits.min().unwrap_or(UNKNOWN) / 2
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
fn total(meminfo: &str) -> Option<usize> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}

/// The lowest limit of the process' control group (version 2) and those above it.
fn group_limit(groups: &str) -> Option<usize> {
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let limit = |path: &Path| {
        let file = Path::new("/sys/fs/cgroup").join(path).join("memory.max");
        std::fs::read_to_string(file).ok()?.trim().parse::<usize>().ok()
    };
    Path::new(group).ancestors().filter_map(limit).min()
}

/// How often it is looked whether many connections have gone.
const LOOK: Duration = Duration::from_secs(5);

/// How many looks in a row give memory back then.
const LOOKS: u32 = 8;

/// So many connections have to be gone before the allocator is asked, which takes some milliseconds.
const GONE: i64 = 50;

/// Gives memory back to the system after a crowd has left: what was in small pieces stays with the allocator otherwise.
pub(super) async fn trim_after_crowds(metrics: Arc<Metrics>) {
    let (mut most, mut looks_left) = (0, 0);
    let mut looks = tokio::time::interval(LOOK);
    loop {
        looks.tick().await;
        let now = metrics.connections.get();
        most = most.max(now);
        if now + GONE <= most && now <= most / 2 {
            // Some of it is let go a moment later: rings of streams in their grace time, say.
            (most, looks_left) = (now, LOOKS);
        }
        if looks_left > 0 {
            looks_left -= 1;
            // Not on a thread that serves streams.
            drop(tokio::task::spawn_blocking(trim).await);
        }
    }
}

fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number, and gives back only what is free.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_is_read() {
        assert_eq!(total("MemFree: 1 kB\nMemTotal:       24 kB\n"), Some(24 << 10));
        assert_eq!(total("MemTotal: much\n"), None);
        assert!(default_budget() >= 16 << 20);
    }
}
