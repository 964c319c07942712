//! Models split into several files by `llama-gguf-split`.
//!
//! Each part is a GGUF file in its own right that stores its number (`split.no`, from 0), the number of parts
//! (`split.count`) and the total number of tensors (`split.tensors.count`). Names end in `-00001-of-00003.gguf`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{
    GgufError,
    metadata::{Metadata, Value},
};

/// A part's position among its siblings.
#[derive(Debug)]
pub(super) struct SplitPosition {
    path: PathBuf,
    /// The name without `-00001-of-00003.gguf`.
    stem: String,
    /// From 0.
    pub(super) number: u64,
    pub(super) count: u64,
}

/// `(stem, number from 1, count)` of a name such as `model-00002-of-00003.gguf`.
pub(crate) fn parse_name(name: &str) -> Option<(&str, u64, u64)> {
    let rest = name.strip_suffix(".gguf")?;
    let (rest, count) = rest.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let five_digits = |digits: &str| {
        (digits.len() == 5 && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse::<u64>().ok())?
    };
    Some((stem, five_digits(number)?, five_digits(count)?)).filter(|(_, number, count)| (1..=*count).contains(number))
}

/// The name of part `number` (from 0) of `count`.
pub(crate) fn part_name(stem: &str, number: u64, count: u64) -> String {
    format!("{stem}-{:05}-of-{count:05}.gguf", number + 1)
}

/// `None` for a model in one file.
pub(super) fn position(path: &Path, values: &BTreeMap<String, Value>) -> Result<Option<SplitPosition>, GgufError> {
    let metadata = keys(path, values);
    if metadata.get("split.count").is_none() || metadata.u64("split.count") == Some(1) {
        return Ok(None);
    }
    let count = metadata.require_u64("split.count")?;
    let number = metadata.require_u64("split.no")?;
    if count == 0 {
        return Ok(None);
    }
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let named = parse_name(&name).filter(|named| named.1 == number.saturating_add(1) && named.2 == count);
    let Some((stem, ..)) = named else {
        let problem = format!(
            "it is part {} of {count}, so its name must end -NNNNN-of-{count:05}.gguf for the others to be found \
             beside it; give it the name that it was published under",
            number.saturating_add(1)
        );
        return Err(GgufError::Split { path: path.to_owned(), problem });
    };
    Ok(Some(SplitPosition { path: path.to_owned(), stem: stem.to_owned(), number, count }))
}

/// The few keys that splits use, behind the accessors of [`Metadata`].
fn keys(path: &Path, values: &BTreeMap<String, Value>) -> Metadata {
    let wanted = ["split.no", "split.count", "split.tensors.count"];
    Metadata::new(path, wanted.iter().filter_map(|key| Some(((*key).to_owned(), values.get(*key)?.clone()))))
}

impl SplitPosition {
    /// Path of part `number` (from 0).
    pub(super) fn path_of(&self, number: u64) -> PathBuf {
        self.path.with_file_name(part_name(&self.stem, number, self.count))
    }

    pub(super) fn missing(&self, number: u64) -> GgufError {
        let problem = format!(
            "part {} of {}, {}, is not beside it; fetch all parts into one directory",
            number + 1,
            self.count,
            part_name(&self.stem, number, self.count)
        );
        GgufError::Split { path: self.path.clone(), problem }
    }

    /// Checks that the file at the path of part `number` is that part.
    pub(super) fn check(&self, number: u64, path: &Path, values: &BTreeMap<String, Value>) -> Result<(), GgufError> {
        let metadata = keys(path, values);
        let (found, count) = (metadata.require_u64("split.no")?, metadata.require_u64("split.count")?);
        if (found, count) == (number, self.count) {
            return Ok(());
        }
        let problem = format!(
            "inside, it is part {} of {count}, which its name contradicts; fetch all parts again",
            found.saturating_add(1)
        );
        Err(GgufError::Split { path: path.to_owned(), problem })
    }

    /// Checks that the parts together have all tensors.
    pub(super) fn check_total(&self, values: &BTreeMap<String, Value>, found: usize) -> Result<(), GgufError> {
        match keys(&self.path, values).u64("split.tensors.count") {
            Some(expected) if expected != found as u64 => {
                let problem = format!(
                    "the model has {expected} tensors, but its {} parts have {found}; fetch all parts again",
                    self.count
                );
                Err(GgufError::Split { path: self.path.clone(), problem })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        assert_eq!(parse_name("a-b-00002-of-00003.gguf"), Some(("a-b", 2, 3)));
        assert_eq!(part_name("a-b", 1, 3), "a-b-00002-of-00003.gguf");
        for not_a_part in
            ["a.gguf", "a-2-of-3.gguf", "a-00004-of-00003.gguf", "a-00000-of-00003.gguf", "a-0000é-of-00003.gguf"]
        {
            assert_eq!(parse_name(not_a_part), None, "{not_a_part}");
        }
    }
}
