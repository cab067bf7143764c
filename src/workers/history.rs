//! What was said before, as the Claude CLI keeps it: a process that is started for a conversation reads it by `--resume`.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::model::{MessageRole, Timestamp};

/// Something that was said.
#[derive(Debug, Clone)]
pub struct Said {
    /// By whom.
    pub role: MessageRole,
    /// The blocks of the API. What tools have answered stands among the assistant's.
    pub blocks: Vec<Value>,
    /// When.
    pub at: Timestamp,
}

/// The transcript, a JSON object a line; each line names itself and the one before it.
pub(super) fn transcript(session: &str, said: &[Said]) -> String {
    let mut text = String::new();
    let mut before = Value::Null;
    for (number, (role, blocks, at)) in said.iter().flat_map(by_role).enumerate() {
        let id = format!("00000000-0000-7000-8000-{number:012x}");
        let line = json!({
            "parentUuid": before,
            "isSidechain": false,
            "type": role,
            "message": { "role": role, "content": blocks },
            "uuid": id,
            "timestamp": at,
            "sessionId": session,
        });
        // Writing to a text does not fail.
        let _ = writeln!(text, "{line}");
        before = Value::String(id);
    }
    text
}

/// The API has what tools answer said by the user.
fn by_role(said: &Said) -> Vec<(&'static str, Vec<Value>, String)> {
    let mut parts: Vec<(&str, Vec<Value>, String)> = Vec::new();
    for block in &said.blocks {
        let is_users = said.role == MessageRole::User || block["type"] == "tool_result";
        let role = if is_users { "user" } else { "assistant" };
        match parts.last_mut() {
            Some((last, blocks, _)) if *last == role => blocks.push(block.clone()),
            _ => parts.push((role, vec![block.clone()], said.at.to_text())),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tools_answered_is_said_by_the_user() {
        let at = Timestamp::from_micros(0).unwrap();
        let text = |text: &str| json!({ "type": "text", "text": text });
        let said = [
            Said { role: MessageRole::User, blocks: vec![text("a")], at },
            Said {
                role: MessageRole::Assistant,
                blocks: vec![text("b"), json!({ "type": "tool_use" }), json!({ "type": "tool_result" }), text("c")],
                at,
            },
        ];
        let lines: Vec<Value> =
            transcript("s", &said).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let roles: Vec<_> = lines.iter().map(|line| line["type"].as_str().unwrap()).collect();
        assert_eq!(roles, ["user", "assistant", "user", "assistant"]);
        assert_eq!(lines[1]["message"]["content"].as_array().unwrap().len(), 2);
        assert!(lines[0]["parentUuid"].is_null() && lines.windows(2).all(|two| two[1]["parentUuid"] == two[0]["uuid"]));
    }
}
