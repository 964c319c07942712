//! `hearth doctor`: what the machine is, what would run on it and how, and what is wrong.
//!
//! It loads what `hearth serve` would load with the same settings, reports how much memory that takes, asks the
//! configured upstreams for their models, and exits with status 1 if something would not work. With `--health` it asks
//! a running server instead, as a container's health check does where there is no curl.

use std::{fmt::Display, io::Write, time::Duration};

use anyhow::{Context, bail, ensure};
use hearth_domain::{RoutingPolicy, error::sentence};
use hearth_kernels::{
    device::{cpu_features, open_device, set_threads, threads},
    kv::KvType,
};

use crate::{
    app,
    config::{Config, Settings, UpstreamConfig},
    providers::{
        ChatModel, Embedder,
        hosted::{Inspection, Upstream},
        local::LocalChat,
    },
    service::callers::{KeySecret, OTHER_SECRET},
    store::SharedStore,
    telemetry,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Ask a running server at this URL, whose path is one of its health routes, and nothing else
    #[arg(long, value_name = "URL")]
    health: Option<String>,
    #[command(flatten)]
    settings: Settings,
}

/// A server that takes longer to report that it is ready is not.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);

pub fn run(args: Args) -> anyhow::Result<()> {
    if let Some(url) = &args.health {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        return runtime.block_on(ask(url));
    }
    let mut settings = args.settings;
    settings.log.get_or_insert_with(|| "error".to_owned());
    let mut report = Report::default();
    let config = match Config::load(settings) {
        Ok(config) => config,
        Err(error) => {
            report.problem("configuration", sentence(&error));
            return report.finish();
        }
    };
    telemetry::init_logs(&config.log_filter, config.log_format)?;
    examine(&config, &mut report);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(examine_upstreams(&config, &mut report));
    report.finish()
}

/// Does the server report at this URL that it is healthy?
async fn ask(url: &str) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().timeout(HEALTH_TIMEOUT).build()?;
    let response = client.get(url).send().await.with_context(|| format!("asking {url}"))?;
    let status = response.status();
    ensure!(status.is_success(), "{url} answered {status}: {}", response.text().await.unwrap_or_default().trim());
    Ok(())
}

fn examine(config: &Config, report: &mut Report) {
    let system = sysinfo::System::new_with_specifics(
        sysinfo::RefreshKind::nothing()
            .with_cpu(sysinfo::CpuRefreshKind::nothing())
            .with_memory(sysinfo::MemoryRefreshKind::everything()),
    );
    let brand = system.cpus().first().map_or("unknown", |cpu| cpu.brand().trim()).to_owned();
    report.fact("hearth", format!("{}, {}", env!("CARGO_PKG_VERSION"), features()));
    report.fact("processor", brand);
    report.fact("kernels", cpu_features());
    if let Some(count) = config.threads {
        set_threads(count);
    }
    report.fact("threads", threads());
    let available = app::available_memory();
    report.fact("memory", format!("{} of {} MiB available", available >> 20, system.total_memory() >> 20));
    match open_device(config.device) {
        Ok(device) => report.fact("device", format!("{:?} (asked for: {})", device.location(), config.device)),
        Err(error) => report.problem("device", error),
    }
    match app::reader(config).and_then(|reader| Ok(reader.lockdown(&config.documents.limits)?)) {
        Ok(lockdown) => {
            report.fact("reader", format!("documents are read in a process of their own, under {lockdown}"));
        }
        Err(error) => report.problem("reader", sentence(&error)),
    }
    if let Some(shared) = &config.shared {
        examine_database(config, shared, report);
    }
    report.fact("models", config.models.places());
    let chat = match app::load_chat(config) {
        Ok(Some(chat)) => {
            report_chat(config, &chat, available, report);
            true
        }
        Ok(None) => false,
        Err(error) => {
            report.problem("chat model", sentence(&error));
            true
        }
    };
    match app::load_embedder(config) {
        Ok(Some(embedder)) => {
            let info = embedder.info();
            report.fact(
                "embedding model",
                format!(
                    "{}: {}, {} dimensions, {} tokens, {} MiB",
                    info.id,
                    info.architecture,
                    info.embedding_length.unwrap_or(0),
                    info.context_length,
                    info.size_bytes >> 20
                ),
            );
        }
        Ok(None) if chat || !config.upstreams.is_empty() => report.fact("embedding model", "none"),
        Ok(None) => report.problem("models", app::no_chat_model(config)),
        Err(error) => report.problem("embedding model", sentence(&error)),
    }
}

/// What the database is that servers share, and what each of them admits.
fn examine_database(config: &Config, shared: &SharedStore, report: &mut Report) {
    let found = match shared.inspect() {
        Ok(found) => found,
        Err(error) => {
            report.problem("database", error);
            return;
        }
    };
    let pgvector = found.pgvector.as_deref().unwrap_or("none yet");
    report.fact("database", format!("PostgreSQL {}, pgvector {pgvector}", found.version));
    let servers = match found.replicas.len() {
        0 => "none".to_owned(),
        count => format!("{count} ({})", found.replicas.join(", ")),
    };
    report.fact("servers", format!("{servers}; each admits that part of the limits of requests and tokens"));
    if !found.syncs {
        report.problem(
            "durability",
            "the database has fsync off: what was acknowledged is lost with its machine's power",
        );
    } else if found.has_synchronous_standby {
        report.fact("durability", "a change is acknowledged when a standby has it as well");
    } else {
        let said =
            "no synchronous standby: what was acknowledged last is lost if another database takes this one's place";
        report.fact("durability", said);
    }
    let place = config.callers.key_secret_file.as_ref().unwrap_or(&config.data_dir);
    let own = KeySecret::is_made(place).then(|| KeySecret::load(place)).transpose();
    match own {
        Ok(own) if found.secret_check.is_some() && own.as_ref().map(KeySecret::check_value) != found.secret_check => {
            report.problem("key secret", OTHER_SECRET);
        }
        Ok(_) => {}
        Err(error) => report.problem("key secret", sentence(&error)),
    }
}

/// Asks the engines of every upstream for their models.
async fn examine_upstreams(config: &Config, report: &mut Report) {
    for UpstreamConfig { settings, models } in &config.upstreams {
        let name = &settings.name;
        if config.policy == RoutingPolicy::LocalOnly {
            report.fact("upstream", format!("{name}: not asked, since the policy is local-only"));
            continue;
        }
        let upstream = match Upstream::new(settings.clone()) {
            Ok(upstream) => upstream,
            Err(error) => {
                report.problem("upstream", sentence(&error));
                continue;
            }
        };
        for Inspection { engine, found } in upstream.inspect().await {
            let place = engine.map_or_else(|| name.clone(), |engine| format!("{name}, engine {engine}"));
            match found {
                Ok((listed, took)) => {
                    // Some servers take names that they do not list.
                    let missing: Vec<&str> = models
                        .values()
                        .map(|model| model.upstream_model.as_str())
                        .filter(|model| !listed.iter().any(|listed| listed == model))
                        .collect();
                    let missing = match missing.as_slice() {
                        [] => "all that are configured".to_owned(),
                        missing => format!("not {}", missing.join(", ")),
                    };
                    let milliseconds = took.as_millis();
                    report.fact(
                        "upstream",
                        format!("{place}: lists {} models in {milliseconds} ms, {missing}", listed.len()),
                    );
                }
                Err(reason) => report.problem("upstream", format!("{place}: {reason}")),
            }
        }
    }
}

fn report_chat(config: &Config, chat: &LocalChat, available: u64, report: &mut Report) {
    let info = chat.info();
    report.fact(
        "chat model",
        format!(
            "{}: {}, {} parameters, {}, {} MiB",
            info.id,
            info.architecture,
            info.parameters,
            info.quantization,
            info.size_bytes >> 20
        ),
    );
    let repacked = match chat.repacked_bytes() {
        0 => "no: computed from the file's pages".to_owned(),
        bytes => format!("{} MiB, in the order in which the processor reads them", bytes >> 20),
    };
    report.fact("repacked", repacked);
    let cache_mib = chat.kv_bytes() >> 20;
    report.fact(
        "context",
        format!(
            "{} tokens, {} sequences at a time, {cache_mib} MiB of keys and values in {}",
            info.context_length,
            config.engine.max_running_sequences,
            match chat.kv_type() {
                KvType::F32 => "f32",
                KvType::F16 => "f16",
            }
        ),
    );
    let needed_mib = (info.size_bytes >> 20) + cache_mib;
    report.fact("memory needed", format!("{needed_mib} MiB for weights and cache"));
    if needed_mib > available >> 20 {
        report.problem(
            "memory",
            format!(
                "weights and cache need {needed_mib} MiB and {} MiB are available: lower --ctx-size or --parallel, or \
                 take a smaller quantization",
                available >> 20
            ),
        );
    }
}

/// What this build can use besides the CPU.
fn features() -> &'static str {
    match (cfg!(feature = "cuda"), cfg!(feature = "metal")) {
        (true, _) => "built for CPU and CUDA",
        (_, true) => "built for CPU and Metal",
        _ => "built for CPU",
    }
}

#[derive(Debug, Default)]
struct Report {
    lines: Vec<(String, String)>,
    problems: Vec<String>,
}

impl Report {
    fn fact(&mut self, name: &str, value: impl Display) {
        self.lines.push((name.to_owned(), value.to_string()));
    }

    fn problem(&mut self, name: &str, what: impl Display) {
        self.problems.push(format!("{name}: {what}"));
    }

    fn finish(self) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        for (name, value) in &self.lines {
            writeln!(out, "{name:<16} {value}")?;
        }
        match self.problems.as_slice() {
            [] => writeln!(out, "{:<16} none found", "problems")?,
            problems => {
                for problem in problems {
                    writeln!(out, "{:<16} {problem}", "problem")?;
                }
                bail!(
                    "{} found",
                    if problems.len() == 1 {
                        "a problem was".to_owned()
                    } else {
                        format!("{} problems were", problems.len())
                    }
                );
            }
        }
        Ok(())
    }
}
