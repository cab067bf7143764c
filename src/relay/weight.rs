//! How many tokens a request is, before an upstream has counted them: at most, for what is reserved, and about, for what no upstream
//! will tell any more. docs/decisions/budgets.md has the bound.

use std::fmt;
use std::marker::PhantomData;
use std::ops::AddAssign;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Characters of a token, as a rule.
pub(super) const CHARACTERS: u64 = 4;
/// Bytes of a token, of texts in all scripts and of code: only of random signs it is less.
const FEWEST_BYTES: u64 = 2;
/// No upstream takes a longer prompt, and none charges for what it refuses.
const LONGEST: u64 = 1_000_000;
/// Nor does any model give a longer answer.
pub(super) const LONGEST_ANSWER: u64 = 128_000;
/// An image, as a rule and at most.
const IMAGE: u64 = 1_600;
const LARGEST_IMAGE: u64 = 5_000;
/// Bytes of a document's data to a token, as a rule. There are such of text alone, with as many tokens as a text.
const DOCUMENT_BYTES: u64 = 20;
/// A document that the upstream fetches, as a rule and at most.
const DOCUMENT: u64 = 10_000;
const LARGEST_DOCUMENT: u64 = 300_000;
/// What one use of a tool at the upstream adds to a prompt.
const SERVER_TOOL_USE: u64 = 10_000;
/// How often such a tool is used where the request does not say, and at most.
const USES: u64 = 10;
const MOST_USES: u64 = 100;

/// How much a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Weight {
    /// How many tokens its prompt is at most.
    pub(super) input: u64,
    /// How many searches there may be at most.
    pub(super) searches: u64,
    /// How many tokens its prompt is, as a rule.
    pub(super) about: u64,
}

/// How much a request is, read once.
pub(super) fn of(body: &[u8]) -> Weight {
    let special = Special::of(body);
    let text = (body.len() as u64).saturating_sub(special.image_data);
    let prompt = text.div_ceil(FEWEST_BYTES) + special.images * LARGEST_IMAGE + special.documents * LARGEST_DOCUMENT;
    let text = text.saturating_sub(special.document_data);
    let data = special.document_data.div_ceil(DOCUMENT_BYTES);
    let about = text.div_ceil(CHARACTERS) + data + special.images * IMAGE + special.documents * DOCUMENT;
    Weight {
        input: prompt.min(LONGEST) + special.uses.saturating_mul(SERVER_TOOL_USE),
        searches: special.searches,
        about: about.min(LONGEST),
    }
}

/// What of a request is no text.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Special {
    images: u64,
    /// How long their data is.
    image_data: u64,
    document_data: u64,
    /// Documents that the upstream fetches.
    documents: u64,
    /// Uses of tools at the upstream, and how many of those are searches.
    uses: u64,
    searches: u64,
}

impl Special {
    /// Only where the API sees an image it is one: what looks like it elsewhere, as in the input of a tool, is text.
    fn of(body: &[u8]) -> Self {
        let Ok(request) = serde_json::from_slice::<Request>(body) else {
            // It has no form that the API has, as far as is known here: it may be anything.
            return Self { documents: 1, uses: MOST_USES, searches: MOST_USES, ..Self::default() };
        };
        let mut special = request.messages.0;
        special += request.system.0;
        special += request.tools.0;
        special += request.mcp_servers.0;
        special
    }
}

impl AddAssign for Special {
    fn add_assign(&mut self, more: Self) {
        self.images += more.images;
        self.image_data += more.image_data;
        self.document_data += more.document_data;
        self.documents += more.documents;
        self.uses += more.uses;
        self.searches += more.searches;
    }
}

#[derive(Deserialize)]
struct Request {
    #[serde(default)]
    messages: Sum<Turn>,
    #[serde(default)]
    system: Sum<Block>,
    #[serde(default)]
    tools: Sum<Tool>,
    #[serde(default)]
    mcp_servers: Sum<Server>,
}

#[derive(Deserialize)]
struct Turn {
    #[serde(default)]
    content: Sum<Block>,
}

#[derive(Deserialize)]
struct Block {
    #[serde(rename = "type", default)]
    kind: Kind,
    #[serde(default)]
    source: OneOrNone<Source>,
    #[serde(default)]
    content: Sum<Block>,
}

#[derive(Default)]
enum Kind {
    Image,
    Document,
    #[default]
    Other,
}

#[derive(Default, Deserialize)]
struct Source {
    #[serde(rename = "type", default)]
    kind: SourceKind,
    #[serde(default)]
    data: Length,
    #[serde(default)]
    content: Sum<Block>,
}

#[derive(Default)]
enum SourceKind {
    Base64,
    /// By its URL, or by the id of a file.
    Elsewhere,
    #[default]
    Other,
}

/// How long a text is.
#[derive(Default)]
struct Length(u64);

#[derive(Deserialize)]
struct Tool {
    #[serde(rename = "type", default)]
    kind: ToolKind,
    #[serde(default)]
    max_uses: Option<u64>,
}

#[derive(Default)]
enum ToolKind {
    Search,
    Server,
    #[default]
    Own,
}

/// A server of tools that the upstream asks.
#[derive(Deserialize)]
struct Server {}

impl From<Turn> for Special {
    fn from(turn: Turn) -> Self {
        turn.content.0
    }
}

impl From<Block> for Special {
    fn from(block: Block) -> Self {
        let Block { kind, source: OneOrNone(source), content: Sum(mut special, _) } = block;
        special += source.content.0;
        match (kind, source.kind) {
            (Kind::Image, SourceKind::Base64) => {
                special.images += 1;
                special.image_data += source.data.0;
            }
            (Kind::Image, SourceKind::Elsewhere) => special.images += 1,
            (Kind::Document, SourceKind::Base64) => special.document_data += source.data.0,
            (Kind::Document, SourceKind::Elsewhere) => special.documents += 1,
            _ => {}
        }
        special
    }
}

impl From<Tool> for Special {
    fn from(tool: Tool) -> Self {
        let uses = tool.max_uses.unwrap_or(USES).min(MOST_USES);
        match tool.kind {
            ToolKind::Search => Self { uses, searches: uses, ..Self::default() },
            ToolKind::Server => Self { uses, ..Self::default() },
            ToolKind::Own => Self::default(),
        }
    }
}

impl From<Server> for Special {
    fn from(_: Server) -> Self {
        Self { uses: USES, ..Self::default() }
    }
}

impl From<&str> for Kind {
    fn from(name: &str) -> Self {
        match name {
            "image" => Self::Image,
            "document" => Self::Document,
            _ => Self::Other,
        }
    }
}

impl From<&str> for SourceKind {
    fn from(name: &str) -> Self {
        match name {
            "base64" => Self::Base64,
            "url" | "file" => Self::Elsewhere,
            _ => Self::Other,
        }
    }
}

impl From<&str> for ToolKind {
    fn from(name: &str) -> Self {
        // These are used by the caller's own program, or find what stands in the request; whatever version they are of.
        const OWN: [&str; 6] = ["custom", "bash_", "text_editor_", "computer_", "memory_", "tool_search"];
        match name {
            _ if name.starts_with("web_search") => Self::Search,
            _ if OWN.iter().any(|own| name.starts_with(own)) => Self::Own,
            _ => Self::Server,
        }
    }
}

impl From<&str> for Length {
    fn from(text: &str) -> Self {
        Self(text.len() as u64)
    }
}

/// Reads what a text says without keeping it.
macro_rules! read_from_text {
    ($($name:ty),*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(Reader::<Self>(PhantomData)).map(Option::unwrap_or_default)
            }
        }
    )*};
}

read_from_text!(Kind, SourceKind, ToolKind, Length);

struct Reader<T>(PhantomData<T>);

impl<T: for<'a> From<&'a str>> Visitor<'_> for Reader<T> {
    type Value = Option<T>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a text")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(T::from(text)))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

/// What a list comes to, or one that stands for a list; a text or nothing comes to none. None of it is kept.
struct Sum<T>(Special, PhantomData<T>);

/// One, or a text in its place, which says nothing here.
#[derive(Default)]
struct OneOrNone<T>(T);

impl<T> Default for Sum<T> {
    fn default() -> Self {
        Self(Special::default(), PhantomData)
    }
}

impl<'de, T: Deserialize<'de> + Into<Special>> Deserialize<'de> for Sum<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Adding(Self::default()))
    }
}

impl<'de, T: Deserialize<'de> + Default> Deserialize<'de> for OneOrNone<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Taking(PhantomData)).map(Self)
    }
}

struct Adding<T>(Sum<T>);

impl<'de, T: Deserialize<'de> + Into<Special>> Visitor<'de> for Adding<T> {
    type Value = Sum<T>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<Self::Value, A::Error> {
        while let Some(item) = items.next_element::<T>()? {
            self.0.0 += item.into();
        }
        Ok(self.0)
    }

    fn visit_map<A: MapAccess<'de>>(mut self, map: A) -> Result<Self::Value, A::Error> {
        self.0.0 += T::deserialize(MapAccessDeserializer::new(map))?.into();
        Ok(self.0)
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Self::Value, E> {
        Ok(self.0)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(self.0)
    }
}

struct Taking<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de> + Default> Visitor<'de> for Taking<T> {
    type Value = T;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<T, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(T::default())
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<T, E> {
        Ok(T::default())
    }

    fn visit_unit<E: Error>(self) -> Result<T, E> {
        Ok(T::default())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn most(request: &Value) -> (u64, u64) {
        let Weight { input, searches, .. } = of(request.to_string().as_bytes());
        (input, searches)
    }

    fn saying(block: &Value) -> Value {
        json!({ "model": "m", "messages": [{ "role": "user", "content": [block] }] })
    }

    fn data(kind: &str, media_type: &str) -> Value {
        json!({ "type": kind, "source": { "type": "base64", "media_type": media_type, "data": "A".repeat(100_000) } })
    }

    #[test]
    fn an_image_is_one_only_where_the_api_sees_one() {
        let image = data("image", "image/png");
        let within = |kind: &str, name: &str| saying(&json!({ "type": kind, name: [image.clone()] }));
        for request in [saying(&image), within("tool_result", "content")] {
            let most = most(&request).0;
            assert!((LARGEST_IMAGE..LARGEST_IMAGE + 200).contains(&most), "{most}");
            assert!((IMAGE..IMAGE + 100).contains(&of(request.to_string().as_bytes()).about));
        }
        // There it is text, as is what has no blanks for another reason.
        for request in [within("tool_use", "input"), saying(&json!({ "type": "text", "text": "漢".repeat(30_000) }))] {
            assert!(most(&request).0 >= 45_000, "{:?}", most(&request));
        }
    }

    #[test]
    fn documents_and_what_the_upstream_fetches_are_counted_at_their_most() {
        let document = saying(&data("document", "application/pdf"));
        assert!(most(&document).0 >= 50_000);
        assert!((5_000..5_200).contains(&of(document.to_string().as_bytes()).about));
        for source in [json!({ "type": "url", "url": "https://x" }), json!({ "type": "file", "file_id": "f" })] {
            assert!(most(&saying(&json!({ "type": "document", "source": source }))).0 >= LARGEST_DOCUMENT);
            assert!(most(&saying(&json!({ "type": "image", "source": source }))).0 >= LARGEST_IMAGE);
        }
        let with_tool = |tool: Value| most(&json!({ "model": "m", "messages": [], "tools": [tool] }));
        let (input, searches) =
            with_tool(json!({ "type": "web_search_20250305", "name": "web_search", "max_uses": 3 }));
        assert!((30_000..30_100).contains(&input) && searches == 3, "{input} {searches}");
        assert!(with_tool(json!({ "type": "code_execution_20250825", "name": "x" })).0 >= 100_000);
        assert!(with_tool(json!({ "name": "x", "input_schema": { "type": "object" } })).0 < 100);
        assert!(with_tool(json!({ "type": "bash_20250124", "name": "bash" })).0 < 100);
        assert_eq!(most(&saying(&json!({ "type": "text", "text": "x".repeat(5_000_000) }))).0, LONGEST);
    }

    #[test]
    fn what_has_another_form_is_text_or_may_be_anything() {
        let request =
            saying(&json!({ "type": "search_result", "source": "https://x", "content": "x".repeat(100_000) }));
        assert!((50_000..50_200).contains(&most(&request).0), "{:?}", most(&request));
        for wrong in ["{\"messages\":7}", "{\"tools\":[],\"tools\":[]}", "["] {
            assert!(of(wrong.as_bytes()).input >= 1_000_000, "{wrong}");
        }
    }
}
