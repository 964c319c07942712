//! One function for each kind of bytes that strangers send: it must return, whatever they are. What holds beside that is asserted.

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
};

use axum::{body::Body, http::Request};
use hearth::{
    providers::hosted::event_decoder::EventDecoder,
    store::{Scope, Store},
    wire::documents::read_filter,
};
use hearth_domain::{
    ChatPrompt, Constraint, LOCAL, ToolChoice,
    documents::{EmbeddingIdentity, NewChunk},
};
use hearth_models::{gguf::Gguf, store::check_safetensors};
use hearth_text::{
    chat_template::ChatTemplate,
    extract::{Limits, extract_unprotected},
    grammar::{GrammarCompiler, GrammarVocabulary, ToolCallRules},
    tokenizer::Tokenizer,
    tool_calls::{OutputParser, ParsedPiece, Thinking, ToolFormat},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::scripted_server::ScriptedServer;

/// A target's name, which is its corpus' folder, and the target.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 11] = [
    ("gguf", gguf),
    ("safetensors", safetensors),
    ("text_documents", text_documents),
    ("office", office),
    ("pdf", pdf),
    ("multipart", multipart),
    ("bodies", bodies),
    ("upstream_events", upstream_events),
    ("templates", templates),
    ("tool_calls", tool_calls),
    ("schemas_and_filters", schemas_and_filters),
];

/// A folder in memory where the system has one: a target writes a file for each input.
static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.expect("a temporary directory")
});

fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = FOLDER.path().join(name);
    std::fs::write(&path, bytes).expect("a writable directory");
    path
}

/// A model file: its header, every tensor that it names, and its vocabulary.
pub fn gguf(data: &[u8]) {
    let Ok(gguf) = Gguf::open(&file("model.gguf", data)) else { return };
    let _ = (gguf.architecture(), gguf.parameters(), gguf.quantization());
    let names: Vec<String> = gguf.tensors().map(|tensor| tensor.name.to_owned()).collect();
    for name in names {
        if let Ok(tensor) = gguf.tensor(&name) {
            assert!(tensor.data.len() <= data.len());
        }
    }
    if let Ok(tokenizer) = Tokenizer::from_gguf(gguf.metadata()) {
        let _ = tokenizer.bos();
    }
}

/// The header of a model file of the other kind.
pub fn safetensors(data: &[u8]) {
    let folder = FOLDER.path().join("model");
    std::fs::create_dir_all(&folder).expect("a writable directory");
    for (name, bytes) in [("config.json", &b"{}"[..]), ("tokenizer.json", b"{}"), ("model.safetensors", data)] {
        std::fs::write(folder.join(name), bytes).expect("a writable directory");
    }
    let _ = check_safetensors(&folder);
}

fn limits() -> Limits {
    const MIB: u64 = 1 << 20;
    Limits { file_bytes: 4 * MIB, text_bytes: 4 * MIB, archive_bytes: 8 * MIB, blocks: 100_000, ..Limits::default() }
}

/// Texts of every kind that is read in the server's own process, and gzip.
pub fn text_documents(data: &[u8]) {
    const KINDS: [&str; 8] = ["txt", "md", "html", "csv", "tsv", "json", "jsonl", "rs"];
    let Some((&kind, data)) = data.split_first() else { return };
    let name = format!("a.{}", KINDS[usize::from(kind) % KINDS.len()]);
    if let Ok(extracted) = extract_unprotected(data.to_vec(), &name, &limits()) {
        assert!(extracted.blocks.iter().any(|block| !block.text.trim().is_empty()), "a document has text");
    }
}

/// Office files: an archive as it is, or one with a part that is as it is.
pub fn office(data: &[u8]) {
    const PARTS: [(&str, &str); 6] = [
        ("a.docx", "word/document.xml"),
        ("a.docx", "word/styles.xml"),
        ("a.docx", "word/numbering.xml"),
        ("a.xlsx", "xl/worksheets/sheet1.xml"),
        ("a.xlsx", "xl/sharedStrings.xml"),
        ("a.xlsx", "xl/workbook.xml"),
    ];
    let Some((&kind, data)) = data.split_first() else { return };
    let Some((name, part)) = PARTS.get(usize::from(kind) % (PARTS.len() + 1)) else {
        let _ = extract_unprotected(data.to_vec(), "a", &limits());
        return;
    };
    let mut parts: BTreeMap<&str, &[u8]> = BTreeMap::from([("[Content_Types].xml", &b"<Types/>"[..])]);
    if *name == "a.docx" {
        parts.insert(
            "word/document.xml",
            br#"<w:document xmlns:w="w"><w:body><w:p><w:r><w:t>a</w:t></w:r></w:p></w:body></w:document>"#,
        );
    } else {
        parts.insert(
            "xl/workbook.xml",
            br#"<workbook xmlns:r="r"><sheets><sheet name="S" sheetId="1" r:id="rId1"/></sheets></workbook>"#,
        );
        parts.insert("xl/_rels/workbook.xml.rels", br#"<Relationships><Relationship Id="rId1" Type="worksheet" Target="worksheets/sheet1.xml"/></Relationships>"#);
        parts.insert(
            "xl/worksheets/sheet1.xml",
            br#"<worksheet><sheetData><row r="1"><c r="A1" t="s"><v>0</v></c></row></sheetData></worksheet>"#,
        );
    }
    parts.insert(part, data);
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in parts {
        let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        archive.start_file(name, options).expect("a part begins");
        archive.write_all(bytes).expect("a part is written");
    }
    let _ = extract_unprotected(archive.finish().expect("it ends").into_inner(), name, &limits());
}

pub fn pdf(data: &[u8]) {
    let mut bytes = data.to_vec();
    if !bytes.starts_with(b"%PDF-") {
        bytes.splice(0..0, *b"%PDF-1.7\n");
    }
    let _ = extract_unprotected(bytes, "a.pdf", &limits());
}

static SERVER: LazyLock<(tokio::runtime::Runtime, ScriptedServer)> = LazyLock::new(|| {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let server = {
        let _within = runtime.enter();
        ScriptedServer::hello()
    };
    (runtime, server)
});

/// The server never fails: what it is sent is answered or refused.
fn answered(request: Request<Body>) {
    let (runtime, server) = &*SERVER;
    let answer = runtime.block_on(server.send(request));
    assert!(answer.status != 500, "{}", answer.text());
}

/// An upload whose form is as it is.
pub fn multipart(data: &[u8]) {
    let (path, data) = match data.split_first() {
        Some((kind, data)) if kind % 2 == 0 => ("/v1/files", data),
        Some((_, data)) => ("/api/v1/documents/upload", data),
        None => return,
    };
    let form = Request::post(path).header("content-type", "multipart/form-data; boundary=b");
    answered(form.body(Body::from(data.to_vec())).expect("a valid request"));
}

/// A body of JSON, or of what is none, for each route that takes one.
pub fn bodies(data: &[u8]) {
    const ROUTES: [&str; 16] = [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/rerank",
        "/v1/quote",
        "/v1/vector_stores",
        "/v1/vector_stores/none/search",
        "/v1/vector_stores/none/file_batches",
        "/ask",
        "/api/v1/chat",
        "/api/v1/search",
        "/generate",
        "/analysis",
        "/tokenize",
        "/detokenize",
        "/apply-template",
    ];
    let Some((&route, data)) = data.split_first() else { return };
    let request = Request::post(ROUTES[usize::from(route) % ROUTES.len()]).header("content-type", "application/json");
    answered(request.body(Body::from(data.to_vec())).expect("a valid request"));
}

/// Events of an upstream, which are the same however packets cut them.
pub fn upstream_events(data: &[u8]) {
    let Some((&cut, data)) = data.split_first() else { return };
    let decoded = |packet_bytes: usize| {
        let (mut decoder, mut events) = (EventDecoder::default(), Vec::new());
        let outcome = data.chunks(packet_bytes).try_for_each(|packet| decoder.push(packet, &mut events));
        (outcome.is_ok(), events)
    };
    assert_eq!(decoded(data.len().max(1)), decoded(usize::from(cut).max(1)));
}

/// A model's template, which came with the model.
pub fn templates(data: &[u8]) {
    let Ok(source) = std::str::from_utf8(data) else { return };
    let Ok(template) = ChatTemplate::new(source, "<s>", "</s>") else { return };
    let messages = json!([
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]},
        {"role": "tool", "tool_call_id": "1", "content": "2"},
        {"role": "user", "content": "And?"},
    ]);
    let Value::Array(messages) = messages else { return };
    let tools = vec![json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}})];
    for tools in [Vec::new(), tools] {
        let prompt =
            ChatPrompt { messages: messages.clone(), tools, add_generation_prompt: true, ..ChatPrompt::default() };
        let _ = template.render_prompt(&prompt);
    }
}

/// What a model says, which is parsed the same however its tokens cut it.
pub fn tool_calls(data: &[u8]) {
    const FORMATS: [ToolFormat; 6] = [
        ToolFormat::Hermes,
        ToolFormat::Llama3,
        ToolFormat::Mistral,
        ToolFormat::MistralNamed,
        ToolFormat::Functools,
        ToolFormat::PhiTags,
    ];
    let [format, cut, data @ ..] = data else { return };
    let Ok(text) = std::str::from_utf8(data) else { return };
    let thinking = [Thinking::Never, Thinking::MayOpen, Thinking::Open][usize::from(format / 6) % 3];
    let parsed = |pieces: &mut dyn Iterator<Item = &str>| {
        let names = vec!["f".to_owned(), "get".to_owned()];
        let mut parser = OutputParser::new(Some(FORMATS[usize::from(format % 6)]), names, thinking);
        let mut found: Vec<ParsedPiece> = pieces.flat_map(|piece| parser.push(piece)).collect();
        found.extend(parser.finish());
        let (mut text, mut thought, mut calls) = (String::new(), String::new(), Vec::new());
        for piece in found {
            match piece {
                ParsedPiece::Text(more) => text += &more,
                ParsedPiece::Reasoning(more) => thought += &more,
                ParsedPiece::CallStart { name, .. } => calls.push((name, String::new())),
                ParsedPiece::CallArguments { index, delta } => calls[index].1 += &delta,
            }
        }
        (text, thought, calls)
    };
    let whole = parsed(&mut std::iter::once(text));
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some((end, _)) = rest.char_indices().nth(usize::from(*cut).max(1)) {
        let (piece, after) = rest.split_at(end);
        pieces.push(piece);
        rest = after;
    }
    pieces.push(rest);
    assert_eq!(parsed(&mut pieces.into_iter()), whole);
}

static COMPILER: LazyLock<GrammarCompiler> = LazyLock::new(|| {
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    tokens.push(b"<|end|>".to_vec());
    let vocabulary = GrammarVocabulary { tokens, special: vec![256], end_of_generation: vec![256] };
    GrammarCompiler::from_vocabulary(&vocabulary, 257).expect("a vocabulary")
});

static STORE: LazyLock<(Arc<Store>, String)> = LazyLock::new(|| {
    let store = Store::open(&FOLDER.path().join("store")).expect("a new store");
    let own = store.of(LOCAL);
    let collection = own.create_collection("docs", BTreeMap::new()).expect("a new collection").id;
    let mut incoming = store.receive_file(0).expect("there is room");
    incoming.write(b"text").expect("there is room");
    let file = own.keep_file(incoming, "a.md", "assistants").expect("there is room");
    own.add_document(&collection, &file.id, BTreeMap::new(), None).expect("a new document");
    let chunk = NewChunk { text: "text".into(), heading: String::new(), place: None, tokens: 1, vector: vec![1.0] };
    let embedding = EmbeddingIdentity { name: "m".into(), dimensions: 1 };
    own.replace_chunks(&collection, &file.id, &embedding, vec![chunk], &[]).expect("the document is there");
    drop(own);
    (store, collection)
});

/// A JSON schema of an answer or a tool, and a filter over attributes.
pub fn schemas_and_filters(data: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(data) else { return };
    if let Ok(filter) = read_filter(value.clone(), "filters") {
        let (store, collection) = &*STORE;
        store.filtered_chunk_ids(collection, &filter).expect("every filter is a query");
        let scope = Scope { collection_id: collection, filter: Some(&filter) };
        store.lexical_search(scope, "text", 5).expect("every filter is a query");
    }
    let first_mask = |mut answers: Vec<Box<dyn hearth_domain::TokenConstraint>>| {
        let _ = answers[0].allowed(&mut [0; 9]);
    };
    if let Ok(compiled) = COMPILER.compile(&Constraint::JsonSchema(value.clone())) {
        first_mask(compiled.answers(1));
    }
    let tools = [json!({"type": "function", "function": {"name": "f", "parameters": value}})];
    let rules = ToolCallRules {
        tools: &tools,
        choice: &ToolChoice::Required,
        parallel: true,
        format: ToolFormat::Hermes,
        thinking: Thinking::Never,
        thinking_tokens: 0,
    };
    if let Ok(Some(compiled)) = COMPILER.compile_tool_calls(&rules) {
        first_mask(compiled.answers(1));
    }
}
