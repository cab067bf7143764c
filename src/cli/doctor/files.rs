//! What lies in the data folder and beside the database: who may read it, whether it is of use, and whether there is room for more.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use secrecy::ExposeSecret as _;

use super::Finding;
use crate::crypto::{KeyRing, SecretText};
use crate::settings::{DataDir, DatabaseUrl, Settings, check_jwt_secret};

const GIB: u64 = 1 << 30;
/// Less than this, and the next large write may fail.
const LITTLE: u64 = GIB / 16;

/// Looks at the files.
pub(super) fn check(settings: &Settings) -> Vec<Finding> {
    let mut found = vec![data_dir(&settings.data_dir), modes(settings)];
    found.extend(room(settings));
    if settings.jwt_secret.is_none() {
        found.push(jwt_secret(&settings.data_dir));
    }
    found
}

/// What others may do: the bits of the group, and of everybody else.
fn others(path: &Path) -> io::Result<(u32, u32)> {
    let mode = fs::metadata(path)?.permissions().mode();
    Ok((mode & 0o070, mode & 0o007))
}

fn data_dir(path: &Path) -> Finding {
    const CHECK: &str = "data-dir";
    let place = path.display();
    let advice = format!("chmod 700 {place}");
    match others(path) {
        Ok((0, 0)) => Finding::ok(CHECK, format!("{place}, for its owner alone")),
        Ok((_, 0)) => Finding::warn(CHECK, format!("{place}: the group can enter it"), advice),
        Ok(_) => Finding::fail(CHECK, format!("{place}: everybody can enter it"), advice),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Finding::warn(CHECK, format!("{place} is not there"), "look at DATA_DIR; the first start makes the folder")
        }
        Err(error) => Finding::fail(CHECK, format!("{place}: {error}"), "look at DATA_DIR, and who runs the server"),
    }
}

fn modes(settings: &Settings) -> Finding {
    const CHECK: &str = "file-modes";
    let of_data_dir = ["jwt-secret", "encryption-keys", "outbox"].map(|name| settings.data_dir.join(name));
    let of_database = match &settings.database_url {
        DatabaseUrl::Sqlite(path) => ["", "-wal", "-shm"].map(|end| beside(path, end)).to_vec(),
        DatabaseUrl::Postgres(_) => Vec::new(),
    };
    let files: Vec<PathBuf> = of_data_dir.into_iter().chain(of_database).filter(|path| path.exists()).collect();
    let open: Vec<_> = files.iter().filter(|path| others(path).is_ok_and(|bits| bits != (0, 0))).collect();
    if open.is_empty() {
        return Finding::ok(CHECK, format!("{} files, for their owner alone", files.len()));
    }
    let named: Vec<_> = open.iter().map(|path| path.display().to_string()).collect();
    let message = format!("others than the owner may use: {}", named.join(", "));
    Finding::fail(CHECK, message, format!("chmod go= {}", named.join(" ")))
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// The room where the server writes, each disk once.
fn room(settings: &Settings) -> Vec<Finding> {
    const CHECK: &str = "disk-space";
    let mut places = vec![settings.data_dir.as_path()];
    if let DatabaseUrl::Sqlite(path) = &settings.database_url {
        places.extend(path.parent());
    }
    let mut disks = Vec::new();
    let mut found = Vec::new();
    for place in places {
        // One that is not there yet will be made in the next that is.
        let Some(place) = place.ancestors().find(|place| place.exists()) else { continue };
        let advice = "make room, or give the folder another disk: what is not written is not answered";
        match rustix::fs::statvfs(place) {
            Ok(disk) if disks.contains(&disk.f_fsid) => {}
            Ok(disk) => {
                disks.push(disk.f_fsid);
                let free = disk.f_bavail.saturating_mul(disk.f_frsize);
                let message = format!("{}: {} MiB are free", place.display(), free >> 20);
                found.push(match free {
                    GIB.. => Finding::ok(CHECK, message),
                    LITTLE.. => Finding::warn(CHECK, message, advice),
                    _ => Finding::fail(CHECK, message, advice),
                });
            }
            Err(error) => found.push(Finding::fail(CHECK, format!("{}: {error}", place.display()), "look at the disk")),
        }
    }
    found
}

fn jwt_secret(folder: &Path) -> Finding {
    const CHECK: &str = "jwt-secret";
    match DataDir::find_secret(folder, "jwt-secret") {
        Ok(None) => Finding::ok(CHECK, "not made yet: the first start does"),
        Ok(Some(secret)) => match check_jwt_secret(secret.expose_secret()) {
            Ok(()) => Finding::ok(CHECK, "in DATA_DIR"),
            Err(wrong) => {
                Finding::fail(CHECK, format!("the file in DATA_DIR {wrong}"), "remove it: a restart makes another")
            }
        },
        Err(error) => Finding::fail(CHECK, error.to_string(), "let the server's user read it"),
    }
}

/// The key ring as the server would have it, and what is to be said of it.
pub(super) fn key_ring(settings: &Settings) -> (Option<KeyRing>, Option<Finding>) {
    const CHECK: &str = "key-ring";
    let wrong = |message: String, advice: &str| (None, Some(Finding::fail(CHECK, message, advice)));
    let text = match &settings.encryption_keys {
        Some(keys) => Some(keys.clone()),
        None => match DataDir::find_secret(&settings.data_dir, "encryption-keys") {
            Ok(found) => found,
            Err(error) => return wrong(error.to_string(), "let the server's user read it"),
        },
    };
    let Some(text) = text else {
        let missing = Finding::warn(
            CHECK,
            "there is none",
            "where the server has run, restore CREDENTIAL_ENCRYPTION_KEYS, or encryption-keys in DATA_DIR; the first start makes one",
        );
        return (None, Some(missing));
    };
    match KeyRing::parse(&SecretText::from(text.expose_secret().to_owned())) {
        Ok(ring) => (Some(ring), None),
        Err(error) => {
            wrong(error.to_string(), "set CREDENTIAL_ENCRYPTION_KEYS as docs/operations.md says, or restore it")
        }
    }
}
