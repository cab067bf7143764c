//! Mails: what they say, and how they leave the server. Which are to be sent is known to the store.

mod letter;
mod mailer;
mod smtp;
pub mod templates;

pub use letter::{Letter, UnreadableLetter};
pub use mailer::{Mailer, MailerError, NotSent};
