//! Stands between the server and a Claude CLI process, as a process of its own: `claviger worker`. Whatever becomes of the server, the
//! pipe between them ends with it; then the CLI is told to end, and what is left a moment later of all that it has started is killed.

use std::ffi::OsString;
use std::io::{self, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{ChildStdin, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, getpid, kill_process_group, waitid};
use tokio::signal::unix::{SignalKind, signal};

use super::given::Given;
use super::processes::{MOMENT, children, descendants, kill_all};

/// How long the CLI may take to end by itself.
pub(super) const GRACE: Duration = Duration::from_secs(1);

/// What a thread has seen.
#[derive(PartialEq, Eq)]
enum Seen {
    /// The program has ended.
    Ended,
    /// The server says no more.
    ServerIsGone,
}

/// Runs a program with its arguments and hands on what comes in, but for what it is given as files, which comes first; what it says goes
/// out by itself. Ends as it ends. It runs in a process that does nothing else, and within a runtime.
#[must_use]
pub fn run(given: &[Given], command: &[OsString]) -> ExitCode {
    let Some((program, arguments)) = command.split_first() else { return ExitCode::from(2) };
    if let Err(error) = stand() {
        eprintln!("a process of the Claude CLI cannot be watched over: {error}");
        return ExitCode::from(1);
    }
    let files: io::Result<Vec<_>> = given.iter().map(|given| given.take(&mut io::stdin().lock())).collect();
    let files = match files {
        Ok(files) => files,
        Err(error) => {
            eprintln!("what the Claude CLI is to read cannot be given to it: {error}");
            return ExitCode::from(1);
        }
    };
    // A group of its own, with all that it starts.
    let child = Command::new(program).args(arguments).stdin(Stdio::piped()).process_group(0).spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            eprintln!("{}: {error}", program.display());
            return ExitCode::from(127);
        }
    };
    // It has its own.
    drop(files);
    let cli = Pid::from_child(&child);
    let (to_here, seen) = channel();
    let (to_program, said) = channel();
    let (stdin, from_server) = (child.stdin.take(), to_here.clone());
    // Two threads: a program that does not listen must not keep the end of the server from being seen.
    thread::spawn(move || {
        let mut from = io::stdin().lock();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match from.read(&mut buffer) {
                Ok(length @ 1..) if to_program.send(buffer[..length].to_vec()).is_ok() => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => break,
            }
        }
        drop(to_program);
        from_server.send(Seen::ServerIsGone)
    });
    thread::spawn(move || hand_on(&said, stdin));
    thread::spawn(move || {
        wait_for(cli);
        to_here.send(Seen::Ended)
    });
    if seen.recv() == Ok(Seen::ServerIsGone) {
        let _ = seen.recv_timeout(GRACE);
    }
    // It, and what it has started and left: its group, and whatever has a group or a session of its own, as the commands of its tools.
    let _ = kill_process_group(cli, Signal::KILL);
    kill_all(|| {
        reap(cli);
        descendants(getpid()).into_iter().filter(|pid| *pid != cli).collect()
    });
    let code = child.wait().ok().and_then(|status| status.code());
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// Outlives what would end it before its program, and becomes the parent of whatever that program leaves, so that nothing gets away.
fn stand() -> io::Result<()> {
    // The end of its input is its signal. Taken instead of ignored: what is ignored would be ignored by the program, too.
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        // What is not looked at stays taken.
        drop(signal(kind)?);
    }
    #[cfg(target_os = "linux")]
    rustix::process::set_child_subreaper(Some(getpid()))?;
    Ok(())
}

/// Waits until the CLI has ended, and lets go meanwhile of what it has left that ends. It is not let go itself: until then, nobody else
/// gets the number of its group.
fn wait_for(cli: Pid) {
    let seen = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    while waitid(WaitId::All, seen).is_ok()
        && matches!(waitid(WaitId::Pid(cli), seen | WaitIdOptions::NOHANG), Ok(None))
    {
        reap(cli);
        // What is not let go yet must not keep a core busy.
        thread::sleep(MOMENT);
    }
}

/// Lets go of all that have ended but the CLI.
fn reap(cli: Pid) {
    for child in children(getpid()).into_iter().filter(|pid| *pid != cli) {
        let _ = waitid(WaitId::Pid(child), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
    }
}

/// Hands on what the server says until it says no more, or nobody listens.
fn hand_on(said: &Receiver<Vec<u8>>, to: Option<ChildStdin>) {
    let Some(mut to) = to else { return };
    for piece in said {
        if to.write_all(&piece).and_then(|()| to.flush()).is_err() {
            break;
        }
    }
}
