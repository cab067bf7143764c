//! The data folder: for the owner's eyes only, with the secrets that were generated because none were set.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use secrecy::{ExposeSecret as _, SecretString};

/// Tells the drafts of one process apart.
static DRAFTS: AtomicU32 = AtomicU32::new(0);

/// The folder.
#[derive(Debug)]
pub struct DataDir(PathBuf);

/// What could not be done in the folder.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct DataDirError {
    path: PathBuf,
    reason: io::Error,
}

impl DataDir {
    /// Makes the folder where it is missing, mode 0700, and takes others' rights away where it has them.
    ///
    /// # Errors
    /// Where it cannot be made or its mode not be set.
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        let wrong = |reason| DataDirError { path: path.to_owned(), reason };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(wrong)?;
        let mode = fs::metadata(path).map_err(wrong)?.permissions().mode();
        if mode & 0o077 != 0 {
            fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(wrong)?;
        }
        Ok(Self(path.to_owned()))
    }

    /// The secret in the file `name`, made by `generate` where there is none. Of several servers that start at once, all
    /// get the same. Returns whether it was generated.
    ///
    /// # Errors
    /// Where the file cannot be read or written.
    pub fn secret(
        &self,
        name: &str,
        generate: impl FnOnce() -> SecretString,
    ) -> Result<(SecretString, bool), DataDirError> {
        let path = self.0.join(name);
        let wrong = |reason| DataDirError { path: path.clone(), reason };
        match read(&path) {
            Ok(secret) => return Ok((secret, false)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(wrong(error)),
        }
        // Written whole under another name, then linked: who finds the file finds all of it, and nobody overwrites it.
        let draft = format!(".{name}.{}.{}", std::process::id(), DRAFTS.fetch_add(1, Ordering::Relaxed));
        let draft = self.0.join(draft);
        let secret = generate();
        let written = write(&draft, &secret).and_then(|()| fs::hard_link(&draft, &path));
        let removed = fs::remove_file(&draft);
        match written {
            Ok(()) => {
                removed.map_err(wrong)?;
                File::open(&self.0).and_then(|folder| folder.sync_all()).map_err(wrong)?;
                Ok((secret, true))
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok((read(&path).map_err(wrong)?, false)),
            Err(error) => Err(wrong(error)),
        }
    }
}

fn read(path: &Path) -> io::Result<SecretString> {
    let text = fs::read_to_string(path)?;
    match text.trim_end() {
        "" => Err(io::Error::new(io::ErrorKind::InvalidData, "the file is empty")),
        text => Ok(text.into()),
    }
}

fn write(path: &Path, secret: &SecretString) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(secret.expose_secret().as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()
}
