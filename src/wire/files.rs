//! `/v1/files`: the form's fields, and what is said of a file.

use std::collections::BTreeMap;

use hearth_domain::{documents::StoredFile, error::Result};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    Parsed,
    fields::{Fields, bad_value, shortened},
    lists::{FILES_PAGE, ListQuery, take},
    policy,
};

/// Ids of files begin with it.
pub const ID_PREFIX: &str = "file-";
const PURPOSES: [&str; 6] = ["assistants", "batch", "fine-tune", "vision", "user_data", "evals"];

/// The fields of an upload beside the file.
#[derive(Debug)]
pub struct FileUpload {
    pub purpose: String,
}

impl FileUpload {
    pub fn read(form: BTreeMap<String, String>, strict: bool) -> Result<Parsed<Self>> {
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
        let ignored = policy::apply(fields.rest(), &[policy::FILE_UPLOAD], strict)?;
        Ok(Parsed { request: Self { purpose }, ignored })
    }
}

/// Which files are listed.
#[derive(Debug)]
pub struct FileListQuery {
    pub page: ListQuery,
    pub purpose: Option<String>,
}

impl FileListQuery {
    pub fn read(mut parameters: BTreeMap<String, String>) -> Result<Self> {
        let page = ListQuery::take(&mut parameters, FILES_PAGE)?;
        Ok(Self { page, purpose: take(&mut parameters, "purpose") })
    }
}

#[derive(Debug, Serialize)]
pub struct FileObject {
    pub id: String,
    pub object: &'static str,
    pub bytes: u64,
    /// Unix seconds.
    pub created_at: i64,
    pub expires_at: Option<i64>,
    pub filename: String,
    pub purpose: String,
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

/// That something was deleted: a file, a vector store, a file of one.
#[derive(Debug, Serialize)]
pub struct Deleted {
    pub id: String,
    pub object: &'static str,
    pub deleted: bool,
}

impl Deleted {
    pub fn new(id: String, object: &'static str) -> Self {
        Self { id, object, deleted: true }
    }
}
