//! What becomes of each field of a request: honoured, accepted without effect, or refused by name.
//!
//! A field that would change the text and is not honoured is a 400 that names it; silence would give
//! another answer than was asked for. A field that changes nothing (`user`, `store`) is accepted, because
//! SDKs send it unasked. A field that nobody knows is accepted too, because SDKs grow fields; it is named
//! in the `x-hearth-ignored` header. Strict mode refuses everything that has no effect.
//!
//! The tables are data, so that the OpenAPI document and `docs/API.md` say what the code does.

use serde_json::{Map, Value};

use hearth_domain::error::{Error, ErrorKind, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Read by the reader of its request.
    Honoured,
    /// Accepted, changes nothing.
    Ignored,
    /// A 400, except for these JSON values, which ask for what happens anyway.
    Refused { harmless: &'static [&'static str] },
}

/// One field of a request.
#[derive(Clone, Copy, Debug)]
pub struct FieldPolicy {
    pub name: &'static str,
    pub policy: Policy,
    /// JSON Schema of an accepted value, as text; `null` is accepted besides.
    pub schema: &'static str,
    /// Honoured: what it does. Otherwise: why it has no effect, or what to use instead.
    pub note: &'static str,
}

const fn honoured(name: &'static str, schema: &'static str, note: &'static str) -> FieldPolicy {
    FieldPolicy { name, policy: Policy::Honoured, schema, note }
}

const fn ignored(name: &'static str, note: &'static str) -> FieldPolicy {
    FieldPolicy { name, policy: Policy::Ignored, schema: "{}", note }
}

const fn refused(name: &'static str, harmless: &'static [&'static str], note: &'static str) -> FieldPolicy {
    FieldPolicy { name, policy: Policy::Refused { harmless }, schema: "{}", note }
}

const BOOLEAN: &str = r#"{"type":"boolean"}"#;
const COUNT: &str = r#"{"type":"integer","minimum":0,"maximum":2147483647}"#;
const PENALTY: &str = r#"{"type":"number","minimum":-2,"maximum":2}"#;
const FRACTION: &str = r#"{"type":"number","minimum":0,"maximum":1}"#;
const STRING: &str = r#"{"type":"string"}"#;
const NAMES: &str = r#"{"anyOf":[{"type":"string"},{"type":"array","maxItems":100,"items":{"type":"string"}}]}"#;

/// Fields that `/v1/chat/completions` and `/v1/completions` have in common.
pub const GENERATION: &[FieldPolicy] = &[
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
        r#"{"type":"number","exclusiveMinimum":0,"maximum":100}"#,
        "Over prompt and answer. Default 1, off.",
    ),
    honoured(
        "repeat_penalty",
        r#"{"type":"number","exclusiveMinimum":0,"maximum":100}"#,
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
    honoured("min_tokens", COUNT, "Nothing ends the text before this many tokens."),
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
    honoured(
        "timeout",
        r#"{"type":"number","exclusiveMinimum":0}"#,
        "Seconds after which the server ends the request.",
    ),
    honoured(
        "partial",
        BOOLEAN,
        "A whole answer whose time runs out is what there is by then, instead of a 504: `finish_reason` is `length`, and the header `x-hearth-partial` is `true`. Default false.",
    ),
    ignored("user", "No account is kept per end user."),
    ignored("store", "Nothing is stored."),
    ignored("metadata", "Nothing is stored."),
    ignored("service_tier", "There is one tier."),
    ignored("safety_identifier", "Nothing is reported to anyone."),
    ignored("prompt_cache_key", "The prefix cache finds shared prefixes by itself."),
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

/// Further fields of `/v1/chat/completions`.
pub const CHAT: &[FieldPolicy] = &[
    honoured(
        "messages",
        r##"{"type":"array","minItems":1,"items":{"$ref":"#/components/schemas/ChatMessage"}}"##,
        "The conversation.",
    ),
    honoured("max_completion_tokens", COUNT, "The newer name of `max_tokens`; wins over it."),
    honoured("logprobs", BOOLEAN, "Report each token's log-probability."),
    honoured("top_logprobs", r#"{"type":"integer","minimum":0,"maximum":20}"#, "Needs `logprobs`."),
    honoured(
        "tools",
        r##"{"type":"array","maxItems":128,"items":{"$ref":"#/components/schemas/Tool"}}"##,
        "Functions that the model may call.",
    ),
    honoured(
        "tool_choice",
        r#"{"anyOf":[{"enum":["auto","none","required"]},{"type":"object","required":["type","function"],"properties":{"type":{"const":"function"},"function":{"type":"object","required":["name"],"properties":{"name":{"type":"string"}}}}}]}"#,
        "`required` and a named function always yield a call that fits its schema.",
    ),
    honoured("parallel_tool_calls", BOOLEAN, "Whether one answer may hold several calls. Default true."),
    honoured(
        "chat_template_kwargs",
        r#"{"type":"object"}"#,
        "Further variables of the chat template, such as `enable_thinking`.",
    ),
    honoured(
        "reasoning_effort",
        r#"{"enum":["none","minimal","low","medium","high","xhigh","max"]}"#,
        "Given to the chat template, the highest that it knows for `xhigh` and `max`; `none` also sets `enable_thinking` to false.",
    ),
    honoured(
        "reasoning",
        r#"{"type":"object","properties":{"effort":{"enum":["none","minimal","low","medium","high","xhigh","max",null]},"enabled":{"type":["boolean","null"]},"exclude":{"enum":[false,null]}}}"#,
        "OpenRouter's form: `effort` as above, and `enabled`. `max_tokens` is no bound here.",
    ),
    honoured(
        "thinking",
        r#"{"type":"object","required":["type"],"properties":{"type":{"enum":["enabled","adaptive","disabled"]}}}"#,
        "DeepSeek's form: sets `enable_thinking`. `budget_tokens` is no bound here.",
    ),
    honoured(
        "add_generation_prompt",
        BOOLEAN,
        "End the prompt with the opening of the assistant's turn. Default true.",
    ),
    refused("modalities", &[r#"["text"]"#], "Text is the only modality."),
    ignored("audio", "It says how audio sounds, which only `modalities` would ask for."),
    refused("web_search_options", &["{}"], "The server makes no outgoing connection for a request."),
    ignored("prediction", "It could make an answer faster, and does not change it."),
    refused("verbosity", &[r#""medium""#], "Say in a message how long the answer should be."),
    refused("functions", &["[]"], "Use `tools`."),
    refused("function_call", &[r#""none""#, r#""auto""#], "Use `tool_choice`."),
    refused("reasoning_format", &[r#""auto""#, r#""deepseek""#], "Thinking is always reported as `reasoning_content`."),
    refused("continue_final_message", &["false"], "Render with /apply-template and use /v1/completions."),
    refused("echo", &["false"], "Use /v1/completions."),
    refused("chat_template", &[], "The template is the model's own; the server can be started with another."),
    refused("documents", &["[]"], "Put the documents into a message."),
    refused("mm_processor_kwargs", &["{}"], "Text is the only modality."),
];

/// Further fields of `/v1/completions`.
pub const COMPLETION: &[FieldPolicy] = &[
    honoured(
        "prompt",
        r#"{"anyOf":[{"type":"string"},{"type":"array","minItems":1,"maxItems":128,"items":{"type":"string"}},{"type":"array","minItems":1,"items":{"type":"integer","minimum":0}},{"type":"array","minItems":1,"maxItems":128,"items":{"type":"array","minItems":1,"items":{"type":"integer","minimum":0}}}]}"#,
        "Text, several texts, token ids, or several of those.",
    ),
    honoured(
        "logprobs",
        r#"{"type":"integer","minimum":0,"maximum":20}"#,
        "Report each token's log-probability and this many alternatives.",
    ),
    honoured("echo", BOOLEAN, "Prepend the prompt; with `logprobs`, score it too."),
    refused("suffix", &[r#""""#], "Filling in the middle is not implemented."),
];

/// Fields of `/v1/embeddings`.
pub const EMBEDDINGS: &[FieldPolicy] = &[
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
    honoured(
        "timeout",
        r#"{"type":"number","exclusiveMinimum":0}"#,
        "Seconds after which the server ends the request.",
    ),
    ignored("user", "No account is kept per end user."),
    ignored("priority", "Callers share the engine evenly."),
    refused("truncate_prompt_tokens", &["-1"], "Use `truncate`."),
    refused("normalize", &["true"], "The model's own files decide."),
    refused("embd_normalize", &["2"], "The model's own files decide."),
];

/// Fields of `/v1/rerank` and `/rerank`.
pub const RERANK: &[FieldPolicy] = &[
    honoured("model", STRING, "A served rerank model or one of its aliases. Default the first."),
    honoured("query", r#"{"type":"string","minLength":1}"#, "What the documents are to answer."),
    honoured(
        "documents",
        r#"{"type":"array","minItems":1,"maxItems":1000,"items":{"anyOf":[{"type":"string"},{"type":"object","required":["text"],"properties":{"text":{"type":"string"}}}]}}"#,
        "Texts, or objects with a `text`; what does not fit the model is cut off.",
    ),
    honoured("top_n", r#"{"type":"integer","minimum":1,"maximum":2147483647}"#, "Results at most. Default all."),
    honoured("return_documents", BOOLEAN, "Repeat each document's text in its result. Default false."),
    honoured(
        "timeout",
        r#"{"type":"number","exclusiveMinimum":0}"#,
        "Seconds after which the server ends the request.",
    ),
    ignored("user", "No account is kept per end user."),
    ignored("priority", "Callers share the engine evenly."),
];

/// Fields of every route that looks for passages in documents.
pub const LOOKUP: &[FieldPolicy] = &[
    honoured("collections", NAMES, "Names or ids of collections; they are searched together. Default `default`."),
    honoured("document_ids", NAMES, "Look in these documents only."),
    honoured(
        "filters",
        r#"{"type":"object"}"#,
        "OpenAI's filters over attributes: `eq ne gt gte lt lte in nin`, and `and`, `or`.",
    ),
    honoured(
        "search_mode",
        r#"{"enum":["fused","hybrid","dense","lexical"]}"#,
        "By meaning, by words, or both. Default `fused`.",
    ),
    honoured(
        "top_k",
        r#"{"type":"integer","minimum":1,"maximum":100}"#,
        "Passages at most. Default 5; for `/analysis` 10.",
    ),
    honoured("min_similarity", FRACTION, "Passages less similar than this are no answer. Default 0.3."),
    honoured(
        "wait",
        r#"{"anyOf":[{"type":"boolean"},{"type":"number","minimum":0,"maximum":3600}]}"#,
        "Documents that are still being read: wait for them (`true`, or seconds), or do without (`false`). Unsaid, 409 `indexing`; `/analysis` waits.",
    ),
    honoured(
        "timeout",
        r#"{"type":"number","exclusiveMinimum":0}"#,
        "Seconds after which the server ends the request.",
    ),
];

const GROUNDING: FieldPolicy = honoured(
    "grounding",
    r#"{"enum":["auto","extract","quote","free"]}"#,
    "How the answer is bound to the documents: sentences of theirs (`extract`), sentences that the chat model chooses (`quote`), or its own words (`free`). Default `auto`: `extract` for chat models of fewer than a billion parameters, else `free`.",
);

/// Further fields of `/ask`.
pub const ASK: &[FieldPolicy] = &[
    honoured("question", r#"{"type":"string","minLength":1,"maxLength":2000}"#, "What to answer."),
    GROUNDING,
    honoured("model", STRING, "A served chat model. Default the first."),
    honoured("max_tokens", r#"{"type":"integer","minimum":1,"maximum":4096}"#, "Of what a model writes. Default 512."),
    honoured("temperature", r#"{"type":"number","minimum":0,"maximum":2}"#, "Default 0, the likeliest answer."),
    honoured("include_sources", BOOLEAN, "List the passages behind the answer. Default true."),
    honoured(
        "confidence",
        BOOLEAN,
        "Say how fully the passages answer the question: `free` by a second generation, else by the sentences' scores.",
    ),
];

/// Further fields of `/api/v1/chat`.
pub const APP_CHAT: &[FieldPolicy] = &[
    honoured(
        "messages",
        r#"{"type":"array","minItems":1,"maxItems":1000,"items":{"type":"object","required":["role","content"],"properties":{"role":{"enum":["system","user","assistant"]},"content":{"type":"string","minLength":1,"maxLength":10000}}}}"#,
        "The conversation; the last message is the user's.",
    ),
    GROUNDING,
    honoured("model", STRING, "A served chat model. Default the first."),
    honoured("temperature", r#"{"type":"number","minimum":0,"maximum":2}"#, "Default 0.7."),
    honoured("max_tokens", r#"{"type":"integer","minimum":1,"maximum":4096}"#, "Of what a model writes. Default 1024."),
    honoured("stream", BOOLEAN, "Answer as server-sent events."),
    honoured("use_rag", BOOLEAN, "Answer from documents. Default true."),
];

/// Further fields of `/generate`, beside those of [`GENERATION`].
pub const APP_GENERATE: &[FieldPolicy] =
    &[honoured("prompt", r#"{"type":"string","minLength":1}"#, "Answered as a conversation of one turn.")];

/// Further fields of `/api/v1/search`.
pub const SEARCH: &[FieldPolicy] =
    &[honoured("query", r#"{"type":"string","minLength":1,"maxLength":10000}"#, "What to look for.")];

/// Further fields of `/analysis`.
pub const ANALYSIS: &[FieldPolicy] = &[
    honoured("company_name", r#"{"type":"string","minLength":1,"maxLength":200}"#, "Whom the question is about."),
    honoured("question", r#"{"type":"string","minLength":1,"maxLength":2000}"#, "What to find out."),
    honoured("model", STRING, "A served chat model. Default the first."),
    honoured("max_tokens", r#"{"type":"integer","minimum":1,"maximum":4096}"#, "Of the summary. Default 1024."),
    honoured("temperature", r#"{"type":"number","minimum":0,"maximum":2}"#, "Default 0, the likeliest summary."),
    honoured(
        "webhook_url",
        r#"{"type":"string","format":"uri","maxLength":2048}"#,
        "Told when the job has ended, in a signed message.",
    ),
];

const NAME: &str = r#"{"type":"string","maxLength":256}"#;
const METADATA: &str =
    r#"{"type":"object","maxProperties":16,"additionalProperties":{"type":["string","number","boolean","null"]}}"#;
const FILE_IDS: &str = r#"{"type":"array","maxItems":2000,"items":{"type":"string"}}"#;
const EXPIRES_AFTER: FieldPolicy = ignored("expires_after", "Nothing expires by itself: delete what is not needed.");
const CHUNKING_STRATEGY: FieldPolicy = refused(
    "chunking_strategy",
    &[r#"{"type":"auto"}"#],
    "Documents are cut along their structure, to the length that the embedding model reads.",
);

/// Fields of the form of `POST /v1/files`, beside the file itself.
pub const FILE_UPLOAD: &[FieldPolicy] = &[
    honoured(
        "purpose",
        r#"{"enum":["assistants","batch","fine-tune","vision","user_data","evals"]}"#,
        "Kept and listed; every file can go into a vector store.",
    ),
    EXPIRES_AFTER,
];

/// Fields of `POST /v1/vector_stores`.
pub const VECTOR_STORE_CREATE: &[FieldPolicy] = &[
    honoured("name", NAME, "For people; several may share it."),
    honoured("file_ids", FILE_IDS, "Files to begin with."),
    honoured("metadata", METADATA, "Kept with it; up to 16 pairs."),
    ignored("description", "It is not kept; use `metadata`."),
    EXPIRES_AFTER,
    CHUNKING_STRATEGY,
];

/// Fields of `POST /v1/vector_stores/{id}`.
pub const VECTOR_STORE_UPDATE: &[FieldPolicy] = &[
    honoured("name", NAME, "The new name."),
    honoured("metadata", METADATA, "Takes the place of what was kept."),
    EXPIRES_AFTER,
];

/// Fields of `POST /v1/vector_stores/{id}/files`.
pub const VECTOR_STORE_FILE: &[FieldPolicy] = &[
    honoured("file_id", STRING, "An uploaded file."),
    honoured("attributes", METADATA, "What searches filter by; up to 16 pairs."),
    CHUNKING_STRATEGY,
];

/// Fields of `POST /v1/vector_stores/{id}/files/{file_id}`.
pub const VECTOR_STORE_FILE_UPDATE: &[FieldPolicy] =
    &[honoured("attributes", METADATA, "Take the place of the old ones; null or `{}` removes them.")];

/// Fields of `POST /v1/vector_stores/{id}/file_batches`.
pub const FILE_BATCH: &[FieldPolicy] = &[
    honoured("file_ids", FILE_IDS, "Uploaded files; up to 2000."),
    honoured(
        "files",
        r#"{"type":"array","maxItems":2000,"items":{"type":"object","required":["file_id"],"properties":{"file_id":{"type":"string"},"attributes":{"type":["object","null"]}}}}"#,
        "Instead of `file_ids`: files with attributes of their own.",
    ),
    honoured("attributes", METADATA, "Of all `file_ids`."),
    CHUNKING_STRATEGY,
];

/// Fields of `POST /v1/vector_stores/{id}/search`.
pub const VECTOR_STORE_SEARCH: &[FieldPolicy] = &[
    honoured(
        "query",
        r#"{"anyOf":[{"type":"string","minLength":1},{"type":"array","minItems":1,"maxItems":16,"items":{"type":"string","minLength":1}}]}"#,
        "What to look for; several ask for what is near to any of them.",
    ),
    honoured(
        "filters",
        r#"{"type":"object","required":["type"],"properties":{"type":{"enum":["eq","ne","gt","gte","lt","lte","in","nin","and","or"]}}}"#,
        "Over attributes: `{type, key, value}`, or `{type: \"and\" | \"or\", filters}`.",
    ),
    honoured("max_num_results", r#"{"type":"integer","minimum":1,"maximum":50}"#, "Passages at most. Default 10."),
    honoured(
        "ranking_options",
        r#"{"type":"object","properties":{"ranker":{"enum":["none","auto","default-2024-11-15",null]},"score_threshold":{"type":["number","null"],"minimum":0,"maximum":1}}}"#,
        "`score_threshold`: passages below it are left out. `ranker` `none` looks by meaning only, any other by words, too.",
    ),
    ignored("rewrite_query", "The query is searched as it stands."),
];

/// Applies the tables to what no reader took; returns the names that have no effect.
pub fn apply(rest: Map<String, Value>, tables: &[&[FieldPolicy]], strict: bool) -> Result<Vec<String>> {
    let mut without_effect = Vec::new();
    for (name, value) in rest {
        let known = tables.iter().copied().flatten().find(|field| field.name == name);
        match known.map(|field| (field.policy, field.note)) {
            Some((Policy::Refused { harmless }, note)) => {
                let is_harmless = harmless
                    .iter()
                    .any(|text| serde_json::from_str::<Value>(text).is_ok_and(|harmless| harmless == value));
                if !is_harmless {
                    return Err(unsupported(&name, &format!("`{name}` is not supported by this server. {note}")));
                }
            }
            Some(_) if strict => {
                return Err(unsupported(
                    &name,
                    &format!("`{name}` has no effect on this server, which is in strict mode."),
                ));
            }
            None if strict => {
                return Err(unsupported(
                    &name,
                    &format!("`{name}` is unknown to this server, which is in strict mode."),
                ));
            }
            Some(_) | None => without_effect.push(name),
        }
    }
    Ok(without_effect)
}

/// The error for a field that would change the answer and cannot be honoured.
pub fn unsupported(param: &str, message: &str) -> Error {
    Error::new(ErrorKind::InvalidRequest, message).with_param(param).with_code("unsupported_parameter")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rest(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn every_schema_and_harmless_value_is_json_and_no_name_stands_twice() {
        let of_documents =
            [[LOOKUP, ASK], [LOOKUP, APP_CHAT], [LOOKUP, SEARCH], [GENERATION, APP_GENERATE], [LOOKUP, ANALYSIS]];
        let of_openai = [[GENERATION, CHAT], [GENERATION, COMPLETION], [EMBEDDINGS, &[]], [RERANK, &[]]];
        let of_vector_stores = [
            FILE_UPLOAD,
            VECTOR_STORE_CREATE,
            VECTOR_STORE_UPDATE,
            VECTOR_STORE_FILE,
            VECTOR_STORE_FILE_UPDATE,
            FILE_BATCH,
            VECTOR_STORE_SEARCH,
        ];
        let of_vector_stores = of_vector_stores.map(|table| [table, &[]]);
        for tables in of_openai.into_iter().chain(of_documents).chain(of_vector_stores) {
            let mut names = Vec::new();
            for field in tables.concat() {
                serde_json::from_str::<Value>(field.schema).unwrap_or_else(|error| panic!("{}: {error}", field.name));
                if let Policy::Refused { harmless } = field.policy {
                    for text in harmless {
                        serde_json::from_str::<Value>(text).unwrap_or_else(|error| panic!("{}: {error}", field.name));
                    }
                }
                assert!(!names.contains(&field.name), "{} stands twice", field.name);
                names.push(field.name);
            }
        }
    }

    #[test]
    fn three_policies() {
        let tables: &[&[FieldPolicy]] = &[GENERATION, CHAT];
        let ignored = apply(rest(json!({"user": "u", "brand_new": 1, "modalities": ["text"]})), tables, false).unwrap();
        assert_eq!(ignored, ["user", "brand_new"]);
        let error = apply(rest(json!({"functions": [{"name": "x"}]})), tables, false).unwrap_err();
        assert_eq!((error.param(), error.code()), (Some("functions"), Some("unsupported_parameter")));
        assert_eq!(apply(rest(json!({"user": "u"})), tables, true).unwrap_err().param(), Some("user"));
        assert_eq!(apply(rest(json!({"brand_new": 1})), tables, true).unwrap_err().param(), Some("brand_new"));
    }
}
