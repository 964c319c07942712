//! A model without weights that answers from a script. It stands in for the engine where a test's subject is what
//! surrounds it (contract, streaming, limits, disconnects).
//!
//! Its tokens are bytes: token id `b` is the byte `b`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream};
use hearth_domain::{
    Account, ChatPrompt, EmbedInput, EmbedRequest, EmbedResponse, FinishReason, GenerateEvent, GenerateRequest,
    ModelInfo, ModelKind, Prompt, Timings, TokenLogprob, TopLogprob, Usage,
    documents::EmbeddingIdentity,
    error::{Error, Result},
    quote::Quote,
    usage::{ServedBy, UsageRecord},
};
use parking_lot::Mutex;
use serde_json::Value;

use super::{ChatModel, Embedder, GenerateStream, PromptTokenizer};

/// One step of a script.
pub enum Step {
    Event(GenerateEvent),
    /// Nothing happens for this long.
    Wait(Duration),
    /// The stream fails here.
    Fail(Error),
    /// Nothing more happens until the stream is dropped.
    Hang,
}

impl std::fmt::Debug for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Event(event) => f.debug_tuple("Event").field(event).finish(),
            Self::Wait(duration) => f.debug_tuple("Wait").field(duration).finish(),
            Self::Fail(error) => f.debug_tuple("Fail").field(error).finish(),
            Self::Hang => f.write_str("Hang"),
        }
    }
}

/// Decides on a request: refused, or admitted with these steps.
pub type Script = dyn Fn(&GenerateRequest) -> Result<Vec<Step>> + Send + Sync;

/// See the module's documentation.
pub struct ScriptedChat {
    info: ModelInfo,
    script: Box<Script>,
    counts: Arc<Counts>,
    requests: Mutex<Vec<GenerateRequest>>,
}

/// Counts of the streams so far.
#[derive(Debug, Default)]
struct Counts {
    started: AtomicUsize,
    completed: AtomicUsize,
    cancelled: AtomicUsize,
}

impl std::fmt::Debug for ScriptedChat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScriptedChat").field("info", &self.info).field("counts", &self.counts).finish_non_exhaustive()
    }
}

/// Token ids are bytes.
pub const VOCAB_SIZE: usize = 256;

impl ScriptedChat {
    pub fn new(id: &str, script: impl Fn(&GenerateRequest) -> Result<Vec<Step>> + Send + Sync + 'static) -> Self {
        Self {
            info: model_info(id, ModelKind::Chat),
            script: Box::new(script),
            counts: Arc::default(),
            requests: Mutex::default(),
        }
    }

    /// A model that answers every request with `text`, one character per token, within the request's limits.
    pub fn saying(id: &str, text: &'static str) -> Self {
        Self::new(id, move |request| Ok(say(request, text)))
    }

    /// Requests that were admitted.
    pub fn started(&self) -> usize {
        self.counts.started.load(Ordering::SeqCst)
    }

    /// Streams that ran to their end.
    pub fn completed(&self) -> usize {
        self.counts.completed.load(Ordering::SeqCst)
    }

    /// Streams that were dropped before their end.
    pub fn cancelled(&self) -> usize {
        self.counts.cancelled.load(Ordering::SeqCst)
    }

    /// The requests so far, in order.
    pub fn requests(&self) -> Vec<GenerateRequest> {
        self.requests.lock().clone()
    }
}

fn model_info(id: &str, kind: ModelKind) -> ModelInfo {
    ModelInfo {
        id: id.to_owned(),
        kind,
        architecture: "scripted".to_owned(),
        context_length: 4096,
        vocab_size: VOCAB_SIZE,
        embedding_length: (kind == ModelKind::Embedding).then_some(EMBEDDING_LENGTH),
        parameters: 0,
        quantization: "F32".to_owned(),
        size_bytes: 0,
        supports_tools: true,
        supports_reasoning: false,
        created: 1_700_000_000,
        fingerprint: String::new(),
    }
}

fn prompt_tokens(prompt: &Prompt) -> usize {
    match prompt {
        Prompt::Chat(chat) => render_plainly(chat).len(),
        Prompt::Text(text) => text.len(),
        Prompt::Tokens(ids) => ids.len(),
    }
}

/// The steps of an answer that says `text`, with everything that the request asks to have reported.
pub fn say(request: &GenerateRequest, text: &str) -> Vec<Step> {
    let limit = request.max_tokens.unwrap_or(usize::MAX);
    let prompt_tokens = prompt_tokens(&request.prompt);
    let mut steps = vec![Step::Event(GenerateEvent::Prefilled { prompt_tokens, cached_tokens: 0 })];
    let mut completion_tokens = 0;
    for choice in 0..request.n {
        if request.echo {
            let echoed = match &request.prompt {
                Prompt::Text(text) => text.clone(),
                Prompt::Tokens(ids) => String::from_utf8_lossy(&bytes_of(ids)).into_owned(),
                Prompt::Chat(chat) => render_plainly(chat),
            };
            let mut logprobs: Vec<_> = echoed.chars().map(|c| logprob_of(request, c)).collect();
            if let Some(first) = logprobs.first_mut() {
                first.logprob = None;
                first.top.clear();
            }
            steps.push(Step::Event(GenerateEvent::Echo {
                choice,
                logprobs: if request.logprobs.is_some() { logprobs } else { Vec::new() },
                token_ids: Vec::new(),
                text: echoed,
            }));
        }
        let mut length = 0;
        for character in text.chars().take(limit) {
            length += 1;
            steps.push(Step::Event(GenerateEvent::Delta {
                choice,
                text: character.to_string(),
                logprobs: request.logprobs.map(|_| logprob_of(request, character)).into_iter().collect(),
                token_ids: if request.return_token_ids { vec![u32::from(character) % 256] } else { Vec::new() },
            }));
        }
        completion_tokens += length;
        let reason = if length < text.chars().count() { FinishReason::Length } else { FinishReason::Stop };
        steps.push(Step::Event(GenerateEvent::Finished { choice, reason }));
    }
    steps.push(Step::Event(GenerateEvent::Done {
        usage: Usage { prompt_tokens, completion_tokens, cached_tokens: 0, reasoning_tokens: 0 },
        timings: Timings {
            queue: Duration::from_millis(1),
            prefill: Duration::from_millis(10),
            decode: Duration::from_millis(20),
            compute: Duration::from_millis(30),
        },
    }));
    steps
}

fn logprob_of(request: &GenerateRequest, character: char) -> TokenLogprob {
    let text = character.to_string();
    let bytes = text.clone().into_bytes();
    let token_id = u32::from(character) % 256;
    let alternatives =
        ["\u{2581}a", "\u{2581}b", "\u{2581}c", "\u{2581}d"].into_iter().zip(1u8..).map(|(word, rank)| TopLogprob {
            token_id: u32::from(rank),
            text: word.to_owned(),
            bytes: word.into(),
            logprob: -f32::from(rank),
        });
    let taken = TopLogprob { token_id, text: text.clone(), bytes: bytes.clone(), logprob: -0.5 };
    let top = std::iter::once(taken).chain(alternatives).take(request.logprobs.unwrap_or(0)).collect();
    TokenLogprob { token_id, text, bytes, logprob: Some(-0.5), top }
}

/// Counts a stream's end, whatever the cause.
struct Running {
    counts: Arc<Counts>,
    completed: bool,
    record: UsageRecord,
}

/// Records the usage that an event reports.
fn write_down(record: &UsageRecord, event: &GenerateEvent) {
    match event {
        GenerateEvent::Prefilled { prompt_tokens, cached_tokens } => {
            record.set_prompt_tokens(*prompt_tokens, *cached_tokens);
        }
        GenerateEvent::Delta { .. } => record.count_token(),
        GenerateEvent::Done { usage, timings } => {
            record.set_usage(usage);
            record.set_timings(timings);
            record.record_compute(timings.compute);
        }
        _ => {}
    }
}

impl Running {
    fn complete(mut self) {
        self.completed = true;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let count = if self.completed { &self.counts.completed } else { &self.counts.cancelled };
        count.fetch_add(1, Ordering::SeqCst);
    }
}

impl ChatModel for ScriptedChat {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn generate(&self, request: GenerateRequest) -> BoxFuture<'_, Result<GenerateStream>> {
        async move {
            let steps = (self.script)(&request)?;
            let record = request.account.begin_record(&self.info.id, ServedBy::Local { device: "scripted".to_owned() });
            // A kept request must not hold the account open.
            self.requests.lock().push(GenerateRequest { account: Account::unrecorded(), ..request });
            self.counts.started.fetch_add(1, Ordering::SeqCst);
            let running = Running { counts: Arc::clone(&self.counts), completed: false, record };
            let events = stream::unfold((steps.into_iter(), running), |(mut steps, mut running)| async move {
                loop {
                    match steps.next() {
                        None => {
                            running.complete();
                            return None;
                        }
                        Some(Step::Wait(duration)) => tokio::time::sleep(duration).await,
                        Some(Step::Hang) => std::future::pending::<()>().await,
                        Some(Step::Fail(error)) => {
                            running.completed = true;
                            return Some((Err(error), (steps, running)));
                        }
                        Some(Step::Event(event)) => {
                            running.completed = matches!(event, GenerateEvent::Done { .. });
                            write_down(&running.record, &event);
                            return Some((Ok(event), (steps, running)));
                        }
                    }
                }
            });
            Ok(events.boxed())
        }
        .boxed()
    }

    fn quotes(&self, request: &GenerateRequest) -> Result<Vec<Quote>> {
        let served_by = ServedBy::Local { device: "cpu".to_owned() };
        let tokens = prompt_tokens(&request.prompt);
        Ok(vec![Quote::new(served_by, &self.info, tokens, request.n, request.max_tokens)])
    }

    fn tokenizer(&self) -> Option<&dyn PromptTokenizer> {
        Some(self)
    }
}

impl PromptTokenizer for ScriptedChat {
    fn render(&self, prompt: &ChatPrompt) -> Result<String> {
        Ok(render_plainly(prompt))
    }

    fn tokenize(&self, text: &str, add_special: bool, _parse_special: bool) -> Result<Vec<u32>> {
        // Byte 1 acts as the BOS token.
        Ok(add_special.then_some(1).into_iter().chain(text.bytes().map(u32::from)).collect())
    }

    fn detokenize(&self, tokens: &[u32]) -> Result<String> {
        if let Some((index, id)) = tokens.iter().enumerate().find(|(_, id)| u8::try_from(**id).is_err()) {
            return Err(Error::invalid(
                format!("tokens[{index}]"),
                format!("Token id {id} is outside the vocabulary."),
            ));
        }
        Ok(String::from_utf8_lossy(&bytes_of(tokens)).into_owned())
    }

    fn token_bytes(&self, token: u32) -> Option<Vec<u8>> {
        u8::try_from(token).ok().map(|byte| vec![byte])
    }
}

fn bytes_of(tokens: &[u32]) -> Vec<u8> {
    tokens.iter().filter_map(|id| u8::try_from(*id).ok()).collect()
}

fn render_plainly(prompt: &ChatPrompt) -> String {
    let mut text = String::new();
    for message in &prompt.messages {
        let field = |name: &str| message.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        text.push_str(&format!("<{}>{}\n", field("role"), field("content")));
    }
    if prompt.add_generation_prompt {
        text.push_str("<assistant>");
    }
    text
}

/// Length of a scripted embedding.
pub const EMBEDDING_LENGTH: usize = 8;

/// An embedder whose vectors depend on nothing but the input's bytes.
#[derive(Debug)]
pub struct ScriptedEmbedder {
    info: ModelInfo,
}

impl ScriptedEmbedder {
    pub fn new(id: &str) -> Self {
        Self { info: model_info(id, ModelKind::Embedding) }
    }
}

impl Embedder for ScriptedEmbedder {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn identity(&self) -> EmbeddingIdentity {
        EmbeddingIdentity { name: self.info.id.clone(), dimensions: EMBEDDING_LENGTH }
    }

    fn embed(&self, request: EmbedRequest) -> BoxFuture<'_, Result<EmbedResponse>> {
        let mut token_counts = Vec::with_capacity(request.inputs.len());
        let embeddings = request
            .inputs
            .iter()
            .map(|input| {
                let bytes = match input {
                    EmbedInput::Text(text) => text.clone().into_bytes(),
                    EmbedInput::Tokens(ids) => bytes_of(ids),
                };
                token_counts.push(bytes.len());
                let hash = blake3::hash(&bytes);
                let length = request.dimensions.unwrap_or(EMBEDDING_LENGTH);
                normalized(hash.as_bytes().iter().take(length).map(|byte| f32::from(*byte) - 127.5).collect())
            })
            .collect();
        let prompt_tokens = token_counts.iter().sum();
        let record = request.account.begin_record(&self.info.id, ServedBy::Local { device: "scripted".to_owned() });
        record.set_prompt_tokens(prompt_tokens, 0);
        async move { Ok(EmbedResponse { embeddings, prompt_tokens, token_counts, timings: Timings::default() }) }
            .boxed()
    }
}

fn normalized(vector: Vec<f32>) -> Vec<f32> {
    let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    vector.into_iter().map(|value| value / length).collect()
}
