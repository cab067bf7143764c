//! What a program reads as a file though it need stand on no disk: the server says it to the supervisor before all else, which puts it
//! into memory that the program inherits, and a link to that where the program looks for it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A file for a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// How many bytes it has.
    pub(super) length: u64,
    /// Where the program looks for it, from where it is started.
    pub(super) path: PathBuf,
}

impl Given {
    /// As the supervisor is told of it.
    pub(super) fn argument(&self) -> String {
        format!("--given={}:{}", self.length, self.path.display())
    }

    /// Reads it. Whoever is started while the file is open can read it at its path.
    pub(super) fn take(&self, from: &mut impl Read) -> io::Result<File> {
        // Where there is no such memory, or it is not to be had, a file has to do, until the server removes it.
        let mut file = in_memory(&self.path).or_else(|_| on_disk(&self.path))?;
        if io::copy(&mut from.take(self.length), &mut file)? < self.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(file)
    }
}

impl FromStr for Given {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (length, path) = text.split_once(':').ok_or("is not a length and a path with a colon between")?;
        Ok(Self { length: length.parse().map_err(|_| "has no length")?, path: path.into() })
    }
}

#[cfg(target_os = "linux")]
fn in_memory(path: &Path) -> io::Result<File> {
    use std::os::fd::AsRawFd as _;

    use rustix::fs::{MemfdFlags, memfd_create};
    use rustix::io::Errno;

    // It is not closed where a program is started, unlike other files.
    let memory = match memfd_create("given", MemfdFlags::NOEXEC_SEAL) {
        // Before Linux 6.3.
        Err(Errno::INVAL) => memfd_create("given", MemfdFlags::empty()),
        other => other,
    }?;
    // By this name each process finds its own.
    std::os::unix::fs::symlink(format!("/proc/self/fd/{}", memory.as_raw_fd()), path)?;
    Ok(memory.into())
}

#[cfg(not(target_os = "linux"))]
fn in_memory(_: &Path) -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

fn on_disk(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_is_told_as_it_is_read() {
        let given = Given { length: 12, path: "../a:b".into() };
        assert_eq!(given.argument(), "--given=12:../a:b");
        assert_eq!("12:../a:b".parse(), Ok(given));
        assert!("12".parse::<Given>().is_err() && "x:y".parse::<Given>().is_err());
    }

    #[test]
    fn what_breaks_off_is_not_given() {
        let folder = tempfile::tempdir().unwrap();
        let given = Given { length: 4, path: folder.path().join("file") };
        assert_eq!(given.take(&mut &b"abc"[..]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
