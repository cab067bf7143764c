//! What the pool and those who watch over processes share: what runs, who waits, and whose turn it is. At most so many run at once. A
//! conversation finds its own again; others wait, and of those that wait the organization comes first that has the fewest at work; of those
//! that have as many, the one that was served the longest time ago.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, oneshot, watch};

use super::keeper::Job;
use super::pool::{Context, Worker};
use super::process::{Folder, Setup};
use crate::crypto::Random;
use crate::model::{Clock, ConversationId, Id, OrganizationId, Timestamp, WorkerId, WorkerState};

/// How many processes that are gone are remembered, for each that there may be.
const REMEMBERED: usize = 4;

pub(super) struct Entry {
    pub(super) worker: Worker,
    /// What it knows while it is idle.
    pub(super) context: Option<Context>,
    /// Gone, it ends.
    pub(super) jobs: Option<mpsc::Sender<Job>>,
}

pub(super) struct Waiter {
    pub(super) context: Context,
    pub(super) place: oneshot::Sender<Granted>,
}

pub(super) struct Granted {
    pub(super) reserved: Reserved,
    /// Where it takes what is said, where it runs already.
    pub(super) jobs: Option<mpsc::Sender<Job>>,
}

#[derive(Default)]
pub(super) struct State {
    /// Those that run.
    pub(super) running: BTreeMap<WorkerId, Entry>,
    /// Those that are gone, the latest last.
    pub(super) gone: VecDeque<Worker>,
    pub(super) waiting: Vec<Waiter>,
    /// At which revision organizations that wait were last given a place.
    pub(super) served: HashMap<OrganizationId, u64>,
    /// The conversations that are being answered, or wait for it.
    pub(super) held: HashSet<ConversationId>,
    pub(super) revision: u64,
    pub(super) is_stopping: bool,
}

/// What the pool and those who watch over processes share.
pub(super) struct Shared {
    pub(super) setup: Setup,
    pub(super) clock: Clock,
    pub(super) random: Random,
    pub(super) folder: Mutex<Option<Arc<Folder>>>,
    pub(super) state: Mutex<State>,
    pub(super) changes: watch::Sender<u64>,
}

pub(super) struct Reserved {
    pub(super) shared: Arc<Shared>,
    /// None: it was used.
    pub(super) worker: Option<WorkerId>,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(worker) = self.worker {
            self.shared.release(worker);
        }
    }
}

/// A conversation that nobody else says anything in meanwhile.
pub(super) struct Held {
    pub(super) shared: Arc<Shared>,
    pub(super) conversation: ConversationId,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.held.remove(&self.conversation);
        state.waiting.retain(|waiter| waiter.context.conversation != self.conversation);
    }
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
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

    pub(super) fn new_worker(
        &self,
        organization: OrganizationId,
        conversation: Option<ConversationId>,
        now: Timestamp,
    ) -> Worker {
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
    pub(super) fn serve(self: &Arc<Self>, state: &mut State) {
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
            // It ends already.
            Some(Entry { worker: Worker { state: WorkerState::Stopping, .. }, .. }) | None => {}
            // It was never started.
            Some(_) => {
                state.running.remove(&id);
                // The server may wait for the last.
                state.revision += 1;
                self.changes.send_replace(state.revision);
            }
        }
        self.serve(&mut state);
    }

    pub(super) fn attach(&self, id: WorkerId, jobs: mpsc::Sender<Job>) {
        if let Some(entry) = self.state().running.get_mut(&id) {
            entry.jobs = Some(jobs);
        }
    }

    pub(super) fn started(self: &Arc<Self>, id: WorkerId, pid: Option<u32>) {
        self.change(id, |entry, _| entry.worker.pid = pid);
    }

    /// A process that was started takes what is said.
    pub(super) fn ready(self: &Arc<Self>, id: WorkerId) {
        self.change(id, |entry, now| {
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

    /// Ends idle processes that know something.
    pub(super) fn retire_idle(self: &Arc<Self>, is_of_it: impl Fn(&Context) -> bool) {
        let mut state = self.state();
        let idle = state.running.values().filter(|entry| entry.context.as_ref().is_some_and(&is_of_it));
        let ids: Vec<WorkerId> = idle.map(|entry| entry.worker.id).collect();
        for id in ids {
            self.retire(&mut state, id);
        }
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

    pub(super) fn bury(&self, state: &mut State, mut worker: Worker) {
        state.revision += 1;
        worker.revision = state.revision;
        state.gone.push_back(worker);
        if state.gone.len() > REMEMBERED * self.setup.max {
            state.gone.pop_front();
        }
        self.changes.send_replace(state.revision);
    }
}
