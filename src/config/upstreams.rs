//! Hosted upstreams: the file's `[[upstream]]` tables, and flags for the usual case of one.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use url::Url;

use crate::providers::hosted::{
    Affinity, ApiKey, BreakerSettings, CONTEXT_LENGTH_ASSUMED, Dialect, EngineSettings, HostedKind, HostedModel,
    ProbeSettings, Retries, Scores, Timeouts, UpstreamSettings,
};

/// A larger difference between engines is a mistake.
const WEIGHT_MAX: u32 = 1000;

/// One `[[upstream]]` table of the file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamTable {
    /// Appears in receipts, logs and metrics.
    pub name: String,
    /// Such as `https://api.example.com/v1`.
    pub base_url: Option<String>,
    /// Instead of `base_url`: several servers of the same models.
    pub engines: Option<Vec<EngineEntry>>,
    /// `prefix`, `session` or `none`: which engine a request prefers.
    pub affinity: Option<String>,
    /// Where an engine says whether it takes requests, beside `/v1`; empty: engines are not asked.
    pub health_path: Option<String>,
    /// Seconds between two such questions.
    pub health_interval: Option<f64>,
    /// `openai`, `compatible`, `vllm`, `llama-server` or `hearth`; by default, whatever the address suggests.
    pub kind: Option<String>,
    /// The environment variable that holds the key.
    pub api_key_env: Option<String>,
    /// The file that holds the key.
    pub api_key_file: Option<PathBuf>,
    /// Sent with every request, besides the key.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Certificates to trust besides the system's own, PEM.
    pub ca_file: Option<PathBuf>,
    pub models: ModelTable,
    /// Seconds until the connection is established.
    pub connect_timeout: Option<f64>,
    /// Seconds from a request to the head of its response.
    pub first_byte_timeout: Option<f64>,
    /// Seconds between two packets of a response.
    pub idle_timeout: Option<f64>,
    /// Attempts after the first one.
    pub max_retries: Option<u32>,
    /// Consecutive failures after which a model is not tried.
    pub breaker_failures: Option<u32>,
    /// Seconds for which it is not tried.
    pub breaker_rest: Option<f64>,
}

/// One engine: its address, with more details if needed.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum EngineEntry {
    Url(String),
    Details(EngineDetails),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineDetails {
    /// Such as `http://10.0.0.7:8000/v1`.
    pub base_url: String,
    /// In receipts, logs and metrics; its position in the list, from 1, if not set.
    pub name: Option<String>,
    /// Its share of the requests relative to the others'.
    pub weight: Option<u32>,
}

/// Which models: the upstream's own names, or a map from names here to the upstream's.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum ModelTable {
    Names(Vec<String>),
    Map(BTreeMap<String, ModelEntry>),
}

/// One model: the upstream's name for it, with more details if needed.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum ModelEntry {
    Name(String),
    Details(ModelDetails),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelDetails {
    /// The upstream's name for it.
    pub model: String,
    /// `chat`, `embedding` or `rerank`.
    pub kind: Option<String>,
    /// Tokens, prompt and answer together.
    pub context_length: Option<usize>,
    /// Length of an embedding.
    pub dimensions: Option<usize>,
    /// What the vectors depend on: the local model's identity, if this is the same model.
    pub identity: Option<String>,
    /// What a rerank model's scores are: `probabilities`, or `logits`.
    pub scores: Option<String>,
}

/// The upstream that the flags describe, if they do.
#[derive(Clone, Debug, Default)]
pub(super) struct UpstreamFlags {
    pub url: Option<String>,
    pub key: Option<String>,
    pub key_file: Option<PathBuf>,
    pub models: Vec<String>,
}

/// An upstream with the models that it serves here, by their names here.
#[derive(Clone, Debug)]
pub struct UpstreamConfig {
    pub settings: UpstreamSettings,
    pub models: BTreeMap<String, HostedModel>,
}

/// The upstreams in the file and the flags, checked.
///
/// # Errors
/// If one is incomplete or contradicts another, or no connection may leave this machine; the message names the upstream
/// and what to write.
pub(super) fn resolve(
    tables: Vec<UpstreamTable>,
    flags: UpstreamFlags,
    offline: bool,
) -> anyhow::Result<Vec<UpstreamConfig>> {
    let mut upstreams = tables.into_iter().map(UpstreamConfig::from_table).collect::<anyhow::Result<Vec<_>>>()?;
    upstreams.extend(UpstreamConfig::from_flags(flags)?);
    for (index, upstream) in upstreams.iter().enumerate() {
        let name = &upstream.settings.name;
        let is_taken = upstreams[..index].iter().any(|earlier| earlier.settings.name == *name);
        ensure!(!is_taken, "Two upstreams are named {name:?}: receipts could not tell them apart.");
        ensure!(
            !offline,
            "The upstream {name:?} and --offline exclude each other: leave out one of them. With --offline this server \
             makes no outgoing connection."
        );
    }
    Ok(upstreams)
}

impl UpstreamConfig {
    fn from_table(table: UpstreamTable) -> anyhow::Result<Self> {
        let name = table.name.clone();
        Self::check_table(table).with_context(|| format!("the upstream {name:?}"))
    }

    fn check_table(table: UpstreamTable) -> anyhow::Result<Self> {
        check_name(&table.name)?;
        let engines = match (&table.base_url, table.engines) {
            (Some(url), None) => vec![EngineSettings::at(parse_url("base_url", url)?)],
            (None, Some(entries)) => resolve_engines(entries)?,
            (Some(_), Some(_)) => bail!("base_url and engines exclude each other."),
            (None, None) => bail!("set base_url, or engines."),
        };
        let dialect = match &table.kind {
            Some(kind) => kind.parse().map_err(|reason: String| anyhow::anyhow!("kind: {reason}."))?,
            None => Dialect::of_host(engines[0].base_url.host_str().unwrap_or_default()),
        };
        let is_pool = table.base_url.is_none();
        for (setting, is_set) in [
            ("affinity", table.affinity.is_some()),
            ("health_path", table.health_path.is_some()),
            ("health_interval", table.health_interval.is_some()),
        ] {
            ensure!(is_pool || !is_set, "{setting} is for an upstream with `engines`.");
        }
        let affinity = match &table.affinity {
            Some(text) => text.parse().map_err(|reason: String| anyhow::anyhow!("affinity: {reason}."))?,
            None => Affinity::default(),
        };
        let path = match table.health_path {
            Some(path) => {
                ensure!(path.is_empty() || path.starts_with('/'), "health_path = {path:?}: must begin with a slash.");
                Some(path).filter(|path| !path.is_empty())
            }
            None => dialect.health_path().filter(|_| is_pool).map(ToOwned::to_owned),
        };
        let interval = seconds("health_interval", table.health_interval, ProbeSettings::INTERVAL)?;
        let api_key = match (&table.api_key_env, table.api_key_file) {
            (Some(_), Some(_)) => bail!("api_key_env and api_key_file exclude each other."),
            (Some(variable), None) => {
                let key =
                    std::env::var_os(variable).and_then(|key| key.into_string().ok()).filter(|key| !key.is_empty());
                let key = key.with_context(|| {
                    format!("the environment variable {variable}, which api_key_env names, is not set")
                })?;
                Some(read_key(&key, &format!("the environment variable {variable}"))?)
            }
            (None, Some(path)) => Some(key_of_file("api_key_file", &path)?),
            (None, None) => None,
        };
        let usual = Timeouts::default();
        let timeouts = Timeouts {
            connect: seconds("connect_timeout", table.connect_timeout, usual.connect)?,
            first_byte: seconds("first_byte_timeout", table.first_byte_timeout, usual.first_byte)?,
            idle: seconds("idle_timeout", table.idle_timeout, usual.idle)?,
        };
        let max = table.max_retries.unwrap_or(Retries::default().max);
        ensure!(max <= 10, "max_retries = {max}: must be at most 10.");
        let usual = BreakerSettings::default();
        let failures = table.breaker_failures.unwrap_or(usual.failures);
        ensure!(failures > 0, "breaker_failures = 0: must be at least 1.");
        let models = match table.models {
            ModelTable::Names(names) => names.into_iter().map(|name| (name.clone(), HostedModel::chat(name))).collect(),
            ModelTable::Map(models) => models
                .into_iter()
                .map(|(served, entry)| {
                    let model = entry.resolve().with_context(|| format!("the model {served:?}"))?;
                    Ok((served, model))
                })
                .collect::<anyhow::Result<BTreeMap<_, _>>>()?,
        };
        let settings = UpstreamSettings {
            name: table.name,
            engines,
            affinity,
            probe: ProbeSettings { path, interval },
            api_key,
            headers: table.headers.into_iter().collect(),
            dialect,
            timeouts,
            retries: Retries { max, ..Retries::default() },
            ca_file: table.ca_file,
            breaker: BreakerSettings { failures, rest: seconds("breaker_rest", table.breaker_rest, usual.rest)? },
        };
        Self::checked(settings, models)
    }

    fn from_flags(flags: UpstreamFlags) -> anyhow::Result<Option<Self>> {
        let UpstreamFlags { url, key, key_file, models } = flags;
        let Some(url) = url else {
            ensure!(
                key_file.is_none() && models.is_empty(),
                "--upstream-key-file and --upstream-model need --upstream-url."
            );
            return Ok(None);
        };
        let base_url = parse_url("--upstream-url", &url)?;
        ensure!(!models.is_empty(), "--upstream-url needs --upstream-model: which of its models are to be served?");
        let api_key = match (key, key_file) {
            (_, Some(path)) => Some(key_of_file("--upstream-key-file", &path)?),
            (Some(key), None) => Some(read_key(&key, "HEARTH_UPSTREAM_API_KEY")?),
            (None, None) => None,
        };
        let models = models.into_iter().map(|entry| {
            let (served, upstream_model) = entry.split_once('=').unwrap_or((&entry, &entry));
            (served.to_owned(), HostedModel::chat(upstream_model))
        });
        let settings = UpstreamSettings {
            name: "upstream".to_owned(),
            dialect: Dialect::of_host(base_url.host_str().unwrap_or_default()),
            engines: vec![EngineSettings::at(base_url)],
            affinity: Affinity::default(),
            probe: ProbeSettings::none(),
            api_key,
            headers: Vec::new(),
            timeouts: Timeouts::default(),
            retries: Retries::default(),
            ca_file: None,
            breaker: BreakerSettings::default(),
        };
        Self::checked(settings, models.collect()).map(Some)
    }

    fn checked(settings: UpstreamSettings, models: BTreeMap<String, HostedModel>) -> anyhow::Result<Self> {
        ensure!(!models.is_empty(), "models is empty: name those that are to be served.");
        for (served, model) in &models {
            ensure!(!served.is_empty() && !model.upstream_model.is_empty(), "models: a name must not be empty.");
        }
        let is_readable = |engine: &EngineSettings| engine.base_url.scheme() == "http" && !engine.is_on_this_machine();
        if settings.engines.iter().any(is_readable) {
            tracing::warn!(
                upstream = settings.name,
                "the upstream is reached over http: the key and all text can be read on the way; use https"
            );
        }
        Ok(Self { settings, models })
    }
}

impl ModelEntry {
    fn resolve(self) -> anyhow::Result<HostedModel> {
        let details = match self {
            Self::Name(name) => return Ok(HostedModel::chat(name)),
            Self::Details(details) => details,
        };
        let kind = match details.kind.as_deref() {
            None | Some("chat") => HostedKind::Chat,
            Some("embedding") => HostedKind::Embedding,
            Some("rerank") => HostedKind::Rerank,
            Some(other) => bail!("kind = {other:?}: must be \"chat\", \"embedding\" or \"rerank\"."),
        };
        let context_length = details.context_length.unwrap_or(CONTEXT_LENGTH_ASSUMED);
        ensure!(context_length > 0, "context_length = 0: must be at least 1.");
        match kind {
            HostedKind::Embedding => ensure!(
                details.dimensions.is_some_and(|dimensions| dimensions > 0),
                "an embedding model needs its `dimensions`."
            ),
            HostedKind::Chat | HostedKind::Rerank => ensure!(
                details.dimensions.is_none() && details.identity.is_none(),
                "`dimensions` and `identity` are for models with kind = \"embedding\"."
            ),
        }
        let scores = match details.scores.as_deref() {
            None | Some("probabilities") => Scores::Probabilities,
            Some("logits") => Scores::Logits,
            Some(other) => bail!("scores = {other:?}: must be \"probabilities\" or \"logits\"."),
        };
        ensure!(
            kind == HostedKind::Rerank || details.scores.is_none(),
            "`scores` is for models with kind = \"rerank\"."
        );
        Ok(HostedModel {
            upstream_model: details.model,
            kind,
            context_length,
            dimensions: details.dimensions,
            identity: details.identity,
            scores,
        })
    }
}

/// Engines with names and addresses of their own.
fn resolve_engines(entries: Vec<EngineEntry>) -> anyhow::Result<Vec<EngineSettings>> {
    ensure!(!entries.is_empty(), "engines is empty: name their addresses.");
    let mut engines: Vec<EngineSettings> = Vec::new();
    for (index, entry) in entries.into_iter().enumerate() {
        let details = match entry {
            EngineEntry::Url(base_url) => EngineDetails { base_url, name: None, weight: None },
            EngineEntry::Details(details) => details,
        };
        let base_url = parse_url("engines", &details.base_url)?;
        if let Some(name) = &details.name {
            check_name(name).with_context(|| format!("the engine {base_url}"))?;
        }
        // Not its address: callers see it.
        let name = details.name.unwrap_or_else(|| (index + 1).to_string());
        let engine = EngineSettings { name, base_url, weight: details.weight.unwrap_or(1) };
        ensure!(
            (1..=WEIGHT_MAX).contains(&engine.weight),
            "the engine {}: weight = {}: must be from 1 to {WEIGHT_MAX}.",
            engine.name,
            engine.weight
        );
        for earlier in &engines {
            ensure!(earlier.base_url != engine.base_url, "two engines have the address {}.", engine.base_url);
            ensure!(
                earlier.name != engine.name,
                "two engines are named {:?}: receipts could not tell them apart; give each a `name`.",
                engine.name
            );
        }
        engines.push(engine);
    }
    Ok(engines)
}

/// A name that is safe in a header, a metric and a receipt, with no special meaning there.
fn check_name(name: &str) -> anyhow::Result<()> {
    let is_plain = !name.is_empty()
        && name.len() <= 64
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    ensure!(is_plain, "name: must be 1 to 64 letters, digits, dashes, underscores and dots.");
    let is_taken = ["local", "cache"].contains(&name);
    ensure!(!is_taken, "name: {name:?} says of an answer that it came from elsewhere; take another.");
    Ok(())
}

fn parse_url(setting: &str, text: &str) -> anyhow::Result<Url> {
    let advice = "write an address such as https://api.example.com/v1";
    let url = Url::parse(text).with_context(|| format!("{setting}: {advice}"))?;
    ensure!(matches!(url.scheme(), "http" | "https") && url.has_host(), "{setting}: {advice}.");
    ensure!(
        url.username().is_empty() && url.password().is_none() && url.query().is_none() && url.fragment().is_none(),
        "{setting}: no user, password, query or fragment; a key belongs into a file or an environment variable."
    );
    Ok(url)
}

fn key_of_file(setting: &str, path: &std::path::Path) -> anyhow::Result<ApiKey> {
    let place = format!("{setting} {}", path.display());
    let text = std::fs::read_to_string(path).with_context(|| place.clone())?;
    read_key(text.trim(), &place)
}

fn read_key(text: &str, place: &str) -> anyhow::Result<ApiKey> {
    ApiKey::new(text).with_context(|| format!("{place} must hold a key of visible ASCII characters and nothing else"))
}

fn seconds(name: &str, value: Option<f64>, usual: Duration) -> anyhow::Result<Duration> {
    /// A day: no client waits longer for one packet.
    const LONGEST: f64 = 86_400.0;
    let Some(value) = value else { return Ok(usual) };
    ensure!(value > 0.0 && value <= LONGEST, "{name} = {value}: must be more than 0 and at most {LONGEST} seconds.");
    Ok(Duration::from_secs_f64(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve_text(text: &str, offline: bool) -> anyhow::Result<Vec<UpstreamConfig>> {
        #[derive(Deserialize)]
        struct File {
            upstream: Vec<UpstreamTable>,
        }
        let file: File = toml::from_str(text)?;
        resolve(file.upstream, UpstreamFlags::default(), offline)
    }

    const WHOLE: &str = r#"
        [[upstream]]
        name = "there"
        base_url = "https://api.openai.com/v1"
        idle_timeout = 0.5
        max_retries = 1
        headers = { "x-team" = "a" }
        [upstream.models]
        "small" = "gpt-x-mini"
        "vectors" = { model = "embed-x", kind = "embedding", dimensions = 384, identity = "abc" }

        [[upstream]]
        name = "rack"
        base_url = "http://127.0.0.1:8000/v1"
        kind = "vllm"
        models = ["qwen"]
    "#;

    #[test]
    fn tables_become_upstreams_with_their_models() {
        let upstreams = resolve_text(WHOLE, false).expect("complete");
        let [there, rack] = &upstreams[..] else { panic!("{upstreams:?}") };
        assert_eq!((there.settings.dialect, rack.settings.dialect), (Dialect::OpenAi, Dialect::Vllm));
        assert_eq!(there.settings.timeouts.idle, Duration::from_millis(500));
        assert_eq!(there.settings.retries.max, 1);
        assert_eq!(there.models["small"], HostedModel::chat("gpt-x-mini"));
        let vectors = &there.models["vectors"];
        assert_eq!((vectors.kind, vectors.dimensions), (HostedKind::Embedding, Some(384)));
        assert_eq!(rack.models["qwen"].upstream_model, "qwen");
        let refused = resolve_text(WHOLE, true).expect_err("offline").to_string();
        assert!(refused.contains("--offline") && refused.contains("there"), "{refused}");
    }

    #[test]
    fn mistakes_are_named() {
        let with = |line: &str| {
            let text =
                format!("[[upstream]]\nname = \"a\"\nbase_url = \"http://127.0.0.1/v1\"\nmodels = [\"m\"]\n{line}");
            format!("{:#}", resolve_text(&text, false).expect_err(line))
        };
        assert!(with("kind = \"gopher\"").contains("gopher"));
        assert!(with("idle_timeout = 0").contains("idle_timeout"));
        assert!(with("api_key_env = \"HEARTH_TEST_NO_SUCH_VARIABLE\"").contains("HEARTH_TEST_NO_SUCH_VARIABLE"));
        assert!(with("api_key_file = \"/nowhere/key\"").contains("/nowhere/key"));
        assert!(with("max_retires = 1").contains("max_retires"));
        assert!(with("max_retries = 99").contains("max_retries"));
        let named = |name: &str, url: &str, models: &str| {
            let text = format!("[[upstream]]\nname = {name:?}\nbase_url = {url:?}\nmodels = {models}");
            resolve_text(&text, false).map(drop).map_err(|error| format!("{error:#}"))
        };
        assert!(named("a", "http://127.0.0.1", "{ m = \"x\" }").is_ok());
        for (name, url, models) in [
            ("local", "http://127.0.0.1", "[\"m\"]"),
            ("a b", "http://127.0.0.1", "[\"m\"]"),
            ("a", "127.0.0.1", "[\"m\"]"),
            ("a", "ftp://127.0.0.1", "[\"m\"]"),
            ("a", "http://user:word@127.0.0.1", "[\"m\"]"),
            ("a", "http://127.0.0.1?key=1", "[\"m\"]"),
            ("a", "http://127.0.0.1", "[]"),
            ("a", "http://127.0.0.1", "{ m = { model = \"x\", kind = \"embedding\" } }"),
            ("a", "http://127.0.0.1", "{ m = { model = \"x\", dimensions = 3 } }"),
            ("a", "http://127.0.0.1", "{ m = { model = \"x\", scores = \"logits\" } }"),
            ("a", "http://127.0.0.1", "{ m = { model = \"x\", kind = \"rerank\", scores = \"points\" } }"),
            ("a", "http://127.0.0.1", "{ m = { model = \"x\", kind = \"speech\" } }"),
        ] {
            named(name, url, models).expect_err(&format!("{name} {url} {models}"));
        }
        let twice = resolve_text(&[WHOLE, WHOLE].concat(), false).expect_err("twice").to_string();
        assert!(twice.contains("there"), "{twice}");
    }

    #[test]
    fn engines_share_the_settings_of_their_upstream() {
        let with = |engines: &str, more: &str| {
            let text = format!("[[upstream]]\nname = \"a\"\n{engines}\nmodels = [\"m\"]\n{more}");
            resolve_text(&text, false).map_err(|error| format!("{error:#}"))
        };
        let two =
            r#"engines = ["http://127.0.0.1:8001/v1", { base_url = "http://[::1]:8002/v1", name = "b", weight = 3 }]"#;
        let settings = with(two, "kind = \"vllm\"").expect("complete").remove(0).settings;
        let names: Vec<_> = settings.engines.iter().map(|engine| (engine.name.as_str(), engine.weight)).collect();
        assert_eq!(names, [("1", 1), ("b", 3)]);
        assert_eq!((settings.affinity, settings.probe.path.as_deref()), (Affinity::Prefix, Some("/health")));
        let chosen = "kind = \"hearth\"\naffinity = \"session\"\nhealth_path = \"\"\nhealth_interval = 0.5";
        let settings = with(two, chosen).expect("complete").remove(0).settings;
        assert_eq!((settings.affinity, settings.probe.path), (Affinity::Session, None));
        assert_eq!(settings.probe.interval, Duration::from_millis(500));
        let one = "base_url = \"http://127.0.0.1:8001/v1\"";
        assert_eq!(with(one, "kind = \"vllm\"").expect("complete")[0].settings.probe.path, None);
        for (engines, more, said) in [
            ("", "", "set base_url"),
            ("engines = []", "", "empty"),
            (&*format!("{one}\n{two}"), "", "exclude each other"),
            (one, "affinity = \"prefix\"", "with `engines`"),
            (one, "health_path = \"/\"", "with `engines`"),
            (two, "affinity = \"sticky\"", "sticky"),
            (two, "health_path = \"health\"", "slash"),
            ("engines = [\"http://h/v1\", \"http://h/v1\"]", "", "address"),
            ("engines = [\"http://h/v1\", { base_url = \"http://h/v2\", name = \"1\" }]", "", "named"),
            ("engines = [{ base_url = \"http://h/v1\", weight = 0 }]", "", "weight"),
            ("engines = [{ base_url = \"http://h/v1\", name = \"a b\" }]", "", "name"),
        ] {
            let error = with(engines, more).map(drop).expect_err(said);
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn flags_describe_one_upstream() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let key_file = dir.path().join("key");
        std::fs::write(&key_file, "sk-secret\n").expect("a writable directory");
        let flags = UpstreamFlags {
            url: Some("http://127.0.0.1:1/v1".to_owned()),
            key: None,
            key_file: Some(key_file),
            models: vec!["here=there".to_owned(), "same".to_owned()],
        };
        let upstreams = resolve(Vec::new(), flags.clone(), false).expect("complete");
        assert_eq!(upstreams[0].settings.api_key, ApiKey::new("sk-secret"));
        assert_eq!(upstreams[0].models["here"].upstream_model, "there");
        assert_eq!(upstreams[0].models["same"].upstream_model, "same");
        assert!(!format!("{upstreams:?}").contains("secret"), "no log shows the key");
        for wrong in [
            UpstreamFlags { models: Vec::new(), ..flags.clone() },
            UpstreamFlags { url: None, ..flags.clone() },
            UpstreamFlags { key_file: Some("/nowhere/key".into()), ..flags },
        ] {
            resolve(Vec::new(), wrong, false).expect_err("incomplete");
        }
        assert!(resolve(Vec::new(), UpstreamFlags::default(), true).expect("nothing asked for").is_empty());
    }
}
