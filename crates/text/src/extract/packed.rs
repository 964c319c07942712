//! Takes the files out of a ZIP archive one by one; each is a document of its own. Names and sizes in an archive may be
//! false, so names are sanitized and bytes are counted as they are unpacked.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs::File,
    io::{self, BufReader, Read},
    path::Path,
};

use zip::ZipArchive;

/// An open archive.
#[derive(Debug)]
pub struct PackedFiles {
    archive: ZipArchive<BufReader<File>>,
    /// The index of each file in the archive, by name.
    files: BTreeMap<String, usize>,
    left_out: Vec<String>,
}

impl PackedFiles {
    /// Opens an archive. Hidden files are skipped, as are files that archivers add (`__MACOSX`).
    ///
    /// # Errors
    /// If the file cannot be read, is not a ZIP archive, or has more than `most` entries.
    pub fn open(path: &Path, most: u64) -> io::Result<Self> {
        let mut archive = ZipArchive::new(BufReader::new(File::open(path)?)).map_err(io::Error::other)?;
        if archive.len() as u64 > most {
            let message = format!("the archive has {} files, {most} are allowed; split it", archive.len());
            return Err(io::Error::other(message));
        }
        let (mut files, mut left_out) = (BTreeMap::new(), Vec::new());
        for index in 0..archive.len() {
            let entry = archive.by_index_raw(index).map_err(io::Error::other)?;
            // A link's content is the path of another file.
            if entry.is_dir() || entry.is_symlink() {
                continue;
            }
            let Ok(name) = entry.name() else {
                left_out.push(format!("file {} of the archive, whose name is in no known encoding", index + 1));
                continue;
            };
            let Some(name) = clean(&name) else { continue };
            match files.entry(name) {
                Entry::Vacant(place) => drop(place.insert(index)),
                Entry::Occupied(taken) => left_out.push(format!("a second {}", taken.key())),
            }
        }
        Ok(Self { archive, files, left_out })
    }

    /// The names of the files, including folders: relative, separated by `/`, without `.` and `..`.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// Files whose names are duplicates or cannot be decoded.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// The bytes of one file, at most `most`.
    ///
    /// # Errors
    /// If there is no such file, or it is encrypted, damaged or too large.
    pub fn read(&mut self, name: &str, most: u64) -> io::Result<Vec<u8>> {
        let index = *self.files.get(name).ok_or(io::ErrorKind::NotFound)?;
        let entry = self.archive.by_index(index).map_err(io::Error::other)?;
        let mut bytes = Vec::new();
        entry.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > most {
            return Err(io::Error::other(format!("it has more than {most} bytes, unpacked")));
        }
        Ok(bytes)
    }
}

/// A name without components that leave the archive's folder; `None` for a file that is not a document.
fn clean(name: &str) -> Option<String> {
    let parts: Vec<&str> = name.split(['/', '\\']).filter(|part| !matches!(*part, "" | "." | "..")).collect();
    let is_hidden = parts.iter().any(|part| part.starts_with('.') || *part == "__MACOSX");
    (!parts.is_empty() && !is_hidden).then(|| parts.join("/"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use zip::{ZipWriter, write::SimpleFileOptions};

    use super::*;

    fn archive(files: &[(&str, &str)]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a temporary file can be made");
        let mut writer = ZipWriter::new(file.reopen().expect("it can be opened"));
        for (name, content) in files {
            writer.start_file(*name, SimpleFileOptions::default()).expect("a file begins");
            writer.write_all(content.as_bytes()).expect("it is written");
        }
        writer.finish().expect("the archive ends");
        file
    }

    #[test]
    fn files_come_out_under_names_that_stay_below() {
        let names = ["docs/a.md", "../b.md", "/c.md", "__MACOSX/a.md", ".git/config", "docs/.hidden", "d\\e.md"];
        let file = archive(&names.map(|name| (name, name)));
        let mut packed = PackedFiles::open(file.path(), 100).expect("it is an archive");
        assert_eq!(packed.names().collect::<Vec<_>>(), ["b.md", "c.md", "d/e.md", "docs/a.md"]);
        assert_eq!(packed.read("docs/a.md", 100).expect("it is there"), b"docs/a.md");
        assert_eq!(packed.read("b.md", 100).expect("it is there"), b"../b.md");
        assert!(packed.read("docs/b.md", 100).is_err());
    }

    #[test]
    fn a_file_or_an_archive_over_its_limit_is_refused() {
        let file = archive(&[("a", "0123456789"), ("b", "")]);
        let mut packed = PackedFiles::open(file.path(), 2).expect("two are allowed");
        assert!(packed.read("a", 10).is_ok() && packed.read("a", 9).is_err());
        assert!(PackedFiles::open(file.path(), 1).is_err());
    }
}
