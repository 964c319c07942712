//! A `tokenizer.json` from a model hub, run by the `tokenizers` crate unmodified: normalizer, pre-tokenizer, model and
//! post-processor are the file's own. Truncation and padding in the file are disabled, because the embedder decides on
//! a text's length.

use std::{path::Path, sync::OnceLock};

use serde_json::Value;
use tokenizers::{Encoding, ModelWrapper, NormalizerWrapper, PreTokenizerWrapper};

use super::{
    TokenizerError,
    added_tokens::Strip,
    special_ids::SpecialIds,
    vocabulary::{Spelling, TokenKind, Vocabulary, byte_of_hex_spelling},
};

/// The crate's tokenizer that parses special tokens in the text, and a copy that does not, created on first use.
#[derive(Debug)]
pub(super) struct HubEncoder {
    parsing_special: tokenizers::Tokenizer,
    plain: OnceLock<tokenizers::Tokenizer>,
}

/// The contents of a tokenizer file.
#[derive(Debug)]
pub(super) struct HubFile {
    pub(super) encoder: HubEncoder,
    pub(super) vocabulary: Vocabulary,
    pub(super) special: SpecialIds,
    /// Whether encoding puts a space in front of the text that decoding removes again.
    pub(super) space_prefix: bool,
}

impl HubFile {
    /// Reads `tokenizer.json`, and the names of the special tokens from a `tokenizer_config.json` beside it, if
    /// present.
    pub(super) fn open(path: &Path) -> Result<Self, TokenizerError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| TokenizerError::Io { path: path.to_owned(), source })?;
        let bad = |problem: String| TokenizerError::Json { path: path.to_owned(), problem };
        let mut tokenizer: tokenizers::Tokenizer =
            text.parse().map_err(|error: tokenizers::Error| bad(error.to_string()))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| bad(error.to_string()))?;
        let json: Value = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;

        let spelling = spelling_of(&json);
        let vocabulary = vocabulary_of(&tokenizer, spelling).ok_or_else(|| {
            bad("its token ids leave more than a million gaps, so it is damaged; download it again".to_owned())
        })?;
        let special = special_of(path, &tokenizer);
        let space_prefix = spelling == Spelling::WordPiece || strips_first_space(&json["decoder"]);
        Ok(Self {
            encoder: HubEncoder { parsing_special: tokenizer, plain: OnceLock::new() },
            vocabulary,
            special,
            space_prefix,
        })
    }
}

impl HubEncoder {
    fn tokenizer(&self, parse_special: bool) -> &tokenizers::Tokenizer {
        if parse_special {
            return &self.parsing_special;
        }
        self.plain.get_or_init(|| {
            let mut plain = self.parsing_special.clone();
            plain.set_encode_special_tokens(true);
            plain
        })
    }

    pub(super) fn encode(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.tokenizer(parse_special).encode_fast(text, add_special).map_err(encode_error)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The ids of a text that comes in parts, and whether all of it was encoded. `next` takes the number of tokens so
    /// far and returns a part and whether it is the last, or `None` to stop.
    pub(super) fn encode_parts<'a>(
        &self,
        add_special: bool,
        parse_special: bool,
        mut next: impl FnMut(usize) -> Option<(&'a str, bool)>,
    ) -> Result<(Vec<u32>, bool), TokenizerError> {
        let tokenizer = self.tokenizer(parse_special);
        let mut encoding = Encoding::default();
        let mut is_whole = false;
        while !is_whole && let Some((part, is_last)) = next(encoding.len()) {
            encoding.merge_with(tokenizer.encode_fast(part, false).map_err(encode_error)?, false);
            is_whole = is_last;
        }
        let encoding = tokenizer.post_process(encoding, None, add_special).map_err(encode_error)?;
        Ok((encoding.get_ids().to_vec(), is_whole))
    }

    /// Whether a text's words are encoded independently, as BERT's are.
    pub(super) fn keeps_words_apart(&self) -> bool {
        let tokenizer = &self.parsing_special;
        matches!(tokenizer.get_normalizer(), None | Some(NormalizerWrapper::BertNormalizer(_)))
            && matches!(tokenizer.get_pre_tokenizer(), Some(PreTokenizerWrapper::BertPreTokenizer(_)))
            && matches!(tokenizer.get_model(), ModelWrapper::WordPiece(_))
    }

    /// The white space that an added token removes from the text around it.
    pub(super) fn strip_rule(&self) -> impl Fn(u32) -> Strip + use<> {
        let tokens = self.parsing_special.get_added_tokens_decoder();
        move |id| tokens.get(&id).map_or(Strip::default(), |token| Strip { left: token.lstrip, right: token.rstrip })
    }
}

fn encode_error(error: tokenizers::Error) -> TokenizerError {
    TokenizerError::Encode { problem: error.to_string() }
}

/// Whether a component, or one nested in it, has this type.
fn has_type(component: &Value, kind: &str) -> bool {
    match component {
        Value::Object(fields) => {
            fields.get("type").and_then(Value::as_str) == Some(kind)
                || fields.values().any(|value| value.is_array() && has_type(value, kind))
        }
        Value::Array(parts) => parts.iter().any(|part| has_type(part, kind)),
        _ => false,
    }
}

fn spelling_of(json: &Value) -> Spelling {
    let any = |kind| has_type(&json["decoder"], kind) || has_type(&json["pre_tokenizer"], kind);
    if any("ByteLevel") {
        Spelling::ByteLevel
    } else if any("Metaspace") || any("ByteFallback") || has_type(&json["decoder"], "Replace") {
        Spelling::MetaSpace
    } else if any("WordPiece") || json["model"]["type"] == "WordPiece" {
        Spelling::WordPiece
    } else {
        Spelling::Plain
    }
}

/// SentencePiece decoders remove one leading space, through `Strip` or through `Metaspace`'s own rule.
fn strips_first_space(decoder: &Value) -> bool {
    if has_type(decoder, "Strip") {
        return true;
    }
    let mut parts = vec![decoder];
    parts.extend(decoder["decoders"].as_array().into_iter().flatten());
    parts.into_iter().any(|part| {
        part["type"] == "Metaspace"
            && part["prepend_scheme"].as_str().unwrap_or("always") != "never"
            && part["add_prefix_space"].as_bool().unwrap_or(true)
    })
}

/// `None` if the ids are so sparse that a table of them would be absurd.
fn vocabulary_of(tokenizer: &tokenizers::Tokenizer, spelling: Spelling) -> Option<Vocabulary> {
    let entries = tokenizer.get_vocab(true);
    let size = entries.values().max().map_or(0, |id| *id as usize + 1);
    if size > entries.len() + 1_000_000 {
        return None;
    }
    let mut tokens = vec![(String::new(), TokenKind::Unused); size];
    for (text, id) in entries {
        let kind = match spelling == Spelling::MetaSpace && byte_of_hex_spelling(&text).is_some() {
            true => TokenKind::Byte,
            false => TokenKind::Normal,
        };
        tokens[id as usize] = (text, kind);
    }
    for (id, token) in tokenizer.get_added_tokens_decoder() {
        if let Some(slot) = tokens.get_mut(id as usize) {
            let kind = if token.special { TokenKind::Control } else { TokenKind::UserDefined };
            *slot = (token.content, kind);
        }
    }
    Some(Vocabulary::new(tokens, spelling))
}

fn special_of(path: &Path, tokenizer: &tokenizers::Tokenizer) -> SpecialIds {
    let config: Value = std::fs::read_to_string(path.with_file_name("tokenizer_config.json"))
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or(Value::Null);
    let id = |role: &str| {
        let token = &config[role];
        token.as_str().or_else(|| token["content"].as_str()).and_then(|text| tokenizer.token_to_id(text))
    };
    SpecialIds {
        bos: id("bos_token"),
        eos: id("eos_token"),
        unknown: id("unk_token"),
        separator: id("sep_token"),
        ..SpecialIds::default()
    }
}
