//! JSON objects of bounded size and depth: what callers may attach to a record.

use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Value};

/// A JSON object of at most [`JsonObject::MAX_BYTES`] as text and [`JsonObject::MAX_DEPTH`] levels.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JsonObject(Map<String, Value>);

/// Not an object, too large or too deep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a JSON object of at most 64 KiB and 64 levels")]
pub struct InvalidJsonObject;

impl JsonObject {
    /// The most bytes that it may have as text.
    pub const MAX_BYTES: usize = 64 * 1024;
    /// The most levels of objects and arrays that it may have, itself included. 128 can be read back from text, and the audit
    /// log and the API put more around it.
    pub const MAX_DEPTH: usize = 64;

    /// As a JSON value.
    #[must_use]
    pub fn to_value(&self) -> Value {
        Value::Object(self.0.clone())
    }
}

impl TryFrom<Value> for JsonObject {
    type Error = InvalidJsonObject;

    fn try_from(value: Value) -> Result<Self, InvalidJsonObject> {
        match value {
            Value::Object(map) if map.values().all(|value| fits(value, Self::MAX_DEPTH - 1)) => {
                let object = Self(map);
                if object.to_string().len() > Self::MAX_BYTES { Err(InvalidJsonObject) } else { Ok(object) }
            }
            _ => Err(InvalidJsonObject),
        }
    }
}

fn fits(value: &Value, levels: usize) -> bool {
    match value {
        Value::Object(map) => levels > 0 && map.values().all(|value| fits(value, levels - 1)),
        Value::Array(list) => levels > 0 && list.iter().all(|value| fits(value, levels - 1)),
        _ => true,
    }
}

impl fmt::Display for JsonObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(&self.0).map_err(|_| fmt::Error)?)
    }
}

impl FromStr for JsonObject {
    type Err = serde_json::Error;

    fn from_str(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text).map(Self)
    }
}
