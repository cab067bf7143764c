//! Passwords in inputs, as they are or encrypted, and what to encrypt them with.

use async_graphql::{Context, ID, InputObject, Object, OneofObject, SimpleObject};

use super::context::ContextExt;
use super::declarations::{Declared, public};
use super::error::Result;
use super::scalars::DateTime;
use crate::crypto::SecretText;
use crate::domain;
use crate::domain::password_key::{self as deeds, Encrypted, Given};

/// What to encrypt one password with, for whom TLS alone is not enough.
#[derive(SimpleObject)]
pub(super) struct PasswordKey {
    /// Which key pair.
    key_id: ID,
    /// Its public key, RSA of 3072 bits, as SPKI in PEM. The same for everybody, for a day.
    public_key_pem: String,
    /// To be encrypted together with the password. It serves once.
    nonce: String,
    /// Until when the nonce serves: five minutes.
    expires_at: DateTime,
}

/// A password.
#[derive(OneofObject)]
pub(super) enum PasswordInput {
    /// As it is: TLS protects it on the way.
    Plain(String),
    /// Encrypted with a `passwordKey`, too.
    Encrypted(EncryptedPasswordInput),
}

/// A password that was encrypted with a `passwordKey`: RSA-OAEP with SHA-256 (for MGF1 too, and without a label) over the UTF-8 of the JSON
/// object `{"password": …, "nonce": …}`, of which RSA takes 318 bytes.
#[derive(InputObject)]
pub(super) struct EncryptedPasswordInput {
    /// The `keyId` of the `passwordKey`.
    key_id: ID,
    /// Its `nonce`, once more. It is used up by this, whether the password is right or not.
    nonce: String,
    /// What was encrypted, in base64.
    ciphertext: String,
}

impl From<PasswordInput> for Given {
    fn from(input: PasswordInput) -> Self {
        match input {
            PasswordInput::Plain(text) => Self::Plain(SecretText::from(text)),
            PasswordInput::Encrypted(EncryptedPasswordInput { key_id, nonce, ciphertext }) => {
                Self::Encrypted(Encrypted { key_id: key_id.0, nonce, ciphertext })
            }
        }
    }
}

/// The passwords of the input's fields.
///
/// # Errors
/// Names each that cannot be decrypted.
pub(super) async fn opened<const N: usize>(
    ctx: &Context<'_>,
    given: [(&'static str, PasswordInput); N],
) -> domain::Result<[SecretText; N]> {
    deeds::open(ctx.cx(), given.map(|(field, input)| (field, input.into()))).await
}

#[derive(Default)]
pub(super) struct PasswordKeyQuery;

#[Object(guard = "Declared")]
impl PasswordKeyQuery {
    /// A public key, and a fresh nonce, to encrypt one password with. Each password of a request needs its own.
    #[graphql(directive = public::apply())]
    async fn password_key(&self, ctx: &Context<'_>) -> Result<PasswordKey> {
        let offer = deeds::offer(ctx.cx()).await?;
        Ok(PasswordKey {
            key_id: offer.key_id.to_string().into(),
            public_key_pem: offer.public_key_pem,
            nonce: offer.nonce,
            expires_at: offer.expires_at.into(),
        })
    }
}
