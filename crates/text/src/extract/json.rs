//! JSON and JSON Lines: every leaf becomes `path.to.it: value`. What belongs together forms one block: a record of a
//! list at the top level or one level below it, or a top-level field of an object.
//!
//! The text is read as a stream without building a tree, so memory is proportional to the extracted text.

use std::fmt::Write as _;

use serde::de::{self, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{
    ExtractError, Format,
    document::{BlockKind, DocumentBuilder, SourceLocation},
};

/// Whether a text is one JSON document.
pub(super) fn is_document(text: &str) -> bool {
    serde_json::from_str::<IgnoredAny>(text).is_ok()
}

/// Whether a text has one JSON document per line, at least two in all.
pub(super) fn is_lines(text: &str) -> bool {
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    lines.clone().nth(1).is_some() && lines.all(|line| line.trim_start().starts_with(['{', '[']) && is_document(line))
}

pub(super) fn read(text: &str, builder: &mut DocumentBuilder<'_>) -> Result<(), ExtractError> {
    let mut flattening = Flattening::new(builder, Format::Json, SourceLocation::default());
    flattening.run(text, true)
}

pub(super) fn read_lines(text: &str, builder: &mut DocumentBuilder<'_>) -> Result<(), ExtractError> {
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let place = SourceLocation::lines(index + 1, index + 1);
        Flattening::new(builder, Format::JsonLines, place).run(line, false)?;
    }
    Ok(())
}

struct Flattening<'b, 'l> {
    builder: &'b mut DocumentBuilder<'l>,
    format: Format,
    place: SourceLocation,
    path: String,
    lines: String,
    /// Why the document was abandoned, if the reason was not invalid JSON.
    refused: Option<ExtractError>,
}

impl<'b, 'l> Flattening<'b, 'l> {
    fn new(builder: &'b mut DocumentBuilder<'l>, format: Format, place: SourceLocation) -> Self {
        Self { builder, format, place, path: String::new(), lines: String::new(), refused: None }
    }

    /// With `parted`, each element of the document becomes its own block.
    fn run(&mut self, text: &str, parted: bool) -> Result<(), ExtractError> {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let depth = usize::from(!parted);
        let read = Value { flattening: self, depth }.deserialize(&mut deserializer);
        if let Some(refused) = self.refused.take() {
            return Err(refused);
        }
        read.map_err(|error| ExtractError::damaged(self.format, error))?;
        self.flush()
    }

    fn flush(&mut self) -> Result<(), ExtractError> {
        let lines = std::mem::take(&mut self.lines);
        self.builder.push(BlockKind::TableRow, &lines, self.place.clone())
    }

    fn leaf<E: de::Error>(&mut self, value: &dyn std::fmt::Display) -> Result<(), E> {
        let written = match self.path.as_str() {
            "" => writeln!(self.lines, "{value}"),
            path => writeln!(self.lines, "{path}: {value}"),
        };
        written.map_err(E::custom)?;
        // Paths repeat at every leaf, so the text can become much larger than the file.
        let allowed = self.builder.limits().text_bytes;
        if self.lines.len() as u64 > allowed {
            self.refused = Some(ExtractError::OverLimit { limit: super::Limit::TextBytes, allowed, found: None });
            return Err(E::custom("over a limit"));
        }
        Ok(())
    }

    /// Extends the path by one step while `inner` reads the value there.
    fn step<E: de::Error>(
        &mut self,
        depth: usize,
        name: &str,
        inner: impl FnOnce(&mut Self) -> Result<(), E>,
    ) -> Result<(), E> {
        let length = self.path.len();
        if !self.path.is_empty() && !name.starts_with('[') {
            self.path.push('.');
        }
        self.path.push_str(name);
        inner(self)?;
        self.path.truncate(length);
        if (depth == 0 || (depth == 1 && name.starts_with('[')))
            && let Err(error) = self.flush()
        {
            self.refused = Some(error);
            return Err(E::custom("over a limit"));
        }
        Ok(())
    }
}

/// Reads one value into `flattening`. The parser itself limits the nesting depth.
struct Value<'f, 'b, 'l> {
    flattening: &'f mut Flattening<'b, 'l>,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Value<'_, '_, '_> {
    type Value = ();

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<(), E> {
        self.flattening.leaf(&value)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<(), E> {
        self.flattening.leaf(&value)
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<(), E> {
        self.flattening.leaf(&value)
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<(), E> {
        self.flattening.leaf(&value)
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<(), E> {
        self.flattening.leaf(&value)
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        let Self { flattening, depth } = self;
        let mut index = 0_usize;
        // The elements of a top-level list need no name: it would say no more than their position.
        loop {
            let name = if depth == 0 { String::new() } else { format!("[{index}]") };
            let mut more = false;
            flattening.step(depth, &name, |flattening| {
                more = elements.next_element_seed(Value { flattening, depth: depth + 1 })?.is_some();
                Ok(())
            })?;
            if !more {
                return Ok(());
            }
            index += 1;
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        let Self { flattening, depth } = self;
        while let Some(name) = fields.next_key::<String>()? {
            flattening
                .step(depth, &name, |flattening| fields.next_value_seed(Value { flattening, depth: depth + 1 }))?;
        }
        Ok(())
    }
}
