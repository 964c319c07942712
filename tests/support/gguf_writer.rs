//! Writes GGUF files for tests, right ones and wrong ones: every field can be set to what a real writer would not
//! write. Layout: the GGUF specification, as in `crates/models/src/gguf/parse.rs`.

use std::path::Path;

/// A GGUF file in the making.
#[derive(Clone, Debug)]
pub struct GgufWriter {
    pub version: u32,
    pub alignment: u64,
    pub values: Vec<(String, u32, Vec<u8>)>,
    pub tensors: Vec<WrittenTensor>,
}

#[derive(Clone, Debug)]
pub struct WrittenTensor {
    pub name: String,
    /// Innermost first, as the file has it.
    pub dimensions: Vec<u64>,
    pub type_id: u32,
    pub data: Vec<u8>,
    /// Where the table says the data is, if not where it is.
    pub claimed_offset: Option<u64>,
}

impl Default for GgufWriter {
    fn default() -> Self {
        Self { version: 3, alignment: 32, values: Vec::new(), tensors: Vec::new() }
    }
}

/// A string as GGUF has it.
pub fn string(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = bytes.as_ref();
    [&(bytes.len() as u64).to_le_bytes()[..], bytes].concat()
}

/// A list as GGUF has it: element type, count, elements.
pub fn list(element_type: u32, elements: &[Vec<u8>]) -> Vec<u8> {
    [&element_type.to_le_bytes()[..], &(elements.len() as u64).to_le_bytes(), &elements.concat()].concat()
}

impl GgufWriter {
    /// A value in its encoded form, whatever its type number says.
    pub fn raw(mut self, key: &str, value_type: u32, value: impl AsRef<[u8]>) -> Self {
        self.values.push((key.to_owned(), value_type, value.as_ref().to_vec()));
        self
    }

    pub fn u16(self, key: &str, value: u16) -> Self {
        self.raw(key, 2, value.to_le_bytes())
    }

    pub fn u32(self, key: &str, value: u32) -> Self {
        self.raw(key, 4, value.to_le_bytes())
    }

    pub fn i32(self, key: &str, value: i32) -> Self {
        self.raw(key, 5, value.to_le_bytes())
    }

    pub fn str(self, key: &str, value: &str) -> Self {
        self.raw(key, 8, string(value))
    }

    pub fn strings(self, key: &str, values: &[&[u8]]) -> Self {
        let elements: Vec<_> = values.iter().map(string).collect();
        self.raw(key, 9, list(8, &elements))
    }

    /// `dimensions` innermost first.
    pub fn tensor(mut self, name: &str, dimensions: &[u64], type_id: u32, data: &[u8]) -> Self {
        self.tensors.push(WrittenTensor {
            name: name.to_owned(),
            dimensions: dimensions.to_vec(),
            type_id,
            data: data.to_vec(),
            claimed_offset: None,
        });
        self
    }

    /// `dimensions` innermost first; type F32.
    pub fn tensor_f32(self, name: &str, dimensions: &[u64], values: &[f32]) -> Self {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensor(name, dimensions, 0, &data)
    }

    /// Overrides where the table says that the last tensor's data is.
    pub fn claim_offset(mut self, offset: u64) -> Self {
        self.tensors.last_mut().expect("a tensor was added").claimed_offset = Some(offset);
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let align = |bytes: &mut Vec<u8>| bytes.resize(bytes.len().next_multiple_of(self.alignment as usize), 0);
        let mut data = Vec::new();
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.values.len() as u64).to_le_bytes());
        for (key, value_type, value) in &self.values {
            out.extend(string(key));
            out.extend(value_type.to_le_bytes());
            out.extend(value);
        }
        for tensor in &self.tensors {
            align(&mut data);
            out.extend(string(&tensor.name));
            out.extend((tensor.dimensions.len() as u32).to_le_bytes());
            tensor.dimensions.iter().for_each(|dimension| out.extend(dimension.to_le_bytes()));
            out.extend(tensor.type_id.to_le_bytes());
            out.extend(tensor.claimed_offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&tensor.data);
        }
        if !data.is_empty() {
            align(&mut out);
            out.extend(data);
        }
        out
    }

    pub fn write(&self, path: &Path) {
        std::fs::write(path, self.bytes()).expect("the test directory is writable");
    }
}
