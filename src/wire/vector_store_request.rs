//! What `/v1/vector_stores` accepts: bodies and queries.

use std::collections::BTreeMap;

use hearth_domain::{
    documents::{AttributeFilter, AttributeValue, LOCAL_ONLY, PageRequest},
    error::Result,
};
use serde_json::Value;

use super::{
    Parsed,
    body::{FieldSpec, RequestBody, RequestQuery, STRING, honoured, ignored, refused},
    documents::{Attributes, FILTER, read_attributes, read_filter},
    fields::{Fields, bad_value, shortened, wrong_type},
    files::{self, EXPIRES_AFTER},
    lists::{LIMIT, ORDER, PAGE, after, before, take_one_of, take_page},
};

pub const ID_PREFIX: &str = "vs_";
const NAME_CHARS_MAX: usize = 256;
/// OpenAI's own bound for a batch.
const FILES_MAX: usize = 2000;
const QUERIES_MAX: usize = 16;
const RESULTS_MAX: i64 = 50;
const RESULTS_DEFAULT: usize = 10;
/// OpenAI's statuses of files and batches.
pub const STATUSES: [&str; 4] = ["in_progress", "completed", "failed", "cancelled"];

const NAME: &str = r#"{"type":"string","maxLength":256}"#;
const METADATA: &str = r#"{"type":"object","maxProperties":16,"propertyNames":{"minLength":1,"maxLength":64},"additionalProperties":{"type":["string","number","boolean","null"],"maxLength":512}}"#;
const FILE_IDS: &str = r#"{"type":"array","maxItems":2000,"items":{"type":"string"}}"#;
const CHUNKING_STRATEGY: FieldSpec = refused(
    "chunking_strategy",
    &[r#"{"type":"auto"}"#],
    "Documents are cut along their structure, to the length that the embedding model reads.",
);

/// `POST /v1/vector_stores`.
#[derive(Debug)]
pub struct VectorStoreCreate {
    pub name: String,
    pub metadata: Attributes,
    pub file_ids: Vec<String>,
}

impl RequestBody for VectorStoreCreate {
    const NAME: &'static str = "VectorStoreRequest";
    const FIELDS: &'static [&'static [FieldSpec]] = &[&[
        honoured("name", NAME, "For people; several may share it."),
        honoured("file_ids", FILE_IDS, "Files to begin with."),
        honoured("metadata", METADATA, "Kept with it; up to 16 pairs."),
        ignored("description", "It is not kept; use `metadata`."),
        EXPIRES_AFTER,
        CHUNKING_STRATEGY,
    ]];
    const REQUIRED: &'static [&'static str] = &[];
}

impl VectorStoreCreate {
    pub fn read(body: Value, strict: bool) -> Result<Parsed<Self>> {
        let mut fields = Fields::body(body)?;
        let file_ids = read_file_ids(&mut fields)?.unwrap_or_default();
        let name = read_name(&mut fields)?.unwrap_or_default();
        let metadata = read_metadata(&mut fields)?.unwrap_or_default();
        let ignored = Self::ignored(fields.rest(), strict)?;
        Ok(Parsed { request: Self { name, metadata, file_ids }, ignored })
    }
}

/// `POST /v1/vector_stores/{id}`: `None` leaves a value unchanged.
#[derive(Debug)]
pub struct VectorStoreUpdate {
    pub name: Option<String>,
    pub metadata: Option<Attributes>,
}

impl RequestBody for VectorStoreUpdate {
    const NAME: &'static str = "VectorStoreUpdate";
    const FIELDS: &'static [&'static [FieldSpec]] = &[&[
        honoured("name", NAME, "The new name."),
        honoured("metadata", METADATA, "Takes the place of what was kept."),
        EXPIRES_AFTER,
    ]];
    const REQUIRED: &'static [&'static str] = &[];
}

impl VectorStoreUpdate {
    pub fn read(body: Value, strict: bool) -> Result<Parsed<Self>> {
        let mut fields = Fields::body(body)?;
        let request = Self { name: read_name(&mut fields)?, metadata: read_metadata(&mut fields)? };
        let ignored = Self::ignored(fields.rest(), strict)?;
        Ok(Parsed { request, ignored })
    }
}

fn read_name(fields: &mut Fields) -> Result<Option<String>> {
    let name = fields.string("name")?;
    if name.as_ref().is_some_and(|name| name.chars().count() > NAME_CHARS_MAX) {
        return Err(bad_value("name", format!("`name` is longer than {NAME_CHARS_MAX} characters.")));
    }
    Ok(name)
}

fn read_metadata(fields: &mut Fields) -> Result<Option<Attributes>> {
    let metadata = fields.map("metadata")?.map(|found| read_attributes(found, "metadata")).transpose()?;
    metadata.as_ref().map_or(Ok(()), check_local_only)?;
    Ok(metadata)
}

/// A misspelt value must not let texts leave this machine.
fn check_local_only(metadata: &Attributes) -> Result<()> {
    let is_clear = match metadata.get(LOCAL_ONLY) {
        None | Some(AttributeValue::Bool(_)) => true,
        Some(AttributeValue::Text(text)) => ["true", "false"].contains(&text.as_str()),
        Some(AttributeValue::Number(_)) => false,
    };
    let message = || "`metadata.local_only` must be \"true\" or \"false\".".to_owned();
    if is_clear { Ok(()) } else { Err(bad_value("metadata.local_only", message())) }
}

fn read_file_ids(fields: &mut Fields) -> Result<Option<Vec<String>>> {
    let Some(items) = fields.array("file_ids")? else { return Ok(None) };
    check_count(items.len(), "file_ids")?;
    let ids = items.into_iter().enumerate().map(|(index, item)| match item {
        Value::String(id) => Ok(id),
        other => Err(wrong_type(&format!("file_ids[{index}]"), "a string", &other)),
    });
    ids.collect::<Result<_>>().map(Some)
}

fn check_count(found: usize, path: &str) -> Result<()> {
    if found > FILES_MAX {
        return Err(bad_value(path, format!("`{path}` has {found} files; {FILES_MAX} are allowed.")));
    }
    Ok(())
}

fn take_attributes(fields: &mut Fields) -> Result<Attributes> {
    let path = fields.path("attributes");
    Ok(fields.map("attributes")?.map(|found| read_attributes(found, &path)).transpose()?.unwrap_or_default())
}

/// A file to add to a vector store.
#[derive(Debug, PartialEq)]
pub struct VectorStoreFileRequest {
    pub file_id: String,
    pub attributes: Attributes,
}

impl RequestBody for VectorStoreFileRequest {
    const NAME: &'static str = "VectorStoreFileRequest";
    const FIELDS: &'static [&'static [FieldSpec]] = &[&[
        honoured("file_id", STRING, "An uploaded file."),
        honoured("attributes", METADATA, "What searches filter by; up to 16 pairs."),
        CHUNKING_STRATEGY,
    ]];
    const REQUIRED: &'static [&'static str] = &["file_id"];
}

impl VectorStoreFileRequest {
    pub fn read(body: Value, strict: bool) -> Result<Parsed<Self>> {
        Self::read_fields(Fields::body(body)?, strict)
    }

    fn read_fields(mut fields: Fields, strict: bool) -> Result<Parsed<Self>> {
        let file_id = fields.required_string("file_id")?;
        let attributes = take_attributes(&mut fields)?;
        let ignored = Self::ignored(fields.rest(), strict)?;
        Ok(Parsed { request: Self { file_id, attributes }, ignored })
    }
}

/// `POST /v1/vector_stores/{id}/files/{file_id}`: the attributes that replace the old ones.
#[derive(Debug)]
pub struct VectorStoreFileUpdate {
    pub attributes: Attributes,
}

impl RequestBody for VectorStoreFileUpdate {
    const NAME: &'static str = "VectorStoreFileUpdate";
    const FIELDS: &'static [&'static [FieldSpec]] =
        &[&[honoured("attributes", METADATA, "Take the place of the old ones; null or `{}` removes them.")]];
    const REQUIRED: &'static [&'static str] = &[];
    // Null is a value here.
    const RULES: &'static [&'static str] = &[r#"{"required":["attributes"]}"#];
}

impl VectorStoreFileUpdate {
    pub fn read(body: Value, strict: bool) -> Result<Parsed<Self>> {
        // Null removes them; omitting them is a mistake.
        let is_null = body.get("attributes").is_some_and(Value::is_null);
        let mut fields = Fields::body(body)?;
        if fields.peek("attributes").is_none() && !is_null {
            return Err(fields.missing("attributes"));
        }
        let request = Self { attributes: take_attributes(&mut fields)? };
        let ignored = Self::ignored(fields.rest(), strict)?;
        Ok(Parsed { request, ignored })
    }
}

/// `POST /v1/vector_stores/{id}/file_batches`.
#[derive(Debug)]
pub struct FileBatchRequest {
    pub files: Vec<VectorStoreFileRequest>,
}

impl RequestBody for FileBatchRequest {
    const NAME: &'static str = "FileBatchRequest";
    const FIELDS: &'static [&'static [FieldSpec]] = &[&[
        honoured("file_ids", FILE_IDS, "Uploaded files; up to 2000."),
        honoured(
            "files",
            r#"{"type":"array","maxItems":2000,"items":{"type":"object","required":["file_id"],"properties":{"file_id":{"type":"string"},"attributes":{"type":["object","null"],"maxProperties":16,"propertyNames":{"minLength":1,"maxLength":64},"additionalProperties":{"type":["string","number","boolean","null"],"maxLength":512}}}}}"#,
            "Instead of `file_ids`: files with attributes of their own.",
        ),
        honoured("attributes", METADATA, "Of all `file_ids`."),
        CHUNKING_STRATEGY,
    ]];
    const REQUIRED: &'static [&'static str] = &[];
    const RULES: &'static [&'static str] = &[r#"{"oneOf":[
        {"required":["file_ids"],"properties":{"file_ids":{"type":"array","minItems":1},"files":{"type":"null"}}},
        {"required":["files"],"properties":{"files":{"type":"array","minItems":1},"file_ids":{"type":"null"}}}
    ]}"#];
}

impl FileBatchRequest {
    pub fn read(body: Value, strict: bool) -> Result<Parsed<Self>> {
        let mut fields = Fields::body(body)?;
        let ids = read_file_ids(&mut fields)?;
        let files = fields.array("files")?;
        let attributes = take_attributes(&mut fields)?;
        let mut ignored = Self::ignored(fields.rest(), strict)?;
        let files = match (ids, files) {
            (Some(ids), None) => ids
                .into_iter()
                .map(|file_id| VectorStoreFileRequest { file_id, attributes: attributes.clone() })
                .collect::<Vec<_>>(),
            (None, Some(files)) => {
                check_count(files.len(), "files")?;
                let mut read = Vec::with_capacity(files.len());
                for (index, file) in files.into_iter().enumerate() {
                    let file =
                        VectorStoreFileRequest::read_fields(Fields::object(file, &format!("files[{index}]"))?, strict)?;
                    ignored.extend(file.ignored);
                    read.push(file.request);
                }
                read
            }
            (Some(_), Some(_)) => return Err(bad_value("files", "Send either `file_ids` or `files`, not both.")),
            (None, None) => {
                let message = "`file_ids` is required, or `files`.";
                return Err(bad_value("file_ids", message).with_code("missing_required_parameter"));
            }
        };
        if files.is_empty() {
            return Err(bad_value("file_ids", "A batch has at least one file."));
        }
        Ok(Parsed { request: Self { files }, ignored })
    }
}

/// Which vector stores to list.
#[derive(Debug)]
pub struct VectorStoreListQuery {
    pub page: PageRequest,
}

impl RequestQuery for VectorStoreListQuery {
    const PARAMETERS: &'static [FieldSpec] = &[
        LIMIT,
        ORDER,
        after(r#"{"type":"string","pattern":"^(vs_|$)"}"#),
        before(r#"{"type":"string","pattern":"^(vs_|$)"}"#),
    ];
}

impl VectorStoreListQuery {
    pub fn read(mut parameters: BTreeMap<String, String>) -> Result<Self> {
        Ok(Self { page: take_page(&mut parameters, PAGE, ID_PREFIX)? })
    }
}

/// Which files of a vector store to list.
#[derive(Debug)]
pub struct VectorStoreFileListQuery {
    pub page: PageRequest,
    /// The store's name of a status.
    pub status: Option<&'static str>,
}

impl RequestQuery for VectorStoreFileListQuery {
    const PARAMETERS: &'static [FieldSpec] = &[
        LIMIT,
        ORDER,
        after(files::ID),
        before(files::ID),
        honoured(
            "filter",
            r#"{"enum":["in_progress","completed","failed","cancelled"]}"#,
            "Files of this status only.",
        ),
    ];
}

impl VectorStoreFileListQuery {
    pub fn read(mut parameters: BTreeMap<String, String>) -> Result<Self> {
        let page = take_page(&mut parameters, PAGE, files::ID_PREFIX)?;
        let status = take_one_of(&mut parameters, "filter", &STATUSES)?;
        let status = status.map(|status| match &*status {
            "in_progress" => "processing",
            "completed" => "ready",
            "failed" => "failed",
            _ => "cancelled",
        });
        Ok(Self { page, status })
    }
}

/// `POST /v1/vector_stores/{id}/search`.
#[derive(Debug)]
pub struct VectorStoreSearchRequest {
    pub queries: Vec<String>,
    pub filter: Option<AttributeFilter>,
    pub max_num_results: usize,
    /// The least cosine, 0 to 1.
    pub score_threshold: f32,
    /// Search by meaning only, not by words.
    pub dense_only: bool,
}

impl RequestBody for VectorStoreSearchRequest {
    const NAME: &'static str = "VectorStoreSearchRequest";
    const FIELDS: &'static [&'static [FieldSpec]] = &[&[
        honoured(
            "query",
            r#"{"anyOf":[{"type":"string","pattern":"\\S"},{"type":"array","minItems":1,"maxItems":16,"items":{"type":"string","pattern":"\\S"}}]}"#,
            "What to look for; several ask for what is near to any of them.",
        ),
        honoured("filters", FILTER, "Over attributes: `{type, key, value}`, or `{type: \"and\" | \"or\", filters}`."),
        honoured("max_num_results", r#"{"type":"integer","minimum":1,"maximum":50}"#, "Passages at most. Default 10."),
        honoured(
            "ranking_options",
            r#"{"type":"object","properties":{"ranker":{"enum":["none","auto","default-2024-11-15","default_2024_08_21",null]},"score_threshold":{"type":["number","null"],"minimum":0,"maximum":1}}}"#,
            "`score_threshold`: passages below it are left out. `ranker` `none` looks by meaning only, any other by words, too.",
        ),
        ignored("rewrite_query", "The query is searched as it stands."),
    ]];
    const REQUIRED: &'static [&'static str] = &["query"];
}

impl VectorStoreSearchRequest {
    pub fn read(body: Value, strict: bool) -> Result<Parsed<Self>> {
        let mut fields = Fields::body(body)?;
        let queries = read_queries(fields.required("query")?)?;
        let filter = fields.take("filters").map(|found| read_filter(found, "filters")).transpose()?;
        let max_num_results = fields.integer("max_num_results", 1, RESULTS_MAX)?;
        let mut score_threshold = None;
        let mut dense_only = false;
        if let Some(mut options) = fields.nested("ranking_options")? {
            score_threshold = options.float("score_threshold", 0.0, 1.0)?;
            match options.string("ranker")?.as_deref() {
                None | Some("auto" | "default-2024-11-15" | "default_2024_08_21") => {}
                Some("none") => dense_only = true,
                Some(other) => {
                    let place = options.path("ranker");
                    let found = shortened(&Value::String(other.to_owned()));
                    let message = format!("`{place}` must be one of none, auto, default-2024-11-15, but is {found}.");
                    return Err(bad_value(place, message));
                }
            }
        }
        let ignored = Self::ignored(fields.rest(), strict)?;
        let request = Self {
            queries,
            filter,
            max_num_results: max_num_results.and_then(|max| usize::try_from(max).ok()).unwrap_or(RESULTS_DEFAULT),
            score_threshold: score_threshold.unwrap_or(0.0),
            dense_only,
        };
        Ok(Parsed { request, ignored })
    }
}

fn read_queries(value: Value) -> Result<Vec<String>> {
    let items = match value {
        Value::Array(items) => items,
        text => vec![text],
    };
    if items.is_empty() || items.len() > QUERIES_MAX {
        let message = format!("`query` must have 1 to {QUERIES_MAX} entries, but has {}.", items.len());
        return Err(bad_value("query", message));
    }
    let queries = items.into_iter().map(|item| match item {
        Value::String(text) if text.trim().is_empty() => {
            Err(bad_value("query", "`query` must not be an empty string."))
        }
        Value::String(text) => Ok(text),
        other => Err(wrong_type("query", "a string or an array of strings", &other)),
    });
    queries.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn wrong_bodies_are_refused_by_name() {
        let search = |body| VectorStoreSearchRequest::read(body, false).unwrap_err();
        let batch = |body| FileBatchRequest::read(body, false).unwrap_err();
        let file = |body| VectorStoreFileRequest::read(body, false).unwrap_err();
        let create = |body| VectorStoreCreate::read(body, false).unwrap_err();
        for (error, param) in [
            (search(json!({})), "query"),
            (search(json!({"query": []})), "query"),
            (search(json!({"query": " "})), "query"),
            (search(json!({"query": ["a", 1]})), "query"),
            (search(json!({"query": "a", "max_num_results": 51})), "max_num_results"),
            (search(json!({"query": "a", "filters": {"type": "eq"}})), "filters.key"),
            (search(json!({"query": "a", "ranking_options": {"ranker": "best"}})), "ranking_options.ranker"),
            (
                search(json!({"query": "a", "ranking_options": {"score_threshold": 2}})),
                "ranking_options.score_threshold",
            ),
            (create(json!({"metadata": {"local_only": "yes"}})), "metadata.local_only"),
            (create(json!({"metadata": {"k".repeat(65): null}})), "metadata"),
            (batch(json!({})), "file_ids"),
            (batch(json!({"file_ids": []})), "file_ids"),
            (batch(json!({"file_ids": ["a", 1]})), "file_ids[1]"),
            (batch(json!({"file_ids": ["a"], "files": [{"file_id": "a"}]})), "files"),
            (batch(json!({"files": [{"file_id": "a"}, {}]})), "files[1].file_id"),
            (file(json!({"attributes": {}})), "file_id"),
            (file(json!({"file_id": "a", "attributes": {"x": [1]}})), "attributes.x"),
            (file(json!({"file_id": "a", "chunking_strategy": {"type": "static"}})), "chunking_strategy"),
            (create(json!({"name": 7})), "name"),
            (create(json!({"name": "x".repeat(257)})), "name"),
            (create(json!({"file_ids": "a"})), "file_ids"),
            (VectorStoreFileUpdate::read(json!({}), false).unwrap_err(), "attributes"),
        ] {
            assert_eq!(error.param(), Some(param), "{error:?}");
        }
        assert!(VectorStoreFileUpdate::read(json!({"attributes": null}), false).unwrap().request.attributes.is_empty());
        assert!(VectorStoreCreate::read(json!({"expires_after": {"days": 1}}), true).is_err());
    }
}
