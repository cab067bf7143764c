//! Access tokens: short-lived JWTs that name a user and a session, and grant nothing that the database does not.

use chrono::TimeDelta;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use crate::crypto::{SecretText, sha256};
use crate::model::{SessionId, Timestamp, UserId};

/// How long an access token lives.
pub const ACCESS_TOKEN_LIFETIME: TimeDelta = TimeDelta::minutes(15);
const ISSUER: &str = "claviger";
const AUDIENCE: &str = "claviger-api";
/// The one algorithm that is signed with and accepted.
const ALGORITHM: Algorithm = Algorithm::HS256;

/// Issues and verifies access tokens.
pub struct AccessTokens {
    key_id: String,
    encoding: EncodingKey,
    decoding: DecodingKey,
}

/// What a verified token says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claims {
    /// Who it was issued to.
    pub user: UserId,
    /// In which session.
    pub session: SessionId,
}

/// Not a token of this server, or one that has expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the access token is not valid")]
pub struct InvalidToken;

#[derive(Serialize, Deserialize)]
struct Body {
    iss: String,
    aud: String,
    sub: String,
    sid: String,
    iat: i64,
    exp: i64,
}

impl AccessTokens {
    /// Signs with the secret. Its key id is a digest of it, so that a token of another secret is told at once.
    #[must_use]
    pub fn new(secret: &SecretString) -> Self {
        let bytes = secret.expose_secret().as_bytes();
        Self {
            key_id: hex::encode(&sha256(&[b"claviger access token key id", bytes].concat())[..8]),
            encoding: EncodingKey::from_secret(bytes),
            decoding: DecodingKey::from_secret(bytes),
        }
    }

    /// A token and when it expires.
    ///
    /// # Panics
    /// Never: the header and the claims are strings and numbers, and the key fits the algorithm.
    #[must_use]
    pub fn issue(&self, claims: Claims, now: Timestamp) -> (SecretText, Timestamp) {
        let expires_at = now + ACCESS_TOKEN_LIFETIME;
        let body = Body {
            iss: ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
            sub: claims.user.to_string(),
            sid: claims.session.to_string(),
            iat: now.to_utc().timestamp(),
            exp: expires_at.to_utc().timestamp(),
        };
        let header = Header { kid: Some(self.key_id.clone()), ..Header::new(ALGORITHM) };
        let token = jsonwebtoken::encode(&header, &body, &self.encoding).expect("strings and numbers are JSON");
        (SecretText::from(token), expires_at)
    }

    /// What the token says, if this server issued it and it is still good.
    ///
    /// # Errors
    /// One error for every reason.
    pub fn verify(&self, token: &str, now: Timestamp) -> Result<Claims, InvalidToken> {
        let body = self.read(token, now)?;
        Ok(Claims {
            user: body.sub.parse().map_err(|_| InvalidToken)?,
            session: body.sid.parse().map_err(|_| InvalidToken)?,
        })
    }

    /// When a token that is still good expires.
    ///
    /// # Errors
    /// As for [`verify`](Self::verify).
    pub fn expires_at(&self, token: &str, now: Timestamp) -> Result<Timestamp, InvalidToken> {
        let micros = self.read(token, now)?.exp.checked_mul(1_000_000);
        micros.and_then(Timestamp::from_micros).ok_or(InvalidToken)
    }

    fn read(&self, token: &str, now: Timestamp) -> Result<Body, InvalidToken> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| InvalidToken)?;
        if header.kid.as_deref() != Some(&self.key_id) {
            return Err(InvalidToken);
        }
        let mut validation = Validation::new(ALGORITHM);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        // Compared below, by the clock that is passed in.
        validation.validate_exp = false;
        let body: Body = jsonwebtoken::decode(token, &self.decoding, &validation).map_err(|_| InvalidToken)?.claims;
        if body.exp <= now.to_utc().timestamp() {
            return Err(InvalidToken);
        }
        Ok(body)
    }
}
