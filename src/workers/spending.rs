//! What a turn uses. All requests of a process come through the relay, which counts them here, whatever they are for: what is asked again
//! without streaming, agents, searches of the web, and what the CLI does to keep a conversation short.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::model::Tokens;

/// What the turn that a process is at has used, and may use.
#[derive(Debug, Default)]
pub struct Spending {
    state: Mutex<State>,
    /// How many requests are under way.
    under_way: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct State {
    /// Counts the turns.
    turn: u64,
    budget: u64,
    /// By the requests of the turn that have ended.
    ended: Tokens,
    /// By those that are under way, as far as they have come.
    running: HashMap<u64, Tokens>,
    requests: u64,
    /// Told when more is used than may be.
    spent: CancellationToken,
}

impl State {
    fn used(&self) -> Tokens {
        self.running.values().fold(self.ended, plus)
    }
}

fn plus(a: Tokens, b: &Tokens) -> Tokens {
    Tokens {
        input: a.input.saturating_add(b.input),
        output: a.output.saturating_add(b.output),
        cache_write_5m: a.cache_write_5m.saturating_add(b.cache_write_5m),
        cache_write_1h: a.cache_write_1h.saturating_add(b.cache_write_1h),
        cache_read: a.cache_read.saturating_add(b.cache_read),
        web_searches: a.web_searches.saturating_add(b.web_searches),
    }
}

impl Spending {
    /// A turn begins, which may use so many tokens. Returns what is told once it has used more.
    pub(super) fn begin(&self, budget: u64) -> CancellationToken {
        let mut state = self.state();
        let turn = state.turn + 1;
        *state = State { turn, budget, requests: state.requests, ..State::default() };
        state.spent.clone()
    }

    /// A request of the turn. None: it has used more than it may already.
    #[must_use]
    pub fn request(self: &Arc<Self>) -> Option<Spender> {
        let mut state = self.state();
        if state.spent.is_cancelled() {
            return None;
        }
        state.requests += 1;
        let (turn, number) = (state.turn, state.requests);
        state.running.insert(number, Tokens::default());
        drop(state);
        self.under_way.send_modify(|requests| *requests += 1);
        Some(Spender { of: self.clone(), turn, number })
    }

    /// Waits until no request is under way.
    pub(super) async fn settled(&self) {
        // The sender is here: nothing closes it meanwhile.
        let _ = self.under_way.subscribe().wait_for(|requests| *requests == 0).await;
    }

    /// Whether the turn has asked for anything that is to be paid for, or may be.
    pub(super) fn has_begun(&self) -> bool {
        let state = self.state();
        !state.running.is_empty() || state.ended != Tokens::default()
    }

    /// What the turn has used so far.
    pub(super) fn used(&self) -> Tokens {
        self.state().used()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No panic leaves it half changed: nothing in it can fail.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that is counted until this is dropped.
#[derive(Debug)]
pub struct Spender {
    of: Arc<Spending>,
    turn: u64,
    number: u64,
}

impl Spender {
    /// It has used so much by now.
    pub fn counts(&self, tokens: Tokens) {
        let mut state = self.of.state();
        // That of a turn that is over stands in the usage records alone.
        if state.turn != self.turn {
            return;
        }
        state.running.insert(self.number, tokens);
        if state.used().total() > state.budget {
            state.spent.cancel();
        }
    }
}

impl Drop for Spender {
    fn drop(&mut self) {
        let mut state = self.of.state();
        if state.turn == self.turn
            && let Some(tokens) = state.running.remove(&self.number)
        {
            state.ended = plus(state.ended, &tokens);
        }
        drop(state);
        self.of.under_way.send_modify(|requests| *requests -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn requests_of_a_turn_are_counted_together_and_none_of_another() {
        let spending = Arc::<Spending>::default();
        let input = |input| Tokens { input, ..Tokens::default() };
        let first = spending.begin(10);
        let (a, b) = (spending.request().unwrap(), spending.request().unwrap());
        a.counts(input(4));
        a.counts(input(6));
        b.counts(input(4));
        assert_eq!((spending.used().input, first.is_cancelled()), (10, false));
        drop(a);
        b.counts(input(5));
        assert_eq!((spending.used().input, first.is_cancelled(), spending.request().is_none()), (11, true, true));
        let second = spending.begin(10);
        b.counts(input(50));
        assert_eq!((spending.used().input, second.is_cancelled()), (0, false));
        drop(b);
        spending.settled().await;
        assert_eq!(spending.used().input, 0);
    }
}
