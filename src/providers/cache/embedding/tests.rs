//! Which texts reach the model and which do not, with a scripted model that records its requests.

use hearth_domain::{Account, Caller, EmbedInputType, RequestContext, usage::NoSink};
use parking_lot::Mutex;

use super::*;
use crate::providers::scripted::ScriptedEmbedder;

/// Counts the texts that it is asked for.
struct Counting {
    model: ScriptedEmbedder,
    asked: Mutex<Vec<usize>>,
    counts_tokens: bool,
}

impl Embedder for Counting {
    fn info(&self) -> &ModelInfo {
        self.model.info()
    }

    fn identity(&self) -> EmbeddingIdentity {
        self.model.identity()
    }

    fn embed(&self, request: EmbedRequest) -> BoxFuture<'_, Result<EmbedResponse>> {
        self.asked.lock().push(request.inputs.len());
        let too_long = request.inputs.iter().position(|input| length(input) > 20);
        async move {
            if let Some(place) = too_long {
                return Err(Error::invalid(format!("input[{place}]"), "It is too long."));
            }
            let mut response = self.model.embed(request).await?;
            if !self.counts_tokens {
                response.token_counts.clear();
            }
            Ok(response)
        }
        .boxed()
    }
}

fn account(caller: &str) -> Arc<Account> {
    account_with(caller, CacheUse::Full)
}

fn account_with(caller: &str, cache_use: CacheUse) -> Arc<Account> {
    let context = RequestContext {
        request_id: "r".into(),
        route: "POST /v1/embeddings".into(),
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

fn request(account: &Arc<Account>, texts: &[&str]) -> EmbedRequest {
    EmbedRequest {
        account: account.clone(),
        inputs: texts.iter().map(|text| EmbedInput::Text((*text).to_owned())).collect(),
        input_type: EmbedInputType::Plain,
        dimensions: None,
        truncate: false,
        deadline: None,
    }
}

fn cached(cache: EmbeddingCache, counts_tokens: bool) -> (Arc<Counting>, CachedEmbedder) {
    let model = Counting { model: ScriptedEmbedder::new("embed"), asked: Mutex::default(), counts_tokens };
    let model = Arc::new(model);
    (model.clone(), CachedEmbedder::new(model, cache))
}

fn usual() -> EmbeddingCache {
    EmbeddingCache::new(1 << 20, Duration::from_secs(3600))
}

#[tokio::test]
async fn only_what_is_missing_is_computed_and_the_order_is_kept() {
    let (model, cached) = cached(usual(), true);
    cached.embed(request(&account("a"), &["one", "three"])).await.expect("vectors");
    let own = account("a");
    let texts = ["zero", "three", "two", "one", "zero"];
    let answer = cached.embed(request(&own, &texts)).await.expect("vectors");
    let plain = model.model.embed(request(&account("a"), &texts)).await.expect("vectors");
    assert_eq!(answer.embeddings, plain.embeddings);
    assert_eq!((answer.prompt_tokens, answer.token_counts), (plain.prompt_tokens, plain.token_counts));
    assert_eq!(*model.asked.lock(), [2, 3]);
    let receipt = own.receipt();
    assert_eq!(receipt.cache, None, "the model had to be asked");
    let from_cache = receipt.models.iter().find(|record| record.served_by == ServedBy::Cache(EMBEDDING));
    assert_eq!(from_cache.map(|record| record.prompt_tokens), Some(8));

    let own = account("a");
    cached.embed(request(&own, &["two", "one"])).await.expect("vectors");
    assert_eq!(*model.asked.lock(), [2, 3]);
    assert_eq!((own.receipt().cache, own.receipt().cost_micro_usd), (Some(EMBEDDING), 0));
}

#[tokio::test]
async fn tokens_are_right_where_the_model_says_only_their_sum() {
    let (_, cached) = cached(usual(), false);
    let texts = ["a", "some words", "b", "four"];
    let first = cached.embed(request(&account("a"), &texts)).await.expect("vectors");
    let second = cached.embed(request(&account("a"), &texts)).await.expect("vectors");
    assert_eq!((first.prompt_tokens, second.prompt_tokens), (16, 16));
    assert_eq!(shares(10, &[1, 1, 1]), [3, 3, 4]);
    assert_eq!(shares(0, &[0]), [0]);
}

#[tokio::test]
async fn an_error_names_the_place_in_the_callers_own_request() {
    let (_, cached) = cached(usual(), true);
    cached.embed(request(&account("a"), &["one", "two"])).await.expect("vectors");
    let texts = ["one", "two", "far more than twenty letters"];
    let error = cached.embed(request(&account("a"), &texts)).await.expect_err("too long");
    assert_eq!(error.param(), Some("input[2]"));
}

#[tokio::test]
async fn callers_share_nothing_and_may_keep_out() {
    let (model, cached) = cached(usual(), true);
    for caller in ["a", "b"] {
        cached.embed(request(&account(caller), &["one"])).await.expect("vectors");
    }
    assert_eq!(model.asked.lock().len(), 2);
    for (cache_use, asked) in [(CacheUse::Off, 3), (CacheUse::Refresh, 4), (CacheUse::Full, 4)] {
        let own = account_with("a", cache_use);
        cached.embed(request(&own, &["one"])).await.expect("vectors");
        assert_eq!(model.asked.lock().len(), asked, "{cache_use:?}");
    }
}

#[tokio::test]
async fn what_is_old_is_computed_again_and_the_limit_holds() {
    let (model, old) = cached(EmbeddingCache::new(1 << 20, Duration::from_nanos(1)), true);
    old.embed(request(&account("a"), &["one"])).await.expect("vectors");
    old.embed(request(&account("a"), &["one"])).await.expect("vectors");
    assert_eq!(model.asked.lock().len(), 2);
    let (_, small) = cached(EmbeddingCache::new(4000, Duration::from_secs(3600)), true);
    for text in 0..100 {
        small.embed(request(&account("a"), &[&text.to_string()])).await.expect("vectors");
    }
    let held = small.cache.vectors.bytes();
    assert!(held > 0 && held <= 4000, "{held}");
}
