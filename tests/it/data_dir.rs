//! The data folder: for its owner alone, and each secret in it made once.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Barrier;

use claviger::settings::DataDir;
use secrecy::{ExposeSecret as _, SecretString};

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn not_asked() -> SecretString {
    panic!("a secret that is there is not generated")
}

#[test]
fn a_new_folder_and_its_secrets_are_for_the_owner_alone() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("deep/data");
    let folder = DataDir::open(&path).unwrap();
    let (secret, is_generated) = folder.secret("jwt-secret", || "first".into()).unwrap();
    assert_eq!((secret.expose_secret(), is_generated), ("first", true));
    assert_eq!(mode(&path), 0o700);
    assert_eq!(mode(&path.join("jwt-secret")), 0o600);
    assert_eq!(names(&path), ["jwt-secret"], "no draft remains");
}

#[test]
fn a_secret_that_is_there_is_read_and_not_overwritten() {
    let parent = tempfile::tempdir().unwrap();
    let file = parent.path().join("jwt-secret");
    for written in ["first", "first\n", "first\r\n"] {
        std::fs::write(&file, written).unwrap();
        let (secret, is_generated) = DataDir::open(parent.path()).unwrap().secret("jwt-secret", not_asked).unwrap();
        assert_eq!((secret.expose_secret(), is_generated), ("first", false));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), written);
    }
}

#[test]
fn what_another_server_has_made_meanwhile_is_taken() {
    let parent = tempfile::tempdir().unwrap();
    let file = parent.path().join("jwt-secret");
    let folder = DataDir::open(parent.path()).unwrap();
    let generate = || {
        std::fs::write(&file, "theirs\n").unwrap();
        "ours".into()
    };
    let (secret, is_generated) = folder.secret("jwt-secret", generate).unwrap();
    assert_eq!((secret.expose_secret(), is_generated), ("theirs", false));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "theirs\n");
    assert_eq!(names(parent.path()), ["jwt-secret"], "no draft remains");
}

#[test]
fn an_empty_secret_is_an_error_and_stays_as_it_is() {
    let parent = tempfile::tempdir().unwrap();
    let file = parent.path().join("encryption-keys");
    for empty in ["", "\n"] {
        std::fs::write(&file, empty).unwrap();
        let error = DataDir::open(parent.path()).unwrap().secret("encryption-keys", not_asked).unwrap_err();
        assert!(error.to_string().contains("encryption-keys"), "{error}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), empty);
    }
}

#[test]
fn a_file_in_the_folders_place_is_an_error_that_names_it() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("data");
    std::fs::write(&path, "").unwrap();
    let error = DataDir::open(&path).unwrap_err();
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
}

#[test]
fn an_empty_folder_that_others_can_read_is_closed() {
    let parent = tempfile::tempdir().unwrap();
    set_mode(parent.path(), 0o755);
    DataDir::open(parent.path()).unwrap();
    assert_eq!(mode(parent.path()), 0o700);
}

#[test]
fn racers_for_a_secret_all_get_the_same() {
    const RACERS: usize = 8;
    for _ in 0..50 {
        let parent = tempfile::tempdir().unwrap();
        let folder = DataDir::open(parent.path()).unwrap();
        let start = Barrier::new(RACERS);
        let race = |racer: usize| {
            start.wait();
            let (secret, is_generated) = folder.secret("jwt-secret", || format!("made by {racer}").into()).unwrap();
            (secret.expose_secret().to_owned(), is_generated)
        };
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let race = &race;
            let racers: Vec<_> = (0..RACERS).map(|racer| scope.spawn(move || race(racer))).collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).collect()
        });
        let kept = std::fs::read_to_string(parent.path().join("jwt-secret")).unwrap();
        assert!(outcomes.iter().all(|(secret, _)| secret == kept.trim_end()), "{outcomes:?}, kept {kept:?}");
        assert_eq!(outcomes.iter().filter(|(_, is_generated)| *is_generated).count(), 1, "{outcomes:?}");
        assert_eq!(names(parent.path()), ["jwt-secret"], "no draft remains");
    }
}

#[test]
fn a_draft_that_a_killed_server_left_is_neither_used_nor_in_the_way() {
    let parent = tempfile::tempdir().unwrap();
    let folder = DataDir::open(parent.path()).unwrap();
    for number in 0..1000 {
        let draft = format!(".jwt-secret.{}.{number}", std::process::id());
        std::fs::write(parent.path().join(draft), "stale").unwrap();
    }
    let (secret, is_generated) = folder.secret("jwt-secret", || "fresh".into()).unwrap();
    assert_eq!((secret.expose_secret(), is_generated), ("fresh", true));
}

#[test]
fn a_folder_that_holds_something_keeps_its_mode() {
    let parent = tempfile::tempdir().unwrap();
    std::fs::write(parent.path().join("of-another-program"), "").unwrap();
    set_mode(parent.path(), 0o1777);
    DataDir::open(parent.path()).unwrap();
    assert_eq!(mode(parent.path()), 0o1777);
}

#[test]
fn a_secret_is_not_overwritten_through_the_draft_of_a_server_with_the_same_process_id() {
    let parent = tempfile::tempdir().unwrap();
    let file = parent.path().join("jwt-secret");
    let folder = DataDir::open(parent.path()).unwrap();
    // Another container's server, whose process id is the same, has linked its draft and not yet removed it.
    let generate = || {
        std::fs::write(&file, "theirs\n").unwrap();
        for number in 0..1000_u16 {
            let draft = format!(".jwt-secret.{}.{number}", std::process::id());
            std::fs::hard_link(&file, parent.path().join(draft)).unwrap();
        }
        "ours".into()
    };
    let (secret, _) = folder.secret("jwt-secret", generate).unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "theirs\n");
    assert_eq!(secret.expose_secret(), "theirs");
}
