//! `POST /v1/embeddings`: the body and the answer.

use base64::{Engine, prelude::BASE64_STANDARD};
use hearth_domain::{EmbedInput, EmbedInputType, EmbedRequest, error::Result};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::{
    Envelope, Parsed,
    body::{BOOLEAN, FieldSpec, RequestBody, STRING, TIMEOUT, honoured, ignored, refused},
    fields::{Fields, bad_value, shortened, token_ids, wrong_type},
    generation,
    receipt::Receipt,
};

/// Fields of `/v1/embeddings`.
const FIELDS: &[FieldSpec] = &[
    honoured("model", STRING, "A served embedding model or one of its aliases."),
    honoured(
        "input",
        r#"{"anyOf":[{"type":"string","minLength":1},{"type":"array","minItems":1,"maxItems":2048,"items":{"type":"string","minLength":1}},{"type":"array","minItems":1,"items":{"type":"integer","minimum":0}},{"type":"array","minItems":1,"maxItems":2048,"items":{"type":"array","minItems":1,"items":{"type":"integer","minimum":0}}}]}"#,
        "Text, several texts, token ids, or several of those; at most 2048.",
    ),
    honoured(
        "encoding_format",
        r#"{"enum":["float","base64"]}"#,
        "`base64` is the little-endian f32 array. Default `float`.",
    ),
    honoured(
        "dimensions",
        r#"{"type":"integer","minimum":1,"maximum":2147483647}"#,
        "Keep this many leading dimensions, renormalized.",
    ),
    honoured(
        "input_type",
        r#"{"enum":["plain","query","passage","document"]}"#,
        "Adds the model's own prefix for queries or passages.",
    ),
    honoured("truncate", BOOLEAN, "Cut a text that is too long instead of refusing it."),
    TIMEOUT,
    ignored("user", "No account is kept per end user."),
    ignored("priority", "Callers share the engine evenly."),
    refused("truncate_prompt_tokens", &["-1"], "Use `truncate`."),
    refused("normalize", &["true"], "The model's own files decide."),
    refused("embd_normalize", &["2"], "The model's own files decide."),
];

/// OpenAI's own bound.
pub const INPUTS_MAX: usize = 2048;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncodingFormat {
    Float,
    /// The vector's f32 values, little-endian, in base64: what SDKs request by default.
    Base64,
}

/// What one embeddings request asks for.
#[derive(Debug)]
pub struct EmbeddingsRequest {
    pub model: Option<String>,
    pub encoding_format: EncodingFormat,
    pub request: EmbedRequest,
}

impl RequestBody for EmbeddingsRequest {
    const NAME: &'static str = "EmbeddingsRequest";
    const FIELDS: &'static [&'static [FieldSpec]] = &[FIELDS];
    const REQUIRED: &'static [&'static str] = &["model", "input"];
}

impl EmbeddingsRequest {
    pub fn read(body: Value, envelope: &Envelope) -> Result<Parsed<Self>> {
        let mut fields = Fields::body(body)?;
        let inputs = read_inputs(fields.required("input")?)?;
        let model = fields.string("model")?;
        let encoding_format = match fields.string("encoding_format")?.as_deref() {
            None | Some("float") => EncodingFormat::Float,
            Some("base64") => EncodingFormat::Base64,
            Some(other) => {
                return Err(bad_value(
                    "encoding_format",
                    format!(
                        "`encoding_format` must be `float` or `base64`, but is {}.",
                        shortened(&Value::String(other.to_owned()))
                    ),
                ));
            }
        };
        let input_type = match fields.string("input_type")?.as_deref() {
            None | Some("plain") => EmbedInputType::Plain,
            Some("query") => EmbedInputType::Query,
            Some("passage" | "document") => EmbedInputType::Passage,
            Some(other) => {
                return Err(bad_value(
                    "input_type",
                    format!(
                        "`input_type` must be `query`, `passage` or `plain`, but is {}.",
                        shortened(&Value::String(other.to_owned()))
                    ),
                ));
            }
        };
        let request = EmbedRequest {
            account: envelope.account.clone(),
            inputs,
            input_type,
            dimensions: fields.count("dimensions", 1)?,
            truncate: fields.boolean("truncate")?.unwrap_or(false),
            deadline: generation::read_deadline(&mut fields, envelope)?,
        };
        let ignored = Self::ignored(fields.rest(), envelope.strict)?;
        Ok(Parsed { request: Self { model, encoding_format, request }, ignored })
    }
}

fn read_inputs(input: Value) -> Result<Vec<EmbedInput>> {
    let items = match input {
        Value::String(text) => return Ok(vec![text_input(text, "input")?]),
        Value::Array(items) => items,
        other => return Err(wrong_type("input", "a string, an array of strings or token ids", &other)),
    };
    match items.first() {
        None => return Err(bad_value("input", "`input` must not be an empty array.")),
        Some(Value::Number(_)) => return Ok(vec![EmbedInput::Tokens(token_ids(items, "input")?)]),
        Some(_) => {}
    }
    if items.len() > INPUTS_MAX {
        return Err(bad_value(
            "input",
            format!("`input` must have at most {INPUTS_MAX} entries, but has {}. Send several requests.", items.len()),
        ));
    }
    items
        .into_iter()
        .enumerate()
        .map(|(index, item)| {
            let place = format!("input[{index}]");
            match item {
                Value::String(text) => text_input(text, &place),
                Value::Array(ids) if ids.is_empty() => {
                    Err(bad_value(place, "An input of token ids must not be empty."))
                }
                Value::Array(ids) => Ok(EmbedInput::Tokens(token_ids(ids, &place)?)),
                other => Err(wrong_type(&place, "a string or an array of token ids", &other)),
            }
        })
        .collect()
}

/// OpenAI refuses an empty text: it is always a mistake upstream, and its vector would mean nothing.
fn text_input(text: String, place: &str) -> Result<EmbedInput> {
    if text.is_empty() {
        return Err(bad_value(place, format!("`{place}` must not be an empty string.")));
    }
    Ok(EmbedInput::Text(text))
}

#[derive(Debug, JsonSchema, Serialize)]
#[schemars(rename = "Embeddings")]
pub struct EmbeddingList {
    #[schemars(extend("const" = "list"))]
    pub object: &'static str,
    /// In input order.
    pub data: Vec<Embedding>,
    pub model: String,
    pub usage: EmbeddingUsage,
    pub receipt: Receipt,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct Embedding {
    #[schemars(extend("const" = "embedding"))]
    pub object: &'static str,
    pub index: usize,
    pub embedding: EmbeddingValues,
}

/// Numbers or, with `encoding_format` `base64`, the same values as little-endian f32 in base64.
#[derive(Debug, JsonSchema, Serialize)]
#[serde(untagged)]
pub enum EmbeddingValues {
    Float(Vec<f32>),
    Base64(String),
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct EmbeddingUsage {
    pub prompt_tokens: usize,
    pub total_tokens: usize,
}

impl EmbeddingList {
    pub fn new(
        embeddings: Vec<Vec<f32>>,
        format: EncodingFormat,
        model: String,
        prompt_tokens: usize,
        receipt: Receipt,
    ) -> Self {
        let data = embeddings
            .into_iter()
            .enumerate()
            .map(|(index, vector)| Embedding {
                object: "embedding",
                index,
                embedding: match format {
                    EncodingFormat::Float => EmbeddingValues::Float(vector),
                    EncodingFormat::Base64 => {
                        let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
                        EmbeddingValues::Base64(BASE64_STANDARD.encode(bytes))
                    }
                },
            })
            .collect();
        Self {
            object: "list",
            data,
            model,
            usage: EmbeddingUsage { prompt_tokens, total_tokens: prompt_tokens },
            receipt,
        }
    }
}
