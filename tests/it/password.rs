//! Passwords: what is accepted, hashed and compared.

use claviger::crypto::{Random, SecretText};
use claviger::identity::password::{Hasher, PasswordHash, Verdict, objection};

fn secret(text: &str) -> SecretText {
    SecretText::from(text.to_owned())
}

#[test]
fn short_long_and_common_passwords_are_refused() {
    let email = "somebody@example.com".parse().unwrap();
    let long = "é".repeat(257);
    for (password, is_accepted) in [
        ("1234567", false),
        ("password1", false),
        ("PASSWORD1", false),
        ("iloveyou1", false),
        ("Somebody@example.com", false),
        (long.as_str(), false),
        ("plainly unusual", true),
        ("éééééééé", true),
        (&long[2..], true),
    ] {
        assert_eq!(objection(&secret(password), &email).is_none(), is_accepted, "{password}");
    }
}

#[tokio::test]
async fn a_hash_matches_its_password_only() {
    let hasher = Hasher::new(Random::system());
    let hash = hasher.hash(&secret("pässword")).await.unwrap();
    assert!(hash.as_str().starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
    assert_eq!(hasher.verify(&secret("pässword"), Some(hash.clone())).await.unwrap(), Verdict::Match);
    assert_eq!(
        hasher.verify(&secret("pa\u{308}ssword"), Some(hash.clone())).await.unwrap(),
        Verdict::Match,
        "decomposed"
    );
    assert_eq!(hasher.verify(&secret("password"), Some(hash.clone())).await.unwrap(), Verdict::NoMatch);
    assert_eq!(hasher.verify(&secret("pässword"), None).await.unwrap(), Verdict::NoMatch);
    assert_eq!(format!("{hash:?}"), "[redacted]");
}

#[tokio::test]
async fn a_hash_of_an_older_kind_is_to_be_upgraded() {
    let hasher = Hasher::new(Random::system());
    let bcrypt = PasswordHash::from(bcrypt::hash("password", 4).unwrap());
    assert_eq!(hasher.verify(&secret("password"), Some(bcrypt.clone())).await.unwrap(), Verdict::MatchNeedsUpgrade);
    assert_eq!(hasher.verify(&secret("passwort"), Some(bcrypt)).await.unwrap(), Verdict::NoMatch);
    for broken in ["", "$argon2id$", "$2b$04$short", "plain"] {
        assert_eq!(
            hasher.verify(&secret("plain"), Some(PasswordHash::from(broken.to_owned()))).await.unwrap(),
            Verdict::NoMatch
        );
    }
}
