//! Secrets: the types that hold them, the keys that seal them, and digests. Nothing here can be printed.

mod api_key;
mod digest;
mod key_ring;
mod random;
mod rsa_key;
mod sealed;
mod secret;
mod signature;

pub use api_key::{MalformedApiKey, RawApiKey};
pub use digest::{Digest, Purpose, is_same, sha256};
pub use key_ring::{KeyRing, KeyRingError};
pub use random::Random;
pub use rsa_key::{RsaKey, RsaKeyError};
pub use sealed::{Aad, OpenError, SealError, Sealed};
pub use secret::SecretText;
pub use signature::{Signature, SignatureError};
