//! The tree of files and directories: what programs see, and what is left of it when the power fails.
//!
//! The rules are those of POSIX without the favours that file systems in use do:
//!
//! - Bytes and the size of a file are durable after `fsync` or `fdatasync` of that file; until then see `contents.rs`.
//! - A name (created, renamed, linked or removed) is durable after `fsync` of its directory, and only then. To sync a new
//!   file does not make its name durable (ext4 does that), and to sync a directory does not make the directory's own name in
//!   its parent durable.
//! - Changes of one directory reach the disk in their order, so that of those that were not synced a beginning survives.
//!   Between directories there is no order. A rename is one change, also from one directory to another.
//! - Modes and times are not modelled: they are as they were last seen.
//!
//! Room is counted in pages of what is seen. A file without a name takes room as long as a process has it open.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    time::SystemTime,
};

use fuser::Errno;
use rand::{Rng, rngs::StdRng};

use super::contents::Contents;

/// The number of a file or directory. Numbers are not used again.
pub type Number = u64;
pub const ROOT: Number = 1;

type Names = BTreeMap<OsString, Number>;
type Result<T> = std::result::Result<T, Errno>;

/// What becomes of changes that were not synced.
#[derive(Debug)]
pub enum Unsynced<'a> {
    Lost,
    Kept,
    /// Each page survives with a probability that is drawn for this loss of power, and so does each next change of a
    /// directory.
    Drawn(&'a mut StdRng),
}

#[derive(Clone, Debug)]
pub enum Kind {
    File(Contents),
    Directory { seen: Names, durable: Names },
}

#[derive(Clone, Debug)]
pub struct Node {
    pub kind: Kind,
    pub mode: u16,
    pub changed_at: SystemTime,
    /// How many names are seen to lead to it.
    pub links: u32,
    opened: u32,
}

/// Names that change together: each is set or, with `None`, removed.
type Change = Vec<(Number, OsString, Option<Number>)>;

/// See the module.
#[derive(Clone, Debug)]
pub struct Tree {
    nodes: BTreeMap<Number, Node>,
    next: Number,
    /// Changes of directories that are not durable, in their order.
    journal: Vec<Change>,
    capacity: u64,
    used: u64,
}

impl Node {
    fn new(kind: Kind, mode: u16) -> Self {
        Self { kind, mode, changed_at: SystemTime::now(), links: 1, opened: 0 }
    }
}

fn directory() -> Kind {
    Kind::Directory { seen: Names::new(), durable: Names::new() }
}

impl Tree {
    /// An empty tree with room for this many pages.
    pub fn new(capacity: u64) -> Self {
        let nodes = BTreeMap::from([(ROOT, Node::new(directory(), 0o700))]);
        Self { nodes, next: ROOT + 1, journal: Vec::new(), capacity, used: 0 }
    }

    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Pages that nothing takes. What comes back with the power may have taken more than there is.
    pub fn free(&self) -> u64 {
        self.capacity.saturating_sub(self.used)
    }

    /// All there is, also what has no name any more.
    pub fn numbers(&self) -> impl Iterator<Item = Number> + '_ {
        self.nodes.keys().copied()
    }

    pub fn node(&self, number: Number) -> Result<&Node> {
        self.nodes.get(&number).ok_or(Errno::ENOENT)
    }

    pub fn node_mut(&mut self, number: Number) -> Result<&mut Node> {
        self.nodes.get_mut(&number).ok_or(Errno::ENOENT)
    }

    pub fn names(&self, parent: Number) -> Result<&Names> {
        match &self.node(parent)?.kind {
            Kind::Directory { seen, .. } => Ok(seen),
            Kind::File(_) => Err(Errno::ENOTDIR),
        }
    }

    pub fn lookup(&self, parent: Number, name: &OsStr) -> Result<Number> {
        self.names(parent)?.get(name).copied().ok_or(Errno::ENOENT)
    }

    fn contents(&self, file: Number) -> Result<&Contents> {
        match &self.node(file)?.kind {
            Kind::File(contents) => Ok(contents),
            Kind::Directory { .. } => Err(Errno::EISDIR),
        }
    }

    /// Changes the contents of a file, which are given with the number of free pages, and counts its pages again.
    fn change_contents<T>(&mut self, file: Number, change: impl FnOnce(&mut Contents, u64) -> T) -> Result<T> {
        let free = self.free();
        let node = self.node_mut(file)?;
        let Kind::File(contents) = &mut node.kind else { return Err(Errno::EISDIR) };
        let before = contents.pages();
        let result = change(contents, free);
        let after = contents.pages();
        node.changed_at = SystemTime::now();
        self.used = self.used + after - before;
        Ok(result)
    }

    pub fn read(&self, file: Number, offset: u64, length: usize) -> Result<Vec<u8>> {
        Ok(self.contents(file)?.read(offset, length))
    }

    /// Writes as much as there is room for; nothing at all is `ENOSPC`.
    pub fn write(&mut self, file: Number, offset: u64, bytes: &[u8]) -> Result<usize> {
        let written = self.change_contents(file, |contents, free| contents.write(offset, bytes, free))?;
        if written == 0 && !bytes.is_empty() { Err(Errno::ENOSPC) } else { Ok(written) }
    }

    pub fn reserve(&mut self, file: Number, offset: u64, length: u64, keep_size: bool) -> Result<()> {
        let fits = self.change_contents(file, |contents, free| contents.reserve(offset, length, keep_size, free))?;
        if fits { Ok(()) } else { Err(Errno::ENOSPC) }
    }

    pub fn truncate(&mut self, file: Number, size: u64) -> Result<()> {
        self.change_contents(file, |contents, _| contents.truncate(size))
    }

    /// Makes the bytes of a file durable, or the names of a directory.
    pub fn sync(&mut self, number: Number) -> Result<()> {
        if let Kind::File(contents) = &mut self.node_mut(number)?.kind {
            contents.sync();
            return Ok(());
        }
        // A change of several directories, once durable, makes durable what came before it in each of them.
        let mut directories = BTreeSet::from([number]);
        let mut stay = Vec::new();
        let mut durable = Vec::new();
        for change in std::mem::take(&mut self.journal).into_iter().rev() {
            if change.iter().any(|(directory, ..)| directories.contains(directory)) {
                directories.extend(change.iter().map(|(directory, ..)| *directory));
                durable.push(change);
            } else {
                stay.push(change);
            }
        }
        stay.reverse();
        self.journal = stay;
        durable.into_iter().rev().for_each(|change| apply(&mut self.nodes, change));
        Ok(())
    }

    /// Makes everything durable, as an orderly shutdown does.
    pub fn sync_all(&mut self) {
        for change in std::mem::take(&mut self.journal) {
            apply(&mut self.nodes, change);
        }
        for node in self.nodes.values_mut() {
            if let Kind::File(contents) = &mut node.kind {
                contents.sync();
            }
        }
    }

    /// Changes names as programs see them, and notes the change as one that is not durable.
    fn rename_all(&mut self, change: Change) -> Result<()> {
        for (parent, name, number) in &change {
            let node = self.node_mut(*parent)?;
            let Kind::Directory { seen, .. } = &mut node.kind else { return Err(Errno::ENOTDIR) };
            match number {
                Some(number) => seen.insert(name.clone(), *number),
                None => seen.remove(name),
            };
            node.changed_at = SystemTime::now();
        }
        self.journal.push(change);
        Ok(())
    }

    fn make(&mut self, parent: Number, name: &OsStr, kind: Kind, mode: u16) -> Result<Number> {
        if self.names(parent)?.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        let number = self.next;
        self.next += 1;
        self.nodes.insert(number, Node::new(kind, mode));
        self.rename_all(vec![(parent, name.to_owned(), Some(number))])?;
        Ok(number)
    }

    pub fn create(&mut self, parent: Number, name: &OsStr, mode: u16) -> Result<Number> {
        self.make(parent, name, Kind::File(Contents::default()), mode)
    }

    pub fn make_directory(&mut self, parent: Number, name: &OsStr, mode: u16) -> Result<Number> {
        self.make(parent, name, directory(), mode)
    }

    pub fn link(&mut self, file: Number, parent: Number, name: &OsStr) -> Result<()> {
        self.contents(file)?;
        if self.names(parent)?.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        self.rename_all(vec![(parent, name.to_owned(), Some(file))])?;
        self.node_mut(file)?.links += 1;
        Ok(())
    }

    pub fn unlink(&mut self, parent: Number, name: &OsStr) -> Result<()> {
        let number = self.lookup(parent, name)?;
        self.contents(number)?;
        self.rename_all(vec![(parent, name.to_owned(), None)])?;
        self.lose_name(number)
    }

    pub fn remove_directory(&mut self, parent: Number, name: &OsStr) -> Result<()> {
        let number = self.lookup(parent, name)?;
        if !self.names(number)?.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        self.rename_all(vec![(parent, name.to_owned(), None)])?;
        self.lose_name(number)
    }

    /// What has the new name gives it up, unless `keep` says that this is an error.
    pub fn rename(&mut self, from: (Number, &OsStr), to: (Number, &OsStr), keep: bool) -> Result<()> {
        let number = self.lookup(from.0, from.1)?;
        let replaced = self.names(to.0)?.get(to.1).copied();
        if replaced.is_some() && keep {
            return Err(Errno::EEXIST);
        }
        if let Some(replaced) = replaced {
            if replaced == number {
                return Ok(());
            }
            match (&self.node(number)?.kind, &self.node(replaced)?.kind) {
                (Kind::Directory { .. }, Kind::Directory { seen, .. }) if !seen.is_empty() => {
                    return Err(Errno::ENOTEMPTY);
                }
                (Kind::Directory { .. }, Kind::File(_)) => return Err(Errno::ENOTDIR),
                (Kind::File(_), Kind::Directory { .. }) => return Err(Errno::EISDIR),
                _ => {}
            }
        }
        self.rename_all(vec![(from.0, from.1.to_owned(), None), (to.0, to.1.to_owned(), Some(number))])?;
        replaced.map_or(Ok(()), |replaced| self.lose_name(replaced))
    }

    fn lose_name(&mut self, number: Number) -> Result<()> {
        let node = self.node_mut(number)?;
        node.links -= 1;
        self.discard_if_unused(number)
    }

    pub fn open(&mut self, number: Number) -> Result<()> {
        self.node_mut(number)?.opened += 1;
        Ok(())
    }

    pub fn close(&mut self, number: Number) -> Result<()> {
        self.node_mut(number)?.opened -= 1;
        self.discard_if_unused(number)
    }

    fn discard_if_unused(&mut self, number: Number) -> Result<()> {
        let node = self.node_mut(number)?;
        if node.links == 0
            && node.opened == 0
            && let Kind::File(contents) = &mut node.kind
        {
            let pages = contents.pages();
            contents.discard();
            self.used -= pages;
        }
        Ok(())
    }

    /// The tree that is found after the power has failed.
    pub fn after_power_cut(&self, unsynced: Unsynced<'_>) -> Self {
        let mut survives: Box<dyn FnMut() -> bool + '_> = match unsynced {
            Unsynced::Lost => Box::new(|| false),
            Unsynced::Kept => Box::new(|| true),
            Unsynced::Drawn(random) => {
                let probability: f64 = random.random();
                Box::new(move || random.random_bool(probability))
            }
        };
        let mut nodes = self.nodes.clone();
        let mut behind = BTreeSet::new();
        for change in &self.journal {
            let is_next = change.iter().all(|(directory, ..)| !behind.contains(directory));
            if is_next && survives() {
                apply(&mut nodes, change.clone());
            } else {
                behind.extend(change.iter().map(|(directory, ..)| *directory));
            }
        }
        let mut left = Self { nodes: BTreeMap::new(), journal: Vec::new(), used: 0, ..*self };
        let mut reached = vec![ROOT];
        while let Some(number) = reached.pop() {
            if let Some(node) = left.nodes.get_mut(&number) {
                node.links += 1;
                continue;
            }
            let kind = match &nodes[&number].kind {
                Kind::File(contents) => Kind::File(contents.after_power_cut(&mut survives)),
                Kind::Directory { durable, .. } => {
                    reached.extend(durable.values());
                    Kind::Directory { seen: durable.clone(), durable: durable.clone() }
                }
            };
            if let Kind::File(contents) = &kind {
                left.used += contents.pages();
            }
            left.nodes.insert(number, Node { kind, links: 1, opened: 0, ..nodes[&number] });
        }
        left
    }
}

/// Makes a change of names durable.
fn apply(nodes: &mut BTreeMap<Number, Node>, change: Change) {
    for (directory, name, number) in change {
        if let Some(Node { kind: Kind::Directory { durable, .. }, .. }) = nodes.get_mut(&directory) {
            match number {
                Some(number) => durable.insert(name, number),
                None => durable.remove(&name),
            };
        }
    }
}
