//! The disk itself: its rules without FUSE, then through the kernel.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File},
    io::{Read, Write},
    path::Path,
};

use fuser::Errno;
use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};
use rusqlite::Connection;

use super::{
    PowerCutDisk,
    contents::PAGE,
    tree::{Kind, Number, ROOT, Tree, Unsynced},
};

/// Room that these tests do not fill.
const PAGES: u64 = 1 << 20;

fn name(name: &str) -> &OsStr {
    OsStr::new(name)
}

fn new_file(tree: &mut Tree, parent: Number, called: &str, bytes: &[u8]) -> Number {
    let file = tree.create(parent, name(called), 0o600).expect("a new name");
    tree.write(file, 0, bytes).expect("there is room");
    file
}

/// Every file that is seen, by its path.
fn files(tree: &Tree) -> BTreeMap<String, Vec<u8>> {
    fn walk(tree: &Tree, number: Number, path: &str, found: &mut BTreeMap<String, Vec<u8>>) {
        for (name, number) in tree.names(number).expect("a directory") {
            let path = format!("{path}/{}", name.display());
            match &tree.node(*number).expect("a node").kind {
                Kind::File(contents) => drop(found.insert(path, contents.read(0, contents.size() as usize))),
                Kind::Directory { .. } => walk(tree, *number, &path, found),
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(tree, ROOT, "", &mut found);
    found
}

fn lost(tree: &Tree) -> BTreeMap<String, Vec<u8>> {
    files(&tree.after_power_cut(Unsynced::Lost))
}

fn drawn(tree: &Tree, seed: u64) -> BTreeMap<String, Vec<u8>> {
    files(&tree.after_power_cut(Unsynced::Drawn(&mut StdRng::seed_from_u64(seed))))
}

#[test]
fn bytes_and_names_are_durable_when_each_was_synced() {
    let mut tree = Tree::new(PAGES);
    let file = new_file(&mut tree, ROOT, "a", b"one");
    tree.sync(file).expect("it is there");
    assert!(lost(&tree).is_empty(), "the name was not synced");
    tree.sync(ROOT).expect("it is there");
    assert_eq!(lost(&tree)["/a"], b"one");
    tree.write(file, 3, b" two").expect("there is room");
    assert_eq!(lost(&tree)["/a"], b"one", "the bytes were not synced");
    assert_eq!(files(&tree.after_power_cut(Unsynced::Kept)), files(&tree));
}

#[test]
fn a_directory_does_not_make_its_own_name_durable() {
    let mut tree = Tree::new(PAGES);
    let inner = tree.make_directory(ROOT, name("inner"), 0o700).expect("a new name");
    let file = new_file(&mut tree, inner, "a", b"one");
    tree.sync(file).and_then(|()| tree.sync(inner)).expect("both are there");
    assert!(lost(&tree).is_empty());
    tree.sync(ROOT).expect("it is there");
    assert_eq!(lost(&tree)["/inner/a"], b"one");
}

#[test]
fn pages_survive_one_by_one_and_the_size_by_itself() {
    let mut tree = Tree::new(PAGES);
    let file = new_file(&mut tree, ROOT, "a", &[1; 4 * PAGE]);
    tree.sync(file).and_then(|()| tree.sync(ROOT)).expect("both are there");
    tree.write(file, 0, &[2; 6 * PAGE]).expect("there is room");
    let mut found: Vec<Vec<u8>> = Vec::new();
    for seed in 0..200 {
        let left = drawn(&tree, seed).remove("/a").expect("it was synced");
        assert!([4 * PAGE, 6 * PAGE].contains(&left.len()), "{}", left.len());
        let pages: Vec<u8> = left.chunks(PAGE).map(|page| page[0]).collect();
        assert!(left.chunks(PAGE).all(|page| page.iter().all(|byte| *byte == page[0])), "a page is whole");
        assert!(pages[..4].iter().all(|page| [1, 2].contains(page)), "{pages:?}");
        assert!(pages[4..].iter().all(|page| [0, 2].contains(page)), "{pages:?}");
        found.push(pages);
    }
    found.sort();
    found.dedup();
    assert!(found.len() > 50, "{} of the ways to lose pages", found.len());
}

#[test]
fn a_rename_is_one_change_between_directories() {
    let mut tree = Tree::new(PAGES);
    let inner = tree.make_directory(ROOT, name("inner"), 0o700).expect("a new name");
    new_file(&mut tree, ROOT, "a", b"new");
    new_file(&mut tree, inner, "b", b"old");
    tree.sync_all();
    tree.rename((ROOT, name("a")), (inner, name("b")), false).expect("both are there");
    for seed in 0..50 {
        let left = drawn(&tree, seed);
        let before = BTreeMap::from([("/a".to_owned(), b"new".to_vec()), ("/inner/b".to_owned(), b"old".to_vec())]);
        let after = BTreeMap::from([("/inner/b".to_owned(), b"new".to_vec())]);
        assert!([before, after].contains(&left), "{left:?}");
    }
    tree.sync(inner).expect("it is there");
    assert_eq!(lost(&tree).len(), 1, "one directory makes the other's half durable");
}

#[test]
fn of_the_changes_of_a_directory_a_beginning_survives() {
    let mut tree = Tree::new(PAGES);
    for number in 0..10 {
        new_file(&mut tree, ROOT, &number.to_string(), b"");
    }
    let counts: Vec<usize> = (0..100)
        .map(|seed| {
            let left = drawn(&tree, seed);
            let first: Vec<String> = (0..left.len()).map(|number| format!("/{number}")).collect();
            assert!(left.keys().eq(first.iter()), "{left:?}");
            left.len()
        })
        .collect();
    assert!(counts.contains(&0) && counts.contains(&10), "{counts:?}");
}

#[test]
fn a_name_that_was_removed_in_vain_leads_to_what_was_synced() {
    let mut tree = Tree::new(PAGES);
    let file = new_file(&mut tree, ROOT, "a", b"synced");
    tree.sync_all();
    tree.write(file, 0, b"UNSYNC").expect("there is room");
    tree.unlink(ROOT, name("a")).expect("it is there");
    assert_eq!(lost(&tree)["/a"], b"synced");
    tree.sync(ROOT).expect("it is there");
    assert!(lost(&tree).is_empty());
}

#[test]
fn a_full_disk_takes_what_fits_and_has_room_when_a_file_has_gone() {
    let mut tree = Tree::new(3);
    let file = new_file(&mut tree, ROOT, "a", &[1; 2 * PAGE]);
    tree.open(file).expect("it is there");
    let other = tree.create(ROOT, name("b"), 0o600).expect("a new name");
    assert_eq!(tree.write(other, 0, &[2; 2 * PAGE]), Ok(PAGE));
    assert_eq!(tree.write(other, PAGE as u64, &[2]), Err(Errno::ENOSPC));
    assert_eq!(tree.reserve(other, 0, 3 * PAGE as u64, false), Err(Errno::ENOSPC));
    tree.unlink(ROOT, name("a")).expect("it is there");
    assert_eq!(tree.free(), 0, "a process has it open");
    tree.close(file).expect("it is open");
    assert_eq!(tree.free(), 2);
    tree.truncate(other, 10).expect("it is there");
    assert_eq!((tree.free(), tree.read(other, 5, 100)), (2, Ok(vec![2; 5])));
    tree.truncate(other, 0).and_then(|()| tree.truncate(other, 12)).expect("it is there");
    assert_eq!((tree.free(), tree.read(other, 0, 100)), (3, Ok(vec![0; 12])));
}

/// What a program does to a few files; numbers are taken modulo what there is.
#[derive(Clone, Debug)]
enum Step {
    Write { file: usize, offset: u64, bytes: Vec<u8> },
    Truncate { file: usize, size: u64 },
    Rename { from: usize, to: usize },
    Unlink { file: usize },
    Replace { file: usize, bytes: Vec<u8> },
    SyncAll,
}

const PLACES: [(&str, &str); 5] = [("", "a"), ("", "b"), ("inner", "a"), ("inner", "b"), ("inner", "c")];

fn step() -> impl Strategy<Value = Step> {
    let bytes = || prop::collection::vec(1..=255_u8, 1..3 * PAGE);
    let file = || 0..PLACES.len();
    prop_oneof![
        4 => (file(), 0..2 * PAGE as u64, bytes()).prop_map(|(file, offset, bytes)| Step::Write { file, offset, bytes }),
        2 => (file(), 0..3 * PAGE as u64).prop_map(|(file, size)| Step::Truncate { file, size }),
        2 => (file(), file()).prop_map(|(from, to)| Step::Rename { from, to }),
        1 => file().prop_map(|file| Step::Unlink { file }),
        2 => (file(), bytes()).prop_map(|(file, bytes)| Step::Replace { file, bytes }),
        1 => Just(Step::SyncAll),
    ]
}

/// A tree and what a reader should see in it.
struct Checked {
    tree: Tree,
    inner: Number,
    expected: BTreeMap<String, Vec<u8>>,
}

impl Checked {
    fn new() -> Self {
        let mut tree = Tree::new(PAGES);
        let inner = tree.make_directory(ROOT, name("inner"), 0o700).expect("a new name");
        tree.sync_all();
        Self { tree, inner, expected: BTreeMap::new() }
    }

    fn place(&self, file: usize) -> (Number, &'static OsStr, String) {
        let (directory, called) = PLACES[file];
        let path = if directory.is_empty() { format!("/{called}") } else { format!("/{directory}/{called}") };
        (if directory.is_empty() { ROOT } else { self.inner }, name(called), path)
    }

    fn file(&mut self, file: usize) -> Number {
        let (parent, called, path) = self.place(file);
        self.expected.entry(path).or_default();
        self.tree.lookup(parent, called).or_else(|_| self.tree.create(parent, called, 0o600)).expect("one of both")
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Write { file, offset, bytes } => {
                let number = self.file(*file);
                assert_eq!(self.tree.write(number, *offset, bytes), Ok(bytes.len()));
                let expected = self.expected.get_mut(&self.place(*file).2).expect("it was made");
                let end = *offset as usize + bytes.len();
                expected.resize(expected.len().max(end), 0);
                expected[*offset as usize..end].copy_from_slice(bytes);
            }
            Step::Truncate { file, size } => {
                let number = self.file(*file);
                self.tree.truncate(number, *size).expect("it was made");
                let path = self.place(*file).2;
                self.expected.get_mut(&path).expect("it was made").resize(*size as usize, 0);
            }
            Step::Rename { from, to } => {
                let (from, to) = (self.place(*from), self.place(*to));
                let renamed = self.tree.rename((from.0, from.1), (to.0, to.1), false);
                assert_eq!(renamed.is_ok(), self.expected.contains_key(&from.2));
                if let Some(bytes) = self.expected.remove(&from.2) {
                    self.expected.insert(to.2, bytes);
                }
            }
            Step::Unlink { file } => {
                let (parent, called, path) = self.place(*file);
                assert_eq!(self.tree.unlink(parent, called).is_ok(), self.expected.remove(&path).is_some());
            }
            Step::Replace { file, bytes } => {
                let (parent, called, path) = self.place(*file);
                let beside = self.tree.create(parent, name("beside"), 0o600).expect("it was renamed");
                self.tree.write(beside, 0, bytes).expect("there is room");
                self.tree.sync(beside).expect("it is there");
                self.tree.rename((parent, name("beside")), (parent, called), false).expect("it is there");
                self.tree.sync(parent).expect("it is there");
                self.expected.insert(path, bytes.clone());
            }
            Step::SyncAll => self.tree.sync_all(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_steps_are_seen_as_they_were_taken_and_survive_as_far_as_they_were_synced(
        steps in prop::collection::vec(step(), 1..40),
        replaced in (0..PLACES.len(), prop::collection::vec(1..=255_u8, 1..3 * PAGE)),
        seed in any::<u64>(),
    ) {
        let mut checked = Checked::new();
        let mut synced = BTreeMap::new();
        let mut is_partly_synced = false;
        for step in &steps {
            checked.take(step);
            prop_assert_eq!(&files(&checked.tree), &checked.expected);
            match step {
                Step::SyncAll => {
                    synced = checked.expected.clone();
                    is_partly_synced = false;
                }
                Step::Replace { .. } => is_partly_synced = true,
                _ => {}
            }
        }
        if !is_partly_synced {
            prop_assert_eq!(&lost(&checked.tree), &synced);
        }
        prop_assert_eq!(&files(&checked.tree.after_power_cut(Unsynced::Kept)), &checked.expected);

        // What was written beside its place, synced, renamed and synced again is whole, whatever else is lost.
        let (file, bytes) = replaced;
        checked.take(&Step::Replace { file, bytes: bytes.clone() });
        let (_, _, path) = checked.place(file);
        let left = checked.tree.after_power_cut(Unsynced::Drawn(&mut StdRng::seed_from_u64(seed)));
        let found = files(&left);
        prop_assert_eq!(found.get(&path), Some(&bytes));
        // And the room is counted as a new count has it.
        let taken: u64 = left.numbers().map(|number| match &left.node(number).expect("it is listed").kind {
            Kind::File(contents) => contents.pages(),
            Kind::Directory { .. } => 0,
        }).sum();
        prop_assert_eq!(left.free(), PAGES - taken);
    }
}

fn write_and_sync(path: &Path, bytes: &[u8]) {
    let mut file = File::create(path).expect("a new file");
    file.write_all(bytes).and_then(|()| file.sync_all()).expect("there is room");
}

fn sync_directory(path: &Path) {
    File::open(path).and_then(|directory| directory.sync_all()).expect("a directory");
}

#[test]
fn through_the_kernel_what_was_synced_is_found_and_nothing_else() {
    let Some(mut disk) = PowerCutDisk::mount(1 << 20) else { return };
    let folder = disk.path().join("folder");
    fs::create_dir(&folder).expect("a new name");
    sync_directory(disk.path());
    write_and_sync(&folder.join("synced"), b"synced");
    sync_directory(&folder);
    write_and_sync(&folder.join("nameless"), b"its name is not synced");
    fs::write(folder.join("unsynced"), b"nothing is").expect("there is room");
    fs::rename(folder.join("synced"), folder.join("renamed")).expect("it is there");
    let listed = |folder: &Path| {
        let names = fs::read_dir(folder).expect("a directory").map(|entry| entry.expect("an entry").file_name());
        let mut names: Vec<String> = names.map(|name| name.into_string().expect("UTF-8")).collect();
        names.sort();
        names
    };
    assert_eq!(listed(&folder), ["nameless", "renamed", "unsynced"]);
    disk.cut(Unsynced::Lost, || {});
    assert_eq!(listed(&folder), ["synced"]);
    assert_eq!(fs::read(folder.join("synced")).expect("it is there"), b"synced");
}

#[test]
fn through_the_kernel_a_full_disk_is_full() {
    let Some(disk) = PowerCutDisk::mount(16 * PAGE as u64) else { return };
    let (path, other) = (disk.path().join("a"), disk.path().join("b"));
    let full = fs::write(&path, [1; 17 * PAGE]).expect_err("it does not fit");
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    assert_eq!(fs::metadata(&path).expect("it is there").len(), 16 * PAGE as u64);
    fs::remove_file(&path).expect("it is there");
    fs::write(&other, [2; 16 * PAGE]).expect("there is room again");
}

#[test]
fn through_the_kernel_a_failing_disk_stands_still_until_the_power_is_off() {
    let Some(mut disk) = PowerCutDisk::mount(1 << 20) else { return };
    let path = disk.path().join("log");
    write_and_sync(&path, b"");
    sync_directory(disk.path());
    disk.fail_after(10);
    let writer = std::thread::spawn(move || {
        let mut file = File::options().append(true).open(path).expect("it is there");
        // Each line is two changes: it is written, and synced.
        (0..100).take_while(|_| file.write_all(b"line\n").and_then(|()| file.sync_all()).is_ok()).count()
    });
    assert!(disk.fails_within(std::time::Duration::from_secs(60)));
    let mut acknowledged = 0;
    disk.cut(Unsynced::Lost, || acknowledged = writer.join().expect("it ends when the power is off"));
    let mut found = String::new();
    File::open(disk.path().join("log")).and_then(|mut file| file.read_to_string(&mut found)).expect("it was synced");
    assert_eq!((acknowledged, found.lines().count()), (5, 5));
}

/// Inserts rows, loses power, and returns how many rows are found in a database that is whole.
fn rows_after(synchronous: &str, seed: Option<u64>) -> Option<i64> {
    let mut disk = PowerCutDisk::mount(8 << 20)?;
    let path = disk.path().join("test.sqlite3");
    let database = Connection::open(&path).expect("a new database");
    database.execute_batch("PRAGMA journal_mode = wal; CREATE TABLE t (x BLOB);").expect("a table");
    disk.sync();
    database.pragma_update(None, "synchronous", synchronous).expect("a setting");
    for _ in 0..50 {
        database.execute("INSERT INTO t VALUES (randomblob(9000))", []).expect("a row");
    }
    let mut random = StdRng::seed_from_u64(seed.unwrap_or_default());
    let unsynced = if seed.is_some() { Unsynced::Drawn(&mut random) } else { Unsynced::Lost };
    disk.cut(unsynced, || drop(database));
    let database = Connection::open(&path).expect("the database");
    let whole: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("a check");
    assert_eq!(whole, "ok", "synchronous = {synchronous}, seed {seed:?}");
    Some(database.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).expect("a count"))
}

#[test]
fn sqlite_keeps_what_it_was_told_to_sync_and_loses_what_it_was_not() {
    for seed in 0..10 {
        let Some(rows) = rows_after("full", Some(seed)) else { return };
        assert_eq!(rows, 50, "seed {seed}");
    }
    assert_eq!(rows_after("full", None), Some(50));
    assert_eq!(rows_after("off", None), Some(0));
}
