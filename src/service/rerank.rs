//! One rerank request: its tokens set aside, and run.

use std::sync::Arc;

use hearth_domain::{RerankRequest, RerankResponse, error::Result};

use super::{deadline, reservation::tokens_of_text};
use crate::providers::Reranker;

pub async fn rerank(model: &Arc<dyn Reranker>, request: RerankRequest) -> Result<RerankResponse> {
    let query = tokens_of_text(&request.query);
    // The model reads the query anew with each document.
    request.account.reserve(request.documents.iter().map(|document| query + tokens_of_text(document)).sum())?;
    deadline::within(request.deadline, model.rerank(request)).await
}
