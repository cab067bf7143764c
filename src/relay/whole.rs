//! An answer that comes whole: it takes of the room that bodies have until its caller has read it, and is kept unread for no longer than
//! a stream.

use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use http_body_util::Limited;
use hyper::body::{Buf as _, Incoming, SizeHint};
use tokio::time::Instant;

use super::Relay;
use super::bodies::Gathered;
use super::error::Result;
use super::tally::Tally;
use super::upstream::{Incomplete, piece};
use super::watched::{Source, Watched};

/// More than the longest answer of a model is, and the images and documents that its tools may find.
const MAX_ANSWER: usize = 16 * 1024 * 1024;
/// How much of it is handed on at once.
const PIECE: usize = 64 * 1024;

/// Reads an answer to its end, in the caller's room.
///
/// # Errors
/// Where there is no more room: that is none of the account's doing. The upstream has answered, and charges for all of it: nobody is
/// to ask again, and what is not kept is counted, as far as it comes within a while.
pub(super) async fn gather(
    relay: &Relay,
    body: Incoming,
    tally: &mut Tally,
) -> Result<std::result::Result<Bytes, Incomplete>> {
    let mut gathered = Gathered::new(&body, MAX_ANSWER, relay.bodies.room_of_answer(tally.owner()));
    let mut body = Limited::new(body, MAX_ANSWER);
    let end = Instant::now() + relay.limits.longest;
    let mut received = 0;
    let refusal = loop {
        match piece(&mut body, &relay.limits, end).await {
            Ok(None) => return Ok(Ok(gathered.finish())),
            Err(how) => return Ok(Err(Incomplete { how, received })),
            Ok(Some(data)) => {
                received += data.len();
                if let Err(refusal) = gathered.add(data) {
                    break refusal;
                }
            }
        }
    };
    drop(gathered);
    tally.cuts_off(received);
    // Its caller waits, and has nothing of it.
    let end = end.min(Instant::now() + relay.limits.unread);
    while let Ok(Some(data)) = piece(&mut body, &relay.limits, end).await {
        received += data.len();
        tally.cuts_off(received);
    }
    Err(refusal.paid_for())
}

/// The body of such an answer. Who does not read it loses it.
pub(super) fn body_of(answer: Bytes, unread: Duration) -> Body {
    if answer.len() <= PIECE { Body::from(answer) } else { Body::new(Watched::over(Pieces(answer), unread)) }
}

/// What is left of an answer, piece by piece.
struct Pieces(Bytes);

impl Source for Pieces {
    fn poll(&mut self, _: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.0.is_empty() {
            return Poll::Ready(None);
        }
        // Copied, so that what waits to be sent does not hold all of it.
        let piece = Bytes::copy_from_slice(&self.0[..PIECE.min(self.0.len())]);
        self.0.advance(piece.len());
        Poll::Ready(Some(piece))
    }

    fn has_ended(&self) -> bool {
        self.0.is_empty()
    }

    fn size(&self) -> SizeHint {
        SizeHint::with_exact(self.0.len() as u64)
    }
}
