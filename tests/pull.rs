//! Fetching models from a hub that breaks off, lies, refuses and redirects.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use hearth_models::pull::{FileChoice, HubSettings, PullError, PullProgress, PullRequest, Pulled, Reference, pull};
use tempfile::TempDir;

use crate::support::fake_hub::{BytesRequest, COMMIT, FakeHub, Fault};

/// Counts the bytes that arrive.
#[derive(Default)]
struct Counter(AtomicU64);

impl PullProgress for Counter {
    fn begin(&self, _: &str, _: u64, _: u64) {}
    fn advance(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
    fn verify(&self, _: &str) {}
    fn finish(&self, _: &str) {}
}

struct Scene {
    hub: FakeHub,
    settings: HubSettings,
    directory: TempDir,
    counter: Counter,
}

const SIZE: usize = 1_000_000;

fn weights() -> Vec<u8> {
    (0..SIZE).map(|i| (i * 31 + i / 997) as u8).collect()
}

impl Scene {
    async fn new() -> Self {
        let small = b"{}".as_slice();
        let part = vec![1u8; 2000];
        Self::with(&[
            ("model-Q8_0.gguf", &weights()),
            ("config.json", small),
            ("BF16/model-BF16-00001-of-00002.gguf", &part),
            ("BF16/model-BF16-00002-of-00002.gguf", &part),
            ("README.md", small),
        ])
        .await
    }

    async fn with(files: &[(&str, &[u8])]) -> Self {
        let hub = FakeHub::start(files).await;
        let directory = TempDir::new().unwrap();
        let settings = HubSettings {
            endpoint: hub.endpoint.clone(),
            token: Some("secret".to_owned()),
            cache: directory.path().join("cache"),
            offline: false,
            retry_wait: Duration::from_millis(1),
        };
        Self { hub, settings, directory, counter: Counter::default() }
    }

    async fn pull(&self, reference: &str) -> Result<Pulled, PullError> {
        self.run(PullRequest { reference: Reference::parse(reference).unwrap(), to: None, promised: None }).await
    }

    async fn run(&self, request: PullRequest) -> Result<Pulled, PullError> {
        pull(&self.settings, &request, &self.counter).await
    }

    fn repository(&self) -> PathBuf {
        self.settings.cache.join("models--owner--name")
    }

    /// Names in `blobs/`.
    fn blobs(&self) -> Vec<String> {
        let entries = fs::read_dir(self.repository().join("blobs")).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn ranges(&self) -> Vec<Option<String>> {
        self.hub.take_bytes_requests().into_iter().map(|request| request.range).collect()
    }

    fn received(&self) -> u64 {
        self.counter.0.swap(0, Ordering::Relaxed)
    }
}

#[tokio::test]
async fn a_model_lands_in_the_shared_cache_once() {
    let scene = Scene::new().await;
    let pulled = scene.pull("owner/name:Q8_0").await.unwrap();
    assert_eq!(pulled.commit, COMMIT);
    assert_eq!(fs::read(&pulled.files[0].path).unwrap(), weights());
    assert!(!pulled.files[0].was_there);
    assert_eq!(pulled.files[0].path, scene.repository().join("snapshots").join(COMMIT).join("model-Q8_0.gguf"));
    assert_eq!(fs::read_to_string(scene.repository().join("refs/main")).unwrap(), COMMIT);
    assert_eq!(scene.ranges(), [None]);

    let again = scene.pull("owner/name:Q8_0").await.unwrap();
    assert!(again.files[0].was_there);
    assert!(scene.ranges().is_empty());
}

#[tokio::test]
async fn the_token_stays_with_the_hub() {
    let scene = Scene::new().await;
    scene.pull("owner/name:Q8_0").await.unwrap();
    let to_hub = scene.hub.take_hub_authorizations();
    assert!(to_hub.len() >= 4 && to_hub.iter().all(|value| value.as_deref() == Some("Bearer secret")));
    assert_eq!(scene.hub.take_bytes_requests(), [BytesRequest { range: None, authorization: None }]);
}

#[tokio::test]
async fn without_a_token_there_is_no_word_of_one() {
    let mut scene = Scene::new().await;
    scene.settings.token = None;
    scene.pull("owner/name:Q8_0").await.unwrap();
    let to_hub = scene.hub.take_hub_authorizations();
    assert!(to_hub.len() >= 4 && to_hub.iter().all(Option::is_none), "{to_hub:?}");
    for wrong in ["", "two words", "line\nbreak"] {
        scene.settings.token = Some(wrong.to_owned());
        assert!(matches!(scene.pull("owner/name:Q8_0").await, Err(PullError::Token)), "{wrong:?}");
    }
    assert!(scene.hub.take_hub_authorizations().is_empty());
}

#[tokio::test]
async fn a_cut_connection_is_gone_on_from() {
    let scene = Scene::new().await;
    scene.hub.set_fault(Fault::CutOnceAt(300_000));
    let pulled = scene.pull("owner/name:Q8_0").await.unwrap();
    assert_eq!(fs::read(&pulled.files[0].path).unwrap(), weights());
    let ranges = scene.ranges();
    assert_eq!(ranges.len(), 2);
    assert!(ranges[1].as_ref().is_some_and(|range| range != "bytes=0-"), "{ranges:?}");
    assert_eq!(scene.received(), SIZE as u64, "no byte is fetched twice");
}

#[tokio::test]
async fn another_run_goes_on_where_the_last_one_ended() {
    let scene = Scene::new().await;
    scene.hub.set_fault(Fault::CutAt(300_000));
    let error = scene.pull("owner/name:Q8_0").await.unwrap_err();
    let PullError::Interrupted { have, total, .. } = error else { panic!("{error}") };
    assert_eq!(total, SIZE as u64);
    assert_eq!(have, scene.received());
    assert!(have > 0);
    scene.ranges();

    scene.hub.set_fault(Fault::None);
    let pulled = scene.pull("owner/name:Q8_0").await.unwrap();
    assert_eq!(scene.ranges(), [Some(format!("bytes={have}-"))]);
    assert_eq!(scene.received(), SIZE as u64 - have);
    assert_eq!(fs::read(&pulled.files[0].path).unwrap(), weights());
    assert_eq!(scene.blobs().len(), 1);
}

#[tokio::test]
async fn a_server_without_ranges_starts_over() {
    let scene = Scene::new().await;
    scene.hub.set_fault(Fault::CutAt(300_000));
    scene.pull("owner/name:Q8_0").await.unwrap_err();
    scene.hub.set_fault(Fault::NoRanges);
    let pulled = scene.pull("owner/name:Q8_0").await.unwrap();
    assert_eq!(fs::read(&pulled.files[0].path).unwrap(), weights());
}

#[tokio::test]
async fn what_does_not_match_its_checksum_is_not_kept() {
    let scene = Scene::new().await;
    scene.hub.set_fault(Fault::WrongBytes);
    let error = scene.pull("owner/name:Q8_0").await.unwrap_err();
    assert!(matches!(error, PullError::WrongChecksum { .. }), "{error}");
    assert!(scene.blobs().is_empty());
    assert!(!scene.repository().join("snapshots").exists());
}

#[tokio::test]
async fn a_rotten_beginning_costs_one_more_download() {
    let scene = Scene::new().await;
    scene.hub.set_fault(Fault::CutAt(300_000));
    scene.pull("owner/name:Q8_0").await.unwrap_err();
    let blobs = scene.blobs();
    let incomplete = scene.repository().join("blobs").join(&blobs[0]);
    let length = fs::metadata(&incomplete).unwrap().len() as usize;
    fs::write(&incomplete, vec![0; length]).unwrap();
    scene.hub.set_fault(Fault::None);
    let pulled = scene.pull("owner/name:Q8_0").await.unwrap();
    assert_eq!(fs::read(&pulled.files[0].path).unwrap(), weights());
}

#[tokio::test]
async fn an_error_page_is_not_taken_for_the_file() {
    let scene = Scene::new().await;
    for fault in [Fault::ErrorPage, Fault::TooLong] {
        scene.hub.set_fault(fault.clone());
        let error = scene.pull("owner/name:Q8_0").await.unwrap_err();
        assert!(matches!(error, PullError::WrongLength { .. }), "{fault:?}: {error}");
        assert!(scene.blobs().is_empty());
    }
    scene.hub.set_fault(Fault::ErrorPage);
    let said = scene.pull("owner/name:Q8_0").await.unwrap_err().to_string();
    assert!(said.contains("text/html") && said.contains("sign-in"), "{said}");
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    let scene = Scene::new().await;
    let cases = [
        (Fault::Refuse(404, "RepoNotFound"), "check the spelling"),
        (Fault::Refuse(401, ""), "set HF_TOKEN"),
        (Fault::Refuse(403, "GatedRepo"), "Accept the terms"),
        (Fault::Refuse(403, ""), "token may not read it"),
        (Fault::Refuse(503, ""), "try again later"),
        (Fault::BytesStatus(404), "file model-Q8_0.gguf"),
        (Fault::BytesStatus(503), "broke off at 0 of 1000000"),
        (Fault::BytesStatus(429), "broke off at 0 of 1000000"),
        (Fault::ClimbingPath, "outside of its repository"),
        (Fault::NoChecksum, "no sha256 of model-Q8_0.gguf"),
        (Fault::NoJson, "is HF_ENDPOINT a model hub?"),
        (Fault::RefuseInTheBody(403), "ask the librarian"),
        (Fault::NextPageElsewhere, "is on another server"),
        (Fault::MovedAway, "set HF_ENDPOINT to that one"),
    ];
    for (fault, expected) in cases {
        scene.hub.set_fault(fault.clone());
        let said = scene.pull("owner/name:Q8_0").await.unwrap_err().to_string();
        assert!(said.contains(expected), "{fault:?}: {expected:?} is not in {said:?}");
    }
    scene.hub.set_fault(Fault::None);
    let said = scene.pull("owner/other").await.unwrap_err().to_string();
    assert!(said.contains("no repository owner/other"), "{said}");
    let said = scene.pull("owner/name:Q2_K").await.unwrap_err().to_string();
    assert!(said.contains("it has BF16/model-BF16 in 2 parts, model-Q8_0"), "{said}");
    assert!(!fs::exists(scene.directory.path().join("model-Q8_0.gguf")).unwrap());
}

#[tokio::test]
async fn a_hub_that_moves_or_stumbles_is_followed() {
    for fault in [Fault::FailOnce, Fault::NextPageByPath, Fault::Moved] {
        let scene = Scene::new().await;
        scene.hub.set_fault(fault.clone());
        let pulled = scene.pull("owner/name:Q8_0").await;
        assert!(pulled.is_ok(), "{fault:?}: {pulled:?}");
    }
}

#[tokio::test]
async fn a_split_model_comes_whole_and_into_a_plain_directory() {
    let scene = Scene::new().await;
    let to = scene.directory.path().join("plain");
    let request =
        PullRequest { reference: Reference::parse("owner/name:BF16").unwrap(), to: Some(to.clone()), promised: None };
    let pulled = scene.run(request.clone()).await.unwrap();
    let names: Vec<_> = pulled.files.iter().map(|file| file.path.strip_prefix(&to).unwrap()).collect();
    let part = |n| PathBuf::from(format!("BF16/model-BF16-0000{n}-of-00002.gguf"));
    assert_eq!(names, [part(1), part(2)]);
    assert!(pulled.files.iter().all(|file| fs::symlink_metadata(&file.path).unwrap().is_file()));
    assert!(scene.blobs().is_empty());
    assert!(scene.run(request).await.unwrap().files.iter().all(|file| file.was_there));
}

#[tokio::test]
async fn a_manifest_holds_the_hub_to_its_checksum() {
    let scene = Scene::new().await;
    let request = |sha256: &str| PullRequest {
        reference: Reference {
            repository: "owner/name".into(),
            revision: None,
            choice: FileChoice::File("model-Q8_0.gguf".into()),
        },
        to: None,
        promised: Some(("model-Q8_0.gguf".into(), sha256.into())),
    };
    let error = scene.run(request(&"0".repeat(64))).await.unwrap_err();
    let PullError::ManifestChecksum { found, .. } = error else { panic!("{error}") };
    scene.run(request(&found)).await.unwrap();
}

/// The hub gives no checksum of a file that is not in its large storage.
#[tokio::test]
async fn a_manifest_holds_a_small_file_to_its_checksum_as_well() {
    let scene = Scene::new().await;
    let request = |sha256: &str| PullRequest {
        reference: Reference {
            repository: "owner/name".into(),
            revision: None,
            choice: FileChoice::File("README.md".into()),
        },
        to: None,
        promised: Some(("README.md".into(), sha256.into())),
    };
    for _ in 0..2 {
        let error = scene.run(request(&"0".repeat(64))).await.unwrap_err();
        let PullError::ManifestChecksum { found, .. } = error else { panic!("{error}") };
        scene.run(request(&found)).await.unwrap();
    }
}

#[tokio::test]
async fn offline_asks_nobody() {
    let mut scene = Scene::new().await;
    scene.settings.offline = true;
    let said = scene.pull("owner/name:Q8_0").await.unwrap_err().to_string();
    assert!(said.contains("HF_HUB_OFFLINE"), "{said}");
    assert!(scene.hub.take_hub_authorizations().is_empty());

    scene.settings.offline = false;
    let online = scene.pull("owner/name:Q8_0").await.unwrap();
    scene.hub.take_hub_authorizations();
    scene.settings.offline = true;
    let offline = scene.pull("owner/name:Q8_0").await.unwrap();
    assert_eq!(offline.files[0].path, online.files[0].path);
    assert!(scene.hub.take_hub_authorizations().is_empty());
    assert!(matches!(scene.pull("owner/name:BF16").await, Err(PullError::Offline { .. })));
}

#[tokio::test]
async fn nobody_at_the_endpoint_is_said_so() {
    let mut scene = Scene::new().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let free = listener.local_addr().unwrap();
    drop(listener);
    scene.settings.endpoint = format!("http://{free}");
    let said = scene.pull("owner/name").await.unwrap_err().to_string();
    assert!(said.contains("no connection to the hub") && said.contains("HF_ENDPOINT"), "{said}");
    for wrong in ["", "huggingface.co", "ftp://host", "file:///etc"] {
        scene.settings.endpoint = wrong.to_owned();
        assert!(matches!(scene.pull("owner/name").await, Err(PullError::Endpoint { .. })), "{wrong}");
    }
}

#[tokio::test]
async fn a_disk_that_cannot_be_written_is_named() {
    let mut scene = Scene::new().await;
    let file = scene.directory.path().join("a-file");
    fs::write(&file, "").unwrap();
    scene.settings.cache = file.join("cache");
    let error = scene.pull("owner/name:Q8_0").await.unwrap_err();
    assert!(matches!(&error, PullError::Disk { path, .. } if path.starts_with::<&Path>(&file)), "{error}");
}
