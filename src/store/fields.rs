//! Field types with one meaning on every database: times, and values that are kept as text.

use std::collections::BTreeSet;

use chrono::{DateTime, SecondsFormat, Utc};
use diesel::backend::Backend;
use diesel::deserialize::{self, FromSql, Queryable};
use diesel::expression::AsExpression;
use diesel::internal::derives::as_expression::Bound;
use diesel::pg::{Pg, PgValue};
use diesel::query_builder::QueryId;
use diesel::serialize::{self, IsNull, Output, ToSql};
use diesel::sql_types::{Nullable, SingleValue, SqlOrd, SqlType, Text, Timestamptz};
use diesel::sqlite::Sqlite;
use unicode_normalization::UnicodeNormalization;

use crate::model::{
    AllowedIps, AllowedModels, ApiKeyScopes, AuditAction, AuditOutcome, ClaudeAccountHealthState, ClaudeAccountStatus,
    ClaudeTier, ClientStatus, Email, Id, JsonObject, Kind, MailTokenPurpose, MessageRole, NotificationKind, Permission,
    Plan, ResourceType, Role, TaskPriority, TaskStatus, Timestamp, UsageInterval, UserStatus,
};

/// `timestamptz` on PostgreSQL; on SQLite RFC 3339 text of fixed width, which sorts by time. To the microsecond, as the
/// clock cuts it.
#[derive(Debug, Clone, Copy, Default, SqlType, QueryId)]
#[diesel(postgres_type(oid = 1184, array_oid = 1185))]
#[diesel(sqlite_type(name = "Text"))]
pub struct UtcTimestamp;

impl SqlOrd for UtcTimestamp {}

impl ToSql<UtcTimestamp, Pg> for Timestamp {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
        // The converted value does not live long enough to be borrowed by the output.
        ToSql::<Timestamptz, Pg>::to_sql(&self.to_utc(), &mut out.reborrow())
    }
}

impl FromSql<UtcTimestamp, Pg> for Timestamp {
    fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
        <DateTime<Utc> as FromSql<Timestamptz, Pg>>::from_sql(value).map(Self::from)
    }
}

impl ToSql<UtcTimestamp, Sqlite> for Timestamp {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Sqlite>) -> serialize::Result {
        out.set_value(self.to_utc().to_rfc3339_opts(SecondsFormat::Micros, true));
        Ok(IsNull::No)
    }
}

impl FromSql<UtcTimestamp, Sqlite> for Timestamp {
    fn from_sql(value: <Sqlite as Backend>::RawValue<'_>) -> deserialize::Result<Self> {
        let text = <String as FromSql<Text, Sqlite>>::from_sql(value)?;
        let time = Self::from(DateTime::parse_from_rfc3339(&text)?.to_utc());
        // The one text of an instant: another would sort elsewhere, and the audit log's hash would not see it.
        if time.to_text() == text { Ok(time) } else { Err("a time is not written as all are".into()) }
    }
}

macro_rules! expressions {
    ($generics:tt $sql_type:ty: $($expression:ty),+) => {
        $(expressions!(@one $generics $sql_type, $expression);)+
    };
    (@one [$($generics:tt)*] $sql_type:ty, $expression:ty) => {
        impl<'expr, 'query, $($generics)*> AsExpression<$sql_type> for $expression {
            type Expression = Bound<$sql_type, Self>;

            fn as_expression(self) -> Self::Expression {
                Bound::new(self)
            }
        }
    };
}

expressions!([] UtcTimestamp: Timestamp, &'expr Timestamp, &'expr &'query Timestamp);
expressions!([] Nullable<UtcTimestamp>: Timestamp, &'expr Timestamp, &'expr &'query Timestamp);

impl<DB: Backend> ToSql<Nullable<UtcTimestamp>, DB> for Timestamp
where
    Self: ToSql<UtcTimestamp, DB>,
{
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, DB>) -> serialize::Result {
        ToSql::<UtcTimestamp, DB>::to_sql(self, out)
    }
}

impl<DB: Backend, ST: SingleValue> Queryable<ST, DB> for Timestamp
where
    Self: FromSql<ST, DB>,
{
    type Row = Self;

    fn build(row: Self) -> deserialize::Result<Self> {
        Ok(row)
    }
}

/// A database of which text is read where it lies: most of what is read is parsed, and needs no copy.
pub(super) trait ReadText: Backend {
    fn read_text<T>(value: Self::RawValue<'_>, read: impl FnOnce(&str) -> T) -> deserialize::Result<T>;
}

impl ReadText for Pg {
    fn read_text<T>(value: Self::RawValue<'_>, read: impl FnOnce(&str) -> T) -> deserialize::Result<T> {
        Ok(read(std::str::from_utf8(value.as_bytes())?))
    }
}

impl ReadText for Sqlite {
    fn read_text<T>(mut value: Self::RawValue<'_>, read: impl FnOnce(&str) -> T) -> deserialize::Result<T> {
        Ok(read(value.read_text()))
    }
}

/// Keeps a type of `model` as text, by a function to text and `FromStr`.
macro_rules! text_fields {
    ($([$($generics:tt)*] $field:ty: |$value:ident| $text:expr;)+) => {$(
        impl<$($generics)* DB: ReadText> FromSql<Text, DB> for $field {
            fn from_sql(value: DB::RawValue<'_>) -> deserialize::Result<Self> {
                // Without the text: it may be long, and it may be what its owner would not have in the log.
                DB::read_text(value, |text| text.parse::<Self>())?
                    .map_err(|error| format!("the stored {}: {error}", stringify!($field)).into())
            }
        }

        impl<$($generics)* DB: Backend, ST: SingleValue> Queryable<ST, DB> for $field
        where
            Self: FromSql<ST, DB>,
        {
            type Row = Self;

            fn build(row: Self) -> deserialize::Result<Self> {
                Ok(row)
            }
        }

        impl<$($generics)*> ToSql<Text, Pg> for $field {
            fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
                let $value = self;
                ToSql::<Text, Pg>::to_sql(&$text.to_string(), &mut out.reborrow())
            }
        }

        impl<$($generics)*> ToSql<Text, Sqlite> for $field {
            fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Sqlite>) -> serialize::Result {
                let $value = self;
                out.set_value($text.to_string());
                Ok(IsNull::No)
            }
        }

        expressions!([$($generics)*] Text: $field, &'expr $field, &'expr &'query $field);
        expressions!([$($generics)*] Nullable<Text>: $field, &'expr $field, &'expr &'query $field);

        impl<$($generics)* DB: Backend> ToSql<Nullable<Text>, DB> for $field
        where
            Self: ToSql<Text, DB>,
        {
            fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, DB>) -> serialize::Result {
                ToSql::<Text, DB>::to_sql(self, out)
            }
        }
    )+};
}

text_fields! {
    [K: Kind,] Id<K>: |id| id;
    [] Email: |email| email.as_str();
    [] JsonObject: |object| object;
    [] Plan: |name| name.as_str();
    [] Role: |name| name.as_str();
    [] UserStatus: |name| name.as_str();
    [] MailTokenPurpose: |name| name.as_str();
    [] MessageRole: |name| name.as_str();
    [] NotificationKind: |name| name.as_str();
    [] Permission: |name| name.as_str();
    [] ClaudeAccountStatus: |name| name.as_str();
    [] ClaudeTier: |name| name.as_str();
    [] ClaudeAccountHealthState: |name| name.as_str();
    [] ClientStatus: |name| name.as_str();
    [] TaskStatus: |name| name.as_str();
    [] TaskPriority: |name| name.as_str();
    [] ApiKeyScopes: |scopes| scopes;
    [] AllowedIps: |blocks| blocks;
    [] AllowedModels: |patterns| patterns;
    [] AuditAction: |name| name.as_str();
    [] AuditOutcome: |name| name.as_str();
    [] ResourceType: |name| name.as_str();
    [] UsageInterval: |name| name.as_str();
}

/// A list to filter by, each value once: a database takes only so many, and the caller may repeat them.
pub(super) fn distinct<T: Ord + Copy>(values: &[T]) -> BTreeSet<T> {
    values.iter().copied().collect()
}

/// Text to filter by, unless it has a NUL: no row has one, and PostgreSQL cannot be asked for it.
pub(super) fn askable(text: &str) -> Option<&str> {
    (!text.contains('\0')).then_some(text)
}

/// Text as it is compared in searches and sorted in lists: lower case by Unicode, NFC. Databases fold only ASCII alike.
#[must_use]
pub fn fold(text: &str) -> String {
    text.to_lowercase().nfc().collect()
}

/// What is searched for, as it stands in a line of folded text.
pub(super) fn needle(text: &str) -> String {
    fold(text.trim()).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A pattern for LIKE … ESCAPE '\' that finds `needle` anywhere in a line of folded text.
pub(super) fn contains(needle: &str) -> String {
    let mut pattern = String::from("%");
    for character in self::needle(needle).chars() {
        if matches!(character, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern.push('%');
    pattern
}
