//! Who is asking: passwords, access tokens, API keys, and the actor of a request.

mod access_token;
mod actor;
mod authenticator;
mod changes;
mod kept;
mod key_uses;
mod lent;

pub mod password;

pub use access_token::{ACCESS_TOKEN_LIFETIME, AccessTokens, Claims, InvalidToken};
pub use actor::{Actor, ApiKeyRates, NoPermit, SignedIn, SignedInBy};
pub use authenticator::{Authenticator, LookUps, Refused, SentApiKey};
pub use changes::Changes;
pub(crate) use changes::Epochs;
pub(crate) use kept::Kept;
pub use lent::{LentKey, Loan};
