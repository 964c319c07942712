//! Ten thousand requests of fifty callers, answered, refused, cancelled, late and failed: the rows are the requests, the
//! sums are the rows', and the compute that was charged is the time for which engine and encoder were busy.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use hearth::{
    engine::{Engine, EngineConfig, SequenceRequest, StepError, StepModel, TokenEvent, encoder::EncoderConfig},
    metering::{
        Metering,
        ledger::Ledger,
        limits::{LimitSettings, Limits, Now},
        prices::{Prices, TokenPrice},
    },
    providers::{
        Embedder,
        local_embedder::{EmbedderSettings, LocalEmbedder},
    },
    store::{GroupBy, LedgerTotals, Store, UsageQuery},
};
use hearth_domain::{
    Account, Caller, EmbedInput, EmbedInputType, EmbedRequest, RequestContext,
    error::{Error, ErrorKind, Result},
    usage::{Outcome, ServedBy, UsageSink},
};
use hearth_kernels::device::DeviceChoice;
use hearth_models::batch::Batch;
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::support::scripted_server::eventually;

const REQUESTS: u64 = 10_000;
const CALLERS: u64 = 50;
const AT_ONCE: usize = 48;
const VOCAB: usize = 32;

/// Says token after token, and every so often that a step went wrong.
struct Faulty {
    steps: u64,
}

impl StepModel for Faulty {
    fn vocab_size(&self) -> usize {
        VOCAB
    }

    fn forward(&mut self, batch: &Batch) -> Result<Vec<f32>, StepError> {
        self.steps += 1;
        match self.steps {
            step if step.is_multiple_of(401) => Err(StepError::OutOfMemory("no room".to_owned())),
            step if step.is_multiple_of(97) => Err(StepError::Failed("a fault".to_owned())),
            _ => Ok((0..batch.num_logits() * VOCAB).map(|place| (place % 7) as f32).collect()),
        }
    }
}

struct House {
    usage_sink: Arc<Metering>,
    engine: Engine,
    embedder: LocalEmbedder,
}

impl House {
    /// One request, from its account to its end.
    async fn serve(&self, number: u64) {
        let mut random = StdRng::seed_from_u64(number);
        let opening = RequestContext {
            request_id: format!("r{number}"),
            route: "POST /test".to_owned(),
            caller: Arc::new(Caller { id: format!("c{}", number % CALLERS), ..Caller::local() }),
            fairness_key: format!("c{}", number % CALLERS),
            policy: None,
            is_recorded: true,
            cache_use: hearth_domain::CacheUse::default(),
            is_local_only: false,
            session: None,
        };
        let usage_sink: Arc<dyn UsageSink> = self.usage_sink.clone();
        let account = Account::open(usage_sink, opening);
        let outcome = match number % 20 {
            0 => Err(Error::new(ErrorKind::InvalidRequest, "a field is wrong")),
            1 | 2 => self.embed(&account, &mut random).await,
            3 => {
                let record = account.begin_record("hosted", ServedBy::Upstream { name: "up".to_owned(), engine: None });
                record.set_prompt_tokens(random.random_range(0..1000), random.random_range(0..1000));
                (0..random.random_range(0..50)).for_each(|_| record.count_token());
                Ok(true)
            }
            _ => self.generate(&account, &mut random).await,
        };
        match outcome {
            Ok(true) => account.set_outcome(Outcome::Finished, None),
            Ok(false) => {}
            Err(error) => account.set_outcome(Outcome::from(&error), error.code()),
        }
    }

    async fn embed(&self, account: &Arc<Account>, random: &mut StdRng) -> Result<bool> {
        let text = "some words ".repeat(random.random_range(1..8));
        let request = EmbedRequest {
            account: account.clone(),
            inputs: vec![EmbedInput::Text(text)],
            input_type: EmbedInputType::default(),
            dimensions: None,
            truncate: true,
            deadline: None,
        };
        self.embedder.embed(request).await.map(|_| true)
    }

    /// `false`: the caller left.
    async fn generate(&self, account: &Arc<Account>, random: &mut StdRng) -> Result<bool> {
        let mut request =
            SequenceRequest::new((0..random.random_range(1..40)).map(|_| random.random_range(0..32)).collect());
        request.max_new_tokens = Some(random.random_range(0..12));
        request.n = if random.random_bool(0.1) { 3 } else { 1 };
        request.caller = account.fairness_key().to_owned();
        request.record = account.begin_record("m", ServedBy::Local { device: "cpu".to_owned() });
        if random.random_bool(0.05) {
            request.deadline = Some(Instant::now() + Duration::from_micros(random.random_range(0..3000)));
        }
        let mut stream = self.engine.submit(request).map_err(Error::from)?;
        let patience = if random.random_bool(0.15) { random.random_range(0..6) } else { usize::MAX };
        let mut seen = 0;
        while let Some(event) = stream.next().await {
            if matches!(event?, TokenEvent::Done { .. }) {
                return Ok(true);
            }
            seen += 1;
            if seen > patience {
                return Ok(false);
            }
        }
        Err(Error::internal(anyhow::anyhow!("a stream without an end")))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_the_requests_and_sums_are_the_rows() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = Store::open(directory.path()).expect("a new store");
    let ledger = Ledger::open(store.clone()).expect("a new ledger");
    let limits = Limits::open(LimitSettings::default(), &*store, Now::since(Instant::now())).expect("no limits");
    let price = TokenPrice { input: 150_000, cached_input: 75_000, output: 600_000 };
    let prices = Prices::default().with_compute_hour("cpu", 7_300_001).with_tokens("up", "hosted", price);
    let settings = EmbedderSettings {
        name: "e".to_owned(),
        device: DeviceChoice::Cpu,
        queue: EncoderConfig::default(),
        prompts: None,
    };
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/embeddings/bert-mean");
    // Fewer places than requests at a time, so that some wait, and some late ones end in the queue.
    let config = EngineConfig { max_running_sequences: 16, max_waiting: AT_ONCE, ..EngineConfig::default() };
    let house = Arc::new(House {
        usage_sink: Arc::new(Metering::new(Arc::new(prices), ledger.clone(), limits)),
        engine: Engine::start(Box::new(Faulty { steps: 0 }), config).expect("a valid configuration"),
        embedder: LocalEmbedder::load(&model, settings).expect("the fixture loads"),
    });
    let next = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..AT_ONCE)
        .map(|_| {
            let (house, next) = (house.clone(), next.clone());
            tokio::spawn(async move {
                loop {
                    let number = next.fetch_add(1, Relaxed);
                    if number >= REQUESTS {
                        return;
                    }
                    house.serve(number).await;
                }
            })
        })
        .collect();
    for client in clients {
        client.await.expect("no client panics");
    }
    // The engine lets go of what was cancelled at its next turn.
    eventually("every request has its row", || ledger.totals().requests == REQUESTS).await;
    assert!(ledger.flush(Duration::from_secs(60)));
    let rows = store.ledger_rows(0, 2 * REQUESTS as usize).expect("the store is readable");
    let mut ids: Vec<&str> = rows.iter().map(|row| row.request_id.as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!((rows.len() as u64, ids.len() as u64), (REQUESTS, REQUESTS), "one row for each request");

    let mut summed = LedgerTotals::default();
    rows.iter().for_each(|row| summed.add(row));
    assert_eq!(summed, ledger.totals(), "the sums in memory are the rows'");
    assert_eq!(summed, store.ledger_totals().expect("the store is readable"));
    for group_by in
        [vec![], vec![GroupBy::Caller], vec![GroupBy::Caller, GroupBy::Model, GroupBy::Provider, GroupBy::Day]]
    {
        let query = UsageQuery { to_ms: i64::MAX, group_by, limit: 1000, ..UsageQuery::default() };
        let groups = store.usage(&query).expect("the store is readable");
        assert_eq!(groups.iter().map(|group| group.totals.requests).sum::<u64>(), REQUESTS);
        assert_eq!(groups.iter().map(|group| group.totals.cost_micro_usd).sum::<u64>(), summed.cost_micro_usd);
        assert_eq!(groups.iter().map(|group| group.totals.compute_us).sum::<u64>(), summed.compute_us);
    }
    for (outcome, count) in [
        ("finished", summed.finished),
        ("refused", summed.refused),
        ("failed", summed.failed),
        ("cancelled", summed.cancelled),
        ("timed_out", summed.timed_out),
    ] {
        assert!(count > 0, "no request was {outcome}: {summed:?}");
    }
    assert!(summed.cost_micro_usd > 0);

    let busy = house.engine.stats().busy + house.embedder.stats().busy;
    let charged = Duration::from_micros(summed.compute_us);
    let apart = charged.abs_diff(busy).as_secs_f64() / busy.as_secs_f64();
    assert!(apart < 0.01, "charged {charged:?}, busy {busy:?}: {:.2} % apart", apart * 100.0);
}
