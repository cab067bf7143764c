//! What changed, built from an allow-list of fields: what a type does not name does not stand in the log, and what it names
//! as a secret can only show as redacted.

use serde_json::{Map, Value, json};

/// How a secret shows, on both sides of a change.
const REDACTED: &str = "[redacted]";

/// A field's value as the audit log may see it.
#[derive(Debug, Clone, PartialEq)]
pub enum Field {
    /// Shown as it is.
    Plain(Value),
    /// Only that it changed is shown. The bytes tell one secret from another and are not the secret: a fingerprint.
    Secret(Vec<u8>),
}

impl Field {
    /// A field that is shown.
    pub fn plain(value: impl Into<Value>) -> Self {
        Self::Plain(value.into())
    }

    fn shown(&self) -> Value {
        match self {
            Self::Plain(value) => value.clone(),
            Self::Secret(_) => REDACTED.into(),
        }
    }
}

/// A record whose changes are audited.
pub trait Recorded {
    /// The fields that the audit log shows, by their names in the API.
    fn fields(&self) -> Vec<(&'static str, Field)>;
}

/// The fields that differ: `{ field: { from, to } }`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Changes(Map<String, Value>);

impl Changes {
    /// Of a new record: every field that is not null.
    #[must_use]
    pub fn created(record: &impl Recorded) -> Self {
        Self::one_sided(record, "to")
    }

    /// Of a record that is gone.
    #[must_use]
    pub fn deleted(record: &impl Recorded) -> Self {
        Self::one_sided(record, "from")
    }

    /// Of a record that was changed.
    #[must_use]
    pub fn between<R: Recorded>(before: &R, after: &R) -> Self {
        let pairs = before.fields().into_iter().zip(after.fields());
        Self(
            pairs
                .filter(|((_, before), (_, after))| before != after)
                .map(|((name, before), (_, after))| {
                    (name.to_owned(), json!({ "from": before.shown(), "to": after.shown() }))
                })
                .collect(),
        )
    }

    fn one_sided(record: &impl Recorded, side: &str) -> Self {
        let fields = record.fields().into_iter().filter(|(_, field)| *field != Field::Plain(Value::Null));
        Self(fields.map(|(name, field)| (name.to_owned(), json!({ side: field.shown() }))).collect())
    }

    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As text, for the entry.
    #[must_use]
    pub fn to_text(&self) -> Option<String> {
        (!self.is_empty()).then(|| Value::Object(self.0.clone()).to_string())
    }
}
