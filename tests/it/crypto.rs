//! Sealing, digests, and types that cannot be printed.

use claviger::crypto::{Aad, KeyRing, KeyRingError, OpenError, Purpose, Random, Sealed, SecretText};
use proptest::prelude::*;

fn key(byte: u8) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode([byte; 32])
}

fn ring(versions: &[(&str, u8)]) -> KeyRing {
    let entries: Vec<_> = versions.iter().map(|(version, byte)| format!("{version}:{}", key(*byte))).collect();
    KeyRing::parse(&SecretText::from(entries.join(","))).unwrap()
}

fn place() -> Aad {
    Aad { organization: "org_1".into(), record: "acct_1".into(), field: "api_key", secret_version: 1 }
}

fn seal(ring: &KeyRing, text: &str) -> Sealed {
    ring.seal(&Random::system(), &place(), &SecretText::from(text.to_owned())).unwrap()
}

proptest! {
    #[test]
    fn what_was_sealed_opens_in_its_place(text in ".*") {
        let ring = ring(&[("v1", 1)]);
        let sealed = seal(&ring, &text);
        let opened = ring.open(&place(), &sealed).unwrap();
        prop_assert_eq!(opened.expose(), text.as_str());
    }

    #[test]
    fn a_sealed_value_that_was_changed_does_not_open(text in ".{0,50}", place_of_change in 0_usize..500, bit in 0_u8..8) {
        let ring = ring(&[("v1", 1)]);
        let mut sealed = seal(&ring, &text);
        let index = place_of_change % sealed.bytes.len();
        sealed.bytes[index] ^= 1 << bit;
        prop_assert_eq!(ring.open(&place(), &sealed).unwrap_err(), OpenError::Corrupt);
    }

    #[test]
    fn garbage_does_not_open(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let sealed = Sealed { key_version: "v1".into(), bytes };
        prop_assert_eq!(ring(&[("v1", 1)]).open(&place(), &sealed).unwrap_err(), OpenError::Corrupt);
    }

    #[test]
    fn no_text_makes_the_key_ring_panic(text in "[v0-9:,A-Za-z+/=]{0,80}") {
        let _ = KeyRing::parse(&SecretText::from(text));
    }
}

#[test]
fn a_value_opens_in_no_other_place() {
    let ring = ring(&[("v1", 1)]);
    let sealed = seal(&ring, "secret");
    for other in [
        Aad { organization: "org_2".into(), ..place() },
        Aad { record: "acct_2".into(), ..place() },
        Aad { field: "other", ..place() },
        Aad { secret_version: 2, ..place() },
        // The same letters, otherwise divided.
        Aad { organization: "org_1a".into(), record: "cct_1".into(), ..place() },
    ] {
        assert_eq!(ring.open(&other, &sealed).unwrap_err(), OpenError::Corrupt, "{other:?}");
    }
}

#[test]
fn an_older_key_opens_and_the_newest_seals() {
    let sealed = seal(&ring(&[("v1", 1)]), "secret");
    let both = ring(&[("v2", 2), ("v1", 1)]);
    assert_eq!(both.open(&place(), &sealed).unwrap().expose(), "secret");
    assert_eq!(seal(&both, "secret").key_version, "v2");
    let missing = ring(&[("v2", 2)]).open(&place(), &sealed).unwrap_err();
    assert_eq!(missing, OpenError::UnknownKey("v1".into()));
    let relabelled = Sealed { key_version: "v2".into(), ..sealed };
    assert_eq!(both.open(&place(), &relabelled).unwrap_err(), OpenError::Corrupt);
}

#[test]
fn the_version_of_the_key_is_sealed_in() {
    // One key under two names, in two rings: only the name tells them apart.
    let renamed = Sealed { key_version: "v1".into(), ..seal(&ring(&[("v2", 1)]), "secret") };
    assert_eq!(ring(&[("v1", 1)]).open(&place(), &renamed).unwrap_err(), OpenError::Corrupt);
}

#[test]
fn parts_of_two_sealed_values_do_not_open_together() {
    const HEAD: usize = 1 + 12 + 32 + 16;
    let ring = ring(&[("v1", 1)]);
    let (one, other) = (seal(&ring, "secret"), seal(&ring, "secret"));
    let bytes = [&one.bytes[..HEAD], &other.bytes[HEAD..]].concat();
    assert_eq!(ring.open(&place(), &Sealed { bytes, ..one }).unwrap_err(), OpenError::Corrupt);
}

#[test]
fn a_token_has_one_successor_until_a_newer_key_comes() {
    let (one, both) = (ring(&[("v1", 1)]), ring(&[("v2", 2), ("v1", 1)]));
    let token = Random::system().token();
    let successor = one.refresh_successor(&token);
    assert_eq!(successor.expose(), one.refresh_successor(&token).expose());
    assert_eq!(successor.expose().len(), 43);
    assert_ne!(successor.expose(), both.refresh_successor(&token).expose());
}

#[test]
fn a_key_ring_names_the_entry_that_is_wrong() {
    let parse = |text: String| KeyRing::parse(&SecretText::from(text)).unwrap_err();
    assert_eq!(parse(String::new()), KeyRingError::Empty);
    assert_eq!(parse(format!("v1:{},v1:{}", key(1), key(2))), KeyRingError::Repeated(2));
    assert_eq!(parse(format!(",v1:{},v1:{}", key(1), key(2))), KeyRingError::Repeated(3), "an empty entry counts");
    assert_eq!(parse(format!("v2:{},v1:{}", key(1), key(1))), KeyRingError::SameKey(2));
    for wrong in [key(1), format!("1:{}", key(1)), format!("v:{}", key(1)), "v1:AAAA".into(), "v1:*".into()] {
        assert_eq!(parse(format!("v9:{},{wrong}", key(9))), KeyRingError::Malformed(2), "{wrong}");
    }
}

#[test]
fn digests_differ_by_purpose_and_key_and_never_drift() {
    let (one, both) = (ring(&[("v1", 1)]), ring(&[("v2", 2), ("v1", 1)]));
    let digest = one.digest(Purpose::RefreshToken, b"token");
    assert_ne!(digest, one.digest(Purpose::UpstreamKeyFingerprint, b"token"));
    assert_ne!(digest, both.digest(Purpose::RefreshToken, b"token"));
    assert!(both.digests(Purpose::RefreshToken, b"token").contains(&digest));
    // Stored digests are found by computing them again: a change of the derivation would lose them all.
    let fingerprint = one.digest(Purpose::UpstreamKeyFingerprint, b"token");
    insta::assert_snapshot!(format!("{}\n{}", hex::encode(digest.as_bytes()), hex::encode(fingerprint.as_bytes())));
}

#[test]
fn secrets_print_as_redacted() {
    let ring = ring(&[("v1", 1)]);
    let secret = SecretText::from("canary".to_owned());
    let digest = ring.digest(Purpose::RefreshToken, b"canary");
    assert_eq!(format!("{secret:?} {digest:?} {ring:?}"), "[redacted] [redacted] [\"v1\"]");
}

#[test]
fn generated_keys_tokens_and_passwords_differ() {
    let random = Random::system();
    assert_ne!(KeyRing::generate(&random).expose(), KeyRing::generate(&random).expose());
    KeyRing::parse(&KeyRing::generate(&random)).unwrap();
    assert_ne!(random.token().expose(), random.token().expose());
    assert_eq!(random.password().expose().len(), 24);
}
