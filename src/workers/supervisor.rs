//! Stands between the server and a Claude CLI process, as a process of its own: `claviger worker`. Whatever becomes of the server, the
//! pipe between them ends with it; then the CLI is told to end, and what is left of its process group a moment later is killed.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{ChildStdin, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

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

/// Runs a program with its arguments and hands on what comes in; what it says goes out by itself. Ends as it ends.
#[must_use]
pub fn run(command: &[OsString]) -> ExitCode {
    let Some((program, arguments)) = command.split_first() else { return ExitCode::from(2) };
    // A group of its own, with all that it starts.
    let child = Command::new(program).args(arguments).stdin(Stdio::piped()).process_group(0).spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            eprintln!("{}: {error}", program.display());
            return ExitCode::from(127);
        }
    };
    let group = Pid::from_child(&child);
    let (to_here, seen) = channel();
    let (to_program, said) = channel();
    let (stdin, from_server) = (child.stdin.take(), to_here.clone());
    // Two threads: a program that does not listen must not keep the end of the server from being seen.
    thread::spawn(move || {
        let mut from = std::io::stdin().lock();
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if to_program.send(buffer[..length].to_vec()).is_err() {
                break;
            }
        }
        drop(to_program);
        from_server.send(Seen::ServerIsGone)
    });
    thread::spawn(move || hand_on(&said, stdin));
    thread::spawn(move || {
        // It is not waited for here: until that, nobody else gets the number of its group.
        let _ = waitid(WaitId::Pid(group), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
        to_here.send(Seen::Ended)
    });
    if seen.recv() == Ok(Seen::ServerIsGone) {
        let _ = seen.recv_timeout(GRACE);
    }
    // It, or what it has started and left.
    let _ = kill_process_group(group, Signal::KILL);
    let code = child.wait().ok().and_then(|status| status.code());
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
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
