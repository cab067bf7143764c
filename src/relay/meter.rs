//! What a request has used, read out of the upstream's answer as it passes by.

use std::fmt;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::sse::{Event, events};
use super::weight::CHARACTERS;
use crate::model::Tokens;

/// What stands around the text in an event that adds some.
const AROUND_TEXT: usize = 80;

/// Gathers what an answer says of its usage.
#[derive(Debug, Default)]
pub(super) struct Meter {
    usage: Usage,
    /// The model that answered.
    pub(super) model: Option<String>,
    /// How much of the answer was there.
    extent: Extent,
    /// The error that came in the middle of it.
    pub(super) error: Option<MeterError>,
    /// Characters of content that came by, about.
    characters: u64,
    /// Whether the upstream has said how long its answer is, as far as it has come by.
    is_output_told: bool,
    /// Whether it has said something of usage that cannot be read.
    is_odd: bool,
}

/// How much of an answer there is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Extent {
    /// None of its content.
    #[default]
    Nothing,
    /// Some of its content.
    Part,
    Whole,
}

/// An error that came after an answer had begun.
#[derive(Debug, Clone)]
pub(super) struct MeterError {
    pub(super) kind: String,
    pub(super) message: String,
}

/// What the API says of usage. In a stream it says it again and again, and what it says last holds, none as well as more.
#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(default)]
struct Usage {
    input_tokens: Told<Count>,
    output_tokens: Told<Count>,
    cache_creation_input_tokens: Told<Count>,
    cache_creation: Told<CacheCreation>,
    cache_read_input_tokens: Told<Count>,
    server_tool_use: Told<ServerToolUse>,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(default)]
struct CacheCreation {
    ephemeral_5m_input_tokens: Option<Count>,
    ephemeral_1h_input_tokens: Option<Count>,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(default)]
struct ServerToolUse {
    web_search_requests: Option<Count>,
}

/// What an upstream says, each by itself: what cannot be read takes nothing else along.
#[derive(Debug, Default, Clone, Copy)]
enum Told<T> {
    #[default]
    Nothing,
    This(T),
    Unreadable,
}

impl<T: Copy> Told<T> {
    fn get(self) -> Option<T> {
        match self {
            Self::This(value) => Some(value),
            Self::Nothing | Self::Unreadable => None,
        }
    }
}

/// Its text is read where it stands, and never into values: an upstream may say there whatever it likes, and as much.
impl<'de, T: Deserialize<'de>> Deserialize<'de> for Told<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let told = Option::<&'de RawValue>::deserialize(deserializer)?;
        let read = |told: &'de RawValue| serde_json::from_str(told.get()).map_or(Self::Unreadable, Self::This);
        Ok(told.map_or(Self::Nothing, read))
    }
}

/// How many, however the number is written.
#[derive(Debug, Default, Clone, Copy)]
struct Count(u64);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CountVisitor)
    }
}

struct CountVisitor;

impl Visitor<'_> for CountVisitor {
    type Value = Count;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a count")
    }

    fn visit_u64<E: Error>(self, count: u64) -> Result<Count, E> {
        Ok(Count(count))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Count, E> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is none of those, and bounded later"
        )]
        let whole = (number >= 0.0).then_some(number as u64);
        whole.map(Count).ok_or_else(|| E::custom("no count"))
    }
}

#[derive(Deserialize)]
struct Message {
    model: Option<String>,
    #[serde(default)]
    usage: Told<Usage>,
}

#[derive(Deserialize)]
struct MessageStart {
    message: Message,
}

#[derive(Deserialize)]
struct MessageDelta {
    #[serde(default)]
    usage: Told<Usage>,
}

#[derive(Deserialize)]
struct ErrorEvent {
    error: ErrorDetail,
}

#[derive(Deserialize)]
struct ErrorDetail {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
struct Named<'a> {
    #[serde(rename = "type", borrow)]
    kind: Option<std::borrow::Cow<'a, str>>,
}

impl Usage {
    /// Takes what is said later. Returns whether all of it can be read.
    fn replace(&mut self, later: Self) -> bool {
        fn keep<T: Copy>(known: &mut Told<T>, later: Told<T>) -> bool {
            if matches!(later, Told::This(_)) {
                *known = later;
            }
            !matches!(later, Told::Unreadable)
        }
        let can_be_read = [
            keep(&mut self.input_tokens, later.input_tokens),
            keep(&mut self.output_tokens, later.output_tokens),
            keep(&mut self.cache_creation_input_tokens, later.cache_creation_input_tokens),
            keep(&mut self.cache_creation, later.cache_creation),
            keep(&mut self.cache_read_input_tokens, later.cache_read_input_tokens),
            keep(&mut self.server_tool_use, later.server_tool_use),
        ];
        can_be_read.into_iter().all(|can_be| can_be)
    }

    /// Where the parts of what was written to the cache stand alone, they are the whole.
    fn tokens(&self) -> Tokens {
        fn count(told: Option<Count>) -> u64 {
            told.map_or(0, |count| count.0)
        }
        let parts = self.cache_creation.get().unwrap_or_default();
        let (five, hour) = (count(parts.ephemeral_5m_input_tokens), count(parts.ephemeral_1h_input_tokens));
        let whole = self.cache_creation_input_tokens.get().map_or(five.saturating_add(hour), |count| count.0);
        let tokens = Tokens {
            input: count(self.input_tokens.get()),
            output: count(self.output_tokens.get()),
            cache_read: count(self.cache_read_input_tokens.get()),
            web_searches: count(self.server_tool_use.get().and_then(|used| used.web_search_requests)),
            ..Tokens::default()
        };
        tokens.with_cache_writes(whole, hour).bounded()
    }
}

impl Meter {
    /// Reads whole events of a stream.
    pub(super) fn read_events(&mut self, bytes: &[u8]) {
        for event in events(bytes) {
            self.read_event(event);
        }
    }

    fn read_event(&mut self, Event { name, data }: Event<'_>) {
        if let Some(name) = name {
            return self.read_named(name, data);
        }
        // By the specification each event has its name twice; a gateway may have left one out.
        let named = serde_json::from_slice::<Named<'_>>(data).ok();
        if let Some(kind) = named.and_then(|named| named.kind) {
            self.read_named(kind.as_bytes(), data);
        }
    }

    fn read_named(&mut self, name: &[u8], data: &[u8]) {
        match name {
            b"content_block_delta" => {
                self.extent = self.extent.max(Extent::Part);
                self.is_output_told = false;
                self.characters += data.len().saturating_sub(AROUND_TEXT) as u64;
            }
            b"message_start" => match serde_json::from_slice::<MessageStart>(data) {
                Ok(start) => {
                    self.model = start.message.model;
                    self.hears(start.message.usage);
                }
                Err(_) => self.hears(Told::Unreadable),
            },
            b"message_delta" => {
                let usage = serde_json::from_slice::<MessageDelta>(data).map_or(Told::Unreadable, |delta| delta.usage);
                self.is_output_told |= usage.get().is_some_and(|usage| usage.output_tokens.get().is_some());
                self.hears(usage);
            }
            b"message_stop" => self.extent = Extent::Whole,
            b"error" => {
                let error = serde_json::from_slice::<ErrorEvent>(data).ok().map(|event| event.error);
                let (kind, message) =
                    error.map_or_else(|| ("api_error".to_owned(), String::new()), |e| (e.kind, e.message));
                self.error = Some(MeterError { kind, message });
            }
            _ => {}
        }
    }

    /// Reads a whole answer.
    pub(super) fn read_whole(&mut self, body: &[u8]) {
        self.extent = Extent::Whole;
        self.characters = body.len() as u64;
        match serde_json::from_slice::<Message>(body) {
            Ok(message) => {
                self.model = message.model;
                self.is_output_told = message.usage.get().is_some_and(|usage| usage.output_tokens.get().is_some());
                self.hears(message.usage);
            }
            Err(_) => self.hears(Told::Unreadable),
        }
    }

    fn hears(&mut self, usage: Told<Usage>) {
        let can_be_read = match usage {
            Told::Nothing => true,
            Told::This(usage) => self.usage.replace(usage),
            Told::Unreadable => false,
        };
        if !can_be_read && !self.is_odd {
            self.is_odd = true;
            tracing::warn!("an upstream's usage cannot be read: the record is estimated");
        }
    }

    /// Whether the answer was there to its end.
    pub(super) fn is_complete(&self) -> bool {
        self.extent == Extent::Whole
    }

    /// Whether something of the answer's content was there, or all of an answer that may have none.
    pub(super) fn has_content(&self) -> bool {
        self.extent > Extent::Nothing
    }

    /// Whether the upstream has said anything of usage.
    pub(super) fn is_told(&self) -> bool {
        self.usage.input_tokens.get().is_some()
    }

    /// What was used as far as the upstream has said, and whether there is a guess in it: of an answer that was cut short, as a rule,
    /// it has not said how much of it there was.
    pub(super) fn tokens(&self) -> (Tokens, bool) {
        let mut tokens = self.usage.tokens();
        let passed = self.characters.div_ceil(CHARACTERS);
        let is_output_guessed = self.has_content() && !self.is_output_told;
        if is_output_guessed {
            tokens.output = tokens.output.max(passed);
        }
        (tokens, is_output_guessed || self.is_odd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(stream: &str) -> Meter {
        let mut meter = Meter::default();
        meter.read_events(stream.as_bytes());
        meter
    }

    const START: &str = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"m\",\"model\":\"claude-x\",\
        \"content\":[],\"usage\":{\"input_tokens\":10,\"output_tokens\":1,\"cache_creation_input_tokens\":30,\
        \"cache_creation\":{\"ephemeral_5m_input_tokens\":20,\"ephemeral_1h_input_tokens\":10},\"cache_read_input_tokens\":7}}}\n\n";

    #[test]
    fn a_later_number_replaces_an_earlier_one_and_none_does_too() {
        let later = "event: message_delta\ndata: {\"usage\":{\"output_tokens\":40,\"cache_read_input_tokens\":0,\
            \"server_tool_use\":{\"web_search_requests\":2}}}\n\nevent: message_stop\ndata: {}\n\n";
        let meter = read(&format!("{START}{later}"));
        let expected =
            Tokens { input: 10, output: 40, cache_write_5m: 20, cache_write_1h: 10, cache_read: 0, web_searches: 2 };
        assert_eq!(meter.tokens(), (expected, false));
        assert!(meter.is_complete());
        assert_eq!(meter.model.as_deref(), Some("claude-x"));
    }

    #[test]
    fn parts_of_the_cache_are_never_more_than_the_whole() {
        for (usage, five, hour) in [
            ("{\"cache_creation_input_tokens\":5}", 5, 0),
            ("{\"cache_creation_input_tokens\":5,\"cache_creation\":{\"ephemeral_1h_input_tokens\":5}}", 0, 5),
            ("{\"cache_creation_input_tokens\":5,\"cache_creation\":{\"ephemeral_1h_input_tokens\":9}}", 0, 5),
            ("{\"cache_creation_input_tokens\":5,\"cache_creation\":{\"ephemeral_5m_input_tokens\":2}}", 5, 0),
            ("{\"cache_creation\":{\"ephemeral_5m_input_tokens\":2,\"ephemeral_1h_input_tokens\":3}}", 2, 3),
            ("{\"cache_creation_input_tokens\":null}", 0, 0),
        ] {
            let mut meter = Meter::default();
            meter.read_whole(format!("{{\"usage\":{usage}}}").as_bytes());
            let tokens = meter.tokens().0;
            assert_eq!((tokens.cache_write_5m, tokens.cache_write_1h), (five, hour), "{usage}");
        }
    }

    #[test]
    fn what_was_cut_short_is_guessed_by_what_came() {
        let text = "x".repeat(400);
        let delta = format!(
            "event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\"index\":0,\"delta\":{{\"type\":\"text_delta\",\
             \"text\":\"{text}\"}}}}\n\n"
        );
        let (tokens, is_guess) = read(&format!("{START}{delta}")).tokens();
        assert!(is_guess && (90..=110).contains(&tokens.output), "{tokens:?}");
        assert_eq!(tokens.input, 10);
    }

    #[test]
    fn the_upstreams_last_word_is_exact_though_the_end_is_missing() {
        let delta = |text: &str| {
            format!(
                "event: content_block_delta\ndata: {{\"delta\":{{\"type\":\"text_delta\",\"text\":\"{text}\"}}}}\n\n"
            )
        };
        let end = "event: message_delta\ndata: {\"usage\":{\"output_tokens\":3}}\n\n";
        let long = delta(&"x".repeat(400));
        let (tokens, is_guess) = read(&format!("{START}{long}{end}")).tokens();
        assert_eq!((tokens.output, is_guess), (3, false));
        // More has come after it.
        assert!(read(&format!("{START}{end}{long}")).tokens().1);
    }

    #[test]
    fn what_cannot_be_read_of_usage_is_guessed_and_takes_nothing_along() {
        let stop = "event: message_stop\ndata: {}\n\n";
        let ends =
            |usage: &str| read(&format!("{START}event: message_delta\ndata: {{\"usage\":{usage}}}\n\n{stop}")).tokens();
        assert_eq!(ends("{\"output_tokens\":40.0}").0.output, 40);
        assert!(!ends("{\"output_tokens\":40.0}").1);
        let (tokens, is_guess) = ends("{\"output_tokens\":40,\"cache_creation\":\"x\",\"input_tokens\":-1}");
        assert_eq!((tokens.input, tokens.output, tokens.cache_write_5m, is_guess), (10, 40, 20, true));
        for nothing in ["{}", "7", "{\"output_tokens\":null}"] {
            assert!(ends(nothing).1, "{nothing}");
        }
        assert!(read(&format!("{START}{stop}")).tokens().1);
        for body in ["{\"content\":[]}", "{\"usage\":{\"input_tokens\":5}}", "no JSON, but long enough for some tokens"]
        {
            let mut meter = Meter::default();
            meter.read_whole(body.as_bytes());
            let (tokens, is_guess) = meter.tokens();
            assert!(is_guess && tokens.output > 0, "{body}: {tokens:?}");
        }
    }
}
