//! Files and directories for the owner of the data directory alone: 0600 and 0700 on Unix. A data directory is one process's at a time.
//!
//! A new directory is durable when the call returns: its entry in the parent is synced to the disk, so that a power cut
//! does not take the directory with everything written in it since.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io,
    path::Path,
};

use super::{Result, StoreError, io_error};

/// Creates a directory and its missing parents.
pub(super) fn create_dir_all(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    if path.is_dir() {
        // A process that created it may have been killed before its name was on the disk. A parent that this user
        // cannot read was not created here.
        let _ = parent.map(sync_dir);
        return Ok(());
    }
    if let Some(parent) = parent {
        create_dir_all(parent)?;
    }
    #[cfg_attr(not(unix), expect(unused_mut, reason = "modes are Unix's"))]
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    match builder.create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        made => made?,
    }
    parent.map_or(Ok(()), sync_dir)
}

/// Creates a data directory if it is missing and locks it: no other process uses the directory while the returned file is held.
///
/// # Errors
/// [`StoreError::Locked`]
pub(super) fn lock_directory(directory: &Path) -> Result<File> {
    create_dir_all(directory).map_err(|source| io_error(directory, source))?;
    let path = directory.join("lock");
    let lock = open_or_create(&path).map_err(|source| io_error(&path, source))?;
    lock.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => StoreError::Locked { path: directory.to_owned() },
        TryLockError::Error(source) => StoreError::Io { path, source },
    })?;
    Ok(lock)
}

fn options() -> OpenOptions {
    #[cfg_attr(not(unix), expect(unused_mut, reason = "modes are Unix's"))]
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Creates a file that must not exist.
pub(super) fn create_new(path: &Path) -> io::Result<File> {
    options().write(true).create_new(true).open(path)
}

/// Opens or creates a file; existing content stays.
pub(super) fn open_or_create(path: &Path) -> io::Result<File> {
    options().write(true).create(true).truncate(false).open(path)
}

/// Replaces a whole file atomically: after a power cut it has the old content or the new, never a part.
pub(super) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_added_extension("incomplete");
    let mut file = options().write(true).create(true).truncate(true).open(&beside)?;
    io::Write::write_all(&mut file, bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// Syncs a directory's created, renamed and removed entries to the disk.
pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    // Only Unix opens a directory as a file.
    if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
}

/// Revokes others' rights to an existing file or directory; returns whether there were any.
#[cfg(unix)]
pub(super) fn restrict(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::PermissionsExt;

    let found = fs::metadata(path)?;
    let mode = found.permissions().mode();
    if mode & 0o077 == 0 {
        return Ok(false);
    }
    fs::set_permissions(path, fs::Permissions::from_mode(if found.is_dir() { 0o700 } else { 0o600 }))?;
    Ok(true)
}

#[cfg(not(unix))]
#[expect(clippy::unnecessary_wraps, reason = "on Unix it can fail")]
pub(super) fn restrict(_path: &Path) -> io::Result<bool> {
    Ok(false)
}
