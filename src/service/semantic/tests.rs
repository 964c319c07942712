//! Which questions share an answer, with a scripted model that counts.

use futures_util::StreamExt;
use hearth_domain::{
    Caller, ChatPrompt, Constraint, GenerateRequest, Prompt, RequestContext, SamplingParams, ToolChoice, usage::NoSink,
};
use serde_json::json;

use super::*;
use crate::{
    providers::{
        ChatModel,
        cache::SEMANTIC,
        scripted::{ScriptedChat, ScriptedEmbedder},
    },
    service::{chat::complete, models::Models},
};

struct Setup {
    models: Models,
    chat: Arc<ScriptedChat>,
    model: Arc<dyn ChatModel>,
}

fn setup() -> Setup {
    let settings = CacheSettings { semantic_similarity: Some(0.97), ..CacheSettings::default() };
    let models = Models::new(false).with_caches(&settings);
    let chat = Arc::new(ScriptedChat::saying("tiny", "Hello!"));
    models.add_chat(chat.clone(), Vec::new());
    models.add_embedder(Arc::new(ScriptedEmbedder::new("embed")), Vec::new());
    let model = models.chat(Some("tiny")).expect("it is served");
    Setup { models, chat, model }
}

fn account(caller: &str) -> Arc<Account> {
    account_with(caller, CacheUse::Full)
}

fn account_with(caller: &str, cache_use: CacheUse) -> Arc<Account> {
    let context = RequestContext {
        request_id: "r".into(),
        route: "POST /v1/chat/completions".into(),
        caller: Arc::new(Caller { id: caller.into(), ..Caller::local() }),
        fairness_key: String::new(),
        policy: None,
        is_recorded: true,
        cache_use,
        is_local_only: false,
        session: None,
    };
    Account::open(Arc::new(NoSink), context)
}

fn generation(account: &Arc<Account>, chat: ChatPrompt) -> GenerateRequest {
    GenerateRequest::new(account.clone(), Prompt::Chat(ChatPrompt { add_generation_prompt: true, ..chat }))
}

fn asking(system: &str, question: &str) -> ChatPrompt {
    let messages = vec![json!({"role": "system", "content": system}), json!({"role": "user", "content": question})];
    ChatPrompt { messages, ..ChatPrompt::default() }
}

impl Setup {
    /// How many answers the model has been asked for once this one has been read.
    async fn computed(&self, request: GenerateRequest) -> usize {
        let events = complete(&self.models, &self.model, request).await.expect("an answer");
        let events: Vec<_> = events.map(|event| event.expect("no failure")).collect().await;
        assert!(matches!(events.last(), Some(GenerateEvent::Done { .. })));
        self.chat.started()
    }
}

#[tokio::test]
async fn a_question_of_the_same_meaning_has_the_same_answer_and_the_receipt_says_so() {
    let setup = setup();
    assert_eq!(setup.computed(generation(&account("a"), asking("Be kind.", "?"))).await, 1);
    let own = account("a");
    assert_eq!(setup.computed(generation(&own, asking("Be kind.", "?"))).await, 1);
    assert_eq!(own.receipt().cache, Some(SEMANTIC));
    assert_eq!(own.receipt().completion_tokens(), 6);
    assert_eq!(setup.computed(generation(&account("a"), asking("Be kind.", "another?"))).await, 2);
}

#[tokio::test]
async fn what_else_differs_makes_it_another_question() {
    let setup = setup();
    let usual = || generation(&account("a"), asking("Be kind.", "?"));
    let mut computed = setup.computed(usual()).await;
    let others = [
        generation(&account("b"), asking("Be kind.", "?")),
        generation(&account("a"), asking("Be brief.", "?")),
        GenerateRequest { max_tokens: Some(3), ..usual() },
        GenerateRequest { sampling: SamplingParams { temperature: 0.5, ..SamplingParams::default() }, ..usual() },
        GenerateRequest { stop: ["!".to_owned()].into(), ..usual() },
    ];
    for other in others {
        computed += 1;
        assert_eq!(setup.computed(other.clone()).await, computed, "{other:?}");
        assert_eq!(setup.computed(other).await, computed, "it has a place of its own");
    }
    assert_eq!(setup.computed(usual()).await, computed);
}

#[tokio::test]
async fn what_is_held_against_the_very_question_is_always_computed() {
    let setup = setup();
    let usual = || generation(&account("a"), asking("Be kind.", "?"));
    let with_tools = ChatPrompt { tools: vec![json!({})], tool_choice: ToolChoice::None, ..asking("Be kind.", "?") };
    let out = account_with("a", CacheUse::Off);
    let always = [
        generation(&account("a"), with_tools),
        generation(&out, asking("Be kind.", "?")),
        GenerateRequest { constraint: Some(Constraint::JsonObject.into()), ..usual() },
        GenerateRequest { logprobs: Some(0), ..usual() },
        GenerateRequest { n: 2, ..usual() },
        GenerateRequest { echo: true, ..usual() },
        GenerateRequest { prompt: Prompt::Text("?".into()), ..usual() },
    ];
    let mut computed = 0;
    for request in always {
        for _ in 0..2 {
            computed += 1;
            assert_eq!(setup.computed(request.clone()).await, computed, "{request:?}");
        }
    }
}

#[tokio::test]
async fn an_answer_made_anew_takes_the_old_ones_place() {
    let setup = setup();
    setup.computed(generation(&account("a"), asking("Be kind.", "?"))).await;
    let anew = account_with("a", CacheUse::Refresh);
    assert_eq!(setup.computed(generation(&anew, asking("Be kind.", "?"))).await, 2);
    assert_eq!(setup.computed(generation(&account("a"), asking("Be kind.", "?"))).await, 2);
}
