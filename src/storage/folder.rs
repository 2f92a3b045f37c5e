//! A local folder as a store: who may read what is written, and what a lost power leaves of it.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

use super::StorageError;
use crate::config::FileMode;

/// Where unfinished files lie.
const UPLOADS: &str = ".uploads";

/// A folder whose files and subfolders have modes of their own, whatever the process's umask is.
#[derive(Debug, Clone)]
pub struct Folder {
    root: PathBuf,
    mode: FileMode,
    /// Whether it has been said what the file system cannot do.
    is_said: Arc<AtomicBool>,
}

impl Folder {
    pub fn new(root: PathBuf, mode: FileMode) -> Self {
        Self { root, mode, is_said: Arc::default() }
    }

    /// Where unfinished files of the folder at `root` lie: in the same file system, so that a finished one only gets
    /// its name.
    pub fn uploads(root: &Path) -> PathBuf {
        root.join(UPLOADS)
    }

    /// Makes the folder, and the one for unfinished files.
    pub fn make(root: &Path, mode: FileMode) -> Result<(), StorageError> {
        let folder = Self::new(root.to_owned(), mode);
        let made = make_all(root, |path| folder.protect(path, mode.of_folders()))
            .and_then(|()| make_all(&Self::uploads(root), |path| folder.protect(path, 0o700)));
        made.map_err(|error| {
            StorageError::configuration(
                "fs",
                format!("the folder {} cannot be made or written: {error}; check storage.path", root.display()),
            )
        })
    }

    /// Makes the folders that a file will lie in.
    pub fn prepare(&self, key: &str) -> io::Result<()> {
        let Some(parent) = Path::new(key).parent() else { return Ok(()) };
        make_all(&self.root.join(parent), |path| self.protect(path, self.mode.of_folders()))
    }

    /// Gives a file that has come its mode, and brings its name to the disk. A file's name is there only when its
    /// folders are: a lost power must not take what Kafka was told of.
    pub fn settle(&self, key: &str) -> io::Result<()> {
        self.protect(&self.root.join(key), self.mode.of_files())?;
        for folder in Path::new(key).ancestors().skip(1) {
            let folder = self.root.join(folder);
            let synced = fs::File::open(&folder)?.sync_all();
            self.if_possible(&folder, "cannot have its names brought to the disk one by one", synced)?;
        }
        Ok(())
    }

    fn protect(&self, path: &Path, mode: u32) -> io::Result<()> {
        let protected = fs::set_permissions(path, fs::Permissions::from_mode(mode));
        self.if_possible(path, "gives files no modes of their own", protected)
    }

    /// What a file system cannot do at all (CIFS, many of FUSE) is said once, and the work goes on.
    fn if_possible(&self, path: &Path, what: &str, done: io::Result<()>) -> io::Result<()> {
        match done {
            Err(error) if is_beyond(&error) => {
                if !self.is_said.swap(true, Ordering::Relaxed) {
                    tracing::warn!(path = %path.display(), %error, "the file system {what}; storage goes on without");
                }
                Ok(())
            }
            other => other,
        }
    }
}

/// Whether the file system has no such operation.
fn is_beyond(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::INVAL | Errno::NOTSUP | Errno::NOSYS | Errno::PERM))
}

/// Makes a folder with all above it, and calls `made` with each that was not there before.
fn make_all(folder: &Path, made: impl Fn(&Path) -> io::Result<()> + Copy) -> io::Result<()> {
    if folder.as_os_str().is_empty() || folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        make_all(parent, made)?;
    }
    match fs::create_dir(folder) {
        Ok(()) => made(folder),
        // Another task was first.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_system_cannot_do_holds_nothing_up() {
        // The kernel's own: it has no fsync for its folders, and answers EINVAL as CIFS does.
        let folder = Folder::new("/proc".into(), FileMode::Group);
        assert_eq!(fs::File::open("/proc/self").unwrap().sync_all().unwrap_err().raw_os_error(), Some(22));
        assert!(!folder.is_said.load(Ordering::Relaxed));
        folder.settle("self/status").expect("it goes on");
        assert!(folder.is_said.load(Ordering::Relaxed));
        folder.settle("self/none").expect_err("there is no such file");
    }
}
