//! Server-sent events as they travel: cut into whole ones, and read without copying.

use axum::body::Bytes;
use memchr::memchr;

/// An event that does not end within this much is passed on in pieces.
const MAX_EVENT: usize = 1024 * 1024;

/// How much of an event's end may lie before a cut.
const MAX_END: usize = 3;

/// Cuts a stream of bytes between its events: what has begun waits until it is whole.
#[derive(Default)]
pub(super) struct Splitter {
    /// What has begun, and is not whole.
    begun: Vec<u8>,
    /// Whether some of that was passed on.
    is_inside: bool,
}

impl Splitter {
    /// Whole events, as their bytes came; empty: none is whole yet.
    pub(super) fn push(&mut self, bytes: &Bytes) -> Bytes {
        if self.begun.is_empty() {
            let end = self.cut(end_of_last(bytes, 0), bytes.len());
            self.begun.extend_from_slice(&bytes[end..]);
            return bytes.slice(..end);
        }
        // The end may lie across the two.
        let from = self.begun.len().saturating_sub(MAX_END);
        self.begun.extend_from_slice(bytes);
        let end = self.cut(end_of_last(&self.begun, from), self.begun.len());
        if end == 0 {
            return Bytes::new();
        }
        let rest = self.begun.split_off(end);
        Bytes::from(std::mem::replace(&mut self.begun, rest))
    }

    /// Whether what was passed on ends within an event.
    pub(super) fn is_inside(&self) -> bool {
        self.is_inside
    }

    /// How much is passed on of so many bytes, the last event of which ends there.
    fn cut(&mut self, end: usize, len: usize) -> usize {
        if len - end > MAX_EVENT {
            self.is_inside = true;
            // Its end is not missed, wherever that is cut.
            return len - MAX_END;
        }
        self.is_inside &= end == 0;
        end
    }
}

/// Where the last whole event ends; 0: none does. What stands before `from` has no end in it.
fn end_of_last(bytes: &[u8], from: usize) -> usize {
    let mut end = bytes.len();
    while let Some(newline) = memchr::memrchr(b'\n', &bytes[from..end]).map(|place| from + place) {
        let before = &bytes[..newline];
        let before = before.strip_suffix(b"\r").unwrap_or(before);
        if before.last() == Some(&b'\n') {
            return newline + 1;
        }
        end = newline;
    }
    0
}

/// One event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Event<'a> {
    /// Its name; none: it has none.
    pub(super) name: Option<&'a [u8]>,
    /// Its data, of the last line that has some: the API sends one.
    pub(super) data: &'a [u8],
}

/// The events of whole ones, one after the other.
pub(super) fn events(mut bytes: &[u8]) -> impl Iterator<Item = Event<'_>> {
    std::iter::from_fn(move || {
        let (mut name, mut data) = (None, None);
        while !bytes.is_empty() {
            let end = memchr(b'\n', bytes).unwrap_or(bytes.len());
            let line = &bytes[..end];
            bytes = bytes.get(end + 1..).unwrap_or_default();
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() {
                if let Some(data) = data {
                    return Some(Event { name, data });
                }
                name = None;
            } else if let Some(value) = field(line, b"data:") {
                data = Some(value);
            } else if let Some(value) = field(line, b"event:") {
                name = Some(value);
            }
        }
        data.map(|data| Event { name, data })
    })
}

fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let value = line.strip_prefix(name)?;
    Some(value.strip_prefix(b" ").unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STREAM: &[u8] =
        b"event: a\ndata: {\"x\":1}\n\n: comment\n\nevent: b\r\ndata:2\r\n\r\ndata: 3\n\nevent: c\ndata: 4\n";

    fn pushed(splitter: &mut Splitter, parts: &[&[u8]]) -> Vec<Bytes> {
        let pushed = parts.iter().map(|part| splitter.push(&Bytes::copy_from_slice(part)));
        pushed.filter(|bytes| !bytes.is_empty()).collect()
    }

    #[test]
    fn events_are_read_with_their_names() {
        let read: Vec<_> = events(STREAM).collect();
        let event = |name: Option<&'static [u8]>, data: &'static [u8]| Event { name, data };
        let expected =
            [event(Some(b"a"), b"{\"x\":1}"), event(Some(b"b"), b"2"), event(None, b"3"), event(Some(b"c"), b"4")];
        assert_eq!(read, expected);
    }

    #[test]
    fn an_event_of_enormous_size_is_passed_on_in_pieces() {
        let mut splitter = Splitter::default();
        let piece = vec![b'x'; MAX_EVENT / 2 + 1];
        let passed = pushed(&mut splitter, &[b"data: ", &piece, &piece, b"end\n\n"]);
        assert_eq!(passed.concat().len(), 6 + 2 * piece.len() + 5);
    }

    #[test]
    fn within_an_event_of_enormous_size_one_is_inside_until_it_ends_wherever_that_is_cut() {
        let mut splitter = Splitter::default();
        let mut push = |bytes: &[u8]| {
            let passed = splitter.push(&Bytes::copy_from_slice(bytes)).len();
            (passed, splitter.is_inside())
        };
        assert_eq!(push(b"data: small\n\n"), (13, false));
        let huge = vec![b'x'; MAX_EVENT + 1];
        assert_eq!(push(&[b"data: ", &huge[..], b"\r\n\r"].concat()), (6 + MAX_EVENT + 1, true));
        assert_eq!(push(b"\n"), (4, false));
        assert_eq!(push(&huge), (MAX_EVENT - 2, true));
        assert_eq!(push(b"x"), (0, true));
        assert_eq!(push(b"\n\ndata: b"), (6, false));
    }

    proptest! {
        #[test]
        fn however_it_is_cut_whole_events_come_out_and_no_byte_is_lost(cuts in prop::collection::vec(0..STREAM.len(), 0..8)) {
            let mut cuts = cuts;
            cuts.extend([0, STREAM.len()]);
            cuts.sort_unstable();
            let parts: Vec<_> = cuts.windows(2).map(|pair| &STREAM[pair[0]..pair[1]]).collect();
            let mut splitter = Splitter::default();
            let passed = pushed(&mut splitter, &parts);
            for bytes in &passed {
                prop_assert!(bytes.ends_with(b"\n\n") || bytes.ends_with(b"\n\r\n"));
            }
            let mut all = passed.concat();
            all.extend_from_slice(&splitter.begun);
            prop_assert_eq!(all, STREAM);
            let whole = STREAM.len() - b"event: c\ndata: 4\n".len();
            prop_assert_eq!(passed.concat().len(), whole);
        }
    }
}
