//! A rerank model that an upstream serves, in the shape that Jina, Cohere, vLLM and llama-server share.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use hearth_domain::{ModelInfo, RerankRequest, RerankResponse, Timings, Usage, error::Result, quote::estimated_tokens};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Scores, answer::Fault, chunk::usage, engine::RemoteEngine, failure::Failure, metrics, retry::with_retries,
    upstream::Upstream,
};
use crate::providers::Reranker;

/// The route, relative to the base URL.
const PATH: &str = "rerank";

/// See the module's documentation.
#[derive(Debug)]
pub struct HostedReranker {
    upstream: Arc<Upstream>,
    upstream_model: String,
    info: ModelInfo,
    scores: Scores,
}

impl HostedReranker {
    /// `upstream_model` is the upstream's own name for the model; `info` is what callers are told about it; `scores` is
    /// what its numbers are.
    pub fn new(upstream: Arc<Upstream>, upstream_model: String, info: ModelInfo, scores: Scores) -> Self {
        Self { upstream, upstream_model, info, scores }
    }

    async fn attempt(
        &self,
        engine: Arc<RemoteEngine>,
        request: &RerankRequest,
        body: Bytes,
    ) -> Result<RerankResponse, Failure> {
        let sent_at = Instant::now();
        let response = self.upstream.send(&engine, PATH, body, &request.account).await?;
        let answer = self.upstream.read_whole(response).await?;
        let (scores, reported) = read(&answer, request.documents.len(), self.scores)
            .map_err(|what| Failure::of_stream(&self.upstream, Fault::Malformed(what)))?;
        let prompt_tokens = reported.filter(|&tokens| tokens > 0).unwrap_or_else(|| {
            metrics::estimated(self.upstream.name());
            let query = estimated_tokens(request.query.len());
            request.documents.iter().map(|document| query + estimated_tokens(document.len())).sum()
        });
        let record = request.account.begin_record(&self.info.id, self.upstream.served_by(Some(&engine)));
        record.set_usage(&Usage { prompt_tokens, ..Usage::default() });
        record.set_timings(&Timings { prefill: sent_at.elapsed(), ..Timings::default() });
        Ok(RerankResponse { scores, prompt_tokens })
    }
}

impl Reranker for HostedReranker {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn rerank(&self, request: RerankRequest) -> BoxFuture<'_, Result<RerankResponse>> {
        async move {
            let body = json!({
                "model": self.upstream_model,
                "query": request.query,
                "documents": request.documents,
                // Cohere's shape has no default that is "all of them" everywhere.
                "top_n": request.documents.len(),
            });
            let body = Bytes::from(body.to_string());
            let (upstream, account) = (&self.upstream, &request.account);
            let (response, visit) =
                with_retries(upstream, &self.upstream_model, None, account, request.deadline, |engine| {
                    self.attempt(engine, &request, body.clone())
                })
                .await?;
            visit.succeeded();
            Ok(response)
        }
        .boxed()
    }
}

#[derive(Debug, Deserialize)]
struct Ranking {
    results: Vec<Ranked>,
    #[serde(default)]
    usage: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Ranked {
    index: usize,
    relevance_score: f32,
}

/// The relevance of each document, in the order of the request, and the tokens.
fn read(answer: &[u8], num_documents: usize, kind: Scores) -> Result<(Vec<f32>, Option<usize>), String> {
    let ranking: Ranking = serde_json::from_slice(answer).map_err(|error| format!("no ranking: {error}"))?;
    let mut scores: Vec<Option<f32>> = vec![None; num_documents];
    for Ranked { index, relevance_score } in ranking.results {
        let score = match kind {
            Scores::Logits => 1.0 / (1.0 + (-relevance_score).exp()),
            Scores::Probabilities => relevance_score,
        };
        if !(0.0..=1.0).contains(&score) {
            return Err(format!(
                "the score {relevance_score} of document {index} is not between 0 and 1: are its scores logits?"
            ));
        }
        match scores.get_mut(index) {
            Some(place @ None) => *place = Some(score),
            Some(Some(_)) => return Err(format!("document {index} is ranked twice")),
            None => return Err(format!("it ranks document {index}, but there are {num_documents}")),
        }
    }
    let num_found = scores.iter().flatten().count();
    let scores: Option<Vec<f32>> = scores.into_iter().collect();
    let scores = scores.ok_or_else(|| format!("{num_found} documents of {num_documents} are ranked"))?;
    // vLLM and Jina report the total alone.
    let reported = ranking.usage.as_ref().and_then(|reported| {
        let total =
            reported.get("total_tokens").and_then(Value::as_u64).and_then(|tokens| usize::try_from(tokens).ok());
        usage(reported).prompt_tokens.filter(|&tokens| tokens > 0).or(total)
    });
    Ok((scores, reported))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_document_has_its_score_in_the_order_of_the_request() {
        let text = br#"{"results": [{"index": 1, "relevance_score": 0.75, "document": {"text": "b"}},
            {"index": 0, "relevance_score": 0.25}], "usage": {"total_tokens": 9}}"#;
        assert_eq!(read(text, 2, Scores::Probabilities).unwrap(), (vec![0.25, 0.75], Some(9)));
        let (scores, tokens) =
            read(br#"{"results": [{"index": 0, "relevance_score": -2.0}]}"#, 1, Scores::Logits).unwrap();
        assert!((scores[0] - 0.1192).abs() < 1e-4 && tokens.is_none(), "{scores:?}");
        for wrong in [
            "[]",
            r#"{"results": []}"#,
            r#"{"results": [{"index": 0, "relevance_score": 0.5}, {"index": 0, "relevance_score": 0.5}]}"#,
            r#"{"results": [{"index": 1, "relevance_score": 0.5}]}"#,
            r#"{"results": [{"index": 0, "relevance_score": -2.0}]}"#,
            r#"{"results": [{"index": 0, "relevance_score": null}]}"#,
        ] {
            assert!(read(wrong.as_bytes(), 1, Scores::Probabilities).is_err(), "{wrong}");
        }
    }
}
