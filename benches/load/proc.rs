//! What the kernel says about processes.

use std::fs;

/// The CPU time of a process and all its descendants, in seconds: user and system, ended children included.
pub fn cpu_seconds(pid: u32) -> f64 {
    let mut ticks = 0;
    for pid in family(pid) {
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        // The command's name may hold anything, so fields are counted from its closing parenthesis.
        let Some((_, fields)) = stat.rsplit_once(')') else { continue };
        ticks += fields.split_ascii_whitespace().skip(11).take(4).flat_map(str::parse::<u64>).sum::<u64>();
    }
    // SAFETY: a library call without pointers.
    ticks as f64 / unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64
}

/// The resident memory of a process and its descendants, in KiB.
pub fn resident_kib(pid: u32) -> u64 {
    let of_one = |pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        line.split_ascii_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0)
    };
    family(pid).into_iter().map(of_one).sum()
}

fn family(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut index = 0;
    while let Some(&pid) = all.get(index) {
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            all.extend(children.split_ascii_whitespace().flat_map(str::parse::<u32>));
        }
        index += 1;
    }
    all
}
