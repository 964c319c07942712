//! Resolves the fields of a body to where passages are searched for.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hearth_domain::{Account, documents::Collection, error::Result};

use super::OwnedDocuments;
use crate::{
    retrieval::search::Lookup,
    wire::lookup::{LookupBody, Wait},
};

impl OwnedDocuments {
    /// Resolves a body's lookup, once the documents that it waits for have been read.
    ///
    /// # Errors
    /// 404 for an unknown collection or document, 409 while documents are being read, and 504 after `deadline`.
    pub async fn lookup(&self, body: &LookupBody, deadline: Option<Instant>) -> Result<Arc<Lookup>> {
        let patience = match body.wait {
            Wait::Refuse => Some(Duration::ZERO),
            Wait::For(patience) => Some(patience),
            Wait::Never => None,
        };
        let collections = self.scope(&body.collections, &body.document_ids, patience, deadline).await?;
        Ok(lookup_in(&self.account, collections, body))
    }
}

/// The body's lookup in these collections.
pub fn lookup_in(account: &Arc<Account>, collections: Vec<Collection>, body: &LookupBody) -> Arc<Lookup> {
    Arc::new(Lookup {
        account: Lookup::account_for(account, &collections),
        collections,
        filter: body.restriction(),
        top_k: body.top_k,
        min_similarity: body.min_similarity,
        mode: body.mode,
        rerank: body.rerank,
    })
}
