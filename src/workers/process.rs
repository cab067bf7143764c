//! One Claude CLI process: how it is started, and its pipes.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Access, FlockOperation, access, flock};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::given::Given;
use super::history::{Said, transcript};
use super::processes::kill_all_with;
use super::spending::Spending;
use super::supervisor::GRACE;
use crate::crypto::SecretText;
use crate::model::CLI_TOOLS;

/// No line is longer.
const MAX_LINE: usize = 16 * 1024 * 1024;
/// Where a process reads what was said before, and what it is told before all that.
const HISTORY: &str = "history.jsonl";
const PROMPT: &str = "prompt.txt";
/// What of the server's environment a process gets.
const INHERITED: [&str; 7] = ["PATH", "LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS"];
/// The variable by which all that a process has started is known: each has a folder of its own.
const MARK: &str = "TMPDIR";
/// What it does without: calls to anywhere but the upstream, updates of itself, what it would keep on the disk, what it tells Claude of
/// a repository that its folder lies in (branch, names of files, last commits), and files that a text names: `@/etc/passwd` in what
/// somebody says would be read to them, whichever tools are allowed.
const SWITCHES: [&str; 12] = [
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC",
    "CLAUDE_CODE_DISABLE_ATTACHMENTS",
    "CLAUDE_CODE_DISABLE_FILE_MENTIONS",
    "CLAUDE_CODE_DISABLE_CLAUDE_MDS",
    "CLAUDE_CODE_DISABLE_AUTO_MEMORY",
    "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS",
    "CLAUDE_CODE_DISABLE_FILE_CHECKPOINTING",
    "CLAUDE_CODE_DISABLE_GIT_INSTRUCTIONS",
    "CLAUDE_CODE_SKIP_PROMPT_HISTORY",
    "DISABLE_AUTOUPDATER",
    "DISABLE_TELEMETRY",
    "DISABLE_ERROR_REPORTING",
];

/// How often it asks again by itself what was not answered. The relay has tried for long by then; but what it has begun to answer it does
/// not ask for again.
const RETRIES: (&str, &str) = ("CLAUDE_CODE_MAX_RETRIES", "1");

/// How processes are started.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The Claude CLI: a path, or a name that is looked for in `PATH`.
    pub program: PathBuf,
    /// What stands between the server and a process: this program.
    pub supervisor: PathBuf,
    /// Where processes keep files, while they live.
    pub folder: PathBuf,
    /// The name of this server, by which its files are told from another's in the same folder.
    pub instance: String,
    /// How many processes there may be at once.
    pub max: usize,
    /// How long an answer may take.
    pub timeout: Duration,
    /// How long a process waits for the next message of its conversation.
    pub idle: Duration,
}

impl Setup {
    /// Where the Claude CLI is, from anywhere; none: it is not there.
    pub(super) fn program(&self) -> Option<PathBuf> {
        find_program(&self.program)
    }
}

/// Where a program is, from anywhere: a path, or a name that is looked for in `PATH`; none: it is not there.
#[must_use]
pub fn find_program(program: &Path) -> Option<PathBuf> {
    let can_run = |place: &PathBuf| place.is_file() && access(place, Access::EXEC_OK).is_ok();
    let found = if program.components().count() > 1 {
        Some(program.to_owned()).filter(can_run)
    } else {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|folder| folder.join(program)).find(can_run)
    };
    std::path::absolute(found?).ok()
}

/// What a process is told at its start.
pub struct Opening {
    /// What was said before.
    pub history: Vec<Said>,
    /// What Claude is told before all that.
    pub system_prompt: Option<SecretText>,
    /// Which model answers.
    pub model: Option<String>,
    /// Which tools may be used.
    pub tools: Vec<String>,
    /// What it comes to the relay with.
    pub key: SecretText,
    /// Where the relay is.
    pub base_url: String,
    /// What its turns use, as the relay counts it by that key.
    pub spending: Arc<Spending>,
    /// What has to live as long as the process.
    pub held: Box<dyn Send + Sync>,
}

/// This server's own part of the folder. It is locked while the server lives, and goes with it, at the latest when another starts.
pub(super) struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    pub(super) fn open(setup: &Setup) -> io::Result<Self> {
        make(&setup.folder)?;
        let path = fs::canonicalize(&setup.folder)?.join(&setup.instance);
        make(&path)?;
        let lock = OpenOptions::new().create(true).append(true).mode(0o600).open(path.join("lock"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self { path, _lock: lock })
    }
}

/// Removes what servers have left that are gone.
pub(super) fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_left = |lock: File| flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
        if File::open(path.join("lock")).is_ok_and(is_left) {
            let _ = fs::remove_dir_all(&path);
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn make(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// A process that runs.
pub(super) struct Process {
    child: Child,
    stdin: ChildStdin,
    pub(super) lines: Lines,
    /// What it reads as files, still to be told to its supervisor.
    given: String,
    /// What is its own on the disk.
    home: PathBuf,
    _held: Box<dyn Send + Sync>,
}

impl Process {
    /// Starts a process of an organization.
    pub(super) fn start(
        setup: &Setup,
        folder: &Folder,
        (organization, name): (&str, &str),
        session: &str,
        opening: Opening,
    ) -> io::Result<Self> {
        let program = setup.program().ok_or(io::ErrorKind::NotFound)?;
        let home = folder.path.join(organization).join(name);
        // What the CLI keeps, large answers of tools among it, goes with the process.
        let (config, work) = (home.join("claude"), home.join("work"));
        make(&config)?;
        make(&work)?;
        let clean = |_: &io::Error| drop(fs::remove_dir_all(&home));
        let Arguments { all, files, given } = arguments(session, &opening);
        let mut command = Command::new(&setup.supervisor);
        command.arg("worker").args(files.iter().map(Given::argument)).arg("--").arg(program).args(all);
        command.current_dir(&work).env_clear();
        command.envs(INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.envs(SWITCHES.map(|name| (name, "1"))).env(RETRIES.0, RETRIES.1);
        command.env("HOME", &config).env("CLAUDE_CONFIG_DIR", &config).env(MARK, &work);
        command.env("ANTHROPIC_BASE_URL", &opening.base_url).env("ANTHROPIC_API_KEY", opening.key.expose());
        // A signal for the server's group, as Ctrl-C sends one, is the server's, who still ends an answer as it should.
        command.process_group(0);
        // What it complains of may quote what was said, which is for no log and no other user.
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut child = spawned.inspect_err(clean)?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("a pipe is missing"));
        };
        let lines = Lines { from: BufReader::new(stdout), line: Vec::new() };
        Ok(Self { child, stdin, lines, given, home, _held: opening.held })
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    pub(super) async fn say(&mut self, line: &str) -> io::Result<()> {
        self.stdin.write_all(line.as_bytes()).await?;
        self.stdin.flush().await
    }

    /// Says what it reads as files, before all else.
    pub(super) async fn give(&mut self) -> io::Result<()> {
        let given = std::mem::take(&mut self.given);
        self.say(&given).await
    }

    /// It has read what was said before.
    pub(super) fn forget_opening(&self) {
        for name in [HISTORY, PROMPT] {
            let _ = fs::remove_file(self.home.join(name));
        }
    }

    /// Ends it, and returns its exit code, where it ends by itself.
    pub(super) async fn end(self) -> Option<i32> {
        let Self { mut child, stdin, lines, home, .. } = self;
        drop(stdin);
        // What it still says is for nobody.
        drop(lines);
        // Not before its supervisor has had the time to end all that it has started, which nobody else knows for sure.
        let ended = tokio::time::timeout(4 * GRACE, child.wait()).await;
        let code = ended.ok().and_then(Result::ok).and_then(|status| status.code());
        if code.is_none() {
            let _ = child.start_kill();
        }
        // A tool may have left many files.
        let cleaning = move || {
            if code.is_none() {
                // It was killed, or does not get on: then all are killed that it watches over, and it with them.
                kill_all_with(MARK, &home.join("work"));
            }
            let _ = fs::remove_dir_all(home);
        };
        let _ = tokio::task::spawn_blocking(cleaning).await;
        code
    }
}

/// What a process is started with.
struct Arguments {
    all: Vec<OsString>,
    /// What it reads as files: what stands on a command line can be read by whoever has a process on the machine.
    files: Vec<Given>,
    /// What is in them, one after the other.
    given: String,
}

impl Arguments {
    /// As a file above the working directory.
    fn give(&mut self, option: &str, name: &str, text: &str) {
        let path = Path::new("..").join(name);
        self.all.extend([option.into(), path.clone().into()]);
        self.files.push(Given { length: text.len() as u64, path });
        self.given += text;
    }
}

fn arguments(session: &str, opening: &Opening) -> Arguments {
    let denied: Vec<_> = CLI_TOOLS
        .iter()
        .map(|tool| tool.name)
        .filter(|name| opening.tools.iter().all(|allowed| allowed != name))
        .collect();
    let settings = json!({ "permissions": { "deny": denied } }).to_string();
    let mut arguments: Vec<OsString> = [
        "-p",
        "--input-format=stream-json",
        "--output-format=stream-json",
        "--verbose",
        "--include-partial-messages",
        "--no-session-persistence",
        "--strict-mcp-config",
        "--disable-slash-commands",
        "--setting-sources",
        "",
        "--settings",
        &settings,
    ]
    .map(OsString::from)
    .into();
    let tools = opening.tools.join(",");
    arguments.extend(["--tools".into(), tools.clone().into()]);
    if !tools.is_empty() {
        arguments.extend(["--allowedTools".into(), tools.into()]);
    }
    // As one word each: what a caller has named is no option.
    if let Some(model) = &opening.model {
        arguments.push(format!("--model={model}").into());
    }
    let mut told = Arguments { all: arguments, files: Vec::new(), given: String::new() };
    if let Some(prompt) = &opening.system_prompt {
        told.give("--system-prompt-file", PROMPT, prompt.expose());
    }
    if opening.history.is_empty() {
        told.all.extend(["--session-id".into(), session.into()]);
    } else {
        told.give("--resume", HISTORY, &transcript(session, &opening.history));
    }
    told
}

/// The lines that a process says.
pub(super) struct Lines {
    from: BufReader<ChildStdout>,
    /// What has come of the next.
    line: Vec<u8>,
}

/// Why there is no further line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoLine {
    /// It has ended, or closed its pipe.
    Ended,
    /// It is too long.
    TooLong,
}

impl Lines {
    /// The next line. Given up, it goes on where it was.
    pub(super) async fn next(&mut self) -> Result<Vec<u8>, NoLine> {
        loop {
            let buffer = self.from.fill_buf().await.map_err(|_| NoLine::Ended)?;
            if buffer.is_empty() {
                return Err(NoLine::Ended);
            }
            let end = buffer.iter().position(|byte| *byte == b'\n');
            let length = end.unwrap_or(buffer.len());
            self.line.extend_from_slice(&buffer[..length]);
            self.from.consume(length + usize::from(end.is_some()));
            if end.is_some() {
                return Ok(std::mem::take(&mut self.line));
            }
            if self.line.len() > MAX_LINE {
                return Err(NoLine::TooLong);
            }
        }
    }
}
