//! What `/v1/models` reports about the served models.

use schemars::JsonSchema;
use serde::Serialize;

use hearth_domain::{ModelInfo, ModelKind};

#[derive(Debug, JsonSchema, Serialize)]
pub struct ModelList {
    #[schemars(extend("const" = "list"))]
    pub object: &'static str,
    pub data: Vec<Model>,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct Model {
    pub id: String,
    #[schemars(extend("const" = "model"))]
    pub object: &'static str,
    /// Unix seconds at which the file was last modified.
    pub created: u64,
    pub owned_by: &'static str,
    /// Other names under which the same model is served.
    pub aliases: Vec<String>,
    /// Tokens, prompt and answer together.
    pub context_length: usize,
    /// vLLM's name for `context_length`, which load generators read.
    pub max_model_len: usize,
    pub capabilities: Capabilities,
    pub meta: ModelMeta,
}

/// What the model can be asked for.
#[derive(Debug, JsonSchema, Serialize)]
pub struct Capabilities {
    pub chat: bool,
    pub completions: bool,
    pub embeddings: bool,
    pub rerank: bool,
    pub tools: bool,
    pub reasoning: bool,
    pub structured_outputs: bool,
    pub logprobs: bool,
}

/// The model's properties, under llama-server's names where it has them.
#[derive(Debug, JsonSchema, Serialize)]
pub struct ModelMeta {
    pub architecture: String,
    pub quantization: String,
    pub n_params: u64,
    pub size: u64,
    pub n_vocab: usize,
    pub n_embd: Option<usize>,
}

impl Model {
    pub fn new(info: &ModelInfo, aliases: Vec<String>) -> Self {
        let chat = info.kind == ModelKind::Chat;
        Self {
            id: info.id.clone(),
            object: "model",
            created: info.created,
            owned_by: "hearth",
            aliases,
            context_length: info.context_length,
            max_model_len: info.context_length,
            capabilities: Capabilities {
                chat,
                completions: chat,
                embeddings: info.kind == ModelKind::Embedding,
                rerank: info.kind == ModelKind::Rerank,
                tools: info.supports_tools,
                reasoning: info.supports_reasoning,
                structured_outputs: chat,
                logprobs: chat,
            },
            meta: ModelMeta {
                architecture: info.architecture.clone(),
                quantization: info.quantization.clone(),
                n_params: info.parameters,
                size: info.size_bytes,
                n_vocab: info.vocab_size,
                n_embd: info.embedding_length,
            },
        }
    }
}
