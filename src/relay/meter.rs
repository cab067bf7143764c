//! What a request has used, read out of the upstream's answer as it passes by.

use serde::Deserialize;

use super::sse::{Event, events};
use crate::model::Tokens;

/// What stands around the text in an event that adds some.
const AROUND_TEXT: usize = 80;
/// Characters of a token, as a rule.
pub(super) const CHARACTERS: u64 = 4;
/// Bytes of a token at least, as a rule, also in code and in other scripts: what is reserved by it is enough.
pub(super) const FEWEST_BYTES: u64 = 2;

/// Gathers what an answer says of its usage.
#[derive(Debug, Default)]
pub(super) struct Meter {
    usage: Usage,
    /// The model that answered.
    pub(super) model: Option<String>,
    /// Whether the answer was there to its end.
    pub(super) is_complete: bool,
    /// Whether something of the answer's content was there.
    pub(super) has_content: bool,
    /// The error that came in the middle of it.
    pub(super) error: Option<MeterError>,
    /// Characters of content that came by, about.
    characters: u64,
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
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
    cache_creation: Option<CacheCreation>,
    cache_read_input_tokens: Option<u64>,
    server_tool_use: Option<ServerToolUse>,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(default)]
struct CacheCreation {
    ephemeral_5m_input_tokens: Option<u64>,
    ephemeral_1h_input_tokens: Option<u64>,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(default)]
struct ServerToolUse {
    web_search_requests: Option<u64>,
}

#[derive(Deserialize)]
struct Message {
    model: Option<String>,
    #[serde(default)]
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct MessageStart {
    message: Message,
}

#[derive(Deserialize)]
struct MessageDelta {
    #[serde(default)]
    usage: Option<Usage>,
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
    fn replace(&mut self, later: Self) {
        fn keep<T>(known: &mut Option<T>, later: Option<T>) {
            if later.is_some() {
                *known = later;
            }
        }
        keep(&mut self.input_tokens, later.input_tokens);
        keep(&mut self.output_tokens, later.output_tokens);
        keep(&mut self.cache_creation_input_tokens, later.cache_creation_input_tokens);
        keep(&mut self.cache_creation, later.cache_creation);
        keep(&mut self.cache_read_input_tokens, later.cache_read_input_tokens);
        keep(&mut self.server_tool_use, later.server_tool_use);
    }

    /// Where the parts of what was written to the cache stand alone, they are the whole.
    fn tokens(&self) -> Tokens {
        let parts = self.cache_creation.unwrap_or_default();
        let five = parts.ephemeral_5m_input_tokens.unwrap_or(0);
        let hour = parts.ephemeral_1h_input_tokens.unwrap_or(0);
        let whole = self.cache_creation_input_tokens.unwrap_or(five.saturating_add(hour));
        let tokens = Tokens {
            input: self.input_tokens.unwrap_or(0),
            output: self.output_tokens.unwrap_or(0),
            cache_read: self.cache_read_input_tokens.unwrap_or(0),
            web_searches: self.server_tool_use.and_then(|used| used.web_search_requests).unwrap_or(0),
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
                self.has_content = true;
                self.characters += data.len().saturating_sub(AROUND_TEXT) as u64;
            }
            b"message_start" => {
                if let Ok(start) = serde_json::from_slice::<MessageStart>(data) {
                    self.model = start.message.model;
                    self.usage.replace(start.message.usage.unwrap_or_default());
                }
            }
            b"message_delta" => {
                if let Ok(delta) = serde_json::from_slice::<MessageDelta>(data) {
                    self.usage.replace(delta.usage.unwrap_or_default());
                }
            }
            b"message_stop" => self.is_complete = true,
            b"error" => {
                let error = serde_json::from_slice::<ErrorEvent>(data).ok().map(|event| event.error);
                let (kind, message) =
                    error.map_or_else(|| ("api_error".to_owned(), String::new()), |e| (e.kind, e.message));
                self.error = Some(MeterError { kind, message });
            }
            _ => {}
        }
    }

    /// Reads a whole answer. Returns whether it says what was used.
    pub(super) fn read_whole(&mut self, body: &[u8]) -> bool {
        self.has_content = true;
        self.is_complete = true;
        let Ok(message) = serde_json::from_slice::<Message>(body) else { return false };
        let is_told = message.usage.is_some();
        self.model = message.model;
        self.usage.replace(message.usage.unwrap_or_default());
        is_told
    }

    /// Whether the upstream has said anything of usage.
    pub(super) fn is_told(&self) -> bool {
        self.usage.input_tokens.is_some()
    }

    /// What was used as far as the upstream has said, and whether there is a guess in it: of an answer that was cut short, it
    /// has not said how much of it there was.
    pub(super) fn tokens(&self) -> (Tokens, bool) {
        let mut tokens = self.usage.tokens();
        let passed = self.characters.div_ceil(CHARACTERS);
        let is_guess = !self.is_complete && self.has_content;
        if is_guess {
            tokens.output = tokens.output.max(passed);
        }
        (tokens, is_guess)
    }
}

/// How many tokens a request's body is, where each is of so many bytes: before the upstream counts, or where it did not.
pub(super) fn guess_input(body: &[u8], bytes: u64) -> u64 {
    /// What an image costs at most, as a rule.
    const IMAGE: u64 = 1_600;
    /// A text without a blank of that length is none: it is an image's or a document's data.
    const DATA: usize = 2_000;
    let mut rest = body;
    let mut tokens = 0_u64;
    while !rest.is_empty() {
        let end = memchr::memchr(b'"', rest).unwrap_or(rest.len());
        let part = &rest[..end];
        rest = rest.get(end + 1..).unwrap_or_default();
        let is_data = part.len() > DATA && memchr::memchr2(b' ', b'\\', part).is_none();
        tokens += if is_data { IMAGE } else { (part.len() as u64).div_ceil(bytes) };
    }
    tokens
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
        assert!(meter.is_complete);
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
            assert!(meter.read_whole(format!("{{\"usage\":{usage}}}").as_bytes()));
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
    fn a_body_is_guessed_by_its_text_and_not_by_its_pictures() {
        let picture = "A".repeat(1_000_000);
        let body = format!("{{\"text\":\"{}\",\"data\":\"{picture}\"}}", "word ".repeat(400));
        assert!((2_000..3_000).contains(&guess_input(body.as_bytes(), CHARACTERS)));
    }
}
