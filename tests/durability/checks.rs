//! A server held against what its clients know.

use super::clients::{Client, Knowledge, SECTIONS, Shared, text};

/// Everything that was acknowledged holds, and everything that is there is whole. What was in doubt is known from here on.
pub async fn check(client: &Client, shared: &Shared, context: &str) {
    let mut knowledge = shared.lock().clone();
    settle(client, &mut knowledge, context).await;
    *shared.lock() = knowledge;
}

async fn settle(client: &Client, knowledge: &mut Knowledge, context: &str) {
    // A search that waits returns when all is read.
    client.found("nothing").await;
    let listed = client.list().await;
    for document in &listed {
        assert_eq!(document["status"], "ready", "{context}: {document}");
        assert_eq!(document["chunks"], SECTIONS, "{context}: half a document: {document}");
    }
    let is_listed = |id: &str| listed.iter().any(|document| document["document_id"] == id);
    let Knowledge { documents, deleted, gone, .. } = knowledge;
    for (key, mut known) in std::mem::take(documents) {
        let (ids, passages) = client.found(&known.word).await;
        if known.in_doubt && !is_listed(&known.id) {
            // What became of its earlier versions is not known either.
            assert!(ids.is_empty(), "{context}: {known:?} is gone and is found");
            gone.insert(known.id);
            continue;
        }
        assert!(is_listed(&known.id), "{context}: {known:?} is lost");
        assert_eq!((ids, passages), (vec![known.id.clone()], SECTIONS), "{context}: {known:?}");
        assert_eq!(client.content(&known.id).await, text(&known.word), "{context}: the bytes of {known:?}");
        deleted.append(&mut known.earlier);
        known.in_doubt = false;
        documents.insert(key, known);
    }
    for known in std::mem::take(deleted) {
        assert!(client.found(&known.word).await.0.is_empty(), "{context}: {known:?} was deleted and is found");
        gone.insert(known.id);
    }
    for (id, bytes) in client.files().await {
        assert_eq!(client.content(&id).await.len() as u64, bytes, "{context}: half of file {id}");
    }
    for document in &listed {
        let id = document["document_id"].as_str().unwrap_or_default();
        assert!(!gone.contains(id), "{context}: it was deleted and is there: {document}");
    }
}
