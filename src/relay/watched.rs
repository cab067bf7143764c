//! The body of an answer that is let go of where its caller does not read it: who does not read asks for nothing, and so is not seen by
//! the body itself.

use std::io;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// What a body is made of.
pub(super) trait Source: Send + 'static {
    /// What comes next.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>>;
    /// Whether nothing comes any more.
    fn has_ended(&self) -> bool;
    /// How much comes, as far as that is known.
    fn size(&self) -> SizeHint;
}

/// A body that is read, or let go of.
pub(super) struct Watched<S> {
    /// None: nobody has read it for too long.
    kept: Arc<Mutex<Option<Kept<S>>>>,
    _watch: AbortOnDropHandle<()>,
}

struct Kept<S> {
    source: S,
    /// When the caller was given something last.
    given: Instant,
    /// Whether the caller has not asked for more since.
    is_unread: bool,
}

impl<S: Source> Watched<S> {
    /// A body that may be unread for so long.
    pub(super) fn over(source: S, unread: Duration) -> Self {
        let kept = Arc::new(Mutex::new(Some(Kept { source, given: Instant::now(), is_unread: true })));
        let watch = tokio::spawn(watch(Arc::downgrade(&kept), unread));
        Self { kept, _watch: AbortOnDropHandle::new(watch) }
    }
}

async fn watch<S>(kept: Weak<Mutex<Option<Kept<S>>>>, unread: Duration) {
    let mut pause = unread;
    loop {
        tokio::time::sleep(pause).await;
        match look(&kept, unread) {
            ControlFlow::Continue(next) => pause = next,
            ControlFlow::Break(ended) => return drop(ended),
        }
    }
}

/// When to look again, or what has ended.
fn look<S>(kept: &Weak<Mutex<Option<Kept<S>>>>, unread: Duration) -> ControlFlow<Option<Kept<S>>, Duration> {
    let Some(kept) = kept.upgrade() else { return ControlFlow::Break(None) };
    let mut kept = lock(&kept);
    let waited = kept.as_ref().filter(|kept| kept.is_unread).map_or(Duration::ZERO, |kept| kept.given.elapsed());
    match unread.checked_sub(waited) {
        Some(left) if !left.is_zero() => ControlFlow::Continue(left),
        _ => ControlFlow::Break(kept.take()),
    }
}

fn lock<S>(kept: &Mutex<Option<Kept<S>>>) -> MutexGuard<'_, Option<Kept<S>>> {
    // After a panic the connection is closed, and what is kept dropped.
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: Source> Body for Watched<S> {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let mut lent = lock(&self.kept);
        let Some(kept) = &mut *lent else {
            return Poll::Ready(Some(Err(io::Error::new(io::ErrorKind::TimedOut, "the answer was not read"))));
        };
        let polled = kept.source.poll(cx);
        kept.is_unread = polled.is_ready();
        if kept.is_unread {
            kept.given = Instant::now();
        }
        polled.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.kept).as_ref().is_some_and(|kept| kept.source.has_ended())
    }

    fn size_hint(&self) -> SizeHint {
        lock(&self.kept).as_ref().map(|kept| kept.source.size()).unwrap_or_default()
    }
}
