//! Custom scalars.

use async_graphql::{InputValueError, InputValueResult, Scalar, ScalarType, Value};
use chrono::SecondsFormat;

use crate::model::Timestamp;

/// An instant by RFC 3339, in UTC and with milliseconds, like `2026-11-21T09:30:00.000Z`.
#[derive(Debug, Clone, Copy)]
pub(super) struct DateTime(pub(super) Timestamp);

/// An instant by RFC 3339, in UTC and with milliseconds, like `2026-11-21T09:30:00.000Z`.
#[Scalar(specified_by_url = "https://scalars.graphql.org/andimarek/date-time")]
impl ScalarType for DateTime {
    fn parse(value: Value) -> InputValueResult<Self> {
        match &value {
            Value::String(text) => chrono::DateTime::parse_from_rfc3339(text)
                .map(|time| Self(time.to_utc().into()))
                .map_err(|_| InputValueError::custom("is not a date and time by RFC 3339")),
            _ => Err(InputValueError::expected_type(value)),
        }
    }

    fn is_valid(value: &Value) -> bool {
        matches!(value, Value::String(_))
    }

    fn to_value(&self) -> Value {
        Value::String(self.0.to_utc().to_rfc3339_opts(SecondsFormat::Millis, true))
    }
}

impl From<Timestamp> for DateTime {
    fn from(time: Timestamp) -> Self {
        Self(time)
    }
}

/// Any JSON value. Where a field says so, it must be an object.
#[derive(Debug, Clone)]
pub(super) struct Json(pub(super) serde_json::Value);

/// Any JSON value. Where a field says so, it must be an object.
#[Scalar(name = "JSON", specified_by_url = "https://www.rfc-editor.org/rfc/rfc8259")]
impl ScalarType for Json {
    fn parse(value: Value) -> InputValueResult<Self> {
        value.into_json().map(Self).map_err(|_| InputValueError::custom("is not JSON"))
    }

    fn to_value(&self) -> Value {
        Value::from_json(self.0.clone()).unwrap_or_default()
    }
}

/// A whole number between -(2^53 - 1) and 2^53 - 1, as a JSON number: counts of tokens outgrow `Int`.
#[derive(Debug, Clone, Copy)]
pub(super) struct BigInt(pub(super) i64);

/// An exact decimal number, as a string like `"12.50"`.
#[derive(Debug, Clone)]
pub(super) struct Decimal(pub(super) String);

/// An exact decimal number, as a string like `"12.50"`.
#[Scalar(specified_by_url = "https://speleotrove.com/decimal/decarith.html")]
impl ScalarType for Decimal {
    fn parse(value: Value) -> InputValueResult<Self> {
        match value {
            Value::String(text) => Ok(Self(text)),
            Value::Number(_) => Err(InputValueError::custom("is not a decimal number in a string, like \"12.50\"")),
            _ => Err(InputValueError::expected_type(value)),
        }
    }

    // A number is let through to where it is told what is meant.
    fn is_valid(value: &Value) -> bool {
        matches!(value, Value::String(_) | Value::Number(_))
    }

    fn to_value(&self) -> Value {
        Value::String(self.0.clone())
    }
}

/// What JavaScript calls `Number.MAX_SAFE_INTEGER`.
const MAX_SAFE_INTEGER: u64 = (1 << 53) - 1;

/// A whole number between -(2^53 - 1) and 2^53 - 1, as a JSON number: counts of tokens outgrow `Int`.
#[Scalar(specified_by_url = "https://262.ecma-international.org/#sec-number.max_safe_integer")]
impl ScalarType for BigInt {
    fn parse(value: Value) -> InputValueResult<Self> {
        match &value {
            Value::Number(number) => number
                .as_i64()
                .filter(|number| number.unsigned_abs() <= MAX_SAFE_INTEGER)
                .map(Self)
                .ok_or_else(|| InputValueError::custom("is not a whole number up to 2^53 - 1")),
            _ => Err(InputValueError::expected_type(value)),
        }
    }

    fn is_valid(value: &Value) -> bool {
        matches!(value, Value::Number(_))
    }

    fn to_value(&self) -> Value {
        Value::Number(self.0.into())
    }
}
