//! Documents, parsed once and kept by the SHA-256 of their text, which is what persisted queries are asked for by.

use std::sync::Arc;

use async_graphql::parser::types::{ExecutableDocument, OperationDefinition};
use async_graphql::{ServerError, Variables};
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::crypto::sha256;
use crate::graphql::Api;
use crate::graphql::collected::{Collected, collect};
use crate::graphql::schema_types::SchemaTypes;
use crate::graphql::walls::{Measured, Refusal, Walls};

/// How much memory they take at most, in bytes, by these estimates.
const CAPACITY: u64 = 32 << 20;
const WEIGHT_OF_DOCUMENT: usize = 2_048;
const WEIGHT_OF_BYTE: usize = 24;
const WEIGHT_OF_FIELD: usize = 384;
const ESTIMATED_DOCUMENTS: usize = 1_000;

/// A valid document that has passed the walls that do not depend on variables.
pub(super) struct Document {
    pub(super) parsed: ExecutableDocument,
    pub(super) measured: Measured,
    /// Its operation, where there is one and it is the same whatever the variables.
    collected: Option<Arc<Collected>>,
    weight: u64,
}

impl Document {
    /// The operation at this place, collected.
    ///
    /// # Errors
    /// Where it has too many fields, or two that differ under one key.
    pub(super) fn collect(
        &self,
        operation: usize,
        variables: &Variables,
        types: &SchemaTypes,
    ) -> Result<Arc<Collected>, Refusal> {
        match (&self.collected, self.operation(operation)) {
            (Some(collected), _) => Ok(collected.clone()),
            (None, Some(operation)) => {
                let collected = collect(types, &self.parsed, operation, Some(variables))?;
                collected.map(Arc::new).ok_or_else(Refusal::no_operation)
            }
            (None, None) => Err(Refusal::no_operation()),
        }
    }

    /// The operation at this place.
    pub(super) fn operation(&self, place: usize) -> Option<&OperationDefinition> {
        self.parsed.operations.iter().nth(place).map(|(_, operation)| &operation.node)
    }
}

/// Why a document is not executed.
pub(super) enum Rejected {
    Refused(Refusal),
    Invalid(Vec<ServerError>),
}

impl From<Refusal> for Rejected {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// The documents that were seen lately.
pub(super) struct Documents {
    cache: Cache<[u8; 32], Arc<Document>, ByLength>,
    walls: Walls,
}

#[derive(Clone)]
struct ByLength;

impl Weighter<[u8; 32], Arc<Document>> for ByLength {
    fn weight(&self, _: &[u8; 32], document: &Arc<Document>) -> u64 {
        document.weight
    }
}

impl Documents {
    /// None yet; with or without introspection.
    pub(super) fn new(introspection: bool) -> Self {
        let walls = Walls { introspection, ..Walls::default() };
        Self { cache: Cache::with_weighter(ESTIMATED_DOCUMENTS, CAPACITY, ByLength), walls }
    }

    /// The document with this hash, if it is kept.
    pub(super) fn find(&self, hash: &[u8; 32]) -> Option<Arc<Document>> {
        self.cache.get(hash)
    }

    /// The parsed document. One that is refused or not valid is not kept.
    ///
    /// # Errors
    /// Where it is not GraphQL, outgrows the walls or does not fit the schema.
    pub(super) async fn parse(&self, text: &str, hash: Option<[u8; 32]>, api: &Api) -> Result<Arc<Document>, Rejected> {
        let hash = hash.unwrap_or_else(|| sha256(text.as_bytes()));
        if let Some(document) = self.find(&hash) {
            return Ok(document);
        }
        let parsed = self.walls.parse(text)?;
        let measured = self.walls.measure(&parsed, api.types())?;
        let errors = api.validate(&parsed).await;
        if !errors.is_empty() {
            return Err(Rejected::Invalid(errors));
        }
        let mut operations = parsed.operations.iter();
        let collected = match (operations.next(), operations.next()) {
            (Some((_, only)), None) => collect(api.types(), &parsed, &only.node, None)?,
            _ => None,
        };
        let fields = collected.as_ref().map_or(0, |collected| collected.size);
        let weight = (text.len() * WEIGHT_OF_BYTE + fields * WEIGHT_OF_FIELD + WEIGHT_OF_DOCUMENT) as u64;
        let document = Arc::new(Document { parsed, measured, collected: collected.map(Arc::new), weight });
        self.cache.insert(hash, document.clone());
        Ok(document)
    }

    pub(super) fn walls(&self) -> &Walls {
        &self.walls
    }
}
