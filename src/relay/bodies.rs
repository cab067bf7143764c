//! How much memory the bodies of requests and of whole answers take, of one key, of one organization, and of all: a body counts from its
//! first byte until the last who holds it lets go of it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};

use super::Relay;
use super::caller::Admitted;
use super::error::{Refusal, Result};
use crate::model::{ApiKeyId, OrganizationId};

/// What requests of one organization may take of all, and of what others leave, in eighths: there is always something left for one more.
/// One key has half of what its organization may take of all.
const OF_REQUESTS: (usize, usize) = (3, 3);
/// The same of its answers with its requests: they are paid for when they come.
const OF_ANSWERS: (usize, usize) = (4, 6);
/// A body of so many bytes has room also where large ones of others leave little.
const SMALL: usize = 64 * 1024;
/// When to try again: bodies come and go.
const SOON: Duration = Duration::from_secs(1);

/// What is held.
pub(super) struct Bodies {
    most: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    all: usize,
    organizations: HashMap<OrganizationId, usize>,
    keys: HashMap<ApiKeyId, usize>,
}

/// Whose body it is.
pub(super) type Owner = (OrganizationId, ApiKeyId);

impl Bodies {
    /// So many bytes at most.
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, held: Mutex::default() })
    }

    /// Room for the body of a request: none so far.
    pub(super) fn room_of_request(self: &Arc<Self>, owner: Owner) -> Room {
        Room { bodies: self.clone(), owner, eighths: OF_REQUESTS, beside: 0, bytes: 0 }
    }

    /// Room for an answer: none so far.
    pub(super) fn room_of_answer(self: &Arc<Self>, owner: Owner) -> Room {
        Room { bodies: self.clone(), owner, eighths: OF_ANSWERS, beside: 0, bytes: 0 }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // All sums are changed together, by what cannot panic.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is held for one body. Dropped, it is free again.
pub(super) struct Room {
    bodies: Arc<Bodies>,
    owner: Owner,
    /// How much may be taken with it, of all and of what others leave.
    eighths: (usize, usize),
    /// What the same request holds in another room.
    beside: usize,
    bytes: usize,
}

impl Room {
    /// For a request that holds so much already.
    pub(super) fn beside(mut self, bytes: usize) -> Self {
        self.beside = bytes;
        self
    }

    /// Takes so much more.
    ///
    /// # Errors
    /// Where there is no more.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<()> {
        let (of_all, of_left) = self.eighths;
        let most_of_organization = self.bodies.most / 8 * of_all;
        let most_of_key = most_of_organization / 2;
        if self.beside.saturating_add(self.bytes).saturating_add(bytes) > most_of_key {
            return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "The body takes too much memory."));
        }
        let (organization, key) = self.owner;
        let mut held = self.bodies.lock();
        let held_of_key = held.keys.get(&key).map_or(bytes, |held| held + bytes);
        if held_of_key > most_of_key {
            let message = "The requests of this API key and their answers are too large together. Wait until one ends.";
            return Err(Refusal::rate_limited(message, SOON));
        }
        let held_of_organization = held.organizations.get(&organization).map_or(bytes, |held| held + bytes);
        if held_of_organization > most_of_organization {
            let message =
                "The requests of this organization and their answers are too large together. Wait until one ends.";
            return Err(Refusal::rate_limited(message, SOON));
        }
        let left_by_others = self.bodies.most.saturating_sub(held.all + bytes - held_of_organization);
        if held_of_organization > left_by_others / 8 * of_left && self.bytes + bytes > SMALL {
            return Err(Refusal::overloaded("The relay has too many large requests. Try again later.", SOON));
        }
        held.keys.insert(key, held_of_key);
        held.organizations.insert(organization, held_of_organization);
        held.all += bytes;
        self.bytes += bytes;
        Ok(())
    }

    /// Takes so much in all, if it is more.
    ///
    /// # Errors
    /// Where there is no more.
    fn grow_to(&mut self, bytes: usize) -> Result<()> {
        self.grow(bytes.saturating_sub(self.bytes))
    }

    /// Takes no more than so much any longer.
    fn shrink_to(&mut self, bytes: usize) {
        let less = self.bytes.saturating_sub(bytes);
        let (organization, key) = self.owner;
        let mut held = self.bodies.lock();
        held.all -= less;
        release(&mut held.organizations, organization, less);
        release(&mut held.keys, key, less);
        self.bytes -= less;
    }

    /// The body, which has the room for as long as anybody has it.
    pub(super) fn hold(self, body: impl AsRef<[u8]> + Send + 'static) -> Bytes {
        Bytes::from_owner(Housed { body, _room: self })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

fn release<K: Eq + Hash>(held: &mut HashMap<K, usize>, whose: K, bytes: usize) {
    if let Entry::Occupied(mut own) = held.entry(whose) {
        *own.get_mut() -= bytes;
        if *own.get() == 0 {
            own.remove();
        }
    }
}

struct Housed<B> {
    body: B,
    _room: Room,
}

impl<B: AsRef<[u8]>> AsRef<[u8]> for Housed<B> {
    fn as_ref(&self) -> &[u8] {
        self.body.as_ref()
    }
}

/// Reads the body of a request.
pub(super) async fn read(relay: &Relay, admitted: &Admitted, body: Body) -> Result<Bytes> {
    let room = relay.bodies.room_of_request(admitted.owner());
    match tokio::time::timeout(relay.limits.upload, collect(body, relay.limits.body, room)).await {
        Ok(collected) => collected,
        Err(_) => Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "The body did not come in time.")),
    }
}

async fn collect(body: Body, limit: usize, room: Room) -> Result<Bytes> {
    let mut gathered = Gathered::new(&body, limit, room);
    let mut body = Limited::new(body, limit);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|error| broken(&*error, limit))?.into_data() else { continue };
        gathered.add(data)?;
    }
    Ok(gathered.finish())
}

/// A body as it comes, in the room that it takes.
pub(super) struct Gathered {
    announced: usize,
    /// As a rule it comes in one piece, and is passed on as that.
    first: Bytes,
    all: Vec<u8>,
    room: Room,
}

impl Gathered {
    /// Nothing of it yet.
    pub(super) fn new(body: &impl hyper::body::Body, limit: usize, room: Room) -> Self {
        // As it is announced, so that it need not be moved as it grows. Memory that nothing was written to is none.
        let announced = body.size_hint().exact().and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
        Self { announced: announced.min(limit), first: Bytes::new(), all: Vec::new(), room }
    }

    /// What comes next.
    ///
    /// # Errors
    /// Where there is no more room.
    pub(super) fn add(&mut self, data: Bytes) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let Self { announced, first, all, room } = self;
        if first.is_empty() && all.is_empty() {
            room.grow(data.len())?;
            *first = data;
            return Ok(());
        }
        if all.is_empty() {
            all.reserve_exact((*announced).max(first.len()));
            all.extend_from_slice(&std::mem::take(first));
        }
        let length = all.len() + data.len();
        if length > all.capacity() {
            // It was not announced to be that long: it grows in steps, which count as soon as they are taken.
            let capacity = length.max(all.capacity() + all.capacity() / 2);
            room.grow_to(capacity)?;
            all.reserve_exact(capacity - all.len());
        } else {
            room.grow_to(length)?;
        }
        all.extend_from_slice(&data);
        Ok(())
    }

    /// All of it.
    pub(super) fn finish(mut self) -> Bytes {
        if self.all.is_empty() {
            return self.room.hold(self.first);
        }
        self.all.shrink_to_fit();
        self.room.shrink_to(self.all.capacity());
        self.room.hold(self.all)
    }
}

fn broken(error: &(dyn std::error::Error + Send + Sync + 'static), limit: usize) -> Refusal {
    if error.is::<LengthLimitError>() {
        let message = format!("The body is larger than {} MiB.", limit / (1024 * 1024));
        return Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, message);
    }
    Refusal::bad_request("The body broke off.")
}

/// How much memory a text in JSON takes once it is read into values, at most, and once more as it is written: whatever stands in it,
/// an object is a node of a tree, and what follows a comma or a colon is a value.
pub(super) fn memory_of_values(json: &[u8]) -> usize {
    const OBJECT: usize = 640;
    const VALUE: usize = 64;
    let (mut objects, mut values) = (0_usize, 0_usize);
    let mut rest = json;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'{' => objects += 1,
            b'[' | b',' | b':' => values += 1,
            b'"' => rest = after_text(rest),
            _ => {}
        }
    }
    objects.saturating_mul(OBJECT).saturating_add(values.saturating_mul(VALUE)).saturating_add(2 * json.len())
}

/// What stands after a text whose first quote was read.
fn after_text(mut rest: &[u8]) -> &[u8] {
    while let Some(place) = memchr::memchr2(b'"', b'\\', rest) {
        let length = if rest[place] == b'"' { 1 } else { 2 };
        rest = rest.get(place + length..).unwrap_or_default();
        if length == 1 {
            return rest;
        }
    }
    &[]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    #[test]
    fn a_key_and_an_organization_have_their_shares_of_what_there_is() {
        const MIB: usize = 1024 * 1024;
        let at = Timestamp::from_micros(0).unwrap();
        let owner = |organization: u8, key: u8| -> Owner {
            (OrganizationId::new(at, &[organization; 10]), ApiKeyId::new(at, &[key; 10]))
        };
        let bodies = Bodies::new(8 * MIB);
        let mut first = bodies.room_of_answer(owner(1, 1));
        // Requests leave something to answers.
        let mut request = bodies.room_of_request(owner(1, 1));
        request.grow(MIB).unwrap();
        assert_eq!(request.grow(MIB / 2 + 1).unwrap_err().status(), 413);
        first.grow(MIB / 2).unwrap();
        assert_eq!(bodies.room_of_request(owner(1, 1)).grow(1).unwrap_err().status(), 429);
        drop(request);
        let mut values = bodies.room_of_request(owner(1, 1)).beside(MIB);
        assert_eq!(values.grow(MIB / 2 + 1).unwrap_err().status(), 413);
        values.grow(MIB / 2).unwrap();
        drop(values);
        first.grow(MIB / 2).unwrap();
        first.grow(MIB).unwrap();
        assert_eq!(first.grow(1).unwrap_err().status(), 413);
        assert_eq!(bodies.room_of_answer(owner(1, 1)).grow(1).unwrap_err().status(), 429);
        let mut second = bodies.room_of_answer(owner(1, 2));
        second.grow(2 * MIB).unwrap();
        assert_eq!(bodies.room_of_answer(owner(1, 3)).grow(1).unwrap_err().status(), 429);
        // Of what others leave: the next organization has half, and the one after that half of what is left then, but for a quarter.
        let mut others = bodies.room_of_request(owner(2, 4));
        others.grow(3 * MIB / 2).unwrap();
        assert_eq!(bodies.room_of_request(owner(2, 5)).grow(SMALL + 1).unwrap_err().status(), 529);
        bodies.room_of_request(owner(2, 5)).grow(SMALL).unwrap();
        assert_eq!(bodies.room_of_request(owner(3, 6)).grow(MIB).unwrap_err().status(), 529);
        bodies.room_of_request(owner(3, 6)).grow(MIB / 16 * 15).unwrap();
        // Answers have three quarters of it.
        let mut answer = bodies.room_of_answer(owner(2, 5));
        answer.grow(3 * MIB / 2).unwrap();
        assert_eq!(answer.grow(1).unwrap_err().status(), 529);
        assert_eq!(bodies.room_of_answer(owner(3, 6)).grow(MIB / 4 * 3 + 1).unwrap_err().status(), 529);
        bodies.room_of_answer(owner(3, 6)).grow(MIB / 4 * 3).unwrap();
        drop(answer);
        // It is held as long as anybody has some of it.
        let part = first.hold(vec![0_u8; 50]).slice(10..20);
        assert_eq!(bodies.room_of_answer(owner(1, 1)).grow(1).unwrap_err().status(), 429);
        drop((part, others));
        bodies.room_of_answer(owner(1, 1)).grow(2 * MIB).unwrap();
        drop(second);
        let held = bodies.lock();
        assert!(held.all == 0 && held.keys.is_empty() && held.organizations.is_empty());
    }

    #[tokio::test]
    async fn what_was_not_announced_counts_as_it_grows() {
        let at = Timestamp::from_micros(0).unwrap();
        let owner = (OrganizationId::new(at, &[1; 10]), ApiKeyId::new(at, &[1; 10]));
        let collected = async |most_of_key: usize| {
            let bodies = Bodies::new(most_of_key.div_ceil(3) * 16);
            let parts = (0..100).map(|_| Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; 5_000])));
            let body = Body::from_stream(futures_util::stream::iter(parts));
            let collected = collect(body, 1024 * 1024, bodies.room_of_request(owner)).await;
            collected.map(|body| (body.len(), bodies.lock().all))
        };
        // It grows by half at a time, as it comes; there is no more of it than of the body in the end.
        assert_eq!(collected(510_000).await.unwrap_err().status(), 413);
        assert_eq!(collected(750_000).await.unwrap(), (500_000, 500_000));
    }

    #[test]
    fn many_small_values_take_more_than_their_text() {
        let (objects, text) = (br#"[{"a":0},{"a":0}]"#, br#"["{{{{,,,,\"{{{{"]"#);
        assert_eq!(memory_of_values(objects), 2 * 640 + 4 * 64 + 2 * objects.len());
        assert_eq!(memory_of_values(text), 64 + 2 * text.len());
        assert_eq!(memory_of_values(b"\"\\"), 4);
    }
}
