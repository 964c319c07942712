//! One rerank request, run within its deadline.

use std::sync::Arc;

use hearth_domain::{RerankRequest, RerankResponse, error::Result};

use super::deadline;
use crate::providers::Reranker;

pub async fn rerank(model: &Arc<dyn Reranker>, request: RerankRequest) -> Result<RerankResponse> {
    deadline::within(request.deadline, model.rerank(request)).await
}
