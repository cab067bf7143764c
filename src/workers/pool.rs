//! Who gets a process: at most so many run at once. A conversation finds its own again; others wait, and of those that wait the
//! organization comes first that has the fewest; of those that have as many, the one that was served the longest time ago.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::keeper::{Job, Start, Turn, keep};
use super::process::{Folder, Opening, Setup, sweep};
use crate::crypto::{Random, SecretText};
use crate::model::{Clock, ConversationId, Id, OrganizationId, Timestamp, WorkerId, WorkerState};

/// How many turns of an organization may wait, for each process that there may be.
const WAITING_OF_ONE: usize = 20;
/// How many may wait in all, likewise.
const WAITING_OF_ALL: usize = 100;
/// How many processes that are gone are remembered, for each that there may be.
const REMEMBERED: usize = 4;

/// How long processes may take to end when the server stops.
const END: Duration = Duration::from_secs(5);

/// What a process knows: it goes on only with what is as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// Which conversation.
    pub conversation: ConversationId,
    /// Whose.
    pub organization: OrganizationId,
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

struct Entry {
    worker: Worker,
    /// What it knows while it is idle.
    context: Option<Context>,
    /// Gone, it ends.
    jobs: Option<mpsc::Sender<Job>>,
}

struct Waiter {
    context: Context,
    place: oneshot::Sender<Granted>,
}

struct Granted {
    reserved: Reserved,
    /// Where it takes what is said, where it runs already.
    jobs: Option<mpsc::Sender<Job>>,
}

#[derive(Default)]
struct State {
    /// Those that run.
    running: BTreeMap<WorkerId, Entry>,
    /// Those that are gone, the latest last.
    gone: VecDeque<Worker>,
    waiting: Vec<Waiter>,
    /// At which revision organizations that wait were last given a place.
    served: HashMap<OrganizationId, u64>,
    /// The conversations that are being answered, or wait for it.
    held: HashSet<ConversationId>,
    revision: u64,
    is_stopping: bool,
}

/// What the pool and those who watch over processes share.
pub(super) struct Shared {
    pub(super) setup: Setup,
    clock: Clock,
    random: Random,
    folder: Mutex<Option<Arc<Folder>>>,
    state: Mutex<State>,
    changes: watch::Sender<u64>,
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
}

impl Workers {
    /// None runs yet.
    #[must_use]
    pub fn new(setup: Setup, clock: Clock, random: Random) -> Self {
        let (changes, _) = watch::channel(0);
        let (folder, state) = (Mutex::default(), Mutex::default());
        Self { shared: Arc::new(Shared { setup, clock, random, folder, state, changes }), base_url: OnceLock::new() }
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
        let program = &self.shared.setup.program;
        if program.components().count() > 1 {
            return program.is_file().then(|| program.clone());
        }
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|folder| folder.join(program)).find(|place| place.is_file())
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
            if state.waiting.len() >= WAITING_OF_ALL * max || of_one >= WAITING_OF_ONE * max {
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

    /// Refuses all who wait and all who come. What is being answered goes on.
    pub fn refuse(&self) {
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

struct Reserved {
    shared: Arc<Shared>,
    /// None: it was used.
    worker: Option<WorkerId>,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(worker) = self.worker {
            self.shared.release(worker);
        }
    }
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

/// A conversation that nobody else says anything in meanwhile.
pub(super) struct Held {
    pub(super) shared: Arc<Shared>,
    conversation: ConversationId,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.held.remove(&self.conversation);
        state.waiting.retain(|waiter| waiter.context.conversation != self.conversation);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // No panic leaves it half changed: nothing in it can fail.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Made when it is first needed.
    pub(super) fn folder(&self) -> io::Result<Arc<Folder>> {
        let mut folder = self.folder.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(folder) = &*folder {
            return Ok(folder.clone());
        }
        Ok(folder.insert(Arc::new(Folder::open(&self.setup)?)).clone())
    }

    fn new_worker(&self, organization: OrganizationId, conversation: Option<ConversationId>, now: Timestamp) -> Worker {
        Worker {
            id: Id::new(now, &self.random.bytes()),
            organization,
            pid: None,
            state: WorkerState::Starting,
            conversation,
            started_at: now,
            last_active_at: None,
            handled: 0,
            failed: 0,
            last_error: None,
            revision: 0,
        }
    }

    /// Gives places to those who wait, as far as there are any.
    fn serve(self: &Arc<Self>, state: &mut State) {
        while let Some(next) = self.next(state) {
            let Waiter { context, place } = state.waiting.remove(next);
            let now = self.clock.now();
            let of_it = state
                .running
                .values()
                .find(|entry| entry.context.as_ref().is_some_and(|known| known.conversation == context.conversation));
            let own = of_it.map(|entry| (entry.worker.id, entry.context.as_ref() == Some(&context)));
            match own {
                Some((id, true)) => {
                    let Some(entry) = state.running.get_mut(&id) else { continue };
                    entry.context = None;
                    entry.worker.state = WorkerState::Busy;
                    entry.worker.last_active_at = Some(now);
                    let jobs = entry.jobs.clone();
                    self.note(state, id);
                    // Who has left has let go of the conversation, too. The process has learned nothing.
                    if !self.grant(place, id, jobs) {
                        self.retire(state, id);
                    }
                }
                own => {
                    if let Some((id, _)) = own {
                        self.retire(state, id);
                    }
                    if state.running.len() >= self.setup.max {
                        // One that has been idle for longest makes room; it is waited for.
                        self.make_room(state);
                        state.waiting.insert(0, Waiter { context, place });
                        return;
                    }
                    let who_waits: HashSet<_> = state.waiting.iter().map(|one| one.context.organization).collect();
                    state.served.retain(|organization, _| who_waits.contains(organization));
                    state.served.insert(context.organization, state.revision);
                    let worker = self.new_worker(context.organization, Some(context.conversation), now);
                    let id = worker.id;
                    state.running.insert(id, Entry { worker, context: None, jobs: None });
                    self.note(state, id);
                    if !self.grant(place, id, None) {
                        state.running.remove(&id);
                    }
                }
            }
        }
    }

    /// Whether somebody still waits for it.
    fn grant(
        self: &Arc<Self>,
        place: oneshot::Sender<Granted>,
        worker: WorkerId,
        jobs: Option<mpsc::Sender<Job>>,
    ) -> bool {
        let reserved = Reserved { shared: self.clone(), worker: Some(worker) };
        let Err(mut granted) = place.send(Granted { reserved, jobs }) else { return true };
        // Dropped as it is, it would wait for the lock that is held here.
        granted.reserved.worker = None;
        false
    }

    /// Whose turn it is: of those whose own process waits for them, or for whom there is or can be room, one of the organization that
    /// has the fewest processes at work, and was not served just now.
    fn next(&self, state: &State) -> Option<usize> {
        let is_idle = |entry: &Entry| entry.context.is_some();
        let has_room = state.running.len() < self.setup.max || state.running.values().any(is_idle);
        let at_work = |organization: OrganizationId| {
            let of_it = |entry: &&Entry| entry.worker.organization == organization && !is_idle(entry);
            state.running.values().filter(of_it).count()
        };
        let can_go = |waiter: &Waiter| {
            has_room || state.running.values().any(|entry| entry.context.as_ref() == Some(&waiter.context))
        };
        let ready = state.waiting.iter().enumerate().filter(|(_, waiter)| can_go(waiter));
        // Whose process waits for them takes nothing from the others.
        let is_cold =
            |waiter: &Waiter| state.running.values().all(|entry| entry.context.as_ref() != Some(&waiter.context));
        let key = |(place, waiter): &(usize, &Waiter)| {
            let organization = waiter.context.organization;
            (is_cold(waiter), at_work(organization), state.served.get(&organization).copied(), *place)
        };
        ready.min_by_key(key).map(|(place, _)| place)
    }

    fn make_room(&self, state: &mut State) {
        let is_ending = |entry: &Entry| entry.worker.state == WorkerState::Stopping;
        // One at a time for each who waits.
        if state.running.values().filter(|entry| is_ending(entry)).count() > state.waiting.len() {
            return;
        }
        let idle = state.running.values().filter(|entry| entry.context.is_some());
        let oldest = idle.min_by_key(|entry| entry.worker.last_active_at).map(|entry| entry.worker.id);
        if let Some(id) = oldest {
            self.retire(state, id);
        }
    }

    fn retire(&self, state: &mut State, id: WorkerId) {
        if let Some(entry) = state.running.get_mut(&id) {
            entry.context = None;
            entry.jobs = None;
            entry.worker.state = WorkerState::Stopping;
            self.note(state, id);
        }
    }

    /// Notes that a process has changed.
    fn note(&self, state: &mut State, id: WorkerId) {
        state.revision += 1;
        if let Some(entry) = state.running.get_mut(&id) {
            entry.worker.revision = state.revision;
        }
        self.changes.send_replace(state.revision);
    }

    fn change(self: &Arc<Self>, id: WorkerId, change: impl FnOnce(&mut Entry, Timestamp)) {
        let now = self.clock.now();
        let mut state = self.state();
        if let Some(entry) = state.running.get_mut(&id) {
            change(entry, now);
            self.note(&mut state, id);
        }
        self.serve(&mut state);
    }

    /// A process that was kept for somebody who has left.
    fn release(self: &Arc<Self>, id: WorkerId) {
        let mut state = self.state();
        match state.running.get(&id) {
            // It knows what it knew, but nobody has said how much that is.
            Some(Entry { jobs: Some(_), .. }) => self.retire(&mut state, id),
            // It was never started.
            Some(_) => {
                state.running.remove(&id);
                // The server may wait for the last.
                state.revision += 1;
                self.changes.send_replace(state.revision);
            }
            None => {}
        }
        self.serve(&mut state);
    }

    fn attach(&self, id: WorkerId, jobs: mpsc::Sender<Job>) {
        if let Some(entry) = self.state().running.get_mut(&id) {
            entry.jobs = Some(jobs);
        }
    }

    pub(super) fn started(self: &Arc<Self>, id: WorkerId, pid: Option<u32>) {
        self.change(id, |entry, now| {
            entry.worker.pid = pid;
            entry.worker.state = WorkerState::Busy;
            entry.worker.last_active_at = Some(now);
        });
    }

    pub(super) fn answered(self: &Arc<Self>, id: WorkerId) {
        self.change(id, |entry, now| {
            entry.worker.handled += 1;
            entry.worker.last_active_at = Some(now);
        });
    }

    pub(super) fn idle(self: &Arc<Self>, id: WorkerId, context: Context) {
        self.change(id, |entry, _| {
            // Unless the server stops.
            if entry.jobs.is_some() {
                entry.worker.state = WorkerState::Idle;
                entry.context = Some(context);
            }
        });
    }

    pub(super) fn stopping(self: &Arc<Self>, id: WorkerId) {
        self.change(id, |entry, _| {
            entry.worker.state = WorkerState::Stopping;
            entry.context = None;
            entry.jobs = None;
        });
    }

    /// Whether an idle process may end: not where somebody was given it just now.
    pub(super) fn retires(&self, id: WorkerId) -> bool {
        let mut state = self.state();
        let is_idle = state.running.get(&id).is_none_or(|entry| entry.context.is_some() || entry.jobs.is_none());
        if is_idle {
            self.retire(&mut state, id);
        }
        is_idle
    }

    /// A process is gone, for a reason or for none.
    pub(super) fn gone(self: &Arc<Self>, id: WorkerId, error: Option<String>) {
        let mut state = self.state();
        if let Some(Entry { mut worker, .. }) = state.running.remove(&id) {
            worker.pid = None;
            worker.state = if error.is_some() { WorkerState::Failed } else { WorkerState::Stopping };
            worker.failed += u32::from(error.is_some());
            worker.last_error = error.or(worker.last_error);
            self.bury(&mut state, worker);
        }
        self.serve(&mut state);
    }

    fn bury(&self, state: &mut State, mut worker: Worker) {
        state.revision += 1;
        worker.revision = state.revision;
        state.gone.push_back(worker);
        if state.gone.len() > REMEMBERED * self.setup.max {
            state.gone.pop_front();
        }
        self.changes.send_replace(state.revision);
    }
}
