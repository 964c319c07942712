//! Every route, grouped by who calls it. A new one is an entry here, its handler, and its types in [`crate::wire`].

use hearth_domain::Scope::{Admin, Chat, Documents, Embed};

use super::{
    analysis, ask, chat, completions, documents, embeddings, files, greeting, health, me, models, openapi, quote,
    rerank,
    route::{
        Access::{AnyKey, Public},
        Metering::{Counted, Free},
        Route, delete, get, post,
    },
    spending, tokens, vector_stores,
};
use crate::wire::{
    analysis::{AnalysisBody, AnalysisJob, AnalysisList, AnalysisListQuery},
    ask::{
        AppEvent, AppEventAfter, AskAnswer, AskBody, ChatAnswer, ChatBody, FirstCitations, FirstSources,
        GenerateAnswer, GenerateBody, SearchAnswer, SearchBody,
    },
    chat_request::ChatCompletionRequest,
    chat_response::{ChatCompletion, ChatCompletionChunk},
    completion_request::CompletionRequest,
    completion_response::Completion,
    documents::{
        CollectionAnswer, CollectionList, DocumentAnswer, DocumentDeleted, DocumentList, DocumentListQuery,
        DocumentUpload, ReindexAnswer,
    },
    embeddings::{EmbeddingList, EmbeddingsRequest},
    files::{Deleted, FileListQuery, FileObject, FileUpload},
    health::{DeepHealth, HealthSummary, Liveness},
    lists::List,
    me::Me,
    models::{Model, ModelList},
    quote::{QuoteAnswer, QuoteRequest},
    rerank::{Ranking, RerankBody},
    spending::{MetricsSummary, UsageParameters, UsageReport},
    tokens::{
        ApplyTemplateRequest, ApplyTemplateResponse, DetokenizeRequest, DetokenizeResponse, TokenizeRequest,
        TokenizeResponse,
    },
    vector_store_request::{
        FileBatchRequest, VectorStoreCreate, VectorStoreFileListQuery, VectorStoreFileRequest, VectorStoreFileUpdate,
        VectorStoreListQuery, VectorStoreSearchRequest, VectorStoreUpdate,
    },
    vector_store_response::{
        FileBatchObject, FileContentPage, SearchResultsPage, VectorStoreFileObject, VectorStoreObject,
    },
};

/// The table.
pub(super) fn routes() -> Vec<Route> {
    let groups = [
        ("Models", with_unprefixed(models())),
        ("Documents and answers", answers()),
        ("Documents and answers", stored()),
        ("Files and vector stores", files_and_vector_stores()),
        ("Callers and cost", callers()),
        ("Server", server()),
    ];
    let grouped = |(group, routes): (_, Vec<Route>)| routes.into_iter().map(move |route| Route { group, ..route });
    groups.into_iter().flat_map(grouped).collect()
}

/// What OpenAI's SDKs, llama-server's clients and load generators call.
fn models() -> Vec<Route> {
    vec![
        post("/v1/chat/completions", Chat, chat::create_chat_completion)
            .described("createChatCompletion", "Answer a conversation")
            .takes::<ChatCompletionRequest>()
            .answers::<ChatCompletion>("The answer.")
            .streams::<ChatCompletionChunk>(
                "With `stream`: chunks of the answer; comments while nothing happens; at the end `data: [DONE]`. After a \
                 failure, one event with an `error` ends the stream.",
            )
            .ends_with("[DONE]"),
        post("/v1/completions", Chat, completions::create_completion)
            .described("createCompletion", "Continue a prompt")
            .takes::<CompletionRequest>()
            .answers::<Completion>("The continuation.")
            .streams::<Completion>("With `stream`: the same shape, piece by piece; at the end `data: [DONE]`.")
            .ends_with("[DONE]"),
        post("/v1/embeddings", Embed, embeddings::create_embeddings)
            .described("createEmbeddings", "Vectors of texts")
            .takes::<EmbeddingsRequest>()
            .answers::<EmbeddingList>("One vector for each input, in their order."),
        post("/v1/rerank", Chat, rerank::rerank)
            .described("createRerank", "Order documents by how well they answer a query")
            .takes::<RerankBody>()
            .answers::<Ranking>("The documents, most relevant first."),
        get("/v1/models", AnyKey, models::list_models)
            .described("listModels", "What is served")
            .answers::<ModelList>("The models."),
        get("/v1/models/{*id}", AnyKey, models::retrieve_model)
            .described("retrieveModel", "One model")
            .answers::<Model>("The model."),
        post("/generate", Chat, ask::generate)
            .described("generate", "Answer a prompt")
            .takes::<GenerateBody>()
            .answers::<GenerateAnswer>("The answer."),
        post("/stream", Chat, ask::generate_stream)
            .described("generateStream", "Answer a prompt, streamed")
            .takes::<GenerateBody>()
            .streams::<AppEvent<GenerateAnswer>>("Tokens as they come, and the answer without its text last."),
        post("/tokenize", Chat, tokens::tokenize)
            .described("tokenize", "Token ids of a text")
            .metered(Counted)
            .takes::<TokenizeRequest>()
            .answers::<TokenizeResponse>("The tokens."),
        post("/detokenize", Chat, tokens::detokenize)
            .described("detokenize", "The text of token ids")
            .metered(Counted)
            .takes::<DetokenizeRequest>()
            .answers::<DetokenizeResponse>("The text."),
        post("/apply-template", Chat, tokens::apply_template)
            .described("applyTemplate", "The prompt that a conversation becomes")
            .metered(Counted)
            .takes::<ApplyTemplateRequest>()
            .answers::<ApplyTemplateResponse>("The prompt."),
    ]
}

/// Paths for clients that are configured without `/v1`, as llama-server's may be, with the operations' names.
const UNPREFIXED: [(&str, &str, &str); 6] = [
    ("/v1/chat/completions", "/chat/completions", "chatCompletionWithoutPrefix"),
    ("/v1/completions", "/completions", "completionWithoutPrefix"),
    ("/v1/embeddings", "/embeddings", "embeddingsWithoutPrefix"),
    ("/v1/models", "/models", "modelsWithoutPrefix"),
    ("/v1/models/{*id}", "/models/{*id}", "modelWithoutPrefix"),
    ("/v1/rerank", "/rerank", "rerank"),
];

fn with_unprefixed(mut routes: Vec<Route>) -> Vec<Route> {
    let same = |(of, path, operation_id)| {
        let route = routes.iter().find(|route| route.path == of)?.clone();
        Some(Route { path, operation_id, ..route })
    };
    let more: Vec<Route> = UNPREFIXED.into_iter().filter_map(same).collect();
    routes.extend(more);
    routes
}

/// Routes for programs that ask documents without an SDK.
fn answers() -> Vec<Route> {
    vec![
        post("/ask", Chat, ask::ask)
            .described("ask", "Answer a question from documents")
            .takes::<AskBody>()
            .answers::<AskAnswer>("The answer and its sources."),
        post("/ask/stream", Chat, ask::ask_stream)
            .described("askStream", "Answer a question from documents, streamed")
            .takes::<AskBody>()
            .streams::<AppEventAfter<FirstSources<'_>, AskAnswer>>(
                "The sources, tokens as they come, and the answer without its text last.",
            ),
        post("/api/v1/chat", Chat, ask::chat)
            .described("chat", "Answer a conversation from documents")
            .takes::<ChatBody>()
            .answers::<ChatAnswer>("The answer and its citations.")
            .streams::<AppEventAfter<FirstCitations<'_>, ChatAnswer>>("With `stream`: as /api/v1/chat/stream."),
        post("/api/v1/chat/stream", Chat, ask::chat_stream)
            .described("chatStream", "Answer a conversation from documents, streamed")
            .takes::<ChatBody>()
            .streams::<AppEventAfter<FirstCitations<'_>, ChatAnswer>>(
                "The citations, tokens as they come, and the answer without its text last.",
            ),
        post("/api/v1/search", Documents, ask::search)
            .described("search", "Find passages in documents")
            .takes::<SearchBody>()
            .answers::<SearchAnswer>("The passages, best first."),
        get("/analysis", Chat, analysis::list)
            .described("listAnalyses", "Analyses, the newest first")
            .query::<AnalysisListQuery>()
            .answers::<AnalysisList>("The jobs."),
        post("/analysis", Chat, analysis::create)
            .described("createAnalysis", "Answer a question about a company from documents, in the background")
            .takes::<AnalysisBody>()
            .answers_with::<AnalysisJob>(202, "The job, which has been taken on."),
        get("/analysis/{job_id}", Chat, analysis::retrieve)
            .described("retrieveAnalysis", "One analysis")
            .answers::<AnalysisJob>(
                "The job as it is. Over a WebSocket, all its events as JSON texts, from the first; after the last one \
                 (`done`, `failed` or `cancelled`) the server closes.",
            ),
        delete("/analysis/{job_id}", Chat, analysis::cancel)
            .described("cancelAnalysis", "Cancel an analysis")
            .answers::<AnalysisJob>("The job as it is now."),
    ]
}

/// Documents and collections.
fn stored() -> Vec<Route> {
    vec![
        post("/api/v1/documents/upload", Documents, documents::upload)
            .described("uploadDocument", "Upload a document, which is then read in the background")
            .takes_form::<DocumentUpload>()
            .answers::<DocumentAnswer>("The document, as `processing` unless its bytes were known."),
        get("/api/v1/documents", Documents, documents::list)
            .described("listDocuments", "Documents")
            .query::<DocumentListQuery>()
            .answers::<DocumentList>("The documents, the newest first."),
        get("/api/v1/documents/{id}", Documents, documents::retrieve)
            .described("retrieveDocument", "One document")
            .answers::<DocumentAnswer>("The document."),
        delete("/api/v1/documents/{id}", Documents, documents::delete)
            .described("deleteDocument", "Delete a document and its file")
            .answers::<DocumentDeleted>("It is gone."),
        get("/api/v1/collections", Documents, documents::collections)
            .described("listCollections", "All collections")
            .answers::<CollectionList>("The collections."),
        delete("/api/v1/collections/{name}", Documents, documents::delete_collection)
            .described("deleteCollection", "Delete a collection")
            .answers::<CollectionAnswer>("What it was."),
        post("/api/v1/collections/{name}/reindex", Documents, documents::reindex)
            .described("reindexCollection", "Compute a collection's vectors with the served embedding model")
            .answers::<ReindexAnswer>("The job."),
        get("/api/v1/collections/{name}/reindex/{job_id}", Documents, documents::reindex_state)
            .described("retrieveReindex", "How far reindexing is")
            .answers::<ReindexAnswer>("The job."),
    ]
}

/// OpenAI's files and vector stores.
fn files_and_vector_stores() -> Vec<Route> {
    vec![
        post("/v1/files", Documents, files::upload_file)
            .described("createFile", "Upload a file")
            .takes_form::<FileUpload>()
            .answers::<FileObject>("The file."),
        get("/v1/files", Documents, files::list_files)
            .described("listFiles", "Uploaded files")
            .query::<FileListQuery>()
            .answers::<List<FileObject>>("A page of them."),
        get("/v1/files/{id}", Documents, files::retrieve_file)
            .described("retrieveFile", "One file")
            .answers::<FileObject>("The file."),
        delete("/v1/files/{id}", Documents, files::delete_file)
            .described("deleteFile", "Delete a file, and what vector stores have of it")
            .answers::<Deleted>("It is gone."),
        get("/v1/files/{id}/content", Documents, files::file_content)
            .described("downloadFile", "The bytes of a file")
            .answers_raw(200, "application/octet-stream", "The bytes."),
        post("/v1/vector_stores", Documents, vector_stores::create_vector_store)
            .described("createVectorStore", "Make a vector store")
            .takes::<VectorStoreCreate>()
            .answers::<VectorStoreObject>("The vector store."),
        get("/v1/vector_stores", Documents, vector_stores::list_vector_stores)
            .described("listVectorStores", "Vector stores")
            .query::<VectorStoreListQuery>()
            .answers::<List<VectorStoreObject>>("A page of them."),
        get("/v1/vector_stores/{id}", Documents, vector_stores::retrieve_vector_store)
            .described("getVectorStore", "One vector store")
            .answers::<VectorStoreObject>("The vector store."),
        post("/v1/vector_stores/{id}", Documents, vector_stores::update_vector_store)
            .described("modifyVectorStore", "Change a vector store")
            .takes::<VectorStoreUpdate>()
            .answers::<VectorStoreObject>("The vector store."),
        delete("/v1/vector_stores/{id}", Documents, vector_stores::delete_vector_store)
            .described("deleteVectorStore", "Delete a vector store; its files stay")
            .answers::<Deleted>("It is gone."),
        post("/v1/vector_stores/{id}/search", Documents, vector_stores::search_vector_store)
            .described("searchVectorStore", "Passages of a vector store that are near to a query")
            .takes::<VectorStoreSearchRequest>()
            .answers::<SearchResultsPage>("The passages, the nearest first."),
        post("/v1/vector_stores/{id}/files", Documents, vector_stores::create_vector_store_file)
            .described("createVectorStoreFile", "Add a file")
            .takes::<VectorStoreFileRequest>()
            .answers::<VectorStoreFileObject>("The file."),
        get("/v1/vector_stores/{id}/files", Documents, vector_stores::list_vector_store_files)
            .described("listVectorStoreFiles", "Files of a vector store")
            .query::<VectorStoreFileListQuery>()
            .answers::<List<VectorStoreFileObject>>("A page of them."),
        get("/v1/vector_stores/{id}/files/{file_id}", Documents, vector_stores::retrieve_vector_store_file)
            .described("getVectorStoreFile", "One file of a vector store")
            .answers::<VectorStoreFileObject>("The file."),
        post("/v1/vector_stores/{id}/files/{file_id}", Documents, vector_stores::update_vector_store_file)
            .described("updateVectorStoreFileAttributes", "Other attributes")
            .takes::<VectorStoreFileUpdate>()
            .answers::<VectorStoreFileObject>("The file."),
        delete("/v1/vector_stores/{id}/files/{file_id}", Documents, vector_stores::delete_vector_store_file)
            .described("deleteVectorStoreFile", "Take a file out; the file itself stays")
            .answers::<Deleted>("It is out."),
        get("/v1/vector_stores/{id}/files/{file_id}/content", Documents, vector_stores::vector_store_file_content)
            .described("retrieveVectorStoreFileContent", "What was read of a file")
            .answers::<FileContentPage>("Its text, piece by piece."),
        post("/v1/vector_stores/{id}/file_batches", Documents, vector_stores::create_file_batch)
            .described("createVectorStoreFileBatch", "Add files in one step")
            .takes::<FileBatchRequest>()
            .answers::<FileBatchObject>("The batch."),
        get("/v1/vector_stores/{id}/file_batches/{batch_id}", Documents, vector_stores::retrieve_file_batch)
            .described("getVectorStoreFileBatch", "How far a batch is")
            .answers::<FileBatchObject>("The batch."),
        post("/v1/vector_stores/{id}/file_batches/{batch_id}/cancel", Documents, vector_stores::cancel_file_batch)
            .described("cancelFileBatch", "Read no more of a batch")
            .metered(Free)
            .answers::<FileBatchObject>("The batch."),
        get("/v1/vector_stores/{id}/file_batches/{batch_id}/files", Documents, vector_stores::list_file_batch_files)
            .described("listFilesInVectorStoreBatch", "Files of a batch")
            .query::<VectorStoreFileListQuery>()
            .answers::<List<VectorStoreFileObject>>("A page of them."),
    ]
}

/// What callers learn about themselves and their usage.
fn callers() -> Vec<Route> {
    vec![
        get("/v1/me", AnyKey, me::me)
            .described("me", "Who a request is taken for, and what that caller may do")
            .answers::<Me>("The caller."),
        // A caller's own usage; the handler decides about that of others.
        get("/v1/usage", AnyKey, spending::usage)
            .described("usage", "What requests came to, of the caller's own or, for administrators, all")
            .query::<UsageParameters>()
            .answers::<UsageReport>("One entry for each group, and the sum of all.")
            .answers_raw(200, "text/csv", "The entries as a table with a header, where `Accept` names `text/csv`."),
        post("/v1/quote", Chat, quote::quote)
            .described("quote", "What a chat completion or a completion would take, without running it")
            .metered(Counted)
            .takes::<QuoteRequest>()
            .answers::<QuoteAnswer>("What each side that could serve it says."),
        get("/metrics", Admin, spending::metrics)
            .described("metrics", "What all requests came to")
            .answers::<MetricsSummary>("The sums of the whole ledger.")
            .answers_raw(200, "text/plain", "Prometheus' text, where `Accept` names `text/plain` or OpenMetrics."),
    ]
}

/// What probes call, and people open.
fn server() -> Vec<Route> {
    vec![
        get("/health", Public, health::health)
            .described("health", "Does it serve, and what?")
            .answers::<HealthSummary>("It serves."),
        get("/health/live", Public, health::live)
            .described("live", "Does the process answer?")
            .answers::<Liveness>("It does."),
        get("/health/ready", Public, health::ready)
            .described("ready", "Are the models loaded, and does everything work?")
            .answers::<HealthSummary>("They are, and it does."),
        get("/health/deep", Public, health::deep)
            .described("deep", "The engine's heartbeat, its device and its cache")
            .answers::<DeepHealth>("All is well.")
            .answers_with::<DeepHealth>(503, "The same, with the reason why it does not serve."),
        get("/", Public, greeting::greet)
            .described("greeting", "What answers here")
            .answers_raw(200, "text/plain", "A line.")
            .answers_raw(200, "text/html", "A page, for browsers."),
        get("/openapi.json", Public, openapi::document)
            .described("openapi", "This document")
            .answers::<serde_json::Map<String, serde_json::Value>>("The document."),
        get("/docs", Public, openapi::docs_redirect).described("docsRedirect", "To the pages").answers_raw(
            308,
            "",
            "The pages are at /docs/.",
        ),
        get("/docs/", Public, openapi::docs_index).described("docs", "This document as pages").answers_raw(
            200,
            "text/html",
            "The page.",
        ),
        get("/docs/{*file}", Public, openapi::docs_file).described("docsFile", "A part of the pages").answers_raw(
            200,
            "*/*",
            "The file.",
        ),
    ]
}
