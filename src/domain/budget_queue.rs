//! What is to be done for API keys in the database, key by key: whoever comes while nobody is at work for a key does the work, for all
//! who wait by then at once, until nobody does.

use std::collections::{HashMap, VecDeque};
use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec;

use tokio::sync::oneshot;

use crate::model::ApiKeyId;
use crate::store;

/// How many are done at once, at most: others wait for the same row.
const AT_ONCE: usize = 128;

/// Those who wait for something to be done to a key's budget, in their order.
pub(super) struct Queue<Q, A> {
    /// Whose key is in here, for that key somebody is at work.
    waiting: Mutex<HashMap<ApiKeyId, VecDeque<Waiting<Q, A>>>>,
}

/// What is to be done, and who is told what has become of it.
type Waiting<Q, A> = (Q, oneshot::Sender<store::Result<A>>);

/// What becomes of what was asked for. Broken off, where the work was: nobody knows how far it came.
pub(super) type Answer<A> = oneshot::Receiver<store::Result<A>>;

/// Why the database is away, told to all who wait for it.
pub(super) type Cause = Arc<dyn Error + Send + Sync>;

impl<Q, A> Default for Queue<Q, A> {
    fn default() -> Self {
        Self { waiting: Mutex::default() }
    }
}

impl<Q, A> Queue<Q, A> {
    /// Asks for something. Returns the work, too, where nobody is at it.
    #[must_use = "the work is to be done"]
    pub(super) fn ask(self: &Arc<Self>, key: ApiKeyId, asked: Q) -> (Answer<A>, Option<Work<Q, A>>) {
        let (told, answer) = oneshot::channel();
        let mut waiting = self.lock();
        let is_new = !waiting.contains_key(&key);
        waiting.entry(key).or_default().push_back((asked, told));
        (answer, is_new.then(|| Work { queue: self.clone(), key, is_done: false }))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ApiKeyId, VecDeque<Waiting<Q, A>>>> {
        // Whatever is done to it cannot panic half-way.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The work for a key. Dropped before it is done, all who wait for it are told so, and the next one begins anew.
pub(super) struct Work<Q, A> {
    queue: Arc<Queue<Q, A>>,
    key: ApiKeyId,
    is_done: bool,
}

impl<Q, A> Work<Q, A> {
    /// Who is next, and waits for an answer; none: the work is done, and the next to come does what there is by then. Nothing is done
    /// for who has left.
    pub(super) fn next(&mut self) -> Option<Batch<Q, A>> {
        let mut waiting = self.queue.lock();
        let of_key = waiting.get_mut(&self.key).and_then(|of_key| {
            of_key.retain(|(_, told)| !told.is_closed());
            (!of_key.is_empty()).then_some(of_key)
        });
        let Some(of_key) = of_key else {
            waiting.remove(&self.key);
            self.is_done = true;
            return None;
        };
        let next = of_key.drain(..of_key.len().min(AT_ONCE));
        let (asked, told): (_, Vec<_>) = next.unzip();
        Some(Batch { asked, told: told.into_iter() })
    }

    /// Tells all who wait by now that the database is away: one after the other they would wait for it for ever longer.
    pub(super) fn refuse(&self, cause: &Cause) {
        let left = self.queue.lock().get_mut(&self.key).map(std::mem::take);
        // Not under the lock: who is told may ask for more.
        for (_, told) in left.into_iter().flatten() {
            drop(told.send(unavailable(cause)));
        }
    }
}

fn unavailable<A>(cause: &Cause) -> store::Result<A> {
    Err(store::Error::Unavailable(cause.clone().into()))
}

impl<Q, A> Drop for Work<Q, A> {
    fn drop(&mut self) {
        if !self.is_done {
            let left = self.queue.lock().remove(&self.key);
            // Not under the lock: what is dropped may ask for more.
            drop(left);
        }
    }
}

/// What is done at once.
pub(super) struct Batch<Q, A> {
    /// What is asked for, in its order.
    pub(super) asked: Vec<Q>,
    told: vec::IntoIter<oneshot::Sender<store::Result<A>>>,
}

impl<Q, A> Batch<Q, A> {
    /// Answers the next who has no answer yet. What they do not wait for any more is dropped.
    pub(super) fn answer(&mut self, answer: store::Result<A>) {
        if let Some(told) = self.told.next() {
            drop(told.send(answer));
        }
    }

    /// Tells all who have no answer yet that the database is away.
    pub(super) fn refuse(&mut self, cause: &Cause) {
        for told in self.told.by_ref() {
            drop(told.send(unavailable(cause)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    fn key(number: u8) -> ApiKeyId {
        ApiKeyId::new(Timestamp::MAX, &[number; 10])
    }

    fn answered(answers: &mut [Answer<usize>]) -> Vec<Option<usize>> {
        answers.iter_mut().map(|answer| answer.try_recv().ok().map(store::Result::unwrap)).collect()
    }

    #[test]
    fn who_comes_while_one_is_at_work_is_done_with_all_others_in_their_order() {
        let queue = Arc::new(Queue::default());
        let (mut first, work) = queue.ask(key(1), 0);
        let mut work = work.unwrap();
        let mut batch = work.next().unwrap();
        assert_eq!(batch.asked, [0]);
        let (mut answers, works): (Vec<_>, Vec<_>) = (1..=AT_ONCE + 1).map(|n| queue.ask(key(1), n)).unzip();
        assert!(works.iter().all(Option::is_none));
        // Another key has its own.
        assert!(queue.ask(key(2), 0).1.is_some());
        batch.answer(Ok(7));
        assert_eq!((first.try_recv().unwrap().unwrap(), answered(&mut answers)), (7, vec![None; AT_ONCE + 1]));
        let mut batch = work.next().unwrap();
        assert_eq!(batch.asked, (1..=AT_ONCE).collect::<Vec<_>>());
        // One has left, and keeps nobody.
        drop(answers.remove(0));
        (1..=AT_ONCE).for_each(|n| batch.answer(Ok(2 * n)));
        let expected = (2..=AT_ONCE).map(|n| Some(2 * n)).chain([None]).collect::<Vec<_>>();
        assert_eq!(answered(&mut answers), expected);
        assert_eq!(work.next().unwrap().asked, [AT_ONCE + 1]);
        assert!(work.next().is_none());
        // Whoever comes now works; and what has ended takes nothing from them.
        let (_answer, again) = queue.ask(key(1), 9);
        drop(work);
        assert_eq!(again.unwrap().next().unwrap().asked, [9]);
    }

    #[test]
    fn while_the_database_is_away_all_who_wait_by_then_are_told_and_nothing_is_done_for_who_has_left() {
        let queue = Arc::new(Queue::<_, usize>::default());
        let (first, work) = queue.ask(key(1), 0);
        let mut work = work.unwrap();
        let mut batch = work.next().unwrap();
        let waiting: Vec<_> = (1..=2 * AT_ONCE).map(|n| queue.ask(key(1), n).0).collect();
        let cause: Cause = Arc::new(std::fmt::Error);
        batch.refuse(&cause);
        work.refuse(&cause);
        for mut answer in [first].into_iter().chain(waiting) {
            assert!(matches!(answer.try_recv(), Ok(Err(store::Error::Unavailable(_)))));
        }
        // The work is still theirs who do it.
        let ((left, none), (mut stays, _)) = (queue.ask(key(1), 1), queue.ask(key(1), 2));
        assert!(none.is_none());
        drop(left);
        let mut batch = work.next().unwrap();
        assert_eq!(batch.asked, [2]);
        batch.answer(Ok(3));
        assert_eq!(stays.try_recv().unwrap().unwrap(), 3);
        assert!(work.next().is_none());
    }

    #[test]
    fn work_that_breaks_off_leaves_nobody_waiting() {
        let queue = Arc::new(Queue::<_, usize>::default());
        let (mut first, work) = queue.ask(key(1), 1);
        let mut work = work.unwrap();
        let batch = work.next();
        let (mut second, none) = queue.ask(key(1), 2);
        assert!(none.is_none());
        drop((batch, work));
        for answer in [&mut first, &mut second] {
            assert!(matches!(answer.try_recv(), Err(oneshot::error::TryRecvError::Closed)));
        }
        assert_eq!(queue.ask(key(1), 3).1.unwrap().next().unwrap().asked, [3]);
    }
}
