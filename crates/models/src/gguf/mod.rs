//! Memory-mapped GGUF files: metadata is parsed once, tensors are slices of the map.
//!
//! Nothing is copied: a [`RawTensor`]'s bytes share the map, which lives as long as the last of them. Nothing in the
//! file is trusted: see `parse.rs`. A tensor of a type that Hearth cannot compute with causes an error only when it is
//! requested, so that such a file can still be described. The meaning of the metadata is left to `decoder/`, `bert.rs`
//! and `text/`.

mod error;
mod map;
mod metadata;
mod parse;
mod sniff;
mod split;
mod strings;
mod tensor_type;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use bytes::Bytes;

pub(crate) use self::map::map;
use self::parse::{Header, TensorInfo};
pub(crate) use self::split::{parse_name as split_name, part_name as split_part_name};
pub use self::{
    error::GgufError,
    metadata::{Array, Metadata, Value},
    strings::Strings,
};
use hearth_kernels::quant::{GgmlType, RawTensor};

/// An open model: one file, or all parts of a split one.
#[derive(Debug)]
pub struct Gguf {
    metadata: Metadata,
    parts: Vec<Part>,
    paths: Vec<PathBuf>,
    /// Location of each tensor: part, and index in that part's table.
    by_name: HashMap<String, (usize, usize)>,
}

#[derive(Debug)]
struct Part {
    bytes: Bytes,
    tensors: Vec<TensorInfo>,
}

/// One tensor as the file describes it, whether or not Hearth can compute with its type.
#[derive(Debug)]
pub struct TensorDescription<'a> {
    pub name: &'a str,
    /// Outermost first.
    pub shape: &'a [usize],
    /// ggml's name of the type.
    pub type_name: String,
    /// `None` for a type of unknown size.
    pub bytes: Option<u64>,
}

impl Gguf {
    /// Opens a file and, if it is any part of a split model, the other parts with it.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let (bytes, header) = open_part(path)?;
        let Some(first) = split::position(path, &header.values)? else {
            return Self::assemble(vec![(path.to_owned(), bytes, header)]);
        };
        let mut opened = Some((bytes, header));
        let mut parts = Vec::new();
        for number in 0..first.count {
            let part_path = first.path_of(number);
            let (bytes, header) = match opened.take_if(|_| number == first.number) {
                Some(part) => part,
                None if !part_path.exists() => return Err(first.missing(number)),
                None => open_part(&part_path)?,
            };
            first.check(number, &part_path, &header.values)?;
            parts.push((part_path, bytes, header));
        }
        first.check_total(&parts[0].2.values, parts.iter().map(|(_, _, header)| header.tensors.len()).sum())?;
        Self::assemble(parts)
    }

    /// Metadata comes from the first part; the other parts repeat only what a split needs.
    fn assemble(opened: Vec<(PathBuf, Bytes, Header)>) -> Result<Self, GgufError> {
        let mut metadata = None;
        let (mut parts, mut paths, mut by_name) = (Vec::new(), Vec::new(), HashMap::new());
        for (path, bytes, header) in opened {
            for (index, tensor) in header.tensors.iter().enumerate() {
                if by_name.insert(tensor.name.clone(), (parts.len(), index)).is_some() {
                    let problem = format!("tensor {} is in an earlier part too; fetch all parts again", tensor.name);
                    return Err(GgufError::Split { path, problem });
                }
            }
            metadata.get_or_insert_with(|| Metadata::new(&path, header.values));
            parts.push(Part { bytes, tensors: header.tensors });
            paths.push(path);
        }
        Ok(Self { metadata: metadata.unwrap_or_default(), parts, paths, by_name })
    }

    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// `general.architecture`, such as `llama`.
    pub fn architecture(&self) -> Result<&str, GgufError> {
        self.metadata.require_str("general.architecture")
    }

    /// The open files, in order of part.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Total size of all parts.
    pub fn file_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes.len() as u64).sum()
    }

    /// A hash that tells models apart and is the same for every copy of the files: of their metadata, their tables of
    /// tensors, their sizes, and some bytes at the beginning, in the middle and at the end of every tensor, since two
    /// checkpoints of one training may share all the rest, and a merged adapter most tensors.
    pub fn fingerprint(&self) -> blake3::Hash {
        const SAMPLE: usize = 64;
        let mut hash = blake3::Hasher::new();
        for Part { bytes, tensors } in &self.parts {
            let header = tensors.iter().map(|tensor| tensor.start as usize).min().unwrap_or(bytes.len());
            hash.update(&(bytes.len() as u64).to_le_bytes()).update(&bytes[..header.min(bytes.len())]);
            for tensor in tensors {
                // The next tensor begins where one of unknown size ends, or later.
                let length = tensor.bytes.unwrap_or(SAMPLE as u64) as usize;
                let data = bytes.get(tensor.start as usize..).unwrap_or_default();
                let data = &data[..length.min(data.len())];
                for start in [0, data.len() / 2, data.len().saturating_sub(SAMPLE)] {
                    hash.update(&data[start..data.len().min(start + SAMPLE)]);
                }
            }
        }
        hash.finalize()
    }

    /// Reads every page once, on its own thread, so that the first request does not pay for it: pages of a newly mapped
    /// file are otherwise faulted in one at a time.
    pub fn warm(&self) {
        /// The smallest possible page size; larger pages are just touched more often than needed.
        const PAGE: usize = 4096;
        let maps: Vec<Bytes> = self.parts.iter().map(|part| part.bytes.clone()).collect();
        let touch = move || {
            let touched = maps.iter().flat_map(|map| map.iter().step_by(PAGE)).fold(0_u8, |sum, &byte| sum ^ byte);
            std::hint::black_box(touched);
        };
        // Without the thread only the first request is slower.
        drop(std::thread::Builder::new().name("hearth-warm".to_owned()).spawn(touch));
    }

    /// Takes pages of the file out of this process's memory; `part` are bytes of a [tensor](Gguf::tensor). They are read from the
    /// file again when they are needed.
    pub fn release(&self, part: &[u8]) {
        self.parts.iter().for_each(|of_file| map::release(&of_file.bytes, part));
    }

    pub fn has_tensor(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// In file order.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensor_infos().map(|tensor| tensor.name.as_str())
    }

    /// In file order.
    pub fn tensors(&self) -> impl Iterator<Item = TensorDescription<'_>> {
        self.tensor_infos().map(|tensor| TensorDescription {
            name: &tensor.name,
            shape: &tensor.shape,
            type_name: tensor_type::type_name(tensor.type_id),
            bytes: tensor.bytes,
        })
    }

    fn tensor_infos(&self) -> impl Iterator<Item = &TensorInfo> {
        self.parts.iter().flat_map(|part| &part.tensors)
    }

    /// The tensor's bytes, sharing the memory map.
    ///
    /// # Errors
    /// [`GgufError::MissingTensor`], and [`GgufError::UnsupportedType`] for a type that Hearth cannot compute with.
    pub fn tensor(&self, name: &str) -> Result<RawTensor, GgufError> {
        let &(part, index) = self
            .by_name
            .get(name)
            .ok_or_else(|| GgufError::MissingTensor { path: self.paths[0].clone(), name: name.to_owned() })?;
        let info = &self.parts[part].tensors[index];
        let (Some(dtype), Some(bytes)) = (GgmlType::from_id(info.type_id), info.bytes) else {
            return Err(GgufError::UnsupportedType {
                path: self.paths[part].clone(),
                name: name.to_owned(),
                type_name: tensor_type::type_name(info.type_id),
            });
        };
        // Both ends were checked against the file's length when the file was opened.
        let start = info.start as usize;
        let data = self.parts[part].bytes.slice(start..start + bytes as usize);
        Ok(RawTensor { dtype, shape: info.shape.clone(), data })
    }

    /// Total number of elements of all tensors.
    pub fn parameters(&self) -> u64 {
        self.tensor_infos().fold(0, |sum, tensor| sum.saturating_add(tensor.elements))
    }

    /// The quantization by its usual name: the recipe that the file names, such as `Q4_K_M`, whose tensors have several
    /// types; if the file names no known recipe, [`Gguf::dominant_type`].
    pub fn quantization(&self) -> String {
        let recipe = self.metadata.u64("general.file_type").and_then(tensor_type::recipe_name);
        recipe.map_or_else(|| self.dominant_type(), str::to_owned)
    }

    /// The type of most parameters, such as `Q4_K`; `none` if there are no tensors.
    pub fn dominant_type(&self) -> String {
        let mut elements: HashMap<u32, u64> = HashMap::new();
        for tensor in self.tensor_infos() {
            let sum = elements.entry(tensor.type_id).or_default();
            *sum = sum.saturating_add(tensor.elements);
        }
        // Ties go to the lower number, so that the answer is deterministic.
        elements
            .into_iter()
            .max_by_key(|&(type_id, elements)| (elements, u32::MAX - type_id))
            .map_or_else(|| "none".to_owned(), |(type_id, _)| tensor_type::type_name(type_id))
    }
}

fn open_part(path: &Path) -> Result<(Bytes, Header), GgufError> {
    let io = |source| GgufError::Io { path: path.to_owned(), source };
    let not_gguf = |what: &str| GgufError::NotGguf { path: path.to_owned(), what: what.to_owned() };
    let about = std::fs::metadata(path).map_err(io)?;
    if about.is_dir() {
        return Err(not_gguf("it is a directory; give the .gguf file in it"));
    }
    if !about.is_file() {
        return Err(not_gguf("it is a device or a pipe; give a file on disk"));
    }
    if about.len() == 0 {
        return Err(not_gguf(&sniff::describe(&[])));
    }
    let bytes = map(path).map_err(io)?;
    let header = parse::parse(path, &bytes)?;
    Ok((bytes, header))
}
