//! Parses bytes into metadata and a tensor table, trusting none of them.
//!
//! The layout is the GGUF specification's (`docs/gguf.md` in the ggml repository): magic, version, counts, metadata,
//! tensor table, padding, data. Every count is checked against the remaining bytes before anything is allocated for it,
//! so a hostile length costs no memory: allocations are a small multiple of the file's own size.

use std::{
    collections::{BTreeMap, HashSet, btree_map::Entry},
    path::Path,
};

use super::{
    GgufError, Strings,
    metadata::{Array, Value},
    sniff, tensor_type,
};

/// Maximum length of a key; the specification's limit.
const KEY_BYTES_MAX: u64 = 65_535;
/// Maximum dimensions of a tensor, as in ggml.
const DIMENSIONS_MAX: u32 = 4;
/// No reader needs lists nested deeper than this.
const NESTING_MAX: u32 = 4;
/// Alignment of the data section and of each tensor if `general.alignment` is absent.
const DEFAULT_ALIGNMENT: u64 = 32;

/// Everything before the tensor data.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) values: BTreeMap<String, Value>,
    pub(super) tensors: Vec<TensorInfo>,
}

/// One entry of the tensor table, already checked against the file's length.
#[derive(Debug)]
pub(super) struct TensorInfo {
    pub(super) name: String,
    /// Outermost first; the file stores them in the reverse order.
    pub(super) shape: Vec<usize>,
    pub(super) elements: u64,
    pub(super) type_id: u32,
    /// Offset from the start of the file.
    pub(super) start: u64,
    /// `None` when the type's block size is unknown.
    pub(super) bytes: Option<u64>,
    /// Offset of its entry in the table, for error messages.
    described_at: u64,
}

/// Parses the header of a file given as bytes; `path` is for error messages.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Header, GgufError> {
    if bytes.get(..4) != Some(b"GGUF") {
        return Err(GgufError::NotGguf { path: path.to_owned(), what: sniff::describe(bytes) });
    }
    let mut cursor = Cursor { path, bytes, offset: 4 };
    check_version(path, cursor.u32("the version")?)?;
    let num_tensors = cursor.u64("the number of tensors")?;
    let num_values = cursor.u64("the number of metadata keys")?;

    let values = cursor.metadata(num_values)?;
    let alignment = cursor.alignment(&values)?;
    let mut tensors = cursor.tensor_table(num_tensors)?;
    let data_start = (cursor.offset as u64)
        .checked_next_multiple_of(alignment)
        .ok_or_else(|| cursor.malformed(cursor.offset as u64, "the alignment is larger than any file".to_owned()))?;
    cursor.place_tensors(&mut tensors, data_start, alignment)?;
    Ok(Header { values, tensors })
}

fn check_version(path: &Path, version: u32) -> Result<(), GgufError> {
    let path = path.to_owned();
    match version {
        2 | 3 => Ok(()),
        // A big-endian file has the same magic; its small version number shows up in the high bytes.
        _ if version & 0xFFFF == 0 && version != 0 => Err(GgufError::BigEndian { path }),
        0 | 1 => Err(GgufError::Version { path, version, advice: "it is from 2023, convert the original model again" }),
        _ => Err(GgufError::Version { path, version, advice: "look for a newer Hearth or an older file" }),
    }
}

struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Cursor<'a> {
    fn remaining(&self) -> u64 {
        (self.bytes.len() - self.offset) as u64
    }

    fn malformed(&self, offset: u64, problem: String) -> GgufError {
        GgufError::Malformed { path: self.path.to_owned(), offset, problem }
    }

    fn truncated(&self, what: &str, needed: u64) -> GgufError {
        GgufError::Truncated {
            path: self.path.to_owned(),
            what: what.to_owned(),
            offset: self.offset as u64,
            needed,
            length: self.bytes.len() as u64,
        }
    }

    fn take(&mut self, count: u64, what: &str) -> Result<&'a [u8], GgufError> {
        if count > self.remaining() {
            return Err(self.truncated(what, count));
        }
        let start = self.offset;
        self.offset += count as usize;
        Ok(&self.bytes[start..self.offset])
    }

    fn fixed<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufError> {
        let taken = self.take(N as u64, what)?;
        Ok(taken.try_into().expect("take returns as many bytes as asked for"))
    }

    fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.fixed(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.fixed(what)?))
    }

    /// A count of items of at least `bytes_each` bytes, refused if they cannot fit in the remaining bytes.
    fn check_count(&self, count: u64, bytes_each: u64, what: &str) -> Result<usize, GgufError> {
        let needed = count.checked_mul(bytes_each).ok_or_else(|| {
            self.malformed(self.offset as u64, format!("it claims to have {count} {what}, more than any file can hold"))
        })?;
        if needed > self.remaining() {
            return Err(self.truncated(&format!("the list of {count} {what}"), needed));
        }
        // At most the length of a slice in memory, so it fits.
        Ok(count as usize)
    }

    fn string_bytes(&mut self, what: &str) -> Result<&'a [u8], GgufError> {
        let length = self.u64(what)?;
        self.take(length, what)
    }

    /// A name that must be text.
    fn name(&mut self, what: &str) -> Result<String, GgufError> {
        let at = self.offset as u64;
        let bytes = self.string_bytes(what)?;
        if bytes.len() as u64 > KEY_BYTES_MAX {
            return Err(self.malformed(at, format!("{what} is {} bytes long", bytes.len())));
        }
        String::from_utf8(bytes.to_vec()).map_err(|_| self.malformed(at, format!("{what} is not UTF-8")))
    }

    fn metadata(&mut self, count: u64) -> Result<BTreeMap<String, Value>, GgufError> {
        // Key length, value type and one byte of value.
        self.check_count(count, 13, "metadata keys")?;
        let mut values = BTreeMap::new();
        for _ in 0..count {
            let at = self.offset as u64;
            let key = self.name("a metadata key")?;
            let value_type = self.u32("the type of a metadata value")?;
            let value = self.value(value_type, &key)?;
            match values.entry(key) {
                Entry::Vacant(entry) => entry.insert(value),
                Entry::Occupied(entry) => {
                    return Err(self.malformed(at, format!("metadata key {:?} appears twice", entry.key())));
                }
            };
        }
        Ok(values)
    }

    fn value(&mut self, value_type: u32, key: &str) -> Result<Value, GgufError> {
        Ok(match value_type {
            0 => Value::U8(self.fixed::<1>(key)?[0]),
            1 => Value::I8(i8::from_le_bytes(self.fixed(key)?)),
            2 => Value::U16(u16::from_le_bytes(self.fixed(key)?)),
            3 => Value::I16(i16::from_le_bytes(self.fixed(key)?)),
            4 => Value::U32(self.u32(key)?),
            5 => Value::I32(i32::from_le_bytes(self.fixed(key)?)),
            6 => Value::F32(f32::from_le_bytes(self.fixed(key)?)),
            7 => Value::Bool(self.bools(1, key)?[0]),
            8 => {
                let bytes = self.string_bytes(key)?.to_vec();
                String::from_utf8(bytes).map_or_else(|error| Value::Bytes(error.into_bytes()), Value::String)
            }
            9 => Value::Array(self.array(key, 1)?),
            10 => Value::U64(self.u64(key)?),
            11 => Value::I64(i64::from_le_bytes(self.fixed(key)?)),
            12 => Value::F64(f64::from_le_bytes(self.fixed(key)?)),
            _ => return Err(self.unknown_value_type(value_type, key)),
        })
    }

    fn unknown_value_type(&self, value_type: u32, key: &str) -> GgufError {
        self.malformed(self.offset as u64, format!("metadata key {key:?} has a value of unknown type {value_type}"))
    }

    fn array(&mut self, key: &str, depth: u32) -> Result<Array, GgufError> {
        if depth > NESTING_MAX {
            return Err(self.malformed(self.offset as u64, format!("metadata key {key:?} nests lists too deep")));
        }
        let element_type = self.u32(key)?;
        let count = self.u64(key)?;
        Ok(match element_type {
            0 => Array::U8(self.numbers(count, key, u8::from_le_bytes)?),
            1 => Array::I8(self.numbers(count, key, i8::from_le_bytes)?),
            2 => Array::U16(self.numbers(count, key, u16::from_le_bytes)?),
            3 => Array::I16(self.numbers(count, key, i16::from_le_bytes)?),
            4 => Array::U32(self.numbers(count, key, u32::from_le_bytes)?),
            5 => Array::I32(self.numbers(count, key, i32::from_le_bytes)?),
            6 => Array::F32(self.numbers(count, key, f32::from_le_bytes)?),
            7 => Array::Bool(self.bools(count, key)?),
            8 => self.strings(count, key)?,
            9 => {
                // Element type and count of each list.
                let capacity = self.check_count(count, 12, key)?;
                let mut items = Vec::with_capacity(capacity);
                for _ in 0..count {
                    items.push(self.array(key, depth + 1)?);
                }
                Array::Array(items)
            }
            10 => Array::U64(self.numbers(count, key, u64::from_le_bytes)?),
            11 => Array::I64(self.numbers(count, key, i64::from_le_bytes)?),
            12 => Array::F64(self.numbers(count, key, f64::from_le_bytes)?),
            _ => return Err(self.unknown_value_type(element_type, key)),
        })
    }

    fn numbers<T, const N: usize>(
        &mut self,
        count: u64,
        key: &str,
        from: impl Fn([u8; N]) -> T,
    ) -> Result<Vec<T>, GgufError> {
        self.check_count(count, N as u64, key)?;
        let bytes = self.take(count * N as u64, key)?;
        let (items, _) = bytes.as_chunks::<N>();
        Ok(items.iter().map(|item| from(*item)).collect())
    }

    fn bools(&mut self, count: u64, key: &str) -> Result<Vec<bool>, GgufError> {
        let at = self.offset as u64;
        let bytes = self.take(count, key)?;
        if let Some(wrong) = bytes.iter().position(|byte| *byte > 1) {
            let problem = format!("metadata key {key:?} has a flag that is neither 0 nor 1");
            return Err(self.malformed(at + wrong as u64, problem));
        }
        Ok(bytes.iter().map(|byte| *byte == 1).collect())
    }

    fn strings(&mut self, count: u64, key: &str) -> Result<Array, GgufError> {
        // The length of each string.
        let capacity = self.check_count(count, 8, key)?;
        let mut slices = Vec::with_capacity(capacity);
        for _ in 0..count {
            slices.push(self.string_bytes(key)?);
        }
        let texts: Result<Strings, _> = slices.iter().map(|slice| str::from_utf8(slice)).collect();
        Ok(texts.map_or_else(|_| Array::Bytes(slices.iter().map(|slice| slice.to_vec()).collect()), Array::String))
    }

    fn alignment(&self, values: &BTreeMap<String, Value>) -> Result<u64, GgufError> {
        match values.get("general.alignment") {
            None => Ok(DEFAULT_ALIGNMENT),
            Some(Value::U32(alignment)) if alignment.is_power_of_two() => Ok(u64::from(*alignment)),
            Some(other) => Err(self.malformed(
                self.offset as u64,
                format!("general.alignment is {other}, and must be a power of two stored as u32"),
            )),
        }
    }

    fn tensor_table(&mut self, count: u64) -> Result<Vec<TensorInfo>, GgufError> {
        // Name length, number of dimensions, type and offset.
        let capacity = self.check_count(count, 24, "tensors")?;
        let mut tensors = Vec::with_capacity(capacity);
        let mut names = HashSet::with_capacity(capacity);
        for _ in 0..count {
            let tensor = self.tensor_info()?;
            if !names.insert(tensor.name.clone()) {
                return Err(self.malformed(tensor.described_at, format!("tensor {:?} appears twice", tensor.name)));
            }
            tensors.push(tensor);
        }
        Ok(tensors)
    }

    /// One entry of the table; `start` is still relative to the data section.
    fn tensor_info(&mut self) -> Result<TensorInfo, GgufError> {
        let at = self.offset as u64;
        let name = self.name("the name of a tensor")?;
        let wrong = |cursor: &Self, problem: &str| cursor.malformed(at, format!("tensor {name:?} {problem}"));

        let num_dimensions = self.u32("the number of dimensions of a tensor")?;
        if num_dimensions > DIMENSIONS_MAX {
            return Err(wrong(self, &format!("has {num_dimensions} dimensions, and {DIMENSIONS_MAX} is the most")));
        }
        let mut shape = Vec::with_capacity(num_dimensions as usize);
        let mut elements = 1u64;
        for _ in 0..num_dimensions {
            let dimension = self.u64("the dimensions of a tensor")?;
            if dimension == 0 {
                return Err(wrong(self, "has a dimension of 0"));
            }
            elements = elements
                .checked_mul(dimension)
                .filter(|elements| i64::try_from(*elements).is_ok())
                .ok_or_else(|| wrong(self, "has more elements than can be counted"))?;
            shape.push(usize::try_from(dimension).map_err(|_| wrong(self, "is too large for this machine"))?);
        }
        shape.reverse();

        let type_id = self.u32("the type of a tensor")?;
        let bytes = match tensor_type::block(type_id) {
            None => None,
            Some((block_elements, block_bytes)) => {
                let columns = shape.last().copied().unwrap_or(1) as u64;
                if !columns.is_multiple_of(block_elements) {
                    let type_name = tensor_type::type_name(type_id);
                    let problem =
                        format!("has rows of {columns}, which are not whole {type_name} blocks of {block_elements}");
                    return Err(wrong(self, &problem));
                }
                let bytes = (elements / block_elements).checked_mul(block_bytes);
                Some(bytes.ok_or_else(|| wrong(self, "has more bytes than can be counted"))?)
            }
        };
        let start = self.u64("the place of a tensor")?;
        Ok(TensorInfo { name, shape, elements, type_id, start, bytes, described_at: at })
    }

    /// Makes offsets absolute, and checks that each tensor is aligned, within the file, and overlaps no other.
    fn place_tensors(&self, tensors: &mut [TensorInfo], data_start: u64, alignment: u64) -> Result<(), GgufError> {
        let length = self.bytes.len() as u64;
        let mut extents = Vec::with_capacity(tensors.len());
        for (index, tensor) in tensors.iter_mut().enumerate() {
            let wrong =
                |problem: &str| self.malformed(tensor.described_at, format!("tensor {:?} {problem}", tensor.name));
            if !tensor.start.is_multiple_of(alignment) {
                return Err(wrong(&format!("starts at {}, which is no multiple of {alignment}", tensor.start)));
            }
            let start = data_start.checked_add(tensor.start);
            // At least one byte, so that a tensor of unknown size also begins inside the file.
            let end = start.and_then(|start| start.checked_add(tensor.bytes.unwrap_or(1)));
            let (Some(start), Some(end)) = (start, end) else {
                return Err(wrong("lies further on than any file reaches"));
            };
            if end > length {
                return Err(GgufError::Truncated {
                    path: self.path.to_owned(),
                    what: format!("tensor {}", tensor.name),
                    offset: start,
                    needed: end - start,
                    length,
                });
            }
            tensor.start = start;
            extents.push((start, end, index));
        }
        extents.sort_unstable();
        for pair in extents.windows(2) {
            let ((_, end, first), (start, _, second)) = (pair[0], pair[1]);
            if start < end {
                let (first, second) = (&tensors[first], &tensors[second]);
                let problem = format!("tensors {:?} and {:?} overlap", first.name, second.name);
                return Err(self.malformed(second.described_at, problem));
            }
        }
        Ok(())
    }
}
