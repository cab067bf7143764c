//! The data folder: for the owner's eyes only, with the secrets that were generated because none were set.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use secrecy::{ExposeSecret as _, SecretString};

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
    /// Makes the folder where it is missing, mode 0700. An empty one is closed to others. One that holds something is left
    /// as it is, with a warning in the log where others can enter it: it may not be the server's alone, and `/tmp` must
    /// not be closed to everybody else.
    ///
    /// # Errors
    /// Where it cannot be made or read.
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        let wrong = |reason| DataDirError { path: path.to_owned(), reason };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(wrong)?;
        let is_open = fs::metadata(path).map_err(wrong)?.permissions().mode() & 0o077 != 0;
        let is_empty = fs::read_dir(path).map_err(wrong)?.next().is_none();
        // A volume may belong to another user and be lent to this one's group: then its mode cannot be set.
        let is_closed = !is_open || is_empty && fs::set_permissions(path, fs::Permissions::from_mode(0o700)).is_ok();
        if !is_closed {
            tracing::warn!(folder = %path.display(), "others than the owner can enter the data folder: chmod 700 closes it");
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
        let secret = generate();
        let (draft, file) = self.draft(name).map_err(wrong)?;
        let linked = write(file, &secret).and_then(|()| fs::hard_link(&draft, &path));
        fs::remove_file(&draft).map_err(wrong)?;
        let is_ours = match linked {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(wrong(error)),
        };
        // Also where another has linked it: it may not have come to this yet, and the secret is used from here on.
        File::open(&self.0).and_then(|folder| folder.sync_all()).map_err(wrong)?;
        let secret = if is_ours { secret } else { read(&path).map_err(wrong)? };
        Ok((secret, is_ours))
    }

    /// The secret in the file `name` of a folder, if it is there. Nothing is made.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub fn find_secret(folder: &Path, name: &str) -> Result<Option<SecretString>, DataDirError> {
        let path = folder.join(name);
        match read(&path) {
            Ok(secret) => Ok(Some(secret)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(reason) => Err(DataDirError { path, reason }),
        }
    }

    /// A new file that nobody else writes to. The process's id alone does not tell drafts apart: the servers of two
    /// containers have the same.
    fn draft(&self, name: &str) -> io::Result<(PathBuf, File)> {
        static DRAFTS: AtomicU32 = AtomicU32::new(0);
        loop {
            let number = DRAFTS.fetch_add(1, Ordering::Relaxed);
            let path = self.0.join(format!(".{name}.{}.{number}", std::process::id()));
            match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
                Ok(file) => return Ok((path, file)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
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

fn write(mut file: File, secret: &SecretString) -> io::Result<()> {
    file.write_all(secret.expose_secret().as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()
}
