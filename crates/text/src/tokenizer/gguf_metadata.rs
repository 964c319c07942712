//! Builds a tokenizer from a GGUF file's metadata, with llama.cpp's defaults for each kind.

use std::{borrow::Cow, sync::Arc};

use super::{
    Encoder, Inner, Tokenizer, TokenizerError,
    added_tokens::{AddedTokens, Strip},
    bpe::BytePairEncoder,
    character_map::CharacterMap,
    parts::Cuts,
    pre_tokenizer_families::{self, Family},
    sentence_piece::SentencePieceEncoder,
    special_ids::{self, SpecialIds},
    unigram::UnigramEncoder,
    vocabulary::{Spelling, TokenKind, Vocabulary},
    word_piece::{self, WordPieceEncoder},
};
use hearth_models::gguf::{Array, Metadata};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const SCORES: &str = "tokenizer.ggml.scores";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const CHARACTER_MAP: &str = "tokenizer.ggml.precompiled_charsmap";

/// The kinds of tokenizer that a file can have.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    BytePair(Family),
    SentencePiece,
    WordPiece,
    Unigram,
}

/// A kind's defaults for what the file does not specify.
struct Defaults {
    special: SpecialIds,
    add_bos: bool,
    add_eos: bool,
    space_prefix: bool,
}

impl Tokenizer {
    /// The tokenizer described by a GGUF file's metadata.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self, TokenizerError> {
        let kind = kind_of(metadata)?;
        let defaults = defaults_of(kind, metadata);
        let mut vocabulary = vocabulary_of(kind, metadata)?;
        let mut special = special_ids_of(metadata, &vocabulary, defaults.special);
        let end_of_generation = special_ids::settle(&mut vocabulary, &mut special);
        let strip = strip_rule(kind, metadata, &vocabulary);
        let added_tokens = AddedTokens::new(&vocabulary, &strip)?;

        let flag = |key: &str, default: bool| metadata.bool(key).unwrap_or(default);
        let space_prefix = flag("tokenizer.ggml.add_space_prefix", defaults.space_prefix);
        let encoder = match kind {
            Kind::BytePair(family) => byte_pair(metadata, &vocabulary, &family, special.unknown)?,
            Kind::SentencePiece => sentence_piece(metadata, &vocabulary, special.unknown)?,
            Kind::WordPiece => word_piece(metadata, &vocabulary, special.unknown)?,
            Kind::Unigram => unigram(metadata, &vocabulary, special.unknown, space_prefix)?,
        };
        // Gemma 4 needs its BOS, although some of its files say otherwise.
        let needs_bos = matches!(kind, Kind::BytePair(Family { add_bos: true, meta_space: true, .. }));
        let add_bos = needs_bos || flag("tokenizer.ggml.add_bos_token", defaults.add_bos);
        let add_eos = flag("tokenizer.ggml.add_eos_token", defaults.add_eos);
        let (prefix, suffix) = match kind {
            Kind::WordPiece => (special.bos, special.separator),
            _ => (special.bos.filter(|_| add_bos), special.eos.filter(|_| add_eos)),
        };
        Ok(Self(Arc::new(Inner {
            cuts: Cuts::of(&vocabulary, &encoder, strip),
            vocabulary,
            encoder,
            added_tokens: Some(added_tokens),
            prefix: prefix.into_iter().collect(),
            suffix: suffix.into_iter().collect(),
            special,
            end_of_generation,
            space_prefix: space_prefix || kind == Kind::WordPiece,
        })))
    }
}

fn kind_of(metadata: &Metadata) -> Result<Kind, TokenizerError> {
    let model = metadata
        .str(MODEL)
        .ok_or_else(|| TokenizerError::MissingKey { path: metadata.path().to_owned(), key: MODEL })?;
    let pre = metadata.str(PRE).unwrap_or("");
    Ok(match model {
        "gpt2" => Kind::BytePair(pre_tokenizer_families::family(pre).unwrap_or_else(|| {
            let (name, family) = pre_tokenizer_families::fallback();
            tracing::warn!(
                file = %metadata.path().display(),
                pre_tokenizer = pre,
                fallback = name,
                "the file names no pre-tokenizer that Hearth knows; text is split by the fallback, and the model may \
                 answer worse than it can"
            );
            family
        })),
        "gemma4" => Kind::BytePair(pre_tokenizer_families::family("gemma4").expect("the families have gemma4")),
        "llama" => Kind::SentencePiece,
        "bert" => Kind::WordPiece,
        "t5" => Kind::Unigram,
        other => {
            return Err(TokenizerError::UnsupportedKind { path: metadata.path().to_owned(), kind: other.to_owned() });
        }
    })
}

fn defaults_of(kind: Kind, metadata: &Metadata) -> Defaults {
    let ids = SpecialIds::default();
    match kind {
        Kind::BytePair(family) => {
            // Old files name no special tokens; 11 was GPT-2's convention at that time, and llama.cpp keeps it.
            let named = family.meta_space || matches!(metadata.str(PRE), Some("chatglm-bpe" | "glm4" | "glm5"));
            let bos = (!named).then_some(11);
            let eos = (!family.meta_space).then_some(11);
            Defaults {
                special: SpecialIds { bos, eos, ..ids },
                add_bos: family.add_bos,
                add_eos: false,
                space_prefix: false,
            }
        }
        Kind::SentencePiece => Defaults {
            special: SpecialIds { bos: Some(1), eos: Some(2), unknown: Some(0), ..ids },
            add_bos: true,
            add_eos: false,
            space_prefix: true,
        },
        Kind::WordPiece => Defaults {
            special: SpecialIds { bos: Some(101), unknown: Some(100), separator: Some(102), ..ids },
            add_bos: true,
            add_eos: false,
            space_prefix: false,
        },
        Kind::Unigram => Defaults {
            special: SpecialIds { eos: Some(1), unknown: Some(2), ..ids },
            add_bos: false,
            add_eos: true,
            space_prefix: false,
        },
    }
}

fn vocabulary_of(kind: Kind, metadata: &Metadata) -> Result<Vocabulary, TokenizerError> {
    let path = || metadata.path().to_owned();
    let texts = metadata.strings(TOKENS).ok_or_else(|| match metadata.get(TOKENS) {
        None => TokenizerError::MissingKey { path: path(), key: TOKENS },
        Some(_) => {
            TokenizerError::BadValue { path: path(), key: TOKENS, problem: "is not a list of UTF-8 strings".to_owned() }
        }
    })?;
    if texts.is_empty() || u32::try_from(texts.len()).is_err() {
        return Err(TokenizerError::BadValue {
            path: path(),
            key: TOKENS,
            problem: format!("has {} entries", texts.len()),
        });
    }
    let types = metadata.integers(TYPES);
    if let Some(types) = &types
        && types.len() < texts.len()
    {
        let problem = format!("has {} entries for {} tokens", types.len(), texts.len());
        return Err(TokenizerError::BadValue { path: path(), key: TYPES, problem });
    }
    let spelling = match kind {
        Kind::BytePair(family) if family.meta_space => Spelling::MetaSpace,
        Kind::BytePair(_) => Spelling::ByteLevel,
        Kind::SentencePiece | Kind::Unigram => Spelling::MetaSpace,
        Kind::WordPiece => Spelling::WordPiece,
    };
    let tokens = texts.iter().enumerate().map(|(id, text)| {
        let number = types.as_ref().and_then(|types| i32::try_from(types[id]).ok()).unwrap_or(1);
        let kind_of_token = TokenKind::from_gguf(number);
        let spelling = match kind {
            _ if text.is_empty() => Cow::Owned(format!("[EMPTY_{id}]")),
            Kind::WordPiece => word_piece::spelling(text, kind_of_token),
            _ => Cow::Borrowed(text),
        };
        (spelling, kind_of_token)
    });
    Ok(Vocabulary::new(tokens, spelling))
}

fn special_ids_of(metadata: &Metadata, vocabulary: &Vocabulary, defaults: SpecialIds) -> SpecialIds {
    let in_range = |id: &u32| (*id as usize) < vocabulary.len();
    let id = |name: &str, default: Option<u32>| {
        let named = metadata.u32(&format!("tokenizer.ggml.{name}_token_id"));
        if named.is_some_and(|id| !in_range(&id)) {
            tracing::warn!(
                file = %metadata.path().display(), name, id = named, "this special token is outside the vocabulary"
            );
        }
        named.filter(in_range).or(default.filter(in_range))
    };
    SpecialIds {
        bos: id("bos", id("cls", defaults.bos)),
        eos: id("eos", defaults.eos),
        eot: id("eot", None),
        eom: id("eom", None),
        unknown: id("unknown", defaults.unknown),
        // The key has been misspelled since it was introduced.
        separator: id("seperator", defaults.separator),
        fill_in_the_middle: [id("fim_pad", None), id("fim_rep", None), id("fim_sep", None)],
    }
}

/// Which added tokens remove white space around them. GGUF does not store this, so it is hard-coded by model, as in
/// llama.cpp.
fn strip_rule(kind: Kind, metadata: &Metadata, vocabulary: &Vocabulary) -> impl Fn(u32) -> Strip {
    let pre = metadata.str(PRE).unwrap_or("");
    let architecture = metadata.str("general.architecture").unwrap_or("");
    let name = metadata.str("general.name").unwrap_or("").to_lowercase();
    let mask = if pre.starts_with("jina-v2-") || ["nomic-bert-moe", "jina-bert-v3"].contains(&architecture) {
        vocabulary.id("<mask>")
    } else if pre == "modern-bert" || name.contains("modern-bert") {
        vocabulary.id("[MASK]")
    } else {
        None
    };
    // In Phi-3's own tokenizer.json, all added tokens except these remove the white space to their right.
    let is_phi3 =
        kind == Kind::SentencePiece && (architecture == "phi3" || name.contains("phi-3") || name.contains("phi3"));
    let exceptions: Vec<u32> =
        ["<unk>", "<s>", "<|endoftext|>"].into_iter().filter_map(|text| vocabulary.id(text)).collect();
    move |id| Strip { left: mask == Some(id), right: is_phi3 && !exceptions.contains(&id) }
}

fn byte_pair(
    metadata: &Metadata,
    vocabulary: &Vocabulary,
    family: &Family,
    unknown: Option<u32>,
) -> Result<Encoder, TokenizerError> {
    let merges = metadata
        .strings(MERGES)
        .ok_or_else(|| TokenizerError::MissingKey { path: metadata.path().to_owned(), key: MERGES })?;
    let encoder = BytePairEncoder::new(vocabulary, merges, family, unknown)?;
    note_missing_bytes(metadata, encoder.missing_bytes(vocabulary));
    Ok(Encoder::BytePair(encoder))
}

fn sentence_piece(
    metadata: &Metadata,
    vocabulary: &Vocabulary,
    unknown: Option<u32>,
) -> Result<Encoder, TokenizerError> {
    let encoder = SentencePieceEncoder::new(vocabulary, scores_of(metadata, vocabulary)?, unknown);
    note_missing_bytes(metadata, encoder.missing_bytes());
    Ok(Encoder::SentencePiece(encoder))
}

fn word_piece(metadata: &Metadata, vocabulary: &Vocabulary, unknown: Option<u32>) -> Result<Encoder, TokenizerError> {
    let lowercase = metadata.bool("tokenizer.ggml.normalizer.lowercase").unwrap_or(true);
    let strip_accents = metadata.bool("tokenizer.ggml.normalizer.strip_accents").unwrap_or(lowercase);
    let unknown = unknown.and_then(|id| vocabulary.text(id)).unwrap_or("[UNK]");
    let tokens = vocabulary.iter().map(|(id, text, _)| (id, text));
    Ok(Encoder::WordPiece(WordPieceEncoder::new(tokens, unknown, lowercase, strip_accents)?))
}

fn unigram(
    metadata: &Metadata,
    vocabulary: &Vocabulary,
    unknown: Option<u32>,
    space_prefix: bool,
) -> Result<Encoder, TokenizerError> {
    let path = || metadata.path().to_owned();
    let character_map = match metadata.array(CHARACTER_MAP) {
        None => None,
        Some(array) => {
            let bytes: Option<Vec<u8>> = match array {
                Array::U8(bytes) => Some(bytes.clone()),
                Array::I8(bytes) => Some(bytes.iter().map(|byte| byte.cast_unsigned()).collect()),
                _ => None,
            };
            Some(bytes.and_then(|bytes| CharacterMap::new(&bytes)).ok_or_else(|| TokenizerError::BadValue {
                path: path(),
                key: CHARACTER_MAP,
                problem: "is damaged".to_owned(),
            })?)
        }
    };
    let unknown =
        unknown.ok_or_else(|| TokenizerError::MissingKey { path: path(), key: "tokenizer.ggml.unknown_token_id" })?;
    let scores = scores_of(metadata, vocabulary)?;
    // Control tokens are found before the model processes a text. Their scores must not lower the score of unknown
    // characters, which is the lowest score minus ten.
    let tokens = vocabulary
        .iter()
        .map(|(id, text, kind)| {
            let score = if kind == TokenKind::Normal { f64::from(scores[id as usize]) } else { 0.0 };
            (text.to_owned(), score)
        })
        .collect();
    let merge_spaces = metadata.bool("tokenizer.ggml.remove_extra_whitespaces").unwrap_or(false);
    Ok(Encoder::Unigram(UnigramEncoder::new(tokens, unknown, character_map, space_prefix, merge_spaces)?))
}

/// One score per token.
fn scores_of(metadata: &Metadata, vocabulary: &Vocabulary) -> Result<Vec<f32>, TokenizerError> {
    let scores = match metadata.f32s(SCORES) {
        Some(scores) => scores.to_vec(),
        None => match metadata.integers(SCORES) {
            Some(scores) => scores.into_iter().map(|score| score as f32).collect(),
            None => return Ok(vec![0.0; vocabulary.len()]),
        },
    };
    if scores.len() < vocabulary.len() {
        let problem = format!("has {} entries for {} tokens", scores.len(), vocabulary.len());
        return Err(TokenizerError::BadValue { path: metadata.path().to_owned(), key: SCORES, problem });
    }
    Ok(scores)
}

fn note_missing_bytes(metadata: &Metadata, missing: usize) {
    if missing > 0 {
        // Not a warning: published vocabularies have such gaps, and the server's operator cannot fill them.
        tracing::info!(
            file = %metadata.path().display(),
            missing,
            "the vocabulary has no token for some bytes; text with them loses them or gets the unknown token"
        );
    }
}
