//! What the document routes share on the wire: attributes as JSON, and filters over them.

use std::collections::BTreeMap;

use hearth_domain::{
    documents::{AttributeFilter, AttributeValue, Collection, Comparison, Document, DocumentStatus},
    error::{Error, Result},
};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    body::{Component, FieldSpec, FormFields, RequestBody, RequestQuery, STRING, honoured},
    fields::{Fields, bad_value, shortened, wrong_type},
    files::{self, FILE},
    lists::{PageSizes, after, take, take_page},
};

/// OpenAI's own bounds.
pub const ATTRIBUTES_MAX: usize = 16;
const KEY_CHARS_MAX: usize = 64;
const VALUE_CHARS_MAX: usize = 512;
/// Nesting levels of `and` and `or`.
const FILTER_DEPTH_MAX: usize = 16;
/// Values of one `in`, members of one `and`, and comparisons in all.
const FILTER_VALUES_MAX: usize = 1000;

pub type Attributes = BTreeMap<String, AttributeValue>;

/// Attributes or metadata found at `path`.
pub fn read_attributes(object: Map<String, Value>, path: &str) -> Result<Attributes> {
    if object.len() > ATTRIBUTES_MAX {
        return Err(bad_value(path, format!("`{path}` has {} keys; {ATTRIBUTES_MAX} are allowed.", object.len())));
    }
    let mut attributes = Attributes::new();
    for (key, value) in object {
        if key.is_empty() || key.chars().count() > KEY_CHARS_MAX {
            return Err(bad_value(path, format!("A key of `{path}` must have 1 to {KEY_CHARS_MAX} characters.")));
        }
        if !value.is_null() {
            let value = read_value(value, &format!("{path}.{key}"))?;
            attributes.insert(key, value);
        }
    }
    Ok(attributes)
}

fn read_value(value: Value, path: &str) -> Result<AttributeValue> {
    match value {
        Value::String(text) if text.chars().count() > VALUE_CHARS_MAX => {
            Err(bad_value(path, format!("`{path}` is longer than {VALUE_CHARS_MAX} characters.")))
        }
        Value::String(text) => Ok(AttributeValue::Text(text)),
        Value::Bool(value) => Ok(AttributeValue::Bool(value)),
        Value::Number(number) => number
            .as_f64()
            .map(AttributeValue::Number)
            .ok_or_else(|| bad_value(path, format!("`{path}` must be a finite number."))),
        other => Err(wrong_type(path, "a string, a number or a boolean", &other)),
    }
}

/// Attributes as JSON; whole numbers are written without a fraction.
pub fn write_attributes(attributes: &Attributes) -> Map<String, Value> {
    attributes.iter().map(|(key, value)| (key.clone(), write_value(value))).collect()
}

fn write_value(value: &AttributeValue) -> Value {
    match value {
        AttributeValue::Text(text) => Value::from(text.as_str()),
        AttributeValue::Bool(value) => Value::from(*value),
        // 2^53: beyond it a double no longer tells neighbouring integers apart.
        #[expect(clippy::cast_possible_truncation, reason = "checked to be whole and in range")]
        AttributeValue::Number(number) if number.fract() == 0.0 && number.abs() <= 9_007_199_254_740_992.0 => {
            Value::from(*number as i64)
        }
        AttributeValue::Number(number) => Value::from(*number),
    }
}

/// JSON Schema of a filter.
pub(super) const FILTER: &str = r##"{"$ref":"#/components/schemas/Filter"}"##;

/// The component that `FILTER` refers to.
pub const FILTER_COMPONENT: Component = (
    "Filter",
    r##"{"description":"A comparison of an attribute, or several filters of which all or any hold.","anyOf":[
        {"type":"object","required":["type","key","value"],"properties":{"type":{"enum":["eq","ne","gt","gte","lt","lte"]},"key":{"type":"string"},"value":{"type":["string","number","boolean"],"maxLength":512}}},
        {"type":"object","required":["type","key","value"],"properties":{"type":{"enum":["in","nin"]},"key":{"type":"string"},"value":{"type":"array","maxItems":1000,"items":{"type":["string","number","boolean"],"maxLength":512}}}},
        {"type":"object","required":["type","filters"],"properties":{"type":{"enum":["and","or"]},"filters":{"type":"array","maxItems":1000,"items":{"$ref":"#/components/schemas/Filter"}}}}
    ]}"##,
);

/// A filter as OpenAI writes it: `{"type": "eq", "key": ..., "value": ...}` with `ne gt gte lt lte in nin`, and
/// `{"type": "and", "filters": [...]}` with `or`.
pub fn read_filter(value: Value, path: &str) -> Result<AttributeFilter> {
    let filter = read_filter_within(value, path, FILTER_DEPTH_MAX)?;
    let found = comparisons(&filter);
    if found > FILTER_VALUES_MAX {
        return Err(bad_value(path, format!("`{path}` has {found} comparisons; {FILTER_VALUES_MAX} are allowed.")));
    }
    Ok(filter)
}

fn comparisons(filter: &AttributeFilter) -> usize {
    match filter {
        AttributeFilter::All(filters) | AttributeFilter::Any(filters) => filters.iter().map(comparisons).sum(),
        AttributeFilter::Compare { .. } | AttributeFilter::In { .. } | AttributeFilter::Files(_) => 1,
    }
}

fn read_filter_within(value: Value, path: &str, depth: usize) -> Result<AttributeFilter> {
    if depth == 0 {
        return Err(bad_value(path, format!("Filters may be {FILTER_DEPTH_MAX} levels deep.")));
    }
    let mut fields = Fields::object(value, path)?;
    let kind = fields.required_string("type")?;
    if let "and" | "or" = &kind[..] {
        let place = fields.path("filters");
        let members = fields.array("filters")?.ok_or_else(|| fields.missing("filters"))?;
        limit(members.len(), &place)?;
        let members = members.into_iter().enumerate();
        let filters = members
            .map(|(index, member)| read_filter_within(member, &format!("{place}[{index}]"), depth - 1))
            .collect::<Result<_>>()?;
        return Ok(if kind == "and" { AttributeFilter::All(filters) } else { AttributeFilter::Any(filters) });
    }
    let key = fields.required_string("key")?;
    let place = fields.path("value");
    let value = fields.required("value")?;
    if let "in" | "nin" = &kind[..] {
        let Value::Array(values) = value else { return Err(wrong_type(&place, "an array", &value)) };
        limit(values.len(), &place)?;
        let values = values.into_iter().map(|value| read_value(value, &place)).collect::<Result<_>>()?;
        return Ok(AttributeFilter::In { key, values, negated: kind == "nin" });
    }
    let comparison = match &kind[..] {
        "eq" => Comparison::Eq,
        "ne" => Comparison::Ne,
        "gt" => Comparison::Gt,
        "gte" => Comparison::Gte,
        "lt" => Comparison::Lt,
        "lte" => Comparison::Lte,
        _ => {
            let place = fields.path("type");
            let found = shortened(&Value::String(kind));
            let allowed = "eq, ne, gt, gte, lt, lte, in, nin, and, or";
            return Err(bad_value(place.clone(), format!("`{place}` must be one of {allowed}, but is {found}.")));
        }
    };
    Ok(AttributeFilter::Compare { key, comparison, value: read_value(value, &place)? })
}

fn limit(found: usize, path: &str) -> Result<()> {
    if found > FILTER_VALUES_MAX {
        return Err(bad_value(path, format!("`{path}` has {found} members; {FILTER_VALUES_MAX} are allowed.")));
    }
    Ok(())
}

/// The fields of `POST /api/v1/documents/upload` besides the file.
#[derive(Debug)]
pub struct DocumentUpload {
    /// A collection's name or id.
    pub collection: Option<String>,
    pub attributes: Attributes,
    /// The id of the document that it replaces.
    pub replaces: Option<String>,
}

impl RequestBody for DocumentUpload {
    const NAME: &'static str = "DocumentUpload";
    const FIELDS: &'static [&'static [FieldSpec]] = &[&[
        FILE,
        honoured("collection", STRING, "A name or an id; created if it does not exist. Default `default`."),
        honoured(
            "attributes",
            r#"{"type":"object","maxProperties":16,"propertyNames":{"minLength":1,"maxLength":64},"additionalProperties":{"type":["string","number","boolean","null"],"maxLength":512}}"#,
            "JSON: what `filters` go by; up to 16 pairs.",
        ),
        honoured("replaces", STRING, "The id of the document that this one replaces once it has been read."),
    ]];
    const REQUIRED: &'static [&'static str] = &["file"];
    const IS_FORM: bool = true;
}

impl DocumentUpload {
    pub fn read(form: FormFields) -> Result<Self> {
        let mut form = Self::by_name(form)?;
        let attributes = match take(&mut form, "attributes").as_deref().map(serde_json::from_str) {
            None => Attributes::new(),
            Some(Ok(Value::Object(object))) => read_attributes(object, "attributes")?,
            Some(_) => {
                let message = "`attributes` must be a JSON object.";
                return Err(Error::invalid("attributes", message).with_code("invalid_type"));
            }
        };
        Ok(Self { collection: take(&mut form, "collection"), attributes, replaces: take(&mut form, "replaces") })
    }
}

/// Files whose documents one page of `GET /api/v1/documents` lists, unless the request asks for fewer.
const DOCUMENTS_PAGE: PageSizes = PageSizes { largest: 1000, default: 1000 };

/// The query of `GET /api/v1/documents`.
#[derive(Debug)]
pub struct DocumentListQuery {
    /// A collection's name or id; all collections if absent.
    pub collection: Option<String>,
    pub limit: usize,
    /// The id of the document after which the page begins.
    pub after: Option<String>,
}

impl RequestQuery for DocumentListQuery {
    const PARAMETERS: &'static [FieldSpec] = &[
        honoured("collection", STRING, "Of this collection only; its name or id."),
        honoured(
            "limit",
            r#"{"type":"integer","minimum":1,"maximum":1000}"#,
            "Documents of a page at most; one that is in several collections counts once. Default 1000.",
        ),
        after(files::ID),
    ];
}

impl DocumentListQuery {
    pub fn read(mut parameters: BTreeMap<String, String>) -> Result<Self> {
        let collection = take(&mut parameters, "collection");
        let page = take_page(&mut parameters, DOCUMENTS_PAGE, files::ID_PREFIX)?;
        Ok(Self { collection, limit: page.limit, after: page.after })
    }
}

/// A document, in the shape of the application contract.
#[derive(Clone, Debug, JsonSchema, Serialize)]
#[schemars(rename = "Document")]
pub struct DocumentAnswer {
    pub document_id: String,
    pub filename: String,
    /// `processing`, `ready`, `failed` or `cancelled`.
    #[schemars(extend("enum" = ["processing", "ready", "failed", "cancelled"]))]
    pub status: &'static str,
    /// Why it failed.
    pub error: Option<DocumentError>,
    /// Reading progress, while it is being read.
    pub progress: Option<Value>,
    /// The id of its collection.
    pub collection: String,
    pub bytes: u64,
    /// Chunks of it that are searched now.
    pub chunks: usize,
    #[schemars(extend("additionalProperties" = {"type": ["string", "number", "boolean"]}))]
    pub attributes: Map<String, Value>,
    /// Unix seconds.
    pub created_at: i64,
    pub updated_at: i64,
}

#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct DocumentError {
    pub code: String,
    pub message: String,
}

impl DocumentAnswer {
    pub fn new(document: Document, progress: Option<Value>) -> Self {
        let (status, error) = match document.status {
            DocumentStatus::Processing => ("processing", None),
            DocumentStatus::Ready => ("ready", None),
            DocumentStatus::Cancelled => ("cancelled", None),
            DocumentStatus::Failed { code, reason } => ("failed", Some(DocumentError { code, message: reason })),
        };
        Self {
            document_id: document.file_id,
            filename: document.filename,
            status,
            error,
            progress,
            collection: document.collection_id,
            bytes: document.bytes,
            chunks: document.num_chunks,
            attributes: write_attributes(&document.attributes),
            created_at: document.created_ms / 1000,
            updated_at: document.updated_ms / 1000,
        }
    }
}

#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct DocumentList {
    pub documents: Vec<DocumentAnswer>,
    /// Across all pages.
    pub total: usize,
    /// Whether more follow after the last one.
    pub has_more: bool,
}

/// The result of a deletion.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct DocumentDeleted {
    pub document_id: String,
    #[schemars(extend("const" = true))]
    pub deleted: bool,
}

/// A collection, in the shape of the application contract.
#[derive(Clone, Debug, JsonSchema, Serialize)]
#[schemars(rename = "Collection")]
pub struct CollectionAnswer {
    pub id: String,
    pub name: String,
    #[schemars(extend("additionalProperties" = {"type": ["string", "number", "boolean"]}))]
    pub metadata: Map<String, Value>,
    /// The model that made its vectors; null while it has none.
    pub embedding: Option<String>,
    pub dimensions: Option<usize>,
    /// Unix seconds.
    pub created_at: i64,
}

impl From<Collection> for CollectionAnswer {
    fn from(collection: Collection) -> Self {
        Self {
            metadata: write_attributes(&collection.metadata),
            dimensions: collection.embedding.as_ref().map(|embedding| embedding.dimensions),
            embedding: collection.embedding.map(|embedding| embedding.name),
            id: collection.id,
            name: collection.name,
            created_at: collection.created_ms / 1000,
        }
    }
}

#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct CollectionList {
    pub collections: Vec<CollectionAnswer>,
}

/// The state of a job that recomputes a collection's vectors.
#[derive(Clone, Debug, JsonSchema, Serialize)]
#[schemars(rename = "Reindex")]
pub struct ReindexAnswer {
    pub job_id: String,
    /// `queued`, `running`, `done`, `failed` or `cancelled`.
    #[schemars(extend("enum" = ["queued", "running", "done", "failed", "cancelled"]))]
    pub status: &'static str,
    /// The last progress it reported.
    pub progress: Option<Value>,
    pub result: Option<Value>,
    pub error: Option<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn filters_are_read_as_openai_writes_them() {
        let filter = json!({"type": "and", "filters": [
            {"type": "eq", "key": "year", "value": 2024},
            {"type": "or", "filters": [{"type": "nin", "key": "kind", "value": ["draft", true]}]},
        ]});
        let number = |number| AttributeValue::Number(number);
        assert_eq!(
            read_filter(filter, "filters").unwrap(),
            AttributeFilter::All(vec![
                AttributeFilter::Compare { key: "year".into(), comparison: Comparison::Eq, value: number(2024.0) },
                AttributeFilter::Any(vec![AttributeFilter::In {
                    key: "kind".into(),
                    values: vec![AttributeValue::Text("draft".into()), AttributeValue::Bool(true)],
                    negated: true,
                }]),
            ])
        );
        for (wrong, param) in [
            (json!({"type": "like", "key": "a", "value": "b"}), "filters.type"),
            (json!({"type": "eq", "key": "a"}), "filters.value"),
            (json!({"type": "eq", "key": "a", "value": [1]}), "filters.value"),
            (json!({"type": "and", "filters": [{"type": "eq"}]}), "filters.filters[0].key"),
            (json!("x"), "filters"),
        ] {
            assert_eq!(read_filter(wrong, "filters").unwrap_err().param(), Some(param));
        }
        let deep = (0..40)
            .fold(json!({"type": "eq", "key": "a", "value": 1}), |inner, _| json!({"type": "or", "filters": [inner]}));
        assert!(read_filter(deep, "filters").is_err());
    }

    #[test]
    fn attributes_come_back_as_they_went() {
        let object = json!({"year": 2024, "share": 0.5, "kind": "draft", "open": true, "none": null});
        let Value::Object(map) = object else { unreachable!() };
        let read = read_attributes(map, "attributes").unwrap();
        assert_eq!(
            Value::Object(write_attributes(&read)),
            json!({"kind": "draft", "open": true, "share": 0.5, "year": 2024})
        );
    }
}
