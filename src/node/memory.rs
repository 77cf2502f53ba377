//! How much memory this process may use, and what it gives back.

use crate::budget::Budget;
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

/// How often it is looked whether the allocator holds more than it needs.
const LOOK: Duration = Duration::from_secs(2);

/// So much more than what could not be given back last may be held and not in use, as it saves the allocator going to the system: bytes, or
/// this part of what is in use.
const SPARE: usize = 1 << 20;
const SPARE_PART: usize = 8;

/// Gives memory back to the system that was in small pieces: what a crowd or an attack left stays with the allocator
/// otherwise, for as long as one piece in a thousand is in use.
pub(super) async fn give_back() {
    // What is in pages of which a piece is in use, and of stacks: it cannot be given back.
    let mut kept = 0;
    let mut was_much = false;
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(before) = Held::now() else { return };
        kept = kept.min(before.spare);
        let much = before.is_much_beyond(kept);
        // Twice in a row: what comes and goes this moment had better stay.
        if !std::mem::replace(&mut was_much, much) || !much {
            continue;
        }
        // It takes milliseconds: not on a thread that serves streams.
        drop(tokio::task::spawn_blocking(trim).await);
        kept = Held::now().unwrap_or(before).spare;
        was_much = false;
        tracing::debug!(before = before.spare, after = kept, "memory given back to the system");
    }
}

/// What the allocator holds, in bytes.
#[derive(Clone, Copy, Debug)]
struct Held {
    in_use: usize,
    /// What is resident beyond that: free pieces, and the stacks of threads.
    spare: usize,
}

impl Held {
    /// Nothing where neither the system nor the allocator says.
    fn now() -> Option<Self> {
        let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
        // proc(5): resident pages, then those of them that are of files: code, which nobody has allocated.
        let mut pages = statm.split_whitespace().skip(1).map(str::parse::<usize>);
        let (resident, of_files) = (pages.next()?.ok()?, pages.next()?.ok()?);
        // SAFETY: it takes a number and touches nothing.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok()?;
        let in_use = in_use()?;
        Some(Held { in_use, spare: (resident.saturating_sub(of_files) * page).saturating_sub(in_use) })
    }

    /// Whether so much is spare that some of it had better go back; this much of it cannot.
    fn is_much_beyond(&self, kept: usize) -> bool {
        self.spare > kept + SPARE.max(self.in_use / SPARE_PART)
    }
}

/// What the allocator has handed out, in bytes.
fn in_use() -> Option<usize> {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: it takes nothing, and only counts.
        let counted = unsafe { libc::mallinfo2() };
        Some(counted.uordblks + counted.hblkhd)
    }
    #[cfg(not(target_env = "gnu"))]
    None
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
    fn what_was_free_in_small_pieces_goes_back() {
        let pieces: Vec<Vec<u8>> = (0..4096).map(|_| vec![1; 60 << 10]).collect();
        // One in a hundred stays, so that the allocator cannot give the rest back by itself.
        let kept: Vec<Vec<u8>> = pieces.into_iter().step_by(100).collect();
        let before = Held::now().unwrap();
        assert!(before.is_much_beyond(0), "{before:?}");
        trim();
        let after = Held::now().unwrap();
        assert!(after.spare < before.spare / 2, "{before:?} {after:?}");
        drop(kept);
    }

    #[test]
    fn what_the_system_says_is_read() {
        assert_eq!(total("MemFree: 1 kB\nMemTotal:       24 kB\n"), Some(24 << 10));
        assert_eq!(total("MemTotal: much\n"), None);
        assert!(default_budget() >= 16 << 20);
    }
}
