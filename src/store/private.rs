//! Files and directories for the owner of the data directory alone: 0600 and 0700 on Unix.
//!
//! A new directory is durable when its call returns: its entry in the parent is forced to the disk, so that a power cut
//! does not take the directory with all that was written in it since.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    path::Path,
};

/// Makes a directory and the missing ones above it.
pub(super) fn create_dir_all(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    if path.is_dir() {
        // A process that made it may have been killed before its name was on the disk. A parent that this user cannot read was
        // not made here.
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

fn options() -> OpenOptions {
    #[cfg_attr(not(unix), expect(unused_mut, reason = "modes are Unix's"))]
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// A file that was not there.
pub(super) fn create_new(path: &Path) -> io::Result<File> {
    options().write(true).create_new(true).open(path)
}

/// A file that may be there; what is in it stays.
pub(super) fn open_or_create(path: &Path) -> io::Result<File> {
    options().write(true).create(true).truncate(false).open(path)
}

/// Writes a whole file at once: after a power cut there is the old content or the new, never a part.
pub(super) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_added_extension("incomplete");
    let mut file = options().write(true).create(true).truncate(true).open(&beside)?;
    io::Write::write_all(&mut file, bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// Forces what was created, renamed and removed in a directory to the disk.
pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    // Only Unix opens a directory as a file.
    if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
}

/// Takes the rights of others away from an existing file or directory; says whether there were any.
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
