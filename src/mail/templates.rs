//! What the mails say, as text and as HTML. What somebody has typed stands in none that goes to a stranger, but for the name of the
//! organization in an invitation, which can hold no link.

use std::fmt::Write as _;
use std::net::IpAddr;

use super::Message;
use crate::crypto::SecretText;
use crate::model::{Email, Timestamp};

/// Somebody is invited into an organization.
#[must_use]
pub fn invitation(to: &Email, organization: &str, link: &SecretText) -> Message {
    Draft::new("You are invited to Claviger")
        .paragraph(&format!("You are invited to join “{}” on Claviger.", without_links(organization)))
        .link("Accept the invitation", link)
        .paragraph("The link serves once, and for seven days.")
        .paragraph("If you do not know what this is about, you need not do anything.")
        .message(to)
}

/// The same, where the address is somebody's who signs in to another organization with it.
#[must_use]
pub fn invitation_beside_an_account(to: &Email, organization: &str, link: &SecretText) -> Message {
    Draft::new("You are invited to Claviger")
        .paragraph(&format!("You are invited to join “{}” on Claviger.", without_links(organization)))
        .paragraph(
            "You have an account in another organization there already, and go on signing in to that with this address. To join with \
             another one: accept, and give another address in your profile at once; or ask to be invited by another.",
        )
        .link("Accept the invitation", link)
        .paragraph("The link serves once, and for seven days.")
        .paragraph("If you do not know what this is about, you need not do anything. Your account is as it was.")
        .message(to)
}

/// An address was registered that is to be verified.
#[must_use]
pub fn verify_registration(to: &Email, link: &SecretText, at: Timestamp, from: Option<IpAddr>) -> Message {
    let at = at.to_utc().format("%Y-%m-%d at %H:%M UTC");
    let from = from.map(|address| format!(", from {}", address.to_canonical())).unwrap_or_default();
    Draft::new("Confirm your email address")
        .paragraph(&format!("Somebody has registered at Claviger with this address, on {at}{from}."))
        .paragraph("If it was you, confirm it: you can sign in with it from then on.")
        .link("Confirm the address", link)
        .paragraph("The link serves once, and for 24 hours.")
        .paragraph("If it was not you, ignore this mail: without the link nobody can sign in with your address.")
        .message(to)
}

/// An invitation was accepted that has not shown whose the address is.
#[must_use]
pub fn verify_invited(to: &Email, link: &SecretText) -> Message {
    Draft::new("Confirm your email address")
        .paragraph("An invitation to Claviger for this address was accepted.")
        .paragraph("If it was you, confirm the address: you can sign in with it from then on.")
        .link("Confirm the address", link)
        .paragraph("The link serves once, and for 24 hours.")
        .paragraph("If it was not you, ignore this mail: without the link nobody can sign in with your address.")
        .message(to)
}

/// An address was registered that has an account.
#[must_use]
pub fn registered_already(to: &Email) -> Message {
    Draft::new("You have an account at Claviger")
        .paragraph("Somebody has registered at Claviger with this address, which has an account already.")
        .paragraph("If it was you: sign in, or ask for a new password.")
        .paragraph("If it was not you, you need not do anything. Your account is as it was.")
        .message(to)
}

/// A user wants another address.
#[must_use]
pub fn verify_new_address(to: &Email, link: &SecretText) -> Message {
    Draft::new("Confirm your email address")
        .paragraph("Somebody who is signed in at Claviger wants to use this address from now on.")
        .link("Confirm the address", link)
        .paragraph("The link serves once, and for 24 hours. Until then the address of the account stays as it was.")
        .paragraph("If it was not you, ignore this mail.")
        .message(to)
}

/// A user wants an address that somebody else has.
#[must_use]
pub fn address_is_in_use(to: &Email) -> Message {
    Draft::new("This address has an account at Claviger")
        .paragraph("Somebody who is signed in at Claviger with another address wants to use this one, which has an account already.")
        .paragraph("If it was you: sign in with this address, or delete that account first.")
        .paragraph("If it was not you, you need not do anything. Your account is as it was.")
        .message(to)
}

/// A user wants another address than the one that this goes to.
#[must_use]
pub fn address_is_to_change(to: &Email) -> Message {
    Draft::new("Your email address at Claviger is about to change")
        .paragraph("Somebody who is signed in as you wants to use another address for your account. It changes once that address is confirmed.")
        .paragraph("If it was not you: change your password at once, which also ends this, and all other sessions.")
        .message(to)
}

/// A user has another address than the one that this goes to.
#[must_use]
pub fn address_was_changed(to: &Email) -> Message {
    Draft::new("Your email address at Claviger was changed")
        .paragraph("The address of your account at Claviger is another one now, which was confirmed. You cannot sign in with this one any more.")
        .paragraph("If it was not you: tell your administrator at once.")
        .message(to)
}

/// A user has forgotten the password.
#[must_use]
pub fn reset_password(to: &Email, link: &SecretText) -> Message {
    Draft::new("Choose a new password")
        .paragraph("Somebody has asked for a new password for your account at Claviger.")
        .link("Choose a new password", link)
        .paragraph("The link serves once, and for one hour.")
        .paragraph("If it was not you, ignore this mail: your password stays as it is.")
        .message(to)
}

/// A user's password was set by a link.
#[must_use]
pub fn password_was_reset(to: &Email) -> Message {
    Draft::new("Your password was reset")
        .paragraph("A new password was set for your account at Claviger by a link that was sent to this address. All sessions were ended.")
        .paragraph("If it was not you: ask for a new password now, and tell your administrator. Look at your API keys too, which still work.")
        .message(to)
}

/// A user's password was changed by whoever knew it.
#[must_use]
pub fn password_was_changed(to: &Email) -> Message {
    Draft::new("Your password was changed")
        .paragraph("The password of your account at Claviger was changed by somebody who is signed in as you and knew it. All other sessions were ended.")
        .paragraph("If it was not you: ask for a new password now, and tell your administrator. Look at your API keys too, which still work.")
        .message(to)
}

/// A mail in two forms, as it is written.
struct Draft {
    subject: &'static str,
    text: String,
    html: String,
}

impl Draft {
    fn new(subject: &'static str) -> Self {
        let title = escaped(subject);
        let html = format!(
            "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>{title}</title></head>\n\
             <body style=\"font-family: sans-serif; line-height: 1.5\">\n"
        );
        Self { subject, text: String::new(), html }
    }

    fn paragraph(mut self, text: &str) -> Self {
        let _ = write!(self.text, "{text}\n\n");
        let _ = writeln!(self.html, "<p>{}</p>", escaped(text));
        self
    }

    fn link(mut self, label: &str, url: &SecretText) -> Self {
        let _ = write!(self.text, "{label}:\n{}\n\n", url.expose());
        let _ = writeln!(self.html, "<p><a href=\"{}\">{}</a></p>", escaped(url.expose()), escaped(label));
        self
    }

    fn message(mut self, to: &Email) -> Message {
        self.html += "</body>\n</html>\n";
        Message {
            to: to.clone(),
            subject: self.subject.to_owned(),
            text: SecretText::from(self.text.trim_end().to_owned() + "\n"),
            html: SecretText::from(self.html),
        }
    }
}

/// A name that somebody has typed, without what programs that show mails make a link of.
fn without_links(name: &str) -> String {
    let characters: Vec<_> = name.chars().collect();
    let is_slash =
        |place: Option<usize>| place.and_then(|place| characters.get(place)).is_some_and(|c| ['/', '\\'].contains(c));
    let begins_a_link = |place: usize, character: char| match character {
        '@' => true,
        // What IDNA takes for a dot is one, too.
        '.' | '\u{3002}' | '\u{ff0e}' | '\u{ff61}' => {
            characters.get(place + 1).is_some_and(|next| next.is_alphanumeric())
        }
        ':' => is_slash(Some(place + 1)),
        '/' | '\\' => is_slash(place.checked_sub(1)) || is_slash(Some(place + 1)),
        _ => false,
    };
    let places = characters.iter().enumerate();
    let text: String = places.map(|(place, c)| if begins_a_link(place, *c) { ' ' } else { *c }).collect();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Text as it stands in HTML, between tags and in attributes.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            character => escaped.push(character),
        }
    }
    escaped
}
