//! What the kernel asks of the file system, answered from the tree.
//!
//! All requests come through one kernel and its caches agree with what it sent, so cached names, attributes and pages are
//! never invalidated. Writes are not cached: `write` reaches the tree before it returns. Shared mappings are cached, as
//! everywhere, and reach it with `msync`, `fsync` or when they are unmapped. Locks are the kernel's own.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;

use super::{
    contents::PAGE,
    power::Powered,
    tree::{Kind, Number, Tree},
};

const FOREVER: Duration = Duration::from_secs(1 << 30);
const NAME_MAX: u32 = 255;
/// `FALLOC_FL_KEEP_SIZE` of Linux.
const KEEP_SIZE: i32 = 1;

/// The names of a directory as it was opened, so that a listing goes on where it was though names go meanwhile.
type Listing = Arc<Vec<(OsString, Number, FileType)>>;

#[derive(Debug)]
pub struct Callbacks {
    powered: Arc<Powered>,
    listings: Mutex<HashMap<u64, Listing>>,
    next_listing: AtomicU64,
}

impl Callbacks {
    pub fn new(powered: Arc<Powered>) -> Self {
        Self { powered, listings: Mutex::default(), next_listing: AtomicU64::new(0) }
    }
}

fn kind_of(kind: &Kind) -> FileType {
    match kind {
        Kind::File(_) => FileType::RegularFile,
        Kind::Directory { .. } => FileType::Directory,
    }
}

fn attributes(request: &Request, tree: &Tree, number: Number) -> Result<FileAttr, Errno> {
    let node = tree.node(number)?;
    let (size, pages) = match &node.kind {
        Kind::File(contents) => (contents.size(), contents.pages()),
        Kind::Directory { .. } => (0, 0),
    };
    Ok(FileAttr {
        ino: INodeNo(number),
        size,
        blocks: pages * (PAGE as u64 / 512),
        atime: node.changed_at,
        mtime: node.changed_at,
        ctime: node.changed_at,
        crtime: node.changed_at,
        kind: kind_of(&node.kind),
        perm: node.mode,
        nlink: node.links,
        uid: request.uid(),
        gid: request.gid(),
        rdev: 0,
        blksize: PAGE as u32,
        flags: 0,
    })
}

fn reply_empty(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

fn reply_entry(reply: ReplyEntry, result: Result<FileAttr, Errno>) {
    match result {
        Ok(attributes) => reply.entry(&FOREVER, &attributes, Generation(0)),
        Err(error) => reply.error(error),
    }
}

fn reply_attributes(reply: ReplyAttr, result: Result<FileAttr, Errno>) {
    match result {
        Ok(attributes) => reply.attr(&FOREVER, &attributes),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Callbacks {
    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.powered.look(|tree| attributes(request, tree, tree.lookup(parent.0, name)?));
        reply_entry(reply, found);
    }

    fn getattr(&self, request: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply_attributes(reply, self.powered.look(|tree| attributes(request, tree, number.0)));
    }

    fn setattr(
        &self,
        request: &Request,
        number: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = self.powered.change(|tree| {
            if let Some(size) = size {
                tree.truncate(number.0, size)?;
            }
            let node = tree.node_mut(number.0)?;
            if let Some(mode) = mode {
                node.mode = (mode & 0o7777) as u16;
            }
            match modified {
                Some(TimeOrNow::SpecificTime(time)) => node.changed_at = time,
                Some(TimeOrNow::Now) => node.changed_at = SystemTime::now(),
                None => {}
            }
            attributes(request, tree, number.0)
        });
        reply_attributes(reply, set);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let mode = (mode & !umask & 0o7777) as u16;
        let made = self.powered.change(|tree| {
            let number = tree.make_directory(parent.0, name, mode)?;
            attributes(request, tree, number)
        });
        reply_entry(reply, made);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, self.powered.change(|tree| tree.unlink(parent.0, name)));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, self.powered.change(|tree| tree.remove_directory(parent.0, name)));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !RenameFlags::RENAME_NOREPLACE.contains(flags) {
            return reply.error(Errno::EINVAL);
        }
        let keep = flags.contains(RenameFlags::RENAME_NOREPLACE);
        let (from, to) = ((parent.0, name), (new_parent.0, new_name));
        reply_empty(reply, self.powered.change(|tree| tree.rename(from, to, keep)));
    }

    fn link(&self, request: &Request, file: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let linked = self.powered.change(|tree| {
            tree.link(file.0, parent.0, name)?;
            attributes(request, tree, file.0)
        });
        reply_entry(reply, linked);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let mode = (mode & !umask & 0o7777) as u16;
        let created = self.powered.change(|tree| {
            let number = tree.create(parent.0, name, mode)?;
            tree.open(number)?;
            attributes(request, tree, number)
        });
        match created {
            Ok(attributes) => {
                reply.created(&FOREVER, &attributes, Generation(0), FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
            }
            Err(error) => reply.error(error),
        }
    }

    fn open(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.powered.look(|tree| tree.open(number.0)) {
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
            Err(error) => reply.error(error),
        }
    }

    fn release(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        reply_empty(reply, self.powered.look(|tree| tree.close(number.0)));
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.powered.look(|tree| tree.read(number.0, offset, size as usize)) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        bytes: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.powered.change(|tree| tree.write(number.0, offset, bytes)) {
            Ok(written) => reply.written(written as u32),
            Err(error) => reply.error(error),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if mode & !KEEP_SIZE != 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        reply_empty(reply, self.powered.change(|tree| tree.reserve(number.0, offset, length, mode == KEEP_SIZE)));
    }

    /// A file was closed once, which makes nothing durable.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply_empty(reply, self.powered.look(|_| Ok(())));
    }

    fn fsync(&self, _: &Request, number: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply_empty(reply, self.powered.change(|tree| tree.sync(number.0)));
    }

    fn fsyncdir(&self, _: &Request, number: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply_empty(reply, self.powered.change(|tree| tree.sync(number.0)));
    }

    fn opendir(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let listing = self.powered.look(|tree| {
            let listed =
                |(name, number): (&OsString, &Number)| Ok((name.clone(), *number, kind_of(&tree.node(*number)?.kind)));
            tree.names(number.0)?.iter().map(listed).collect::<Result<Vec<_>, _>>()
        });
        match listing {
            Ok(listing) => {
                let handle = self.next_listing.fetch_add(1, Ordering::Relaxed);
                self.listings.lock().insert(handle, Arc::new(listing));
                reply.opened(FileHandle(handle), FopenFlags::empty());
            }
            Err(error) => reply.error(error),
        }
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let Some(listing) = self.listings.lock().get(&handle.0).cloned() else { return reply.error(Errno::EBADF) };
        for (place, (name, number, kind)) in listing.iter().enumerate().skip(offset as usize) {
            if reply.add(INodeNo(*number), place as u64 + 1, *kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.listings.lock().remove(&handle.0);
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        match self.powered.look(|tree| Ok((tree.capacity(), tree.free()))) {
            Ok((all, free)) => {
                let size = PAGE as u32;
                reply.statfs(all, free, free, u64::from(u32::MAX), u64::from(u32::MAX), size, NAME_MAX, size);
            }
            Err(error) => reply.error(error),
        }
    }
}
