//! Documents, parsed once and kept by the SHA-256 of their text, which is what persisted queries are asked for by.

use std::sync::Arc;

use async_graphql::parser::types::ExecutableDocument;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::crypto::sha256;
use crate::graphql::Api;
use crate::graphql::walls::{Measured, Refusal, Walls};

/// How many bytes of text are kept at most; a parsed document takes some twenty times as much memory.
const CAPACITY: u64 = 1 << 20;
const ESTIMATED_DOCUMENTS: usize = 1_000;

/// A document that has passed the walls that do not depend on variables.
pub(super) struct Document {
    pub(super) parsed: ExecutableDocument,
    pub(super) measured: Measured,
    length: u64,
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
        document.length.max(1)
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

    /// The parsed document. One that is refused is not kept.
    ///
    /// # Errors
    /// Where it is not GraphQL, or outgrows the walls.
    pub(super) fn parse(&self, text: &str, hash: Option<[u8; 32]>, api: &Api) -> Result<Arc<Document>, Refusal> {
        let hash = hash.unwrap_or_else(|| sha256(text.as_bytes()));
        if let Some(document) = self.find(&hash) {
            return Ok(document);
        }
        let parsed = self.walls.parse(text)?;
        let measured = self.walls.measure(&parsed, api.types())?;
        let document = Arc::new(Document { parsed, measured, length: text.len() as u64 });
        self.cache.insert(hash, document.clone());
        Ok(document)
    }

    pub(super) fn walls(&self) -> &Walls {
        &self.walls
    }
}
