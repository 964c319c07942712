//! The application contract: `/ask`, `/generate`, `/api/v1/chat`, `/api/v1/search`, for clients without an SDK.

use std::time::Instant;

use hearth_domain::{ChatPrompt, GenerateRequest, Prompt, documents::Grounding, error::Result};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Envelope, Parsed,
    body::{BOOLEAN, FieldSpec, RequestBody, STRING, honoured},
    fields::{Fields, bad_value, shortened},
    generation::{self, Common, read_deadline},
    lookup::{self, LookupBody},
    receipt::Receipt,
    usage::{Timings, Usage},
};

const GROUNDING: FieldSpec = honoured(
    "grounding",
    r#"{"enum":["auto","extract","quote","free"]}"#,
    "How the answer is bound to the documents: sentences of theirs (`extract`), sentences that the chat model chooses (`quote`), or its own words (`free`). Default `auto`: `extract` for chat models of fewer than a billion parameters, else `free`.",
);

/// Further fields of `/ask`.
const ASK_FIELDS: &[FieldSpec] = &[
    honoured("question", r#"{"type":"string","pattern":"\\S","maxLength":2000}"#, "What to answer."),
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
const CHAT_FIELDS: &[FieldSpec] = &[
    honoured(
        "messages",
        r#"{"type":"array","minItems":1,"maxItems":1000,"items":{"type":"object","required":["role","content"],"properties":{"role":{"enum":["system","user","assistant"]},"content":{"type":"string","pattern":"\\S","maxLength":10000}}}}"#,
        "The conversation; the last message is the user's.",
    ),
    GROUNDING,
    honoured("model", STRING, "A served chat model. Default the first."),
    honoured("temperature", r#"{"type":"number","minimum":0,"maximum":2}"#, "Default 0.7."),
    honoured("max_tokens", r#"{"type":"integer","minimum":1,"maximum":4096}"#, "Of what a model writes. Default 1024."),
    honoured("stream", BOOLEAN, "Answer as server-sent events."),
    honoured("use_rag", BOOLEAN, "Answer from documents. Default true."),
];

/// Further fields of `/generate`, besides those of [`GENERATION`].
const GENERATE_FIELDS: &[FieldSpec] =
    &[honoured("prompt", r#"{"type":"string","pattern":"\\S"}"#, "Answered as a conversation of one turn.")];

/// Further fields of `/api/v1/search`.
const SEARCH_FIELDS: &[FieldSpec] =
    &[honoured("query", r#"{"type":"string","pattern":"\\S","maxLength":10000}"#, "What to look for.")];

pub(super) const QUESTION_CHARS_MAX: usize = 2000;
const CONTENT_CHARS_MAX: usize = 10_000;
const MESSAGES_MAX: usize = 1000;
pub(super) const TOKENS_MAX: i64 = 4096;
const ASK_TOKENS_DEFAULT: usize = 512;
const CHAT_TOKENS_DEFAULT: usize = 1024;
const CHAT_TEMPERATURE_DEFAULT: f32 = 0.7;
const PREVIEW_CHARS: usize = 200;

/// `POST /ask` and `POST /ask/stream`.
#[derive(Debug)]
pub struct AskBody {
    pub question: String,
    pub model: Option<String>,
    pub max_tokens: usize,
    /// 0, the likeliest answer, unless the request says otherwise.
    pub temperature: f32,
    pub include_sources: bool,
    pub confidence: bool,
    /// `None` lets the size of the chat model decide.
    pub grounding: Option<Grounding>,
    pub lookup: LookupBody,
    pub deadline: Option<Instant>,
}

impl RequestBody for AskBody {
    const NAME: &'static str = "AskRequest";
    const FIELDS: &'static [&'static [FieldSpec]] = &[lookup::FIELDS, ASK_FIELDS];
    const REQUIRED: &'static [&'static str] = &["question"];
}

impl AskBody {
    pub fn read(body: Value, envelope: &Envelope) -> Result<Parsed<Self>> {
        let mut fields = Fields::body(body)?;
        let request = Self {
            question: read_text(&mut fields, "question", QUESTION_CHARS_MAX)?,
            model: fields.string("model")?,
            max_tokens: fields.integer("max_tokens", 1, TOKENS_MAX)?.map_or(ASK_TOKENS_DEFAULT, |n| n as usize),
            temperature: fields.float("temperature", 0.0, 2.0)?.unwrap_or(0.0),
            include_sources: fields.boolean("include_sources")?.unwrap_or(true),
            confidence: fields.boolean("confidence")?.unwrap_or(false),
            grounding: read_grounding(&mut fields)?,
            lookup: LookupBody::read(&mut fields)?,
            deadline: read_deadline(&mut fields, envelope)?,
        };
        let ignored = Self::ignored(fields.rest(), envelope.strict)?;
        Ok(Parsed { request, ignored })
    }
}

fn read_grounding(fields: &mut Fields) -> Result<Option<Grounding>> {
    match fields.string("grounding")?.as_deref() {
        None | Some("auto") => Ok(None),
        Some("extract") => Ok(Some(Grounding::Extract)),
        Some("quote") => Ok(Some(Grounding::Quote)),
        Some("free") => Ok(Some(Grounding::Free)),
        Some(other) => {
            let found = shortened(&Value::String(other.to_owned()));
            let message = format!("`grounding` must be `auto`, `extract`, `quote` or `free`, but is {found}.");
            Err(bad_value("grounding", message))
        }
    }
}

/// A text of 1 to `longest` characters that is not blank.
pub(super) fn read_text(fields: &mut Fields, name: &str, longest: usize) -> Result<String> {
    let text = fields.required_string(name)?;
    let path = fields.path(name);
    let count = text.chars().count();
    if text.trim().is_empty() {
        return Err(bad_value(path.clone(), format!("`{path}` must not be empty.")));
    }
    if count > longest {
        return Err(bad_value(
            path.clone(),
            format!("`{path}` must have at most {longest} characters, but has {count}."),
        ));
    }
    Ok(text)
}

/// `POST /api/v1/chat` and `POST /api/v1/chat/stream`.
#[derive(Debug)]
pub struct ChatBody {
    /// The last one is the user's.
    pub messages: Vec<Value>,
    pub model: Option<String>,
    pub temperature: f32,
    pub max_tokens: usize,
    pub stream: bool,
    pub use_rag: bool,
    /// `None` lets the size of the chat model decide.
    pub grounding: Option<Grounding>,
    pub lookup: LookupBody,
    pub deadline: Option<Instant>,
}

impl RequestBody for ChatBody {
    const NAME: &'static str = "AppChatRequest";
    const FIELDS: &'static [&'static [FieldSpec]] = &[lookup::FIELDS, CHAT_FIELDS];
    const REQUIRED: &'static [&'static str] = &["messages"];
}

impl ChatBody {
    pub fn read(body: Value, envelope: &Envelope) -> Result<Parsed<Self>> {
        let mut fields = Fields::body(body)?;
        let messages = fields.array("messages")?.ok_or_else(|| fields.missing("messages"))?;
        if messages.is_empty() || messages.len() > MESSAGES_MAX {
            let message = format!("`messages` must have 1 to {MESSAGES_MAX} messages, but has {}.", messages.len());
            return Err(bad_value("messages", message));
        }
        let messages: Vec<Value> = messages.into_iter().enumerate().map(read_message).collect::<Result<_>>()?;
        if messages.last().is_none_or(|last| last["role"] != "user") {
            return Err(bad_value("messages", "The last of `messages` must be the user's, as it is what is answered."));
        }
        let request = Self {
            messages,
            model: fields.string("model")?,
            temperature: fields.float("temperature", 0.0, 2.0)?.unwrap_or(CHAT_TEMPERATURE_DEFAULT),
            max_tokens: fields.integer("max_tokens", 1, TOKENS_MAX)?.map_or(CHAT_TOKENS_DEFAULT, |n| n as usize),
            stream: fields.boolean("stream")?.unwrap_or(false),
            use_rag: fields.boolean("use_rag")?.unwrap_or(true),
            grounding: read_grounding(&mut fields)?,
            lookup: LookupBody::read(&mut fields)?,
            deadline: read_deadline(&mut fields, envelope)?,
        };
        let ignored = Self::ignored(fields.rest(), envelope.strict)?;
        Ok(Parsed { request, ignored })
    }
}

fn read_message((index, message): (usize, Value)) -> Result<Value> {
    let mut fields = Fields::object(message, &format!("messages[{index}]"))?;
    let role = fields.required_string("role")?;
    let path = fields.path("role");
    if !matches!(&role[..], "system" | "user" | "assistant") {
        return Err(bad_value(path.clone(), format!("`{path}` must be `system`, `user` or `assistant`.")));
    }
    Ok(json!({"role": role, "content": read_text(&mut fields, "content", CONTENT_CHARS_MAX)?}))
}

/// `POST /generate` and `POST /stream`: a prompt, answered as a conversation of one turn.
#[derive(Debug)]
pub struct GenerateBody {
    pub model: Option<String>,
    pub generation: GenerateRequest,
}

impl RequestBody for GenerateBody {
    const NAME: &'static str = "GenerateRequest";
    const FIELDS: &'static [&'static [FieldSpec]] = &[generation::FIELDS, GENERATE_FIELDS];
    const REQUIRED: &'static [&'static str] = &["prompt"];
}

impl GenerateBody {
    pub fn read(body: Value, envelope: &Envelope) -> Result<Parsed<Self>> {
        let mut fields = Fields::body(body)?;
        let prompt = fields.required_string("prompt")?;
        if prompt.trim().is_empty() {
            return Err(bad_value("prompt", "`prompt` must not be empty."));
        }
        // The route decides whether it streams.
        fields.take("stream");
        let common = Common::read(&mut fields, envelope)?;
        if common.n != 1 {
            return Err(bad_value("n", "`n` must be 1 on this route; /v1/chat/completions gives several choices."));
        }
        let ignored = Self::ignored(fields.rest(), envelope.strict)?;
        let messages = vec![json!({"role": "user", "content": prompt})];
        let generation = GenerateRequest {
            account: envelope.account.clone(),
            prompt: Prompt::Chat(ChatPrompt { messages, add_generation_prompt: true, ..ChatPrompt::default() }),
            sampling: common.sampling,
            max_tokens: common.max_tokens,
            min_tokens: common.min_tokens,
            stop: common.stop,
            stop_token_ids: common.stop_token_ids,
            ignore_eos: common.ignore_eos,
            n: 1,
            logprobs: None,
            echo: false,
            return_token_ids: false,
            constraint: common.constraint,
            deadline: common.deadline,
            session: common.session,
        };
        Ok(Parsed { request: Self { model: common.model, generation }, ignored })
    }
}

/// `POST /api/v1/search`.
#[derive(Debug)]
pub struct SearchBody {
    pub query: String,
    pub lookup: LookupBody,
    pub deadline: Option<Instant>,
}

impl RequestBody for SearchBody {
    const NAME: &'static str = "SearchRequest";
    const FIELDS: &'static [&'static [FieldSpec]] = &[lookup::FIELDS, SEARCH_FIELDS];
    const REQUIRED: &'static [&'static str] = &["query"];
}

impl SearchBody {
    pub fn read(body: Value, envelope: &Envelope) -> Result<Parsed<Self>> {
        let mut fields = Fields::body(body)?;
        let request = Self {
            query: read_text(&mut fields, "query", CONTENT_CHARS_MAX)?,
            lookup: LookupBody::read(&mut fields)?,
            deadline: read_deadline(&mut fields, envelope)?,
        };
        let ignored = Self::ignored(fields.rest(), envelope.strict)?;
        Ok(Parsed { request, ignored })
    }
}

/// A passage that an answer was made from, in the shape of `/ask`.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct Source {
    /// The headings above it, or the file's name.
    pub title: String,
    /// Its beginning, at most 200 characters.
    #[schemars(length(max = 200))]
    pub content_preview: String,
    /// Cosine of the question and the passage, 0 to 1.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub similarity_score: f32,
    /// How well it answers the question, 0 to 1, if `rerank` was requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub rerank_score: Option<f32>,
    pub document_id: String,
    pub filename: String,
    /// Positions of its first and last chunk in the document.
    pub chunks: (usize, usize),
    /// Page, sheet or line at which it begins.
    pub place: Option<u32>,
}

/// The beginning of a text, at most 200 characters, cut at a word.
pub fn preview(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if text.chars().count() <= PREVIEW_CHARS {
        return text;
    }
    let cut: String = text.chars().take(PREVIEW_CHARS - 1).collect();
    let end = cut.rfind(' ').filter(|&end| end > cut.len() / 2).unwrap_or(cut.len());
    format!("{}…", &cut[..end])
}

/// A passage with its text, in the shape of `/api/v1/search`.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct FoundPassage {
    #[serde(flatten)]
    pub source: Source,
    pub text: String,
    #[schemars(extend("additionalProperties" = {"type": ["string", "number", "boolean"]}))]
    pub attributes: serde_json::Map<String, Value>,
}

#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct SearchAnswer {
    pub query: String,
    pub passages: Vec<FoundPassage>,
    pub latency_ms: u64,
}

/// The answer of `/ask`, and the last event of its stream (without the text, which has been sent).
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct AskAnswer {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub done: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sources: Option<Vec<Source>>,
    /// Passages that were found but did not fit into the model's context.
    pub sources_left_out: usize,
    #[serde(flatten)]
    pub binding: Binding,
    pub model: String,
    pub tokens_used: usize,
    pub latency_ms: u64,
    #[serde(flatten)]
    pub confidence: Option<Confidence>,
    pub usage: Usage,
    pub timings: Timings,
    pub receipt: Receipt,
}

/// How an answer is bound to its sources.
#[derive(Clone, Debug, Default, JsonSchema, Serialize)]
pub struct Binding {
    /// `extract`, `quote` or `free`; absent if no document was searched.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["extract", "quote", "free"]))]
    pub grounding: Option<&'static str>,
    /// Sentences that the model wrote and no passage supports; absent if nothing was checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unsupported: Option<Vec<String>>,
}

/// An event of the streams of these routes.
#[derive(Clone, Debug, JsonSchema, Serialize)]
#[serde(untagged)]
#[schemars(rename = "{A}Event")]
pub enum AppEvent<A> {
    /// More of the answer.
    Token { token: String },
    /// More of a reasoning model's thinking before its answer.
    Reasoning { reasoning: String },
    /// The last event: the answer without its text, which has been sent.
    Done(A),
}

/// An event of a stream that starts with the answer's sources.
#[derive(Clone, Debug, JsonSchema, Serialize)]
#[serde(untagged)]
#[schemars(rename = "{A}EventAfter{F}")]
pub enum AppEventAfter<F, A> {
    First(F),
    Then(AppEvent<A>),
}

/// The first event of `/ask/stream`.
#[derive(Clone, Copy, Debug, JsonSchema, Serialize)]
pub struct FirstSources<'s> {
    pub sources: &'s [Source],
}

/// The first event of `/api/v1/chat/stream`.
#[derive(Clone, Copy, Debug, JsonSchema, Serialize)]
pub struct FirstCitations<'c> {
    pub citations: &'c [Citation],
}

#[derive(Clone, Copy, Debug, JsonSchema, Serialize)]
pub struct Confidence {
    /// 0 to 1.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub confidence: f32,
    /// `false`: the model's rating could not be parsed, and the value means nothing.
    pub confidence_is_rated: bool,
}

/// A passage behind an answer, in the shape of `/api/v1/chat`.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct Citation {
    pub document_id: String,
    /// The index of the passage's first chunk.
    pub chunk_index: usize,
    pub text: String,
    /// Cosine of the question and the passage, 0 to 1.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub score: f32,
    pub title: String,
    pub filename: String,
}

/// The answer of `/api/v1/chat`, and the last event of its stream.
#[derive(Clone, Debug, JsonSchema, Serialize)]
#[schemars(rename = "AppChatAnswer")]
pub struct ChatAnswer {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub done: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<String>,
    pub citations: Vec<Citation>,
    #[serde(flatten)]
    pub binding: Binding,
    pub tokens_used: usize,
    pub model: String,
    pub processing_time_ms: u64,
    pub usage: Usage,
    pub timings: Timings,
    pub receipt: Receipt,
}

/// The answer of `/generate`, and the last event of `/stream`.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct GenerateAnswer {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub done: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    pub model: String,
    pub tokens_used: usize,
    pub latency_ms: u64,
    pub usage: Usage,
    pub timings: Timings,
    pub receipt: Receipt,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope() -> Envelope {
        Envelope { account: hearth_domain::Account::unrecorded(), deadline: None, strict: false }
    }

    #[test]
    fn a_question_has_1_to_2000_characters() {
        for (question, is_good) in [
            (json!("?"), true),
            (json!("ä".repeat(2000)), true),
            (json!("a".repeat(2001)), false),
            (json!(" \n"), false),
            (json!(""), false),
            (json!(null), false),
            (json!(3), false),
        ] {
            let read = AskBody::read(json!({"question": question}), &envelope());
            assert_eq!(read.is_ok(), is_good);
            if let Err(error) = read {
                assert_eq!(error.param(), Some("question"));
            }
        }
    }

    #[test]
    fn what_is_not_said_has_the_contracts_defaults() {
        let ask = AskBody::read(json!({"question": "?"}), &envelope()).unwrap().request;
        assert_eq!((ask.max_tokens, ask.include_sources, ask.confidence), (512, true, false));
        assert_eq!((ask.lookup.top_k, ask.lookup.min_similarity), (5, 0.3));
        let messages = json!([{"role": "user", "content": "?"}]);
        let chat = ChatBody::read(json!({"messages": messages}), &envelope()).unwrap().request;
        assert_eq!((chat.max_tokens, chat.temperature, chat.use_rag, chat.stream), (1024, 0.7, true, false));
    }

    #[test]
    fn how_an_answer_is_bound_is_one_of_four_words() {
        for (grounding, read) in [
            (json!(null), Some(None)),
            (json!("auto"), Some(None)),
            (json!("extract"), Some(Some(Grounding::Extract))),
            (json!("quote"), Some(Some(Grounding::Quote))),
            (json!("free"), Some(Some(Grounding::Free))),
            (json!("strict"), None),
            (json!(1), None),
        ] {
            let ask = AskBody::read(json!({"question": "?", "grounding": grounding}), &envelope());
            let messages = json!([{"role": "user", "content": "?"}]);
            let chat = ChatBody::read(json!({"messages": messages, "grounding": grounding}), &envelope());
            assert_eq!(ask.as_ref().ok().map(|ask| ask.request.grounding), read);
            assert_eq!(chat.as_ref().ok().map(|chat| chat.request.grounding), read);
            assert!(ask.err().is_none_or(|error| error.param() == Some("grounding")));
        }
    }

    #[test]
    fn a_conversation_ends_with_the_users_turn() {
        for (messages, param) in [
            (json!([]), "messages"),
            (json!([{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]), "messages"),
            (json!([{"role": "tool", "content": "?"}]), "messages[0].role"),
            (json!([{"role": "user", "content": ""}]), "messages[0].content"),
            (json!([{"role": "user", "content": "a".repeat(10_001)}]), "messages[0].content"),
        ] {
            let error = ChatBody::read(json!({"messages": messages}), &envelope()).unwrap_err();
            assert_eq!(error.param(), Some(param));
        }
    }

    #[test]
    fn a_preview_ends_at_a_word() {
        assert_eq!(preview("a\n b"), "a b");
        let cut = preview(&"word ".repeat(100));
        assert!(cut.chars().count() <= 200 && cut.ends_with("word…"), "{cut}");
        assert_eq!(preview(&"ä".repeat(300)).chars().count(), 200);
    }
}
