//! An embedding model that an upstream serves.

use std::{sync::Arc, time::Instant};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use hearth_domain::{
    Account, EmbedInput, EmbedInputType, EmbedRequest, EmbedResponse, ModelInfo, Timings, Usage,
    documents::EmbeddingIdentity, error::Result,
};
use serde::Deserialize;
use serde_json::Value;

use super::{
    agreement::Agreement, answer::Fault, chunk::usage, engine::RemoteEngine, failure::Failure, metrics, request,
    retry::with_retries, upstream::Upstream,
};
use crate::providers::{
    Embedder,
    comparison::{PROBE, position_of},
};

/// See the module's documentation.
#[derive(Debug)]
pub struct HostedEmbedder {
    upstream: Arc<Upstream>,
    upstream_model: String,
    info: ModelInfo,
    identity: EmbeddingIdentity,
    agreement: Agreement,
}

impl HostedEmbedder {
    /// `identity` is as configured: this server cannot inspect the weights. Where it equals a local model's, their
    /// vectors are compared.
    pub fn new(upstream: Arc<Upstream>, upstream_model: String, info: ModelInfo, identity: EmbeddingIdentity) -> Self {
        Self { upstream, upstream_model, info, identity, agreement: Agreement::default() }
    }

    pub fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }

    async fn attempt(
        &self,
        engine: Arc<RemoteEngine>,
        request: &EmbedRequest,
        path: &str,
        body: Bytes,
    ) -> Result<EmbedResponse, Failure> {
        if engine.name().is_some() {
            self.check(&engine, request.input_type).await?;
        }
        let sent_at = Instant::now();
        let (embeddings, reported) = self.ask(&engine, request, path, body).await?;
        let prompt_tokens = reported.filter(|&tokens| tokens > 0).unwrap_or_else(|| {
            metrics::estimated(self.upstream.name());
            request.inputs.iter().map(EmbedInput::estimated_tokens).sum()
        });
        let timings = Timings { prefill: sent_at.elapsed(), ..Timings::default() };
        let record = request.account.begin_record(&self.info.id, self.upstream.served_by(Some(&engine)));
        record.set_usage(&Usage { prompt_tokens, ..Usage::default() });
        record.set_timings(&timings);
        Ok(EmbedResponse { embeddings, prompt_tokens, token_counts: Vec::new(), timings })
    }
}

impl HostedEmbedder {
    /// The vectors of one engine, and the tokens that it reports.
    async fn ask(
        &self,
        engine: &Arc<RemoteEngine>,
        request: &EmbedRequest,
        path: &str,
        body: Bytes,
    ) -> Result<(Vec<Vec<f32>>, Option<usize>), Failure> {
        let response = self.upstream.send(engine, path, body, &request.account).await?;
        let answer = self.upstream.read_whole(response).await?;
        let dimensions = request.dimensions.unwrap_or(self.identity.dimensions);
        read(&answer, request.inputs.len(), dimensions)
            .map_err(|what| Failure::of_stream(&self.upstream, Fault::Malformed(what)))
    }

    /// Asks one of several engines for its vector of the probe, if that was not done lately.
    async fn check(&self, engine: &Arc<RemoteEngine>, input_type: EmbedInputType) -> Result<(), Failure> {
        let position = position_of(input_type);
        if !self.agreement.is_due(engine, position) {
            return Ok(());
        }
        let probe = EmbedRequest {
            // No caller asked for it.
            account: Account::unrecorded(),
            inputs: vec![EmbedInput::Text(PROBE.to_owned())],
            input_type,
            dimensions: None,
            truncate: false,
            deadline: None,
        };
        let translated = request::embedding(&probe, &self.upstream_model, self.upstream.dialect());
        // The request itself has the same input type, and was translated.
        let translated = translated.map_err(Failure::lasting)?;
        let body = Bytes::from(translated.body.to_string());
        let (vectors, _) = self.ask(engine, &probe, translated.path, body).await?;
        let vector = vectors.into_iter().next().unwrap_or_default();
        self.agreement.take(self.upstream.name(), engine, position, vector).map_err(Failure::lasting)
    }
}

impl Embedder for HostedEmbedder {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn identity(&self) -> EmbeddingIdentity {
        self.identity.clone()
    }

    fn embed(&self, request: EmbedRequest) -> BoxFuture<'_, Result<EmbedResponse>> {
        async move {
            let translated = request::embedding(&request, &self.upstream_model, self.upstream.dialect())?;
            let body = Bytes::from(translated.body.to_string());
            let (upstream, account) = (&self.upstream, &request.account);
            // Texts to embed have no prefixes in common that an engine keeps.
            let (response, visit) =
                with_retries(upstream, &self.upstream_model, None, account, request.deadline, |engine| {
                    self.attempt(engine, &request, translated.path, body.clone())
                })
                .await?;
            visit.succeeded();
            Ok(response)
        }
        .boxed()
    }
}

#[derive(Debug, Deserialize)]
struct EmbeddingList {
    data: Vec<Embedding>,
    #[serde(default)]
    usage: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Embedding {
    index: usize,
    embedding: Vector,
}

/// Numbers, or little-endian f32 in base64 from upstreams that ignore the requested encoding.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Vector {
    Numbers(Vec<f32>),
    Base64(String),
}

/// The vectors in the order of the inputs, each exactly once, with the expected dimensions; and the tokens.
fn read(answer: &[u8], num_inputs: usize, dimensions: usize) -> Result<(Vec<Vec<f32>>, Option<usize>), String> {
    let list: EmbeddingList = serde_json::from_slice(answer).map_err(|error| format!("not embeddings: {error}"))?;
    let mut vectors: Vec<Option<Vec<f32>>> = vec![None; num_inputs];
    for Embedding { index, embedding } in list.data {
        let vector = match embedding {
            Vector::Numbers(numbers) => numbers,
            Vector::Base64(text) => {
                let bytes = BASE64_STANDARD.decode(text).map_err(|_| format!("embedding {index} is no base64"))?;
                let (values, rest) = bytes.as_chunks::<4>();
                if !rest.is_empty() {
                    return Err(format!("embedding {index} has {} bytes", bytes.len()));
                }
                values.iter().map(|value| f32::from_le_bytes(*value)).collect()
            }
        };
        if vector.len() != dimensions {
            return Err(format!("embedding {index} has {} dimensions, expected are {dimensions}", vector.len()));
        }
        if !vector.iter().all(|value| value.is_finite()) {
            return Err(format!("embedding {index} is not of finite numbers"));
        }
        match vectors.get_mut(index) {
            Some(place @ None) => *place = Some(vector),
            Some(Some(_)) => return Err(format!("embedding {index} comes twice")),
            None => return Err(format!("embedding {index} of {num_inputs}")),
        }
    }
    let num_found = vectors.iter().flatten().count();
    let vectors: Option<Vec<_>> = vectors.into_iter().collect();
    let vectors = vectors.ok_or_else(|| format!("{num_found} embeddings of {num_inputs}"))?;
    Ok((vectors, list.usage.as_ref().and_then(|reported| usage(reported).prompt_tokens)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str, num_inputs: usize) -> Result<Vec<Vec<f32>>, String> {
        read(text.as_bytes(), num_inputs, 2).map(|(vectors, _)| vectors)
    }

    #[test]
    fn vectors_come_in_the_order_of_the_inputs_in_either_form() {
        let text = r#"{"data":[{"index":1,"embedding":[0.5,1]},{"index":0,"embedding":"AACAPwAAAEA="}],"usage":{"prompt_tokens":7}}"#;
        let (vectors, tokens) = read(text.as_bytes(), 2, 2).unwrap();
        assert_eq!(vectors, [[1.0, 2.0], [0.5, 1.0]]);
        assert_eq!(tokens, Some(7));
    }

    #[test]
    fn what_is_not_one_vector_for_each_input_is_refused() {
        for wrong in [
            "[]",
            r#"{"data":[]}"#,
            r#"{"data":[{"index":0,"embedding":[1]}]}"#,
            r#"{"data":[{"index":0,"embedding":[1,2]},{"index":0,"embedding":[1,2]}]}"#,
            r#"{"data":[{"index":1,"embedding":[1,2]}]}"#,
            r#"{"data":[{"index":0,"embedding":"AAAA"}]}"#,
            r#"{"data":[{"index":0,"embedding":"?"}]}"#,
            r#"{"data":[{"index":0,"embedding":"AADAfwAAAEA="}]}"#,
        ] {
            assert!(read_text(wrong, 1).is_err(), "{wrong}");
        }
    }
}
