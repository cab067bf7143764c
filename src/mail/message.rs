//! A mail that is written and not sent yet. It may carry a token, so its text is a secret.

use serde::Deserialize;

use crate::crypto::SecretText;
use crate::model::Email;

/// A mail: whom it goes to, and what it says twice.
#[derive(Debug, Clone)]
pub struct Message {
    /// Whom it goes to.
    pub to: Email,
    /// What it is about. It holds nothing that anybody has typed.
    pub subject: String,
    /// As text.
    pub text: SecretText,
    /// As HTML.
    pub html: SecretText,
}

/// A text that is no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what was kept is not a mail")]
pub struct UnreadableMessage;

#[derive(Deserialize)]
struct Parts {
    to: String,
    subject: String,
    text: String,
    html: String,
}

impl Message {
    /// The message as one text, to be sealed.
    #[must_use]
    pub fn to_secret(&self) -> SecretText {
        let parts = serde_json::json!({
            "to": self.to.as_str(),
            "subject": self.subject,
            "text": self.text.expose(),
            "html": self.html.expose(),
        });
        SecretText::from(parts.to_string())
    }

    /// The message that was one text.
    ///
    /// # Errors
    /// Where it was none.
    pub fn from_secret(text: &SecretText) -> Result<Self, UnreadableMessage> {
        let parts: Parts = serde_json::from_str(text.expose()).map_err(|_| UnreadableMessage)?;
        Ok(Self {
            to: parts.to.parse().map_err(|_| UnreadableMessage)?,
            subject: parts.subject,
            text: SecretText::from(parts.text),
            html: SecretText::from(parts.html),
        })
    }
}
