//! Passwords: what is accepted, hashed and compared.

use argon2::password_hash::{PasswordHasher as _, phc};
use argon2::{Algorithm, Argon2, Params, Version};
use claviger::crypto::{Random, SecretText};
use claviger::domain::{Code, Error};
use claviger::identity::password::{Hasher, NotHashed, PasswordHash, Verdict, objection};

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

#[test]
fn a_password_is_judged_as_it_is_hashed() {
    let email = "jos\u{e9}@example.com".parse().unwrap();
    let four_letters = "e\u{301}".repeat(4);
    let two_hundred_letters = "e\u{301}".repeat(200);
    for (password, is_accepted) in [
        (four_letters.as_str(), false),
        (two_hundred_letters.as_str(), true),
        ("jose\u{301}@example.com", false),
        (" Jos\u{e9}@example.com ", false),
        ("zxcvbnm,", false),
        ("mississippi river", true),
    ] {
        assert_eq!(objection(&secret(password), &email).is_none(), is_accepted, "{password}");
    }
}

#[tokio::test]
async fn a_long_password_matches_however_it_is_composed() {
    let hasher = Hasher::new(Random::system());
    let hash = hasher.hash(&secret(&"\u{e9}".repeat(200))).await.unwrap();
    let decomposed = secret(&"e\u{301}".repeat(200));
    assert_eq!(hasher.verify(&decomposed, Some(hash)).await.unwrap(), Verdict::Match);
}

#[tokio::test]
async fn a_password_longer_than_any_accepted_never_matches() {
    let hasher = Hasher::new(Random::system());
    let long = secret(&"a".repeat(257));
    let hash = hasher.hash(&long).await.unwrap();
    assert_eq!(hasher.verify(&long, Some(hash)).await.unwrap(), Verdict::NoMatch);
    let hash_of_nothing = hasher.hash(&secret("")).await.unwrap();
    assert_eq!(hasher.verify(&long, Some(hash_of_nothing)).await.unwrap(), Verdict::NoMatch);
}

#[tokio::test]
async fn an_argon2_hash_with_other_parameters_is_to_be_upgraded() {
    let hasher = Hasher::new(Random::system());
    for (algorithm, memory, passes) in
        [(Algorithm::Argon2id, 8 * 1024, 1), (Algorithm::Argon2id, 24 * 1024, 3), (Algorithm::Argon2i, 19 * 1024, 2)]
    {
        let argon2 = Argon2::new(algorithm, Version::V0x13, Params::new(memory, passes, 1, None).unwrap());
        let hash: phc::PasswordHash = argon2.hash_password_with_salt(b"password", &[7; 16]).unwrap();
        let hash = PasswordHash::from(hash.to_string());
        assert_eq!(
            hasher.verify(&secret("password"), Some(hash.clone())).await.unwrap(),
            Verdict::MatchNeedsUpgrade,
            "{algorithm:?} {memory} {passes}"
        );
        assert_eq!(hasher.verify(&secret("passwort"), Some(hash)).await.unwrap(), Verdict::NoMatch);
    }
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

#[tokio::test]
async fn only_so_many_passwords_wait_to_be_hashed() {
    let hasher = Hasher::new(Random::system());
    let fit = 17 * std::thread::available_parallelism().unwrap().get();
    let password = secret("password");
    // On one thread: all are begun before the first is looked at again.
    let verdicts = futures_util::future::join_all((0..fit + 10).map(|_| hasher.verify(&password, None))).await;
    let compared = verdicts.iter().filter(|verdict| **verdict == Ok(Verdict::NoMatch)).count();
    let refused = verdicts.iter().filter(|verdict| **verdict == Err(NotHashed::Busy)).count();
    assert_eq!((compared, refused), (fit, 10));
    assert_eq!(Error::from(NotHashed::Busy).code(), Code::ServiceUnavailable);
    assert_eq!(hasher.verify(&password, None).await, Ok(Verdict::NoMatch), "there is room again");
}
