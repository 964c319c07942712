//! Where a question searches: the fields that all document routes share.

use std::time::Duration;

use hearth_domain::{
    documents::{AttributeFilter, SearchMode},
    error::Result,
};
use serde_json::Value;

use super::{
    body::{FRACTION, FieldSpec, TIMEOUT, honoured},
    documents::{FILTER, read_filter},
    fields::{Fields, bad_value, shortened, wrong_type},
};

const NAMES: &str = r#"{"anyOf":[{"type":"string"},{"type":"array","maxItems":100,"items":{"type":"string"}}]}"#;

/// Fields of every route that searches documents for passages.
pub const FIELDS: &[FieldSpec] = &[
    honoured("collections", NAMES, "Names or ids of collections; they are searched together. Default `default`."),
    honoured("document_ids", NAMES, "Look in these documents only."),
    honoured("filters", FILTER, "OpenAI's filters over attributes: `eq ne gt gte lt lte in nin`, and `and`, `or`."),
    honoured(
        "search_mode",
        r#"{"enum":["fused","hybrid","dense","lexical"]}"#,
        "By meaning, by words, or both. Default `fused`.",
    ),
    honoured(
        "top_k",
        r#"{"type":"integer","minimum":1,"maximum":100}"#,
        "Passages at most. Default 5; for `/analysis` 10.",
    ),
    honoured("min_similarity", FRACTION, "Passages less similar than this are not used. Default 0.3."),
    honoured(
        "wait",
        r#"{"anyOf":[{"type":"boolean"},{"type":"number","minimum":0,"maximum":3600}]}"#,
        "Documents that are still being read: wait for them (`true`, or seconds), or do without (`false`). Unsaid, 409 `indexing`; `/analysis` waits.",
    ),
    TIMEOUT,
];

const TOP_K_DEFAULT: usize = 5;
const TOP_K_MAX: i64 = 100;
const MIN_SIMILARITY_DEFAULT: f32 = 0.3;
/// Longest wait for documents when `wait` gives no duration.
const WAIT_DEFAULT: Duration = Duration::from_secs(300);
const WAIT_MAX_SECONDS: f64 = 3600.0;

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct LookupBody {
    /// Names or ids; empty means the default one.
    pub collections: Vec<String>,
    /// Only these documents; empty means all.
    pub document_ids: Vec<String>,
    pub filter: Option<AttributeFilter>,
    pub mode: SearchMode,
    pub rerank: bool,
    pub top_k: usize,
    pub min_similarity: f32,
    pub wait: Wait,
}

/// What to do about documents that are still being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Refuse, instead of answering without them.
    Refuse,
    /// Answer from what can be searched now.
    Never,
    /// Wait for them, at most this long.
    For(Duration),
}

impl LookupBody {
    pub(super) fn read(fields: &mut Fields) -> Result<Self> {
        let mode = match fields.string("search_mode")?.as_deref() {
            None | Some("fused" | "hybrid") => SearchMode::Fused,
            Some("dense") => SearchMode::Dense,
            Some("lexical") => SearchMode::Lexical,
            Some(other) => {
                let found = shortened(&Value::String(other.to_owned()));
                let message = format!("`search_mode` must be `fused`, `dense` or `lexical`, but is {found}.");
                return Err(bad_value("search_mode", message));
            }
        };
        Ok(Self {
            collections: names(fields, "collections")?,
            document_ids: names(fields, "document_ids")?,
            filter: fields.take("filters").map(|filter| read_filter(filter, "filters")).transpose()?,
            mode,
            rerank: fields.boolean("rerank")?.unwrap_or(false),
            top_k: fields.integer("top_k", 1, TOP_K_MAX)?.map_or(TOP_K_DEFAULT, |k| k as usize),
            min_similarity: fields.float("min_similarity", 0.0, 1.0)?.unwrap_or(MIN_SIMILARITY_DEFAULT),
            wait: read_wait(fields)?,
        })
    }
}

impl LookupBody {
    /// The filter and the document ids as one restriction.
    pub fn restriction(&self) -> Option<AttributeFilter> {
        let documents = (!self.document_ids.is_empty()).then(|| AttributeFilter::Files(self.document_ids.clone()));
        match (self.filter.clone(), documents) {
            (Some(filter), Some(documents)) => Some(AttributeFilter::All(vec![filter, documents])),
            (filter, documents) => filter.or(documents),
        }
    }
}

/// One name, or several.
fn names(fields: &mut Fields, field: &str) -> Result<Vec<String>> {
    const NAMES_MAX: usize = 100;
    let names = match fields.take(field) {
        None => return Ok(Vec::new()),
        Some(Value::Array(names)) => names,
        Some(single @ Value::String(_)) => vec![single],
        Some(other) => return Err(wrong_type(field, "an array of strings", &other)),
    };
    if names.len() > NAMES_MAX {
        return Err(bad_value(field, format!("`{field}` names {}; {NAMES_MAX} are allowed.", names.len())));
    }
    let names = names.into_iter().enumerate().map(|(index, name)| match name {
        Value::String(name) => Ok(name),
        other => Err(wrong_type(&format!("{field}[{index}]"), "a string", &other)),
    });
    names.collect()
}

/// `true`, `false`, or seconds.
fn read_wait(fields: &mut Fields) -> Result<Wait> {
    match fields.peek("wait") {
        Some(Value::Bool(wait)) => {
            let wait = if *wait { Wait::For(WAIT_DEFAULT) } else { Wait::Never };
            fields.take("wait");
            Ok(wait)
        }
        _ => {
            let seconds = fields.number("wait", 0.0, WAIT_MAX_SECONDS)?;
            Ok(seconds.map_or(Wait::Refuse, |seconds| Wait::For(Duration::from_secs_f64(seconds))))
        }
    }
}
