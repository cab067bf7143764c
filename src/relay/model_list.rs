//! What an upstream says of models: what the API says of each is kept, and nothing else that an upstream may say, nor any more of it.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

/// As many as are asked for.
const MOST_MODELS: usize = 1_000;
/// The longest text that is kept, in bytes.
const MOST_TEXT: usize = 200;

/// Reads a list.
pub(super) fn list(body: &[u8]) -> Option<Vec<Value>> {
    serde_json::from_slice::<List>(body).ok().map(|List { data: Models(models) }| models)
}

/// Reads a model.
pub(super) fn model(body: &[u8]) -> Option<Value> {
    serde_json::from_slice::<Model<'_>>(body).ok().map(Model::kept)
}

#[derive(Deserialize)]
struct List {
    data: Models,
}

struct Models(Vec<Value>);

/// Each field by itself: what cannot be read takes nothing else along.
#[derive(Deserialize)]
struct Model<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    display_name: Option<&'a RawValue>,
    #[serde(borrow)]
    created_at: Option<&'a RawValue>,
    #[serde(borrow)]
    max_input_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    max_tokens: Option<&'a RawValue>,
}

impl Model<'_> {
    fn kept(self) -> Value {
        let mut kept = Map::new();
        kept.insert("type".to_owned(), json!("model"));
        for (name, told) in [("id", self.id), ("display_name", self.display_name), ("created_at", self.created_at)] {
            if let Some(text) = readable::<String>(told).filter(|text| text.len() <= MOST_TEXT) {
                kept.insert(name.to_owned(), text.into());
            }
        }
        for (name, told) in [("max_input_tokens", self.max_input_tokens), ("max_tokens", self.max_tokens)] {
            if let Some(number) = readable::<u64>(told) {
                kept.insert(name.to_owned(), number.into());
            }
        }
        kept.into()
    }
}

fn readable<'a, T: Deserialize<'a>>(told: Option<&'a RawValue>) -> Option<T> {
    serde_json::from_str(told?.get()).ok()
}

impl<'de> Deserialize<'de> for Models {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ModelsVisitor)
    }
}

struct ModelsVisitor;

impl<'de> Visitor<'de> for ModelsVisitor {
    type Value = Models;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of models")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Models, A::Error> {
        let mut models = Vec::new();
        while models.len() < MOST_MODELS {
            let Some(told) = list.next_element::<&'de RawValue>()? else { return Ok(Models(models)) };
            models.extend(serde_json::from_str::<Model<'_>>(told.get()).ok().map(Model::kept));
        }
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Models(models))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_of_models_is_kept_and_nothing_else() {
        let told = json!({ "type": "model", "id": "a", "display_name": "A", "created_at": "2026-01-01T00:00:00Z", "max_tokens": 5 });
        let mut more = told.clone();
        (more["x"], more["max_input_tokens"]) = (json!({ "y": [1] }), json!({}));
        let (model, list) =
            (|body: &Value| model(body.to_string().as_bytes()), |body: &Value| list(body.to_string().as_bytes()));
        assert_eq!(model(&more), Some(told.clone()));
        let nameless = json!({ "type": "model" });
        let told_list = json!({ "has_more": false, "data": [more, 7, { "id": "x".repeat(300) }, { "id": {} }] });
        assert_eq!(list(&told_list), Some(vec![told, nameless.clone(), nameless]));
        assert_eq!(list(&json!({ "data": vec![json!({ "id": "b" }); MOST_MODELS + 5] })).unwrap().len(), MOST_MODELS);
        for wrong in [json!([]), json!("ok"), json!(null)] {
            assert_eq!((model(&wrong), list(&wrong)), (None, None), "{wrong}");
        }
    }
}
