//! How much memory this process may use, how much it does, and the allocator that hands it out and gives it back to the system.

use crate::budget::Budget;
use crate::telemetry::Metrics;
use std::path::Path;
use std::sync::Arc;

/// It gives what a crowd or an attack left back to the system by itself, in small steps, and counts what is in use without a walk through
/// all that is free. glibc's does neither: both take a lock that whoever allocates waits for.
#[cfg(target_env = "gnu")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// jemalloc(3), TUNING: a thread of its own gives back what has not been used again for a second, also where nobody allocates.
#[cfg(target_env = "gnu")]
#[used]
#[unsafe(export_name = "_rjem_malloc_conf")]
static SETTINGS: &[u8; 60] = b"background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0\0";

/// Where the C library's allocator has one lock for all threads and keeps what was freed in pieces.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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

/// Says how large a budget is, in the log and as a metric, and how much of it is used.
pub(super) fn register(budget: &Arc<Budget>, metrics: &Metrics) -> Result<(), prometheus::Error> {
    tracing::info!(bytes = budget.limit(), "memory budget for what peers make this process hold");
    let (limit, used) = (budget.clone(), budget.clone());
    metrics.look("lb_memory_budget_bytes", "What all peers may make this process hold", move || {
        limit.limit() as u64
    })?;
    metrics.look("lb_memory_budget_used_bytes", "What peers make this process hold now", move || {
        used.used() as u64
    })?;
    // Beside what is resident it tells memory that is in use from memory that the allocator keeps.
    if in_use().is_none() {
        return Ok(());
    }
    metrics.look("lb_memory_allocated_bytes", "What the allocator has handed out", || {
        in_use().unwrap_or_default() as u64
    })
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

/// What the allocator has handed out, in bytes. Nothing where it does not count.
fn in_use() -> Option<usize> {
    #[cfg(target_env = "gnu")]
    {
        use tikv_jemalloc_sys::mallctl;
        // Any number that is written to it brings the counts up to date (jemalloc(3), MALLCTL NAMESPACE).
        let mut epoch = 1_u64;
        let mut bytes = 0_usize;
        let mut len = size_of::<usize>();
        let nowhere = std::ptr::null_mut;
        // SAFETY: it copies as many bytes as it is told from the number that the pointer is to, and keeps neither.
        let stale = unsafe {
            mallctl(
                c"epoch".as_ptr(),
                nowhere(),
                std::ptr::null_mut(),
                (&raw mut epoch).cast(),
                size_of::<u64>(),
            )
        };
        // SAFETY: it writes as many bytes as `len` says, which is what the number has.
        let failed = unsafe {
            mallctl(c"stats.allocated".as_ptr(), (&raw mut bytes).cast(), &raw mut len, nowhere(), 0)
        };
        (stale == 0 && failed == 0).then_some(bytes)
    }
    #[cfg(not(target_env = "gnu"))]
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is resident beyond what is in use, in bytes.
    #[cfg(target_env = "gnu")]
    fn spare() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        let resident = line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() << 10;
        resident.saturating_sub(in_use().unwrap())
    }

    /// Sooner than by the allocator's own settings: ten seconds, and where nobody allocates never.
    #[cfg(target_env = "gnu")]
    #[test]
    fn what_was_free_in_small_pieces_goes_back() {
        use std::time::{Duration, Instant};
        let pieces: Vec<Vec<u8>> = (0..4096).map(|_| vec![1; 60 << 10]).collect();
        // One in a hundred stays: what is between them goes back all the same.
        let kept: Vec<Vec<u8>> = pieces.into_iter().step_by(100).collect();
        let (before, begun) = (spare(), Instant::now());
        assert!(before > 128 << 20, "{before}");
        while spare() > before / 2 {
            assert!(begun.elapsed() < Duration::from_secs(5), "{} of {before} bytes stay", spare());
            std::thread::sleep(Duration::from_millis(50));
        }
        drop(kept);
    }

    #[test]
    fn what_the_system_says_is_read() {
        assert_eq!(total("MemFree: 1 kB\nMemTotal:       24 kB\n"), Some(24 << 10));
        assert_eq!(total("MemTotal: much\n"), None);
        assert!(default_budget() >= 16 << 20);
    }
}
