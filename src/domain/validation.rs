//! Checking input: every failing field is gathered, and all are named at once.

use std::borrow::Cow;
use std::ops::RangeInclusive;

use serde_json::Value;

use super::error::{Error, FieldError, Result};
use crate::model::{Email, Id, JsonObject, Kind, breaks_a_line};

/// Longer than any name or address that is looked for.
const SEARCH_LENGTH: usize = 200;

/// Checks what is searched for.
///
/// # Errors
/// Where it is too long.
pub(super) fn check_search(text: Option<&str>) -> Result<()> {
    if text.is_some_and(|text| text.chars().count() > SEARCH_LENGTH) {
        let message = format!("must have at most {SEARCH_LENGTH} characters").into();
        return Err(Error::bad_input(vec![FieldError { path: vec!["search"], message }]));
    }
    Ok(())
}

/// A field of an update: left as it is, cleared, or set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Patch<T> {
    /// Not named in the input.
    #[default]
    Keep,
    /// An explicit null.
    Clear,
    /// A new value.
    Set(T),
}

impl<T> Patch<T> {
    /// The new value of a field that may be empty.
    pub(super) fn or_keep<U>(self, current: Option<U>, check: impl FnOnce(T) -> Option<U>) -> Option<U> {
        match self {
            Self::Keep => current,
            Self::Clear => None,
            Self::Set(value) => check(value),
        }
    }
}

/// The fields that were found wrong so far. A check that fails notes the field and returns `None`.
#[derive(Debug, Default)]
pub(super) struct Checks(Vec<FieldError>);

impl Checks {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Notes that a field is wrong. The message follows the field's name in a sentence.
    pub(super) fn fail(&mut self, field: &'static str, message: impl Into<Cow<'static, str>>) {
        self.0.push(FieldError { path: vec!["input", field], message: message.into() });
    }

    /// # Errors
    /// Where a field was found wrong.
    pub(super) fn finish(self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::bad_input(self.0)) }
    }

    /// The new value of a field that may not be empty.
    pub(super) fn required<T, U>(
        &mut self,
        field: &'static str,
        patch: Patch<T>,
        current: U,
        check: impl FnOnce(&mut Self, T) -> Option<U>,
    ) -> U {
        match patch {
            Patch::Keep => current,
            Patch::Clear => {
                self.fail(field, "cannot be null");
                current
            }
            Patch::Set(value) => check(self, value).unwrap_or(current),
        }
    }

    /// One line of text, trimmed, of so many characters.
    pub(super) fn line(&mut self, field: &'static str, text: &str, length: RangeInclusive<usize>) -> Option<String> {
        let text = text.trim();
        let characters = text.chars().count();
        if !length.contains(&characters) {
            self.fail(field, format!("must have {} to {} characters", length.start(), length.end()));
            None
        } else if text.contains(breaks_a_line) {
            self.fail(field, "must not have control characters");
            None
        } else {
            Some(text.to_owned())
        }
    }

    /// Text of several lines, of so many characters at most; the ends of lines become those of Unix.
    pub(super) fn text(&mut self, field: &'static str, text: &str, most: usize) -> Option<String> {
        let text = text.trim().replace("\r\n", "\n");
        if text.is_empty() || text.chars().count() > most {
            self.fail(field, format!("must have 1 to {most} characters"));
            None
        } else if text.chars().any(|character| character.is_control() && !matches!(character, '\n' | '\t')) {
            self.fail(field, "must not have control characters other than tabs and ends of lines");
            None
        } else {
            Some(text)
        }
    }

    /// The id of what the field refers to.
    pub(super) fn id<K: Kind>(&mut self, field: &'static str, text: &str) -> Option<Id<K>> {
        self.noting(field, text.parse())
    }

    pub(super) fn email(&mut self, field: &'static str, text: &str) -> Option<Email> {
        self.noting(field, text.parse())
    }

    pub(super) fn object(&mut self, field: &'static str, value: Value) -> Option<JsonObject> {
        self.noting(field, value.try_into())
    }

    pub(super) fn positive(&mut self, field: &'static str, number: i64) -> Option<i64> {
        if number > 0 {
            Some(number)
        } else {
            self.fail(field, "must be greater than 0");
            None
        }
    }

    /// A number in a range.
    pub(super) fn within<N, B>(&mut self, field: &'static str, number: N, range: &RangeInclusive<B>) -> Option<N>
    where
        N: Copy + Into<i64>,
        B: Copy + Into<i64> + std::fmt::Display,
    {
        let (from, to): (i64, i64) = ((*range.start()).into(), (*range.end()).into());
        if (from..=to).contains(&number.into()) {
            Some(number)
        } else {
            self.fail(field, format!("must be {from} to {to}"));
            None
        }
    }

    /// The value, or a note of what its error says.
    pub(super) fn noting<T, E: std::fmt::Display>(
        &mut self,
        field: &'static str,
        result: std::result::Result<T, E>,
    ) -> Option<T> {
        result.map_err(|error| self.fail(field, error.to_string())).ok()
    }
}
