//! `hearth bench`: how fast a model file is on this machine.
//!
//! Three figures, each the median of several repetitions: prefill (a prompt that nothing has cached), decode (one
//! stream, after `--depth` tokens), and concurrent decode (several streams at once); `--measure` leaves some out, for
//! comparisons that alternate with another program after each. They are taken at the engine's handle, where llama-bench
//! takes its own; with `--http` also through a server on loopback, which is what a client sees; and with `--baseline`
//! also on candle-transformers' own model of the same file. `hearth bench index` measures the vector index instead.

mod candle;
mod http;
mod in_process;
mod index;
mod index_plot;
mod output;
mod plot;
mod report;

use anyhow::{Context, ensure};
use hearth_domain::ModelInfo;

use self::{
    candle::Baseline,
    output::OutputArgs,
    report::{Measured, Report},
};
use crate::{
    app,
    config::{Config, Settings},
    providers::ChatModel,
    telemetry,
};

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    other: Option<Other>,
    /// Tokens of the prompt that is prefilled
    #[arg(short, long, default_value_t = 512, value_name = "N")]
    prompt_tokens: usize,
    /// Tokens that each stream decodes
    #[arg(short = 'n', long, default_value_t = 128, value_name = "N")]
    decode_tokens: usize,
    /// Tokens that the single stream has read before it decodes; the concurrent streams begin with one
    #[arg(long, default_value_t = 1, value_name = "N")]
    depth: usize,
    /// What is measured, separated by commas
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAMES", default_value = "prefill,decode,streams")]
    measure: Vec<Measure>,
    /// Repetitions of each measurement, after one that is not counted
    #[arg(short, long, default_value_t = 3, value_name = "N")]
    repetitions: usize,
    /// Measure through a server on loopback, too
    #[arg(long)]
    http: bool,
    /// Measure candle-transformers' own model of the same file on the CPU, too, in turns with this one
    #[arg(long)]
    baseline: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    settings: Settings,
}

/// What is measured instead of a chat model.
#[derive(Debug, clap::Subcommand)]
enum Other {
    /// Measure the vector index: recall against queries per second
    Index(Box<index::Args>),
}

/// One of the three figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Measure {
    /// The prompt, to the first token
    Prefill,
    /// One stream
    Decode,
    /// As many streams at once as `--parallel` says
    Streams,
}

/// What is measured.
#[derive(Clone, Copy, Debug)]
struct Workload {
    prompt_tokens: usize,
    decode_tokens: usize,
    /// Tokens of the prompt after which the single stream decodes.
    depth: usize,
    parallel: usize,
    repetitions: usize,
    prefill: bool,
    decode: bool,
    streams: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    if let Some(Other::Index(args)) = &args.other {
        return index::run(args);
    }
    ensure!(args.prompt_tokens >= 1, "--prompt-tokens must be at least 1");
    ensure!(args.decode_tokens >= 2, "--decode-tokens must be at least 2: one comes from the prefill");
    ensure!(args.depth >= 1, "--depth must be at least 1: decoding begins after a token");
    ensure!(args.repetitions >= 1, "--repetitions must be at least 1");
    let mut settings = args.settings;
    // Warnings, such as a missing chat template, do not matter here.
    settings.log.get_or_insert_with(|| "error".to_owned());
    settings.parallel.get_or_insert(8);
    settings.port.get_or_insert(0);
    let longest = args.prompt_tokens.max(args.depth) + args.decode_tokens + 16;
    settings.ctx_size.get_or_insert(longest);
    // Every prompt is new: a cache hit would only be measured by mistake.
    settings.no_prefix_cache = Some(true);
    let config = Config::load(settings)?;
    telemetry::init_logs(&config.log_filter, config.log_format)?;
    let model = app::load_chat(&config)?.with_context(|| app::no_chat_model(&config))?;
    let context_length = model.info().context_length;
    ensure!(
        longest <= context_length + 16,
        "{} prompt and {} decode tokens do not fit the context of {context_length} tokens: ask for fewer",
        args.prompt_tokens.max(args.depth),
        args.decode_tokens
    );
    let workload = Workload {
        prompt_tokens: args.prompt_tokens,
        decode_tokens: args.decode_tokens,
        depth: args.depth,
        parallel: config.engine.max_running_sequences,
        repetitions: args.repetitions,
        prefill: args.measure.contains(&Measure::Prefill),
        decode: args.measure.contains(&Measure::Decode),
        streams: args.measure.contains(&Measure::Streams),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let baseline = match args.baseline {
        true => Some(load_baseline(&config, model.info())?),
        false => None,
    };
    let (in_process, baseline) = runtime.block_on(in_process::measure(model.engine(), baseline, workload))?;
    let over_http = match args.http {
        true => Some(runtime.block_on(http::measure(&config, model.clone(), workload))?),
        false => None,
    };
    let report = Report::new(model.info(), workload, in_process, over_http, baseline);
    args.output.write(report.to_table(), &report.to_json())?;
    if let Some(path) = &args.output.plot {
        plot::draw(&report, path)?;
    }
    Ok(())
}

fn load_baseline(config: &Config, model: &ModelInfo) -> anyhow::Result<Baseline> {
    let path = app::chat_model_path(config)?.with_context(|| app::no_chat_model(config))?;
    Baseline::load(&path, &model.architecture, model.vocab_size)
}

/// A prompt that nothing has cached: a multiplicative congruential walk over the vocabulary, so that two runs measure
/// the same work.
fn prompt(length: usize, vocab_size: usize, salt: u64) -> Vec<u32> {
    let mut state = salt.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
            u32::try_from((state >> 33) % vocab_size as u64).unwrap_or(0)
        })
        .collect()
}
