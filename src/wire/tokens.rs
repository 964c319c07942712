//! `/tokenize`, `/detokenize` and `/apply-template`, with llama-server's fields.

use hearth_domain::{ChatPrompt, error::Result};
use serde::Serialize;
use serde_json::Value;

use super::{
    chat_request::read_chat_prompt,
    fields::{Fields, as_integer, wrong_type},
    policy::unsupported,
};

/// A piece of what is to be tokenized: llama-server takes text and token ids mixed.
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

#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Tokens {
    Ids(Vec<u32>),
    Pieces(Vec<TokenPiece>),
}

/// With `with_pieces`.
#[derive(Debug, Serialize)]
pub struct TokenPiece {
    pub id: u32,
    pub piece: Piece,
}

/// Text, or the bytes of a token that is no whole text by itself.
#[derive(Debug, Serialize)]
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

#[derive(Debug, Serialize)]
pub struct TokenizeResponse {
    pub tokens: Tokens,
}

#[derive(Debug)]
pub struct DetokenizeRequest {
    pub model: Option<String>,
    pub tokens: Vec<u32>,
}

impl DetokenizeRequest {
    pub fn read(body: Value) -> Result<Self> {
        let mut fields = Fields::body(body)?;
        let missing = fields.missing("tokens");
        let tokens = fields.token_ids("tokens")?.ok_or(missing)?;
        Ok(Self { model: fields.string("model")?, tokens })
    }
}

#[derive(Debug, Serialize)]
pub struct DetokenizeResponse {
    pub content: String,
}

#[derive(Debug)]
pub struct ApplyTemplateRequest {
    pub model: Option<String>,
    pub prompt: ChatPrompt,
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

#[derive(Debug, Serialize)]
pub struct ApplyTemplateResponse {
    pub prompt: String,
}
