//! What the kernel says about processes.

use std::collections::BTreeMap;
use std::fs;

/// The CPU time of a process and all its descendants, in seconds: user and system, ended children included.
pub fn cpu_seconds(pid: u32) -> f64 {
    family(pid).into_iter().map(|pid| own_seconds(pid) + ended_children_seconds(pid)).sum()
}

/// By the process' own clock, since /proc/PID/stat counts in hundredths of a second.
fn own_seconds(pid: u32) -> f64 {
    let (mut clock, mut time) = (0, libc::timespec { tv_sec: 0, tv_nsec: 0 });
    // SAFETY: both write to what they are given, which outlives the calls.
    let known = unsafe {
        libc::clock_getcpuclockid(pid as i32, &mut clock) == 0 && libc::clock_gettime(clock, &mut time) == 0
    };
    if known { time.tv_sec as f64 + time.tv_nsec as f64 / 1e9 } else { 0.0 }
}

fn ended_children_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The command's name may hold anything, so fields are counted from its closing parenthesis.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks: u64 = fields.split_ascii_whitespace().skip(13).take(2).flat_map(str::parse::<u64>).sum();
    // SAFETY: a library call without pointers.
    ticks as f64 / unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64
}

/// The CPU time of each thread of a process, in seconds.
pub fn thread_seconds(pid: u32) -> BTreeMap<u32, f64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let threads = tasks.filter_map(|task| task.file_name().to_str()?.parse().ok());
    let of_one = |thread| {
        // In nanoseconds, while /proc/PID/task/*/stat counts in hundredths of a second.
        let text = fs::read_to_string(format!("/proc/{pid}/task/{thread}/schedstat")).unwrap_or_default();
        text.split_ascii_whitespace().next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
    };
    threads.map(|thread| (thread, of_one(thread))).collect()
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
