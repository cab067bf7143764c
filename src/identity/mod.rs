//! Who is asking: passwords, access tokens, and the actor of a request.

mod access_token;
mod actor;
mod authenticator;

pub mod password;

pub use access_token::{ACCESS_TOKEN_LIFETIME, AccessTokens, Claims, InvalidToken};
pub use actor::{Actor, NoPermit, SignedIn};
pub use authenticator::{Authenticator, Refused};
