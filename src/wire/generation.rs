//! The fields that `/v1/chat/completions` and `/v1/completions` share: sampling, limits, stop conditions.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hearth_domain::{Constraint, SamplingParams, error::Result};
use serde_json::Value;

use super::{
    Envelope,
    body::{BOOLEAN, COUNT, FRACTION, FieldSpec, STRING, TIMEOUT, honoured, ignored, refused},
    constraint,
    fields::{Fields, bad_value, wrong_type},
};

/// Probabilities are divided by it: it must not be zero, nor so small that the division yields infinity.
const REPETITION_MIN: f64 = 1e-6;

const PENALTY: &str = r#"{"type":"number","minimum":-2,"maximum":2}"#;

/// Fields that `/v1/chat/completions` and `/v1/completions` have in common.
pub const FIELDS: &[FieldSpec] = &[
    honoured("model", STRING, "A served model or one of its aliases."),
    honoured("stream", BOOLEAN, "Answer as server-sent events."),
    honoured(
        "stream_options",
        r#"{"type":"object","properties":{"include_usage":{"type":["boolean","null"]}}}"#,
        "`include_usage` adds a last chunk with the usage; `include_obfuscation` changes nothing.",
    ),
    honoured(
        "n",
        r#"{"type":"integer","minimum":1,"maximum":128}"#,
        "Choices per prompt; of all prompts together at most 128.",
    ),
    honoured("temperature", r#"{"type":"number","minimum":0,"maximum":2}"#, "0 is greedy. Default 1."),
    honoured("top_p", FRACTION, "Nucleus sampling. Default 1, off."),
    honoured("top_k", r#"{"type":"integer","minimum":-1,"maximum":2147483647}"#, "0 and -1 keep all."),
    honoured("min_p", FRACTION, "Drop tokens below this share of the likeliest. Default 0, off."),
    honoured("typical_p", FRACTION, "Locally typical sampling. Default 1, off."),
    honoured(
        "repetition_penalty",
        r#"{"type":"number","minimum":0.000001,"maximum":100}"#,
        "Over prompt and answer. Default 1, off.",
    ),
    honoured(
        "repeat_penalty",
        r#"{"type":"number","minimum":0.000001,"maximum":100}"#,
        "llama-server's name for `repetition_penalty`.",
    ),
    honoured("frequency_penalty", PENALTY, "Per occurrence in the answer. Default 0."),
    honoured("presence_penalty", PENALTY, "Once per token that occurs in the answer. Default 0."),
    honoured(
        "logit_bias",
        r#"{"type":"object","propertyNames":{"pattern":"^[0-9]{1,9}$"},"additionalProperties":{"type":"number","minimum":-100,"maximum":100}}"#,
        "Token ids of the served model, -100 to 100.",
    ),
    honoured(
        "seed",
        r#"{"type":"integer","minimum":-9223372036854775808,"maximum":9223372036854775807}"#,
        "The same seed gives the same text, whatever else the server does meanwhile.",
    ),
    honoured(
        "stop",
        r#"{"anyOf":[{"type":"string","minLength":1,"maxLength":1024},{"type":"array","maxItems":16,"items":{"type":"string","minLength":1,"maxLength":1024}}]}"#,
        "Up to 16 strings of up to 1024 characters; the one that ends the text is not part of it.",
    ),
    honoured(
        "stop_token_ids",
        r#"{"type":"array","maxItems":1024,"items":{"type":"integer","minimum":0,"maximum":4294967295}}"#,
        "Up to 1024 token ids that end the text.",
    ),
    honoured("min_tokens", COUNT, "The text does not end before this many tokens."),
    honoured("ignore_eos", BOOLEAN, "Go on past end-of-text tokens."),
    honoured(
        "max_tokens",
        COUNT,
        "Most tokens to generate. Default: to the end of the context; 16 for `/v1/completions`.",
    ),
    honoured("n_predict", COUNT, "llama-server's name for `max_tokens`."),
    honoured("return_token_ids", BOOLEAN, "Report token ids in each choice and in `logprobs`."),
    honoured("return_tokens", BOOLEAN, "llama-server's name for `return_token_ids`."),
    honoured(
        "response_format",
        r#"{"type":"object","required":["type"],"properties":{"type":{"enum":["text","json_object","json_schema"]},"json_schema":{"type":"object"},"schema":{"type":"object"}}}"#,
        "`json_object` and `json_schema` are enforced by a grammar.",
    ),
    honoured("json_schema", r#"{"type":"object"}"#, "llama-server's short form of `response_format`."),
    honoured("guided_json", r#"{"type":["object","string"]}"#, "vLLM's form of a JSON schema."),
    honoured("guided_regex", STRING, "The whole answer matches this regular expression."),
    honoured(
        "guided_choice",
        r#"{"type":"array","minItems":1,"items":{"type":"string"}}"#,
        "The answer is one of these strings.",
    ),
    honoured(
        "structured_outputs",
        r#"{"type":"object"}"#,
        "vLLM's newer form: one of `json`, `regex`, `choice`, `json_object`.",
    ),
    honoured(
        "grammar",
        r#"{"type":"object","required":["type","value"],"properties":{"type":{"enum":["regex","lark","json_schema"]}}}"#,
        "`{\"type\": \"regex\" | \"lark\" | \"json_schema\", \"value\": ...}`. A GBNF string is refused.",
    ),
    TIMEOUT,
    honoured(
        "partial",
        BOOLEAN,
        "When the time of a whole answer runs out, return what has been generated, with `finish_reason` `length` and the header `x-hearth-partial: true`, instead of a 504. Default false.",
    ),
    honoured(
        "prompt_cache_key",
        STRING,
        "Names a conversation, as the header `x-hearth-session` does, so that one engine of an upstream serves all of it. The local prefix cache needs no name.",
    ),
    ignored("user", "No account is kept per end user."),
    ignored("store", "Nothing is stored."),
    ignored("metadata", "Nothing is stored."),
    ignored("service_tier", "There is one tier."),
    ignored("safety_identifier", "Nothing is reported to anyone."),
    ignored("prompt_cache_retention", "The prefix cache evicts by need."),
    ignored("cache_prompt", "The prefix cache is always used; it does not change the text."),
    ignored("cache_salt", "The prefix cache does not change the text."),
    ignored("priority", "Callers share the engine evenly."),
    ignored("id_slot", "There are no fixed slots."),
    ignored("timings_per_token", "`timings` stands in the last chunk."),
    ignored("return_progress", "Progress is not reported; keep-alive comments are."),
    refused(
        "best_of",
        &["0", "1"],
        "Ask for `n` choices and take the best of them; the same number as `n` is accepted.",
    ),
    refused("use_beam_search", &["false"], "Sampling is the only search."),
    refused("length_penalty", &["1", "1.0"], "It belongs to beam search."),
    refused("early_stopping", &["false"], "It belongs to beam search."),
    refused("mirostat", &["0"], "Use `temperature`, `top_p` or `min_p`."),
    refused("dry_multiplier", &["0", "0.0"], "Use `repetition_penalty` or `frequency_penalty`."),
    refused("xtc_probability", &["0", "0.0"], "Not implemented."),
    refused("dynatemp_range", &["0", "0.0"], "Not implemented."),
    refused("top_n_sigma", &["-1", "-1.0", "0", "0.0"], "Use `min_p`."),
    refused("top_a", &["0", "0.0"], "Use `min_p`."),
    refused("tfs_z", &["1", "1.0"], "Use `typical_p`."),
    refused("samplers", &[], "The order of the samplers is fixed."),
    refused("repeat_last_n", &["-1"], "Penalties look at the whole text."),
    refused("bad_words", &["[]"], "Use `logit_bias`."),
    refused("allowed_token_ids", &[], "Use `logit_bias` or `grammar`."),
    refused("logits_processors", &["[]"], "Code from a request is not run."),
    refused("vllm_xargs", &["{}"], "Not implemented."),
    refused("prompt_logprobs", &["0", "false"], "Use `echo` with `logprobs` on /v1/completions."),
    refused("truncate_prompt_tokens", &["-1"], "A prompt is never cut; shorten it."),
    refused("include_stop_str_in_output", &["false"], "Append the stop string yourself."),
    refused("skip_special_tokens", &["true"], "Use `return_token_ids` and /detokenize."),
    refused("spaces_between_special_tokens", &["true"], "Not implemented."),
    refused("guided_grammar", &[], "Use `grammar` with `type` `lark`."),
    refused("lora", &["[]"], "No adapters are loaded."),
    refused("lora_request", &[], "No adapters are loaded."),
];

/// OpenAI allows 4; more cost little, and agents use them.
pub const STOP_STRINGS_MAX: usize = 16;
/// Longest stop string, in characters. An answer is held back by as much while it could still become one.
pub const STOP_CHARS_MAX: usize = 1024;
pub const STOP_TOKEN_IDS_MAX: usize = 1024;
/// OpenAI's own limit on `n`; here it applies to the choices of all prompts of a request together.
pub const CHOICES_MAX: usize = 128;
pub const TOP_LOGPROBS_MAX: i64 = 20;

/// What both generation routes read the same way.
#[derive(Debug)]
pub(super) struct Common {
    pub model: Option<String>,
    pub stream: bool,
    pub include_usage: bool,
    pub sampling: SamplingParams,
    pub n: usize,
    pub max_tokens: Option<usize>,
    pub min_tokens: usize,
    pub stop: Arc<[String]>,
    pub stop_token_ids: Vec<u32>,
    pub ignore_eos: bool,
    pub return_token_ids: bool,
    pub constraint: Option<Arc<Constraint>>,
    pub deadline: Option<Instant>,
    pub session: Option<String>,
}

impl Common {
    pub(super) fn read(fields: &mut Fields, envelope: &Envelope) -> Result<Self> {
        let model = fields.string("model")?;
        let stream = fields.boolean("stream")?.unwrap_or(false);
        let include_usage = match fields.nested("stream_options")? {
            Some(mut options) => options.boolean("include_usage")?.unwrap_or(false),
            None => false,
        };
        let n = fields.integer("n", 1, CHOICES_MAX as i64)?.map_or(1, |n| usize::try_from(n).unwrap_or(1));
        // `best_of` equal to `n` selects nothing.
        if fields.peek("best_of").is_some_and(|best_of| best_of.as_u64() == Some(n as u64)) {
            fields.take("best_of");
        }
        let sampling = read_sampling(fields)?;
        let newest = fields.count("max_completion_tokens", 0)?;
        let usual = fields.count("max_tokens", 0)?;
        let native = fields.count("n_predict", 0)?;
        let max_tokens = newest.or(usual).or(native);
        let min_tokens = fields.count("min_tokens", 0)?.unwrap_or(0);
        if let Some(max_tokens) = max_tokens
            && min_tokens > max_tokens
        {
            return Err(bad_value(
                fields.path("min_tokens"),
                format!("`min_tokens` ({min_tokens}) must not be above `max_tokens` ({max_tokens})."),
            ));
        }
        // The route decides whether a cut-off answer counts as one.
        fields.boolean("partial")?;
        let return_token_ids = fields.boolean("return_token_ids")?;
        let return_tokens = fields.boolean("return_tokens")?;
        let session = fields.string("prompt_cache_key")?.filter(|name| !name.is_empty());
        Ok(Self {
            model,
            stream,
            include_usage,
            sampling,
            n,
            max_tokens,
            min_tokens,
            stop: read_stop(fields)?,
            stop_token_ids: read_stop_token_ids(fields)?,
            ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(false),
            return_token_ids: return_token_ids.or(return_tokens).unwrap_or(false),
            constraint: constraint::read(fields)?.map(Arc::new),
            deadline: read_deadline(fields, envelope)?,
            session,
        })
    }
}

fn read_sampling(fields: &mut Fields) -> Result<SamplingParams> {
    let default = SamplingParams::default();
    let repetition = fields.float("repetition_penalty", REPETITION_MIN, 100.0)?;
    let repeat = fields.float("repeat_penalty", REPETITION_MIN, 100.0)?;
    Ok(SamplingParams {
        temperature: fields.float("temperature", 0.0, 2.0)?.unwrap_or(default.temperature),
        top_k: fields
            .integer("top_k", -1, i64::from(i32::MAX))?
            .map_or(default.top_k, |k| usize::try_from(k).unwrap_or(0)),
        top_p: fields.float("top_p", 0.0, 1.0)?.unwrap_or(default.top_p),
        min_p: fields.float("min_p", 0.0, 1.0)?.unwrap_or(default.min_p),
        typical_p: fields.float("typical_p", 0.0, 1.0)?.unwrap_or(default.typical_p),
        repetition_penalty: repetition.or(repeat).unwrap_or(default.repetition_penalty),
        frequency_penalty: fields.float("frequency_penalty", -2.0, 2.0)?.unwrap_or(default.frequency_penalty),
        presence_penalty: fields.float("presence_penalty", -2.0, 2.0)?.unwrap_or(default.presence_penalty),
        logit_bias: read_logit_bias(fields)?,
        seed: fields.integer("seed", i64::MIN, i64::MAX)?,
    })
}

fn read_logit_bias(fields: &mut Fields) -> Result<Arc<[(u32, f32)]>> {
    let path = fields.path("logit_bias");
    let Some(map) = fields.map("logit_bias")? else { return Ok(Arc::from([])) };
    map.into_iter()
        // A bias of zero changes nothing, whatever the key.
        .filter(|(_, value)| value.as_f64() != Some(0.0))
        .map(|(key, value)| {
            let id =
                key.parse::<u32>().ok().filter(|_| key.bytes().all(|byte| byte.is_ascii_digit())).ok_or_else(|| {
                    let shown: String = key.chars().take(40).collect();
                    bad_value(path.as_str(), format!("A key of `{path}` must be a token id, but one is \"{shown}\"."))
                })?;
            let place = format!("{path}.{id}");
            let bias = value.as_f64().ok_or_else(|| wrong_type(&place, "a number", &value))?;
            if !(-100.0..=100.0).contains(&bias) {
                return Err(bad_value(
                    place.clone(),
                    format!("`{place}` must be between -100 and 100, but is {value}."),
                ));
            }
            #[expect(clippy::cast_possible_truncation, reason = "precision only: the range was checked")]
            Ok((id, bias as f32))
        })
        .collect()
}

fn read_stop(fields: &mut Fields) -> Result<Arc<[String]>> {
    let path = fields.path("stop");
    let items = match fields.take("stop") {
        None => return Ok(Arc::from([])),
        Some(Value::Array(items)) => items,
        Some(single @ Value::String(_)) => vec![single],
        Some(other) => return Err(wrong_type(&path, "a string or an array of strings", &other)),
    };
    if items.len() > STOP_STRINGS_MAX {
        return Err(bad_value(
            path.clone(),
            format!("`{path}` must have at most {STOP_STRINGS_MAX} strings, but has {}.", items.len()),
        ));
    }
    items
        .into_iter()
        .enumerate()
        .map(|(index, item)| match item {
            Value::String(text) if text.is_empty() => {
                Err(bad_value(format!("{path}[{index}]"), "A stop string must not be empty."))
            }
            Value::String(text) => {
                let chars = text.chars().count();
                if chars > STOP_CHARS_MAX {
                    let place = format!("{path}[{index}]");
                    let message = format!("`{place}` must have at most {STOP_CHARS_MAX} characters, but has {chars}.");
                    return Err(bad_value(place, message));
                }
                Ok(text)
            }
            other => Err(wrong_type(&format!("{path}[{index}]"), "a string", &other)),
        })
        .collect()
}

fn read_stop_token_ids(fields: &mut Fields) -> Result<Vec<u32>> {
    let path = fields.path("stop_token_ids");
    let ids = fields.token_ids("stop_token_ids")?.unwrap_or_default();
    if ids.len() > STOP_TOKEN_IDS_MAX {
        let message = format!("`{path}` must have at most {STOP_TOKEN_IDS_MAX} token ids, but has {}.", ids.len());
        return Err(bad_value(path, message));
    }
    Ok(ids)
}

/// The earlier of the server's deadline and the body's `timeout`.
pub(super) fn read_deadline(fields: &mut Fields, envelope: &Envelope) -> Result<Option<Instant>> {
    // A year: longer waits equal none, and the clock's arithmetic stays in range.
    const SECONDS_MAX: f64 = 31_536_000.0;
    // A microsecond: anything shorter is a mistake, not a deadline.
    const SECONDS_MIN: f64 = 1e-6;
    let path = fields.path("timeout");
    let Some(seconds) = fields.number("timeout", f64::MIN, f64::MAX)? else { return Ok(envelope.deadline) };
    if seconds < SECONDS_MIN {
        let message = format!("`{path}` must be at least {SECONDS_MIN} seconds, but is {seconds}.");
        return Err(bad_value(path, message));
    }
    let asked = Instant::now() + Duration::from_secs_f64(seconds.min(SECONDS_MAX));
    Ok(Some(envelope.deadline.map_or(asked, |deadline| deadline.min(asked))))
}
