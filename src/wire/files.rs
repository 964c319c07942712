//! `/v1/files`: the form's fields, and how a file is reported.

use std::collections::BTreeMap;

use hearth_domain::{
    documents::{PageRequest, StoredFile},
    error::Result,
};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    Parsed,
    body::{FieldSpec, FormFields, RequestBody, RequestQuery, STRING, honoured, ignored},
    fields::{Fields, bad_value, shortened},
    lists::{FILES_PAGE, ORDER, after, before, take, take_page},
};

pub(super) const EXPIRES_AFTER: FieldSpec =
    ignored("expires_after", "Nothing expires by itself: delete what is not needed.");
/// The file field of a form; it is read as it arrives, and not with the others.
pub(super) const FILE: FieldSpec = honoured("file", r#"{"type":"string","format":"binary"}"#, "The file.");

/// Prefix of file ids.
pub const ID_PREFIX: &str = "file-";
/// A cursor of a list of files.
pub(super) const ID: &str = r#"{"type":"string","pattern":"^(file-|$)"}"#;
const PURPOSES: [&str; 6] = ["assistants", "batch", "fine-tune", "vision", "user_data", "evals"];

/// The fields of an upload besides the file.
#[derive(Debug)]
pub struct FileUpload {
    pub purpose: String,
}

impl RequestBody for FileUpload {
    const NAME: &'static str = "FileUpload";
    const FIELDS: &'static [&'static [FieldSpec]] = &[&[
        FILE,
        honoured(
            "purpose",
            r#"{"enum":["assistants","batch","fine-tune","vision","user_data","evals"]}"#,
            "Kept and listed; every file can go into a vector store.",
        ),
        EXPIRES_AFTER,
    ]];
    const REQUIRED: &'static [&'static str] = &["file", "purpose"];
    const IS_FORM: bool = true;
}

impl FileUpload {
    pub fn read(form: FormFields, strict: bool) -> Result<Parsed<Self>> {
        let form = Self::by_name(form)?;
        // A form writes members of an object as `expires_after[seconds]`.
        let whole_name = |name: &str| name.split('[').next().unwrap_or_default().to_owned();
        let form: Map<String, Value> =
            form.into_iter().map(|(name, value)| (whole_name(&name), Value::String(value))).collect();
        let mut fields = Fields::body(Value::Object(form))?;
        let purpose = fields.required_string("purpose")?;
        if !PURPOSES.contains(&&*purpose) {
            let found = shortened(&Value::String(purpose));
            let allowed = PURPOSES.join(", ");
            return Err(bad_value("purpose", format!("`purpose` must be one of {allowed}, but is {found}.")));
        }
        let ignored = Self::ignored(fields.rest(), strict)?;
        Ok(Parsed { request: Self { purpose }, ignored })
    }
}

/// Which files to list.
#[derive(Debug)]
pub struct FileListQuery {
    pub page: PageRequest,
    pub purpose: Option<String>,
}

impl RequestQuery for FileListQuery {
    const PARAMETERS: &'static [FieldSpec] = &[
        honoured(
            "limit",
            r#"{"type":"integer","minimum":1,"maximum":10000}"#,
            "Entries of a page at most. Default 10,000.",
        ),
        ORDER,
        after(ID),
        before(ID),
        honoured("purpose", STRING, "Files of this purpose only."),
    ];
}

impl FileListQuery {
    pub fn read(mut parameters: BTreeMap<String, String>) -> Result<Self> {
        let page = take_page(&mut parameters, FILES_PAGE, ID_PREFIX)?;
        Ok(Self { page, purpose: take(&mut parameters, "purpose") })
    }
}

#[derive(Debug, JsonSchema, Serialize)]
#[schemars(rename = "File")]
pub struct FileObject {
    pub id: String,
    #[schemars(extend("const" = "file"))]
    pub object: &'static str,
    pub bytes: u64,
    /// Unix seconds.
    pub created_at: i64,
    pub expires_at: Option<i64>,
    pub filename: String,
    pub purpose: String,
    #[schemars(extend("const" = "processed"))]
    pub status: &'static str,
    pub status_details: Option<String>,
}

impl From<StoredFile> for FileObject {
    fn from(file: StoredFile) -> Self {
        Self {
            id: file.id,
            object: "file",
            bytes: file.bytes,
            created_at: file.created_ms / 1000,
            expires_at: None,
            filename: file.filename,
            purpose: file.purpose,
            status: "processed",
            status_details: None,
        }
    }
}

/// The deletion of a file, a vector store, or a file in one.
#[derive(Debug, JsonSchema, Serialize)]
pub struct Deleted {
    pub id: String,
    pub object: &'static str,
    #[schemars(extend("const" = true))]
    pub deleted: bool,
}

impl Deleted {
    pub fn new(id: String, object: &'static str) -> Self {
        Self { id, object, deleted: true }
    }
}
