//! Semantic caching of answers, together with the passages that they were made from.
//!
//! Quoted answers are not cached: finding the sentences costs little more than the look-up. Neither are answers with a
//! rating, which applies to the passages and this exact question.

use std::sync::Arc;

use hearth_domain::{
    Account, CacheUse,
    documents::{Collection, Grounding},
};

use super::{AskRequest, Asked};
use crate::{
    providers::{ChatModel, cache::SEMANTIC, cache::key::KeyWriter},
    retrieval::search::{Lookup, Retriever},
    service::{models::Models, semantic::SemanticSlot},
};

/// The cache slot of the answer that `writer` would write; `None` if caching does not apply.
pub(super) async fn slot<'w>(
    models: &Models,
    writer: Option<&'w Arc<dyn ChatModel>>,
    retriever: &Retriever,
    request: &AskRequest,
) -> Option<(&'w Arc<dyn ChatModel>, SemanticSlot)> {
    let may_be_another = !request.confidence && request.lookup.account.cache_use() != CacheUse::Off;
    let (writer, semantic) = (writer?, models.semantic().filter(|_| may_be_another)?);
    // Without the versions an answer could outlive what it was made from.
    let versions = retriever.versions(&request.lookup.collections).await.ok()?;
    let scope = scope(writer, &versions, request);
    let slot =
        SemanticSlot::find(semantic, &request.lookup.account, request.deadline, scope, &request.question).await?;
    Some((writer, slot))
}

/// The cached answer, if there is one and the request accepts it.
pub(super) fn earlier(slot: &SemanticSlot, writer: &Arc<dyn ChatModel>, account: &Arc<Account>) -> Option<Asked> {
    let kept = slot.kept()?;
    Some(Asked {
        grounding: Some(Grounding::Free),
        model: writer.info().id.clone(),
        sources: kept.sources.clone(),
        left_out: kept.left_out,
        events: kept.answer.clone().replay(account, &writer.info().id, SEMANTIC),
        findings: kept.findings.clone(),
    })
}

/// The answer, which is cached once it is complete.
pub(super) fn recorded(slot: SemanticSlot, asked: Asked) -> Asked {
    // Nothing was found, and no model was asked.
    if asked.sources.is_empty() {
        return asked;
    }
    let events = slot.record(asked.events, asked.sources.clone(), asked.left_out, asked.findings.clone());
    Asked { events, ..asked }
}

/// Everything that an answer depends on beside the question. The collections' versions stand for their contents; they
/// are read before the collections are searched.
fn scope(model: &Arc<dyn ChatModel>, versions: &[u64], request: &AskRequest) -> KeyWriter {
    let AskRequest { question: _, history, lookup, max_tokens, temperature, confidence, grounding, deadline: _ } =
        request;
    let Lookup { account, collections, filter, mode, rerank, top_k, min_similarity } = &**lookup;
    let mut scope = KeyWriter::new("semantic ask");
    scope.model(model.info()).account(account);
    scope.list(history, KeyWriter::json);
    scope.list(collections, |scope, Collection { id, embedding, .. }| {
        scope.text(id).option(embedding.as_ref(), |scope, embedding| {
            scope.text(&embedding.name);
        });
    });
    scope.list(versions, |scope, version| {
        scope.number(*version);
    });
    scope.option(filter.as_ref(), |scope, filter| {
        scope.text(&format!("{filter:?}"));
    });
    scope.text(&format!("{mode:?}")).flag(*rerank).count(*top_k).float(*min_similarity);
    scope.count(*max_tokens).float(*temperature).flag(*confidence).text(&format!("{grounding:?}"));
    scope
}
