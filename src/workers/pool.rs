//! The processes: who asks for one gets a place at it, and what each does is told.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::keeper::{Job, Start, Turn, keep};
use super::process::{Opening, Setup, sweep};
use super::shared::{Granted, Held, Reserved, Shared, Waiter};
use crate::crypto::{Random, SecretText};
use crate::model::{Clock, ConversationId, OrganizationId, Timestamp, UserId, WorkerId, WorkerState};

/// How many turns of an organization may wait, for each process that there may be.
const WAITING_OF_ONE: usize = 20;
/// How many may wait in all, likewise.
const WAITING_OF_ALL: usize = 100;

/// How long processes may take to end when the server stops.
const END: Duration = Duration::from_secs(5);

/// What a process knows: it goes on only with what is as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// Which conversation.
    pub conversation: ConversationId,
    /// In which organization.
    pub organization: OrganizationId,
    /// Whose.
    pub user: UserId,
    /// How many messages of it.
    pub messages: i32,
    /// What it was started with, as a digest.
    pub profile: u64,
}

/// A process, as others see it.
#[derive(Debug, Clone)]
pub struct Worker {
    /// Its id.
    pub id: WorkerId,
    /// Whose conversations it serves.
    pub organization: OrganizationId,
    /// The process's id; none: it does not run.
    pub pid: Option<u32>,
    /// What it does.
    pub state: WorkerState,
    /// The conversation that it is at.
    pub conversation: Option<ConversationId>,
    /// When it was started.
    pub started_at: Timestamp,
    /// When it was last asked, or has last answered.
    pub last_active_at: Option<Timestamp>,
    /// How many messages it has answered.
    pub handled: u32,
    /// How many it has failed to answer.
    pub failed: u32,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// Grows with each change of any process.
    pub revision: u64,
}

/// Why nobody can be asked now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPlace {
    /// Something is being answered in the conversation.
    Busy,
    /// Too many wait.
    Full,
    /// The server stops.
    Stopping,
}

/// The processes.
pub struct Workers {
    shared: Arc<Shared>,
    base_url: OnceLock<String>,
    stopping: CancellationToken,
}

impl Workers {
    /// None runs yet.
    #[must_use]
    pub fn new(setup: Setup, clock: Clock, random: Random) -> Self {
        let (changes, _) = watch::channel(0);
        let (folder, state) = (Mutex::default(), Mutex::default());
        Self {
            shared: Arc::new(Shared { setup, clock, random, folder, state, changes }),
            base_url: OnceLock::new(),
            stopping: CancellationToken::new(),
        }
    }

    /// Says where processes reach the relay: this very server. Said once, by who listens. What servers have left is removed.
    pub fn reach(&self, base_url: String) {
        sweep(&self.shared.setup.folder);
        let _ = self.base_url.set(base_url);
    }

    /// Where processes reach the relay; none: nobody listens.
    #[must_use]
    pub fn base_url(&self) -> Option<&str> {
        self.base_url.get().map(String::as_str)
    }

    /// Where the Claude CLI is, as far as that can be told without running it; none: it is missing.
    #[must_use]
    pub fn program(&self) -> Option<PathBuf> {
        self.shared.setup.program()
    }

    /// Ends the processes that wait for more of what was deleted.
    pub fn forget(&self, is_deleted: impl Fn(&Context) -> bool) {
        self.shared.retire_idle(is_deleted);
    }

    /// Waits for a process for a conversation: its own where that knows what the context says, and another otherwise.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn place(&self, context: Context) -> Result<Place, NoPlace> {
        let (place, granted) = oneshot::channel();
        let held = {
            let mut state = self.shared.state();
            if state.is_stopping {
                return Err(NoPlace::Stopping);
            }
            if state.held.contains(&context.conversation) {
                return Err(NoPlace::Busy);
            }
            let max = self.shared.setup.max;
            let of_one = state.waiting.iter().filter(|one| one.context.organization == context.organization).count();
            // Whoever has none waiting is not kept out by those who have many.
            let are_full = state.waiting.len() >= WAITING_OF_ALL * max && of_one > 0;
            if are_full || of_one >= WAITING_OF_ONE * max {
                return Err(NoPlace::Full);
            }
            state.held.insert(context.conversation);
            let held = Held { shared: self.shared.clone(), conversation: context.conversation };
            state.waiting.push(Waiter { context: context.clone(), place });
            self.shared.serve(&mut state);
            held
        };
        // Left, the waiter goes with what is held.
        let Ok(Granted { reserved, jobs }) = granted.await else { return Err(NoPlace::Stopping) };
        let Some(worker) = reserved.worker else { return Err(NoPlace::Stopping) };
        Ok(match jobs {
            Some(jobs) => Place::Warm(Warm { worker, jobs, reserved, held }),
            None => Place::Cold(Cold { worker, organization: context.organization, reserved, held }),
        })
    }

    /// Those of an organization, the oldest first, and some that are gone and have failed.
    #[must_use]
    pub fn of(&self, organization: OrganizationId) -> Vec<Worker> {
        let state = self.shared.state();
        let failed = state.gone.iter().filter(|worker| worker.state == WorkerState::Failed);
        let all = failed.chain(state.running.values().map(|entry| &entry.worker));
        all.filter(|worker| worker.organization == organization).cloned().collect()
    }

    /// One of an organization.
    #[must_use]
    pub fn find(&self, organization: OrganizationId, id: WorkerId) -> Option<Worker> {
        self.of(organization).into_iter().find(|worker| worker.id == id)
    }

    /// The next change of one of an organization, after one that is known.
    #[must_use]
    pub fn next_change(&self, organization: OrganizationId, after: u64) -> Option<Worker> {
        let state = self.shared.state();
        let all = state.gone.iter().chain(state.running.values().map(|entry| &entry.worker));
        let later = all.filter(|worker| worker.organization == organization && worker.revision > after);
        later.min_by_key(|worker| worker.revision).cloned()
    }

    /// How many processes run, and how many conversations wait for one.
    #[must_use]
    pub fn load(&self) -> (usize, usize) {
        let state = self.shared.state();
        (state.running.len(), state.waiting.len())
    }

    /// The last change so far, and who waits for further ones.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Notes that an organization cannot be served, since there is nothing to serve it with.
    pub fn note_missing(&self, organization: OrganizationId) {
        let (shared, now) = (&self.shared, self.shared.clock.now());
        let mut state = shared.state();
        let error = format!("there is no Claude CLI: {} is not found", shared.setup.program.display());
        let is_known =
            |worker: &Worker| worker.organization == organization && worker.last_error.as_ref() == Some(&error);
        if !state.gone.iter().any(is_known) {
            let mut worker = shared.new_worker(organization, None, now);
            worker.state = WorkerState::Failed;
            worker.last_error = Some(error);
            shared.bury(&mut state, worker);
        }
    }

    /// Told when nothing begins any more, and what is being answered should come to its end.
    #[must_use]
    pub fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    /// Refuses all who wait and all who come. What is being answered goes on, as far as whoever asked lets it.
    pub fn refuse(&self) {
        self.stopping.cancel();
        let mut state = self.shared.state();
        state.is_stopping = true;
        state.waiting.clear();
    }

    /// Ends all that run, and lets none begin. What is being answered is given up.
    pub async fn finish(&self) {
        self.refuse();
        let mut changes = self.changes();
        {
            let mut state = self.shared.state();
            for entry in state.running.values_mut() {
                entry.jobs = None;
            }
        }
        let is_any = || !self.shared.state().running.is_empty();
        let ended = async { while is_any() && changes.changed().await.is_ok() {} };
        let _ = tokio::time::timeout(END, ended).await;
        self.shared.folder.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// A process that is kept for a conversation. Left unused, it is free again.
pub enum Place {
    /// It runs, and knows what was said so far.
    Warm(Warm),
    /// It is still to be started.
    Cold(Cold),
}

/// A place at a process that runs.
pub struct Warm {
    worker: WorkerId,
    jobs: mpsc::Sender<Job>,
    reserved: Reserved,
    held: Held,
}

/// A place for a process that is still to be started.
pub struct Cold {
    worker: WorkerId,
    organization: OrganizationId,
    reserved: Reserved,
    held: Held,
}

fn exchange(worker: WorkerId, held: Held, text: SecretText, budget: u64) -> (Job, Turn) {
    let (to_caller, events) = mpsc::channel(64);
    let (keep, kept) = oneshot::channel();
    let interrupt = CancellationToken::new();
    let job = Job { text, budget, events: to_caller, interrupt: interrupt.clone(), kept };
    (job, Turn { worker, events, interrupt, keep, held })
}

impl Warm {
    /// Says something, and how many tokens the answer may use. None: the process has ended meanwhile, and nothing was said to it.
    pub async fn say(mut self, text: SecretText, budget: u64) -> Option<Turn> {
        let (job, turn) = exchange(self.worker, self.held, text, budget);
        self.jobs.send(job).await.ok()?;
        self.reserved.worker = None;
        Some(turn)
    }
}

impl Cold {
    /// Starts the process, and says something to it.
    #[must_use]
    pub fn start(mut self, opening: Opening, text: SecretText, budget: u64) -> Turn {
        let (id, shared) = (self.worker, self.reserved.shared.clone());
        let (job, turn) = exchange(id, self.held, text, budget);
        self.reserved.worker = None;
        let (jobs, receiver) = mpsc::channel(1);
        // There is room for one.
        let _ = jobs.try_send(job);
        shared.attach(id, jobs);
        let session = uuid::Builder::from_random_bytes(shared.random.bytes()).into_uuid().to_string();
        tokio::spawn(keep(shared, Start { id, organization: self.organization, session, opening }, receiver));
        turn
    }
}
