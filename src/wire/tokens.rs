//! `/tokenize`, `/detokenize` and `/apply-template`, with llama-server's fields.

use hearth_domain::{ChatPrompt, error::Result};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::{
    body::{BOOLEAN, FieldSpec, RequestBody, STRING, honoured, refused, unsupported},
    chat_request::{self, read_chat_prompt},
    fields::{Fields, as_integer, wrong_type},
};

const MODEL: FieldSpec = honoured("model", STRING, "A served chat model. Default the first.");

/// A piece of the input: llama-server accepts text and token ids mixed.
#[derive(Debug)]
pub enum TokenizePart {
    Text(String),
    Token(u32),
}

#[derive(Debug)]
pub struct TokenizeRequest {
    pub model: Option<String>,
    pub content: Vec<TokenizePart>,
    pub add_special: bool,
    pub parse_special: bool,
    pub with_pieces: bool,
}

impl RequestBody for TokenizeRequest {
    const NAME: &'static str = "TokenizeRequest";
    const FIELDS: &'static [&'static [FieldSpec]] = &[&[
        MODEL,
        honoured(
            "content",
            r#"{"anyOf":[{"type":"string"},{"type":"array","items":{"anyOf":[{"type":"string"},{"type":"integer","minimum":0,"maximum":4294967295}]}}]}"#,
            "Text, or texts and token ids mixed.",
        ),
        honoured("add_special", BOOLEAN, "Begin with the tokens that the model's texts begin with. Default false."),
        honoured("parse_special", BOOLEAN, "Read control tokens that are spelled in the text as such. Default true."),
        honoured("with_pieces", BOOLEAN, "Give each token's text beside its id. Default false."),
    ]];
    const REQUIRED: &'static [&'static str] = &["content"];
}

impl TokenizeRequest {
    pub fn read(body: Value) -> Result<Self> {
        let mut fields = Fields::body(body)?;
        let content = match fields.required("content")? {
            Value::String(text) => vec![TokenizePart::Text(text)],
            Value::Array(items) => items
                .into_iter()
                .enumerate()
                .map(|(index, item)| match item {
                    Value::String(text) => Ok(TokenizePart::Text(text)),
                    other => as_integer(&other)
                        .and_then(|id| u32::try_from(id).ok())
                        .map(TokenizePart::Token)
                        .ok_or_else(|| wrong_type(&format!("content[{index}]"), "a string or a token id", &other)),
                })
                .collect::<Result<Vec<_>>>()?,
            other => return Err(wrong_type("content", "a string or an array", &other)),
        };
        Ok(Self {
            model: fields.string("model")?,
            content,
            add_special: fields.boolean("add_special")?.unwrap_or(false),
            parse_special: fields.boolean("parse_special")?.unwrap_or(true),
            with_pieces: fields.boolean("with_pieces")?.unwrap_or(false),
        })
    }
}

#[derive(Debug, JsonSchema, Serialize)]
#[serde(untagged)]
pub enum Tokens {
    Ids(Vec<u32>),
    Pieces(Vec<TokenPiece>),
}

/// With `with_pieces`.
#[derive(Debug, JsonSchema, Serialize)]
pub struct TokenPiece {
    pub id: u32,
    pub piece: Piece,
}

/// Text, or the bytes of a token that is not whole text by itself.
#[derive(Debug, JsonSchema, Serialize)]
#[serde(untagged)]
pub enum Piece {
    Text(String),
    Bytes(Vec<u8>),
}

impl From<Vec<u8>> for Piece {
    fn from(bytes: Vec<u8>) -> Self {
        String::from_utf8(bytes).map_or_else(|error| Self::Bytes(error.into_bytes()), Self::Text)
    }
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct TokenizeResponse {
    pub tokens: Tokens,
}

#[derive(Debug)]
pub struct DetokenizeRequest {
    pub model: Option<String>,
    pub tokens: Vec<u32>,
}

impl RequestBody for DetokenizeRequest {
    const NAME: &'static str = "DetokenizeRequest";
    const FIELDS: &'static [&'static [FieldSpec]] = &[&[
        MODEL,
        honoured(
            "tokens",
            r#"{"type":"array","items":{"type":"integer","minimum":0,"maximum":4294967295}}"#,
            "Token ids.",
        ),
    ]];
    const REQUIRED: &'static [&'static str] = &["tokens"];
}

impl DetokenizeRequest {
    pub fn read(body: Value) -> Result<Self> {
        let mut fields = Fields::body(body)?;
        let missing = fields.missing("tokens");
        let tokens = fields.token_ids("tokens")?.ok_or(missing)?;
        Ok(Self { model: fields.string("model")?, tokens })
    }
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct DetokenizeResponse {
    pub content: String,
}

#[derive(Debug)]
pub struct ApplyTemplateRequest {
    pub model: Option<String>,
    pub prompt: ChatPrompt,
}

impl RequestBody for ApplyTemplateRequest {
    const NAME: &'static str = "ApplyTemplateRequest";
    const FIELDS: &'static [&'static [FieldSpec]] = &[
        chat_request::PROMPT_FIELDS,
        &[
            MODEL,
            refused("chat_template", &[], "The template is the model's own; the server can be started with another."),
        ],
    ];
    const REQUIRED: &'static [&'static str] = &["messages"];
    const RULES: &'static [&'static str] = &[chat_request::CHOICE_NEEDS_TOOLS];
}

impl ApplyTemplateRequest {
    pub fn read(body: Value) -> Result<Self> {
        let mut fields = Fields::body(body)?;
        if fields.peek("chat_template").is_some() {
            return Err(unsupported("chat_template", "`chat_template` cannot be set by a request."));
        }
        let prompt = read_chat_prompt(&mut fields)?;
        Ok(Self { model: fields.string("model")?, prompt })
    }
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct ApplyTemplateResponse {
    pub prompt: String,
}
