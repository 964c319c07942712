//! The provider interface: three traits through which all higher layers generate, embed and rerank, implemented by a
//! local engine, a hosted upstream and a scripted test double.
//!
//! An `Err` before the stream becomes a status; an `Err` within it becomes an error event. Dropping the stream, or the
//! future before it, cancels the work.

pub mod cache;
mod comparison;
pub mod fallback;
pub mod hosted;
pub mod local;
pub mod local_embedder;
pub mod local_reranker;
pub mod metered;
pub mod scripted;

use futures_util::{future::BoxFuture, stream::BoxStream};
use hearth_domain::{
    Account, ChatPrompt, EmbedRequest, EmbedResponse, GenerateEvent, GenerateRequest, ModelInfo, RerankRequest,
    RerankResponse, documents::EmbeddingIdentity, error::Result, quote::Quote,
};

/// What a generation yields after admission.
pub type GenerateStream = BoxStream<'static, Result<GenerateEvent>>;

/// Generates text.
pub trait ChatModel: Send + Sync {
    fn info(&self) -> &ModelInfo;

    /// Parameters of the model that would be asked first for this account; 0 if only an upstream knows.
    fn parameters_for(&self, _account: &Account) -> u64 {
        self.info().parameters
    }

    /// Resolves when the request has been admitted: validated, rendered, fitted into the context and given a place in
    /// the bounded queue. `n` choices are one stream.
    fn generate(&self, request: GenerateRequest) -> BoxFuture<'_, Result<GenerateStream>>;

    /// The estimate on each side that could serve the request, in the order in which they would be tried.
    ///
    /// # Errors
    /// If the prompt cannot be rendered.
    fn quotes(&self, request: &GenerateRequest) -> Result<Vec<Quote>>;

    /// The model's template and tokenizer. `None` where only an upstream has them.
    fn tokenizer(&self) -> Option<&dyn PromptTokenizer> {
        None
    }
}

/// Renders conversations to prompts and tokenizes text: a model's template and tokenizer, in this process.
pub trait PromptTokenizer: Send + Sync {
    /// The prompt exactly as the model would see it.
    ///
    /// # Errors
    /// If the template refuses the conversation.
    fn render(&self, prompt: &ChatPrompt) -> Result<String>;

    /// The tokens of a text; `add_special` prepends the tokens that the model's texts begin with, `parse_special` reads
    /// control tokens that are spelled in it.
    ///
    /// # Errors
    /// If the text cannot be tokenized.
    fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<u32>>;

    /// The text of these tokens, special ones included.
    ///
    /// # Errors
    /// For a token id outside the vocabulary.
    fn detokenize(&self, tokens: &[u32]) -> Result<String>;

    /// A token's exact bytes in the vocabulary.
    fn token_bytes(&self, token: u32) -> Option<Vec<u8>>;
}

/// Turns texts into vectors.
pub trait Embedder: Send + Sync {
    fn info(&self) -> &ModelInfo;

    /// What the vectors depend on. Vectors of two different identities must not be compared.
    fn identity(&self) -> EmbeddingIdentity;

    fn embed(&self, request: EmbedRequest) -> BoxFuture<'_, Result<EmbedResponse>>;
}

/// Rates texts by how well they answer a query, reading both together.
pub trait Reranker: Send + Sync {
    fn info(&self) -> &ModelInfo;

    fn rerank(&self, request: RerankRequest) -> BoxFuture<'_, Result<RerankResponse>>;
}
