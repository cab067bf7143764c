//! What runs on the machine, by `/proc`: where there is none, which is anywhere but on Linux, nothing is found.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// What is killed takes a moment to go.
pub(super) const MOMENT: Duration = Duration::from_millis(10);

/// All processes, with their parents.
fn all() -> impl Iterator<Item = (Pid, Pid)> {
    numbers().filter_map(|pid| {
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        // The name before it may have anything in it, and is cut off anywhere.
        let end = stat.iter().rposition(|byte| *byte == b')')?;
        let rest = str::from_utf8(stat.get(end + 2..)?).ok()?;
        let parent = rest.split(' ').nth(1)?.parse().ok()?;
        Some((Pid::from_raw(pid)?, Pid::from_raw(parent)?))
    })
}

fn numbers() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The processes that one has started and that are not waited for, those that have ended among them.
pub(super) fn children(of: Pid) -> Vec<Pid> {
    all().filter(|(_, parent)| *parent == of).map(|(pid, _)| pid).collect()
}

/// Those, and all that they have started.
pub(super) fn descendants(of: Pid) -> Vec<Pid> {
    let all: Vec<_> = all().collect();
    let (mut found, mut seen) = (vec![of], 0);
    while let Some(&parent) = found.get(seen) {
        let more = all.iter().filter(|(pid, of)| *of == parent && !found.contains(pid)).map(|(pid, _)| *pid);
        let more: Vec<_> = more.collect();
        found.extend(more);
        seen += 1;
    }
    found.split_off(1)
}

/// Those that were started with a variable in their environment that names a path. One that has ended has no environment any more.
fn with_variable(name: &str, path: &Path) -> Vec<Pid> {
    let wanted = [name.as_bytes(), b"=", path.as_os_str().as_bytes()].concat();
    let has_it = |pid: &i32| {
        let variables = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        variables.split(|byte| *byte == 0).any(|variable| variable == wanted)
    };
    numbers().filter(has_it).filter_map(Pid::from_raw).collect()
}

/// Kills until there are none that can be killed: those that are found may start others meanwhile.
pub(super) fn kill_all(mut find: impl FnMut() -> Vec<Pid>) {
    while find().into_iter().filter(|pid| kill_process(*pid, Signal::KILL).is_ok()).count() > 0 {
        thread::sleep(MOMENT);
    }
}

/// Kills whatever was started with a variable that names a path, for a while: what the kernel does not let go is not waited for.
pub(super) fn kill_all_with(name: &str, path: &Path) {
    let mut left = 100;
    kill_all(|| {
        left -= 1;
        if left > 0 { with_variable(name, path) } else { Vec::new() }
    });
}
