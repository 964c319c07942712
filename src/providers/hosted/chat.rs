//! A chat model that an upstream serves.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use hearth_domain::{
    ChatPrompt, GenerateRequest, ModelInfo, Prompt,
    account::{Leg, ServedBy},
    error::{Error, Result},
    quote::Quote,
};

use super::{
    answer::{Translator, estimated_prompt_tokens},
    breaker::Breaker,
    failure::Failure,
    request,
    retry::with_retries,
    stream::Answer,
    upstream::Upstream,
};
use crate::providers::{ChatModel, GenerateStream};

/// See the module's documentation.
#[derive(Debug)]
pub struct HostedChat {
    upstream: Arc<Upstream>,
    upstream_model: String,
    info: ModelInfo,
}

impl HostedChat {
    /// `upstream_model` is the upstream's own name for the model; `info` says what callers hear of it.
    pub fn new(upstream: Arc<Upstream>, upstream_model: String, info: ModelInfo) -> Self {
        Self { upstream, upstream_model, info }
    }

    pub fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }

    /// Whether this model of the upstream is left alone at present.
    pub fn breaker(&self) -> Arc<Breaker> {
        self.upstream.breaker(&self.upstream_model)
    }

    async fn attempt(
        &self,
        request: &GenerateRequest,
        path: &str,
        body: Bytes,
        leg: &parking_lot::Mutex<Option<Leg>>,
    ) -> Result<Answer, Failure> {
        let sent_at = Instant::now();
        let response = self.upstream.send(path, body, &request.account).await?;
        let served_by = ServedBy::Upstream(self.upstream.name().to_owned());
        let leg = leg.lock().get_or_insert_with(|| request.account.leg(&self.info.id, served_by)).clone();
        let translator = Translator::new(request, self.upstream.name(), leg, sent_at);
        Answer::begin(self.upstream.clone(), response, translator).await
    }
}

/// What a model whose tokenizer is elsewhere cannot do.
pub(super) fn no_tokenizer(what: &str, model: &str) -> Error {
    Error::invalid(
        "model",
        format!("`{model}` is served by a hosted upstream, so this server cannot {what}. Name a model that runs here."),
    )
    .with_code("unsupported_model")
}

impl ChatModel for HostedChat {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Resolves when the first word of the answer has arrived.
    fn generate(&self, request: GenerateRequest) -> BoxFuture<'_, Result<GenerateStream>> {
        async move {
            let translated = request::generation(&request, &self.upstream_model, self.upstream.dialect())?;
            let body = Bytes::from(translated.body.to_string());
            // However often it is tried, it is one model's work.
            let leg = parking_lot::Mutex::default();
            let (answer, permit) =
                with_retries(&self.upstream, &self.upstream_model, &request.account, request.deadline, || {
                    self.attempt(&request, translated.path, body.clone(), &leg)
                })
                .await?;
            Ok(answer.into_stream(permit))
        }
        .boxed()
    }

    /// The tokens are estimated: whoever counts them is elsewhere.
    fn quotes(&self, request: &GenerateRequest) -> Result<Vec<Quote>> {
        let served_by = ServedBy::Upstream(self.upstream.name().to_owned());
        let tokens = estimated_prompt_tokens(&request.prompt);
        let mut quote = Quote::new(served_by, &self.info, tokens, request.n, request.max_tokens);
        quote.is_exact = matches!(request.prompt, Prompt::Tokens(_));
        if self.breaker().is_open() {
            quote.refusal = Some("breaker_open");
        }
        Ok(vec![quote])
    }

    fn render(&self, _: &ChatPrompt) -> Result<String> {
        Err(no_tokenizer("show its prompts", &self.info.id))
    }

    fn tokenize(&self, _: &str, _: bool, _: bool) -> Result<Vec<u32>> {
        Err(no_tokenizer("count its tokens", &self.info.id))
    }

    fn detokenize(&self, _: &[u32]) -> Result<String> {
        Err(no_tokenizer("spell its tokens", &self.info.id))
    }

    fn token_bytes(&self, _: u32) -> Option<Vec<u8>> {
        None
    }
}
