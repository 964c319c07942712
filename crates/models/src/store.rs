//! Models on disk: resolves names to files, lists the models directory, imports files.
//!
//! The models directory holds GGUF files and, for embedding models, directories with `config.json` and
//! `model.safetensors`; it may contain links into the hub's cache. Opening a model is left to its reader, fetching to
//! `pull/`.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{
    decoder::ModelError,
    encoder::EncoderError,
    gguf::{Gguf, GgufError, split_name},
    manifest,
    pull::{self, HubSettings, Pulled, Reference, create_parent, hex, rename, replace_with_link},
};

/// How deep the models directory is searched.
const DEPTH_MAX: usize = 3;
/// The longest safetensors header that is accepted; the format's own limit is 100 MB.
const SAFETENSORS_HEADER_MAX: u64 = 100_000_000;

/// A model that does not exist, is not usable, or cannot be stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("there is no model {name:?}: {advice}")]
    Unknown { name: String, advice: String },

    #[error("{name:?} could be any of {candidates}; give one of them")]
    Ambiguous { name: String, candidates: String },

    #[error(transparent)]
    Gguf(#[from] GgufError),

    #[error(transparent)]
    Decoder(#[from] ModelError),

    #[error(transparent)]
    Encoder(#[from] EncoderError),

    #[error("{path} is not a usable safetensors model: {problem}", path = .path.display())]
    Safetensors { path: PathBuf, problem: String },

    #[error("{path} is there already; remove it first, or choose another name with --name", path = .path.display())]
    Exists { path: PathBuf },

    #[error("{0:?} cannot be a file's name; use letters, digits, dots, dashes and underscores")]
    Name(String),

    #[error("{path}: {source}", path = .path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// How a model is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A file, or the first of several parts.
    Gguf,
    /// A directory with `config.json` and `model.safetensors`.
    Safetensors,
}

/// A model in the models directory.
#[derive(Clone, Debug)]
pub struct StoredModel {
    /// The name to type: the path within the models directory, without `.gguf`.
    pub name: String,
    pub format: Format,
    pub path: PathBuf,
    /// All parts together.
    pub bytes: u64,
}

/// What was removed from the models directory.
#[derive(Clone, Debug)]
pub struct Removed {
    pub paths: Vec<PathBuf>,
    /// The links' targets are still in the hub's cache.
    pub were_links: bool,
}

/// One or more models directories, and the hub's cache.
#[derive(Clone, Debug)]
pub struct ModelStore {
    /// The first is where new models are stored; models are also found in the others.
    directories: Vec<PathBuf>,
    hub: HubSettings,
}

impl ModelStore {
    pub fn new(directory: impl Into<PathBuf>, hub: HubSettings) -> Self {
        Self { directories: vec![directory.into()], hub }
    }

    /// Also finds models in this directory. If two models have the same name, the one in the earlier directory is
    /// found.
    #[must_use]
    pub fn and_in(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directories.push(directory.into());
        self
    }

    /// Where new models are stored.
    pub fn directory(&self) -> &Path {
        &self.directories[0]
    }

    /// The directories that are searched, as text.
    pub fn places(&self) -> String {
        let there = self.directories.iter().skip(1).filter(|directory| directory.is_dir());
        let places = std::iter::once(self.directory()).chain(there.map(PathBuf::as_path));
        places.map(|place| place.display().to_string()).collect::<Vec<_>>().join(" and ")
    }

    /// All models of the directories, sorted by name. A missing directory contains no models.
    pub fn list(&self) -> Result<Vec<StoredModel>, StoreError> {
        let mut models = Vec::new();
        for directory in &self.directories {
            self.scan(directory, 0, &mut models)?;
        }
        // Stable: the model of the earlier directory stays.
        models.sort_by(|a, b| a.name.cmp(&b.name));
        models.dedup_by(|later, earlier| later.name == earlier.name);
        Ok(models)
    }

    fn scan(&self, directory: &Path, depth: usize, models: &mut Vec<StoredModel>) -> Result<(), StoreError> {
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && depth == 0 => return Ok(()),
            entries => entries.map_err(|source| io_error(directory, source))?,
        };
        if depth > 0 && is_safetensors_model(directory) {
            let path = directory.join("model.safetensors");
            let bytes = fs::metadata(&path).map_err(|source| io_error(&path, source))?.len();
            let name = self.name_of(directory);
            models.push(StoredModel { name, format: Format::Safetensors, path: directory.to_owned(), bytes });
            return Ok(());
        }
        for entry in entries {
            let path = entry.map_err(|source| io_error(directory, source))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            // Follows links; a broken link is not a model.
            let Ok(about) = fs::metadata(&path) else { continue };
            if about.is_dir() && depth < DEPTH_MAX && !name.starts_with('.') {
                self.scan(&path, depth + 1, models)?;
            } else if about.is_file() && name.ends_with(".gguf") {
                let Some((name, bytes)) = self.gguf_entry(&path, name, about.len()) else { continue };
                models.push(StoredModel { name, format: Format::Gguf, path, bytes });
            }
        }
        Ok(())
    }

    /// Name and size of a GGUF model; `None` for a part other than the first.
    fn gguf_entry(&self, path: &Path, file_name: &str, bytes: u64) -> Option<(String, u64)> {
        match split_name(file_name) {
            None => Some((self.name_of(&path.with_extension("")), bytes)),
            Some((stem, 1, count)) => {
                let parts =
                    (0..count).map(|number| path.with_file_name(super::gguf::split_part_name(stem, number, count)));
                let bytes = parts.filter_map(|part| Some(fs::metadata(part).ok()?.len())).sum();
                Some((self.name_of(&path.with_file_name(stem)), bytes))
            }
            Some(_) => None,
        }
    }

    fn name_of(&self, path: &Path) -> String {
        let within = self.directories.iter().find_map(|directory| path.strip_prefix(directory).ok());
        within.unwrap_or(path).to_string_lossy().into_owned()
    }

    /// The file (or directory, for safetensors) that a path or name refers to: an existing path, a model in the
    /// directories, a known model, or a repository in the hub's cache. Does not use the network.
    pub fn resolve(&self, name: &str) -> Result<PathBuf, StoreError> {
        let path = Path::new(name);
        if path.exists() {
            return Ok(path.to_owned());
        }
        let models = self.list()?;
        let wanted = name.strip_suffix(".gguf").unwrap_or(name);
        if let Some(model) = models.iter().find(|model| model.name.eq_ignore_ascii_case(wanted)) {
            return Ok(model.path.clone());
        }
        let last =
            |model: &&StoredModel| model.name.rsplit('/').next().is_some_and(|last| last.eq_ignore_ascii_case(wanted));
        match models.iter().filter(last).collect::<Vec<_>>()[..] {
            [] => {}
            [model] => return Ok(model.path.clone()),
            ref several => {
                let candidates = several.iter().map(|model| model.name.clone()).collect::<Vec<_>>().join(", ");
                return Err(StoreError::Ambiguous { name: name.to_owned(), candidates });
            }
        }
        if let Some(known) = manifest::find(name) {
            let file = known.file.strip_suffix(".gguf").unwrap_or(&known.file);
            if let Some(model) = models.iter().find(|model| model.name.eq_ignore_ascii_case(file)) {
                return Ok(model.path.clone());
            }
            let reference = pull::PullRequest::of_manifest(known).reference;
            if let Some(path) = self.cached(&reference) {
                return Ok(path);
            }
            let advice = format!("it is known but not here, fetch it with `hearth pull {}`", known.name);
            return Err(StoreError::Unknown { name: name.to_owned(), advice });
        }
        // `models/x.gguf` looks like a repository on the hub; if such a directory exists, a file is meant.
        let is_file_name = path.parent().is_some_and(|parent| parent.as_os_str().is_empty() || parent.is_dir());
        if !is_file_name && let Ok(reference) = Reference::parse(name) {
            return self.cached(&reference).ok_or_else(|| StoreError::Unknown {
                name: name.to_owned(),
                advice: format!("fetch it with `hearth pull {name}`"),
            });
        }
        let here: Vec<_> = models.iter().map(|model| model.name.as_str()).collect();
        let advice = if here.is_empty() {
            format!("{} holds none; fetch one with `hearth pull` or `hearth models import`", self.places())
        } else {
            format!("{} holds {}", self.places(), here.join(", "))
        };
        Err(StoreError::Unknown { name: name.to_owned(), advice })
    }

    /// Removes a model from the directory: all parts of a file, or the directory of an embedding model. For pulled
    /// models these are links; the files in the hub's cache stay.
    pub fn remove(&self, name: &str) -> Result<Removed, StoreError> {
        let path = self.resolve(name)?;
        let models = self.list()?;
        let Some(model) = models.iter().find(|model| model.path == path) else {
            let advice = format!("only models in {} can be removed", self.places());
            return Err(StoreError::Unknown { name: name.to_owned(), advice });
        };
        // Damaged models can be removed, too: nothing is opened.
        let file_name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let paths: Vec<PathBuf> = match split_name(file_name).filter(|_| model.format == Format::Gguf) {
            Some((stem, _, count)) => {
                let parts =
                    (0..count).map(|number| path.with_file_name(super::gguf::split_part_name(stem, number, count)));
                parts.filter(|part| part.symlink_metadata().is_ok()).collect()
            }
            None => vec![path.clone()],
        };
        // A directory that is a link to elsewhere is not followed: its contents are not Hearth's to remove.
        let holder = path.parent().unwrap_or(&path);
        let real = fs::canonicalize(holder).map_err(|source| io_error(holder, source))?;
        let is_within =
            |directory: &PathBuf| fs::canonicalize(directory).is_ok_and(|directory| real.starts_with(directory));
        if !self.directories.iter().any(is_within) {
            let advice = format!("it is in {}, which a link leads to: remove it there", real.display());
            return Err(StoreError::Unknown { name: name.to_owned(), advice });
        }
        let mut were_links = false;
        for path in &paths {
            if path.is_dir() && !path.is_symlink() {
                let files = pull::ENCODER_FILES.iter().map(|file| path.join(file));
                for file in files.filter(|file| file.symlink_metadata().is_ok()) {
                    were_links |= file.is_symlink();
                    fs::remove_file(&file).map_err(|source| io_error(&file, source))?;
                }
                remove_empty(path);
            } else {
                were_links |= path.is_symlink();
                fs::remove_file(path).map_err(|source| io_error(path, source))?;
            }
        }
        Ok(Removed { paths, were_links })
    }

    fn cached(&self, reference: &Reference) -> Option<PathBuf> {
        model_path(&pull::cached(&self.hub, reference)?)
    }

    /// Links a pulled model into the models directory: a GGUF file under its own name, an embedding model as a
    /// directory named after its repository. Returns the path to serve.
    pub fn adopt(&self, pulled: &Pulled) -> Result<PathBuf, StoreError> {
        let repository = pulled.repository.rsplit('/').next().unwrap_or(&pulled.repository);
        let is_gguf = pulled.files.iter().all(|file| file.name.ends_with(".gguf"));
        let mut first = None;
        for file in &pulled.files {
            let link = if is_gguf {
                self.directory().join(file.name.rsplit('/').next().unwrap_or(&file.name))
            } else {
                self.directory().join(repository).join(&file.name)
            };
            if fs::symlink_metadata(&link).is_ok_and(|about| !about.is_symlink()) {
                return Err(StoreError::Exists { path: link });
            }
            let target = fs::canonicalize(&file.path).map_err(|source| io_error(&file.path, source))?;
            create_parent(&link)
                .and_then(|()| replace_with_link(&target, &target, &link))
                .map_err(|source| io_error(&link, source))?;
            first.get_or_insert(link);
        }
        Ok(if is_gguf { first.unwrap_or_default() } else { self.directory().join(repository) })
    }

    /// Copies a model into the directory after opening it as a check: a GGUF file with all its parts, or the directory
    /// of a safetensors model. Returns its path, and the sha256 of each copied file.
    pub fn import(
        &self,
        from: &Path,
        name: Option<&str>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(PathBuf, Vec<(PathBuf, String)>), StoreError> {
        if let Some(name) = name
            && (name.is_empty()
                || name.starts_with('.')
                || !name.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c)))
        {
            return Err(StoreError::Name(name.to_owned()));
        }
        let pairs = if from.is_dir() { self.safetensors_files(from, name)? } else { self.gguf_files(from, name)? };
        for (_, to) in &pairs {
            if fs::symlink_metadata(to).is_ok() {
                return Err(StoreError::Exists { path: to.clone() });
            }
        }
        let mut copied = Vec::new();
        for (source, to) in &pairs {
            copied.push((to.clone(), copy_hashing(source, to, progress).map_err(|source| io_error(to, source))?));
        }
        let first = &pairs[0].1;
        let path = if from.is_dir() { first.parent().unwrap_or(first).to_owned() } else { first.clone() };
        Ok((path, copied))
    }

    /// The files of a GGUF model to copy, with their destinations.
    fn gguf_files(&self, from: &Path, name: Option<&str>) -> Result<Vec<(PathBuf, PathBuf)>, StoreError> {
        let parts = Gguf::open(from)?.paths().to_vec();
        let count = parts.len() as u64;
        let pairs = parts.into_iter().enumerate().map(|(number, part)| {
            let to = match name.map(|name| name.strip_suffix(".gguf").unwrap_or(name)) {
                Some(name) if count > 1 => super::gguf::split_part_name(name, number as u64, count),
                Some(name) => format!("{name}.gguf"),
                None => part.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            };
            let to = self.directory().join(to);
            // Only files ending in .gguf are listed, so the copy gets that extension if the original lacks it.
            let to = if to.extension().is_some_and(|extension| extension == "gguf") {
                to
            } else {
                PathBuf::from(format!("{}.gguf", to.display()))
            };
            (part, to)
        });
        Ok(pairs.collect())
    }

    /// The files of a safetensors model's directory to copy, with their destinations.
    fn safetensors_files(&self, from: &Path, name: Option<&str>) -> Result<Vec<(PathBuf, PathBuf)>, StoreError> {
        check_safetensors(from)?;
        let own_name = || -> Result<String, StoreError> {
            let path = fs::canonicalize(from).map_err(|source| io_error(from, source))?;
            Ok(path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default())
        };
        let name = name.map_or_else(own_name, |name| Ok(name.to_owned()))?;
        let pairs = pull::ENCODER_FILES.iter().map(|file| (from.join(file), self.directory().join(&name).join(file)));
        Ok(pairs.filter(|(source, _)| source.is_file()).collect())
    }
}

/// Removes a directory and its subdirectories as far as they are empty; files that others put there stay.
fn remove_empty(directory: &Path) {
    let inside = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    inside.filter(|path| path.is_dir() && !path.is_symlink()).for_each(|path| remove_empty(&path));
    // Fails if it is not empty.
    let _ = fs::remove_dir(directory);
}

/// The path to serve for the files of a model.
fn model_path(pulled: &Pulled) -> Option<PathBuf> {
    let first = pulled.files.first()?;
    if first.name.ends_with(".gguf") {
        return Some(first.path.clone());
    }
    first.path.parent().map(Path::to_owned)
}

fn is_safetensors_model(directory: &Path) -> bool {
    directory.join("config.json").is_file() && directory.join("model.safetensors").is_file()
}

/// Checks that there is a configuration, and weights with a complete header and the length that the header states.
pub fn check_safetensors(directory: &Path) -> Result<usize, StoreError> {
    let wrong = |problem: &str| StoreError::Safetensors { path: directory.to_owned(), problem: problem.to_owned() };
    if !is_safetensors_model(directory) {
        return Err(wrong("it must be a directory with config.json, tokenizer.json and model.safetensors"));
    }
    let path = directory.join("model.safetensors");
    let mut file = fs::File::open(&path).map_err(|source| io_error(&path, source))?;
    let length = file.metadata().map_err(|source| io_error(&path, source))?.len();
    let mut word = [0; 8];
    file.read_exact(&mut word).map_err(|_| wrong("model.safetensors is shorter than its header; fetch it again"))?;
    let header_length = u64::from_le_bytes(word);
    if header_length > SAFETENSORS_HEADER_MAX || header_length > length.saturating_sub(8) {
        return Err(wrong("model.safetensors does not begin with a header; fetch it again"));
    }
    let mut header = vec![0; header_length as usize];
    file.read_exact(&mut header).map_err(|source| io_error(&path, source))?;
    let header: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&header)
        .map_err(|error| wrong(&format!("the header of model.safetensors is damaged ({error}); fetch it again")))?;
    let tensors: Vec<_> = header.iter().filter(|(name, _)| *name != "__metadata__").collect();
    let end = tensors.iter().map(|(_, tensor)| tensor["data_offsets"][1].as_u64()).max().flatten().unwrap_or(0);
    if end != length - 8 - header_length {
        return Err(wrong("model.safetensors is not as long as its header says; fetch it again"));
    }
    Ok(tensors.len())
}

/// Copies to a temporary file beside the destination, hashing on the way, and renames it once all bytes are on disk.
fn copy_hashing(from: &Path, to: &Path, progress: &mut dyn FnMut(u64)) -> io::Result<String> {
    create_parent(to)?;
    let mut incomplete = to.as_os_str().to_owned();
    incomplete.push(".incomplete");
    let incomplete = PathBuf::from(incomplete);
    let mut copy = || -> io::Result<String> {
        let (mut source, mut target) = (fs::File::open(from)?, fs::File::create(&incomplete)?);
        let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
        loop {
            let count = source.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
            target.write_all(&buffer[..count])?;
            progress(count as u64);
        }
        target.sync_all()?;
        rename(&incomplete, to)?;
        Ok(hex(&hasher.finalize()))
    };
    copy().inspect_err(|_| {
        // The copy is useless if incomplete; the first error is the one to report.
        let _ = fs::remove_file(&incomplete);
    })
}

fn io_error(path: &Path, source: io::Error) -> StoreError {
    StoreError::Io { path: path.to_owned(), source }
}
