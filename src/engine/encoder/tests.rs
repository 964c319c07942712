//! The thread against a mock model: merging, cancellation, limits, faults, draining.

use std::sync::mpsc;

use super::*;
use hearth_domain::part::RESTARTS_MAX;

/// A text's vector is the sum of its tokens and its length, so that every text's vector is known. Each batch waits for
/// a permit and is reported, so that tests decide when a batch ends.
struct Mock {
    permits: mpsc::Receiver<Outcome>,
    batches: Sender<Vec<usize>>,
}

enum Outcome {
    Succeed,
    Fail(StepError),
    Panic,
}

impl EncoderModel for Mock {
    fn embed(&mut self, tokens: &[u32], lengths: &[usize]) -> Result<Vec<Vec<f32>>, StepError> {
        self.batches.send(lengths.to_vec()).expect("the test listens");
        match self.permits.recv() {
            Ok(Outcome::Succeed) => {}
            Ok(Outcome::Fail(error)) => return Err(error),
            Ok(Outcome::Panic) | Err(_) => panic!("a mock's panic"),
        }
        let mut rest = tokens;
        let vectors = lengths.iter().map(|&length| {
            let (text, after) = rest.split_at(length);
            rest = after;
            vec![text.iter().sum::<u32>() as f32, length as f32]
        });
        Ok(vectors.collect())
    }
}

struct Bench {
    handle: EncoderHandle,
    permits: Sender<Outcome>,
    batches: mpsc::Receiver<Vec<usize>>,
}

impl Bench {
    fn new(config: EncoderConfig) -> Self {
        let (permits, permitted) = channel();
        let (report, batches) = channel();
        let model = Mock { permits: permitted, batches: report };
        let handle = EncoderHandle::start("test encoder", Box::new(model), config).expect("the thread starts");
        Self { handle, permits, batches }
    }

    fn permit(&self, outcome: Outcome) {
        self.permits.send(outcome).expect("the thread runs");
    }

    fn batch(&self) -> Vec<usize> {
        self.batches.recv().expect("the thread runs")
    }
}

fn request(texts: &[&[u32]]) -> EncodeRequest {
    EncodeRequest { texts: texts.iter().map(|text| text.to_vec()).collect(), ..EncodeRequest::default() }
}

#[tokio::test]
async fn requests_that_wait_are_computed_together_and_answered_apart() {
    let bench = Bench::new(EncoderConfig::default());
    let first = bench.handle.submit(request(&[&[1, 2]])).expect("there is room");
    assert_eq!(bench.batch(), [2]);
    // These two arrive while the first batch runs.
    let second = bench.handle.submit(request(&[&[3], &[9, 9, 9, 9]])).expect("there is room");
    let third = bench.handle.submit(request(&[&[5, 5, 5]])).expect("there is room");
    for _ in 0..3 {
        bench.permit(Outcome::Succeed);
    }
    assert_eq!(first.await.expect("computed").vectors, [[3.0, 2.0]]);
    assert_eq!(second.await.expect("computed").vectors, [[3.0, 1.0], [36.0, 4.0]]);
    assert_eq!(third.await.expect("computed").vectors, [[15.0, 3.0]]);
    assert_eq!(bench.batch(), [4, 3], "one length bucket of both requests");
    assert_eq!(bench.batch(), [1]);
    let stats = bench.handle.stats();
    assert_eq!((stats.open_texts, stats.finished_texts, stats.finished_tokens, stats.batches), (0, 4, 10, 3));
    let heartbeat = bench.handle.heartbeat();
    assert!(heartbeat.alive && heartbeat.in_step.is_none());
}

#[tokio::test]
async fn a_dropped_future_cancels_its_request() {
    let bench = Bench::new(EncoderConfig::default());
    let running = bench.handle.submit(request(&[&[1]])).expect("there is room");
    bench.batch();
    drop(bench.handle.submit(request(&[&[7; 50]])).expect("there is room"));
    let after = bench.handle.submit(request(&[&[2]])).expect("there is room");
    bench.permit(Outcome::Succeed);
    bench.permit(Outcome::Succeed);
    running.await.expect("computed");
    after.await.expect("computed");
    assert_eq!(bench.batch(), [1], "the cancelled text was never computed");
    let stats = bench.handle.stats();
    assert_eq!((stats.open_texts, stats.abandoned_requests), (0, 1));
}

#[tokio::test]
async fn a_full_queue_refuses_and_says_when_to_come_back() {
    let bench = Bench::new(EncoderConfig { max_waiting_texts: 3, ..EncoderConfig::default() });
    let accepted = bench.handle.submit(request(&[&[1], &[2]])).expect("there is room");
    let error = bench.handle.submit(request(&[&[3], &[4]])).err().expect("the queue is full");
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    assert!(error.retry_after().is_some());
    let error = bench.handle.submit(request(&[&[1], &[1], &[1], &[1]])).err().expect("it can never fit");
    assert_eq!((error.kind(), error.param()), (ErrorKind::InvalidRequest, Some("input")));
    bench.permit(Outcome::Succeed);
    accepted.await.expect("computed");
    bench.permit(Outcome::Succeed);
    bench.handle.submit(request(&[&[3], &[4], &[5]])).expect("there is room again").await.expect("computed");
}

#[tokio::test]
async fn a_panic_and_an_error_fail_their_own_batch_only() {
    let bench = Bench::new(EncoderConfig { max_batch_tokens: 1, ..EncoderConfig::default() });
    let outcomes = [
        Outcome::Panic,
        Outcome::Fail(StepError::OutOfMemory("no room".into())),
        Outcome::Fail(StepError::Failed("wrong".into())),
        Outcome::Succeed,
    ];
    let mut kinds = Vec::new();
    for outcome in outcomes {
        bench.permit(outcome);
        let answer = bench.handle.submit(request(&[&[4]])).expect("there is room").await;
        kinds.push(answer.map(|encoded| encoded.vectors).map_err(|error| error.kind()));
    }
    assert_eq!(
        kinds,
        [Err(ErrorKind::Internal), Err(ErrorKind::OutOfMemory), Err(ErrorKind::Internal), Ok(vec![vec![4.0, 1.0]])]
    );
    let stats = bench.handle.stats();
    assert_eq!((stats.failed_batches, stats.open_texts), (3, 0));
    assert_eq!(bench.handle.heartbeat().consecutive_failures, 0);
}

/// Makes the loop panic outside its batches, this many times, through the foreground check that it makes between
/// batches.
fn panic_in_the_loop(handle: &EncoderHandle) -> Arc<AtomicUsize> {
    let left = Arc::new(AtomicUsize::new(0));
    let counter = left.clone();
    handle.give_way_to(move || {
        let panics = counter.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1));
        assert!(panics.is_err(), "asked to panic");
        Foreground::default()
    });
    left
}

#[tokio::test]
async fn a_loop_that_panics_ends_every_request_and_begins_again() {
    let bench = Bench::new(EncoderConfig::default());
    let panics = panic_in_the_loop(&bench.handle);
    let background = || EncodeRequest { priority: Priority::Background, ..request(&[&[1, 2]]) };
    // Two requests are open when the loop panics: one whose batch is running, and one behind it.
    let first = bench.handle.submit(request(&[&[5]])).expect("there is room");
    assert_eq!(bench.batch(), [1]);
    let second = bench.handle.submit(background()).expect("there is room");
    let third = bench.handle.submit(background()).expect("there is room");
    panics.store(1, Ordering::Release);
    bench.permit(Outcome::Succeed);
    first.await.expect("its batch was computed");
    for waiting in [second.await, third.await] {
        assert_eq!(waiting.expect_err("the loop panicked").kind(), ErrorKind::Internal);
    }
    bench.permit(Outcome::Succeed);
    let next = bench.handle.submit(background()).expect("there is room").await.expect("the loop has begun again");
    assert_eq!(next.vectors, [[3.0, 2.0]]);
    assert_eq!(bench.handle.stats().open_texts, 0);
    let report = bench.handle.part().report();
    assert_eq!((report.panics, report.failure), (1, None));
    assert!(bench.handle.heartbeat().alive);

    // A drain that is under way is not forgotten.
    panics.store(1, Ordering::Release);
    let open = bench.handle.submit(background()).expect("there is room");
    bench.handle.drain(Duration::from_secs(3600)).await;
    open.await.expect_err("the loop panicked");
}

#[tokio::test]
async fn a_loop_that_panics_again_and_again_is_given_up_and_says_so() {
    let bench = Bench::new(EncoderConfig::default());
    panic_in_the_loop(&bench.handle).store(RESTARTS_MAX + 1, Ordering::Release);
    for _ in 0..=RESTARTS_MAX {
        let background = EncodeRequest { priority: Priority::Background, ..request(&[&[1]]) };
        let ended = bench.handle.submit(background).expect("there is room").await;
        assert_eq!(ended.expect_err("the loop panicked").kind(), ErrorKind::Internal);
    }
    while bench.handle.heartbeat().alive {
        tokio::task::yield_now().await;
    }
    let refused = loop {
        match bench.handle.submit(request(&[&[1]])) {
            Err(refused) => break refused,
            // The thread is about to drop its end of the channel.
            Ok(answer) => drop(answer.await.expect_err("the thread has ended")),
        }
    };
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert!(bench.handle.part().report().failure.is_some_and(|reason| reason.contains("test encoder")));
    assert_eq!(bench.handle.stats().open_texts, 0);
    bench.handle.drain(Duration::from_secs(3600)).await;
}

#[tokio::test]
async fn a_failed_batch_ends_the_rest_of_its_request() {
    let bench = Bench::new(EncoderConfig { max_batch_tokens: 1, ..EncoderConfig::default() });
    let answer = bench.handle.submit(request(&[&[1], &[2], &[3]])).expect("there is room");
    bench.permit(Outcome::Fail(StepError::Failed("wrong".into())));
    answer.await.expect_err("its first batch failed");
    bench.permit(Outcome::Succeed);
    bench.handle.submit(request(&[&[9]])).expect("there is room").await.expect("computed");
    assert_eq!(bench.handle.stats().batches, 2);
}

#[tokio::test]
async fn a_deadline_ends_what_has_not_been_computed() {
    let bench = Bench::new(EncoderConfig::default());
    let mut late = request(&[&[1, 2, 3]]);
    late.deadline = Some(Instant::now());
    let error = bench.handle.submit(late).expect("there is room").await.expect_err("it is late");
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(bench.handle.stats().batches, 0);
}

#[tokio::test]
async fn draining_finishes_what_was_accepted_and_refuses_the_rest() {
    let bench = Bench::new(EncoderConfig::default());
    let accepted = bench.handle.submit(request(&[&[1]])).expect("there is room");
    bench.batch();
    let handle = bench.handle.clone();
    let drained = tokio::spawn(async move { handle.drain(Duration::from_secs(3600)).await });
    tokio::task::yield_now().await;
    while bench.handle.submit(request(&[&[1]])).is_ok() {
        tokio::task::yield_now().await;
    }
    let error = bench.handle.submit(request(&[&[1]])).err().expect("it is draining");
    assert_eq!(error.kind(), ErrorKind::Draining);
    bench.permit(Outcome::Succeed);
    // A text that arrived just before the drain waits for its permit; without one the thread may have ended.
    let _ended = bench.permits.send(Outcome::Succeed);
    accepted.await.expect("it was accepted before the drain");
    drained.await.expect("the drain ends");
    assert_eq!(bench.handle.stats().open_texts, 0);
}

#[tokio::test]
async fn the_grace_time_ends_what_is_still_waiting() {
    let bench = Bench::new(EncoderConfig { max_batch_tokens: 1, ..EncoderConfig::default() });
    let running = bench.handle.submit(request(&[&[1]])).expect("there is room");
    bench.batch();
    let waiting = bench.handle.submit(request(&[&[2]])).expect("there is room");
    let handle = bench.handle.clone();
    let drained = tokio::spawn(async move { handle.drain(Duration::ZERO).await });
    while !bench.handle.shared.draining.load(Ordering::Acquire) {
        tokio::task::yield_now().await;
    }
    bench.permit(Outcome::Succeed);
    running.await.expect("its batch was running");
    // The drain command may arrive after one more batch has begun; if not, the thread has ended by itself.
    let _ended = bench.permits.send(Outcome::Succeed);
    drained.await.expect("the drain ends");
    if let Err(error) = waiting.await {
        assert_eq!(error.kind(), ErrorKind::Draining);
    }
    assert_eq!(bench.handle.stats().open_texts, 0);
}

#[test]
fn nothing_to_embed_is_refused() {
    let bench = Bench::new(EncoderConfig::default());
    assert!(bench.handle.submit(request(&[])).is_err());
    assert!(bench.handle.submit(request(&[&[1], &[]])).is_err());
}

/// Reports which threads computed each batch and how many tokens it had.
struct OnThreads(Sender<(Vec<Option<String>>, usize)>);

impl EncoderModel for OnThreads {
    fn embed(&mut self, tokens: &[u32], lengths: &[usize]) -> Result<Vec<Vec<f32>>, StepError> {
        let names = parking_lot::Mutex::new(Vec::new());
        hearth_kernels::pool::run(64, |_| names.lock().push(std::thread::current().name().map(str::to_owned)))
            .expect("nothing panics");
        self.0.send((names.into_inner(), tokens.len())).expect("the test listens");
        Ok(lengths.iter().map(|_| vec![0.0]).collect())
    }
}

#[tokio::test]
async fn background_batches_are_small_and_aside_while_others_chat() {
    let (report, batches) = channel();
    let config = EncoderConfig { max_batch_tokens: 64, ..EncoderConfig::default() };
    let handle = EncoderHandle::start("test encoder", Box::new(OnThreads(report)), config).expect("the thread starts");
    let running = Arc::new(AtomicUsize::new(4));
    let gauge = running.clone();
    handle.give_way_to(move || Foreground { running: gauge.load(Ordering::Acquire), waiting: 0 });
    let texts = |priority| EncodeRequest { texts: vec![vec![1; 4]; 16], priority, ..EncodeRequest::default() };

    handle.submit(texts(Priority::Background)).expect("there is room").await.expect("computed");
    let beside: Vec<_> = batches.try_iter().collect();
    assert_eq!(beside.len(), 8, "of 8 tokens each");
    for (threads, tokens) in beside {
        assert_eq!(tokens, 8);
        assert!(threads.iter().all(|name| name.as_deref() == Some("hearth-encoder")), "{threads:?}");
    }
    handle.submit(texts(Priority::Interactive)).expect("there is room").await.expect("computed");
    assert_eq!(batches.try_iter().map(|(_, tokens)| tokens).collect::<Vec<_>>(), [64], "somebody waits for it");
    running.store(0, Ordering::Release);
    handle.submit(texts(Priority::Background)).expect("there is room").await.expect("computed");
    assert_eq!(batches.try_iter().map(|(_, tokens)| tokens).collect::<Vec<_>>(), [64], "nobody chats");
}
