//! Mails: what they say, and how they leave the server. Which are to be sent is known to the store.

mod mailer;
mod message;
mod smtp;
pub mod templates;

pub use mailer::{Mailer, MailerError, NotSent};
pub use message::{Message, UnreadableMessage};
