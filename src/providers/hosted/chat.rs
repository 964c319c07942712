//! A chat model that an upstream serves.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use hearth_domain::{GenerateRequest, ModelInfo, Prompt, error::Result, quote::Quote, usage::UsageRecord};

use super::{
    answer::Translator, engine::RemoteEngine, failure::Failure, request, retry::with_retries, stream::HostedAnswer,
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
    /// `upstream_model` is the upstream's own name for the model; `info` is what callers are told about it.
    pub fn new(upstream: Arc<Upstream>, upstream_model: String, info: ModelInfo) -> Self {
        Self { upstream, upstream_model, info }
    }

    pub fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }

    async fn attempt(
        &self,
        engine: Arc<RemoteEngine>,
        request: &GenerateRequest,
        path: &str,
        body: Bytes,
        record: &parking_lot::Mutex<Option<UsageRecord>>,
    ) -> Result<HostedAnswer, Failure> {
        let sent_at = Instant::now();
        let response = self.upstream.send(&engine, path, body, &request.account).await?;
        let served_by = self.upstream.served_by(Some(&engine));
        let begin = || request.account.begin_record(&self.info.id, served_by.clone());
        let record = record.lock().get_or_insert_with(begin).clone();
        record.set_served_by(served_by);
        let translator = Translator::new(request, self.upstream.name(), record, sent_at);
        HostedAnswer::begin(self.upstream.clone(), response, translator).await
    }
}

impl ChatModel for HostedChat {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Resolves when the first event of the answer has arrived.
    fn generate(&self, request: GenerateRequest) -> BoxFuture<'_, Result<GenerateStream>> {
        async move {
            let translated = request::generation(&request, &self.upstream_model, self.upstream.dialect())?;
            let body = Bytes::from(translated.body.to_string());
            // All attempts count as one model's work.
            let record = parking_lot::Mutex::default();
            let key = self.upstream.affinity().key(&request, &translated.body);
            let (upstream, account) = (&self.upstream, &request.account);
            let (answer, visit) =
                with_retries(upstream, &self.upstream_model, key, account, request.deadline, |engine| {
                    self.attempt(engine, &request, translated.path, body.clone(), &record)
                })
                .await?;
            Ok(answer.into_stream(visit))
        }
        .boxed()
    }

    /// The tokens are estimated: only the upstream's tokenizer can count them.
    fn quotes(&self, request: &GenerateRequest) -> Result<Vec<Quote>> {
        let served_by = self.upstream.served_by(None);
        let tokens = request.prompt.estimated_tokens();
        let mut quote = Quote::new(served_by, &self.info, tokens, request.n, request.max_tokens);
        quote.is_exact = matches!(request.prompt, Prompt::Tokens(_));
        if self.upstream.is_left_alone(&self.upstream_model) {
            quote.refusal = Some("breaker_open");
        }
        Ok(vec![quote])
    }
}
