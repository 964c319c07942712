//! Which files `hearth ingest` reads, and their document names: the named files, those below a named directory, and
//! those in a ZIP archive, whose files are documents like those of a directory.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, ensure};
use hearth_domain::error::sentence;
use hearth_text::extract::packed::PackedFiles;
use ignore::WalkBuilder;
use reqwest::multipart::Part;

/// Most entries in an archive.
const PACKED_MAX: u64 = 20_000;

/// A file that can become a document.
#[derive(Clone, Debug)]
pub(super) struct FoundFile {
    /// Its path on disk; for a packed file, its archive's.
    path: PathBuf,
    /// Its name in the archive.
    packed: Option<String>,
}

impl FoundFile {
    /// Its path, without links and dots; a packed file is below its archive.
    pub(super) fn origin(&self) -> anyhow::Result<PathBuf> {
        let path = absolute(&self.path)?;
        Ok(self.packed.iter().fold(path, |path, name| path.join(name)))
    }
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) files: BTreeMap<String, FoundFile>,
    /// Archives that cannot be read, and why.
    pub(super) refused: Vec<(String, String)>,
    /// Archives that were read.
    archives: BTreeSet<PathBuf>,
}

impl Found {
    /// Everything that is named, and everything below it.
    pub(super) fn below(paths: &[PathBuf]) -> anyhow::Result<Self> {
        let mut found = Self::default();
        for path in paths {
            ensure!(path.exists(), "{} does not exist", path.display());
            if path.is_file() {
                found.add(path, path)?;
                continue;
            }
            for entry in WalkBuilder::new(path).require_git(false).sort_by_file_name(Ord::cmp).build() {
                let entry = entry.with_context(|| format!("reading {}", path.display()))?;
                if entry.file_type().is_some_and(|kind| kind.is_file()) {
                    found.add(path, entry.path())?;
                }
            }
        }
        Ok(found)
    }

    fn add(&mut self, named: &Path, path: &Path) -> anyhow::Result<()> {
        let short = below(named, path);
        if !is_archive(path) {
            self.insert(name(&short), name(path), FoundFile { path: path.to_owned(), packed: None });
            return Ok(());
        }
        match PackedFiles::open(path, PACKED_MAX) {
            Ok(archive) => {
                for packed in archive.names() {
                    let file = FoundFile { path: path.to_owned(), packed: Some(packed.to_owned()) };
                    self.insert(name(&short.join(packed)), name(&path.join(packed)), file);
                }
                let left_out = archive.left_out().iter();
                self.refused.extend(left_out.map(|what| (name(&short), format!("{what} cannot be read"))));
                self.archives.insert(absolute(path)?);
            }
            Err(error) => self.refused.push((name(&short), sentence(&error.into()))),
        }
        Ok(())
    }

    /// Inserts a file under its short name, or under its long one if another file has the short one.
    fn insert(&mut self, short: String, long: String, file: FoundFile) {
        let name = if self.files.contains_key(&short) { long } else { short };
        self.files.insert(name, file);
    }

    /// The source files of documents, below what is named, that no longer exist. A file that is only excluded now, as
    /// by .gitignore, still exists.
    pub(super) fn gone(
        &self,
        named: &[PathBuf],
        origins: impl IntoIterator<Item = PathBuf>,
    ) -> anyhow::Result<BTreeSet<PathBuf>> {
        let is_folder = |path: &&PathBuf| path.is_dir() || is_archive(path);
        let folders: Vec<PathBuf> = named.iter().filter(is_folder).map(absolute).collect::<Result<_, _>>()?;
        let here: BTreeSet<PathBuf> = self.files.values().map(FoundFile::origin).collect::<Result<_, _>>()?;
        let is_gone = |path: &PathBuf| {
            if path.ancestors().any(|above| self.archives.contains(above)) {
                return !here.contains(path);
            }
            matches!(path.try_exists(), Ok(false))
        };
        let is_below = |path: &PathBuf| folders.iter().any(|folder| path.starts_with(folder));
        Ok(origins.into_iter().filter(is_below).filter(is_gone).collect())
    }
}

/// Whether a document's source still exists; for a packed file, its archive.
pub(super) fn is_there(origin: &Path) -> bool {
    origin.exists() || origin.ancestors().skip(1).any(Path::is_file)
}

/// Reads files as parts of a form. An archive stays open while its files are read in sequence.
#[derive(Debug, Default)]
pub(super) struct FileReader {
    open: Option<(PathBuf, PackedFiles)>,
}

impl FileReader {
    /// A file's bytes; a packed file may have at most `most` bytes.
    pub(super) async fn read(&mut self, file: &FoundFile, most: u64) -> anyhow::Result<Part> {
        let reading = || format!("reading {}", file.path.display());
        let Some(packed) = &file.packed else { return Part::file(&file.path).await.with_context(reading) };
        let archive = match self.open.take() {
            Some((path, archive)) if path == file.path => archive,
            _ => PackedFiles::open(&file.path, PACKED_MAX).with_context(reading)?,
        };
        let (_, archive) = self.open.insert((file.path.clone(), archive));
        Ok(Part::bytes(archive.read(packed, most).with_context(reading)?))
    }
}

fn is_archive(path: &Path) -> bool {
    path.is_file() && path.extension().is_some_and(|extension| OsStr::eq_ignore_ascii_case(extension, "zip"))
}

/// The path of an existing file, without links and dots.
fn absolute(path: impl AsRef<Path>) -> anyhow::Result<PathBuf> {
    let path = path.as_ref();
    path.canonicalize().with_context(|| format!("reading {}", path.display()))
}

/// A file's path below what was named: the part above a named absolute path says nothing about it.
fn below(named: &Path, path: &Path) -> PathBuf {
    let parent = if named.is_absolute() { named.parent().unwrap_or(named) } else { Path::new("") };
    path.strip_prefix(parent).unwrap_or(path).to_owned()
}

/// A path's names, without roots and dots.
fn name(path: &Path) -> String {
    let names = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_string_lossy()),
        _ => None,
    });
    names.collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_above_an_absolute_path_is_no_part_of_the_name() {
        assert_eq!(below(Path::new("/home/x/docs"), Path::new("/home/x/docs/a.md")), Path::new("docs/a.md"));
    }

    #[test]
    fn files_of_one_name_in_two_places_are_two() {
        let home = tempfile::tempdir().expect("a temporary directory");
        for folder in ["a", "b"] {
            std::fs::create_dir(home.path().join(folder)).expect("a writable directory");
            std::fs::write(home.path().join(folder).join("README.md"), folder).expect("a writable directory");
        }
        let path = |name: &str| home.path().join(name);
        let names = |paths: &[PathBuf]| Found::below(paths).expect("files").files.into_keys().collect::<Vec<_>>();
        assert_eq!(names(&[path("a"), path("b")]), ["a/README.md", "b/README.md"]);
        assert_eq!(names(&[path("a/README.md"), path("b/README.md")]).len(), 2);
        assert_eq!(name(Path::new("./docs/../API.md")), "docs/API.md");
    }

    #[test]
    fn an_archive_that_is_none_is_refused_alone() {
        let home = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(home.path().join("a.zip"), "no archive").expect("a writable directory");
        std::fs::write(home.path().join("b.md"), "text").expect("a writable directory");
        let found = Found::below(&[home.path().to_owned()]).expect("a folder");
        assert_eq!((found.files.len(), found.refused.len()), (1, 1));
        let document = home.path().canonicalize().expect("a folder").join("a.zip/inner.md");
        assert!(is_there(&document), "its archive is there, though it cannot be read");
        assert!(found.gone(&[home.path().to_owned()], [document]).expect("a folder").is_empty());
    }
}
