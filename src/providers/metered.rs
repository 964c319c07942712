//! The outermost wrapper of every model that requests use: reserves tokens before the model runs, so that a caller's
//! token rate holds on every route. The actual usage is settled with the meter.
//!
//! The estimate is good enough to keep callers to their limits, and cheap enough to make for every request. Background
//! work that reads documents uses unwrapped models: what a document may cost was decided when its upload was admitted.

use std::sync::Arc;

use futures_util::{FutureExt, future::BoxFuture};
use hearth_domain::{
    Account, EmbedRequest, EmbedResponse, GenerateRequest, ModelInfo, RerankRequest, RerankResponse,
    documents::EmbeddingIdentity,
    error::Result,
    quote::{Quote, estimated_tokens},
};

use super::{ChatModel, Embedder, GenerateStream, PromptTokenizer, Reranker};

/// The estimate of one answer where the request sets no limit.
const ANSWER_TOKENS: u64 = 512;

/// See the module's documentation.
pub struct Metered<T: ?Sized>(Arc<T>);

impl<T: ?Sized> Metered<T> {
    pub fn new(model: Arc<T>) -> Arc<Self> {
        Arc::new(Self(model))
    }
}

impl<T: ?Sized> std::fmt::Debug for Metered<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metered").finish_non_exhaustive()
    }
}

impl ChatModel for Metered<dyn ChatModel> {
    fn info(&self) -> &ModelInfo {
        self.0.info()
    }

    fn parameters_for(&self, account: &Account) -> u64 {
        self.0.parameters_for(account)
    }

    fn generate(&self, request: GenerateRequest) -> BoxFuture<'_, Result<GenerateStream>> {
        match request.account.reserve(tokens_of_generation(&request, self.0.info())) {
            Ok(()) => self.0.generate(request),
            Err(error) => std::future::ready(Err(error)).boxed(),
        }
    }

    fn quotes(&self, request: &GenerateRequest) -> Result<Vec<Quote>> {
        self.0.quotes(request)
    }

    fn tokenizer(&self) -> Option<&dyn PromptTokenizer> {
        self.0.tokenizer()
    }
}

impl Embedder for Metered<dyn Embedder> {
    fn info(&self) -> &ModelInfo {
        self.0.info()
    }

    fn identity(&self) -> EmbeddingIdentity {
        self.0.identity()
    }

    fn embed(&self, request: EmbedRequest) -> BoxFuture<'_, Result<EmbedResponse>> {
        match request.account.reserve(tokens_of_inputs(&request, self.0.info())) {
            Ok(()) => self.0.embed(request),
            Err(error) => std::future::ready(Err(error)).boxed(),
        }
    }
}

impl Reranker for Metered<dyn Reranker> {
    fn info(&self) -> &ModelInfo {
        self.0.info()
    }

    fn rerank(&self, request: RerankRequest) -> BoxFuture<'_, Result<RerankResponse>> {
        match request.account.reserve(tokens_of_pairs(&request)) {
            Ok(()) => self.0.rerank(request),
            Err(error) => std::future::ready(Err(error)).boxed(),
        }
    }
}

/// Tokens of a generation, prompt and answers together.
fn tokens_of_generation(request: &GenerateRequest, model: &ModelInfo) -> u64 {
    let prompt = request.prompt.estimated_tokens() as u64;
    let answer = request.max_tokens.map_or(ANSWER_TOKENS, |tokens| tokens as u64);
    // No answer is longer than the context that the prompt leaves.
    let answer = answer.min((model.context_length as u64).saturating_sub(prompt));
    prompt + answer.saturating_mul(request.n as u64)
}

/// Tokens of the texts to embed.
fn tokens_of_inputs(request: &EmbedRequest, model: &ModelInfo) -> u64 {
    let longest = if request.truncate { model.context_length } else { usize::MAX };
    request.inputs.iter().map(|input| input.estimated_tokens().min(longest) as u64).sum()
}

/// Tokens of the query with each document: the model reads the query once per document.
fn tokens_of_pairs(request: &RerankRequest) -> u64 {
    let query = estimated_tokens(request.query.len());
    request.documents.iter().map(|document| (query + estimated_tokens(document.len())) as u64).sum()
}
