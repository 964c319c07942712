//! Texts to vectors on this machine: the text side of the encoder's thread.
//!
//! It prepends the model's own prompt to a text, tokenizes it (where `crates/text/src/work.rs` says, and no further
//! than the model's limit requires), and hands the tokens to the [`EncoderHandle`]. What the contract asks beyond that
//! is decided here: an empty string is refused, as OpenAI does, because it has no meaning to embed; a text of spaces is
//! not empty and gives the vector of its special tokens. A text over the limit is refused with both numbers, or
//! truncated when the caller asks for it, keeping the closing special tokens.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use futures_util::future::{BoxFuture, FutureExt};
use hearth_domain::{
    EmbedInput, EmbedInputType, EmbedRequest, EmbedResponse, ModelInfo, ModelKind, Timings,
    documents::EmbeddingIdentity,
    error::{Error, ErrorKind, Result},
    part::Part,
    usage::ServedBy,
};
use hearth_kernels::device::{DeviceChoice, device_name, open_device};
use hearth_models::encoder::{Encoder, EncoderSource, package::Prompts, pooling::truncate_dimensions};
use hearth_text::{
    tokenizer::{FirstTokens, Tokenizer},
    work::{Wanted, each_off_the_async_threads},
};

use super::Embedder;
use crate::engine::encoder::{EncodeRequest, EncoderConfig, EncoderHandle, EncoderStats, Foreground, Priority};

/// How an embedding model is served.
#[derive(Clone, Debug, Default)]
pub struct EmbedderSettings {
    /// The name it is served under.
    pub name: String,
    pub device: DeviceChoice,
    pub queue: EncoderConfig,
    /// Overrides the prompts in the model's own files, where a manifest knows better.
    pub prompts: Option<Prompts>,
}

/// An embedding model that runs in this process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LocalEmbedder {
    texts: Arc<TextSide>,
    encoder: EncoderHandle,
    info: Arc<ModelInfo>,
    identity: Arc<EmbeddingIdentity>,
    device: &'static str,
    priority: Priority,
}

/// What turns a request's inputs into tokens.
#[derive(Debug)]
struct TextSide {
    tokenizer: Tokenizer,
    prompts: Prompts,
    lowercase: bool,
    vocab_size: usize,
    /// Tokens of the longest text, special ones included.
    max_tokens: usize,
    /// How many special tokens close a text.
    num_closing: usize,
}

impl LocalEmbedder {
    /// Loads a sentence-transformers directory or a GGUF file and starts its thread.
    ///
    /// # Errors
    /// One sentence that says what is missing, damaged or not supported, and where.
    pub fn load(path: &Path, settings: EmbedderSettings) -> anyhow::Result<Self> {
        Self::load_from(path, settings).with_context(|| format!("the embedding model {}", path.display()))
    }

    fn load_from(path: &Path, settings: EmbedderSettings) -> anyhow::Result<Self> {
        let source = EncoderSource::open(path)?;
        let tokenizer = match &source {
            EncoderSource::Directory { transformer, .. } => Tokenizer::from_file(&transformer.join("tokenizer.json"))?,
            EncoderSource::Gguf(gguf) => Tokenizer::from_gguf(gguf.metadata())?,
        };
        let device = open_device(settings.device)?;
        let encoder = Encoder::load(&source, &device)?;
        let (config, package) = (encoder.config(), encoder.package());
        let texts = TextSide {
            num_closing: num_closing_tokens(&tokenizer)?,
            tokenizer,
            prompts: settings.prompts.unwrap_or_else(|| package.prompts.clone()),
            lowercase: package.lowercase,
            vocab_size: config.vocab,
            max_tokens: encoder.max_tokens(),
        };
        if texts.num_closing >= texts.max_tokens {
            anyhow::bail!("its longest text is {} tokens, which leaves no room for words", texts.max_tokens);
        }
        let fingerprint = source.fingerprint()?;
        let info = ModelInfo {
            id: settings.name,
            kind: ModelKind::Embedding,
            architecture: config.architecture.clone(),
            context_length: encoder.max_tokens(),
            vocab_size: config.vocab,
            embedding_length: Some(config.hidden),
            parameters: encoder.facts().parameters,
            quantization: encoder.facts().dominant_type.clone(),
            size_bytes: encoder.facts().file_bytes,
            supports_tools: false,
            supports_reasoning: false,
            created: source.modified(),
            fingerprint: fingerprint.to_hex().to_string(),
        };
        tracing::info!(
            model = info.id,
            architecture = info.architecture,
            dimensions = config.hidden,
            max_tokens = info.context_length,
            pooling = package.pooling.as_str(),
            normalize = package.normalize,
            "embedding model loaded"
        );
        let identity = EmbeddingIdentity {
            name: format!(
                "{} {} ({}, {}, prefixes {:?} and {:?})",
                info.architecture,
                &fingerprint.to_hex()[..16],
                package.pooling.as_str(),
                if package.normalize { "normalized" } else { "not normalized" },
                texts.prompts.query.as_deref().unwrap_or_default(),
                texts.prompts.passage.as_deref().unwrap_or_default(),
            ),
            dimensions: config.hidden,
        };
        let encoder = EncoderHandle::start("embedding engine", Box::new(Arc::new(encoder)), settings.queue)?;
        let (texts, info, identity) = (Arc::new(texts), Arc::new(info), Arc::new(identity));
        let device = device_name(&device);
        Ok(Self { texts, encoder, info, identity, device, priority: Priority::Interactive })
    }

    /// The same model for background work, such as indexing, which runs when no interactive texts wait.
    pub fn in_background(&self) -> Self {
        Self { priority: Priority::Background, ..self.clone() }
    }

    /// From now on background work yields to the activity that `foreground` reports.
    pub fn give_way_to(&self, foreground: impl Fn() -> Foreground + Send + Sync + 'static) {
        self.encoder.give_way_to(foreground);
    }

    /// The tokenizer, for measuring texts as this model reads them.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.texts.tokenizer
    }

    pub fn stats(&self) -> EncoderStats {
        self.encoder.stats()
    }

    /// The thread's entry in the health report.
    pub fn part(&self) -> &Arc<Part> {
        self.encoder.part()
    }

    /// Refuses new requests, finishes the accepted ones within `grace`, and stops the thread.
    pub async fn drain(&self, grace: Duration) {
        self.encoder.drain(grace).await;
    }

    async fn embed_texts(&self, request: EmbedRequest) -> Result<EmbedResponse> {
        let length = self.info.embedding_length.unwrap_or_default();
        if let Some(dimensions) = request.dimensions
            && !(1..=length).contains(&dimensions)
        {
            return Err(Error::invalid(
                "dimensions",
                format!("dimensions is {dimensions}, but this model's embeddings have 1 to {length}."),
            ));
        }
        let EmbedRequest { account, inputs, input_type, dimensions, truncate, deadline, .. } = request;
        let text_side = self.texts.clone();
        let tokens_of = move |index, input, wanted: &Wanted| {
            text_side.tokens_of(index, input, input_type, truncate, &|| wanted.still())
        };
        let texts = match self.priority {
            Priority::Interactive => each_off_the_async_threads(inputs, bytes_of, tokens_of).await?,
            // A document's chunks are short and many. They come from few workers, which must not be refused.
            Priority::Background => {
                let one = move |(index, input)| tokens_of(index, input, &Wanted::always());
                let all = move || (0..).zip(inputs).map(one).collect::<Result<Vec<_>>>();
                tokio::task::spawn_blocking(all).await.map_err(Error::internal)??
            }
        };
        if texts.is_empty() {
            return Ok(EmbedResponse {
                embeddings: Vec::new(),
                prompt_tokens: 0,
                token_counts: Vec::new(),
                timings: Timings::default(),
            });
        }
        let token_counts: Vec<usize> = texts.iter().map(Vec::len).collect();
        let prompt_tokens = token_counts.iter().sum();
        let record = account.begin_record(&self.info.id, ServedBy::Local { device: self.device.to_owned() });
        record.set_prompt_tokens(prompt_tokens, 0);
        let (caller, priority) = (account.fairness_key().to_owned(), self.priority);
        let request = EncodeRequest { texts, priority, caller, record: record.clone(), deadline };
        let encoded = self.encoder.submit(request)?.await?;
        let mut embeddings = encoded.vectors;
        if let Some(dimensions) = dimensions {
            for vector in &mut embeddings {
                truncate_dimensions(vector, dimensions);
            }
        }
        let timings = Timings {
            queue: encoded.queue,
            prefill: encoded.running,
            decode: Duration::ZERO,
            compute: encoded.compute,
        };
        record.set_timings(&timings);
        Ok(EmbedResponse { embeddings, prompt_tokens, token_counts, timings })
    }
}

impl Embedder for LocalEmbedder {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn identity(&self) -> EmbeddingIdentity {
        (*self.identity).clone()
    }

    fn embed(&self, request: EmbedRequest) -> BoxFuture<'_, Result<EmbedResponse>> {
        self.embed_texts(request).boxed()
    }
}

impl TextSide {
    /// A text is counted exactly up to this multiple of the limit, so that a refusal says by how much it is too long.
    const COUNTED: usize = 4;

    fn tokens_of(
        &self,
        index: usize,
        input: EmbedInput,
        input_type: EmbedInputType,
        truncate: bool,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Vec<u32>> {
        let mut is_whole = true;
        let param = || format!("input[{index}]");
        let mut tokens = match input {
            EmbedInput::Text(text) if text.is_empty() => {
                return Err(Error::invalid(param(), format!("{} cannot be an empty string.", param())));
            }
            EmbedInput::Text(text) => {
                let enough = if truncate { self.max_tokens } else { Self::COUNTED * self.max_tokens };
                let first = self.encode(text, input_type, enough, go_on)?;
                is_whole = first.is_whole;
                first.ids
            }
            EmbedInput::Tokens(tokens) if tokens.is_empty() => {
                return Err(Error::invalid(param(), format!("{} cannot be an empty array of tokens.", param())));
            }
            EmbedInput::Tokens(tokens) => tokens,
        };
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= self.vocab_size) {
            return Err(Error::invalid(
                param(),
                format!(
                    "{} has the token id {token}, but this model's vocabulary has {} tokens. Token ids must come from \
                     this model's own tokenizer: send text, or use /tokenize.",
                    param(),
                    self.vocab_size
                ),
            ));
        }
        if tokens.len() > self.max_tokens {
            if !truncate {
                return Err(too_long(&param(), tokens.len(), is_whole, self.max_tokens));
            }
            self.truncate(&mut tokens);
        }
        Ok(tokens)
    }

    /// Special tokens spelled in a text count as such, as in sentence-transformers: there is no conversation here to
    /// break out of.
    fn encode(
        &self,
        text: String,
        input_type: EmbedInputType,
        enough: usize,
        go_on: &dyn Fn() -> bool,
    ) -> Result<FirstTokens> {
        let prompt = match input_type {
            EmbedInputType::Plain => &self.prompts.plain,
            EmbedInputType::Query => &self.prompts.query,
            EmbedInputType::Passage => &self.prompts.passage,
        };
        let mut text = match prompt {
            Some(prompt) => format!("{prompt}{text}"),
            None => text,
        };
        if self.lowercase {
            text = text.to_lowercase();
        }
        self.tokenizer.encode_first(&text, true, true, enough, go_on).map_err(Error::internal)
    }

    /// Cuts words off the end and keeps the special tokens that close a text.
    fn truncate(&self, tokens: &mut Vec<u32>) {
        let closing = tokens.split_off(tokens.len() - self.num_closing);
        tokens.truncate(self.max_tokens - self.num_closing);
        tokens.extend(closing);
    }
}

fn bytes_of(input: &EmbedInput) -> usize {
    match input {
        EmbedInput::Text(text) => text.len(),
        // There is nothing to tokenize.
        EmbedInput::Tokens(_) => 0,
    }
}

/// `tokens` is the count or, if the text was not counted to its end, a lower bound.
fn too_long(param: &str, tokens: usize, is_whole: bool, limit: usize) -> Error {
    let at_least = if is_whole { "" } else { "at least " };
    Error::new(
        ErrorKind::ContextLengthExceeded,
        format!(
            "This model's longest text is {limit} tokens, but {param} has {at_least}{tokens} tokens. Shorten it, split \
             it, or have it cut: `truncate` in a request, --truncate on the command line."
        ),
    )
    .with_context(tokens, limit)
    .with_param(param)
}

/// The special tokens after the last word: those that end a text and that an encoding without specials lacks.
fn num_closing_tokens(tokenizer: &Tokenizer) -> anyhow::Result<usize> {
    let with_special = tokenizer.encode("a", true, false)?;
    let without = tokenizer.encode("a", false, false)?;
    let start = with_special.windows(without.len().max(1)).position(|window| window == without);
    Ok(start.map_or(0, |start| with_special.len() - start - without.len()))
}
