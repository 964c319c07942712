//! Rates documents on this machine: the text side of a cross-encoder's thread.
//!
//! A pair is the query and a document with the model's own special tokens around them. A document that does not fit is
//! truncated, as `transformers` does with `only_second`; a query that leaves a document no room is refused. Special
//! tokens spelled in a text are plain words here: a document must not be able to close the query and begin another. The
//! score is the logit's sigmoid, 0 to 1.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use futures_util::future::{BoxFuture, FutureExt};
use hearth_domain::{
    ModelInfo, ModelKind, RerankRequest, RerankResponse,
    error::{Error, ErrorKind, Result},
    part::Part,
    usage::ServedBy,
};
use hearth_kernels::device::{device_name, open_device};
use hearth_models::encoder::{EncoderSource, cross_encoder::CrossEncoder};
use hearth_text::{
    tokenizer::{FirstTokens, Tokenizer},
    work::{Wanted, each_off_the_async_threads, off_the_async_threads},
};

use super::{Reranker, local_embedder::EmbedderSettings};
use crate::engine::{
    StepError,
    encoder::{EncodeRequest, EncoderHandle, EncoderModel, Priority},
};

/// A rerank model that runs in this process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LocalReranker {
    pairs: Arc<PairSide>,
    encoder: EncoderHandle,
    info: Arc<ModelInfo>,
    device: &'static str,
}

/// What turns a query and documents into tokens.
#[derive(Debug)]
struct PairSide {
    tokenizer: Tokenizer,
    opening: Vec<u32>,
    /// The separator: `[SEP]`, or RoBERTa's two tokens.
    between: Vec<u32>,
    closing: Vec<u32>,
    max_tokens: usize,
}

/// The thread's model: its vectors have one element, the logit.
struct PairScorer {
    model: CrossEncoder,
    separator: u32,
}

impl EncoderModel for PairScorer {
    fn embed(&mut self, tokens: &[u32], lengths: &[usize]) -> Result<Vec<Vec<f32>>, StepError> {
        let logits = self.model.logits(tokens, lengths, self.separator);
        let logits = logits.map_err(|error| StepError::Failed(error.to_string()))?;
        Ok(logits.into_iter().map(|logit| vec![logit]).collect())
    }
}

impl LocalReranker {
    /// Loads a directory as `transformers` writes it and starts the model's thread. Prompts do not apply to pairs.
    ///
    /// # Errors
    /// One sentence that says what is missing, damaged or not supported, and where.
    pub fn load(path: &Path, settings: EmbedderSettings) -> anyhow::Result<Self> {
        Self::load_from(path, settings).with_context(|| format!("the rerank model {}", path.display()))
    }

    fn load_from(path: &Path, settings: EmbedderSettings) -> anyhow::Result<Self> {
        let source = EncoderSource::open(path)?;
        let device = open_device(settings.device)?;
        let model = CrossEncoder::load(&source, &device)?;
        let EncoderSource::Directory { transformer, .. } = &source else {
            anyhow::bail!("a rerank model is a directory");
        };
        let tokenizer = Tokenizer::from_file(&transformer.join("tokenizer.json"))?;
        let config = model.config();
        let is_bert = config.architecture == "bert";
        let pairs = PairSide::new(tokenizer, model.max_tokens(), is_bert)?;
        let separator = pairs.closing[0];
        let info = ModelInfo {
            id: settings.name,
            kind: ModelKind::Rerank,
            architecture: config.architecture.clone(),
            context_length: model.max_tokens(),
            vocab_size: config.vocab,
            embedding_length: None,
            parameters: model.facts().parameters,
            quantization: model.facts().dominant_type.clone(),
            size_bytes: model.facts().file_bytes,
            supports_tools: false,
            supports_reasoning: false,
            created: source.modified(),
            fingerprint: String::new(),
        };
        tracing::info!(
            model = info.id,
            architecture = info.architecture,
            max_tokens = info.context_length,
            "rerank model loaded"
        );
        let encoder = EncoderHandle::start("rerank engine", Box::new(PairScorer { model, separator }), settings.queue)?;
        Ok(Self { pairs: Arc::new(pairs), encoder, info: Arc::new(info), device: device_name(&device) })
    }

    /// The thread's entry in the health report.
    pub fn part(&self) -> &Arc<Part> {
        self.encoder.part()
    }

    /// Refuses new requests, finishes the accepted ones within `grace`, and stops the thread.
    pub async fn drain(&self, grace: Duration) {
        self.encoder.drain(grace).await;
    }

    async fn rerank_texts(&self, request: RerankRequest) -> Result<RerankResponse> {
        let RerankRequest { account, query, documents, deadline } = request;
        if documents.is_empty() {
            return Ok(RerankResponse { scores: Vec::new(), prompt_tokens: 0 });
        }
        let pairs = self.pairs.clone();
        let front = off_the_async_threads(query.len(), move |wanted| pairs.front(&query, wanted)).await?;
        let pairs = self.pairs.clone();
        let pair = move |_index, document: String, wanted: &Wanted| pairs.pair(&front, &document, wanted);
        let texts = each_off_the_async_threads(documents, String::len, pair).await?;
        let prompt_tokens = texts.iter().map(Vec::len).sum();
        let record = account.begin_record(&self.info.id, ServedBy::Local { device: self.device.to_owned() });
        record.set_prompt_tokens(prompt_tokens, 0);
        let caller = account.fairness_key().to_owned();
        let request = EncodeRequest { texts, priority: Priority::Interactive, caller, record, deadline };
        let encoded = self.encoder.submit(request)?.await?;
        let sigmoid = |logit: f32| 1.0 / (1.0 + (-logit).exp());
        let scores: Vec<f32> = encoded.vectors.iter().flatten().map(|logit| sigmoid(*logit)).collect();
        if scores.iter().any(|score| score.is_nan()) {
            return Err(Error::internal(anyhow::anyhow!("the rerank model's logits are not numbers")));
        }
        Ok(RerankResponse { scores, prompt_tokens })
    }
}

impl Reranker for LocalReranker {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn rerank(&self, request: RerankRequest) -> BoxFuture<'_, Result<RerankResponse>> {
        self.rerank_texts(request).boxed()
    }
}

impl PairSide {
    /// A query is counted exactly up to this multiple of the limit.
    const COUNTED: usize = 4;

    fn new(tokenizer: Tokenizer, max_tokens: usize, is_bert: bool) -> anyhow::Result<Self> {
        let with_special = tokenizer.encode("a", true, false)?;
        let without = tokenizer.encode("a", false, false)?;
        let start = with_special.windows(without.len().max(1)).position(|window| window == without);
        let start = start.context("its tokenizer does not put special tokens around a text")?;
        let (opening, rest) = with_special.split_at(start);
        let closing = rest[without.len()..].to_vec();
        ensure!(!closing.is_empty(), "its tokenizer does not close a text with a special token");
        let between = if is_bert { closing.clone() } else { closing.repeat(2) };
        let specials = opening.len() + between.len() + closing.len();
        ensure!(specials + 2 <= max_tokens, "its longest pair is {max_tokens} tokens, which leaves no room for words");
        Ok(Self { opening: opening.to_vec(), between, closing, tokenizer, max_tokens })
    }

    /// What precedes each document: the query with the special tokens around it.
    fn front(&self, query: &str, wanted: &Wanted) -> Result<Vec<u32>> {
        let specials = self.opening.len() + self.between.len() + self.closing.len();
        let limit = self.max_tokens - specials - 1;
        let query = self.encode(query, Self::COUNTED * limit, wanted)?;
        if query.ids.len() > limit {
            let at_least = if query.is_whole { "" } else { "at least " };
            let num_tokens = query.ids.len();
            return Err(Error::new(
                ErrorKind::ContextLengthExceeded,
                format!(
                    "The query has {at_least}{num_tokens} tokens, but with a document beside it this model takes at most \
                     {limit}. Shorten it."
                ),
            )
            .with_context(num_tokens, limit)
            .with_param("query"));
        }
        Ok([self.opening.as_slice(), &query.ids, &self.between].concat())
    }

    fn pair(&self, front: &[u32], document: &str, wanted: &Wanted) -> Result<Vec<u32>> {
        let room = self.max_tokens - front.len() - self.closing.len();
        let mut passage = self.encode(document, room, wanted)?.ids;
        passage.truncate(room);
        Ok([front, &passage, &self.closing].concat())
    }

    fn encode(&self, text: &str, enough: usize, wanted: &Wanted) -> Result<FirstTokens> {
        self.tokenizer.encode_first(text, false, false, enough, &|| wanted.still()).map_err(Error::internal)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use serde::Deserialize;

    use super::*;

    /// One pair under one tiny model, as computed by transformers.
    #[derive(Deserialize)]
    struct Case {
        query: String,
        passage: String,
        ids: Vec<u32>,
        logit: f32,
    }

    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/rerank").join(name)
    }

    fn cases(name: &str) -> Vec<Case> {
        let text = std::fs::read_to_string(fixture(&format!("{name}.json"))).expect("the fixture is committed");
        serde_json::from_str(&text).expect("the fixture is valid")
    }

    fn load(name: &str) -> LocalReranker {
        LocalReranker::load(
            &fixture(name),
            EmbedderSettings { device: hearth_kernels::device::DeviceChoice::Cpu, ..Default::default() },
        )
        .expect("the model loads")
    }

    #[tokio::test]
    async fn pairs_and_logits_are_those_of_transformers() {
        for name in ["bert", "xlm-roberta"] {
            let reranker = load(name);
            let source = EncoderSource::open(&fixture(name)).expect("the model opens");
            let model = CrossEncoder::load(&source, &Device::Cpu).expect("the model loads");
            let separator = reranker.pairs.closing[0];
            let cases = cases(name);
            let check = |logits: &[f32], cases: &[Case]| {
                for (logit, case) in logits.iter().zip(cases) {
                    let difference = (logit - case.logit).abs();
                    assert!(difference < 1e-4, "{name}: {:?} and {:?}: {difference}", case.query, case.passage);
                }
            };
            for case in &cases {
                let front = reranker.pairs.front(&case.query, &Wanted::always()).expect("it fits");
                let tokens = reranker.pairs.pair(&front, &case.passage, &Wanted::always()).expect("it fits");
                assert_eq!(tokens, case.ids, "{name}: {:?}", case.passage);
                let alone = model.logits(&case.ids, &[case.ids.len()], separator).expect("it runs");
                check(&alone, std::slice::from_ref(case));
            }
            let tokens: Vec<u32> = cases.iter().flat_map(|case| case.ids.clone()).collect();
            let lengths: Vec<usize> = cases.iter().map(|case| case.ids.len()).collect();
            let together = model.logits(&tokens, &lengths, separator).expect("it runs");
            assert_eq!(together.len(), cases.len());
            check(&together, &cases);
        }
    }

    #[tokio::test]
    async fn scores_are_sigmoids_in_the_order_of_the_documents() {
        let cases: Vec<Case> = cases("bert").into_iter().take(6).collect();
        let request = RerankRequest {
            query: cases[0].query.clone(),
            documents: cases.iter().map(|case| case.passage.clone()).collect(),
            account: hearth_domain::Account::unrecorded(),
            deadline: None,
        };
        let answer = load("bert").rerank(request).await.expect("it fits");
        for (score, case) in answer.scores.iter().zip(&cases) {
            assert!((score - 1.0 / (1.0 + (-case.logit).exp())).abs() < 1e-4, "{:?}", case.passage);
        }
        assert_eq!(answer.prompt_tokens, cases.iter().map(|case| case.ids.len()).sum::<usize>());
    }

    #[test]
    fn what_is_no_rerank_model_is_refused_with_its_reason() {
        let embeddings = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/embeddings");
        for (path, reason) in [("bert-cls", "no classification head"), ("bert-mean.gguf", "GGUF files are not read")] {
            let error = LocalReranker::load(&embeddings.join(path), EmbedderSettings::default());
            let error = format!("{:#}", error.expect_err("an embedding model"));
            assert!(error.contains(reason), "{error}");
        }
    }

    #[tokio::test]
    async fn a_query_without_room_for_a_document_is_refused_and_written_specials_are_words() {
        let reranker = load("bert");
        let error = reranker.pairs.front(&"water ".repeat(50), &Wanted::always()).expect_err("too long");
        assert_eq!(error.kind(), ErrorKind::ContextLengthExceeded);
        let front = reranker.pairs.front("a [SEP] fox", &Wanted::always()).expect("it fits");
        let pair = reranker.pairs.pair(&front, "dog", &Wanted::always()).expect("it fits");
        let separator = reranker.pairs.closing[0];
        assert_eq!(pair.iter().filter(|token| **token == separator).count(), 2);
    }
}
